// services/console/labelled.ts: output of several guests on one stream: each line begins with who wrote it.
//
// A line is written when it is complete, or when it has become as long as LINE_BYTES_MAX: who never ends a line must
// not be kept in memory. Two guests' lines don't mix, whatever thread they are on: a long line is more than one write,
// so the stream belongs to one guest from a line's first byte to its last (a word of memory that all threads share).
// A write is answered when its complete lines are with the kernel, as without labels.

import { fstatSync } from 'node:fs'
import { EAGAIN } from '../../base/errno.ts'
import { LINE_BYTES_MAX } from '../../base/limits.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { consoleStream, type SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'
import { StandardOutput } from './stdio.ts'

const NEWLINE = 0x0a
const NOTHING = Buffer.alloc(0)

/** What the threads of a process share of its streams: 1 for each, by its descriptor, that a guest writes a line to. */
export function newStreams(): SharedArrayBuffer {
  return new SharedArrayBuffer(3 * 4)
}

/** One of the process's streams, its lines labelled. */
export class LabelledOutput implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly grant = 'console'
  readonly #out: StandardOutput
  readonly #label: Buffer
  readonly #streams: Int32Array
  readonly #stream: number
  readonly #waiters = new WaitQueue()
  /** The line that has no end yet. */
  #line = NOTHING
  /** Lines that are complete and not written yet, and whether the stream is ours until they are. */
  #pending = NOTHING
  #isOurs = false
  /** Bytes of the write whose lines those are: its answer. */
  #taken = 0
  #settle: (() => void) | undefined

  constructor(fd: number, label: string, streams: SharedArrayBuffer) {
    this.#out = new StandardOutput(fd)
    this.#label = Buffer.from(label)
    this.#streams = new Int32Array(streams)
    this.#stream = fd === 2 && isSameFile(1, 2) ? 1 : fd
  }

  write(iovecs: Iovecs): number {
    if (this.#taken === 0) {
      const bytes = iovecs.gather().subarray(0, LINE_BYTES_MAX)
      this.#take(bytes)
      this.#taken = bytes.length
    }
    const flushed = this.#flush()
    if (flushed === -EAGAIN) return flushed
    const taken = this.#taken
    this.#taken = 0
    return flushed < 0 ? flushed : taken
  }

  #take(bytes: Uint8Array): void {
    const lines: Uint8Array[] = [this.#pending]
    for (let from = 0; from < bytes.length;) {
      const newline = bytes.indexOf(NEWLINE, from)
      const end = newline < 0 ? bytes.length : newline
      const to = Math.min(end, from + LINE_BYTES_MAX - this.#line.length)
      this.#line = Buffer.concat([this.#line, bytes.subarray(from, to)])
      from = to
      // It is full, but nobody knows yet whether it ends here.
      if (from === bytes.length) break
      if (from === newline) from++
      lines.push(this.#label, this.#line, Buffer.of(NEWLINE))
      this.#line = NOTHING
    }
    this.#pending = Buffer.concat(lines)
  }

  // 0 when all is written.
  #flush(): number {
    if (this.#pending.length === 0) return 0
    if (!this.#isOurs && Atomics.compareExchange(this.#streams, this.#stream, 0, 1) !== 0) return -EAGAIN
    this.#isOurs = true
    let count = 0
    while (count >= 0 && this.#pending.length > 0) {
      count = this.#out.writeBytes(this.#pending)
      if (count > 0) this.#pending = this.#pending.subarray(count)
    }
    if (count === -EAGAIN) return count
    this.#pending = NOTHING
    this.#isOurs = false
    Atomics.store(this.#streams, this.#stream, 0)
    Atomics.notify(this.#streams, this.#stream)
    return Math.min(count, 0)
  }

  pollWrite(): number {
    return this.#pending.length === 0 ? this.#out.pollWrite() : this.#flush() === -EAGAIN ? -EAGAIN : 1
  }

  awaitWritable(waker: Waker): void {
    if (this.#isOurs || this.#pending.length === 0) return this.#out.awaitWritable(waker)
    this.#waiters.add(waker)
    const freed = Atomics.waitAsync(this.#streams, this.#stream, 1)
    if (freed.async) void freed.value.then(() => this.#waiters.notify())
    else setImmediate(() => this.#waiters.notify())
  }

  forget(waker: Waker): void {
    this.#waiters.delete(waker)
    this.#out.forget(waker)
  }

  save(number: number): SavedIs { return consoleStream(number) }

  /** What was written without an end of line is a line, too. What can't be written yet is when it can be. */
  close(): void {
    if (this.#line.length > 0) this.#take(Buffer.of(NEWLINE))
    this.#finish()
  }

  /** Of a stream that is closed: resolves when all of it is written, or after `ms` milliseconds. */
  async settled(ms: number): Promise<void> {
    if (this.#pending.length === 0) return
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#settle = resolve
    const timer = setTimeout(resolve, ms)
    await promise
    clearTimeout(timer)
  }

  readonly #finish = (): void => {
    if (this.#flush() === -EAGAIN) this.awaitWritable(this.#finish)
    else this.#settle?.()
  }
}

function isSameFile(a: number, b: number): boolean {
  const [one, other] = [fstatSync(a), fstatSync(b)]
  return one.dev === other.dev && one.ino === other.ino
}
