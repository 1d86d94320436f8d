// services/iovecs.ts: a scatter/gather list of a guest, checked once and then used.
//
// The list itself lies in guest memory. `load` copies it, checks every range after the copy, and caps the total, so
// that nothing the guest does later can change what was checked. One object serves a whole pCPU: it is filled and used
// up within a hypercall.

import { IOVECS_MAX, TRANSFER_BYTES_MAX } from '../base/limits.ts'
import type { GuestMemory } from './guest_memory.ts'

/** Up to IOVECS_MAX ranges of one guest's memory, TRANSFER_BYTES_MAX bytes in all. */
export class Iovecs {
  memory: GuestMemory | undefined
  count = 0
  /** Sum of `lengths`, in bytes. */
  total = 0
  readonly offsets = new Uint32Array(IOVECS_MAX)
  readonly lengths = new Uint32Array(IOVECS_MAX)

  /**
   * Takes the `count` pairs (pointer, length) at `pointer`, in the layout of WASI's iovec and Linux's 32-bit one.
   * Ranges beyond TRANSFER_BYTES_MAX are cut: the transfer is short. Throws GuestFault; false if there are too many.
   */
  load(memory: GuestMemory, pointer: number, count: number): boolean {
    if (count >>> 0 > IOVECS_MAX) return false
    let at = memory.check(pointer, count * 8)
    let total = 0
    for (let i = 0; i < count; i++, at += 8) {
      const length = memory.view.getUint32(at + 4, true)
      this.offsets[i] = memory.check(memory.view.getUint32(at, true), length)
      const used = Math.min(length, TRANSFER_BYTES_MAX - total)
      this.lengths[i] = used
      total += used
    }
    this.memory = memory
    this.count = count
    this.total = total
    return true
  }

  /** Keeps the first `bytes` of the ranges, which have no fewer. */
  cut(bytes: number): void {
    let left = bytes
    for (let i = 0; i < this.count; i++) {
      const used = Math.min(this.lengths[i]!, left)
      this.lengths[i] = used
      left -= used
    }
    this.total = bytes
  }

  /** The i-th range, shared with the guest. */
  bytes(i: number): Uint8Array {
    const offset = this.offsets[i]!
    return this.memory!.bytes.subarray(offset, offset + this.lengths[i]!)
  }

  /** Copies `source` into the ranges in order; the number of bytes that fitted. */
  scatter(source: Uint8Array): number {
    let done = 0
    for (let i = 0; i < this.count && done < source.length; i++) {
      const length = Math.min(this.lengths[i]!, source.length - done)
      this.memory!.bytes.set(source.subarray(done, done + length), this.offsets[i]!)
      done += length
    }
    return done
  }

  /** A copy of the ranges' bytes, one after another: for a transfer that outlives the hypercall. */
  gather(): Uint8Array<ArrayBuffer> {
    const copy = new Uint8Array(this.total)
    this.gatherInto(copy)
    return copy
  }

  /** Fills `target` with the ranges' bytes from the byte `from` on, of which there are as many at least. */
  gatherInto(target: Uint8Array, from = 0): void {
    for (let i = 0, done = 0, skip = from; done < target.length; i++) {
      const skipped = Math.min(skip, this.lengths[i]!)
      skip -= skipped
      const length = Math.min(this.lengths[i]! - skipped, target.length - done)
      const offset = this.offsets[i]! + skipped
      target.set(this.memory!.bytes.subarray(offset, offset + length), done)
      done += length
    }
  }
}
