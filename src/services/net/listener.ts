// services/net/listener.ts: a listening TCP socket that the operator grants (`--listen tcp:127.0.0.1:8080`).
//
// Node takes every connection as soon as the kernel has one, and has no way to stop: a paused server doesn't exist, and
// its `maxConnections` counts connections in use, not those that wait. So we hold what the guest has not accepted yet,
// unread, up to LISTEN_BACKLOG_MAX. What comes beyond is reset at once, as Linux does with tcp_abort_on_overflow: the
// client learns that the server is overloaded instead of waiting for an answer that nobody is working on.
//
// Several cells may hold one listener; each connection goes to the first that asks.
//
// The socket may also be one that another process has opened and handed over (listenOn): a cell process has no network.
//
// Elsewhere: what becomes of an accepted connection (connection.ts).

import { createServer, isIPv4, isIPv6 } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { EAGAIN } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { LISTEN_BACKLOG_MAX } from '../../base/limits.ts'
import { FILETYPE_SOCKET_STREAM } from '../descriptor.ts'
import type { Stat } from '../descriptor.ts'
import type { SavedIs } from '../saved.ts'
import { WaitQueue } from '../wait_queue.ts'
import type { Waker } from '../wait_queue.ts'
import { Connection } from './connection.ts'
import type { StreamListener } from './stream_socket.ts'

/** Listens on `spec`, such as 'tcp:127.0.0.1:8080', 'tcp:[::1]:80' or 'tcp:localhost:0' (any free port). */
export async function listen(spec: string): Promise<Listener> {
  const { host, port } = parseListen(spec)
  return new Listener(await serverOn({ host, port }, (error) => listenError(host, port, error)))
}

/** Listens on a TCP socket of the process, which is not the caller's from now on. Throws LISTEN_FAILED. */
export async function listenOn(fd: number): Promise<Listener> {
  return new Listener(await serverOn({ fd }, (cause) =>
    new CellarError('LISTEN_FAILED', [`descriptor ${fd}`, cause.message], { cause })))
}

async function serverOn(
  where: { host: string; port: number } | { fd: number }, refusal: (error: NodeJS.ErrnoException) => CellarError,
): Promise<Server> {
  // noDelay: a guest's send is a message; the guest can gather, and we can't know what it will send next.
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(error)))
    server.listen({ ...where, backlog: LISTEN_BACKLOG_MAX, exclusive: true }, resolve)
  })
  server.removeAllListeners('error')
  return server
}

/** Host and port of 'tcp:HOST:PORT', an IPv6 address in brackets. Throws FLAG_VALUE_INVALID. */
export function parseListen(spec: string): { host: string; port: number } {
  const match = /^tcp:(?:\[([^\]]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(spec)
  const port = Number(match?.[3])
  const [, bracketed, name] = match ?? []
  const host = bracketed ?? name ?? ''
  const valid = bracketed === undefined ? isIPv4(host) || /[A-Za-z]/.test(host) : isIPv6(host)
  if (match === null || !valid || port > 65_535) {
    const want = 'tcp:HOST:PORT, such as tcp:127.0.0.1:8080 or tcp:[::1]:0'
    throw new CellarError('FLAG_VALUE_INVALID', ['--listen', spec, want])
  }
  return { host, port }
}

/** A socket that accepts connections. */
export class Listener implements StreamListener {
  readonly filetype = FILETYPE_SOCKET_STREAM
  readonly grant = 'listener'
  /** What it listens on, such as '127.0.0.1:8080' or '[::1]:80'. */
  readonly address: string
  readonly port: number
  /** Connections that were reset since too many waited already. */
  refused = 0
  readonly #server: Server
  readonly #waiting: Connection[] = []
  readonly #readable = new WaitQueue()

  /** `server` listens, with allowHalfOpen and pauseOnConnect. */
  constructor(server: Server) {
    this.#server = server
    const { address, port } = server.address() as AddressInfo
    this.address = formatAddress(address, port)
    this.port = port
    server.on('connection', (socket) => {
      if (this.#waiting.length >= LISTEN_BACKLOG_MAX) {
        this.refused++
        socket.resetAndDestroy()
        return
      }
      this.#waiting.push(new Connection(socket))
      this.#readable.notify()
    })
    // Taking a connection may fail (the process has no descriptor left). It isn't the end of the listener: the next
    // connection tries again, and without a handler Node would end the process.
    server.on('error', () => {})
  }

  /** The connection that has waited longest, or -EAGAIN. */
  accept(): Connection | number {
    const connection = this.#waiting.shift()
    if (connection === undefined) return -EAGAIN
    connection.start()
    return connection
  }

  pollRead(): number { return this.#waiting.length > 0 ? 1 : -EAGAIN }

  awaitReadable(waker: Waker): void { this.#readable.add(waker) }
  forget(waker: Waker): void { this.#readable.delete(waker) }

  stat(): Stat {
    return { dev: 0n, ino: 0n, filetype: FILETYPE_SOCKET_STREAM, nlink: 1n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
  }

  save(number: number): SavedIs { return { kind: 'listener', port: number } }

  /** Stops listening and resets whoever waits. Accepted connections live on. */
  close(): void {
    if (this.#server.listening) this.#server.close()
    for (const connection of this.#waiting) connection.reset()
    this.#waiting.length = 0
    this.#readable.notify()
  }
}

function formatAddress(host: string, port: number): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`
}

function listenError(host: string, port: number, error: NodeJS.ErrnoException): CellarError {
  const address = formatAddress(host, port)
  if (error.code === 'EADDRINUSE') return new CellarError('PORT_IN_USE', [address], { cause: error })
  return new CellarError('LISTEN_FAILED', [address, REASONS[error.code ?? ''] ?? error.message], { cause: error })
}

const REASONS: Record<string, string> = {
  EACCES: 'the system reserves this port for the administrator',
  EADDRNOTAVAIL: 'no interface of this machine has the address',
  EAFNOSUPPORT: 'this machine has no such address family',
  EAI_AGAIN: 'the host name can\'t be resolved now',
  ENOTFOUND: 'the host name is unknown',
}
