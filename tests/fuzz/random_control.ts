// tests/fuzz/random_control.ts: statements that say what is executed next: blocks, branches, calls, exceptions.
//
// Every loop ends, since its head counts a global down and leaves when that is used up; so does every function at its
// entry. What the fuzzer is after is small loops in all positions: the translator makes two of one, and labels that
// lead out of it have to be renumbered.

import { leb, sleb } from '../../src/wasm/encode.ts'
import type { Code, Frame } from './random_code.ts'
import { TYPE_CODES, type ValueType } from './random_shape.ts'

/** What a statement may contain: given from outside, as a block holds all kinds of statements. */
export type Statements = (code: Code, count: number) => void

const TYPES_MAX = 3
/** The heap type of functions. */
const FUNC_HEAP = [0x70]

/** Any types that values can have in this module. */
export function anyTypes(code: Code, max: number): ValueType[] {
  const { random, shape } = code
  return Array.from({ length: random.below(max + 1) }, () => random.weighted<ValueType>([
    [10, 'i32'], [5, 'i64'], [3, 'f32'], [3, 'f64'], [2, 'funcref'], [2, 'externref'], [shape.vectors ? 3 : 0, 'v128'],
    [shape.exceptions === 'new' ? 1 : 0, 'exnref'],
  ]))
}

/** The parameters of a block: some of what is on the stack. */
export function someOperands(code: Code): ValueType[] {
  const { stack, frame, random } = code
  return stack.slice(stack.length - random.below(Math.min(stack.length - frame.height, TYPES_MAX) + 1))
}

function blockType({ random, shape }: Code, params: readonly ValueType[], results: readonly ValueType[]): number[] {
  if (params.length === 0 && results.length === 0 && random.chance(80)) return [0x40]
  if (params.length === 0 && results.length === 1 && random.chance(80)) return [TYPE_CODES[results[0]!]]
  // The index is a signed number (§5.4.1).
  return sleb(shape.types.index({ params, results }))
}

/** Opens a block; its parameters are on the stack. */
export function begin(
  code: Code, kind: Frame['kind'], name: string, params: readonly ValueType[], results: readonly ValueType[],
  immediate: readonly number[] = [],
): void {
  code.emit(name, blockType(code, params, results), [...immediate])
  code.frames.push({
    kind, results, label: kind === 'loop' ? params : results, height: code.stack.length - params.length,
    unreachable: false,
  })
}

/** Goes on in the block with other operands: behind `else` and `catch`. */
export function restart(code: Code, name: string, operands: readonly ValueType[], immediate: number[] = []): void {
  code.settle(code.frame.results)
  code.emit(name, immediate)
  code.stack.length = code.frame.height
  code.stack.push(...operands)
  code.frame.unreachable = false
}

export function end(code: Code, name = 'end', immediate: number[] = []): void {
  const { results, height } = code.frame
  code.settle(results)
  code.emit(name, immediate)
  code.frames.pop()
  code.stack.length = height
  code.stack.push(...results)
}

/** Behind an instruction after which nothing is executed. */
export function unreachable(code: Code): void {
  code.stack.length = code.frame.height
  code.frame.unreachable = true
}

export function count(code: Code): number {
  return code.random.between(0, code.terse > 0 ? 1 : 6)
}

/** A block, an if or a loop. */
export function block(code: Code, statements: Statements): void {
  const params = someOperands(code)
  const results = code.random.chance(50) ? [] : code.random.chance(30) ? params : anyTypes(code, TYPES_MAX)
  code.need(params)
  begin(code, 'block', 'block', params, results)
  statements(code, count(code))
  end(code)
}

export function conditional(code: Code, statements: Statements): void {
  code.need(['i32'])
  // The condition lies above the parameters.
  code.stack.pop()
  const params = someOperands(code)
  const results = code.random.chance(50) ? params : anyTypes(code, TYPES_MAX)
  begin(code, 'if', 'if', params, results)
  statements(code, count(code))
  const same = params.length === results.length && params.every((type, i) => type === results[i])
  if (!same || code.random.chance(60)) {
    restart(code, 'else', params)
    statements(code, count(code))
  }
  end(code)
}

export function loop(code: Code, statements: Statements): void {
  const { random, shape } = code
  const params = someOperands(code)
  const results = random.chance(50) ? [] : random.chance(40) ? params : anyTypes(code, TYPES_MAX)
  code.need(params)
  begin(code, 'loop', 'loop', params, results)
  const small = random.chance(50)
  if (small) code.plain++
  // Some small ones hold what those that are unrolled mustn't.
  const terse = random.chance(small || shape.theme === 'handlers' ? 60 : 20)
  if (terse) code.terse++
  // Parameters may stay where they are, below the count.
  code.countDown(shape.rounds, 1)
  leaveLoop(code)
  statements(code, terse ? random.between(1, 2) : small ? random.between(0, 5) : count(code))
  if (random.chance(85) && !code.frame.unreachable) {
    // The way back, mostly taken.
    code.need(params)
    if (random.chance(60)) code.i32(1)
    else code.value('i32')
    code.emit('br_if', code.u32(0))
    code.apply(['i32'])
  }
  if (small) code.plain--
  if (terse) code.terse--
  end(code)
}

