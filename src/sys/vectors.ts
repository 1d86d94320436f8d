// sys/vectors.ts: ranges of one large memory, moved to and from a descriptor by one system call (readv, writev).
//
// A machine's packets lie in pieces all over its RAM. A `Vectors` holds a list of such pieces, by offset, and between
// them pieces of its own small memory (`head`) for what isn't the guest's, such as a frame's length. A transfer that
// the kernel cuts short goes on where it was with the next call. Hot path: nothing is allocated after construction.

import { assert } from '../base/assert.ts'
import { Scratch, answer, bind, rawAddress } from './libc.ts'

// The answer fits 32 bits: callers keep a transfer far below 2 GiB.
const native = bind({
  readv: { arguments: ['int32', 'pointer', 'int32'], return: 'int32' },
  writev: { arguments: ['int32', 'pointer', 'int32'], return: 'int32' },
})

const IOVEC_BYTES = 16      // struct iovec { void *iov_base; size_t iov_len; }
/** Linux's IOV_MAX. */
const IOVECS_AT_ONCE = 1024
const TRANSFER_BYTES_MAX = 2 ** 30

/** A list of pieces that are moved in order. */
export class Vectors {
  /** Memory of its own, for what goes before or between the pieces. */
  readonly head: Uint8Array
  readonly headView: DataView
  readonly #memory: Uint8Array
  readonly #memoryBase: number
  readonly #scratch: Scratch
  readonly #headBase: number
  readonly #capacity: number
  readonly #addresses: bigint[] = []
  #count = 0
  #first = 0
  /** Bytes that haven't been moved yet. */
  left = 0

  /** `memory` must stay where it is, mapped and attached, for as long as this object is used. */
  constructor(memory: Uint8Array, capacity: number, headBytes: number) {
    assert(capacity <= IOVECS_AT_ONCE, 'a list fits one system call', capacity)
    this.#memory = memory
    // SAFETY: as said above; a user-space address is below 2^47, so that a number holds it.
    this.#memoryBase = Number(rawAddress(memory.buffer)) + memory.byteOffset
    this.#capacity = capacity
    this.#scratch = new Scratch(capacity * IOVEC_BYTES + headBytes)
    this.head = this.#scratch.bytes.subarray(capacity * IOVEC_BYTES)
    this.headView = new DataView(this.#scratch.bytes.buffer, capacity * IOVEC_BYTES, headBytes)
    this.#headBase = Number(this.#scratch.address) + capacity * IOVEC_BYTES
    for (let i = 0; i < capacity; i++) {
      this.#addresses.push(this.#scratch.address + BigInt(i * IOVEC_BYTES))
    }
  }

  clear(): void {
    this.#count = 0
    this.#first = 0
    this.left = 0
  }

  /** True if nothing is left to be moved. */
  get isDone(): boolean { return this.left === 0 }

  /** True if `count` more pieces fit. */
  fits(count: number): boolean { return this.#count + count <= this.#capacity }

  /** Adds [offset, offset + length) of the memory. */
  add(offset: number, length: number): void {
    assert(offset >= 0 && length >= 0 && offset + length <= this.#memory.length, 'a piece lies in memory', offset)
    this.#put(this.#memoryBase + offset, length)
  }

  /** Adds [offset, offset + length) of `head`. */
  addHead(offset: number, length: number): void {
    assert(offset >= 0 && length >= 0 && offset + length <= this.head.length, 'a piece lies in the head', offset)
    this.#put(this.#headBase + offset, length)
  }

  #put(address: number, length: number): void {
    if (length === 0) return
    assert(this.#count < this.#capacity, 'a list has room', this.#count)
    assert(this.left + length <= TRANSFER_BYTES_MAX, 'a transfer is small', length)
    const view = this.#scratch.view
    const at = this.#count++ * IOVEC_BYTES
    view.setUint32(at, address >>> 0, true)
    view.setUint32(at + 4, address / 4294967296, true)
    view.setUint32(at + 8, length, true)
    view.setUint32(at + 12, 0, true)
    this.left += length
  }

  /** Fills the pieces from `fd`, as far as it goes. How many bytes it gave, 0 at its end, or a negated errno. */
  read(fd: number): number {
    // SAFETY: `add` proved each piece to lie in memory that outlives this object, or in `scratch`.
    return this.#moved(answer(native.readv(fd, this.#addresses[this.#first]!, this.#count - this.#first)))
  }

  /** Writes the pieces to `fd`, as far as it goes. How many bytes it took, or a negated errno. */
  write(fd: number): number {
    // SAFETY: as in `read`.
    return this.#moved(answer(native.writev(fd, this.#addresses[this.#first]!, this.#count - this.#first)))
  }

  // Takes what was moved off the front of the list.
  #moved(bytes: number): number {
    if (bytes <= 0) return bytes
    this.left -= bytes
    if (this.left === 0) {
      this.#count = 0
      this.#first = 0
      return bytes
    }
    const view = this.#scratch.view
    for (let rest = bytes; rest > 0;) {
      const at = this.#first * IOVEC_BYTES
      const length = view.getUint32(at + 8, true)
      if (length <= rest) {
        rest -= length
        this.#first++
        continue
      }
      const address = view.getUint32(at, true) + view.getUint32(at + 4, true) * 4294967296 + rest
      view.setUint32(at, address >>> 0, true)
      view.setUint32(at + 4, address / 4294967296, true)
      view.setUint32(at + 8, length - rest, true)
      rest = 0
    }
    return bytes
  }
}
