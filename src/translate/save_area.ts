// translate/save_area.ts: who writes a vCPU's frames while it leaves its stack (control_words.ts says where).
//
// Frames are written by functions that are added to the module, one for each kind of value and number of values up to
// GROUP_MAX, so that a site costs few bytes. A frame too many traps at the end of the memory.

import { leb, sleb } from '../wasm/encode.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import {
  CONTROL_BASE, CONTROL_EXTERNS, CONTROL_FUNCS, CONTROL_ORIGIN, CONTROL_POINTER, CONTROL_STATE, TRAILER_BYTES,
} from './control_words.ts'
import { KEEP_EXTERN, KEEP_FUNC, SIZES, type Keep, type ModuleTypes } from './module_types.ts'

/** Values that one of the functions takes at most. */
export const GROUP_MAX = 16

/** The code of a function to be added: its type, its body with its locals. */
export type AddedCode = { readonly type: readonly number[]; readonly body: ArrayLike<number> }

const TYPES = [0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f]

/** Code that loads a word of the control memory, or stores what `value` computes. */
export function loadWord(control: number, address: number): number[] {
  return [I32_CONST, 0, I32_LOAD, ...memarg(2, control, address)]
}
export function storeWord(control: number, address: number, value: readonly number[]): number[] {
  return [I32_CONST, 0, ...value, I32_STORE, ...memarg(2, control, address)]
}

/** The function that keeps `count` values of a kind: its parameters. `table`: of references. */
export function keepFunction(control: number, keep: Keep, count: number, table: number): AddedCode {
  const type = [0x60, ...leb(count), ...new Array<number>(count).fill(TYPES[keep]!), 0]
  if (keep === KEEP_FUNC || keep === KEEP_EXTERN) {
    return { type, body: keepReferences(control, keep === KEEP_FUNC ? CONTROL_FUNCS : CONTROL_EXTERNS, count, table) }
  }
  const pointer = [LOCAL_GET, ...leb(count)]
  return { type, body: [1, 1, TYPES[0]!, ...loadWord(control, CONTROL_POINTER), LOCAL_SET, ...leb(count),
    ...Array.from({ length: count }, (_, i) =>
      [...pointer, LOCAL_GET, ...leb(i), ...storeOf(control, keep, i * SIZES[keep]!)]).flat(),
    ...storeWord(control, CONTROL_POINTER, [...pointer, I32_CONST, ...sleb(count * SIZES[keep]!), I32_ADD]), END] }
}

// The table grows by what is put behind its end.
function keepReferences(control: number, word: number, count: number, table: number): number[] {
  const at = [LOCAL_GET, ...leb(count)]
  return [1, 1, TYPES[0]!, ...loadWord(control, word), LOCAL_SET, ...leb(count),
    ...Array.from({ length: count }, (_, i) => [
      ...at, BULK, ...TABLE_SIZE, ...leb(table), I32_EQ, IF, VOID,
      LOCAL_GET, ...leb(i), I32_CONST, 1, BULK, ...TABLE_GROW, ...leb(table), I32_CONST, ...sleb(-1), I32_EQ, IF, VOID,
      UNREACHABLE, END,
      ELSE, ...at, LOCAL_GET, ...leb(i), TABLE_SET, ...leb(table), END,
      ...at, I32_CONST, 1, I32_ADD, LOCAL_SET, ...leb(count),
    ]).flat(),
    ...storeWord(control, word, at), END]
}

/** The function that keeps an exception of a tag: its parameters are what it carries. */
export function keepTagFunction(control: number, types: ModuleTypes, tag: number): AddedCode {
  const { params } = types.signature(types.tags[tag]!)
  const pointer = [LOCAL_GET, ...leb(params.length)]
  let offset = 4
  const stores = params.flatMap((type, i) => {
    const at = offset
    offset += SIZES[type]!
    return [...pointer, LOCAL_GET, ...leb(i), ...storeOf(control, type as Keep, at)]
  })
  return { type: [0x60, ...leb(params.length), ...params.map((type) => TYPES[type]!), 0],
    body: [1, 1, TYPES[0]!, ...loadWord(control, CONTROL_POINTER), LOCAL_SET, ...leb(params.length),
      ...pointer, I32_CONST, ...sleb(tag), ...storeOf(control, 0, 0), ...stores,
      ...storeWord(control, CONTROL_POINTER, [...pointer, I32_CONST, ...sleb(types.exceptionBytes!), I32_ADD]), END] }
}

