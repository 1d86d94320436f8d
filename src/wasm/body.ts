// wasm/body.ts: reads function bodies, instruction by instruction (spec §5.4, "Instructions"; §5.5.13, "Code Section").
//
// Hot path: no allocation, no closures, numbers and typed arrays only. A module may have 600,000 functions and 60 MB of
// code, so there is one reader for all of them and nothing is made for an instruction. A BodyReader stands on an
// instruction, [at, end), and holds its immediates in `slots`, laid out as opcodes.ts says.
//
// Read is what the binary format allows: LEB128 of more bytes than needed, within the length that its type has. Types
// of operands, indices and lanes aren't checked; V8 validates a guest before anything is done with its code.
// What is narrower than the format: a type index has at most 31 bits (V8 has a limit of a million types).
//
// Elsewhere: the instructions (opcodes.ts), writing (body_writer.ts).

import { SECTION_CODE } from './encode.ts'
import { sectionOf } from './module.ts'
import type { Module } from './module.ts'
import {
  BLOCK_EMPTY, ENCODING, ENCODINGS, IMMEDIATES_MAX, INSTRUCTIONS, MEMARG_MEMORY, OPCODE_END, PREFIX_BASE, PREFIX_FIRST,
  REF, REF_NULL, SLOTS, SLOTS_MAX,
} from './opcodes.ts'
import { MalformedModule, Reader } from './reader.ts'

/** Calls `visit` for each defined function with the range of its body: its locals, then its code. */
export function eachBody(module: Module, visit: (start: number, end: number, defined: number) => void): void {
  const section = sectionOf(module, SECTION_CODE)
  if (section === undefined) return
  const reader = new Reader(module.bytes, section.offset, section.end, 'code section')
  const count = reader.u32()
  for (let defined = 0; defined < count; defined++) {
    const size = reader.u32()
    const start = reader.skip(size)
    visit(start, reader.at, defined)
  }
  if (!reader.done) reader.fail('it is longer than what it holds')
}

/** Reads function bodies, one after the other. */
export class BodyReader {
  readonly bytes: Uint8Array
  /** The instruction's number (opcodes.ts). */
  opcode = 0
  /** Its first byte, and the byte after it. */
  at = 0
  end = 0
  /** How many blocks are open after it; the function's own counts, so that 0 is behind its last `end`. */
  depth = 0
  /** The instruction's immediates. What it doesn't use is left over from others. */
  readonly slots = new Int32Array(SLOTS_MAX)
  /** The groups of declared locals, and how many locals they declare. */
  localGroups = 0
  localCount = 0
  /** The first group of locals, and the first instruction. */
  localsStart = 0
  codeStart = 0
  /** How many instructions nextOf() went over. */
  passed = 0
  #limit = 0
  readonly #view: DataView

  constructor(bytes: Uint8Array) {
    this.bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  }

  /** Begins a body that lies in [start, end), with its locals; next() then goes to the first instruction. */
  open(start: number, end: number): void {
    if (end > this.bytes.length) throw new RangeError(`Cannot read a body up to byte ${end} of ${this.bytes.length}`)
    this.at = this.end = start
    this.#limit = end
    this.depth = 1
    this.localGroups = this.#u32() >>> 0
    this.localsStart = this.end
    this.localCount = 0
    for (let i = 0; i < this.localGroups; i++) {
      this.localCount += this.#u32() >>> 0
      this.#valueType()
    }
    if (this.localCount > 0xffff_ffff) this.#fail('it has more than 2^32 - 1 locals', start)
    this.codeStart = this.end
  }

  /** Goes to where an instruction begins, somewhere in the body: its depth isn't known from there on. */
  seek(at: number): void {
    this.at = this.end = at
    this.depth = 1 << 30
  }

