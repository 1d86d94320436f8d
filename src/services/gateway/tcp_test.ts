// services/gateway/tcp_test.ts: two ends joined by a cable that loses, doubles and mixes up; and hostile ends.

import assert from 'node:assert/strict'
import { duplexPair, type Duplex } from 'node:stream'
import { describe, test } from 'node:test'
import { ECONNREFUSED, ETIMEDOUT } from '../../base/errno.ts'
import { GATEWAY_DIALS_MAX, TCP_BUFFER_BYTES_MAX } from '../../base/limits.ts'
import { parseAddress } from './addresses.ts'
import { ETHERNET_BYTES, Packet, readPacket } from './ipv4.ts'
import { Slab } from './slab.ts'
import { ACK, FIN, PSH, readSegment, RST, Segment, sendSegment, SYN } from './tcp_segment.ts'
import { configOf, rig, settled, TestClock, TestGuest } from './test_support.ts'
import { Ring, RingMemory } from './ring.ts'

const GUEST = parseAddress('10.1.0.2')!
const DB = parseAddress('10.1.0.3')!

/** Everything that comes out of a stream, and how it ended. */
function taken(stream: Duplex): { bytes: () => Buffer; ended: () => string } {
  const pieces: Buffer[] = []
  let ended = ''
  stream.on('data', (piece: Buffer) => pieces.push(piece))
  stream.on('end', () => { ended ||= 'end' })
  stream.on('error', (error: NodeJS.ErrnoException) => { ended = error.code ?? 'error' })
  return { bytes: () => Buffer.concat(pieces), ended: () => ended }
}

function pattern(size: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: size }, (_, i) => Math.imul(i + seed, 0x9e37_79b1) >>> 24))
}

async function connected(made: ReturnType<typeof rig>): Promise<Duplex> {
  const stream = made.guest.connect('10.1.0.3', 80)
  await made.clock.pass(30_000)
  const got = await stream
  assert.ok(typeof got !== 'number', `errno ${got as number}`)
  return got
}

describe('TCP over a bad cable', () => {
  for (let seed = 1; seed <= 60; seed++) {
    const trouble = { loss: seed % 4 * 3, twice: seed % 3 * 4, delayMs: [0, 3, 20][seed % 3]! }
    test(`every byte arrives once and in order, both ways, and both ends close: seed ${seed}`, async () => {
      const [theirs, ours] = duplexPair()
      const made = rig({ dial: () => Promise.resolve(theirs) }, { trouble, seed, mtu: [576, 1500, 9000][seed % 3]! })
      const stream = await connected(made)
      const [up, down] = [pattern(1 + seed % 40 * 9000, seed), pattern(1 + Math.abs(41 - seed) % 40 * 9000, -seed)]
      const [atGuest, atServer] = [taken(stream), taken(ours)]
      stream.end(up)
      ours.end(down)
      await made.clock.pass(200_000)
      assert.deepEqual([atServer.ended(), atGuest.ended()], ['end', 'end'])
      assert.ok(atServer.bytes().equals(up), 'what the guest sent')
      assert.ok(atGuest.bytes().equals(down), 'what the guest got')
      assert.equal(made.gateway.figures().connections, 0)
      assert.equal(made.guest.connections.open, 0)
      assert.equal(made.gateway.figures().bufferedBytes + made.guest.connections.memory.used, 0)
    })
  }

  test('a side that has ended still receives', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const stream = await connected(made)
    const [atGuest, atServer] = [taken(stream), taken(ours)]
    stream.end('asked')
    await made.clock.pass(5000)
    assert.equal(atServer.ended(), 'end')
    ours.end(pattern(100_000, 1))
    await made.clock.pass(5000)
    assert.equal(atGuest.bytes().length, 100_000)
    assert.equal(made.gateway.figures().connections, 0)
  })

  test('a reader that stops closes the window, and nothing is lost when it goes on', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const stream = await connected(made)
    const bytes = pattern(3 * TCP_BUFFER_BYTES_MAX, 7)
    stream.end(bytes)
    await made.clock.pass(60_000)
    const before = made.gateway.figures().bytesIn
    assert.ok(before < 1.7 * TCP_BUFFER_BYTES_MAX, `held back: ${before}`)
    const atServer = taken(ours)
    await made.clock.pass(60_000)
    assert.ok(atServer.bytes().equals(bytes))
  })

  test('connections without an answer end when their tries are used up', async () => {
    const made = rig({}, { trouble: { loss: 100 } })
    const stream = made.guest.connect('10.1.0.3', 80)
    await made.clock.pass(10_000)
    assert.equal(await stream, ETIMEDOUT)
    assert.equal(made.guest.connections.open, 0)
  })

  test('a guest that falls silent in the middle is given up, and the other side hears of it', async () => {
    const [theirs, ours] = duplexPair()
    const trouble = { loss: 0 }
    const made = rig({ dial: () => Promise.resolve(theirs) }, { trouble })
    await connected(made)
    const atServer = taken(ours)
    let closed = false
    ours.on('close', () => { closed = true })
    trouble.loss = 100
    ours.write(pattern(10_000, 1))
    await made.clock.pass(200_000)
    assert.equal(made.gateway.figures().connections, 0)
    assert.ok(closed || atServer.ended() !== '', 'the dialled stream is over')
  })

  test('a guest that stood still for an hour goes on where it was', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const stream = await connected(made)
    const atGuest = taken(stream)
    made.gateway.pause()
    ours.write('while it stood still')
    await made.clock.pass(3_600_000)
    assert.equal(atGuest.bytes().length, 0)
    made.gateway.resume()
    await made.clock.pass(100)
    assert.equal(atGuest.bytes().toString(), 'while it stood still')
  })

  test('output that finds no room is sent when there is some', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const atGuest = taken(await connected(made))
    made.ours.isFull = true
    ours.end(pattern(50_000, 3))
    await made.clock.pass(100)
    assert.equal(atGuest.bytes().length, 0)
    made.ours.makeRoom()
    await made.clock.pass(100)
    assert.ok(atGuest.bytes().equals(pattern(50_000, 3)))
  })
})

