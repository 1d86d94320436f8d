// api/server.ts: the API on sockets: listeners in front of the app, WebSockets beside it, and its end.
//
// A request for a WebSocket runs through the same app: what it may and what it asks is checked, and refused as that of
// any other, before the connection is upgraded. When the API ends, streams and consoles are told to come again, waits
// are cut short, what is being answered has a while to finish, and then connections are closed.

import { STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Server as SecureServer } from 'node:https'
import { isIPv6, type AddressInfo, type Socket } from 'node:net'
import { getRequestListener, type HttpBindings } from '@hono/node-server'
import type { Hono } from 'hono'
import { WebSocketServer } from 'ws'
import { CellarError } from '../base/errors.ts'
import { API_JSON_BYTES_MAX } from '../base/limits.ts'
import type { Operator, Session } from '../host/operator.ts'
import type { Origin } from './auth.ts'
import { app, traceOf, type LogEntry } from './dispatch.ts'
import { SESSION_PROTOCOL } from './guest_routes.ts'
import {
  listenTcp, listenUnix, type ApiListener, type ListenerLimits, type TcpAddress, type UnixAddress,
} from './listeners.ts'
import { ApiMetrics } from './metrics.ts'
import { answerOf } from './problem.ts'
import { carry } from './session_socket.ts'

export type ServeOptions = {
  readonly socket?: UnixAddress | undefined
  readonly listen?: readonly TcpAddress[]
  readonly log?: (entry: LogEntry) => void
  /** Bounds that tests lower. */
  readonly limits?: ListenerLimits & { readonly stallMs?: number; readonly pingMs?: number; readonly bodyMs?: number }
}

export type ApiServer = {
  /** The path of the Unix socket. */
  readonly socket: string | undefined
  /** Of `listen`, in its order, such as http://127.0.0.1:8443: with the ports that were free. */
  readonly urls: readonly string[]
  /** Takes other certificates for the addresses that have some, in the order of `listen`. Throws for unusable ones. */
  readonly renew: (listen: readonly TcpAddress[]) => void
  /** Ends it, after `graceMs` at the latest. Doesn't throw. */
  readonly close: (options: { readonly graceMs: number }) => Promise<void>
}

/** Serves the API. Throws PORT_IN_USE, LISTEN_FAILED, FLAG_VALUE_INVALID; then nothing is left open. */
export async function serve(operator: Operator, options: ServeOptions): Promise<ApiServer> {
  const closing = new AbortController()
  const metrics = new ApiMetrics()
  const { log = () => {}, limits = {} } = options
  const hono = app(operator, { log, closing: closing.signal, metrics, bodyTimeoutMs: limits.bodyMs,
    stallMs: limits.stallMs })
  const front = new Front(hono, log, closing.signal, limits)
  const listeners: ApiListener[] = []
  /** Those of TCP under TLS, and those that became WebSockets: a server knows neither. */
  const connections = new Set<Socket>()
  // Handlers are there before the first connection is: it comes with a later turn of the event loop.
  const open = (listener: ApiListener): void => {
    listeners.push(listener)
    const { server, originOf } = listener
    server.on('request', (incoming, outgoing) => { void front.request(incoming, outgoing, listener) })
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
      void front.upgrade(request, socket, head, originOf(socket))
    })
    server.on('connection', (socket: Socket) => {
      connections.add(socket)
      socket.once('close', () => { connections.delete(socket) })
    })
    server.on('drop', () => { metrics.refused++ })
  }
  const close = async ({ graceMs }: { readonly graceMs: number }): Promise<void> => {
    closing.abort()
    await Promise.all(listeners.map(({ server }) => ended(server, connections, graceMs)))
    metrics.close()
  }
  try {
    if (options.socket !== undefined) open(await listenUnix(options.socket, limits))
    for (const address of options.listen ?? []) open(await listenTcp(address, limits))
  } catch (error) {
    await close({ graceMs: 0 })
    throw error
  }
  const tcp = listeners.slice(options.socket === undefined ? 0 : 1)
  const renew = (listen: readonly TcpAddress[]): void => listen.forEach(({ tls }, i) => {
    if (tls === undefined) return
    const { cert, key, clientCa } = tls;
    (tcp[i]!.server as SecureServer).setSecureContext({ cert, key, ...clientCa === undefined ? {} : { ca: clientCa } })
  })
  return {
    socket: options.socket?.path, close, renew,
    urls: tcp.map(({ server }, i) => urlOf(server, options.listen![i]!.tls !== undefined)),
  }
}

function urlOf(server: Server, isSecure: boolean): string {
  const { address, port } = server.address() as AddressInfo
  return `http${isSecure ? 's' : ''}://${isIPv6(address) ? `[${address}]` : address}:${port}`
}

async function ended(server: Server, connections: ReadonlySet<Socket>, graceMs: number): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(() => {
      for (const socket of connections) socket.destroy()
    }, graceMs)
    server.close(() => {
      clearTimeout(timer)
      resolve()
    })
    server.closeIdleConnections()
  })
}

