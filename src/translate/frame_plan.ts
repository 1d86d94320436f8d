// translate/frame_plan.ts: where a function may be unwound, and what its frame must keep there.
//
// A *site* is a place at which a vCPU may leave its stack to be captured: after a call that may unwind, at a loop's
// beginning, at the function's, and in the middle of long straight code. At a site the frame is all that the rest of
// the function may still use: locals that are live (liveness.ts), and what lies on the operand stack. What lies there
// can't be reached from within the check's block, so that it is kept in a local, too, from where it was made: a *tee*.
//
//   i32.const 5                    i32.const 5
//   (call $f …)            →       local.tee $t            ;; a tee: beneath the arguments of the call
//   i32.add                        (call $f …)
//                                  local.tee $r
//                                  …check, which saves $t and $r and what locals are live
//                                  i32.add
//
// No tee is needed for what can be had again: a constant, or a local that isn't set before the site, in which no loop
// begins. For V8's optimising compiler a tee is nothing but another name. A place on the operand stack has one local for each
// type that it has in the function.
//
// The plan is a function of the guest's code alone: the same for the code that may be captured (capture.ts) and for the
// code that goes on (continuation.ts). Code that can't be reached has no sites.

import { stopsAt, type BodyReader } from '../wasm/body.ts'
import { EFFECTS } from '../wasm/instruction_types.ts'
import { OPCODE_END, opcodeOf, REF, REF_NULL } from '../wasm/opcodes.ts'
import { Reader } from '../wasm/reader.ts'
import { I32, I64 } from '../wasm/value_types.ts'
import { EVENT, Liveness } from './liveness.ts'
import { KEEP_EXCEPTION, KEEPS, SIZES, type ModuleTypes, type Signature } from './module_types.ts'
import { Uncapturable } from './uncapturable.ts'

/** What a plan must know of the rest of the module. */
export type PlanContext = {
  readonly types: ModuleTypes
  /** True if a call of the function may unwind, by its index. */
  unwinds(index: number): boolean
  /** What takes the place of the bulk instruction on which `reader` stands: a function, by index; -1: it stays. */
  helperOf(reader: BodyReader, shortCount: number): number
}

export const SITE_ENTRY = 0
export const SITE_CALL = 1
export const SITE_LOOP = 2
export const SITE_GAP = 3

/** A site. `after`: the offset in the module behind which its check stands. */
export type Site = {
  readonly kind: typeof SITE_ENTRY | typeof SITE_CALL | typeof SITE_LOOP | typeof SITE_GAP
  readonly at: number; readonly after: number
  /** How many operands lie beneath; of a call without its arguments and results. */
  readonly height: number
  /** Locals that hold the results of the call, and their types. */
  readonly results: readonly number[]; readonly resultTypes: readonly number[]
  /** Locals that hold the operands beneath, from the bottom; -1 - offset: the constant that is made there. */
  readonly operands: readonly number[]
  /** The locals to be kept, by how (Keep), each list ascending. */
  saved: readonly (readonly number[])[]
  /** Bytes of the frame without its trailer. */
  size: number
  /**
   * Handlers around it that throw again what they have caught, by the number of blocks around their tries; it is kept,
   * too, behind all else.
   */
  readonly handlers: readonly number[]
  /** How many blocks are around it, the function's own included. */
  readonly depth: number
  /** Where the operands of each open block begin, the function's own first, if the planner was asked for it. */
  readonly bases: readonly number[]
}

/** Behind `after`, the topmost operands are put into these locals, too; the first is of the lowest. */
export type Tee = { readonly after: number; readonly locals: readonly number[] }
/** The instruction in [at, end) is a call of this function, in place of what it is. */
export type Replacement = { readonly at: number; readonly end: number; readonly helper: number }

/** The plan of one function. */
export type FramePlan = {
  readonly sites: readonly Site[]; readonly tees: readonly Tee[]; readonly replacements: readonly Replacement[]
  /** The types of all locals: parameters, declared ones, those that tees need. */
  readonly locals: readonly number[]
  readonly parameters: number; readonly declared: number
  readonly results: readonly number[]
}

