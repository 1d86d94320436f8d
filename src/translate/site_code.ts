// translate/site_code.ts: what is put at a site: the check, and behind an unlikely branch what leaves the stack.
//
//   i32.const 0  i32.load $control
//   if                                   ;; unlikely
//     call $poll  br_if 0                ;; lets others run; 0: the stack is being left
//     (call $keep_i32_2 (local.get 0) (local.get 4)) …
//     (call $frame (function) (site))
//     return                             ;; with results that nobody looks at
//   end

import type { BodyWriter } from '../wasm/body_writer.ts'
import { opcodeOf } from '../wasm/opcodes.ts'
import { REFERENCE } from '../wasm/value_types.ts'
import type { FramePlan, Site, Tee } from './frame_plan.ts'
import { KEEP_EXCEPTION, type Keep, type ModuleTypes } from './module_types.ts'
import { DEFAULTS, GROUP_MAX } from './save_area.ts'
import { Uncapturable } from './uncapturable.ts'

/** Indices in the module that the code is for. */
export type SiteParts = {
  readonly types: ModuleTypes
  readonly control: number; readonly poll: number
  /** The function that ends a frame, and gives a result of this type. */
  frame(result: number | undefined): number
  /** The function that keeps `count` values. */
  keep(keep: Keep, count: number): number
  /** The function that keeps an exception; and what one of a tag carries. */
  keepException(): number
  keepTag(tag: number): number
}

/** Writes tees. */
export function writeTee(out: BodyWriter, { locals }: Pick<Tee, 'locals'>): void {
  for (let i = locals.length - 1; i > 0; i--) instruction(out, LOCAL_SET, locals[i]!)
  instruction(out, LOCAL_TEE, locals[0]!)
  for (let i = 1; i < locals.length; i++) instruction(out, LOCAL_GET, locals[i]!)
}

/** Writes the check of site `number` of function `index`; `hint` is called before an unlikely branch. */
export function writeCheck(
  out: BodyWriter, parts: SiteParts, plan: FramePlan, index: number, number: number, hint: () => void,
): void {
  const site = plan.sites[number]!
  out.byte(I32_CONST)
  out.byte(0)
  out.byte(I32_LOAD)
  out.byte(ALIGN_4 | OTHER_MEMORY)
  out.u32(parts.control)
  out.byte(0)
  hint()
  out.byte(IF)
  out.byte(VOID)
  instruction(out, CALL, parts.poll)
  instruction(out, BR_IF, 0)
  writeKeeps(out, parts, site)
  constant(out, index)
  constant(out, number)
  const [only] = plan.results
  const isSimple = plan.results.length === 1 && only! < REFERENCE
  instruction(out, CALL, parts.frame(isSimple ? only : undefined))
  if (!isSimple) for (const type of plan.results) writeDefault(out, parts.types, index, type)
  out.byte(RETURN)
  out.byte(END)
}

function writeKeeps(out: BodyWriter, parts: SiteParts, { saved, handlers, depth }: Site): void {
  for (let keep = 0; keep < saved.length; keep++) {
    const locals = saved[keep]!
    for (let i = 0; i < locals.length; i += keep === KEEP_EXCEPTION ? 1 : GROUP_MAX) {
      const end = Math.min(locals.length, keep === KEEP_EXCEPTION ? i + 1 : i + GROUP_MAX)
      for (let k = i; k < end; k++) instruction(out, LOCAL_GET, locals[k]!)
      instruction(out, CALL, keep === KEEP_EXCEPTION ? parts.keepException() : parts.keep(keep as Keep, end - i))
    }
  }
  // Within the check's block, and one more.
  for (const level of handlers) {
    out.byte(TRY)
    out.byte(VOID)
    instruction(out, RETHROW, depth - 1 - level + 2)
    parts.types.tags.forEach((_, tag) => {
      instruction(out, CATCH, tag)
      instruction(out, CALL, parts.keepTag(tag))
    })
    out.byte(END)
  }
}

/** A value of a type that nobody looks at. Throws Uncapturable. */
function writeDefault(out: BodyWriter, { values }: ModuleTypes, index: number, type: number): void {
  const number = DEFAULTS[type]
  if (number !== undefined) {
    for (const byte of number) out.byte(byte)
    return
  }
  const heap = values.nullOf(type)
  if (heap === undefined) throw new Uncapturable(index, 'returns a reference that is never null')
  out.byte(REF_NULL)
  for (const byte of heap) out.byte(byte)
}

function instruction(out: BodyWriter, opcode: number, immediate: number): void {
  out.byte(opcode)
  out.u32(immediate)
}

function constant(out: BodyWriter, value: number): void {
  out.byte(I32_CONST)
  out.s32(value)
}

const VOID = 0x40
/** memarg: alignment 2^2, and a memory index follows. */
const ALIGN_4 = 2
const OTHER_MEMORY = 0x40
const I32_CONST = opcodeOf('i32.const')
const I32_LOAD = opcodeOf('i32.load')
const LOCAL_GET = opcodeOf('local.get')
const LOCAL_SET = opcodeOf('local.set')
const LOCAL_TEE = opcodeOf('local.tee')
const REF_NULL = opcodeOf('ref.null')
const IF = opcodeOf('if')
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const RETURN = opcodeOf('return')
const BR_IF = opcodeOf('br_if')
const TRY = opcodeOf('try')
const CATCH = opcodeOf('catch')
const RETHROW = opcodeOf('rethrow')
