// cell/memory_image_test.ts: memories copied out and in.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { canMap } from '../sys/memory_map.ts'
import { drop, lend, putImage, share, takeImage } from './memory_image.ts'

const memoryOf = (pages: number, written: Record<number, number> = {}, maximum = 64): WebAssembly.Memory => {
  const memory = new WebAssembly.Memory({ initial: pages, maximum })
  for (const [at, value] of Object.entries(written)) new Uint8Array(memory.buffer)[Number(at)] = value
  return memory
}
const bytesOf = (memory: WebAssembly.Memory): Buffer => Buffer.from(memory.buffer)

test('takeImage keeps the pages that hold anything, be it their last byte', () => {
  const last = 3 * WASM_PAGE_BYTES - 1
  const { pages, present, bytes } = takeImage(memoryOf(8, { 0: 1, [last]: 2, [5 * WASM_PAGE_BYTES + 7]: 3 }))
  assert.deepEqual([pages, [...present], bytes.byteLength], [8, [0, 2, 5], 3 * WASM_PAGE_BYTES])
  assert.equal(new Uint8Array(bytes)[2 * WASM_PAGE_BYTES - 1], 2)
})

test('putImage makes of any memory what the image was taken of', () => {
  const original = memoryOf(20, { 10: 9, [WASM_PAGE_BYTES * 3]: 1, [WASM_PAGE_BYTES * 4 + 5]: 2,
    [WASM_PAGE_BYTES * 20 - 1]: 7 })
  const image = takeImage(original)
  const dirty = Object.fromEntries(Array.from({ length: 12 }, (_, i) => [i * WASM_PAGE_BYTES + i, 255]))
  for (const target of [memoryOf(0), memoryOf(20), memoryOf(12, dirty), memoryOf(20, dirty)]) {
    putImage(image, target)
    assert.equal(target.buffer.byteLength, original.buffer.byteLength)
    assert.ok(bytesOf(target).equals(bytesOf(original)))
  }
})

test('an image outlives its memory, and what is made from it is its own', () => {
  const original = memoryOf(2, { 5: 5 })
  const image = takeImage(original)
  new Uint8Array(original.buffer)[5] = 6
  const [one, two] = [memoryOf(2), memoryOf(2)]
  putImage(image, one)
  new Uint8Array(one.buffer)[5] = 7
  putImage(image, two)
  assert.deepEqual([bytesOf(original)[5], bytesOf(one)[5], bytesOf(two)[5]], [6, 7, 5])
})

test('an empty memory has an image, and a memory that may not grow refuses', () => {
  const image = takeImage(memoryOf(0))
  assert.deepEqual([image.pages, image.present.length], [0, 0])
  putImage(image, memoryOf(0))
  assert.throws(() => putImage(takeImage(memoryOf(3)), memoryOf(1, {}, 2)), RangeError)
})

/** Memories with long and short runs of pages, and the page that is written last. */
const LARGE = ((): WebAssembly.Memory => {
  const memory = memoryOf(300, {}, 400)
  const bytes = new Uint8Array(memory.buffer)
  for (const [first, count] of [[0, 3], [10, 100], [130, 7], [200, 64], [299, 1]] as const) {
    for (let i = first * WASM_PAGE_BYTES; i < (first + count) * WASM_PAGE_BYTES; i += 97) bytes[i] = i % 251 + 1
  }
  return memory
})()
const skip = canMap() ? false : 'this system has no such calls'

test('a memory of many pages is copied, lent and mapped as it is', { skip }, () => {
  const image = takeImage(LARGE)
  lend(LARGE)
  const lent = takeImage(LARGE)
  assert.equal(lent.bytes.byteLength, 0, 'nothing is copied')
  assert.ok(takeImage(LARGE).bytes.byteLength > 0, 'it is lent once')
  const shared = share(image)
  assert.ok('file' in shared)
  for (const one of [image, lent, shared]) {
    const target = memoryOf(20, { 5: 5, [9 * WASM_PAGE_BYTES]: 1 }, 400)
    putImage(one, target)
    assert.ok(bytesOf(target).equals(bytesOf(LARGE)))
    target.grow(1)
    new Uint8Array(target.buffer).fill(7)
    assert.deepEqual([...takeImage(target).present], Array.from({ length: 301 }, (_, i) => i))
  }
  drop(shared)
})

test('cells that share an image see their own writes, and keep it when it is dropped', { skip }, () => {
  const shared = share(takeImage(LARGE))
  const [one, two] = [memoryOf(0, {}, 400), memoryOf(300, {}, 400)]
  putImage(shared, one)
  new Uint8Array(one.buffer).fill(9, 20 * WASM_PAGE_BYTES, 50 * WASM_PAGE_BYTES)
  putImage(shared, two)
  drop(shared)
  assert.ok(bytesOf(two).equals(bytesOf(LARGE)))
  assert.equal(bytesOf(one)[30 * WASM_PAGE_BYTES], 9)
  assert.ok(bytesOf(one).subarray(50 * WASM_PAGE_BYTES).equals(bytesOf(LARGE).subarray(50 * WASM_PAGE_BYTES)))
})

test('what is too scattered to be mapped is copied, be it shared or not', () => {
  const scattered = memoryOf(300, Object.fromEntries(Array.from({ length: 150 }, (_, i) =>
    [i * 2 * WASM_PAGE_BYTES + i, 1])), 300)
  const image = takeImage(scattered)
  assert.equal(share(image), image)
  const small = takeImage(memoryOf(4, { 1: 1 }))
  assert.equal(share(small), small)
  const target = memoryOf(0, {}, 300)
  putImage(image, target)
  assert.ok(bytesOf(target).equals(bytesOf(scattered)))
})
