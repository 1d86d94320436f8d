// sched/run_queue_model_test.ts: the queue against a scheduler with the same policy and no data structures.
//
// The model keeps nothing that can be computed: who is active, V, who is next are found by looking at everybody, each
// time. Both are told the same; they must choose the same cells, preempt at the same wakes, and set the same `until`.
// Where two candidates are equal but for the last bits of a tag, either is right, and the model follows the queue.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { PAUSED, RUNNABLE, RUNNING, THROTTLED, WAITING, type Node, type Terms } from './node.ts'
import { RunQueue } from './run_queue.ts'

const Q = 1e6
const STINT = Q / 4
const TIE = 0.01

class Guest {
  readonly parent: Guest | undefined
  readonly children: Guest[] = []
  terms: Terms
  wants = false
  /** It is paused, or will be when it leaves. */
  isPaused = false
  isLeavingToPause = false
  isActive = false
  releaseAt: number | undefined = undefined
  throttled = 0
  p = -Infinity
  r = 0
  owed = 0
  request = Infinity
  isNew = true
  tokens = Q
  tokensAt = 0
  reached = 0
  idleV = 0
  // While it runs.
  byReservation = false
  isServed = false
  pDeadline = 0
  rDeadline = 0

  constructor(parent: Guest | undefined, terms: Terms) {
    this.parent = parent
    this.terms = terms
    parent?.children.push(this)
  }

  get v(): number {
    const active = this.children.filter(({ isActive, isServed }) => isActive && !isServed)
    if (active.length === 0) return this.idleV
    const weight = active.reduce((sum, { terms }) => sum + terms.shares, 0)
    return active.reduce((sum, { p, terms }) => sum + p * terms.shares / weight, 0)
  }

  /** Out of what V is the mean of. */
  serve(): void {
    this.isServed = true
    this.parent!.idleV = this.p
  }

  /** A sixteenth of a quantum at least; what outruns its request is reckoned with a quantum again. */
  learn(stint: number, keeps: boolean): void {
    const request = Math.min(this.request, Q)
    if (!keeps) this.request = Math.max(Q / 16, request / 2 + stint)
    else if (stint > request) this.request = Infinity
  }

  get pQuantum(): number { return Q / this.terms.shares }
  get pRequest(): number { return Math.min(this.request, Q) / this.terms.shares }
  get rQuantum(): number { return Q / this.terms.reservation }
  get wantsUp(): boolean { return (this.wants && !this.isPaused) || this.children.some(({ isActive }) => isActive) }
  get mayStart(): boolean { return this.terms.limit >= 1 || (this.terms.limit > 0 && this.tokens >= STINT - 1) }
}

/** Of those that are not late, the earliest deadline; and who may be as good, but for rounding. */
function best(list: readonly Guest[], late: (guest: Guest) => number, deadline: (guest: Guest) => number): Guest[] {
  const bar = Math.min(...list.filter((guest) => late(guest) <= -TIE).map(deadline))
  return list.filter((guest) => late(guest) <= TIE && deadline(guest) <= bar + TIE)
}

class Model {
  readonly root = new Guest(undefined, { shares: 100, reservation: 0, limit: Infinity })
  readonly all: Guest[] = []
  path: Guest[] = []
  now = 0
  pickedAt = 0
  sliceEnd = 0
  until = Infinity
  isLeaving = false
  order = 0

  add(parent: Guest, terms: Terms): Guest {
    const guest = new Guest(parent, terms)
    guest.tokensAt = this.now
    this.all.push(guest)
    return guest
  }

  settle(now: number): void {
    const elapsed = now - this.now
    this.now = now
    if (elapsed === 0) return
    for (const guest of this.path) {
      const { terms, pQuantum, rQuantum } = guest
      if (!guest.byReservation) guest.isServed = false
      const room = Math.max(0, guest.parent!.v + pQuantum - guest.p)
      guest.p += guest.byReservation ? Math.min(elapsed / terms.shares, room) : elapsed / terms.shares
      const ahead = guest.p - guest.parent!.v
      if (guest.byReservation && !guest.isServed && ahead > 1e-6 * pQuantum) guest.serve()
      if (guest.p >= guest.pDeadline - 1e-6 * pQuantum) guest.pDeadline = guest.p + pQuantum
      if (terms.reservation > 0) {
        const ahead = now + (guest.byReservation ? 4 : 1) * rQuantum - Q
        guest.r = Math.min(guest.r + elapsed / terms.reservation, Math.max(guest.r, ahead))
        if (guest.r >= guest.rDeadline - 1e-6 * rQuantum) guest.byReservation = false
      }
      if (terms.limit < 1) guest.tokens += (terms.limit - 1) * elapsed
      guest.tokensAt = now
    }
  }

