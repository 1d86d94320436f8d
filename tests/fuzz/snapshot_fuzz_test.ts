// tests/fuzz/snapshot_fuzz_test.ts: snapshots of any state, and snapshots, streams and packs that were changed.
//
// Digests keep chance out, not malice: so most of what is changed here gets digests that are right again. Whatever
// comes, it is refused with a SNAPSHOT_… error, or is a snapshot whose encoding is these very bytes.
// CELLAR_FUZZ_SEED chooses other changes, CELLAR_FUZZ_RUNS how many.

import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import type { CellarError } from '../../src/base/errors.ts'
import type { CellState } from '../../src/cell/state.ts'
import type { SavedDescriptor, SavedIs } from '../../src/services/saved.ts'
import { decodeSnapshot, encodeSnapshot, ZERO_HASH, type SnapshotMeta } from '../../src/snapshot/format.ts'
import { memoryOf, metaOf, newStore, stateOf } from '../../src/snapshot/test_support.ts'
import { Random } from './random.ts'

const SEED = Number(process.env.CELLAR_FUZZ_SEED ?? 1)
const RUNS = Number(process.env.CELLAR_FUZZ_RUNS ?? 300)
const PARAMETERS = { seed: SEED, numRuns: RUNS }

const HASH_BYTES = 32
const ROW_BYTES = 40
const TAIL_BYTES = 4 + HASH_BYTES + 8

const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> =>
  fc.record(model, { noNullPrototype: true }) as fc.Arbitrary<T>
const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 })
const u53 = fc.maxSafeNat()
const ns = fc.double({ min: 0, max: 2 ** 62, noNaN: true }).map(Math.abs)
const text = fc.string({ unit: 'binary', maxLength: 20 }).map((one) => one.toWellFormed())
const digest = fc.uint8Array({ minLength: 32, maxLength: 32 })
  .map((one) => `sha256:${Buffer.from(one).toString('hex')}`)
const index = fc.option(fc.integer({ min: 0, max: 2 ** 32 - 2 }), { nil: null })
const bytes = fc.uint8Array({ maxLength: 300 }).map((one) => Uint8Array.from(one))
// Keys that objects have of their own, too; an undefined value is none.
const key = fc.oneof(text, fc.constantFrom('__proto__', 'constructor', 'toString', '1', '0'))
const numbers = fc.array(fc.tuple(key, ns), { maxLength: 5 }).map((pairs) => Object.fromEntries(pairs))
const labels = fc.array(fc.tuple(key, text), { maxLength: 5 }).map((pairs) => Object.fromEntries(pairs))

const is: fc.Arbitrary<SavedIs> = fc.oneof(
  record({ kind: fc.constant('console' as const), stream: fc.constantFrom(0 as const, 1 as const, 2 as const) }),
  record({ kind: fc.constant('directory' as const), volume: fc.nat(100), path: text }),
  record({ kind: fc.constant('file' as const), volume: fc.nat(100), path: text, offset: u53, read: fc.boolean(),
    write: fc.boolean(), append: fc.boolean() }),
  record({ kind: fc.constant('listener' as const), port: fc.nat(100) }),
  record({ kind: fc.constant('events' as const) }),
  record({ kind: fc.constant('lost' as const), filetype: fc.nat(255), errno: fc.nat(0xffff), why: text }),
)
const descriptor: fc.Arbitrary<SavedDescriptor> = record({
  fd: fc.nat(65_536), rightsBase: u53, rightsInheriting: u53, flags: u32, is,
})
const descriptors = fc.uniqueArray(descriptor, { selector: (one) => one.fd, maxLength: 8 })
  .map((all) => all.sort((a, b) => a.fd - b.fd))
const chunks = fc.uniqueArray(record({ page: fc.nat(999), hash: digest.map((one) => one.slice(7)) }),
  { selector: (one) => one.page, maxLength: 8 }).map((all) => all.sort((a, b) => a.page - b.page))

const state: fc.Arbitrary<CellState> = record({
  version: u32, memory: fc.constant(memoryOf(1000, {})), globals: bytes, frames: bytes,
  tables: fc.uniqueArray(record({ table: fc.nat(100), entries: fc.array(index, { maxLength: 9 }) }),
    { selector: (one) => one.table, maxLength: 3 }).map((all) => all.sort((a, b) => a.table - b.table)),
  references: fc.array(index, { maxLength: 9 }), phase: fc.constantFrom('start' as const, 'main' as const),
  args: fc.array(text, { maxLength: 5 }), env: fc.array(text, { maxLength: 5 }), descriptors,
  since: fc.oneof(fc.constant(-1), ns), monotonicNs: ns,
  used: record({ cpuNs: ns, wallNs: ns, waits: ns, preemptions: ns, hypercalls: numbers }),
})
const meta: fc.Arbitrary<SnapshotMeta> = fc.record({
  kind: fc.constant('cell' as const), module: digest, guest: text, spec: fc.jsonValue({ maxDepth: 4 }), createdAt: u53,
  cellar: fc.string({ maxLength: 10 }), parent: digest, labels,
}, { requiredKeys: ['kind', 'module', 'guest', 'spec', 'createdAt', 'cellar'], noNullPrototype: true })

test('any state comes back, and its bytes are the only ones that it has', () => {
  fc.assert(fc.property(meta, state, chunks, (meta, state, chunks) => {
    const encoded = encodeSnapshot(meta, state, chunks)
    const read = decodeSnapshot(encoded, 'it')
    assert.deepEqual(read.state, { ...state, memory: { pages: 1000 } })
    assert.deepEqual(JSON.stringify(read.meta.spec), JSON.stringify(meta.spec))
    assert.deepEqual({ ...read.meta, spec: 0 }, { ...meta, spec: 0 })
    assert.deepEqual(read.chunks, chunks)
    assert.deepEqual(encodeSnapshot(read.meta, read.state, read.chunks), encoded)
  }), PARAMETERS)
})

