// sched/node.ts: one guest or pool in a run queue: its terms, where it stands, its accounts.

import { assert } from '../base/assert.ts'
import { SHARES_MAX } from '../base/limits.ts'
import { EligibleTree, Entry } from './eligible_tree.ts'

/** What a cell or a pool is given of a pCPU. */
export type Terms = {
  /** Weight against its siblings, 1 to 10,000, as cgroup v2's cpu.weight. */
  readonly shares: number
  /** pCPUs that it has whenever it wants them: 0.25 is a quarter of one. */
  readonly reservation: number
  /** pCPUs that it never has more of, in the long run. 1 and more is no limit on one pCPU. */
  readonly limit: number
}

/** Terms of who asks for nothing. */
export const DEFAULT_TERMS: Terms = { shares: 100, reservation: 0, limit: Infinity }

/** A bug of ours unless the terms can be kept by one pCPU. */
export function checkTerms({ shares, reservation, limit }: Terms): void {
  assert(shares >= 1 && shares <= SHARES_MAX, 'shares are 1 to 10,000', shares)
  assert(reservation >= 0 && reservation <= 1, 'a reservation is at most the pCPU', reservation)
  assert(limit >= reservation, 'a limit is no less than the reservation', limit)
}

/** Where a node stands. A pool that waits has no child that wants to run. */
export const WAITING = 0
export const RUNNABLE = 1
export const RUNNING = 2
export const THROTTLED = 3
export const ENDED = 4
/** Kept from running by its owner, whatever it wants. */
export const PAUSED = 5
export type State = typeof WAITING | typeof RUNNABLE | typeof RUNNING | typeof THROTTLED | typeof ENDED | typeof PAUSED

/**
 * A cell (a leaf) or a pool of a run queue. Its fields are the queue's; others read `owner`, `parent`, `state`, terms.
 */
export class Node<T = unknown> {
  readonly parent: Node<T> | undefined
  readonly isPool: boolean
  /** Whatever the maker of the node wants back from pick. */
  readonly owner: T | undefined
  shares: number
  reservation: number
  limit: number

  state: State = WAITING
  /** When it came into its state, and when into the queue. */
  since: number
  readonly bornAt: number

  // Tags (tags.ts). share.start is P, reserve.start is R; both are keys, changed only while they are in no tree.
  readonly share: Entry<Node<T>>
  readonly reserve: Entry<Node<T>>
  /** How long it runs before it waits, as far as is known: what its deadline is reckoned with, a quantum at most. */
  requestNs = Infinity
  /** It has never wanted to run yet. */
  isNew = true
  /** Of a cell: it is paused, or will be when it leaves the pCPU; and whether it wants to run when that is over. */
  isPaused = false
  wantsToRun = false
  /** Of a pool: what children that are gone had more than their share of, in nanoseconds. */
  debtNs = 0
  /** Runs, if it does, because it was behind its reservation. */
  byReservation = false
  /** Has had more than its share, by reservation: not counted in its pool's weight and V. */
  isServed = false
  /** How far R was behind when it last left its pool. */
  owedNs = 0
  /** The limit's bucket: nanoseconds of running left at `tokensAt`; below 0 it is a debt. */
  tokensNs = 0
  tokensAt: number
  readonly release: Entry<Node<T>>

  // Of a pool: its children that are runnable or running.
  readonly shared: EligibleTree<Node<T>> | undefined
  readonly reserved: EligibleTree<Node<T>> | undefined
  /** The child on the way to the cell that runs. */
  running: Node<T> | undefined = undefined
  /** How many are runnable or running; the weight of those that count in V; V = base + offset / weight; its maximum. */
  active = 0
  weight = 0
  base = 0
  offset = 0
  reached = 0
  children = 0

  // Accounts, up to `since` (runningNs: up to the last charge).
  runningNs = 0
  runnableNs = 0
  waitingNs = 0
  throttledNs = 0
  pausedNs = 0
  stints = 0
  switches = 0
  preemptions = 0
  /** Of a pool: how long it held its cells back while no pool above did; and what `blocked` of its parent was. */
  blockedNs = 0
  blockedAt = 0
  /** Its row in the matrix of who had the pCPU; -1 if it has none (blame.ts). */
  row = -1

  constructor(parent: Node<T> | undefined, terms: Terms, now: number, { isPool, owner }: Kind<T>) {
    this.parent = parent
    this.isPool = isPool
    this.owner = owner
    this.shares = terms.shares
    this.reservation = terms.reservation
    this.limit = terms.limit
    this.since = now
    this.bornAt = now
    this.tokensAt = now
    this.share = new Entry<Node<T>>(this)
    this.share.start = -Infinity
    this.reserve = new Entry<Node<T>>(this)
    this.release = new Entry<Node<T>>(this)
    this.shared = isPool ? new EligibleTree<Node<T>>() : undefined
    this.reserved = isPool ? new EligibleTree<Node<T>>() : undefined
  }
}

type Kind<T> = { readonly isPool: boolean; readonly owner?: T | undefined }

/**
 * For how long, ever since, the cells of `pool` have been held back by its limit or that of a pool above it. Pools that
 * are throttled at the same time count once. A cell takes the difference over its time as runnable: no limit of a pool
 * touches the accounts of its ten thousand cells.
 */
export function blocked(pool: Node, now: number): number {
  if (pool.parent === undefined) return 0
  const above = blocked(pool.parent, now)
  const current = pool.state === THROTTLED ? now - pool.since - (above - pool.blockedAt) : 0
  return above + pool.blockedNs + current
}

/** Ends the time in the present state, and begins that in `state`. Running time is charged elsewhere. */
export function enter(node: Node, state: State, now: number): void {
  const elapsed = now - node.since
  const above = node.parent === undefined ? 0 : blocked(node.parent, now)
  if (node.state === WAITING) node.waitingNs += elapsed
  else if (node.state === PAUSED) node.pausedNs += elapsed
  else if (node.state === THROTTLED) {
    node.throttledNs += elapsed
    node.blockedNs += elapsed - (above - node.blockedAt)
  } else if (node.state === RUNNABLE) {
    const held = above - node.blockedAt
    node.throttledNs += held
    node.runnableNs += elapsed - held
  }
  node.state = state
  node.since = now
  node.blockedAt = above
}
