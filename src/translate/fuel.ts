// translate/fuel.ts: makes a guest count what it executes, so that it leaves its pCPU at the same places in every run.
//
// Each instruction costs one unit of fuel. A basic block is paid for as a whole, before control may leave it; what is
// pending goes on through places that have one way in and one way out. The fuel that is left is a global, which the
// hypervisor fills up. Where preempt.ts checks a word, this mode checks whether fuel is left:
//
//   global.get $fuel  i32.const 0  i32.lt_s  if  call $yield  end
//
// A function with loops keeps its fuel in a local, as a global would be loaded and stored in each round: it takes the
// global over at its entry and after calls, and gives it back before calls and when it returns. A function that catches
// exceptions doesn't, since a callee may leave it by another way.
//
// What is consumed until a given point is the same in all runs, however often the guest was asked to leave. A bulk
// instruction costs one unit, and 16,384 for each piece if it is done in pieces (bulk.ts): as many as 4 bytes or a
// sixteenth of an entry, which is what fresh pages cost.

import { leb } from '../wasm/encode.ts'
import { stopsAt, type BodyReader } from '../wasm/body.ts'
import { OPCODE_END, opcodeOf } from '../wasm/opcodes.ts'
import { BULK_COUNT_MAX, type BulkHelpers } from './bulk.ts'
import { HOLDS_BULK, HOLDS_CATCH, HOLDS_LOOP, type Calls } from './calls.ts'
import { Gaps, mayNeedChecks } from './gaps.ts'
import type { BodyTranslator, Check, Splice } from './splice.ts'

/** A check of the global, for what isn't a function of the guest's. */
export function fuelCheck(fuel: number, yields: number): Check {
  const test = [GLOBAL_GET, ...leb(fuel), I32_CONST, 0, I32_LT_S]
  return { code: Uint8Array.of(...test, IF, VOID, CALL, ...leb(yields), END), branch: test.length }
}

/** What a piece of a bulk instruction costs, and a check. */
export function fuelPieceCode(fuel: number, yields: number): number[] {
  return [GLOBAL_GET, ...leb(fuel), I32_CONST, ...PIECE_COST, I32_SUB, GLOBAL_SET, ...leb(fuel),
    ...fuelCheck(fuel, yields).code]
}

/** Puts the counting and the checks into bodies. */
export class Fuel implements BodyTranslator {
  checks = 0
  readonly #calls: Calls
  readonly #bulk: BulkHelpers
  readonly #check: Check
  readonly #fuel: number
  readonly #yields: number
  readonly #gaps: Gaps
  readonly #parameters: (f: number) => number
  readonly #throws: boolean
  // The local in which the fuel is, or -1: it is in the global.
  #local = -1
  /** The cost of what was passed since the last payment. */
  #pending = 0
  // By depth: whether something branches to the end of the block.
  #joins = new Uint8Array(256)
  // A handler may be at the end of any block.
  #anyJoins = false

  constructor(parts: {
    calls: Calls; bulk: BulkHelpers; check: Check; imported: number; fuel: number; yields: number
    parameters: (f: number) => number; throws: boolean
  }) {
    this.#parameters = parts.parameters
    this.#throws = parts.throws
    this.#calls = parts.calls
    this.#bulk = parts.bulk
    this.#check = parts.check
    this.#fuel = parts.fuel
    this.#yields = parts.yields
    this.#gaps = new Gaps(parts.calls, parts.imported)
  }

  touches(): boolean {
    return true
  }

  translate(f: number, reader: BodyReader, splice: Splice): void {
    const { start, end } = splice
    const { checks, holds, cost } = this.#calls
    this.#local = -1
    reader.open(start, end)
    const local = this.#parameters(f) + reader.localCount
    if ((holds[f]! & (HOLDS_LOOP | HOLDS_CATCH)) === HOLDS_LOOP && local < LOCALS_MAX) {
      this.#local = local
      splice.addLocals(reader, 1, I32)
      this.#take(splice)
    }
    splice.upTo(reader.codeStart)
    if (checks[f] !== 0) this.#putCheck(splice)
    this.#walk(reader, splice, mayNeedChecks(cost[f]!), (holds[f]! & HOLDS_BULK) !== 0)
    splice.upTo(end)
  }

