// snapshot/transfer_test.ts: snapshots from store to store, and senders that are broken or hostile.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { constants, zstdCompressSync } from 'node:zlib'
import type { MemoryImage } from '../cell/state.ts'
import { CHUNK_BYTES } from './chunk_work.ts'
import type { SnapshotStore } from './store.ts'
import { memoryOf, metaOf, newStore, pageOf, stateOf } from './test_support.ts'
import { streamOf } from './transfer.ts'

const SOFT = { durable: false }

async function write(store: SnapshotStore, memory: MemoryImage, since = -1): Promise<string> {
  return (await store.write(metaOf(), stateOf(memory, { since }), SOFT)).digest
}

async function all(stream: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of stream) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** A stream of these bytes in pieces of `size`. */
async function* pieces(bytes: Uint8Array, size = bytes.length): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

/** Chunks as a stream has them. */
function records(...stored: Uint8Array[]): Buffer {
  return Buffer.concat(stored.flatMap((one) => [Buffer.from(Uint32Array.of(one.length).buffer), one]))
}

test('a snapshot arrives whole, in whatever pieces', async () => {
  using from = newStore()
  const memory = memoryOf(300, Object.fromEntries(Array.from({ length: 130 }, (_, page) =>
    [2 * page, page % 2 === 0 ? 'random' as const : page])))
  const digest = await write(from.store, memory)
  const bytes = await all(from.store.send(digest))
  for (const size of [1 << 20, 65_536, 4099]) {
    using to = newStore()
    assert.deepEqual(await to.store.receive(pieces(bytes, size), { durable: size === 65_536 }), { digest, missing: [] })
    assert.deepEqual((await to.again().read(digest)).state, stateOf(memory))
    assert.deepEqual(to.files('.tmp'), [])
  }
})

test('the rounds of a move carry only what has changed since', async () => {
  using both = rigs()
  const [from, to] = both
  const memory = memoryOf(100, Object.fromEntries(Array.from({ length: 60 }, (_, page) => [page, 'random' as const])))
  let before = new Set<string>()
  for (const changed of [60, 5, 1, 0]) {
    for (let page = 0; page < changed; page++) pageOf(memory, page).fill(changed + page + 1)
    const digest = await write(from.store, memory, changed)
    const chunks = from.store.inspect(digest).chunks.map((one) => one.hash)
    const lacking = await to.store.lacking(from.store.manifest(digest))
    // Who knows what the other has got before needn't ask.
    assert.deepEqual(new Set(lacking), new Set(chunks).difference(before))
    const bytes = await all(from.store.send(digest, lacking))
    assert.ok(bytes.length < 5000 + changed * (CHUNK_BYTES + 100), `${bytes.length} bytes for ${changed}`)
    assert.deepEqual(await to.store.receive(pieces(bytes), SOFT), { digest, missing: [] })
    before = new Set(chunks)
    assert.deepEqual((await to.again().read(digest)).state.memory, memory)
  }
})

test('what is missing is told, and may follow', async () => {
  using both = rigs()
  const [from, to] = both
  const memory = memoryOf(10, { 1: 'random', 2: 'random', 3: 3 })
  const digest = await write(from.store, memory)
  const hashes = from.store.inspect(digest).chunks.map((one) => one.hash)
  const first = await to.store.receive(from.store.send(digest, [hashes[1]!]), SOFT)
  assert.deepEqual(first, { digest, missing: [hashes[0], hashes[2]] })
  assert.equal(to.store.has(digest), false)
  assert.deepEqual(await to.store.receive(from.store.send(digest, first.missing), SOFT), { digest, missing: [] })
  assert.deepEqual((await to.again().read(digest)).state.memory, memory)
})

test('chunks that came without their snapshot are freed', async () => {
  using both = rigs()
  const [from, to] = both
  const digest = await write(from.store, memoryOf(10, { 1: 'random', 2: 'random' }))
  await to.store.receive(from.store.send(digest, [from.store.inspect(digest).chunks[0]!.hash]), SOFT)
  assert.ok(await to.store.collect() > CHUNK_BYTES)
  assert.deepEqual(to.files(''), [])
})

