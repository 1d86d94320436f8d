// host/store_test.ts: what was committed is there after any end, what failed is not, and one failure is one work's.

import assert from 'node:assert/strict'
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, rmSync, statSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import fc from 'fast-check'
import { COMMIT_GROUP_MAX } from '../base/limits.ts'
import type { GuestRow } from './rows.ts'
import { Store } from './store.ts'
import { disposableFolder, disposableStore, guestRow, projectRow } from './test_support.ts'
import type { Transaction } from './transaction.ts'

const isRoot = process.geteuid?.() === 0
const ids = (store: Store): string[] => store.load().guests.map(({ id }) => id)

test('Store.load answers every kind of row as it was put, also after the next start', async () => {
  await using made = await disposableStore()
  const guest = guestRow('web', { healthy: true, startedAt: 5.25, process: 3,
    exit: { status: 1, reason: 'it "ended"\u0000\n' }, origin: { fork: 'first' },
    from: { snapshot: 'sha256:2', event: 'wake', at: 1.5, wakeAt: 2 },
    move: { id: 'm', way: 'out', peer: 'https://other', host: 'h' } })
  const rows = {
    projects: [{ name: 'default', uid: 100_000, createdAt: 1 }], guests: [guest, guestRow('db', { healthy: false })],
    snapshots: [{ project: 'default', digest: 'sha256:2', name: null, guest: 'web', spec: guest.spec,
      module: 'sha256:0', manifestDigest: 'sha256:1', memoryBytes: 65_536, newBytes: 1, storedBytes: 2, createdAt: 2 }],
    incoming: [], identity: made.store.load().identity,
    pools: [{ project: 'default', name: 'small', spec: { shares: 3 }, createdAt: 2 }],
    volumes: [{ project: 'default', name: 'data', sizeBytes: 2 ** 41, createdAt: 3, clonedFrom: 'old',
      kind: 'disk' as const,
      state: 'ready' as const }],
    networks: [{ project: 'default', name: 'inner', createdAt: 4 }],
    secrets: [{ project: 'default', name: 'key', value: Uint8Array.of(0, 255, 7), createdAt: 5 }],
    imageNames: [{ name: 'app:1', digest: 'sha256:0', createdAt: 6 }],
    processes: [{ id: 7, project: 'default', pid: 0, kind: 'cells' as const, createdAt: 7 }],
    tokens: [{ id: 't', name: 'ci', hash: '00', scope: 'read' as const, project: null, createdAt: 8, expiresAt: null,
      lastUsedAt: 9 }],
    operations: [{ id: 'o', kind: 'image.pull' as const, target: 'app', status: 'done' as const, stage: 'fetching',
      progress: { done: 1, total: 2, unit: 'bytes' }, error: null, result: { digest: 'sha256:0' }, createdAt: 9,
      updatedAt: 10, by: 'test' }],
    answers: [{ key: 'k', fingerprint: 'f', result: null, createdAt: 11 }],
  }
  await made.store.commit((tx) => {
    for (const row of rows.projects) tx.putProject(row)
    for (const row of rows.guests) tx.putGuest(row)
    for (const row of rows.snapshots) tx.putSnapshot(row)
    for (const row of rows.pools) tx.putPool(row)
    for (const row of rows.volumes) tx.putVolume(row)
    for (const row of rows.networks) tx.putNetwork(row)
    for (const row of rows.secrets) tx.putSecret(row)
    for (const row of rows.imageNames) tx.putImageName(row)
    for (const row of rows.processes) tx.putProcess(row)
    for (const row of rows.tokens) tx.putToken(row)
    for (const row of rows.operations) tx.putOperation(row)
    for (const row of rows.answers) tx.putAnswer(row)
  })
  assert.deepEqual(made.store.load(), rows)
  const again = await made.reopen()
  assert.deepEqual(again.load(), rows)
  await again.commit((tx) => {
    for (const { id } of rows.guests) tx.deleteGuest(id)
    tx.deleteImageName('app:1')
    tx.deleteProcess(7)
    tx.deleteToken('t')
    tx.deleteOperation('o')
    tx.deleteAnswer('k')
    tx.deleteProject('default')
  })
  const { identity, ...others } = again.load()
  assert.deepEqual(identity, rows.identity)
  for (const [table, left] of Object.entries(others)) assert.deepEqual(left, [], table)
})

test('Store.open makes files that only their owner reads, in a folder that others may pass through', async () => {
  using made = disposableFolder()
  const folder = join(made.path, 'some/where')
  const store = await Store.open(folder)
  await store.commit((tx) => tx.putProject(projectRow()))
  assert.equal(statSync(folder).mode & 0o777, 0o711)
  assert.deepEqual(readdirSync(folder).sort(), ['cellar.db', 'cellar.db-wal'])
  for (const file of readdirSync(folder)) assert.equal(statSync(join(folder, file)).mode & 0o777, 0o600, file)
  await store.close()
  assert.deepEqual(readdirSync(folder), ['cellar.db'])
})