  #walk(reader: BodyReader, splice: Splice, measured: boolean, bulk: boolean): void {
    const gaps = this.#gaps
    const stops = bulk ? STOPS.withBulk : STOPS.control
    const put = (at: number): void => {
      splice.upTo(at)
      this.#putCheck(splice)
    }
    if (measured) gaps.begin(reader.codeStart)
    this.#pending = 0
    this.#joins[1] = 1
    this.#anyJoins = false
    // The last constant, and where it ends: at a bulk instruction that takes it as its length.
    let constant = 0
    let constantEnd = -1
    while (reader.nextOf(stops)) {
      const { opcode } = reader
      // What was gone over costs 1 each.
      this.#pending += reader.passed + COSTS[opcode]!
      if (measured) gaps.measure(reader, put)
      const kind = KINDS[opcode]!
      if (kind === LOOP_HEAD) {
        this.#pay(splice, reader.at)
        this.#joins[reader.depth] = 0
        splice.upTo(reader.end)
        this.#putCheck(splice)
        if (measured) gaps.checked()
      } else if (opcode === I32_CONST) {
        constant = reader.slots[0]!
        constantEnd = reader.end
      } else {
        if (kind !== PLAIN) this.#control(kind, reader, splice)
        if (kind === CALLS) {
          // A callee that throws doesn't come back to let the caller pay; one that recurses does so late.
          if (this.#throws || this.#pending > PENDING_MAX) this.#pay(splice, reader.at)
          this.#outside(reader, splice, false)
        } else if (BULK_COUNT_MAX[opcode]! > 0) {
          const short = constantEnd === reader.at && constant >= 0 && constant <= BULK_COUNT_MAX[opcode]!
          if (!short) this.#outside(reader, splice, true)
        }
      }
    }
  }

