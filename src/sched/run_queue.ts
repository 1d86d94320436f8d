// sched/run_queue.ts: who runs on one pCPU.
//
// A tree: the root pool, pools in it, cells as leaves. The owner of the pCPU tells what happens (a cell wakes, the
// running one has left) with the time, and asks who is next (`pick`) and until when (`until`). Nothing here reads a
// clock or runs anything. At each level of the tree a child is chosen by three tags (tags.ts), charged with real time:
//
//   reservation   Of the children that have less than they are guaranteed, the one with the earliest deadline.
//   shares        Else the earliest virtual deadline of the children that have had no more than their share.
//   limit         A child without tokens isn't there at all until it has enough of them for a useful stint.
//
// Reservation and limit as tags beside the shares are mClock's (Gulati, Merchant, Varman, OSDI '10), by time received
// instead of requests. The shares are EEVDF (Stoica, Abdel-Wahab, 1996; Linux since 6.6): nobody is ever further from
// its share than a quantum, whereas the smallest P alone lets a child of weight 1000 wait for a quantum of each of a
// thousand others. Reservations are EDF by the same argument. V is EEVDF's mean and not a clock that only advances:
// such a clock runs away from all by what each sleeper leaves with, and sleeping often would pay (fairness_test.ts).
//
// Bounds at each level, where the pCPU is left at `until`: shares, within a quantum of the fluid ideal; a reservation,
// within two quanta over any window in which the child wants it all; a limit, exceeded by a quantum at most over any
// window. Who wakes, or is new, has a quantum's credit: n of them may each come first once, so a cell of weight w waits
// for 2 W/w + n quanta at most, where W is the weight of all n. A pool's reservation must cover its children's; its
// limit binds them all. What comes later than `until` is charged like the rest. Costs: O(depth · log n) an operation.
//
// Hot path: no allocation, no closures.

import { assert } from '../base/assert.ts'
import { BLAME_MAX, Blame } from './blame.ts'
import { EligibleTree } from './eligible_tree.ts'
import {
  checkTerms, DEFAULT_TERMS, ENDED, enter, Node, blocked, PAUSED, RUNNABLE, RUNNING, THROTTLED, WAITING, type Terms,
} from './node.ts'
import {
  beats, bequeath, charge, choose, dequeue, enqueue, exhaustedAt, join, learn, leave, mayStart, refill, releaseTime,
  reweigh,
} from './tags.ts'

/** What became of a node's time: nanoseconds that add up to its age. */
export type Account = {
  readonly ageNs: number
  readonly runningNs: number
  /** It could have run, had others not. */
  readonly runnableNs: number
  readonly waitingNs: number
  /** A limit kept it from running: its own, or that of a pool above it. */
  readonly throttledNs: number
  /** Its owner kept it from running. */
  readonly pausedNs: number
  /** Times that it was picked; of these, after another cell; times that it left though it could have gone on. */
  readonly stints: number
  readonly switches: number
  readonly preemptions: number
}

/** How a cell leaves the pCPU: it could go on, it waits for something, it is over. */
export type Stop = 'runnable' | 'waiting' | 'ended'

/** Of a quantum: what is picked runs for so long before a throttled one that comes back is looked at. */
const LOOK = 1 / 8

/** The scheduler of one pCPU. All times are nanoseconds of one clock that doesn't go back. */
export class RunQueue<T = unknown> {
  readonly root: Node<T>
  /** The longest that a cell runs while others want to. May be changed at any time. */
  quantumNs: number
  /** Who has the pCPU. */
  current: Node<T> | undefined = undefined
  /**
   * When the current cell must be asked to leave; Infinity if nothing will ever need it. With nobody current: when to
   * pick again; Infinity if only a wake can bring anything. Any call may change it.
   */
  until = Infinity

  readonly #cells = new Set<Node<T>>()
  readonly #throttled = new EligibleTree<Node<T>>()
  #last: Node<T> | undefined = undefined
  #now = 0
  #chargedAt = 0
  #pickedAt = 0
  /** The end of the current quantum; it counts only if somebody else wants the pCPU. */
  #sliceEnd = 0
  /** The current cell was asked to leave for another. */
  #isLeaving = false
  #blame: Blame<T> | undefined = undefined

