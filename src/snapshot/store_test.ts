// snapshot/store_test.ts: a folder of snapshots, shared by several processes, damaged and hostile at times.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { hash } from 'node:crypto'
import {
  appendFileSync, chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync,
  truncateSync, writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import type { CellState, MemoryImage } from '../cell/state.ts'
import { CHUNK_BYTES } from './chunk_work.ts'
import { Folder, NewFile } from './disk.ts'
import { Packs } from './packs.ts'
import type { SnapshotStore, WrittenSnapshot } from './store.ts'
import { memoryOf, metaOf, MODULE_DIGEST, newStore, pageOf, stateOf } from './test_support.ts'

const SOFT = { durable: false }

function write(store: SnapshotStore, memory: MemoryImage | undefined, more: Partial<CellState> = {}):
Promise<WrittenSnapshot> {
  return store.write(metaOf(), stateOf(memory, more), SOFT)
}

/** Changes a byte of a file. */
function damage(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at]! ^= 1
  chmodSync(path, 0o644)
  writeFileSync(path, bytes)
}

test('what is read is what was written', async () => {
  using rig = newStore()
  const state = stateOf(memoryOf(100, { 0: 'random', 1: 7, 50: 'random', 99: 255 }))
  const { digest } = await rig.store.write(metaOf(), state, { durable: true })
  for (const store of [rig.store, rig.again()]) {
    const read = await store.read(digest, { module: MODULE_DIGEST, pagesMax: 100 })
    assert.deepEqual(read.state, state)
    assert.deepEqual(read.meta, metaOf())
  }
  assert.deepEqual(rig.store.list(), [digest])
  assert.equal(rig.again().has(digest), true)
})

test('a project whose snapshots have too many chunks keeps no more, and reads and frees what it has', async () => {
  using rig = newStore()
  const few = (): Packs => new Packs(new Folder(rig.path), 3)
  const put = async (packs: Packs, content: Record<number, 'random'>): Promise<string[]> => {
    const { bytes, present } = memoryOf(8, content)
    const hashes = [...present].map((page, slot) => hash('sha256', Buffer.from(bytes, slot * CHUNK_BYTES, CHUNK_BYTES)))
    const drafts = await packs.pack(hashes.map((hash, slot) => ({ hash, slot })), bytes)
    try {
      await Promise.all(drafts.map((draft) => draft.finish(false)))
      packs.publish(drafts, false)
      return hashes
    } finally {
      for (const draft of drafts) draft[Symbol.dispose]()
    }
  }
  const [packs, other] = [few(), few()]
  const hashes = await put(packs, { 0: 'random', 1: 'random' })
  await assert.rejects(put(packs, { 0: 'random', 1: 'random' }), { code: 'ADMISSION_REFUSED' })
  assert.equal(rig.files('.pack').length, 1)
  // Two who write at once may have brought more together.
  hashes.push(...await put(other, { 0: 'random', 1: 'random' }))
  const third = few()
  assert.equal(third.absent(hashes), undefined)
  assert.deepEqual(await third.lacking(hashes), [])
  await rig.store.collect()
  assert.deepEqual(rig.files('.pack'), [])
})

test('cameAt tells since when a snapshot is here, whenever it was taken', async () => {
  using rig = newStore()
  const began = Date.now()
  const { digest } = await rig.store.write({ ...metaOf(), createdAt: 1 }, stateOf(undefined), SOFT)
  const cameAt = rig.store.cameAt(digest)!
  assert.ok(cameAt > began - 1000 && cameAt < Date.now() + 1000)
  rig.store.remove(digest)
  assert.equal(rig.store.cameAt(digest), undefined)
})

test('a state without a memory, or with an empty one, comes back', async () => {
  using rig = newStore()
  for (const memory of [undefined, memoryOf(0, {}), memoryOf(10, {})]) {
    const { digest, chunks, storedBytes } = await write(rig.store, memory)
    assert.deepEqual((await rig.again().read(digest)).state, stateOf(memory))
    assert.equal(chunks, 0)
    assert.equal(storedBytes, statSync(join(rig.path, `${digest.slice(7)}.snapshot`)).size)
  }
  assert.deepEqual(rig.files('.pack'), [])
})

test('pages that are all zero are not kept, though they are said to be there', async () => {
  using rig = newStore()
  const { digest } = await write(rig.store, memoryOf(10, { 1: 5, 2: 0, 3: 6 }))
  assert.deepEqual((await rig.store.read(digest)).state.memory, memoryOf(10, { 1: 5, 3: 6 }))
  assert.equal((await write(rig.store, memoryOf(10, { 1: 5, 3: 6 }))).digest, digest)
})

