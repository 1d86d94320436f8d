// image/blob_store_test.ts: blobs are there as a whole or not at all: lies, full disks, and kill -9 at any moment.

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { BlobStore } from './blob_store.ts'
import { digestOf } from './image.ts'
import { folder, streamOf } from './test_support.ts'

const MIB = 1024 * 1024
const ingested = (path: string): string[] => readdirSync(join(path, 'ingest'))

test('BlobStore.put keeps bytes under their digest, for reading only', async () => {
  using temp = folder()
  const store = new BlobStore(temp.path)
  const bytes = randomBytes(3 * MIB)
  const digest = await store.put(streamOf(bytes.subarray(0, 100), bytes.subarray(100)), { maxBytes: 4 * MIB })
  assert.equal(digest, digestOf(bytes))
  assert.deepEqual(store.read(digest), bytes)
  assert.equal(store.size(digest), bytes.length)
  assert.equal(statSync(store.path(digest)).mode & 0o777, 0o444)
  assert.equal(statSync(join(temp.path, 'blobs/sha256')).mode & 0o777, 0o711)
  assert.deepEqual(store.list(), [digest])
  assert.deepEqual(ingested(temp.path), [])
  assert.equal(store.remove(digest), bytes.length)
  assert.equal(store.remove(digest), 0)
  assert.ok(!store.has(digest))
  await assert.rejects(store.open(digest), { code: 'NOT_FOUND' })
})

test('BlobStore.put keeps nothing of bytes with a wrong digest, of too many, or of a stream that fails', async () => {
  using temp = folder()
  const store = new BlobStore(temp.path)
  const wrong = digestOf(Buffer.from('other'))
  await assert.rejects(store.put(streamOf(Buffer.from('bytes')), { digest: wrong, maxBytes: 10 }),
    { code: 'IMAGE_DIGEST_WRONG' })
  await assert.rejects(store.put(streamOf(Buffer.alloc(6), Buffer.alloc(6)), { maxBytes: 10 }),
    { code: 'IMAGE_TOO_LARGE' })
  const failing = async function* (): AsyncGenerator<Uint8Array> {
    yield Buffer.from('some')
    throw new RangeError('broken')
  }
  await assert.rejects(store.put(failing(), { maxBytes: 10 }), RangeError)
  assert.deepEqual(store.list(), [])
  assert.deepEqual(ingested(temp.path), [])
})

test('BlobStore.put of what is there makes it young again', async () => {
  using temp = folder()
  const store = new BlobStore(temp.path)
  const digest = await store.put(streamOf(Buffer.from('x')), { maxBytes: 1 })
  utimesSync(store.path(digest), 1, 1)
  await Promise.all([1, 2, 3].map(() => store.put(streamOf(Buffer.from('x')), { maxBytes: 1 })))
  assert.ok(store.time(digest)! > 1_000_000)
  assert.deepEqual(ingested(temp.path), [])
})

test('BlobStore.resumable goes on with what is there, one at a time', async () => {
  using temp = folder()
  const store = new BlobStore(temp.path)
  const bytes = randomBytes(MIB)
  const digest = digestOf(bytes)
  const first = await store.resumable(digest)
  await first.append(bytes.subarray(0, 1000))
  const second = store.resumable(digest)
  const impatient = store.resumable(digest, AbortSignal.timeout(10))
  await assert.rejects(impatient, { name: 'TimeoutError' })
  await first.close()
  const again = await second
  assert.equal(again.size, 1000)
  assert.ok(again.resumed)
  await again.append(bytes.subarray(1000))
  await again.commit()
  await again.close()
  assert.deepEqual(store.read(digest), bytes)
  assert.deepEqual(ingested(temp.path), [])
})

test('PartialBlob.commit keeps nothing of bytes with a wrong digest', async () => {
  using temp = folder()
  const store = new BlobStore(temp.path)
  const partial = await store.resumable(digestOf(Buffer.from('other')))
  await partial.append(Buffer.from('bytes'))
  await assert.rejects(partial.commit(), { code: 'IMAGE_DIGEST_WRONG' })
  await partial.close()
  assert.deepEqual([...store.list(), ...ingested(temp.path)], [])
})