test('a stream that is cut off, goes on, or is none is refused, and nothing is kept of it', async () => {
  using both = rigs()
  const [from, to] = both
  const digest = await write(from.store, memoryOf(10, { 1: 3, 2: 4 }))
  const bytes = await all(from.store.send(digest))
  for (let length = 0; length < bytes.length; length += 1) {
    await assert.rejects(to.store.receive(pieces(bytes.subarray(0, length)), SOFT), { code: 'SNAPSHOT_DAMAGED' })
  }
  for (let at = 0; at < bytes.length; at += 5) {
    const wrong = Buffer.from(bytes)
    wrong[at]! ^= 0x11
    await assert.rejects(to.store.receive(pieces(wrong), SOFT), { code: /^SNAPSHOT_(DAMAGED|NEWER)$/ }, `byte ${at}`)
  }
  const more = Buffer.concat([bytes, Buffer.of(0)])
  await assert.rejects(to.store.receive(pieces(more), SOFT), { code: 'SNAPSHOT_DAMAGED' })
  await assert.rejects(to.store.receive(pieces(more, 1), SOFT), { code: 'SNAPSHOT_DAMAGED' })
  assert.deepEqual(to.files(''), [])
})

test('a sender that fails is told of as it failed, and is let go', async () => {
  using both = rigs()
  const [from, to] = both
  const digest = await write(from.store, memoryOf(10, { 1: 'random', 2: 4 }))
  let isLetGo = false
  const failing = async function* (): AsyncGenerator<Uint8Array> {
    yield (await all(from.store.send(digest))).subarray(0, 70_000)
    throw new Error('the line is cut')
  }
  await assert.rejects(to.store.receive(failing(), SOFT), { message: 'the line is cut' })
  const endless = async function* (): AsyncGenerator<Uint8Array> {
    try {
      for (;;) yield Buffer.alloc(1000)
    } finally {
      isLetGo = true
    }
  }
  await assert.rejects(to.store.receive(endless(), SOFT), { code: 'SNAPSHOT_DAMAGED' })
  assert.equal(isLetGo, true)
  assert.deepEqual(to.files(''), [])
})

test('chunks that the snapshot does not name, or that are none, are refused', async () => {
  using both = rigs()
  const [from, to] = both
  const memory = memoryOf(10, { 1: 'random', 2: 3 })
  const manifest = from.store.manifest(await write(from.store, memory))
  const [page, other] = [pageOf(memory, 1), pageOf(memoryOf(2, { 1: 'random' }), 1)]
  const bomb = zstdCompressSync(Buffer.alloc(64 * 1024 * 1024))
  const cases: [string, Buffer][] = [
    ['another', records(other)], ['twice', records(page, page)], ['too small', records(page.subarray(1))],
    ['a bomb', records(bomb)], ['two in one', records(zstdCompressSync(Buffer.alloc(2 * CHUNK_BYTES, 3)))],
    ['too large', records(Buffer.concat([page, page]))], ['endless', Buffer.alloc(4, 0xff)],
  ]
  assert.ok(bomb.length < CHUNK_BYTES)
  for (const [what, bytes] of cases) {
    await assert.rejects(to.store.receive(streamOf(manifest, [bytes]), SOFT), { code: 'SNAPSHOT_DAMAGED' }, what)
  }
  assert.deepEqual(to.files(''), [])
  // However it is compressed, it is the chunk.
  const best = zstdCompressSync(pageOf(memory, 2), { params: { [constants.ZSTD_c_compressionLevel]: 19 } })
  assert.deepEqual((await to.store.receive(streamOf(manifest, [records(page, best)]), SOFT)).missing, [])
})

test('a receiver that expects another program, or a smaller memory, takes nothing', async () => {
  using both = rigs()
  const [from, to] = both
  const digest = await write(from.store, memoryOf(10, { 1: 3 }))
  for (const expected of [{ module: `sha256:${'00'.repeat(32)}` }, { pagesMax: 9 }]) {
    await assert.rejects(to.store.receive(from.store.send(digest), { durable: false, ...expected }),
      { code: 'SNAPSHOT_FOREIGN' })
    await assert.rejects(to.store.lacking(from.store.manifest(digest), expected), { code: 'SNAPSHOT_FOREIGN' })
  }
  assert.deepEqual(to.files(''), [])
})

test('a sender whose chunks have gone says so', async () => {
  using rig = newStore()
  const digest = await write(rig.store, memoryOf(10, { 1: 3 }))
  const manifest = rig.store.manifest(digest)
  rig.store.remove(digest)
  await rig.store.collect()
  const records = rig.store.records(digest, ['ab'.repeat(32)])
  await assert.rejects(all(streamOf(manifest, records)), { code: 'SNAPSHOT_DAMAGED' })
  assert.throws(() => rig.store.send(digest), { code: 'NOT_FOUND' })
})

function rigs(): [ReturnType<typeof newStore>, ReturnType<typeof newStore>] & Disposable {
  const both = [newStore(), newStore()] as [ReturnType<typeof newStore>, ReturnType<typeof newStore>]
  return Object.assign(both, { [Symbol.dispose]: () => both.forEach((one) => one[Symbol.dispose]()) })
}
