// wasm/module.ts: a WebAssembly module as far as the hypervisor looks into it (spec §2.5, "Modules").
//
// The model is the list of sections as they lie in the file, and what was read from those that say what the module
// needs and gives: types, imports, tables, memories, exports. Function bodies, globals and segments are left as extents
// of bytes, so that a module of 75 MB is decoded in the time of its imports and exports.
//
// Index spaces: a function, table, memory, global or tag is numbered with the imports of its kind first.
// Elsewhere: reading it from bytes (decode.ts), custom sections that tools write (names.ts), rewriting (prepare.ts).

import { SECTION_CUSTOM, SECTION_FUNCTION } from './encode.ts'
import { Reader } from './reader.ts'

/** A module. It refers to the bytes that it was decoded from; they must not change. */
export type Module = {
  readonly bytes: Uint8Array
  /** In the order of the file. */
  readonly sections: readonly Section[]
  /** One for each type index; rec groups are flattened, as the index space has it. */
  readonly types: readonly Type[]
  readonly imports: readonly Import[]
  /** Defined functions, without the imported ones; likewise tables, memories, globals and tags. */
  readonly functionCount: number
  readonly tables: readonly TableType[]
  readonly memories: readonly MemoryType[]
  readonly globalCount: number
  readonly tagCount: number
  readonly exports: readonly Export[]
  /** The function that instantiation calls. */
  readonly start: number | undefined
  readonly elementCount: number
  readonly dataCount: number
}

/** A section: `start` is the byte of its id, [offset, end) its content. For a custom section, after its name. */
export type Section = {
  readonly id: number
  /** Of a custom section. */
  readonly name?: string
  readonly start: number
  readonly offset: number
  readonly end: number
}

/** Types other than a function's are counted, not described: the hypervisor's interfaces use none. */
export type Type = FuncType | { readonly kind: 'struct' | 'array' | 'cont' }
export type FuncType = { readonly kind: 'func'; readonly params: readonly string[]; readonly results: readonly string[] }

/** `offset`: the byte of the file at which its entry begins. */
export type Import = { readonly module: string; readonly name: string; readonly offset: number } & ImportType
export type ImportType =
  | { readonly kind: 'func'; readonly type: number }
  | { readonly kind: 'table'; readonly table: TableType }
  | { readonly kind: 'memory'; readonly memory: MemoryType }
  | { readonly kind: 'global'; readonly type: string; readonly mutable: boolean }
  | { readonly kind: 'tag'; readonly type: number }

export type ExternKind = ImportType['kind']
export type Export = { readonly name: string; readonly kind: ExternKind; readonly index: number }

/** `index64`: addressed by i64 (memory64, table64). Limits beyond 2^53 are rounded; no engine has them. */
export type Limits = {
  readonly min: number; readonly max: number | undefined; readonly shared: boolean; readonly index64: boolean
}
/** In pages of 64 KiB. */
export type MemoryType = Limits
export type TableType = Limits & { readonly type: string }

/** The imports of one kind, in the order of their index space. */
export function importsOf<K extends ExternKind>(module: Module, kind: K): Extract<Import, { kind: K }>[] {
  return module.imports.filter((one): one is Extract<Import, { kind: K }> => one.kind === kind)
}

/** All memories, imported ones first: index i of the result is memory i. */
export function memoriesOf(module: Module): MemoryType[] {
  return [...importsOf(module, 'memory').map((one) => one.memory), ...module.memories]
}

/** The first section with this id. */
export function sectionOf(module: Module, id: number): Section | undefined {
  return module.sections.find((one) => one.id === id)
}

/** The custom section of this name: the first, as V8 takes it. */
export function customSection(module: Module, name: string): Section | undefined {
  return module.sections.find((one) => one.id === SECTION_CUSTOM && one.name === name)
}

/**
 * The type of function `index`, or undefined if there is no such function or its type isn't a function's. Defined
 * functions are looked up in the bytes: a module may have a million of them, and few are ever asked for.
 */
export function functionType(module: Module, index: number): FuncType | undefined {
  const imported = importsOf(module, 'func')
  let type = imported[index]?.type
  const section = sectionOf(module, SECTION_FUNCTION)
  if (type === undefined && section !== undefined && index - imported.length < module.functionCount) {
    const reader = new Reader(module.bytes, section.offset, section.end, 'function section')
    reader.u32()
    for (let skipped = imported.length; skipped < index; skipped++) reader.skipLeb(32)
    type = reader.u32()
  }
  const found = type === undefined ? undefined : module.types[type]
  return found?.kind === 'func' ? found : undefined
}

/** '(i32, i64) -> i32'; '() -> ()'. */
export function formatFuncType({ params, results }: Pick<FuncType, 'params' | 'results'>): string {
  return `(${params.join(', ')}) -> ${results.length === 1 ? results[0] : `(${results.join(', ')})`}`
}
