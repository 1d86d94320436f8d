// host/migration_incoming_test.ts: the destination of a move: what it decides, it decides once, and keeps.

import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { MigrationIncoming } from './migration_incoming.ts'
import type { MoveOffer } from './operator.ts'
import type { ProcessHandle } from './processes.ts'
import { GUEST_SPEC } from './spec.ts'
import { State } from './state.ts'
import type { Store } from './store.ts'
import { disposableStore, guestRow, projectRow } from './test_support.ts'

const MOVE = '0123456789abcdef'
const HOST = { host: 'me', stoppedAt: 1000 }
const OFFER: MoveOffer = { id: '0123456789ab', name: 'web', spec: GUEST_SPEC.parse({ image: 'app:1' }),
  module: `sha256:${'2'.repeat(64)}`, generation: 3, createdAt: 5, restarts: 1, run: 7, isManaged: false,
  from: 'there' }
const SNAPSHOT = `sha256:${'3'.repeat(64)}`
const QUIET: Log = { info() {}, warn() {}, error() {}, reopen() {} } as unknown as Log

type Rig = { readonly moves: MigrationIncoming; readonly state: State; readonly launched: string[]
  readonly released: string[]; missing: readonly string[]; refusal: CellarError | undefined; places: number }

/** A destination on a store, with processes that only count. */
async function rig(store: Store): Promise<Rig> {
  const state = new State()
  const { incoming: notes, guests, projects } = store.load()
  for (const row of guests) state.addGuest(row)
  if (projects.length === 0) await store.commit((tx) => tx.putProject(projectRow('a')))
  state.projects.set('a', projectRow('a'))
  const made: Rig = { state, launched: [], released: [], missing: [], refusal: undefined, places: 0,
    moves: undefined as unknown as MigrationIncoming }
  const moves = new MigrationIncoming({ state, store, identity: 'me', notes, log: QUIET,
    processes: { take: async () => {
      made.places++
      return {} as ProcessHandle
    }, leave: () => { made.places-- } } as never,
    transfers: { receive: async (_: unknown, bytes: AsyncIterable<Uint8Array>) => {
      for await (const _piece of bytes) { /* It is all the same. */ }
      return { snapshot: SNAPSHOT, missing: made.missing }
    } } as never,
    lifecycle: { launch: async (guest: { row: { name: string } }) => { made.launched.push(guest.row.name) } } as never,
    files: { release: (_project: string, digest: string) => { made.released.push(digest) } } as never,
    prepare: async () => {},
    check: ({ project, name }) => {
      if (made.refusal !== undefined) throw made.refusal
      if (state.byName(project, name) !== undefined) throw new CellarError('EXISTS', ['guest', name])
    },
    imageOf: () => ({ digest: `sha256:${'4'.repeat(64)}` }), importModule: async () => ({ module: OFFER.module }),
    name: async () => true })
  return Object.assign(made, { moves })
}

const bytes = (): Readable => Readable.from([Buffer.from('x')])

async function ready({ moves }: Rig): Promise<void> {
  await moves.offer('a', MOVE, OFFER)
  await moves.snapshot('a', MOVE, bytes(), true)
}

test('a destination runs a guest once, however often it is asked', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  const answers = await Promise.all([1, 2, 3].map(() => one.moves.activate('a', MOVE, HOST)))
  assert.deepEqual(answers.map(({ state }) => state), ['active', 'active', 'active'])
  assert.deepEqual(one.launched, ['web'])
  const { row } = one.state.guest('a', 'web')
  assert.deepEqual(row.from, { snapshot: SNAPSHOT, event: 'migrate', at: 1000 })
  assert.deepEqual([row.id, row.phase, row.generation, row.createdAt, row.restarts, row.run],
    ['0123456789ab', 'starting', 3, 5, 1, 8])
  assert.equal(one.places, 0, 'its process is not kept for the move any more')
})

test('a destination answers the same after its restart, also when the guest is gone by then', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  await one.moves.activate('a', MOVE, HOST)
  await at.store.commit((tx) => tx.deleteGuest(OFFER.id))
  const next = await rig(await at.reopen())
  assert.deepEqual(await next.moves.activate('a', MOVE, HOST), { state: 'active' })
  await assert.rejects(next.moves.offer('a', MOVE, OFFER), { code: 'MOVE_REFUSED' })
  assert.deepEqual(next.launched, [])
})

