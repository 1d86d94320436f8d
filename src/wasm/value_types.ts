// wasm/value_types.ts: value types as small numbers, for who follows the operands of code (spec §5.3.5, "Value Types").
//
// The numeric types have fixed numbers; reference types get theirs as they are met. Names are those of decode.ts.

import { leb, sleb } from './encode.ts'
import { REF, REF_NULL } from './opcodes.ts'

export const I32 = 0
export const I64 = 1
export const F32 = 2
export const F64 = 3
export const V128 = 4
/** Types from here on are references. */
export const REFERENCE = 5

/** Codes of abstract reference types, by name (§5.3.3). */
const CODES: Readonly<Record<string, number>> = {
  i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b,
  nullcontref: 0x75, nullexnref: 0x74, nullfuncref: 0x73, nullexternref: 0x72, nullref: 0x71, funcref: 0x70,
  externref: 0x6f, anyref: 0x6e, eqref: 0x6d, i31ref: 0x6c, structref: 0x6b, arrayref: 0x6a, exnref: 0x69,
  contref: 0x68,
}
const NAMES = new Map(Object.entries(CODES).map(([name, code]) => [code, name]))

/** The value types that a module's code uses, numbered. */
export class ValueTypes {
  readonly #names = ['i32', 'i64', 'f32', 'f64', 'v128']
  readonly #numbers = new Map(this.#names.map((name, i) => [name, i]))

  /** The number of the type of this name: `i32`, `funcref`, `(ref null 3)`. */
  of(name: string): number {
    let number = this.#numbers.get(name)
    if (number === undefined) this.#numbers.set(name, number = this.#names.push(name) - 1)
    return number
  }

  /** As a body has it (body.ts): a signed code, and the heap type of REF and REF_NULL. */
  ofCode(code: number, heap: number): number {
    if (code >= -5) return -1 - code
    if (code !== REF && code !== REF_NULL) return this.of(NAMES.get(code & 0x7f) ?? 'unknown')
    return this.of(`(ref ${code === REF ? '' : 'null '}${heapName(heap)})`)
  }

  /** What `ref.null` of this heap type makes. */
  ofNull(heap: number): number {
    return this.of(heap < 0 ? NAMES.get(heap & 0x7f) ?? 'unknown' : `(ref null ${heap})`)
  }

  nameOf(type: number): string {
    return this.#names[type]!
  }

  /** The bytes of a type. */
  bytesOf(type: number): number[] {
    const name = this.nameOf(type)
    const code = CODES[name]
    if (code !== undefined) return [code]
    return [isNullable(name) ? REF_NULL & 0x7f : REF & 0x7f, ...heapBytes(heapOf(name))]
  }

  /** The heap type of a reference that may be null, as `ref.null` takes it; undefined: it may not be null. */
  nullOf(type: number): number[] | undefined {
    const name = this.nameOf(type)
    if (CODES[name] !== undefined) return [CODES[name]]
    return isNullable(name) ? heapBytes(heapOf(name)) : undefined
  }
}

function isNullable(name: string): boolean {
  return name.startsWith('(ref null ')
}

function heapOf(name: string): string {
  return name.replace(/^\(ref (null )?/, '').slice(0, -1)
}

function heapName(heap: number): string {
  return heap >= 0 ? String(heap) : (NAMES.get(heap & 0x7f) ?? 'unknown').replace(/ref$/, '')
}

function heapBytes(heap: string): number[] {
  return /^\d/.test(heap) ? sleb(Number(heap)) : leb(CODES[`${heap}ref`] ?? 0)
}
