// translate/bulk.ts: bulk instructions in bounded pieces: memory.fill of 4 GiB must not keep a pCPU for a second.
//
// memory.fill, memory.copy, memory.init and their table siblings become calls of functions that are added to the
// module, one for each instruction and its indices. Such a function does what is short as it is. What is long it does
// in pieces of PIECE with a check before each, so that the guest may leave its pCPU in between:
//
//   (func $memory.fill (param $to i32) (param $value i32) (param $count i32)
//     (if (i32.gt_u (local.get $count) (i32.const PIECE)) (then
//       …an access that traps if the last byte is out of bounds, before anything is written (§4.6.14)
//       (loop $again
//         …check
//         …one piece, from the front, or from the back if a copy's ranges demand it
//         (br_if $again (i32.gt_u (local.get $count) (i32.const PIECE))))))
//     …check
//     (memory.fill (local.get $to) (local.get $value) (local.get $count)))
//
// Lengths that are constants and short are left alone.

import { leb, sleb } from '../wasm/encode.ts'
import type { BodyReader } from '../wasm/body.ts'
import { memoriesOf, importsOf, type Module } from '../wasm/module.ts'
import { OPCODE_END, opcodeOf, PREFIX_BASE } from '../wasm/opcodes.ts'
import type { Splice } from './splice.ts'
import { Untreatable } from './untreatable.ts'

/** Bytes, or entries of a table, that are done at once: some 10 µs. */
const PIECE = { memory: 64 * 1024, table: 1024 } as const
/** What is shorter than this is left alone if its length is a constant: it takes as long as some code. */
const SHORT = { memory: 1024, table: 16 } as const
/** A module has as many helpers at most: they are for pairs of indices, of which there may be very many. */
const HELPERS_MAX = 1000

/** A function to be added: its type, its body with its locals. */
type HelperCode = { readonly type: readonly number[]; readonly body: readonly number[] }
/** With its index, and the instruction and indices that it is for. */
export type Helper = HelperCode & {
  readonly index: number; readonly opcode: number; readonly a: number; readonly b: number
}

/** The functions that a module needs for its bulk instructions, each made when it is first asked for. */
export class BulkHelpers {
  readonly helpers: Helper[] = []
  readonly #module: Module
  readonly #check: readonly number[]
  readonly #piece: readonly number[]
  readonly #unbounded: boolean
  readonly #allocate: () => number
  readonly #byKey = new Map<string, number>()

  /**
   * `allocate` gives the index of the next function to be added; `check` is the code of a check, `piece` what stands
   * before each piece; `unbounded`: what can't be done in pieces stays, and isn't refused.
   */
  constructor(
    module: Module, allocate: () => number, { check, piece }: Record<'check' | 'piece', readonly number[]>,
    unbounded: boolean,
  ) {
    this.#module = module
    this.#allocate = allocate
    this.#check = check
    this.#piece = piece
    this.#unbounded = unbounded
  }

  /** Puts a call in place of the instruction on which `reader` stands. Throws Untreatable. */
  replace(reader: BodyReader, splice: Splice): void {
    const helper = this.indexOf(reader)
    if (helper < 0) return
    splice.upTo(reader.at)
    splice.out.byte(CALL)
    splice.out.u32(helper)
    splice.skipTo(reader.end)
  }

  /** The function that takes the place of the instruction on which `reader` stands; -1: none. Throws Untreatable. */
  indexOf({ opcode, slots }: BodyReader): number {
    try {
      return this.#helperOf(opcode, slots[0]! >>> 0, slots[1]! >>> 0)
    } catch (error) {
      if (this.#unbounded && error instanceof Untreatable) return -1
      throw error
    }
  }

  #helperOf(opcode: number, a: number, b: number): number {
    const key = `${opcode} ${a} ${INDICES[opcode] === 1 ? 0 : b}`
    let index = this.#byKey.get(key)
    if (index === undefined) {
      if (this.helpers.length === HELPERS_MAX) {
        throw new Untreatable(`bulk instructions on more than ${HELPERS_MAX} pairs of memories, tables and segments`)
      }
      const code = this.make(opcode, a, b)
      index = this.#allocate()
      this.helpers.push({ ...code, index, opcode, a, b })
      this.#byKey.set(key, index)
    }
    return index
  }

