// services/console/labelled.ts: output of several guests on one stream: each line begins with who wrote it.
//
// A line is written when it is complete, or when it has become as long as LINE_BYTES_MAX: who never ends a line must
// not be kept in memory, and two guests' lines don't mix.

import { EAGAIN } from '../../base/errno.ts'
import { LINE_BYTES_MAX } from '../../base/limits.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import { Iovecs } from '../iovecs.ts'
import type { Waker } from '../wait_queue.ts'
import { StandardOutput } from './stdio.ts'

const NEWLINE = 0x0a

/** One of the process's streams, its lines labelled. */
export class LabelledOutput implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly #out: StandardOutput
  readonly #label: Buffer
  #line = Buffer.alloc(0)
  /** Lines that are complete and not written yet. The guest waits until they are. */
  #pending = Buffer.alloc(0)

  constructor(fd: number, label: string) {
    this.#out = new StandardOutput(fd)
    this.#label = Buffer.from(label)
  }

  write(iovecs: Iovecs): number {
    const flushed = this.#flush()
    if (flushed < 0) return flushed
    const bytes = iovecs.gather().subarray(0, LINE_BYTES_MAX)
    this.#take(bytes)
    const result = this.#flush()
    return result < 0 && result !== -EAGAIN ? result : bytes.length
  }

  #take(bytes: Uint8Array): void {
    const lines: Uint8Array[] = [this.#pending]
    let from = 0
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, from)) {
      lines.push(this.#label, this.#line, bytes.subarray(from, end + 1))
      this.#line = Buffer.alloc(0)
      from = end + 1
    }
    this.#line = Buffer.concat([this.#line, bytes.subarray(from)])
    if (this.#line.length >= LINE_BYTES_MAX) {
      lines.push(this.#label, this.#line, Buffer.of(NEWLINE))
      this.#line = Buffer.alloc(0)
    }
    this.#pending = Buffer.concat(lines)
  }

  // 0 when all is written.
  #flush(): number {
    while (this.#pending.length > 0) {
      const count = this.#out.writeBytes(this.#pending)
      if (count < 0) return count
      this.#pending = this.#pending.subarray(count)
    }
    return 0
  }

  pollWrite(): number {
    return this.#flush() === -EAGAIN ? -EAGAIN : 1
  }

  awaitWritable(waker: Waker): void { this.#out.awaitWritable(waker) }
  forget(waker: Waker): void { this.#out.forget(waker) }

  /** What was written without an end of line is a line, too. */
  close(): void {
    if (this.#line.length > 0) this.#take(Buffer.of(NEWLINE))
    this.#flush()
  }
}
