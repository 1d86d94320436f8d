// translate/continuation.ts: a module that goes on from the frames of a vCPU, in the same instance or in another one.
//
// It has a function for each site that frames stand at. It takes its frame from the save area, puts what was kept back
// into locals, and executes the rest of the guest's function (continuation_body.ts). If the frame's callee unwound,
// too, that one's continuation is called first, by a table, since the next frame says which it is (frames.ts, `link`).
// So `enter` takes the outermost frame, and the stack is there again, of other functions that do the same.
//
// All else it imports from the guest's instance (capture_module.ts): functions, tables, globals, tags, memories. Its
// own code can be captured again, and keeps the same frames. It is made from the prepared module and what the
// translated one says of itself; bodies other than those of the frames aren't looked at.
//
// Frames may come from a file, hence are an allegation: what doesn't fit the module is refused, and what does is code
// that V8 validates, with calls whose types V8 checks. Forged frames can make a guest do what it might do anyway.

import { BodyReader, eachBody, stopsAt } from '../wasm/body.ts'
import { BodyWriter } from '../wasm/body_writer.ts'
import {
  KIND_FUNC, KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, KIND_TAG, leb, limits, name, PREAMBLE, SECTION_CODE,
  SECTION_CUSTOM, SECTION_ELEMENT, SECTION_EXPORT, SECTION_FUNCTION, SECTION_IMPORT, SECTION_TABLE, SECTION_TYPE, sleb,
} from '../wasm/encode.ts'
import { importsOf, memoriesOf, sectionOf, type Module } from '../wasm/module.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { HYPERVISOR_MODULE, memoryName } from '../wasm/prepare.ts'
import { Reader } from '../wasm/reader.ts'
import { sizedBody } from './assemble.ts'
import { BULK_COUNT_MAX, BulkHelpers } from './bulk.ts'
import { helperReader, needsEntryCheck, plainKey, planHelper, plainType, withoutHelpers } from './capture.ts'
import { hasBit, type CaptureInfo } from './capture_info.ts'
import { CONTINUATION_NAME, CONTROL_MEMORY, LEFT, YIELD_TABLE } from './added_names.ts'
import { localTypes, runsOf, writeRuns } from './captured_body.ts'
import { ContinuationBody, type ContinuationParts } from './continuation_body.ts'
import { BadFrames, distinct, type Frame } from './frames.ts'
import { SITE_CALL, type FramePlan, type PlanContext } from './frame_plan.ts'
import { Planner } from './planner.ts'
import { KEEP_EXCEPTION, KEEP_EXTERN, KEEP_FUNC, ModuleTypes, SIZES, type Keep } from './module_types.ts'
import {
  CONTROL_EXTERNS, CONTROL_FUNCS, CONTROL_PAGES, CONTROL_POINTER, CONTROL_STATE, GATE_FRAME, TRAILER_BYTES,
} from './control_words.ts'
import {
  frameFunction, keepExceptionFunction, keepFunction, keepTagFunction, loadOf, loadWord, makeExceptionFunction,
  storeWord, throwKept, type AddedCode,
} from './save_area.ts'

/** Names of imports, each followed by an index in the guest's module; the exported function. */
export const CONTINUATION = {
  function: 'function ', global: 'global ', table: 'table ', tag: 'tag ', funcs: 'funcs', externs: 'externs',
  enter: 'enter',
} as const

/** What a continuation is made from. */
export type ContinuationSource = {
  /** The prepared module. */
  readonly module: Module
  readonly info: CaptureInfo
  /** The imports that are hypercalls, by their numbers in frames of the gate. */
  readonly hypercalls: readonly { readonly module: string; readonly name: string }[]
  /** The host's references may be other than null. Default: they aren't, and are as they begin. */
  readonly hasExterns?: boolean
  /** The guest's names of functions, for traps. */
  readonly names?: ReadonlyMap<number, string>
}

/** Code of a continuation, which grows with the sites that the stack stands at, and the size of their functions. */
const CODE_BYTES_MAX = 64 * 1024 * 1024

