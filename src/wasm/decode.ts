// wasm/decode.ts: bytes → Module (spec §5.5, "Modules"; version 3.0 of the specification).
//
// A module is a preamble and sections, each an id, a length and its content. Sections other than custom ones come at
// most once and in a fixed order. We read the content of those that module.ts models, and of the others the number of
// their items. What we accept includes all that V8 accepts (a property test holds us to it), and V8 validates the rest
// when it compiles: function bodies, indices, duplicate exports.
//
// Proposals that V8 has behind a flag are refused: custom page sizes, shared composite types, custom descriptors.

import {
  KIND_FUNC, KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, KIND_TAG, PREAMBLE, SECTION_CODE, SECTION_CUSTOM, SECTION_DATA,
  SECTION_DATA_COUNT, SECTION_ELEMENT, SECTION_EXPORT, SECTION_FUNCTION, SECTION_GLOBAL, SECTION_IMPORT, SECTION_MEMORY,
  SECTION_START, SECTION_TABLE, SECTION_TAG, SECTION_TYPE,
} from './encode.ts'
import type {
  DefinedTable, Export, ExternKind, FuncType, Import, ImportType, Limits, Module, Section, TableType, Type,
} from './module.ts'
import { importsOf, sectionOf } from './module.ts'
import { MalformedModule, Reader } from './reader.ts'

/** Decodes a module. Throws MalformedModule. */
export function decodeModule(bytes: Uint8Array): Module {
  checkPreamble(bytes)
  const sections = walk(bytes)
  const found = new Map(sections.map((one) => [one.id, one]))
  const read = <T>(id: number, content: (reader: Reader) => T, absent: T): T => {
    const section = found.get(id)
    if (section === undefined) return absent
    const reader = new Reader(bytes, section.offset, section.end, sectionName(id))
    const result = content(reader)
    if (!reader.done && !COUNTED.has(id)) reader.fail('it is longer than what it holds')
    return result
  }
  const count = (id: number): number => read(id, (reader) => reader.u32(), 0)
  const module = {
    bytes,
    sections,
    types: read(SECTION_TYPE, types, []),
    imports: read(SECTION_IMPORT, (reader) => vec(reader, importEntry), []),
    functionCount: count(SECTION_FUNCTION),
    tables: read(SECTION_TABLE, (reader) => vec(reader, tableEntry), []),
    memories: read(SECTION_MEMORY, (reader) => vec(reader, limits), []),
    tagCount: count(SECTION_TAG),
    globalCount: count(SECTION_GLOBAL),
    exports: read(SECTION_EXPORT, (reader) => vec(reader, exportEntry), []),
    start: read<number | undefined>(SECTION_START, (reader) => reader.u32(), undefined),
    elementCount: count(SECTION_ELEMENT),
    dataCount: count(SECTION_DATA),
  }
  const declared = read<number | undefined>(SECTION_DATA_COUNT, (reader) => reader.u32(), undefined)
  checkCounts(module, count(SECTION_CODE), declared)
  return module
}

// 'import section', as messages have it.
function sectionName(id: number): string {
  return `${SECTION_NAMES[id] ?? `unknown (${id})`} section`
}

function checkPreamble(bytes: Uint8Array): void {
  const where = { offset: 0, where: 'header' }
  for (let i = 0; i < PREAMBLE.length; i++) {
    if (i >= bytes.length) throw new MalformedModule({ ...where, offset: i, truncated: true }, 'it ends too early')
    if (bytes[i] !== PREAMBLE[i]) {
      throw new MalformedModule(where, i < 4 ? "it doesn't begin with '\\0asm'" : 'its version is not 1')
    }
  }
}