  refill(guest: Guest): void {
    guest.tokens = guest.terms.limit >= 1 ? Q
      : Math.min(Q, guest.tokens + guest.terms.limit * (this.now - guest.tokensAt))
    guest.tokensAt = this.now
  }

  throttle(guest: Guest): void {
    guest.throttled = this.order++
    const { limit } = guest.terms
    guest.releaseAt = limit === 0 ? Infinity : this.now + Math.ceil((STINT - guest.tokens) / limit)
  }

  join(guest: Guest): void {
    const pool = guest.parent!
    pool.reached = Math.max(pool.reached, pool.v)
    // Nobody is taken out in these histories, so that nobody leaves a debt.
    guest.p = Math.max(guest.p, pool.reached - (guest.isNew ? 0 : guest.pQuantum))
    guest.isNew = false
    guest.r = Math.max(guest.r, this.now - guest.owed)
    guest.isActive = true
  }

  leave(guest: Guest): void {
    const pool = guest.parent!
    pool.reached = Math.max(pool.reached, pool.v)
    guest.isActive = false
    if (!guest.isServed) pool.idleV = guest.p
    guest.isServed = false
    guest.owed = guest.terms.reservation > 0 ? Math.max(0, Math.min(this.now - guest.r, 4 * guest.rQuantum)) : 0
  }

  /** Lets those in whose time has come, in that order. */
  release(): void {
    for (;;) {
      const due = this.all.filter(({ releaseAt }) => releaseAt !== undefined && releaseAt <= this.now)
        .sort((a, b) => a.releaseAt! - b.releaseAt! || a.throttled - b.throttled)[0]
      if (due === undefined) return
      due.releaseAt = undefined
      this.update()
    }
  }

  /** Makes active who wants to be, and idle who doesn't, children before their pools. */
  update(): Guest[] {
    const joined: Guest[] = []
    for (const guest of this.all.toReversed()) {
      if (!guest.wantsUp) {
        guest.releaseAt = undefined
        if (guest.isActive) this.leave(guest)
      } else if (!guest.isActive && guest.releaseAt === undefined) {
        this.refill(guest)
        if (!guest.mayStart) this.throttle(guest)
        else {
          this.join(guest)
          joined.push(guest)
        }
      }
    }
    return joined
  }

  queue(guest: Guest): void {
    if (guest.mayStart) {
      if (guest.terms.reservation > 0) guest.r = Math.max(guest.r, this.now - 4 * guest.rQuantum)
    } else {
      this.leave(guest)
      this.throttle(guest)
    }
  }

  /** Who of the children may be chosen, and why: more than one only if they are equal but for rounding. */
  candidates(pool: Guest): [guest: Guest, byReservation: boolean][] {
    const active = pool.children.filter(({ isActive }) => isActive)
    const reserved = active.filter(({ terms }) => terms.reservation > 0)
    const behind = best(reserved, ({ r }) => r - this.now, ({ r, rQuantum }) => r + rQuantum)
    const bar = Math.max(pool.v, Math.min(...active.map(({ p }) => p)))
    const shared = best(active, ({ p }) => p - bar, ({ p, pRequest }) => p + pRequest)
    const isSure = reserved.some(({ r }) => r <= this.now - TIE)
    return [...behind.map((guest): [Guest, boolean] => [guest, true]),
      ...(isSure ? [] : shared).map((guest): [Guest, boolean] => [guest, false])]
  }

  run(path: Guest[]): void {
    this.path = path
    for (const guest of path) {
      this.refill(guest)
      guest.pDeadline = guest.p + guest.pRequest
      guest.rDeadline = guest.r + guest.rQuantum
    }
    this.pickedAt = this.now
    this.sliceEnd = this.now + Q
    this.until = Infinity
    this.isLeaving = false
  }

  stop(keeps: boolean): void {
    const path = this.path
    this.path = []
    path[0]!.wants = keeps
    if (path[0]!.isLeavingToPause) path[0]!.isPaused = true
    path[0]!.isLeavingToPause = false
    path[0]!.learn(this.now - this.pickedAt, keeps)
    for (const guest of path) {
      if (guest.wantsUp) this.queue(guest)
      else this.leave(guest)
    }
    this.update()
  }

