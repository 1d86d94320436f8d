// services/gateway/gateway_test.ts: what a guest sees of its network: ARP, DHCP, echo, names, peers, refusals.

import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import { describe, test } from 'node:test'
import { EACCES, ECONNREFUSED, ENOENT, ETIMEDOUT } from '../../base/errno.ts'
import { GATEWAY_ADDRESSES_MAX, GATEWAY_FLOWS_MAX } from '../../base/limits.ts'
import { addressesOf, BROADCAST_ADDRESS, parseAddress, parseMac, textOf } from './addresses.ts'
import { sumOf } from './checksum.ts'
import { Gateway } from './gateway.ts'
import { ETHERNET_BYTES, IPPROTO_ICMP, Packet, readPacket, Wire } from './ipv4.ts'
import { Slab } from './slab.ts'
import { cable, configOf, rig, settled } from './test_support.ts'
import { Datagram, readDatagram, sendDatagram } from './udp.ts'

const GUEST = parseAddress('10.1.0.2')!
const DB = parseAddress('10.1.0.3')!
const GATEWAY = parseAddress('10.1.0.1')!
const OUTSIDE = parseAddress('192.0.2.7')!

type Rig = ReturnType<typeof rig>

function listen(made: Rig): () => Buffer[] {
  made.theirs.keeps = true
  made.theirs.start({ frame: () => {}, batch: () => {}, room: () => {}, ended: () => {} })
  return () => made.theirs.seen.splice(0)
}

function slabOf(frame: Uint8Array): Slab {
  const slab = new Slab(frame.length)
  slab.bytes.set(frame)
  return slab
}

/** A packet in a frame: [source, destination, protocol, what it carries]. */
function packetIn(frame: Buffer): { source: string; destination: string; protocol: number; body: Buffer } {
  const slab = slabOf(frame)
  const packet = new Packet()
  assert.equal(readPacket(slab, ETHERNET_BYTES, frame.length, packet), '')
  const { source, destination, protocol, body, end } = packet
  return { source: textOf(source), destination: textOf(destination), protocol, body: slab.bytes.subarray(body, end) }
}

async function sendUdp(made: Rig, destination: number, port: number, bytes: Uint8Array, source = GUEST): Promise<void> {
  sendDatagram(made.guest.wire, { source, sourcePort: 5353, destination, destinationPort: port }, bytes)
  await settled()
}

async function sendIcmp(made: Rig, destination: number, source = GUEST): Promise<void> {
  const { wire } = made.guest
  const at = wire.begin(IPPROTO_ICMP, source, destination, 12)
  const { slab } = wire.sink
  slab.bytes.fill(0, at, at + 12)
  slab.view.setUint8(at, 8)
  slab.view.setUint32(at + 8, 0x6869_2121)
  slab.view.setUint16(at + 2, ~sumOf(slab, at, at + 12) & 0xffff)
  wire.end()
  await settled()
}

