// services/console/console.ts: consoles that live in memory.
//
// A cell sees a console as three streams. Where they lead is the operator's business: to the files and terminals that
// `cellar run` was started with (stdio.ts), into memory where the host keeps or forwards them (here), or nowhere.
// A stream that is full makes the guest wait: nothing is dropped, and nobody's memory grows without bound.

import { EAGAIN, EPIPE } from '../../base/errno.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { consoleStream, type SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'

/** Takes everything and keeps nothing; reads as ended. */
export const nullConsole: Descriptor = {
  filetype: FILETYPE_UNKNOWN,
  read: () => 0,
  write: (iovecs) => iovecs.total,
  pollRead: () => 0,
  pollWrite: () => 1,
  grant: 'console',
  save: consoleStream,
  close: () => {},
}

/** An output stream that someone of ours reads: holds up to `capacity` bytes, then the guest waits. */
export class OutputBuffer implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly grant = 'console'
  readonly #capacity: number
  readonly #writable = new WaitQueue()
  /** Called after each write. */
  onData: (() => void) | undefined
  #chunks: Uint8Array[] = []
  #size = 0
  #readerGone = false

  constructor(capacity: number) { this.#capacity = capacity }

  write(iovecs: Iovecs): number {
    if (this.#readerGone) return -EPIPE
    const room = this.#capacity - this.#size
    if (room <= 0) return -EAGAIN
    const bytes = iovecs.gather()
    const taken = bytes.length <= room ? bytes : bytes.subarray(0, room)
    this.#chunks.push(taken)
    this.#size += taken.length
    this.onData?.()
    return taken.length
  }

  pollWrite(): number { return this.#size < this.#capacity || this.#readerGone ? 1 : -EAGAIN }
  awaitWritable(waker: Waker): void { this.#writable.add(waker) }
  forget(waker: Waker): void { this.#writable.delete(waker) }
  save(number: number): SavedIs { return consoleStream(number) }
  close(): void {}

  /** Takes all that is there; the guest may write on. */
  take(): Buffer {
    const all = Buffer.concat(this.#chunks)
    this.#chunks = []
    this.#size = 0
    this.#writable.notify()
    return all
  }

  /** Nobody reads any more: the next write ends the guest by SIGPIPE. */
  hangUp(): void {
    this.#readerGone = true
    this.#writable.notify()
  }
}

/** An input stream that someone of ours writes. */
export class InputBuffer implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly grant = 'console'
  readonly #readable = new WaitQueue()
  readonly #chunks: Uint8Array[] = []
  #ended = false

  read(iovecs: Iovecs): number {
    const chunk = this.#chunks[0]
    if (chunk === undefined) return this.#ended ? 0 : -EAGAIN
    const count = iovecs.scatter(chunk)
    if (count === chunk.length) this.#chunks.shift()
    else this.#chunks[0] = chunk.subarray(count)
    return count
  }

  pollRead(): number {
    const size = this.#chunks.reduce((sum, chunk) => sum + chunk.length, 0)
    return size > 0 ? size : this.#ended ? 0 : -EAGAIN
  }

  awaitReadable(waker: Waker): void { this.#readable.add(waker) }
  forget(waker: Waker): void { this.#readable.delete(waker) }
  save(number: number): SavedIs { return consoleStream(number) }
  close(): void {}

  /** Gives the guest more to read. The bytes are kept, not copied. */
  push(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#chunks.push(bytes)
    this.#readable.notify()
  }

  /** No more comes: the guest reads the end. */
  end(): void {
    this.#ended = true
    this.#readable.notify()
  }
}
