// host/machine_net_test.ts: a machine's network card in its process: who reaches the guest, and whom it reaches.
//
// The guest speaks TCP by the gateway's own code, at the other end of the descriptor that an engine gets. The host is
// a line that notes what it is told.

import assert from 'node:assert/strict'
import { connect, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { afterEach, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT } from '../base/errno.ts'
import { addressesOf } from '../services/gateway/addresses.ts'
import { processClock } from '../services/gateway/clock.ts'
import { FrameStream } from '../services/gateway/frame_stream.ts'
import type { GatewayConfig } from '../services/gateway/gateway.ts'
import { TestGuest } from '../services/gateway/test_support.ts'
import { listenTcp, socketPair, type FdReceiver } from '../sys/sockets.ts'
import type { HostLine } from './host_line.ts'
import { MachineNet } from './machine_net.ts'
import type { FromProcess, GuestLaunch, Peer } from './protocol.ts'

const NETWORK = 77
const PEERS: readonly Peer[] = [{ name: 'Db', address: 9, kind: 'cell' }, { name: 'vm2', address: 3, kind: 'machine' }]

type Sent = FromProcess & Record<string, unknown>
type Rig = {
  readonly net: MachineNet; readonly guest: TestGuest; readonly sent: Sent[]; readonly line: { isConnected: boolean }
  /** Hands a descriptor over: its ticket. */
  give(fd: number): number
  /** The next message of this kind. */
  says(key: string): Promise<Sent>
}

/** A net with a guest at its end. `serve`: what the guest's ports lead to; `ports`: those that are published. */
function rig(t: TestContext, { serve, ports = [], egress = [] }: {
  serve?: (port: number) => Promise<Duplex | number>; egress?: readonly string[]
  ports?: readonly { port: number; fds: readonly number[] }[] } = {}): Rig {
  const given = new Map<number, number>()
  const give = (fd: number): number => {
    given.set(given.size + 1, fd)
    return given.size
  }
  const receiver = { take: (ticket: number) => {
    const fd = given.get(ticket)
    given.set(ticket, undefined as never)
    return fd
  } } as unknown as FdReceiver
  const sent: Sent[] = []
  const line = { isConnected: true, send: (message: FromProcess) => { sent.push(message as Sent) } }
  const launch = { id: 'a', run: 1, name: 'vm', ports: ports.map(({ port, fds }) => ({ port, tickets: fds.map(give) })),
    machine: { address: 2, egress, peers: PEERS } } as unknown as GuestLaunch
  const net = new MachineNet(launch, { line: line as unknown as HostLine, receiver })
  const [nic] = net.connect()
  const config = { ...addressesOf(NETWORK, 2), mac: nic!.mac, mtu: nic!.mtu } as GatewayConfig
  const socket = new Socket({ fd: nic!.fd, readable: true, writable: true })
  const guest = new TestGuest(config, new FrameStream(socket), processClock, serve)
  t.after(() => {
    net.close()
    socket.destroy()
  })
  return { net, guest, sent, line, give, async says(key) {
    for (;;) {
      const at = sent.findIndex((message) => key in message)
      if (at >= 0) return sent.splice(at, 1)[0]!
      await sleep(2)
    }
  } }
}

/** Two connected streams, the second one as a descriptor. */
function pair(): [Socket, number] {
  const [mine, theirs] = socketPair()
  return [socketOf(mine), theirs]
}

const sockets: Socket[] = []
function socketOf(fd: number): Socket {
  sockets.push(new Socket({ fd, allowHalfOpen: true, readable: true, writable: true }))
  return sockets.at(-1)!
}
afterEach(() => { for (const socket of sockets.splice(0)) socket.destroy() })

/** All that comes, until its end. (An async iterator would destroy the stream then, with what it is yet to write.) */
async function text(stream: Duplex): Promise<string> {
  if (stream.readableEnded) return ''
  const pieces: Buffer[] = []
  stream.on('data', (bytes: Buffer) => pieces.push(bytes))
  await new Promise<void>((resolve, reject) => { stream.on('end', resolve).on('close', resolve).on('error', reject) })
  return Buffer.concat(pieces).toString()
}

/** What a guest's ports lead to: port 80 says what it heard, in capitals, when it has heard all; others refuse. */
async function shouting(port: number): Promise<Duplex | number> {
  if (port !== 80) return ECONNREFUSED
  const [ours, fd] = pair()
  const theirs = socketOf(fd)
  void text(theirs).then((heard) => theirs.end(heard.toUpperCase()))
  return ours
}

test('a connection from outside comes to the guest by its published port, with both of its ends', async (t) => {
  const listening = listenTcp('127.0.0.1', 0, 8) as { fd: number; port: number }
  const { net } = rig(t, { serve: shouting, ports: [{ port: 80, fds: [listening.fd] }] })
  net.listen()
  const heard = await Promise.all(['one', 'x'.repeat(200_000)].map(async (said) => {
    const socket = connect({ port: listening.port, host: '127.0.0.1', allowHalfOpen: true })
    socket.end(said)
    return await text(socket)
  }))
  assert.equal(heard[0], 'ONE')
  assert.ok(heard[1] === 'X'.repeat(200_000), `${heard[1]!.length} bytes`)
})

test('a published port that nobody in the guest listens on is reset, and the next connection is taken', async (t) => {
  const listening = listenTcp('127.0.0.1', 0, 8) as { fd: number; port: number }
  const { net } = rig(t, { serve: shouting, ports: [{ port: 81, fds: [listening.fd] }] })
  net.listen()
  for (let i = 0; i < 3; i++) {
    const socket = connect({ port: listening.port, host: '127.0.0.1' })
    const error = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
      socket.on('error', resolve).on('close', () => resolve(undefined))
    })
    assert.equal(error?.code, 'ECONNRESET')
  }
})

