// sched/tags.ts: the arithmetic of one node: its share (P), its reservation (R), its limit (a bucket).
//
// P is virtual time: nanoseconds of running per share. A pool's virtual time V is the mean P of its active children by
// weight, so that what some have too much, the others have too little: w·(V - P) is what a child is owed. A child is
// eligible if it is owed something (P ≤ V); its deadline is P + request / shares. What it requests is a quantum, or
// less if it is known to wait after less: so who runs shortly and often comes soon, and has no more of the pCPU for it.
// R is real time: had the node received exactly its reservation, no more, R would be now. Eligible if R ≤ now; its
// deadline is R + quantum / reservation. Its bounds, both in quanta: AHEAD and OWED_MAX.
// The bucket holds a quantum at most, is filled at `limit`, and emptied by running.
//
// Hot path: no allocation, no closures.

import { RUNNABLE, RUNNING, type Node, type Terms } from './node.ts'

/** The most that a node's reservation can be behind, in quanta. More is owed only if more is promised than there is. */
const OWED_MAX = 4
/** The most by which a quantum of the reservation can be overrun and still be paid for, in quanta. */
const OVERRUN_MAX = 4
/** Debts of children that are gone are kept up to so many quanta. */
const DEBT_MAX = 4
/** A limited node starts to run only with so much of a quantum in its bucket: it mustn't be cut into crumbs. */
const STINT = 1 / 4
/** A quantum that is over but for so much of it is over: sums of parts end a bit before the whole. */
const ROUNDING = 1e-6

/** The least that is taken for a request, as a part of a quantum. */
const REQUEST_MIN = 1 / 16

/** Learns from a stint how long the cell runs before it waits: twice the mean, of which the last stints are most. */
export function learn(node: Node, stintNs: number, waits: boolean, quantumNs: number): void {
  const request = Math.min(node.requestNs, quantumNs)
  if (waits) node.requestNs = Math.max(REQUEST_MIN * quantumNs, (request + 2 * stintNs) / 2)
  else if (stintNs > request) node.requestNs = Infinity
}

function deadlineOf({ share, shares, requestNs }: Node, quantumNs: number): number {
  return share.start + Math.min(requestNs, quantumNs) / shares
}

/** V of a pool. */
function virtualTime(pool: Node): number {
  return pool.weight > 0 ? pool.base + pool.offset / pool.weight : pool.base
}

/**
 * Makes a child active that comes from waiting or from being throttled. It comes with a quantum's credit at most:
 * enough to be the next to run, not enough for what it didn't use to pile up. What it was ahead, it still is. The
 * credit is counted from the furthest that V has reached: V itself falls with each credit, and of a herd that wakes
 * each would come before the one before. Its reservation is behind as far as it was when it left: neither does a
 * sleeper hoard, nor is it robbed. One that is new has slept through nothing: it has no credit, and what one that is
 * gone had too much (`bequeath`) it begins with. Or to end and start anew would be a way to have more.
 */
export function join(pool: Node, node: Node, now: number, quantumNs: number): void {
  pool.reached = Math.max(pool.reached, virtualTime(pool))
  const credit = node.isNew ? -inherit(pool, quantumNs) : quantumNs
  const credited = pool.reached - credit / node.shares
  if (node.share.start < credited) node.share.start = credited
  if (node.reserve.start < now - node.owedNs) node.reserve.start = now - node.owedNs
  node.isNew = false
  pool.active++
  addWeight(pool, node)
}

/** What a newcomer takes over of the debts of those that are gone: a quantum at most, as it isn't to blame. */
function inherit(pool: Node, quantumNs: number): number {
  const debt = Math.min(pool.debtNs, quantumNs)
  pool.debtNs -= debt
  return debt
}

/** A child of the pool is gone: its debt, what it had more than its share, is left. It isn't active any more. */
export function bequeath(pool: Node, node: Node, quantumNs: number): void {
  const debt = (node.share.start - Math.max(pool.reached, virtualTime(pool))) * node.shares
  if (debt > 0) pool.debtNs = Math.min(pool.debtNs + debt, DEBT_MAX * quantumNs)
}