test('a snapshot that was changed and sealed anew is refused, or is the one encoding of what it says', () => {
  const random = new Random(SEED)
  const whole = encodeSnapshot(metaOf({ labels: { a: '1', b: '2' } }), stateOf(memoryOf(9, {})),
    [{ page: 1, hash: ZERO_HASH.replace(/^../, '00') }, { page: 8, hash: 'ab'.repeat(32) }]).subarray(0, -HASH_BYTES)
  let accepted = 0
  for (let run = 0; run < 40 * RUNS; run++) {
    const sealed = seal(changed(whole, random))
    try {
      const { meta, state, chunks } = decodeSnapshot(sealed, 'it')
      assert.deepEqual(encodeSnapshot(meta, state, chunks), sealed)
      accepted++
    } catch (error) {
      assert.match((error as CellarError).code ?? String(error), /^SNAPSHOT_(DAMAGED|NEWER)$/, `run ${run}: ${error}`)
    }
  }
  // Else nothing but the first checks was looked at.
  assert.ok(accepted > RUNS && accepted < 30 * RUNS, `${accepted} of ${40 * RUNS} are snapshots`)
})

test('a stream that was changed is refused, or brings what was sent', async () => {
  const random = new Random(SEED)
  using from = newStore()
  using to = newStore()
  const { digest } = await from.store.write(metaOf(), stateOf(memoryOf(20, { 1: 3, 2: 4, 7: 5 })), { durable: false })
  const pieces: Uint8Array[] = []
  for await (const piece of from.store.send(digest)) pieces.push(piece)
  const whole = Buffer.concat(pieces)
  for (let run = 0; run < RUNS; run++) {
    const sent = changed(whole, random)
    const stream = async function* (): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < sent.length;) {
        const size = 1 + random.below(500)
        yield sent.subarray(at, at += size)
      }
    }
    try {
      const received = await to.store.receive(stream(), { durable: false })
      if (received.missing.length === 0) await to.again().read(received.digest)
      to.store.remove(received.digest)
    } catch (error) {
      assert.match((error as CellarError).code ?? String(error), /^SNAPSHOT_/, `run ${run}: ${error}`)
    }
  }
  assert.deepEqual(to.files('.tmp'), [])
  assert.deepEqual(to.store.list(), [])
  await to.store.collect()
  assert.deepEqual(to.files(''), [])
})

test('a pack with whatever index gives right chunks or none', async () => {
  const random = new Random(SEED)
  using rig = newStore()
  const memory = memoryOf(20, { 1: 3, 2: 4, 7: 5, 8: 6 })
  const { digest } = await rig.store.write(metaOf(), stateOf(memory), { durable: false })
  const [path] = rig.files('.pack')
  const whole = readFileSync(path!)
  chmodSync(path!, 0o644)
  const count = whole.readUInt32LE(whole.length - TAIL_BYTES)
  const start = whole.length - TAIL_BYTES - count * ROW_BYTES
  let read = 0
  for (let run = 0; run < RUNS; run++) {
    const rows = changed(whole.subarray(start, whole.length - TAIL_BYTES), random)
    const stored = random.chance(50) ? whole.subarray(0, start) : changed(whole.subarray(0, start), random)
    const tail = Buffer.from(whole.subarray(-TAIL_BYTES))
    if (random.chance(80)) tail.writeUInt32LE(Math.floor(rows.length / ROW_BYTES), 0)
    if (random.chance(95)) hash('sha256', rows, 'buffer').copy(tail, 4)
    writeFileSync(path!, Buffer.concat([stored, rows, tail]))
    const store = rig.again()
    try {
      assert.deepEqual((await store.read(digest)).state.memory, memory)
      read++
    } catch (error) {
      assert.equal((error as CellarError).code, 'SNAPSHOT_DAMAGED', `run ${run}: ${error}`)
    }
    // Who writes doesn't believe it, either.
    if (run % 10 !== 0) continue
    await store.write(metaOf(), stateOf(memory), { durable: false })
    assert.deepEqual((await rig.again().read(digest)).state.memory, memory)
    for (const other of rig.files('.pack')) if (other !== path) writeFileSync(other, '', { mode: 0o644 })
  }
  assert.ok(read < RUNS)
})

/** A few changes: of bits, of words into what is near a limit, cuts, and pieces that come twice. */
function changed(whole: Uint8Array, random: Random): Buffer {
  let bytes = Buffer.from(whole)
  for (let count = 1 + random.below(3); count > 0; count--) {
    const at = random.below(bytes.length)
    const end = Math.min(bytes.length, at + random.below(60))
    switch (random.below(8)) {
      case 0: bytes = bytes.subarray(0, at); break
      case 1: bytes = Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)]); break
      case 2: bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)]); break
      case 3: if (at + 4 <= bytes.length) bytes.writeUInt32LE(random.pick(WORDS) >>> 0, at); break
      case 4: bytes.fill(random.below(256), at, end); break
      default: if (at < bytes.length) bytes[at]! ^= 1 << random.below(8)
    }
    if (bytes.length === 0) return bytes
  }
  return bytes
}

const WORDS: readonly number[] = [0, 1, 2, 8, 64, 1023, 65_535, 65_536, 65_537, 2 ** 24, 2 ** 26, 2 ** 31, 2 ** 32 - 1]

function seal(body: Uint8Array): Buffer { return Buffer.concat([body, hash('sha256', body, 'buffer')]) }
