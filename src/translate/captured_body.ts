// translate/captured_body.ts: a body with its tees, its calls in place of bulk instructions, and its checks.

import type { BodyReader } from '../wasm/body.ts'
import type { BodyWriter } from '../wasm/body_writer.ts'
import { opcodeOf, REF, REF_NULL } from '../wasm/opcodes.ts'
import { Reader } from '../wasm/reader.ts'
import type { FramePlan } from './frame_plan.ts'
import type { ModuleTypes } from './module_types.ts'
import { writeCheck, writeTee, type SiteParts } from './site_code.ts'
import type { Splice } from './splice.ts'

/** Writes the body in `reader`, of function `index`, as its plan says: how many checks it got. */
export function writeCaptured(
  reader: BodyReader, splice: Splice, parts: SiteParts, plan: FramePlan, index: number,
): number {
  const { out } = splice
  const { sites, tees, replacements } = plan
  const runs = runsOf(plan.locals, plan.declared)
  out.u32(reader.localGroups + runs.length)
  splice.skipTo(reader.localsStart)
  splice.upTo(reader.codeStart)
  writeRuns(out, runs, parts.types)
  const hint = (): void => splice.hint()
  let tee = 0
  let replacement = 0
  for (let site = 0; site <= sites.length; site++) {
    const until = sites[site]?.after ?? Infinity
    for (;;) {
      const replaced = replacements[replacement]
      const teed = tees[tee]
      if (replaced !== undefined && replaced.end <= until && (teed === undefined || replaced.at < teed.after)) {
        splice.upTo(replaced.at)
        out.byte(CALL)
        out.u32(replaced.helper)
        splice.skipTo(replaced.end)
        replacement++
      } else if (teed !== undefined && teed.after <= until) {
        splice.upTo(teed.after)
        writeTee(out, teed)
        tee++
      } else break
    }
    if (site === sites.length) break
    splice.upTo(until)
    const { results } = sites[site]!
    if (results.length > 0) writeTee(out, { locals: results })
    writeCheck(out, parts, plan, index, site, hint)
  }
  splice.upTo(splice.end)
  return sites.length
}

/** The types of the locals that the body in `reader` declares. */
export function localTypes({ bytes, localsStart, codeStart, localGroups }: BodyReader, { values }: ModuleTypes):
    number[] {
  const reader = new Reader(bytes, localsStart, codeStart, 'locals')
  const types: number[] = []
  for (let i = 0; i < localGroups; i++) {
    const count = reader.u32()
    const code = reader.u8() - 0x80
    const type = values.ofCode(code, code === REF || code === REF_NULL ? reader.s33() : 0)
    for (let k = 0; k < count; k++) types.push(type)
  }
  return types
}

/** Locals from `first` on, as they are declared: how many of which type. */
export function runsOf(locals: readonly number[], first: number): { count: number; type: number }[] {
  const runs: { count: number; type: number }[] = []
  for (let i = first; i < locals.length; i++) {
    const last = runs.at(-1)
    if (last?.type === locals[i]) last!.count++
    else runs.push({ count: 1, type: locals[i]! })
  }
  return runs
}

/** Writes declarations of locals, without their number. */
export function writeRuns(out: BodyWriter, runs: readonly { count: number; type: number }[], { values }: ModuleTypes):
    void {
  for (const { count, type } of runs) {
    out.u32(count)
    for (const byte of values.bytesOf(type)) out.byte(byte)
  }
}

const CALL = opcodeOf('call')
