// services/net/pipe_end.ts: one end of a connection between two guests of this process: no kernel, no system call.
//
// What a guest sends is copied once, into a piece of memory of its own, which then belongs to the other end. The ends
// talk by four words, whether they are on one thread, each calling the other, or on two (trunk.ts):
//
//   arrived  bytes for you                  taken   my guest has read so much: you may send that much more
//   ended    I send no more (a FIN)         broken  the connection is over (a reset)
//
// So an end never holds more than SOCKET_BUFFER_BYTES_MAX for its guest: the other has `room` for that at first, takes
// from it what it sends, and gets it back by `taken`, in steps of a quarter. Until the guest has accepted the
// connection the room is OPENING_BYTES only: thousands may wait at one listener.
//
// It ends as TCP does: each direction by itself; a close that leaves data unread breaks the connection, and so does
// data for one who has closed. After that, what had arrived can still be read, then recv() says ECONNRESET; send() says
// EPIPE. A guest that didn't end by itself leaves its connections broken: its peers must not take half for all.

import { EAGAIN, ECONNRESET, ENOTCONN, EPIPE } from '../../base/errno.ts'
import { SOCKET_BUFFER_BYTES_MAX } from '../../base/limits.ts'
import { FILETYPE_SOCKET_STREAM, type Stat } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'
import { Inbox, PIECE_BYTES } from './inbox.ts'
import type { StreamSocket } from './stream_socket.ts'

/** What may be sent before the connection is accepted. */
export const OPENING_BYTES = 16 * 1024

/** The other end, as one end sees it. */
export interface Far {
  arrived(piece: Buffer): void
  taken(bytes: number): void
  ended(): void
  broken(): void
  /** This end hears nothing more. */
  forgotten?(): void
}

/** Two ends that are linked, of one thread: that of the guest that dials, that of the one that is to accept. */
export function linkedEnds(): [dialing: PipeEnd, accepting: PipeEnd] {
  const [dialing, accepting] = [new PipeEnd('dials'), new PipeEnd('accepts')]
  dialing.link(accepting)
  accepting.link(dialing)
  return [dialing, accepting]
}

/** One end. To be linked before it is used. */
export class PipeEnd implements StreamSocket, Far {
  readonly filetype = FILETYPE_SOCKET_STREAM
  #far: Far = NOBODY
  #started: boolean
  readonly #inbox = new Inbox()
  /** No more will come: the peer's FIN, or our shutdown. */
  #readEnded = false
  /** What comes is dropped: after shutdown for reading. */
  #dropping = false
  /** What the guest has read and the other end hasn't been told. */
  #owed = 0
  #writeEnded = false
  /** Bytes and charges that the other end takes now. A little below 0 by the last piece's charge. */
  #room: number
  #failure = 0
  #closed = false
  readonly #readable = new WaitQueue()
  readonly #writable = new WaitQueue()

  constructor(role: 'dials' | 'accepts') {
    this.#started = role === 'dials'
    this.#room = role === 'dials' ? OPENING_BYTES : SOCKET_BUFFER_BYTES_MAX
  }

