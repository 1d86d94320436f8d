// services/block/qcow2_test.ts: a qcow2 disk where things go wrong: no room, images that lie; what it says of itself.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { EIO, ENOSPC, EROFS } from '../../base/errno.ts'
import { createDisk, openDisk } from './open_disk.ts'
import { Qcow2Disk } from './qcow2.ts'
import { RawDisk } from './raw.ts'
import { chance, contentOf, inFolder, MemoryFile, noLinux, work } from './test_support.ts'

const skip = noLinux
const CLUSTER = 4096
const SIZE = 64 * CLUSTER
const COPIED = 1n << 63n

const openBacking = (): RawDisk => new RawDisk(new MemoryFile(new Uint8Array(SIZE).fill(0xba)), true)

/** A new image in memory. */
function image(backing?: 'raw'): MemoryFile {
  return inFolder((folder) => {
    const path = join(folder, 'a')
    createDisk(path, { format: 'qcow2', sizeBytes: SIZE, clusterBytes: CLUSTER,
      backing: backing === undefined ? undefined : { path: 'base', format: backing } })
    return new MemoryFile(readFileSync(path))
  })
}

const open = (file: MemoryFile, isReadOnly = false): Qcow2Disk =>
  new Qcow2Disk({ file, path: 'a.qcow2', isReadOnly, openBacking })

const ones = new Uint8Array(SIZE).fill(1)

/** An image of which all is written, and where its tables are. */
function filled(): { file: MemoryFile; view: DataView; l1: number; l2: number; counts: number } {
  const file = image()
  const disk = open(file)
  assert.equal(disk.write(0, ones, 0, SIZE), 0)
  assert.equal(disk.close(), 0)
  const { buffer } = file.bytes
  const view = new DataView(buffer)
  const l1 = Number(view.getBigUint64(40))
  const table = Number(view.getBigUint64(48))
  return { file, view, l1, l2: Number(view.getBigUint64(l1) & ~COPIED), counts: Number(view.getBigUint64(table)) }
}

test('a disk that can\'t be written answers the errno, loses nothing and goes on when there is room', { skip }, () => {
  for (const errno of [ENOSPC, EIO]) {
    for (let after = 0; after < 24; after++) {
      const file = image()
      const disk = open(file)
      const model = new Uint8Array(SIZE)
      work(disk, model, after + 1, 10)
      assert.equal(disk.flush(), 0)
      file.failAfter = after
      file.failWith = -errno
      const answers = [0, 7, 20].map((cluster) => {
        const result = disk.write(cluster * CLUSTER + 512, ones, 0, CLUSTER)
        if (result === 0) model.fill(1, cluster * CLUSTER + 512, (cluster + 1) * CLUSTER + 512)
        // What failed may be there in part.
        else file.failAfter = Infinity
        if (result !== 0) assert.equal(disk.write(cluster * CLUSTER + 512, ones, 0, CLUSTER), 0)
        model.fill(1, cluster * CLUSTER + 512, (cluster + 1) * CLUSTER + 512)
        return result
      })
      answers.push(disk.flush())
      assert.ok(answers.every((one) => one === 0 || one === -errno), String(answers))
      assert.ok(after > 3 || answers.includes(-errno), `${after}: ${answers}`)
      file.failAfter = Infinity
      assert.equal(disk.flush(), 0)
      assert.equal(disk.damage, undefined)
      assert.deepEqual(contentOf(disk), model)
      assert.deepEqual(contentOf(open(new MemoryFile(file.bytes))), model)
      assert.equal(disk.close(), 0)
    }
  }
})

test('a disk that is open for reading only refuses changes and writes nothing', { skip }, () => {
  const { file } = filled()
  const disk = open(file, true)
  file.changes.length = 0
  assert.equal(disk.write(0, ones, 0, 512), -EROFS)
  assert.equal(disk.discard(0, CLUSTER), -EROFS)
  assert.equal(disk.writeZeroes(0, CLUSTER, false), -EROFS)
  assert.throws(() => disk.createSnapshot('a', 0), { code: 'DISK_UNWRITABLE' })
  assert.equal(disk.flush(), 0)
  assert.equal(disk.close(), 0)
  assert.deepEqual(file.changes, [])
})

test('requests that aren\'t within the disk or of whole sectors are our bugs, not requests', { skip }, () => {
  const disk = open(image())
  for (const [position, length] of [[SIZE, 512], [-512, 512], [0, 100], [100, 512], [NaN, 512], [0, SIZE + 512]]) {
    assert.throws(() => disk.read(position!, ones, 0, length!), /assertion/)
    assert.throws(() => disk.write(position!, ones, 0, length!), /assertion/)
    assert.throws(() => disk.writeZeroes(position!, length!, true), /assertion/)
  }
})

