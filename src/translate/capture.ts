// translate/capture.ts: code from which a vCPU can be taken off its stack, and be gone on with elsewhere.
//
// At each site (frame_plan.ts) stands a check, which is the check for preemption, too: of the control word, in which
// another thread writes. What is hot pays for one load and one branch after each call that may unwind, and at each
// loop; entries of functions need none, since who calls them checks when they return. Behind the branch $poll lets
// others run; if the cell is to be captured meanwhile, each function keeps what is live in the save area
// (save_area.ts), and returns to its caller, which does the same.
//
// Nothing in this code goes on from a frame: that is the work of a module that is made when there is one to go on from,
// of the functions and sites that it has (continuation.ts). It reaches what is here through exports:
//   cellar:function  the function of an index     cellar:global N, table N, tag N  by their indices
//   cellar:enter     calls the start function (0) or _start (1), and tells when the stack was left
//   cellar:save, cellar:load  all that is mutable and no memory or table: globals, dropped segments ↔ the save area
// What both must agree upon is in the custom section `cellar:capture`.
//
// Sources: Binaryen's Asyncify, which puts resuming into the hot code, at twice the cost; Wanco (MPLR'25), safe points.

import { BodyReader } from '../wasm/body.ts'
import { BodyWriter } from '../wasm/body_writer.ts'
import { leb } from '../wasm/encode.ts'
import type { Module } from '../wasm/module.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { BULK_COUNT_MAX, type BulkHelpers } from './bulk.ts'
import type { Calls } from './calls.ts'
import { localTypes, writeCaptured } from './captured_body.ts'
import type { FramePlan, PlanContext } from './frame_plan.ts'
import { Planner } from './planner.ts'
import { ModuleTypes, type Keep } from './module_types.ts'
import { Uncapturable } from './uncapturable.ts'
import {
  frameFunction, keepExceptionFunction, keepFunction, keepTagFunction, pollFunction, type AddedCode,
} from './save_area.ts'
import type { SiteParts } from './site_code.ts'
import { Splice, type BodyTranslator } from './splice.ts'

/** Where what capture adds begins. */
export type CapturePlaces = {
  readonly control: number; readonly yields: number
  /** The first table behind that of `yields`: functions, then references of the host. */
  readonly tables: number
  /** The first global. */
  readonly globals: number
}

/** A segment that the guest may drop: its global is 1 then. */
export type Dropped = { readonly opcode: number; readonly segment: number; readonly global: number }

/** A body that is smaller isn't worth a check at its entry: the stack's depth bounds what runs unchecked. */
const ENTRY_CHECK_BYTES = 1024
/** What goes on has loops twice, and V8 takes no larger function than of 7.6 MB. */
const LOOP_BYTES_MAX = 5_000_000

/** Functions that are added, in the order of their indices; a body may be made later. */
export class AddedFunctions {
  readonly first: number
  readonly codes: AddedCode[] = []

  constructor(first: number) {
    this.first = first
  }

  add(code: AddedCode): number {
    return this.first + this.codes.push(code) - 1
  }
}

/** Makes bodies that can be captured. */
export class Capture implements BodyTranslator, PlanContext {
  checks = 0
  readonly types: ModuleTypes
  readonly added: AddedFunctions
  readonly parts: SiteParts
  readonly dropped: Dropped[] = []
  /** True once references are kept: the tables for them are needed. */
  keepsReferences = false
  readonly #calls: Calls
  readonly #bulk: BulkHelpers
  readonly #places: CapturePlaces
  readonly #planner: Planner
  readonly #hasTailCalls: boolean
  readonly #keeps = new Map<number, number>()
  readonly #plain = new Map<string, { index: number; opcode: number; a: number; b: number }>()
  readonly #plainIndices = new Set<number>()
  readonly #tags = new Map<number, number>()
  readonly #frames = new Map<number | undefined, number>()
  #exception: number | undefined

