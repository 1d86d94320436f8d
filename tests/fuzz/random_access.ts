// tests/fuzz/random_access.ts: statements that read and write locals, globals, memories and tables.
//
// Addresses are mostly within bounds, as nothing comes after a trap. Lengths of bulk instructions are those at which
// the translator does something else: 0, at a piece's size, several pieces, so many that the end wraps around.

import { leb } from '../../src/wasm/encode.ts'
import type { Code } from './random_code.ts'
import type { Random } from './random.ts'
import { addressType, type Bounds, type ValueType } from './random_shape.ts'

/** What a load or store moves: its type and how many bytes; [name, type, bytes]. */
type Access = readonly [name: string, type: ValueType, bytes: number]

const LOADS: readonly Access[] = [
  ['i32.load', 'i32', 4], ['i64.load', 'i64', 8], ['f32.load', 'f32', 4], ['f64.load', 'f64', 8],
  ['i32.load8_s', 'i32', 1], ['i32.load8_u', 'i32', 1], ['i32.load16_s', 'i32', 2], ['i32.load16_u', 'i32', 2],
  ['i64.load8_s', 'i64', 1], ['i64.load8_u', 'i64', 1], ['i64.load16_s', 'i64', 2], ['i64.load16_u', 'i64', 2],
  ['i64.load32_s', 'i64', 4], ['i64.load32_u', 'i64', 4],
]
const STORES: readonly Access[] = [
  ['i32.store', 'i32', 4], ['i64.store', 'i64', 8], ['f32.store', 'f32', 4], ['f64.store', 'f64', 8],
  ['i32.store8', 'i32', 1], ['i32.store16', 'i32', 2], ['i64.store8', 'i64', 1], ['i64.store16', 'i64', 2],
  ['i64.store32', 'i64', 4],
]
const VECTOR_LOADS: readonly Access[] = [
  ['v128.load', 'v128', 16], ['v128.load8x8_s', 'v128', 8], ['v128.load32_splat', 'v128', 4],
  ['v128.load64_zero', 'v128', 8],
]
const VECTOR_STORES: readonly Access[] = [['v128.store', 'v128', 16]]
const LANES: readonly Access[] = [
  ['v128.load8_lane', 'v128', 1], ['v128.load32_lane', 'v128', 4], ['v128.store16_lane', 'v128', 2],
  ['v128.store64_lane', 'v128', 8],
]
const ATOMICS: readonly Access[] = [
  ['i32.atomic.rmw.add', 'i32', 4], ['i64.atomic.rmw.xchg', 'i64', 8], ['i32.atomic.rmw8.xor_u', 'i32', 1],
  ['i64.atomic.rmw32.sub_u', 'i64', 4],
]
/** The translator's pieces have 64 KiB or 1024 entries. */
const BYTES = [0, 1, 7, 64, 1000, 0xffff, 0x10000, 0x10001, 0x18000, 0x20000, 0x20001, 0x35000, 0x60000]
const ENTRIES = [0, 1, 2, 3, 9, 1023, 1024, 1025, 2048, 2049, 3000]
const LONG_BYTES = BYTES.slice(6)
const LONG_ENTRIES = ENTRIES.slice(7)

/** Puts an address on the stack, mostly far enough from the end. */
function pushAddress(code: Code, memory: Bounds, mask: number): void {
  const type = addressType(memory)
  if (code.random.chance(97)) {
    code.value(type)
    code.address(type, mask)
    code.stack.pop()
    code.emit(`${type}.and`)
  } else code.value(type)
}

function memoryArgument(code: Code, memory: number, bytes: number, aligned: boolean): number[] {
  const { random, shape } = code
  const max = Math.log2(bytes)
  const alignment = aligned ? max : random.below(max + 1)
  const offset = random.chance(90) ? random.below(32) * bytes : random.chance(80) ? random.below(0x8000) * bytes
    : 0xffff_ffff - random.below(3)
  const named = memory > 0 || shape.padded && random.chance(20)
  return [...code.u32(named ? alignment | 0x40 : alignment), ...(named ? code.u32(memory) : []), ...code.u32(offset)]
}