test('commit undoes a work that throws, and nothing else of its group', async () => {
  await using made = await disposableStore()
  const { store } = made
  const told: number[] = []
  store.onEvents((events) => told.push(...events.map(({ seq }) => seq)))
  const failure = new Error('changed my mind')
  const results = await Promise.allSettled([
    store.commit((tx) => { tx.putProject(projectRow()); return 'first' }),
    store.commit((tx) => {
      tx.putGuest(guestRow('undone'))
      tx.event('guest.created')
      throw failure
    }),
    store.commit((tx) => { tx.putGuest(guestRow('kept')); return tx.event('guest.created').seq }),
    store.commit((tx) => tx.putGuest(guestRow('other', { name: 'kept' }))),
    store.commit((tx) => tx.putGuest(guestRow('lost', { project: 'none' }))),
    store.commit((tx) => tx.deleteProject('default')),
    store.commit(async (tx) => { tx.putGuest(guestRow('late')) }),
  ])
  assert.deepEqual(results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled', 'rejected', 'rejected', 'rejected', 'rejected'])
  assert.equal((results[0] as PromiseFulfilledResult<string>).value, 'first')
  assert.equal((results[1] as PromiseRejectedResult).reason, failure)
  assert.deepEqual([results[2], told], [{ status: 'fulfilled', value: 1 }, [1]])
  assert.deepEqual(ids(await made.reopen()), ['kept'])
})

test('commit keeps the order of works, however many come at once', async () => {
  await using made = await disposableStore()
  const { store } = made
  const ran: number[] = []
  const count = 2 * COMMIT_GROUP_MAX + 1
  await Promise.all(Array.from({ length: count }, (_, i) => store.commit(() => ran.push(i))))
  assert.deepEqual(ran, Array.from({ length: count }, (_, i) => i))
})

test('a Transaction is refused after its work', async () => {
  await using made = await disposableStore()
  let kept: Transaction | undefined
  await made.store.commit((tx) => { kept = tx })
  assert.throws(() => kept?.putProject(projectRow()), /after its work/)
  assert.throws(() => kept?.deleteProject('default'), /after its work/)
  assert.throws(() => kept?.event('x'), /after its work/)
})

test('close commits what waits, and commit then says that the host shuts down', async () => {
  await using made = await disposableStore()
  const { store } = made
  const waiting = Array.from({ length: COMMIT_GROUP_MAX + 1 }, (_, i) =>
    store.commit((tx) => tx.putProject(projectRow(`p${i}`))))
  await store.close()
  await Promise.all(waiting)
  await assert.rejects(store.commit(() => {}), { code: 'HOST_DRAINING' })
  assert.equal((await made.reopen()).load().projects.length, COMMIT_GROUP_MAX + 1)
})

test('nextNumber gives no number twice, whether or not the host is started again', async () => {
  await using made = await disposableStore()
  const { store } = made
  assert.deepEqual([store.nextNumber('process'), store.nextNumber('process'), store.nextNumber('project')], [1, 2, 1])
  await store.commit(() => {})
  const again = await made.reopen()
  assert.deepEqual([again.nextNumber('process'), again.nextNumber('project')], [3, 2])
})

test('audit answers the latest entries first, their fields cut to what is kept', async () => {
  await using made = await disposableStore()
  const { store } = made
  const entry = { actor: 'uid:0', action: 'guest.create', outcome: '201', requestId: 'r' }
  await store.commit((tx) => {
    tx.audit({ ...entry, target: 'one' })
    tx.audit({ ...entry, target: 'x'.repeat(100_000) })
  })
  const [second, first] = store.audit(10)
  assert.equal(second?.target.length, 512)
  assert.deepEqual({ ...first, time: 0 }, { seq: 1, time: 0, ...entry, target: 'one' })
  assert.equal(store.audit(1).length, 1)
})

// ---- a model

type Change = { readonly kind: 'put' | 'delete' | 'throw'; readonly id: number; readonly run: number }
const change: fc.Arbitrary<Change> = fc.record({
  kind: fc.constantFrom('put', 'put', 'delete', 'throw'), id: fc.integer({ min: 0, max: 8 }), run: fc.nat(1000) })

test('a store holds what a Map would hold, whatever is put, deleted, undone and reopened', async () => {
  const groups = fc.array(fc.tuple(fc.array(fc.array(change, { maxLength: 4 }), { maxLength: 5 }), fc.boolean()),
    { maxLength: 8 })
  await fc.assert(fc.asyncProperty(groups, async (groups) => {
    await using made = await disposableStore()
    await made.store.commit((tx) => tx.putProject(projectRow()))
    const model = new Map<string, GuestRow>()
    for (const [works, restart] of groups) {
      await Promise.all(works.map(async (changes) => {
        const fails = changes.some(({ kind }) => kind === 'throw')
        const committed = made.store.commit((tx) => changes.forEach((one) => apply(tx, one)))
        if (fails) await assert.rejects(committed, /on purpose/)
        else await committed
      }))
      for (const changes of works.filter((one) => one.every(({ kind }) => kind !== 'throw'))) {
        for (const { kind, id, run } of changes) {
          if (kind === 'put') model.set(`g${id}`, guestRow(`g${id}`, { run }))
          else model.delete(`g${id}`)
        }
      }
      if (restart) await made.reopen()
      const rows = new Map(made.store.load().guests.map((row) => [row.id, row]))
      assert.deepEqual(rows, model)
    }
  }), { numRuns: 30 })
})

function apply(tx: Transaction, { kind, id, run }: Change): void {
  if (kind === 'put') tx.putGuest(guestRow(`g${id}`, { run }))
  if (kind === 'delete') tx.deleteGuest(`g${id}`)
  if (kind === 'throw') throw new Error('on purpose')
}

// ---- kill -9

const WRITER = `
  import { writeSync } from 'node:fs'
  import { Store } from ${JSON.stringify(new URL('./store.ts', import.meta.url).href)}
  import { guestRow, projectRow } from ${JSON.stringify(new URL('./test_support.ts', import.meta.url).href)}
  const store = await Store.open(process.argv[1])
  await store.commit((tx) => tx.putProject(projectRow()))
  for (let i = store.load().guests.length; ; i += 8) {
    await Promise.all(Array.from({ length: 8 }, async (_, k) => {
      const id = 'g' + (i + k)
      await store.commit((tx) => { tx.putGuest(guestRow(id)); tx.event('guest.created', { guest: id }) })
      writeSync(1, id + '\\n')
    }))
  }`

test('every row that commit has acknowledged is there after SIGKILL', { timeout: 60_000 }, async () => {
  using made = disposableFolder()
  let acknowledged: string[] = []
  for (const most of [1, 60, 300]) {
    const child: ChildProcess = spawn(process.execPath, ['--disable-warning=ExperimentalWarning',
      '--input-type=module-typescript', '-e', WRITER, made.path], { stdio: ['ignore', 'pipe', 'inherit'] })
    try {
      const ended = once(child, 'exit')
      const lines: string[] = []
      for await (const line of createInterface({ input: child.stdout! })) {
        lines.push(line)
        if (lines.length === most) child.kill('SIGKILL')
      }
      await ended
      assert.ok(lines.length >= most)
      // The last line may be a part of one.
      acknowledged = [...acknowledged, ...lines.slice(0, most)]
    } finally {
      child.kill('SIGKILL')
    }
    const store = await Store.open(made.path)
    const there = new Set(ids(store))
    const told = new Set(store.events(0, undefined, 100_000).map(({ guest }) => guest))
    await store.close()
    assert.deepEqual(acknowledged.filter((id) => !there.has(id)), [])
    assert.deepEqual([...there].filter((id) => !told.has(id)), [], 'a row without the event of its work')
  }
})

// ---- a full disk

// Leaves so many bytes.
function fill(disk: string, left: number): void {
  const { bavail, bsize } = statfsSync(disk)
  writeFileSync(join(disk, 'filler'), Buffer.alloc(bavail * bsize - left))
}

const LARGE = guestRow('large', { managedBy: 'x'.repeat(3_000_000) })

async function fillsUp(store: Store, free: () => void): Promise<void> {
  await store.commit((tx) => { tx.putProject(projectRow()); tx.putGuest(guestRow('before')) })
  const results = await Promise.allSettled([
    store.commit((tx) => tx.putGuest(guestRow('beside'))),
    store.commit((tx) => { tx.putGuest(LARGE); tx.event('guest.created') }),
  ])
  for (const result of results) {
    assert.equal(result.status, 'rejected')
    assert.equal((result as { reason: { code?: string } }).reason.code, 'HOST_DISK_FULL')
  }
  assert.deepEqual(ids(store), ['before'])
  assert.equal(store.lastEvent(), 0)
  free()
  await store.commit((tx) => { tx.putGuest(LARGE); tx.event('guest.created') })
  assert.deepEqual(ids(store), ['before', 'large'])
}

test('commit says that the disk is full, changes nothing, and works again when there is room', async (t) => {
  if (!isRoot) return t.skip('mounting a small disk needs root')
  using made = disposableFolder()
  const disk = join(made.path, 'disk')
  mkdirSync(disk)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m,mode=711', 'tmpfs', disk], { stdio: 'pipe' })
  } catch {
    return t.skip('this machine does not let us mount a tmpfs')
  }
  try {
    const store = await Store.open(disk)
    fill(disk, 1_000_000)
    await fillsUp(store, () => rmSync(join(disk, 'filler')))
    fill(disk, 8192)
    await assert.rejects(store.backup(), { code: 'HOST_DISK_FULL' })
    assert.deepEqual(readdirSync(join(disk, 'backup')), [])
    await assert.rejects(Store.open(join(disk, 'new')), { code: 'HOST_DISK_FULL' })
    rmSync(join(disk, 'filler'))
    await (await Store.open(join(disk, 'new'))).close()
    await store.close()
    const again = await Store.open(disk)
    assert.deepEqual(ids(again), ['before', 'large'])
    await again.close()
  } finally {
    execFileSync('umount', [disk])
  }
})
