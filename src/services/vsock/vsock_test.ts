// services/vsock/vsock_test.ts: two endpoints tell each other all that was written, and a hostile one harms nobody.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { duplexPair, type Duplex } from 'node:stream'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { VSOCK_PAYLOAD_BYTES_MAX } from '../../base/limits.ts'
import { BUFFER_BYTES_MAX, creditLeft } from './connection.ts'
import { vsockOver } from './line.ts'
import {
  HEADER_BYTES, readPacket, VIRTIO_VSOCK_OP_CREDIT_REQUEST, VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_RST, VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN, writePacket,
  type Packet,
} from './packet.ts'
import { CONNECTIONS_MAX, Vsock } from './vsock.ts'

const CID = 7
const PORT = 1024

/** A guest that is played by hand: what the host sends it, and what it says. */
function byHand(room = true): { host: Vsock; heard: Packet[]; say(packet: Partial<Packet>): void; last(): Packet } {
  const heard: Packet[] = []
  const host = new Vsock({ guestCid: CID, send: (packet) => heard.push(readPacket(packet)!) > 0 && room })
  const say = (packet: Partial<Packet>): void => host.receive(writePacket({ srcCid: CID, dstCid: 2, srcPort: 99,
    dstPort: PORT, type: 1, op: VIRTIO_VSOCK_OP_RW, flags: 0, bufAlloc: 65_536, fwdCnt: 0, payload: new Uint8Array(0),
    ...packet }))
  return { host, heard, say, last: () => heard.at(-1)! }
}

/** All that is read. (An async iterator would destroy the stream at the end of what is read.) */
async function buffer(stream: Duplex): Promise<Buffer> {
  const pieces: Buffer[] = []
  stream.on('data', (piece: Buffer) => pieces.push(piece))
  await once(stream, 'end')
  return Buffer.concat(pieces)
}

/** A connection of the guest that is played by hand. */
function opened(bufAlloc = 65_536): ReturnType<typeof byHand> & { stream: Duplex; errors: string[] } {
  const guest = byHand()
  const errors: string[] = []
  let stream: Duplex | undefined
  guest.host.listen(PORT, (accepted) => {
    stream = accepted
    accepted.on('error', (error) => errors.push((error as NodeJS.ErrnoException).code!))
  })
  guest.say({ op: VIRTIO_VSOCK_OP_REQUEST, bufAlloc })
  assert.equal(guest.last().op, VIRTIO_VSOCK_OP_RESPONSE)
  return { ...guest, stream: stream!, errors }
}

/** Two endpoints over a link that keeps order and loses nothing, and has room now and then. */
function pair(isTight: () => boolean = () => false): { host: Vsock; guest: Vsock } {
  const queue: (() => void)[] = []
  const to = (other: () => Vsock, own: () => Vsock) => (packet: Buffer): boolean => {
    const tight = isTight()
    queue.push(() => {
      other().receive(packet)
      if (tight) own().drained()
    })
    if (queue.length === 1) setImmediate(function run() {
      for (let left = queue.length; left > 0; left--) queue.shift()!()
      if (queue.length > 0) setImmediate(run)
    })
    return !tight
  }
  const host: Vsock = new Vsock({ guestCid: CID, send: to(() => guest, () => host) })
  const guest: Vsock = new Vsock({ guestCid: CID, isGuest: true, send: to(() => host, () => guest) })
  return { host, guest }
}

test('two endpoints give each other what was written, in order, both ways, and nothing is left of the connection',
  async () => {
    const sizes = fc.array(fc.integer({ min: 1, max: 300_000 }), { maxLength: 6 })
    const rooms = fc.array(fc.boolean(), { minLength: 1 })
    await fc.assert(fc.asyncProperty(sizes, sizes, rooms, async (up, down, tight) => {
      let at = 0
      const { host, guest } = pair(() => tight[at++ % tight.length]!)
      const accepted = Promise.withResolvers<Duplex>()
      host.listen(PORT, accepted.resolve)
      const [near, far] = await Promise.all([guest.connect(PORT), accepted.promise])
      const [upBytes, downBytes] = [up, down].map((list) => list.map((size) => randomBytes(size)))
      const send = async (stream: Duplex, list: Buffer[]): Promise<void> => {
        for (const bytes of list) if (!stream.write(bytes)) await once(stream, 'drain')
        stream.end()
      }
      const [gotUp, gotDown] = await Promise.all([buffer(far), buffer(near), send(near, upBytes!),
        send(far, downBytes!)])
      assert.ok(gotUp.equals(Buffer.concat(upBytes!)) && gotDown.equals(Buffer.concat(downBytes!)))
      while (host.size + guest.size > 0) await turn()
    }), { numRuns: 25 })
  })

