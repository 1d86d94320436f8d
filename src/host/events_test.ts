// host/events_test.ts: followers get every event once and in order, whenever they come and however slowly they read.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { EVENT_AGE_MS_MAX, EVENT_DATA_BYTES_MAX, EVENTS_MAX } from '../base/limits.ts'
import { EventLog, type Follow } from './events.ts'
import type { EventView } from './operator.ts'
import type { Store } from './store.ts'
import { disposableStore } from './test_support.ts'

async function add(store: Store, count: number, project?: string): Promise<void> {
  await store.commit((tx) => { for (let i = 0; i < count; i++) tx.event('test', { project, data: { i } }) })
}

async function all(log: EventLog, options: Omit<Follow, 'follow'> = {}): Promise<number[]> {
  const found: number[] = []
  for await (const { seq } of log.follow({ ...options, follow: false })) found.push(seq)
  return found
}

const range = (first: number, last: number): number[] => Array.from({ length: last - first + 1 }, (_, i) => first + i)

test('follow answers what was committed, of a project if one is named, and after a restart, too', async () => {
  await using made = await disposableStore()
  for (const log of [new EventLog(made.store), undefined]) {
    if (log !== undefined) {
      await add(made.store, 700, 'a')
      await add(made.store, 3)
      await add(made.store, 700, 'b')
    }
    const now = log ?? new EventLog(await made.reopen())
    assert.deepEqual(await all(now), range(1, 1403))
    assert.deepEqual(await all(now, { project: 'a' }), range(1, 700))
    assert.deepEqual(await all(now, { project: 'b', since: 1000 }), range(1001, 1403))
    assert.deepEqual(await all(now, { project: 'none' }), [])
    assert.deepEqual(await all(now, { since: 1403 }), [])
    assert.deepEqual(await all(now, { since: 5000 }), [])
  }
})

test('an event is told as it was given, and the same from memory and from the database', async () => {
  await using made = await disposableStore()
  const log = new EventLog(made.store)
  const data = { text: 'ü\u0000', missing: undefined, list: [1, { a: null }] }
  const [given, bare, large] = await made.store.commit((tx) => [
    tx.event('guest.started', { project: 'p', guest: 'g', data }), tx.event('host.started'),
    tx.event('x', { data: { text: 'x'.repeat(EVENT_DATA_BYTES_MAX) } }),
  ])
  assert.deepEqual({ ...given, time: 0 }, { seq: 1, time: 0, kind: 'guest.started', project: 'p', guest: 'g',
    data: { text: 'ü\u0000', list: [1, { a: null }] } })
  assert.deepEqual([bare?.data, large?.data], [{}, { truncated: true }])
  const live: EventView[] = []
  for await (const event of log.follow({ follow: false })) live.push(event)
  assert.deepEqual(live, [given, bare, large])
  assert.deepEqual(made.store.events(0, undefined, 10), live)
})

test('follow goes on with what comes, without a gap or repetition, until its signal', { timeout: 30_000 }, async () => {
  await using made = await disposableStore()
  const log = new EventLog(made.store)
  const total = 6000
  const controllers = [0, 1, 2, 3].map(() => new AbortController())
  const followers = controllers.map(async (controller, k) => {
    const since = k * 10
    const found: number[] = []
    for await (const { seq } of log.follow({ since, follow: true, signal: controller.signal })) {
      found.push(seq)
      // Some read at another pace than it comes, and fall behind what is in memory.
      if (k > 0 && seq % (k * 7) === 0) await turn()
      if (seq === total) controller.abort()
    }
    assert.deepEqual(found, range(found[0] ?? 0, total))
    // A position that was yet to come is taken for now.
    assert.ok(found[0]! <= since + 1)
  })
  for (let seq = 0; seq < total; seq += 60) await add(made.store, 60)
  await Promise.all(followers)
})

test('follow ends with its signal while it waits, and holds nothing of it then', async () => {
  await using made = await disposableStore()
  const log = new EventLog(made.store)
  const controller = new AbortController()
  const next = log.follow({ follow: true, signal: controller.signal }).next()
  await turn()
  controller.abort()
  assert.equal((await next).done, true)
  assert.equal((await log.follow({ follow: true, signal: controller.signal }).next()).done, true)
})

test('a follower that does not read goes on with the oldest that is left', { timeout: 60_000 }, async () => {
  await using made = await disposableStore()
  const log = new EventLog(made.store)
  await add(made.store, 1)
  const slow = log.follow({ follow: true })
  assert.equal((await slow.next() as { value: EventView }).value.seq, 1)
  for (let i = 0; i < EVENTS_MAX + 3000; i += 1000) await add(made.store, 1000)
  const oldest = made.store.events(0, undefined, 1)[0]!.seq
  assert.ok(oldest > 1 && oldest <= log.last - EVENTS_MAX + 1, `${oldest} of ${log.last}`)
  assert.equal((await slow.next() as { value: EventView }).value.seq, oldest)
  await slow.return()
})

test('events older than a month are removed in steps', async (t) => {
  await using made = await disposableStore()
  t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
  await add(made.store, 999)
  t.mock.timers.tick(EVENT_AGE_MS_MAX + 1)
  await add(made.store, 1)
  assert.equal(made.store.events(0, undefined, 1)[0]?.seq, 1000)
})

test('follow tells nothing of a group that could not be committed', async () => {
  await using made = await disposableStore()
  const log = new EventLog(made.store)
  await assert.rejects(made.store.commit((tx) => { tx.event('never'); throw new Error('no') }), /no/)
  assert.equal(log.last, 0)
  await add(made.store, 1)
  assert.deepEqual(await all(log), [1])
})
