// tests/functional/net_test.ts: a server in a cell: guests/echo.c behind --listen.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { connected, freePort, guest, start, type Options, type Running } from '../support.ts'

const MIB = 1024 * 1024

/** The echo server, until it has served `connections`; `flags` are Cellar's. */
async function echo(connections: number, flags: readonly string[] = [], options: Options = {}):
    Promise<{ port: number; running: Running } & Disposable> {
  const port = await freePort()
  const running = start(['run', ...flags, '--listen', `tcp:127.0.0.1:${port}`, guest('echo'), String(connections)],
    options)
  return { port, running, [Symbol.dispose]: () => running[Symbol.dispose]() }
}

async function served({ running }: { running: Running }, count: number): Promise<void> {
  const { status, stdout, stderr } = await running.ended
  assert.equal(status, 0, stderr)
  assert.equal(stdout.toString(), `served ${count} connections\n`)
}

async function received(socket: Socket, delay = async (): Promise<void> => {}): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of socket) {
    chunks.push(chunk as Buffer)
    await delay()
  }
  return Buffer.concat(chunks)
}

test('a guest serves 1,000 connections at once, each with its own bytes', async () => {
  const COUNT = 1000
  using server = await echo(COUNT)
  const sockets = [await connected(server.port)]
  while (sockets.length < COUNT) {
    sockets.push(...await Promise.all(Array.from({ length: Math.min(100, COUNT - sockets.length) },
      () => connected(server.port))))
  }
  // All are open, none has ended: now each talks twice.
  const messages = sockets.map((_, i) => randomBytes(1 + (i * 37) % 5000))
  const answers = sockets.map((socket) => received(socket))
  sockets.forEach((socket, i) => socket.write(messages[i]!.subarray(0, messages[i]!.length / 2)))
  await sleep(50)
  sockets.forEach((socket, i) => socket.end(messages[i]!.subarray(messages[i]!.length / 2)))
  for (const [i, answer] of (await Promise.all(answers)).entries()) {
    assert.ok(answer.equals(messages[i]!), `connection ${i}: ${answer.length} of ${messages[i]!.length} bytes`)
  }
  await served(server, COUNT)
})

test('a reader that is slow holds its own connection and no other', async () => {
  using server = await echo(3)
  const slow = await connected(server.port)
  const message = randomBytes(16 * MIB)
  slow.end(message)
  await sleep(300)
  for (let i = 0; i < 2; i++) {
    const quick = await connected(server.port)
    quick.end(`quick ${i}`)
    assert.equal((await received(quick)).toString(), `quick ${i}`)
  }
  assert.ok((await received(slow)).equals(message))
  await served(server, 3)
})

test('a reader that is slower than the end of the guest gets everything', async () => {
  for (const flags of [[], ['--stats']]) {
    using server = await echo(1, flags)
    const socket = await connected(server.port)
    // More than the buffers of both kernels hold, so that the guest ends while its peer still reads.
    const message = randomBytes(32 * MIB)
    socket.end(message)
    await sleep(200)
    const answer = await received(socket, async () => { await sleep(1) })
    assert.ok(answer.equals(message), `${answer.length} of ${message.length} bytes`)
    await served(server, 1)
  }
})

test('a peer that resets its connection harms no other, nor the guest', async () => {
  using server = await echo(22)
  const steady = await connected(server.port)
  for (let i = 0; i < 20; i++) {
    const socket = await connected(server.port)
    socket.on('error', () => {})
    socket.write(randomBytes(i % 2 === 0 ? 10 : 2 * MIB))
    if (i % 4 < 2) await sleep(5)
    socket.resetAndDestroy()
  }
  steady.end('still here')
  assert.equal((await received(steady)).toString(), 'still here')
  const last = await connected(server.port)
  last.end('and after')
  assert.equal((await received(last)).toString(), 'and after')
  const { status, stderr } = await server.running.ended
  assert.equal(status, 0, stderr)
})

test('a server under supervision counts what it did and is stopped by its time', async () => {
  using server = await echo(0, ['--stats', '--timeout', '3s'])
  for (let i = 0; i < 5; i++) {
    const socket = await connected(server.port)
    socket.end('hello')
    assert.equal((await received(socket)).toString(), 'hello')
  }
  const { status, stderr } = await server.running.ended
  assert.equal(status, 124)
  assert.match(stderr, /sock_shutdown 5\b/)
})

test('a server has its port for itself while it runs, and leaves it at once', async () => {
  using server = await echo(1)
  const socket = await connected(server.port)
  using second = start(['run', '--listen', `tcp:127.0.0.1:${server.port}`, guest('echo')])
  const { status, stderr } = await second.ended
  assert.equal(status, 125)
  assert.match(stderr, /\[PORT_IN_USE\]/)
  socket.end('x')
  assert.equal((await received(socket)).toString(), 'x')
  await served(server, 1)
  using third = start(['run', '--listen', `tcp:127.0.0.1:${server.port}`, guest('echo'), '1'])
  const again = await connected(server.port)
  again.end('y')
  assert.equal((await received(again)).toString(), 'y')
  await served({ running: third }, 1)
})

test('Ctrl-C ends a server that waits, with its connections', async () => {
  using server = await echo(0)
  const socket = await connected(server.port)
  const closed = new Promise((done) => { socket.once('close', done) })
  socket.on('error', () => {})
  socket.resume().on('end', () => socket.end())
  server.running.child.kill('SIGINT')
  assert.equal((await server.running.ended).signal, 'SIGINT')
  await closed
})
