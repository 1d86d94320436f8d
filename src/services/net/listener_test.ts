// services/net/listener_test.ts: listening sockets on the loopback interface.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, test } from 'node:test'
import { EAGAIN } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { LISTEN_BACKLOG_MAX } from '../../base/limits.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import type { Connection } from './connection.ts'
import { listen, Listener, parseListen } from './listener.ts'

function code(expected: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof CellarError)
    assert.equal(error.code, expected)
    return true
  }
}

function readable(descriptor: Listener | Connection): Promise<void> {
  return new Promise((resolve) => { descriptor.awaitReadable(resolve) })
}

async function accept(listener: Listener): Promise<Connection> {
  for (;;) {
    const connection = listener.accept()
    if (typeof connection !== 'number') return connection
    assert.equal(connection, -EAGAIN)
    await readable(listener)
  }
}

describe('the address', () => {
  test('parseListen() takes names, IPv4 and bracketed IPv6 addresses', () => {
    assert.deepEqual(parseListen('tcp:127.0.0.1:8080'), { host: '127.0.0.1', port: 8080 })
    assert.deepEqual(parseListen('tcp:[::1]:80'), { host: '::1', port: 80 })
    assert.deepEqual(parseListen('tcp:localhost:0'), { host: 'localhost', port: 0 })
    assert.deepEqual(parseListen('tcp:0.0.0.0:65535'), { host: '0.0.0.0', port: 65_535 })
  })

  const NONSENSE = [
    '', 'tcp', 'tcp:', 'tcp:8080', 'tcp::8080', '127.0.0.1:8080', 'udp:127.0.0.1:53', 'tcp:127.0.0.1', 'tcp:127.0.0.1:',
    'tcp:127.0.0.1:65536', 'tcp:127.0.0.1:-1', 'tcp:127.0.0.1:1e3', 'tcp:127.0.0.1:80 ', 'tcp:::1:80', 'tcp:[::1]',
    'tcp:[localhost]:80', 'tcp:[127.0.0.1]:80', 'tcp:999.0.0.1:80', 'tcp:1.2.3:80', 'tcp:a b:80', 'tcp:[]:80',
  ]
  for (const spec of NONSENSE) {
    test(`listen() refuses the address ${JSON.stringify(spec)}`, async () => {
      await assert.rejects(listen(spec), code('FLAG_VALUE_INVALID'))
    })
  }

  test('listener.address tells which port was free', async () => {
    const listener = await listen('tcp:127.0.0.1:0')
    assert.ok(listener.port > 0)
    assert.equal(listener.address, `127.0.0.1:${listener.port}`)
    listener.close()
  })

  test('listener.address has an IPv6 address in brackets', async (context) => {
    let listener: Listener
    try {
      listener = await listen('tcp:[::1]:0')
    } catch (error) {
      context.skip(`no IPv6 on this machine: ${String(error)}`)
      return
    }
    assert.equal(listener.address, `[::1]:${listener.port}`)
    const peer = connect(listener.port, '::1')
    const connection = await accept(listener)
    connection.close()
    peer.destroy()
    listener.close()
  })

  test('a port in use is PORT_IN_USE, an address that is not here LISTEN_FAILED', async () => {
    const other = createServer().listen(0, '127.0.0.1')
    await once(other, 'listening')
    const { port } = other.address() as AddressInfo
    await assert.rejects(listen(`tcp:127.0.0.1:${port}`), code('PORT_IN_USE'))
    other.close()
    await assert.rejects(listen('tcp:192.0.2.1:0'), code('LISTEN_FAILED'))
    await assert.rejects(listen('tcp:no-such-host.invalid:0'), code('LISTEN_FAILED'))
  })
})