test('many connections at once keep their bytes apart', async () => {
  const { host, guest } = pair()
  host.listen(PORT, (stream) => { stream.pipe(stream) })
  await Promise.all(Array.from({ length: 50 }, async (_, i) => {
    const stream = await guest.connect(PORT)
    const bytes = randomBytes(1000 * i + 1)
    stream.end(bytes)
    assert.ok((await buffer(stream)).equals(bytes))
  }))
})

test('a reader that reads nothing holds the writer up at the size of its buffer', async () => {
  const { host, guest } = pair()
  const accepted = Promise.withResolvers<Duplex>()
  host.listen(PORT, accepted.resolve)
  const near = await guest.connect(PORT)
  const far = (await accepted.promise).on('error', () => {})
  let done = 0
  const sent = (async () => {
    for (let i = 0; i < 40; i++) {
      await new Promise<void>((wrote) => { near.write(Buffer.alloc(65_536), () => wrote()) })
      done++
    }
  })()
  for (let i = 0; i < 100; i++) await turn()
  assert.ok(done >= 1 && done <= (BUFFER_BYTES_MAX + far.readableHighWaterMark) / 65_536 + 1, `${done} were taken`)
  far.resume()
  await sent
  near.destroy()
})

test('bytes that come one by one cost no more memory than their number, though nobody reads them', () => {
  const guest = opened()
  // Read once, so that it wants more.
  guest.stream.read(0)
  const before = process.memoryUsage().arrayBuffers
  for (let i = 0; i < 20_000; i++) guest.say({ payload: new Uint8Array(1) })
  const bytes = process.memoryUsage().arrayBuffers - before
  assert.equal(guest.stream.readableLength, 20_000)
  assert.ok(bytes < 32 * 1024 * 1024, `${bytes} bytes are held`)
  guest.stream.destroy()
})

test('a connection to nobody is refused, both ways', async () => {
  const { host, guest } = pair()
  await assert.rejects(guest.connect(1), { code: 'ECONNREFUSED' })
  await assert.rejects(host.connect(1), { code: 'ECONNREFUSED' })
  assert.equal(host.size + guest.size, 0)
})

test('reset ends all connections, and the guest may connect again', async () => {
  const { host, guest } = pair()
  const streams: Duplex[] = []
  host.listen(PORT, (stream) => {
    streams.push(stream)
    stream.on('error', () => {})
  })
  const near = await guest.connect(PORT)
  near.on('error', () => {})
  const waiting = host.connect(5)
  host.reset()
  await assert.rejects(waiting, { code: 'ECONNRESET' })
  assert.ok(streams[0]!.destroyed && host.size === 0)
  // What the guest still sends is answered by a reset.
  near.write('x')
  while (!near.destroyed) await turn()
  const again = await guest.connect(PORT)
  assert.equal(streams.length, 2)
  again.on('error', () => {}).destroy()
})

test('packets of another address, to another address and of a wrong length are dropped without an answer', () => {
  const { host, heard, say } = byHand()
  host.listen(PORT, () => assert.fail('nobody is to be heard'))
  const request = { op: VIRTIO_VSOCK_OP_REQUEST }
  say({ ...request, srcCid: CID + 1 })
  say({ ...request, srcCid: 2 })
  say({ ...request, dstCid: CID })
  const packet = writePacket({ srcCid: CID, dstCid: 2, srcPort: 9, dstPort: PORT, type: 1, flags: 0, bufAlloc: 0,
    fwdCnt: 0, payload: new Uint8Array(0), ...request })
  for (const [at, value] of [[4, 1], [12, 1], [24, 1], [24, 0xffff_ffff]] as const) {
    const changed = Buffer.from(packet)
    changed.writeUInt32LE(value, at)
    host.receive(changed)
  }
  for (const size of [0, 1, HEADER_BYTES - 1]) host.receive(packet.subarray(0, size))
  assert.deepEqual([heard.length, host.dropped, host.size], [0, 10, 0])
})

