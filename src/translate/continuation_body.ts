// translate/continuation_body.ts: the rest of a function from a site on, as a function of its own.
//
// Blocks around the site are entered anew, without what comes before the site: a block or an arm of an if begins where
// the site is. A loop's first round is what is left of it, and then the loop as a whole follows, from its beginning:
//
//   loop $l              block $exit
//     before               block $l            ;; "once more" leaves the first round …
//     <site>     →           <site> after  br $exit
//     after                end
//   end                    loop $l before … after end   ;; … and begins the loop
//                        end
//
// So the code that runs for long after going on is the guest's code, unchanged. Labels beyond $exit are one higher.
// What a site keeps of the operand stack is put back block by block. A site at a loop's beginning goes on there.

import type { BodyReader } from '../wasm/body.ts'
import type { BodyWriter } from '../wasm/body_writer.ts'
import { OPCODE_END, opcodeOf } from '../wasm/opcodes.ts'
import { Reader } from '../wasm/reader.ts'
import { BadFrames } from './frames.ts'
import { SITE_CALL, SITE_LOOP, type FramePlan, type OpenBlock, type Site } from './frame_plan.ts'
import type { Signature } from './module_types.ts'
import { tempKey } from './operand_stack.ts'
import { writeCheck, writeTee, type SiteParts } from './site_code.ts'

/** What the code is written for. */
export type ContinuationParts = SiteParts & {
  /** The continuation module's index of a function of the guest's module. */
  function(index: number): number
  /** Bytes of the type of a block without parameters. */
  blockType(results: readonly number[]): readonly number[]
  /** Code that calls the continuation of the next frame, whose function has these results. */
  dispatch(results: readonly number[]): readonly number[]
  /** Code that throws the exception that is kept at this offset of the frame. */
  throwKept(offset: number): readonly number[]
}

/** A block around the site. Offsets are of bytes: of its first instruction, where its arm ends, of its `end`. */
type Block = {
  readonly opcode: number; readonly at: number; readonly signature: Signature
  isHandler: boolean; armEnd: number; endAt: number
}

/** Writes the rest of a function. */
export class ContinuationBody {
  readonly #reader: BodyReader
  readonly #out: BodyWriter
  readonly #parts: ContinuationParts
  readonly #plan: FramePlan
  readonly #index: number
  readonly #path: Block[] = []
  // How many blocks of the path are loops, up to each of them.
  readonly #loops: number[] = []
  #functionEnd = 0
  // Where the operands of each open block begin, the function's own first.
  readonly #bases: number[] = []

  /** `reader` has the body of function `index` open. */
  constructor(reader: BodyReader, out: BodyWriter, parts: ContinuationParts, plan: FramePlan, index: number) {
    this.#reader = reader
    this.#out = out
    this.#parts = parts
    this.#plan = plan
    this.#index = index
  }

  /** Writes what follows the site, up to the function's `end`. The kept locals have their values. */
  write(number: number, here: boolean): void {
    const site = this.#plan.sites[number]!
    for (let block: OpenBlock | undefined = site.within; block !== undefined; block = block.outer) {
      this.#bases.push(block.base)
    }
    this.#bases.reverse()
    this.#findPath(site)
    const last = this.#path.length - 1
    for (let level = -1; level <= last; level++) this.#enter(level, site)
    let start = this.#enterSite(site, number, here)
    for (let level = last; level >= -1; level--) {
      this.#rest(this.#path[level], level, start, level === last ? 0 : 1)
      start = this.#path[level]?.endAt ?? start
    }
  }

  // ---- the blocks around the site