test('BlobStore removes what killed writers left when it starts, and keeps partial blobs for a week', () => {
  using temp = folder()
  mkdirSync(join(temp.path, 'ingest'))
  for (const name of ['put-1.tmp', 'sha256-aa.partial', 'sha256-bb.partial', 'other']) {
    writeFileSync(join(temp.path, 'ingest', name), 'x')
  }
  utimesSync(join(temp.path, 'ingest/sha256-bb.partial'), 1, 1)
  new BlobStore(temp.path)
  assert.deepEqual(ingested(temp.path), ['sha256-aa.partial'])
})

test('BlobStore has whole blobs only after kill -9 of its process, and a fetch goes on where it was', async () => {
  using temp = folder()
  const bytes = randomBytes(8 * MIB)
  const source = join(temp.path, 'source')
  const digest = digestOf(bytes)
  writeFileSync(source, bytes)
  // Puts one blob after another, each a little different; fetches another one slowly beside it.
  const program = `
    import { readFileSync } from 'node:fs'
    import { setTimeout as sleep } from 'node:timers/promises'
    const { BlobStore } = await import(${JSON.stringify(join(import.meta.dirname, 'blob_store.ts'))})
    const store = new BlobStore(${JSON.stringify(temp.path)})
    const bytes = readFileSync(${JSON.stringify(source)})
    const partial = await store.resumable(${JSON.stringify(digest)})
    for (let at = partial.size; at < bytes.length / 2; at += 65536) await partial.append(bytes.subarray(at, at + 65536))
    console.log('begun')
    for (let i = 0; ; i++) {
      const put = async function* () { yield Buffer.from(String(i) + process.pid); yield bytes.subarray(0, 1 << 20) }
      await store.put(put(), { maxBytes: 1 << 24 })
    }`
  for (const delay of [0, 3, 17, 40]) {
    const args = ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', program]
    const child = spawn(process.execPath, args,
      { stdio: ['ignore', 'pipe', 'inherit'], timeout: 60_000, killSignal: 'SIGKILL' })
    const closed = once(child, 'close')
    await Promise.race([once(child.stdout, 'data'), closed])
    await sleep(delay)
    child.kill('SIGKILL')
    await closed
    const store = new BlobStore(temp.path)
    for (const one of store.list()) assert.equal(digestOf(store.read(one)), one)
    assert.deepEqual(ingested(temp.path), [`sha256-${digest.slice(7)}.partial`])
  }
  const store = new BlobStore(temp.path)
  const partial = await store.resumable(digest)
  assert.ok(partial.size >= bytes.length / 2)
  await partial.append(bytes.subarray(partial.size))
  await partial.commit()
  await partial.close()
  assert.deepEqual(readFileSync(store.path(digest)), bytes)
})

test('BlobStore says HOST_DISK_FULL and frees what it took when the disk is full', async (context) => {
  if (process.getuid?.() !== 0) return context.skip('a disk of its own needs the administrator')
  using temp = folder()
  const disk = join(temp.path, 'disk')
  mkdirSync(disk)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', disk], { stdio: 'ignore' })
  } catch {
    return context.skip('this machine lets nobody mount a tmpfs')
  }
  try {
    const store = new BlobStore(disk)
    const pieces = Array.from({ length: 40 }, () => randomBytes(100_000))
    await assert.rejects(store.put(streamOf(...pieces), { maxBytes: 10 * MIB }), { code: 'HOST_DISK_FULL' })
    assert.deepEqual(ingested(disk), [])
    const partial = await store.resumable(digestOf(Buffer.concat(pieces)))
    await assert.rejects(async () => {
      for (const piece of pieces) await partial.append(piece)
    }, { code: 'HOST_DISK_FULL' })
    await partial.close()
    assert.deepEqual(ingested(disk), [])
    const small = await store.put(streamOf(randomBytes(MIB)), { maxBytes: MIB })
    assert.ok(existsSync(store.path(small)))
  } finally {
    execFileSync('umount', [disk])
  }
})