/**
 * The function that keeps an exception: its parameter, which may be null. Tags carry a value at most. `keepTag`: of
 * keepTagFunction.
 */
export function keepExceptionFunction(control: number, types: ModuleTypes, keepTag: (tag: number) => number):
    AddedCode {
  const { tags } = types
  const count = tags.length
  const catches = tags.flatMap((_, i) => [CATCH_CLAUSE, ...leb(i), ...leb(i)])
  // What is null has no tag; block i ends with what an exception of tag i carries.
  const isNull = [LOCAL_GET, 0, REF_IS_NULL, IF, VOID,
    ...loadWord(control, CONTROL_POINTER), I32_CONST, ...sleb(-1), ...storeOf(control, 0, 0),
    ...storeWord(control, CONTROL_POINTER, [...loadWord(control, CONTROL_POINTER), I32_CONST,
      ...sleb(types.exceptionBytes!), I32_ADD]), RETURN, END]
  const blocks = tags.map((type) => {
    const { params } = types.signature(type)
    return [BLOCK, params.length === 0 ? VOID : TYPES[params[0]!]!]
  }).reverse().flat()
  return { type: [0x60, 1, EXNREF, 0], body: [0, ...isNull, ...blocks,
    TRY_TABLE, VOID, ...leb(count), ...catches, LOCAL_GET, 0, THROW_REF, END, UNREACHABLE, END,
    ...tags.flatMap((_, i) => [CALL, ...leb(keepTag(i)), ...(i < count - 1 ? [RETURN, END] : [])]), END] }
}

/** Code that throws the exception that is kept at `offset` from the address in local `base`. */
export function throwKept(control: number, types: ModuleTypes, base: number, offset: number): number[] {
  const { tags } = types
  const at = [LOCAL_GET, ...leb(base)]
  return [
    ...tags.flatMap(() => [BLOCK, VOID]), BLOCK, VOID,
    ...at, ...loadOf(control, 0, offset), BR_TABLE, ...leb(tags.length), ...tags.flatMap((_, i) => leb(i)),
    ...leb(tags.length), END,
    ...tags.flatMap((type, i) => {
      let from = offset + 4
      const loads = types.signature(type).params.flatMap((one) => {
        const load = [...at, ...loadOf(control, one as Keep, from)]
        from += SIZES[one]!
        return load
      })
      return [...loads, THROW, ...leb(i), END]
    }),
    UNREACHABLE,
  ]
}

/** The function that makes an exception again: (address of what was kept) → exnref. */
export function makeExceptionFunction(control: number, types: ModuleTypes): AddedCode {
  return { type: [0x60, 1, 0x7f, 1, EXNREF], body: [0,
    LOCAL_GET, 0, ...loadOf(control, 0, 0), I32_CONST, 0, I32_LT_S, IF, VOID, REF_NULL, EXNREF, RETURN, END,
    BLOCK, EXNREF, TRY_TABLE, VOID, 1, CATCH_ALL_REF_CLAUSE, 0, ...throwKept(control, types, 0, 0), END, UNREACHABLE,
    END,
    END] }
}

/** The function that ends a frame: (function, site) → a value of this numeric type that nobody looks at, if any. */
export function frameFunction(control: number, result?: number): AddedCode {
  const pointer = [LOCAL_GET, 2]
  const results = result === undefined ? [0] : [1, TYPES[result]!]
  return { type: [0x60, 2, 0x7f, 0x7f, ...results], body: [1, 1, 0x7f,
    ...loadWord(control, CONTROL_POINTER), LOCAL_SET, 2,
    ...pointer, LOCAL_GET, 0, I32_STORE, ...memarg(0, control, 0),
    ...pointer, LOCAL_GET, 1, ...loadWord(control, CONTROL_ORIGIN), I32_CONST, 31, I32_SHL, I32_OR,
    I32_STORE, ...memarg(0, control, 4),
    ...pointer, ...pointer, ...loadWord(control, CONTROL_BASE), I32_SUB, I32_STORE, ...memarg(0, control, 8),
    ...storeWord(control, CONTROL_POINTER, [...pointer, I32_CONST, TRAILER_BYTES, I32_ADD]),
    ...storeWord(control, CONTROL_BASE, loadWord(control, CONTROL_POINTER)),
    ...storeWord(control, CONTROL_ORIGIN, [I32_CONST, 0]),
    ...(result === undefined ? [] : DEFAULTS[result]!), END] }
}

