// tests/fuzz/random_shape.ts: what a random module has, apart from its code: what a body may name.

import { leb } from '../../src/wasm/encode.ts'
import { instructionOf, opcodeOf } from '../../src/wasm/opcodes.ts'

/** The types of values that occur. */
export type ValueType = 'i32' | 'i64' | 'f32' | 'f64' | 'v128' | 'funcref' | 'externref' | 'exnref'

export const TYPE_CODES: Readonly<Record<ValueType, number>> = {
  i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b, funcref: 0x70, externref: 0x6f, exnref: 0x69,
}

export type Signature = { readonly params: readonly ValueType[]; readonly results: readonly ValueType[] }
export type Bounds = { readonly min: number; readonly max: number | undefined; readonly index64: boolean }
export type Table = Bounds & { readonly type: 'funcref' | 'externref'; readonly imported: boolean }
export type Memory = Bounds & { readonly shared: boolean; readonly imported: boolean }
export type Global = { readonly type: ValueType; readonly mutable: boolean; readonly imported: boolean }

/** A module without its code. Imported things come first in their lists. */
export type Shape = {
  readonly types: Types
  /** Type indices. The first `importedFunctions` are the host's. */
  readonly functions: number[]
  readonly importedFunctions: number
  readonly tables: readonly Table[]
  readonly memories: readonly Memory[]
  readonly globals: readonly Global[]
  /** Type indices. */
  readonly tags: readonly number[]
  readonly importedTags: number
  /** Of each passive or active segment: how many bytes or entries. */
  readonly data: readonly number[]
  readonly elements: readonly { readonly type: 'funcref' | 'externref'; readonly count: number }[]
  /** The globals that bound what is executed: rounds of loops, and calls with what else takes its time. */
  readonly rounds: number
  readonly calls: number
  /** Nothing uses it. */
  readonly counted: number
  /** Which exceptions it has: one module can't have both. */
  readonly exceptions: 'old' | 'new' | 'none'
  readonly vectors: boolean
  /** What there is more of than of other things. */
  readonly theme: 'bulk' | 'handlers' | 'none'
  /** Integers are sometimes longer than they must be. */
  readonly padded: boolean
  /** The index of an array type that some functions make objects of, which the translator refuses. */
  readonly arrayType: number | undefined
}

/** The type section as it grows. */
export class Types {
  /** Types that aren't a function's stand first. */
  readonly entries: number[][] = []
  readonly #signatures: (Signature | undefined)[] = []
  readonly #byKey = new Map<string, number>()

  /** Adds an entry of `count` types that no function has. */
  addOther(entry: number[], count: number): void {
    this.entries.push(entry)
    for (let i = 0; i < count; i++) this.#signatures.push(undefined)
  }

  /** The index of a function's type, which is added if it isn't there. */
  index(signature: Signature): number {
    const key = `${signature.params.join()}>${signature.results.join()}`
    let index = this.#byKey.get(key)
    if (index === undefined) {
      const { params, results } = signature
      this.entries.push([0x60, ...codes(params), ...codes(results)])
      index = this.#signatures.push(signature) - 1
      this.#byKey.set(key, index)
    }
    return index
  }

  at(index: number): Signature {
    const signature = this.#signatures[index]
    if (signature === undefined) throw new RangeError(`Type ${index} isn't a function's`)
    return signature
  }
}

function codes(types: readonly ValueType[]): number[] {
  return [...leb(types.length), ...types.map((type) => TYPE_CODES[type])]
}

/** Addresses of a memory or table. */
export function addressType({ index64 }: Bounds): 'i32' | 'i64' {
  return index64 ? 'i64' : 'i32'
}

const OPCODES = new Map<string, readonly number[]>()

/** The bytes of an instruction's opcode. */
export function opcodeBytes(name: string): readonly number[] {
  let bytes = OPCODES.get(name)
  if (bytes === undefined) {
    const { prefix, code } = instructionOf(opcodeOf(name))!
    bytes = prefix === 0 ? [code] : [prefix, ...leb(code)]
    OPCODES.set(name, bytes)
  }
  return bytes
}
