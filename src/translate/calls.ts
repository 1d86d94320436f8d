// translate/calls.ts: which functions must check at their entry, so that no code runs for long without a check.
//
// Loops check by themselves. What else can go on without end is recursion, so each cycle of the call graph needs a
// function that checks: one that calls by a reference (its callee may be any function), or the target of a back edge of
// a walk in depth (each cycle has one). What can go on for long is a tree of calls: forty functions that call the next
// one twice are 2^40 calls without a cycle. So the code that a call may execute until it returns is summed up over its
// unchecked callees, and whoever exceeds ENTRY_BYTES_MAX checks, too.
//
// Costs are bytes of code: half an instruction each, on average. Linear in the number of calls; a module may have
// 600,000 functions and millions of calls, so the graph lies in two arrays.
// Elsewhere: checks within large functions (gaps.ts).

import { BodyReader, eachBody, stopsAt } from '../wasm/body.ts'
import { importsOf, type Module } from '../wasm/module.ts'
import { OPCODE_END, opcodeOf, PREFIX_BASE } from '../wasm/opcodes.ts'
import { BULK_COUNT_MAX } from './bulk.ts'

/** What a function holds, as bits of Calls.holds. */
export const HOLDS_LOOP = 1
export const HOLDS_BULK = 2
/** It handles exceptions. */
export const HOLDS_CATCH = 4
const HOLDS_INDIRECT_CALL = 8
/** It may change a table. */
export const HOLDS_TABLE_CHANGE = 16
const HOLDS_IMPORT_CALL = 32
/** It makes tail calls. */
export const HOLDS_TAIL_CALL = 64

/** Bytes of code that a call may execute without a check. About 10 µs. */
const ENTRY_BYTES_MAX = 16 * 1024
const COST_MAX = 0x7fff_ffff

/** A body that was read: its bytes, and whether it has handlers. One object is used for all. */
export type Extent = { start: number; end: number; catches: boolean }

/** The calls of a module's functions. Functions are numbered without the imported ones. */
export type Calls = {
  /** 1 for those that check at their entry. */
  readonly checks: Uint8Array
  readonly holds: Uint8Array
  /** Bytes of code that a call may execute, those of checked callees left out. */
  readonly cost: Uint32Array
  /** 1 for those that hold a place at which a vCPU may leave its stack to be captured, or call one that does. */
  readonly unwinds: Uint8Array
}

/**
 * Reads all bodies once. Calls `visit` with the reader on each instruction on objects, and `leave` after each body: a
 * chance to refuse it.
 */
export function callsOf(
  module: Module, visit: (reader: BodyReader) => void, leave: (reader: BodyReader, extent: Extent) => void,
): Calls {
  const graph = readGraph(module, visit, leave)
  const { count, holds } = graph
  const checks = new Uint8Array(count)
  for (let f = 0; f < count; f++) if ((holds[f]! & HOLDS_INDIRECT_CALL) !== 0) checks[f] = 1
  const unwinds = new Uint8Array(count)
  return { checks, holds, cost: walkInDepth(graph, checks, unwinds), unwinds }
}

/** callees[first[f]] to callees[first[f + 1]] are those that f calls, as often as it has calls of them. */
type Graph = {
  readonly count: number; readonly holds: Uint8Array; readonly size: Uint32Array
  readonly first: Uint32Array; readonly callees: Uint32Array
}

function readGraph(
  module: Module, visit: (reader: BodyReader) => void, leave: (reader: BodyReader, extent: Extent) => void,
): Graph {
  const count = module.functionCount
  const imported = importsOf(module, 'func').length
  const holds = new Uint8Array(count)
  const size = new Uint32Array(count)
  const first = new Uint32Array(count + 1)
  let callees = new Uint32Array(Math.max(1024, module.bytes.length >> 5))
  let calls = 0
  const reader = new BodyReader(module.bytes)
  const extent: Extent = { start: 0, end: 0, catches: false }
  eachBody(module, (start, end, f) => {
    first[f] = calls
    let held = 0
    reader.open(start, end)
    while (reader.nextOf(STOPS)) {
      const { opcode } = reader
      const kind = KINDS[opcode]!
      if ((kind & KIND_CALL) !== 0) {
        held |= kind & HOLDS_TAIL_CALL
        const callee = (reader.slots[0]! >>> 0) - imported
        if (callee < 0) held |= HOLDS_IMPORT_CALL
        if (callee < 0 || callee >= count) continue
        if (calls === callees.length) {
          const more = new Uint32Array(calls * 2)
          more.set(callees)
          callees = more
        }
        callees[calls++] = callee
      } else if (kind === KIND_VISIT) visit(reader)
      else held |= kind
    }
    holds[f] = held
    size[f] = end - start
    extent.start = start
    extent.end = end
    extent.catches = (held & HOLDS_CATCH) !== 0
    leave(reader, extent)
  })
  first[count] = calls
  return { count, holds, size, first, callees }
}

