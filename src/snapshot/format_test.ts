// snapshot/format_test.ts: snapshots as bytes, and what is refused.

import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { CellState } from '../cell/state.ts'
import { Malformed } from './codec.ts'
import {
  decodeSnapshot, encodeSnapshot, ZERO_HASH, type BareMachine, type BareState, type ChunkRef,
} from './format.ts'
import { SnapshotStore } from './store.ts'
import { memoryOf, metaOf, stateOf } from './test_support.ts'

const CHUNKS: readonly ChunkRef[] = [{ page: 0, hash: '01'.repeat(32) }, { page: 5, hash: '02'.repeat(32) }]
const MEMORY = memoryOf(6, {})
const HEAD_BYTES = 12

/** Bytes with a digest that is right, whatever they are. */
function sealed(body: Buffer): Buffer {
  return Buffer.concat([body, hash('sha256', body, 'buffer')])
}

test('a snapshot says what was written, to the bit', () => {
  const [meta, state] = [metaOf({ parent: `sha256:${'cd'.repeat(32)}`, labels: { b: '2', a: '1' } }), stateOf(MEMORY)]
  const bytes = encodeSnapshot(meta, state, CHUNKS)
  const read = decodeSnapshot(bytes, 'it')
  assert.deepEqual(read.meta, meta)
  assert.deepEqual(read.state, { ...state, memory: { pages: 6 } })
  assert.deepEqual(read.chunks, CHUNKS)
  assert.deepEqual(encodeSnapshot(read.meta, read.state, read.chunks), bytes)
})

test('a state without a memory, and one that has not begun, come back', () => {
  const state = stateOf(undefined, { frames: new Uint8Array(), tables: [], descriptors: [], args: [], phase: 'start' })
  const read = decodeSnapshot(encodeSnapshot(metaOf(), state, []), 'it')
  assert.deepEqual({ ...read.state, memory: undefined }, state)
})

test('names that objects have by birth are names like others', () => {
  const hypercalls = JSON.parse('{"__proto__":1,"constructor":2}') as Record<string, number>
  const state = stateOf(undefined, { used: { ...stateOf(undefined).used, hypercalls } })
  const { used } = decodeSnapshot(encodeSnapshot(metaOf(), state, []), 'it').state as BareState
  assert.deepEqual(Object.entries(used.hypercalls), [['__proto__', 1], ['constructor', 2]])
})

test('equal states have equal bytes, whatever the order in which they were made', () => {
  const { used, descriptors } = stateOf(undefined)
  const hypercalls = Object.fromEntries(Object.entries(used.hypercalls).reverse())
  const other = stateOf(undefined, { descriptors: descriptors.toReversed(), used: { ...used, hypercalls } })
  assert.deepEqual(encodeSnapshot(metaOf(), other, []), encodeSnapshot(metaOf(), stateOf(undefined), []))
})

test('each bit counts: a snapshot with one that is turned is refused', () => {
  const bytes = encodeSnapshot(metaOf(), stateOf(MEMORY), CHUNKS)
  for (let bit = 0; bit < 8 * bytes.length; bit += 7) {
    const turned = Buffer.from(bytes)
    turned[bit >> 3]! ^= 1 << (bit & 7)
    assert.throws(() => decodeSnapshot(turned, 'it'), { code: /^SNAPSHOT_(DAMAGED|NEWER)$/ }, `bit ${bit}`)
  }
})

test('what is cut off or goes on is refused, even with a digest that is right', () => {
  const bytes = encodeSnapshot(metaOf(), stateOf(MEMORY), CHUNKS)
  const body = bytes.subarray(0, -32)
  for (let length = 0; length < body.length; length++) {
    assert.throws(() => decodeSnapshot(bytes.subarray(0, length), 'it'), { code: 'SNAPSHOT_DAMAGED' })
    assert.throws(() => decodeSnapshot(sealed(body.subarray(0, length)), 'it'), { code: 'SNAPSHOT_DAMAGED' })
  }
  assert.throws(() => decodeSnapshot(sealed(Buffer.concat([body, Buffer.of(0)])), 'it'),
    { code: 'SNAPSHOT_DAMAGED', message: /something follows/ })
})

test('a newer format is told from a damaged one', () => {
  const bytes = encodeSnapshot(metaOf(), stateOf(undefined), [])
  bytes.writeUInt32LE(2, 8)
  assert.throws(() => decodeSnapshot(bytes, 'it'),
    { code: 'SNAPSHOT_NEWER', message: /"it" as a newer Cellar has written it: its format is 2, ours 1$/ })
})

