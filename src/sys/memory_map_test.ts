// sys/memory_map_test.ts: pages that are copied, given back, and mapped from files.

import assert from 'node:assert/strict'
import { closeSync, fstatSync } from 'node:fs'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { EBADF } from '../base/errno.ts'
import { canMap, copyLent, discard, fileOf, lend, mapFile, preferHugePages } from './memory_map.ts'

const skip = canMap() ? false : 'needs Linux and a Node with FFI'
const PAGE = 65_536
const pages = (count: number, value: number): Uint8Array<ArrayBuffer> =>
  new Uint8Array(new WebAssembly.Memory({ initial: count, maximum: 8 }).buffer).fill(value)

test('discard makes whole pages zero, and leaves others alone', { skip }, () => {
  const bytes = pages(4, 7)
  discard(bytes.subarray(PAGE, 2 * PAGE))
  assert.deepEqual([bytes[PAGE - 1], bytes[PAGE], bytes[2 * PAGE - 1], bytes[2 * PAGE]], [7, 0, 0, 7])
  discard(bytes.subarray(1, PAGE + 1))
  assert.deepEqual([bytes[1], bytes[PAGE - 1]], [7, 7], 'those are no whole pages')
})

test('what is lent is copied by another thread, and no more than was lent', { skip }, async () => {
  const bytes = pages(2, 9)
  const lent = lend(bytes.subarray(0, PAGE))!
  const to = new Uint8Array(100)
  copyLent(lent, PAGE - 100, to)
  assert.ok(to.every((byte) => byte === 9))
  for (const offset of [-1, PAGE - 99, NaN]) assert.throws(() => copyLent(lent, offset, to), RangeError)
  const worker = new Worker(`
    const { workerData, parentPort } = require('node:worker_threads')
    void import(workerData.module).then(({ copyLent }) => {
      const to = new Uint8Array(4)
      copyLent(workerData.lent, 50, to)
      parentPort.postMessage([...to])
    })`, { eval: true, workerData: { lent, module: new URL('./memory_map.ts', import.meta.url).href } })
  assert.deepEqual(await new Promise((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  }), [9, 9, 9, 9])
  await worker.terminate()
})

test('mapFile shows a file\'s pages, and keeps what is written to itself', { skip }, () => {
  const original = pages(3, 5)
  const fd = fileOf(original)
  assert.ok(fd >= 0)
  assert.equal(fstatSync(fd).size, 3 * PAGE)
  const [one, two] = [pages(4, 1), pages(4, 1)]
  assert.equal(mapFile(fd, PAGE, one.subarray(PAGE, 3 * PAGE)), 0)
  assert.deepEqual([one[PAGE - 1], one[PAGE], one[3 * PAGE - 1], one[3 * PAGE]], [1, 5, 5, 1])
  one.fill(6)
  assert.equal(mapFile(fd, 0, two.subarray(0, 3 * PAGE)), 0)
  closeSync(fd)
  assert.deepEqual([two[PAGE], original[PAGE]], [5, 5])
  preferHugePages(two)
  assert.equal(mapFile(fd, 0, two.subarray(0, PAGE)), -EBADF)
  assert.equal(two[0], 5, 'nothing has changed')
})