const LIES: readonly (readonly [string, (lie: ReturnType<typeof filled>) => void])[] = [
  ['an entry leads behind the end', ({ view, l2, file }) => view.setBigUint64(l2, COPIED | BigInt(file.sizeBytes))],
  ['a zero keeps a place behind the end', ({ view, l2, file }) =>
    view.setBigUint64(l2, COPIED | BigInt(file.sizeBytes) | 1n)],
  ['an entry isn\'t aligned', ({ view, l2 }) => view.setBigUint64(l2, COPIED | 0x2200n)],
  ['an entry has unknown bits', ({ view, l2 }) => view.setBigUint64(l2, COPIED | 0x2002n)],
  ['an L1 entry leads behind the end', ({ view, l1, file }) => view.setBigUint64(l1, COPIED | BigInt(file.sizeBytes))],
  ['a compressed cluster is nothing', ({ view, l2, counts }) => view.setBigUint64(l2, 1n << 62n | BigInt(counts))],
  ['a compressed cluster lies outside', ({ view, l2, file }) =>
    view.setBigUint64(l2, 1n << 62n | BigInt(file.sizeBytes + 512))],
]

for (const [name, tell] of LIES) {
  test(`where ${name}, the disk answers EIO there, is marked, and is written to no more`, { skip }, () => {
    const lie = filled()
    tell(lie)
    const disk = open(lie.file)
    const memory = new Uint8Array(CLUSTER)
    const other = name.includes('L1') ? -1 : CLUSTER
    assert.equal(disk.read(0, memory, 0, 512), -EIO)
    assert.ok(disk.damage !== undefined)
    if (other > 0) assert.equal(disk.read(other, memory, 0, CLUSTER), 0)
    assert.equal(disk.write(CLUSTER, memory, 0, CLUSTER), -EIO)
    assert.equal(disk.writeZeroes(CLUSTER, CLUSTER, true), -EIO)
    assert.equal(disk.flush(), -EIO)
    assert.throws(() => disk.createSnapshot('a', 0), { code: 'DISK_UNWRITABLE' })
    assert.equal(disk.close(), -EIO)
    assert.throws(() => open(lie.file), { code: 'DISK_DAMAGED' })
    assert.equal(open(lie.file, true).read(0, memory, 0, 512), -EIO)
  })
}

test('a place of a zero that isn\'t aligned is found out when it is to be freed', { skip }, () => {
  const { file, view, l2, counts } = filled()
  view.setBigUint64(l2, COPIED | BigInt(counts + CLUSTER) | 1n)
  view.setBigUint64(l2 + 8, COPIED | BigInt(counts + CLUSTER + 512) | 1n)
  const disk = open(file)
  assert.equal(disk.discard(0, 2 * CLUSTER), 0)
  assert.equal(disk.flush(), -EIO)
  assert.ok(disk.damage !== undefined)
})

// The header needs no such test: an entry that leads to 0 leads nowhere.
for (const [what, place] of [['the L1 table', ({ l1 }) => BigInt(l1)],
  ['its own L2 table', ({ l2 }) => BigInt(l2)], ['the refcounts', ({ counts }) => BigInt(counts)],
] as readonly (readonly [string, (of: ReturnType<typeof filled>) => bigint])[]) {
  test(`a guest can't write to ${what} through an entry that leads there`, { skip }, () => {
    const lie = filled()
    lie.view.setBigUint64(lie.l2, COPIED | place(lie))
    const disk = open(lie.file)
    const before = lie.file.bytes.slice()
    assert.equal(disk.write(0, ones, 0, CLUSTER), -EIO)
    // Nothing has changed but the mark.
    before[79]! |= 2
    assert.deepEqual(lie.file.bytes, before)
  })
}

test('clusters that count as free but are tables are not given to a guest', { skip }, () => {
  const file = image()
  const view = new DataView(file.bytes.buffer)
  const counts = Number(view.getBigUint64(Number(view.getBigUint64(48))))
  for (let i = 0; i < 8; i++) view.setUint16(counts + i * 2, 0)
  const disk = open(file)
  assert.equal(disk.write(0, ones, 0, 512), -EIO)
  assert.match(disk.damage!, /count as free/)
})