/** Straight code without a call or a loop is checked after so many bytes: about 50 µs. */
const GAP_BYTES_MAX = 128 * 1024
/** What plans of one function may come to: beyond it, its translation would take too long, or be too large. */
const WORK_MAX = 30_000_000
const SAVED_MAX = 1_000_000

type Control = {
  kind: number; base: number; signature: Signature; hasCatch: boolean
  /** Of a try_table: where its labels are (liveness.ts). */
  labels: number
}

/** Makes plans; one object serves all functions of a module. */
export class Planner {
  readonly #context: PlanContext
  readonly #liveness = new Liveness()
  // The operand stack: types, where each was made (-1: it has its local), and the group that it was made in.
  readonly #types: number[] = []
  readonly #made: number[] = []
  readonly #groups: (Group | undefined)[] = []
  // What an operand can be had from again: a local, or -1 - offset of a constant; NOWHERE.
  readonly #again: number[] = []
  // How many operands can be had from a local, by local.
  readonly #copies: number[] = []
  #height = 0
  // Operands below this have their locals.
  #teed = 0
  readonly #controls: Control[] = []
  #locals: number[] = []
  readonly #temps = new Map<number, number>()
  #sites: Site[] = []
  #tees: { after: number; locals: number[] }[] = []
  #replacements: Replacement[] = []
  #savedTotal = 0
  #function = 0
  #handlersOpen = 0
  // Of sites that are in handlers: those of their tries.
  #handling: { readonly handlers: number[]; readonly control: Control; readonly level: number }[] = []

  readonly #wantsBases: boolean

