// translate/preempt.ts: makes a guest's code look up, again and again, whether its time is over.
//
//   i32.const 0  i32.load $control  if  call $yield  end
//
// The control word lies in a memory of the pCPU's that the guest can't name. Its address is a constant, hence no bounds
// check and no register; another thread sets the word when a quantum ends. The branch is hinted as unlikely. Checks
// stand at the head of each loop, at the entry of some functions (calls.ts), in the middle of large ones (gaps.ts) and
// in bulk instructions (bulk.ts). The smallest loops are unrolled (loops.ts).
//
// Source: Wasmtime's epochs. What the alternatives cost: docs/decisions/0009-preemption-by-checks.md.

import { leb } from '../wasm/encode.ts'
import { stopsAt, type BodyReader } from '../wasm/body.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { BULK_COUNT_MAX, type BulkHelpers } from './bulk.ts'
import { HOLDS_BULK, HOLDS_LOOP, type Calls } from './calls.ts'
import { Gaps, mattersToGaps, mayNeedChecks } from './gaps.ts'
import { Unrolling } from './loops.ts'
import type { BodyTranslator, Check, Splice } from './splice.ts'

/** A check: `memory` is the control memory, `yields` the function to be called. */
export function preemptCheck(memory: number, yields: number): Check {
  const load = [I32_CONST, 0, I32_LOAD, ALIGN_4 | OTHER_MEMORY, ...leb(memory), 0]
  return { code: Uint8Array.of(...load, IF, VOID, CALL, ...leb(yields), END), branch: load.length }
}

/** Puts checks into bodies. */
export class Preempt implements BodyTranslator {
  checks = 0
  readonly #calls: Calls
  readonly #bulk: BulkHelpers
  readonly #check: Check
  readonly #unrolling = new Unrolling()
  readonly #gaps: Gaps

  constructor(parts: { calls: Calls; bulk: BulkHelpers; check: Check; imported: number }) {
    this.#calls = parts.calls
    this.#bulk = parts.bulk
    this.#check = parts.check
    this.#gaps = new Gaps(parts.calls, parts.imported)
  }

  touches(f: number): boolean {
    const { checks, holds, cost } = this.#calls
    return checks[f] !== 0 || (holds[f]! & (HOLDS_LOOP | HOLDS_BULK)) !== 0 || mayNeedChecks(cost[f]!)
  }

  translate(f: number, reader: BodyReader, splice: Splice): void {
    const { start, end } = splice
    const { checks, holds, cost } = this.#calls
    reader.open(start, end)
    splice.upTo(reader.codeStart)
    if (checks[f] !== 0) this.#putCheck(splice)
    const measured = mayNeedChecks(cost[f]!)
    const held = holds[f]! & (HOLDS_LOOP | HOLDS_BULK)
    if (measured || held !== 0) this.#walk(reader, splice, measured, (held & HOLDS_BULK) !== 0)
    splice.upTo(end)
  }

  #walk(reader: BodyReader, splice: Splice, measured: boolean, bulk: boolean): void {
    const gaps = this.#gaps
    const stops = bulk ? measured ? STOPS.measuredWithBulk : STOPS.withBulk : measured ? STOPS.measured : STOPS.loops
    const put = (at: number): void => {
      splice.upTo(at)
      this.#putCheck(splice)
    }
    if (measured) gaps.begin(reader.codeStart)
    // The last constant, and where it ends: at a bulk instruction that takes it as its length.
    let constant = 0
    let constantEnd = -1
    while (reader.nextOf(stops)) {
      const { opcode } = reader
      if (measured) gaps.measure(reader, put)
      if (opcode === LOOP) {
        if (measured) gaps.checked()
        if (this.#unrolling.find(reader)) {
          this.checks++
          this.#unrolling.write(reader, splice, this.#check)
          if (measured) gaps.closed(reader)
        } else {
          splice.upTo(reader.end)
          this.#putCheck(splice)
        }
      } else if (opcode === I32_CONST) {
        constant = reader.slots[0]!
        constantEnd = reader.end
      } else if (BULK_COUNT_MAX[opcode]! > 0) {
        const short = constantEnd === reader.at && constant >= 0 && constant <= BULK_COUNT_MAX[opcode]!
        if (!short) this.#bulk.replace(reader, splice)
      }
    }
  }

  #putCheck(splice: Splice): void {
    this.checks++
    splice.put(this.#check)
  }
}

const VOID = 0x40
/** memarg: alignment 2^2, and a memory index follows. */
const ALIGN_4 = 2
const OTHER_MEMORY = 0x40
const LOOP = opcodeOf('loop')
const IF = opcodeOf('if')
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const I32_LOAD = opcodeOf('i32.load')
const I32_CONST = opcodeOf('i32.const')

const hasBulk = (opcode: number): boolean => BULK_COUNT_MAX[opcode]! > 0 || opcode === I32_CONST
const STOPS = {
  loops: stopsAt((opcode) => opcode === LOOP),
  withBulk: stopsAt((opcode) => opcode === LOOP || hasBulk(opcode)),
  measured: stopsAt(mattersToGaps),
  measuredWithBulk: stopsAt((opcode) => mattersToGaps(opcode) || hasBulk(opcode)),
} as const