/** Undoes `join`. The node is in no tree. */
export function leave(pool: Node, node: Node, now: number, quantumNs: number): void {
  pool.active--
  pool.reached = Math.max(pool.reached, virtualTime(pool))
  if (node.isServed) node.isServed = false
  else removeWeight(pool, node)
  node.owedNs = 0
  if (node.reservation === 0) return
  const behind = now - node.reserve.start
  const most = OWED_MAX * quantumNs / node.reservation
  if (behind > 0) node.owedNs = behind < most ? behind : most
}

/** Puts an active node where it is chosen from. */
export function enqueue(pool: Node, node: Node, now: number, quantumNs: number): void {
  const { share, reserve } = node
  share.deadline = deadlineOf(node, quantumNs)
  pool.shared!.insert(share)
  if (node.reservation === 0) return
  const quantum = quantumNs / node.reservation
  if (reserve.start < now - OWED_MAX * quantum) reserve.start = now - OWED_MAX * quantum
  reserve.deadline = reserve.start + quantum
  pool.reserved!.insert(reserve)
}

/** Undoes `enqueue`: the node is chosen, or it leaves. */
export function dequeue(pool: Node, node: Node): void {
  pool.shared!.remove(node.share)
  if (node.reservation > 0) pool.reserved!.remove(node.reserve)
}

/**
 * The child that should run: the one whose reservation has the earliest deadline of those that are behind; else, of
 * those that are owed something, the one whose share has. undefined if none is queued.
 */
export function choose(pool: Node, now: number): Node | undefined {
  const reserved = pool.reserved!.first(now)
  if (reserved !== undefined) {
    reserved.owner.byReservation = true
    return reserved.owner
  }
  // Somebody is always at or before the mean, whatever the last bit of V says.
  const shared = pool.shared!.first(Math.max(virtualTime(pool), pool.shared!.earliest))
  if (shared === undefined) return undefined
  shared.owner.byReservation = false
  if (shared.owner.isServed) unserve(pool, shared.owner)
  return shared.owner
}

/** Whether `choose` would rather have taken `node` than the one that runs, were it asked now. */
export function beats(node: Node, running: Node, pool: Node, now: number): boolean {
  if (node.reservation > 0 && node.reserve.start <= now) {
    return !running.byReservation || node.reserve.deadline < running.reserve.deadline
  }
  if (running.byReservation) return false
  return node.share.deadline < running.share.deadline && node.share.start <= virtualTime(pool)
}

/**
 * Charges `elapsedNs` up to `now` to a node that runs (it is in no tree). All received time counts for R, but it is
 * never ahead by more than the quantum's rest of its period: what was received of the shares yesterday is no argument
 * against today's guarantee. (Of what it received by its reservation some quanta count, or who is often late to leave
 * would have more than it was promised, and others less.) Time by reservation counts for P, but P doesn't run further
 * ahead than one quantum: the shares divide what is left, and nobody pays later for what was guaranteed. Ahead of V by
 * reservation, the node is served: it doesn't count in V until it is chosen for its share again. If it did, all others
 * would be owed what they can't have, and who wakes would come after them.
 */
export function charge(pool: Node, node: Node, now: number, elapsedNs: number, quantumNs: number): void {
  const { share, reserve, shares, reservation } = node
  const quantum = quantumNs / shares
  // Its quantum by reservation was over, and it went on.
  if (node.isServed && !node.byReservation) unserve(pool, node)
  let step = elapsedNs / shares
  if (node.byReservation) step = Math.min(step, Math.max(0, virtualTime(pool) + quantum - share.start))
  share.start += step
  if (!node.isServed) {
    pool.offset += step * shares
    if (node.byReservation && share.start > virtualTime(pool) + ROUNDING * quantum) serve(pool, node)
  }
  // With its quantum used up and nobody to stop it, it is on its next.
  if (share.start >= share.deadline - ROUNDING * quantum) share.deadline = share.start + quantum
  if (reservation > 0) {
    const quanta = node.byReservation ? OVERRUN_MAX : 1
    const ahead = now + quanta * quantumNs / reservation - quantumNs
    const start = reserve.start + elapsedNs / reservation
    reserve.start = start < ahead ? start : Math.max(ahead, reserve.start)
    if (reserve.start >= reserve.deadline - ROUNDING * quantumNs / reservation) node.byReservation = false
  }
  if (node.limit < 1) {
    node.tokensNs += (node.limit - 1) * elapsedNs
    node.tokensAt = now
  }
}

