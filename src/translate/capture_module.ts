// translate/capture_module.ts: what a module gets beside its code, so that its cell can be captured: see capture.ts.

import { BodyWriter } from '../wasm/body_writer.ts'
import {
  KIND_FUNC, KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, KIND_TAG, leb, limits, name, SECTION_CODE, SECTION_ELEMENT,
  SECTION_EXPORT, SECTION_FUNCTION, SECTION_GLOBAL, SECTION_IMPORT, SECTION_TABLE, SECTION_TYPE, sleb,
} from '../wasm/encode.ts'
import type { Module } from '../wasm/module.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { HYPERVISOR_MODULE, START_EXPORT } from '../wasm/prepare.ts'
import { REFERENCE } from '../wasm/value_types.ts'
import { assemble, sizedBody, translateBodies } from './assemble.ts'
import { BulkHelpers } from './bulk.ts'
import { HOLDS_TABLE_CHANGE, HOLDS_TAIL_CALL, type Calls } from './calls.ts'
import { AddedFunctions, Capture } from './capture.ts'
import { bitsOf, CAPTURE_SECTION, encodeInfo } from './capture_info.ts'
import { CAPTURE_EXPORTS, CONTROL_MEMORY, LEFT, YIELD, YIELD_TABLE } from './added_names.ts'
import { KEEP_EXCEPTION, KEEP_EXTERN, KEEP_FUNC, type ModuleTypes } from './module_types.ts'
import { CONTROL_FRAMES, CONTROL_PAGES, CONTROL_POINTER, CONTROL_STATE } from './control_words.ts'
import { loadOf, loadWord, storeOf, storeWord, type AddedCode } from './save_area.ts'
import type { Places, Translated } from './translate.ts'
import { Uncapturable } from './uncapturable.ts'

/** Functions that one part of `cellar:function` knows. */
const PART = 256

/** Translates a prepared module so that its cells can be captured. Throws Uncapturable, Untreatable. */
export function captureCode(module: Module, calls: Calls, places: Places, unbounded: boolean): Translated {
  const added = new AddedFunctions(places.yield + 1)
  const reserved: AddedCode = { type: [0x60, 0, 0], body: [0, END] }
  const bulk = new BulkHelpers(module, () => added.add(reserved), { check: [], piece: [] }, unbounded)
  const hasTailCalls = calls.holds.some((held) => (held & HOLDS_TAIL_CALL) !== 0)
  const capture = new Capture(module, { calls, bulk, added, hasTailCalls, places: { control: places.memory,
    yields: places.yield, tables: places.table + 1, globals: places.fuel } })
  const changesTables = calls.holds.some((held) => (held & HOLDS_TABLE_CHANGE) !== 0)
  if (changesTables) checkTables(capture.types)
  const code = translateBodies(module, capture)
  capture.finish()
  const ends = addEnds(module, capture, places)
  const info = encodeInfo({
    poll: capture.parts.poll, yieldTable: places.table,
    referenceTables: capture.keepsReferences ? places.table + 1 : undefined,
    changesTables, hasTailCalls,
    referenceGlobals: capture.types.globals.flatMap(({ type, mutable }, i) => mutable && type >= REFERENCE ? [i] : []),
    unwinds: bitsOf(calls.unwinds), checks: bitsOf(calls.checks),
    helpers: bulk.helpers, plain: capture.plain,
  })
  const bytes = assemble(module, additions(module, capture, places, ends), code,
    { name: CAPTURE_SECTION, content: info })
  return { bytes, checks: capture.checks }
}

