// virtio/net_test.ts: the network card on a stream, and on what behaves as a TAP device: a socket that keeps packets.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { NET_FRAME_BYTES_MAX } from '../base/limits.ts'
import { Net } from './net.ts'
import { fold, sumOf } from './net_checksum.ts'
import { framed, Peer, pump, random, Rig, type Part } from './test_support.ts'

const skip = isSupported() ? false : 'no FFI here'
const RX = 0
const TX = 1
const F_MRG_RXBUF = 15
const F_GUEST_TSO4 = 7
const F_HOST_TSO4 = 11
const MAC = '02:00:00:00:00:07'
const RXDATA = 0x1_0000
const TXDATA = 0x4_0000

function rigOf(peer: Peer, o: { kind?: 'stream' | 'tap'; without?: readonly number[]; size?: number; mtu?: number;
  bytesPerSecond?: number; takesSegments?: boolean; nowMs?: () => number } = {}): Rig {
  const net = new Net({ name: 'net0', mac: MAC, mtu: o.mtu ?? 1500, fd: peer.deviceFd, kind: o.kind ?? 'stream',
    takesSegments: o.takesSegments ?? true, limits: { bytesPerSecond: o.bytesPerSecond },
    nowMs: o.nowMs ?? ((): number => 0) })
  return new Rig(net).start({ size: o.size ?? 64, without: o.without ?? [] })
}

function bytesOf(length: number, seed = 1): Uint8Array {
  const next = random(seed)
  return Uint8Array.from({ length }, () => next(256))
}

// Gives the card `count` buffers of `length` bytes.
function offer(rig: Rig, count: number, length: number): void {
  for (let i = 0; i < count; i++) rig.rings[RX]!.add([{ at: RXDATA + i * length, length, isWritable: true }])
  rig.kick(RX)
}

// What the card has given: each frame with its header.
function received(rig: Rig, length: number): { header: DataView; frame: Buffer }[] {
  const used = rig.rings[RX]!.taken()
  const found = []
  for (let i = 0; i < used.length;) {
    const first = used[i]!
    const buffers = rig.view.getUint16(RXDATA + first.head * length + 10, true)
    const parts = used.slice(i, i + buffers).map(({ head, written }) => rig.get(RXDATA + head * length, written))
    const whole = Buffer.concat(parts)
    found.push({ header: new DataView(whole.buffer, whole.byteOffset, 12), frame: whole.subarray(12) })
    i += buffers
  }
  return found
}

function transmit(rig: Rig, frame: Uint8Array, o: { header?: Uint8Array; cuts?: number[] } = {}): void {
  rig.bytes.fill(0, TXDATA, TXDATA + 12)
  if (o.header !== undefined) rig.put(TXDATA, o.header)
  rig.put(TXDATA + 12, frame)
  const parts: Part[] = []
  const ends = [...o.cuts ?? [12], 12 + frame.length]
  ends.reduce((from, end) => {
    if (end > from) parts.push({ at: TXDATA + from, length: end - from })
    return end
  }, 0)
  rig.request(TX, parts)
}

test('the card says its address, that its link is up, and the MTU', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  assert.equal(Buffer.from(Array.from({ length: 6 }, (_, i) => rig.windows.read(0, 0x100 + i, 1))).toString('hex'),
    '020000000007')
  assert.equal(rig.windows.read(0, 0x106, 2), 1)
  assert.equal(rig.windows.read(0, 0x10a, 2), 1500)
  peer.close()
})

test('frames go out whole and in order, however they are cut', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const next = random(3)
  for (let i = 0; i < 200; i++) {
    const frame = bytesOf(14 + next(1500), i)
    const cuts = Array.from({ length: next(6) }, () => 1 + next(frame.length + 11)).sort((a, b) => a - b)
    transmit(rig, frame, { cuts })
    assert.deepEqual(peer.frames(), [Buffer.from(frame)])
    assert.equal(rig.rings[TX]!.taken().length, 1)
  }
  peer.close()
})

