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
import { BULK_COUNT_MAX } from './bulk.ts'
import type { Check, Splice } from './splice.ts'

const COPIES = 4
/** Bytes of a loop that is small. */
const SMALL_BYTES_MAX = 64

/** A small loop that is being unrolled; used for all of them. */
export class Unrolling {
  // The loop's type and its body.
  #typeAt = 0
  #bodyAt = 0
  #end = 0
  // Branches in it: where the bytes of their labels begin and end, and the highest label that doesn't leave the loop.
  readonly #labels = new Uint32Array(3 * SMALL_BYTES_MAX)
  #count = 0

  /** True if the loop on which `reader` stands is small; then it stands on the loop's end, else where it was. */
  find(reader: BodyReader): boolean {
    const { at, end, depth, opcode: loop } = reader
    // A loop with a type may have parameters.
    if (reader.slots[0]! >= 0) return false
    this.#typeAt = at + 1
    this.#bodyAt = end
    this.#count = 0
    while (reader.next() && reader.end - at <= SMALL_BYTES_MAX) {
      const { opcode } = reader
      if (LARGE[opcode] === 1) break
      if (opcode === END && reader.depth < depth) {
        this.#end = reader.at
        return true
      }
      if (opcode === BR || opcode === BR_IF) this.#branch(reader.at + 1, reader.end, reader.depth - depth)
      else if (opcode === BR_TABLE) this.#branch(reader.slots[1]!, reader.end, reader.depth - depth)
    }
    reader.at = at
    reader.end = end
    reader.depth = depth
    reader.opcode = loop
    return false
  }

  /** Writes the loop that was found, with `check` put in. */
  write(reader: BodyReader, splice: Splice, check: Check): void {
    const { out, bytes } = splice
    splice.upTo(this.#typeAt - 1)
    out.byte(BLOCK)
    out.copy(bytes, this.#typeAt, this.#bodyAt)
    out.byte(LOOP)
    out.copy(bytes, this.#typeAt, this.#bodyAt)
    splice.put(check)
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

  #branch(from: number, end: number, depth: number): void {
    const at = 3 * this.#count++
    this.#labels[at] = from
    this.#labels[at + 1] = end
    this.#labels[at + 2] = depth
  }

  #copyBody({ out, bytes }: Splice, more: number): void {
    let from = this.#bodyAt
    for (let i = 0; i < 3 * this.#count; i += 3) {
      let at = this.#labels[i]!
      out.copy(bytes, from, at)
      from = this.#labels[i + 1]!
      while (at < from) {
        let label = 0
        let byte = 0x80
        for (let shift = 0; byte >= 0x80; shift += 7) {
          byte = bytes[at++]!
          label |= (byte & 0x7f) << shift
        }
        out.u32(label >>> 0 > this.#labels[i + 2]! ? label + more : label)
      }
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

// What a small loop hasn't got: loops, calls, and labels other than those of br, br_if and br_table.
const LARGE = new Uint8Array(OPCODE_END)
for (const name of [
  'loop', 'call', 'call_indirect', 'return_call', 'return_call_indirect', 'call_ref', 'return_call_ref', 'try',
  'delegate', 'rethrow', 'try_table', 'br_on_null', 'br_on_non_null', 'br_on_cast', 'br_on_cast_fail',
]) LARGE[opcodeOf(name)] = 1
for (let opcode = 0; opcode < OPCODE_END; opcode++) if (BULK_COUNT_MAX[opcode]! > 0) LARGE[opcode] = 1
