// host/cells_snapshots_test.ts: how many snapshots are under way, what is kept of them, what is cleared away.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { SNAPSHOTS_AT_ONCE, SNAPSHOTS_KNOWN_BYTES_MAX } from '../base/limits.ts'
import type { CellState } from '../cell/state.ts'
import type { SnapshotMeta } from '../snapshot/format.ts'
import type { Known, SnapshotStore } from '../snapshot/store.ts'
import { Snapshots } from './cells_snapshots.ts'
import type { Guest } from './cells_guest.ts'
import type { GuestLaunch } from './protocol.ts'

const DAY_MS = 86_400_000

/** A store that writes nothing: what it was asked for. Snapshots by name, and when they came. All are old. */
class FakeStore {
  readonly wrote: { meta: SnapshotMeta; known: Known | undefined }[] = []
  readonly taken = new Map<string, number | CellarError>()
  reads = 0
  collected = 0
  knownBytes = 0
  async write(meta: SnapshotMeta, _: CellState, { known }: { known?: Known | undefined }): Promise<object> {
    this.wrote.push({ meta, known })
    return { digest: 'sha256:0', known: { image: { bytes: { byteLength: this.knownBytes } }, hashes: [] } }
  }
  async read(digest: string): Promise<object> {
    this.reads++
    if (digest === 'gone') throw new CellarError('NOT_FOUND', ['snapshot', digest])
    return { meta: {}, state: { frames: digest } }
  }
  list(): string[] { return [...this.taken.keys()] }
  inspect(digest: string): object {
    const at = this.taken.get(digest)!
    if (at instanceof CellarError) throw at
    return { meta: { createdAt: 0 } }
  }
  cameAt(digest: string): number | undefined { return this.taken.get(digest) as number }
  remove(digest: string): void { this.taken.delete(digest) }
  async collect(): Promise<number> { return ++this.collected }
}

function rig(): { store: FakeStore; snapshots: Snapshots; said: string[] } {
  const [store, said] = [new FakeStore(), [] as string[]]
  return { store, said, snapshots: new Snapshots(store as unknown as SnapshotStore, (text) => said.push(text)) }
}

const guest = (more: Partial<GuestLaunch> = {}): Guest =>
  ({ launch: { name: 'a', module: 'sha256:m', memoryPagesMax: 1, ...more }, known: undefined }) as Guest
const write = (snapshots: Snapshots, one: Guest): Promise<unknown> =>
  snapshots.write(one, {} as CellState, { durable: false, spec: { image: 'i' } })

test('inTurn lets few be under way, and the next when one has ended, well or not', async () => {
  const { snapshots } = rig()
  const ends: ((error?: Error) => void)[] = []
  let begun = 0
  const all = Array.from({ length: SNAPSHOTS_AT_ONCE + 2 }, () => snapshots.inTurn(() => {
    begun++
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    ends.push((error) => { if (error === undefined) resolve(); else reject(error) })
    return promise
  }))
  const settled = Promise.allSettled(all)
  await new Promise(setImmediate)
  assert.equal(begun, SNAPSHOTS_AT_ONCE)
  ends.shift()!(new Error('odd'))
  await new Promise(setImmediate)
  assert.equal(begun, SNAPSHOTS_AT_ONCE + 1)
  while (ends.length > 0) {
    ends.shift()!()
    await new Promise(setImmediate)
  }
  assert.deepEqual((await settled).map(({ status }) => status), ['rejected', 'fulfilled', 'fulfilled', 'fulfilled'])
})

