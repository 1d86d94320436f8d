// services/net/lazy_connection.ts: a connection that a guest has from its start, for programs that know inherited
// descriptors only (`connect`). It is made at the first use: whom it leads to may start later than the guest.
//
// Until then it is one on which nothing has come and nothing can be sent. Who can't be reached is tried again for
// REACH_MS_MAX; after that every use is answered with the reason.

import { EAGAIN, ENOTCONN, ETIMEDOUT } from '../../base/errno.ts'
import { FILETYPE_SOCKET_STREAM, type Stat } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'
import type { StreamSocket } from './stream_socket.ts'

/** How long it is tried to reach the other. */
const REACH_MS_MAX = 30_000
/** Pauses between tries: doubled from the first to the last. */
const PAUSE_MS_MIN = 50
const PAUSE_MS_MAX = 1000

/** See the head of this file. */
export class LazyConnection implements StreamSocket {
  readonly filetype = FILETYPE_SOCKET_STREAM
  readonly #dial: () => Promise<StreamSocket | number>
  readonly #reachMs: number
  #socket: StreamSocket | undefined
  #dialing = false
  #failure = 0
  #closed = false
  #pause: NodeJS.Timeout | undefined
  /** Who waits for it to be made, or to fail. */
  readonly #made = new WaitQueue()

  /** `dial` gives the connection, started, or an errno: then it is asked again until `reachMs` have passed. */
  constructor(dial: () => Promise<StreamSocket | number>, reachMs: number = REACH_MS_MAX) {
    this.#dial = dial
    this.#reachMs = reachMs
  }

  get unread(): number { return this.#socket?.unread ?? 0 }
  get complete(): boolean { return this.#failure !== 0 || (this.#socket?.complete ?? false) }

  start(): void {}

  recv(iovecs: Iovecs, from = 0): number {
    const missing = this.#missing()
    return missing === 0 ? this.#socket!.recv(iovecs, from) : missing
  }

  peek(iovecs: Iovecs, from = 0): number {
    const missing = this.#missing()
    return missing === 0 ? this.#socket!.peek(iovecs, from) : missing
  }

  send(iovecs: Iovecs): number {
    const missing = this.#missing()
    return missing === 0 ? this.#socket!.send(iovecs) : missing
  }

  read(iovecs: Iovecs): number { return this.recv(iovecs) }
  write(iovecs: Iovecs): number { return this.send(iovecs) }

  shutdown(how: { read: boolean; write: boolean }): number { return this.#socket?.shutdown(how) ?? -ENOTCONN }

  // What has failed is ready: reading or writing it tells why.
  pollRead(): number {
    const missing = this.#missing()
    return missing === 0 ? this.#socket!.pollRead() : missing === -EAGAIN ? missing : 0
  }

  pollWrite(): number {
    const missing = this.#missing()
    return missing === 0 ? this.#socket!.pollWrite() : missing === -EAGAIN ? missing : 0
  }

  hangup(): boolean { return this.#failure !== 0 || (this.#socket?.hangup() ?? false) }

  awaitReadable(waker: Waker): void {
    if (this.#socket === undefined) this.#made.add(waker)
    else this.#socket.awaitReadable(waker)
  }

  awaitWritable(waker: Waker): void {
    if (this.#socket === undefined) this.#made.add(waker)
    else this.#socket.awaitWritable(waker)
  }

  forget(waker: Waker): void {
    this.#made.delete(waker)
    this.#socket?.forget(waker)
  }

  stat(): Stat {
    return { dev: 0n, ino: 0n, filetype: FILETYPE_SOCKET_STREAM, nlink: 1n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#pause)
    this.#socket?.close()
  }

  abort(): void {
    this.#socket?.abort?.()
    this.close()
  }

  leave(): void {
    this.#socket?.leave?.()
    this.close()
  }

  reset(): void {
    this.#socket?.reset()
    this.close()
  }

  // 0 if the connection is there, -EAGAIN while it is being made, else why there is none.
  #missing(): number {
    if (this.#socket !== undefined) return 0
    if (this.#failure !== 0) return -this.#failure
    if (!this.#dialing) {
      this.#dialing = true
      void this.#try(performance.now() + this.#reachMs, PAUSE_MS_MIN)
    }
    return -EAGAIN
  }

  async #try(until: number, pauseMs: number): Promise<void> {
    const answer = await this.#dial()
    if (this.#closed) {
      if (typeof answer !== 'number') answer.close()
      return
    }
    if (typeof answer !== 'number') this.#socket = answer
    else if (performance.now() + pauseMs < until) {
      this.#pause = setTimeout(() => void this.#try(until, Math.min(pauseMs * 2, PAUSE_MS_MAX)), pauseMs)
      return
    } else this.#failure = answer === EAGAIN ? ETIMEDOUT : answer
    this.#made.notify()
  }
}