test('a connection of another guest is answered with what the guest says: taken, or refused', async (t) => {
  const { net, says, give } = rig(t, { serve: shouting })
  const from: Peer = PEERS[0]!
  const [mine, theirs] = pair()
  net.incoming({ incoming: 'a', port: 80, ticket: give(theirs), request: 5, from })
  assert.deepEqual(await says('incoming'), { incoming: 5, errno: 0 })
  mine.end('hello')
  assert.equal(await text(mine), 'HELLO')
  const [refused, refusedTheirs] = pair()
  net.incoming({ incoming: 'a', port: 81, ticket: give(refusedTheirs), request: 6, from })
  assert.deepEqual(await says('incoming'), { incoming: 6, errno: ECONNREFUSED })
  assert.equal(await text(refused).catch(() => ''), '', 'its end is closed')
  net.incoming({ incoming: 'a', port: 80, ticket: 99, request: 7, from })
  assert.deepEqual(await says('incoming'), { incoming: 7, errno: ECONNREFUSED }, 'no descriptor came')
})

test('the guest reaches a peer by its address: dialled by the name as it is written', async (t) => {
  const { net, guest, says, give } = rig(t)
  const connecting = guest.connect(addressesOf(NETWORK, 9).address, 5432)
  const dial = await says('dial')
  assert.deepEqual({ ...dial, dial: 0 }, { dial: 0, id: 'a', name: 'Db', port: 5432 })
  const [theirs, fd] = pair()
  net.answered({ dialled: dial['dial'] as number, ticket: give(fd) })
  const stream = await connecting as Duplex
  stream.write('ping')
  theirs.once('data', (bytes: Buffer) => theirs.end(`${bytes.toString()} pong`))
  assert.equal(await text(stream), 'ping pong')
})

test('a guest that breaks a connection to another guest breaks its other end, and nothing else', async (t) => {
  const { net, guest, says, give } = rig(t)
  const connecting = guest.connect(addressesOf(NETWORK, 9).address, 5432)
  const [theirs, fd] = pair()
  net.answered({ dialled: (await says('dial'))['dial'] as number, ticket: give(fd) })
  const stream = await connecting as Duplex
  stream.on('error', () => {})
  theirs.write('never read')
  await sleep(20)
  stream.destroy()
  assert.equal(await text(theirs).catch(() => ''), '')
})

