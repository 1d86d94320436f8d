// sched/simulator_test.ts: worlds drawn from seeds: what run_queue.ts promises holds with every step of each.
//
// The checks themselves are in watch.ts: never idle while somebody could run, limits and reservations over every
// window, accounts that add up. Here worlds are drawn that try them: nested pools, terms that change at any time,
// guests that come and go, guests that leave late.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Node, Terms } from './node.ts'
import { World, type Behaviour, type SimCell } from './simulator.ts'

const MS = 1e6
const QUANTUM = MS
const SEEDS = 400

type Plan = { lateNs?: number; switchNs?: number; changes?: boolean }

/** A world of 1 or 2 pCPUs with up to 3 pools and 30 cells on each, run for 200 ms. */
function drawnWorld(seed: number, { lateNs = 0, switchNs = 0, changes = false }: Plan = {}): World {
  const world = new World({ seed, pcpus: 1 + seed % 2, quantumNs: QUANTUM, lateNs, switchNs })
  const { random } = world
  const upTo = (n: number): number => 1 + Math.floor(random() * n)
  const free = world.pcpus.map(() => 0.95)
  const nodes: { pcpu: number; node: Node<SimCell>; reservation: number }[] = []
  const terms = (reservation: number): Terms => ({
    shares: random() < 0.5 ? 100 : upTo(10_000), reservation,
    limit: random() < 0.3 ? Math.max(reservation, upTo(100) / 100) : Infinity,
  })
  /** A part of what is unpromised; half of all ask for none. */
  const reserve = (pcpu: number): number => {
    const reservation = random() < 0.5 ? 0 : Math.floor(random() * free[pcpu]! * 50) / 100
    free[pcpu]! -= reservation
    return reservation
  }
  world.pcpus.forEach((_, pcpu) => {
    const pools: (Node<SimCell> | undefined)[] = [undefined]
    for (let i = Math.floor(random() * 4); i > 0; i--) {
      const reservation = reserve(pcpu)
      // A pool in a pool has no reservation: what the outer one has is its own.
      const pool = world.addPool(pcpu, terms(pools.length > 1 ? 0 : reservation), pools[pools.length - 1])
      pools.push(pool)
      nodes.push({ pcpu, node: pool, reservation: pool.reservation })
    }
    for (let i = upTo(30); i > 0; i--) {
      const parent = pools[Math.floor(random() * pools.length)]
      const reservation = parent === undefined ? reserve(pcpu) : 0
      const { node } = world.addCell(`${pcpu}.${i}`, pcpu, terms(reservation), behaviour(world, pcpu, i), parent)
      nodes.push({ pcpu, node, reservation })
    }
  })
  if (!changes) return world
  for (let time = 0; time < 200 * MS; time += upTo(5 * MS)) {
    world.at(time, () => {
      const { pcpu, node, reservation } = nodes[Math.floor(random() * nodes.length)]!
      const cell = node.owner
      if (node.isPool || world.cells.get(cell!.name) === cell) {
        const what = node.isPool ? 1 : random()
        if (what < 0.1) world.remove(cell!)
        else if (what < 0.3) world.pause(cell!)
        else if (what < 0.5) world.unpause(cell!)
        else world.setTerms(pcpu, node, terms(reservation * (random() < 0.5 ? 1 : random())))
      }
    })
  }
  return world
}

function behaviour({ random }: World, pcpu: number, i: number): Behaviour {
  const burstNs = 1 + Math.floor(random() * 2 * MS)
  const sleepNs = 1 + Math.floor(random() * 10 * MS)
  const kinds: Behaviour[] = [
    { kind: 'hog' }, { kind: 'sleeper', burstNs, sleepNs }, { kind: 'bursty', burstNs, sleepNs },
    { kind: 'relay', burstNs, wakes: `${pcpu}.${Math.max(1, i - 1)}`, first: true }, { kind: 'job', burstNs },
  ]
  return kinds[Math.floor(random() * kinds.length)]!
}

/** Every account of every cell, in one string. */
function books(world: World): string {
  return [...world.cells.values()].map(({ name, pcpu, node }) =>
    `${name} ${JSON.stringify(pcpu.queue.account(node, world.now))}`).join('\n')
}

function checkAll(plan: Plan): void {
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      const world = drawnWorld(seed, plan)
      world.run(200 * MS)
      for (const { watch } of world.pcpus) watch.checkAccounts(world.now)
    } catch (error) {
      throw new Error(`seed ${seed} of ${JSON.stringify(plan)}`, { cause: error })
    }
  }
}

test('World keeps all promises in worlds drawn from seeds', () => checkAll({}))

test('World keeps all promises while terms change, cells are paused and go', () => checkAll({ changes: true }))

test('World keeps all promises when cells leave late and switches take time', () =>
  checkAll({ changes: true, lateNs: 300_000, switchNs: 5_000 }))

test('World gives the same run for the same seed, and another for another', () => {
  const run = (seed: number): string => {
    const world = drawnWorld(seed, { changes: true, lateNs: 1000 })
    world.run(100 * MS)
    return books(world)
  }
  assert.equal(run(7), run(7))
  assert.notEqual(run(7), run(9))
})