  link(far: Far): void { this.#far = far }

  get unread(): number { return this.#inbox.unread }

  // Beyond half of the buffer the other end may wait until it is told that we have read. What it hasn't been told of
  // is no room for it either.
  get complete(): boolean {
    return this.#readEnded || this.#failure !== 0 || this.#inbox.held + this.#owed >= SOCKET_BUFFER_BYTES_MAX / 2
  }

  start(): void {
    if (this.#started) return
    this.#started = true
    this.#far.taken(SOCKET_BUFFER_BYTES_MAX - OPENING_BYTES)
  }

  recv(iovecs: Iovecs, from = 0): number {
    const count = this.peek(iovecs, from)
    if (count > 0) this.#giveBack(this.#inbox.drop(count))
    return count
  }

  peek(iovecs: Iovecs, from = 0): number {
    if (iovecs.total <= from) return 0
    if (this.#inbox.unread > 0) return this.#inbox.copy(iovecs, from)
    if (this.#readEnded) return 0
    return this.#failure === 0 ? -EAGAIN : -this.#failure
  }

  send(iovecs: Iovecs): number {
    if (this.#writeEnded || this.#failure !== 0) return -EPIPE
    if (iovecs.total === 0) return 0
    if (this.#room <= 0) return -EAGAIN
    // Memory of its own: a piece of a shared block would keep the whole block.
    const piece = Buffer.allocUnsafeSlow(Math.min(this.#room, iovecs.total))
    iovecs.gatherInto(piece)
    // Read first: on another thread the piece isn't ours any more.
    const size = piece.length
    this.#room -= size + PIECE_BYTES
    this.#far.arrived(piece)
    return size
  }

  read(iovecs: Iovecs): number { return this.recv(iovecs) }
  write(iovecs: Iovecs): number { return this.send(iovecs) }

  shutdown(how: { read: boolean; write: boolean }): number {
    if (this.#failure !== 0) return -ENOTCONN
    if (how.write && !this.#writeEnded) {
      this.#writeEnded = true
      this.#far.ended()
      this.#writable.notify()
    }
    if (how.read && !this.#dropping) {
      this.#dropping = true
      this.#giveBack(this.#inbox.clear())
      this.#readEnded = true
      this.#readable.notify()
    }
    return 0
  }

  pollRead(): number {
    if (this.#inbox.unread > 0) return this.#inbox.unread
    return this.#readEnded || this.#failure !== 0 ? 0 : -EAGAIN
  }

  pollWrite(): number {
    if (this.#writeEnded || this.#failure !== 0) return 0
    return this.#room > 0 ? this.#room : -EAGAIN
  }

  hangup(): boolean { return this.#failure !== 0 || (this.#readEnded && this.#writeEnded) }

  awaitReadable(waker: Waker): void { this.#readable.add(waker) }
  awaitWritable(waker: Waker): void { this.#writable.add(waker) }

  forget(waker: Waker): void {
    this.#readable.delete(waker)
    this.#writable.delete(waker)
  }

  stat(): Stat {
    return { dev: 0n, ino: 0n, filetype: FILETYPE_SOCKET_STREAM, nlink: 1n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
  }

  close(): void { this.#leave(this.#inbox.unread > 0) }

  /** Its guest didn't end by itself. Nothing is broken that has ended in both directions. */
  abort(): void { this.#leave(this.#inbox.unread > 0 || !this.#readEnded || !this.#writeEnded) }

  leave(): void { this.abort() }
  reset(): void { this.#leave(true) }

  #leave(breaks: boolean): void {
    if (this.#closed) return
    this.#closed = true
    this.#inbox.clear()
    if (this.#failure === 0) {
      if (breaks) this.#far.broken()
      else if (!this.#writeEnded) this.#far.ended()
    }
    this.#writeEnded = true
    this.#far.forgotten?.()
  }

  // ---- for the other end

  arrived(piece: Buffer): void {
    if (this.#closed) return this.#far.broken()
    if (this.#dropping) return this.#giveBack(piece.length + PIECE_BYTES)
    this.#inbox.push(piece)
    this.#readable.notify()
  }

  taken(bytes: number): void {
    this.#room += bytes
    if (this.#writable.waited && this.#room >= SOCKET_BUFFER_BYTES_MAX / 2) this.#writable.notify()
  }

  ended(): void {
    this.#readEnded = true
    this.#readable.notify()
  }

  broken(): void {
    if (this.#failure !== 0) return
    this.#failure = ECONNRESET
    this.#far.forgotten?.()
    this.#readable.notify()
    this.#writable.notify()
  }

  #giveBack(bytes: number): void {
    this.#owed += bytes
    if (this.#owed < SOCKET_BUFFER_BYTES_MAX / 4 || this.#failure !== 0) return
    this.#far.taken(this.#owed)
    this.#owed = 0
  }
}

const NOBODY: Far = { arrived: () => {}, taken: () => {}, ended: () => {}, broken: () => {} }
