// host/backup_test.ts: a backup is whole whenever it is made, and going back to one deletes nothing.

import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { recover } from './backup.ts'
import { Store } from './store.ts'
import { disposableFolder, disposableStore, guestRow, projectRow } from './test_support.ts'

const names = (store: Store): string[] => store.load().projects.map(({ name }) => name)

/** A closed state with a backup after each project: their paths. */
async function withBackups(folder: string, projects: readonly string[]): Promise<string[]> {
  const store = await Store.open(folder)
  const paths: string[] = []
  for (const name of projects) {
    store.nextNumber('project')
    await store.commit((tx) => tx.putProject(projectRow(name)))
    paths.push(await store.backup())
    // Their names are times.
    await sleep(2)
  }
  await store.commit((tx) => tx.putProject(projectRow('later')))
  await store.close()
  return paths
}

test('backup keeps the last three, for their owner alone', async () => {
  using made = disposableFolder()
  const paths = await withBackups(made.path, ['a', 'b', 'c', 'd'])
  assert.deepEqual(readdirSync(join(made.path, 'backup')).sort(), paths.slice(1).map((path) => basename(path)))
  assert.match(basename(paths[0]!), /^cellar-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.db$/)
  for (const path of paths.slice(1)) assert.equal(statSync(path).mode & 0o777, 0o600)
  assert.equal(statSync(dirname(paths[0]!)).mode & 0o777, 0o700)
})

test('a backup that is made while works are committed is one state of the database', async () => {
  await using made = await disposableStore()
  await made.store.commit((tx) => {
    tx.putProject(projectRow())
    for (let i = 0; i < 3000; i++) tx.putGuest(guestRow(`g${i}`))
  })
  const backup = made.store.backup()
  assert.equal(made.store.backup(), backup, 'one at a time')
  const seen = { end: false }
  void backup.finally(() => { seen.end = true })
  // Two guests at a time, so that half a work would be seen.
  for (let i = 0; !seen.end; i++) {
    await made.store.commit((tx) => { tx.putGuest(guestRow(`a${i}`)); tx.putGuest(guestRow(`b${i}`)) })
  }
  const path = await backup
  await made.store.close()
  writeFileSync(join(made.folder, 'cellar.db'), 'damaged')
  assert.equal(recover(made.folder)?.from, path)
  const guests = new Set((await made.reopen()).load().guests.map(({ id }) => id))
  assert.ok(guests.size >= 3000)
  assert.deepEqual([...guests].filter((id) => id.startsWith('a') && !guests.has(`b${id.slice(1)}`)), [])
})

test('recover goes back to the newest backup that is whole and puts the damaged files aside', async () => {
  using made = disposableFolder()
  const [older, newer] = await withBackups(made.path, ['a', 'b'])
  const path = join(made.path, 'cellar.db')
  writeFileSync(path, 'damaged')
  writeFileSync(`${path}-wal`, 'its WAL')
  writeFileSync(newer!, readFileSync(newer!).subarray(0, 5000))
  const done = recover(made.path)
  assert.deepEqual([done?.from, done?.skipped], [older, [newer]])
  const [database, wal] = done!.kept
  assert.deepEqual([database, wal].map((kept) => readFileSync(kept!, 'utf8')), ['damaged', 'its WAL'])
  assert.match(done?.kept[0] ?? '', /\/cellar\.db\.damaged-[^/]*Z$/)
  assert.ok(existsSync(older!) && existsSync(newer!))
  const files = ['backup', 'cellar.db', ...done!.kept.map((kept) => basename(kept))]
  assert.deepEqual(readdirSync(made.path).sort(), files.sort())
  const store = await Store.open(made.path)
  assert.deepEqual(names(store), ['a'])
  assert.ok(store.nextNumber('project') > 1000, 'a number that was given after the backup is not given again')
  await store.close()
})

test('recover brings back a state whose database is gone', async () => {
  using made = disposableFolder()
  await withBackups(made.path, ['a'])
  rmSync(join(made.path, 'cellar.db'))
  assert.deepEqual(recover(made.path)?.kept, [])
  const store = await Store.open(made.path)
  assert.deepEqual(names(store), ['a'])
  await store.close()
})

test('recover leaves a state alone that is whole, and one that has no backup', async () => {
  using made = disposableFolder()
  await withBackups(made.path, ['a'])
  const path = join(made.path, 'cellar.db')
  assert.equal(recover(made.path), undefined)
  assert.deepEqual(readdirSync(made.path).sort().filter((name) => !/-(wal|shm)$/.test(name)), ['backup', 'cellar.db'])
  rmSync(join(made.path, 'backup'), { recursive: true })
  writeFileSync(path, 'damaged')
  assert.throws(() => recover(made.path), { code: 'HOST_STATE_UNUSABLE' })
  assert.equal(readFileSync(path, 'utf8'), 'damaged')
})

test('recover refuses while a host has the state open', async () => {
  await using made = await disposableStore()
  await made.store.backup()
  assert.throws(() => recover(made.folder), { code: 'HOST_STATE_UNUSABLE' })
})