test('pages that are twice there, beyond the memory, or all zero are refused', () => {
  const cases: [CellState, ChunkRef[], RegExp][] = [
    [stateOf(MEMORY), [CHUNKS[1]!, { ...CHUNKS[1]!, hash: '03'.repeat(32) }], /does not ascend/],
    [stateOf(MEMORY), [{ page: 6, hash: '01'.repeat(32) }], /beyond its memory/],
    [stateOf(undefined), [{ page: 0, hash: '01'.repeat(32) }], /beyond its memory/],
    [stateOf(MEMORY), [{ page: 0, hash: ZERO_HASH }], /all zero/],
  ]
  for (const [state, chunks, message] of cases) {
    const bytes = encodeSnapshot(metaOf(), state, chunks)
    assert.throws(() => decodeSnapshot(bytes, 'it'), { code: 'SNAPSHOT_DAMAGED', message })
  }
})

test('a value that no snapshot may have is not written', () => {
  const used = { ...stateOf(undefined).used }
  const cases: Partial<CellState>[] = [
    { since: -2 }, { since: NaN }, { monotonicNs: Infinity }, { used: { ...used, cpuNs: -1 } },
    { args: ['a'.repeat(2 ** 21)] },
    { descriptors: [{ ...stateOf(undefined).descriptors[0]!, fd: 2 ** 20 }] }, { phase: 'end' as 'main' },
    { frames: new Uint8Array(2 ** 26 + 1) },
  ]
  for (const more of cases) {
    assert.throws(() => encodeSnapshot(metaOf(), stateOf(undefined, more), []), Malformed, Object.keys(more).join())
  }
})

test('a length is not believed: nothing is allocated for what does not follow', () => {
  const bytes = encodeSnapshot(metaOf(), stateOf(MEMORY), CHUNKS).subarray(0, -32)
  const before = process.memoryUsage().arrayBuffers
  for (let at = HEAD_BYTES; at < bytes.length - 4; at++) {
    const lying = Buffer.from(bytes)
    lying.writeUInt32LE(0x00ff_ffff, at)
    try {
      decodeSnapshot(sealed(lying), 'it')
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'SNAPSHOT_DAMAGED', String(error))
    }
  }
  assert.ok(process.memoryUsage().arrayBuffers - before < 256 * 2 ** 20)
})

// `BLESS=1` makes them; what an earlier version has written is never made again.
test('snapshots that version 1 has written are read for ever', async () => {
  const golden = new URL('../../tests/golden/snapshots/v1', import.meta.url).pathname
  const memory = memoryOf(9, { 2: 7, 3: 8, 8: 9 })
  const [meta, state] = [metaOf({ labels: { why: 'golden' } }), stateOf(memory)]
  if (process.env.BLESS === '1' && !existsSync(golden)) {
    mkdirSync(golden, { recursive: true })
    const store = new SnapshotStore(golden)
    const { digest } = await store.write(meta, state, { durable: false })
    const pieces: Uint8Array[] = []
    for await (const piece of store.send(digest)) pieces.push(piece)
    writeFileSync(join(golden, 'stream'), Buffer.concat(pieces))
    writeFileSync(join(golden, 'digest'), `${digest}\n`)
  }
  const digest = readFileSync(join(golden, 'digest'), 'utf8').trim()
  const path = mkdtempSync(join(tmpdir(), 'cellar-golden-'))
  try {
    cpSync(golden, join(path, 'stored'), { recursive: true })
    const stored = new SnapshotStore(join(path, 'stored'))
    const received = new SnapshotStore(join(path, 'received'))
    const stream = async function* (): AsyncGenerator<Uint8Array> { yield readFileSync(join(golden, 'stream')) }
    assert.deepEqual(await received.receive(stream(), { durable: false }), { digest, missing: [] })
    for (const store of [stored, received]) {
      const read = await store.read(digest)
      assert.deepEqual(read.meta, meta)
      assert.deepEqual(read.state, state)
    }
    assert.equal(`sha256:${hash('sha256', encodeSnapshot(meta, state, stored.inspect(digest).chunks))}`, digest)
  } finally {
    rmSync(path, { recursive: true })
  }
})

const MACHINE: BareMachine = { memory: { pages: 6 }, machine: { engine: 'kvm', vcpus: 2, ramBytes: 4 * 65_536,
  sections: [{ name: 'board/clock', bytes: new Uint8Array([1, 0, 2]) }, { name: 'virtio0', bytes: new Uint8Array(0) }],
  disks: [{ name: 'disk0.qcow2', sizeBytes: 65_537 }], generation: '0f'.repeat(16) } }