test('chunks that are there are not stored again, also those of another process', async () => {
  using rig = newStore()
  const memory = memoryOf(300, Object.fromEntries(Array.from({ length: 200 }, (_, page) => [page, 'random' as const])))
  const first = await write(rig.store, memory)
  assert.equal(first.newChunks, 200)
  assert.ok(first.newBytes > 200 * CHUNK_BYTES && first.storedBytes > 200 * CHUNK_BYTES)
  pageOf(memory, 17).fill(1)
  for (const store of [rig.store, rig.again()]) {
    const next = await write(store, memory, { since: store === rig.store ? 1 : 2 })
    assert.equal(next.newChunks, store === rig.store ? 1 : 0)
    assert.ok(next.newBytes < 10_000 && next.storedBytes > 199 * CHUNK_BYTES)
    assert.deepEqual((await rig.again().read(next.digest)).state.memory, memory)
  }
})

test('the same page twice is stored once', async () => {
  using rig = newStore()
  const { digest, newChunks, chunks } = await write(rig.store, memoryOf(10, { 1: 5, 3: 5, 4: 5 }))
  assert.deepEqual([newChunks, chunks], [1, 3])
  assert.deepEqual((await rig.again().read(digest)).state.memory, memoryOf(10, { 1: 5, 3: 5, 4: 5 }))
})

test('a snapshot that is compared with the last one is the same as one that is not', async () => {
  using rig = newStore()
  using other = newStore()
  let known = (await write(rig.store, memoryOf(10, { 1: 5, 2: 6, 4: 7 }))).known
  const later = [
    memoryOf(10, { 1: 5, 2: 8, 4: 7 }), memoryOf(12, { 0: 1, 1: 5, 3: 9, 4: 7, 11: 3 }), memoryOf(12, {}),
    memoryOf(20, { 19: 1 }), memoryOf(5, { 0: 0, 1: 4 }), memoryOf(5, { 0: 0, 1: 4 }),
  ]
  for (const memory of later) {
    const written = await rig.store.write(metaOf(), stateOf(memory), { durable: false, known })
    assert.equal(written.digest, (await write(other.store, memory)).digest)
    known = written.known
  }
  // A state that was read is known, too; what is known of another store helps nobody to lose a chunk.
  const read = await rig.again().read((await write(rig.store, memoryOf(9, { 1: 1, 8: 'random' }))).digest)
  const { digest, newChunks } = await other.store.write(metaOf(), read.state, { durable: false, known: read.known })
  assert.equal(newChunks, 1)
  assert.deepEqual((await other.again().read(digest)).state, read.state)
})

test('collect frees what no snapshot needs, and nothing else', async () => {
  using rig = newStore()
  const many = memoryOf(200, Object.fromEntries(Array.from({ length: 100 }, (_, page) => [page, 'random' as const])))
  const [large, small] = [await write(rig.store, many), await write(rig.store, memoryOf(10, { 1: 'random' }))]
  assert.equal(await rig.store.collect(), 0)
  assert.equal(rig.store.remove(large.digest), true)
  assert.equal(rig.store.remove(large.digest), false)
  assert.ok(await rig.again().collect() > 100 * CHUNK_BYTES)
  assert.equal(rig.files('').length, 2)
  assert.equal((await rig.store.read(small.digest)).state.memory!.present.length, 1)
  await assert.rejects(rig.store.read(large.digest), { code: 'NOT_FOUND' })
  // What was known to be there isn't any more: it is stored again.
  const again = await rig.store.write(metaOf(), stateOf(many), { durable: false, known: large.known })
  assert.equal(again.newChunks, 100)
  assert.deepEqual((await rig.again().read(again.digest)).state.memory, many)
})

