// host/cells_pause_test.ts: guests of a real cell process that are kept from running, and run again.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { isSupported } from '../sys/libc.ts'
import { ProcessRig } from './process_rig.ts'
import type { FromProcess, GuestLaunch } from './protocol.ts'

const options = { timeout: 120_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }

type Paused = Extract<FromProcess, { paused: string }>

/** Keeps a guest from running, or lets it again: resolves when it is so. */
async function pause(rig: ProcessRig, id: string, paused: boolean): Promise<void> {
  const since = rig.heard.length
  rig.link.send({ pause: id, run: 1, paused })
  await rig.hear((message): message is Paused =>
    'paused' in message && message.paused === id && message.is === paused, since)
}

/** What a guest has been told to have: nanoseconds on its pCPU, and paused. */
async function timesOf(rig: ProcessRig, id: string): Promise<{ runningNs: number; pausedNs: number }> {
  const { runningNs, pausedNs } = (await rig.link.figures()).guests[id]!
  return { runningNs, pausedNs }
}

test('a guest that is paused has no time on its pCPU until it is resumed, and others have', options, async () => {
  using rig = await ProcessRig.start()
  for (const id of ['a', 'b']) rig.start(id, ['spin'])
  await Promise.all(['a', 'b'].map((id) => rig.started(id)))
  await pause(rig, 'a', true)
  const before = await timesOf(rig, 'a')
  await sleep(200)
  const after = await timesOf(rig, 'a')
  assert.equal(after.runningNs, before.runningNs)
  assert.ok(after.pausedNs - before.pausedNs > 150e6)
  assert.ok((await timesOf(rig, 'b')).runningNs > 0)
  await pause(rig, 'a', false)
  while ((await timesOf(rig, 'a')).runningNs === after.runningNs) await sleep(10)
})

test('hello tells who is paused, and what is said twice is answered twice', options, async () => {
  using rig = await ProcessRig.start()
  for (const id of ['a', 'b']) rig.start(id, ['sleep', '3600000'])
  await Promise.all(['a', 'b'].map((id) => rig.started(id)))
  await pause(rig, 'a', true)
  await pause(rig, 'a', true)
  rig.link.close()
  const { guests } = (await rig.connect()).hello
  assert.deepEqual(guests.map(({ id, paused }) => [id, paused]), [['a', true], ['b', undefined]])
  await pause(rig, 'a', false)
  rig.link.close()
  assert.ok((await rig.connect()).hello.guests.every(({ paused }) => paused === undefined))
})

test('a timer of a paused guest is due when it is resumed, though its time came before', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '100'])
  await rig.started('a')
  await pause(rig, 'a', true)
  await sleep(300)
  assert.ok(!rig.heard.some((message) => 'ended' in message))
  await pause(rig, 'a', false)
  assert.deepEqual((await rig.ended('a')).outcome, { kind: 'exit', code: 0 })
})

test('a guest that is paused is ended by a stop', options, async () => {
  using rig = await ProcessRig.start()
  for (const [id, command] of [['a', ['spin']], ['b', ['sleep', '3600000']]] as const) rig.start(id, [...command])
  for (const id of ['a', 'b']) {
    await rig.started(id)
    await pause(rig, id, true)
    rig.link.send({ stop: id, run: 1, signal: 9 })
    const end = await rig.ended(id)
    assert.deepEqual([end.outcome, end.by], [{ kind: 'signal', signal: 9 }, 'stop'])
  }
})

test('a guest that is paused before it is there does not run', options, async () => {
  using rig = await ProcessRig.start()
  const launch: GuestLaunch = rig.launch('a', ['spin'])
  rig.link.send({ start: launch })
  rig.link.send({ pause: 'a', run: 1, paused: true })
  await rig.started('a')
  await sleep(50)
  const { runningNs } = await timesOf(rig, 'a')
  await sleep(100)
  assert.equal((await timesOf(rig, 'a')).runningNs, runningNs)
  // Another run is another guest.
  rig.link.send({ pause: 'a', run: 2, paused: false })
  await sleep(50)
  assert.equal((await timesOf(rig, 'a')).runningNs, runningNs)
})

test('a guest that is paused is not asked whether it is well, and is as it was', options, async () => {
  using rig = await ProcessRig.start()
  const health = { tcp: 7, interval: '20ms', timeout: '50ms', retries: 1, 'start-period': '1ms' }
  rig.start('a', ['echo'], { ports: [{ port: 7, tickets: [] }], health })
  await rig.hear((message): message is Extract<FromProcess, { health: string }> => 'health' in message)
  await pause(rig, 'a', true)
  await sleep(300)
  rig.link.close()
  assert.deepEqual((await rig.connect()).hello.guests.map(({ healthy, paused }) => [healthy, paused]), [[true, true]])
  await pause(rig, 'a', false)
  await sleep(200)
  assert.ok(!rig.heard.some((message) => 'health' in message && !message.healthy))
})
