// sched/placement.ts: which pCPU a guest runs on, and how a pool is split over pCPUs.
//
// A cell runs on one pCPU until it is moved, and each pCPU divides its own time (run_queue.ts). So fairness over the
// host is made here, in three steps, all of them pure and deterministic:
//   fairSplit, entitlements   what each guest would have, were the host one big pCPU: its load;
//   place, rebalance          loads spread so that every pCPU carries as much as the others;
//   splitPool                 each part of a pool gets the part of its terms that its cells there stand for.
// Reservations are another matter than loads: a pCPU never promises more than it has (RESERVABLE), so a guest that is
// refused anywhere is refused with the figures. Elsewhere: who runs next on a pCPU (run_queue.ts).

import { SHARES_MAX } from '../base/limits.ts'
import type { Terms } from './node.ts'

/** pCPUs that one pCPU promises at most: the hypervisor's own work and the ends of quanta need the rest. */
export const RESERVABLE = 0.95
/** A move must narrow the gap between two pCPUs by so much of a pCPU: moving costs caches, and loads are estimates. */
const GAIN_MIN = 0.05
/** Moves of one call: each is a stop of a guest. */
const MOVES_MAX = 64
/** What an idle part keeps of an equal part of what its pool may have beyond reservations: it must be able to begin. */
const IDLE_PART = 1 / 4

/** Something to be divided for: it gets `min` at least, `max` at most, and by `shares` between. */
export type Claim = { readonly shares: number; readonly min: number; readonly max: number }

/**
 * Divides `capacity` by shares with everybody's bounds kept. Nothing is left over while somebody is below its max. If
 * the mins are more than there is, they are cut in proportion.
 */
export function fairSplit(capacity: number, claims: readonly Claim[]): number[] {
  const least = claims.reduce((sum, { min, max }) => sum + Math.min(min, max), 0)
  if (least >= capacity) return claims.map(({ min, max }) => least > 0 ? Math.min(min, max) * capacity / least : 0)
  const given = (level: number): number[] =>
    claims.map(({ shares, min, max }) => Math.max(Math.min(min, max), Math.min(max, level * shares)))
  if (claims.reduce((sum, { max }) => sum + max, 0) <= capacity) return claims.map(({ max }) => max)
  // The total grows with the level, so the level is found by halving.
  let low = 0
  let high = capacity / claims.reduce((smallest, { shares }) => Math.min(smallest, shares), Infinity)
  for (let i = 0; i < HALVINGS; i++) {
    const level = (low + high) / 2
    if (given(level).reduce((sum, x) => sum + x, 0) > capacity) high = level
    else low = level
  }
  return given(low)
}

/** 2^-60 of any level is beyond a double's precision of it. */
const HALVINGS = 60

/** A cell, or a pool with what is in it. `demand`: the pCPUs that a cell would use if it had them, 1 at most. */
export type Wish = {
  readonly id: string
  readonly terms: Terms
  readonly demand?: number
  readonly children?: readonly Wish[]
}

/** What each cell would have, in pCPUs, were the host one big pCPU of the given capacity. */
export function entitlements(capacity: number, wishes: readonly Wish[]): Map<string, number> {
  const found = new Map<string, number>()
  const divide = (part: number, among: readonly Wish[]): void => {
    const parts = fairSplit(part, among.map((wish) =>
      ({ shares: wish.terms.shares, min: wish.terms.reservation, max: demandOf(wish) })))
    among.forEach((wish, i) => {
      if (wish.children === undefined) found.set(wish.id, parts[i]!)
      else divide(parts[i]!, wish.children)
    })
  }
  divide(capacity, wishes)
  return found
}

function demandOf({ terms, demand = 0, children }: Wish): number {
  const wanted = children === undefined ? Math.min(demand, 1) : children.reduce((sum, x) => sum + demandOf(x), 0)
  return Math.min(wanted, terms.limit)
}

/** A guest as placement sees it. `load`: its entitlement, or what is guessed for a new one. */
export type Guest = { readonly id: string; readonly load: number; readonly reservation: number
  readonly movable: boolean }

/** A pCPU and who is on it. */
export type Pcpu = { readonly id: number; readonly guests: readonly Guest[] }

/** Why a reservation can't be given: what is wanted, the most that one pCPU has left, and what all have. */
export type Refusal = { readonly wanted: number; readonly largestFree: number; readonly totalFree: number }

/** undefined if some pCPU can promise the reservation; else what is missing. */
export function refusal(pcpus: readonly Pcpu[], reservation: number): Refusal | undefined {
  const free = pcpus.map((pcpu) => Math.max(0, RESERVABLE - reserved(pcpu)))
  const largestFree = Math.max(0, ...free)
  if (reservation === 0 || reservation <= largestFree + EPSILON) return undefined
  return { wanted: reservation, largestFree, totalFree: free.reduce((sum, x) => sum + x, 0) }
}

/** Sums of reservations such as 0.1 are off by their last bits. */
const EPSILON = 1e-9

/** The pCPU for a new guest: the one with the least load of those that can promise its reservation. */
export function place(pcpus: readonly Pcpu[], guest: Guest): { pcpu: number } | Refusal {
  const refused = refusal(pcpus, guest.reservation)
  if (refused !== undefined) return refused
  const able = pcpus.filter((pcpu) => fits(pcpu, guest))
  return { pcpu: able.reduce((best, pcpu) => load(pcpu) < load(best) - EPSILON ? pcpu : best).id }
}

