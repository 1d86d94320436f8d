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
  /** What an exception takes in a frame: the number of its tag, then what it carries; undefined: it can't be kept. */
  readonly exceptionBytes: number | undefined
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
    this.exceptionBytes = this.#exceptionBytes()
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

  #exceptionBytes(): number | undefined {
    if (this.tags.length > TAGS_MAX) return undefined
    let most = 0
    for (const tag of this.tags) {
      const { params } = this.signature(tag)
      if (params.some((type) => type >= REFERENCES)) return undefined
      most = Math.max(most, params.reduce((sum, type) => sum + SIZES[type]!, 0))
    }
    return 4 + most
  }

  /** What a frame may hold of a type: how it is kept. undefined: it can't be kept. */
  keepOf(type: number): Keep | undefined {
    if (type < REFERENCES) return type as Keep
    const name = this.values.nameOf(type)
    if (name === 'funcref' || name === '(ref null func)' || name === 'nullfuncref') return KEEP_FUNC
    if (name === 'externref' || name === '(ref null extern)' || name === 'nullexternref') return KEEP_EXTERN
    if (name === 'exnref' || name === '(ref null exn)' || name === 'nullexnref') {
      // Its tag is found by catching it, which needs a block for what it carries.
      const isSimple = this.tags.length > 0 && this.tags.every((tag) => this.signature(tag).params.length < 2)
      return this.exceptionBytes === undefined || !isSimple ? undefined : KEEP_EXCEPTION
    }
    const index = /^\(ref null (\d+)\)$/.exec(name)?.[1]
    return index !== undefined && this.module.types[Number(index)]?.kind === 'func' ? KEEP_FUNC : undefined
  }
}

/** As numbers in the save area, by type; or in a table of functions or of the host's references. */
export type Keep = 0 | 1 | 2 | 3 | 4 | typeof KEEP_FUNC | typeof KEEP_EXTERN | typeof KEEP_EXCEPTION
export const KEEP_FUNC = 5
export const KEEP_EXTERN = 6
/** As the number of its tag, and what it carries. */
export const KEEP_EXCEPTION = 7
export const KEEPS = 8

/** A site lists all tags. */
const TAGS_MAX = 16
/** Bytes of a number in a frame, by type. */
export const SIZES: readonly number[] = [4, 8, 4, 8, 16]
const REFERENCES = 5
const NOTHING: Signature = { params: [], results: [] }

function definedTags(module: Module): number[] {
  const section = sectionOf(module, SECTION_TAG)
  if (section === undefined) return []
  const reader = new Reader(module.bytes, section.offset, section.end, 'tag section')
  return Array.from({ length: reader.u32() }, () => { reader.u8(); return reader.u32() })
}