  constructor(context: PlanContext, wantsBases = false) {
    this.#context = context
    this.#wantsBases = wantsBases
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
    this.#locals = [...parts.locals]
    this.#sites = []
    this.#tees = []
    this.#replacements = []
    this.#handling = []
    this.#handlersOpen = 0
    this.#height = this.#teed = this.#savedTotal = 0
    this.#copies.length = 0
    this.#controls.length = 0
    if (this.#temps.size > 0) this.#temps.clear()
    this.#liveness.begin()
    this.#controls.push({ kind: EVENT.block, base: 0, signature: { params: [], results: parts.results },
      hasCatch: false, labels: 0 })
    if (parts.entryCheck) this.#addSite(SITE_ENTRY, reader.codeStart, reader.codeStart, [])
    this.#walk(reader)
    for (const { handlers, control, level } of this.#handling) if (control.kind === RETHROWN) handlers.push(level)
    this.#tees.sort((a, b) => a.after - b.after)
    this.#keep(parts.locals.length)
    return { sites: this.#sites, tees: this.#tees, replacements: this.#replacements, locals: this.#locals,
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
        this.#reset(this.#top.base)
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
        this.#pop(effect >> 4)
        if ((effect & 15) !== 0) {
          this.#push((effect & 15) - 1, reader.end)
          if (CONSTANTS[opcode] === 1) this.#again[this.#height - 1] = -1 - reader.at
        }
      } else {
        const kind = this.#special(reader)
        if (kind === LEAVES) dead = reader.depth
        else if (kind === CHECKS) last = reader.end
      }
      constant = opcode === I32_CONST ? reader.slots[0]! : -1
    }
  }

  get #top(): Control { return this.#controls.at(-1)! }

  #pop(count: number): void {
    this.#drop(this.#height - count)
  }

  #drop(height: number): void {
    while (this.#height > height) {
      const local = this.#again[--this.#height]!
      if (local >= 0) this.#copies[local]!--
    }
    if (this.#teed > this.#height) this.#teed = this.#height
  }

  #push(type: number, after: number, group?: Group): void {
    const height = this.#height++
    this.#types[height] = type
    this.#made[height] = after
    this.#groups[height] = group
    this.#again[height] = NOWHERE
  }

  // From here on operands that were copies of the local are no more.
  #isSet(local: number): void {
    for (let i = this.#height - 1; i >= 0 && (this.#copies[local] ?? 0) > 0; i--) {
      if (this.#again[i] !== local) continue
      this.#again[i] = NOWHERE
      this.#copies[local]!--
      if (this.#teed > i) this.#teed = i
    }
  }

  // In a loop, what is set later comes before what is read.
  #forgetCopies(): void {
    for (let i = 0; i < this.#height; i++) {
      const local = this.#again[i]!
      if (local < 0) continue
      this.#again[i] = NOWHERE
      this.#copies[local]!--
      if (this.#teed > i) this.#teed = i
    }
  }

  // Several at once: who needs one of them takes those above from the stack and puts them back.
  #pushAll(types: readonly number[], after: number): void {
    if (types.length === 1) this.#push(types[0]!, after)
    else if (types.length > 1) {
      const group: Group = { base: this.#height, types, tee: undefined }
      for (const type of types) this.#push(type, after, group)
    }
  }

  #local(height: number, type: number): number {
    const key = height * 4096 + type
    let local = this.#temps.get(key)
    if (local === undefined) {
      this.#temps.set(key, local = this.#locals.length)
      this.#locals.push(type)
    }
    return local
  }

  // Gives each operand below the height a local.
  #teeAll(): void {
    for (let i = this.#teed; i < this.#height; i++) {
      const after = this.#made[i]!
      if (after < 0 || this.#again[i] !== NOWHERE) continue
      const group = this.#groups[i]
      const local = this.#local(i, this.#types[i]!)
      if (group === undefined) {
        this.#tees.push({ after, locals: [local] })
        this.#made[i] = -1
      }
      else if (group.tee === undefined) {
        const locals = group.types.slice(i - group.base).map((type, k) => this.#local(i + k, type))
        group.tee = { after, locals }
        this.#tees.push(group.tee)
      } else if (group.types.length - group.tee.locals.length > i - group.base) {
        const more = group.types.slice(i - group.base, group.types.length - group.tee.locals.length)
        group.tee.locals.unshift(...more.map((type, k) => this.#local(i + k, type)))
      }
    }
    this.#teed = this.#height
  }

  #addSite(kind: Site['kind'], at: number, after: number, resultTypes: readonly number[]): void {
    this.#teeAll()
    const height = this.#height
    const operands: number[] = []
    for (let i = 0; i < height; i++) {
      const again = this.#again[i]!
      operands.push(again === NOWHERE ? this.#local(i, this.#types[i]!) : again)
    }
    const results: number[] = []
    for (const type of resultTypes) {
      results.push(this.#local(this.#height, type))
      this.#push(type, -1)
    }
    const handlers: number[] = []
    if (this.#handlersOpen > 0) {
      this.#controls.forEach((control, level) => {
        if (control.hasCatch) this.#handling.push({ handlers, control, level })
      })
    }
    this.#savedTotal += height + results.length
    if (this.#savedTotal > SAVED_MAX) throw this.#cannot('is too large')
    this.#liveness.add(EVENT.site, this.#sites.length)
    this.#sites.push({ kind, at, after, height, results, resultTypes, operands, saved: [], size: 0, handlers,
      depth: this.#controls.length,
      bases: this.#wantsBases ? this.#controls.map(({ base }) => base) : [] })
  }

  #cannot(why: string): Uncapturable {
    return new Uncapturable(this.#function, why)
  }

  // ---- instructions whose effect depends on more than their opcode

  #bulk(reader: BodyReader, constant: number): boolean {
    const helper = this.#context.helperOf(reader, constant)
    this.#pop(EFFECTS[reader.opcode]! >> 4)
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
    const { types } = this.#context
    switch (opcode) {
      case LOCAL_GET:
        this.#liveness.add(EVENT.get, slots[0]!)
        this.#push(this.#locals[slots[0]!]!, reader.end)
        this.#again[this.#height - 1] = slots[0]!
        this.#copies[slots[0]!] = (this.#copies[slots[0]!] ?? 0) + 1
        return GOES_ON
      case LOCAL_SET: case LOCAL_TEE:
        this.#liveness.add(EVENT.set, slots[0]!)
        this.#pop(1)
        this.#isSet(slots[0]!)
        if (opcode === LOCAL_TEE) this.#push(this.#locals[slots[0]!]!, reader.end)
        return GOES_ON
      case GLOBAL_GET: this.#push(types.globals[slots[0]!]!.type, reader.end); return GOES_ON
      case GLOBAL_SET: this.#pop(1); return GOES_ON
      case CALL: return this.#call(reader, types.ofFunction(slots[0]!), this.#context.unwinds(slots[0]!))
      case CALL_INDIRECT: case CALL_REF:
        this.#pop(1)
        return this.#call(reader, types.signature(slots[0]!), true)
      case SELECT: {
        const type = this.#types[this.#height - 2]!
        this.#pop(3)
        this.#push(type, reader.end)
        return GOES_ON
      }
      case SELECT_T: {
        const type = this.#types[this.#height - 2]!
        this.#pop(3)
        // The type that it names may be wider than the operand's.
        this.#push(selectType(reader, types) ?? type, reader.end)
        return GOES_ON
      }
      default: return this.#isBranch(opcode) ? this.#branch(reader) : this.#other(reader)
    }
  }

  #call(reader: BodyReader, { params, results }: Signature, unwinds: boolean): typeof GOES_ON | typeof CHECKS {
    this.#pop(params.length)
    this.#mayThrow()
    if (!unwinds) {
      this.#pushAll(results, reader.end)
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
    const liveness = this.#liveness
    switch (opcode) {
      case BR: liveness.add(EVENT.br, slots[0]!); return LEAVES
      case BR_IF: this.#pop(1); liveness.add(EVENT.brIf, slots[0]!); return GOES_ON
      case BR_TABLE: {
        this.#pop(1)
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
        const type = this.#types[this.#height - 1]!
        this.#pop(1)
        liveness.add(EVENT.brIf, slots[0]!)
        this.#push(this.#nonNull(type), reader.end)
        return GOES_ON
      }
      case BR_ON_NON_NULL: this.#pop(1); liveness.add(EVENT.brIf, slots[0]!); return GOES_ON
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
    control.kind = RETHROWN
  }

  #other(reader: BodyReader): typeof GOES_ON {
    const { opcode, slots } = reader
    const { types } = this.#context
    switch (opcode) {
      case TABLE_GET:
        this.#pop(1)
        this.#push(types.tables[slots[0]!]!.type, reader.end)
        return GOES_ON
      case TABLE_SIZE: this.#push(types.tables[slots[0]!]!.index64 ? I64 : I32, reader.end); return GOES_ON
      case TABLE_GROW:
        this.#pop(2)
        this.#push(types.tables[slots[0]!]!.index64 ? I64 : I32, reader.end)
        return GOES_ON
      case MEMORY_SIZE: this.#push(types.memories64[slots[0]!] === true ? I64 : I32, reader.end); return GOES_ON
      case MEMORY_GROW:
        this.#pop(1)
        this.#push(types.memories64[slots[0]!] === true ? I64 : I32, reader.end)
        return GOES_ON
      case REF_NULL_OP: this.#push(types.values.ofNull(slots[0]!), reader.end); return GOES_ON
      case REF_FUNC: this.#push(types.values.of(`(ref ${types.functions[slots[0]!]})`), reader.end); return GOES_ON
      case REF_AS_NON_NULL: {
        const type = this.#types[this.#height - 1]!
        this.#pop(1)
        this.#push(this.#nonNull(type), reader.end)
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
        if (opcode === IF) this.#pop(1)
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
        this.#reset(control.base)
        this.#pushAll(control.signature.params, reader.end)
        return GOES_ON
      }
      case CATCH: case CATCH_ALL: {
        const control = this.#top
        liveness.add(EVENT.catch, 0, control.hasCatch ? 0 : 1)
        if (!control.hasCatch) this.#handlersOpen++
        control.hasCatch = true
        this.#reset(control.base)
        if (opcode === CATCH) this.#pushAll(types.signature(types.tags[slots[0]!]!).params, reader.end)
        return GOES_ON
      }
      default: { // end, delegate
        const control = this.#controls.pop()!
        if (control.hasCatch) this.#handlersOpen--
        if (this.#controls.length === 0) return GOES_ON
        liveness.add(EVENT.end, control.kind === RETHROWN ? EVENT.try : control.kind, control.labels)
        this.#reset(control.base)
        this.#pushAll(control.signature.results, reader.end)
        return GOES_ON
      }
    }
  }

  #open(reader: BodyReader, kind: number, signature: Signature, labels: number): typeof GOES_ON | typeof CHECKS {
    const base = this.#height - signature.params.length
    this.#controls.push({ kind, base, signature, hasCatch: false, labels })
    if (kind !== EVENT.loop) return GOES_ON
    // Its parameters are others in each round.
    this.#reset(base)
    this.#forgetCopies()
    this.#pushAll(signature.params, reader.end)
    this.#addSite(SITE_LOOP, reader.at, reader.end, [])
    return CHECKS
  }

  #reset(height: number): void {
    this.#drop(height)
    if (this.#teed > height) this.#teed = height
  }

  // ---- what the sites keep

  #keep(declared: number): void {
    const sites = this.#sites
    if (sites.length === 0) return
    const liveness = this.#liveness
    const words = declared + 31 >>> 5
    if ((sites.length + liveness.size) * words > WORK_MAX) throw this.#cannot('is too large')
    liveness.solve(declared, sites.length)
    sites.forEach((site, i) => {
      const saved: number[][] = Array.from({ length: KEEPS }, () => [])
      for (let w = 0; w < words; w++) {
        let bits = liveness.sites[i * words + w]!
        while (bits !== 0) {
          const bit = 31 - Math.clz32(bits & -bits)
          // Of the last word, some bits are of no local.
          if (w * 32 + bit < declared) this.#save(saved, w * 32 + bit)
          bits &= bits - 1
        }
      }
      for (const local of site.operands) {
        // A copy of a local that is live is kept as that.
        const isKept = local < declared && (liveness.sites[i * words + (local >>> 5)]! >>> (local & 31) & 1) === 1
        if (local >= 0 && !isKept && !saved[this.#keepOf(local)]!.includes(local)) this.#save(saved, local)
      }
      for (const local of site.results) this.#save(saved, local)
      site.saved = saved
      const exceptions = saved[KEEP_EXCEPTION]!.length + site.handlers.length
      if (exceptions > 0 && this.#context.types.exceptionBytes === undefined) {
        throw this.#cannot('holds an exception of many kinds, or with references')
      }
      site.size = saved.reduce((sum, { length }, keep) => sum + length * (SIZES[keep] ?? 0), 0) +
        exceptions * (this.#context.types.exceptionBytes ?? 0)
    })
  }

  #keepOf(local: number): number {
    const type = this.#locals[local]!
    const keep = this.#context.types.keepOf(type)
    if (keep === undefined) throw this.#cannot(`holds a value of type ${this.#context.types.values.nameOf(type)}`)
    return keep
  }

  #save(saved: number[][], local: number): void {
    const keep = this.#keepOf(local)
    if (++this.#savedTotal > SAVED_MAX) throw this.#cannot('is too large')
    saved[keep]!.push(local)
  }
}

type Group = { readonly base: number; readonly types: readonly number[]; tee: { after: number; locals: number[] } | undefined }

const NOWHERE = -0x8000_0000
const GOES_ON = 0
const LEAVES = 1
const CHECKS = 2
/** The kind of a try whose handler throws again what it has caught. */
const RETHROWN = 100

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
  BLOCK, LOOP, IF, ELSE, END, TRY, CATCH, CATCH_ALL, DELEGATE, TRY_TABLE, THROW, THROW_REF, RETHROW, BR, BR_IF, BR_TABLE,
  RETURN, RETURN_CALL, RETURN_CALL_INDIRECT, RETURN_CALL_REF, UNREACHABLE, BR_ON_NULL, BR_ON_NON_NULL,
]) BRANCHES[opcode] = 1

const BULK = new Uint8Array(OPCODE_END)
for (const name of ['memory.init', 'memory.copy', 'memory.fill', 'data.drop', 'table.init', 'table.copy', 'table.fill',
  'elem.drop']) BULK[opcodeOf(name)] = 1

const STRUCTURE = stopsAt((opcode) => opcode === ELSE || opcode === END || opcode === CATCH || opcode === CATCH_ALL ||
  opcode === DELEGATE)
