// translate/planner.ts: makes frame plans (frame_plan.ts): walks a function's code once, forwards, following its
// operands (operand_stack.ts) and noting what liveness.ts needs to walk it backwards.

import { stopsAt, type BodyReader } from '../wasm/body.ts'
import { EFFECTS } from '../wasm/instruction_types.ts'
import { OPCODE_END, opcodeOf, REF, REF_NULL } from '../wasm/opcodes.ts'
import { Reader } from '../wasm/reader.ts'
import { I32, I64 } from '../wasm/value_types.ts'
import {
  SITE_CALL, SITE_ENTRY, SITE_GAP, SITE_LOOP, type FramePlan, type PlanContext, type Replacement, type Site,
} from './frame_plan.ts'
import { EVENT, Liveness } from './liveness.ts'
import { KeptValues, NONE } from './kept_values.ts'
import type { ModuleTypes, Signature } from './module_types.ts'
import { OperandStack } from './operand_stack.ts'
import { Uncapturable } from './uncapturable.ts'

/** Straight code without a call or a loop is checked after so many bytes: about 50 µs. */
const GAP_BYTES_MAX = 128 * 1024

type Control = {
  readonly kind: number; readonly base: number; readonly outer: Control | undefined; readonly signature: Signature
  hasCatch: boolean
  /** Its handlers throw again what they have caught. */
  rethrows: boolean
  /** Of a try_table: where its labels are (liveness.ts). */
  labels: number
  /** Where its code begins, and what the dearest loops in each other come to that it holds. */
  readonly start: number; loopBytes: number
}

/** Makes plans; one object serves all functions of a module. */
export class Planner {
  readonly #context: PlanContext
  readonly #liveness = new Liveness()
  readonly #stack = new OperandStack()
  readonly #controls: Control[] = []
  #sites: Site[] = []
  #replacements: Replacement[] = []
  #loopBytes = 0
  #function = 0
  readonly #kept: KeptValues

  constructor(context: PlanContext) {
    this.#context = context
    this.#kept = new KeptValues(context.types)
  }

  /** The plan of function `index`, whose body is opened in `reader`. Throws Uncapturable. */
  plan(index: number, reader: BodyReader, entryCheck: boolean, localTypes: readonly number[]): FramePlan {
    const { params, results } = this.#context.types.ofFunction(index)
    return this.planOf(index, reader, { entryCheck, locals: [...params, ...localTypes], parameters: params.length,
      results })
  }

