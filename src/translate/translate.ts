// translate/translate.ts: the one door to binary translation: WebAssembly in, WebAssembly out.
//
// Two modes, which differ in what tells a guest to leave its pCPU:
//   preempt  a word that another thread sets when a quantum ends (preempt.ts). The default: it costs least;
//   fuel     the guest's own count of what it executed (fuel.ts), so that it leaves at the same places in every run.
// Both bound what the guest could keep the pCPU busy with otherwise: bulk instructions (bulk.ts), tables (tables.ts).
//
// Nothing of the guest's is renumbered: all that is added stands at the end of its index space. The control memory is
// imported after the guest's own memories, all of which are imports by now (wasm/prepare.ts). $yield is a new function;
// it calls through a new last table, whose one element the hypervisor sets before the guest runs.
//
// Pure, and linear in the size of the module: bodies are read once to see what they call, those that may change once
// more, both times from one instruction of interest to the next (BodyReader.nextOf). What doesn't change is copied in
// ranges. Code is written where it stays: room is left before it for what is known when it is done, so that a large
// module isn't held twice.

import { ORDER } from '../wasm/decode.ts'
import {
  KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, leb, limits, name, SECTION_CODE, SECTION_CUSTOM, SECTION_EXPORT,
  SECTION_FUNCTION, SECTION_GLOBAL, SECTION_IMPORT, SECTION_TABLE, SECTION_TYPE,
} from '../wasm/encode.ts'
import { BodyReader, eachBody } from '../wasm/body.ts'
import { BodyWriter, lebLength } from '../wasm/body_writer.ts'
import { functionTypes, importsOf, memoriesOf, sectionOf, type Module, type Section } from '../wasm/module.ts'
import { instructionOf } from '../wasm/opcodes.ts'
import { HYPERVISOR_MODULE, ReservedName } from '../wasm/prepare.ts'
import { Reader } from '../wasm/reader.ts'
import { BulkHelpers, type Helper } from './bulk.ts'
import { callsOf } from './calls.ts'
import { checkCompileCost } from './compile_cost.ts'
import { Fuel, fuelCheck, fuelPieceCode } from './fuel.ts'
import { Preempt, preemptCheck } from './preempt.ts'
import { Splice, type BodyTranslator } from './splice.ts'
import { limitTables } from './tables.ts'
import { Untreatable } from './untreatable.ts'

/** The version of what is made: translations by another one are of no use. */
export const TRANSLATOR_VERSION = '2'

/** What makes a guest leave. */
export type Mode = 'preempt' | 'fuel'

/** What a translation may be told beside its mode. */
export type Options = {
  readonly mode: Mode
  /** Leaves what can't be kept within bounds as it is. Default: it is refused. */
  readonly unbounded?: boolean
}

/** A translated module, a part of its buffer. `checks` is how many places were given one. */
export type Translated = { readonly bytes: Uint8Array<ArrayBuffer>; readonly checks: number }

/** The name under which the pCPU's control memory (shared, one page) is imported. */
export const CONTROL_MEMORY = 'control'
/** The export that is the table of one function, () → (): where a guest goes when its time is over. */
export const YIELD_TABLE = 'cellar:yield'
/** The export that is the fuel that is left (a mutable i32): below 0 the guest leaves, and gets more. */
export const FUEL_GLOBAL = 'cellar:fuel'

/** Translates a prepared module. Throws Untreatable; ReservedName if it uses the hypervisor's names. */
export function translate(module: Module, { mode, unbounded = false }: Options): Translated {
  if (module.memories.length > 0) throw new RangeError('Cannot translate a module that defines a memory: prepare it')
  checkNames(module)
  const places = placesOf(module)
  const calls = unbounded ? callsOf(module, () => {}, () => {}) : callsOf(module, refuseObjects, checkCompileCost)
  if (!unbounded && module.types.some(({ kind }) => kind === 'struct' || kind === 'array')) {
    // Initial values of globals, tables and elements may make objects, too.
    throw new Untreatable('a type of structures or arrays')
  }
  const check = mode === 'fuel' ? fuelCheck(places.fuel, places.yield) : preemptCheck(places.memory, places.yield)
  const piece = mode === 'fuel' ? fuelPieceCode(places.fuel, places.yield) : [...check.code]
  const bulk = new BulkHelpers(module, places.yield + 1, { check: [...check.code], piece }, unbounded)
  const parts = { calls, bulk, check, imported: importsOf(module, 'func').length }
  const bodies = mode === 'fuel' ? new Fuel({ ...parts, fuel: places.fuel, yields: places.yield,
    parameters: parametersOf(module, parts.imported),
    throws: module.tagCount + importsOf(module, 'tag').length > 0 }) : new Preempt(parts)
  const room = roomBeforeCode(module)
  // What isn't written isn't there: the kernel gives pages when they are first used.
  const code = new BodyWriter(room + module.bytes.length * 2)
  code.length = room
  const hints = new BodyWriter(1024)
  const hinted = translateBodies(module, bodies, code, hints)
  const added = additions(places, mode, bulk.helpers)
  return { bytes: assemble(module, added, { code, room, hints, hinted }), checks: bodies.checks }
}