test('tables that lie in one place are refused, and a header that says what can\'t be', { skip }, () => {
  const cases: readonly (readonly [RegExp, (lie: ReturnType<typeof filled>) => void])[] = [
    [/one place/, ({ view, l1 }) => view.setBigUint64(48, BigInt(l1))],
    [/one place/, ({ view, l1 }) => view.setBigUint64(l1, COPIED | BigInt(l1))],
    [/2\^22 bytes/, ({ view }) => view.setUint32(20, 22)],
    [/2\^8 bytes/, ({ view }) => view.setUint32(20, 8)],
    [/L1 table has 0/, ({ view }) => view.setUint32(36, 0)],
    [/L1 table has 4294967295/, ({ view }) => view.setUint32(36, 0xffffffff)],
    [/L1 table lies outside/, ({ view }) => view.setBigUint64(40, 1n << 62n)],
    [/L1 table lies outside/, ({ view }) => view.setBigUint64(40, 0n)],
    [/refcount table has 0/, ({ view }) => view.setUint32(56, 0)],
    [/refcount table has 4096/, ({ view }) => view.setUint32(56, 4096)],
    [/refcount table lies outside/, ({ view }) => view.setUint32(56, 1000)],
    [/refcounts have 2\^7/, ({ view }) => view.setUint32(96, 7)],
    [/header has 100 bytes/, ({ view }) => view.setUint32(100, 100)],
    [/snapshots lie outside/, ({ view }) => view.setUint32(60, 1)],
    [/cut off|outside/, ({ view, l2 }) => { view.setUint32(60, 9); view.setBigUint64(64, BigInt(l2)) }],
    [/backing file lies outside/, ({ view }) => { view.setBigUint64(8, 4000n); view.setUint32(16, 200) }],
  ]
  for (const [message, tell] of cases) {
    const lie = filled()
    tell(lie)
    assert.throws(() => open(lie.file), { code: 'DISK_DAMAGED', message })
  }
  for (const [code, at, value] of [
    ['DISK_UNSUPPORTED', 4, 4], ['DISK_UNSUPPORTED', 32, 1], ['DISK_TOO_LARGE', 24, 1 << 20],
    ['DISK_UNSUPPORTED', 76, 1 << 20], ['DISK_SIZE_UNALIGNED', 28, SIZE - 100], ['DISK_UNSUPPORTED', 60, 5000],
  ] as const) {
    const lie = filled()
    if (code === 'DISK_TOO_LARGE') {
      // A table large enough for it has to be there.
      lie.view.setUint32(20, 21)
      lie.view.setUint32(24, 0x4001)
      lie.view.setUint32(36, 0x9000)
      lie.view.setBigUint64(40, 1n << 21n)
      lie.view.setBigUint64(48, 1n << 21n)
      lie.file.write(4 * 2 ** 20, ones, 0, 512)
      assert.throws(() => open(lie.file), { code })
      continue
    }
    if (at === 60) lie.view.setBigUint64(64, BigInt(lie.l2))
    lie.view.setUint32(at, value)
    assert.throws(() => open(lie.file), { code })
  }
})

test('snapshots are refused whose names are taken or no text', { skip }, () => {
  const file = filled().file
  const disk = open(file)
  disk.createSnapshot('one', 5000)
  assert.throws(() => disk.createSnapshot('one', 0), { code: 'DISK_SNAPSHOT_REFUSED' })
  assert.throws(() => disk.createSnapshot('', 0), { code: 'DISK_SNAPSHOT_REFUSED' })
  assert.throws(() => disk.createSnapshot('a\nb', 0), { code: 'DISK_SNAPSHOT_REFUSED' })
  assert.throws(() => disk.createSnapshot('é'.repeat(128), 0), { code: 'DISK_SNAPSHOT_REFUSED' })
  assert.throws(() => disk.applySnapshot('two'), { code: 'DISK_SNAPSHOT_NOT_FOUND' })
  assert.throws(() => disk.deleteSnapshot('two'), { code: 'DISK_SNAPSHOT_NOT_FOUND' })
  const [one] = disk.snapshots()
  assert.deepEqual([one!.id, one!.name, one!.createdAtMs, one!.sizeBytes], ['1', 'one', 5000, SIZE])
})

test('a snapshot that leads to tables as data can\'t be applied, but deleted', { skip }, () => {
  const file = filled().file
  const disk = open(file)
  disk.createSnapshot('one', 0)
  assert.equal(disk.write(0, new Uint8Array(512), 0, 512), 0)
  assert.equal(disk.flush(), 0)
  const view = new DataView(file.bytes.buffer)
  const l2 = Number(view.getBigUint64(disk.snapshots()[0]!.l1Offset) & ~COPIED)
  view.setBigUint64(l2, BigInt(l2))
  const header = file.bytes.slice(0, 512)
  assert.throws(() => disk.applySnapshot('one'), { code: 'DISK_DAMAGED' })
  assert.deepEqual(file.bytes.slice(0, 512), header)
  const content = new Uint8Array(SIZE).fill(1, 512)
  assert.deepEqual(contentOf(disk), content)
  disk.deleteSnapshot('one')
  assert.deepEqual(contentOf(disk), content)
  assert.equal(disk.close(), 0)
})

