// tests/faults/migrate_kill_test.ts: kill -9 of either host, and of either cell process, at each step of a move.
//
// Whatever is killed when: in the end one host has the guest and runs it, the other knows nothing of it, and no number
// was counted twice. It goes on from where it was, unless the process that it ran in was killed.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { TestHost } from '../host_support.ts'
import { eventually } from '../host_support.ts'
import { nothingUnowned } from './faults_support.ts'
import {
  follow, migrate, settled, startPair, startTicker, STEPS, type Fault, type Pair, type Ticks,
} from './migrate_support.ts'

let pair: Pair
before(async () => { pair = await startPair() })
after(async () => { await pair[Symbol.asyncDispose]() })

type Victim = 'source' | 'destination' | 'both hosts' | "the source's process" | "the destination's process" | 'network'
const VICTIMS: readonly Victim[] = ['source', 'destination', 'both hosts', "the source's process",
  "the destination's process", 'network']

/** Kills, and has who was killed come back. */
async function strike({ from, to }: Pair, victim: Victim): Promise<() => Promise<void>> {
  const hosts: readonly TestHost[] = victim === 'source' ? [from] : victim === 'destination' ? [to]
    : victim === 'both hosts' ? [from, to] : []
  await Promise.all(hosts.map((host) => host.kill()))
  const processes = victim === "the source's process" ? from : victim === "the destination's process" ? to : undefined
  for (const pid of processes?.cellProcesses() ?? []) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch { /* It has just ended. */ }
  }
  return async () => { await Promise.all(hosts.map((host) => host.restart())) }
}

function union(...all: readonly Ticks[]): number[] {
  return all.flatMap((ticks) => [...ticks].flatMap(([nonce, numbers]) => numbers.map((number) => [nonce, number])))
    .map(([nonce, number]) => `${nonce} ${number}`) as unknown as number[]
}

async function remove({ from, to }: Pair): Promise<void> {
  for (const host of [from, to]) await host.api('DELETE', '/v1/projects/default/guests/web?force=true')
}

for (const step of STEPS) {
  for (const when of ['before', 'after'] as const) {
    for (const victim of VICTIMS) {
      test(`one copy of a guest runs after kill -9 of ${victim} ${when} "${step}"`, async () => {
        await startTicker(pair.from)
        const here = follow(pair.from, 'web')
        await eventually('it counts', () => here.ticks.size > 0)
        const [nonce] = here.ticks.keys()
        const { promise: struck, resolve } = Promise.withResolvers<() => Promise<void>>()
        const act: Fault['act'] = async () => resolve(await strike(pair, victim))
        pair.fault = { step, when, act, cut: victim === 'network' }
        pair.seen.length = 0
        await migrate(pair)
        const comeBack = await struck
        await comeBack()
        const { host } = await settled(pair)
        here.stop()
        const there = follow(host, 'web')
        await eventually('it counts on', () => [...there.ticks.values()].some((numbers) => numbers.length > 5))
        there.stop()
        if (host === pair.to) {
          const all = union(here.ticks, there.ticks)
          assert.equal(new Set(all).size, all.length, 'no number is counted here and there')
        }
        for (const numbers of there.ticks.values()) {
          assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b), 'numbers go up')
        }
        if (!/process/.test(victim)) assert(there.ticks.has(nonce!), 'it goes on, and was not started anew')
        for (const one of [pair.from, pair.to]) await nothingUnowned(one)
        await remove(pair)
      })
    }
  }
}