// Finds the sections. One that reaches beyond the file's end means that the file was cut off.
function walk(bytes: Uint8Array): Section[] {
  const sections: Section[] = []
  let place = 0
  for (let start: number = PREAMBLE.length; start < bytes.length;) {
    const id = bytes[start]!
    const order = ORDER.indexOf(id)
    const where = sectionName(id)
    if (id !== SECTION_CUSTOM) {
      if (order < 0) throw new MalformedModule({ offset: start, where: 'file' }, `no section has the id ${id}`)
      if (order < place) {
        throw new MalformedModule({ offset: start, where }, 'it comes twice, or after a section that it must precede')
      }
      place = order + 1
    }
    const { offset, end } = extent(bytes, start, where)
    const reader = new Reader(bytes, offset, end, where)
    sections.push(id === SECTION_CUSTOM
      ? { id, name: reader.name(), start, offset: reader.at, end } : { id, start, offset, end })
    start = end
  }
  return sections
}

function extent(bytes: Uint8Array, start: number, where: string): { offset: number; end: number } {
  const reader = new Reader(bytes, start + 1, bytes.length, where)
  let length = 0
  try {
    length = reader.u32()
  } catch (error) {
    const ended = reader.at === bytes.length && (reader.at === start + 1 || bytes[reader.at - 1]! >= 0x80)
    if (!ended) throw error
    throw new MalformedModule({ offset: reader.at, where, truncated: true }, 'the file ends in its length')
  }
  const missing = length - (bytes.length - reader.at)
  if (missing > 0) {
    throw new MalformedModule({ offset: bytes.length, where, truncated: true },
      `it has ${length} bytes, of which ${missing} are missing`)
  }
  return { offset: reader.at, end: reader.at + length }
}

// Sections that must agree about how many functions and data segments there are (§5.5.16).
function checkCounts(module: Omit<Module, 'start'>, codeCount: number, dataCount: number | undefined): void {
  const at = (id: number) => ({
    offset: module.sections.find((one) => one.id === id)?.offset ?? module.bytes.length, where: sectionName(id),
  })
  if (codeCount !== module.functionCount) {
    throw new MalformedModule(at(SECTION_CODE), `it has ${codeCount} functions, ${module.functionCount} are declared`)
  }
  if (dataCount !== undefined && dataCount !== module.dataCount) {
    throw new MalformedModule(at(SECTION_DATA), `it has ${module.dataCount} segments, ${dataCount} are declared`)
  }
}

function vec<T>(reader: Reader, item: (reader: Reader) => T): T[] {
  // The count is an allegation: nothing is allocated for it, and each item takes at least a byte of the section.
  const items: T[] = []
  for (let count = reader.u32(); count > 0; count--) items.push(item(reader))
  return items
}

// ---- types (§5.3)

function types(reader: Reader): Type[] {
  const all: Type[] = []
  for (let groups = reader.u32(); groups > 0; groups--) {
    if (reader.bytes[reader.at] !== REC) all.push(subType(reader))
    else {
      reader.u8()
      for (let members = reader.u32(); members > 0; members--) all.push(subType(reader))
    }
  }
  return all
}

function subType(reader: Reader): Type {
  const start = reader.at
  let form = reader.u8()
  if (form === SUB || form === SUB_FINAL) {
    for (let supertypes = reader.u32(); supertypes > 0; supertypes--) reader.u32()
    form = reader.u8()
  }
  switch (form) {
    case FUNC: return funcType(reader)
    case STRUCT:
      for (let fields = reader.u32(); fields > 0; fields--) fieldType(reader)
      return { kind: 'struct' }
    case ARRAY:
      fieldType(reader)
      return { kind: 'array' }
    case CONT:
      reader.s33()
      return { kind: 'cont' }
    default: return reader.fail(`no type has the form 0x${form.toString(16)}`, start)
  }
}

function funcType(reader: Reader): FuncType {
  return { kind: 'func', params: vec(reader, valueType), results: vec(reader, valueType) }
}

function fieldType(reader: Reader): void {
  const packed = reader.bytes[reader.at]
  if (packed === I8 || packed === I16) reader.u8()
  else valueType(reader)
  flag(reader, 'mutability')
}

