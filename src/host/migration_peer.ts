// host/migration_peer.ts: the other host of a move, as the source speaks to it: its API, over one connection or two.
//
// Who it is, its certificate says: one that an authority has signed, or the one whose fingerprint was given. Nothing is
// sent before that is known, the token least of all. Connections are kept open, as what is sent while the guest stands
// still mustn't wait for one. What it answers is a stranger's word: bounded, and read as data.

import { Agent as HttpAgent, request as requestHttp, type IncomingMessage, type RequestOptions } from 'node:http'
import { Agent as HttpsAgent, request as requestHttps } from 'node:https'
import { isIPv4 } from 'node:net'
import type { Duplex } from 'node:stream'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { connect, type ConnectionOptions } from 'node:tls'
import { CellarError } from '../base/errors.ts'
import { MOVE_ANSWER_BYTES_MAX, MOVE_STALL_MS } from '../base/limits.ts'
import { printable } from '../base/printable.ts'

/** Where a host is, and how to be let in. `to`: https://…, http://… on a loopback address, or unix:/PATH. */
export type PeerAddress = { readonly to: string; readonly token?: string | undefined
  readonly fingerprint?: string | undefined }

/** What it says when it refuses: a problem of the API (RFC 9457). */
export class PeerProblem extends Error {
  readonly status: number
  readonly code: string

  constructor(status: number, code: string, detail: string) {
    super(detail)
    this.status = status
    this.code = code
  }
}

type Ask = { readonly json?: unknown; readonly bytes?: AsyncIterable<Uint8Array>; readonly type?: string
  readonly signal?: AbortSignal | undefined }

/** One host, from another. Close it. */
export class Peer {
  readonly #address: PeerAddress
  readonly #url: URL | undefined
  readonly #agent: HttpAgent | HttpsAgent

  /** Throws MOVE_INSECURE, REQUEST_INVALID. */
  constructor(address: PeerAddress) {
    this.#address = address
    const { to, fingerprint } = address
    const options = { keepAlive: true, maxSockets: SOCKETS_MAX }
    if (to.startsWith('unix:')) {
      this.#agent = new HttpAgent(options)
      return
    }
    const url = this.#url = URL.parse(to) ?? undefined
    if (url === undefined || !['http:', 'https:'].includes(url.protocol) || url.username !== '') {
      throw new CellarError('REQUEST_INVALID', [`"${printable(to, 200)}" is no address of a host`])
    }
    if (url.protocol === 'http:' && !isLoopback(url.hostname)) throw new CellarError('MOVE_INSECURE', [this.name])
    this.#agent = url.protocol === 'http:' ? new HttpAgent(options)
      : fingerprint === undefined ? new HttpsAgent(options) : new PinnedAgent(options, fingerprint)
  }

  /** For messages. */
  get name(): string { return this.#url?.origin ?? this.#address.to.slice(0, 200) }

  /** Asks, and reads what is answered. Throws PeerProblem, HOST_UNREACHABLE, and what the signal says. */
  async ask<T>(method: string, path: string, ask: Ask = {}): Promise<T> {
    const { json, bytes, type = 'application/octet-stream', signal } = ask
    const { token } = this.#address
    const options: RequestOptions = { method, agent: this.#agent, timeout: MOVE_STALL_MS, headers: {
      accept: 'application/json', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(bytes !== undefined ? { 'content-type': type } : json === undefined ? {}
        : { 'content-type': 'application/json' }),
    }, ...(signal === undefined ? {} : { signal }), ...this.#place(path) }
    const request = (this.#url?.protocol === 'https:' ? requestHttps : requestHttp)(options)
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    request.on('response', resolve)
    request.on('error', (error) => reject(error))
    request.on('timeout', () => request.destroy(new Error(`nothing has moved for ${MOVE_STALL_MS / 1000} s`)))
    try {
      if (bytes !== undefined) pipeline(Readable.from(bytes, { objectMode: false }), request).catch(reject)
      else request.end(json === undefined ? undefined : JSON.stringify(json))
      const answer = await promise
      const text = await read(answer)
      if (answer.statusCode! >= 300) throw problemOf(answer.statusCode!, text)
      return (text === '' ? undefined : JSON.parse(text)) as T
    } catch (error) {
      request.destroy()
      signal?.throwIfAborted()
      if (error instanceof PeerProblem || error instanceof CellarError) throw error
      const why = printable((error as Error).message, 200)
      throw new CellarError('HOST_UNREACHABLE', [this.name, why], { cause: error })
    }
  }

  close(): void { this.#agent.destroy() }

  #place(path: string): RequestOptions {
    const url = this.#url
    if (url === undefined) return { socketPath: this.#address.to.slice('unix:'.length), path }
    return { host: url.hostname.replace(/^\[|\]$/g, ''), port: url.port, path: url.pathname.replace(/\/$/, '') + path }
  }
}

/** Connections to who has this certificate, whoever has signed it. */
class PinnedAgent extends HttpsAgent {
  readonly #fingerprint: string

  constructor(options: ConstructorParameters<typeof HttpsAgent>[0], fingerprint: string) {
    super(options)
    this.#fingerprint = fingerprint
  }

  override createConnection(options: ConnectionOptions, done?: (error: Error | null, socket: Duplex) => void):
  undefined {
    // The certificate is looked at below, before anybody can write.
    const socket = connect({ ...options, rejectUnauthorized: false })
    socket.once('error', (error) => done?.(error, socket))
    socket.once('secureConnect', () => {
      const found = socket.getPeerCertificate().fingerprint256
      if (found === this.#fingerprint) return done?.(null, socket)
      socket.destroy(new Error(`its certificate is another: ${found}`))
    })
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '[::1]' || (isIPv4(host) && host.startsWith('127.'))
}

async function read(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > MOVE_ANSWER_BYTES_MAX) throw new Error('it answers without end')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

function problemOf(status: number, text: string): Error {
  try {
    const { code, detail } = JSON.parse(text) as Record<string, unknown>
    if (typeof code === 'string' && typeof detail === 'string') {
      return new PeerProblem(status, code, printable(detail, 1000))
    }
  } catch { /* It is no problem of ours. */ }
  return new Error(`it answers with status ${status}`)
}

/** One at work, one for a question meanwhile. */
const SOCKETS_MAX = 2
