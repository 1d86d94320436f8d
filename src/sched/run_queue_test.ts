// sched/run_queue_test.ts: what the owner of a pCPU sees: pick, until, wake, stop, accounts, blame.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BLAME_MAX } from './blame.ts'
import { DEFAULT_TERMS, ENDED, PAUSED, THROTTLED, type Node, type Terms } from './node.ts'
import { RunQueue } from './run_queue.ts'

const Q = 1_000_000
const terms = (more: Partial<Terms> = {}): Terms => ({ ...DEFAULT_TERMS, ...more })
const queueOf = (...cells: Partial<Terms>[]): { queue: RunQueue<string>; cells: Node<string>[] } => {
  const queue = new RunQueue<string>({ quantumNs: Q })
  return { queue, cells: cells.map((more, i) => queue.addCell(queue.root, terms(more), 0, `cell ${i}`)) }
}

test('pick gives nobody when nobody wants to run, and waits for a wake', () => {
  const { queue, cells } = queueOf({})
  assert.equal(queue.pick(0), undefined)
  assert.equal(queue.until, Infinity)
  assert.equal(queue.wake(cells[0]!, 5), false)
  assert.equal(queue.until, 5)
  assert.equal(queue.pick(5)!.owner, 'cell 0')
  assert.equal(queue.current, cells[0])
})

test('until is infinite for one alone, and a quantum among others', () => {
  const { queue, cells } = queueOf({}, {})
  queue.wake(cells[0]!, 0)
  queue.pick(0)
  assert.equal(queue.until, Infinity)
  // One that is new has slept through nothing: it has no credit, and waits for the quantum's end.
  assert.equal(queue.wake(cells[1]!, 50 * Q), false)
  assert.equal(queue.until, 51 * Q)
  queue.stop(51 * Q, 'runnable')
  assert.equal(queue.pick(51 * Q), cells[1])
  assert.equal(queue.until, 52 * Q)
  // The other one leaves: alone again.
  queue.remove(cells[0]!, 51.5 * Q)
  assert.equal(queue.until, Infinity)
})

test('wake preempts who has used its share, and not who has not', () => {
  const { queue, cells } = queueOf({}, {})
  const [a, b] = cells as [Node<string>, Node<string>]
  queue.wake(a, 0)
  queue.pick(0)
  queue.stop(3 * Q, 'waiting')
  queue.wake(b, 3 * Q)
  queue.pick(3 * Q)
  assert.equal(queue.wake(a, 3 * Q + 100), false, 'a is ahead by what it had')
  assert.equal(queue.until, 4 * Q, 'but b has a quantum now, not all the time')
  assert.equal(queue.wake(a, 3 * Q + 200), false, 'twice is once')
})

test('wake of one behind its reservation preempts one that runs by its share', () => {
  const { queue, cells } = queueOf({ shares: 10_000 }, { shares: 1, reservation: 0.1 })
  queue.wake(cells[0]!, 0)
  queue.pick(0)
  assert.equal(queue.wake(cells[1]!, 10), true)
})

test('who is throttled comes back by itself, and the account says by which limit', () => {
  const { queue, cells: [cell] } = queueOf({ limit: 0.5 })
  queue.wake(cell!, 0)
  queue.pick(0)
  // A full bucket, filled at half the speed at which it empties.
  assert.equal(queue.until, 2 * Q)
  queue.stop(2 * Q, 'runnable')
  assert.equal(cell!.state, THROTTLED)
  assert.equal(queue.throttledBy(cell!), cell)
  assert.equal(queue.pick(2 * Q), undefined)
  assert.equal(queue.until, 2.5 * Q)
  assert.equal(queue.pick(2.5 * Q), cell)
  assert.equal(queue.throttledBy(cell!), undefined)
  const { ageNs, runningNs, throttledNs } = queue.account(cell!, 2.75 * Q)
  assert.deepEqual([ageNs, runningNs, throttledNs], [2.75 * Q, 2.25 * Q, 0.5 * Q])
})