/** Fills the bucket up to `now`. Not for a node that runs: `charge` does both. */
export function refill(node: Node, now: number, quantumNs: number): void {
  if (node.limit < 1) node.tokensNs = Math.min(quantumNs, node.tokensNs + node.limit * (now - node.tokensAt))
  else node.tokensNs = quantumNs
  node.tokensAt = now
}

/** Whether the bucket, filled up to now, has enough for a useful stint, give or take what rounding makes of it. */
export function mayStart(node: Node, quantumNs: number): boolean {
  return node.limit >= 1 || (node.limit > 0 && node.tokensNs >= STINT * quantumNs - 1)
}

/** When it will have. */
export function releaseTime(node: Node, quantumNs: number): number {
  if (node.limit === 0) return Infinity
  return node.tokensAt + Math.ceil((STINT * quantumNs - node.tokensNs) / node.limit)
}

/** When the bucket of a node that runs will be empty, if it goes on. */
export function exhaustedAt(node: Node): number {
  if (node.limit >= 1) return Infinity
  if (node.limit === 0) return node.tokensAt
  return node.tokensAt + Math.floor(Math.max(0, node.tokensNs) / (1 - node.limit))
}

/**
 * Gives a node other terms. It is in no tree. What it is owed, or owes, is kept in nanoseconds of running. For one that
 * isn't in V that is counted from where `join` counts: without it V may be far from where it was with it. One that runs
 * begins a quantum.
 */
export function reweigh(pool: Node, node: Node, terms: Terms, now: number, quantumNs: number): void {
  const isCounted = (node.state === RUNNABLE || node.state === RUNNING) && !node.isServed
  const v = isCounted ? virtualTime(pool) : Math.max(pool.reached, virtualTime(pool))
  if (isCounted) removeWeight(pool, node)
  node.share.start = v - (v - node.share.start) * node.shares / terms.shares
  const behind = node.reservation > 0 && terms.reservation > 0
    ? (now - node.reserve.start) * node.reservation / terms.reservation : 0
  node.reserve.start = now - behind
  node.owedNs = terms.reservation > 0 ? node.owedNs * node.reservation / terms.reservation : 0
  node.shares = terms.shares
  node.reservation = terms.reservation
  node.limit = terms.limit
  node.share.deadline = deadlineOf(node, quantumNs)
  if (node.reservation > 0) node.reserve.deadline = node.reserve.start + quantumNs / node.reservation
  else node.byReservation = false
  node.tokensAt = now
  if (isCounted) addWeight(pool, node)
}

function serve(pool: Node, node: Node): void {
  removeWeight(pool, node)
  node.isServed = true
}

function unserve(pool: Node, node: Node): void {
  node.isServed = false
  addWeight(pool, node)
}

/** V goes so far from `base` before it is moved there, that sums keep their bits. A quantum of 1 ms is 1e6 at most. */
const REBASE = 2 ** 22

function addWeight(pool: Node, node: Node): void {
  if (pool.weight === 0) {
    pool.base = node.share.start
    pool.offset = 0
  } else if (Math.abs(pool.offset) > REBASE * pool.weight) {
    pool.base += pool.offset / pool.weight
    pool.offset = 0
  }
  pool.weight += node.shares
  pool.offset += node.shares * (node.share.start - pool.base)
}

function removeWeight(pool: Node, node: Node): void {
  pool.weight -= node.shares
  if (pool.weight === 0) {
    pool.base = node.share.start
    pool.offset = 0
  } else pool.offset -= node.shares * (node.share.start - pool.base)
}