/** What becomes of a connection's requests. */
class Front {
  readonly #app: Hono<{ Bindings: Origin }>
  readonly #log: (entry: LogEntry) => void
  readonly #closing: AbortSignal
  readonly #limits: NonNullable<ServeOptions['limits']>
  readonly #listener: ReturnType<typeof getRequestListener>
  readonly #origins = new WeakMap<IncomingMessage, Origin>()
  readonly #sockets = new WebSocketServer({
    noServer: true, perMessageDeflate: false, maxPayload: API_JSON_BYTES_MAX, clientTracking: false,
    handleProtocols: () => SESSION_PROTOCOL,
  })

  constructor(hono: Hono<{ Bindings: Origin }>, log: (entry: LogEntry) => void, closing: AbortSignal,
    limits: NonNullable<ServeOptions['limits']>) {
    this.#app = hono
    this.#log = log
    this.#closing = closing
    this.#limits = limits
    this.#listener = getRequestListener((request, bindings) =>
      hono.fetch(request, this.#origins.get((bindings as HttpBindings).incoming) ?? {}), {
      overrideGlobalObjects: false,
      // A target or a Host header that isn't a URL: nothing was asked.
      errorHandler: () =>
        problemResponse(new CellarError('REQUEST_INVALID', ['its target is no path, or its Host no name'])),
    })
  }

  async request(incoming: IncomingMessage, outgoing: ServerResponse, { originOf }: ApiListener): Promise<void> {
    try {
      this.#origins.set(incoming, originOf(incoming.socket))
      await this.#listener(incoming, outgoing)
    } catch (error) {
      this.#failed(error)
      outgoing.destroy()
    }
  }

  /** Runs the request through the app, and upgrades the connection if that opened a session. */
  async upgrade(request: IncomingMessage, socket: Socket, head: Buffer, from: Origin): Promise<void> {
    socket.on('error', () => {}) // Its close follows.
    const upgrade: { session?: Session } = {}
    try {
      const response = await this.#app.fetch(await asRequest(request), { ...from, upgrade })
      const { session } = upgrade
      if (session === undefined) return await refuse(socket, response)
      this.#carry(request, socket, head, session, response.headers.get('x-request-id') ?? '')
    } catch (error) {
      if (!(error instanceof CellarError)) this.#failed(error)
      upgrade.session?.close()
      await refuse(socket, problemResponse(error))
    }
  }

  #carry(request: IncomingMessage, socket: Socket, head: Buffer, session: Session, requestId: string): void {
    if (socket.destroyed) return session.close()
    // Until the handshake is done the socket's end is the session's; `carry` closes it too, which does no harm.
    socket.once('close', () => session.close())
    this.#sockets.handleUpgrade(request, socket, head, (webSocket) => {
      void carry(webSocket, session, {
        requestId, closing: this.#closing, stallMs: this.#limits.stallMs, pingMs: this.#limits.pingMs,
        failed: (error) => this.#failed(error),
      })
    })
  }

  #failed(error: unknown): void {
    this.#log({ level: 'error', msg: 'connection failed', error: traceOf(error) })
  }
}

/** The request of an upgrade as the app takes it. Throws REQUEST_INVALID if it can't become a WebSocket of ours. */
async function asRequest({ headers, method, url }: IncomingMessage): Promise<Request> {
  const offered = headers['sec-websocket-protocol']?.split(',').map((name) => name.trim()) ?? []
  const wrong = method !== 'GET' ? 'a WebSocket begins with GET'
    : headers['sec-websocket-version'] !== '13' ? 'the version of WebSocket must be 13'
    : !/^[+/0-9A-Za-z]{22}==$/.test(headers['sec-websocket-key'] ?? '') ? 'it has no good Sec-WebSocket-Key'
    : !offered.includes(SESSION_PROTOCOL) ? `the sub-protocol must be ${SESSION_PROTOCOL}` : undefined
  if (wrong !== undefined) throw new CellarError('REQUEST_INVALID', [wrong])
  const given = new Headers()
  for (const name of ['host', 'origin', 'authorization', 'x-request-id', 'traceparent']) {
    const value = headers[name]
    if (typeof value === 'string') given.set(name, value)
  }
  try {
    // The origin of the URL means nothing: the Host header is checked as it came.
    return new Request(new URL(`http://host${url ?? '/'}`), { headers: given })
  } catch {
    throw new CellarError('REQUEST_INVALID', ['its target is no path'])
  }
}

function problemResponse(error: unknown): Response {
  const problem = answerOf(error, crypto.randomUUID())
  return new Response(JSON.stringify(problem), {
    status: problem.status, headers: { 'content-type': 'application/problem+json', 'x-request-id': problem.requestId! },
  })
}

/** Answers on a connection that isn't upgraded, and closes it. */
async function refuse(socket: Socket, response: Response): Promise<void> {
  const body = Buffer.from(await response.arrayBuffer())
  const headers = [...response.headers].filter(([name]) => name !== 'connection')
    .map(([name, value]) => `${name}: ${value}\r\n`).join('')
  const status = `${response.status} ${STATUS_CODES[response.status] ?? ''}`
  socket.end(Buffer.concat([
    Buffer.from(`HTTP/1.1 ${status}\r\n${headers}connection: close\r\ncontent-length: ${body.length}\r\n\r\n`), body,
  ]))
}