  #findPath(site: Site): void {
    const reader = this.#reader
    const open: Block[] = []
    let path: Block[] | undefined
    reader.seek(reader.codeStart)
    while (reader.next()) {
      const { opcode, at } = reader
      if (path === undefined && at >= site.at) path = [...open]
      if (BEGINS[opcode] === 1) {
        open.push({ opcode, at, signature: this.#parts.types.ofBlock(reader.slots[0]!, reader.slots[1]!),
          isHandler: false, armEnd: 0, endAt: 0 })
      } else if (opcode === ELSE || opcode === CATCH || opcode === CATCH_ALL) {
        const block = open.at(-1)!
        if (path === undefined) block.isHandler = opcode !== ELSE
        else if (block.armEnd === 0) block.armEnd = at
      } else if (opcode === END || opcode === DELEGATE) {
        const block = open.pop()
        if (block === undefined) {
          this.#functionEnd = reader.end
          break
        }
        block.endAt = at
        if (block.armEnd === 0) block.armEnd = at
      }
    }
    for (const block of path ?? []) {
      this.#loops.push((this.#loops.at(-1) ?? 0) + (block.opcode === LOOP ? 1 : 0))
      this.#path.push(block)
    }
  }

  // Level -1 is the function; level i the i-th block of the path.
  #enter(level: number, site: Site): void {
    const block = this.#path[level]
    if (block !== undefined) this.#begin(block, level, site)
    const end = level === this.#path.length - 1 ? site.height : this.#bases[level + 2]!
    for (let i = this.#bases[level + 1]!; i < end; i++) this.#operand(site.operands[i]!, i)
  }

  #begin({ opcode, signature, isHandler, at }: Block, level: number, site: Site): void {
    const out = this.#out
    const type = this.#parts.blockType(signature.results)
    if (opcode === LOOP) {
      out.byte(BLOCK)
      out.append(type)
      out.byte(BLOCK)
      out.append(this.#parts.blockType(signature.params))
    } else if (opcode === TRY_TABLE) {
      const reader = this.#reader
      reader.seek(at)
      reader.next()
      out.byte(TRY_TABLE)
      out.append(type)
      this.#catches(level - 1, 0, 0)
    } else {
      // A handler that throws again what it has caught must have caught it.
      const kept = isHandler ? site.handlers.indexOf(level + 1) : -1
      out.byte(opcode === TRY && (!isHandler || kept >= 0) ? TRY : BLOCK)
      out.append(type)
      if (kept < 0) return
      const behind = site.handlers.length - kept
      out.append(this.#parts.throwKept(site.size - behind * this.#parts.types.exceptionBytes!))
      out.byte(CATCH_ALL)
    }
  }

  // The kept values are those of before the call, or of after it.
  #enterSite(site: Site, number: number, here: boolean): number {
    if (site.kind === SITE_LOOP) return site.at
    if (site.kind !== SITE_CALL) return site.after
    if (here) for (const local of site.results) this.#get(local)
    else {
      this.#out.append(this.#parts.dispatch(site.resultTypes))
      if (site.results.length > 0) writeTee(this.#out, { locals: site.results })
      writeCheck(this.#out, this.#parts, this.#plan, this.#index, number, () => {})
    }
    return site.after
  }

  #rest(block: Block | undefined, level: number, start: number, depth: number): void {
    if (block === undefined) return this.#range(start, this.#functionEnd, level, depth, 0)
    const isTryBody = block.opcode === TRY && !block.isHandler
    this.#range(start, isTryBody ? block.endAt : block.armEnd, level, depth, 0)
    if (block.opcode !== LOOP) return
    const out = this.#out
    out.append([BR, 1, END])
    this.#range(block.at, block.endAt, level - 1, 0, 1)
    out.byte(END)
  }

  // A copy of a local may be kept by a local of its own at a later site: it would have got it before this one.
  #operand(from: number, height: number): void {
    if (from >= 0) {
      this.#get(from)
      const { temps, locals } = this.#plan
      const temp = temps.get(tempKey(height, locals[from]!))
      if (temp !== undefined && temp !== from) writeTee(this.#out, { locals: [temp] })
      return
    }
    const reader = this.#reader
    reader.seek(-1 - from)
    reader.next()
    this.#out.copy(reader.bytes, reader.at, reader.end)
  }

  #get(local: number): void {
    this.#out.byte(LOCAL_GET)
    this.#out.u32(local)
  }

  // ---- code of the guest's

  /**
   * Writes the code in [from, to) as code of `level`, in `depth` blocks that begin elsewhere; `more` labels were put
   * between it and the level.
   */
  #range(from: number, to: number, level: number, depth: number, more: number): void {
    const reader = this.#reader
    const { sites, tees, replacements } = this.#plan
    let tee = firstOf(tees, ({ after }) => after > from)
    let site = firstOf(sites, ({ after }) => after > from)
    let replacement = firstOf(replacements, ({ at }) => at >= from)
    if (this.#out.length > FUNCTION_BYTES_MAX) throw new BadFrames('a function of it has loops in too many others')
    reader.seek(from)
    while (reader.end < to && reader.next()) {
      const { opcode, end } = reader
      if (replacements[replacement]?.at === reader.at) {
        this.#out.byte(CALL)
        this.#out.u32(this.#parts.function(replacements[replacement++]!.helper))
      } else {
        if (opcode === END || opcode === DELEGATE) depth--
        this.#instruction(level, depth, more)
        if (BEGINS[opcode] === 1) depth++
      }
      while (tees[tee]?.after === end) writeTee(this.#out, tees[tee++]!)
      while (sites[site]?.after === end) {
        const { results } = sites[site]!
        if (results.length > 0) writeTee(this.#out, { locals: results })
        writeCheck(this.#out, this.#parts, this.#plan, this.#index, site++, () => {})
      }
    }
  }

  #instruction(level: number, depth: number, more: number): void {
    const reader = this.#reader
    const out = this.#out
    const { opcode, slots, at, end, bytes } = reader
    switch (KINDS[opcode]) {
      case FUNCTION:
        out.byte(opcode)
        out.u32(this.#parts.function(slots[0]!))
        return
      case LABEL:
        out.byte(opcode)
        out.u32(this.#label(slots[0]! >>> 0, level, depth, more))
        return
      case LABELS: {
        out.byte(opcode)
        out.u32(slots[0]!)
        const labels = new Reader(bytes, slots[1]!, end, 'labels')
        for (let count = (slots[0]! >>> 0) + 1; count > 0; count--) {
          out.u32(this.#label(labels.u32(), level, depth, more))
        }
        return
      }
      case CATCHES:
        // Its type is as it was: what precedes the number of clauses, which is followed by the first of them.
        out.copy(bytes, at, countAt(reader))
        this.#catches(level, depth, more)
        return
      case SEGMENT:
        // There are no segments here. What can be reached was replaced.
        out.byte(UNREACHABLE)
        return
      default: out.copy(bytes, at, end)
    }
  }

  // The clauses of the try_table on which the reader stands.
  #catches(level: number, depth: number, more: number): void {
    const { bytes, slots, end } = this.#reader
    const out = this.#out
    out.u32(slots[2]!)
    const clauses = new Reader(bytes, slots[3]!, end, 'catch clauses')
    for (let count = slots[2]! >>> 0; count > 0; count--) {
      const kind = clauses.u8()
      out.byte(kind)
      if (kind < CATCH_ALL_CLAUSE) out.u32(clauses.u32())
      out.u32(this.#label(clauses.u32(), level, depth, more))
    }
  }

  #label(label: number, level: number, depth: number, more: number): number {
    if (label < depth) return label
    const target = level - (label - depth)
    return label + more + (this.#loops[level] ?? 0) - (this.#loops[target] ?? 0)
  }
}

// Of an ascending list, where what is so begins.
function firstOf<T>(list: readonly T[], isSo: (one: T) => boolean): number {
  let [low, high] = [0, list.length]
  while (low < high) {
    const middle = low + high >> 1
    if (isSo(list[middle]!)) high = middle
    else low = middle + 1
  }
  return low
}

// Where the number of clauses begins: LEB128 before the first clause.
function countAt({ bytes, slots }: BodyReader): number {
  let at = slots[3]! - 1
  while ((bytes[at - 1]! & 0x80) !== 0) at--
  return at
}

/** V8's limit. Functions that come near it aren't captured (capture.ts). */
const FUNCTION_BYTES_MAX = 7_654_321

const CATCH_ALL_CLAUSE = 2
const BLOCK = opcodeOf('block')
const LOOP = opcodeOf('loop')
const ELSE = opcodeOf('else')
const END = opcodeOf('end')
const TRY = opcodeOf('try')
const CATCH = opcodeOf('catch')
const CATCH_ALL = opcodeOf('catch_all')
const DELEGATE = opcodeOf('delegate')
const TRY_TABLE = opcodeOf('try_table')
const BR = opcodeOf('br')
const CALL = opcodeOf('call')
const LOCAL_GET = opcodeOf('local.get')
const UNREACHABLE = opcodeOf('unreachable')

const BEGINS = new Uint8Array(OPCODE_END)
for (const name of ['block', 'loop', 'if', 'try', 'try_table']) BEGINS[opcodeOf(name)] = 1

const FUNCTION = 1
const LABEL = 2
const LABELS = 3
const CATCHES = 4
const SEGMENT = 5
const KINDS = new Uint8Array(OPCODE_END)
for (const name of ['call', 'return_call', 'ref.func']) KINDS[opcodeOf(name)] = FUNCTION
for (const name of ['br', 'br_if', 'br_on_null', 'br_on_non_null', 'rethrow', 'delegate']) KINDS[opcodeOf(name)] = LABEL
for (const name of ['memory.init', 'data.drop', 'table.init', 'elem.drop']) KINDS[opcodeOf(name)] = SEGMENT
KINDS[opcodeOf('br_table')] = LABELS
KINDS[opcodeOf('try_table')] = CATCHES
