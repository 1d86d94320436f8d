// host/database_test.ts: a database that is damaged, foreign, newer or out of reach is refused with why, untouched.

import assert from 'node:assert/strict'
import {
  chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { migrate, VERSION, versionOf } from './migrations.ts'
import { State } from './state.ts'
import { Store } from './store.ts'
import { disposableFolder, guestRow, projectRow } from './test_support.ts'

const isRoot = process.geteuid?.() === 0

/** A closed database with `guests` guests: its path. */
async function fill(folder: string, guests = 200): Promise<string> {
  const store = await Store.open(folder)
  await store.commit((tx) => {
    tx.putProject(projectRow())
    for (let i = 0; i < guests; i++) tx.putGuest(guestRow(`g${i}`))
    tx.event('x', { project: 'default' })
  })
  await store.close()
  return join(folder, 'cellar.db')
}

async function refused(folder: string, code: string, why: RegExp = /./): Promise<void> {
  await assert.rejects(Store.open(folder).then((store) => store.close()), (error) => {
    assert.ok(error instanceof CellarError, String(error))
    assert.equal(error.code, code)
    assert.match(error.message, why)
    return true
  })
}

function change(path: string, sql: string): void {
  using db = new DatabaseSync(path)
  db.exec(sql)
}

test('Store.open refuses files that are no database of ours as damaged, and leaves them as they are', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  const whole = readFileSync(path)
  const foreign = join(made.path, 'foreign.db')
  change(foreign, 'CREATE TABLE guests (id TEXT)')
  const half = Buffer.from(whole)
  half.fill(0, half.length / 2)
  for (const content of [
    Buffer.alloc(0), Buffer.from('{"guests": []}\n'), Buffer.alloc(whole.length), whole.subarray(0, 50),
    whole.subarray(0, whole.length / 2), whole.subarray(0, whole.length - 4096), half, readFileSync(foreign),
  ]) {
    writeFileSync(path, content)
    await refused(made.path, 'HOST_STATE_DAMAGED')
    assert.deepEqual(readFileSync(path), content)
  }
})

test('Store.open and load survive any changed byte: they answer, or say that the state is damaged', async () => {
  using made = disposableFolder()
  const path = await fill(made.path, 40)
  const whole = readFileSync(path)
  let refusals = 0
  for (let i = 0; i < 150; i++) {
    const damaged = Buffer.from(whole)
    const at = (): number => Math.floor(Math.random() * whole.length)
    for (let k = 0; k <= i % 3; k++) damaged[at()]! ^= 1 << at() % 8
    writeFileSync(path, damaged)
    try {
      const store = await Store.open(made.path)
      store.load()
      await store.close()
    } catch (error) {
      assert.ok(error instanceof CellarError, String(error))
      assert.match(error.code, /^HOST_STATE_(DAMAGED|NEWER)$/)
      refusals++
    }
    for (const beside of ['-wal', '-shm']) rmSync(path + beside, { force: true })
  }
  assert.ok(refusals > 0)
})

test('Store.open refuses rows that SQLite takes for whole and we do not', async () => {
  using made = disposableFolder()
  const path = await fill(made.path, 1)
  change(path, "UPDATE guests SET spec = '{'")
  await refused(made.path, 'HOST_STATE_DAMAGED', /JSON/)
  change(path, "PRAGMA foreign_keys = OFF; UPDATE guests SET spec = '{}', project = 'none'")
  await refused(made.path, 'HOST_STATE_DAMAGED', /a row of guests belongs to nothing/)
  change(path, 'DROP TABLE guests')
  await refused(made.path, 'HOST_STATE_DAMAGED', /no such table/)
})

test('Store.open keeps the WAL of a damaged database', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  const store = await Store.open(made.path)
  await store.commit((tx) => tx.putGuest(guestRow('late')))
  const wal = readFileSync(`${path}-wal`)
  await store.close()
  const damaged = readFileSync(path)
  damaged.fill(0xff, 4096)
  writeFileSync(path, damaged)
  writeFileSync(`${path}-wal`, wal)
  await refused(made.path, 'HOST_STATE_DAMAGED')
  assert.deepEqual([readFileSync(path), readFileSync(`${path}-wal`)], [damaged, wal])
})

test('Store.open never begins anew where there was a database', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  const store = await Store.open(made.path)
  await store.backup()
  await store.close()
  rmSync(path)
  await refused(made.path, 'HOST_STATE_DAMAGED', /it is gone/)
  assert.equal(existsSync(path), false)
})