test('what was discarded gives its room back, and reads as zeros at once', { skip }, () => inFolder((folder) => {
  const path = join(folder, 'a')
  const size = 16 * 2 ** 20
  createDisk(path, { format: 'qcow2', sizeBytes: size })
  const disk = openDisk(path, 'qcow2', { readOnly: false, backingFolders: [] })
  const bytes = new Uint8Array(size).fill(1)
  assert.equal(disk.write(0, bytes, 0, size), 0)
  assert.equal(disk.flush(), 0)
  const before = disk.sizeOnDisk()
  assert.equal(disk.granularityBytes, 65_536)
  assert.equal(disk.discard(0, size), 0)
  assert.deepEqual(contentOf(disk), new Uint8Array(size))
  assert.equal(disk.flush(), 0)
  assert.ok(before > size && disk.sizeOnDisk() < size / 8, `${before} bytes, then ${disk.sizeOnDisk()}`)
  assert.equal(disk.write(0, bytes, 0, size), 0)
  assert.equal(disk.writeZeroes(0, size, false), 0)
  assert.equal(disk.flush(), 0)
  assert.ok(disk.sizeOnDisk() > size, 'zeros that keep their room')
  assert.deepEqual(contentOf(disk), new Uint8Array(size))
  assert.equal(disk.close(), 0)
}))

test('allocated tells what a disk itself holds, and zeros where something is behind them', { skip }, () => {
  const alone = open(image())
  assert.deepEqual([...alone.allocated()], [])
  assert.equal(alone.write(3 * CLUSTER + 512, ones, 0, 2 * CLUSTER), 0)
  assert.equal(alone.writeZeroes(10 * CLUSTER, CLUSTER, true), 0)
  assert.deepEqual([...alone.allocated()], [{ position: 3 * CLUSTER, length: 3 * CLUSTER, isZero: false }])
  const over = open(image('raw'))
  assert.equal(over.writeZeroes(CLUSTER, 2 * CLUSTER, true), 0)
  assert.equal(over.write(3 * CLUSTER, ones, 0, 512), 0)
  assert.equal(over.write(SIZE - 512, ones, 0, 512), 0)
  assert.deepEqual([...over.allocated()], [{ position: CLUSTER, length: 2 * CLUSTER, isZero: true },
    { position: 3 * CLUSTER, length: CLUSTER, isZero: false },
    { position: SIZE - CLUSTER, length: CLUSTER, isZero: false }])
})

test('a raw disk tells its data from its holes, and takes what is discarded out', { skip }, () => inFolder((folder) => {
  const path = join(folder, 'a')
  createDisk(path, { format: 'raw', sizeBytes: 4 * 2 ** 20 })
  const disk = openDisk(path, 'raw', { readOnly: false, backingFolders: [] })
  assert.deepEqual([...disk.allocated()], [])
  assert.equal(disk.write(2 ** 20, ones, 0, 2 ** 17), 0)
  assert.deepEqual([...disk.allocated()], [{ position: 2 ** 20, length: 2 ** 17, isZero: false }])
  assert.equal(disk.discard(2 ** 20, 2 ** 16), 0)
  assert.deepEqual([...disk.allocated()], [{ position: 2 ** 20 + 2 ** 16, length: 2 ** 16, isZero: false }])
  assert.equal(disk.writeZeroes(2 ** 20 + 2 ** 16, 2 ** 16, false), 0)
  assert.deepEqual(contentOf(disk), new Uint8Array(4 * 2 ** 20))
  assert.ok(disk.sizeOnDisk() >= 2 ** 16)
  assert.equal(disk.close(), 0)
}))

test('a disk with more tables than memory has slots for reads what it wrote', { skip }, () => {
  const file = inFolder((folder) => {
    createDisk(join(folder, 'a'), { format: 'qcow2', sizeBytes: 512 * 2 ** 20, clusterBytes: 512 })
    return new MemoryFile(readFileSync(join(folder, 'a')))
  })
  // 4 MiB of tables are 8192 of 16,384: each is of 32 KiB of the disk.
  const disk = open(file)
  const random = chance(9)
  const written = new Map<number, number>()
  const bytes = new Uint8Array(512)
  for (let i = 0; i < 12_000; i++) {
    const position = i * 32 * 1024 + random(64) * 512
    bytes.fill(1 + random(255))
    assert.equal(disk.write(position, bytes, 0, 512), 0)
    written.set(position, bytes[0]!)
  }
  for (const [position, value] of written) {
    assert.equal(disk.read(position, bytes, 0, 512), 0)
    assert.equal(bytes[0], value)
  }
})
