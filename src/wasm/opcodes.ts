// wasm/opcodes.ts: every instruction, as one table (spec §5.4, "Instructions"; version 3.0 of the specification).
//
// What V8 14.6 takes without a flag: version 3.0, the older exception handling (try, catch, delegate, rethrow) and the
// atomics of the threads proposal. A test holds us to exactly that. The decoder and the encoder of function bodies
// (body.ts) and their tests are made from these rows.
//
// An instruction's number is its opcode if that is a single byte. A prefixed one has the number that its prefix is
// given in PREFIX_BASE plus its sub-opcode, so that arrays indexed by number are small.

/** What follows an opcode. The comment says how it lies in BodyReader.slots, and how many slots it takes. */
const IMMEDIATES = {
  // Indices: one slot, to be read with `>>> 0`.
  label: 'u32', func: 'u32', type: 'u32', table: 'u32', memory: 'u32', local: 'u32', global: 'u32', tag: 'u32',
  data: 'u32', elem: 'u32', field: 'u32', count: 'u32',
  i32: 's32', // one slot
  i64: 's64', f64: 'bytes8', // two slots, the low half first; a float as its bits
  f32: 'bytes4', // one slot, the bits
  v128: 'bytes16', lanes16: 'bytes16', // four slots; lanes16 are sixteen lane numbers
  lane: 'byte', zero: 'zero', castflags: 'castflags', // one slot
  memarg: 'memarg', // four slots: alignment, memory, offset (low half, high half)
  blocktype: 'blocktype', // two slots: a type's index or its negative code (body.ts), the heap type of a reference
  heaptype: 'heaptype', // one slot: a type's index or a negative code
  // Two slots: the number of entries, and the position of the first.
  types: 'types', labels: 'labels', catches: 'catches', // labels: the default label follows, and is not counted
} as const

export type Immediate = keyof typeof IMMEDIATES

/** How immediates are encoded. The numbers are those of the typed arrays below; 0 is none. */
export const ENCODING = {
  u32: 1, s32: 2, s64: 3, bytes4: 4, bytes8: 5, bytes16: 6, byte: 7, zero: 8, castflags: 9, memarg: 10, blocktype: 11,
  heaptype: 12, types: 13, labels: 14, catches: 15,
} as const satisfies Record<(typeof IMMEDIATES)[Immediate], number>

