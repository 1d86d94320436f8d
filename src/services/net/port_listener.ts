// services/net/port_listener.ts: a port of a guest: connections from cells and from sockets of the host, as one
// listening socket. Who comes from where is taken in turns, so that a flood from one side doesn't keep the other out.

import { EAGAIN } from '../../base/errno.ts'
import { LISTEN_BACKLOG_MAX } from '../../base/limits.ts'
import { FILETYPE_SOCKET_STREAM, type Stat } from '../descriptor.ts'
import type { SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'
import type { StreamListener, StreamSocket } from './stream_socket.ts'

/** A port on which a guest listens. */
export class PortListener implements StreamListener {
  readonly filetype = FILETYPE_SOCKET_STREAM
  readonly grant = 'listener'
  /** Listening sockets of the host. */
  readonly #sockets: readonly StreamListener[]
  readonly #waiting: StreamSocket[] = []
  readonly #readable = new WaitQueue()
  /** Who is asked first: 0 for connections that were offered, then the sockets. */
  #next = 0
  #closed = false

  constructor(sockets: readonly StreamListener[]) {
    this.#sockets = sockets
  }

  /** False if nobody takes connections here any more, or too many wait. */
  get takes(): boolean { return !this.#closed && this.#waiting.length < LISTEN_BACKLOG_MAX }

  /** Adds a connection that somebody has made; one at a time of which `takes` was true. */
  offer(connection: StreamSocket): void {
    this.#waiting.push(connection)
    this.#readable.notify()
  }

  accept(): StreamSocket | number {
    const sources = this.#sockets.length + 1
    for (let i = 0; i < sources; i++) {
      const source = (this.#next + i) % sources
      const accepted = source === 0 ? this.#shift() : this.#sockets[source - 1]!.accept()
      if (typeof accepted === 'number') continue
      this.#next = (source + 1) % sources
      return accepted
    }
    return -EAGAIN
  }

  #shift(): StreamSocket | number {
    const connection = this.#waiting.shift()
    if (connection === undefined) return -EAGAIN
    connection.start()
    return connection
  }

  pollRead(): number {
    if (this.#waiting.length > 0) return 1
    for (const socket of this.#sockets) if (socket.pollRead() > 0) return 1
    return -EAGAIN
  }

  awaitReadable(waker: Waker): void {
    this.#readable.add(waker)
    for (const socket of this.#sockets) socket.awaitReadable(waker)
  }

  forget(waker: Waker): void {
    this.#readable.delete(waker)
    for (const socket of this.#sockets) socket.forget(waker)
  }

  stat(): Stat {
    return { dev: 0n, ino: 0n, filetype: FILETYPE_SOCKET_STREAM, nlink: 1n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
  }

  save(number: number): SavedIs { return { kind: 'listener', port: number } }

  /** Stops listening and resets whoever waits. Accepted connections live on. */
  close(): void {
    this.#closed = true
    for (const socket of this.#sockets) socket.close()
    for (const connection of this.#waiting.splice(0)) connection.reset()
    this.#readable.notify()
  }
}
