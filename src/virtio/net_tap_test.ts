// virtio/net_tap_test.ts: the network card on a TAP device; a pair of sockets that keep packets apart stands for it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { NET_FRAME_BYTES_MAX } from '../base/limits.ts'
import { answer, bind, isSupported, Scratch } from '../sys/libc.ts'
import { closeFd } from '../sys/sockets.ts'
import { Vectors } from '../sys/vectors.ts'
import { Net } from './net.ts'
import { pump, random, Rig } from './test_support.ts'

const skip = isSupported() ? false : 'no FFI here'
const RX = 0
const TX = 1
const RXDATA = 0x1_0000
const TXDATA = 0x4_0000
const F_MRG_RXBUF = 15
const [F_GUEST_TSO4, F_GUEST_TSO6] = [7, 8]

function packetPair(): [number, number] {
  const native = bind({ socketpair: { arguments: ['int32', 'int32', 'int32', 'pointer'], return: 'int32' } })
  const scratch = new Scratch(8)
  // AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK.
  assert.equal(answer(native.socketpair(1, 5 | 0o4000, 0, scratch.address)), 0)
  return [scratch.view.getInt32(0, true), scratch.view.getInt32(4, true)]
}

function rigOf(fd: number, without: readonly number[] = []): Rig {
  return new Rig(new Net({ name: 'net0', mac: '02:00:00:00:00:07', mtu: 1500, fd, kind: 'tap', takesSegments: false,
    nowMs: () => 0 }))
    .start({ size: 64, without })
}

function packet(length: number, seed: number): Uint8Array {
  const next = random(seed)
  return Uint8Array.from({ length: 12 + length }, () => next(256))
}

function send(fd: number, bytes: Uint8Array): void {
  const vectors = new Vectors(bytes, 1, 0)
  vectors.add(0, bytes.length)
  assert.equal(vectors.write(fd), bytes.length)
}

test('frames of a TAP device come in with their headers, into as many buffers as they take', { skip }, () => {
  for (const without of [[], [F_GUEST_TSO4, F_GUEST_TSO6], [F_MRG_RXBUF]]) {
    const [here, there] = packetPair()
    const rig = rigOf(there, without)
    const isMerged = !without.includes(F_MRG_RXBUF)
    const size = isMerged ? 700 : 1600
    for (let i = 0; i < 50; i++) rig.rings[RX]!.add([{ at: RXDATA + i * size, length: size, isWritable: true }])
    rig.kick(RX)
    let buffer = 0
    for (let i = 0; i < 10; i++) {
      const sent = packet(14 + i * 150, i)
      send(here, sent)
      pump(rig)
      const used = rig.rings[RX]!.taken()
      assert.equal(used.length, isMerged ? Math.ceil(sent.length / size) : 1)
      const got = Buffer.concat(used.map(({ head, written }) => rig.get(RXDATA + head * size, written)))
      assert.equal(used[0]!.head, buffer, 'buffers are used in their order, none is lost')
      buffer += used.length
      assert.equal(got.readUInt16LE(10), used.length)
      new DataView(sent.buffer).setUint16(10, used.length, true)
      assert.deepEqual(got, Buffer.from(sent))
    }
    closeFd(here)
    closeFd(there)
  }
})

test('frames go to a TAP device with their headers, one at a time', { skip }, () => {
  const [here, there] = packetPair()
  const rig = rigOf(there)
  const memory = new Uint8Array(NET_FRAME_BYTES_MAX + 12)
  const vectors = new Vectors(memory, 1, 0)
  for (let i = 0; i < 20; i++) {
    const sent = packet(14 + i * 70, i)
    sent.fill(0, 0, 12)
    rig.put(TXDATA, sent)
    // Cut amid the header, and after half of the rest.
    const half = 5 + Math.floor((sent.length - 5) / 2)
    rig.request(TX, [[0, 5], [5, half], [half, sent.length]].map(([from, to]) =>
      ({ at: TXDATA + from!, length: to! - from! })))
    vectors.clear()
    vectors.add(0, memory.length)
    const length = vectors.read(here)
    assert.deepEqual(Buffer.from(memory.subarray(0, length)), Buffer.from(sent))
    assert.equal(rig.rings[TX]!.taken().length, 1)
  }
  closeFd(here)
  closeFd(there)
})

test('a TAP device without a frame leaves the buffers where they are', { skip }, () => {
  const [here, there] = packetPair()
  const rig = rigOf(there)
  for (let i = 0; i < 4; i++) rig.rings[RX]!.add([{ at: RXDATA + i * 700, length: 700, isWritable: true }])
  rig.kick(RX)
  assert.equal(rig.port.device.held(RX), 0)
  assert.notEqual(rig.port.wanted(), 0)
  closeFd(here)
  closeFd(there)
})