/** Prefix, first opcode, immediates, names of consecutive opcodes; '-' is a number that isn't used. */
const TABLE: readonly (readonly [prefix: number, first: number, immediates: string, names: string])[] = [
  // Control (§5.4.1) and exceptions, new and old.
  [0, 0x00, '', 'unreachable nop'],
  [0, 0x02, 'blocktype', 'block loop if'],
  [0, 0x05, '', 'else'],
  [0, 0x06, 'blocktype', 'try'],
  [0, 0x07, 'tag', 'catch throw'],
  [0, 0x09, 'label', 'rethrow'],
  [0, 0x0a, '', 'throw_ref end'],
  [0, 0x0c, 'label', 'br br_if'],
  [0, 0x0e, 'labels', 'br_table'],
  [0, 0x0f, '', 'return'],
  [0, 0x10, 'func', 'call'],
  [0, 0x11, 'type table', 'call_indirect'],
  [0, 0x12, 'func', 'return_call'],
  [0, 0x13, 'type table', 'return_call_indirect'],
  [0, 0x14, 'type', 'call_ref return_call_ref'],
  [0, 0x18, 'label', 'delegate'],
  [0, 0x19, '', 'catch_all'],
  // Parametric (§5.4.2), variables (§5.4.3), tables (§5.4.4).
  [0, 0x1a, '', 'drop select'],
  [0, 0x1c, 'types', 'select_t'], // the specification spells it `select` with a type
  [0, 0x1f, 'blocktype catches', 'try_table'],
  [0, 0x20, 'local', 'local.get local.set local.tee'],
  [0, 0x23, 'global', 'global.get global.set'],
  [0, 0x25, 'table', 'table.get table.set'],
  // Memory (§5.4.5).
  [0, 0x28, 'memarg', 'i32.load i64.load f32.load f64.load i32.load8_s i32.load8_u i32.load16_s i32.load16_u'],
  [0, 0x30, 'memarg', 'i64.load8_s i64.load8_u i64.load16_s i64.load16_u i64.load32_s i64.load32_u'],
  [0, 0x36, 'memarg', 'i32.store i64.store f32.store f64.store i32.store8 i32.store16 i64.store8 i64.store16'],
  [0, 0x3e, 'memarg', 'i64.store32'],
  [0, 0x3f, 'memory', 'memory.size memory.grow'],
  // Numbers (§5.4.7).
  [0, 0x41, 'i32', 'i32.const'],
  [0, 0x42, 'i64', 'i64.const'],
  [0, 0x43, 'f32', 'f32.const'],
  [0, 0x44, 'f64', 'f64.const'],
  [0, 0x45, '', 'i32.eqz i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u'],
  [0, 0x50, '', 'i64.eqz i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u'],
  [0, 0x5b, '', 'f32.eq f32.ne f32.lt f32.gt f32.le f32.ge f64.eq f64.ne f64.lt f64.gt f64.le f64.ge'],
  [0, 0x67, '', 'i32.clz i32.ctz i32.popcnt i32.add i32.sub i32.mul i32.div_s i32.div_u i32.rem_s i32.rem_u'],
  [0, 0x71, '', 'i32.and i32.or i32.xor i32.shl i32.shr_s i32.shr_u i32.rotl i32.rotr'],
  [0, 0x79, '', 'i64.clz i64.ctz i64.popcnt i64.add i64.sub i64.mul i64.div_s i64.div_u i64.rem_s i64.rem_u'],
  [0, 0x83, '', 'i64.and i64.or i64.xor i64.shl i64.shr_s i64.shr_u i64.rotl i64.rotr'],
  [0, 0x8b, '', 'f32.abs f32.neg f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt'],
  [0, 0x92, '', 'f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign'],
  [0, 0x99, '', 'f64.abs f64.neg f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt'],
  [0, 0xa0, '', 'f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign'],
  [0, 0xa7, '', 'i32.wrap_i64 i32.trunc_f32_s i32.trunc_f32_u i32.trunc_f64_s i32.trunc_f64_u'],
  [0, 0xac, '', 'i64.extend_i32_s i64.extend_i32_u i64.trunc_f32_s i64.trunc_f32_u i64.trunc_f64_s i64.trunc_f64_u'],
  [0, 0xb2, '', 'f32.convert_i32_s f32.convert_i32_u f32.convert_i64_s f32.convert_i64_u f32.demote_f64'],
  [0, 0xb7, '', 'f64.convert_i32_s f64.convert_i32_u f64.convert_i64_s f64.convert_i64_u f64.promote_f32'],
  [0, 0xbc, '', 'i32.reinterpret_f32 i64.reinterpret_f64 f32.reinterpret_i32 f64.reinterpret_i64'],
  [0, 0xc0, '', 'i32.extend8_s i32.extend16_s i64.extend8_s i64.extend16_s i64.extend32_s'],
  // References (§5.4.6).
  [0, 0xd0, 'heaptype', 'ref.null'],
  [0, 0xd1, '', 'ref.is_null'],
  [0, 0xd2, 'func', 'ref.func'],
  [0, 0xd3, '', 'ref.eq ref.as_non_null'],
  [0, 0xd5, 'label', 'br_on_null br_on_non_null'],
  // Structures, arrays, casts.
  [0xfb, 0x00, 'type', 'struct.new struct.new_default'],
  [0xfb, 0x02, 'type field', 'struct.get struct.get_s struct.get_u struct.set'],
  [0xfb, 0x06, 'type', 'array.new array.new_default'],
  [0xfb, 0x08, 'type count', 'array.new_fixed'],
  [0xfb, 0x09, 'type data', 'array.new_data'],
  [0xfb, 0x0a, 'type elem', 'array.new_elem'],
  [0xfb, 0x0b, 'type', 'array.get array.get_s array.get_u array.set'],
  [0xfb, 0x0f, '', 'array.len'],
  [0xfb, 0x10, 'type', 'array.fill'],
  [0xfb, 0x11, 'type type', 'array.copy'],
  [0xfb, 0x12, 'type data', 'array.init_data'],
  [0xfb, 0x13, 'type elem', 'array.init_elem'],
  [0xfb, 0x14, 'heaptype', 'ref.test ref.test_null ref.cast ref.cast_null'], // the specification: `ref.test null`
  [0xfb, 0x18, 'castflags label heaptype heaptype', 'br_on_cast br_on_cast_fail'],
  [0xfb, 0x1a, '', 'any.convert_extern extern.convert_any ref.i31 i31.get_s i31.get_u'],
  // Saturating truncation, bulk memory and tables.
  [0xfc, 0x00, '', 'i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.trunc_sat_f64_s i32.trunc_sat_f64_u'],
  [0xfc, 0x04, '', 'i64.trunc_sat_f32_s i64.trunc_sat_f32_u i64.trunc_sat_f64_s i64.trunc_sat_f64_u'],
  [0xfc, 0x08, 'data memory', 'memory.init'],
  [0xfc, 0x09, 'data', 'data.drop'],
  [0xfc, 0x0a, 'memory memory', 'memory.copy'],
  [0xfc, 0x0b, 'memory', 'memory.fill'],
  [0xfc, 0x0c, 'elem table', 'table.init'],
  [0xfc, 0x0d, 'elem', 'elem.drop'],
  [0xfc, 0x0e, 'table table', 'table.copy'],
  [0xfc, 0x0f, 'table', 'table.grow table.size table.fill'],
  // Vectors (§5.4.8).
  [0xfd, 0x00, 'memarg', 'v128.load v128.load8x8_s v128.load8x8_u v128.load16x4_s v128.load16x4_u v128.load32x2_s'],
  [0xfd, 0x06, 'memarg', 'v128.load32x2_u v128.load8_splat v128.load16_splat v128.load32_splat v128.load64_splat'],
  [0xfd, 0x0b, 'memarg', 'v128.store'],
  [0xfd, 0x0c, 'v128', 'v128.const'],
  [0xfd, 0x0d, 'lanes16', 'i8x16.shuffle'],
  [0xfd, 0x0e, '', 'i8x16.swizzle i8x16.splat i16x8.splat i32x4.splat i64x2.splat f32x4.splat f64x2.splat'],
  [0xfd, 0x15, 'lane', 'i8x16.extract_lane_s i8x16.extract_lane_u i8x16.replace_lane i16x8.extract_lane_s'],
  [0xfd, 0x19, 'lane', 'i16x8.extract_lane_u i16x8.replace_lane i32x4.extract_lane i32x4.replace_lane'],
  [0xfd, 0x1d, 'lane', 'i64x2.extract_lane i64x2.replace_lane f32x4.extract_lane f32x4.replace_lane'],
  [0xfd, 0x21, 'lane', 'f64x2.extract_lane f64x2.replace_lane'],
  [0xfd, 0x23, '', 'i8x16.eq i8x16.ne i8x16.lt_s i8x16.lt_u i8x16.gt_s i8x16.gt_u'],
  [0xfd, 0x29, '', 'i8x16.le_s i8x16.le_u i8x16.ge_s i8x16.ge_u'],
  [0xfd, 0x2d, '', 'i16x8.eq i16x8.ne i16x8.lt_s i16x8.lt_u i16x8.gt_s i16x8.gt_u'],
  [0xfd, 0x33, '', 'i16x8.le_s i16x8.le_u i16x8.ge_s i16x8.ge_u'],
  [0xfd, 0x37, '', 'i32x4.eq i32x4.ne i32x4.lt_s i32x4.lt_u i32x4.gt_s i32x4.gt_u'],
  [0xfd, 0x3d, '', 'i32x4.le_s i32x4.le_u i32x4.ge_s i32x4.ge_u'],
  [0xfd, 0x41, '', 'f32x4.eq f32x4.ne f32x4.lt f32x4.gt f32x4.le f32x4.ge'],
  [0xfd, 0x47, '', 'f64x2.eq f64x2.ne f64x2.lt f64x2.gt f64x2.le f64x2.ge'],
  [0xfd, 0x4d, '', 'v128.not v128.and v128.andnot v128.or v128.xor v128.bitselect v128.any_true'],
  [0xfd, 0x54, 'memarg lane', 'v128.load8_lane v128.load16_lane v128.load32_lane v128.load64_lane'],
  [0xfd, 0x58, 'memarg lane', 'v128.store8_lane v128.store16_lane v128.store32_lane v128.store64_lane'],
  [0xfd, 0x5c, 'memarg', 'v128.load32_zero v128.load64_zero'],
  [0xfd, 0x5e, '', 'f32x4.demote_f64x2_zero f64x2.promote_low_f32x4'],
  [0xfd, 0x60, '', 'i8x16.abs i8x16.neg i8x16.popcnt i8x16.all_true i8x16.bitmask i8x16.narrow_i16x8_s'],
  [0xfd, 0x66, '', 'i8x16.narrow_i16x8_u f32x4.ceil f32x4.floor f32x4.trunc f32x4.nearest'],
  [0xfd, 0x6b, '', 'i8x16.shl i8x16.shr_s i8x16.shr_u i8x16.add i8x16.add_sat_s i8x16.add_sat_u'],
  [0xfd, 0x71, '', 'i8x16.sub i8x16.sub_sat_s i8x16.sub_sat_u f64x2.ceil f64x2.floor'],
  [0xfd, 0x76, '', 'i8x16.min_s i8x16.min_u i8x16.max_s i8x16.max_u f64x2.trunc i8x16.avgr_u'],
  [0xfd, 0x7c, '', 'i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u'],
  [0xfd, 0x7e, '', 'i32x4.extadd_pairwise_i16x8_s i32x4.extadd_pairwise_i16x8_u'],
  [0xfd, 0x80, '', 'i16x8.abs i16x8.neg i16x8.q15mulr_sat_s i16x8.all_true i16x8.bitmask'],
  [0xfd, 0x85, '', 'i16x8.narrow_i32x4_s i16x8.narrow_i32x4_u i16x8.extend_low_i8x16_s i16x8.extend_high_i8x16_s'],
  [0xfd, 0x89, '', 'i16x8.extend_low_i8x16_u i16x8.extend_high_i8x16_u i16x8.shl i16x8.shr_s i16x8.shr_u'],
  [0xfd, 0x8e, '', 'i16x8.add i16x8.add_sat_s i16x8.add_sat_u i16x8.sub i16x8.sub_sat_s i16x8.sub_sat_u'],
  [0xfd, 0x94, '', 'f64x2.nearest i16x8.mul i16x8.min_s i16x8.min_u i16x8.max_s i16x8.max_u - i16x8.avgr_u'],
  [0xfd, 0x9c, '', 'i16x8.extmul_low_i8x16_s i16x8.extmul_high_i8x16_s'],
  [0xfd, 0x9e, '', 'i16x8.extmul_low_i8x16_u i16x8.extmul_high_i8x16_u'],
  [0xfd, 0xa0, '', 'i32x4.abs i32x4.neg - i32x4.all_true i32x4.bitmask - -'],
  [0xfd, 0xa7, '', 'i32x4.extend_low_i16x8_s i32x4.extend_high_i16x8_s'],
  [0xfd, 0xa9, '', 'i32x4.extend_low_i16x8_u i32x4.extend_high_i16x8_u i32x4.shl i32x4.shr_s i32x4.shr_u i32x4.add'],
  [0xfd, 0xb1, '', 'i32x4.sub - - - i32x4.mul i32x4.min_s i32x4.min_u i32x4.max_s i32x4.max_u i32x4.dot_i16x8_s'],
  [0xfd, 0xbc, '', 'i32x4.extmul_low_i16x8_s i32x4.extmul_high_i16x8_s'],
  [0xfd, 0xbe, '', 'i32x4.extmul_low_i16x8_u i32x4.extmul_high_i16x8_u'],
  [0xfd, 0xc0, '', 'i64x2.abs i64x2.neg - i64x2.all_true i64x2.bitmask - -'],
  [0xfd, 0xc7, '', 'i64x2.extend_low_i32x4_s i64x2.extend_high_i32x4_s'],
  [0xfd, 0xc9, '', 'i64x2.extend_low_i32x4_u i64x2.extend_high_i32x4_u i64x2.shl i64x2.shr_s i64x2.shr_u i64x2.add'],
  [0xfd, 0xd1, '', 'i64x2.sub - - - i64x2.mul i64x2.eq i64x2.ne i64x2.lt_s i64x2.gt_s i64x2.le_s i64x2.ge_s'],
  [0xfd, 0xdc, '', 'i64x2.extmul_low_i32x4_s i64x2.extmul_high_i32x4_s'],
  [0xfd, 0xde, '', 'i64x2.extmul_low_i32x4_u i64x2.extmul_high_i32x4_u'],
  [0xfd, 0xe0, '', 'f32x4.abs f32x4.neg - f32x4.sqrt f32x4.add f32x4.sub f32x4.mul f32x4.div'],
  [0xfd, 0xe8, '', 'f32x4.min f32x4.max f32x4.pmin f32x4.pmax'],
  [0xfd, 0xec, '', 'f64x2.abs f64x2.neg - f64x2.sqrt f64x2.add f64x2.sub f64x2.mul f64x2.div'],
  [0xfd, 0xf4, '', 'f64x2.min f64x2.max f64x2.pmin f64x2.pmax'],
  [0xfd, 0xf8, '', 'i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u f32x4.convert_i32x4_s f32x4.convert_i32x4_u'],
  [0xfd, 0xfc, '', 'i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero'],
  [0xfd, 0xfe, '', 'f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u'],
  // Relaxed vectors.
  [0xfd, 0x100, '', 'i8x16.relaxed_swizzle i32x4.relaxed_trunc_f32x4_s i32x4.relaxed_trunc_f32x4_u'],
  [0xfd, 0x103, '', 'i32x4.relaxed_trunc_f64x2_s_zero i32x4.relaxed_trunc_f64x2_u_zero'],
  [0xfd, 0x105, '', 'f32x4.relaxed_madd f32x4.relaxed_nmadd f64x2.relaxed_madd f64x2.relaxed_nmadd'],
  [0xfd, 0x109, '', 'i8x16.relaxed_laneselect i16x8.relaxed_laneselect'],
  [0xfd, 0x10b, '', 'i32x4.relaxed_laneselect i64x2.relaxed_laneselect'],
  [0xfd, 0x10d, '', 'f32x4.relaxed_min f32x4.relaxed_max f64x2.relaxed_min f64x2.relaxed_max'],
  [0xfd, 0x111, '', 'i16x8.relaxed_q15mulr_s i16x8.relaxed_dot_i8x16_i7x16_s i32x4.relaxed_dot_i8x16_i7x16_add_s'],
  // Atomics (threads proposal). Of each seven: both whole widths, then the narrow ones.
  [0xfe, 0x00, 'memarg', 'memory.atomic.notify memory.atomic.wait32 memory.atomic.wait64'],
  [0xfe, 0x03, 'zero', 'atomic.fence'],
  [0xfe, 0x10, 'memarg', 'i32.atomic.load i64.atomic.load i32.atomic.load8_u i32.atomic.load16_u'],
  [0xfe, 0x14, 'memarg', 'i64.atomic.load8_u i64.atomic.load16_u i64.atomic.load32_u'],
  [0xfe, 0x17, 'memarg', 'i32.atomic.store i64.atomic.store i32.atomic.store8 i32.atomic.store16'],
  [0xfe, 0x1b, 'memarg', 'i64.atomic.store8 i64.atomic.store16 i64.atomic.store32'],
  ...['add', 'sub', 'and', 'or', 'xor', 'xchg', 'cmpxchg'].map((name, i) => [0xfe, 0x1e + 7 * i, 'memarg',
    `i32.atomic.rmw.${name} i64.atomic.rmw.${name} i32.atomic.rmw8.${name}_u i32.atomic.rmw16.${name}_u ` +
    `i64.atomic.rmw8.${name}_u i64.atomic.rmw16.${name}_u i64.atomic.rmw32.${name}_u`] as const),
]