// Rounds are used up: to any label outside, in any way.
function leaveLoop(code: Code): void {
  const { random, frames } = code
  const label = random.between(1, frames.length - 1)
  const { label: types } = code.target(label)
  const own = code.stack.slice(code.frame.height, -1)
  const fits = types.length <= own.length && types.every((type, i) => type === own[own.length - types.length + i])
  if (!fits || random.chance(30)) return code.leaveIf(label)
  if (random.chance(60)) {
    code.emit('br_if', code.u32(label))
    code.apply(['i32'])
    return
  }
  // In a block of its own, by a table of the block's label and the other one.
  code.stack.pop()
  const flag = code.u32(code.scratch('i32'))
  code.emit('local.set', flag)
  code.emit('block', blockType(code, types, types))
  code.emit('local.get', flag)
  code.emit('br_table', leb(1), code.u32(0), code.u32(label + 1))
  code.emit('end')
}

/** br, br_if and br_table. */
export function branch(code: Code): void {
  const { random, frames } = code
  const label = random.chance(70) ? random.below(Math.min(frames.length, 4)) : random.below(frames.length)
  const { label: types } = code.target(label)
  const kind = random.weighted([[6, 'br_if'], [2, 'br'], [3, 'br_table']] as const)
  if (kind === 'br') {
    code.need(types)
    code.emit('br', code.u32(label))
    return unreachable(code)
  }
  code.need([...types, 'i32'])
  if (kind === 'br_if') {
    code.emit('br_if', code.u32(label))
    return code.apply(['i32'])
  }
  const same = frames.flatMap(({ label: one }, i) => one.join() === types.join() ? [frames.length - 1 - i] : [])
  const length = random.chance(2) ? random.below(5000) : random.below(6)
  const labels = Array.from({ length }, () => random.pick(same))
  code.i32(labels.length < 2 ? 3 : 7)
  code.stack.pop()
  code.emit('i32.and')
  code.emit('br_table', code.u32(labels.length), labels.flatMap((one) => code.u32(one)), code.u32(label))
  unreachable(code)
}

/** Branches that depend on a reference. */
export function branchOnNull(code: Code): void {
  const { random, frames } = code
  const type = random.pick(['funcref', 'externref'] as const)
  const fitting = frames.flatMap(({ label: one }, i) => one.at(-1) === type ? [frames.length - 1 - i] : [])
  const label = fitting.length > 0 && random.chance(60) ? random.pick(fitting) : random.below(frames.length)
  const types = code.target(label).label
  if (types.at(-1) === 'funcref' && random.chance(40)) {
    // From any function to one type of them; both ways on, the reference is taken for any function again.
    code.need(types)
    const cast = sleb(random.pick(code.shape.functions))
    code.emit(random.pick(['br_on_cast', 'br_on_cast_fail']), [random.pick([1, 3])], code.u32(label), FUNC_HEAP, cast)
  } else if (types.at(-1) === type) {
    code.need(types)
    code.emit('br_on_non_null', code.u32(label))
    code.stack.pop()
  } else {
    code.need([...types, type])
    code.emit('br_on_null', code.u32(label))
    // What is left isn't null, a type that no other instruction here knows.
    code.drop()
  }
}

export function leave(code: Code): void {
  if (code.random.chance(10)) code.emit('unreachable')
  else {
    code.need(code.signature.results)
    code.emit('return')
  }
  unreachable(code)
}

/** A call of any kind. */
export function call(code: Code): void {
  const { random, shape: { functions, types, tables } } = code
  const f = random.below(functions.length)
  const type = functions[f]!
  const { params, results } = types.at(type)
  const isTail = results.join() === code.signature.results.join() && random.chance(30)
  const table = tables.findIndex((one) => one.type === 'funcref')
  const kind = random.weighted([[6, 'call'], [table >= 0 ? 4 : 0, 'call_indirect'], [2, 'call_ref']] as const)
  const name = isTail ? `return_${kind}` : kind
  code.need(params)
  if (kind === 'call') code.emit(name, code.u32(f))
  else if (kind === 'call_ref') {
    if (random.chance(95)) code.emit('ref.func', code.u32(f))
    else code.emit('ref.null', sleb(type))
    code.emit(name, code.u32(type))
  } else {
    const { index64, min } = tables[table]!
    // Tables begin with the functions in their order.
    code.address(index64 ? 'i64' : 'i32', random.chance(90) && f < min ? f : random.below(min + 2))
    code.emit(name, code.u32(type), code.u32(table))
    code.stack.pop()
  }
  if (isTail) unreachable(code)
  else code.apply(params, results)
}
