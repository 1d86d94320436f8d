// services/block/qcow2_differential_test.ts: our qcow2 beside QEMU's: what one writes the other reads, and finds sound.
//
// CELLAR_FUZZ_SEED chooses other requests, CELLAR_FUZZ_RUNS how many rounds of them.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { createDisk, openDisk } from './open_disk.ts'
import type { Qcow2Disk } from './qcow2.ts'
import { chance, contentOf, inFolder, leaksOf, noQemu, run, work } from './test_support.ts'

const skip = noQemu
const SEED = Number(process.env['CELLAR_FUZZ_SEED'] ?? 20261121)
const RUNS = Number(process.env['CELLAR_FUZZ_RUNS'] ?? 1)
const SIZE = 6 * 2 ** 20 + 3 * 512

const open = (path: string, folder: string, readOnly = false): Qcow2Disk =>
  openDisk(path, 'qcow2', { readOnly, backingFolders: [folder] }) as Qcow2Disk

/** What QEMU reads of an image. */
function seenByQemu(path: string, folder: string): Uint8Array {
  const raw = join(folder, 'seen.raw')
  run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', path, raw)
  return readFileSync(raw)
}

/** Something on a disk: runs of bytes, and gaps. */
function content(seed: number, size: number): Uint8Array {
  const random = chance(seed)
  const bytes = new Uint8Array(size)
  for (let at = 0; at < size;) {
    const length = 512 * (1 + random(300))
    if (random(3) > 0) {
      const end = Math.min(size, at + length)
      bytes.fill(random(256), at, end)
      for (let i = at; i < end; i += 1 + random(64)) bytes[i] = random(256)
    }
    at += length
  }
  return bytes
}

const equal = (a: Uint8Array, b: Uint8Array, what: string): void => {
  if (Buffer.compare(a, b) === 0) return
  const at = a.findIndex((byte, i) => byte !== b[i])
  assert.fail(`${what}: lengths ${a.length} and ${b.length}, first difference at ${at}`)
}

for (const bits of [9, 12, 16, 21]) {
  test(`what is written to an image of our own with clusters of 2^${bits} bytes is what QEMU reads`, { skip }, () => {
    inFolder((folder) => {
      for (let round = 0; round < RUNS; round++) {
        const path = join(folder, `own${round}.qcow2`)
        createDisk(path, { format: 'qcow2', sizeBytes: SIZE, clusterBytes: 2 ** bits })
        const model = new Uint8Array(SIZE)
        const disk = open(path, folder)
        work(disk, model, SEED + bits + round, 300)
        assert.equal(disk.damage, undefined)
        equal(contentOf(disk), model, 'ours')
        assert.equal(disk.close(), 0)
        assert.equal(leaksOf(path), 0)
        equal(seenByQemu(path, folder), model, 'QEMU\'s')
      }
    })
  })
}

const IMAGES: readonly (readonly [name: string, options: string, ...args: string[]])[] = [
  ['of version 2', 'compat=0.10'], ['of version 3', 'compat=1.1'],
  ['with clusters of 512 bytes', 'cluster_size=512'], ['with clusters of 2 MiB', 'cluster_size=2M'],
  ['with lazy refcounts', 'lazy_refcounts=on'], ['with refcounts of 1 bit', 'refcount_bits=1'],
  ['with refcounts of 64 bits', 'refcount_bits=64'], ['with refcounts of 2 bits', 'refcount_bits=2,cluster_size=4k'],
  ['with compressed clusters', 'cluster_size=64k', '-c'], ['of version 2, compressed', 'compat=0.10', '-c'],
  ['with zstd', 'compression_type=zstd', '-c'],
  ['with zstd and small clusters', 'compression_type=zstd,cluster_size=4k', '-c'],
  ['with compressed clusters of 512 bytes', 'cluster_size=512', '-c'],
  ['with compressed clusters of 2 MiB', 'cluster_size=2M', '-c'],
  ['with tables for all of it', 'preallocation=metadata'], ['with room for all of it', 'preallocation=falloc'],
]

for (const [name, options, ...args] of IMAGES) {
  test(`an image of QEMU's ${name} reads as it was made, and is sound after we wrote to it`, { skip }, () => {
    inFolder((folder) => {
      const raw = join(folder, 'content.raw')
      const path = join(folder, 'theirs.qcow2')
      const model = content(SEED, SIZE)
      writeFileSync(raw, model)
      run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', ...args, '-o', options, raw, path)
      const before = open(path, folder, true)
      equal(contentOf(before), model, 'as made')
      before.close()
      const disk = open(path, folder)
      work(disk, model, SEED + 1, 300)
      equal(contentOf(disk), model, 'ours')
      assert.equal(disk.close(), 0)
      assert.equal(leaksOf(path), 0)
      equal(seenByQemu(path, folder), model, 'QEMU\'s')
    })
  })
}

