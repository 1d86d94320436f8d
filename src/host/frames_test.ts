// host/frames_test.ts: frames survive any cutting of the stream, and what is no frame is refused.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FRAME_BYTES_MAX } from '../base/limits.ts'
import { BadFrame, bytesHeader, FrameDecoder, messageFrame, type Frame } from './frames.ts'

const plain = { noNullPrototype: true }
const frame = fc.oneof(
  fc.record({ kind: fc.constant('message' as const),
    message: fc.oneof(fc.string(), fc.record({ a: fc.string({ unit: 'binary' }), b: fc.integer() }, plain)) }, plain),
  fc.record({ kind: fc.constant('bytes' as const), stream: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    channel: fc.integer({ min: 0, max: 2 }), bytes: fc.uint8Array({ maxLength: 300 }).map((x) => Buffer.from(x)) },
  plain),
)

function encoded(one: Frame): Buffer {
  return one.kind === 'message' ? messageFrame(one.message)
    : Buffer.concat([bytesHeader(one.stream, one.channel, one.bytes.length), one.bytes])
}

test('FrameDecoder gives what was encoded, however the bytes are cut', () => {
  fc.assert(fc.property(fc.array(frame), fc.array(fc.integer({ min: 1, max: 50 })), (frames, cuts) => {
    const bytes = Buffer.concat(frames.map((one) => encoded(one)))
    const decoder = new FrameDecoder()
    const found: Frame[] = []
    for (let at = 0, i = 0; at < bytes.length; i++) {
      const size = cuts.length === 0 ? bytes.length : cuts[i % cuts.length]!
      found.push(...decoder.push(bytes.subarray(at, at + size)))
      at += size
    }
    assert.deepEqual(found, frames)
  }))
})

test('FrameDecoder doesn\'t copy a frame that came whole', () => {
  const chunk = Buffer.concat([bytesHeader(7, 1, 3), Buffer.from('abc')])
  const [found] = new FrameDecoder().push(chunk)
  assert.ok(found?.kind === 'bytes' && found.bytes.buffer === chunk.buffer)
})

test('FrameDecoder refuses a length beyond the limit before anything of that size is allocated', () => {
  for (const length of [0, FRAME_BYTES_MAX + 1, 2 ** 32 - 1]) {
    const header = Buffer.alloc(5)
    header.writeUInt32LE(length)
    assert.throws(() => new FrameDecoder().push(header), BadFrame)
  }
})

test('FrameDecoder refuses unknown kinds, streams without a number and what is no JSON', () => {
  const bad = (...body: number[]): Buffer => Buffer.from([body.length, 0, 0, 0, ...body])
  for (const bytes of [bad(2, 1, 1), bad(1, 0, 0, 0, 0), bad(0, 0x7b), bad(0)]) {
    assert.throws(() => new FrameDecoder().push(bytes), BadFrame)
  }
})

test('messageFrame refuses a message that is too large', () => {
  assert.throws(() => messageFrame('x'.repeat(FRAME_BYTES_MAX)), RangeError)
})