/** The function that a check calls: () → 0 if the stack is being left. `yields`: lets others run. */
export function pollFunction(control: number, yields: number): AddedCode {
  const isUnwinding = [...loadWord(control, CONTROL_STATE)]
  return { type: [0x60, 0, 1, 0x7f], body: [0,
    ...isUnwinding, IF, VOID, I32_CONST, 0, RETURN, END,
    CALL, ...leb(yields),
    ...isUnwinding, I32_EQZ, IF, VOID, I32_CONST, 1, RETURN, END,
    ...storeWord(control, CONTROL_ORIGIN, [I32_CONST, 1]),
    I32_CONST, 0, END] }
}

/** Loads a value of a kind at `offset` from the address on the operand stack; or stores it. */
export function loadOf(control: number, keep: Keep, offset: number): number[] {
  return access(control, keep, offset, LOADS)
}
export function storeOf(control: number, keep: Keep, offset: number): number[] {
  return access(control, keep, offset, STORES)
}

function access(control: number, keep: Keep, offset: number, opcodes: readonly (readonly number[])[]): number[] {
  return [...opcodes[keep]!, ...memarg(0, control, offset)]
}

function memarg(align: number, memory: number, offset: number): number[] {
  return [align | OTHER_MEMORY, ...leb(memory), ...leb(offset)]
}

const OTHER_MEMORY = 0x40
const VOID = 0x40
const LOADS = [
  [opcodeOf('i32.load')], [opcodeOf('i64.load')], [opcodeOf('f32.load')], [opcodeOf('f64.load')], [0xfd, 0],
]
const STORES = [
  [opcodeOf('i32.store')], [opcodeOf('i64.store')], [opcodeOf('f32.store')], [opcodeOf('f64.store')], [0xfd, 11],
]
const I32_LOAD = opcodeOf('i32.load')
const I32_STORE = opcodeOf('i32.store')
const I32_CONST = opcodeOf('i32.const')
const I32_ADD = opcodeOf('i32.add')
const I32_OR = opcodeOf('i32.or')
const I32_SUB = opcodeOf('i32.sub')
const I32_SHL = opcodeOf('i32.shl')
const I32_EQ = opcodeOf('i32.eq')
const I32_EQZ = opcodeOf('i32.eqz')
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const TABLE_SET = opcodeOf('table.set')
const BULK = 0xfc
const TABLE_GROW = [0x0f]
const TABLE_SIZE = [0x10]
const UNREACHABLE = opcodeOf('unreachable')
/** A value of each numeric type. */
export const DEFAULTS: readonly (readonly number[])[] = [
  [I32_CONST, 0], [opcodeOf('i64.const'), 0], [opcodeOf('f32.const'), 0, 0, 0, 0],
  [opcodeOf('f64.const'), 0, 0, 0, 0, 0, 0, 0, 0], [0xfd, 12, ...new Array<number>(16).fill(0)],
]
const EXNREF = 0x69
const CATCH_CLAUSE = 0
const CATCH_ALL_REF_CLAUSE = 3
const TRY_TABLE = opcodeOf('try_table')
const THROW = opcodeOf('throw')
const THROW_REF = opcodeOf('throw_ref')
const REF_NULL = opcodeOf('ref.null')
const REF_IS_NULL = opcodeOf('ref.is_null')
const BLOCK = opcodeOf('block')
const BR_TABLE = opcodeOf('br_table')
const I32_LT_S = opcodeOf('i32.lt_s')
const IF = opcodeOf('if')
const ELSE = opcodeOf('else')
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const RETURN = opcodeOf('return')
