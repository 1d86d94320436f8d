// sys/fallocate_test.ts: holes and zeros of a file that the kernel makes.

import assert from 'node:assert/strict'
import { closeSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { EBADF, ENXIO } from '../base/errno.ts'
import { fdatasync, punchHole, seekData, seekHole, zeroRange } from './fallocate.ts'
import { isSupported } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'
const KIB = 1024

test('punchHole gives room back and leaves the size, zeroRange leaves both', { skip }, (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-fallocate-'))
  const path = join(folder, 'file')
  const fd = openSync(path, 'w+')
  try {
    writeSync(fd, new Uint8Array(256 * KIB).fill(7))
    assert.equal(fdatasync(fd), 0)
    const before = fstatSync(fd).blocks
    if (punchHole(fd, 64 * KIB, 64 * KIB) !== 0) return t.skip('this file system has no holes')
    assert.equal(fstatSync(fd).size, 256 * KIB)
    assert.ok(fstatSync(fd).blocks < before)
    assert.equal(seekHole(fd, 0), 64 * KIB)
    assert.equal(seekData(fd, 64 * KIB), 128 * KIB)
    assert.equal(seekData(fd, 256 * KIB), -ENXIO)
    const holed = fstatSync(fd).blocks
    if (zeroRange(fd, 128 * KIB, 64 * KIB) === 0) assert.ok(fstatSync(fd).blocks >= holed)
    assert.equal(zeroRange(fd, 1024 * KIB, KIB) <= 0 && fstatSync(fd).size, 256 * KIB)
    const bytes = readFileSync(path)
    assert.deepEqual([bytes[64 * KIB - 1], bytes[64 * KIB], bytes[128 * KIB - 1], bytes[192 * KIB]], [7, 0, 0, 7])
  } finally {
    closeSync(fd)
    rmSync(folder, { recursive: true })
  }
})

test('calls on what isn\'t open answer EBADF', { skip }, () => {
  assert.deepEqual([punchHole(-1, 0, 1), zeroRange(-1, 0, 1), fdatasync(-1), seekData(-1, 0)], Array(4).fill(-EBADF))
})