test('collect copies what is needed of packs that are needed little, and joins small ones', async () => {
  using rig = newStore()
  const memory = memoryOf(100, Object.fromEntries(Array.from({ length: 40 }, (_, page) => [page, 'random' as const])))
  const first = await write(rig.store, memory)
  for (let page = 3; page < 40; page++) pageOf(memory, page).fill(page)
  const kept = [await write(rig.store, memory)]
  rig.store.remove(first.digest)
  assert.ok(await rig.store.collect() > 30 * CHUNK_BYTES)
  assert.ok(rig.files('.pack').reduce((sum, path) => sum + statSync(path).size, 0) < 5 * CHUNK_BYTES)
  for (let count = 0; count < 40; count++) {
    kept.push(await rig.store.write(metaOf(), stateOf(memoryOf(5, { 1: 'random' })), SOFT))
  }
  const reader = rig.again()
  await reader.read(kept[3]!.digest)
  assert.ok(rig.files('.pack').length > 40)
  await rig.store.collect()
  assert.ok(rig.files('.pack').length <= 3, `${rig.files('.pack').length} packs`)
  for (const { digest } of kept) {
    assert.deepEqual((await rig.again().read(digest)).state, (await reader.read(digest)).state)
  }
})

test('what is collected while others write and read is not missed by them', async () => {
  using rig = newStore()
  const stores = [rig.store, rig.again(), rig.again()]
  const shared = memoryOf(100, Object.fromEntries(Array.from({ length: 30 }, (_, page) => [page, 'random' as const])))
  const collector = rig.again()
  const done = new AbortController()
  const collecting = (async () => {
    for (; !done.signal.aborted; await new Promise(setImmediate)) await collector.collect()
  })()
  await Promise.all(stores.map(async (store, who) => {
    for (let round = 0; round < 25; round++) {
      const memory = { ...shared, bytes: shared.bytes.slice(0) }
      Buffer.from(memory.bytes).fill(round % 4 + 1, 0, (round % 20) * CHUNK_BYTES)
      const { digest } = await write(store, memory, { since: who })
      assert.deepEqual((await store.read(digest)).state.memory, memory)
      store.remove(digest)
    }
  }))
  done.abort()
  await collecting
  await collector.collect()
  assert.deepEqual(rig.files(''), [])
})

test('a snapshot that is written while a collector has made up its mind is seen by it', async (t) => {
  using rig = newStore()
  const memory = memoryOf(9, { 1: 'random', 2: 'random' })
  const first = await write(rig.store, memory)
  rig.store.remove(first.digest)
  const writer = rig.again()
  let digest: string | undefined
  const { lacking } = Packs.prototype
  const mocked = t.mock.method(Packs.prototype, 'lacking', async function (this: Packs, hashes: Iterable<string>) {
    mocked.mock.restore()
    digest = (await write(writer, memory)).digest
    return await lacking.call(this, hashes)
  })
  await rig.store.collect()
  assert.deepEqual((await rig.again().read(digest!)).state.memory, memory)
  assert.deepEqual([rig.files('.pack').length, rig.files('.old').length], [1, 0])
})

test('a writer whose chunks are collected while it relies on them stores them again', async (t) => {
  using rig = newStore()
  const memory = memoryOf(9, { 1: 'random', 2: 'random' })
  rig.store.remove((await write(rig.store, memory)).digest)
  const collector = rig.again()
  const { finish } = NewFile.prototype
  const mocked = t.mock.method(NewFile.prototype, 'finish', async function (this: NewFile, durable: boolean) {
    mocked.mock.restore()
    assert.ok(await collector.collect() > 2 * CHUNK_BYTES)
    await finish.call(this, durable)
  })
  const { digest, newChunks } = await write(rig.store, memory)
  assert.equal(newChunks, 2)
  assert.deepEqual((await rig.again().read(digest)).state.memory, memory)
})

test('packs that a killed collector has left half removed are taken back, or away', async () => {
  using rig = newStore()
  const { digest } = await write(rig.store, memoryOf(5, { 1: 'random' }))
  await write(rig.store, memoryOf(5, { 1: 'random' }))
  for (const path of rig.files('.pack')) renameSync(path, `${path}.old`)
  assert.equal((await rig.again().read(digest)).state.memory!.present.length, 1)
  for (const one of rig.store.list()) if (one !== digest) rig.store.remove(one)
  await rig.again().collect()
  assert.deepEqual([rig.files('.old').length, rig.files('.pack').length], [0, 1])
  assert.equal((await rig.store.read(digest)).state.memory!.present.length, 1)
})