  /** The code for an instruction and its indices. Throws Untreatable. */
  make(opcode: number, a: number, b: number): HelperCode {
    const operation = [PREFIX_BULK, ...leb(opcode - PREFIX_BASE[PREFIX_BULK]!), ...leb(a)]
    switch (opcode) {
      case MEMORY_FILL: return this.#fill(this.#memoryWidth(a), I32, operation, PIECE.memory)
      case MEMORY_INIT: return this.#copy({ to: this.#memoryWidth(b), from: W32 }, [...operation, ...leb(b)],
        PIECE.memory)
      case MEMORY_COPY: return this.#move(this.#memoryWidth(a), this.#memoryWidth(b), [...operation, ...leb(b)],
        PIECE.memory, (load, at) => [...at, I32_LOAD8_U, OTHER_MEMORY, ...leb(load), 0, DROP], [a, b])
      case TABLE_FILL: return this.#fill(this.#table(a).width, this.#table(a).type, operation, PIECE.table)
      case TABLE_INIT: return this.#copy({ to: this.#table(b).width, from: W32 }, [...operation, ...leb(b)],
        PIECE.table)
      default: return this.#move(this.#table(a).width, this.#table(b).width, [...operation, ...leb(b)],
        PIECE.table, (load, at) => [...at, TABLE_GET, ...leb(load), DROP], [a, b])
    }
  }

  #memoryWidth(index: number): Width {
    return memoriesOf(this.#module)[index]?.index64 === true ? W64 : W32
  }

  #table(index: number): { width: Width; type: number } {
    const table = [...importsOf(this.#module, 'table').map((one) => one.table), ...this.#module.tables][index]
    const type = TABLE_TYPES[table?.type ?? '']
    if (type === undefined) throw new Untreatable(`table.fill or the like of a table of ${table?.type}`)
    return { width: table!.index64 ? W64 : W32, type }
  }

  // The last piece first: what is out of bounds is found before anything is written, and the order doesn't matter.
  #fill(width: Width, value: number, operation: number[], piece: number): HelperCode {
    const { to, count } = PARAMETERS
    return this.#helper([width.type, value, width.type], [
      ...exceeds(count, piece, width), IF, VOID,
      ...beyond(to, width), IF, VOID, ...call(operation), RETURN, END,
      LOOP, VOID, ...this.#piece,
      ...subtract(count, piece, width), ...set(count),
      ...add(to, count, width), ...get(1), ...constant(piece, width), ...operation,
      ...exceeds(count, piece, width), BR_IF, 0, END,
      END,
      ...this.#check, ...call(operation),
    ])
  }

  #copy({ to, from }: { to: Width; from: Width }, operation: number[], piece: number): HelperCode {
    const count = PARAMETERS.count
    // Lengths of segments have 32 bits, whatever the memory is.
    const wide = to === W64 ? [I64_EXTEND_I32_U] : []
    return this.#helper([to.type, from.type, W32.type], [
      ...exceeds(count, piece, W32), IF, VOID,
      ...get(PARAMETERS.to), ...get(count), ...wide, to.add, ...constant(1, to), to.sub, ...get(PARAMETERS.to), to.lt_u,
      ...beyond(PARAMETERS.from, W32), I32_OR, IF, VOID, ...call(operation), RETURN, END,
      LOOP, VOID, ...this.#piece,
      ...subtract(count, piece, W32), ...set(count),
      ...get(PARAMETERS.to), ...get(count), ...wide, to.add,
      ...get(PARAMETERS.from), ...get(count), W32.add, ...constant(piece, W32), ...operation,
      ...exceeds(count, piece, W32), BR_IF, 0, END,
      END,
      ...this.#check, ...call(operation),
    ])
  }

  // Ranges may overlap: from the front if the target is below the source, else from the back.
  #move(
    width: Width, source: Width, operation: number[], piece: number,
    access: (index: number, at: number[]) => number[], [a, b]: [number, number],
  ): HelperCode {
    if (width !== source) throw new Untreatable('a copy between 32-bit and 64-bit memories or tables')
    const { to, from, count } = PARAMETERS
    const advance = (local: number): number[] => [...get(local), ...constant(piece, width), width.add, ...set(local)]
    return this.#helper([width.type, width.type, width.type], [
      ...exceeds(count, piece, width), IF, VOID,
      ...beyond(to, width), ...beyond(from, width), I32_OR, IF, VOID, ...call(operation), RETURN, END,
      ...access(a, last(to, width)), ...access(b, last(from, width)),
      ...get(to), ...get(from), width.lt_u, IF, VOID,
      LOOP, VOID, ...this.#piece,
      ...get(to), ...get(from), ...constant(piece, width), ...operation, ...advance(to), ...advance(from),
      ...subtract(count, piece, width), LOCAL_TEE, count, ...constant(piece, width), width.gt_u, BR_IF, 0, END,
      ELSE, LOOP, VOID, ...this.#piece,
      ...subtract(count, piece, width), ...set(count),
      ...add(to, count, width), ...add(from, count, width), ...constant(piece, width), ...operation,
      ...exceeds(count, piece, width), BR_IF, 0, END, END,
      END,
      ...this.#check, ...call(operation),
    ])
  }

  #helper(parameters: number[], code: number[]): HelperCode {
    return { type: [0x60, parameters.length, ...parameters, 0], body: [0, ...code, END] }
  }
}

