// translate/gaps.ts: where a large function must check in its middle, so that no code runs for long without a check.
//
// The gap is the most code that can have been executed since the last check, at each place of a function: it grows with
// every instruction and every call of an unchecked function, and is 0 after a check. Where paths meet it is the largest
// of theirs. When it exceeds GAP_BYTES_MAX, a check is put there.
//
// A checked callee has checked at its entry, but may have executed some code after its last check. When it is small
// that is its size; of others, and of callees that nobody knows, TAIL_BYTES less than the largest gap is assumed: then
// what unwinds from a deep recursion is at most TAIL_BYTES a frame.

import type { BodyReader } from '../wasm/body.ts'
import { OPCODE_END, opcodeOf } from '../wasm/opcodes.ts'
import type { Calls } from './calls.ts'

/** Bytes of code between two checks. About 100 µs. */
const GAP_BYTES_MAX = 256 * 1024
const TAIL_BYTES = 16 * 1024
/** Recursion of a function up to this size is left to unwind: 30,000 frames fit on a stack. */
const SMALL_BYTES_MAX = 512
/** The code of a loop that was unrolled, at most. */
const LOOP_BYTES = 512
/** A hypercall, taken as code. */
const IMPORT_BYTES = 64

/** True if a function with this cost may need checks in its middle. */
export function mayNeedChecks(cost: number): boolean {
  return cost > TAIL_BYTES
}

/** The gap along one body; used for all bodies. */
export class Gaps {
  readonly #calls: Calls
  readonly #imported: number
  #gap = 0
  // What is before this byte was taken into account.
  #at = 0
  // By depth of a block: the gap at its beginning, and the largest of those that branch to its end.
  readonly #entry: number[] = []
  readonly #end: number[] = []
  // What tables and handlers branch with, to any label: a list of labels for each of them might make this quadratic.
  #anyEnd = 0

  constructor(calls: Calls, imported: number) {
    this.#calls = calls
    this.#imported = imported
  }

  /** Begins a body whose first instruction is at `codeStart`. */
  begin(codeStart: number): void {
    this.#at = codeStart
    this.#gap = this.#anyEnd = 0
    this.#entry[1] = this.#end[1] = 0
  }

  /** A check was put here. */
  checked(): void {
    this.#gap = 0
  }

  /** The loop at whose beginning a check was put has ended, and `reader` has gone over it. */
  closed(reader: BodyReader): void {
    this.#gap += LOOP_BYTES
    this.#at = reader.end
  }

  /** Goes up to the instruction on which `reader` stands, one that matters, and over it: `put` is called for checks. */
  measure(reader: BodyReader, put: (at: number) => void): void {
    if (this.#isBehind(reader)) this.#catchUp(reader, put)
    if (this.#step(reader)) put(reader.at)
  }

  /** What nextOf() has gone over needs checks, which are to be found instruction by instruction. */
  #isBehind(reader: BodyReader): boolean {
    return this.#gap + reader.at - this.#at > GAP_BYTES_MAX
  }

  /** Goes over what is before the instruction on which `reader` stands; calls `due` where a check must be put. */
  #catchUp(reader: BodyReader, due: (at: number) => void): void {
    const { at, depth } = reader
    // No instruction in between is of a block, and this one is read again, whatever it is.
    reader.end = this.#at
    reader.depth = depth + 1
    while (reader.next() && reader.at < at) if (this.#step(reader)) due(reader.at)
    reader.depth = depth
  }

  /** Goes over the instruction on which `reader` stands, one that matters; true if a check must be put before it. */
  #step(reader: BodyReader): boolean {
    const { opcode, depth } = reader
    const size = reader.end - reader.at
    this.#gap += reader.end - this.#at
    this.#at = reader.end
    const due = this.#gap > (opcode === BR_TABLE ? TAIL_BYTES : GAP_BYTES_MAX)
    if (due) this.#gap = size
    const kind = KINDS[opcode]!
    if (kind !== 0) this.#control(kind, reader, depth)
    return due
  }

  #control(kind: number, reader: BodyReader, depth: number): void {
    switch (kind) {
      case BEGIN:
        this.#entry[depth] = this.#gap
        this.#end[depth] = 0
        return
      case ELSE:
        this.#branch(depth)
        this.#gap = this.#entry[depth]!
        return
      case CATCH:
        this.#branch(depth)
        this.#gap = GAP_BYTES_MAX - TAIL_BYTES
        return
      case FINISH:
        this.#gap = Math.max(this.#gap, this.#entry[depth + 1]!, this.#end[depth + 1]!, this.#anyEnd)
        return
      case TRY_TABLE:
        this.#anyEnd = GAP_BYTES_MAX - TAIL_BYTES
        this.#entry[depth] = this.#gap
        this.#end[depth] = 0
        return
      case BRANCH:
        if (reader.opcode === BR_TABLE || reader.opcode >= PREFIXED) this.#anyEnd = Math.max(this.#anyEnd, this.#gap)
        else this.#branch(depth - (reader.slots[0]! >>> 0))
        return
      case CALL: this.#call((reader.slots[0]! >>> 0) - this.#imported); return
      default: this.#gap = GAP_BYTES_MAX - TAIL_BYTES
    }
  }

  #branch(depth: number): void {
    this.#end[depth] = Math.max(this.#end[depth] ?? 0, this.#gap)
  }

  #call(callee: number): void {
    const { checks, cost } = this.#calls
    if (callee < 0) this.#gap += IMPORT_BYTES
    else if (checks[callee] === 0) this.#gap += cost[callee]!
    else this.#gap = cost[callee]! <= SMALL_BYTES_MAX ? cost[callee]! : GAP_BYTES_MAX - TAIL_BYTES
  }
}

const BEGIN = 1
const ELSE = 2
const CATCH = 3
const FINISH = 4
const TRY_TABLE = 5
const BRANCH = 6
const CALL = 7
const CALL_INDIRECT = 8
const KINDS = new Uint8Array(OPCODE_END)
for (const [kind, names] of [
  [BEGIN, ['block', 'loop', 'if', 'try']], [ELSE, ['else']], [CATCH, ['catch', 'catch_all']],
  [FINISH, ['end', 'delegate']], [TRY_TABLE, ['try_table']],
  [BRANCH, ['br', 'br_if', 'br_table', 'br_on_null', 'br_on_non_null', 'br_on_cast', 'br_on_cast_fail']],
  [CALL, ['call']], [CALL_INDIRECT, ['call_indirect', 'call_ref']],
] as const) for (const name of names) KINDS[opcodeOf(name)] = kind

/** What measure() must see of a body; what is before it, and isn't behind, may be gone over. */
export function mattersToGaps(opcode: number): boolean {
  return KINDS[opcode] !== 0
}

const BR_TABLE = opcodeOf('br_table')
/** br_on_cast and its sibling have their label elsewhere. */
const PREFIXED = 0x100
