// translate/compile_cost.ts: functions that V8 would take too long, or too much memory, to compile.
//
// V8 compiles a function at its first call, on the pCPU, and keeps the state of all locals for each block: 20 KB of
// nested blocks with 40,000 locals took 2 s and 4 GB. Nested `try` is quadratic. Compilers come nowhere near: of clang,
// Ruby, CPython, PHP, pandoc and yosys the largest function has 0.7 million blocks × locals.

import { stopsAt, type BodyReader } from '../wasm/body.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import type { Extent } from './calls.ts'
import { Untreatable } from './untreatable.ts'

/** Blocks × locals of one function. */
const SLOTS_MAX = 4_000_000
/** Handlers of the older kind in one function. */
const TRIES_MAX = 10_000
const TRY_DEPTH_MAX = 100

/** Refuses a body, which `reader` has gone over, that is dear to compile. Throws Untreatable. */
export function checkCompileCost(reader: BodyReader, { start, end, catches }: Extent): void {
  const { localCount } = reader
  // Each block takes two bytes, and more with its end.
  if (!catches && localCount * (end - start) / 3 <= SLOTS_MAX) return
  let [blocks, tries, depth] = [0, 0, 0]
  const open: number[] = []
  reader.open(start, end)
  while (reader.nextOf(BLOCKS)) {
    if (reader.opcode === END || reader.opcode === DELEGATE) {
      if (open.at(-1) === reader.depth + 1) open.pop()
      continue
    }
    blocks++
    if (reader.opcode !== TRY) continue
    open.push(reader.depth)
    tries++
    depth = Math.max(depth, open.length)
  }
  if (blocks * localCount > SLOTS_MAX) throw new Untreatable(`a function of ${blocks} blocks and ${localCount} locals`)
  if (tries > TRIES_MAX || depth > TRY_DEPTH_MAX) {
    throw new Untreatable(`a function of ${tries} try, ${depth} in each other`)
  }
}

const TRY = opcodeOf('try')
const END = opcodeOf('end')
const DELEGATE = opcodeOf('delegate')
const STARTS = new Set(['block', 'loop', 'if', 'try', 'try_table'].map(opcodeOf))
const BLOCKS = stopsAt((opcode) => STARTS.has(opcode) || opcode === END || opcode === DELEGATE)