test('a destination that has forgotten what it was sent says so for good', async () => {
  await using at = await disposableStore()
  await ready(await rig(at.store))
  const next = await rig(await at.reopen())
  assert.equal((await next.moves.activate('a', MOVE, HOST)).state, 'dropped')
  // What was sent before that, and comes after it.
  await assert.rejects(next.moves.offer('a', MOVE, OFFER), { code: 'MOVE_REFUSED' })
  await assert.rejects(next.moves.snapshot('a', MOVE, bytes(), true), { code: 'NOT_FOUND' })
  const last = await rig(await at.reopen())
  assert.equal((await last.moves.activate('a', MOVE, HOST)).state, 'dropped')
})

test('a destination that cannot take the guest in the end drops it with the reason and what it was sent', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  one.state.addGuest(guestRow('web', { project: 'a' }))
  const answer = await one.moves.activate('a', MOVE, HOST)
  assert.equal(answer.state, 'dropped')
  assert.match(answer.why!, /"web" as it exists/)
  assert.deepEqual([one.launched, one.released, one.places], [[], [SNAPSHOT], 0])
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'dropped')
})

test('a destination that cannot commit has decided nothing', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  const { commit } = at.store
  at.store.commit = async () => { throw new CellarError('HOST_DISK_FULL', ['keep the change']) }
  await assert.rejects(one.moves.activate('a', MOVE, HOST), { code: 'HOST_DISK_FULL' })
  assert.equal(one.state.byName('a', 'web'), undefined)
  at.store.commit = commit
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'active')
  assert.deepEqual(one.launched, ['web'])
})

test('a destination refuses to speak for another host, and then decides nothing', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  await assert.rejects(one.moves.activate('a', MOVE, { ...HOST, host: 'another' }), { code: 'MOVE_REFUSED' })
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'active')
})

test('a destination drops what is not activated, and keeps what is', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  await one.moves.drop('a', MOVE)
  assert.deepEqual([one.released, one.places], [[SNAPSHOT], 0])
  const other = 'fedcba9876543210'
  await one.moves.offer('a', other, OFFER)
  await one.moves.snapshot('a', other, bytes(), true)
  await one.moves.activate('a', other, HOST)
  await one.moves.drop('a', other)
  assert.equal(one.state.byName('a', 'web')?.row.phase, 'starting')
})

test('a snapshot that lacks chunks, or is not the last, is none to go on from', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await one.moves.offer('a', MOVE, OFFER)
  one.missing = ['ab']
  assert.deepEqual(await one.moves.snapshot('a', MOVE, bytes(), true), { missing: ['ab'] })
  one.missing = []
  await one.moves.snapshot('a', MOVE, bytes(), false)
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'dropped')
})

test('what speaks against a guest is said when it is offered, and when all of it is here', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  one.refusal = new CellarError('REFERENCE_UNKNOWN', ['web', 'volume', 'data'])
  await assert.rejects(one.moves.offer('a', MOVE, OFFER), { code: 'REFERENCE_UNKNOWN' })
  one.refusal = undefined
  await one.moves.offer('a', MOVE, OFFER)
  one.refusal = new CellarError('ADMISSION_REFUSED', ['web', 'memory', '1', '0'])
  await assert.rejects(one.moves.snapshot('a', MOVE, bytes(), true), { code: 'ADMISSION_REFUSED' })
  // It isn't ready then: the source goes on with it.
  one.refusal = undefined
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'dropped')
})

test('a move is nothing to another project', async () => {
  await using at = await disposableStore()
  const one = await rig(at.store)
  await ready(one)
  await one.moves.drop('b', MOVE)
  await assert.rejects(one.moves.snapshot('b', MOVE, bytes(), true), { code: 'NOT_FOUND' })
  await assert.rejects(one.moves.module('b', MOVE, bytes()), { code: 'NOT_FOUND' })
  assert.equal((await one.moves.activate('b', MOVE, HOST)).state, 'dropped')
  assert.equal((await one.moves.activate('a', MOVE, HOST)).state, 'active')
})