  /** Goes to the next instruction; false behind the last. Throws MalformedModule. */
  next(): boolean {
    const { bytes, slots } = this
    const limit = this.#limit
    let at = this.end
    this.at = at
    if (at >= limit) {
      if (this.depth !== 0) this.#fail('it ends too early', at)
      return false
    }
    let opcode = bytes[at++]!
    if (at < limit) {
      // Most instructions have no immediate, or one of a byte. They go one way, whatever their kind: a branch for each
      // would often be mispredicted.
      const byte = bytes[at]!
      if (((byte | 0x100) & QUICK_MASK[opcode]!) === 0) {
        this.opcode = opcode
        slots[0] = byte << QUICK_SHIFT[opcode]! >> QUICK_SHIFT[opcode]!
        this.end = at + QUICK_WIDTH[opcode]!
        return true
      }
    }
    this.end = at
    if (opcode >= PREFIX_FIRST) {
      opcode = this.#prefixed(opcode)
      at = this.end
    }
    this.opcode = opcode
    switch (FORMS[opcode]) {
      case FORM_NONE: return true
      case FORM_MEMARG:
        // Alignment, then the offset, mostly one byte each and of memory 0.
        if (at + 1 < limit && bytes[at]! < 0x40 && bytes[at + 1]! < 0x80) {
          slots[0] = bytes[at]!
          slots[1] = 0
          slots[2] = bytes[at + 1]!
          slots[3] = 0
          this.end = at + 2
        } else this.#memarg(0)
        return true
      case FORM_END:
        if (--this.depth === 0 && at !== limit) this.#fail('it goes on after its last end', at)
        return true
      case FORM_BLOCK:
        this.depth++
        if (at < limit && (BYTE_MARKS[bytes[at]!]! & NOT_BLOCK_TYPE) === 0) {
          slots[0] = bytes[at]! << 25 >> 25
          slots[1] = 0
          this.end = at + 1
          return true
        }
        break
      case FORM_TRY_TABLE: this.depth++; break
      case FORM_INDEX: slots[0] = this.#u32(); return true
      case FORM_NUMBER: slots[0] = this.#s32(); return true
      case FORM_DELEGATE:
        // It takes the place of the `end` of a try, which is not the function's own block.
        if (--this.depth === 0) this.#fail('a delegate is outside of blocks', this.at)
        break
      case FORM_GENERAL: break
      default: this.#unknown()
    }
    this.#general(opcode)
    return true
  }

  /** Goes to the next of the instructions of which `stops` was made; false behind the last. Throws MalformedModule. */
  nextOf(stops: Int32Array): boolean {
    this.passed = 0
    for (;;) {
      this.#pass(stops)
      if (!this.next()) return false
      if ((stops[this.opcode]! & WANTED) !== 0) return true
      this.passed++
    }
  }