test('write says whose snapshot it is, and compares with the last one of the same guest', async () => {
  const { snapshots, store } = rig()
  snapshots.cellar = '1.2.3'
  const [a, b] = [guest(), guest({ name: 'b', from: { snapshot: 'sha256:p', event: 'restore' } })]
  await write(snapshots, a)
  await write(snapshots, a)
  await write(snapshots, b)
  await write(snapshots, guest({ from: { snapshot: '', event: 'fork', number: 1 } }))
  const { createdAt, ...meta } = store.wrote[0]!.meta
  assert.deepEqual(meta, { kind: 'cell', module: 'sha256:m', guest: 'a', spec: { image: 'i' }, cellar: '1.2.3' })
  assert.ok(Math.abs(createdAt - Date.now()) < 10_000)
  assert.deepEqual(store.wrote.map(({ meta: { parent } }) => parent), [undefined, undefined, 'sha256:p', undefined])
  assert.deepEqual(store.wrote.map(({ known }) => known !== undefined), [false, true, false, false])
  snapshots.forget(a)
  await write(snapshots, a)
  assert.equal(store.wrote.at(-1)!.known, undefined)
})

test('memory of the oldest snapshots is let go when it is too much, that of the last one too if it is so alone',
  async () => {
    const { snapshots, store } = rig()
    store.knownBytes = SNAPSHOTS_KNOWN_BYTES_MAX / 2
    const [a, b, c] = [guest(), guest(), guest()]
    for (const one of [a, b, c]) await write(snapshots, one)
    assert.deepEqual([a, b, c].map(({ known }) => known !== undefined), [false, true, true])
    store.knownBytes = SNAPSHOTS_KNOWN_BYTES_MAX + 1
    await write(snapshots, b)
    assert.deepEqual([a, b, c].map(({ known }) => known !== undefined), [false, false, false])
  })

test('a snapshot that many start from at once is read once, and one that fails fails them all', async () => {
  const { snapshots, store } = rig()
  const launch = guest().launch
  const all = await Promise.all([1, 2, 3].map(() => snapshots.read(launch, 'sha256:1')))
  assert.equal(store.reads, 1)
  assert.equal(all[0], all[2])
  await snapshots.read({ ...launch, module: 'sha256:other' }, 'sha256:1')
  assert.equal(store.reads, 2)
  for (const one of [1, 2].map(() => snapshots.read(launch, 'gone'))) await assert.rejects(one, { code: 'NOT_FOUND' })
})

test('keep removes what nobody needs and is here long or damaged, and leaves what has just come or is newer', () => {
  const { snapshots, store } = rig()
  const now = Date.now()
  store.taken.set('needed', now - 2 * DAY_MS).set('old', now - 2 * DAY_MS).set('young', now - DAY_MS / 2)
    .set('damaged', new CellarError('SNAPSHOT_DAMAGED', ['x', 'y']))
    .set('newer', new CellarError('SNAPSHOT_NEWER', ['x', 2, 1]))
  snapshots.keep(['needed', 'unknown'])
  assert.deepEqual(store.list(), ['needed', 'young', 'newer'])
})

test('chunks are freed while snapshots are removed without a pause, once at a time', async (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const { snapshots, store } = rig()
  const { promise, resolve } = Promise.withResolvers<number>()
  store.collect = () => (++store.collected, promise)
  for (let i = 0; i < 30; i++) {
    snapshots.remove(['a'])
    context.mock.timers.tick(100)
  }
  assert.equal(store.collected, 1)
  resolve(0)
  await promise.then(() => {}).then(() => {}).then(() => {})
  context.mock.timers.tick(10_000)
  assert.equal(store.collected, 2, 'what was removed meanwhile is freed, too')
})

test('remove removes what it is given, and chunks once for many', async (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const { snapshots, store, said } = rig()
  for (const name of ['a', 'b', 'c']) store.taken.set(name, 0)
  snapshots.remove(['a'])
  snapshots.remove(['b'])
  context.mock.timers.tick(10_000)
  assert.deepEqual([store.list(), store.collected], [['c'], 1])
  store.remove = () => { throw new CellarError('HOST_STATE_UNUSABLE', ['x', 'the disk failed']) }
  snapshots.remove(['c'])
  assert.match(said[0]!, /^cannot clear away snapshots: .*the disk failed/)
})