  /** Whether the topmost of those that joined is to have the pCPU; undefined if it hangs on the last bits. */
  preempts(joined: Guest | undefined): boolean | undefined {
    const pool = joined?.parent
    const rival = pool?.children.find((child) => this.path.includes(child))
    if (joined === undefined || rival === undefined) return false
    if (joined.terms.reservation > 0) {
      if (Math.abs(joined.r - this.now) < TIE && joined.r !== this.now) return undefined
      const ahead = joined.r + joined.rQuantum - rival.rDeadline
      if (joined.r <= this.now) return !rival.byReservation || (Math.abs(ahead) < TIE ? undefined : ahead < 0)
    }
    const ahead = joined.p + joined.pRequest - rival.pDeadline
    const over = joined.p - pool!.v
    if (rival.byReservation || ahead > TIE || over > TIE) return false
    return ahead < -TIE && over < -TIE ? true : undefined
  }

  pause(guest: Guest): void {
    if (this.path.includes(guest)) {
      guest.isLeavingToPause = true
      this.isLeaving = true
    } else guest.isPaused = true
    this.update()
  }

  unpause(guest: Guest): Guest | undefined {
    guest.isPaused = false
    guest.isLeavingToPause = false
    return this.update().at(-1)
  }

  arm(): void {
    const released = Math.min(Infinity, ...this.all.map(({ releaseAt }) => releaseAt ?? Infinity))
    if (this.path.length === 0) {
      this.until = this.root.wantsUp ? this.now : released
      return
    }
    let until = Math.min(...this.path.map(({ terms: { limit }, tokens, tokensAt }) => {
      if (limit >= 1) return Infinity
      return limit === 0 ? tokensAt : tokensAt + Math.floor(Math.max(0, tokens) / (1 - limit))
    }))
    if (this.path.some(({ parent }) => parent!.children.filter(({ isActive }) => isActive).length > 1)) {
      if (this.sliceEnd <= this.now && this.until > this.now) this.sliceEnd = this.now + Q
      until = Math.min(until, this.sliceEnd)
    }
    if (released < until) until = Math.min(until, Math.max(released, this.pickedAt + Q / 8))
    this.until = this.isLeaving ? Math.min(until, this.now) : until
  }

  setTerms(guest: Guest, terms: Terms): void {
    const pool = guest.parent!
    const v = guest.isActive && !guest.isServed ? pool.v : Math.max(pool.v, pool.reached)
    const old = guest.terms
    if (!this.path.includes(guest)) this.refill(guest)
    guest.p = v - (v - guest.p) * old.shares / terms.shares
    const both = old.reservation > 0 && terms.reservation > 0
    guest.r = both ? this.now - (this.now - guest.r) * old.reservation / terms.reservation : this.now
    guest.owed = terms.reservation > 0 ? guest.owed * old.reservation / terms.reservation : 0
    guest.terms = terms
    guest.tokensAt = this.now
    guest.pDeadline = guest.p + guest.pRequest
    guest.rDeadline = guest.r + guest.rQuantum
    if (terms.reservation === 0) guest.byReservation = false
    if (!this.path.includes(guest)) {
      if (guest.isActive) this.queue(guest)
      else guest.releaseAt = undefined
      this.update()
    }
  }
}

const percent = fc.integer({ min: 0, max: 100 }).map((x) => x / 100)
const anyTerms = fc.record({ shares: fc.constantFrom(10, 100, 100, 100, 300, 2000),
  reservation: fc.constantFrom(0, 0, 0, 0.1, 0.3), limit: fc.oneof(fc.constant(Infinity), percent) })
  .map((terms): Terms => ({ ...terms, limit: Math.max(terms.limit, terms.reservation) }))
const shape = fc.array(fc.record({ isPool: fc.boolean(), parent: fc.nat(), terms: anyTerms }),
  { minLength: 2, maxLength: 14, size: 'max' })
const command = fc.record({
  kind: fc.constantFrom('wake', 'wake', 'wake', 'go', 'go', 'go', 'go', 'wait', 'terms', 'pause', 'unpause', 'unpause'),
  which: fc.nat(), ns: fc.integer({ min: 0, max: 2 * Q }), terms: anyTerms })

/** Both side by side: `guests[i]` is the model of `nodes[i]`. */
class Pair {
  readonly queue = new RunQueue<Guest>({ quantumNs: Q })
  readonly model = new Model()
  readonly nodes: Node<Guest>[] = []
  readonly cells: Node<Guest>[] = []
  now = 0