/** Numbers of prefixed instructions begin here; the next prefix's base ends them. */
export const PREFIX_BASE: Readonly<Record<number, number>> = {
  0: 0, 0xfb: 0x100, 0xfc: 0x200, 0xfd: 0x300, 0xfe: 0x500,
}
/** The first byte that is a prefix. 0xff is none, and reads as one without instructions. */
export const PREFIX_FIRST = 0xfb
/** Numbers are smaller than this. */
export const OPCODE_END = 0x600
/** No instruction has more immediates. */
export const IMMEDIATES_MAX = 4

/** An instruction. `prefix` is 0 if its opcode is a single byte, which is then `code`. */
export type Instruction = {
  readonly opcode: number; readonly name: string; readonly prefix: number; readonly code: number
  readonly immediates: readonly Immediate[]
}

/** All instructions, in the order of their numbers. */
export const INSTRUCTIONS: readonly Instruction[] = TABLE.flatMap(([prefix, first, immediates, names]) =>
  names.split(' ').map((name, i) => ({
    opcode: PREFIX_BASE[prefix]! + first + i, name, prefix, code: first + i,
    immediates: immediates.split(' ').filter((one): one is Immediate => one in IMMEDIATES),
  })).filter(({ name }) => name !== '-'))

const BY_NAME = new Map(INSTRUCTIONS.map(({ name, opcode }) => [name, opcode]))
const BY_OPCODE = new Map(INSTRUCTIONS.map((one) => [one.opcode, one]))

