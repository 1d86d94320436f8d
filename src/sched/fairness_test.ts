// sched/fairness_test.ts: what guests get in the long run, and how soon: shares, reservations, limits, latencies.
//
// In virtual time, so nothing here depends on the machine. The oracle for long runs is fairSplit: the division of a
// pCPU that is infinitely divisible.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { DEFAULT_TERMS, type Terms } from './node.ts'
import { entitlements, fairSplit, placeAll, type Wish } from './placement.ts'
import { World, type SimCell } from './simulator.ts'

const MS = 1e6
const SECOND = 1e9
const QUANTUM = MS
const HOG = { kind: 'hog' } as const

const terms = (more: Partial<Terms> = {}): Terms => ({ ...DEFAULT_TERMS, ...more })
const world = (pcpus = 1): World => new World({ seed: 1, pcpus, quantumNs: QUANTUM })
const hogs = (on: World, count: number, more: Partial<Terms> = {}): SimCell[] =>
  Array.from({ length: count }, (_, i) => on.addCell(`hog ${on.cells.size} ${i}`, 0, terms(more), HOG))
const near = (value: number, wanted: number, relative: number, what = ''): void =>
  assert.ok(Math.abs(value - wanted) <= relative * wanted, `${what} ${value}, not ${wanted}`)

/** What the cell has had of the pCPU since the last call for it. */
function meter(on: World): (cell: SimCell) => number {
  const seen = new Map<SimCell, { at: number; ns: number }>()
  return (cell) => {
    const { at, ns } = seen.get(cell) ?? { at: 0, ns: 0 }
    const { runningNs } = cell.pcpu.queue.account(cell.node, on.now)
    seen.set(cell, { at: on.now, ns: runningNs })
    return (runningNs - ns) / (on.now - at)
  }
}

const shares = fc.integer({ min: 1, max: 100 }).map((x) => x * 100)
const group = fc.record({ shares, cells: fc.array(shares, { minLength: 1, maxLength: 5 }) })

test('shares divide a pCPU within 1 %, for any weights, in pools within pools', () => {
  fc.assert(fc.property(fc.array(group, { minLength: 1, maxLength: 4 }), fc.array(shares, { maxLength: 4 }),
    (pools, loose) => {
      const w = world()
      const outer = w.addPool(0, terms())
      const wish = (id: string, more: Terms): Wish => ({ id, terms: more, demand: 1 })
      const inPools = pools.map((pool, p) => {
        const inner = w.addPool(0, terms({ shares: pool.shares }), outer)
        return { id: `p${p}`, terms: terms({ shares: pool.shares }), children: pool.cells.map((weight, c) => {
          w.addCell(`${p}.${c}`, 0, terms({ shares: weight }), HOG, inner)
          return wish(`${p}.${c}`, terms({ shares: weight }))
        }) }
      })
      const inRoot = loose.map((weight, c) => {
        w.addCell(`${c}`, 0, terms({ shares: weight }), HOG)
        return wish(`${c}`, terms({ shares: weight }))
      })
      const ideal = entitlements(1, [{ id: 'outer', terms: terms(), children: inPools }, ...inRoot])
      // Long enough for 200 quanta of the least of them; not longer than is good for a test.
      fc.pre(Math.min(...ideal.values()) > 0.002)
      w.run(200 * QUANTUM / Math.min(...ideal.values()))
      for (const [id, part] of ideal) near(w.share(0, w.cells.get(id)!.node), part, 0.01, id)
    }), { numRuns: 25 })
})

test('nobody is ever further from its share than a quantum, however unequal the shares', () => {
  const w = world()
  const weights = [10_000, 5000, 1000, ...Array.from({ length: 200 }, () => 50)]
  const cells = weights.map((weight, i) => w.addCell(`${i}`, 0, terms({ shares: weight }), HOG))
  const total = weights.reduce((sum, x) => sum + x, 0)
  const ahead = ({ node, pcpu }: SimCell, i: number): number =>
    pcpu.queue.account(node, w.now).runningNs - w.now * weights[i]! / total
  // Every cell began with a quantum's credit: until all have made up for that, the light ones are ahead.
  w.run(2000 * QUANTUM)
  const before = cells.map(ahead)
  const [most, least] = [[...before], [...before]]
  while (w.now < 4000 * QUANTUM) {
    w.run(w.now + QUANTUM)
    cells.map(ahead).forEach((ns, i) => {
      most[i] = Math.max(most[i]!, ns)
      least[i] = Math.min(least[i]!, ns)
    })
  }
  // From one quantum behind to one quantum ahead.
  weights.forEach((weight, i) =>
    assert.ok(most[i]! - least[i]! <= 2 * QUANTUM, `${weight}: ${most[i]! - least[i]!} ns`))
})

