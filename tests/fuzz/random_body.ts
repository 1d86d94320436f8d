// tests/fuzz/random_body.ts: the body of a random function, statement by statement.

import { leb } from '../../src/wasm/encode.ts'
import { bulkMemory, bulkTable, memoryAccess, memorySize, tableAccess, variable } from './random_access.ts'
import { Code } from './random_code.ts'
import { anyTypes, block, branch, branchOnNull, call, conditional, leave, loop } from './random_control.ts'
import { handler, raise } from './random_handlers.ts'
import { TRAPPING } from './random_operations.ts'
import { TYPE_CODES, type Shape, type Signature, type ValueType } from './random_shape.ts'
import type { Random } from './random.ts'

const FRAMES_MAX = 12
/** Behind a branch nothing is executed: a few instructions, then the block ends. */
const DEAD_STATEMENTS_MAX = 2
const TYPES: readonly ValueType[] = ['i32', 'i32', 'i32', 'i64', 'f32', 'f64', 'externref', 'funcref']

/** How large a body becomes. `padding` is bytes that do nothing, for what the translator does in large functions. */
export type BodySize = { readonly statements: number; readonly locals: number; readonly padding: number }

/** A body as it stands in the code section, without its length. */
export function randomBody(
  random: Random, shape: Shape, signature: Signature, size: BodySize, leaf: boolean,
): number[] {
  const code = new Code(random, shape, signature, [], leaf)
  while (code.locals.length < signature.params.length + size.locals) code.locals.push(...anyTypes(code, 3))
  const declared = code.locals.length
  code.budget = size.statements
  if (!leaf) code.spend(1)
  if (shape.arrayType !== undefined && random.chance(50)) makeObject(code, shape.arrayType)
  const half = size.padding >> 1
  pad(code, half)
  statements(code, 1 + random.below(Math.max(2, size.statements)))
  pad(code, size.padding - half)
  while (code.budget > 0 && random.chance(70)) statements(code, 4)
  code.settle(signature.results)
  code.emit('end')
  return [...locals(code.locals.slice(signature.params.length), declared), ...code.bytes]
}

// Groups of equal types, or, sometimes, of one local or none each.
function locals(types: readonly ValueType[], declared: number): number[] {
  const groups: [number, ValueType][] = []
  for (const [i, type] of types.entries()) {
    const last = groups.at(-1)
    if (last !== undefined && last[1] === type && (i + declared) % 7 !== 0) last[0]++
    else groups.push([1, type])
  }
  if (declared % 5 === 1) groups.push([0, 'i64'])
  return [...leb(groups.length), ...groups.flatMap(([count, type]) => [...leb(count), TYPE_CODES[type]])]
}

function pad(code: Code, bytes: number): void {
  const until = code.bytes.length + bytes
  while (code.bytes.length < until) {
    code.emit('i64.const', [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00])
    code.emit('drop')
  }
}

function makeObject(code: Code, arrayType: number): void {
  code.i32(3)
  code.emit('array.new_default', leb(arrayType))
  code.emit('array.len')
}

function statements(code: Code, count: number): void {
  let dead = 0
  for (let i = 0; i < count && code.budget > 0; i++) {
    code.budget--
    if (code.frame.unreachable && dead++ >= DEAD_STATEMENTS_MAX) return
    statement(code)
  }
}

function statement(code: Code): void {
  const { random, shape, plain, leaf, frames: { length: depth } } = code
  const nests = depth < FRAMES_MAX ? 1 : 0
  const calls = plain === 0 && !leaf ? 1 : 0
  const memory = shape.memories.length > 0 ? 1 : 0
  const table = shape.tables.length > 0 ? 1 : 0
  const bulk = calls * (shape.theme === 'bulk' ? 4 : 1)
  const handlers = shape.exceptions === 'none' ? 0 : shape.theme === 'handlers' || code.terse > 0 ? 3 : 1
  random.weighted<() => void>([
    [16, () => code.value(random.pick(TYPES))],
    [20, () => variable(code, random.pick(TYPES))],
    [4, () => trapping(code)],
    [3, () => select(code)],
    [3, () => discard(code)],
    [12 * memory, () => memoryAccess(code)],
    [2 * memory * (leaf ? 0 : 1), () => memorySize(code)],
    [5 * memory * bulk, () => bulkMemory(code)],
    [5 * table * (plain === 0 && !leaf ? 1 : 0), () => tableAccess(code)],
    [4 * table * bulk, () => bulkTable(code)],
    [6 * nests, () => block(code, statements)],
    [6 * nests, () => conditional(code, statements)],
    [14 * nests * calls, () => loop(code, statements)],
    [12, () => branch(code)],
    [code.terse > 0 ? 8 : 3, () => branchOnNull(code)],
    [2, () => leave(code)],
    [12 * calls, () => call(code)],
    [8 * nests * calls * handlers, () => handler(code, statements)],
    [3 * handlers, () => raise(code)],
  ])()
}

function trapping(code: Code): void {
  const { random } = code
  const one = random.pick(TRAPPING)
  code.need(one.params)
  if (one.params.length > 1 && random.chance(95)) {
    // Odd, hence not 0.
    code.emit(`${one.result}.const`, [1])
    code.emit(`${one.result}.or`)
  }
  code.operation(one)
}

function select(code: Code): void {
  const type = code.random.pick(TYPES)
  code.need([type, type, 'i32'])
  const isReference = type === 'funcref' || type === 'externref'
  if (isReference || code.random.chance(30)) code.emit('select_t', [1, TYPE_CODES[type]])
  else code.emit('select')
  code.apply([type, type, 'i32'], [type])
}

function discard(code: Code): void {
  const { random, frame, stack } = code
  if (random.chance(30)) return code.emit('nop')
  if (stack.length > frame.height) code.drop()
}