test('Store.open begins anew where the first start was cut off', async () => {
  using made = disposableFolder()
  writeFileSync(join(made.path, 'cellar.db.new'), 'half')
  await fill(made.path)
  assert.deepEqual(readdirSync(made.path), ['cellar.db'])
})

test('Store.open refuses what a newer Cellar has written', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  change(path, `PRAGMA user_version = ${VERSION + 1}`)
  const before = readFileSync(path)
  await refused(made.path, 'HOST_STATE_NEWER', new RegExp(`its version is ${VERSION + 1}, ours ${VERSION}`))
  assert.deepEqual(readFileSync(path), before)
})

test('Store.open makes a backup before it changes tables; a step that fails changes nothing', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  // As if the first step was still to be taken: it finds its tables there.
  change(path, 'PRAGMA user_version = 0')
  await refused(made.path, 'HOST_STATE_DAMAGED', /already exists/)
  assert.equal(readdirSync(join(made.path, 'backup')).length, 1)
  change(path, `PRAGMA user_version = ${VERSION}`)
  await (await Store.open(made.path)).close()
})

test('a state of before there were machines has its guests, volumes and processes as they were', async () => {
  using made = disposableFolder()
  const path = await fill(made.path, 3)
  change(path, `INSERT INTO volumes (project, name, sizeBytes, createdAt, state) VALUES ('default', 'v', 1, 1, 'ready');
    INSERT INTO processes (id, project, pid, createdAt) VALUES (1, 'default', 0, 1);
    ALTER TABLE guests DROP COLUMN address; ALTER TABLE volumes DROP COLUMN kind;
    ALTER TABLE processes DROP COLUMN kind; PRAGMA user_version = 2`)
  const store = await Store.open(made.path)
  const { guests, volumes, processes } = store.load()
  await store.close()
  assert.equal(readdirSync(join(made.path, 'backup')).length, 1)
  assert.deepEqual(guests.map(({ address }) => address), [0, 0, 0])
  const state = new State()
  assert.deepEqual(guests.map((row) => state.addGuest(row).row.address), [1, 2, 3])
  assert.deepEqual([volumes[0]!.kind, processes[0]!.kind], ['folder', 'cells'])
})

test('migrate takes the steps that are missing, all or none', () => {
  using db = new DatabaseSync(':memory:')
  const steps = ['CREATE TABLE a (x)', 'CREATE TABLE b (x); INSERT INTO b VALUES (1)']
  migrate(db, steps.slice(0, 1))
  migrate(db, steps)
  migrate(db, steps)
  assert.equal(versionOf(db), 2)
  assert.throws(() => migrate(db, [...steps, 'CREATE TABLE c (x)', 'nonsense']), /nonsense/)
  assert.equal(versionOf(db), 2)
  assert.throws(() => db.exec('SELECT * FROM c'), /no such table/)
  assert.equal(db.prepare('SELECT count(*) n FROM b').get()?.['n'], 1)
})

test('Store.open refuses folders that it cannot use, or that others can', async (t) => {
  using made = disposableFolder()
  const file = join(made.path, 'file')
  writeFileSync(file, '')
  await refused(file, 'HOST_STATE_UNUSABLE', /no folder/)
  await refused(join(file, 'below'), 'HOST_STATE_UNUSABLE', /not a directory/)
  const open = join(made.path, 'open')
  mkdirSync(open)
  chmodSync(open, 0o777)
  await refused(open, 'HOST_STATE_UNUSABLE', /other users can write/)
  await refused('/proc/nowhere/state', 'HOST_STATE_UNUSABLE')
  if (isRoot) {
    chmodSync(open, 0o755)
    chownSync(open, 65_534, 65_534)
    await refused(open, 'HOST_STATE_UNUSABLE', /another user/)
    return t.diagnostic('a folder without permissions: not tried, as root may use any')
  }
  const shut = join(made.path, 'shut')
  mkdirSync(shut, 0o500)
  await refused(shut, 'HOST_STATE_UNUSABLE', /permission denied/)
})

test('Store.open refuses a database that another process has open', async () => {
  using made = disposableFolder()
  await fill(made.path)
  const store = await Store.open(made.path)
  try {
    await refused(made.path, 'HOST_STATE_UNUSABLE', /another process/)
    await store.commit((tx) => tx.putProject(projectRow('other')))
  } finally {
    await store.close()
  }
})

test('Store.open takes a database from those whom a mistake let read it', async () => {
  using made = disposableFolder()
  const path = await fill(made.path)
  chmodSync(path, 0o644)
  await (await Store.open(made.path)).close()
  assert.equal(statSync(path).mode & 0o777, 0o600)
})