/** A load, a store, or both in one. */
export function memoryAccess(code: Code): void {
  const { random, shape: { memories, vectors } } = code
  const index = random.below(memories.length)
  const memory = memories[index]!
  const kind = random.weighted([
    [8, 'load'], [8, 'store'], [vectors ? 2 : 0, 'lane'], [memory.shared ? 4 : 1, 'atomic'],
  ] as const)
  if (kind === 'atomic') {
    const [name, type, bytes] = random.pick(ATOMICS)
    pushAddress(code, memory, 0xfff8)
    code.value(type)
    code.emit(name, memoryArgument(code, index, bytes, true))
    return code.apply([addressType(memory), type], [type])
  }
  pushAddress(code, memory, 0x7fff)
  if (kind === 'load') {
    const [name, type, bytes] = random.pick(vectors ? [...LOADS, ...VECTOR_LOADS] : LOADS)
    code.emit(name, memoryArgument(code, index, bytes, false))
    code.apply([addressType(memory)], [type])
  } else if (kind === 'store') {
    const [name, type, bytes] = random.pick(vectors ? [...STORES, ...VECTOR_STORES] : STORES)
    code.value(type)
    code.canonical(type)
    code.emit(name, memoryArgument(code, index, bytes, false))
    code.apply([addressType(memory), type])
  } else {
    const [name, type, bytes] = random.pick(LANES)
    code.value(type)
    code.emit(name, memoryArgument(code, index, bytes, false), [random.below(16 / bytes)])
    code.apply([addressType(memory), type], name.includes('store') ? [] : [type])
  }
}

/** memory.size and memory.grow, by a page or by too many. */
export function memorySize(code: Code): void {
  const { random, shape: { memories } } = code
  const index = random.below(memories.length)
  const type = addressType(memories[index]!)
  if (random.chance(50)) {
    code.emit('memory.size', code.u32(index))
    code.stack.push(type)
    return
  }
  code.spend(4)
  code.address(type, random.pick([0, 1, 1, 2, 65_536]))
  code.emit('memory.grow', code.u32(index))
  code.apply([type], [type])
}

/** memory.fill, memory.copy, memory.init, data.drop. */
export function bulkMemory(code: Code): void {
  const { random, shape: { memories, data, theme } } = code
  code.spend(2)
  const index = random.below(memories.length)
  const memory = memories[index]!
  const type = addressType(memory)
  const kind = random.weighted([[4, 'fill'], [4, 'copy'], [data.length > 0 ? 4 : 0, 'init'],
    [data.length > 0 ? 1 : 0, 'drop']] as const)
  if (kind === 'drop') return code.emit('data.drop', code.u32(random.below(data.length)))
  const size = memory.min * 65_536
  const length = pickLength(random, theme === 'bulk' ? LONG_BYTES : BYTES, size)
  if (kind !== 'copy') pushPlace(code, type, size, length)
  if (kind === 'fill') {
    code.value('i32')
    pushLength(code, type, length, size)
    code.emit('memory.fill', code.u32(index))
    code.apply([type, 'i32', type])
  } else if (kind === 'copy') {
    const other = random.chance(60) ? index : random.below(memories.length)
    const from = addressType(memories[other]!)
    const counted = type === 'i64' ? from : type
    const risky = pushPlaces(code, [type, size], [from, memories[other]!.min * 65_536], length)
    pushLength(code, counted, length, risky ? Infinity : size)
    code.emit('memory.copy', code.u32(index), code.u32(other))
    code.apply([type, from, counted])
  } else {
    const segment = random.below(data.length)
    pushPlace(code, 'i32', data[segment]!, length)
    pushLength(code, 'i32', length, Math.min(size, data[segment]!))
    code.emit('memory.init', code.u32(segment), code.u32(index))
    code.apply([type, 'i32', 'i32'])
  }
}

// Mostly one that fits, so that it is the place that decides whether the instruction traps.
function pickLength(random: Random, lengths: readonly number[], size: number): number {
  const fitting = lengths.filter((length) => length <= size)
  return random.pick(fitting.length > 0 && random.chance(85) ? fitting : lengths)
}

// Where `length` bytes or entries are within `size`, mostly, if there is such a place.
function pushPlace(code: Code, type: 'i32' | 'i64', size: number, length: number): void {
  const { random } = code
  const room = Math.max(0, size - length)
  code.address(type, random.weighted([
    [10, random.below(Math.min(room, 40) + 1)], [6, random.below(room + 1)], [3, room], [1, size], [1, room + 1],
    [1, room + 8], [1, -1], [1, -random.below(100)],
  ] as const))
}

type Space = readonly [type: 'i32' | 'i64', size: number]