function valueType(reader: Reader): string {
  const start = reader.at
  const code = reader.u8()
  if (code === REF || code === REF_NULL) return `(ref ${code === REF ? '' : 'null '}${heapType(reader)})`
  return NUMERIC[code] ?? REFERENCES[code] ?? reader.fail(`no value type has the code 0x${code.toString(16)}`, start)
}

function heapType(reader: Reader): string {
  const start = reader.at
  const index = reader.s33()
  if (index >= 0) return String(index)
  const name = REFERENCES[index + 0x80]
  return name?.replace(/ref$/, '') ?? reader.fail(`no heap type has the code ${index}`, start)
}

function limits(reader: Reader, where = 'memory'): Limits {
  const start = reader.at
  const flags = reader.u8()
  if ((flags & CUSTOM_PAGE_SIZE) !== 0 && flags < 0x10) reader.fail(`a ${where} has a page size of its own`, start)
  if (flags > 7) reader.fail(`no limits of a ${where} have the flags 0x${flags.toString(16)}`, start)
  const index64 = (flags & 4) !== 0
  const bound = (): number => index64 ? Number(reader.u64()) : reader.u32()
  const min = bound()
  return { min, max: (flags & 1) !== 0 ? bound() : undefined, shared: (flags & 2) !== 0, index64 }
}

function tableType(reader: Reader): TableType {
  const type = valueType(reader)
  return { type, ...limits(reader, 'table') }
}

function flag(reader: Reader, what: string): boolean {
  const value = reader.u8()
  if (value > 1) reader.fail(`a ${what} is ${value}, neither 0 nor 1`, reader.at - 1)
  return value === 1
}

// ---- entries of sections (§5.5)

function importEntry(reader: Reader): Import {
  const offset = reader.at
  const module = reader.name()
  const name = reader.name()
  return { module, name, offset, ...importType(reader) }
}

function importType(reader: Reader): ImportType {
  const kind = reader.u8()
  switch (kind) {
    case KIND_FUNC: return { kind: 'func', type: reader.u32() }
    case KIND_TABLE: return { kind: 'table', table: tableType(reader) }
    case KIND_MEMORY: return { kind: 'memory', memory: limits(reader) }
    case KIND_GLOBAL: {
      const type = valueType(reader)
      return { kind: 'global', type, mutable: flag(reader, 'mutability') }
    }
    case KIND_TAG:
      if (reader.u8() !== 0) reader.fail('a tag is not an exception', reader.at - 1)
      return { kind: 'tag', type: reader.u32() }
    default: return reader.fail(`no import has the kind ${kind}`, reader.at - 1)
  }
}

function exportEntry(reader: Reader): Export {
  const name = reader.name()
  const kind = KINDS[reader.u8()] ?? reader.fail(`no export has the kind ${reader.bytes[reader.at - 1]}`, reader.at - 1)
  return { name, kind, index: reader.u32() }
}

function tableEntry(reader: Reader): DefinedTable {
  const initialised = reader.bytes[reader.at] === TABLE_WITH_INIT
  if (initialised) {
    reader.u8()
    if (reader.u8() !== 0) reader.fail('a table with an initial value is marked wrongly', reader.at - 1)
  }
  const type = valueType(reader)
  const limitsAt = reader.at
  const table = { type, ...limits(reader, 'table'), limitsAt, limitsEnd: reader.at }
  if (initialised) skipConstantExpression(reader)
  return table
}

/** The types of all globals, imported ones first. Throws MalformedModule. */
export function globalsOf(module: Module): { readonly type: string; readonly mutable: boolean }[] {
  const imported = importsOf(module, 'global').map(({ type, mutable }) => ({ type, mutable }))
  const section = sectionOf(module, SECTION_GLOBAL)
  if (section === undefined) return imported
  const reader = new Reader(module.bytes, section.offset, section.end, 'global section')
  const defined = vec(reader, (one) => {
    const type = valueType(one)
    const mutable = flag(one, 'mutability')
    skipConstantExpression(one)
    return { type, mutable }
  })
  return [...imported, ...defined]
}

