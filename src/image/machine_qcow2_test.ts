// image/machine_qcow2_test.ts: raw disks become qcow2 files that QEMU's own tool finds right and equal.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { diskOf } from './machine_parts.ts'
import { writeQcow2 } from './machine_qcow2.ts'
import { folder } from './test_support.ts'

const MIB = 1024 * 1024
const HAS_QEMU_IMG = spawnSync('qemu-img', ['--version']).status === 0

type Piece = readonly [at: number, bytes: Buffer]
const DISKS: readonly (readonly [what: string, sizeBytes: number, pieces: readonly Piece[]])[] = [
  ['nothing but zeroes', 3 * MIB, []],
  ['one sector', 512, [[0, Buffer.alloc(512, 7)]]],
  ['text, noise and a cut last cluster', 5 * MIB + 1536, [[0, Buffer.alloc(MIB, 'the same again ')],
    [MIB + 4096, randomBytes(MIB)], [5 * MIB, Buffer.alloc(1536, 'end')]]],
  ['far apart, beyond one L2 table', 2048 * MIB, [[0, Buffer.from('first')], [1024 * MIB, randomBytes(70_000)],
    [2048 * MIB - 512, Buffer.alloc(512, 1)]]],
  ['more clusters than compressed ones fit into few', 64 * MIB,
    Array.from({ length: 1000 }, (_, i) => [i * 65_536, Buffer.from(`piece ${i} `.repeat(i))] as const)],
]

for (const [what, sizeBytes, pieces] of DISKS) {
  test(`writeQcow2() keeps a disk of ${what}`, { skip: !HAS_QEMU_IMG && 'qemu-img is not here' }, async () => {
    using at = folder()
    const [raw, qcow2] = [join(at.path, 'raw'), join(at.path, 'qcow2')]
    const fd = openSync(raw, 'w')
    ftruncateSync(fd, sizeBytes)
    for (const [position, bytes] of pieces) writeSync(fd, bytes, 0, bytes.length, position)
    closeSync(fd)
    await writeQcow2(raw, qcow2, sizeBytes)
    const check = spawnSync('qemu-img', ['check', qcow2], { encoding: 'utf8' })
    assert.equal(check.status, 0, check.stdout + check.stderr)
    const compare = spawnSync('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', raw, qcow2], { encoding: 'utf8' })
    assert.equal(compare.status, 0, compare.stdout + compare.stderr)
    assert.deepEqual(diskOf(readFileSync(qcow2).subarray(0, 4096), statSync(qcow2).size),
      { format: 'qcow2', sizeBytes })
    const content = pieces.reduce((sum, [, bytes]) => sum + bytes.length, 0)
    assert.ok(statSync(qcow2).size < content + 8 * 65_536 + 1000 * 600, `${statSync(qcow2).size} bytes`)
  })
}