test('time beyond until is charged, and becomes a debt of the limit', () => {
  const { queue, cells: [cell] } = queueOf({ limit: 0.5 })
  queue.wake(cell!, 0)
  queue.pick(0)
  queue.stop(10 * Q, 'runnable')
  assert.equal(queue.pick(10 * Q), undefined)
  // Eight quanta too many at a half are four, and a quarter for the stint; filled at a half.
  assert.equal(queue.until, 10 * Q + 8 * Q + 0.5 * Q)
})

test("a pool's limit holds back all its cells, and is named in their accounts", () => {
  const queue = new RunQueue({ quantumNs: Q })
  const pool = queue.addPool(queue.root, terms({ limit: 0.5 }), 0)
  const inner = queue.addPool(pool, terms(), 0)
  const [a, b] = [queue.addCell(inner, terms(), 0), queue.addCell(pool, terms(), 0)]
  queue.wake(a, 0)
  queue.wake(b, 0)
  for (let i = 0; i < 2; i++) {
    queue.pick(i * Q)
    queue.stop((i + 1) * Q, 'runnable')
  }
  assert.equal(queue.pick(2 * Q), undefined)
  assert.equal(queue.throttledBy(a), pool)
  assert.equal(queue.throttledBy(b), pool)
  for (const cell of [a, b]) {
    const { runningNs, runnableNs, throttledNs } = queue.account(cell, 2.2 * Q)
    assert.deepEqual([runningNs, runnableNs, throttledNs], [Q, Q, 0.2 * Q])
  }
  assert.equal(queue.account(pool, 2.2 * Q).throttledNs, 0.2 * Q)
  // A wake in a pool that is throttled changes nothing but the account.
  const late = queue.addCell(inner, terms(), 2.2 * Q)
  assert.equal(queue.wake(late, 2.2 * Q), false)
  assert.equal(queue.pick(2.2 * Q), undefined)
  assert.equal(queue.account(late, 2.3 * Q).throttledNs, 0.1 * Q)
  assert.notEqual(queue.pick(2.5 * Q), undefined)
})

test('setTerms with a limit throttles, and without one lets go, at once', () => {
  const { queue, cells } = queueOf({}, {})
  const [a, b] = cells as [Node<string>, Node<string>]
  queue.wake(a, 0)
  queue.wake(b, 0)
  queue.pick(0)
  assert.equal(queue.current, a)
  queue.setTerms(b, terms({ limit: 0 }), 1)
  assert.equal(b.state, THROTTLED)
  assert.equal(queue.until, Infinity, 'a is alone')
  queue.setTerms(a, terms({ limit: 0 }), 2)
  assert.ok(queue.until <= 2)
  queue.stop(2, 'runnable')
  assert.equal(queue.pick(2), undefined)
  assert.equal(queue.until, Infinity)
  queue.setTerms(b, terms(), 3)
  assert.equal(queue.pick(3), b)
})

test('remove takes out a cell in any state, and a pool that is empty', () => {
  const queue = new RunQueue({ quantumNs: Q })
  const pool = queue.addPool(queue.root, terms(), 0)
  const [waiting, throttled, runnable, running] = [{}, { limit: 0 }, {}, {}]
    .map((more) => queue.addCell(pool, terms(more), 0))
  for (const cell of [running, throttled, runnable]) queue.wake(cell!, 0)
  assert.equal(queue.pick(1), running)
  assert.throws(() => queue.remove(running!, 2), /while it is used/)
  assert.throws(() => queue.remove(pool, 2), /while it is used/)
  for (const cell of [waiting, throttled, runnable]) queue.remove(cell!, 2)
  queue.stop(3, 'ended')
  queue.remove(pool, 4)
  assert.equal(pool.state, ENDED)
  assert.equal(queue.pick(4), undefined)
  assert.deepEqual(queue.account(runnable!, 99), { ageNs: 2, runningNs: 0, runnableNs: 2, waitingNs: 0, throttledNs: 0,
    pausedNs: 0, stints: 0, switches: 0, preemptions: 0 })
  assert.throws(() => queue.addCell(pool, terms(), 5), /a parent is a pool/)
})