/**
 * Places many: the largest reservation first, then the largest load, as the small ones fill what is left. The pCPUs
 * with their new guests, and who found no place. If spreading leaves somebody out, they are packed: each on the first
 * pCPU where it fits.
 */
export function placeAll(pcpus: readonly Pcpu[], guests: readonly Guest[]): { pcpus: Pcpu[]; refused: Guest[] } {
  const sorted = [...guests].sort((a, b) =>
    b.reservation - a.reservation || b.load - a.load || (a.id < b.id ? -1 : 1))
  const spread = placeEach(pcpus, sorted, (able) => able.reduce((a, b) => load(b) < load(a) - EPSILON ? b : a))
  return spread.refused.length === 0 ? spread : placeEach(pcpus, sorted, (able) => able[0]!)
}

function placeEach(pcpus: readonly Pcpu[], guests: readonly Guest[], choose: <P extends Pcpu>(able: P[]) => P):
{ pcpus: Pcpu[]; refused: Guest[] } {
  const result = pcpus.map(({ id, guests }) => ({ id, guests: [...guests] }))
  const refused: Guest[] = []
  for (const guest of guests) {
    const able = result.filter((pcpu) => fits(pcpu, guest))
    if (able.length === 0) refused.push(guest)
    else choose(able).guests.push(guest)
  }
  return { pcpus: result, refused }
}

/** One move of a guest to another pCPU. */
export type Move = { readonly guest: string; readonly from: number; readonly to: number }

/**
 * Moves that even the loads out: from the pCPU with most to the one with least, the guest that leaves the two closest
 * to each other. Every move narrows the gap between its two pCPUs by GAIN_MIN, so the sum of the squares of loads
 * falls with each: nobody is sent back and forth, and who asks again after the moves gets none.
 */
export function rebalance(pcpus: readonly Pcpu[]): Move[] {
  const now = pcpus.map((pcpu) => ({ id: pcpu.id, guests: [...pcpu.guests] }))
  const moves: Move[] = []
  while (moves.length < MOVES_MAX) {
    const move = bestMove(now)
    if (move === undefined) break
    const from = now.find(({ id }) => id === move.from)!
    const at = from.guests.findIndex(({ id }) => id === move.guest)
    now.find(({ id }) => id === move.to)!.guests.push(...from.guests.splice(at, 1))
    moves.push(move)
  }
  return moves
}

/** Tries the pairs with the widest gaps first: the most loaded pCPU may have nobody who can move. */
function bestMove(pcpus: readonly Pcpu[]): Move | undefined {
  const loads = pcpus.map((pcpu) => ({ pcpu, load: load(pcpu) })).sort((a, b) => b.load - a.load)
  for (const from of loads) {
    for (let i = loads.length - 1; i > 0; i--) {
      const to = loads[i]!
      const gap = from.load - to.load
      if (gap <= GAIN_MIN) break
      let best: Guest | undefined
      let narrowest = gap - GAIN_MIN
      for (const guest of from.pcpu.guests) {
        const left = Math.abs(gap - 2 * guest.load)
        if (!guest.movable || left >= narrowest - EPSILON || !fits(to.pcpu, guest)) continue
        best = guest
        narrowest = left
      }
      if (best !== undefined) return { guest: best.id, from: from.pcpu.id, to: to.pcpu.id }
    }
  }
  return undefined
}

/** What a pool has on one pCPU: the shares of its runnable cells, what they would use, what they are promised. */
export type Part = { readonly shares: number; readonly demand: number; readonly reservation: number }

/**
 * A pool's terms on each pCPU where it has cells.
 *   shares        by the shares of what is runnable there, as Linux does for groups; 1 at least
 *   reservation   what its cells there are promised, the rest by demand; a pCPU at most
 *   limit         its reservation and IDLE_PART; the rest by demand, so that an idle part doesn't hold what another
 *                 could use. The parts add up to the limit; Infinity if it is no limit on so many pCPUs
 */
export function splitPool(terms: Terms, parts: readonly Part[]): Terms[] {
  const total = parts.reduce((sum, { shares }) => sum + shares, 0)
  const wanted = (part: Part): number => Math.max(part.demand, EPSILON)
  const reservations = fairSplit(terms.reservation, parts.map((part) =>
    ({ shares: wanted(part), min: part.reservation, max: 1 })))
  const floor = IDLE_PART * (terms.limit - reservations.reduce((sum, x) => sum + x, 0)) / parts.length
  const limits = terms.limit >= parts.length ? undefined : fairSplit(terms.limit, parts.map((part, i) =>
    ({ shares: wanted(part), min: Math.min(1, reservations[i]! + floor), max: 1 })))
  return parts.map((part, i) => {
    const shares = terms.shares * (total > 0 ? part.shares / total : 1 / parts.length)
    const reservation = Math.min(1, reservations[i]!)
    const limit = limits === undefined ? Infinity : Math.max(limits[i]!, reservation)
    return { shares: Math.min(SHARES_MAX, Math.max(1, shares)), reservation, limit }
  })
}

function load({ guests }: Pcpu): number {
  return guests.reduce((sum, guest) => sum + guest.load, 0)
}

function reserved({ guests }: Pcpu): number {
  return guests.reduce((sum, { reservation }) => sum + reservation, 0)
}

function fits(pcpu: Pcpu, { reservation }: Guest): boolean {
  return reservation === 0 || reserved(pcpu) + reservation <= RESERVABLE + EPSILON
}