  // An instruction during which the fuel is in the global.
  #outside(reader: BodyReader, splice: Splice, bulk: boolean): void {
    this.#give(splice, reader.at)
    if (bulk) this.#bulk.replace(reader, splice)
    splice.upTo(reader.end)
    this.#take(splice)
  }

  #control(kind: number, reader: BodyReader, splice: Splice): void {
    const { depth } = reader
    switch (kind) {
      case BEGINS:
        // The arms of an `if` are two ways; a `try` may be left anywhere.
        if (reader.opcode !== BLOCK) this.#pay(splice, reader.at)
        if (reader.opcode === TRY_TABLE) this.#anyJoins = true
        this.#joinsAt(depth, reader.opcode === BLOCK ? 0 : 1)
        return
      case DIVIDES: this.#pay(splice, reader.at); return
      case FINISHES:
        if (this.#joins[depth + 1] === 1 || this.#anyJoins || depth === 0) this.#pay(splice, reader.at)
        if (depth === 0) this.#give(splice, reader.at)
        return
      case BRANCHES: {
        this.#pay(splice, reader.at)
        const label = reader.slots[0]! >>> 0
        // A branch that may return leaves with the fuel in its local.
        if (this.#local >= 0 && label === depth - 1) this.#give(splice, reader.at)
        this.#joinsAt(depth - label, 1)
        return
      }
      case BRANCHES_ANYWHERE:
        this.#pay(splice, reader.at)
        this.#give(splice, reader.at)
        this.#anyJoins = true
        return
      case LEAVES:
        this.#pay(splice, reader.at)
        this.#give(splice, reader.at)
    }
  }

  #joinsAt(depth: number, joins: 0 | 1): void {
    if (depth >= this.#joins.length) {
      const more = new Uint8Array(depth * 2)
      more.set(this.#joins)
      this.#joins = more
    }
    this.#joins[depth] = joins
  }

  // What is pending is paid before the instruction at `at`.
  #pay(splice: Splice, at: number): void {
    if (this.#pending === 0) return
    splice.upTo(at)
    const { out } = splice
    this.#variable(splice, LOCAL_GET, GLOBAL_GET)
    out.byte(I32_CONST)
    out.s32(this.#pending)
    out.byte(I32_SUB)
    this.#variable(splice, LOCAL_SET, GLOBAL_SET)
    this.#pending = 0
  }

  #variable({ out }: Splice, local: number, global: number): void {
    out.byte(this.#local >= 0 ? local : global)
    out.u32(this.#local >= 0 ? this.#local : this.#fuel)
  }

  // The local's fuel goes to the global, before the instruction at `at`.
  #give(splice: Splice, at: number): void {
    if (this.#local < 0) return
    splice.upTo(at)
    this.#move(splice, LOCAL_GET, this.#local, GLOBAL_SET, this.#fuel)
  }

  #take(splice: Splice): void {
    if (this.#local >= 0) this.#move(splice, GLOBAL_GET, this.#fuel, LOCAL_SET, this.#local)
  }

  #move({ out }: Splice, get: number, from: number, set: number, to: number): void {
    out.byte(get)
    out.u32(from)
    out.byte(set)
    out.u32(to)
  }

  #putCheck(splice: Splice): void {
    this.checks++
    if (this.#local < 0) {
      splice.put(this.#check)
      return
    }
    const { out } = splice
    this.#variable(splice, LOCAL_GET, GLOBAL_GET)
    out.byte(I32_CONST)
    out.byte(0)
    out.byte(I32_LT_S)
    splice.hint()
    out.byte(IF)
    out.byte(VOID)
    this.#move(splice, LOCAL_GET, this.#local, GLOBAL_SET, this.#fuel)
    out.byte(CALL)
    out.u32(this.#yields)
    this.#take(splice)
    out.byte(END)
  }
}

const I32 = 0x7f
const VOID = 0x40
const LOCALS_MAX = 49_999
/** What a caller may owe while its callees run. */
const PENDING_MAX = 256
/** 16,384 in LEB128. */
const PIECE_COST = [0x80, 0x80, 0x01]
const BLOCK = opcodeOf('block')
const IF = opcodeOf('if')
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const TRY_TABLE = opcodeOf('try_table')
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const GLOBAL_GET = opcodeOf('global.get')
const GLOBAL_SET = opcodeOf('global.set')
const I32_CONST = opcodeOf('i32.const')
const I32_LT_S = opcodeOf('i32.lt_s')
const I32_SUB = opcodeOf('i32.sub')

const PLAIN = 0
const LOOP_HEAD = 1
const BEGINS = 2
const DIVIDES = 3
const FINISHES = 4
const BRANCHES = 5
const BRANCHES_ANYWHERE = 6
const LEAVES = 7
const CALLS = 8
const KINDS = new Uint8Array(OPCODE_END)
const COSTS = new Uint8Array(OPCODE_END).fill(1)
for (const [kind, names] of [
  [LOOP_HEAD, ['loop']],
  [BEGINS, ['block', 'if', 'try', 'try_table']],
  [DIVIDES, ['else', 'catch', 'catch_all']],
  [FINISHES, ['end', 'delegate']],
  [BRANCHES, ['br', 'br_if', 'br_on_null', 'br_on_non_null']],
  [BRANCHES_ANYWHERE, ['br_table', 'br_on_cast', 'br_on_cast_fail']],
  [LEAVES, ['return', 'return_call', 'return_call_indirect', 'return_call_ref', 'throw', 'throw_ref', 'rethrow']],
  [CALLS, ['call', 'call_indirect', 'call_ref']],
] as const) for (const name of names) KINDS[opcodeOf(name)] = kind
for (const name of ['block', 'loop', 'else', 'end', 'nop', 'try', 'try_table', 'catch', 'catch_all', 'delegate']) {
  COSTS[opcodeOf(name)] = 0
}
const isControl = (opcode: number): boolean => KINDS[opcode] !== PLAIN || COSTS[opcode] !== 1
const STOPS = {
  control: stopsAt(isControl),
  withBulk: stopsAt((opcode) => isControl(opcode) || BULK_COUNT_MAX[opcode]! > 0 || opcode === I32_CONST),
} as const