test('a checksum that the guest left to us is filled in, and its buffer is not written', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const next = random(4)
  for (let i = 0; i < 200; i++) {
    const start = 14 + 20 + next(40)
    const frame = bytesOf(start + 20 + next(i % 10 === 0 ? 60_000 : 1400), i)
    const header = new Uint8Array(12)
    const view = new DataView(header.buffer)
    view.setUint8(0, 1)
    view.setUint8(1, frame.length > 1518 ? 1 : 0)
    view.setUint16(6, start, true)
    view.setUint16(8, 16, true)
    const cuts = Array.from({ length: next(6) }, () => 1 + next(frame.length + 11)).sort((a, b) => a - b)
    transmit(rig, frame, { header, cuts })
    const [sent] = peer.frames()
    assert.deepEqual(Buffer.from(rig.get(TXDATA + 12, frame.length)), Buffer.from(frame))
    // The sum over all of it, pseudo header included (it was in the field), is the checksum's complement.
    let sum = 0
    for (let at = start; at < frame.length; at++) sum += frame[at]! << (at - start & 1 ? 0 : 8)
    while (sum > 0xffff) sum = Math.floor(sum / 65536) + sum % 65536
    const expected = (~sum & 0xffff) || 0xffff
    assert.equal(sent!.readUInt16BE(start + 16), expected)
    sent!.writeUInt16BE(frame[start + 16]! << 8 | frame[start + 17]!, start + 16)
    assert.deepEqual(sent, Buffer.from(frame))
  }
  peer.close()
})

test('a checksum beyond the frame or its headers, and frames too short or too long, are dropped', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const header = (start: number, offset: number): Uint8Array => {
    const bytes = new Uint8Array(12)
    const view = new DataView(bytes.buffer)
    view.setUint8(0, 1)
    view.setUint16(6, start, true)
    view.setUint16(8, offset, true)
    return bytes
  }
  for (const [start, offset] of [[98, 1], [0xffff, 0xffff], [0, 0xffff], [200, 0]] as const) {
    transmit(rig, bytesOf(100), { header: header(start, offset) })
  }
  transmit(rig, bytesOf(400), { header: header(300, 16) })
  transmit(rig, bytesOf(13))
  transmit(rig, bytesOf(1519))
  transmit(rig, bytesOf(0))
  const gso = new Uint8Array(12)
  gso[1] = 1
  transmit(rig, bytesOf(NET_FRAME_BYTES_MAX + 1), { header: gso })
  assert.deepEqual(peer.frames(), [])
  assert.equal(rig.rings[TX]!.taken().length, 9, 'all are given back')
  for (const options of [{ without: [F_HOST_TSO4] }, { takesSegments: false }]) {
    const plain = rigOf(peer, options)
    assert.equal(plain.port.has(F_HOST_TSO4), false)
    transmit(plain, bytesOf(9000), { header: gso })
    assert.deepEqual(peer.frames(), [])
  }
  peer.close()
})

test('a guest that sends more than the other side reads waits, and nothing is lost', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const header = new Uint8Array(12)
  header[1] = 1
  const frame = bytesOf(60_000)
  let given = 0
  for (let i = 0; i < 10; i++) transmit(rig, frame, { header })
  given += rig.rings[TX]!.taken().length
  assert.ok(given < 10, `${given} of 10 are given back`)
  let bytes = Buffer.alloc(0)
  for (let round = 0; round < 100; round++) {
    bytes = Buffer.concat([bytes, peer.received()])
    pump(rig)
  }
  given += rig.rings[TX]!.taken().length
  assert.equal(given, 10)
  assert.equal(bytes.length, 10 * 60_004)
  for (let i = 0; i < 10; i++) assert.deepEqual(bytes.subarray(i * 60_004 + 4, (i + 1) * 60_004), Buffer.from(frame))
  peer.close()
})

test('frames come in whole, in one buffer or in as many as it takes', { skip }, () => {
  for (const size of [1600, 100, 13]) {
    const peer = new Peer()
    const rig = rigOf(peer, { size: 256 })
    const next = random(size)
    for (let i = 0; i < 50; i++) {
      offer(rig, size === 13 ? 140 : 20, size)
      const frame = bytesOf(14 + next(1400), i)
      peer.sendFrame(frame)
      pump(rig)
      const [got] = received(rig, size)
      assert.deepEqual(got?.frame, Buffer.from(frame))
      // Buffers that weren't needed stay with the card: the rig has no more of them than it counts.
      rig.start({ size: 256 })
    }
    rig.checkGuards()
    peer.close()
  }
})

test('without merged buffers a frame has one, and a longer one is dropped', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer, { without: [F_MRG_RXBUF] })
  offer(rig, 3, 1000)
  peer.sendFrame(bytesOf(989))
  peer.sendFrame(bytesOf(988))
  peer.sendFrame(bytesOf(60, 9))
  pump(rig)
  const frames = received(rig, 1000).map(({ frame }) => frame)
  assert.deepEqual(frames, [Buffer.from(bytesOf(988)), Buffer.from(bytesOf(60, 9))])
  peer.close()
})