describe('accepting', () => {
  test('accept() would wait, then gives connections in the order in which they came', async () => {
    const listener = await listen('tcp:127.0.0.1:0')
    assert.equal(listener.accept(), -EAGAIN)
    assert.equal(listener.pollRead(), -EAGAIN)
    const peers: Socket[] = []
    for (const name of ['a', 'b', 'c']) {
      const peer = connect(listener.port, '127.0.0.1')
      const arrived = readable(listener)
      await Promise.all([once(peer, 'connect'), arrived])
      peer.write(name)
      peers.push(peer)
    }
    assert.equal(listener.pollRead(), 1)
    const names: string[] = []
    const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
    const iovecs = new Iovecs()
    memory.setU32(0, 100)
    memory.setU32(4, 10)
    for (let i = 0; i < 3; i++) {
      const connection = await accept(listener)
      await readable(connection)
      iovecs.load(memory, 0, 1)
      names.push(Buffer.from(memory.at(100, connection.recv(iovecs))).toString())
      connection.close()
    }
    assert.deepEqual(names, ['a', 'b', 'c'])
    assert.equal(listener.accept(), -EAGAIN)
    for (const peer of peers) peer.destroy()
    listener.close()
  })

  test('nothing is read from a connection that the guest has not accepted', async () => {
    const listener = await listen('tcp:127.0.0.1:0')
    const peer = connect(listener.port, '127.0.0.1')
    peer.on('error', () => {})
    peer.write(Buffer.alloc(16 * 1024 * 1024))
    await readable(listener)
    await sleep(100)
    assert.ok(peer.writableLength > 0, 'the kernel holds up the peer')
    const connection = await accept(listener)
    assert.equal(connection.unread, 0)
    await readable(connection)
    assert.ok(connection.unread > 0)
    connection.reset()
    peer.destroy()
    listener.close()
  })

  test('beyond LISTEN_BACKLOG_MAX a connection is reset, and those that wait are kept', async () => {
    // A server of our own, so that the backlog fills without thousands of real sockets.
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const listener = new Listener(server)
    const { Socket: FakeSocket } = await import('node:net')
    for (let i = 0; i < LISTEN_BACKLOG_MAX; i++) server.emit('connection', new FakeSocket().pause())
    const peer = connect(listener.port, '127.0.0.1')
    const [error] = await once(peer, 'error') as [NodeJS.ErrnoException]
    assert.equal(error.code, 'ECONNRESET')
    assert.equal(listener.refused, 1)

    // One is accepted: there is room for one again.
    assert.notEqual(listener.accept(), -EAGAIN)
    const next = connect(listener.port, '127.0.0.1')
    await Promise.all([once(next, 'connect'), readable(listener)])
    assert.equal(listener.refused, 1)
    next.on('error', () => {})
    listener.close()
  })

  test('an error in taking a connection is not the end of the listener', async () => {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const listener = new Listener(server)
    server.emit('error', Object.assign(new Error('accept EMFILE'), { code: 'EMFILE' }))
    const peer = connect(listener.port, '127.0.0.1')
    const connection = await accept(listener)
    connection.close()
    peer.destroy()
    listener.close()
  })

  test('close() resets who waits, frees the port, and can be called twice', async () => {
    const listener = await listen('tcp:127.0.0.1:0')
    const peer = connect(listener.port, '127.0.0.1')
    await readable(listener)
    const failed = once(peer, 'error') as Promise<[NodeJS.ErrnoException]>
    listener.close()
    listener.close()
    assert.equal((await failed)[0].code, 'ECONNRESET')
    assert.equal(listener.accept(), -EAGAIN)
    const again = await listen(`tcp:127.0.0.1:${listener.port}`)
    again.close()
  })

  test('a thousand connections at once are each echoed', async () => {
    const listener = await listen('tcp:127.0.0.1:0')
    const COUNT = 1000
    const served = serve(listener, COUNT)
    const peers = Array.from({ length: COUNT }, (_, i) => {
      const peer = connect({ port: listener.port, host: '127.0.0.1', allowHalfOpen: true })
      peer.end(`message ${i}`)
      return peer
    })
    const answers = await Promise.all(peers.map(async (peer) => {
      let text = ''
      for await (const chunk of peer) text += String(chunk)
      return text
    }))
    assert.deepEqual(answers, Array.from({ length: COUNT }, (_, i) => `message ${i}`))
    await served
    listener.close()
  })
})

/** An echo server such as a guest is: one memory, one list of ranges, a loop for each connection. */
async function serve(listener: Listener, count: number): Promise<void> {
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  const iovecs = new Iovecs()
  const ranges = (length: number): Iovecs => {
    memory.setU32(0, 1000)
    memory.setU32(4, length)
    iovecs.load(memory, 0, 1)
    return iovecs
  }
  const echo = async (connection: Connection): Promise<void> => {
    for (;;) {
      const received = connection.recv(ranges(1000))
      if (received === -EAGAIN) {
        await readable(connection)
        continue
      }
      if (received === 0) break
      assert.ok(received > 0)
      assert.equal(connection.send(ranges(received)), received)
    }
    connection.close()
  }
  const all: Promise<void>[] = []
  for (let i = 0; i < count; i++) all.push(echo(await accept(listener)))
  await Promise.all(all)
}
