// tests/faults/migrate_kill_test.ts: kill -9 of either host, and of either cell process, at each step of a move.
//
// Or the connection is cut there. Whatever fails when: in the end one host has the guest and runs it, the other knows
// nothing of it, and no number was counted twice. It goes on from where it was, unless the process that it ran in was
// killed.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { TestHost } from '../host_support.ts'
import { eventually } from '../host_support.ts'
import { nothingUnowned } from './faults_support.ts'
import {
  follow, migrate, settled, startPair, startTicker, STEPS, type Fault, type Pair, type Step, type Ticks,
} from './migrate_support.ts'

let pair: Pair
before(async () => { pair = await startPair() })
after(async () => { await pair[Symbol.asyncDispose]() })

type Victim = 'the source' | 'the destination' | 'both' | "the source's process" | "the destination's process"
  | 'the network'
const VICTIMS: readonly Victim[] = ['the source', 'the destination', 'both', "the source's process",
  "the destination's process", 'the network']

/** Where the guest is in the end; undefined: it depends. */
function placeAfter(step: Step, when: Fault['when'], victim: Victim): keyof Pick<Pair, 'from' | 'to'> | undefined {
  const hasForgotten = victim === 'the destination' || victim === 'both'
  if (step === 'activate') return when === 'before' && hasForgotten ? 'from' : 'to'
  if (step === 'acknowledge') return 'to'
  // It may have no process yet.
  if (step === 'offer' && victim === "the destination's process") return undefined
  // The source commits if it hears of the answer before it hears of the process.
  if (step === 'last' && victim === "the source's process") return undefined
  // All that it was sent is on the disk by then.
  return step === 'last' && when === 'after' && victim === "the destination's process" ? 'to' : 'from'
}

/** Kills, and has who was killed come back. */
async function strike({ from, to }: Pair, victim: Victim): Promise<() => Promise<void>> {
  const hosts: readonly TestHost[] = victim === 'the source' ? [from] : victim === 'the destination' ? [to]
    : victim === 'both' ? [from, to] : []
  await Promise.all(hosts.map((host) => host.kill()))
  const processes = victim === "the source's process" ? from : victim === "the destination's process" ? to : undefined
  for (const pid of processes?.cellProcesses() ?? []) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch { /* It has just ended. */ }
  }
  return async () => { await Promise.all(hosts.map((host) => host.restart())) }
}

/** What was counted here, and there: each number with its nonce. */
function union(...all: readonly Ticks[]): string[] {
  return all.flatMap((ticks) => [...ticks].flatMap(([nonce, numbers]) => numbers.map((number) => `${nonce} ${number}`)))
}

async function remove({ from, to }: Pair): Promise<void> {
  for (const host of [from, to]) await host.api('DELETE', '/v1/projects/default/guests/web?force=true')
}

async function check(step: Step, when: Fault['when'], victim: Victim): Promise<void> {
  await startTicker(pair.from)
  const here = follow(pair.from, 'web')
  const nonce = await eventually('it counts', () => here.ticks.keys().next().value)
  // What is still asked of the move before this one is none of ours.
  pair.move = ''
  let comeBack: (() => Promise<void>) | undefined
  pair.fault = { step, when, act: async () => { comeBack = await strike(pair, victim) }, cut: victim === 'the network' }
  await migrate(pair)
  await (await eventually(`the move comes to "${step}"`, () => comeBack))()
  const { host } = await settled(pair)
  here.stop()
  const place = placeAfter(step, when, victim)
  if (place !== undefined) assert.equal(host, pair[place], `it is ${host === pair.to ? 'there' : 'here'}`)
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
  // One that ran in a process that was killed was started anew.
  const wasLost = victim === "the source's process" ? host === pair.from
    : victim === "the destination's process" && host === pair.to
  if (!wasLost) assert(there.ticks.has(nonce), 'it goes on, and was not started anew')
  for (const one of [pair.from, pair.to]) await nothingUnowned(one)
}

for (const step of STEPS) {
  for (const when of ['before', 'after'] as const) {
    for (const victim of VICTIMS) {
      test(`one copy of a guest runs when ${victim} fails ${when} "${step}"`, async () => {
        try {
          await check(step, when, victim)
        } finally {
          await remove(pair)
        }
      })
    }
  }
}
