// tests/fuzz/random_code.ts: a function body as it grows, with the types on the operand stack.
//
// Whatever is written keeps the body valid: an instruction's operands are taken from the stack where they fit, and the
// missing ones are pushed first. Behind a branch the stack is polymorphic (spec §3.4.7): missing operands may then be
// left out.

import { leb, sleb } from '../../src/wasm/encode.ts'
import type { Random } from './random.ts'
import { SCALAR_OPERATIONS, VECTOR_OPERATIONS, type Operation, type Operations } from './random_operations.ts'
import { opcodeBytes, TYPE_CODES, type Shape, type Signature, type ValueType } from './random_shape.ts'

/** A block that is open. */
export type Frame = {
  /** 'caught' is a `try` in one of its handlers, which `rethrow` may name. */
  kind: 'function' | 'block' | 'loop' | 'if' | 'try' | 'caught'
  /** What a branch to it takes. */
  readonly label: readonly ValueType[]
  readonly results: readonly ValueType[]
  /** Where its own operands begin. */
  readonly height: number
  unreachable: boolean
}

/** Integers that are at the edge of something. */
const EDGES = [0, 1, -1, 2, 7, 8, 63, 64, 100, 127, 128, 255, 0x1000, 0x7fff, 0xffff, 0x10000, 0x7fff_ffff,
  -0x8000_0000, -2]
/** The quiet NaN that every other one becomes before its bits can be seen. */
const F32_NAN = [0, 0, 0xc0, 0x7f]
const F64_NAN = [0, 0, 0, 0, 0, 0, 0xf8, 0x7f]
/** The last operand of these shows its bits. */
const SHOWS_BITS = /reinterpret_f|copysign|^f\d+x\d\.(splat|replace_lane)$|^f\d+\.store/
/** Values are made of at most so many operations. */
const VALUE_DEPTH_MAX = 3

/** The body of one function. */
export class Code {
  readonly bytes: number[] = []
  readonly stack: ValueType[] = []
  readonly frames: Frame[]
  /** Parameters first. */
  readonly locals: ValueType[]
  readonly random: Random
  readonly shape: Shape
  readonly signature: Signature
  /** How many statements may still be written. */
  budget: number
  /** Above 0: no calls, loops and handlers, so that the loop around is small. */
  plain = 0
  /** Above 0: short statements, so that the loop around stays small whatever it holds. */
  terse = 0
  /** It is called without a count: it may neither call nor loop. */
  readonly leaf: boolean
  readonly #operations: Operations
  readonly #scratch = new Map<ValueType, number>()

  constructor(random: Random, shape: Shape, signature: Signature, locals: readonly ValueType[], leaf: boolean) {
    this.random = random
    this.shape = shape
    this.signature = signature
    this.locals = [...signature.params, ...locals]
    this.leaf = leaf
    this.budget = 0
    this.#operations = shape.vectors ? VECTOR_OPERATIONS : SCALAR_OPERATIONS
    this.frames = [{
      kind: 'function', label: signature.results, results: signature.results, height: 0, unreachable: false,
    }]
  }

  get frame(): Frame {
    return this.frames.at(-1)!
  }

  /** The frame that label `label` names. */
  target(label: number): Frame {
    return this.frames[this.frames.length - 1 - label]!
  }

  // ---- bytes

  emit(name: string, ...immediates: readonly number[][]): void {
    this.bytes.push(...opcodeBytes(name))
    for (const immediate of immediates) this.bytes.push(...immediate)
  }

  /** An index, sometimes longer than it must be. */
  u32(value: number): number[] {
    const bytes = leb(value)
    if (!this.shape.padded || !this.random.chance(30)) return bytes
    while (bytes.length < 5 && this.random.chance(70)) {
      bytes[bytes.length - 1]! |= 0x80
      bytes.push(0)
    }
    return bytes
  }

