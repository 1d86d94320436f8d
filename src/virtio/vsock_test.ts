// virtio/vsock_test.ts: packets between the guest and the host's endpoint, and hostile ones.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { Peer, pump, random, Rig, framed } from './test_support.ts'
import { Vsock } from './vsock.ts'

const skip = isSupported() ? false : 'no FFI here'
const RX = 0
const TX = 1
const EVENT = 2
const CID = 7
const DATA = 0x1000
const RXDATA = 0x2_0000

function rigOf(peer: Peer): Rig { return new Rig(new Vsock(CID, peer.deviceFd)).start() }

function packet(payload: Uint8Array, o: { cid?: number; length?: number } = {}): Uint8Array {
  const bytes = new Uint8Array(44 + payload.length)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, BigInt(o.cid ?? CID), true)
  view.setBigUint64(8, 2n, true)
  view.setUint32(16, 99, true)
  view.setUint32(20, 1024, true)
  view.setUint32(24, o.length ?? payload.length, true)
  view.setUint16(28, 1, true)
  view.setUint16(30, 5, true)
  bytes.set(payload, 44)
  return bytes
}

function transmit(rig: Rig, bytes: Uint8Array, cut = 44): void {
  rig.put(DATA, bytes)
  const parts = [{ at: DATA, length: Math.min(cut, bytes.length) }]
  if (bytes.length > cut) parts.push({ at: DATA + cut, length: bytes.length - cut })
  rig.request(TX, parts)
}

function payload(length: number, seed = 1): Uint8Array {
  const next = random(seed)
  return Uint8Array.from({ length }, () => next(256))
}

test('the guest is told its address', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  assert.deepEqual([rig.read(0x100), rig.read(0x104)], [CID, 0])
  peer.close()
})

test('packets of the guest go out as they are, however they are cut', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  for (const [length, cut] of [[0, 44], [1, 44], [5000, 44], [65_536, 44], [100, 7], [100, 60]] as const) {
    transmit(rig, packet(payload(length)), cut)
    assert.deepEqual(peer.frames(), [Buffer.from(packet(payload(length)))])
  }
  // More buffer than packet.
  transmit(rig, packet(payload(100), { length: 10 }))
  assert.deepEqual(peer.frames(), [Buffer.from(packet(payload(100), { length: 10 }).subarray(0, 54))])
  peer.close()
})

test('packets with another address, or a length that is none, are dropped', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const bad = [packet(payload(10), { cid: 8 }), packet(payload(10), { cid: 7 + 2 ** 32 }), packet(payload(10), {
    length: 11 }), packet(payload(10), { length: 0xffff_ffff }), packet(payload(65_537)), new Uint8Array(43)]
  for (const each of bad) transmit(rig, each)
  assert.deepEqual(peer.frames(), [])
  assert.equal(rig.rings[TX]!.taken().length, bad.length)
  assert.equal(rig.status, 0xf)
  peer.close()
})

test('packets for the guest come in, long ones in as many as its buffers need', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const room = 1000
  let offered = 0
  const offer = (count: number): void => {
    for (; count > 0; count--) {
      rig.rings[RX]!.add([{ at: RXDATA + offered++ % 16 * room, length: room, isWritable: true }])
    }
    rig.kick(RX)
  }
  offer(16)
  let sent = 0
  for (const length of [0, 1, 956, 957, 5000, 0, 2000]) {
    peer.sendFrame(packet(payload(length, length)))
    let got = Buffer.alloc(0)
    let packets = 0
    for (let i = 0; i < 20; i++) {
      pump(rig)
      for (const { head, written } of rig.rings[RX]!.taken()) {
        assert.equal(head, sent++ % 16)
        const bytes = Buffer.from(rig.get(RXDATA + head * room, written))
        assert.equal(bytes.readUInt32LE(24), written - 44)
        assert.deepEqual(bytes.subarray(0, 24), Buffer.from(packet(payload(0)).subarray(0, 24)))
        got = Buffer.concat([got, bytes.subarray(44)])
        packets++
        offer(1)
      }
    }
    assert.deepEqual(got, Buffer.from(payload(length, length)))
    assert.equal(packets, Math.max(1, Math.ceil(length / 956)))
  }
  peer.close()
})

test('a buffer without room for a header is a fault, and a reset leaves the stream in step', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.request(RX, [{ at: RXDATA, length: 44, isWritable: true }])
  const whole = framed(packet(payload(500)))
  peer.send(whole.subarray(0, 300))
  pump(rig)
  assert.equal(rig.status, 0x4f)
  rig.start()
  rig.request(RX, [{ at: RXDATA, length: 2000, isWritable: true }])
  peer.send(whole.subarray(300))
  peer.sendFrame(packet(payload(3, 9)))
  pump(rig)
  assert.deepEqual(rig.rings[RX]!.taken(), [{ head: 0, written: 47 }])
  assert.deepEqual(rig.get(RXDATA + 44, 3), payload(3, 9))
  peer.close()
})

test('after a restore the guest hears that its connections are over, and has its new address', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.request(RX, [{ at: RXDATA, length: 2000, isWritable: true }])
  peer.send(framed(packet(payload(500))).subarray(0, 300))
  pump(rig)
  assert.equal(rig.port.device.held(RX), 1)
  rig.bytes.fill(0xee, DATA, DATA + 4)
  rig.request(EVENT, [{ at: DATA, length: 4, isWritable: true }])
  assert.deepEqual(rig.rings[EVENT]!.taken(), [])
  const saved = rig.port.save()
  const second = new Peer()
  const other = new Rig(new Vsock(9, second.deviceFd), rig.memory)
  other.port.restore('virtio3', saved)
  other.settle()
  assert.equal(other.read(0x100), 9)
  assert.equal(other.view.getUint16(rig.rings[EVENT]!.used + 2, true), 1)
  assert.equal(other.view.getUint32(DATA, true), 0)
  second.sendFrame(packet(payload(5)))
  pump(other)
  assert.equal(other.view.getUint16(rig.rings[RX]!.used + 2, true), 1)
  assert.deepEqual(other.get(RXDATA + 44, 5), payload(5))
  peer.close()
  second.close()
})