for (const version of ['0.10', '1.1']) {
  for (const format of ['raw', 'qcow2'] as const) {
    test(`an overlay of version ${version} over ${format} shows what is behind it, zeros included`, { skip }, () => {
      inFolder((folder) => {
        const behind = content(SEED + 3, SIZE - 1024 * 1024)
        writeFileSync(join(folder, 'content.raw'), behind)
        run('qemu-img', 'convert', '-f', 'raw', '-O', format, join(folder, 'content.raw'), join(folder, 'base'))
        const path = join(folder, 'top.qcow2')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `compat=${version}`, '-b', 'base', '-F', format, path,
          String(SIZE))
        const model = new Uint8Array(SIZE)
        model.set(behind)
        const disk = open(path, folder)
        equal(contentOf(disk), model, 'at first')
        work(disk, model, SEED + 4, 400)
        equal(contentOf(disk), model, 'ours')
        assert.equal(disk.close(), 0)
        assert.equal(leaksOf(path), 0)
        equal(seenByQemu(path, folder), model, 'QEMU\'s')
      })
    })
  }
}

test('snapshots of QEMU\'s and of ours live in one image, whichever applies and deletes them', { skip }, () => {
  inFolder((folder) => {
    for (const bits of [12, 16]) {
      const path = join(folder, `snapshots${bits}.qcow2`)
      run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `cluster_size=${2 ** bits}`, path, String(SIZE))
      const model = new Uint8Array(SIZE)
      const states = new Map<string, Uint8Array>()
      for (let i = 0; i < 6; i++) {
        const disk = open(path, folder)
        work(disk, model, SEED + i, 60)
        if (i % 2 === 0) disk.createSnapshot(`s${i}`, 1_700_000_000_123)
        if (i % 2 === 0) states.set(`s${i}`, model.slice())
        work(disk, model, SEED + 50 + i, 60)
        assert.equal(disk.close(), 0)
        assert.equal(leaksOf(path), 0)
        if (i % 2 === 0) continue
        states.set(`s${i}`, model.slice())
        run('qemu-img', 'snapshot', '-c', `s${i}`, path)
      }
      const ours = open(path, folder)
      assert.deepEqual(ours.snapshots().map(({ name }) => name), ['s0', 's1', 's2', 's3', 's4', 's5'])
      ours.deleteSnapshot('s2')
      ours.applySnapshot('s3')
      equal(contentOf(ours), states.get('s3')!, 'applied by us')
      work(ours, states.get('s3')!.slice(), SEED + 99, 60)
      assert.equal(ours.close(), 0)
      assert.equal(leaksOf(path), 0)
      for (const name of ['s0', 's1', 's3', 's4', 's5']) {
        run('qemu-img', 'snapshot', '-a', name, path)
        equal(seenByQemu(path, folder), states.get(name)!, `${name}, applied by QEMU`)
        const again = open(path, folder)
        equal(contentOf(again), states.get(name)!, name)
        again.deleteSnapshot(name)
        assert.equal(again.close(), 0)
        assert.equal(leaksOf(path), 0)
      }
    }
  })
})

test('the refcount table of an image grows with it', { skip }, () => {
  inFolder((folder) => {
    // One cluster of 512 bytes counts 64 blocks of 256 clusters: 8 MiB.
    const path = join(folder, 'small.qcow2')
    const size = 24 * 2 ** 20
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', path, String(size))
    const disk = open(path, folder)
    const model = content(SEED + 8, size)
    assert.equal(disk.write(0, model, 0, size), 0)
    equal(contentOf(disk), model, 'ours')
    assert.equal(disk.close(), 0)
    assert.equal(leaksOf(path), 0)
    equal(seenByQemu(path, folder), model, 'QEMU\'s')
  })
})

test('an image that QEMU left dirty is mended when we write to it', { skip }, () => {
  inFolder((folder) => {
    const path = join(folder, 'dirty.qcow2')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', path, String(SIZE))
    run('sh', '-c', `qemu-io -f qcow2 -c "write -P 7 0 3M" -c flush -c abort "${path}" >/dev/null 2>&1; test $? -gt 1`)
    assert.throws(() => leaksOf(path), /refcount=0/)
    const disk = open(path, folder)
    const model = new Uint8Array(SIZE).fill(7, 0, 3 * 2 ** 20)
    equal(contentOf(disk), model, 'what was flushed')
    work(disk, model, SEED, 50)
    assert.equal(disk.close(), 0)
    assert.equal(leaksOf(path), 0)
    equal(seenByQemu(path, folder), model, 'QEMU\'s')
  })
})
