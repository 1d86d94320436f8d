// services/gateway/gateway_fuzz_test.ts: random frames, and good ones that were changed, against a whole gateway.
//
// Whatever comes, the gateway goes on: it still answers the next good frame, and holds no more than its limits say.
// CELLAR_FUZZ_SECONDS makes it longer.

import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import { test } from 'node:test'
import { GATEWAY_CONNECTIONS_MAX } from '../../base/limits.ts'
import { Random } from '../../../tests/fuzz/random.ts'
import { sumOf, fold, pseudoSum } from './checksum.ts'
import { Slab } from './slab.ts'
import { PEERS, rig, settled, type Trouble } from './test_support.ts'
import { addressesOf } from './addresses.ts'

const seconds = Number(process.env['CELLAR_FUZZ_SECONDS'] ?? 3)
const ADDRESSES = ['10.1.0.1', ...Object.values(PEERS).map((n) => addressesOf(1, n).address), '192.0.2.7', '0.0.0.0',
  '255.255.255.255', '10.1.255.255', '127.0.0.1', '224.0.0.1', '10.1.0.77'].map((text) =>
  Buffer.from(text.split('.').map(Number)))

/** A frame that is mostly right: so it gets far, and then something is wrong with it. */
function likely(random: Random): Buffer {
  const protocol = random.pick([6, 6, 6, 17, 17, 1, 99])
  const body = Buffer.alloc(random.pick([0, 7, 8, 20, 20, 24, 40, 60, 300, 1480]))
  for (let i = 0; i < body.length; i++) body[i] = random.pick([0, 0, 1, 2, 3, 4, 255, random.below(256)])
  if (body.length >= 20 && protocol === 6) {
    body.writeUInt16BE(random.between(1, 6), 0)
    body.writeUInt16BE(random.pick([53, 80]), 2)
    body.writeUInt8(random.pick([0x50, 0x50, 0x60, 0xf0, 0x00]), 12)
    body.writeUInt8(random.pick([2, 2, 16, 16, 24, 17, 4, 20, random.below(256)]), 13)
    if (random.chance(70)) body.writeUInt32BE(random.pick([0, 1, 1000, 0xffff_ffff]), 4)
  } else if (body.length >= 8 && protocol === 17) {
    body.writeUInt16BE(random.pick([53, 67, 123]), 2)
    body.writeUInt16BE(random.chance(90) ? body.length : random.below(65_536), 4)
    body.writeUInt16BE(0, 6)
  }
  const frame = Buffer.alloc(34 + body.length)
  frame.write('02ce1101000002ce110100010800', 'hex')
  frame.writeUInt16BE(0x4500, 14)
  frame.writeUInt16BE(20 + body.length, 16)
  frame.writeUInt8(protocol, 23)
  random.pick([ADDRESSES[1]!, ADDRESSES[1]!, ADDRESSES[1]!, random.pick(ADDRESSES)]).copy(frame, 26)
  random.pick(ADDRESSES).copy(frame, 30)
  body.copy(frame, 34)
  sums(frame, protocol)
  return frame
}

function sums(frame: Buffer, protocol: number): void {
  const slab = new Slab(frame.length)
  slab.bytes.set(frame)
  frame.writeUInt16BE(~sumOf(slab, 14, 34) & 0xffff, 24)
  const size = frame.length - 34
  const at = protocol === 6 && size >= 20 ? 50 : protocol === 1 && size >= 4 ? 36 : 0
  if (at === 0) return
  frame.writeUInt16BE(0, at)
  slab.bytes.set(frame)
  const pseudo = protocol === 6 ? pseudoSum(frame.readUInt32BE(26), frame.readUInt32BE(30), 6, size) : 0
  frame.writeUInt16BE(~fold(pseudo + sumOf(slab, 34, frame.length)) & 0xffff, at)
}

function damaged(frame: Buffer, random: Random): Buffer {
  const bytes = random.chance(20) ? frame.subarray(0, random.below(frame.length)) : Buffer.from(frame)
  for (let i = random.below(3); i > 0 && bytes.length > 0; i--) bytes[random.below(bytes.length)] = random.below(256)
  return bytes
}

test('the gateway outlives random frames and answers afterwards', { timeout: 600_000 }, async () => {
  const until = performance.now() + seconds * 1000
  for (let seed = 1; performance.now() < until || seed <= 2; seed++) {
    const random = new Random(seed)
    const trouble: Trouble = {}
    const made = rig({
      dial: () => {
        const [theirs, ours] = duplexPair()
        ours.on('error', () => {}).on('data', (bytes) => ours.write(bytes)).on('end', () => ours.end())
        return random.chance(80) ? Promise.resolve(theirs) : Promise.reject(new Error('a dial that fails'))
      },
      allows: () => random.chance(50), resolve: () => Promise.resolve(['192.0.2.7', 'nonsense']),
      link: () => Promise.resolve(undefined),
      udp: () => random.chance(50) ? Promise.resolve(14) : Promise.resolve({ send() {}, close() {} }),
    }, { trouble, seed })
    for (let i = 0; i < 2000; i++) {
      const frame = random.chance(5) ? Buffer.from(Array.from({ length: random.below(100) }, () => random.below(256)))
        : likely(random)
      made.theirs.give(random.chance(30) ? damaged(frame, random) : frame)
      if (random.chance(2)) await made.clock.pass(random.below(3000))
    }
    await settled()
    const { connections, framesIn } = made.gateway.figures()
    assert.ok(connections <= GATEWAY_CONNECTIONS_MAX && framesIn >= 2000, `seed ${seed}`)
    const stream = made.guest.connect('10.1.0.1', 53)
    await made.clock.pass(5000)
    assert.ok(typeof await stream !== 'number', `seed ${seed}: it still takes connections`)
    made.gateway.close()
    assert.equal(made.gateway.figures().connections, 0, `seed ${seed}`)
  }
})
