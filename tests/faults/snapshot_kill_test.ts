// tests/faults/snapshot_kill_test.ts: a process that is killed while it writes, receives and collects snapshots.
//
// Two processes work on one folder until they are killed, at a time that chance chooses. A snapshot that is there can
// be read whole then, whatever was going on, and nothing is left that nobody needs.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { newStore } from '../../src/snapshot/test_support.ts'
import { Random } from '../fuzz/random.ts'

const ROUNDS = 6

const sourceOf = (name: string): string =>
  JSON.stringify(new URL(`../../src/snapshot/${name}.ts`, import.meta.url).href)

/** Writes, moves within the folder, removes and collects snapshots for ever. Says when it has begun. */
const WORKER = `
  import { SnapshotStore } from ${sourceOf('store')}
  import { memoryOf, metaOf, stateOf } from ${sourceOf('test_support')}
  const store = new SnapshotStore(process.argv[1])
  const other = new SnapshotStore(process.argv[1])
  const mine = []
  let known
  for (let round = 0; ; round++) {
    const pages = Object.fromEntries(Array.from({ length: 30 }, (_, page) =>
      [page, page % 3 === 0 ? 'random' : round % 250 + 1]))
    const state = stateOf(memoryOf(50, pages), { since: round, args: [String(process.pid)] })
    const written = await store.write(metaOf(), state, { durable: round % 4 === 0, known })
    known = written.known
    await other.receive(store.send(written.digest), { durable: false })
    mine.push(written.digest)
    if (mine.length > 4) store.remove(mine.shift())
    if (round % 3 === 2) await other.collect()
    if (round === 3) console.log('under way')
  }`

test('a store whose users are killed at any time has whole snapshots, and nothing else', async () => {
  using rig = newStore()
  const random = new Random(Number(process.env.CELLAR_FUZZ_SEED ?? 1))
  let read = 0
  for (let round = 0; round < ROUNDS; round++) {
    const workers = [0, 1].map(() => spawn(process.execPath,
      ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', WORKER, rig.path],
      { stdio: ['ignore', 'pipe', 'inherit'] }))
    await Promise.all(workers.map(async (one) => {
      const [said] = await Promise.race([once(one.stdout, 'data'), once(one, 'close')])
      assert.equal(String(said), 'under way\n')
    }))
    for (const one of workers) {
      await sleep(random.below(40))
      one.kill('SIGKILL')
      await once(one, 'close')
    }
    const store = rig.again()
    assert.deepEqual(rig.files('.tmp'), [])
    for (const digest of store.list()) {
      await store.read(digest)
      read++
      if (random.chance(50)) store.remove(digest)
    }
    await store.collect()
    assert.deepEqual(rig.files('.old'), [])
    for (const digest of rig.again().list()) await rig.again().read(digest)
  }
  assert.ok(read >= ROUNDS, `${read} snapshots were there`)
  for (const digest of rig.store.list()) rig.store.remove(digest)
  await rig.store.collect()
  assert.deepEqual(rig.files(''), [])
})