test('64 hogs of 1:2:4:8 on 2 pCPUs have their shares within 2 % after 10 s', () => {
  const w = world(2)
  const guests = Array.from({ length: 64 }, (_, i) => ({ id: `${i}`, shares: 100 * 2 ** (i % 4) }))
  const loads = entitlements(2, guests.map(({ id, shares }) => ({ id, terms: terms({ shares }), demand: 1 })))
  const { pcpus } = placeAll([{ id: 0, guests: [] }, { id: 1, guests: [] }], guests.map(({ id }) =>
    ({ id, load: loads.get(id)!, reservation: 0, movable: true })))
  for (const { id: pcpu, guests: placed } of pcpus) {
    for (const { id } of placed) w.addCell(id, pcpu, terms({ shares: guests[Number(id)]!.shares }), HOG)
  }
  w.run(10 * SECOND)
  for (const [id, cell] of w.cells) {
    const { runningNs } = cell.pcpu.queue.account(cell.node, w.now)
    near(runningNs / w.now, loads.get(id)!, 0.02, id)
  }
})

test('a limit of 10 % holds within 1 %, alone and among others', () => {
  for (const others of [0, 1, 5]) {
    const w = world()
    const cell = w.addCell('limited', 0, terms({ limit: 0.1 }), HOG)
    hogs(w, others)
    w.run(SECOND)
    const had = meter(w)
    had(cell)
    w.run(11 * SECOND)
    near(had(cell), 0.1, 0.01, `beside ${others}`)
  }
})

test('a limit of a pool binds the cells in it together, and what it leaves goes to the others', () => {
  const w = world()
  const pool = w.addPool(0, terms({ limit: 0.3 }))
  const [a, b] = [100, 200].map((shares) => w.addCell(`in ${shares}`, 0, terms({ shares }), HOG, pool))
  const [other] = hogs(w, 1)
  w.run(10 * SECOND)
  near(w.share(0, a!.node), 0.1, 0.01)
  near(w.share(0, b!.node), 0.2, 0.01)
  near(w.share(0, other!.node), 0.7, 0.01)
})

test('a reservation of 50 % holds against 1,000 hogs, which divide the rest', () => {
  const w = world()
  const cell = w.addCell('reserved', 0, terms({ shares: 1, reservation: 0.5 }), HOG)
  const [hog] = hogs(w, 1000)
  w.run(20 * SECOND)
  near(w.share(0, cell.node), 0.5, 0.001)
  near(w.share(0, hog!.node), 0.0005, 0.11)
})

test('a reservation is a minimum: who has more by its shares has no more on top', () => {
  fc.assert(fc.property(fc.array(fc.record({ shares, reservation: fc.integer({ min: 0, max: 3 }) }),
    { minLength: 2, maxLength: 6 }), (wanted) => {
    const total = wanted.reduce((sum, { reservation }) => sum + reservation, 0)
    const all = wanted.map(({ shares, reservation }) =>
      terms({ shares, reservation: reservation * 0.9 / Math.max(6, total) }))
    const w = world()
    const cells = all.map((each, i) => w.addCell(`${i}`, 0, each, HOG))
    w.run(10 * SECOND)
    const ideal = fairSplit(1, all.map(({ shares, reservation }) => ({ shares, min: reservation, max: 1 })))
    cells.forEach(({ node }, i) => {
      const part = w.share(0, node)
      assert.ok(Math.abs(part - ideal[i]!) < 0.02, `${i}: ${part}, not ${ideal[i]}: ${JSON.stringify(all)}`)
    })
  }), { numRuns: 40 })
})

test('a light sleeper among 100 hogs has the pCPU at once, and within a quantum at worst', () => {
  const w = world()
  hogs(w, 100)
  const cell = w.addCell('light', 0, terms(), { kind: 'sleeper', burstNs: 50_000, sleepNs: 20 * MS })
  w.run(20 * SECOND)
  const sorted = cell.latencies.slice(1).sort((a, b) => a - b)
  assert.ok(sorted.length > 900)
  assert.equal(sorted[Math.floor(sorted.length * 0.99)], 0)
  assert.ok(sorted.at(-1)! <= QUANTUM, `${sorted.at(-1)} ns`)
})

test('sleeping often gains nothing: nobody who sleeps has more than its share of the time', () => {
  for (const others of [1, 3, 10]) {
    for (const burst of [0.05, 0.3, 0.9, 1, 1.1, 2.5, 10]) {
      for (const sleep of [0.001, 0.1, 0.7, 1, 3]) {
        const w = world()
        hogs(w, others)
        const cell = w.addCell('sly', 0, terms(), { kind: 'sleeper', burstNs: burst * MS, sleepNs: sleep * MS })
        w.run(4 * SECOND)
        const part = w.share(0, cell.node) * (others + 1)
        assert.ok(part <= 1.01, `${burst} ms on, ${sleep} ms off beside ${others}: ${part} of its share`)
      }
    }
  }
})