  // Goes over what is neither wanted nor unusual: no field is written, and nothing but the end depends on what is read.
  #pass(stops: Int32Array): void {
    const { bytes } = this
    const view = this.#view
    const limit = this.#limit
    // Arrays whose length was asked for before the loop are known to V8 in it.
    if (stops.length !== OPCODE_END) throw new RangeError('Cannot stop at instructions that stopsAt() does not know')
    const last = Math.min(limit, bytes.length - 4)
    let { end: at, depth, passed } = this
    while (at < last) {
      const word = view.getInt32(at, true)
      const step = stops[word & 0xff]!
      // The bytes that end an integer, and the lengths of one and of two, or -1. Both are there before `step` is.
      const ends = ~word & 0x8080_8000
      const others = ends & ends - 1
      const one = 31 - Math.clz32(ends & -ends) >> 3
      const two = 31 - Math.clz32(others & -others) >> 3
      const after = depth + (step << DEPTH_LEFT >> DEPTH_RIGHT) | 0
      let next = at + (step & STEP_BYTES) + ((one & step >> STEP_ONE | two & step >> STEP_TWO) & 7) | 0
      // Each of them is negative if it keeps us from going on.
      const marks = -(step & BYTE_MARKS[word >>> 8 & 0xff]!)
      if ((marks | one & step | two & step << 1 | after - 1 | limit - next) < 0) {
        // Linkers leave integers of five bytes for what they fill in.
        if (step >= 0 || (step & ANY_BYTE) !== 0 || ends !== 0 || limit - at < 6) break
        next = at + (bytes[at + 4]! < 0x80 ? 5 : 6)
        if (next === at + 6 && bytes[at + 5]! > 7) break
      }
      at = next
      depth = after
      passed = passed + 1 | 0
    }
    this.end = at
    this.depth = depth
    this.passed = passed
  }

  // The number of an instruction with a prefix.
  #prefixed(prefix: number): number {
    const code = this.#u32() >>> 0
    const base = PREFIX_BASE[prefix]
    if (base === undefined || code >= (PREFIX_BASE[prefix + 1] ?? OPCODE_END) - base) return this.#unknown()
    return base + code
  }

  #general(opcode: number): void {
    let slot = 0
    const first = opcode * IMMEDIATES_MAX
    for (let i = first; i < first + IMMEDIATES_MAX; i++) {
      const encoding = ENCODINGS[i]!
      if (encoding === 0) return
      this.#immediate(encoding, slot)
      slot += SLOTS[encoding]!
    }
  }

  #immediate(encoding: number, slot: number): void {
    const { slots } = this
    switch (encoding) {
      case ENCODING.u32: slots[slot] = this.#u32(); break
      case ENCODING.s32: slots[slot] = this.#s32(); break
      case ENCODING.s64: this.#leb64(slot, true); break
      case ENCODING.bytes4: case ENCODING.bytes8: case ENCODING.bytes16: this.#fixed(slot, SLOTS[encoding]!); break
      case ENCODING.byte: slots[slot] = this.#u8(); break
      case ENCODING.zero: slots[slot] = this.#small(0, 'a reserved byte is not 0'); break
      case ENCODING.castflags: slots[slot] = this.#small(3, 'a cast has unknown flags'); break
      case ENCODING.memarg: this.#memarg(slot); break
      case ENCODING.blocktype: this.#blockType(slot); break
      case ENCODING.heaptype: slots[slot] = this.#heapType(); break
      case ENCODING.types: case ENCODING.labels: case ENCODING.catches: this.#vector(encoding, slot); break
    }
  }

  // A vector is gone over, to find its end.
  #vector(encoding: number, slot: number): void {
    const count = this.#u32()
    this.slots[slot] = count
    this.slots[slot + 1] = this.end
    // Each entry takes a byte, so that a loop ends with the body.
    for (let i = count >>> 0; i > 0; i--) {
      if (encoding === ENCODING.types) this.#valueType()
      else if (encoding === ENCODING.catches) this.#catch()
      else this.#u32()
    }
    if (encoding === ENCODING.labels) this.#u32()
  }

  #catch(): void {
    const kind = this.#small(3, 'a catch clause has an unknown kind')
    if (kind < CATCH_ALL) this.#u32()
    this.#u32()
  }

  #memarg(slot: number): void {
    const { slots } = this
    const start = this.end
    const flags = this.#u32() >>> 0
    if (flags >= 2 * MEMARG_MEMORY) this.#fail('an alignment has unknown flags', start)
    slots[slot] = flags & (MEMARG_MEMORY - 1)
    slots[slot + 1] = flags < MEMARG_MEMORY ? 0 : this.#u32()
    const { bytes, end } = this
    // An offset of two bytes, the most frequent of those that next() leaves to us.
    if (end + 1 < this.#limit && bytes[end]! >= 0x80 && bytes[end + 1]! < 0x80) {
      slots[slot + 2] = bytes[end]! & 0x7f | bytes[end + 1]! << 7
      slots[slot + 3] = 0
      this.end = end + 2
    } else this.#leb64(slot + 2, false)
  }

  #fixed(slot: number, count: number): void {
    const { bytes, end } = this
    if (this.#limit - end < 4 * count) this.#fail('it ends too early', this.#limit)
    for (let i = 0; i < count; i++) {
      const at = end + 4 * i
      this.slots[slot + i] = bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24
    }
    this.end = end + 4 * count
  }

  #blockType(slot: number): void {
    const start = this.end
    const code = this.#s32()
    this.slots[slot] = code
    this.slots[slot + 1] = 0
    if (code < 0) this.#typeCode(code, slot + 1, start)
  }

  #valueType(): void {
    const start = this.end
    const code = this.#s32()
    if (code >= 0 || code === BLOCK_EMPTY) this.#fail('a type has an unknown code', start)
    this.#typeCode(code, -1, start)
  }

  // Checks a negative code of a value type or an empty block; a reference's heap type follows and goes to `slot`.
  #typeCode(code: number, slot: number, start: number): void {
    // The format has these codes in one byte; V8 takes the empty block's as the integer that it looks like.
    if (code === BLOCK_EMPTY) return
    if (this.end !== start + 1) this.#fail('a type has a code of several bytes', start)
    if (code === REF || code === REF_NULL) {
      const heap = this.#heapType()
      if (slot >= 0) this.slots[slot] = heap
    } else if (code < V128 && (code < HEAP_FIRST || code > HEAP_LAST)) {
      this.#fail('a type has an unknown code', start)
    }
  }

  #heapType(): number {
    const start = this.end
    const code = this.#s32()
    if (code < HEAP_FIRST || (code < 0 && code > HEAP_LAST)) this.#fail('a heap type has an unknown code', start)
    return code
  }

  #u8(): number {
    if (this.end >= this.#limit) this.#fail('it ends too early', this.end)
    return this.bytes[this.end++]!
  }

  #small(max: number, otherwise: string): number {
    const byte = this.#u8()
    if (byte > max) this.#fail(otherwise, this.end - 1)
    return byte
  }

  // As a signed number: `>>> 0` makes it what it is.
  #u32(): number {
    const { bytes } = this
    const limit = this.#limit
    let at = this.end
    let result = 0
    for (let shift = 0; shift < 35; shift += 7) {
      if (at >= limit) this.#fail('it ends too early', at)
      const byte = bytes[at++]!
      if (shift === 28 && byte > 0x0f) break
      result |= (byte & 0x7f) << shift
      if (byte < 0x80) {
        this.end = at
        return result
      }
    }
    return this.#fail('an integer is longer than 32 bits', this.end)
  }

  #s32(): number {
    const { bytes } = this
    const limit = this.#limit
    let at = this.end
    let result = 0
    for (let shift = 0; shift < 35; shift += 7) {
      if (at >= limit) this.#fail('it ends too early', at)
      const byte = bytes[at++]!
      // Of the fifth byte four bits count; the others must repeat the sign.
      if (shift === 28 && byte > 0x07 && (byte < 0x78 || byte > 0x7f)) break
      result |= (byte & 0x7f) << shift
      if (byte < 0x80) {
        this.end = at
        return shift === 28 ? result : result << 25 - shift >> 25 - shift
      }
    }
    return this.#fail('an integer is longer than 32 bits', this.end)
  }

  #leb64(slot: number, signed: boolean): void {
    const start = this.end
    let low = 0
    let high = 0
    for (let shift = 0; ; shift += 7) {
      const byte = this.#u8()
      if (shift === 63 && byte !== 0 && byte !== (signed ? 0x7f : 1)) {
        this.#fail('an integer is longer than 64 bits', start)
      }
      const bits = byte & 0x7f
      if (shift < 32) low |= bits << shift
      if (shift === 28) high = bits >> 4
      else if (shift > 32) high |= bits << shift - 32
      if (byte >= 0x80) continue
      if (signed && (byte & 0x40) !== 0) {
        // Ones above what was read; a shift by 32 or more would be one by 0.
        if (shift + 7 < 32) low |= -1 << shift + 7
        if (shift + 7 < 64) high |= -1 << Math.max(0, shift + 7 - 32)
      }
      this.slots[slot] = low
      this.slots[slot + 1] = high
      return
    }
  }

  #unknown(): never {
    const bytes = Array.from(this.bytes.subarray(this.at, this.end), (byte) => byte.toString(16).padStart(2, '0'))
    return this.#fail(`no instruction has the opcode 0x${bytes.join('')}`, this.at)
  }

  #fail(what: string, offset: number): never {
    throw new MalformedModule({ offset, where: 'function body' }, what)
  }
}

