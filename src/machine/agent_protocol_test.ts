// machine/agent_protocol_test.ts: frames survive any cutting of the stream, and what is no frame is refused.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  AgentDecoder, ASKS, BadAgentFrame, BODY_BYTES_MAX, encodeFrame, ENDS, FRAME_BYTES_MAX, FRAME_MARK, FROM_GUEST,
  HEADER_BYTES, INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES, SCAN_BYTES_MAX, STOPS, TO_GUEST, type GuestFrame,
} from './agent_protocol.ts'

const TAG = 0x1234_5678
const NONCE = '0123456789abcdef0123456789abcdef'

/** A frame as an agent makes it. */
function frame(kind: number, id: number, body: Uint8Array, tag = TAG): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + body.length + 4)
  bytes[0] = FRAME_MARK
  bytes[1] = kind
  bytes.writeUInt32LE(id, 4)
  bytes.writeUInt32LE(body.length, 8)
  bytes.set(body, HEADER_BYTES)
  bytes.writeUInt32LE(tag, HEADER_BYTES + body.length)
  return bytes
}

function texts(...values: string[]): Buffer {
  return Buffer.concat(values.flatMap((value) => [Buffer.from([value.length, 0]), Buffer.from(value)]))
}

const HELLO = frame(65, 0, Buffer.concat([Buffer.from([1, 0, 0, 0]), Buffer.from(NONCE, 'hex'),
  texts('src', 'Linux', '6.1', 'x86_64', 'box')]))

/** A decoder that has heard the hello. */
function inStep(): AgentDecoder {
  const decoder = new AgentDecoder(NONCE, TAG)
  assert.equal([...decoder.push(HELLO)][0]!.name, 'hello')
  return decoder
}

test('the tables have the numbers of guests/agent/protocol.h', () => {
  const header = readFileSync(new URL('../../guests/agent/protocol.h', import.meta.url), 'utf8')
  const numbers = new Map([...header.matchAll(/^#define (\w+) (\w+)u?$|(\w+) = (\d+)/gm)]
    .map(([, defined, value, listed, number]) => [defined ?? listed!, Number.parseInt(value ?? number!)]))
  const wanted: Record<string, number> = { FRAME_MARK, HEADER_BYTES, BODY_BYTES_MAX, INPUT_WINDOW_BYTES,
    OUTPUT_WINDOW_BYTES, NOT_STARTED: ENDS.indexOf('failed'), STOP_REBOOT: STOPS.indexOf('reboot') }
  for (const [name, [kind]] of Object.entries(TO_GUEST)) wanted[`TO_${name.toUpperCase()}`] = kind
  for (const [name, [kind]] of Object.entries(FROM_GUEST)) wanted[`FROM_${name.toUpperCase()}`] = kind
  for (const [i, name] of ASKS.entries()) wanted[`ASK_${name.toUpperCase()}`] = i
  for (const [name, number] of Object.entries(wanted)) assert.equal(numbers.get(name), number, name)
  assert.deepEqual([...numbers.keys()].filter((name) => /^(TO|FROM|ASK)_/.test(name) && !(name in wanted)), [])
})

test('the decoder gives what was sent, however it is cut, and nothing from before the hello', () => {
  const pieces = fc.array(fc.uint8Array({ maxLength: 300 }))
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), pieces, fc.array(fc.integer({ min: 1, max: 60 })),
    (before, outputs, cuts) => {
      const bytes = Buffer.concat([before, HELLO, ...outputs.map((one, i) => frame(66, i, Buffer.from([1, ...one])))])
      const decoder = new AgentDecoder(NONCE, TAG)
      const found: GuestFrame[] = []
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const size = cuts.length === 0 ? bytes.length : cuts[i % cuts.length]!
        found.push(...decoder.push(bytes.subarray(at, at + size)))
        at += size
      }
      assert.equal(found.shift()!.name, 'hello')
      assert.deepEqual(found.map((one) => one.name === 'output' && [one.id, one.channel, ...one.bytes]),
        outputs.map((one, i) => [i, 1, ...one]))
    }))
})

test('what an agent was saying to another host is passed over, frames and parts of them', () => {
  const old = frame(66, 1, randomBytes(500), 77)
  const decoder = new AgentDecoder(NONCE, TAG)
  const found = [...decoder.push(Buffer.concat([old.subarray(200), old, Buffer.from(NONCE, 'hex'), HELLO]))]
  assert.deepEqual(found.map((one) => one.name), ['hello'])
})

test('an agent that never answers the hello is left, at a bounded number of bytes', () => {
  const decoder = new AgentDecoder(NONCE, TAG)
  const push = (): void => {
    for (let sent = 0; sent <= SCAN_BYTES_MAX; sent += 65_536) {
      for (const _ of decoder.push(randomBytes(65_536))) continue
    }
  }
  assert.throws(push, BadAgentFrame)
})

test('what is no frame is refused: mark, length, kind, tag, a body too short or too long', () => {
  const good = frame(70, 1, Buffer.alloc(0))
  const changed = (at: number, value: number): Buffer => {
    const bytes = Buffer.from(good)
    bytes[at] = value
    return bytes
  }
  assert.deepEqual([...inStep().push(good)], [{ name: 'pong', id: 1 }])
  const long = Buffer.from(good)
  long.writeUInt32LE(BODY_BYTES_MAX + 1, 8)
  const bad = [
    changed(0, 0), changed(1, 1), changed(1, 99), changed(good.length - 1, 0), long,
    frame(68, 1, Buffer.alloc(4)), frame(68, 1, Buffer.alloc(6)), frame(66, 1, Buffer.alloc(0)),
    frame(72, 1, Buffer.from([0, 0, 0, 0, 0, 9, 0, 1])), frame(70, 1, Buffer.alloc(1)),
  ]
  for (const bytes of bad) {
    assert.throws(() => [...inStep().push(bytes)], BadAgentFrame)
    assert.throws(() => {
      const decoder = inStep()
      for (const byte of bytes) for (const _ of decoder.push(Buffer.from([byte]))) continue
    }, BadAgentFrame)
  }
})

test('no bytes make the decoder throw anything but BadAgentFrame', () => {
  const body = fc.uint8Array({ maxLength: 40 })
  const one = fc.oneof(fc.tuple(fc.integer({ min: 60, max: 75 }), body).map(([kind, bytes]) => frame(kind, 1, bytes)),
    body.map((bytes) => Buffer.from(bytes)))
  fc.assert(fc.property(fc.array(one, { maxLength: 20 }), (chunks) => {
    const decoder = inStep()
    try {
      for (const chunk of chunks) for (const _ of decoder.push(chunk)) continue
    } catch (error) {
      assert.ok(error instanceof BadAgentFrame, String(error))
    }
  }), { numRuns: 500 })
})

test('encodeFrame refuses what doesn\'t fit, and cuts numbers to their fields', () => {
  const put = (path: string): Buffer => encodeFrame('put', 1, { path }, TAG)
  assert.equal(put('x'.repeat(65_534)).length, FRAME_BYTES_MAX)
  assert.throws(() => put('x'.repeat(65_535)), RangeError)
  assert.throws(() => put('a\0b'), RangeError)
  assert.throws(() => encodeFrame('hello', 0, { version: 1, tag: 1, nonce: 'xy', generation: NONCE }, 1), RangeError)
  const resize = encodeFrame('resize', 1, { cols: 1e9, rows: Number.NaN }, TAG)
  assert.deepEqual([resize.readUInt16LE(12), resize.readUInt16LE(14)], [0xffff, 0])
})
