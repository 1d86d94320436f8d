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
import type { BodyReader } from '../wasm/body.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { BULK_COUNT_MAX, type BulkHelpers } from './bulk.ts'
import { HOLDS_BULK, HOLDS_LOOP, type Calls } from './calls.ts'
import { Gaps, mayNeedChecks } from './gaps.ts'
import { Loops, Unrolling } from './loops.ts'
import type { BodyTranslator, Check, Splice } from './splice.ts'

/** A check: `memory` is the control memory, `yields` the function to be called. */
export function preemptCheck(memory: number, yields: number): Check {
  const load = [I32_CONST, 0, I32_LOAD, ALIGN_4 | OTHER_MEMORY, ...leb(memory), 0]
  return { code: [...load, IF, VOID, CALL, ...leb(yields), END], branch: load.length }
}

/** Puts checks into bodies. */
export class Preempt implements BodyTranslator {
  checks = 0
  readonly #calls: Calls
  readonly #bulk: BulkHelpers
  readonly #check: Check
  readonly #loops = new Loops()
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
    if ((holds[f]! & HOLDS_LOOP) !== 0) this.#loops.find(reader, start, end)
    reader.open(start, end)
    splice.upTo(reader.codeStart)
    if (checks[f] !== 0) this.#putCheck(splice)
    this.#walk(reader, splice, mayNeedChecks(cost[f]!))
    splice.upTo(end)
  }

  #walk(reader: BodyReader, splice: Splice, measured: boolean): void {
    const gaps = this.#gaps
    if (measured) gaps.begin()
    let loop = 0
    // The constant on top of the stack, or -1.
    let constant = -1
    while (reader.next()) {
      const { opcode } = reader
      if (measured && gaps.step(reader)) {
        splice.upTo(reader.at)
        this.#putCheck(splice)
      }
      if (opcode === LOOP) {
        if (measured) gaps.checked()
        if (this.#loops.small[loop++] === 1) {
          this.#unrolling.write(reader, splice, () => this.#putCheck(splice))
          if (measured) gaps.closed()
        } else {
          splice.upTo(reader.end)
          this.#putCheck(splice)
        }
      } else if (BULK_COUNT_MAX[opcode]! > 0 && !(constant >= 0 && constant <= BULK_COUNT_MAX[opcode]!)) {
        this.#bulk.replace(reader, splice)
      }
      constant = opcode === I32_CONST ? reader.slots[0]! : -1
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