/** What a test says in a segment, and what came back. */
type Said = { flags: number; seq?: number; ack?: number; window?: number; data?: Buffer; port?: number }

function puppet(made: ReturnType<typeof rig>) {
  made.theirs.keeps = true
  // Nobody else answers for the guest.
  made.theirs.start({ frame: () => {}, batch: () => {}, room: () => {}, ended: () => {} })
  const say = async ({ flags, seq = 0, ack = 0, window = 65_535, data = Buffer.alloc(0), port = 4000 }: Said) => {
    const ring = new Ring(new RingMemory(1_000_000))
    if (data.length > 0) ring.put(0, data, 0, data.length)
    const head = { localPort: port, remotePort: 80, seq, ack, flags, window, mss: 1460, scale: -1 }
    sendSegment(made.guest.wire, GUEST, DB, head, ring, 0, data.length)
    await settled()
    return heard()
  }
  const heard = () => made.theirs.seen.splice(0).map((frame) => {
    const slab = new Slab(frame.length)
    slab.bytes.set(frame)
    const [packet, segment] = [new Packet(), new Segment()]
    assert.equal(readPacket(slab, ETHERNET_BYTES, frame.length, packet), '')
    assert.equal(readSegment(slab, packet, segment), '')
    const { seq, ack, flags, window, from, to } = segment
    return { seq, ack, flags, window, data: Buffer.from(slab.bytes.subarray(from, to)).toString() }
  })
  const handshake = async () => {
    const [answer] = await say({ flags: SYN, seq: 1000 })
    assert.equal(answer!.flags, SYN | ACK)
    assert.equal(answer!.ack, 1001)
    await say({ flags: ACK, seq: 1001, ack: answer!.seq + 1 | 0 })
    return answer!.seq + 1 | 0
  }
  return { say, heard, handshake }
}

async function puppetRig() {
  const [theirs, ours] = duplexPair()
  const made = rig({ dial: () => Promise.resolve(theirs) })
  const { say, heard, handshake } = puppet(made)
  return { made, ours, at: taken(ours), say, heard, ack: await handshake() }
}