function question(name: string, type = 1): Buffer {
  const labels = name.split('.').map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label)]))
  const head = Buffer.from([0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
  return Buffer.concat([head, ...labels, Buffer.from([0, 0, type, 0, 1])])
}

/** The code and the addresses of a response. */
async function ask(made: Rig, heard: () => Buffer[], query: Buffer): Promise<[code: number, ...addresses: string[]]> {
  heard()
  await sendUdp(made, GATEWAY, 53, query)
  const [frame] = heard()
  assert.ok(frame !== undefined, 'an answer')
  const slab = slabOf(frame)
  const [packet, datagram] = [new Packet(), new Datagram()]
  assert.equal(readPacket(slab, ETHERNET_BYTES, frame.length, packet), '')
  assert.equal(readDatagram(slab, packet, datagram), '')
  const message = slab.bytes.subarray(datagram.from, datagram.to)
  const count = message.readUInt16BE(6)
  const first = message.length - 16 * count
  const address = (i: number): string => textOf(message.readUInt32BE(first + 16 * i + 12))
  return [message[3]! & 15, ...Array.from({ length: count }, (_, i) => address(i))]
}

describe('a guest on its network', () => {
  test('ARP is answered for the gateway and for peers, and for nobody else', async () => {
    const made = rig()
    const heard = listen(made)
    const arp = (target: string, source = GUEST): void => {
      const frame = Buffer.from(`ffffffffffff02ce110100010806000108000604000102ce11010001${'0'.repeat(28)}`, 'hex')
      frame.writeUInt32BE(source, 28)
      frame.writeUInt32BE(parseAddress(target)!, 38)
      made.theirs.give(frame)
    }
    arp('10.1.0.1')
    arp('10.1.0.3')
    await settled()
    assert.deepEqual(heard().map((frame) => frame.toString('hex', 20, 32)),
      ['000202ce110100000a010001', '000202ce110100000a010003'])
    arp('10.1.0.2')
    arp('10.1.0.99')
    arp('10.1.0.1', DB)
    made.theirs.give(Buffer.from('ffffffffffff02ce110100010806000108', 'hex'))
    await settled()
    assert.deepEqual(heard(), [])
    assert.deepEqual(made.gateway.figures().drops, { 'arp unanswered': 2, 'arp spoofed': 1, 'arp malformed': 1 })
  })

  test('echo requests to the gateway come back as they were', async () => {
    const made = rig()
    const heard = listen(made)
    await sendIcmp(made, GATEWAY)
    const [reply] = heard().map(packetIn)
    assert.equal(reply!.source, '10.1.0.1')
    assert.equal(reply!.body.toString('latin1', 8), 'hi!!')
    assert.equal(reply!.body[0], 0)
  })

  test('what can reach nobody is told so: a peer that is no machine, and UDP outside', async () => {
    const made = rig()
    const heard = listen(made)
    await sendIcmp(made, DB)
    await sendUdp(made, OUTSIDE, 123, Buffer.from('time?'))
    await sendUdp(made, GATEWAY, 9, Buffer.from('?'))
    await sendIcmp(made, OUTSIDE)
    assert.deepEqual(heard().map((frame) => packetIn(frame).body.subarray(0, 2).toString('hex')),
      ['0301', '0303', '0303', '0300'])
  })

  test('"unreachable" is told a bounded number of times', async () => {
    const made = rig()
    const heard = listen(made)
    for (let i = 0; i < 300; i++) await sendIcmp(made, DB)
    assert.equal(heard().length, 100)
  })

  test('frames and packets of somebody else are dropped', async () => {
    const made = rig()
    const heard = listen(made)
    await sendIcmp(made, GATEWAY, DB)
    const other = new Wire(made.theirs, parseMac('02:ce:11:01:00:02')!, parseMac('02:ce:11:01:00:00')!)
    sendDatagram(other, { source: GUEST, sourcePort: 1, destination: GATEWAY, destinationPort: 53 }, question('db'))
    made.theirs.give(Buffer.from('0102', 'hex'))
    made.theirs.give(Buffer.from(`02ce1101000002ce110100010806${'00'.repeat(1501)}`, 'hex'))
    made.theirs.give(Buffer.from(`02ce1101000002ce1101000186dd${'00'.repeat(40)}`, 'hex'))
    await settled()
    assert.deepEqual(heard(), [])
    assert.deepEqual(made.gateway.figures().drops,
      { 'ipv4 spoofed': 1, 'frame spoofed': 1, 'frame short': 1, 'frame long': 1, 'frame of another protocol': 1 })
  })

  test('packets with a wrong sum, a length of their own, or in fragments are dropped', async () => {
    const made = rig()
    const heard = listen(made)
    const whole = (): Buffer => {
      const wire = new Wire(made.theirs, parseMac('02:ce:11:01:00:01')!, parseMac('02:ce:11:01:00:00')!)
      wire.begin(IPPROTO_ICMP, GUEST, GATEWAY, 8)
      return Buffer.from(made.theirs.slab.bytes.subarray(3, 3 + 42))
    }
    const send = async (change: (frame: Buffer) => void): Promise<void> => {
      const frame = whole()
      change(frame)
      made.theirs.give(frame)
      await settled()
    }
    const mend = (frame: Buffer): void => {
      frame.writeUInt16BE(0, 24)
      const slab = slabOf(frame)
      frame.writeUInt16BE(~sumOf(slab, 14, 34) & 0xffff, 24)
    }
    await send((frame) => { frame[22]! ^= 1 })
    await send((frame) => { frame.writeUInt16BE(2000, 16); mend(frame) })
    await send((frame) => { frame[14] = 0x44; mend(frame) })
    await send((frame) => { frame[14] = 0x65; mend(frame) })
    await send((frame) => { frame.writeUInt16BE(0x2000, 20); mend(frame) })
    await send((frame) => { frame.writeUInt16BE(0x0001, 20); mend(frame) })
    assert.deepEqual(heard(), [])
    assert.deepEqual(made.gateway.figures().drops,
      { 'ipv4 checksum': 1, 'ipv4 short': 2, 'ipv4 version': 1, 'ipv4 fragment': 2 })
  })
})

describe('DHCP', () => {
  const message = (options: number[], mac = '02ce11010001'): Buffer => {
    const bytes = Buffer.alloc(240)
    bytes.write('01010600', 'hex')
    bytes.writeUInt32BE(0x1234_5678, 4)
    bytes.write(mac, 28, 'hex')
    bytes.writeUInt32BE(0x6382_5363, 236)
    return Buffer.concat([bytes, Buffer.from([...options, 255])])
  }
  const exchange = async (bytes: Buffer): Promise<Buffer | undefined> => {
    const made = rig()
    const heard = listen(made)
    sendDatagram(made.guest.wire, {
      source: 0, sourcePort: 68, destination: BROADCAST_ADDRESS, destinationPort: 67, isBroadcast: true,
    }, bytes)
    await settled()
    const [frame] = heard()
    return frame === undefined ? undefined : packetIn(frame).body.subarray(8)
  }

  test('a guest is offered its address with router, mask, names and MTU, and then has it', async () => {
    const offer = await exchange(message([53, 1, 1]))
    assert.equal(offer!.toString('hex', 16, 20), '0a010002')
    assert.equal(offer!.readUInt32BE(4), 0x1234_5678)
    const options = offer!.toString('hex', 240)
    for (const part of ['350102', '36040a010001', '0104ffff0000', '03040a010001', '06040a010001', '1a0205dc',
      '0c056775657374', '0f0f63656c6c61722e696e7465726e616c', '3304']) {
      assert.ok(options.includes(part), part)
    }
    const given = await exchange(message([53, 1, 3, 50, 4, 10, 1, 0, 2, 54, 4, 10, 1, 0, 1]))
    assert.equal(given!.toString('hex', 240, 243), '350105')
  })

  test('another address is refused, another server or another MAC is none of our business', async () => {
    assert.equal((await exchange(message([53, 1, 3, 50, 4, 10, 1, 0, 9])))!.toString('hex', 240, 243), '350106')
    assert.equal(await exchange(message([53, 1, 3, 50, 4, 10, 1, 0, 2, 54, 4, 10, 1, 0, 9])), undefined)
    assert.equal(await exchange(message([53, 1, 1], '02ce11010002')), undefined)
  })

  test('messages that are cut off, or whose options reach beyond them, get no answer', async () => {
    const whole = message([53, 1, 1])
    for (let size = 0; size < 240; size += 7) assert.equal(await exchange(whole.subarray(0, size)), undefined)
    assert.equal(await exchange(message([53, 1, 1, 12, 200])), undefined)
    assert.equal(await exchange(Buffer.concat([message([]).subarray(0, 240), Buffer.from([53])])), undefined)
  })
})

describe('names', () => {
  const asked: string[] = []
  const made = rig({
    allows: (name, port) =>
      name === 'one.example' ? (port ?? 80) === 80 : name === 'two.example' && (port ?? 443) === 443,
    resolve: (name) => {
      asked.push(name)
      return Promise.resolve(name === 'two.example' ? ['192.0.2.7', '10.1.0.3', '127.0.0.1', '::1'] : ['192.0.2.7'])
    },
    dial: (host, port) => {
      asked.push(`${host}:${port}`)
      return Promise.resolve(ECONNREFUSED)
    },
  })
  const heard = listen(made)

  test('peers, the guest and the gateway have names, alone and in the domain', async () => {
    assert.deepEqual(await ask(made, heard, question('db')), [0, '10.1.0.3'])
    assert.deepEqual(await ask(made, heard, question('DB.cellar.internal')), [0, '10.1.0.3'])
    assert.deepEqual(await ask(made, heard, question('guest')), [0, '10.1.0.2'])
    assert.deepEqual(await ask(made, heard, question('gateway')), [0, '10.1.0.1'])
    assert.deepEqual(await ask(made, heard, question('db', 28)), [0], 'no IPv6')
    assert.deepEqual(await ask(made, heard, question('nobody')), [3])
    assert.deepEqual(await ask(made, heard, question('nobody.cellar.internal')), [3])
    assert.equal((await ask(made, heard, question('3.0.1.10.in-addr.arpa', 12)))[0], 0)
    assert.deepEqual(await ask(made, heard, question('9.9.9.9.in-addr.arpa', 12)), [3])
    assert.deepEqual(asked, [], 'nobody outside hears of it')
  })

  test('names outside are refused without a look, unless the rules allow them', async () => {
    assert.deepEqual(await ask(made, heard, question('secret-data.evil.example')), [5])
    assert.deepEqual(asked, [])
    assert.deepEqual(await ask(made, heard, question('one.example', 16)), [0], 'no other records')
    assert.deepEqual(asked, [])
    assert.deepEqual(await ask(made, heard, question('one.example')), [0, '192.0.2.7'])
  })

  test('an address is dialled by the name that was asked for and is allowed there', async () => {
    assert.deepEqual(await ask(made, heard, question('two.example')), [0, '192.0.2.7'], 'inward addresses are left out')
    asked.length = 0
    const all = [['192.0.2.7', 80], ['192.0.2.7', 443], ['192.0.2.8', 80], ['10.1.0.3', 80]] as const
    for (const [address, port] of all) {
      void made.guest.connect(address, port)
    }
    await settled()
    assert.deepEqual(asked, ['one.example:80', 'two.example:443', '192.0.2.8:80', 'db:80'])
  })

  test('what a guest was told for its names outlives a restore', async () => {
    const again = rig({ allows: () => true, dial: (host, port) => {
      asked.push(`${host}:${port}`)
      return Promise.resolve(ECONNREFUSED)
    } })
    again.gateway.restore(made.gateway.save())
    assert.deepEqual(again.gateway.save(), made.gateway.save())
    asked.length = 0
    void again.guest.connect('192.0.2.7', 443)
    await settled()
    assert.deepEqual(asked, ['two.example:443'])
  })

  test('damaged names of a snapshot are refused', () => {
    const saved = Buffer.from(made.gateway.save())
    const bad = [Buffer.alloc(0), Buffer.from([0, 2]), saved.subarray(0, -1), saved.subarray(0, 4),
      Buffer.concat([saved.subarray(0, 6), Buffer.from([255])]),
      Buffer.concat([Buffer.from([0, 1]), ...Array.from({ length: GATEWAY_ADDRESSES_MAX + 1 }, (_, i) =>
        Buffer.from([1, 2, i >> 8, i & 255, 1, 1, 97]))])]
    for (const bytes of bad) assert.throws(() => rig().gateway.restore(bytes), { code: 'SNAPSHOT_DAMAGED' })
  })

  test('queries that make no sense get an error or nothing, and loops of names don\'t hang us', async () => {
    const loop = Buffer.from([0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1])
    assert.deepEqual(await ask(made, heard, loop), [1])
    assert.deepEqual(await ask(made, heard, question('x').subarray(0, 14)), [1])
    assert.deepEqual(await ask(made, heard, question(Array(40).fill('abcdefghij').join('.'))), [1])
    assert.deepEqual(await ask(made, heard, question('sp ace')), [3])
    const two = question('db')
    two[5] = 2
    assert.deepEqual(await ask(made, heard, two), [1])
    const update = question('db')
    update[2] = 0x28
    assert.deepEqual(await ask(made, heard, update), [4])
    for (const silent of [Buffer.alloc(0), Buffer.alloc(11), Buffer.from(question('db')).fill(0x81, 2, 3)]) {
      await sendUdp(made, GATEWAY, 53, silent)
      assert.deepEqual(heard(), [])
    }
  })

  test('a resolver that fails is told as what it says', async () => {
    for (const [what, code] of [[ENOENT, 3], [EACCES, 5], [ETIMEDOUT, 2]] as const) {
      const failing = rig({ allows: () => true, resolve: () => Promise.resolve(what) })
      assert.deepEqual(await ask(failing, listen(failing), question('a.example')), [code])
    }
    const throwing = rig({ allows: () => true, resolve: () => Promise.reject(new Error('no')) })
    assert.deepEqual(await ask(throwing, listen(throwing), question('a.example')), [2])
  })

  test('names are answered by TCP, too, one question after another', async () => {
    const other = rig()
    const stream = other.guest.connect('10.1.0.1', 53)
    await other.clock.pass(10)
    const got = await stream
    assert.ok(typeof got !== 'number')
    const answers: Buffer[] = []
    got.on('data', (bytes: Buffer) => answers.push(bytes))
    const query = question('db')
    const framed = Buffer.concat([Buffer.from([0, query.length]), query])
    got.end(Buffer.concat([framed, framed]))
    await other.clock.pass(5000)
    const all = Buffer.concat(answers)
    assert.equal(all.length, 2 * (2 + query.length + 16))
    assert.equal(all.toString('hex', all.length - 4), '0a010003')
    assert.equal(other.gateway.figures().connections, 0)
  })
})

describe('a guest and others', () => {
  test('a peer reaches a port of the guest from its own address; a port that is shut is refused', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({}, { serve: (port) => Promise.resolve(port === 80 ? theirs : ECONNREFUSED) })
    made.theirs.keeps = true
    const opened = made.gateway.open(80, { name: 'db' })
    await made.clock.pass(10)
    assert.equal(packetIn(made.theirs.seen[0]!).source, '10.1.0.3')
    const stream = await opened
    assert.ok(typeof stream !== 'number')
    stream.end('hello')
    let text = ''
    ours.on('data', (bytes: Buffer) => { text += bytes.toString() })
    await made.clock.pass(10)
    assert.equal(text, 'hello')
    const shut = made.gateway.open(81)
    await made.clock.pass(10)
    assert.equal(await shut, ECONNREFUSED)
  })

  test('a guest that isn\'t there doesn\'t hold up who wants to reach it', async () => {
    const made = rig({}, { trouble: { loss: 100 } })
    const opened = made.gateway.open(80)
    await made.clock.pass(5000)
    assert.equal(await opened, ETIMEDOUT)
  })

  test('closing the gateway resets what there is', async () => {
    const [theirs, ours] = duplexPair()
    const made = rig({ dial: () => Promise.resolve(theirs) })
    const stream = made.guest.connect('10.1.0.3', 80)
    await made.clock.pass(10)
    const got = await stream
    assert.ok(typeof got !== 'number')
    let failed = ''
    got.on('error', (error: NodeJS.ErrnoException) => { failed = error.code! })
    ours.on('error', () => {})
    made.gateway.close()
    await made.clock.pass(10)
    assert.equal(failed, 'ECONNRESET')
    assert.equal(theirs.destroyed, true)
  })

  test('machines exchange datagrams and echoes over a link; what isn\'t its sender\'s own is dropped', async () => {
    const made = rig()
    const [here, there] = cable(made.clock)
    const peerEnds = cable(made.clock)
    const peer = new Gateway(configOf('db'), {
      dial: () => Promise.resolve(ECONNREFUSED), allows: () => false, resolve: () => Promise.resolve(ENOENT),
    }, made.clock)
    peer.attach(peerEnds[0])
    peer.link('guest', there)
    peerEnds[1].keeps = true
    const linked = rig({ link: (name) => Promise.resolve(name === 'db' ? here : undefined) })
    await sendUdp(linked, DB, 514, Buffer.from('log this'))
    await sendIcmp(linked, DB)
    const [datagram, echo] = peerEnds[1].seen.map(packetIn)
    assert.deepEqual([datagram!.source, datagram!.body.toString('latin1', 8)], ['10.1.0.2', 'log this'])
    assert.equal(echo!.protocol, IPPROTO_ICMP)
    // A gateway that lies: another's address, another's port, TCP, and no packet at all.
    for (const [source, destination, protocol] of [[GATEWAY, DB, 17], [GUEST, OUTSIDE, 17], [GUEST, DB, 6]] as const) {
      const mac = parseMac('02:00:00:00:00:00')!
      const wire = new Wire({ ...NO_SINK, slab: new Slab(100) }, mac, mac)
      const at = wire.begin(protocol, source, destination, 8)
      here.give(wire.sink.slab.bytes.subarray(at - 20, at + 8))
    }
    here.give(Buffer.from('nonsense'))
    await settled()
    assert.equal(peerEnds[1].seen.length, 2)
    assert.deepEqual(peer.figures().drops, { 'link spoofed': 2, 'link malformed': 2 })
  })

  test('a peer has two lines at most: who lays one more ends the oldest', () => {
    const made = rig()
    const ended: number[] = []
    for (let i = 0; i < 4; i++) {
      const [here, there] = cable(made.clock)
      there.start({ frame: () => {}, batch: () => {}, room: () => {}, ended: () => ended.push(i) })
      made.gateway.link('db', here)
    }
    assert.deepEqual(ended, [0, 1])
    made.gateway.close()
    assert.deepEqual(ended.toSorted(), [0, 1, 2, 3])
  })

  test('datagrams go outside where the owner takes them, by the name asked for, and flows end when idle', async () => {
    const sent: string[] = []
    let closed = 0
    let receive = (_: Uint8Array): void => {}
    const made = rig({
      udp: (host, port, toGuest) => {
        receive = toGuest
        return Promise.resolve({
          send: (bytes: Uint8Array) => { sent.push(`${host}:${port} ${Buffer.from(bytes).toString()}`) },
          close: () => { closed++ },
        })
      },
    })
    const heard = listen(made)
    await sendUdp(made, OUTSIDE, 123, Buffer.from('one'))
    await sendUdp(made, OUTSIDE, 123, Buffer.from('two'))
    assert.deepEqual(sent, ['192.0.2.7:123 one', '192.0.2.7:123 two'])
    receive(Buffer.from('three'))
    await settled()
    assert.equal(packetIn(heard()[0]!).body.toString('latin1', 8), 'three')
    await made.clock.pass(120_000)
    assert.equal(closed, 1)
    for (let port = 1; port <= GATEWAY_FLOWS_MAX + 5; port++) await sendUdp(made, OUTSIDE, port, Buffer.from('x'))
    assert.equal(closed, 6)
  })
})

const NO_SINK = { begin: () => 0, end: () => {}, flush: () => {} }

test('addresses are computed from two numbers, and no two guests of a network share one', () => {
  assert.deepEqual(addressesOf(3, 1), {
    network: '10.3.0.0/16', gateway: '10.3.0.1', gatewayMac: '02:ce:11:03:00:00', address: '10.3.0.2',
    mac: '02:ce:11:03:00:01',
  })
  assert.equal(addressesOf(255, 65_000).address, '10.255.253.233')
  const seen = new Set<string>()
  for (let n = 1; n <= 65_000; n++) {
    const { address, mac } = addressesOf(0, n)
    assert.equal(textOf(parseAddress(address)!), address)
    seen.add(address).add(mac)
  }
  assert.equal(seen.size, 130_000)
  for (const [network, n] of [[-1, 1], [256, 1], [0, 0], [0, 65_001], [0, 1.5]] as const) {
    assert.throws(() => addressesOf(network, n), RangeError)
  }
})
