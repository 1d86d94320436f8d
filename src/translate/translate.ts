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

import {
  KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, leb, limits, name, SECTION_CODE, SECTION_EXPORT, SECTION_FUNCTION,
  SECTION_GLOBAL, SECTION_IMPORT, SECTION_TABLE, SECTION_TYPE,
} from '../wasm/encode.ts'
import type { BodyReader } from '../wasm/body.ts'
import { functionTypes, importsOf, memoriesOf, type Module } from '../wasm/module.ts'
import { instructionOf } from '../wasm/opcodes.ts'
import { HYPERVISOR_MODULE, ReservedName, START_EXPORT } from '../wasm/prepare.ts'
import { CONTROL_MEMORY, FUEL_GLOBAL, YIELD_TABLE } from './added_names.ts'
import { assemble, translateBodies } from './assemble.ts'
import { BulkHelpers, type Helper } from './bulk.ts'
import { callsOf } from './calls.ts'
import { captureCode } from './capture_module.ts'
import { checkCompileCost } from './compile_cost.ts'
import { Fuel, fuelCheck, fuelPieceCode } from './fuel.ts'
import { Preempt, preemptCheck } from './preempt.ts'
import { CONTROL_PAGES } from './control_words.ts'
import { Untreatable } from './untreatable.ts'

/** The version of what is made: translations by another one are of no use. */
export const TRANSLATOR_VERSION = '4'

/** What makes a guest leave. */
export type Mode = 'preempt' | 'fuel'

/** What a translation may be told beside its mode. */
export type Options = {
  readonly mode: Mode
  /** Leaves what can't be kept within bounds as it is. Default: it is refused. */
  readonly unbounded?: boolean
  /** Makes code from which a vCPU can be captured (capture.ts); in mode `preempt` only. */
  readonly capture?: boolean
}

/** A translated module, a part of its buffer. `checks` is how many places were given one. */
export type Translated = { readonly bytes: Uint8Array<ArrayBuffer>; readonly checks: number }

/**
 * Translates a prepared module. Throws Untreatable; ReservedName if it uses the hypervisor's names; Uncapturable, if it
 * is to be captured.
 */
export function translate(module: Module, { mode, unbounded = false, capture = false }: Options): Translated {
  if (module.memories.length > 0) throw new RangeError('Cannot translate a module that defines a memory: prepare it')
  checkNames(module)
  const places = placesOf(module)
  const calls = unbounded ? callsOf(module, () => {}, () => {}) : callsOf(module, refuseObjects, checkCompileCost)
  if (!unbounded && module.types.some(({ kind }) => kind === 'struct' || kind === 'array')) {
    // Initial values of globals, tables and elements may make objects, too.
    throw new Untreatable('a type of structures or arrays')
  }
  if (capture) return captureCode(module, calls, places, unbounded)
  const check = mode === 'fuel' ? fuelCheck(places.fuel, places.yield) : preemptCheck(places.memory, places.yield)
  const piece = mode === 'fuel' ? fuelPieceCode(places.fuel, places.yield) : [...check.code]
  let added = places.yield
  const bulk = new BulkHelpers(module, () => ++added, { check: [...check.code], piece }, unbounded)
  const parts = { calls, bulk, check, imported: importsOf(module, 'func').length }
  const bodies = mode === 'fuel' ? new Fuel({ ...parts, fuel: places.fuel, yields: places.yield,
    parameters: parametersOf(module, parts.imported),
    throws: module.tagCount + importsOf(module, 'tag').length > 0 }) : new Preempt(parts)
  const code = translateBodies(module, bodies)
  return { bytes: assemble(module, additions(places, mode, bulk.helpers), code), checks: bodies.checks }
}

/** How many parameters defined function `f` has. */
function parametersOf(module: Module, imported: number): (f: number) => number {
  const typeOf = functionTypes(module)
  return (f) => typeOf(imported + f)?.params.length ?? 0
}

/** Where what is added stands. */
export type Places = {
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
  const control = { min: 1, max: CONTROL_PAGES, shared: true }
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

/** Objects lie in V8's heap, which no limit of a cell bounds, and are filled and copied at any length. */
function refuseObjects({ opcode }: BodyReader): void {
  const name = instructionOf(opcode)?.name ?? ''
  if (/^(struct\.new|array\.(new|fill|copy|init))/.test(name)) throw new Untreatable(name)
}

function checkNames(module: Module): void {
  const taken = module.imports.some((one) => one.module === HYPERVISOR_MODULE && one.name === CONTROL_MEMORY)
  if (taken || module.exports.some((one) => one.name.startsWith('cellar:') && one.name !== START_EXPORT)) {
    throw new ReservedName('it uses a name that is reserved for the hypervisor')
  }
}

const I32 = 0x7f
const MUTABLE = 1
const FUNCREF = 0x70
const I32_CONST = 0x41
const CALL_INDIRECT = 0x11
const END = 0x0b
