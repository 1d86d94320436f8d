// translate/frame_plan.ts: where a function may be unwound, and what its frame must keep there.
//
// A *site* is a place at which a vCPU may leave its stack to be captured: after a call that may unwind, at a loop's
// beginning, at the function's, and in the middle of long straight code. At a site the frame is all that the rest of
// the function may still use: locals that are live (liveness.ts), and what lies on the operand stack. What lies there
// can't be reached from within the check's block, so that it is kept in a local, too, from where it was made: a *tee*.
//
//   i32.const 5                    i32.const 5
//   (call $f …)            →       local.tee $t            ;; a tee: beneath the arguments of the call
//   i32.add                        (call $f …)
//                                  local.tee $r
//                                  …check, which saves $t and $r and what locals are live
//                                  i32.add
//
// No tee is needed for what can be had again: a constant, or a local that isn't set before the site, in which no loop
// begins. For V8's optimising compiler a tee is nothing but another name. A place on the operand stack has one local
// for each type that it has in the function.
//
// The plan is a function of the guest's code alone: the same for the code that may be captured (capture.ts) and for the
// code that goes on (continuation.ts). Code that can't be reached has no sites.

import type { BodyReader } from '../wasm/body.ts'
import type { ModuleTypes } from './module_types.ts'

/** What a plan must know of the rest of the module. */
export type PlanContext = {
  readonly types: ModuleTypes
  /** True if a call of the function may unwind, by its index. */
  unwinds(index: number): boolean
  /** What takes the place of the bulk instruction on which `reader` stands: a function, by index; -1: it stays. */
  helperOf(reader: BodyReader, shortCount: number): number
}

export const SITE_ENTRY = 0
export const SITE_CALL = 1
export const SITE_LOOP = 2
export const SITE_GAP = 3

/** A site. `after`: the offset in the module behind which its check stands. */
export type Site = {
  readonly kind: typeof SITE_ENTRY | typeof SITE_CALL | typeof SITE_LOOP | typeof SITE_GAP
  readonly at: number; readonly after: number
  /** How many operands lie beneath; of a call without its arguments and results. */
  readonly height: number
  /** Locals that hold the results of the call, and their types. */
  readonly results: readonly number[]; readonly resultTypes: readonly number[]
  /** Locals that hold the operands beneath, from the bottom; -1 - offset: the constant that is made there. */
  readonly operands: readonly number[]
  /** The locals to be kept, by how (Keep), each list ascending. */
  saved: readonly (readonly number[])[]
  /** Bytes of the frame without its trailer. */
  size: number
  /**
   * Handlers around it that throw again what they have caught, by the number of blocks around their tries; it is kept,
   * too, behind all else.
   */
  handlers: readonly number[]
  /** How many blocks are around it, the function's own included. */
  readonly depth: number
  /** The innermost block around it. */
  readonly within: OpenBlock
}

/** A block: where its operands begin on the stack, and the block around it. */
export type OpenBlock = { readonly base: number; readonly outer: OpenBlock | undefined }

/** Behind `after`, the topmost operands are put into these locals, too; the first is of the lowest. */
export type Tee = { readonly after: number; readonly locals: readonly number[] }
/** The instruction in [at, end) is a call of this function, in place of what it is. */
export type Replacement = { readonly at: number; readonly end: number; readonly helper: number }

/** The plan of one function. */
export type FramePlan = {
  readonly sites: readonly Site[]; readonly tees: readonly Tee[]; readonly replacements: readonly Replacement[]
  /** The types of all locals: parameters, declared ones, those that tees need. */
  readonly locals: readonly number[]
  /** Of these: which a place on the operand stack has for a type (operand_stack.ts, `tempKey`). */
  readonly temps: ReadonlyMap<number, number>
  readonly parameters: number; readonly declared: number
  readonly results: readonly number[]
  /** Bytes of the loops around a site, at most: its continuation has them twice (continuation_body.ts). */
  readonly loopBytes: number
}
