// tests/faults/host_crash_loop_test.ts: guests that fail at once, again and again: they cost next to nothing.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually, startHost } from '../host_support.ts'
import { createGuest, guestsOf, importProgram, inPhase, nothingUnowned, pidOf } from './faults_support.ts'

const GUESTS = 50
/** How long they are watched. With pauses doubled from 100 ms there are 5 restarts in the first 3.1 s, 6 in 6.3 s. */
const WATCHED_MS = 3000

/** CPU time that a process has had, in milliseconds. */
function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) * 10
}

test('guests that trap at once are restarted after pauses that grow, and cost neither CPU nor room', async () => {
  await using host = await startHost()
  await importProgram(host, 'trap')
  await importProgram(host, 'nap')
  await createGuest(host, 'calm', { image: 'nap', args: ['nap', '100000000'] })
  const { startedAt } = await inPhase(host, 'calm', 'running')
  const begun = performance.now()
  await Promise.all(Array.from({ length: GUESTS }, (_, i) =>
    createGuest(host, `bad${i}`, { image: 'trap', args: ['trap', 'unreachable'], restart: 'always' })))
  await eventually('all have failed a few times', async () =>
    (await guestsOf(host)).every(({ name, restarts }) => name === 'calm' || restarts >= 3))
  const pid = await pidOf(host)
  const [cpu, watched] = [cpuMs(pid), performance.now()]
  await sleep(WATCHED_MS)
  const share = (cpuMs(pid) - cpu) / (performance.now() - watched)
  assert.ok(share < 0.5, `the host uses ${Math.round(share * 100)} % of a CPU`)
  const all = (await guestsOf(host)).filter(({ name }) => name !== 'calm')
  const ranMs = performance.now() - begun
  // The sum of the first n pauses is 100 × (2^n − 1) ms: so many restarts there are at most, and one that is due.
  const most = Math.log2(ranMs / 100 + 1) + 1
  for (const { name, restarts, exit } of all) {
    assert.ok(restarts <= most, `${name}: ${restarts} restarts in ${ranMs} ms`)
    assert.match(exit!.reason, /^trapped: unreachable/)
  }
  const events = (await host.api('GET', '/v1/events?follow=false')).body as { items: { kind: string }[] }
  assert.ok(events.items.length <= GUESTS * (2 * most + 4) + 20, `${events.items.length} events`)
  assert.equal((await inPhase(host, 'calm', 'running')).startedAt, startedAt)
  // A host that is started anew doesn't begin with all of them at once, nor loses one.
  await host.killAndRestart()
  assert.equal((await guestsOf(host)).length, GUESTS + 1)
  await nothingUnowned(host)
  await host.ok(['project', 'rm', '--force', 'default'])
})
