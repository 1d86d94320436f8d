// translate/capture_info.ts: what a module that can be captured says of itself, in a custom section.
//
// Who makes a continuation must know which functions may unwind, and what was added where. That is here, so that the
// module needn't be read again as a whole: it has 620,000 functions, a continuation perhaps ten.

import { BodyWriter } from '../wasm/body_writer.ts'
import { Reader } from '../wasm/reader.ts'

/** The custom section's name. */
export const CAPTURE_SECTION = 'cellar:capture'

/** What it says. Indices are of the translated module. */
export type CaptureInfo = {
  /** $poll. */
  readonly poll: number
  /** The table of `yields`; and the first of the two tables for references, if they are there. */
  readonly yieldTable: number; readonly referenceTables: number | undefined
  /** True if code of the guest's may change its tables. */
  readonly changesTables: boolean
  /** Globals that are mutable and refer to functions. */
  readonly referenceGlobals: readonly number[]
  /** Some function makes tail calls, so that more is checked at entries. */
  readonly hasTailCalls: boolean
  /** Bit f & 7 of byte f >> 3: defined function f may unwind; and is in a cycle of calls, or costs much. */
  readonly unwinds: Uint8Array; readonly checks: Uint8Array
  /** Functions that stand for bulk instructions and their indices. */
  readonly helpers: readonly InfoHelper[]
  /** Those that do nothing but one instruction on a segment, and can't unwind. */
  readonly plain: readonly InfoHelper[]
}

type InfoHelper = { readonly index: number; readonly opcode: number; readonly a: number; readonly b: number }

/** The section's content. */
export function encodeInfo(info: CaptureInfo): Uint8Array {
  const out = new BodyWriter(64 + info.unwinds.length * 2)
  for (const value of [info.poll, info.yieldTable, info.referenceTables ?? 0, info.changesTables ? 1 : 0,
    info.hasTailCalls ? 1 : 0, info.unwinds.length]) out.u32(value)
  out.append(info.unwinds)
  out.append(info.checks)
  out.u32(info.referenceGlobals.length)
  for (const index of info.referenceGlobals) out.u32(index)
  for (const list of [info.helpers, info.plain]) {
    out.u32(list.length)
    for (const { index, opcode, a, b } of list) for (const value of [index, opcode, a, b]) out.u32(value)
  }
  return out.written()
}

/** Of a section that encodeInfo has written. */
export function decodeInfo(bytes: Uint8Array): CaptureInfo {
  const reader = new Reader(bytes, 0, bytes.length, CAPTURE_SECTION)
  const [poll, yieldTable, tables, changes, tail, length] =
    Array.from({ length: 6 }, () => reader.u32()) as [number, number, number, number, number, number]
  const bits = (): Uint8Array => {
    const start = reader.skip(length)
    return bytes.subarray(start, start + length)
  }
  const helpers = (): InfoHelper[] => Array.from({ length: reader.u32() }, () =>
    ({ index: reader.u32(), opcode: reader.u32(), a: reader.u32(), b: reader.u32() }))
  return {
    poll, yieldTable, referenceTables: tables === 0 ? undefined : tables, changesTables: changes === 1,
    hasTailCalls: tail === 1, unwinds: bits(), checks: bits(),
    referenceGlobals: Array.from({ length: reader.u32() }, () => reader.u32()),
    helpers: helpers(), plain: helpers(),
  }
}

/** One bit for each byte that isn't 0. */
export function bitsOf(bytes: Uint8Array): Uint8Array {
  const bits = new Uint8Array(bytes.length + 7 >> 3)
  for (let i = 0; i < bytes.length; i++) if (bytes[i] !== 0) bits[i >> 3]! |= 1 << (i & 7)
  return bits
}

/** True if bit `i` is set. */
export function hasBit(bits: Uint8Array, i: number): boolean {
  return (bits[i >> 3]! >> (i & 7) & 1) === 1
}
