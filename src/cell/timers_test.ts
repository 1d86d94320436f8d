// cell/timers_test.ts: the heap of timers against a list that is sorted anew each time.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Timers, type TimerEntry } from './timers.ts'

test('nothing is due where nothing was added', () => {
  const timers = new Timers()
  assert.equal(timers.nextNs, Infinity)
  timers.fire(Infinity)
})

test('timers fire at their time or later, the earliest first, each once', () => {
  const timers = new Timers()
  const fired: number[] = []
  for (const at of [30, 10, 20, 40]) timers.add(at, () => { fired.push(at) })
  timers.fire(9)
  assert.deepEqual(fired, [])
  timers.fire(30)
  assert.deepEqual(fired, [10, 20, 30])
  timers.fire(30)
  assert.equal(timers.nextNs, 40)
  assert.equal(fired.length, 3)
})

test('a timer may be taken back twice, after it has fired, and by itself', () => {
  const timers = new Timers()
  let calls = 0
  const entry = timers.add(1, () => { calls++; timers.remove(entry) })
  const other = timers.add(2, () => { calls += 10 })
  timers.remove(other)
  timers.remove(other)
  timers.fire(5)
  timers.remove(entry)
  timers.fire(5)
  assert.equal(calls, 1)
  assert.equal(timers.nextNs, Infinity)
})

test('a timer that is due may add one that is due as well, and take back the next', () => {
  const timers = new Timers()
  const fired: string[] = []
  timers.add(1, () => {
    fired.push('first')
    timers.remove(second)
    timers.add(0, () => { fired.push('added') })
  })
  const second = timers.add(2, () => { fired.push('second') })
  timers.add(3, () => { fired.push('third') })
  timers.fire(3)
  assert.deepEqual(fired, ['first', 'added', 'third'])
})

test('a call that throws has fired, and the others still do', () => {
  const timers = new Timers()
  let calls = 0
  timers.add(1, () => { throw new Error('of the call') })
  timers.add(2, () => { calls++ })
  assert.throws(() => timers.fire(2), /of the call/)
  timers.fire(2)
  assert.equal(calls, 1)
})

type Step = { add: number } | { remove: number } | { fire: number }

test('the heap does what a sorted list would do, whatever is added, taken back and fired', () => {
  const step: fc.Arbitrary<Step> = fc.oneof(
    fc.record({ add: fc.integer({ min: 0, max: 50 }) }), fc.record({ remove: fc.nat(100) }),
    fc.record({ fire: fc.integer({ min: 0, max: 50 }) }))
  fc.assert(fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
    const timers = new Timers()
    const added: TimerEntry[] = []
    let left: TimerEntry[] = []
    let fired: number[] = []
    for (const one of steps) {
      if ('add' in one) {
        const entry = timers.add(one.add, () => { fired.push(one.add) })
        added.push(entry)
        left.push(entry)
      } else if ('remove' in one) {
        const entry = added[one.remove % Math.max(1, added.length)]
        if (entry === undefined) continue
        timers.remove(entry)
        left = left.filter((other) => other !== entry)
      } else {
        timers.fire(one.fire)
        const due = left.filter(({ atNs }) => atNs <= one.fire).map(({ atNs }) => atNs)
        left = left.filter(({ atNs }) => atNs > one.fire)
        assert.deepEqual(fired, due.toSorted((a, b) => a - b))
        fired = []
      }
      assert.equal(timers.nextNs, Math.min(Infinity, ...left.map(({ atNs }) => atNs)))
    }
  }), { numRuns: 500 })
})
