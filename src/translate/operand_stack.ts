// translate/operand_stack.ts: the operands of a function's code, followed instruction by instruction: what their types
// are, where they were made, and how those can be had that a site must keep (frame_plan.ts).

import type { Tee } from './frame_plan.ts'

/** Operands that were made at once: who needs one of them takes those above from the stack, and puts them back. */
type Group = {
  readonly base: number; readonly types: readonly number[]; tee: { after: number; locals: number[] } | undefined
}

/** The operand stack of one function; one object serves all. */
export class OperandStack {
  /** How many operands there are. */
  height = 0
  /** Locals: those of the function, then those that tees need. */
  locals: number[] = []
  tees: Tee[] = []
  readonly #types: number[] = []
  // The offset behind which it was made; -1: it has its local.
  readonly #made: number[] = []
  readonly #groups: (Group | undefined)[] = []
  // What an operand can be had from again: a local, or -1 - offset of a constant; NOWHERE.
  readonly #again: number[] = []
  // The topmost operand that can be had from a local, by local, and the next one below an operand; NOWHERE.
  readonly #copies: number[] = []
  readonly #copyBelow: number[] = []
  // Operands below this can be had.
  #teed = 0
  #temps = new Map<number, number>()

  /** Begins a function with these locals. */
  begin(locals: readonly number[]): void {
    this.locals = [...locals]
    this.tees = []
    this.height = this.#teed = 0
    this.#copies.length = 0
    this.#temps = new Map()
  }

  /** Which local a place has for a type, by tempKey. */
  get temps(): ReadonlyMap<number, number> { return this.#temps }

  /** The type of the operand that lies `below` the topmost. */
  typeAt(below: number): number {
    return this.#types[this.height - 1 - below]!
  }

  pop(count: number): void {
    this.dropTo(this.height - count)
  }

  dropTo(height: number): void {
    while (this.height > height) {
      const local = this.#again[--this.height]!
      if (local >= 0) this.#copies[local] = this.#copyBelow[this.height]!
    }
    if (this.#teed > height) this.#teed = height
  }

  /** An operand that is made by the instruction that ends at `after`. */
  push(type: number, after: number): void {
    this.#push(type, after, undefined)
  }

  /** As push, of what a constant gives that begins at `at`; or of the value of a local. */
  pushConstant(type: number, after: number, at: number): void {
    this.#push(type, after, undefined)
    this.#again[this.height - 1] = -1 - at
  }
  pushLocal(local: number, after: number): void {
    this.#push(this.locals[local]!, after, undefined)
    this.#again[this.height - 1] = local
    this.#copyBelow[this.height - 1] = this.#copies[local] ?? NOWHERE
    this.#copies[local] = this.height - 1
  }

  pushAll(types: readonly number[], after: number): void {
    if (types.length === 1) this.#push(types[0]!, after, undefined)
    else if (types.length > 1) {
      const group: Group = { base: this.height, types, tee: undefined }
      for (const type of types) this.#push(type, after, group)
    }
  }

  /** Operands that have locals as soon as they are made: which. */
  pushResults(types: readonly number[]): number[] {
    return types.map((type) => {
      const local = this.#local(this.height, type)
      this.#push(type, -1, undefined)
      return local
    })
  }

  #push(type: number, after: number, group: Group | undefined): void {
    const height = this.height++
    this.#types[height] = type
    this.#made[height] = after
    this.#groups[height] = group
    this.#again[height] = NOWHERE
  }

  /** From here on operands that were copies of the local are no more. */
  isSet(local: number): void {
    for (let i = this.#copies[local] ?? NOWHERE; i !== NOWHERE; i = this.#copyBelow[i]!) this.#forget(i)
    this.#copies[local] = NOWHERE
  }

  /** A loop begins: in it, what is set later comes before what is read. */
  forgetCopies(): void {
    for (let i = 0; i < this.height; i++) {
      const local = this.#again[i]!
      if (local < 0) continue
      this.#forget(i)
      this.#copies[local] = NOWHERE
    }
  }

  #forget(i: number): void {
    this.#again[i] = NOWHERE
    if (this.#teed > i) this.#teed = i
  }

  /** Sees to it that each operand can be had: from which local, or -1 - offset of a constant. */
  keepAll(): number[] {
    for (let i = this.#teed; i < this.height; i++) {
      if (this.#made[i]! >= 0 && this.#again[i] === NOWHERE) this.#tee(i)
    }
    this.#teed = this.height
    const operands: number[] = []
    for (let i = 0; i < this.height; i++) {
      const again = this.#again[i]!
      operands.push(again === NOWHERE ? this.#local(i, this.#types[i]!) : again)
    }
    return operands
  }

  #tee(i: number): void {
    const group = this.#groups[i]
    const local = this.#local(i, this.#types[i]!)
    if (group === undefined) {
      this.tees.push({ after: this.#made[i]!, locals: [local] })
      this.#made[i] = -1
      return
    }
    const { base, types } = group
    const known = group.tee?.locals.length ?? 0
    const more = types.slice(i - base, types.length - known).map((type, k) => this.#local(i + k, type))
    if (group.tee !== undefined) group.tee.locals.unshift(...more)
    else this.tees.push(group.tee = { after: this.#made[i]!, locals: more })
  }

  #local(height: number, type: number): number {
    const key = tempKey(height, type)
    let local = this.#temps.get(key)
    if (local === undefined) {
      this.#temps.set(key, local = this.locals.length)
      this.locals.push(type)
    }
    return local
  }
}

const NOWHERE = -0x8000_0000
/** Numbers of types are smaller: V8 allows a million of them. */
const TYPES_MAX = 2 ** 21

/** The place of an operand, and a type that it has there. */
export function tempKey(height: number, type: number): number {
  return height * TYPES_MAX + type
}
