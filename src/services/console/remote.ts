// services/console/remote.ts: a guest's console that another thread keeps: output goes there piece by piece, input
// comes from there.
//
// A piece that was posted counts against the stream's window until the other side says that it is done with it
// (`credit`), so a guest that floods waits and holds OUTPUT_WINDOW_BYTES_MAX at most. As with a pipe, a write of up to
// ATOMIC_BYTES is taken whole or not at all. stdout and stderr go through one port, so their order is kept. An idle
// guest has these objects and nothing else: queues and buffers are made when they are needed.

import { EAGAIN, EPIPE } from '../../base/errno.ts'
import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../../base/limits.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { consoleStream, type SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'

/** Linux's PIPE_BUF. */
const ATOMIC_BYTES = 4096

/** The way to who keeps the consoles of a thread's guests, by their numbers. */
export interface RemotePort {
  /** The bytes are handed over. `channel`: 1 stdout, 2 stderr. */
  output(guest: number, channel: number, bytes: Uint8Array<ArrayBuffer>): void
  /** The guest has read so many bytes of its input. */
  taken(guest: number, count: number): void
}

/** stdout or stderr. */
export class RemoteOutput implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly grant = 'console'
  readonly #port: RemotePort
  readonly #guest: number
  readonly #channel: number
  #room = OUTPUT_WINDOW_BYTES_MAX
  #writable: WaitQueue | undefined
  #isReaderGone = false

  constructor(port: RemotePort, guest: number, channel: number) {
    this.#port = port
    this.#guest = guest
    this.#channel = channel
  }

  write(iovecs: Iovecs): number {
    if (this.#isReaderGone) return -EPIPE
    if (iovecs.total === 0) return 0
    const room = this.#room - OUTPUT_PIECE_BYTES
    if (room < Math.min(iovecs.total, ATOMIC_BYTES)) return -EAGAIN
    const bytes = firstOf(iovecs, Math.min(iovecs.total, room))
    // Once it is handed over it has no length any more.
    const { length } = bytes
    this.#room -= length + OUTPUT_PIECE_BYTES
    this.#port.output(this.#guest, this.#channel, bytes)
    return length
  }

  pollWrite(): number {
    return this.#isReaderGone || this.#room >= ATOMIC_BYTES + OUTPUT_PIECE_BYTES ? 1 : -EAGAIN
  }

  awaitWritable(waker: Waker): void { (this.#writable ??= new WaitQueue()).add(waker) }
  forget(waker: Waker): void { this.#writable?.delete(waker) }
  save(number: number): SavedIs { return consoleStream(number) }
  close(): void {}

  /** The other side is done with pieces that cost `bytes`, OUTPUT_PIECE_BYTES each included. */
  credit(bytes: number): void {
    this.#room = Math.min(OUTPUT_WINDOW_BYTES_MAX, this.#room + bytes)
    this.#writable?.notify()
  }

  /** Nobody reads any more: the next write ends the guest by SIGPIPE. */
  hangUp(): void {
    this.#isReaderGone = true
    this.#writable?.notify()
  }
}

/** stdin that stays open until its end comes. */
export class RemoteInput implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly grant = 'console'
  readonly #port: RemotePort
  readonly #guest: number
  #chunks: Uint8Array[] | undefined
  #size = 0
  #ended = false
  #readable: WaitQueue | undefined

  constructor(port: RemotePort, guest: number) {
    this.#port = port
    this.#guest = guest
  }

  read(iovecs: Iovecs): number {
    const chunk = this.#chunks?.[0]
    if (chunk === undefined) return this.#ended ? 0 : -EAGAIN
    const count = iovecs.scatter(chunk)
    if (count === chunk.length) this.#chunks!.shift()
    else this.#chunks![0] = chunk.subarray(count)
    this.#size -= count
    if (count > 0) this.#port.taken(this.#guest, count)
    return count
  }

  pollRead(): number { return this.#size > 0 ? this.#size : this.#ended ? 0 : -EAGAIN }
  awaitReadable(waker: Waker): void { (this.#readable ??= new WaitQueue()).add(waker) }
  forget(waker: Waker): void { this.#readable?.delete(waker) }
  save(number: number): SavedIs { return consoleStream(number) }
  close(): void {}

  /** Gives the guest more to read. The bytes are kept, not copied: who writes sees to it that they are bounded. */
  push(bytes: Uint8Array): void {
    if (bytes.length === 0 || this.#ended) return
    (this.#chunks ??= []).push(bytes)
    this.#size += bytes.length
    this.#readable?.notify()
  }

  /** Of a guest that goes on elsewhere: takes back what it hasn't read, and tells whether the end has come. */
  takeUnread(): { readonly pieces: readonly Uint8Array[]; readonly ended: boolean } {
    const pieces = this.#chunks?.splice(0) ?? []
    this.#size = 0
    return { pieces, ended: this.#ended }
  }

  /** No more comes: the guest reads the end. */
  end(): void {
    this.#ended = true
    this.#readable?.notify()
  }
}

// The first bytes of the ranges: no more of them is copied than is taken.
function firstOf(iovecs: Iovecs, count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(count)
  for (let i = 0, done = 0; done < count; i++) {
    const range = iovecs.bytes(i)
    bytes.set(range.length <= count - done ? range : range.subarray(0, count - done), done)
    done += range.length
  }
  return bytes
}