/** Makes the module that goes on from these frames. Throws BadFrames. */
export function continuationOf(source: ContinuationSource, frames: readonly Frame[]): Uint8Array<ArrayBuffer> {
  return new Builder(source).build(distinct(frames))
}

/** A function of the guest's, or one that stands for a bulk instruction. */
type Source = { readonly reader: BodyReader; readonly start: number; readonly end: number; readonly plan: FramePlan }

class Builder implements PlanContext {
  readonly types: ModuleTypes
  readonly #module: Module
  readonly #info: CaptureInfo
  readonly #hypercalls: ContinuationSource['hypercalls']
  readonly #names: ReadonlyMap<number, string> | undefined
  readonly #hasExterns: boolean
  readonly #bulk: BulkHelpers
  readonly #planner: Planner
  readonly #helperPlanner: Planner
  readonly #sources = new Map<number, Source>()
  readonly #imports = new Map<number, number>()
  readonly #newTypes = new Map<string, number>()
  readonly #typeBytes: number[][] = []
  readonly #added = new Map<string, number>()
  readonly #plain: ReadonlyMap<string, number>
  readonly #plainIndices: ReadonlySet<number>
  #codeBytes = 0
  // The local that has the address of the frame, of the function that is being made.
  #base = 0
  readonly #codes: { type: number; body: ArrayLike<number> }[] = []
  readonly #control: number
  readonly #tables: { readonly guest: number; readonly references: number; readonly own: number }