test('what belongs to no connection, or is no stream, gets a reset, and a reset gets nothing', () => {
  const { heard, say, last } = byHand()
  say({ op: VIRTIO_VSOCK_OP_RW, payload: Buffer.from('x') })
  assert.deepEqual([last().op, last().srcPort, last().dstPort, last().dstCid], [VIRTIO_VSOCK_OP_RST, PORT, 99, CID])
  say({ op: VIRTIO_VSOCK_OP_REQUEST, type: 2 })
  assert.deepEqual([last().op, last().type], [VIRTIO_VSOCK_OP_RST, 2])
  say({ op: VIRTIO_VSOCK_OP_RST })
  say({ op: VIRTIO_VSOCK_OP_RST, type: 2 })
  assert.equal(heard.length, 2)
})

test('a guest that breaks the rules of a connection loses it, and no other', async () => {
  const cases: { [why: string]: (guest: ReturnType<typeof opened>) => void } = {
    'more than the buffer holds': ({ say }) => {
      for (let i = 0; i <= BUFFER_BYTES_MAX / 65_536 + 2; i++) say({ payload: Buffer.alloc(65_536) })
    },
    'it has taken what was never sent': ({ say }) => say({ op: VIRTIO_VSOCK_OP_CREDIT_UPDATE, fwdCnt: 1 }),
    'an unknown operation': ({ say }) => say({ op: 99 }),
    'a second response': ({ say }) => say({ op: VIRTIO_VSOCK_OP_RESPONSE }),
    'data after its end': ({ say }) => {
      say({ op: VIRTIO_VSOCK_OP_SHUTDOWN, flags: 2 })
      say({ payload: Buffer.from('x') })
    },
  }
  for (const [why, act] of Object.entries(cases)) {
    const guest = opened()
    guest.say({ op: VIRTIO_VSOCK_OP_REQUEST, srcPort: 100 })
    act(guest)
    await turn()
    assert.ok(guest.heard.some(({ op, dstPort }) => op === VIRTIO_VSOCK_OP_RST && dstPort === 99), why)
    assert.deepEqual([guest.errors, guest.host.size], [['ECONNRESET'], 1], why)
  }
})

test('the host sends no more than the guest has room for, and goes on when it has', () => {
  const { stream, heard, say } = opened(1000)
  const sent = (): number => heard.reduce((sum, { payload }) => sum + payload.length, 0)
  stream.write(Buffer.alloc(2500))
  assert.deepEqual([sent(), heard.at(-1)!.op], [1000, VIRTIO_VSOCK_OP_CREDIT_REQUEST])
  say({ op: VIRTIO_VSOCK_OP_CREDIT_UPDATE, bufAlloc: 1000, fwdCnt: 600 })
  assert.equal(sent(), 1600)
  say({ op: VIRTIO_VSOCK_OP_CREDIT_UPDATE, bufAlloc: 0, fwdCnt: 1600 })
  say({ op: VIRTIO_VSOCK_OP_CREDIT_UPDATE, bufAlloc: 0xffff_ffff, fwdCnt: 1600 })
  assert.equal(sent(), 2500)
  assert.ok(heard.every(({ payload }) => payload.length <= VSOCK_PAYLOAD_BYTES_MAX))
})

test('the host believes in no more room than it has itself to wait with', () => {
  const { stream, heard } = opened(0xffff_ffff)
  stream.write(Buffer.alloc(4 * BUFFER_BYTES_MAX))
  assert.equal(heard.reduce((sum, { payload }) => sum + payload.length, 0), BUFFER_BYTES_MAX)
  assert.equal(creditLeft(1000, 5, 0xffff_fffb), 990)
})

test('without room on the line only data waits', () => {
  const guest = byHand(false)
  let stream: Duplex | undefined
  guest.host.listen(PORT, (accepted) => { stream = accepted })
  guest.say({ op: VIRTIO_VSOCK_OP_REQUEST })
  stream!.write('x')
  guest.say({ op: VIRTIO_VSOCK_OP_CREDIT_REQUEST })
  assert.deepEqual(guest.heard.map(({ op }) => op), [VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_CREDIT_UPDATE])
  guest.host.drained()
  assert.equal(guest.last().op, VIRTIO_VSOCK_OP_RW)
})