  s32(value: number): number[] {
    const bytes = sleb(value)
    if (!this.shape.padded || !this.random.chance(30) || bytes.length >= 5) return bytes
    bytes[bytes.length - 1]! |= 0x80
    bytes.push(value < 0 ? 0x7f : 0)
    return bytes
  }

  i32(value: number): void {
    this.emit('i32.const', this.s32(value | 0))
    this.stack.push('i32')
  }

  /** A constant address or length. */
  address(type: 'i32' | 'i64', value: number): void {
    if (type === 'i32') this.i32(value)
    else {
      this.emit('i64.const', sleb(value))
      this.stack.push('i64')
    }
  }

  // ---- operands

  /** Makes `types` the top of the stack. */
  need(types: readonly ValueType[]): void {
    const { stack, frame, random } = this
    const own = stack.length - frame.height
    for (let have = Math.min(own, types.length); have >= 0; have--) {
      // Of the operands some are there; behind a branch those below them are, too.
      if (have === own && frame.unreachable && random.chance(60)) {
        const from = random.below(types.length - have + 1)
        if (this.#topIs(types, from, have)) {
          stack.splice(stack.length - have, have, ...types.slice(0, from + have))
          return this.#push(types, from + have)
        }
      }
      if (this.#topIs(types, 0, have)) return this.#push(types, have)
    }
  }

  /** Takes `types`, which are the top of the stack, and puts `results` there. */
  apply(types: readonly ValueType[], results: readonly ValueType[] = []): void {
    this.stack.length -= types.length
    this.stack.push(...results)
  }

  /** Makes the block's own operands exactly `types`. */
  settle(types: readonly ValueType[]): void {
    const { stack, frame } = this
    const keep = (): number => {
      let same = 0
      while (same < types.length && stack[frame.height + same] === types[same]) same++
      return same
    }
    while (stack.length - frame.height > keep()) this.drop()
    if (frame.unreachable && stack.length === frame.height) this.need(types)
    else this.#push(types, stack.length - frame.height)
  }

  drop(): void {
    this.emit('drop')
    this.stack.pop()
  }

  #topIs(types: readonly ValueType[], from: number, count: number): boolean {
    const at = this.stack.length - count
    for (let i = 0; i < count; i++) if (this.stack[at + i] !== types[from + i]) return false
    return true
  }

