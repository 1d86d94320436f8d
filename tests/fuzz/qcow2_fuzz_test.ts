// tests/fuzz/qcow2_fuzz_test.ts: qcow2 images that were changed: in their headers, tables, refcounts and snapshots.
//
// Whatever comes, it is refused with a DISK_… error when it is opened, or every request is answered: 0 or an errno.
// An image that was found damaged is written to no more, and a file doesn't grow beyond reason.
// CELLAR_FUZZ_SEED chooses other changes, CELLAR_FUZZ_RUNS how many.

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { EIO, ENOSPC } from '../../src/base/errno.ts'
import { CellarError } from '../../src/base/errors.ts'
import { createDisk } from '../../src/services/block/open_disk.ts'
import { Qcow2Disk } from '../../src/services/block/qcow2.ts'
import { RawDisk } from '../../src/services/block/raw.ts'
import { chance, contentOf, MemoryFile, noLinux, work } from '../../src/services/block/test_support.ts'

const SEED = Number(process.env['CELLAR_FUZZ_SEED'] ?? 20261121)
const RUNS = Number(process.env['CELLAR_FUZZ_RUNS'] ?? 1)
const SIZE = 512 * 1024

type Random = (below: number) => number

const openBacking = (): RawDisk => new RawDisk(new MemoryFile(new Uint8Array(SIZE / 2).fill(9)), true)

/** An image with everything in it: data, zeros, holes, two snapshots. */
function wholeImage(clusterBytes: number): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-fuzz-'))
  try {
    const path = join(folder, 'whole.qcow2')
    createDisk(path, { format: 'qcow2', sizeBytes: SIZE, clusterBytes, backing: { path: 'base', format: 'raw' } })
    const file = new MemoryFile(readFileSync(path))
    const disk = new Qcow2Disk({ file, path, isReadOnly: false, openBacking })
    const model = contentOf(disk)
    work(disk, model, SEED, 20)
    disk.createSnapshot('one', 1)
    work(disk, model, SEED + 1, 20)
    disk.createSnapshot('two', 2)
    work(disk, model, SEED + 2, 20)
    assert.equal(disk.close(), 0)
    return file.bytes
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Where numbers lie that lead somewhere: the header's own, and those of the tables it names. */
function changed(whole: Uint8Array, clusterBytes: number, random: Random): Uint8Array {
  const bytes = whole.slice()
  const view = new DataView(bytes.buffer)
  const tables = [[0, 112], [Number(view.getBigUint64(40)), view.getUint32(36) * 8],
    [Number(view.getBigUint64(48)), 64], [Number(view.getBigUint64(64)), 160]] as const
  const l2 = tables[1][0] + 8 * random(view.getUint32(36))
  const places = [...tables, [Number(view.getBigUint64(l2) & 0xffffffffffff00n), clusterBytes] as const,
    [Number(view.getBigUint64(tables[2][0])), clusterBytes] as const]
  for (let i = 1 + random(3); i > 0; i--) {
    const [from, length] = places[random(places.length)]!
    const at = from + random(Math.max(1, length >> 3)) * 8
    if (at + 8 > bytes.length) continue
    const clusters = bytes.length / clusterBytes
    // Nothing, everything, a place inside, one just outside, a flag, some bits.
    const value = [0n, 0xffffffffffffffffn, BigInt(random(clusters) * clusterBytes), BigInt(bytes.length),
      1n << 63n | BigInt(random(clusters) * clusterBytes), 1n << 62n | BigInt(random(bytes.length)),
      view.getBigUint64(at) ^ 1n << BigInt(random(64)), BigInt(random(100))][random(8)]!
    if (random(3) === 0) view.setUint32(at + random(2) * 4, Number(value & 0xffffffffn))
    else view.setBigUint64(at, value)
  }
  if (random(10) === 0) return bytes.subarray(0, random(bytes.length))
  return bytes
}

const isAnswer = (result: number): boolean => result === 0 || result === -EIO || result === -ENOSPC

/** Everything that can be asked of a disk; how many requests were answered with an error. */
function use(disk: Qcow2Disk, random: Random): number {
  let errors = 0
  const memory = new Uint8Array(64 * 1024)
  const sectors = Math.min(disk.sizeBytes, 4 * SIZE) / 512
  const requests = sectors > 0 ? 24 : 0
  for (let i = 0; i < requests; i++) {
    const first = random(sectors)
    const length = 512 * (1 + random(Math.min(128, sectors - first)))
    const wasDamaged = disk.damage !== undefined
    const what = random(6)
    const result = what < 2 ? disk.read(first * 512, memory, 0, length) :
      what < 4 ? disk.write(first * 512, memory, 0, length) :
      what < 5 ? disk.writeZeroes(first * 512, length, random(2) === 0) : disk.flush()
    assert.ok(isAnswer(result), `an answer: ${result}`)
    if (wasDamaged && what >= 2) assert.equal(result, -EIO)
    if (result !== 0) errors++
  }
  const operations = [() => disk.createSnapshot(`n${random(5)}`, 0), () => disk.applySnapshot('one'),
    () => disk.deleteSnapshot('two'), () => [...disk.allocated()]]
  for (let i = 0; i < 3; i++) {
    try {
      operations[random(operations.length)]!()
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      assert.match(error.code, /^DISK_/)
    }
  }
  assert.ok(isAnswer(disk.close()))
  return errors
}

for (const clusterBytes of [512, 4096]) {
  test(`a changed image with clusters of ${clusterBytes} bytes is refused, or answers everything`,
    { skip: noLinux }, () => {
      const whole = wholeImage(clusterBytes)
      const random = chance(SEED + clusterBytes)
      let [refused, wrong] = [0, 0]
      const runs = 400 * RUNS
      for (let run = 0; run < runs; run++) {
        const image = changed(whole, clusterBytes, random)
        const file = new MemoryFile(image)
        try {
          wrong += use(new Qcow2Disk({ file, path: 'it', isReadOnly: false, openBacking }), random) > 0 ? 1 : 0
        } catch (error) {
          if (!(error instanceof CellarError)) throw new Error(`run ${run}`, { cause: error })
          assert.match(error.code, /^DISK_/)
          refused++
        }
        assert.ok(file.sizeBytes < 64 * 2 ** 20, `run ${run}: the file has grown to ${file.sizeBytes}`)
      }
      // Else only the first checks, or none, were looked at.
      assert.ok(refused > runs / 20 && refused < runs * 0.9, `${refused} of ${runs} were refused`)
      assert.ok(wrong > runs / 50, `${wrong} of ${runs} were found out later`)
    })
}