test('a guest has so many connections and no more, and gets them back when they end', async () => {
  const { host, say, last } = byHand()
  const streams: Duplex[] = []
  host.listen(PORT, (stream) => streams.push(stream))
  for (let port = 1; port <= CONNECTIONS_MAX + 1; port++) say({ op: VIRTIO_VSOCK_OP_REQUEST, srcPort: port })
  assert.deepEqual([last().op, host.size, streams.length], [VIRTIO_VSOCK_OP_RST, CONNECTIONS_MAX, CONNECTIONS_MAX])
  await assert.rejects(host.connect(1), { code: 'EMFILE' })
  streams[0]!.destroy()
  await turn()
  say({ op: VIRTIO_VSOCK_OP_REQUEST, srcPort: 5000 })
  assert.equal(last().op, VIRTIO_VSOCK_OP_RESPONSE)
})

test('a guest that closes its socket is answered, and what it sent before is read', async () => {
  const { stream, say, last, host } = opened()
  say({ payload: Buffer.from('the last words') })
  say({ op: VIRTIO_VSOCK_OP_SHUTDOWN, flags: 3 })
  assert.equal(last().op, VIRTIO_VSOCK_OP_RST)
  assert.equal((await buffer(stream)).toString(), 'the last words')
  assert.equal(host.size, 0)
})

test('a guest that uses the port of a connection again has a new one', async () => {
  const { host, say, last, errors, stream } = opened()
  say({ op: VIRTIO_VSOCK_OP_REQUEST })
  await turn()
  assert.deepEqual([last().op, host.size, errors], [VIRTIO_VSOCK_OP_RESPONSE, 1, ['ECONNRESET']])
  assert.ok(stream.destroyed)
})

test('no packet of a guest makes the host throw, or hold more than its bounds', async () => {
  const packet = fc.record({
    srcPort: fc.constantFrom(98, 99), dstPort: fc.constantFrom(PORT, 5), type: fc.constantFrom(1, 1, 1, 2, 0),
    op: fc.integer({ min: 0, max: 8 }), flags: fc.integer({ min: 0, max: 7 }),
    bufAlloc: fc.constantFrom(0, 1, 4096, 0xffff_ffff), fwdCnt: fc.constantFrom(0, 0, 1, 5, 0xffff_ffff),
    payload: fc.uint8Array({ maxLength: 20 }),
  })
  await fc.assert(fc.asyncProperty(fc.array(packet, { maxLength: 60 }), async (packets) => {
    const { host, say } = byHand()
    host.listen(PORT, (stream) => {
      stream.on('error', () => {})
      stream.pipe(stream)
    })
    for (const one of packets) {
      say(one)
      if (one.flags === 1) await turn()
    }
    assert.ok(host.size <= 2)
    host.reset()
  }), { numRuns: 300 })
})

test('vsockOver carries packets however the stream is cut, and ends everything with the stream', async () => {
  const [near, far] = duplexPair()
  const host = vsockOver(near, CID)
  const guest = new Vsock({ guestCid: CID, isGuest: true, send(packet) {
    const whole = Buffer.alloc(4 + packet.length)
    whole.writeUInt32BE(packet.length)
    packet.copy(whole, 4)
    for (let at = 0; at < whole.length; at += 17) far.write(whole.subarray(at, at + 17))
    return true
  } })
  let held = Buffer.alloc(0)
  far.on('data', (chunk: Buffer) => {
    for (held = Buffer.concat([held, chunk]); held.length >= 4;) {
      const end = 4 + held.readUInt32BE(0)
      if (held.length < end) return
      guest.receive(held.subarray(4, end))
      held = held.subarray(end)
    }
  })
  host.listen(PORT, (stream) => { stream.on('error', () => {}).pipe(stream) })
  const stream = await guest.connect(PORT)
  stream.on('error', () => {})
  const bytes = randomBytes(100_000)
  stream.write(bytes)
  let got = Buffer.alloc(0)
  for await (const piece of stream) {
    got = Buffer.concat([got, piece as Buffer])
    if (got.length === bytes.length) break
  }
  assert.ok(got.equals(bytes))
  await guest.connect(PORT)
  near.destroy()
  await once(near, 'close')
  assert.equal(host.size, 0)
})

test('vsockOver breaks a line with a packet of an impossible length', async () => {
  const [near, far] = duplexPair()
  vsockOver(near, CID)
  far.on('error', () => {})
  far.write(Buffer.from([0xff, 0, 0, 0]))
  while (!near.closed) await turn()
  assert.ok(near.destroyed)
})
