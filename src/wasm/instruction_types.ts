// wasm/instruction_types.ts: what instructions take from the operand stack and put on it (spec §3.3, "Instructions").
//
// For code that V8 has validated: how many operands are taken, not of what types. Most types follow from an
// instruction's name, as the specification's index of instructions has it; what depends on immediates or on operands
// (locals, calls, blocks, references) isn't here, and is its walker's affair (translate/operands.ts).

import { INSTRUCTIONS, OPCODE_END } from './opcodes.ts'
import { F32, F64, I32, I64, V128 } from './value_types.ts'

/** By opcode: operands taken * 16, plus 1 + the type that is put, or 0; -1: it depends on more than the opcode. */
export const EFFECTS = new Int16Array(OPCODE_END).fill(-1)

const TYPES: Readonly<Record<string, number>> = { i32: I32, i64: I64, f32: F32, f64: F64, v128: V128 }
const COMPARISON = /^(eq|ne|[lg][te](_[su])?)$/
const UNARY = /^(clz|ctz|popcnt|abs|neg|ceil|floor|trunc|nearest|sqrt|extend\d+_s)$/
const CONVERSION = /^(wrap|trunc|trunc_sat|extend|convert|demote|promote|reinterpret)_/
const LANES: Readonly<Record<string, number>> = {
  i8x16: I32, i16x8: I32, i32x4: I32, i64x2: I64, f32x4: F32, f64x2: F64,
}
const VECTOR_UNARY = new RegExp('^(not|abs|neg|popcnt|sqrt|ceil|floor|trunc|nearest|splat|extend_|convert_|' +
  'trunc_sat_|relaxed_trunc_|promote_|demote_|extadd_)')
const VECTOR_TERNARY = /^(bitselect|relaxed_madd|relaxed_nmadd|relaxed_laneselect|relaxed_dot_i8x16_i7x16_add_s)$/

function effect(takes: number, puts?: number): number {
  return takes * 16 + (puts === undefined ? 0 : puts + 1)
}

function effectOf(name: string): number | undefined {
  // Names are the specification's, not a guest's.
  const fixed = FIXED[name]
  if (fixed !== undefined) return fixed
  const [prefix = '', operation = ''] = name.split(/\.(.*)/s)
  if (name.includes('atomic.')) return atomicEffect(prefix, operation)
  const type = TYPES[prefix]
  if (prefix === 'v128' || LANES[prefix] !== undefined) return vectorEffect(prefix, operation)
  return type === undefined ? undefined : numericEffect(type, operation)
}

function numericEffect(type: number, operation: string): number {
  if (operation === 'const') return effect(0, type)
  if (operation.startsWith('load')) return effect(1, type)
  if (operation.startsWith('store')) return effect(2)
  if (operation === 'eqz') return effect(1, I32)
  if (COMPARISON.test(operation)) return effect(2, I32)
  return effect(UNARY.test(operation) || CONVERSION.test(operation) ? 1 : 2, type)
}

function vectorEffect(shape: string, operation: string): number {
  if (operation === 'const') return effect(0, V128)
  if (/^load\d+_lane$/.test(operation)) return effect(2, V128)
  if (operation.startsWith('load')) return effect(1, V128)
  if (operation.startsWith('store')) return effect(2)
  if (operation.startsWith('extract_lane')) return effect(1, LANES[shape])
  if (operation === 'any_true' || operation === 'all_true' || operation === 'bitmask') return effect(1, I32)
  if (VECTOR_TERNARY.test(operation)) return effect(3, V128)
  return effect(VECTOR_UNARY.test(operation) ? 1 : 2, V128)
}

function atomicEffect(prefix: string, operation: string): number {
  if (prefix === 'atomic') return effect(0) // fence
  if (prefix === 'memory') return effect(operation.endsWith('notify') ? 2 : 3, I32)
  const type = TYPES[prefix]!
  if (operation.includes('.load')) return effect(1, type)
  if (operation.includes('.store')) return effect(2)
  return effect(operation.includes('cmpxchg') ? 3 : 2, type)
}

/** `memory.size` and its like, of memories and tables that are addressed by i64, put another type: the walker's. */
const FIXED: Readonly<Record<string, number>> = {
  nop: effect(0), drop: effect(1), 'i8x16.shuffle': effect(2, V128),
  'ref.is_null': effect(1, I32), 'ref.eq': effect(2, I32), 'table.set': effect(2),
  'memory.init': effect(3), 'memory.copy': effect(3), 'memory.fill': effect(3), 'data.drop': effect(0),
  'table.init': effect(3), 'table.copy': effect(3), 'table.fill': effect(3), 'elem.drop': effect(0),
}

for (const { opcode, name } of INSTRUCTIONS) {
  const effect = effectOf(name)
  if (effect !== undefined) EFFECTS[opcode] = effect
}
