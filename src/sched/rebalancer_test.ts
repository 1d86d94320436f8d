// sched/rebalancer_test.ts: guests that start on one pCPU come to have what they are due, in virtual time.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DEFAULT_TERMS, type Terms } from './node.ts'
import { entitlements } from './placement.ts'
import { Rebalancer, type Seen, type SeenPcpu } from './rebalancer.ts'
import { World, type Behaviour, type SimCell } from './simulator.ts'

const S = 1e9
const terms = (more: Partial<Terms> = {}): Terms => ({ ...DEFAULT_TERMS, ...more })
const seen = (id: string, load: number, more: Partial<Seen> = {}): Seen =>
  ({ id, load, reservation: 0, movable: true, receivedNs: 0, ...more })
const pcpu = (id: number, guests: Seen[], reserved = 0): SeenPcpu => ({ id, guests, reserved })

/** A world that is looked at each second, as a stack does. */
class Watched {
  readonly world: World
  readonly rebalancer = new Rebalancer()
  readonly before = new Map<string, { runningNs: number; wantedNs: number }>()
  moves = 0

  constructor(pcpus: number) {
    this.world = new World({ seed: 1, pcpus, quantumNs: 1e6 })
  }

  /** Runs for `seconds`: what each cell has received meanwhile, in pCPUs. */
  run(seconds: number): Map<string, number> {
    const received = new Map<string, number>()
    for (let i = 0; i < seconds; i++) {
      this.world.run(this.world.now + S)
      const cells = [...this.world.cells.values()].map((cell) => ({ cell, ...this.#since(cell) }))
      for (const { cell: { name }, ran } of cells) received.set(name, (received.get(name) ?? 0) + ran / S / seconds)
      const due = entitlements(this.world.pcpus.length, cells.map(({ cell: { name, node }, wanted }) =>
        ({ id: name, terms: node, demand: wanted / S })))
      const pcpus = this.world.pcpus.map((place, id) => pcpu(id, cells.filter(({ cell }) => cell.pcpu === place)
        .map(({ cell: { name, node }, ran }) =>
          seen(name, due.get(name)!, { receivedNs: ran, reservation: node.reservation }))))
      for (const { guest, to } of this.rebalancer.see(pcpus, this.world.now)) {
        this.moves++
        this.before.delete(guest)
        this.world.move(this.world.cells.get(guest)!, to)
      }
    }
    return received
  }

  #since({ name, pcpu: { queue }, node }: SimCell): { ran: number; wanted: number } {
    const { runningNs, runnableNs } = queue.account(node, this.world.now)
    const wantedNs = runningNs + runnableNs
    const last = this.before.get(name) ?? { runningNs: 0, wantedNs: 0 }
    this.before.set(name, { runningNs, wantedNs })
    return { ran: runningNs - last.runningNs, wanted: wantedNs - last.wantedNs }
  }
}

const hogs = (watched: Watched, count: number): void => {
  for (let i = 0; i < count; i++) watched.world.addCell(`${i}`, 0, terms(), { kind: 'hog' })
}

test('guests that want all and start on one pCPU come to have equal parts of all, however many they are', () => {
  for (const [pcpus, count] of [[2, 2], [2, 3], [2, 4], [2, 5], [2, 7], [4, 4], [3, 4], [4, 10]] as const) {
    const watched = new Watched(pcpus)
    hogs(watched, count)
    watched.run(10)
    const fair = Math.min(1, pcpus / count)
    for (const [name, part] of watched.run(40)) {
      assert.ok(Math.abs(part / fair - 1) < 0.1, `${name} of ${count} on ${pcpus} has ${part}, not ${fair}`)
    }
  }
})

test('loads that can be evened out are, once, and then nobody is moved', () => {
  for (const count of [2, 4, 6, 8]) {
    const watched = new Watched(2)
    hogs(watched, count)
    watched.run(10)
    assert.ok(watched.moves >= count / 2 && watched.moves <= count, `${watched.moves} moves of ${count}`)
    const { moves } = watched
    watched.run(60)
    assert.equal(watched.moves, moves)
  }
})

test('guests that take turns are moved every few seconds, not more often', () => {
  const watched = new Watched(2)
  hogs(watched, 3)
  watched.run(60)
  assert.ok(watched.moves > 5 && watched.moves < 30, `${watched.moves} moves in a minute`)
})

test('shares count over all pCPUs', () => {
  const watched = new Watched(2)
  const shares = [300, 100, 100, 100]
  shares.forEach((one, i) => watched.world.addCell(`${i}`, 0, terms({ shares: one }), { kind: 'hog' }))
  watched.run(10)
  const parts = watched.run(30)
  assert.ok(Math.abs(parts.get('0')! - 1) < 0.05)
  for (const name of ['1', '2', '3']) assert.ok(Math.abs(parts.get(name)! - 1 / 3) < 0.05)
})

test('guests that sleep and wake, and leave room for all, are left alone', () => {
  const watched = new Watched(2)
  const sleeper: Behaviour = { kind: 'bursty', burstNs: 2e6, sleepNs: 20e6 }
  for (let i = 0; i < 8; i++) watched.world.addCell(`${i}`, i % 2, terms(), sleeper)
  watched.run(60)
  assert.ok(watched.moves <= 2, `${watched.moves} moves`)
})

test('an imbalance that is seen once is none, nor is what only those have who may not move', () => {
  const rebalancer = new Rebalancer()
  const uneven = [pcpu(0, [seen('a', 0.5), seen('b', 0.5), seen('c', 0.5)]), pcpu(1, [seen('d', 0.1)])]
  const even = [pcpu(0, [seen('a', 0.5), seen('b', 0.5)]), pcpu(1, [seen('c', 1)])]
  assert.deepEqual(rebalancer.see(uneven, S), [])
  assert.deepEqual(rebalancer.see(even, 2 * S), [])
  assert.deepEqual(rebalancer.see(uneven, 3 * S), [])
  assert.equal(rebalancer.see(uneven, 4 * S).length, 1)
  const fixed = [pcpu(0, [seen('a', 1, { movable: false }), seen('b', 1, { movable: false })]), pcpu(1, [])]
  for (let i = 5; i < 9; i++) assert.deepEqual(rebalancer.see(fixed, i * S), [])
})

test('who was moved rests, and longer who could not be moved', () => {
  const rebalancer = new Rebalancer()
  const uneven = [pcpu(0, [seen('a', 0.5), seen('b', 0.5)]), pcpu(1, [])]
  const when = (from: number): number => {
    for (let i = from; ; i++) if (rebalancer.see(uneven, i * S).length > 0) return i
  }
  assert.equal(when(0), 1)
  rebalancer.failed('a', S)
  assert.deepEqual([2, 3].map((i) => rebalancer.see(uneven, i * S).map(({ guest }) => guest)), [[], ['b']])
  rebalancer.failed('b', 3 * S)
  assert.equal(when(4), 62)
})

test('nobody is moved where its reservation does not fit', () => {
  const rebalancer = new Rebalancer()
  const uneven = [pcpu(0, [seen('a', 0.5, { reservation: 0.5 }), seen('b', 0.5, { reservation: 0.4 })]),
    pcpu(1, [], 0.6)]
  for (let i = 0; i < 5; i++) assert.deepEqual(rebalancer.see(uneven, i * S), [])
})
