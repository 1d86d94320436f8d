// wasm/body_writer.ts: writes function bodies (spec §5.4, "Instructions").
//
// Hot path: no allocation, no closures, numbers and typed arrays only. Whoever changes code walks it with a BodyReader,
// copies the ranges between the changes as they are, and writes the rest. One writer takes a whole module.

import type { BodyReader } from './body.ts'
import {
  ENCODING, ENCODINGS, IMMEDIATES_MAX, MEMARG_MEMORY, OPCODE_END, PREFIX_BASE, PREFIX_FIRST, REF, REF_NULL, SLOTS,
} from './opcodes.ts'

/** Writes code: ranges of the original, instructions, numbers. Grows by doubling. */
export class BodyWriter {
  bytes: Uint8Array<ArrayBuffer>
  length = 0
  #view: DataView
  // What was copied from last.
  #source: Uint8Array = NOTHING
  #sourceView = viewOf(NOTHING)

  constructor(capacity: number) {
    this.bytes = new Uint8Array(Math.max(capacity, 64))
    this.#view = viewOf(this.bytes)
  }

  /** What was written; valid until the next write. */
  written(): Uint8Array<ArrayBuffer> {
    return this.bytes.subarray(0, this.length)
  }

  /** Puts `head` before what was written from `start` on: both together. Nothing can be written after it. */
  prepend(start: number, head: Uint8Array): Uint8Array<ArrayBuffer> {
    const from = start - head.length
    if (from >= 0) {
      this.bytes.set(head, from)
      return this.bytes.subarray(from, this.length)
    }
    const whole = new Uint8Array(this.length - start + head.length)
    whole.set(head)
    whole.set(this.bytes.subarray(start, this.length), head.length)
    return whole
  }

  /** Bytes [from, end) of `source`. */
  copy(source: Uint8Array, from: number, end: number): void {
    const count = end - from
    const rounded = count + 7 & ~7
    this.#reserve(rounded)
    const { bytes, length } = this
    // set() needs a view of the source, which costs more than the bytes between two changes: some hundred. These are
    // copied by eights; what is too much is written over by what comes next.
    if (count >= COPY_LONG) bytes.set(source.subarray(from, end), length)
    else if (count >= COPY_SHORT && from + rounded <= source.length) this.#copyEights(source, from, count)
    else for (let i = 0; i < count; i++) bytes[length + i] = source[from + i]!
    this.length = length + count
  }