test('who has slept for long has no more than a quantum to make up for', () => {
  const w = world()
  const cell = w.addCell('rested', 0, terms(), { kind: 'relay', burstNs: 100 * QUANTUM, wakes: 'nobody', first: true })
  const [hog] = hogs(w, 1)
  w.run(10 * SECOND)
  const had = meter(w)
  had(hog!)
  w.wake(cell)
  w.run(w.now + 20 * QUANTUM)
  near(had(hog!), 0.5, 0.11)
})

test('who wakes waits for no more than the reservations that are due, and for nothing that they had before', () => {
  const w = world()
  for (let i = 0; i < 30; i++) w.addCell(`reserved ${i}`, 0, terms({ shares: 1, reservation: 0.02 }), HOG)
  hogs(w, 3)
  const cell = w.addCell('light', 0, terms(), { kind: 'sleeper', burstNs: 50_000, sleepNs: 20 * MS })
  w.run(20 * SECOND)
  // All of them at once, as they began at once, and one quantum of who runs just then.
  const worst = Math.max(...cell.latencies.slice(1))
  assert.ok(worst <= 31 * QUANTUM, `${worst} ns`)
})

test('a herd of sleepers has no more than its share either', () => {
  const w = world()
  const herd = Array.from({ length: 50 }, (_, i) =>
    w.addCell(`sly ${i}`, 0, terms(), { kind: 'bursty', burstNs: MS, sleepNs: 20 * MS }))
  const honest = hogs(w, 50)
  w.run(20 * SECOND)
  const part = (cells: SimCell[]): number => cells.reduce((sum, { node }) => sum + w.share(0, node), 0)
  assert.ok(part(herd) <= part(honest) * 1.01, `${part(herd)} to ${part(honest)}`)
})

test('nobody starves: the wait of a cell is bounded by its part of the pCPU', () => {
  // It is ahead by a quantum at most: W/w quanta until it is eligible, as many until its deadline, one for each that
  // wakes with credit meanwhile, and one of who runs just then.
  const many = fc.array(shares, { minLength: 2, maxLength: 30, size: 'max' })
  fc.assert(fc.property(many, fc.integer(), (weights, seed) => {
    const w = new World({ seed, pcpus: 1, quantumNs: QUANTUM })
    const total = weights.reduce((sum, x) => sum + x, 0)
    weights.forEach((weight, i) => w.addCell(`${i}`, 0, terms({ shares: weight }), i % 3 === 0 ? HOG
      : { kind: 'bursty', burstNs: (1 + i % 4) * MS / 2, sleepNs: 5 * MS }))
    w.run(5 * SECOND)
    weights.forEach((weight, i) => {
      const worst = Math.max(...w.cells.get(`${i}`)!.latencies)
      assert.ok(worst <= (2 * total / weight + weights.length) * QUANTUM, `${weight} of ${total} waited ${worst} ns`)
    })
  }), { numRuns: 25 })
})

test('other terms take effect within a few quanta', () => {
  const changes: [Partial<Terms>, number][] = [
    [{ shares: 300 }, 0.75], [{ shares: 100 }, 0.5], [{ limit: 0.2 }, 0.2], [{}, 0.5], [{ reservation: 0.8 }, 0.8],
    [{ shares: 25 }, 0.2], [{ shares: 10_000, limit: 0.4 }, 0.4], [{ shares: 100, reservation: 0.3, limit: 0.3 }, 0.3],
    [{ limit: 0 }, 0], [{}, 0.5],
  ]
  const w = world()
  const cell = w.addCell('changed', 0, terms(), HOG)
  hogs(w, 1)
  const had = meter(w)
  for (const [more, wanted] of changes) {
    w.setTerms(0, cell.node, terms(more))
    w.run(w.now + 20 * QUANTUM)
    // In the first twenty quanta three may still go the old way.
    assert.ok(Math.abs(had(cell) - wanted) <= 0.15, `${JSON.stringify(more)}: ${wanted} wanted`)
    w.run(w.now + 200 * QUANTUM)
    assert.ok(Math.abs(had(cell) - wanted) <= 0.01, `${JSON.stringify(more)}: ${wanted} wanted in the long run`)
  }
})

test('a reservation that ends leaves no debt behind', () => {
  const w = world()
  const cell = w.addCell('was reserved', 0, terms({ reservation: 0.9 }), HOG)
  hogs(w, 9)
  w.run(5 * SECOND)
  const had = meter(w)
  had(cell)
  w.setTerms(0, cell.node, terms())
  w.run(5.1 * SECOND)
  near(had(cell), 0.1, 0.2)
})

test('a quantum of another length counts from the next pick', () => {
  const w = world()
  const [a, b] = hogs(w, 2)
  w.run(SECOND)
  w.pcpus[0]!.queue.quantumNs = 10 * MS
  const before = w.pcpus[0]!.queue.account(a!.node, w.now).stints
  w.run(2 * SECOND)
  near(w.share(0, a!.node), w.share(0, b!.node), 0.01)
  near(w.pcpus[0]!.queue.account(a!.node, w.now).stints - before, 50, 0.05)
})