describe('TCP with a hostile guest', () => {
  test('an acknowledgement of what was never sent is answered by what we expect, and changes nothing', async () => {
    const { ours, say, ack, at } = await puppetRig()
    const [answer] = await say({ flags: ACK, seq: 1001, ack: ack + 5000 | 0 })
    assert.deepEqual([answer!.flags, answer!.ack, answer!.seq], [ACK, 1001, ack])
    ours.write('x')
    await say({ flags: ACK | PSH, seq: 1001, ack, data: Buffer.from('still here') })
    assert.equal(at.bytes().toString(), 'still here')
  })

  test('ranges that overlap and contradict each other give each byte once', async () => {
    const { say, ack, at } = await puppetRig()
    await say({ flags: ACK, seq: 1005, ack, data: Buffer.from('EFGHIJ') })
    await say({ flags: ACK, seq: 1003, ack, data: Buffer.from('cdef') })
    await say({ flags: ACK, seq: 1008, ack, data: Buffer.from('hijklm') })
    const answers = await say({ flags: ACK, seq: 999, ack, data: Buffer.from('__abcd') })
    assert.equal(answers.at(-1)!.ack, 1014)
    assert.equal(at.bytes().toString().toLowerCase(), 'abcdefghijklm'.slice(0, 13))
  })

  test('data behind the window is dropped, and the memory that holes take is bounded', async () => {
    const { say, ack, at, made } = await puppetRig()
    for (let i = 0; i < 500; i++) {
      await say({ flags: ACK, seq: 1003 + 4 * i, ack, data: Buffer.from('x') })
    }
    const [answer] = await say({ flags: ACK, seq: 1001 + 2 * TCP_BUFFER_BYTES_MAX, ack, data: Buffer.from('far') })
    assert.equal(answer!.ack, 1001)
    assert.equal(at.bytes().length, 0)
    assert.equal(made.gateway.figures().connections, 1)
  })

  test('a reset counts at the expected number alone; in the window it is questioned', async () => {
    const { say, ack, at, made, ours } = await puppetRig()
    assert.deepEqual(await say({ flags: RST, seq: 900 }), [])
    const [challenge] = await say({ flags: RST, seq: 1500 })
    assert.deepEqual([challenge!.flags, challenge!.ack], [ACK, 1001])
    assert.equal(made.gateway.figures().connections, 1)
    await say({ flags: RST, seq: 1001, ack })
    assert.equal(made.gateway.figures().connections, 0)
    assert.equal(ours.destroyed || at.ended() !== '', true)
  })

  test('a SYN within a connection is questioned, not obeyed', async () => {
    const { say, made } = await puppetRig()
    const [challenge] = await say({ flags: SYN, seq: 5000 })
    assert.deepEqual([challenge!.flags, challenge!.ack], [ACK, 1001])
    assert.equal(made.gateway.figures().connections, 1)
  })

  test('a window that is shut is probed by a byte, and a window that shrinks is kept to', async () => {
    const { ours, say, ack, made, heard } = await puppetRig()
    await say({ flags: ACK, seq: 1001, ack, window: 0 })
    ours.write('hello')
    await made.clock.pass(3000)
    const probes = heard()
    assert.ok(probes.length >= 1 && probes.every(({ data }) => data === 'h'), JSON.stringify(probes))
    const answers = await say({ flags: ACK, seq: 1001, ack, window: 3 })
    assert.ok(answers.every(({ data }) => data === 'hel'), JSON.stringify(answers))
    await say({ flags: ACK, seq: 1001, ack: ack + 3 | 0, window: 0 })
    await made.clock.pass(20_000)
    assert.ok(heard().every(({ data }) => data === 'l'), 'one byte at a time')
    assert.equal((await say({ flags: ACK, seq: 1001, ack: ack + 3 | 0 })).at(-1)?.data, 'lo')
  })

  test('an end that comes before the data is taken when the data is there', async () => {
    const { say, ack, at } = await puppetRig()
    await say({ flags: FIN | ACK, seq: 1003, ack, data: Buffer.from('cd') })
    assert.equal(at.ended(), '')
    await say({ flags: ACK, seq: 1001, ack, data: Buffer.from('ab') })
    assert.deepEqual([at.bytes().toString(), at.ended()], ['abcd', 'end'])
  })

  test('an end behind the window isn\'t taken', async () => {
    const { say, ack, at } = await puppetRig()
    const edge = 1001 + TCP_BUFFER_BYTES_MAX
    await say({ flags: FIN | ACK, seq: edge - 1, ack, data: Buffer.from('zz') })
    for (let seq = 1001; seq < edge; seq += 1024) await say({ flags: ACK, seq, ack, data: Buffer.alloc(1024) })
    assert.deepEqual([at.bytes().length, at.ended()], [TCP_BUFFER_BYTES_MAX, ''])
  })

  test('data behind an end takes no memory any more', async () => {
    const { ours, say, ack, at, made } = await puppetRig()
    await say({ flags: ACK, seq: 1010, ack, data: Buffer.from('never') })
    await say({ flags: FIN | ACK, seq: 1001, ack, data: Buffer.from('a') })
    ours.end()
    await made.clock.pass(1)
    await say({ flags: ACK, seq: 1003, ack: ack + 1 | 0 })
    const { connections, bufferedBytes } = made.gateway.figures()
    assert.deepEqual([at.bytes().toString(), at.ended(), connections, bufferedBytes], ['a', 'end', 0, 0])
  })

  test('the time that a guest stood still is no round trip', async () => {
    const { ours, say, ack, made, heard } = await puppetRig()
    ours.write('a')
    await settled()
    made.gateway.pause()
    await made.clock.pass(3_600_000)
    made.gateway.resume()
    await say({ flags: ACK, seq: 1001, ack: ack + 1 | 0 })
    ours.write('b')
    await made.clock.pass(1500)
    assert.ok(heard().filter(({ data }) => data === 'b').length >= 2, 'sent again soon')
  })

  test('segments of no connection are answered by resets, as after a restore', async () => {
    const made = rig()
    const { say } = puppet(made)
    assert.deepEqual((await say({ flags: ACK, seq: 7, ack: 77 })).map(({ flags, seq }) => [flags, seq]), [[RST, 77]])
    const [answer] = await say({ flags: FIN, seq: 7 })
    assert.deepEqual([answer!.flags, answer!.ack], [RST | ACK, 8])
    assert.deepEqual(await say({ flags: RST, seq: 7 }), [])
  })

  test('a flood of SYNs holds a bounded number of dials', async () => {
    let dials = 0
    const made = rig({ dial: () => {
      dials++
      return new Promise(() => {})
    } })
    const { say } = puppet(made)
    for (let port = 1; port <= 2 * GATEWAY_DIALS_MAX; port++) await say({ flags: SYN, port })
    assert.equal(dials, GATEWAY_DIALS_MAX)
    assert.equal(made.gateway.figures().drops['tcp full'], GATEWAY_DIALS_MAX)
  })

  test('a guest that gives up while it is dialled for leaves nothing behind', async () => {
    const [theirs] = duplexPair()
    const { promise, resolve } = Promise.withResolvers<Duplex>()
    const made = rig({ dial: () => promise })
    const { say } = puppet(made)
    await say({ flags: SYN, seq: 1000 })
    await say({ flags: RST, seq: 1001 })
    resolve(theirs)
    await settled()
    assert.equal(theirs.destroyed, true)
    assert.equal(made.gateway.figures().connections, 0)
  })

  test('a connection that is refused is reset at once', async () => {
    const { say } = puppet(rig({ dial: () => Promise.resolve(ECONNREFUSED) }))
    const [answer] = await say({ flags: SYN, seq: 1000 })
    assert.deepEqual([answer!.flags, answer!.ack], [RST | ACK, 1001])
  })

  test('sequence numbers wrap around within a transfer', async () => {
    const clock = new TestClock()
    clock.random = () => 0xffff_f000
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const guest = new TestGuest(configOf(), made.theirs, Object.assign(clock, { now: () => made.clock.now(),
      after: (ms: number, what: () => void) => made.clock.after(ms, what) }))
    const at = taken(ours)
    const stream = guest.connect('10.1.0.3', 80)
    await made.clock.pass(100)
    const got = await stream
    assert.ok(typeof got !== 'number')
    got.end(pattern(100_000, 5))
    await made.clock.pass(1000)
    assert.ok(at.bytes().equals(pattern(100_000, 5)))
  })
})