test('account counts stints, switches and preemptions, and of the pCPU its idle time', () => {
  const { queue, cells } = queueOf({}, {})
  const [a, b] = cells as [Node<string>, Node<string>]
  queue.wake(a, 10)
  queue.pick(10)
  queue.stop(20, 'runnable')
  queue.pick(20)
  queue.wake(b, 30)
  queue.stop(30, 'runnable')
  queue.pick(30)
  queue.stop(40, 'waiting')
  const { stints, switches, preemptions } = queue.account(a, 40)
  assert.deepEqual([stints + queue.account(b, 40).stints, switches, preemptions], [3, 1, 2])
  const { ageNs, runningNs, waitingNs } = queue.account(queue.root, 50)
  assert.deepEqual([ageNs, runningNs, waitingNs], [50, 30, 20])
})

test('pause keeps a cell from running, whatever it wants, and its wakes are remembered', () => {
  const { queue, cells } = queueOf({}, {}, { limit: 0.5 })
  const [a, b, limited] = cells as [Node<string>, Node<string>, Node<string>]
  assert.equal(queue.pause(a, 0), false)
  assert.equal(queue.wake(a, 10), false)
  assert.equal(queue.until, Infinity)
  assert.equal(queue.pick(10), undefined)
  assert.equal(queue.pause(a, 10), false, 'twice is once')
  queue.unpause(a, 20)
  assert.equal(queue.pick(20), a)
  // One that is queued is taken out, one that waits stays so.
  queue.wake(b, 20)
  assert.equal(queue.until, 20 + Q)
  queue.pause(b, 20)
  assert.equal(queue.until, Infinity)
  queue.stop(30, 'waiting')
  queue.pause(a, 30)
  assert.equal(queue.unpause(a, 40), false)
  assert.equal(queue.pick(40), undefined)
  assert.equal(queue.unpause(b, 40), false)
  assert.equal(queue.pick(40), b)
  // What a limit holds back is paused, and comes back to its limit.
  queue.stop(50, 'ended')
  queue.wake(limited, 50)
  queue.pick(50)
  queue.stop(50 + 3 * Q, 'runnable')
  assert.equal(limited.state, THROTTLED)
  queue.pause(limited, 50 + 3 * Q)
  assert.deepEqual([queue.pick(100 * Q), queue.until, limited.state], [undefined, Infinity, PAUSED])
  queue.unpause(limited, 100 * Q)
  assert.equal(queue.pick(100 * Q), limited)
  queue.stop(100 * Q, 'ended')
  assert.deepEqual([queue.account(a, 100 * Q).pausedNs, queue.account(limited, 100 * Q).pausedNs],
    [30, 97 * Q - 50])
})

test('pause of who runs asks it to leave, and it is paused when it has', () => {
  const { queue, cells } = queueOf({}, {})
  const [a, b] = cells as [Node<string>, Node<string>]
  const pool = queue.addPool(queue.root, terms(), 0)
  const inner = queue.addCell(pool, terms(), 0)
  queue.wake(a, 0)
  queue.pick(0)
  assert.equal(queue.pause(a, 10), true)
  assert.deepEqual([queue.until, queue.current], [10, a])
  queue.stop(15, 'runnable')
  assert.deepEqual([queue.pick(20), queue.account(a, 25).pausedNs], [undefined, 10])
  queue.unpause(a, 25)
  assert.equal(queue.pick(25), a, 'it could have gone on')
  // It waits before it is asked to leave; it is let go before it has left; it ends.
  queue.pause(a, 30)
  queue.stop(30, 'waiting')
  queue.wake(b, 30)
  assert.equal(queue.pick(30), b)
  queue.pause(b, 35)
  queue.unpause(b, 40)
  queue.stop(45, 'runnable')
  assert.equal(queue.pick(45), b)
  queue.pause(b, 50)
  queue.stop(50, 'ended')
  assert.deepEqual([b.state, queue.account(b, 99).pausedNs], [ENDED, 0])
  // A pool that is left without a child that runs doesn't want to run.
  queue.wake(inner, 100)
  queue.pick(100)
  queue.pause(inner, 100)
  queue.stop(110, 'runnable')
  assert.equal(queue.pick(120), undefined)
  queue.remove(inner, 120)
  queue.remove(pool, 130)
  assert.throws(() => queue.pause(pool, 130), /a cell is paused/)
})