  constructor({ quantumNs, now = 0 }: { quantumNs: number; now?: number }) {
    this.quantumNs = quantumNs
    this.#now = now
    this.root = new Node<T>(undefined, DEFAULT_TERMS, now, { isPool: true })
  }

  /** A pool in `parent`. */
  addPool(parent: Node<T>, terms: Terms, now: number, owner?: T): Node<T> {
    return this.#add(parent, terms, now, true, owner)
  }

  /** A cell in `parent`, which waits: wake it. `owner` is for the caller to find its own by. */
  addCell(parent: Node<T>, terms: Terms, now: number, owner?: T): Node<T> {
    const cell = this.#add(parent, terms, now, false, owner)
    this.#cells.add(cell)
    if (this.#blame !== undefined && !this.#blame.add(cell)) this.blame(false)
    return cell
  }

  #add(parent: Node<T>, terms: Terms, now: number, isPool: boolean, owner: T | undefined): Node<T> {
    checkTerms(terms)
    assert(parent.isPool && parent.state !== ENDED, 'a parent is a pool')
    const node = new Node<T>(parent, terms, this.#advance(now), { isPool, owner })
    node.tokensNs = this.quantumNs
    parent.children++
    return node
  }

  /** Takes out a cell that doesn't run at the moment (that one is stopped as 'ended'), or a pool that is empty. */
  remove(node: Node<T>, now: number): void {
    this.#settle(now)
    assert(node !== this.current && node !== this.root && node.children === 0, 'a node is removed while it is used')
    if (node.state === RUNNABLE || node.state === THROTTLED) this.#deactivate(node)
    this.#end(node)
    this.#arm()
  }

  /** Gives a node other terms, whatever it is doing. Debts and credits are kept, in nanoseconds of running. */
  setTerms(node: Node<T>, terms: Terms, now: number): void {
    checkTerms(terms)
    const pool = node.parent
    assert(pool !== undefined && node.state !== ENDED, 'terms are those of a cell or a pool in a queue')
    this.#settle(now)
    const { state } = node
    if (state !== RUNNING) refill(node, this.#now, this.quantumNs)
    if (state === RUNNABLE) dequeue(pool, node)
    reweigh(pool, node, terms, this.#now, this.quantumNs)
    if (state === RUNNABLE) {
      enqueue(pool, node, this.#now, this.quantumNs)
      if (!mayStart(node, this.quantumNs)) {
        this.#deactivate(node)
        this.#throttle(node)
      }
    } else if (state === THROTTLED) {
      this.#unthrottle(node)
      this.#activate(node)
    }
    this.#arm()
  }

  /**
   * The cell wants to run. True if it should have the pCPU in place of the current one, which is then due to leave at
   * once. Nothing happens if it does want to already; of one that is paused it is remembered.
   */
  wake(cell: Node<T>, now: number): boolean {
    this.#settle(now)
    if (cell.state === PAUSED) cell.wantsToRun = true
    if (cell.state !== WAITING) return false
    return this.#join(cell)
  }

  /**
   * Keeps a cell from running until `unpause`, whatever it wants. True if it is the current one, which is then due to
   * leave at once, and is paused when it has left.
   */
  pause(cell: Node<T>, now: number): boolean {
    this.#settle(now)
    assert(!cell.isPool && cell.state !== ENDED, 'a cell is paused that is there')
    if (cell.isPaused) return false
    cell.isPaused = true
    if (cell === this.current) {
      this.#isLeaving = true
      this.#arm()
      return true
    }
    cell.wantsToRun = cell.state !== WAITING
    if (cell.wantsToRun) this.#deactivate(cell)
    enter(cell, PAUSED, this.#now)
    this.#arm()
    return false
  }

  /** Lets a cell run again. As `wake`: true if it should have the pCPU in place of the current one. */
  unpause(cell: Node<T>, now: number): boolean {
    this.#settle(now)
    if (!cell.isPaused) return false
    cell.isPaused = false
    // It hasn't left the pCPU yet, or it has ended.
    if (cell.state !== PAUSED) return false
    enter(cell, WAITING, this.#now)
    return cell.wantsToRun && this.#join(cell)
  }

  /** A cell that waits wants to run. True if it should have the pCPU in place of the current one. */
  #join(cell: Node<T>): boolean {
    const joined = this.#activate(cell)
    const rival = joined?.parent!.running
    const preempts = joined !== undefined && rival !== undefined && beats(joined, rival, joined.parent!, this.#now)
    if (preempts) this.#isLeaving = true
    this.#arm()
    return preempts
  }

  /** Chooses who runs next and makes it current; undefined if nobody can run. See `until`. Nobody must be current. */
  pick(now: number): Node<T> | undefined {
    assert(this.current === undefined, 'the current cell has left before another is picked')
    now = this.#advance(now)
    this.#releaseDue()
    if (this.root.active === 0) {
      this.#arm()
      return undefined
    }
    let node = this.root
    enter(node, RUNNING, now)
    while (node.isPool) {
      const child = choose(node, now) as Node<T>
      dequeue(node, child)
      refill(child, now, this.quantumNs)
      enter(child, RUNNING, now)
      node.running = child
      node = child
    }
    this.current = node
    node.stints++
    if (node !== this.#last) node.switches++
    this.#last = node
    this.#chargedAt = now
    this.#pickedAt = now
    this.#sliceEnd = now + this.quantumNs
    this.#isLeaving = false
    this.until = Infinity
    this.#arm()
    return node
  }

  /** The current cell has left the pCPU. Real time since `pick` is charged to it and to its pools. */
  stop(now: number, how: Stop): void {
    this.#settle(now)
    const cell = this.current
    assert(cell !== undefined, 'a cell is current that is stopped')
    this.current = undefined
    learn(cell, this.#now - this.#pickedAt, how === 'waiting', this.quantumNs)
    if (how === 'runnable') cell.preemptions++
    if (how === 'runnable' && !cell.isPaused) this.#queueOrThrottle(cell)
    else {
      leave(cell.parent!, cell, this.#now, this.quantumNs)
      enter(cell, cell.isPaused ? PAUSED : WAITING, this.#now)
      cell.wantsToRun = how === 'runnable'
      if (how === 'ended') this.#end(cell)
    }
    for (let pool = cell.parent!; pool !== this.root; pool = pool.parent!) {
      pool.running = undefined
      if (pool.active > 0) this.#queueOrThrottle(pool)
      else {
        leave(pool.parent!, pool, this.#now, this.quantumNs)
        enter(pool, WAITING, this.#now)
      }
    }
    this.root.running = undefined
    enter(this.root, WAITING, this.#now)
    this.#arm()
  }

  /** What became of the node's time so far. Changes nothing. */
  account(node: Node<T>, now: number): Account {
    now = Math.max(now, this.#now)
    const { state, stints, switches, preemptions } = node
    let { runningNs, runnableNs, waitingNs, throttledNs, pausedNs } = node
    const end = state === ENDED ? node.since : now
    const elapsed = end - node.since
    if (state === RUNNING) runningNs += now - this.#chargedAt
    else if (state === WAITING) waitingNs += elapsed
    else if (state === THROTTLED) throttledNs += elapsed
    else if (state === PAUSED) pausedNs += elapsed
    else if (state === RUNNABLE) {
      const held = blocked(node.parent!, now) - node.blockedAt
      throttledNs += held
      runnableNs += elapsed - held
    }
    return { ageNs: end - node.bornAt, runningNs, runnableNs, waitingNs, throttledNs, pausedNs, stints, switches,
      preemptions }
  }

  /** Whose limit keeps the node from running: its own, or that of the nearest pool above it; undefined if none. */
  throttledBy(node: Node<T>): Node<T> | undefined {
    if (node.state !== RUNNABLE && node.state !== THROTTLED) return undefined
    let found: Node<T> | undefined = node
    while (found !== undefined && found.state !== THROTTLED) found = found.parent
    return found
  }

  /**
   * Begins or ends noting who had the pCPU while another was runnable; either forgets what was noted. True if it is on:
   * with more than BLAME_MAX cells it can't be, and goes off when there come to be more.
   */
  blame(on: boolean): boolean {
    this.#blame?.clear()
    this.#blame = undefined
    if (!on || this.#cells.size > BLAME_MAX) return false
    this.#blame = new Blame<T>()
    for (const cell of this.#cells) this.#blame.add(cell)
    return true
  }

  get isBlaming(): boolean {
    return this.#blame !== undefined
  }

  /** Who had the pCPU while the cell was runnable, most first; undefined stands for cells that are gone. */
  blamed(cell: Node<T>): [by: Node<T> | undefined, ns: number][] {
    return this.#blame?.of(cell) ?? []
  }

  #advance(now: number): number {
    if (now > this.#now) this.#now = now
    return this.#now
  }

  /** Charges what has run up to now. */
  #settle(now: number): void {
    now = this.#advance(now)
    const cell = this.current
    if (cell === undefined) return
    const elapsed = now - this.#chargedAt
    this.#chargedAt = now
    if (elapsed === 0) return
    for (let node = cell; node !== this.root; node = node.parent!) {
      node.runningNs += elapsed
      charge(node.parent!, node, now, elapsed, this.quantumNs)
    }
    this.root.runningNs += elapsed
    this.#blame?.charge(cell, elapsed)
  }

  /**
   * The node wants to run, and so its pools do. The topmost that has newly come to compete with what runs; undefined
   * if that makes no difference: a limit is in the way, or a pool above is queued already.
   */
  #activate(node: Node<T>): Node<T> | undefined {
    for (;;) {
      const pool = node.parent!
      refill(node, this.#now, this.quantumNs)
      if (!mayStart(node, this.quantumNs)) {
        this.#throttle(node)
        return undefined
      }
      join(pool, node, this.#now, this.quantumNs)
      enqueue(pool, node, this.#now, this.quantumNs)
      enter(node, RUNNABLE, this.#now)
      if (pool === this.root || pool.state === RUNNING) return node
      if (pool.state !== WAITING) return undefined
      node = pool
    }
  }

  /** A node that is queued or throttled does no longer want to run, nor do pools that it leaves without a child. */
  #deactivate(node: Node<T>): void {
    for (;;) {
      const pool = node.parent!
      if (node.state === THROTTLED) return this.#unthrottle(node)
      dequeue(pool, node)
      leave(pool, node, this.#now, this.quantumNs)
      enter(node, WAITING, this.#now)
      if (pool === this.root || pool.active > 0 || pool.state === RUNNING) return
      node = pool
    }
  }

  /** Puts an active node back in its pool, or takes it out if its bucket is too low. */
  #queueOrThrottle(node: Node<T>): void {
    const pool = node.parent!
    if (mayStart(node, this.quantumNs)) {
      enqueue(pool, node, this.#now, this.quantumNs)
      enter(node, RUNNABLE, this.#now)
    } else {
      leave(pool, node, this.#now, this.quantumNs)
      this.#throttle(node)
    }
  }

  #throttle(node: Node<T>): void {
    enter(node, THROTTLED, this.#now)
    node.release.start = releaseTime(node, this.quantumNs)
    node.release.deadline = node.release.start
    this.#throttled.insert(node.release)
  }

  /** Lets those back in whose time has come. */
  #releaseDue(): void {
    for (;;) {
      const due = this.#throttled.first(this.#now)
      if (due === undefined) return
      this.#unthrottle(due.owner)
      this.#activate(due.owner)
    }
  }

  #unthrottle(node: Node<T>): void {
    this.#throttled.remove(node.release)
    enter(node, WAITING, this.#now)
  }

  #end(node: Node<T>): void {
    enter(node, ENDED, this.#now)
    bequeath(node.parent!, node, this.quantumNs)
    node.parent!.children--
    if (this.#last === node) this.#last = undefined
    if (node.isPool) return
    this.#cells.delete(node)
    if (node.row !== -1) this.#blame!.remove(node)
  }

  /** Sets `until`, after anything has changed. */
  #arm(): void {
    const cell = this.current
    if (cell === undefined) {
      this.until = this.root.active > 0 ? this.#now : this.#throttled.earliest
      return
    }
    let until = Infinity
    let isContested = false
    for (let node = cell; node !== this.root; node = node.parent!) {
      if (node.parent!.active > 1) isContested = true
      until = Math.min(until, exhaustedAt(node))
    }
    if (isContested) {
      // It has run alone for longer than a quantum, and who has come doesn't beat it: that one waits for one more.
      if (this.#sliceEnd <= this.#now && this.until > this.#now) this.#sliceEnd = this.#now + this.quantumNs
      until = Math.min(until, this.#sliceEnd)
    }
    const released = this.#throttled.earliest
    if (released < until) until = Math.min(until, Math.max(released, this.#pickedAt + LOOK * this.quantumNs))
    this.until = this.#isLeaving ? Math.min(until, this.#now) : until
  }
}