  #push(types: readonly ValueType[], from: number): void {
    for (const type of types.slice(from)) this.value(type)
  }

  // ---- values

  /** Pushes a value of `type`. */
  value(type: ValueType, depth = VALUE_DEPTH_MAX): void {
    const { random } = this
    const operations = this.#operations[type]
    if (depth > 0 && this.terse === 0 && operations !== undefined && random.chance(40)) {
      const one = random.pick(operations)
      for (const param of one.params) this.value(param, depth - 1)
      this.operation(one)
    } else if (!random.chance(60) || !this.#variable(type)) this.constant(type)
  }

  /** An operation whose operands are on the stack. */
  operation({ name, params, result, lanes }: Operation): void {
    if (SHOWS_BITS.test(name)) this.canonical(params.at(-1)!)
    this.emit(name, ...(lanes > 0 ? [[this.random.below(lanes)]] : []))
    this.apply(params, [result])
    // Vectors have no other place where NaNs can be told from other bits.
    if (result === 'v128' && /^f\d+x/.test(name)) this.#canonicalLanes(name.startsWith('f32'))
  }

  /** A NaN on top of the stack gets the bits that all NaNs get. */
  canonical(type: ValueType): void {
    if (type !== 'f32' && type !== 'f64') return
    const local = this.u32(this.scratch(type))
    this.emit('local.tee', local)
    this.emit(`${type}.const`, type === 'f32' ? F32_NAN : F64_NAN)
    this.emit('local.get', local)
    this.emit('local.get', local)
    this.emit(`${type}.eq`)
    this.emit('select')
  }

  #canonicalLanes(single: boolean): void {
    const local = this.u32(this.scratch('v128'))
    this.emit('local.tee', local)
    this.emit('v128.const', single ? [...F32_NAN, ...F32_NAN, ...F32_NAN, ...F32_NAN] : [...F64_NAN, ...F64_NAN])
    this.emit('local.get', local)
    this.emit('local.get', local)
    this.emit(single ? 'f32x4.eq' : 'f64x2.eq')
    this.emit('v128.bitselect')
  }

  /** A local that nothing else uses. */
  scratch(type: ValueType): number {
    let local = this.#scratch.get(type)
    if (local === undefined) {
      local = this.locals.push(type) - 1
      this.#scratch.set(type, local)
    }
    return local
  }

  /** The locals of this type that statements may use. */
  localsOf(type: ValueType): number[] {
    const scratch = this.#scratch.get(type)
    return this.locals.flatMap((one, i) => one === type && i !== scratch ? [i] : [])
  }

  globalsOf(type: ValueType, mutable: boolean): number[] {
    const { globals, rounds, counted } = this.shape
    return globals.flatMap((one, i) => one.type === type && (one.mutable || !mutable) && (i < rounds || i > counted)
      ? [i] : [])
  }

  #variable(type: ValueType): boolean {
    const locals = this.localsOf(type)
    const globals = this.globalsOf(type, false)
    if (locals.length > 0 && (globals.length === 0 || this.random.chance(80))) {
      this.emit('local.get', this.u32(this.random.pick(locals)))
    } else if (globals.length > 0) this.emit('global.get', this.u32(this.random.pick(globals)))
    else return false
    this.stack.push(type)
    return true
  }

  constant(type: ValueType): void {
    const { random } = this
    switch (type) {
      case 'i32': return this.i32(random.chance(80) ? random.pick(EDGES) : random.bits())
      case 'i64': this.emit('i64.const', sleb(random.chance(70) ? random.pick(EDGES)
        : BigInt.asIntN(64, BigInt(random.bits()) << 32n | BigInt(random.bits())))); break
      case 'f32': this.emit('f32.const', [...new Uint8Array(new Float32Array([this.#float()]).buffer)]); break
      case 'f64': this.emit('f64.const', [...new Uint8Array(new Float64Array([this.#float()]).buffer)]); break
      case 'v128': this.emit('v128.const', Array.from({ length: 16 }, () => random.bits() & 0xff)); break
      case 'funcref':
        if (this.shape.functions.length > 0 && random.chance(80)) {
          this.emit('ref.func', this.u32(random.below(this.shape.functions.length)))
        } else this.emit('ref.null', [TYPE_CODES.funcref])
        break
      default: this.emit('ref.null', [TYPE_CODES[type]])
    }
    this.stack.push(type)
  }

  #float(): number {
    const { random } = this
    return random.chance(70) ? random.pick([0, -0, 1, -1, 0.5, 1e10, -3.75, Infinity, -Infinity, 2 ** 31, 1e-40])
      : random.bits() / 1000
  }

  // ---- bounds on what is executed

  /** Counts `global` down by `by`; an i32 is left on the stack that is 1 when it is used up. */
  countDown(global: number, by: number): void {
    const index = leb(global)
    this.emit('global.get', index)
    this.emit('i32.const', sleb(by))
    this.emit('i32.sub')
    this.emit('global.set', index)
    this.emit('global.get', index)
    this.emit('i32.const', [0])
    this.emit('i32.lt_s')
    this.stack.push('i32')
  }

  /** Returns from the function with any values if the count of calls is used up. */
  spend(by: number): void {
    this.countDown(this.shape.calls, by)
    this.leaveIf(this.frames.length - 1)
  }

  /** An `if` on the i32 on top of the stack that branches to `label` (outside of the `if`), with constants. */
  leaveIf(label: number): void {
    const { label: types, kind } = this.target(label)
    this.stack.pop()
    this.emit('if', [0x40])
    for (const type of types) this.constant(type)
    if (kind === 'function' && this.random.chance(50)) this.emit('return')
    else this.emit('br', this.u32(label + 1))
    this.emit('end')
    this.stack.length -= types.length
  }
}