  /** As plan(), of code that no function of the guest has. */
  planOf(index: number, reader: BodyReader, parts: { readonly entryCheck: boolean
    readonly locals: readonly number[]; readonly parameters: number; readonly results: readonly number[] }): FramePlan {
    this.#function = index
    this.#stack.begin(parts.locals)
    this.#sites = []
    this.#replacements = []
    this.#kept.begin(index)
    this.#controls.length = 0
    this.#liveness.begin()
    this.#controls.push({ kind: EVENT.block, base: 0, outer: undefined, labels: 0, start: reader.codeStart,
      signature: { params: [], results: parts.results }, hasCatch: false, rethrows: false, loopBytes: 0 })
    this.#loopBytes = 0
    if (parts.entryCheck) this.#addSite(SITE_ENTRY, reader.codeStart, reader.codeStart, [])
    this.#walk(reader)
    const { locals, tees, temps } = this.#stack
    tees.sort((a, b) => a.after - b.after)
    this.#kept.solve(this.#sites, this.#liveness, locals, parts.locals.length)
    return { sites: this.#sites, tees, replacements: this.#replacements, locals, temps, loopBytes: this.#loopBytes,
      parameters: parts.parameters, declared: parts.locals.length, results: parts.results }
  }

  #walk(reader: BodyReader): void {
    let dead = -1
    let last = reader.codeStart
    let constant = -1
    while (this.#controls.length > 0) {
      if (dead >= 0) {
        // Nothing of what can't be reached matters but where it ends.
        const depth = dead
        while (reader.nextOf(STRUCTURE)) {
          const ends = reader.opcode === END || reader.opcode === DELEGATE
          if (ends ? reader.depth < depth : reader.depth === depth) break
        }
        dead = -1
        last = reader.end
        this.#stack.dropTo(this.#top.base)
        this.#structure(reader)
        continue
      }
      reader.next()
      const { opcode } = reader
      const effect = EFFECTS[opcode]!
      if (reader.end - last > GAP_BYTES_MAX && effect >= 0) {
        this.#addSite(SITE_GAP, reader.at, reader.at, [])
        last = reader.at
      }
      if (BULK[opcode] === 1) {
        if (this.#bulk(reader, constant)) last = reader.end
      } else if (effect >= 0) {
        const type = (effect & 15) - 1
        if (effect > 15) this.#stack.pop(effect >> 4)
        if (CONSTANTS[opcode] === 1) this.#stack.pushConstant(type, reader.end, reader.at)
        else if (type >= 0) this.#stack.push(type, reader.end)
      } else {
        const kind = this.#special(reader)
        if (kind === LEAVES) dead = reader.depth
        else if (kind === CHECKS) last = reader.end
      }
      constant = opcode === I32_CONST ? reader.slots[0]! : -1
    }
  }

  get #top(): Control { return this.#controls.at(-1)! }

  #addSite(kind: Site['kind'], at: number, after: number, resultTypes: readonly number[]): void {
    const operands = this.#stack.keepAll()
    const height = operands.length
    const results = this.#stack.pushResults(resultTypes)
    this.#kept.count(height + results.length)
    this.#liveness.add(EVENT.site, this.#sites.length)
    const site: Site = { kind, at, after, height, results, resultTypes, operands, saved: [], size: 0, handlers: NONE,
      depth: this.#controls.length, within: this.#top }
    this.#sites.push(site)
    this.#kept.addSite(site)
  }

  #cannot(why: string): Uncapturable {
    return new Uncapturable(this.#function, why)
  }

  // ---- instructions whose effect depends on more than their opcode

  #bulk(reader: BodyReader, constant: number): boolean {
    const helper = this.#context.helperOf(reader, constant)
    this.#stack.pop(EFFECTS[reader.opcode]! >> 4)
    if (helper < 0) return false
    this.#replacements.push({ at: reader.at, end: reader.end, helper })
    this.#mayThrow()
    if (!this.#context.unwinds(helper)) return false
    this.#addSite(SITE_CALL, reader.at, reader.end, [])
    return true
  }

  #mayThrow(): void {
    this.#liveness.add(EVENT.call)
  }

  #special(reader: BodyReader): typeof GOES_ON | typeof LEAVES | typeof CHECKS {
    const { opcode, slots } = reader
    const stack = this.#stack
    const { types } = this.#context
    switch (opcode) {
      case LOCAL_GET:
        this.#liveness.add(EVENT.get, slots[0]!)
        stack.pushLocal(slots[0]!, reader.end)
        return GOES_ON
      case LOCAL_SET: case LOCAL_TEE:
        this.#liveness.add(EVENT.set, slots[0]!)
        this.#stack.pop(1)
        stack.isSet(slots[0]!)
        if (opcode === LOCAL_TEE) stack.push(stack.locals[slots[0]!]!, reader.end)
        return GOES_ON
      case GLOBAL_GET: this.#stack.push(types.globals[slots[0]!]!.type, reader.end); return GOES_ON
      case GLOBAL_SET: this.#stack.pop(1); return GOES_ON
      case CALL: return this.#call(reader, types.ofFunction(slots[0]!), this.#context.unwinds(slots[0]!))
      case CALL_INDIRECT: case CALL_REF:
        this.#stack.pop(1)
        return this.#call(reader, types.signature(slots[0]!), true)
      case SELECT: {
        const type = stack.typeAt(1)
        this.#stack.pop(3)
        this.#stack.push(type, reader.end)
        return GOES_ON
      }
      case SELECT_T: {
        const type = stack.typeAt(1)
        this.#stack.pop(3)
        // The type that it names may be wider than the operand's.
        this.#stack.push(selectType(reader, types) ?? type, reader.end)
        return GOES_ON
      }
      default: return this.#isBranch(opcode) ? this.#branch(reader) : this.#other(reader)
    }
  }

  #call(reader: BodyReader, { params, results }: Signature, unwinds: boolean): typeof GOES_ON | typeof CHECKS {
    this.#stack.pop(params.length)
    this.#mayThrow()
    if (!unwinds) {
      this.#stack.pushAll(results, reader.end)
      return GOES_ON
    }
    this.#addSite(SITE_CALL, reader.at, reader.end, results)
    return CHECKS
  }

  #isBranch(opcode: number): boolean {
    return BRANCHES[opcode] === 1
  }

  #branch(reader: BodyReader): typeof GOES_ON | typeof LEAVES | typeof CHECKS {
    const { opcode, slots } = reader
    const stack = this.#stack
    const liveness = this.#liveness
    switch (opcode) {
      case BR: liveness.add(EVENT.br, slots[0]!); return LEAVES
      case BR_IF: this.#stack.pop(1); liveness.add(EVENT.brIf, slots[0]!); return GOES_ON
      case BR_TABLE: {
        this.#stack.pop(1)
        const first = liveness.labels
        eachLabel(reader, (label) => liveness.addLabel(label))
        liveness.add(EVENT.brTable, first, liveness.labels - first)
        return LEAVES
      }
      case RETURN: case UNREACHABLE: liveness.add(EVENT.exit); return LEAVES
      case RETURN_CALL: case RETURN_CALL_INDIRECT: case RETURN_CALL_REF: liveness.add(EVENT.exit); return LEAVES
      case THROW: case THROW_REF: case RETHROW:
        if (opcode === RETHROW) this.#rethrow(slots[0]!)
        liveness.add(EVENT.throw)
        return LEAVES
      case BR_ON_NULL: {
        const type = stack.typeAt(0)
        this.#stack.pop(1)
        liveness.add(EVENT.brIf, slots[0]!)
        this.#stack.push(this.#nonNull(type), reader.end)
        return GOES_ON
      }
      case BR_ON_NON_NULL: this.#stack.pop(1); liveness.add(EVENT.brIf, slots[0]!); return GOES_ON
      default: return this.#structure(reader)
    }
  }

  #nonNull(type: number): number {
    const { values } = this.#context.types
    const name = values.nameOf(type)
    return values.of(name.startsWith('(ref null ') ? name.replace('null ', '') : name.startsWith('(') ? name
      : `(ref ${name.replace(/ref$/, '')})`)
  }

  // What the handler has caught isn't kept.
  #rethrow(label: number): void {
    const control = this.#controls[this.#controls.length - 1 - label]!
    control.rethrows = true
  }

  #other(reader: BodyReader): typeof GOES_ON {
    const { opcode, slots } = reader
    const stack = this.#stack
    const { types } = this.#context
    switch (opcode) {
      case TABLE_GET:
        this.#stack.pop(1)
        this.#stack.push(types.tables[slots[0]!]!.type, reader.end)
        return GOES_ON
      case TABLE_SIZE: this.#stack.push(types.tables[slots[0]!]!.index64 ? I64 : I32, reader.end); return GOES_ON
      case TABLE_GROW:
        this.#stack.pop(2)
        this.#stack.push(types.tables[slots[0]!]!.index64 ? I64 : I32, reader.end)
        return GOES_ON
      case MEMORY_SIZE: this.#stack.push(types.memories64[slots[0]!] === true ? I64 : I32, reader.end); return GOES_ON
      case MEMORY_GROW:
        this.#stack.pop(1)
        this.#stack.push(types.memories64[slots[0]!] === true ? I64 : I32, reader.end)
        return GOES_ON
      case REF_NULL_OP: this.#stack.push(types.values.ofNull(slots[0]!), reader.end); return GOES_ON
      case REF_FUNC:
        stack.push(types.values.of(`(ref ${types.functions[slots[0]!]})`), reader.end)
        return GOES_ON
      case REF_AS_NON_NULL: {
        const type = stack.typeAt(0)
        this.#stack.pop(1)
        this.#stack.push(this.#nonNull(type), reader.end)
        return GOES_ON
      }
      default: throw this.#cannot('uses garbage-collected objects')
    }
  }

  #structure(reader: BodyReader): typeof GOES_ON | typeof CHECKS {
    const { opcode, slots } = reader
    const { types } = this.#context
    const liveness = this.#liveness
    switch (opcode) {
      case BLOCK: case IF: case TRY: case LOOP: {
        if (opcode === IF) this.#stack.pop(1)
        const signature = types.ofBlock(slots[0]!, slots[1]!)
        const kind = opcode === BLOCK ? EVENT.block : opcode === IF ? EVENT.if : opcode === TRY ? EVENT.try : EVENT.loop
        const labels = opcode === LOOP ? liveness.loops++ : 0
        liveness.add(kind, labels)
        return this.#open(reader, kind, signature, labels)
      }
      case TRY_TABLE: {
        const signature = types.ofBlock(slots[0]!, slots[1]!)
        const first = liveness.labels
        const count = eachCatch(reader, (label) => liveness.addLabel(label))
        const labels = liveness.labels
        liveness.addLabel(first)
        liveness.addLabel(count)
        liveness.add(EVENT.tryTable)
        return this.#open(reader, EVENT.tryTable, signature, labels)
      }
      case ELSE: {
        const control = this.#top
        liveness.add(EVENT.else)
        this.#stack.dropTo(control.base)
        this.#stack.pushAll(control.signature.params, reader.end)
        return GOES_ON
      }
      case CATCH: case CATCH_ALL: {
        const control = this.#top
        liveness.add(EVENT.catch, 0, control.hasCatch ? 0 : 1)
        if (!control.hasCatch) this.#kept.enterHandler(control, this.#controls.length - 1)
        control.hasCatch = true
        this.#stack.dropTo(control.base)
        if (opcode === CATCH) this.#stack.pushAll(types.signature(types.tags[slots[0]!]!).params, reader.end)
        return GOES_ON
      }
      default: { // end, delegate
        const control = this.#controls.pop()!
        if (control.hasCatch) this.#kept.leaveHandler()
        const loopBytes = control.loopBytes + (control.kind === EVENT.loop ? reader.end - control.start : 0)
        const { outer } = control
        if (outer === undefined) {
          this.#loopBytes = loopBytes
          return GOES_ON
        }
        outer.loopBytes = Math.max(outer.loopBytes, loopBytes)
        liveness.add(EVENT.end, control.kind, control.labels)
        this.#stack.dropTo(control.base)
        this.#stack.pushAll(control.signature.results, reader.end)
        return GOES_ON
      }
    }
  }

  #open(reader: BodyReader, kind: number, signature: Signature, labels: number): typeof GOES_ON | typeof CHECKS {
    const base = this.#stack.height - signature.params.length
    this.#controls.push({ kind, base, outer: this.#top, labels, start: reader.at, signature, hasCatch: false,
      rethrows: false, loopBytes: 0 })
    if (kind !== EVENT.loop) return GOES_ON
    // Its parameters are others in each round.
    this.#stack.dropTo(base)
    this.#stack.forgetCopies()
    this.#stack.pushAll(signature.params, reader.end)
    this.#addSite(SITE_LOOP, reader.at, reader.end, [])
    return CHECKS
  }
}