  constructor(module: Module, parts: { calls: Calls; bulk: BulkHelpers; added: AddedFunctions; places: CapturePlaces
    hasTailCalls: boolean }) {
    this.types = new ModuleTypes(module)
    this.added = parts.added
    this.#calls = parts.calls
    this.#bulk = parts.bulk
    this.#places = parts.places
    this.#hasTailCalls = parts.hasTailCalls
    const { control, yields } = parts.places
    this.parts = {
      types: this.types, control,
      poll: this.added.add(pollFunction(control, yields)),
      frame: (result) => this.#frameOf(result),
      keep: (keep, count) => this.#keepOf(keep, count),
      keepException: () => this.#exception ??=
        this.added.add(keepExceptionFunction(control, this.types, (tag) => this.#keepTag(tag))),
      keepTag: (tag) => this.#keepTag(tag),
    }
    this.#planner = new Planner(this)
  }

  touches(f: number): boolean {
    return this.#calls.unwinds[f] !== 0
  }

  translate(f: number, reader: BodyReader, splice: Splice): void {
    const { start, end } = splice
    reader.open(start, end)
    const index = this.types.importedFunctions + f
    const entryCheck = needsEntryCheck(this.#calls.checks[f] !== 0, end - start, this.#hasTailCalls)
    const plan = this.#planner.plan(index, reader, entryCheck, localTypes(reader, this.types))
    const before = splice.out.length
    this.checks += writeCaptured(reader, splice, this.parts, plan, index)
    const growth = (splice.out.length - before) / (end - start)
    if (plan.loopBytes * growth > LOOP_BYTES_MAX) throw new Uncapturable(index, 'has loops in too many others')
  }

  unwinds(index: number): boolean {
    const f = index - this.types.importedFunctions
    if (f < 0) return true
    if (f < this.#calls.unwinds.length) return this.#calls.unwinds[f] !== 0
    return !this.#plainIndices.has(index)
  }

  helperOf(reader: BodyReader, constant: number): number {
    const { opcode } = reader
    if (opcode === DATA_DROP || opcode === ELEM_DROP) return this.plainOf(reader)
    const isShort = constant >= 0 && constant <= BULK_COUNT_MAX[opcode]!
    const isInit = opcode === MEMORY_INIT || opcode === TABLE_INIT
    if (isShort && !isInit) return -1
    const index = this.#bulk.indexOf(reader)
    return index < 0 && isInit ? this.plainOf(reader) : index
  }

  plainOf({ opcode, slots }: BodyReader): number {
    if (!NAMES_SEGMENT[opcode]) return -1
    const [a, b] = [slots[0]! >>> 0, slots[1]! >>> 0]
    const key = plainKey(opcode, a, b)
    let found = this.#plain.get(key)
    if (found === undefined) {
      found = { index: this.added.add(this.#plainCode(opcode, a, b)), opcode, a, b }
      this.#plain.set(key, found)
      this.#plainIndices.add(found.index)
    }
    return found.index
  }

  /** Makes the bodies of the functions that stand for bulk instructions: once all others were translated. */
  finish(): void {
    const planner = new Planner(withoutHelpers(this))
    for (const { index, type, body } of this.#bulk.helpers) {
      const reader = helperReader(body)
      const plan = planHelper(planner, this.types, index, reader, type)
      const splice = new Splice(reader.bytes, new BodyWriter(1024))
      splice.begin(0, body.length)
      this.checks += writeCaptured(reader, splice, this.parts, plan, index)
      splice.finish()
      const written = splice.out.written()
      this.added.codes[index - this.added.first] = { type, body: written.slice(written.length - splice.size) }
    }
  }

  #frameOf(result: number | undefined): number {
    let index = this.#frames.get(result)
    if (index === undefined) {
      this.#frames.set(result, index = this.added.add(frameFunction(this.#places.control, result)))
    }
    return index
  }

  #keepTag(tag: number): number {
    let index = this.#tags.get(tag)
    if (index === undefined) {
      this.#tags.set(tag, index = this.added.add(keepTagFunction(this.#places.control, this.types, tag)))
    }
    return index
  }

  /** The functions that plainOf has made. */
  get plain(): readonly { readonly index: number; readonly opcode: number; readonly a: number; readonly b: number }[] {
    return [...this.#plain.values()]
  }

  #plainCode(opcode: number, a: number, b: number): AddedCode {
    if (opcode === MEMORY_INIT || opcode === TABLE_INIT) return initFunction(this.types, opcode, a, b)
    const global = this.#places.globals + this.dropped.length
    this.dropped.push({ opcode, segment: a, global })
    return dropFunction(opcode, a, global)
  }

  #keepOf(keep: Keep, count: number): number {
    const key = keep * 32 + count
    let index = this.#keeps.get(key)
    if (index === undefined) {
      if (keep >= REFERENCES) this.keepsReferences = true
      const table = this.#places.tables + (keep > REFERENCES ? 1 : 0)
      this.#keeps.set(key, index = this.added.add(keepFunction(this.#places.control, keep, count, table)))
    }
    return index
  }
}

/** True if a function of this size is checked at its entry, too; `checks`: calls.ts finds that something must check. */
export function needsEntryCheck(checks: boolean, size: number, hasTailCalls: boolean): boolean {
  return checks && (size > ENTRY_CHECK_BYTES || hasTailCalls)
}

/** A reader of a body that isn't the guest's. */
export function helperReader(body: readonly number[]): BodyReader {
  const reader = new BodyReader(Uint8Array.from(body))
  reader.open(0, body.length)
  return reader
}

/** The plan of a function that stands for a bulk instruction; `type` as bulk.ts makes it. */
export function planHelper(
  planner: Planner, { values }: ModuleTypes, index: number, reader: BodyReader, type: readonly number[],
): FramePlan {
  const locals = type.slice(2, 2 + type[1]!).map((code) => values.ofCode(code - 0x80, 0))
  return planner.planOf(index, reader, { entryCheck: false, locals, parameters: locals.length, results: [] })
}

/** For those functions themselves: in them, bulk instructions are bulk instructions, unless they name a segment. */
export function withoutHelpers(context: PlanContext & { plainOf(reader: BodyReader): number }): PlanContext {
  return { types: context.types, unwinds: () => false, helperOf: (reader) => context.plainOf(reader) }
}

/** What tells functions apart that do nothing but one instruction on a segment: a continuation has none. */
export function plainKey(opcode: number, a: number, b: number): string {
  return opcode === DATA_DROP || opcode === ELEM_DROP ? `${opcode} ${a}` : `${opcode} ${a} ${b}`
}

/** The type of such a function. `b`: the memory or the table. */
export function plainType({ memories64, tables }: ModuleTypes, opcode: number, b: number): readonly number[] {
  if (opcode === DATA_DROP || opcode === ELEM_DROP) return [0x60, 0, 0]
  const is64 = opcode === MEMORY_INIT ? memories64[b] === true : tables[b]!.index64
  return [0x60, 3, is64 ? 0x7e : 0x7f, 0x7f, 0x7f, 0]
}

function initFunction(types: ModuleTypes, opcode: number, a: number, b: number): AddedCode {
  const operation = [0xfc, opcode === MEMORY_INIT ? 8 : 12, ...leb(a), ...leb(b)]
  const get = opcodeOf('local.get')
  return { type: plainType(types, opcode, b), body: [0, get, 0, get, 1, get, 2, ...operation, opcodeOf('end')] }
}

function dropFunction(opcode: number, segment: number, global: number): AddedCode {
  const operation = opcode === DATA_DROP ? [0xfc, 9, ...leb(segment)] : [0xfc, 13, ...leb(segment)]
  return { type: [0x60, 0, 0], body: [0, ...operation, opcodeOf('i32.const'), 1, opcodeOf('global.set'), ...leb(global),
    opcodeOf('end')] }
}

const REFERENCES = 5
const DATA_DROP = opcodeOf('data.drop')
const ELEM_DROP = opcodeOf('elem.drop')
const MEMORY_INIT = opcodeOf('memory.init')
const TABLE_INIT = opcodeOf('table.init')
const NAMES_SEGMENT: Readonly<Record<number, boolean>> = {
  [DATA_DROP]: true, [ELEM_DROP]: true, [MEMORY_INIT]: true, [TABLE_INIT]: true,
}