/** What addresses are computed with. */
type Width = typeof W32 | typeof W64
const I32 = 0x7f
const W32 = {
  type: I32, const: opcodeOf('i32.const'), add: opcodeOf('i32.add'), sub: opcodeOf('i32.sub'),
  lt_u: opcodeOf('i32.lt_u'), gt_u: opcodeOf('i32.gt_u'),
} as const
const W64 = {
  type: 0x7e, const: opcodeOf('i64.const'), add: opcodeOf('i64.add'), sub: opcodeOf('i64.sub'),
  lt_u: opcodeOf('i64.lt_u'), gt_u: opcodeOf('i64.gt_u'),
} as const

/** The locals of a helper; a fill has its value in place of `from`. */
const PARAMETERS = { to: 0, from: 1, count: 2 } as const

function get(local: number): number[] {
  return [LOCAL_GET, local]
}

function set(local: number): number[] {
  return [LOCAL_SET, local]
}

function constant(value: number, width: Width): number[] {
  return [width.const, ...sleb(value)]
}

function add(a: number, b: number, width: Width): number[] {
  return [...get(a), ...get(b), width.add]
}

function subtract(local: number, value: number, width: Width): number[] {
  return [...get(local), ...constant(value, width), width.sub]
}

function exceeds(local: number, value: number, width: Width): number[] {
  return [...get(local), ...constant(value, width), width.gt_u]
}

function last(start: number, width: Width): number[] {
  return [...add(start, PARAMETERS.count, width), ...constant(1, width), width.sub]
}

// An end behind the last address that there is: out of bounds, and the instruction itself is to say so.
function beyond(start: number, width: Width): number[] {
  return [...last(start, width), ...get(start), width.lt_u]
}

function call(operation: number[]): number[] {
  return [...get(0), ...get(1), ...get(2), ...operation]
}

const MEMORY_FILL = opcodeOf('memory.fill')
const MEMORY_COPY = opcodeOf('memory.copy')
const MEMORY_INIT = opcodeOf('memory.init')
const TABLE_FILL = opcodeOf('table.fill')
const TABLE_INIT = opcodeOf('table.init')
const TABLE_COPY = opcodeOf('table.copy')

/** By opcode: the longest that an instruction may be without a helper; 0 for those that aren't bulk instructions. */
export const BULK_COUNT_MAX = new Uint32Array(OPCODE_END)
for (const opcode of [MEMORY_FILL, MEMORY_COPY, MEMORY_INIT]) BULK_COUNT_MAX[opcode] = SHORT.memory
for (const opcode of [TABLE_FILL, TABLE_COPY, TABLE_INIT]) BULK_COUNT_MAX[opcode] = SHORT.table

/** By opcode: how many indices tell helpers apart. */
const INDICES = new Uint8Array(OPCODE_END).fill(2)
INDICES[MEMORY_FILL] = INDICES[TABLE_FILL] = 1

const TABLE_TYPES: Record<string, number> = { funcref: 0x70, externref: 0x6f }
const PREFIX_BULK = 0xfc
const OTHER_MEMORY = 0x40
const VOID = 0x40
const LOOP = opcodeOf('loop')
const CALL = opcodeOf('call')
const IF = opcodeOf('if')
const ELSE = opcodeOf('else')
const END = opcodeOf('end')
const BR_IF = opcodeOf('br_if')
const RETURN = opcodeOf('return')
const DROP = opcodeOf('drop')
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const LOCAL_TEE = opcodeOf('local.tee')
const TABLE_GET = opcodeOf('table.get')
const I32_LOAD8_U = opcodeOf('i32.load8_u')
const I32_OR = opcodeOf('i32.or')
const I64_EXTEND_I32_U = opcodeOf('i64.extend_i32_u')
