// services/gateway/ring.ts: the bytes of one direction of a connection: memory is taken only while there are any.
//
// All rings of a gateway share one budget, so that a guest with thousands of connections has bounded memory. A ring
// begins small, grows as it fills, and gives all back when it is empty. Beyond the budget a ring takes nothing: on the
// way to the guest the writer waits, on the way from it data counts as lost, and is sent again.

import { TCP_BUFFER_BYTES_MAX } from '../../base/limits.ts'

/** What a ring has at first, and then: each four times the one before. */
const SIZES = [TCP_BUFFER_BYTES_MAX / 16, TCP_BUFFER_BYTES_MAX / 4, TCP_BUFFER_BYTES_MAX]
/** Freed memory of each size that is kept. */
const KEPT_MAX = 8

/** Memory for the rings of one gateway. */
export class RingMemory {
  /** Bytes that rings have now. */
  used = 0
  readonly #free: Buffer[][] = SIZES.map(() => [])
  readonly #bytesMax: number

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** Memory of at least `size` bytes; undefined if there is none, or `size` is beyond the largest ring. */
  take(size: number): Buffer | undefined {
    const i = SIZES.findIndex((one) => one >= size)
    const bytes = SIZES[i]
    if (bytes === undefined || this.used + bytes > this.#bytesMax) return undefined
    this.used += bytes
    return this.#free[i]!.pop() ?? Buffer.allocUnsafeSlow(bytes)
  }

  give(memory: Buffer): void {
    this.used -= memory.length
    const free = this.#free[SIZES.indexOf(memory.length)]!
    if (free.length < KEPT_MAX) free.push(memory)
  }
}

/** Bytes in order; and behind them, at any offset, bytes that came too early. */
export class Ring {
  /** How many bytes are in order. */
  length = 0
  readonly #memory: RingMemory
  #bytes: Buffer | undefined
  #first = 0

  constructor(memory: RingMemory) {
    this.#memory = memory
  }

  /** Puts bytes at `offset` from the first one; `length` stays. False if there is no memory for them. */
  put(offset: number, source: Uint8Array, from: number, to: number): boolean {
    const end = offset + to - from
    if ((this.#bytes === undefined || end > this.#bytes.length) && !this.#grow(end)) return false
    const bytes = this.#bytes!
    const at = (this.#first + offset) % bytes.length
    const straight = Math.min(to - from, bytes.length - at)
    copy(source, bytes, at, from, from + straight)
    if (straight < to - from) copy(source, bytes, 0, from + straight, to)
    return true
  }

  /** Copies `size` bytes from `offset` on. */
  copyTo(offset: number, size: number, target: Buffer, to: number): void {
    const bytes = this.#bytes!
    const at = (this.#first + offset) % bytes.length
    const straight = Math.min(size, bytes.length - at)
    bytes.copy(target, to, at, at + straight)
    if (straight < size) bytes.copy(target, to + straight, 0, size - straight)
  }

  /** The first bytes are done with. */
  drop(size: number): void {
    this.length -= size
    if (this.#bytes !== undefined) this.#first = (this.#first + size) % this.#bytes.length
  }

  /** Gives the memory back: nothing is in it, neither in order nor early. */
  release(): void {
    if (this.#bytes === undefined) return
    this.#memory.give(this.#bytes)
    this.#bytes = undefined
    this.#first = 0
  }

  #grow(size: number): boolean {
    const larger = this.#memory.take(size)
    if (larger === undefined) return false
    const bytes = this.#bytes
    if (bytes !== undefined) {
      bytes.copy(larger, 0, this.#first)
      bytes.copy(larger, bytes.length - this.#first, 0, this.#first)
      this.#memory.give(bytes)
    }
    this.#bytes = larger
    this.#first = 0
    return true
  }
}

// Buffer's own copy makes no view; other arrays' does.
function copy(source: Uint8Array, target: Buffer, at: number, from: number, to: number): void {
  if (Buffer.isBuffer(source)) source.copy(target, at, from, to)
  else target.set(source.subarray(from, to), at)
}