// Codes of types as signed numbers (§5.3): a byte 0x7f is -1.
const V128 = -5
const HEAP_LAST = -0x0b
const HEAP_FIRST = -0x18

/** Catch clauses of try_table: 0 and 1 have a tag, catch_all and catch_all_ref don't. */
const CATCH_ALL = 2

// How next() treats an instruction: the frequent ones at once, the others by their encodings.
const FORM_NONE = 1
const FORM_MEMARG = 2
const FORM_END = 3
const FORM_BLOCK = 4
const FORM_DELEGATE = 5
const FORM_INDEX = 6
const FORM_NUMBER = 7
const FORM_TRY_TABLE = 8
const FORM_GENERAL = 9
const FORMS = new Uint8Array(OPCODE_END)
for (const { opcode, name, immediates } of INSTRUCTIONS) {
  if (name === 'end') FORMS[opcode] = FORM_END
  else if (name === 'delegate') FORMS[opcode] = FORM_DELEGATE
  else if (immediates.length === 0) FORMS[opcode] = FORM_NONE
  else if (name === 'try_table') FORMS[opcode] = FORM_TRY_TABLE
  else if (immediates[0] === 'blocktype') FORMS[opcode] = FORM_BLOCK
  else if (immediates[0] === 'memarg' && immediates.length === 1) FORMS[opcode] = FORM_MEMARG
  else {
    const [first, second] = ENCODINGS.subarray(opcode * IMMEDIATES_MAX)
    FORMS[opcode] = second !== 0 ? FORM_GENERAL : first === ENCODING.u32 ? FORM_INDEX
      : first === ENCODING.s32 ? FORM_NUMBER : FORM_GENERAL
  }
}

