// services/gateway/frame_stream_test.ts: frames over a stream: cut anywhere, too long, and to one who doesn't read.

import assert from 'node:assert/strict'
import { Duplex, duplexPair } from 'node:stream'
import { describe, test } from 'node:test'
import { GATEWAY_FRAME_BYTES_MAX } from '../../base/limits.ts'
import { Random } from '../../../tests/fuzz/random.ts'
import { FrameStream } from './frame_stream.ts'
import { settled } from './test_support.ts'

function taking(socket: Duplex): { stream: FrameStream; frames: string[]; ends: string[]; rooms: () => number } {
  const stream = new FrameStream(socket)
  const frames: string[] = []
  const ends: string[] = []
  let rooms = 0
  stream.start({
    frame: (slab, from, to) => { frames.push(slab.bytes.toString('latin1', from, to)) }, batch: () => {},
    room: () => { rooms++ }, ended: (why) => { ends.push(why) },
  })
  return { stream, frames, ends, rooms: () => rooms }
}

function framed(text: string): Buffer {
  const bytes = Buffer.alloc(4 + text.length, text, 'latin1')
  bytes.writeUInt32BE(text.length)
  bytes.write(text, 4, 'latin1')
  return bytes
}

describe('FrameStream', () => {
  test('frames come out whole, wherever the stream was cut', async () => {
    const random = new Random(7)
    const sizes = [0, 1, 14, 1514, GATEWAY_FRAME_BYTES_MAX, 3, 60_000, 60_000, 60_000, 60_000, 60_000, 2]
    const sent = sizes.map((size, i) => String.fromCharCode(97 + i).repeat(size))
    const all = Buffer.concat(sent.map(framed))
    const [near, far] = duplexPair()
    const { frames, ends } = taking(near)
    for (let at = 0; at < all.length;) {
      const size = random.pick([1, 3, 700, 50_000, 400_000])
      far.write(all.subarray(at, at + size))
      at += size
      await settled()
    }
    assert.deepEqual(frames, sent)
    far.end()
    await settled()
    assert.deepEqual(ends, [''])
  })

  test('what is built on one side arrives on the other', async () => {
    const [near, far] = duplexPair()
    const { stream } = taking(near)
    const { frames } = taking(far)
    for (const text of ['first', 'x'.repeat(70_00), 'last']) {
      const at = stream.begin(text.length)
      stream.slab.bytes.write(text, at, 'latin1')
      stream.end()
    }
    stream.flush()
    await settled()
    assert.deepEqual(frames.map(({ length }) => length), [5, 7000, 4])
    assert.equal(frames[2], 'last')
  })

  test('a frame longer than any ends the stream, as does an end within one', async () => {
    for (const [bytes, why] of [
      [Buffer.from('ffffffff00', 'hex'), 'a frame of 4294967295 bytes'],
      [Buffer.from('00011000', 'hex'), 'a frame of 69632 bytes'],
      [Buffer.from('00000005aa', 'hex'), 'the stream ended within a frame'],
    ] as const) {
      const [near, far] = duplexPair()
      const { frames, ends } = taking(near)
      far.end(bytes)
      await settled()
      assert.deepEqual([frames, ends], [[], [why]])
      assert.equal(near.destroyed, true)
    }
  })

  test('one that isn\'t read takes a bounded amount, and says when there is room again', async () => {
    let goOn = (): void => {}
    const stuck = new Duplex({ read() {}, write(_, __, done) { goOn = done }, writableHighWaterMark: 1 })
    const { stream, rooms } = taking(stuck)
    let frames = 0
    while (frames < 10_000 && stream.begin(1514) >= 0) {
      stream.end()
      stream.flush()
      if (frames++ === 0) await settled()
    }
    assert.ok(frames < 10, `each flush has a slab of its own: ${frames}`)
    assert.equal(rooms(), 0)
    goOn()
    await settled()
    assert.equal(rooms(), 1)
    assert.ok(stream.begin(1514) >= 0)
    stream.close()
    assert.equal(stream.begin(1514), -1)
  })
})
