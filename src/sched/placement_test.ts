// sched/placement_test.ts: dividing, admitting, placing, moving, splitting.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { DEFAULT_TERMS, checkTerms, type Terms } from './node.ts'
import {
  entitlements, fairSplit, place, placeAll, rebalance, refusal, RESERVABLE, splitPool, type Guest, type Pcpu,
} from './placement.ts'

const terms = (more: Partial<Terms> = {}): Terms => ({ ...DEFAULT_TERMS, ...more })
const guest = (id: string, load: number, more: Partial<Guest> = {}): Guest =>
  ({ id, load, reservation: 0, movable: true, ...more })
const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0)
const near = (actual: readonly number[], wanted: readonly number[]): void => {
  assert.equal(actual.length, wanted.length)
  actual.forEach((x, i) => assert.ok(Math.abs(x - wanted[i]!) < 1e-9, `${actual.join()}, not ${wanted.join()}`))
}
const loadOf = ({ guests }: Pcpu): number => sum(guests.map(({ load }) => load))
const reservedOf = ({ guests }: Pcpu): number => sum(guests.map(({ reservation }) => reservation))

test('fairSplit divides by shares within everybody\'s bounds', () => {
  const claim = (shares: number, min = 0, max = 1) => ({ shares, min, max })
  near(fairSplit(1, [claim(100), claim(300)]), [0.25, 0.75])
  near(fairSplit(1, [claim(100, 0.5), claim(300)]), [0.5, 0.5])
  near(fairSplit(1, [claim(100), claim(300, 0, 0.3), claim(100)]), [0.35, 0.3, 0.35])
  near(fairSplit(1, [claim(100, 0, 0.2), claim(100, 0, 0.3)]), [0.2, 0.3])
  near(fairSplit(0.5, [claim(1, 0.6), claim(1, 0.4)]), [0.3, 0.2])
  near(fairSplit(0, [claim(1), claim(1)]), [0, 0])
  near(fairSplit(1, []), [])
})

test('fairSplit leaves nothing over, and no one envies another', () => {
  const claims = fc.array(fc.record({ shares: fc.integer({ min: 1, max: 10_000 }), min: fc.integer({ max: 20, min: 0 }),
    max: fc.integer({ min: 0, max: 100 }) }).map((x) => ({ shares: x.shares, min: x.min / 100, max: x.max / 100 })),
  { minLength: 1, maxLength: 8 })
  fc.assert(fc.property(fc.integer({ min: 1, max: 400 }).map((x) => x / 100), claims, (capacity, list) => {
    const parts = fairSplit(capacity, list)
    assert.ok(Math.abs(sum(parts) - Math.min(capacity, sum(list.map(({ max }) => max)))) < 1e-9)
    const hasRoom = sum(list.map(({ min, max }) => Math.min(min, max))) < capacity
    list.forEach(({ shares, min, max }, i) => {
      assert.ok(parts[i]! <= max + 1e-9 && (!hasRoom || parts[i]! >= Math.min(min, max) - 1e-9))
      if (parts[i]! >= max - 1e-9 || !hasRoom) return
      // Who isn't satisfied has as much for each share as anybody who has more than its min.
      list.forEach((other, j) => assert.ok(parts[j]! <= other.min + 1e-9
        || parts[i]! / shares >= parts[j]! / other.shares - 1e-9))
    })
  }))
})

test('entitlements follow the tree, and give what an idle cell leaves to its siblings first', () => {
  const found = entitlements(2, [
    { id: 'pool', terms: terms({ shares: 300 }), children: [
      { id: 'a', terms: terms(), demand: 0.1 }, { id: 'b', terms: terms(), demand: 1 },
    ] },
    { id: 'c', terms: terms(), demand: 1 },
    { id: 'd', terms: terms({ limit: 0.2 }), demand: 1 },
  ])
  near(['a', 'b', 'c', 'd'].map((id) => found.get(id)!), [0.1, 1, 0.7, 0.2])
})

test('refusal says what is wanted and what there is', () => {
  const pcpus = [{ id: 0, guests: [guest('a', 0.5, { reservation: 0.5 })] },
    { id: 1, guests: [guest('b', 0.5, { reservation: 0.75 })] }]
  assert.equal(refusal(pcpus, 0), undefined)
  assert.equal(refusal(pcpus, RESERVABLE - 0.5), undefined)
  const refused = refusal(pcpus, 0.5)!
  near([refused.wanted, refused.largestFree, refused.totalFree], [0.5, 0.45, 0.65])
  assert.deepEqual(refusal([], 0.1), { wanted: 0.1, largestFree: 0, totalFree: 0 })
})

test('place takes the least loaded pCPU that can promise the reservation, the first of equals', () => {
  const pcpus = [{ id: 0, guests: [guest('a', 0.1, { reservation: 0.9 })] }, { id: 1, guests: [guest('b', 0.5)] },
    { id: 2, guests: [guest('c', 0.5)] }]
  assert.deepEqual(place(pcpus, guest('x', 0.1)), { pcpu: 0 })
  assert.deepEqual(place(pcpus, guest('x', 0.1, { reservation: 0.1 })), { pcpu: 1 })
  assert.ok('wanted' in place(pcpus, guest('x', 0.1, { reservation: 1 })))
})