// By first byte, for what has no immediate or a single integer. The mask has bits that the next byte, with bit 8 set,
// must not have: none, the mark that an integer goes on, or bit 8 for all others.
const QUICK_MASK = new Uint16Array(256)
const QUICK_SHIFT = new Uint8Array(256)
const QUICK_WIDTH = new Uint8Array(256)
QUICK_MASK.fill(0x100)
for (const { opcode, prefix } of INSTRUCTIONS) {
  const form = FORMS[opcode]!
  if (prefix !== 0 || !(form === FORM_NONE || form === FORM_INDEX || form === FORM_NUMBER)) continue
  QUICK_MASK[opcode] = form === FORM_NONE ? 0 : 0x80
  QUICK_SHIFT[opcode] = form === FORM_NUMBER ? 25 : 0
  QUICK_WIDTH[opcode] = form === FORM_NONE ? 0 : 1
}

// How nextOf() goes over an instruction: `stops`, by number. The bits of an entry:
//   0-3    its bytes, but for integers in LEB128
//   4-6    all set if an integer follows, with bit 31; 7-9 all set if two do, with bit 30: 3 bytes at most
//   11-13  marks that the byte behind the opcode must not have
//   14     it is wanted
//   16-17  what it does to the depth, signed
const STEP_BYTES = 0x0f
const STEP_ONE = 4
const STEP_TWO = 7
const INTEGER = 1 << 31 | 7 << STEP_ONE
const INTEGERS = 1 << 30 | 7 << STEP_TWO
const NOT_ALIGNMENT = 1 << 11
const NOT_BLOCK_TYPE = 1 << 12
const ANY_BYTE = 1 << 13
const WANTED = 1 << 14
const STEP_DEPTH = 16
const DEPTH_LEFT = 14
const DEPTH_RIGHT = 30

const BYTE_MARKS = new Uint16Array(256)
for (let byte = 0; byte < 256; byte++) {
  const isType = byte < 0x40 || byte === (BLOCK_EMPTY & 0x7f) || (byte >= (V128 & 0x7f) && byte < 0x80)
  BYTE_MARKS[byte] = ANY_BYTE | (byte < 0x40 ? 0 : NOT_ALIGNMENT) | (isType ? 0 : NOT_BLOCK_TYPE)
}

const STEPS = new Int32Array(OPCODE_END).fill(ANY_BYTE)
for (const { opcode, prefix, name } of INSTRUCTIONS) {
  if (prefix !== 0 || name === 'delegate') continue
  const [first, second] = ENCODINGS.subarray(opcode * IMMEDIATES_MAX)
  const depth = (name === 'end' ? 3 : first === ENCODING.blocktype ? 1 : 0) << STEP_DEPTH
  const step = stepOver(first!, second!)
  if (step !== undefined) STEPS[opcode] = step | depth
}

function stepOver(first: number, second: number): number | undefined {
  const isInteger = first === ENCODING.u32 || first === ENCODING.s32 || first === ENCODING.s64
  if (second === ENCODING.u32 && first === ENCODING.u32) return 1 | INTEGERS
  if (second !== 0) return undefined
  if (isInteger) return 1 | INTEGER
  switch (first) {
    case 0: return 1
    case ENCODING.memarg: return 1 | INTEGERS | NOT_ALIGNMENT
    case ENCODING.blocktype: return 2 | NOT_BLOCK_TYPE
    case ENCODING.bytes4: return 5
    case ENCODING.bytes8: return 9
    default: return undefined
  }
}

/** What nextOf() takes: stops at the instructions that are `wanted`, by their numbers. */
export function stopsAt(wanted: (opcode: number) => boolean): Int32Array {
  return STEPS.map((step, opcode) => wanted(opcode) ? step | ANY_BYTE | WANTED : step)
}