// To and from. True if only the last bytes of one of both are out of bounds: nothing may be written before that shows.
function pushPlaces(code: Code, [to, toSize]: Space, [from, fromSize]: Space, length: number): boolean {
  const { random } = code
  const rooms = [toSize - length, fromSize - length] as const
  const risky = rooms[0] >= 0 && rooms[1] >= 0 && random.chance(30)
  if (risky) {
    const source = random.chance(50)
    code.address(to, source ? random.below(rooms[0] + 1) : rooms[0] + 1 + random.below(9))
    code.address(from, source ? rooms[1] + 1 + random.below(9) : rooms[1])
  } else {
    pushPlace(code, to, toSize, length)
    pushPlace(code, from, fromSize, length)
  }
  return risky
}

// A constant, or a number of which the translator doesn't know how large it is.
function pushLength(code: Code, type: 'i32' | 'i64', length: number, size: number): void {
  const { random } = code
  code.address(type, length > size && random.chance(80) ? random.below(size + 1)
    : size === Infinity || random.chance(95) ? length : random.pick([-1, -2, size + 1, -0x8000_0000]))
  if (random.chance(40)) return
  code.address(type, 0)
  code.stack.pop()
  code.emit(`${type}.add`)
}

/** table.get, table.set, table.size, table.grow. */
export function tableAccess(code: Code): void {
  const { random, shape: { tables } } = code
  const index = random.below(tables.length)
  const table = tables[index]!
  const type = addressType(table)
  const kind = random.pick(['get', 'get', 'set', 'set', 'size', 'grow'] as const)
  if (kind === 'size') {
    code.emit('table.size', code.u32(index))
    code.stack.push(type)
    return
  }
  if (kind === 'grow') {
    code.spend(2)
    code.value(table.type)
    code.address(type, random.pick([0, 1, 5, 100, 1500]))
    code.emit('table.grow', code.u32(index))
    return code.apply([table.type, type], [type])
  }
  code.address(type, random.chance(95) ? random.below(table.min) : random.pick([-1, table.min, table.min + 3]))
  if (kind === 'set') code.value(table.type)
  code.emit(`table.${kind}`, code.u32(index))
  if (kind === 'set') code.apply([type, table.type])
  else code.apply([type], [table.type])
}

/** table.fill, table.copy, table.init, elem.drop. */
export function bulkTable(code: Code): void {
  const { random, shape: { tables, elements, theme } } = code
  code.spend(2)
  const index = random.below(tables.length)
  const table = tables[index]!
  const type = addressType(table)
  const fitting = elements.flatMap((one, i) => one.type === table.type ? [i] : [])
  const kind = random.weighted([[4, 'fill'], [4, 'copy'], [fitting.length > 0 ? 4 : 0, 'init'],
    [elements.length > 0 ? 1 : 0, 'drop']] as const)
  if (kind === 'drop') return code.emit('elem.drop', code.u32(random.below(elements.length)))
  const length = pickLength(random, theme === 'bulk' ? LONG_ENTRIES : ENTRIES, table.min)
  if (kind !== 'copy') pushPlace(code, type, table.min, length)
  if (kind === 'fill') {
    code.value(table.type)
    pushLength(code, type, length, table.min)
    code.emit('table.fill', code.u32(index))
    code.apply([type, table.type, type])
  } else if (kind === 'copy') {
    const other = random.pick(tables.flatMap((one, i) => one.type === table.type ? [i] : []))
    const from = addressType(tables[other]!)
    const counted = type === 'i64' ? from : type
    const risky = pushPlaces(code, [type, table.min], [from, tables[other]!.min], length)
    pushLength(code, counted, length, risky ? Infinity : table.min)
    code.emit('table.copy', code.u32(index), code.u32(other))
    code.apply([type, from, counted])
  } else {
    const segment = random.pick(fitting)
    const { count } = elements[segment]!
    pushPlace(code, 'i32', count, length)
    pushLength(code, 'i32', length, Math.min(table.min, count))
    code.emit('table.init', code.u32(segment), code.u32(index))
    code.apply([type, 'i32', 'i32'])
  }
}

/** local.set, local.tee, local.get, global.get, global.set. */
export function variable(code: Code, type: ValueType): void {
  const { random } = code
  const locals = code.localsOf(type)
  const globals = code.globalsOf(type, true)
  if (globals.length > 0 && random.chance(25)) {
    code.need([type])
    code.emit('global.set', leb(random.pick(globals)))
    code.apply([type])
  } else if (locals.length > 0 && random.chance(80)) {
    code.need([type])
    const isTee = random.chance(30)
    code.emit(isTee ? 'local.tee' : 'local.set', code.u32(random.pick(locals)))
    if (!isTee) code.apply([type])
  } else code.value(type)
}
