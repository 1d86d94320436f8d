// translate/module_types.ts: the types of all that a module's code may name, as numbers (wasm/value_types.ts).

import { globalsOf } from '../wasm/decode.ts'
import { BLOCK_EMPTY } from '../wasm/opcodes.ts'
import { SECTION_TAG } from '../wasm/encode.ts'
import { importsOf, memoriesOf, sectionOf, typeIndices, type Module } from '../wasm/module.ts'
import { Reader } from '../wasm/reader.ts'
import { ValueTypes } from '../wasm/value_types.ts'

/** What a function or a block takes and gives. */
export type Signature = { readonly params: readonly number[]; readonly results: readonly number[] }

/** A global as far as it must be known to import it. */
export type GlobalType = { readonly type: number; readonly mutable: boolean }

/** The types of a module. */
export class ModuleTypes {
  readonly values = new ValueTypes()
  readonly module: Module
  /** By function: its type's index. */
  readonly functions: Uint32Array
  readonly globals: readonly GlobalType[]
  readonly tables: readonly { readonly type: number; readonly index64: boolean }[]
  readonly memories64: readonly boolean[]
  /** By tag: its type's index. */
  readonly tags: readonly number[]
  readonly importedFunctions: number
  readonly #signatures: (Signature | undefined)[] = []
  readonly #single = new Map<number, Signature>()

  constructor(module: Module) {
    this.module = module
    this.functions = typeIndices(module)
    this.importedFunctions = importsOf(module, 'func').length
    this.globals = globalsOf(module).map(({ type, mutable }) => ({ type: this.values.of(type), mutable }))
    this.tables = [...importsOf(module, 'table').map((one) => one.table), ...module.tables]
      .map(({ type, index64 }) => ({ type: this.values.of(type), index64 }))
    this.memories64 = memoriesOf(module).map((one) => one.index64)
    this.tags = [...importsOf(module, 'tag').map((one) => one.type), ...definedTags(module)]
  }

  /** Of type index `type`. */
  signature(type: number): Signature {
    let found = this.#signatures[type]
    if (found === undefined) {
      const { values } = this
      const one = this.module.types[type]
      found = one?.kind === 'func'
        ? { params: one.params.map((name) => values.of(name)), results: one.results.map((name) => values.of(name)) }
        : NOTHING
      this.#signatures[type] = found
    }
    return found
  }

  ofFunction(index: number): Signature {
    return this.signature(this.functions[index]!)
  }

  /** Of a block type, as body.ts has it. */
  ofBlock(code: number, heap: number): Signature {
    if (code >= 0) return this.signature(code)
    if (code === BLOCK_EMPTY) return NOTHING
    const type = this.values.ofCode(code, heap)
    let found = this.#single.get(type)
    if (found === undefined) this.#single.set(type, found = { params: [], results: [type] })
    return found
  }

  /** What a frame may hold of a type: how it is kept. undefined: it can't be kept. */
  keepOf(type: number): Keep | undefined {
    if (type < REFERENCES) return type as Keep
    const name = this.values.nameOf(type)
    if (name === 'funcref' || name === '(ref null func)' || name === 'nullfuncref') return KEEP_FUNC
    if (name === 'externref' || name === '(ref null extern)' || name === 'nullexternref') return KEEP_EXTERN
    const index = /^\(ref null (\d+)\)$/.exec(name)?.[1]
    return index !== undefined && this.module.types[Number(index)]?.kind === 'func' ? KEEP_FUNC : undefined
  }
}

/** As numbers in the save area, by type; or in a table of functions or of the host's references. */
export type Keep = 0 | 1 | 2 | 3 | 4 | typeof KEEP_FUNC | typeof KEEP_EXTERN
export const KEEP_FUNC = 5
export const KEEP_EXTERN = 6
export const KEEPS = 7

const REFERENCES = 5
const NOTHING: Signature = { params: [], results: [] }

function definedTags(module: Module): number[] {
  const section = sectionOf(module, SECTION_TAG)
  if (section === undefined) return []
  const reader = new Reader(module.bytes, section.offset, section.end, 'tag section')
  return Array.from({ length: reader.u32() }, () => { reader.u8(); return reader.u32() })
}