// §3.4.15: the few instructions that an initial value may consist of. Only their lengths matter here.
function skipConstantExpression(reader: Reader): void {
  for (;;) {
    const start = reader.at
    const opcode = reader.u8()
    switch (opcode) {
      case 0x0b: return // end
      case 0x23: case 0xd2: reader.u32(); break // global.get, ref.func
      case 0x41: reader.skipLeb(32); break // i32.const
      case 0x42: reader.skipLeb(64); break // i64.const
      case 0x43: reader.skip(4); break // f32.const
      case 0x44: reader.skip(8); break // f64.const
      case 0x6a: case 0x6b: case 0x6c: case 0x7c: case 0x7d: case 0x7e: break // i32 and i64: add, sub, mul
      case 0xd0: heapType(reader); break // ref.null
      case 0xfb: skipGcInstruction(reader, start); break
      case 0xfd: // v128.const
        if (reader.u32() !== 0x0c) reader.fail('an initial value is not constant', start)
        reader.skip(16)
        break
      default: reader.fail(`an initial value has the instruction 0x${opcode.toString(16)}`, start)
    }
  }
}

function skipGcInstruction(reader: Reader, start: number): void {
  switch (reader.u32()) {
    case 0x00: case 0x01: case 0x06: case 0x07: reader.u32(); break // struct.new, array.new and their _default
    case 0x08: reader.u32(); reader.u32(); break // array.new_fixed
    case 0x1a: case 0x1b: case 0x1c: break // any.convert_extern, extern.convert_any, ref.i31
    default: reader.fail('an initial value is not constant', start)
  }
}

/** §5.5.16. Tags and data counts came later, hence their numbers. */
export const ORDER: readonly number[] = [
  SECTION_TYPE, SECTION_IMPORT, SECTION_FUNCTION, SECTION_TABLE, SECTION_MEMORY, SECTION_TAG, SECTION_GLOBAL,
  SECTION_EXPORT, SECTION_START, SECTION_ELEMENT, SECTION_DATA_COUNT, SECTION_CODE, SECTION_DATA,
]

/** Sections of which only the number of items is read. */
const COUNTED = new Set([
  SECTION_FUNCTION, SECTION_TAG, SECTION_GLOBAL, SECTION_ELEMENT, SECTION_CODE, SECTION_DATA,
])

const SECTION_NAMES = [
  'custom', 'type', 'import', 'function', 'table', 'memory', 'global', 'export', 'start', 'element', 'code', 'data',
  'data count', 'tag',
]
const KINDS: readonly ExternKind[] = ['func', 'table', 'memory', 'global', 'tag']

const NUMERIC: Record<number, string> = { 0x7f: 'i32', 0x7e: 'i64', 0x7d: 'f32', 0x7c: 'f64', 0x7b: 'v128' }
const REFERENCES: Record<number, string> = {
  0x75: 'nullcontref', 0x74: 'nullexnref', 0x73: 'nullfuncref', 0x72: 'nullexternref', 0x71: 'nullref', 0x70: 'funcref',
  0x6f: 'externref', 0x6e: 'anyref', 0x6d: 'eqref', 0x6c: 'i31ref', 0x6b: 'structref', 0x6a: 'arrayref', 0x69: 'exnref',
  0x68: 'contref',
}
const I8 = 0x78
const I16 = 0x77
const REF_NULL = 0x63
const REF = 0x64
const FUNC = 0x60
const STRUCT = 0x5f
const ARRAY = 0x5e
const CONT = 0x5d
const SUB = 0x50
const SUB_FINAL = 0x4f
const REC = 0x4e
const TABLE_WITH_INIT = 0x40
const CUSTOM_PAGE_SIZE = 8