test("a machine's snapshot says what was written, to the bit", () => {
  const meta = metaOf({ kind: 'machine' })
  const bytes = encodeSnapshot(meta, MACHINE, CHUNKS)
  const read = decodeSnapshot(bytes, 'it')
  assert.deepEqual([read.meta, read.state, read.chunks], [meta, MACHINE, CHUNKS])
  assert.deepEqual(encodeSnapshot(read.meta, read.state, read.chunks), bytes)
})

test('a machine of pages that are not its own, or without a generation as ours are, is refused', () => {
  const damaged: [Partial<BareMachine['machine']>, RegExp][] = [
    [{ ramBytes: 5 * 65_536 }, /pages/], [{ ramBytes: 4 * 65_536 - 1 }, /RAM/], [{ disks: [] }, /pages/],
    ...['', 'feed', '0F'.repeat(16), `${'0f'.repeat(15)},x`].map((generation): [object, RegExp] =>
      [{ generation }, /generation/]),
  ]
  for (const [change, why] of damaged) {
    const state = { ...MACHINE, machine: { ...MACHINE.machine, ...change } }
    const bytes = encodeSnapshot(metaOf({ kind: 'machine' }), state, CHUNKS)
    assert.throws(() => decodeSnapshot(bytes, 'it'), { code: 'SNAPSHOT_DAMAGED', message: why })
  }
})

test("what of a machine's snapshot is cut off, or a length that is not true, is refused", () => {
  const bytes = encodeSnapshot(metaOf({ kind: 'machine' }), MACHINE, CHUNKS)
  const body = bytes.subarray(0, -32)
  for (let length = 0; length < body.length; length++) {
    assert.throws(() => decodeSnapshot(bytes.subarray(0, length), 'it'), { code: 'SNAPSHOT_DAMAGED' })
    assert.throws(() => decodeSnapshot(sealed(body.subarray(0, length)), 'it'), { code: 'SNAPSHOT_DAMAGED' })
  }
  assert.throws(() => decodeSnapshot(sealed(Buffer.concat([body, Buffer.of(0)])), 'it'), { code: 'SNAPSHOT_DAMAGED' })
  const before = process.memoryUsage().arrayBuffers
  for (let at = HEAD_BYTES; at < body.length - 4; at++) {
    const lying = Buffer.from(body)
    lying.writeUInt32LE(0x00ff_ffff, at)
    try {
      decodeSnapshot(sealed(lying), 'it')
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'SNAPSHOT_DAMAGED', String(error))
    }
  }
  assert.ok(process.memoryUsage().arrayBuffers - before < 256 * 2 ** 20)
})

test('a machine has one snapshot, whose sections ascend and have names that differ', () => {
  const { machine } = MACHINE
  const [one, other] = [machine.sections[0]!, machine.sections[1]!]
  const meta = metaOf({ kind: 'machine' })
  const of = (sections: readonly typeof one[]): Buffer =>
    encodeSnapshot(meta, { ...MACHINE, machine: { ...machine, sections } }, CHUNKS)
  assert.deepEqual(of([other, one]), of([one, other]))
  assert.throws(() => decodeSnapshot(of([one, { ...other, name: one.name }]), 'it'), { code: 'SNAPSHOT_DAMAGED' })
})

test('a value that no machine may have is not written', () => {
  const { machine } = MACHINE
  const cases: Partial<BareMachine['machine']>[] = [
    { vcpus: 33 }, { engine: 'xen' as 'kvm' }, { ramBytes: -1 }, { ramBytes: 2 ** 54 },
    { disks: Array.from({ length: 9 }, (_, i) => ({ name: `disk${i}`, sizeBytes: 0 })) },
    { sections: [{ name: 'x'.repeat(65), bytes: new Uint8Array() }] },
  ]
  for (const more of cases) {
    const state = { ...MACHINE, machine: { ...machine, ...more } }
    assert.throws(() => encodeSnapshot(metaOf({ kind: 'machine' }), state, []), Malformed, Object.keys(more).join())
  }
})

// As above: made once, read for ever.
test("a machine's snapshot that version 1 has written is read for ever", () => {
  const golden = new URL('../../tests/golden/snapshots/v1_machine.snapshot', import.meta.url).pathname
  const meta = metaOf({ kind: 'machine', labels: { why: 'golden' } })
  if (process.env.BLESS === '1' && !existsSync(golden)) writeFileSync(golden, encodeSnapshot(meta, MACHINE, CHUNKS))
  const bytes = readFileSync(golden)
  const { chunks, ...read } = decodeSnapshot(bytes, 'it')
  assert.deepEqual([read.meta, read.state, chunks], [meta, MACHINE, CHUNKS])
  assert.deepEqual(encodeSnapshot(meta, MACHINE, CHUNKS), bytes)
})