/** The number of the instruction of this name. */
export function opcodeOf(name: string): number {
  const opcode = BY_NAME.get(name)
  if (opcode === undefined) throw new RangeError(`No instruction has the name "${name}"`)
  return opcode
}

/** The instruction of this number. */
export function instructionOf(opcode: number): Instruction | undefined {
  return BY_OPCODE.get(opcode)
}

/** Encodings of the immediates of instruction n: IMMEDIATES_MAX entries from n * IMMEDIATES_MAX on, the rest 0. */
export const ENCODINGS = new Uint8Array(OPCODE_END * IMMEDIATES_MAX)
for (const { opcode, immediates } of INSTRUCTIONS) {
  ENCODINGS.set(immediates.map((one) => ENCODING[IMMEDIATES[one]]), opcode * IMMEDIATES_MAX)
}

/** How many slots an encoding takes, by its number, and an instruction at most. */
export const SLOTS = new Uint8Array(16)
SLOTS.fill(1)
for (const two of ['s64', 'bytes8', 'blocktype', 'types', 'labels', 'catches'] as const) SLOTS[ENCODING[two]] = 2
for (const four of ['bytes16', 'memarg'] as const) SLOTS[ENCODING[four]] = 4
export const SLOTS_MAX = 8

/** Bit of an alignment: the memory's index follows. */
export const MEMARG_MEMORY = 0x40
/** Codes of reference types, as signed numbers (§5.3.4): the heap type follows. */
export const REF = -0x1c
export const REF_NULL = -0x1d
/** A block type without parameters and results. */
export const BLOCK_EMPTY = -0x40