const percent = fc.integer({ min: 0, max: 100 })
const guests = fc.array(fc.record({ load: percent, reservation: fc.integer({ min: 0, max: 40 }),
  movable: fc.boolean() }), { maxLength: 30, size: 'max' })
  .map((list) => list.map(({ load, reservation, movable }, i) =>
    guest(`${i}`, load / 100, { reservation: Math.max(0, reservation - 20) / 40, movable })))

test('placeAll promises nothing twice, places whom it can, and is the same for any order', () => {
  fc.assert(fc.property(guests, fc.integer({ min: 1, max: 6 }), (list, count) => {
    const empty = Array.from({ length: count }, (_, id) => ({ id, guests: [] }))
    const { pcpus, refused } = placeAll(empty, list)
    for (const pcpu of pcpus) assert.ok(reservedOf(pcpu) <= RESERVABLE + 1e-9)
    assert.equal(refused.length + sum(pcpus.map(({ guests }) => guests.length)), list.length)
    for (const { reservation } of refused) assert.ok(refusal(pcpus, reservation) !== undefined)
    assert.deepEqual(placeAll(empty, list.toReversed()), { pcpus, refused })
  }))
})

test('placeAll packs what spreading would leave out', () => {
  const empty = [{ id: 0, guests: [] }, { id: 1, guests: [] }]
  // By load, the two of 0.35 would take a pCPU each, and nothing of 0.6 would fit beside both of 0.3.
  const list = [guest('a', 0.2, { reservation: 0.35 }), guest('b', 0.2, { reservation: 0.35 }),
    guest('c', 0.9, { reservation: 0.25 }), guest('d', 0.1, { reservation: 0.6 }),
    guest('e', 0.1, { reservation: 0.35 })]
  assert.deepEqual(placeAll(empty, list).refused, [])
})

test('rebalance evens loads out, moves only who may, and has nothing to do after', () => {
  fc.assert(fc.property(guests, fc.integer({ min: 2, max: 5 }), fc.array(fc.nat()), (list, count, where) => {
    const pcpus = Array.from({ length: count }, (_, id) => ({ id, guests: [] as Guest[] }))
    list.forEach((each, i) => {
      const target = pcpus[(where[i] ?? 0) % count]!
      if (reservedOf(target) + each.reservation <= RESERVABLE) target.guests.push(each)
    })
    const widest = (): number => Math.max(...pcpus.map(loadOf)) - Math.min(...pcpus.map(loadOf))
    const before = widest()
    const moved = new Set<string>()
    for (const { guest: id, from, to } of rebalance(pcpus)) {
      const source = pcpus[from]!.guests
      const [each] = source.splice(source.findIndex((x) => x.id === id), 1)
      assert.ok(each!.movable)
      pcpus[to]!.guests.push(each!)
      moved.add(id)
    }
    assert.ok(widest() <= before + 1e-9)
    for (const pcpu of pcpus) assert.ok(reservedOf(pcpu) <= RESERVABLE + 1e-9)
    assert.deepEqual(rebalance(pcpus), [])
  }))
})

test('rebalance leaves a small gap alone', () => {
  const pcpus = [{ id: 0, guests: [guest('a', 0.5), guest('b', 0.02)] }, { id: 1, guests: [guest('c', 0.5)] }]
  assert.deepEqual(rebalance(pcpus), [])
  assert.deepEqual(rebalance([{ id: 0, guests: [guest('a', 0.5), guest('b', 0.5)] }, { id: 1, guests: [] }]),
    [{ guest: 'a', from: 0, to: 1 }])
})

test('splitPool gives each part its shares, its reservations, and of the limit what it would use', () => {
  const parts = [{ shares: 300, demand: 2, reservation: 0.2 }, { shares: 100, demand: 0, reservation: 0 }]
  const [busy, idle] = splitPool(terms({ shares: 400, reservation: 0.5, limit: 1 }), parts) as [Terms, Terms]
  near([busy.shares, idle.shares], [300, 100])
  near([busy.reservation, idle.reservation], [0.5, 0])
  near([busy.limit, idle.limit], [0.9375, 0.0625])
  assert.deepEqual(splitPool(terms(), parts).map(({ limit }) => limit), [Infinity, Infinity])
  assert.deepEqual(splitPool(terms({ limit: 2 }), parts).map(({ limit }) => limit), [Infinity, Infinity])
  near(splitPool(terms(), [{ shares: 0, demand: 0, reservation: 0 }]).map(({ shares }) => shares), [100])
})

test('splitPool adds up, and every part can be kept by a pCPU', () => {
  const part = fc.record({ shares: fc.integer({ min: 0, max: 5000 }), demand: fc.integer({ min: 0, max: 30 }),
    reservation: fc.constant(0) }).map((x) => ({ ...x, demand: x.demand / 10 }))
  fc.assert(fc.property(fc.array(part, { minLength: 1, maxLength: 8 }), fc.integer({ min: 1, max: 10_000 }),
    fc.integer({ min: 0, max: 100 }), fc.integer({ min: 1, max: 100 }), (parts, shares, reserved, limited) => {
      const limit = limited / 100 * parts.length
      const reservation = Math.min(limit, reserved / 100 * parts.length)
      const split = splitPool({ shares, reservation, limit }, parts)
      for (const each of split) checkTerms(each)
      assert.ok(Math.abs(sum(split.map((each) => each.reservation)) - reservation) < 1e-6)
      if (limit < parts.length) assert.ok(Math.abs(sum(split.map((each) => each.limit)) - limit) < 1e-6)
    }))
})
