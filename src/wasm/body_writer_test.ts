// wasm/body_writer_test.ts: what is copied by eights is copied exactly, and what is known late comes first.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BodyWriter } from './body_writer.ts'
import { leb } from './encode.ts'

const SOURCE = Uint8Array.from({ length: 1200 }, (_, i) => i * 7 + (i >> 8))

test('ranges of all lengths are copied, up to the last byte of their source and of a view in a larger buffer', () => {
  const view = new Uint8Array(SOURCE.buffer, 3, 1000)
  for (const source of [SOURCE, view]) {
    const writer = new BodyWriter(64)
    const expected: number[] = []
    for (let length = 0; length < 600; length++) {
      for (const from of [length % 13, source.length - length - length % 9]) {
        writer.copy(source, from, Math.min(from + length, source.length))
        expected.push(...source.subarray(from, from + length))
      }
      writer.byte(length)
      expected.push(length & 0xff)
    }
    assert.deepEqual(writer.written(), Uint8Array.from(expected))
  }
})

test('a length is written into whatever room was left for it', () => {
  for (const length of [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]) {
    for (const room of [1, 2, 3, 4, 5]) {
      const writer = new BodyWriter(64)
      writer.byte(9)
      const start = writer.beginSized(room)
      for (let left = length; left > 0; left -= 1000) writer.copy(SOURCE, 0, Math.min(left, 1000))
      writer.endSized(start, room)
      writer.byte(8)
      const size = leb(length)
      const written = writer.written()
      assert.deepEqual([...written.subarray(0, 1 + size.length)], [9, ...size])
      assert.equal(written.length, 2 + size.length + length)
      assert.equal(written.at(-1), 8)
      if (length > 0) assert.equal(written[size.length + length], SOURCE[(length - 1) % 1000])
    }
  }
})

test('what is put before the rest fits into its room, or all is moved', () => {
  for (const length of [0, 9, 10, 11, 200]) {
    const writer = new BodyWriter(64)
    writer.length = 10
    writer.copy(SOURCE, 0, 300)
    const head = SOURCE.subarray(500, 500 + length)
    assert.deepEqual(writer.prepend(10, head), Uint8Array.of(...head, ...SOURCE.subarray(0, 300)))
  }
})