  add(isPool: boolean, parent: Node<Guest>, terms: Terms): void {
    const guest = this.model.add(parent.owner ?? this.model.root, terms)
    const node = isPool ? this.queue.addPool(parent, terms, this.now, guest)
      : this.queue.addCell(parent, terms, this.now, guest)
    this.nodes.push(node)
    if (!isPool) this.cells.push(node)
  }

  step({ kind, which, ns, terms }: { kind: string; which: number; ns: number; terms: Terms }): void {
    const { queue, model } = this
    // To the moment that the queue asks for, or any other.
    this.now = which % 2 === 0 && queue.until < Infinity ? Math.max(this.now, queue.until) : this.now + ns
    model.settle(this.now)
    const node = this.nodes[which % this.nodes.length]!
    const cell = this.cells[which % this.cells.length]!
    if (kind === 'wake') this.wake(cell)
    else if (kind === 'pause') this.pause(cell)
    else if (kind === 'unpause') this.unpause(cell)
    else if (kind === 'terms') {
      queue.setTerms(node, terms, this.now)
      model.setTerms(node.owner!, terms)
    } else if (queue.current !== undefined) {
      queue.stop(this.now, kind === 'wait' ? 'waiting' : 'runnable')
      model.stop(kind !== 'wait')
      model.arm()
      this.compare()
    }
    if (queue.current === undefined) this.pick()
    model.arm()
    this.compare()
  }

  wake(cell: Node<Guest>): void {
    const isWaiting = cell.state === WAITING
    const preempted = this.queue.wake(cell, this.now)
    if (cell.state === PAUSED) cell.owner!.wants = true
    if (!isWaiting) return
    cell.owner!.wants = true
    this.comparePreemption(preempted, this.model.update().at(-1))
  }

  pause(cell: Node<Guest>): void {
    const isCurrent = cell === this.queue.current && !cell.owner!.isLeavingToPause
    assert.equal(this.queue.pause(cell, this.now), isCurrent, 'who runs must leave')
    this.model.pause(cell.owner!)
  }

  unpause(cell: Node<Guest>): void {
    const preempted = this.queue.unpause(cell, this.now)
    this.comparePreemption(preempted, this.model.unpause(cell.owner!))
  }

  comparePreemption(preempted: boolean, joined: Guest | undefined): void {
    const expected = this.model.preempts(joined)
    if (expected !== undefined) assert.equal(preempted, expected, 'preempts')
    if (preempted) this.model.isLeaving = true
  }

  pick(): void {
    const { model } = this
    model.release()
    const picked = this.queue.pick(this.now)
    assert.equal(picked !== undefined, model.root.wantsUp, 'somebody runs')
    const path: Guest[] = []
    for (let node = picked; node?.parent !== undefined; node = node.parent) {
      const found = model.candidates(node.parent.owner ?? model.root)
      assert.ok(found.some(([guest, why]) => guest === node.owner && why === node.byReservation), 'the same choice')
      node.owner!.byReservation = node.byReservation
      if (!node.byReservation) node.owner!.isServed = false
      path.push(node.owner!)
    }
    if (picked !== undefined) model.run(path)
  }

  compare(): void {
    for (const node of this.nodes) {
      const guest = node.owner!
      assert.equal(node.state === RUNNABLE || node.state === RUNNING, guest.isActive, 'active')
      assert.equal(node.state === THROTTLED, guest.releaseAt !== undefined, 'throttled')
      assert.equal(node.state === PAUSED, guest.isPaused, 'paused')
    }
    // What is overdue is overdue.
    const [until, expected] = [this.queue.until, this.model.until].map((time) => Math.max(this.now, time))
    assert.ok(until === expected || Math.abs(until! - expected!) <= 1, `until ${until}, not ${expected}`)
  }
}

test('RunQueue does what a model without data structures does', () => {
  fc.assert(fc.property(shape, fc.array(command, { maxLength: 200, size: 'max' }), (nodes, commands) => {
    const pair = new Pair()
    const pools = [pair.queue.root]
    nodes.forEach(({ isPool, parent, terms }, i) => {
      pair.add(isPool && i > 0, pools[parent % pools.length]!, terms)
      if (pair.nodes.at(-1)!.isPool) pools.push(pair.nodes.at(-1)!)
    })
    for (const each of commands) pair.step(each)
  }), { numRuns: 1500 })
})