  #copyEights(source: Uint8Array, from: number, count: number): void {
    if (source !== this.#source) {
      this.#source = source
      this.#sourceView = viewOf(source)
    }
    const input = this.#sourceView
    const output = this.#view
    const { length } = this
    // V8 makes no objects of integers that are only moved.
    for (let i = 0; i < count; i += 8) output.setBigInt64(length + i, input.getBigInt64(from + i, true), true)
  }

  byte(value: number): void {
    const { length } = this
    if (length === this.bytes.length) this.#grow(1)
    this.bytes[length] = value
    this.length = length + 1
  }

  append(bytes: ArrayLike<number>): void {
    this.#reserve(bytes.length)
    this.bytes.set(bytes, this.length)
    this.length += bytes.length
  }

  /** An unsigned integer of 32 bits; negative numbers are taken as the upper half. */
  u32(value: number): void {
    if (value >= 0 && value < 0x80) {
      this.byte(value)
      return
    }
    this.#reserve(5)
    let rest = value >>> 0
    for (; rest >= 0x80; rest >>>= 7) this.bytes[this.length++] = rest & 0x7f | 0x80
    this.bytes[this.length++] = rest
  }

  s32(value: number): void {
    if (value >= -0x40 && value < 0x40) {
      this.byte(value & 0x7f)
      return
    }
    this.#reserve(5)
    let rest = value | 0
    for (; rest < -0x40 || rest >= 0x40; rest >>= 7) this.bytes[this.length++] = rest & 0x7f | 0x80
    this.bytes[this.length++] = rest & 0x7f
  }

  /** An unsigned integer of 64 bits, in halves. */
  u64(low: number, high: number): void {
    this.#leb64(low, high, false)
  }

  s64(low: number, high: number): void {
    this.#leb64(low, high, true)
  }

  /** An instruction's opcode. */
  opcode(opcode: number): void {
    if (opcode < PREFIX_BASE[PREFIX_FIRST]!) this.byte(opcode)
    else {
      let prefix = PREFIX_FIRST
      while (opcode >= (PREFIX_BASE[prefix + 1] ?? OPCODE_END)) prefix++
      this.byte(prefix)
      this.u32(opcode - PREFIX_BASE[prefix]!)
    }
  }

  /** The instruction on which `reader` stands, from what was decoded of it, every integer as short as it can be. */
  instruction(reader: BodyReader): void {
    this.opcode(reader.opcode)
    let slot = 0
    const first = reader.opcode * IMMEDIATES_MAX
    for (let i = first; i < first + IMMEDIATES_MAX; i++) {
      const encoding = ENCODINGS[i]!
      if (encoding === 0) return
      this.#immediate(reader, encoding, slot)
      slot += SLOTS[encoding]!
    }
  }

  /**
   * Leaves `room` for the length of what comes next; `endSized` takes the result. For bodies and sections. What is left
   * as much room as its length needs isn't moved.
   */
  beginSized(room = 5): number {
    this.#reserve(room)
    this.length += room
    return this.length
  }

  /** Writes the length of what came since `beginSized`, and moves that up to it. */
  endSized(start: number, room = 5): void {
    const end = this.length
    const width = lebLength(end - start)
    if (width !== room) {
      this.#reserve(width)
      this.bytes.copyWithin(start - room + width, start, end)
    }
    this.length = start - room
    this.u32(end - start)
    this.length += end - start
  }

  #immediate(reader: BodyReader, encoding: number, slot: number): void {
    const { slots } = reader
    const value = slots[slot]!
    const second = slots[slot + 1]!
    switch (encoding) {
      case ENCODING.u32: this.u32(value); break
      case ENCODING.s32: case ENCODING.heaptype: this.s32(value); break
      case ENCODING.s64: this.s64(value, second); break
      case ENCODING.bytes4: case ENCODING.bytes8: case ENCODING.bytes16:
        for (let i = slot; i < slot + SLOTS[encoding]!; i++) this.#fixed(slots[i]!)
        break
      case ENCODING.byte: case ENCODING.zero: case ENCODING.castflags: this.byte(value); break
      case ENCODING.memarg:
        this.u32(second === 0 ? value : value | MEMARG_MEMORY)
        if (second !== 0) this.u32(second)
        this.u64(slots[slot + 2]!, slots[slot + 3]!)
        break
      case ENCODING.blocktype:
        this.s32(value)
        if (value === REF || value === REF_NULL) this.s32(second)
        break
      default: // A vector ends its instruction.
        this.u32(value)
        this.copy(reader.bytes, second, reader.end)
    }
  }

  #fixed(value: number): void {
    for (let shift = 0; shift < 32; shift += 8) this.byte(value >>> shift & 0xff)
  }

  #leb64(low: number, high: number, signed: boolean): void {
    this.#reserve(10)
    let lower = low | 0
    let upper = high | 0
    for (;;) {
      // Nothing but what the last byte's sign would say again remains.
      const last = signed ? upper === lower >> 31 && lower >= -0x40 && lower < 0x40
        : upper === 0 && lower >= 0 && lower < 0x80
      if (last) break
      this.bytes[this.length++] = lower & 0x7f | 0x80
      lower = lower >>> 7 | upper << 25
      upper = signed ? upper >> 7 : upper >>> 7
    }
    this.bytes[this.length++] = lower & 0x7f
  }

  #reserve(count: number): void {
    if (this.length + count > this.bytes.length) this.#grow(count)
  }

  #grow(count: number): void {
    const grown = new Uint8Array(Math.max(this.bytes.length * 2, this.length + count))
    grown.set(this.written())
    this.bytes = grown
    this.#view = viewOf(grown)
  }
}

const NOTHING = new Uint8Array()

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
}

const COPY_SHORT = 12
const COPY_LONG = 512

/** How many bytes an unsigned integer of 32 bits takes. */
export function lebLength(value: number): number {
  return value < 0x80 ? 1 : value < 0x4000 ? 2 : value < 0x20_0000 ? 3 : value < 0x1000_0000 ? 4 : 5
}