/** Marks targets of back edges and what costs too much in `checks`; the cost of each function. Fills `unwinds`. */
function walkInDepth(
  { count, holds, size, first, callees }: Graph, checks: Uint8Array, unwinds: Uint8Array,
): Uint32Array {
  const cost = new Uint32Array(count)
  // Where a function's next call to be followed is; a function is on the path from its first visit until it is done.
  const next = new Uint32Array(count)
  const state = new Uint8Array(count)
  const path = new Uint32Array(count)
  for (let root = 0; root < count; root++) {
    if (state[root] !== UNSEEN) continue
    let length = 0
    path[length++] = root
    state[root] = ON_PATH
    next[root] = first[root]!
    while (length > 0) {
      const f = path[length - 1]!
      if (next[f]! < first[f + 1]!) {
        const callee = callees[next[f]!++]!
        if (state[callee] === ON_PATH) checks[callee] = 1
        else if (state[callee] === UNSEEN) {
          path[length++] = callee
          state[callee] = ON_PATH
          next[callee] = first[callee]!
        }
        continue
      }
      length--
      state[f] = DONE
      let sum = size[f]!
      let mayUnwind = (holds[f]! & HOLDS_SITE) !== 0 || size[f]! > LONG_BYTES ? 1 : 0
      for (let i = first[f]!; i < first[f + 1]!; i++) {
        const callee = callees[i]!
        if (checks[callee] === 0) sum += cost[callee]!
        // One that is on the path is called in a cycle: it checks.
        if (checks[callee] !== 0 || unwinds[callee] !== 0) mayUnwind = 1
      }
      cost[f] = Math.min(sum, COST_MAX)
      // A leaf's own code is gaps.ts's to divide.
      if (sum > ENTRY_BYTES_MAX && first[f]! < first[f + 1]!) checks[f] = 1
      unwinds[f] = mayUnwind | checks[f]!
    }
  }
  return cost
}

/** What makes a function one that may unwind; of straight code, so much that it is checked in its middle. */
const HOLDS_SITE = HOLDS_LOOP | HOLDS_BULK | HOLDS_INDIRECT_CALL | HOLDS_IMPORT_CALL
const LONG_BYTES = 64 * 1024

const UNSEEN = 0
const ON_PATH = 1
const DONE = 2

// Beyond the bits of `holds`.
const KIND_CALL = 0x100
const KIND_VISIT = 0x200
const KINDS = new Uint16Array(OPCODE_END)
for (let opcode = PREFIX_BASE[0xfb]!; opcode < PREFIX_BASE[0xfc]!; opcode++) KINDS[opcode] = KIND_VISIT
KINDS[opcodeOf('call')] = KIND_CALL
KINDS[opcodeOf('return_call')] = KIND_CALL | HOLDS_TAIL_CALL
KINDS[opcodeOf('loop')] = HOLDS_LOOP
for (const name of ['call_indirect', 'return_call_indirect', 'call_ref', 'return_call_ref']) {
  KINDS[opcodeOf(name)] = HOLDS_INDIRECT_CALL
}
for (const name of ['return_call_indirect', 'return_call_ref']) KINDS[opcodeOf(name)]! |= HOLDS_TAIL_CALL
for (const name of ['try', 'try_table']) KINDS[opcodeOf(name)] = HOLDS_CATCH
for (let opcode = 0; opcode < OPCODE_END; opcode++) if (BULK_COUNT_MAX[opcode]! > 0) KINDS[opcode] = HOLDS_BULK
for (const name of ['table.fill', 'table.init', 'table.copy']) KINDS[opcodeOf(name)] = HOLDS_BULK | HOLDS_TABLE_CHANGE
for (const name of ['table.set', 'table.grow']) KINDS[opcodeOf(name)] = HOLDS_TABLE_CHANGE
for (const name of ['data.drop', 'elem.drop']) KINDS[opcodeOf(name)] = HOLDS_BULK
const STOPS = stopsAt((opcode) => KINDS[opcode] !== 0)
