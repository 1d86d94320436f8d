// tests/faults/host_crowd_test.ts: thousands of clients at once, on a guest's port and on the API.
//
// The clients are in this process; the host and the guest's process have as many descriptors as `ulimit -n` lets them.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { API_CONNECTIONS_MAX } from '../../src/base/limits.ts'
import { eventually, startHost } from '../host_support.ts'
import { createGuest, importProgram, inPhase, pidOf } from './faults_support.ts'

const CLIENTS = 10_000

/** As many at once: the queue of a listener is bounded, by the kernel, too. */
const AT_ONCE = 1000

/** Adds connections of so many clients. `taken` resolves when so many have been taken. */
async function crowd(sockets: Socket[], open: (i: number) => Socket, taken: (count: number) => Promise<unknown>):
Promise<void> {
  while (sockets.length < CLIENTS) {
    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
      const socket = open(sockets.length).on('error', () => {})
      sockets.push(socket)
      await new Promise((resolve) => { socket.once('connect', resolve).once('error', resolve).once('close', resolve) })
    }))
    await taken(sockets.length)
  }
}

async function heard(socket: Socket): Promise<string> {
  return await new Promise((resolve) => { socket.once('data', (data: Buffer) => resolve(data.toString())) })
}

function leave(sockets: readonly Socket[]): void {
  for (const socket of sockets) socket.destroy()
}

function openFiles(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length
}

const openMax = Number(/Max open files\s+(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8'))![1])
const few = openMax < CLIENTS + 1000 ? `10,000 connections need as many descriptors: ulimit -n is ${openMax}` : false

test('two guests serve 10,000 connections, others go on, and afterwards all is released', { skip: few }, async () => {
  await using host = await startHost()
  await importProgram(host, 'echo')
  await importProgram(host, 'counter')
  const memory = '256MiB'
  for (const name of ['echo', 'hall']) {
    await createGuest(host, name, { image: 'echo', args: ['echo'], ports: ['0:80'], memory })
  }
  await createGuest(host, 'counter', { image: 'counter', args: ['counter'], ports: ['0:80'], memory })
  const ports = [(await inPhase(host, 'echo', 'running')).ports[0]!.port,
    (await inPhase(host, 'hall', 'running')).ports[0]!.port]
  const other = (await inPhase(host, 'counter', 'running')).ports[0]!.port
  const [pid] = host.cellProcesses()
  const before = openFiles(pid!)
  const sockets: Socket[] = []
  try {
    await crowd(sockets, (i) => connect({ port: ports[i % 2]!, host: '127.0.0.1' }), (count) =>
      eventually('all are taken', () => openFiles(pid!) >= before + count))
    const [first, last] = [sockets[0]!, sockets.at(-1)!]
    for (const socket of [first, last]) {
      socket.write('still here')
      assert.equal(await heard(socket), 'still here')
    }
    assert.match(await (await fetch(`http://127.0.0.1:${other}/`)).text(), /"count"/)
    assert.equal((await host.api('GET', '/readyz')).status, 200)
  } finally {
    leave(sockets)
  }
  await eventually('all is released', () => openFiles(pid!) <= before + 20)
  const one = connect({ port: ports[0]!, host: '127.0.0.1' }).on('error', () => {})
  await new Promise((resolve) => { one.once('data', resolve).write('again') })
  one.destroy()
})

test('clients beyond the API\'s limit are turned away, others answered when they leave', { skip: few }, async () => {
  await using host = await startHost()
  await importProgram(host, 'counter')
  await createGuest(host, 'counter', { image: 'counter', args: ['counter'], ports: ['0:80'] })
  const { port } = (await inPhase(host, 'counter', 'running')).ports[0]!
  const pid = await pidOf(host)
  const before = openFiles(pid)
  const known = connect(join(host.state, 'host.sock')).on('error', () => {})
  const sockets: Socket[] = []
  try {
    await crowd(sockets, () => connect(join(host.state, 'host.sock')), async () => {})
    assert.ok(openFiles(pid) <= before + API_CONNECTIONS_MAX + 20)
    // Who is connected is answered, and guests know nothing of it.
    known.write('GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert.match(await heard(known), /^HTTP\/1\.1 200/)
    assert.match(await (await fetch(`http://127.0.0.1:${port}/`)).text(), /"count"/)
  } finally {
    leave(sockets)
    known.destroy()
  }
  await eventually('it answers others', async () =>
    (await host.api('GET', '/readyz').catch(() => undefined))?.status === 200)
  await eventually('all is released', () => openFiles(pid) <= before + 20)
})