test('a long frame is described as a segment to be cut to a guest that understands it, else dropped', { skip },
  () => {
    const peer = new Peer()
    const frame = bytesOf(9000)
    frame.set([8, 0, 0x45], 12)
    frame[14 + 9] = 6
    frame[14 + 20 + 12] = 0x80
    const rig = rigOf(peer)
    offer(rig, 20, 2000)
    peer.sendFrame(frame)
    pump(rig)
    const [got] = received(rig, 2000)
    assert.deepEqual(got?.frame, Buffer.from(frame))
    assert.deepEqual([got!.header.getUint8(0), got!.header.getUint8(1), got!.header.getUint16(2, true),
      got!.header.getUint16(4, true), got!.header.getUint16(10, true)], [0, 1, 66, 1448, 5])
    const plain = rigOf(peer, { without: [F_GUEST_TSO4] })
    offer(plain, 20, 2000)
    peer.sendFrame(frame)
    peer.sendFrame(bytesOf(60))
    pump(plain)
    assert.deepEqual(received(plain, 2000).map(({ frame }) => frame.length), [60])
    peer.close()
  })

test('without buffers nothing is read, and a frame waits for as many as it needs', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const frame = bytesOf(1400)
  peer.sendFrame(frame)
  pump(rig)
  assert.equal(rig.port.wanted(), 0)
  offer(rig, 2, 500)
  pump(rig)
  assert.equal(rig.rings[RX]!.usedIndex, 0)
  rig.rings[RX]!.add([{ at: RXDATA + 1000, length: 500, isWritable: true }])
  rig.kick(RX)
  pump(rig)
  assert.deepEqual(received(rig, 500)[0]?.frame, Buffer.from(frame))
  peer.close()
})

test('a frame that no number of buffers can hold is dropped, and the next one comes', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer, { size: 8 })
  for (let i = 0; i < 8; i++) rig.rings[RX]!.add([{ at: RXDATA + i * 16, length: 16, isWritable: true }])
  rig.kick(RX)
  peer.sendFrame(bytesOf(200))
  peer.sendFrame(bytesOf(20))
  pump(rig)
  assert.deepEqual(received(rig, 16).map(({ frame }) => frame), [Buffer.from(bytesOf(20))])
  peer.close()
})

test('a buffer without room for a header is a fault', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.rings[RX]!.add([{ at: RXDATA, length: 11, isWritable: true }])
  rig.kick(RX)
  peer.sendFrame(bytesOf(60))
  pump(rig)
  assert.equal(rig.status, 0x4f)
  rig.start({ size: 64 })
  offer(rig, 1, 2000)
  peer.sendFrame(bytesOf(61))
  pump(rig)
  assert.deepEqual(received(rig, 2000).map(({ frame }) => frame.length), [61], 'after a reset the stream is in step')
  peer.close()
})

test('a reset amid frames of both directions leaves the stream in step', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const header = new Uint8Array(12)
  header[1] = 1
  for (let i = 0; i < 8; i++) transmit(rig, bytesOf(60_000), { header })
  offer(rig, 4, 2000)
  const frame = framed(bytesOf(1000))
  peer.send(frame.subarray(0, 500))
  pump(rig)
  assert.ok(rig.port.device.held(RX) > 0 && rig.port.device.held(TX) > 0)
  rig.start({ size: 64 })
  peer.send(frame.subarray(500))
  peer.sendFrame(bytesOf(77))
  offer(rig, 4, 2000)
  let out = Buffer.alloc(0)
  for (let i = 0; i < 20; i++) {
    out = Buffer.concat([out, peer.received()])
    pump(rig)
    rig.kick(TX)
  }
  assert.deepEqual(received(rig, 2000).map(({ frame }) => frame.length), [77])
  transmit(rig, bytesOf(78))
  out = Buffer.concat([out, peer.received()])
  const lengths = []
  for (let at = 0; at < out.length; at += 4 + out.readUInt32BE(at)) lengths.push(out.readUInt32BE(at))
  assert.equal(lengths.at(-1), 78)
  assert.ok(lengths.slice(0, -1).every((length) => length === 60_000))
  peer.close()
})

