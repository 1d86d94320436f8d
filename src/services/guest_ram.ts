// services/guest_ram.ts: the one checked door into a machine's memory.
//
// A guest-physical address is an allegation. `at` proves that a range lies in RAM and turns its start into an offset of
// `bytes`, or throws GuestFault. RAM is one mapping here and two ranges to the guest: from 0 to the hole below 4 GiB
// that has the devices, and the rest from 4 GiB on. A range that spans the hole is no range.
//
// Vcpus write while we read: a field is read once, into a local, and checked there.

import { GuestFault } from './guest_memory.ts'

/** Where RAM ends below 4 GiB at the latest, and devices begin (machine/layout.ts). */
export const LOW_RAM_BYTES_MAX = 0xd000_0000
/** Where the rest of RAM begins. */
export const HIGH_RAM_START = 0x1_0000_0000

const PAGE_BYTES = 4096

// One instance: a fault is the guest's to cause, so it must not cost a stack trace.
const FAULT = new GuestFault('An address of the guest lies outside its RAM')
FAULT.stack = ''

/** A machine's RAM, seen by one thread. */
export class GuestRam {
  /** All of it; never detached while the machine is. */
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly #low: number
  readonly #marks: Uint8Array | undefined

  /** `marks`: a bit for each page of 4 KiB, shared with who wants to know what was written (`mark`). */
  constructor(bytes: Uint8Array, marks?: Uint8Array) {
    this.#marks = marks
    this.bytes = bytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#low = Math.min(bytes.length, LOW_RAM_BYTES_MAX)
  }

  /** Notes that bytes [offset, offset + length) are about to be written by us: KVM sees what vCPUs write only. */
  mark(offset: number, length: number): void {
    const marks = this.#marks
    if (marks === undefined || length === 0) return
    const last = Math.floor((offset + length - 1) / PAGE_BYTES)
    for (let page = Math.floor(offset / PAGE_BYTES); page <= last; page++) marks[page >>> 3]! |= 1 << (page & 7)
  }

  /** Proves that [gpa, gpa + length) is RAM, and gives its start as an offset of `bytes`. Throws GuestFault. */
  at(gpa: number, length: number): number {
    // NaN and negative numbers fail each comparison.
    if (gpa >= 0 && length >= 0 && gpa + length <= this.#low) return gpa
    const offset = gpa - HIGH_RAM_START + this.#low
    if (gpa >= HIGH_RAM_START && length >= 0 && offset + length <= this.bytes.length) return offset
    throw FAULT
  }
}
