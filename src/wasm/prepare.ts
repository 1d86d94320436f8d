// wasm/prepare.ts: turns a guest's module into one that the hypervisor can hold in its hands.
//
// Two changes, both in sections of a few bytes; all others are copied as they are, and no function body is looked at:
//   memories  become imports (`cellar` `memory`), so that the hypervisor makes them, with the cell's limit as maximum,
//             and can reach them before any guest code runs. A defined memory becomes the last import, an imported one
//             gets the new name: memory i stays memory i, since imports come first and keep their order.
//   start     the start function would run during instantiation, where a vCPU can't be parked. Its section is removed
//             and the function exported as `cellar:start`; the cell calls it before anything else.
// The names are reserved: a guest that uses them itself is refused.
//
// What V8 says about the new module (offsets of errors and of a trap's frames) is in terms of its bytes:
// originalOffset() leads back to the guest's file.

import {
  KIND_FUNC, KIND_MEMORY, SECTION_CODE, SECTION_CUSTOM, SECTION_EXPORT, SECTION_IMPORT, SECTION_MEMORY, SECTION_START,
  leb, limits, name,
} from './encode.ts'
import { ORDER } from './decode.ts'
import { memoriesOf, sectionOf } from './module.ts'
import type { MemoryType, Module } from './module.ts'
import { Reader } from './reader.ts'

/** A module that imports its memories and runs nothing by itself. */
export type Prepared = {
  readonly bytes: Uint8Array<ArrayBuffer>
  /** What must be imported: memory i under memoryName(i), with these limits. */
  readonly memories: readonly MemoryType[]
  /** True if START_EXPORT must be called before any other export. */
  readonly hasStart: boolean
  /** Added to the original offset of each byte of the code section. */
  readonly codeOffsetDelta: number
  /** The ranges that were copied, in order. */
  readonly copies: readonly { readonly at: number; readonly from: number; readonly length: number }[]
}

/** The module name of what the hypervisor itself gives to a guest. */
export const HYPERVISOR_MODULE = 'cellar'
/** The export that calls the guest's start function. */
export const START_EXPORT = 'cellar:start'

/** The name under which memory `index` is imported: 'memory', 'memory1', … */
export function memoryName(index: number): string {
  return index === 0 ? 'memory' : `memory${index}`
}

/** The guest's module uses a name that the hypervisor needs for itself. */
export class ReservedName extends Error {
  override readonly name = 'ReservedName'
}

/** Rewrites `bytes`, of which `module` was decoded; the same bytes if nothing must change. Throws ReservedName. */
export function prepare(bytes: Uint8Array<ArrayBuffer>, module: Module): Prepared {
  checkNames(module)
  const memories = memoriesOf(module)
  const hasStart = module.start !== undefined
  if (memories.length === 0 && !hasStart) {
    return { bytes, memories, hasStart, codeOffsetDelta: 0, copies: [{ at: 0, from: 0, length: bytes.length }] }
  }
  const pieces = rewrite(module)
  const copies: { at: number; from: number; length: number }[] = []
  const out = new Uint8Array(lengthOf(pieces))
  let at = 0
  for (const piece of pieces) {
    const part = 'made' in piece ? piece.made : bytes.subarray(piece.from, piece.end)
    if ('from' in piece) copies.push({ at, from: piece.from, length: part.length })
    out.set(part, at)
    at += part.length
  }
  const code = sectionOf(module, SECTION_CODE)
  const moved = copies.find((one) => code !== undefined && one.from <= code.start && code.start < one.from + one.length)
  return { bytes: out, memories, hasStart, codeOffsetDelta: moved === undefined ? 0 : moved.at - moved.from, copies }
}

/** The byte of the guest's file that is at `offset` of the prepared module; of what we added, the next one. */
export function originalOffset(prepared: Prepared, offset: number): number {
  for (const { at, from, length } of prepared.copies) {
    if (offset < at) return from
    if (offset < at + length) return from + offset - at
  }
  const last = prepared.copies.at(-1)
  return last === undefined ? 0 : last.from + last.length
}

