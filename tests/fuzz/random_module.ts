// tests/fuzz/random_module.ts: a valid WebAssembly module, made by a seed.
//
// After wasm-smith: what a module has is decided first, then bodies are written that use it (random_body.ts). All that
// it has is exported, so that what it did can be seen; the first two own globals bound what one call may execute, and
// whoever calls sets them anew. Every function is declared in an element segment, as ref.func wants it.

import {
  KIND_FUNC, KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, KIND_TAG, leb, limits, name, PREAMBLE, section, SECTION_CODE,
  SECTION_CUSTOM, SECTION_DATA, SECTION_DATA_COUNT, SECTION_ELEMENT, SECTION_EXPORT, SECTION_FUNCTION, SECTION_GLOBAL,
  SECTION_IMPORT, SECTION_MEMORY, SECTION_START, SECTION_TABLE, SECTION_TAG, SECTION_TYPE, sleb, vec,
} from '../../src/wasm/encode.ts'
import { randomBody, type BodySize } from './random_body.ts'
import { Random } from './random.ts'
import {
  addressType, TYPE_CODES, Types, type Global, type Memory, type Shape, type Signature, type Table, type ValueType,
} from './random_shape.ts'

/** A module, and what it is made of. */
export type RandomModule = { readonly bytes: Uint8Array<ArrayBuffer>; readonly shape: Shape }

/** The exports that bound an execution. */
export const ROUNDS_EXPORT = 'rounds'
export const CALLS_EXPORT = 'calls'
/** A global that nothing uses: recoded.ts counts instructions in it. */
export const COUNTED_EXPORT = 'counted'
/** What they are while the start function runs. */
const START_ROUNDS = 200
const START_CALLS = 30
const IMPORTED_GLOBALS: readonly ValueType[] = ['i32', 'i64', 'f64', 'externref']

/** The module of `seed`. `functionsMax` makes it smaller. */
export function randomModule(seed: number, functionsMax = 12): RandomModule {
  const random = new Random(seed)
  const shape = randomShape(random, functionsMax)
  const { functions, importedFunctions, types } = shape
  const large = random.chance(3)
  const bodies = functions.slice(importedFunctions).map((type) => {
    const size: BodySize = {
      statements: random.weighted([[6, random.below(12)], [6, random.below(50)], [large ? 6 : 0, 1500]] as const),
      locals: random.weighted([[5, 0], [10, random.below(10)], [1, random.between(115, 300)]] as const),
      padding: random.chance(3) ? random.pick([200, 5000, 17_000, 70_000, 140_000]) : 0,
    }
    return randomBody(random, shape, types.at(type), size, random.chance(20))
  })
  const start = functions.findIndex((type, i) => i >= importedFunctions && isVoid(types.at(type)))
  const hasStart = start >= 0 && random.chance(30)
  const head = [
    ...PREAMBLE,
    ...customSection(random, 'producers'),
    ...section(SECTION_TYPE, vec(types.entries)),
    ...vecSection(SECTION_IMPORT, imports(shape)),
    ...section(SECTION_FUNCTION, vec(functions.slice(importedFunctions).map(leb))),
    ...vecSection(SECTION_TABLE, shape.tables.flatMap((one) => one.imported ? [] : [tableEntry(random, one, shape)])),
    ...vecSection(SECTION_MEMORY, shape.memories.filter((one) => !one.imported).map(limits)),
    ...vecSection(SECTION_TAG, shape.tags.slice(shape.importedTags).map((type) => [0, ...leb(type)])),
    ...customSection(random, 'metadata.code.branch_hint'),
    ...section(SECTION_GLOBAL, vec(globals(random, shape))),
    ...section(SECTION_EXPORT, vec(exports(shape))),
    ...(hasStart ? section(SECTION_START, leb(start)) : []),
    ...section(SECTION_ELEMENT, vec(elements(random, shape))),
    ...(shape.data.length > 0 ? section(SECTION_DATA_COUNT, leb(shape.data.length)) : []),
  ]
  const segments = data(random, shape)
  const bytes = joined([
    head,
    ...longSection(SECTION_CODE, bodies.flatMap((body) => [leb(body.length), body]), bodies.length),
    ...longSection(SECTION_DATA, segments.flat(), segments.length),
    customSection(random, 'name'),
    customSection(random, 'after'),
  ])
  return { bytes, shape }
}

