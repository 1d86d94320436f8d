// host/idempotency_test.ts: a key's work is done once, and its answer told again, as long as there is room for it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { IDEMPOTENCY_BYTES_MAX, IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_MS_MAX } from '../base/limits.ts'
import { Idempotency } from './idempotency.ts'
import type { Store } from './store.ts'
import { disposableStore } from './test_support.ts'

const load = (store: Store): Idempotency => new Idempotency(store, store.load().answers)

/** A work that counts how often it was done. */
function counted<T>(value: T): { work: () => Promise<T>; times: () => number } {
  let times = 0
  return { work: async () => { times++; return value }, times: () => times }
}

test('once runs a work once for its key and answers the same again, after a restart, too', async () => {
  await using made = await disposableStore()
  const keys = load(made.store)
  const { work, times } = counted({ name: 'web', list: [1, null] })
  const nothing = counted(undefined)
  for (const one of [keys, keys, undefined]) {
    const now = one ?? load(await made.reopen())
    assert.deepEqual(await now.once('k'.repeat(10_000), 'f', work), { name: 'web', list: [1, null] })
    assert.equal(await now.once('nothing', 'f', nothing.work), undefined)
  }
  assert.deepEqual([times(), nothing.times()], [1, 1])
})

test('once refuses a key for another request, and one whose work is under way', async () => {
  await using made = await disposableStore()
  const keys = load(made.store)
  const { promise, resolve } = Promise.withResolvers<number>()
  const first = keys.once('k', 'f', () => promise)
  const { work, times } = counted(2)
  await assert.rejects(keys.once('k', 'f', work), { code: 'IDEMPOTENCY_KEY_BUSY' })
  await assert.rejects(keys.once('k', 'other', work), { code: 'IDEMPOTENCY_KEY_REUSED' })
  resolve(1)
  assert.equal(await first, 1)
  await assert.rejects(keys.once('k', 'other', work), { code: 'IDEMPOTENCY_KEY_REUSED' })
  assert.equal(await keys.once('k', 'f', work), 1)
  assert.equal(times(), 0)
})

test('once keeps no error: the key may be used again, as after a crash', async () => {
  await using made = await disposableStore()
  const keys = load(made.store)
  for (const error of [new CellarError('HOST_DISK_FULL', ['pull']), new TypeError('bug')]) {
    await assert.rejects(keys.once('k', 'f', () => Promise.reject(error)), error)
  }
  void keys.once('crash', 'f', () => new Promise(() => {}))
  const again = load(await made.reopen())
  for (const key of ['k', 'crash']) assert.equal(await again.once(key, 'another', async () => key), key)
})

test('once answers though its answer cannot be kept on disk', async () => {
  await using made = await disposableStore()
  const keys = load(made.store)
  await made.store.close()
  assert.equal(await keys.once('k', 'f', async () => 1), 1)
})

test('an answer is forgotten after a day', async (t) => {
  await using made = await disposableStore()
  t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
  const keys = load(made.store)
  await keys.once('old', 'f', async () => 1)
  t.mock.timers.tick(IDEMPOTENCY_MS_MAX - 1)
  assert.equal(await keys.once('old', 'f', async () => 2), 1)
  t.mock.timers.tick(1)
  assert.equal(await keys.once('old', 'other', async () => 3), 3)
  assert.deepEqual(made.store.load().answers.map(({ result }) => result), ['3'])
})

test('the oldest answers make room for others, by number and by size', async () => {
  await using made = await disposableStore()
  const keys = load(made.store)
  await Promise.all(Array.from({ length: IDEMPOTENCY_KEYS_MAX + 2 }, (_, i) => keys.once(`k${i}`, 'f', async () => i)))
  assert.equal(made.store.load().answers.length, IDEMPOTENCY_KEYS_MAX)
  assert.equal(await keys.once('k0', 'f', async () => 'again'), 'again')
  assert.equal(await keys.once('k5000', 'f', async () => 'again'), 5000)
  const large = 'x'.repeat(IDEMPOTENCY_BYTES_MAX / 2)
  for (const key of ['a', 'b', 'c']) await keys.once(key, 'f', async () => large)
  assert.ok(made.store.load().answers.length <= 2)
})