const GOES_ON = 0
const LEAVES = 1
const CHECKS = 2

function eachLabel({ bytes, slots, end }: BodyReader, visit: (label: number) => void): void {
  const reader = new Reader(bytes, slots[1]!, end, 'labels')
  for (let count = (slots[0]! >>> 0) + 1; count > 0; count--) visit(reader.u32())
}

function eachCatch({ bytes, slots, end }: BodyReader, visit: (label: number) => void): number {
  const reader = new Reader(bytes, slots[3]!, end, 'catch clauses')
  const count = slots[2]! >>> 0
  for (let i = 0; i < count; i++) {
    // catch and catch_ref have a tag, catch_all and catch_all_ref don't.
    if (reader.u8() < 2) reader.u32()
    visit(reader.u32())
  }
  return count
}

function selectType({ bytes, slots, end }: BodyReader, { values }: ModuleTypes): number {
  const reader = new Reader(bytes, slots[1]!, end, 'type')
  const code = reader.u8() - 0x80
  return values.ofCode(code, code === REF || code === REF_NULL ? reader.s33() : 0)
}

const I32_CONST = opcodeOf('i32.const')
const CONSTANTS = new Uint8Array(OPCODE_END)
for (const name of ['i32.const', 'i64.const', 'f32.const', 'f64.const', 'v128.const']) CONSTANTS[opcodeOf(name)] = 1
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const LOCAL_TEE = opcodeOf('local.tee')
const GLOBAL_GET = opcodeOf('global.get')
const GLOBAL_SET = opcodeOf('global.set')
const CALL = opcodeOf('call')
const CALL_INDIRECT = opcodeOf('call_indirect')
const CALL_REF = opcodeOf('call_ref')
const RETURN_CALL = opcodeOf('return_call')
const RETURN_CALL_INDIRECT = opcodeOf('return_call_indirect')
const RETURN_CALL_REF = opcodeOf('return_call_ref')
const SELECT = opcodeOf('select')
const SELECT_T = opcodeOf('select_t')
const TABLE_GET = opcodeOf('table.get')
const TABLE_SIZE = opcodeOf('table.size')
const TABLE_GROW = opcodeOf('table.grow')
const MEMORY_SIZE = opcodeOf('memory.size')
const MEMORY_GROW = opcodeOf('memory.grow')
const REF_NULL_OP = opcodeOf('ref.null')
const REF_FUNC = opcodeOf('ref.func')
const REF_AS_NON_NULL = opcodeOf('ref.as_non_null')
const BLOCK = opcodeOf('block')
const LOOP = opcodeOf('loop')
const IF = opcodeOf('if')
const ELSE = opcodeOf('else')
const END = opcodeOf('end')
const TRY = opcodeOf('try')
const CATCH = opcodeOf('catch')
const CATCH_ALL = opcodeOf('catch_all')
const DELEGATE = opcodeOf('delegate')
const TRY_TABLE = opcodeOf('try_table')
const THROW = opcodeOf('throw')
const THROW_REF = opcodeOf('throw_ref')
const RETHROW = opcodeOf('rethrow')
const BR = opcodeOf('br')
const BR_IF = opcodeOf('br_if')
const BR_TABLE = opcodeOf('br_table')
const RETURN = opcodeOf('return')
const UNREACHABLE = opcodeOf('unreachable')
const BR_ON_NULL = opcodeOf('br_on_null')
const BR_ON_NON_NULL = opcodeOf('br_on_non_null')

const BRANCHES = new Uint8Array(OPCODE_END)
for (const opcode of [
  BLOCK, LOOP, IF, ELSE, END, TRY, CATCH, CATCH_ALL, DELEGATE, TRY_TABLE, THROW, THROW_REF, RETHROW, BR, BR_IF,
  BR_TABLE, RETURN, RETURN_CALL, RETURN_CALL_INDIRECT, RETURN_CALL_REF, UNREACHABLE, BR_ON_NULL, BR_ON_NON_NULL,
]) BRANCHES[opcode] = 1

const BULK = new Uint8Array(OPCODE_END)
for (const name of ['memory.init', 'memory.copy', 'memory.fill', 'data.drop', 'table.init', 'table.copy', 'table.fill',
  'elem.drop']) BULK[opcodeOf(name)] = 1

const STRUCTURE = stopsAt((opcode) => opcode === ELSE || opcode === END || opcode === CATCH || opcode === CATCH_ALL ||
  opcode === DELEGATE)
