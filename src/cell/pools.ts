// cell/pools.ts: what a stack's pools have on each of its pCPUs.
//
// A pool's terms are split over the pCPUs: shares and reservations by the cells that it has there, whose sums are kept
// here as cells come and go; the rest by what its cells there want, which the pCPUs tell (PoolFigures). Nothing here
// looks at cells one by one. Elsewhere: the policy (sched/placement.ts), who asks and posts (stack.ts).

import type { Terms } from '../sched/node.ts'
import { splitPool, type Part } from '../sched/placement.ts'
import type { PoolFigures } from './pcpu_worker.ts'

/** Parts that differ by less are not told anew: each telling interrupts a pCPU. */
const CHANGE_MIN = 0.01
/** A pool that wants less of a pCPU is idle there. */
const IDLE = 0.01

type Place = { cells: number; shares: number; reservation: number; demand: number; seen: PoolFigures | undefined
  told: Terms | undefined }

/** A part of a pool's terms that a pCPU is to be told. */
export type Telling = { readonly pcpu: number; readonly pool: string; readonly terms: Terms }

/** The pools of a stack with `pcpus` pCPUs. */
export class Pools {
  readonly terms = new Map<string, Terms>()
  readonly #places = new Map<string, Place[]>()
  readonly #pcpus: number

  constructor(pcpus: number) { this.#pcpus = pcpus }

  /** New terms: what to tell. Before anything is known of its cells each pCPU gets an equal part. */
  set(pool: string, terms: Terms): Telling[] {
    this.terms.set(pool, terms)
    const places = this.#places.get(pool)
    if (places !== undefined && places.some(({ cells }) => cells > 0)) return this.#split(pool, terms, places)
    const part: Part = { shares: 1, demand: 1, reservation: 0 }
    const equal = splitPool(terms, Array.from({ length: this.#pcpus }, () => part))
    this.#places.set(pool, equal.map((told) =>
      ({ cells: 0, shares: 0, reservation: 0, demand: 1, seen: undefined, told })))
    return equal.map((terms, pcpu) => ({ pcpu, pool, terms }))
  }

  /** A cell with these terms has come to a pCPU (`count` 1) or is gone from it (-1). */
  count(pool: string, pcpu: number, terms: Terms, count: 1 | -1): void {
    const place = this.#places.get(pool)?.[pcpu]
    if (place === undefined) return
    place.cells += count
    place.shares = place.cells === 0 ? 0 : place.shares + count * terms.shares
    place.reservation = place.cells === 0 ? 0 : Math.max(0, place.reservation + count * terms.reservation)
  }

  /** What a pCPU tells of its pools. */
  see(pcpu: number, figures: readonly PoolFigures[]): void {
    for (const now of figures) {
      const place = this.#places.get(now.pool)?.[pcpu]
      if (place === undefined) continue
      const ageNs = now.ageNs - (place.seen?.ageNs ?? 0)
      const wantedNs = now.wantedNs - (place.seen?.wantedNs ?? 0)
      place.demand = ageNs <= 0 ? 1 : Math.min(1, wantedNs / ageNs)
      place.seen = now
    }
  }

  /** Splits all pools by what is known now: what has changed so much that it has to be told. */
  split(): Telling[] {
    return [...this.terms].flatMap(([pool, terms]) => this.#split(pool, terms, this.#places.get(pool)!))
  }

  /** True if a pool that has cells is bounded by more than shares: it must be split by what its cells want. */
  get isBounded(): boolean {
    return [...this.terms].some(([pool, { reservation, limit }]) =>
      (reservation > 0 || limit < this.#pcpus) && this.#places.get(pool)!.some(({ cells }) => cells > 0))
  }

  /** True if no pool wants anything. */
  get isIdle(): boolean {
    return [...this.#places.values()].every((places) => places.every(({ demand }) => demand < IDLE))
  }

  #split(pool: string, terms: Terms, places: readonly Place[]): Telling[] {
    const parts = splitPool(terms, places.map(({ shares, demand, reservation }): Part =>
      ({ shares, demand, reservation })))
    const told: Telling[] = []
    parts.forEach((part, pcpu) => {
      const place = places[pcpu]!
      if (place.told !== undefined && isClose(place.told, part)) return
      place.told = part
      told.push({ pcpu, pool, terms: part })
    })
    return told
  }
}

function isClose(a: Terms, b: Terms): boolean {
  const near = (x: number, y: number): boolean => x === y || Math.abs(x - y) <= CHANGE_MIN * Math.max(x, y)
  return near(a.shares, b.shares) && near(a.reservation, b.reservation) && near(a.limit, b.limit)
}