function isVoid({ params, results }: Signature): boolean {
  return params.length === 0 && results.length === 0
}

function vecSection(id: number, items: readonly (readonly number[])[]): number[] {
  return items.length === 0 ? [] : section(id, vec(items))
}

/** Sections that are long don't go through one array. */
type Chunk = ArrayLike<number>

function longSection(id: number, chunks: readonly Chunk[], count: number): Chunk[] {
  if (count === 0) return []
  const length = chunks.reduce((sum, one) => sum + one.length, leb(count).length)
  return [[id, ...leb(length), ...leb(count)], ...chunks]
}

function joined(chunks: readonly Chunk[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(chunks.reduce((sum, one) => sum + one.length, 0))
  let at = 0
  for (const chunk of chunks) {
    bytes.set(chunk, at)
    at += chunk.length
  }
  return bytes
}

function customSection(random: Random, title: string): number[] {
  if (!random.chance(15)) return []
  const content = title === 'name' ? [0, 5, ...name('fuzz')] : [0]
  return section(SECTION_CUSTOM, [...name(title), ...content])
}

// ---- what it has

function randomShape(random: Random, functionsMax: number): Shape {
  const types = new Types()
  const arrayType = random.chance(2) ? otherTypes(types) : undefined
  if (random.chance(10)) types.addOther([0x4e, 2, 0x60, 0, 0, 0x5f, 1, 0x7f, 0], 2)
  const vectors = random.chance(35)
  const exceptions = random.weighted([[4, 'old'], [4, 'new'], [3, 'none']] as const)
  const importedFunctions = random.below(4)
  const all = valueTypes(vectors)
  const functions = Array.from({ length: importedFunctions + random.between(1, functionsMax) }, (_, i) =>
    types.index(i < importedFunctions ? signature(random, valueTypes(false), 1)
      : random.chance(20) ? { params: [], results: [] } : signature(random, all, 3)))
  const theme = random.weighted([[4, 'none'], [1, 'bulk'], [1, 'handlers']] as const)
  const bulk = theme === 'bulk'
  const tables = sortImported(Array.from({ length: random.below(4) + (bulk ? 1 : 0) }, () => randomTable(random, bulk)))
  const memoryCount = random.weighted([[bulk ? 0 : 1, 0], [6, 1], [bulk ? 9 : 3, 2], [1, 3]] as const)
  const memories = sortImported(Array.from({ length: memoryCount }, () => randomMemory(random, bulk)))
  const importedGlobals: Global[] = random.chance(40)
    ? IMPORTED_GLOBALS.map((type, i) => ({ type, mutable: i % 2 === 1, imported: true })) : []
  const rounds = importedGlobals.length
  const own: Global[] = Array.from({ length: random.below(8) }, () =>
    ({ type: random.pick([...all, 'i32']), mutable: random.chance(85), imported: false }))
  const bound: Global = { type: 'i32', mutable: true, imported: false }
  const tags = exceptions === 'none' ? [] : Array.from({ length: random.below(4) }, () =>
    types.index({ params: signature(random, ['i32', 'i64', 'f32', 'f64', 'externref'], 0).params, results: [] }))
  return {
    types, functions, importedFunctions, tables, memories, tags,
    globals: [...importedGlobals, bound, bound, bound, ...own],
    importedTags: Math.min(tags.length, random.below(2)),
    data: memories.length === 0 ? [] : Array.from({ length: random.below(4) }, () =>
      random.weighted([[4, random.below(64)], [2, random.below(4096)], [2, random.between(60_000, 200_000)]] as const)),
    elements: tables.length === 0 ? [] : [...tables.map(({ type, min }) => ({
      type, count: type === 'funcref' ? Math.min(functions.length, min) : Math.min(1, min) })),
    ...Array.from({ length: random.below(4) }, () => ({
      type: random.pick(['funcref', 'funcref', 'externref'] as const),
      count: random.weighted([[4, random.below(9)], [1, random.below(4000)]] as const) }))],
    rounds, calls: rounds + 1, counted: rounds + 2, exceptions, vectors,
    theme, padded: random.chance(6), arrayType,
  }
}

/** Types of an array and a structure; the former's index. */
function otherTypes(types: Types): number {
  types.addOther([0x5f, 0], 1)
  types.addOther([0x5e, 0x78, 1], 1)
  return 1
}

function valueTypes(vectors: boolean): ValueType[] {
  return ['i32', 'i32', 'i64', 'f32', 'f64', 'i32', 'funcref', 'externref', ...(vectors ? ['v128' as const] : [])]
}

function signature(random: Random, all: readonly ValueType[], resultsMax: number): Signature {
  const list = (max: number): ValueType[] => Array.from({ length: random.below(max + 1) }, () => random.pick(all))
  return { params: list(4), results: list(resultsMax) }
}

function sortImported<T extends { readonly imported: boolean }>(all: readonly T[]): T[] {
  return all.toSorted((a, b) => Number(b.imported) - Number(a.imported))
}

function randomTable(random: Random, large: boolean): Table {
  const min = random.weighted([[large ? 1 : 4, random.between(1, 20)], [3, random.between(1000, 5000)]] as const)
  const max = random.chance(40) ? min + random.below(2000) : undefined
  return { min, max, index64: random.chance(6), type: random.pick(['funcref', 'funcref', 'externref']),
    imported: random.chance(15) }
}

function randomMemory(random: Random, large: boolean): Memory {
  const min = random.weighted([[large ? 0 : 4, 1], [3, 2], [4, random.between(3, 6)]] as const)
  const shared = random.chance(8)
  return { min, max: shared || random.chance(50) ? min + random.below(3) : undefined, index64: random.chance(8), shared,
    imported: random.chance(25) }
}

// ---- sections

function imports({
  functions, importedFunctions, tables, memories, globals: all, tags, importedTags,
}: Shape): number[][] {
  const entry = (title: string, ...rest: number[]): number[] => [...name('host'), ...name(title), ...rest]
  return [
    ...functions.slice(0, importedFunctions).map((type, i) => entry(`f${i}`, KIND_FUNC, ...leb(type))),
    ...memories.filter((one) => one.imported).map((one, i) => entry(`m${i}`, KIND_MEMORY, ...limits(one))),
    ...tables.filter((one) => one.imported).map((one, i) =>
      entry(`t${i}`, KIND_TABLE, TYPE_CODES[one.type], ...limits(one))),
    ...all.filter((one) => one.imported).map((one, i) =>
      entry(`g${i}`, KIND_GLOBAL, TYPE_CODES[one.type], one.mutable ? 1 : 0)),
    ...tags.slice(0, importedTags).map((type, i) => entry(`e${i}`, KIND_TAG, 0, ...leb(type))),
  ]
}

function tableEntry(random: Random, table: Table, { functions }: Shape): number[] {
  const type = [TYPE_CODES[table.type], ...limits(table)]
  if (!random.chance(15)) return type
  const value = table.type === 'funcref' && random.chance(70) ? [0xd2, ...leb(random.below(functions.length))]
    : [0xd0, TYPE_CODES[table.type]]
  return [0x40, 0, ...type, ...value, 0x0b]
}

function globals(random: Random, { globals: all, rounds, calls, functions }: Shape): number[][] {
  return all.flatMap(({ type, mutable, imported }, i) => imported ? [] : [[
    TYPE_CODES[type], mutable ? 1 : 0,
    ...(i === rounds ? [0x41, ...sleb(START_ROUNDS)] : i === calls ? [0x41, ...sleb(START_CALLS)]
      : initialValue(random, type, functions.length, rounds > 0)), 0x0b,
  ]])
}

function initialValue(random: Random, type: ValueType, functions: number, imported: boolean): number[] {
  switch (type) {
    // Imported global 0 is an i32 that doesn't change: an extended constant.
    case 'i32': return imported && random.chance(30) ? [0x23, 0, 0x41, 5, 0x6a] : [0x41, ...sleb(random.bits() | 0)]
    case 'i64': return [0x42, ...sleb(random.bits() - 0x8000_0000)]
    case 'f32': return [0x43, 0, 0, random.bits() & 0x7f, 0x41]
    case 'f64': return [0x44, 0, 0, 0, 0, 0, random.bits() & 0xff, random.bits() & 0xff, 0x40]
    case 'v128': return [0xfd, 0x0c, ...Array.from({ length: 16 }, () => random.bits() & 0xff)]
    case 'funcref': return random.chance(70) ? [0xd2, ...leb(random.below(functions))] : [0xd0, 0x70]
    default: return [0xd0, TYPE_CODES[type]]
  }
}

function exports({
  types, functions, importedFunctions, tables, memories, globals: all, rounds, calls, counted, tags,
}: Shape): number[][] {
  const entry = (title: string, kind: number, index: number): number[] => [...name(title), kind, ...leb(index)]
  return [
    ...functions.flatMap((type, i) => {
      const { params, results } = types.at(type)
      // JavaScript can't call those.
      const hidden = [...params, ...results].some((one) => one === 'v128' || one === 'exnref')
      return i < importedFunctions || hidden ? [] : [entry(`f${i}`, KIND_FUNC, i)]
    }),
    ...tables.map((_, i) => entry(`t${i}`, KIND_TABLE, i)),
    ...memories.map((_, i) => entry(`m${i}`, KIND_MEMORY, i)),
    entry(ROUNDS_EXPORT, KIND_GLOBAL, rounds),
    entry(CALLS_EXPORT, KIND_GLOBAL, calls),
    entry(COUNTED_EXPORT, KIND_GLOBAL, counted),
    ...all.flatMap(({ type }, i) =>
      i >= rounds && i <= counted || type === 'v128' ? [] : [entry(`g${i}`, KIND_GLOBAL, i)]),
    ...tags.map((_, i) => entry(`e${i}`, KIND_TAG, i)),
  ]
}

// The first segments fill the tables with the functions in their order; the others are passive. The last declares all.
function elements(random: Random, { tables, elements: segments, functions }: Shape): number[][] {
  const entries = segments.map(({ type, count }, i): number[] => {
    const list = Array.from({ length: count }, (_, entry) =>
      i < tables.length ? entry : random.below(functions.length))
    const expressions = list.map((f) => type === 'externref' || i >= tables.length && random.chance(10)
      ? [0xd0, TYPE_CODES[type], 0x0b] : [0xd2, ...leb(f), 0x0b])
    if (i < tables.length) {
      const offset = [addressType(tables[i]!) === 'i32' ? I32_CONST : I64_CONST, 0, END]
      if (type === 'externref') return [6, ...leb(i), ...offset, TYPE_CODES[type], ...vec(expressions)]
      return i === 0 ? [0, ...offset, ...vec(list.map(leb))] : [2, ...leb(i), ...offset, 0, ...vec(list.map(leb))]
    }
    return type === 'funcref' && random.chance(50) ? [1, 0, ...vec(list.map(leb))]
      : [5, TYPE_CODES[type], ...vec(expressions)]
  })
  return [...entries, [3, 0, ...vec(functions.map((_, i) => leb(i)))]]
}

/** Of each segment: what comes before its bytes, and these. */
function data(random: Random, { data: segments, memories }: Shape): Chunk[][] {
  return segments.map((count) => {
    const seed = random.bits()
    const bytes = new Uint8Array(count)
    for (let i = 0; i < count; i++) bytes[i] = Math.imul(i + seed, 0x9e37_79b1) >>> 24
    const index = random.below(memories.length)
    const room = memories[index]!.min * 65_536 - count
    if (room < 0 || random.chance(60)) return [[1, ...leb(count)], bytes]
    // Rarely out of bounds: then the module can't be instantiated.
    const at = random.chance(1) ? room + 1 : random.below(room + 1)
    const offset = [addressType(memories[index]!) === 'i32' ? I32_CONST : I64_CONST, ...sleb(at), END]
    return [[...(index === 0 ? [0] : [2, ...leb(index)]), ...offset, ...leb(count)], bytes]
  })
}

const I32_CONST = 0x41
const I64_CONST = 0x42
const END = 0x0b
