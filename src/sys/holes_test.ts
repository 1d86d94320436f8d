// sys/holes_test.ts: where a sparse file has data: all that was written is in the ranges, holes of some size are not.

import assert from 'node:assert/strict'
import { closeSync, ftruncateSync, writeSync } from 'node:fs'
import { test } from 'node:test'
import { makeRam } from './guest_ram.ts'
import { dataRanges } from './holes.ts'

const MIB = 2 ** 20

test('data is within the ranges, which ascend and do not touch', () => {
  const fd = makeRam(64 * MIB)
  const written = [0, 3 * MIB + 5, 3 * MIB + 8192, 40 * MIB, 64 * MIB - 1]
  for (const at of written) writeSync(fd, 'x', at)
  const ranges = [...dataRanges(fd, 64 * MIB)]
  for (const at of written) assert.ok(ranges.some(({ start, end }) => start <= at && at < end), String(at))
  for (const [i, { start, end }] of ranges.entries()) assert.ok(start < end && start >= (ranges[i - 1]?.end ?? 0))
  assert.ok(ranges.reduce((sum, { start, end }) => sum + end - start, 0) < 12 * MIB, 'large pages at most')
  closeSync(fd)
})

test('nothing is asked for beyond the size that is given', () => {
  const fd = makeRam(8 * MIB)
  writeSync(fd, Buffer.alloc(8 * MIB, 1))
  assert.deepEqual([...dataRanges(fd, MIB + 7)], [{ start: 0, end: MIB + 7 }])
  assert.deepEqual([...dataRanges(fd, 0)], [])
  closeSync(fd)
})

test('an empty file, and one that is one hole, have none', () => {
  const fd = makeRam(4096)
  ftruncateSync(fd, 0)
  assert.deepEqual([...dataRanges(fd, 0)], [])
  ftruncateSync(fd, 16 * MIB)
  assert.deepEqual([...dataRanges(fd, 16 * MIB)], [])
  closeSync(fd)
})

test('where it cannot be told, all may be data', () => {
  const closed = -1
  assert.deepEqual([...dataRanges(closed, 4096)], [{ start: 0, end: 4096 }])
})
