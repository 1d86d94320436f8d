// wasm/module.ts: a WebAssembly module as far as the hypervisor looks into it (spec §2.5, "Modules").
//
// The model is the list of sections as they lie in the file, and what was read from those that say what the module
// needs and gives: types, imports, tables, memories, exports. Function bodies, globals and segments are left as extents
// of bytes, so that a module of 75 MB is decoded in the time of its imports and exports.
//
// Index spaces: a function, table, memory, global or tag is numbered with the imports of its kind first.
// Elsewhere: reading it from bytes (decode.ts), custom sections that tools write (names.ts), rewriting (prepare.ts).

import { SECTION_CUSTOM, SECTION_FUNCTION } from './encode.ts'
import { MalformedModule, Reader } from './reader.ts'

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
  readonly tables: readonly DefinedTable[]
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
export type FuncType = {
  readonly kind: 'func'; readonly params: readonly string[]; readonly results: readonly string[]
}

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
/** With the bytes [limitsAt, limitsEnd) at which its limits are. */
export type DefinedTable = TableType & { readonly limitsAt: number; readonly limitsEnd: number }

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
 * A look-up of functions' types by index; undefined if there is no such function or its type isn't a function's. The
 * function section is read here and not in decode.ts, since it may have a million entries that few ask for; what is
 * malformed in it ends it, and V8 refuses such a module when it compiles.
 */
export function functionTypes(module: Module): (index: number) => FuncType | undefined {
  const imported = importsOf(module, 'func').map((one) => one.type)
  const defined = definedTypes(module)
  return (index) => {
    const type = index < imported.length ? imported[index] : defined[index - imported.length]
    const found = type === undefined ? undefined : module.types[type]
    return found?.kind === 'func' ? found : undefined
  }
}

function definedTypes(module: Module): Uint32Array {
  const section = sectionOf(module, SECTION_FUNCTION)
  if (section === undefined) return new Uint32Array()
  const reader = new Reader(module.bytes, section.offset, section.end, 'function section')
  // The count is an allegation: each entry takes at least a byte.
  const types = new Uint32Array(Math.min(reader.u32(), section.end - reader.at))
  let count = 0
  try {
    for (; count < types.length; count++) types[count] = reader.u32()
  } catch (error) {
    if (!(error instanceof MalformedModule)) throw error
  }
  return types.subarray(0, count)
}

/** The type index of each function, imported ones first. */
export function typeIndices(module: Module): Uint32Array {
  const imported = importsOf(module, 'func')
  const defined = definedTypes(module)
  const all = new Uint32Array(imported.length + defined.length)
  imported.forEach(({ type }, i) => { all[i] = type })
  all.set(defined, imported.length)
  return all
}

/** '(i32, i64) -> i32'; '() -> ()'. */
export function formatFuncType({ params, results }: Pick<FuncType, 'params' | 'results'>): string {
  return `(${params.join(', ')}) -> ${results.length === 1 ? results[0] : `(${results.join(', ')})`}`
}
