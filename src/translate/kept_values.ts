// translate/kept_values.ts: what the sites of a function keep: which locals, in which order, and how much of it there
// may be.
//
// Frames are code for each site and each value, so that a small guest could be translated into one of gigabytes: what
// all sites keep is counted, by function and by module, and what goes beyond is refused.

import type { Site } from './frame_plan.ts'
import type { Liveness } from './liveness.ts'
import { KEEP_EXCEPTION, KEEPS, SIZES, type ModuleTypes } from './module_types.ts'
import { Uncapturable } from './uncapturable.ts'

/** What plans of one function may come to: beyond it, its translation would take too long, or be too large. */
const WORK_MAX = 30_000_000
const SAVED_MAX = 1_000_000
/** And plans of a module. Compilers' code comes to less than one value for each byte. */
const MODULE_SAVED_MAX = 4_000_000
const MODULE_SAVED_PER_BYTE = 4

/** A list of nothing. */
export const NONE: readonly number[] = []

/**
 * A handler: how many blocks are around its try, the handler around it, and the levels of those of them, itself
 * included, that throw again what they have caught.
 */
type Handler = {
  readonly control: { readonly rethrows: boolean }; readonly level: number; readonly outer: Handler | undefined
  caught: readonly number[]
}

/** What sites keep; one object serves all functions of a module. */
export class KeptValues {
  readonly #types: ModuleTypes
  #function = 0
  // In this function, and in all so far.
  #saved = 0
  #savedInModule = 0
  // All handlers, outer ones first; the innermost that is open; sites that are in one.
  #handlers: Handler[] = []
  #handler: Handler | undefined
  #handling: { readonly site: Site; readonly handler: Handler }[] = []
  // By local: the last of all sites that keep it, counted over all functions.
  readonly #keptAt: number[] = []
  #siteCount = 0

  constructor(types: ModuleTypes) {
    this.#types = types
  }

  /** Begins function `index`. */
  begin(index: number): void {
    this.#function = index
    this.#saved = 0
    this.#handlers = []
    this.#handler = undefined
    this.#handling = []
  }

  /** Enters the handlers of a try, around which there are `level` blocks; leaves them. */
  enterHandler(control: Handler['control'], level: number): void {
    this.#handler = { control, level, outer: this.#handler, caught: NONE }
    this.#handlers.push(this.#handler)
  }
  leaveHandler(): void {
    this.#handler = this.#handler?.outer
  }

  /** A site stands here. */
  addSite(site: Site): void {
    if (this.#handler !== undefined) this.#handling.push({ site, handler: this.#handler })
  }

  /** So many values more are looked at, or kept. Throws Uncapturable if it is too much. */
  count(values: number): void {
    this.#saved += values
    this.#savedInModule += values
    if (this.#saved > SAVED_MAX) throw this.#cannot('is too large')
    if (this.#savedInModule > MODULE_SAVED_MAX + MODULE_SAVED_PER_BYTE * this.#types.module.bytes.length) {
      throw new Uncapturable(-1, 'its stack would take too much code to keep')
    }
  }

  /** Finds out what all sites keep. `locals`: their types; the first `declared` are the function's own. */
  solve(sites: readonly Site[], liveness: Liveness, locals: readonly number[], declared: number): void {
    if (sites.length === 0) return
    this.#keepCaught()
    const words = declared + 31 >>> 5
    if ((sites.length + liveness.size) * words > WORK_MAX) throw this.#cannot('is too large')
    liveness.solve(declared, sites.length)
    sites.forEach((site, i) => {
      site.saved = this.#savedAt(site, liveness.sites.subarray(i * words, (i + 1) * words), locals, declared)
      const exceptions = site.saved[KEEP_EXCEPTION]!.length + site.handlers.length
      if (exceptions > 0 && this.#types.exceptionBytes === undefined) {
        throw this.#cannot('holds an exception of many kinds, or with references')
      }
      site.size = site.saved.reduce((sum, { length }, keep) => sum + length * (SIZES[keep] ?? 0), 0) +
        exceptions * (this.#types.exceptionBytes ?? 0)
    })
  }

  #keepCaught(): void {
    for (const handler of this.#handlers) {
      const outer = handler.outer?.caught ?? NONE
      handler.caught = handler.control.rethrows ? [...outer, handler.level] : outer
    }
    for (const { site, handler } of this.#handling) {
      site.handlers = handler.caught
      this.count(handler.caught.length)
    }
  }

  #savedAt({ operands, results }: Site, live: Uint32Array, locals: readonly number[], declared: number): number[][] {
    const saved: number[][] = Array.from({ length: KEEPS }, () => [])
    const count = ++this.#siteCount
    live.forEach((word, w) => {
      for (let bits = word; bits !== 0; bits &= bits - 1) {
        const local = w * 32 + 31 - Math.clz32(bits & -bits)
        // Of the last word, some bits are of no local.
        if (local < declared) this.#save(saved, local, locals)
      }
    })
    for (const local of operands) {
      // A copy of a local that is live is kept as that.
      const isKept = local < declared && (live[local >>> 5]! >>> (local & 31) & 1) === 1
      if (local < 0 || isKept || this.#keptAt[local] === count) continue
      this.#keptAt[local] = count
      this.#save(saved, local, locals)
    }
    for (const local of results) this.#save(saved, local, locals)
    return saved
  }

  #save(saved: number[][], local: number, locals: readonly number[]): void {
    const type = locals[local]!
    const keep = this.#types.keepOf(type)
    if (keep === undefined) throw this.#cannot(`holds a value of type ${this.#types.values.nameOf(type)}`)
    this.count(1)
    saved[keep]!.push(local)
  }

  #cannot(why: string): Uncapturable {
    return new Uncapturable(this.#function, why)
  }
}