test('what is held is found again after a restore, on a new stream', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  const header = new Uint8Array(12)
  header[1] = 1
  for (let i = 0; i < 8; i++) transmit(rig, bytesOf(60_000), { header })
  offer(rig, 4, 2000)
  peer.send(framed(bytesOf(1000)).subarray(0, 500))
  pump(rig)
  const sent = rig.rings[TX]!.taken().length
  const saved = rig.port.save()
  assert.deepEqual(rig.port.save(), saved)
  const second = new Peer()
  const net = new Net({ name: 'net0', mac: MAC, mtu: 1500, fd: second.deviceFd, kind: 'stream', takesSegments: true,
    nowMs: () => 0 })
  const other = new Rig(net, rig.memory)
  other.port.restore('virtio4', saved)
  other.settle()
  let bytes = Buffer.alloc(0)
  for (let i = 0; i < 20; i++) {
    bytes = Buffer.concat([bytes, second.received()])
    pump(other)
  }
  assert.equal(bytes.length, (8 - sent) * 60_004, 'a frame that had begun goes out from its beginning')
  second.sendFrame(bytesOf(90))
  pump(other)
  rig.rings[RX]!.taken()
  assert.equal(other.view.getUint16(rig.rings[RX]!.used + 2, true), 1)
  assert.deepEqual(Buffer.from(other.get(RXDATA + 12, 90)), Buffer.from(bytesOf(90)))
  peer.close()
  second.close()
})

test('a peer that has gone takes the link down, and the guest may go on sending to nobody', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  offer(rig, 4, 2000)
  const { interrupts } = rig
  peer.hangUp()
  pump(rig)
  assert.equal(rig.windows.read(0, 0x106, 2), 0)
  assert.ok(rig.interrupts > interrupts)
  for (let i = 0; i < 40; i++) transmit(rig, bytesOf(100))
  assert.equal(rig.rings[TX]!.taken().length, 40)
  assert.equal(rig.port.wanted(), 0, 'a dead descriptor is not waited for')
})

test('a stream that says what is no frame is closed', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  offer(rig, 4, 2000)
  peer.send(new Uint8Array(8).fill(0xff))
  pump(rig)
  assert.equal(rig.windows.read(0, 0x106, 2), 0)
  peer.close()
})

test('a limit of bytes lets frames wait in both directions', { skip }, () => {
  let now = 0
  const peer = new Peer()
  const rig = rigOf(peer, { bytesPerSecond: 100_000, nowMs: () => now })
  offer(rig, 20, 2000)
  for (let i = 0; i < 20; i++) peer.sendFrame(bytesOf(1500))
  for (let i = 0; i < 20; i++) transmit(rig, bytesOf(1500))
  for (let round = 0; round < 1000; round++) {
    pump(rig)
    peer.received()
    const due = rig.port.device.dueMs()
    if (due < 0) break
    now += due
    rig.port.serveAll()
    rig.settle()
  }
  assert.equal(received(rig, 2000).length, 20)
  assert.equal(rig.rings[TX]!.taken().length, 20)
  // 60,000 bytes, of which 10,000 at once and the last frame on credit.
  assert.ok(now > 450 && now < 520, `${now} ms`)
  peer.close()
})

test('the sum of any range is that of its bytes', () => {
  const bytes = bytesOf(3000)
  const view = new DataView(bytes.buffer)
  for (let from = 0; from < 9; from++) {
    for (let to = from; to < from + 40; to++) {
      let sum = 0
      for (let at = from; at < to; at++) sum += bytes[at]! << (at - from & 1 ? 8 : 0)
      assert.equal(sumOf(view, from, to - from), fold(sum))
    }
  }
})

test('a frame that takes as many pieces as a list has is dropped, or received: nothing breaks', { skip }, (t) => {
  const peer = new Peer()
  t.after(() => peer.close())
  const rig = rigOf(peer, { size: 256 })
  // The first 12 bytes are the header's: 244 + 256 + 256 + 245 pieces of a byte each, for a frame of 1001.
  for (const [i, count] of [256, 256, 256, 245].entries()) {
    const parts = Array.from({ length: count }, (_, j) =>
      ({ at: RXDATA + 2 * (256 * i + j), length: 1, isWritable: true }))
    rig.rings[RX]!.add(parts, TXDATA + 0x1000 * i)
  }
  rig.kick(RX)
  peer.sendFrame(bytesOf(1001))
  pump(rig)
  assert.equal(rig.status, 0xf)
})