/** For all that comes before the code; hints are an eighth of the code at most, or all is moved. */
function roomBeforeCode(module: Module): number {
  const section = sectionOf(module, SECTION_CODE)
  if (section === undefined) return 1024
  return section.start + (section.end - section.start >> 3) + 1024
}

/** How many parameters defined function `f` has. */
function parametersOf(module: Module, imported: number): (f: number) => number {
  const typeOf = functionTypes(module)
  return (f) => typeOf(imported + f)?.params.length ?? 0
}

/** Where what is added stands. */
type Places = {
  readonly type: number; readonly memory: number; readonly yield: number; readonly table: number; readonly fuel: number
}

function placesOf(module: Module): Places {
  return {
    type: module.types.length,
    memory: memoriesOf(module).length,
    yield: importsOf(module, 'func').length + module.functionCount,
    table: importsOf(module, 'table').length + module.tables.length,
    fuel: importsOf(module, 'global').length + module.globalCount,
  }
}

/** The entries that each section gets. */
function additions(
  { type, table, fuel }: Places, mode: Mode, helpers: readonly Helper[],
): Map<number, readonly (readonly number[])[]> {
  const control = { min: 1, max: 1, shared: true }
  const yields = [0, I32_CONST, 0, CALL_INDIRECT, ...leb(type), ...leb(table), END]
  const preempts = mode === 'preempt'
  return new Map<number, readonly (readonly number[])[]>([
    [SECTION_TYPE, [[0x60, 0, 0], ...helpers.map((one) => one.type)]],
    [SECTION_IMPORT, preempts
      ? [[...name(HYPERVISOR_MODULE), ...name(CONTROL_MEMORY), KIND_MEMORY, ...limits(control)]] : []],
    [SECTION_FUNCTION, [leb(type), ...helpers.map((_, i) => leb(type + 1 + i))]],
    [SECTION_TABLE, [[FUNCREF, ...limits({ min: 1, max: 1 })]]],
    [SECTION_GLOBAL, preempts ? [] : [[I32, MUTABLE, I32_CONST, 0, END]]],
    [SECTION_EXPORT, [[...name(YIELD_TABLE), KIND_TABLE, ...leb(table)],
      ...(preempts ? [] : [[...name(FUEL_GLOBAL), KIND_GLOBAL, ...leb(fuel)]])]],
    [SECTION_CODE, [yields, ...helpers.map(({ body }) => body)].map((body) => [...leb(body.length), ...body])],
  ])
}

/** Writes all bodies, and hints for those that have unlikely branches: how many these are. */
function translateBodies(module: Module, bodies: BodyTranslator, code: BodyWriter, hints: BodyWriter): number {
  const { bytes } = module
  const imported = importsOf(module, 'func').length
  const reader = new BodyReader(bytes)
  const splice = new Splice(bytes, code)
  let hinted = 0
  // What is copied as it is, from one change to the next. A body begins with its length, where the one before it ends.
  let from = firstBody(module)
  let last = from
  eachBody(module, (start, end, f) => {
    const begin = last
    last = end
    if (!bodies.touches(f)) return
    code.copy(bytes, from, begin)
    splice.begin(start, end)
    bodies.translate(f, reader, splice)
    splice.finish()
    from = end
    if (splice.hintCount === 0) return
    hinted++
    hints.u32(imported + f)
    hints.u32(splice.hintCount)
    for (let i = 0; i < splice.hintCount; i++) {
      hints.u32(splice.hints[i]!)
      hints.byte(1)
      hints.byte(UNLIKELY)
    }
  })
  code.copy(bytes, from, last)
  return hinted
}