/** A range of the original, or bytes that we made. */
type Piece = { readonly from: number; readonly end: number } | { readonly made: readonly number[] }

function lengthOf(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, one) => sum + ('made' in one ? one.made.length : one.end - one.from), 0)
}

function rewrite(module: Module): Piece[] {
  const pieces: Piece[] = []
  copy(pieces, 0, module.sections[0]?.start ?? module.bytes.length)
  // Sections that the module lacks and we need, in their order; each is put before the first that must follow it.
  const missing = [SECTION_IMPORT, SECTION_EXPORT].filter((id) => sectionOf(module, id) === undefined)
  for (const { id, start, end } of module.sections) {
    if (id !== SECTION_CUSTOM) {
      while (missing[0] !== undefined && ORDER.indexOf(missing[0]) < ORDER.indexOf(id)) {
        add(pieces, module, missing.shift()!)
      }
    }
    if (id === SECTION_IMPORT || id === SECTION_EXPORT) add(pieces, module, id)
    else if (id !== SECTION_MEMORY && id !== SECTION_START) copy(pieces, start, end)
  }
  for (const id of missing) add(pieces, module, id)
  return pieces
}

// Adjacent ranges become one: the sections behind the last change are then copied at once.
function copy(pieces: Piece[], from: number, end: number): void {
  const last = pieces.at(-1)
  if (last !== undefined && 'from' in last && last.end === from) pieces[pieces.length - 1] = { from: last.from, end }
  else if (from < end) pieces.push({ from, end })
}

// The module's import or export section with our entries.
function add(pieces: Piece[], module: Module, id: number): void {
  const entries = id === SECTION_IMPORT ? importEntries(module) : exportEntries(module)
  if (entries.count === 0) return
  const count = leb(entries.count)
  const length = lengthOf(entries.pieces)
  pieces.push({ made: [id, ...leb(count.length + length), ...count] })
  for (const piece of entries.pieces) {
    if ('made' in piece) pieces.push(piece)
    else copy(pieces, piece.from, piece.end)
  }
}

function importEntries(module: Module): { count: number; pieces: Piece[] } {
  const pieces: Piece[] = []
  const end = sectionOf(module, SECTION_IMPORT)?.end ?? 0
  let memory = 0
  const memoryEntry = (type: MemoryType): Piece =>
    ({ made: [...name(HYPERVISOR_MODULE), ...name(memoryName(memory++)), KIND_MEMORY, ...limits(type)] })
  module.imports.forEach((one, i) => {
    if (one.kind === 'memory') pieces.push(memoryEntry(one.memory))
    else copy(pieces, one.offset, module.imports[i + 1]?.offset ?? end)
  })
  for (const type of module.memories) pieces.push(memoryEntry(type))
  return { count: module.imports.length + module.memories.length, pieces }
}

function exportEntries(module: Module): { count: number; pieces: Piece[] } {
  const pieces: Piece[] = []
  const section = sectionOf(module, SECTION_EXPORT)
  if (section !== undefined) {
    const reader = new Reader(module.bytes, section.offset, section.end, 'export section')
    reader.u32()
    copy(pieces, reader.at, section.end)
  }
  if (module.start === undefined) return { count: module.exports.length, pieces }
  pieces.push({ made: [...name(START_EXPORT), KIND_FUNC, ...leb(module.start)] })
  return { count: module.exports.length + 1, pieces }
}

function checkNames(module: Module): void {
  for (const { module: from, name: imported } of module.imports) {
    if (from === HYPERVISOR_MODULE && /^memory\d*$/.test(imported)) {
      throw new ReservedName(`its import ${from}.${imported} has a name that is reserved for the hypervisor`)
    }
  }
  if (module.exports.some((one) => one.name === START_EXPORT)) {
    throw new ReservedName(`its export ${START_EXPORT} has a name that is reserved for the hypervisor`)
  }
}