test('blame says who had the pCPU, to the nanosecond', () => {
  const { queue, cells } = queueOf({}, {}, {})
  const [a, b, c] = cells as [Node<string>, Node<string>, Node<string>]
  assert.equal(queue.blame(true), true)
  for (const cell of [a, b, c]) queue.wake(cell, 0)
  for (let now = 0; now < 30 * Q; now += Q) {
    queue.pick(now)
    queue.stop(now + Q, 'runnable')
  }
  for (const cell of [a, b, c]) {
    const { runnableNs } = queue.account(cell, 30 * Q)
    assert.equal(queue.blamed(cell).reduce((sum, [, ns]) => sum + ns, 0), runnableNs)
  }
  const others = (cell: Node<string>): string[] => queue.blamed(cell).map(([by]) => by?.owner ?? 'gone').sort()
  assert.deepEqual(others(a), ['cell 1', 'cell 2'])
  queue.remove(c, 30 * Q)
  assert.deepEqual(others(a), ['cell 1', 'gone'])
  assert.deepEqual(queue.blamed(c), [])
  queue.blame(false)
  assert.deepEqual(queue.blamed(a), [])
})

test('blame is off with more cells than it keeps books for', () => {
  const { queue } = queueOf(...Array.from({ length: BLAME_MAX }, () => ({})))
  assert.equal(queue.blame(true), true)
  const last = queue.addCell(queue.root, terms(), 0)
  assert.equal(queue.isBlaming, false)
  assert.equal(queue.blame(true), false)
  queue.remove(last, 0)
  assert.equal(queue.blame(true), true)
})

test('a mistake of the caller is an error', () => {
  const { queue, cells: [cell] } = queueOf({})
  assert.throws(() => queue.stop(0, 'runnable'), /a cell is current/)
  assert.throws(() => queue.setTerms(queue.root, terms(), 0), /terms are those/)
  assert.throws(() => queue.addCell(cell!, terms(), 0), /a parent is a pool/)
  for (const bad of [{ shares: 0 }, { shares: 10_001 }, { shares: NaN }, { reservation: -0.1 }, { reservation: 1.1 },
    { reservation: 0.5, limit: 0.4 }, { limit: NaN }]) {
    assert.throws(() => queue.setTerms(cell!, terms(bad), 0), /assertion/, JSON.stringify(bad))
  }
  queue.wake(cell!, 0)
  queue.pick(0)
  assert.throws(() => queue.pick(0), /has left before/)
})

test('to end and start anew is no way to have more', () => {
  const { queue, cells } = queueOf({ shares: 300 })
  const [steady] = cells as [Node<string>]
  queue.wake(steady, 0)
  let now = 0
  let other = 0
  for (let restarts = 0; restarts < 4000;) {
    const anew = queue.addCell(queue.root, { shares: 100, reservation: 0, limit: Infinity }, now)
    queue.wake(anew, now)
    for (let picked: Node<string> | undefined; picked !== anew; now += Q / 2) {
      picked = queue.pick(now)
      if (picked === anew) other += Q / 2
      queue.stop(now + Q / 2, picked === anew ? 'waiting' : 'runnable')
    }
    queue.remove(anew, now)
    restarts++
  }
  // 1 of 4 parts is its due.
  const part = other / now
  assert.ok(part > 0.2 && part < 0.3, String(part))
})