function firstBody(module: Module): number {
  const section = sectionOf(module, SECTION_CODE)
  if (section === undefined) return 0
  const reader = new Reader(module.bytes, section.offset, section.end, 'code section')
  reader.u32()
  return reader.at
}

/** `code` begins at `room`. */
type Code = {
  readonly code: BodyWriter; readonly room: number; readonly hints: BodyWriter; readonly hinted: number
}

/** The module with its additions, each section in its place. */
function assemble(
  module: Module, added: ReadonlyMap<number, readonly (readonly number[])[]>, code: Code,
): Uint8Array<ArrayBuffer> {
  const head = new BodyWriter(code.room)
  // What follows the code is written behind it.
  let out = head
  out.copy(module.bytes, 0, module.sections[0]?.start ?? module.bytes.length)
  const wanted = ORDER.filter((id) => (added.get(id)?.length ?? 0) > 0)
  const missing = wanted.filter((id) => sectionOf(module, id) === undefined)
  const add = (id: number, section: Section | undefined): void => {
    if (id !== SECTION_CODE) extend(out, module, id, section, added.get(id)!)
    else {
      writeCode(head, module, added.get(id)!, code)
      out = code.code
    }
  }
  for (const section of module.sections) {
    const { id, start, end } = section
    // Hints of the guest's own are about offsets that are no more.
    if (id === SECTION_CUSTOM && section.name === BRANCH_HINTS) continue
    // Custom sections may stand anywhere: those that are missing wait for one that they must precede.
    const due = id === SECTION_CUSTOM ? 0 : missing.filter((one) => ORDER.indexOf(one) < ORDER.indexOf(id)).length
    for (const one of missing.splice(0, due)) add(one, undefined)
    if (wanted.includes(id)) add(id, section)
    else out.copy(module.bytes, start, end)
  }
  for (const id of missing) add(id, undefined)
  return code.code.prepend(code.room, head.written())
}

/** Writes a section with more entries. */
function extend(
  out: BodyWriter, module: Module, id: number, section: Section | undefined, entries: readonly (readonly number[])[],
): void {
  out.byte(id)
  const start = out.beginSized()
  if (section === undefined) out.u32(entries.length)
  else {
    const reader = new Reader(module.bytes, section.offset, section.end, 'section')
    out.u32(reader.u32() + entries.length)
    if (id === SECTION_TABLE) limitTables(module, reader.at, section.end, out)
    else out.copy(module.bytes, reader.at, section.end)
  }
  for (const entry of entries) for (const byte of entry) out.byte(byte)
  out.endSized(start)
}

/** Writes what precedes the code, with the bodies that are added behind it. */
function writeCode(
  head: BodyWriter, module: Module, bodies: readonly (readonly number[])[], { code, room, hints, hinted }: Code,
): void {
  if (hinted > 0) {
    head.byte(SECTION_CUSTOM)
    const start = head.beginSized()
    for (const byte of name(BRANCH_HINTS)) head.byte(byte)
    head.u32(hinted)
    head.copy(hints.bytes, 0, hints.length)
    head.endSized(start)
  }
  for (const body of bodies) for (const byte of body) code.byte(byte)
  const count = module.functionCount + bodies.length
  head.byte(SECTION_CODE)
  head.u32(lebLength(count) + code.length - room)
  head.u32(count)
}

/** Objects lie in V8's heap, which no limit of a cell bounds, and are filled and copied at any length. */
function refuseObjects({ opcode }: BodyReader): void {
  const name = instructionOf(opcode)?.name ?? ''
  if (/^(struct\.new|array\.(new|fill|copy|init))/.test(name)) throw new Untreatable(name)
}

function checkNames(module: Module): void {
  const taken = module.imports.some((one) => one.module === HYPERVISOR_MODULE && one.name === CONTROL_MEMORY)
  if (taken || module.exports.some((one) => one.name === YIELD_TABLE || one.name === FUEL_GLOBAL)) {
    throw new ReservedName('it uses a name that is reserved for the hypervisor')
  }
}

const BRANCH_HINTS = 'metadata.code.branch_hint'
const UNLIKELY = 0
const I32 = 0x7f
const MUTABLE = 1
const FUNCREF = 0x70
const I32_CONST = 0x41
const CALL_INDIRECT = 0x11
const END = 0x0b
