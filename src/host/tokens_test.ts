// host/tokens_test.ts: a token lets in who has it, until it expires or is removed, and is nowhere on disk.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { TOKENS_MAX } from '../base/limits.ts'
import type { Store } from './store.ts'
import { disposableStore } from './test_support.ts'
import { Tokens } from './tokens.ts'

const load = (store: Store): Tokens => new Tokens(store, store.load().tokens)
const refused = (tokens: Tokens, token: string, why: RegExp): void =>
  assert.throws(() => tokens.authenticate(token), { code: 'UNAUTHENTICATED', message: why })

test('authenticate tells who has a token, after a restart, too, and the state does not tell the token', async () => {
  await using made = await disposableStore()
  const tokens = load(made.store)
  const { token, ...view } = await tokens.create('ci', 'write', { project: 'shop' })
  const other = await tokens.create('ops', 'admin', {})
  assert.match(token, /^cellar_[\w-]{43}$/)
  assert.deepEqual(tokens.list()[0], view)
  assert.deepEqual(tokens.authenticate(token), { name: 'token:ci', scope: 'write', project: 'shop' })
  assert.deepEqual(tokens.authenticate(other.token), { name: 'token:ops', scope: 'admin' })
  const again = load(await made.reopen())
  assert.deepEqual(again.authenticate(token), { name: 'token:ci', scope: 'write', project: 'shop' })
  await made.store.close()
  assert.equal(readFileSync(join(made.folder, 'cellar.db')).includes(token.slice(7)), false)
})

test('authenticate refuses what is no token, one that is unknown, and one that was removed', async () => {
  await using made = await disposableStore()
  const tokens = load(made.store)
  const { id, token } = await tokens.create('ci', 'read', {})
  for (const wrong of ['', 'cellar_', 'x'.repeat(1_000_000), token.slice(0, -1), `${token}x`, `${token}\n`]) {
    refused(tokens, wrong, /no token/)
  }
  refused(tokens, `cellar_${'A'.repeat(43)}`, /no such token/)
  const removal = tokens.remove(id)
  refused(tokens, token, /no such token/)
  await removal
  await assert.rejects(tokens.remove(id), { code: 'NOT_FOUND' })
  refused(load(await made.reopen()), token, /no such token/)
})

test('authenticate refuses a token from the time on at which it expires', async (t) => {
  await using made = await disposableStore()
  t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
  const tokens = load(made.store)
  const { token } = await tokens.create('ci', 'read', { expiresAt: Date.now() + 1000 })
  t.mock.timers.tick(999)
  tokens.authenticate(token)
  t.mock.timers.tick(1)
  refused(tokens, token, /"ci" has expired/)
  await assert.rejects(tokens.create('late', 'read', { expiresAt: Date.now() }), { code: 'REQUEST_INVALID' })
})

test('the last use of a token is noted once a minute at most', async (t) => {
  await using made = await disposableStore()
  t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
  const tokens = load(made.store)
  const { token } = await tokens.create('ci', 'read', {})
  const written = async (): Promise<number | null | undefined> => {
    await made.store.commit(() => {})
    return made.store.load().tokens[0]?.lastUsedAt
  }
  tokens.authenticate(token)
  assert.equal(await written(), 1_700_000_000_000)
  t.mock.timers.tick(59_999)
  tokens.authenticate(token)
  assert.equal(await written(), 1_700_000_000_000)
  t.mock.timers.tick(1)
  tokens.authenticate(token)
  assert.equal(await written(), 1_700_000_060_000)
})

test('create refuses a name that is taken or none, and more tokens than there may be', async () => {
  await using made = await disposableStore()
  const tokens = load(made.store)
  const both = await Promise.allSettled([tokens.create('ci', 'read', {}), tokens.create('ci', 'admin', {})])
  assert.equal((both[1] as { reason: { code?: string } }).reason.code, 'EXISTS')
  await assert.rejects(tokens.create('a b', 'read', {}), { code: 'NAME_INVALID' })
  await Promise.all(Array.from({ length: TOKENS_MAX - 1 }, (_, i) => tokens.create(`t${i}`, 'read', {})))
  await assert.rejects(tokens.create('more', 'read', {}), { code: 'REQUEST_INVALID' })
  await made.store.close()
  const id = tokens.list()[0]!.id
  await assert.rejects(tokens.remove(id), { code: 'HOST_DRAINING' })
  assert.ok(tokens.list().some((view) => view.id === id), 'what could not be removed is still there')
})
