// services/block/qcow2_crash_test.ts: a crash at any moment leaves a sound image with all that was flushed.
//
// What a disk does to its file is recorded. Then the file is made again as it is after a crash: all changes up to some
// moment; or, as when power fails, all up to the last sync and of those after it any sectors at all. qemu-img says
// whether that image is sound; each of its sectors must read as it was when the last flush was answered, or as any
// request since has made it. CELLAR_FUZZ_SEED chooses other requests and moments, CELLAR_FUZZ_RUNS how many.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { createDisk, openDisk } from './open_disk.ts'
import { Qcow2Disk } from './qcow2.ts'
import { RawDisk } from './raw.ts'
import { chance, contentOf, inFolder, leaksOf, MemoryFile, noQemu, run, work, type Change } from './test_support.ts'

const skip = noQemu
const SEED = Number(process.env['CELLAR_FUZZ_SEED'] ?? 20261121)
const RUNS = Number(process.env['CELLAR_FUZZ_RUNS'] ?? 1)
const SIZE = 384 * 1024
const LARGE = 4 * 2 ** 20
const REQUESTS = 60
const CUTS = 8

/** What a disk is to be from some change of its file on; `isSure` when a flush was answered. */
type Moment = { readonly changes: number; readonly content: Uint8Array; readonly isSure: boolean }

const base = Buffer.alloc(256 * 1024, 0xba)

function diskOf(file: MemoryFile): Qcow2Disk {
  const openBacking = (): RawDisk => new RawDisk(new MemoryFile(base), true)
  return new Qcow2Disk({ file, path: 'crash.qcow2', isReadOnly: false, openBacking })
}

/** The file after a crash when `cut` changes were made; `random`: power fails, what wasn't synced is lost by chance. */
function crashed(before: Uint8Array, changes: readonly Change[], cut: number, random?: (below: number) => number):
  Uint8Array {
  const made = changes.slice(0, cut)
  const sure = random === undefined ? cut : made.lastIndexOf('sync') + 1
  const writes = made.map((change, i) => ({ change, share: i < sure ? 1 : random!(4) }))
  const file = new Uint8Array(Math.max(before.length, ...made.map((one) =>
    one === 'sync' ? 0 : one.position + one.bytes.length)))
  file.set(before)
  for (const { change, share } of writes) {
    // Some writes are there, some aren't, and some are in part.
    if (change === 'sync' || share === 0) continue
    for (let at = 0; at < change.bytes.length;) {
      const end = Math.min(change.bytes.length, at + 512 - (change.position + at) % 512)
      if (share < 3 || random!(2) === 1) file.set(change.bytes.subarray(at, end), change.position + at)
      at = end
    }
  }
  return file
}

function check(
  folder: string, file: Uint8Array, moments: readonly Moment[], cut: number, what: string,
): void {
  const path = join(folder, 'crash.qcow2')
  writeFileSync(path, file)
  try {
    leaksOf(path)
  } catch (error) {
    throw new Error(`${what}, cut at ${cut}`, { cause: error })
  }
  const disk = diskOf(new MemoryFile(file))
  const found = contentOf(disk)
  const since = moments.findLastIndex((one) => one.isSure && one.changes <= cut)
  // The request that was under way at the cut may be there, too.
  const first = moments.findIndex((one) => one.changes >= cut)
  const until = first < 0 ? moments.length - 1 : first
  for (let at = 0; at < found.length; at += 512) {
    const sector = found.subarray(at, at + 512)
    const isKnown = moments.slice(since, until + 1)
      .some(({ content }) => Buffer.compare(sector, content.subarray(at, at + 512)) === 0)
    assert.ok(isKnown, `${what}, cut at ${cut}: sector ${at / 512} is nothing that was ever written there`)
  }
  // And it can be gone on with.
  const model = found.slice()
  work(disk, model, SEED + cut, 20)
  assert.equal(disk.close(), 0)
  assert.equal(disk.damage, undefined)
}

/** Writes to as much as has nearly no room in the refcount table. */
function fill(path: string): void {
  const disk = openDisk(path, 'qcow2', { readOnly: false, backingFolders: [] })
  const bytes = new Uint8Array(1.75 * 2 ** 20).fill(1)
  assert.equal(disk.write(0, bytes, 0, bytes.length), 0)
  assert.equal(disk.close(), 0)
}

