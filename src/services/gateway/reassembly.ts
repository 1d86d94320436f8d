// services/gateway/reassembly.ts: what a TCP endpoint has received: in order, and ahead of what is missing.
//
// Ranges that came too early are kept apart by their sequence numbers, a few of them: who sends more holes than that
// gets the later ones dropped, and sends them again. Where ranges overlap, the bytes that came last count, unless they
// were in order already. Hot path: a segment in order with no hole before it touches no range.

import { TCP_HOLES_MAX } from '../../base/limits.ts'
import { Ring, type RingMemory } from './ring.ts'

/** Received data of one connection. */
export class Reassembly {
  /** The sequence number after the last byte in order. */
  next: number
  readonly #ring: Ring
  // Early ranges, sorted, apart from each other: where each begins and ends.
  readonly #from = new Int32Array(TCP_HOLES_MAX)
  readonly #to = new Int32Array(TCP_HOLES_MAX)
  #count = 0

  constructor(memory: RingMemory, next: number) {
    this.next = next
    this.#ring = new Ring(memory)
  }

  /** Bytes in order that nobody has taken yet. */
  get unread(): number { return this.#ring.length }
  get hasHoles(): boolean { return this.#count > 0 }

  /**
   * Data that begins at `seq`, which isn't before `next`; within the window, the caller has seen to it. Answers by how
   * many bytes `next` went on; -1 if the data was dropped.
   */
  put(seq: number, source: Uint8Array, from: number, to: number): number {
    const ahead = seq - this.next | 0
    if (ahead > 0 || this.#count > 0) return this.#putEarly(seq, ahead, source, from, to)
    const size = to - from
    if (!this.#ring.put(this.#ring.length, source, from, to)) return -1
    this.#ring.length += size
    this.next = this.next + size | 0
    return size
  }

  /** Takes up to `size` bytes, which there are, into `target`. */
  take(target: Buffer, size: number): void {
    this.#ring.copyTo(0, size, target, 0)
    this.#ring.drop(size)
    if (this.#ring.length === 0 && this.#count === 0) this.#ring.release()
  }

  /** What came too early will never be in order: nothing comes any more. */
  forgetEarly(): void {
    this.#count = 0
    if (this.#ring.length === 0) this.#ring.release()
  }

  release(): void {
    this.#count = 0
    this.#ring.length = 0
    this.#ring.release()
  }

  #putEarly(seq: number, ahead: number, source: Uint8Array, from: number, to: number): number {
    const end = seq + to - from | 0
    // The ranges that touch this one: [first, last).
    let first = 0
    while (first < this.#count && (this.#to[first]! - seq | 0) < 0) first++
    let last = first
    while (last < this.#count && (this.#from[last]! - end | 0) <= 0) last++
    if (first === last && this.#count === TCP_HOLES_MAX && ahead > 0) return -1
    if (!this.#ring.put(this.#ring.length + ahead, source, from, to)) return -1
    let begins = seq
    let ends = end
    if (last > first) {
      if ((this.#from[first]! - begins | 0) < 0) begins = this.#from[first]!
      if ((this.#to[last - 1]! - ends | 0) > 0) ends = this.#to[last - 1]!
    }
    if (begins !== this.next) {
      this.#replace(first, last, begins, ends)
      return 0
    }
    this.#remove(first, last)
    const size = ends - this.next | 0
    this.#ring.length += size
    this.next = ends
    return size
  }

  #replace(first: number, last: number, from: number, to: number): void {
    if (first === last) {
      this.#from.copyWithin(first + 1, first, this.#count)
      this.#to.copyWithin(first + 1, first, this.#count)
      this.#count++
    } else this.#remove(first + 1, last)
    this.#from[first] = from
    this.#to[first] = to
  }

  #remove(first: number, last: number): void {
    if (first === last) return
    this.#from.copyWithin(first, last, this.#count)
    this.#to.copyWithin(first, last, this.#count)
    this.#count -= last - first
  }
}
