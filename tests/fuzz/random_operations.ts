// tests/fuzz/random_operations.ts: instructions that take values from the stack and put one there, by type.
//
// Left out is what may differ from run to run: relaxed vectors. The bits of a NaN may, too: see Code.operation.

import type { ValueType } from './random_shape.ts'

export type Operation = {
  readonly name: string; readonly params: readonly ValueType[]; readonly result: ValueType
  /** Lanes that its immediate may name; 0: it has none. */
  readonly lanes: number
}

// Parameters > result [/ lanes]: names without the prefix before the colon.
const TABLE: readonly (readonly [signature: string, names: string])[] = [
  ['i32 > i32', 'i32.eqz i32.clz i32.ctz i32.popcnt i32.extend8_s i32.extend16_s'],
  ['i32 i32 > i32', 'i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u i32.add ' +
    'i32.sub i32.mul i32.and i32.or i32.xor i32.shl i32.shr_s i32.shr_u i32.rotl i32.rotr i32.add i32.sub i32.xor'],
  ['i64 > i32', 'i64.eqz i32.wrap_i64'],
  ['i64 i64 > i32', 'i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u'],
  ['f32 f32 > i32', 'f32.eq f32.ne f32.lt f32.gt f32.le f32.ge'],
  ['f64 f64 > i32', 'f64.eq f64.ne f64.lt f64.gt f64.le f64.ge'],
  ['f32 > i32', 'i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.reinterpret_f32'],
  ['f64 > i32', 'i32.trunc_sat_f64_s i32.trunc_sat_f64_u'],
  ['i64 > i64', 'i64.clz i64.ctz i64.popcnt i64.extend8_s i64.extend16_s i64.extend32_s'],
  ['i32 > i64', 'i64.extend_i32_s i64.extend_i32_u'],
  ['i64 i64 > i64', 'i64.add i64.sub i64.mul i64.and i64.or i64.xor i64.shl i64.shr_s i64.shr_u i64.rotl i64.rotr'],
  ['f32 > i64', 'i64.trunc_sat_f32_s i64.trunc_sat_f32_u'],
  ['f64 > i64', 'i64.trunc_sat_f64_s i64.trunc_sat_f64_u i64.reinterpret_f64'],
  ['f32 > f32', 'f32.abs f32.neg f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt'],
  ['f32 f32 > f32', 'f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign'],
  ['i32 > f32', 'f32.convert_i32_s f32.convert_i32_u f32.reinterpret_i32'],
  ['i64 > f32', 'f32.convert_i64_s f32.convert_i64_u'],
  ['f64 > f32', 'f32.demote_f64'],
  ['f64 > f64', 'f64.abs f64.neg f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt'],
  ['f64 f64 > f64', 'f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign'],
  ['i32 > f64', 'f64.convert_i32_s f64.convert_i32_u'],
  ['i64 > f64', 'f64.convert_i64_s f64.convert_i64_u f64.reinterpret_i64'],
  ['f32 > f64', 'f64.promote_f32'],
  ['funcref > i32', 'ref.is_null'],
  ['externref > i32', 'ref.is_null'],
  ['exnref > i32', 'ref.is_null'],
]

const VECTORS: readonly (readonly [signature: string, names: string])[] = [
  ['i32 > v128', 'i8x16.splat i16x8.splat i32x4.splat'],
  ['i64 > v128', 'i64x2.splat'],
  ['f32 > v128', 'f32x4.splat'],
  ['f64 > v128', 'f64x2.splat'],
  ['v128 > i32', 'v128.any_true i8x16.all_true i8x16.bitmask i32x4.all_true i64x2.bitmask'],
  ['v128 > i32 / 16', 'i8x16.extract_lane_s i8x16.extract_lane_u'],
  ['v128 > i32 / 4', 'i32x4.extract_lane'],
  ['v128 > i64 / 2', 'i64x2.extract_lane'],
  ['v128 > f32 / 4', 'f32x4.extract_lane'],
  ['v128 > f64 / 2', 'f64x2.extract_lane'],
  ['v128 i32 > v128 / 8', 'i16x8.replace_lane'],
  ['v128 f64 > v128 / 2', 'f64x2.replace_lane'],
  ['v128 i32 > v128', 'i8x16.shl i16x8.shr_s i32x4.shr_u i64x2.shl'],
  ['v128 > v128', 'v128.not i8x16.abs i8x16.popcnt i16x8.neg i32x4.abs f32x4.sqrt f32x4.ceil f64x2.neg ' +
    'i16x8.extend_low_i8x16_s i32x4.trunc_sat_f32x4_s f64x2.promote_low_f32x4 f32x4.demote_f64x2_zero'],
  ['v128 v128 > v128', 'v128.and v128.andnot v128.or v128.xor i8x16.add i8x16.sub_sat_u i8x16.swizzle i16x8.mul ' +
    'i16x8.q15mulr_sat_s i32x4.add i32x4.dot_i16x8_s i64x2.mul i64x2.eq f32x4.add f32x4.mul f32x4.min f32x4.lt ' +
    'f64x2.div f64x2.max f64x2.ge f64x2.pmin i8x16.narrow_i16x8_s i64x2.extmul_high_i32x4_u'],
  ['v128 v128 v128 > v128', 'v128.bitselect'],
]

function parse([signature, names]: readonly [string, string]): Operation[] {
  const [types, lanes = '0'] = signature.split(' / ')
  const [params, result] = types!.split(' > ') as [string, ValueType]
  return names.split(' ').map((name) => ({
    name, params: params.split(' ') as ValueType[], result, lanes: Number(lanes),
  }))
}

const SCALAR = TABLE.flatMap(parse)
const ALL = [...SCALAR, ...VECTORS.flatMap(parse)]

/** Operations by their result's type. */
export type Operations = Readonly<Partial<Record<ValueType, readonly Operation[]>>>

/** Without vectors, and without the exceptions' references. */
export const SCALAR_OPERATIONS: Operations = Object.groupBy(
  SCALAR.filter(({ params }) => !params.includes('exnref')), ({ result }) => result)
/** With vectors. */
export const VECTOR_OPERATIONS: Operations = Object.groupBy(
  ALL.filter(({ params }) => !params.includes('exnref')), ({ result }) => result)

/** What may trap: rarely used, as nothing comes after a trap. The second operand is mostly made odd. */
export const TRAPPING: readonly Operation[] = ([
  ['i32 i32 > i32', 'i32.div_s i32.div_u i32.rem_s i32.rem_u'],
  ['i64 i64 > i64', 'i64.div_s i64.div_u i64.rem_s i64.rem_u'],
  ['f32 > i32', 'i32.trunc_f32_s i32.trunc_f32_u'],
  ['f64 > i64', 'i64.trunc_f64_s i64.trunc_f64_u'],
] as const).flatMap(parse)