test('a dial that is refused, or that nobody answers, is refused to the guest', async (t) => {
  const { net, guest, says, line, sent } = rig(t)
  const refused = guest.connect(addressesOf(NETWORK, 9).address, 1)
  net.answered({ dialled: (await says('dial'))['dial'] as number, errno: ECONNREFUSED })
  assert.equal(typeof await refused, 'number')
  const lost = net.connectFor({ name: 'db', port: 2 })
  await says('dial')
  line.isConnected = false
  net.unanswered()
  assert.deepEqual(await lost, { errno: EHOSTUNREACH })
  assert.deepEqual(await net.connectFor({ name: 'db', port: 3 }), { errno: EHOSTUNREACH }, 'no host is there')
  assert.deepEqual(sent, [])
})

test("a program asks its agent for connections: the host's answer is its answer", async (t) => {
  const { net, says, give, line } = rig(t)
  const asked = net.connectFor({ name: 'example.com', port: 443 })
  const dial = await says('dial')
  assert.deepEqual([dial['name'], dial['port']], ['example.com', 443])
  net.answered({ dialled: dial['dial'] as number, errno: ETIMEDOUT })
  assert.deepEqual(await asked, { errno: ETIMEDOUT })
  const again = net.connectFor({ name: 'db', port: 1 })
  const [, fd] = pair()
  net.answered({ dialled: (await says('dial'))['dial'] as number, ticket: give(fd) })
  assert.equal((await again).errno, 0)
  line.isConnected = false
  assert.deepEqual(await net.connectFor({ name: 'db', port: 1 }), { errno: EHOSTUNREACH })
})

test('whom the guest knows changes as the host says, and is compared as DNS compares names', async (t) => {
  const { net, guest, says } = rig(t)
  net.knows([{ name: 'New', address: 12, kind: 'cell' }])
  void guest.connect(addressesOf(NETWORK, 12).address, 1)
  assert.equal((await says('dial'))['name'], 'New')
  void net.connectFor({ name: 'new', port: 1 })
  assert.equal((await says('dial'))['name'], 'New')
  void net.connectFor({ name: 'db', port: 1 })
  assert.equal((await says('dial'))['name'], 'db', 'Db is gone')
})

test('a line of frames is for machines: one that does not say who it is from is closed', async (t) => {
  const { net, says, give } = rig(t)
  const [mine, theirs] = pair()
  net.incoming({ incoming: 'a', port: 0, ticket: give(theirs), request: 1, from: PEERS[1]! })
  assert.deepEqual(await says('incoming'), { incoming: 1, errno: 0 })
  mine.destroy()
  const [other, otherTheirs] = pair()
  net.incoming({ incoming: 'a', port: 0, ticket: give(otherTheirs), request: 2 })
  assert.deepEqual(await says('incoming'), { incoming: 2, errno: ECONNREFUSED })
  assert.equal(await text(other).catch(() => ''), '')
})

test('a net that is closed takes nothing, and what it had listened on is free', async (t) => {
  const listening = listenTcp('127.0.0.1', 0, 8) as { fd: number; port: number }
  const { net, says, give } = rig(t, { serve: shouting, ports: [{ port: 80, fds: [listening.fd] }] })
  net.listen()
  const dialling = net.connectFor({ name: 'db', port: 1 })
  await says('dial')
  net.close()
  assert.deepEqual(await dialling, { errno: EHOSTUNREACH })
  const [, theirs] = pair()
  net.incoming({ incoming: 'a', port: 80, ticket: give(theirs), request: 1, from: PEERS[0]! })
  assert.deepEqual(await says('incoming'), { incoming: 1, errno: ECONNREFUSED })
  const again = listenTcp('127.0.0.1', listening.port, 8)
  assert.notEqual(typeof again, 'number')
})

test('health is asked for at a port of the guest', async (t) => {
  const { net } = rig(t, { serve: shouting })
  assert.equal(await net.openForHealth(81), ECONNREFUSED)
  const peer = await net.openForHealth(80)
  assert.notEqual(typeof peer, 'number')
  if (typeof peer !== 'number') peer.close()
})

