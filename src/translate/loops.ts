// translate/loops.ts: unrolls the smallest loops, so that several rounds share a check.
//
// In a loop of five instructions a check costs as much as a round, and its call keeps V8 from unrolling the loop. So we
// do it: small is an innermost loop without parameters that calls nothing.
//
//   loop            block                          ;; left when a round doesn't go on
//     body            loop
//   end                 …check
//                       block  body  br 2  end     ;; COPIES - 1 times: "go on" is the end of this block
//                       body                       ;; "go on" is the loop
//                     end
//                   end
//
// A label beyond the loop is two higher in a body that is in a block, one higher in the last. (A local that counts the
// rounds, with the loop in a loop that checks, was measured, too: half as slow again as a check in each round.)

import type { BodyReader } from '../wasm/body.ts'
import { BLOCK_EMPTY, OPCODE_END, opcodeOf } from '../wasm/opcodes.ts'
import { Reader } from '../wasm/reader.ts'
import { BULK_COUNT_MAX } from './bulk.ts'
import type { Splice } from './splice.ts'

const COPIES = 4
/** Bytes of a loop that is small. */
const SMALL_BYTES_MAX = 64

/** The loops of one function, in the order of their beginnings; used for all functions. */
export class Loops {
  /** 1 for those that are small. */
  small = new Uint8Array(64)
  #count = 0
  // Of the loop that was opened last, or -1 if it isn't open any more.
  #innermost = -1
  #depth = 0
  #start = 0

  /** Finds the loops of the body in [start, end). */
  find(reader: BodyReader, start: number, end: number): void {
    this.#count = 0
    this.#innermost = -1
    reader.open(start, end)
    while (reader.next()) {
      const { opcode } = reader
      if (opcode === LOOP) this.#begin(reader)
      else if (this.#innermost >= 0) {
        if (LARGE[opcode] === 1) this.#innermost = -1
        else if (opcode === END && reader.depth + 1 === this.#depth) {
          if (reader.end - this.#start <= SMALL_BYTES_MAX) this.small[this.#innermost] = 1
          this.#innermost = -1
        }
      }
    }
  }

  #begin(reader: BodyReader): void {
    if (this.#count === this.small.length) {
      const more = new Uint8Array(this.#count * 2)
      more.set(this.small)
      this.small = more
    }
    this.small[this.#count] = 0
    // A loop with a type may have parameters.
    this.#innermost = reader.slots[0]! < 0 ? this.#count : -1
    this.#count++
    this.#depth = reader.depth
    this.#start = reader.at
  }
}

/** A small loop that is being unrolled; used for all of them. */
export class Unrolling {
  // The loop's type and its body.
  #typeAt = 0
  #bodyAt = 0
  #end = 0
  /** Branches in it that leave it, as the bytes of their labels, and whether they are more than one. */
  readonly #labels: number[] = []
  readonly #depths: number[] = []

  /** Writes the loop on which `reader` stands, with `check` put in; then the reader stands on its end. */
  write(reader: BodyReader, splice: Splice, check: () => void): void {
    const { out, bytes } = splice
    splice.upTo(reader.at)
    this.#scan(reader)
    out.byte(BLOCK)
    out.copy(bytes, this.#typeAt, this.#bodyAt)
    out.byte(LOOP)
    out.copy(bytes, this.#typeAt, this.#bodyAt)
    check()
    for (let i = 1; i < COPIES; i++) {
      out.byte(BLOCK)
      out.s32(BLOCK_EMPTY)
      this.#copyBody(splice, 2)
      out.byte(BR)
      out.byte(2)
      out.byte(END)
    }
    this.#copyBody(splice, 1)
    out.byte(END)
    out.byte(END)
    splice.skipTo(reader.end)
  }

  #scan(reader: BodyReader): void {
    this.#typeAt = reader.at + 1
    this.#bodyAt = reader.end
    this.#labels.length = this.#depths.length = 0
    const depth = reader.depth
    while (reader.next() && reader.depth >= depth) {
      const { opcode, slots } = reader
      if (opcode !== BR && opcode !== BR_IF && opcode !== BR_TABLE) continue
      // Where its labels are, and the highest of them that doesn't leave the loop.
      this.#labels.push(opcode === BR_TABLE ? slots[1]! : reader.at + 1, reader.end)
      this.#depths.push(reader.depth - depth)
    }
    this.#end = reader.at
  }

  #copyBody({ out, bytes }: Splice, more: number): void {
    let from = this.#bodyAt
    for (let i = 0; i < this.#depths.length; i++) {
      const labels = new Reader(bytes, this.#labels[2 * i]!, this.#labels[2 * i + 1]!, 'function body')
      out.copy(bytes, from, labels.at)
      while (!labels.done) {
        const label = labels.u32()
        out.u32(label > this.#depths[i]! ? label + more : label)
      }
      from = labels.at
    }
    out.copy(bytes, from, this.#end)
  }
}

const BLOCK = opcodeOf('block')
const LOOP = opcodeOf('loop')
const END = opcodeOf('end')
const BR = opcodeOf('br')
const BR_IF = opcodeOf('br_if')
const BR_TABLE = opcodeOf('br_table')

// What a small loop hasn't got: calls, and labels other than those of br, br_if and br_table.
const LARGE = new Uint8Array(OPCODE_END)
for (const name of [
  'call', 'call_indirect', 'return_call', 'return_call_indirect', 'call_ref', 'return_call_ref', 'try', 'delegate',
  'rethrow', 'try_table', 'br_on_null', 'br_on_non_null', 'br_on_cast', 'br_on_cast_fail',
]) LARGE[opcodeOf(name)] = 1
for (let opcode = 0; opcode < OPCODE_END; opcode++) if (BULK_COUNT_MAX[opcode]! > 0) LARGE[opcode] = 1