const IMAGES = [
  ['clusters of 512 bytes', 'cluster_size=512', SIZE], ['clusters of 4 KiB', 'cluster_size=4k', SIZE],
  ['version 2', 'compat=0.10,cluster_size=1k', SIZE], ['clusters of 64 KiB', 'cluster_size=64k', SIZE],
  ['a backing file', 'cluster_size=2k,backing_file=base.raw,backing_fmt=raw', SIZE],
  // Its refcount table has room for 2 MiB.
  ['a refcount table that grows', 'cluster_size=512,refcount_bits=64', LARGE],
] as const

for (const [name, options, size] of IMAGES) {
  test(`a crash while a disk with ${name} is used leaves it sound, and what was flushed is there`, { skip }, () => {
    inFolder((folder) => {
      writeFileSync(join(folder, 'base.raw'), base)
      const path = join(folder, 'crash.qcow2')
      run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, String(size))
      for (let round = 0; round < RUNS; round++) {
        if (size === LARGE) fill(path)
        const before = readFileSync(path)
        const file = new MemoryFile(before)
        const disk = diskOf(file)
        const model = contentOf(disk)
        const moments: Moment[] = [{ changes: 0, content: model.slice(), isSure: true }]
        work(disk, model, SEED + round, REQUESTS, (what) => {
          moments.push({ changes: file.changes.length, content: model.slice(), isSure: what === 'flush' })
        })
        const random = chance(SEED + round)
        // Most can be lost right before a sync is done.
        const syncs = file.changes.flatMap((change, i) => change === 'sync' ? [i] : [])
        for (let i = 0; i < CUTS; i++) {
          const cut = random(file.changes.length + 1)
          check(folder, crashed(before, file.changes, cut), moments, cut, 'a crash')
          const late = syncs[random(syncs.length)]!
          check(folder, crashed(before, file.changes, late, random), moments, late, 'power')
        }
        if (size === LARGE) assert.ok(new DataView(file.bytes.buffer).getUint32(56) > 1, 'the table has grown')
        writeFileSync(path, before)
      }
    })
  })
}

test('a crash while a snapshot is taken, applied or deleted leaves it done or not begun', { skip }, () => {
  inFolder((folder) => {
    const path = join(folder, 'snapshot.qcow2')
    createDisk(path, { format: 'qcow2', sizeBytes: SIZE, clusterBytes: 1024 })
    const file = new MemoryFile(readFileSync(path))
    const disk = diskOf(file)
    const model = new Uint8Array(SIZE)
    const random = chance(SEED)
    const step = (what: string, act: () => void): void => {
      assert.equal(disk.flush(), 0)
      const before = file.bytes.slice()
      const old = contentOf(disk)
      file.changes.length = 0
      act()
      const moments = [{ changes: 0, content: old, isSure: true },
        { changes: file.changes.length, content: contentOf(disk), isSure: true }]
      for (let cut = 0; cut <= file.changes.length; cut += 1 + random(3)) {
        check(folder, crashed(before, file.changes, cut), moments, cut, what)
        check(folder, crashed(before, file.changes, cut, random), moments, cut, `${what}, power`)
      }
    }
    work(disk, model, SEED, 30)
    step('create', () => disk.createSnapshot('one', 0))
    work(disk, model, SEED + 1, 30)
    step('create another', () => disk.createSnapshot('two', 0))
    work(disk, model, SEED + 2, 30)
    step('apply', () => disk.applySnapshot('one'))
    step('delete', () => disk.deleteSnapshot('two'))
    step('delete the last', () => disk.deleteSnapshot('one'))
  })
})

test('the moments of a crash matter: a disk that doesn\'t sync is found out', { skip }, () => {
  inFolder((folder) => {
    const path = join(folder, 'crash.qcow2')
    createDisk(path, { format: 'qcow2', sizeBytes: SIZE, clusterBytes: 512 })
    const before = readFileSync(path)
    const file = new MemoryFile(before)
    const disk = diskOf(file)
    const model = new Uint8Array(SIZE)
    const moments: Moment[] = [{ changes: 0, content: model.slice(), isSure: true }]
    work(disk, model, SEED, REQUESTS, (what) => {
      moments.push({ changes: file.changes.length, content: model.slice(), isSure: what === 'flush' })
    })
    // As if no sync had been made: what was recorded of them is taken out.
    const never = file.changes.map((change) => change === 'sync' ? { position: 0, bytes: new Uint8Array(0) } : change)
    const random = chance(SEED)
    assert.throws(() => {
      for (let i = 0; i < CUTS; i++) {
        const cut = random(never.length + 1)
        check(folder, crashed(before, never, cut, random), moments, cut, 'power')
      }
    })
  })
})
