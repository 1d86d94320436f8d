// cell/switchboard_test.ts: names, ports and dials over several pCPUs' parts of the networks, all on this thread.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { fstatSync, openSync } from 'node:fs'
import { connect } from 'node:net'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import {
  EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH,
} from '../base/errno.ts'
import { LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import { connectionOn } from '../services/net/connection.ts'
import type { PortListener } from '../services/net/port_listener.ts'
import type { StreamSocket } from '../services/net/stream_socket.ts'
import { put, readable, receive } from '../services/net/test_support.ts'
import { isSupported } from '../sys/libc.ts'
import { listenTcp, socketPair } from '../sys/sockets.ts'
import { Descriptors } from '../wasi/p1/descriptors.ts'
import { PcpuNet } from './pcpu_net.ts'
import { Switchboard } from './switchboard.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

type Outside = (id: string, name: string, port: number) => Promise<{ fd: number } | number>

/** Three pCPUs and their switchboard. */
class Process {
  readonly nets: PcpuNet[]
  readonly switchboard: Switchboard

  constructor(outside: Outside = async () => EHOSTUNREACH) {
    this.switchboard = new Switchboard({ post: (pcpu, command) => this.nets[pcpu]!.handle(command), outside })
    this.nets = [0, 1, 2].map((i) => new PcpuNet((report) => this.switchboard.report(i, report)))
  }

  /** A guest that listens on the ports: its listening sockets. */
  async guest(id: string, pcpu: number, ports: number[] = [], networks = ['default']): Promise<PortListener[]> {
    this.switchboard.add(id, { name: id, networks, pcpu })
    return await this.granted(id, pcpu, ports)
  }

  async granted(id: string, pcpu: number, ports: number[]): Promise<PortListener[]> {
    const descriptors = new Descriptors()
    const granted = { guest: id, ports: ports.map((port) => ({ port, fds: [] })), connect: [] }
    await this.nets[pcpu]!.grant(descriptors, granted)
    return ports.map((_, i) => descriptors.get(i)!.descriptor as PortListener)
  }

  async dial(guest: string, pcpu: number, name: string, port: number): Promise<StreamSocket | number> {
    // The trunks' ports keep nobody alive.
    const alive = setInterval(() => {}, 1000)
    try {
      return await this.nets[pcpu]!.dialer(guest).dial(name, port)
    } finally {
      clearInterval(alive)
    }
  }
}

function connected(answer: StreamSocket | number): StreamSocket {
  assert.ok(typeof answer !== 'number', `errno ${String(answer)}`)
  return answer
}

for (const [where, pcpu] of [['the same pCPU', 0], ['another pCPU', 1]] as const) {
  test(`dial() reaches a port of a guest on ${where}, which accepts and answers`, async () => {
    const process = new Process()
    await process.guest('client', 0)
    const [port80, port81] = await process.guest('server', pcpu, [80, 81])
    const client = connected(await process.dial('client', 0, 'server', 81))
    assert.equal(port80!.pollRead(), -EAGAIN)
    assert.equal(port81!.pollRead(), 1)
    const server = connected(port81!.accept())
    assert.equal(port81!.accept(), -EAGAIN)
    const alive = setInterval(() => {}, 1000)
    client.send(put('ping'))
    assert.equal(await receive(server), 'ping')
    server.send(put('pong'))
    server.close()
    assert.equal(await receive(client), 'pong')
    assert.equal(await receive(client), '')
    clearInterval(alive)
  })

  test(`dial() is refused where nobody listens, or has ceased to, on ${where}`, async () => {
    const process = new Process()
    await process.guest('client', 0)
    const [listener] = await process.guest('server', pcpu, [80])
    assert.equal(await process.dial('client', 0, 'server', 79), ECONNREFUSED)
    const waiting = connected(await process.dial('client', 0, 'server', 80))
    const alive = setInterval(() => {}, 1000)
    const broken = readable(waiting)
    listener!.close()
    await broken
    assert.equal(await receive(waiting), `error ${ECONNRESET}`)
    clearInterval(alive)
    assert.equal(await process.dial('client', 0, 'server', 80), ECONNREFUSED)
  })

  test(`dial() waits for a guest that is starting on ${where}, for a while`, async () => {
    const process = new Process()
    await process.guest('client', 0)
    process.switchboard.add('server', { name: 'server', networks: ['default'], pcpu })
    process.switchboard.add('never', { name: 'never', networks: ['default'], pcpu })
    const [dialed, refused] = [process.dial('client', 0, 'server', 80), process.dial('client', 0, 'never', 80)]
    await sleep(20)
    const [listener] = await process.granted('server', pcpu, [80])
    connected(await dialed)
    assert.equal(listener!.pollRead(), 1)
    assert.equal(await refused, ECONNREFUSED)
  })
}

test('dial() reaches a guest that has moved to another pCPU, and waits for it on the way', async () => {
  const process = new Process()
  await process.guest('client', 0)
  await process.guest('server', 0, [80])
  process.switchboard.move('server', 1)
  const dialed = process.dial('client', 0, 'server', 80)
  process.nets[0]!.release('server')
  await sleep(20)
  const [listener] = await process.granted('server', 1, [80])
  const client = connected(await dialed)
  const server = connected(listener!.accept())
  const alive = setInterval(() => {}, 1000)
  client.send(put('ping'))
  assert.equal(await receive(server), 'ping')
  clearInterval(alive)
  process.switchboard.move('nobody', 1)
})

test('dial() is refused beyond the backlog', async () => {
  const process = new Process()
  await process.guest('client', 0)
  const [listener] = await process.guest('server', 0, [80])
  for (let i = 0; i < LISTEN_BACKLOG_MAX; i++) connected(await process.dial('client', 0, 'server', 80))
  assert.equal(await process.dial('client', 0, 'server', 80), ECONNREFUSED)
  connected(listener!.accept())
  connected(await process.dial('client', 0, 'server', 80))
})

test('names are known within shared networks only; others are outside', async () => {
  const asked: string[] = []
  const process = new Process(async (id, name, port) => {
    asked.push(`${id} ${name} ${port}`)
    return EHOSTUNREACH
  })
  await process.guest('client', 0, [], ['a', 'b'])
  await process.guest('one', 1, [80], ['b'])
  await process.guest('two', 1, [80], ['c'])
  await process.guest('alone', 2, [80], [])
  connected(await process.dial('client', 0, 'one', 80))
  assert.equal(await process.dial('client', 0, 'two', 80), EHOSTUNREACH)
  assert.equal(await process.dial('alone', 2, 'alone', 80), EHOSTUNREACH)
  assert.equal(await process.dial('nobody', 2, 'one', 80), ENETUNREACH)
  process.switchboard.remove('one')
  assert.equal(await process.dial('client', 0, 'one', 80), EHOSTUNREACH)
  assert.deepEqual(asked, ['client two 80', 'alone alone 80', 'client one 80'])
})

test('release() fails what a guest is dialing, and closes what comes too late', async () => {
  const late = Promise.withResolvers<{ fd: number }>()
  const process = new Process(() => late.promise)
  await process.guest('client', 0)
  const dialed = process.dial('client', 0, 'elsewhere', 80)
  await turn()
  process.nets[0]!.release('client')
  assert.equal(await dialed, ECONNABORTED)
  const fd = openSync('/dev/null', 'r')
  late.resolve({ fd })
  await turn()
  assert.equal(openSync('/dev/null', 'r'), fd, 'the number is free again')
})

test('outside() gives a connected socket, which the guest gets as its connection', { skip }, async () => {
  const [fd, other] = socketPair()
  const process = new Process(async () => ({ fd }))
  await process.guest('client', 0)
  const client = connected(await process.dial('client', 0, 'example.com', 443))
  const far = connectionOn(other)
  far.start()
  client.send(put('question'))
  assert.equal(await receive(far), 'question')
  far.send(put('answer'))
  far.close()
  assert.equal(await receive(client), 'answer')
  assert.equal(await receive(client), '')
  client.close()
})

test('incoming() gives a port connections from elsewhere, and refuses where nobody listens', { skip }, async () => {
  const [fd, other] = socketPair()
  const process = new Process()
  const [listener] = await process.guest('server', 1, [80])
  assert.equal(process.switchboard.incoming('server', 81, fd), ECONNREFUSED)
  assert.equal(process.switchboard.incoming('nobody', 80, fd), ECONNREFUSED)
  assert.equal(process.switchboard.incoming('server', 80, fd), 0)
  const far = connectionOn(other)
  far.start()
  far.send(put('question'))
  await readable(listener!)
  const connection = connected(listener!.accept())
  assert.equal(await receive(connection), 'question')
  connection.close()
  assert.equal(await receive(far), '')
  far.close()
})

test('a port takes connections of cells and of sockets of the host in turns', { skip }, async () => {
  const process = new Process()
  await process.guest('client', 0)
  process.switchboard.add('server', { name: 'server', networks: ['default'], pcpu: 0 })
  const socket = listenTcp('127.0.0.1', 0, 16)
  assert.ok(typeof socket !== 'number')
  const descriptors = new Descriptors()
  const grants = { guest: 'server', ports: [{ port: 80, fds: [socket.fd] }], connect: [] }
  await process.nets[0]!.grant(descriptors, grants)
  const clients = [1, 2, 3].map(() => connect(socket.port, '127.0.0.1'))
  try {
    await Promise.all(clients.map((client) => once(client, 'connect')))
    const listener = descriptors.get(0)!.descriptor as PortListener
    for (let i = 0; i < 3; i++) connected(await process.dial('client', 0, 'server', 80))
    const order: string[] = []
    while (order.length < 6) {
      if (listener.pollRead() < 0) await readable(listener)
      order.push(connected(listener.accept()).constructor.name)
    }
    assert.deepEqual(order.slice(0, 2).toSorted(), ['Connection', 'PipeEnd'])
    assert.equal(order.filter((name) => name === 'PipeEnd').length, 3)
  } finally {
    for (const client of clients) client.destroy()
    descriptors.closeAll()
  }
})

test('grant() throws for what is no listening socket, and holds nothing then', { skip }, async () => {
  const process = new Process()
  const descriptors = new Descriptors()
  const [one, other] = [openSync('/dev/null', 'r'), openSync('/dev/null', 'r')]
  const grants = { guest: 'server', ports: [{ port: 80, fds: [one, other] }], connect: [] }
  await assert.rejects(process.nets[0]!.grant(descriptors, grants), { code: 'LISTEN_FAILED' })
  descriptors.closeAll()
  assert.throws(() => fstatSync(other), { code: 'EBADF' })
})

test('open() connects the main thread itself', async () => {
  const process = new Process()
  const [listener] = await process.guest('server', 1, [80])
  const alive = setInterval(() => {}, 1000)
  assert.equal(await process.switchboard.open('server', 81), ECONNREFUSED)
  assert.equal(await process.switchboard.open('nobody', 80), ECONNREFUSED)
  const peer = await process.switchboard.open('server', 80)
  assert.ok(typeof peer !== 'number')
  const heard: string[] = []
  const end = new Promise<number>((resolve) => { peer.onEnd = resolve })
  peer.onData = (bytes) => heard.push(Buffer.from(bytes).toString())
  assert.ok(peer.write(Buffer.from('GET')))
  assert.equal(peer.write(Buffer.alloc(1_000_000)), false)
  const server = connected(listener!.accept())
  assert.equal(await receive(server), 'GET')
  server.send(put('200'))
  server.close()
  assert.equal(await end, 0)
  assert.deepEqual(heard, ['200'])
  peer.close()
  clearInterval(alive)
  process.switchboard.close()
})

test('connect grants a connection that is made at its first use, however late its other end starts', async () => {
  const process = new Process()
  process.switchboard.add('client', { name: 'client', networks: ['default'], pcpu: 0 })
  const descriptors = new Descriptors()
  await process.nets[0]!.grant(descriptors, { guest: 'client', ports: [], connect: [{ name: 'db', port: 1 }] })
  const lazy = descriptors.get(0)!.descriptor as StreamSocket
  assert.equal(lazy.pollWrite(), -EAGAIN)
  const [listener] = await process.guest('db', 0, [1])
  await new Promise<void>((resolve) => { lazy.awaitWritable(resolve) })
  assert.ok(lazy.pollWrite() > 0)
  assert.equal(lazy.send(put('select')), 6)
  assert.equal(await receive(connected(listener!.accept())), 'select')
})
