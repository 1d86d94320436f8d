// sched/rebalancer.ts: when guests are moved between pCPUs, and which.
//
// placement.ts says which moves would even the loads out. This says whether to make them: a load is what was seen in
// the last second or two, and a move stops its guest for milliseconds. So an imbalance must be seen twice in a row, few
// are moved at a time, and who was moved rests.
//
// Loads that can't be evened out (three guests that want all they can get, on two pCPUs) would leave one with twice of
// what the others have, for ever. So each guest's lag is kept: what it should have had, as if all pCPUs were one, less
// what it had. When somebody lags by LAG_NS_MAX, the one on its pCPU that is most ahead goes to where those are that
// have had too much. They take turns.

import { rebalance, RESERVABLE, type Guest, type Move, type Pcpu } from './placement.ts'

/** A guest as it was seen since the last time; `load` is its entitlement. Who wants next to nothing is left out. */
export type Seen = Guest & { readonly receivedNs: number }

/** What was seen of a pCPU. `reserved`: promised to guests that aren't among them. */
export type SeenPcpu = { readonly id: number; readonly guests: readonly Seen[]; readonly reserved: number }

/** Somebody who lags by so much has others moved. */
const LAG_NS_MAX = 500e6
/** Lags are forgotten beyond this: what was long ago is no argument. */
const LAG_NS_KEPT = 2e9
/** Moves at a time: each is a copy of a memory. */
const MOVES_MAX = 4
/** Who was moved isn't moved again for so long. */
const REST_NS = 2.5e9

/** Looks at all pCPUs of a stack from time to time. */
export class Rebalancer {
  readonly #lags = new Map<string, number>()
  readonly #movedAt = new Map<string, number>()
  #seenAt = -1
  #wasUneven = false

  /** The moves to make now. `nowNs` is of a clock that doesn't go back. */
  see(pcpus: readonly SeenPcpu[], nowNs: number): Move[] {
    this.#learn(pcpus, nowNs)
    // Promises to those that are left out stand for them.
    const known = pcpus.map(({ id, guests, reserved }): Pcpu => ({ id, guests: [
      ...guests.map((guest) => ({ ...guest, movable: guest.movable && !this.#movedAt.has(guest.id) })),
      { id: '', load: 0, reservation: reserved, movable: false }] }))
    const even = rebalance(known)
    const moves = even.length === 0 ? this.#rotate(known) : this.#wasUneven ? even.slice(0, MOVES_MAX) : []
    // After moves all is different, and must be seen to be uneven twice again.
    this.#wasUneven = even.length > 0 && moves.length === 0
    for (const { guest } of moves) this.#movedAt.set(guest, nowNs)
    return moves
  }

  /** A move came to nothing: the guest stays where it is, and isn't asked again for a while. */
  failed(guest: string, nowNs: number): void {
    this.#movedAt.set(guest, nowNs + FAILED_REST_NS - REST_NS)
  }

  #learn(pcpus: readonly SeenPcpu[], nowNs: number): void {
    const elapsed = this.#seenAt < 0 ? 0 : nowNs - this.#seenAt
    this.#seenAt = nowNs
    const all = pcpus.flatMap(({ guests }) => guests)
    const there = new Set(all.map(({ id }) => id))
    for (const id of this.#lags.keys()) if (!there.has(id)) this.#lags.delete(id)
    for (const { id, load, receivedNs } of all) {
      const lag = (this.#lags.get(id) ?? 0) + load * elapsed - receivedNs
      this.#lags.set(id, Math.max(-LAG_NS_KEPT, Math.min(LAG_NS_KEPT, lag)))
    }
    for (const [id, at] of this.#movedAt) if (nowNs - at >= REST_NS) this.#movedAt.delete(id)
  }

  /** At most one move, to where it makes the gap no wider, and those have had too much who are there. */
  #rotate(pcpus: readonly Pcpu[]): Move[] {
    const lagOf = ({ id }: Guest): number => this.#lags.get(id) ?? 0
    const places = pcpus.map((pcpu) => ({ pcpu, lag: pcpu.guests.reduce((total, guest) => total + lagOf(guest), 0) }))
      .sort((a, b) => a.lag - b.lag)
    const all = pcpus.flatMap((pcpu) => pcpu.guests.map((guest) => ({ pcpu, guest })))
      .sort((a, b) => lagOf(b.guest) - lagOf(a.guest))
    for (const { pcpu, guest: behind } of all) {
      if (lagOf(behind) < LAG_NS_MAX) return []
      const others = pcpu.guests.filter((guest) => guest !== behind && guest.movable)
        .sort((a, b) => lagOf(a) - lagOf(b))
      for (const guest of others) {
        const to = places.find((place) => place.lag < 0 && takes(place.pcpu, guest, pcpu))
        if (to !== undefined) return [{ guest: guest.id, from: pcpu.id, to: to.pcpu.id }]
      }
    }
    return []
  }
}

/** Who couldn't be moved has something that doesn't move: that won't change soon. */
const FAILED_REST_NS = 60e9

function takes(to: Pcpu, guest: Guest, from: Pcpu): boolean {
  const [here, there] = [sum(from, 'load'), sum(to, 'load')]
  return here > there && there + guest.load <= here + EPSILON &&
    (guest.reservation === 0 || sum(to, 'reservation') + guest.reservation <= RESERVABLE + EPSILON)
}

function sum({ guests }: Pcpu, of: 'load' | 'reservation'): number {
  return guests.reduce((total, guest) => total + guest[of], 0)
}

/** Loads are sums of measured parts. */
const EPSILON = 0.02