  constructor({ module, info, hypercalls, names, hasExterns = false }: ContinuationSource) {
    this.#module = module
    this.#info = info
    this.#hypercalls = hypercalls
    this.#names = names
    this.#hasExterns = hasExterns
    this.types = new ModuleTypes(module)
    this.#plain = new Map(info.plain.map(({ opcode, a, b, index }) => [plainKey(opcode, a, b), index]))
    this.#plainIndices = new Set(info.plain.map(({ index }) => index))
    this.#control = memoriesOf(module).length
    const guest = this.types.tables.length
    const references = info.referenceTables === undefined ? 0 : 2
    this.#tables = { guest, references, own: guest + 1 + references }
    this.#bulk = new BulkHelpers(module, () => { throw new BadFrames('a bulk instruction has no function') },
      { check: [], piece: [] }, true)
    this.#planner = new Planner(this)
    this.#helperPlanner = new Planner(withoutHelpers(this))
  }

  build(frames: readonly Frame[]): Uint8Array<ArrayBuffer> {
    this.#import(this.#info.poll)
    this.#locate(frames)
    for (const frame of frames) this.#check(frame)
    const continuations = this.#imports.size
    // Then `enter`, and what keeps values.
    for (const frame of frames) this.#codes.push({ type: this.#typeOf([], this.#resultsOf(frame)), body: [] })
    const enter = this.#add(this.#enterCode())
    frames.forEach((frame, i) => {
      this.#codes[i] = { type: this.#codes[i]!.type, body: this.#body(frame) }
    })
    return this.#assemble(continuations, frames, enter)
  }

  // ---- the plan's context: as when the module was translated

  unwinds(index: number): boolean {
    const f = index - this.types.importedFunctions
    if (f < 0) return true
    if (f < this.#module.functionCount) return hasBit(this.#info.unwinds, f)
    return !this.#plainIndices.has(index)
  }

  helperOf(reader: BodyReader, constant: number): number {
    const { opcode, slots } = reader
    const isShort = constant >= 0 && constant <= BULK_COUNT_MAX[opcode]!
    if (isShort && opcode !== MEMORY_INIT && opcode !== TABLE_INIT) return -1
    const [a, b] = [slots[0]! >>> 0, slots[1]! >>> 0]
    const isOneIndex = opcode === MEMORY_FILL || opcode === TABLE_FILL
    const isIt = (one: CaptureInfo['helpers'][number]): boolean =>
      one.opcode === opcode && one.a === a && (isOneIndex || one.b === b)
    return this.#info.helpers.find(isIt)?.index ?? this.plainOf(reader)
  }

  plainOf({ opcode, slots }: BodyReader): number {
    return this.#plain.get(plainKey(opcode, slots[0]! >>> 0, slots[1]! >>> 0)) ?? -1
  }

  // ---- where the code of the frames is

  #locate(frames: readonly Frame[]): void {
    const { importedFunctions } = this.types
    const wanted = new Set<number>()
    for (const { func } of frames) {
      if (func >= GATE_FRAME) this.#gateImport(func)
      else if (func >= importedFunctions + this.#module.functionCount) this.#helper(func)
      else if (func >= importedFunctions) wanted.add(func)
      else throw new BadFrames(`function ${func} has no code`)
    }
    const reader = new BodyReader(this.#module.bytes)
    let left = wanted.size
    if (left === 0) return
    eachBody(this.#module, (start, end, f) => {
      const index = importedFunctions + f
      if (left === 0 || !wanted.has(index)) return
      left--
      reader.open(start, end)
      const entryCheck = needsEntryCheck(hasBit(this.#info.checks, f), end - start, this.#info.hasTailCalls)
      const plan = this.#planner.plan(index, reader, entryCheck, localTypes(reader, this.types))
      this.#sources.set(index, { reader, start, end, plan })
      for (const { helper } of plan.replacements) this.#import(helper)
      reader.open(start, end)
      while (reader.nextOf(FUNCTIONS)) this.#import(reader.slots[0]!)
    })
  }

  #helper(func: number): void {
    const helper = this.#info.helpers.find(({ index }) => index === func)
    if (helper === undefined) throw new BadFrames(`no function has the index ${func}`)
    const { type, body } = this.#bulk.make(helper.opcode, helper.a, helper.b)
    const reader = helperReader(body)
    const plan = planHelper(this.#helperPlanner, this.types, func, reader, type)
    for (const one of plan.replacements) this.#import(one.helper)
    this.#sources.set(func, { reader, start: 0, end: body.length, plan })
  }

  #gateImport(func: number): number {
    const hypercall = this.#hypercalls[func - GATE_FRAME]
    const index = importsOf(this.#module, 'func').findIndex(({ module, name }) =>
      name === hypercall?.name && module === hypercall.module)
    if (index < 0) throw new BadFrames(`no hypercall has the number ${func - GATE_FRAME}`)
    this.#import(index)
    return index
  }

  #import(index: number): void {
    if (!this.#imports.has(index)) this.#imports.set(index, this.#imports.size)
  }

  #check({ func, site, here, size }: Frame): void {
    if (func >= GATE_FRAME) {
      const expected = this.types.ofFunction(this.#gateImport(func)).params.reduce((sum, type) => sum + SIZES[type]!, 0)
      if (size !== expected) throw new BadFrames(`a frame of a hypercall has ${size} bytes, not ${expected}`)
      return
    }
    const found = this.#sources.get(func)?.plan.sites[site]
    if (found === undefined) throw new BadFrames(`function ${func} has no site ${site}`)
    if (found.size !== size) throw new BadFrames(`a frame of function ${func} has ${size} bytes, not ${found.size}`)
    if (!here && found.kind !== SITE_CALL) throw new BadFrames(`site ${site} of function ${func} calls nothing`)
  }

  #resultsOf({ func }: Frame): readonly number[] {
    if (func >= GATE_FRAME) return this.types.ofFunction(this.#gateImport(func)).results
    return this.#sources.get(func)!.plan.results
  }

  // ---- functions

  #add({ type, body }: AddedCode): number {
    const key = type.join()
    return this.#imports.size + this.#codes.push({ type: this.#newType(key, [...type]), body }) - 1
  }

  #newType(key: string, bytes: number[]): number {
    let index = this.#newTypes.get(key)
    if (index === undefined) {
      this.#newTypes.set(key, index = this.#module.types.length + this.#typeBytes.push(bytes) - 1)
    }
    return index
  }

  #typeOf(params: readonly number[], results: readonly number[]): number {
    const { values } = this.types
    const bytes = [0x60, ...leb(params.length), ...params.flatMap((one) => values.bytesOf(one)), ...leb(results.length),
      ...results.flatMap((one) => values.bytesOf(one))]
    return this.#newType(bytes.join(), bytes)
  }

  #parts(): ContinuationParts {
    const { values } = this.types
    return {
      types: this.types, control: this.#control, poll: this.#imports.get(this.#info.poll)!,
      frame: (result) => this.#addOnce(`frame ${result}`, () => frameFunction(this.#control, result)),
      keep: (keep, count) => this.#keepOf(keep, count),
      keepException: () => this.#addOnce('exception', () =>
        keepExceptionFunction(this.#control, this.types, (tag) => this.#keepTag(tag))),
      keepTag: (tag) => this.#keepTag(tag),
      throwKept: (offset) => throwKept(this.#control, this.types, this.#base, offset),
      function: (index) => this.#imports.get(index)!,
      blockType: (results) => results.length === 0 ? [VOID] : results.length === 1 ? values.bytesOf(results[0]!)
        : sleb(this.#typeOf([], results)),
      dispatch: (results) => this.#dispatchCode(results),
    }
  }

  #keepOf(keep: Keep, count: number): number {
    const table = this.#tables.guest + (keep === KEEP_EXTERN ? 2 : 1)
    return this.#addOnce(`${keep} ${count}`, () => keepFunction(this.#control, keep, count, table))
  }

  #keepTag(tag: number): number {
    return this.#addOnce(`tag ${tag}`, () => keepTagFunction(this.#control, this.types, tag))
  }

  #addOnce(key: string, make: () => AddedCode): number {
    let index = this.#added.get(key)
    if (index === undefined) this.#added.set(key, index = this.#add(make()))
    return index
  }

  // The number of the next frame's continuation is the first word of its trailer.
  #dispatchCode(results: readonly number[]): number[] {
    return [...loadWord(this.#control, CONTROL_POINTER), I32_CONST, TRAILER_BYTES, I32_SUB,
      ...loadOf(this.#control, 0, 0), CALL_INDIRECT, ...leb(this.#typeOf([], results)), ...leb(this.#tables.own)]
  }

  #enterCode(): AddedCode {
    const action = this.#typeOf([], [])
    return { type: [0x60, 0, 0], body: [0, ...this.#dispatchCode([]),
      ...loadWord(this.#control, CONTROL_STATE), IF, VOID,
      I32_CONST, LEFT, CALL_INDIRECT, ...leb(action), ...leb(this.#tables.guest), END, END] }
  }

  #body(frame: Frame): Uint8Array {
    const out = new BodyWriter(4096)
    if (frame.func >= GATE_FRAME) this.#gateBody(frame, out)
    else {
      const { reader, start, end, plan } = this.#sources.get(frame.func)!
      reader.open(start, end)
      const base = this.#base = plan.locals.length
      const runs = runsOf([...plan.locals, 0], 0)
      out.u32(runs.length)
      writeRuns(out, runs, this.types)
      this.#takeFrame(out, frame.size, base)
      this.#restore(out, plan, frame.site, base)
      new ContinuationBody(reader, out, this.#parts(), plan, frame.func).write(frame.site, frame.here)
    }
    this.#codeBytes += out.length
    if (this.#codeBytes > CODE_BYTES_MAX) throw new BadFrames('what goes on with it would be too large')
    return out.written()
  }

  // A hypercall that waited is tried again.
  #gateBody({ func, size }: Frame, out: BodyWriter): void {
    const index = this.#gateImport(func)
    out.append([1, 1, 0x7f])
    this.#takeFrame(out, size, 0)
    let offset = 0
    for (const type of this.types.ofFunction(index).params) {
      out.append([LOCAL_GET, 0, ...loadOf(this.#control, type as Keep, offset)])
      offset += SIZES[type]!
    }
    out.append([CALL, ...leb(this.#imports.get(index)!), END])
  }

  // The local `base` is the frame's address; what comes next is another's.
  #takeFrame(out: BodyWriter, size: number, base: number): void {
    out.append([...loadWord(this.#control, CONTROL_POINTER), I32_CONST])
    out.s32(size + TRAILER_BYTES)
    out.append([I32_SUB, LOCAL_SET, ...leb(base),
      ...storeWord(this.#control, CONTROL_POINTER, [LOCAL_GET, ...leb(base)])])
  }

  #restore(out: BodyWriter, plan: FramePlan, site: number, base: number): void {
    let offset = 0
    plan.sites[site]!.saved.forEach((locals, keep) => {
      if (keep === KEEP_EXCEPTION) return
      if (keep === KEEP_EXTERN && !this.#hasExterns) return
      if (keep === KEEP_FUNC || keep === KEEP_EXTERN) return this.#takeReferences(out, plan, locals, keep)
      for (const local of locals) {
        out.append([LOCAL_GET, ...leb(base), ...loadOf(this.#control, keep as Keep, offset), LOCAL_SET, ...leb(local)])
        offset += SIZES[keep]!
      }
    })
    for (const local of plan.sites[site]!.saved[KEEP_EXCEPTION]!) {
      const make = this.#addOnce('make', () => makeExceptionFunction(this.#control, this.types))
      out.append([LOCAL_GET, ...leb(base), I32_CONST, ...sleb(offset), I32_ADD, CALL, ...leb(make),
        LOCAL_SET, ...leb(local)])
      offset += this.types.exceptionBytes!
    }
  }

  #takeReferences(out: BodyWriter, plan: FramePlan, locals: readonly number[], keep: number): void {
    if (locals.length === 0) return
    const { values } = this.types
    const word = keep === KEEP_FUNC ? CONTROL_FUNCS : CONTROL_EXTERNS
    const table = this.#tables.guest + (keep === KEEP_FUNC ? 1 : 2)
    out.append(storeWord(this.#control, word, [...loadWord(this.#control, word), I32_CONST, ...sleb(locals.length),
      I32_SUB]))
    locals.forEach((local, i) => {
      out.append([...loadWord(this.#control, word), I32_CONST, ...sleb(i), I32_ADD, TABLE_GET, ...leb(table)])
      const type = values.nameOf(plan.locals[local]!)
      if (/^\(ref null \d/.test(type)) out.append([0xfb, REF_CAST_NULL, ...values.nullOf(plan.locals[local]!)!])
      else if (type === 'nullfuncref' || type === 'nullexternref') {
        out.append([DROP, REF_NULL, ...values.nullOf(plan.locals[local]!)!])
      }
      out.append([LOCAL_SET, ...leb(local)])
    })
  }

  // ---- the module

  #assemble(continuations: number, frames: readonly Frame[], enter: number): Uint8Array<ArrayBuffer> {
    const count = frames.length
    const out = new BodyWriter(16 * 1024)
    const section = (id: number, items: readonly ArrayLike<number>[], raw?: Uint8Array, more = 0): void => {
      if (items.length + more === 0) return
      out.byte(id)
      const start = out.beginSized()
      out.u32(items.length + more)
      if (raw !== undefined) out.append(raw)
      for (const item of items) out.append(item)
      out.endSized(start)
    }
    // Makes types, too.
    const imports = this.#importEntries()
    out.append(PREAMBLE)
    const types = this.#guestTypes()
    section(SECTION_TYPE, this.#typeBytes, types.raw, types.groups)
    section(SECTION_IMPORT, imports)
    section(SECTION_FUNCTION, this.#codes.map(({ type }) => leb(type)))
    section(SECTION_TABLE, [[FUNCREF, ...limits({ min: count, max: count })]])
    section(SECTION_EXPORT, [[...name(CONTINUATION.enter), KIND_FUNC, ...leb(enter)]])
    section(SECTION_ELEMENT, [
      [2, ...leb(this.#tables.own), I32_CONST, 0, END, 0, ...leb(count),
        ...Array.from({ length: count }, (_, i) => leb(continuations + i)).flat()],
      [3, 0, ...leb(continuations), ...Array.from({ length: continuations }, (_, i) => leb(i)).flat()],
    ])
    section(SECTION_CODE, this.#codes.map(({ body }) => sizedBody(body)))
    this.#writeNames(out, continuations, frames)
    return out.written()
  }

  // Of traps: each continuation is called as the function that it goes on with, after that one's index.
  #writeNames(out: BodyWriter, continuations: number, frames: readonly Frame[]): void {
    const functions = frames.flatMap(({ func }, i) => [...leb(continuations + i),
      ...name(`${func} ${this.#names?.get(func) ?? ''}`)])
    const content = [...leb(frames.length), ...functions]
    out.byte(SECTION_CUSTOM)
    const start = out.beginSized()
    out.append([...name('name'), 0, ...leb(CONTINUATION_NAME.length + 1), ...name(CONTINUATION_NAME), 1,
      ...leb(content.length), ...content])
    out.endSized(start)
  }

  // As they are: groups of types that refer to each other stay together.
  #guestTypes(): { raw: Uint8Array; groups: number } {
    const section = sectionOf(this.#module, SECTION_TYPE)
    if (section === undefined) return { raw: new Uint8Array(), groups: 0 }
    const reader = new Reader(this.#module.bytes, section.offset, section.end, 'type section')
    const groups = reader.u32()
    return { raw: this.#module.bytes.subarray(reader.at, section.end), groups }
  }

  #importEntries(): number[][] {
    const { values, tables, globals, tags, functions } = this.types
    const entry = (import_: string, kind: number, type: readonly number[]): number[] =>
      [...name(HYPERVISOR_MODULE), ...name(import_), kind, ...type]
    const yields = { min: 2, max: 2 }
    return [
      ...[...this.#imports.keys()].map((index) => entry(`${CONTINUATION.function}${index}`, KIND_FUNC,
        leb(index < functions.length ? functions[index]! : this.#addedType(index)))),
      ...memoriesOf(this.#module).map((memory, i) => entry(memoryName(i), KIND_MEMORY, limits(memory))),
      entry(CONTROL_MEMORY, KIND_MEMORY, limits({ min: 1, max: CONTROL_PAGES, shared: true })),
      ...tables.map(({ type, index64 }, i) => entry(`${CONTINUATION.table}${i}`, KIND_TABLE,
        [...values.bytesOf(type), ...limits({ min: 0, index64 })])),
      entry(YIELD_TABLE, KIND_TABLE, [FUNCREF, ...limits(yields)]),
      ...(this.#tables.references === 0 ? [] : [entry(CONTINUATION.funcs, KIND_TABLE, [FUNCREF, ...limits({ min: 0 })]),
        entry(CONTINUATION.externs, KIND_TABLE, [EXTERNREF, ...limits({ min: 0 })])]),
      ...globals.map(({ type, mutable }, i) => entry(`${CONTINUATION.global}${i}`, KIND_GLOBAL,
        [...values.bytesOf(type), mutable ? 1 : 0])),
      ...tags.map((type, i) => entry(`${CONTINUATION.tag}${i}`, KIND_TAG, [0, ...leb(type)])),
    ]
  }

  // $poll, or one that stands for a bulk instruction.
  #addedType(index: number): number {
    if (index === this.#info.poll) return this.#typeOf([], [0])
    const plain = this.#info.plain.find((one) => one.index === index)
    const helper = plain ?? this.#info.helpers.find((one) => one.index === index)!
    const type = plain !== undefined ? plainType(this.types, plain.opcode, plain.b)
      : this.#bulk.make(helper.opcode, helper.a, helper.b).type
    return this.#newType(type.join(), [...type])
  }
}

const VOID = 0x40
const FUNCREF = 0x70
const EXTERNREF = 0x6f
const REF_CAST_NULL = 0x17
const I32_CONST = opcodeOf('i32.const')
const I32_ADD = opcodeOf('i32.add')
const I32_SUB = opcodeOf('i32.sub')
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const TABLE_GET = opcodeOf('table.get')
const REF_NULL = opcodeOf('ref.null')
const DROP = opcodeOf('drop')
const IF = opcodeOf('if')
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const CALL_INDIRECT = opcodeOf('call_indirect')
const MEMORY_INIT = opcodeOf('memory.init')
const MEMORY_FILL = opcodeOf('memory.fill')
const TABLE_INIT = opcodeOf('table.init')
const TABLE_FILL = opcodeOf('table.fill')
const FUNCTIONS = stopsAt((opcode) =>
  opcode === CALL || opcode === opcodeOf('return_call') || opcode === opcodeOf('ref.func'))