test('a damaged chunk is refused by name, and stored again by the next who has it', async () => {
  using rig = newStore()
  const memory = memoryOf(9, { 1: 'random', 2: 3 })
  const { digest } = await write(rig.store, memory)
  damage(rig.files('.pack')[0]!, 1000)
  const other = rig.again()
  await assert.rejects(other.read(digest), { code: 'SNAPSHOT_DAMAGED', message: /chunk [0-9a-f]{64} isn't there/ })
  await assert.rejects(rig.again().read(digest, { pagesMax: 8 }), { code: 'SNAPSHOT_FOREIGN' })
  // A process that hasn't looked yet does so before it relies on it.
  assert.equal((await write(rig.again(), memory)).newChunks, 1)
  for (const store of [other, rig.again()]) assert.deepEqual((await store.read(digest)).state.memory, memory)
})

test('each byte of each file counts', async () => {
  using rig = newStore()
  const memory = memoryOf(9, { 1: 4, 2: 3, 3: 9 })
  const { digest } = await write(rig.store, memory)
  for (const path of [...rig.files('.pack'), ...rig.files('.snapshot')]) {
    const whole = readFileSync(path)
    for (let at = 0; at < whole.length; at += path.endsWith('.pack') ? 3 : 29) {
      damage(path, at)
      await assert.rejects(rig.again().read(digest), { code: /^SNAPSHOT_/ }, `${basename(path)} at ${at}`)
      writeFileSync(path, whole)
      truncateSync(path, at)
      await assert.rejects(rig.again().read(digest), { code: 'SNAPSHOT_DAMAGED' }, `${basename(path)} cut at ${at}`)
      writeFileSync(path, whole)
    }
    appendFileSync(path, 'x')
    await assert.rejects(rig.again().read(digest), { code: 'SNAPSHOT_DAMAGED' })
    writeFileSync(path, whole)
  }
  assert.deepEqual((await rig.again().read(digest)).state.memory, memory)
})

test('collect removes packs that are damaged, not those of a newer Cellar', async () => {
  using rig = newStore()
  await write(rig.store, memoryOf(9, { 1: 4 }))
  const [path] = rig.files('.pack')
  const bytes = readFileSync(path!)
  bytes.writeUInt32LE(2, 8)
  writeFileSync(join(rig.path, `${'1'.repeat(32)}.pack`), bytes)
  writeFileSync(join(rig.path, `${'2'.repeat(32)}.pack`), readFileSync(path!).subarray(0, 50))
  writeFileSync(join(rig.path, `${'3'.repeat(32)}.pack`), 'no pack')
  await rig.again().collect()
  assert.deepEqual(rig.files('.pack').sort(), [join(rig.path, `${'1'.repeat(32)}.pack`), path].sort())
})

test('while there is a snapshot of a newer format, nothing is freed', async () => {
  using rig = newStore()
  const { digest } = await write(rig.store, memoryOf(9, { 1: 4 }))
  const bytes = rig.store.manifest(digest)
  rig.store.remove(digest)
  bytes.writeUInt32LE(2, 8)
  const newer = join(rig.path, `${'1'.repeat(64)}.snapshot`)
  writeFileSync(newer, bytes)
  assert.equal(await rig.store.collect(), 0)
  rmSync(newer)
  assert.ok(await rig.store.collect() > 0)
})

test('a snapshot of another program, or with too large a memory, is refused before it is read', async () => {
  using rig = newStore()
  const { digest } = await write(rig.store, memoryOf(9, { 1: 4 }))
  const other = `sha256:${'00'.repeat(32)}`
  await assert.rejects(rig.store.read(digest, { module: other }), { code: 'SNAPSHOT_FOREIGN', message: /of program/ })
  await assert.rejects(rig.store.read(digest, { pagesMax: 8 }), { code: 'SNAPSHOT_FOREIGN', message: /9 pages/ })
  const strange = await write(rig.store, undefined, { version: 99 })
  await assert.rejects(rig.store.read(strange.digest), { code: 'SNAPSHOT_FOREIGN', message: /layout 99/ })
})

test('a file that is not what its name says is damaged', async () => {
  using rig = newStore()
  const [one, two] = [await write(rig.store, undefined), await write(rig.store, undefined, { since: 5 })]
  const [first, second] = [one, two].map(({ digest }) => join(rig.path, `${digest.slice(7)}.snapshot`))
  rmSync(first!)
  renameSync(second!, first!)
  assert.throws(() => rig.store.inspect(one.digest), { code: 'SNAPSHOT_DAMAGED', message: /digest/ })
})

test('what is neither a file nor ours is not followed, waited for or removed', async () => {
  using rig = newStore()
  using secret = newStore()
  const { digest } = await write(secret.store, memoryOf(9, { 1: 4 }))
  for (const path of [...secret.files('.pack'), ...secret.files('.snapshot')]) {
    symlinkSync(path, join(rig.path, basename(path)))
  }
  assert.throws(() => rig.store.manifest(digest), { code: 'NOT_FOUND' })
  assert.equal((await write(rig.store, memoryOf(9, { 1: 4 }))).newChunks, 1)
  const [pipe, folder, strange] = [`${'4'.repeat(32)}.pack`, `${'5'.repeat(64)}.snapshot`, 'a.pack']
  assert.equal(spawnSync('mkfifo', [join(rig.path, pipe)]).status, 0)
  mkdirSync(join(rig.path, folder))
  writeFileSync(join(rig.path, strange), 'x')
  await rig.again().collect()
  for (const name of [pipe, folder, strange]) assert.ok(readdirSync(rig.path).includes(name), name)
  for (const digest of ['sha256:../../etc/passwd', '', 'sha256:', `sha256:${'A'.repeat(64)}`]) {
    assert.throws(() => rig.store.manifest(digest), { code: 'NOT_FOUND' })
    assert.equal(rig.store.has(digest), false)
    assert.equal(rig.store.remove(digest), false)
  }
})

test('what a killed writer has left is swept, and what a living one writes is not', async () => {
  using rig = newStore()
  const killed = join(rig.path, `${'6'.repeat(32)}.tmp`)
  writeFileSync(killed, 'half a pack')
  const script = `
    import { Folder } from ${JSON.stringify(new URL('disk.ts', import.meta.url).href)}
    const file = new Folder(${JSON.stringify(rig.path)}).create()
    process.kill(process.pid, 'SIGKILL')`
  const { signal } = spawnSync(process.execPath,
    ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script])
  assert.equal(signal, 'SIGKILL')
  const [left] = rig.files('.tmp')
  using living = new Folder(rig.path).create()
  living.write(Buffer.of(1), 0)
  await rig.again().collect()
  assert.deepEqual(rig.files('.tmp').filter((path) => path !== left).length, 1)
  assert.equal(rig.files('.tmp').length, 1)
  living.keep(`${'7'.repeat(32)}.pack`)
  assert.deepEqual(rig.files('').map((path) => basename(path)), [`${'7'.repeat(32)}.pack`])
})

test('a store works in a process that is confined as cell processes are', async () => {
  using rig = newStore()
  const script = `
    import { SnapshotStore } from ${JSON.stringify(new URL('store.ts', import.meta.url).href)}
    import { memoryOf, metaOf, stateOf } from ${JSON.stringify(new URL('test_support.ts', import.meta.url).href)}
    const store = new SnapshotStore(${JSON.stringify(rig.path)})
    const pages = Object.fromEntries(Array.from({ length: 100 }, (_, page) => [page, page + 1]))
    const { digest } = await store.write(metaOf(), stateOf(memoryOf(100, pages)), { durable: true })
    await store.read(digest)
    await store.receive(store.send(digest), { durable: true })
    console.log(digest, await store.collect())`
  // A file: its threads have its flags, and none for a script that isn't theirs.
  const file = join(rig.path, 'confined.mjs')
  writeFileSync(file, script)
  const { stdout, stderr } = spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', '--permission',
    '--allow-worker', '--allow-ffi', '--allow-fs-read=*', `--allow-fs-write=${rig.path}`, file], { encoding: 'utf8' })
  assert.match(stdout, /^sha256:[0-9a-f]{64} 0\n$/, stderr)
  assert.equal((await rig.store.read(stdout.split(' ')[0]!)).state.memory!.present.length, 100)
})

test('a disk that is full leaves nothing half-written', async (t) => {
  using rig = newStore()
  const script = `
    import { SnapshotStore } from ${JSON.stringify(new URL('store.ts', import.meta.url).href)}
    import { memoryOf, metaOf, stateOf } from ${JSON.stringify(new URL('test_support.ts', import.meta.url).href)}
    const pages = Object.fromEntries(Array.from({ length: 100 }, (_, page) => [page, 'random']))
    const store = new SnapshotStore(${JSON.stringify(rig.path)})
    const full = await store.write(metaOf(), stateOf(memoryOf(200, pages)), { durable: true })
      .catch((error) => error.code)
    console.log(full, store.list().length)`
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', rig.path])
  if (mounted.status !== 0) return t.skip('needs root, to mount a small disk')
  try {
    const { stdout, stderr } = spawnSync(process.execPath,
      ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script], { encoding: 'utf8' })
    assert.equal(stdout, 'HOST_DISK_FULL 0\n', stderr)
    assert.deepEqual(readdirSync(rig.path), [])
  } finally {
    spawnSync('umount', [rig.path])
  }
})