// JavaScript reads and writes them (cell/instance_state.ts), and knows functions by their indices.
function checkTables(types: ModuleTypes): void {
  types.tables.forEach(({ type }, i) => {
    const title = types.values.nameOf(type)
    const keep = types.keepOf(types.values.of(title.replace(/^\(ref (?!null )/, '(ref null ')))
    if (keep === KEEP_FUNC || keep === KEEP_EXTERN) return
    throw new Uncapturable(-1, `table ${i} holds values of type ${title}`)
  })
}

/** Functions to be exported, by name. */
type Ends = ReadonlyMap<string, number>

function addEnds(module: Module, capture: Capture, places: Places): Ends {
  const { added } = capture
  const ends = new Map<string, number>()
  const action = (export_: string): number | undefined =>
    module.exports.find((one) => one.name === export_ && one.kind === 'func')?.index
  const [start, main] = [action(START_EXPORT), action('_start')]
  if (start !== undefined || main !== undefined) {
    ends.set(CAPTURE_EXPORTS.enter, added.add(enterFunction(places, start, main)))
  }
  const { save, load } = globalFunctions(capture, places)
  ends.set(CAPTURE_EXPORTS.save, added.add(save))
  ends.set(CAPTURE_EXPORTS.load, added.add(load))
  ends.set(CAPTURE_EXPORTS.function, addLookUp(added, added.first + added.codes.length))
  return ends
}

// (phase): calls, and says so if the stack was left, before anything else can happen on this thread.
function enterFunction(
  { memory, type, table }: Places, start: number | undefined, main: number | undefined,
): AddedCode {
  const call = (index: number | undefined): number[] => index === undefined ? [UNREACHABLE] : [CALL, ...leb(index)]
  return { type: [0x60, 1, 0x7f, 0], body: [0,
    LOCAL_GET, 0, IF, VOID, ...call(main), ELSE, ...call(start), END,
    ...loadWord(memory, CONTROL_STATE), IF, VOID, I32_CONST, LEFT, CALL_INDIRECT, ...leb(type), ...leb(table), END,
    END] }
}

// What globals hold, by the bit, in the order of their indices; then which segments were dropped.
function globalFunctions(capture: Capture, { memory }: Places): { save: AddedCode; load: AddedCode } {
  const { types, dropped } = capture
  let offset = 0
  const save: number[] = []
  const load: number[] = []
  const keep = (global: number, kind: 0 | 1 | 2 | 3 | 4): void => {
    save.push(I32_CONST, 0, GLOBAL_GET, ...leb(global), ...storeOf(memory, kind, CONTROL_FRAMES + offset))
    load.push(I32_CONST, 0, ...loadOf(memory, kind, CONTROL_FRAMES + offset), GLOBAL_SET, ...leb(global))
    offset += [4, 8, 4, 8, 16][kind]!
  }
  types.globals.forEach(({ type, mutable }, i) => {
    if (!mutable) return
    const kind = types.keepOf(type)
    if (kind === undefined) throw new Uncapturable(-1, `global ${i} holds a value of type ${types.values.nameOf(type)}`)
    // References are JavaScript's to read and write, through the export.
    if (kind === KEEP_EXCEPTION) throw new Uncapturable(-1, `global ${i} holds an exception`)
    if (kind !== KEEP_FUNC && kind !== KEEP_EXTERN) keep(i, kind)
  })
  for (const { global, opcode, segment } of dropped) {
    keep(global, 0)
    load.push(GLOBAL_GET, ...leb(global), IF, VOID, 0xfc, opcode === DATA_DROP ? 9 : 13, ...leb(segment), END)
  }
  const size = storeWord(memory, CONTROL_POINTER, [I32_CONST, ...sleb(CONTROL_FRAMES + offset)])
  const type = [0x60, 0, 0]
  return { save: { type, body: [0, ...save, ...size, END] }, load: { type, body: [0, ...load, END] } }
}

// (index) → the function: in parts, since V8 compiles a function as a whole when it is first called.
function addLookUp(added: AddedFunctions, count: number): number {
  const type = [0x60, 1, 0x7f, 1, FUNCREF]
  const parts: number[] = []
  for (let first = 0; first < count; first += PART) {
    const end = Math.min(count, first + PART)
    parts.push(added.add({ type, body: choice(end - first, (i) => [REF_FUNC, ...leb(first + i)],
      [LOCAL_GET, 0, I32_CONST, ...sleb(first), I32_SUB]) }))
  }
  return added.add({ type, body: choice(parts.length, (i) => [LOCAL_GET, 0, CALL, ...leb(parts[i]!)],
    [LOCAL_GET, 0, I32_CONST, ...sleb(PART), I32_DIV_U]) })
}

// Blocks within blocks, left by a table: what comes behind block i is the answer for i.
function choice(count: number, answer: (i: number) => number[], which: readonly number[]): Uint8Array {
  const out = new BodyWriter(count * 12 + 64)
  out.byte(0)
  for (let i = 0; i <= count; i++) out.append([BLOCK, VOID])
  out.append([...which, BR_TABLE, ...leb(count)])
  for (let i = 0; i <= count; i++) out.u32(i)
  out.byte(END)
  for (let i = 0; i < count; i++) out.append([...answer(i), RETURN, END])
  out.append([REF_NULL, FUNCREF, END])
  return out.written()
}

function additions(module: Module, capture: Capture, places: Places, ends: Ends):
    Map<number, readonly ArrayLike<number>[]> {
  const { added: { codes }, types, dropped, keepsReferences } = capture
  const control = { min: 1, max: CONTROL_PAGES, shared: true }
  const yields = [0, I32_CONST, YIELD, CALL_INDIRECT, ...leb(places.type), ...leb(places.table), END]
  return new Map<number, readonly ArrayLike<number>[]>([
    [SECTION_TYPE, [[0x60, 0, 0], ...codes.map(({ type }) => type)]],
    [SECTION_IMPORT, [[...name(HYPERVISOR_MODULE), ...name(CONTROL_MEMORY), KIND_MEMORY, ...limits(control)]]],
    [SECTION_FUNCTION, [leb(places.type), ...codes.map((_, i) => leb(places.type + 1 + i))]],
    [SECTION_TABLE, [[FUNCREF, ...limits({ min: 2, max: 2 })],
      ...(keepsReferences ? [FUNCREF, EXTERNREF].map((type) => [type, ...limits(REFERENCES)]) : [])]],
    [SECTION_GLOBAL, dropped.map(() => [0x7f, MUTABLE, I32_CONST, 0, END])],
    [SECTION_EXPORT, [
      [...name(YIELD_TABLE), KIND_TABLE, ...leb(places.table)],
      ...[...ends].map(([export_, index]) => [...name(export_), KIND_FUNC, ...leb(index)]),
      ...types.globals.map((_, i) => exported(CAPTURE_EXPORTS.global, i, KIND_GLOBAL)),
      ...types.tables.map((_, i) => exported(CAPTURE_EXPORTS.table, i, KIND_TABLE)),
      ...types.tags.map((_, i) => exported(CAPTURE_EXPORTS.tag, i, KIND_TAG)),
      ...(keepsReferences ? [CAPTURE_EXPORTS.funcs, CAPTURE_EXPORTS.externs].map((export_, i) =>
        [...name(export_), KIND_TABLE, ...leb(places.table + 1 + i)]) : []),
    ]],
    [SECTION_ELEMENT, [declared(places.yield + 1 + codes.length)]],
    [SECTION_CODE, [yields, ...codes.map(({ body }) => body)].map(sizedBody)],
  ])
}

function exported(prefix: string, index: number, kind: number): number[] {
  return [...name(`${prefix}${index}`), kind, ...leb(index)]
}

// A segment that says of all functions that they may be referred to.
function declared(count: number): Uint8Array {
  const out = new BodyWriter(count * 4 + 16)
  out.append([DECLARATIVE, 0])
  out.u32(count)
  for (let i = 0; i < count; i++) out.u32(i)
  return out.written()
}

/** Entries of a table of references that frames keep. */
const REFERENCES = { min: 0, max: 1_000_000 } as const
const DECLARATIVE = 3
const MUTABLE = 1
const FUNCREF = 0x70
const EXTERNREF = 0x6f
const VOID = 0x40
const DATA_DROP = opcodeOf('data.drop')
const I32_CONST = opcodeOf('i32.const')
const I32_SUB = opcodeOf('i32.sub')
const I32_DIV_U = opcodeOf('i32.div_u')
const LOCAL_GET = opcodeOf('local.get')
const GLOBAL_GET = opcodeOf('global.get')
const GLOBAL_SET = opcodeOf('global.set')
const REF_FUNC = opcodeOf('ref.func')
const REF_NULL = opcodeOf('ref.null')
const UNREACHABLE = opcodeOf('unreachable')
const BLOCK = opcodeOf('block')
const IF = opcodeOf('if')
const ELSE = opcodeOf('else')
const END = opcodeOf('end')
const BR_TABLE = opcodeOf('br_table')
const CALL = opcodeOf('call')
const CALL_INDIRECT = opcodeOf('call_indirect')
const RETURN = opcodeOf('return')
