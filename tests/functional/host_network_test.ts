// tests/functional/host_network_test.ts: what guests of a host reach, and who reaches them.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createServer, type AddressInfo, type Server } from 'node:net'
import { after, before, test } from 'node:test'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest, wat } from '../support.ts'

type Guest = { readonly phase: string; readonly healthy?: boolean; readonly restarts: number
  readonly exit?: { readonly status: number; readonly reason: string }
  readonly ports: readonly { readonly port: number }[] }

let host: TestHost
before(async () => {
  host = await startHost()
  for (const name of ['dial', 'counter', 'idle', 'cat', 'nap', 'web', 'echo']) {
    assert.equal((await host.api('POST', `/v1/images?name=${name}`, readFileSync(guest(name)))).status, 201)
  }
})
after(async () => { await host[Symbol.asyncDispose]() })

async function create(project: string, name: string, spec: object): Promise<void> {
  const { status, body } = await host.api('POST', `/v1/projects/${project}/guests`, { name, spec })
  assert.equal(status, 201, JSON.stringify(body))
}

async function until(project: string, name: string, what: string, holds: (found: Guest) => boolean): Promise<Guest> {
  return await eventually(`${name} ${what}`, async () => {
    const { body } = await host.api('GET', `/v1/projects/${project}/guests/${name}`)
    return holds(body as Guest) && body as Guest
  })
}

const isRunning = ({ phase }: Guest): boolean => phase === 'running'
const hasEnded = ({ phase }: Guest): boolean => ['exited', 'failed', 'stopped'].includes(phase)

// Copies what descriptor 3 gives to stdout, until its end.
const READER = `(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more
      (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1024))
      (if (call $read (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (if (i32.eqz (i32.load (i32.const 8))) (then return))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br $more))))`

async function listening(): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => socket.on('error', () => {}).end('from outside')).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  return { server, port: (server.address() as AddressInfo).port }
}

test('a cell reaches only the cells with which it shares a network', async () => {
  for (const network of ['front', 'back']) await host.api('PUT', `/v1/projects/nets/networks/${network}`)
  await create('nets', 'db', { image: 'counter', args: ['counter'], expose: [5432], networks: ['back'] })
  await until('nets', 'db', 'runs', isRunning)
  const args = ['dial', 'db', '5432', 'GET / HTTP/1.0\r\n\r\n']
  await create('nets', 'inside', { image: 'dial', args, networks: ['back', 'front'], restart: 'no' })
  await create('nets', 'outside', { image: 'dial', args, networks: ['front'], restart: 'no' })
  assert.equal((await until('nets', 'inside', 'has ended', hasEnded)).exit!.status, 0)
  assert.notEqual((await until('nets', 'outside', 'has ended', hasEnded)).exit!.status, 0)
})

test('a program that knows inherited descriptors only is connected by `connect`, whoever starts first', async () => {
  // One that reads descriptor 3 to its end: "idle" is the whole answer of that program.
  const { status } = await host.api('POST', '/v1/images?name=reader', await wat(READER))
  assert.equal(status, 201)
  await create('conn', 'reader', { image: 'reader', connect: ['late:80'], restart: 'no' })
  await until('conn', 'reader', 'runs', isRunning)
  await create('conn', 'late', { image: 'idle', args: ['idle', 'late'], expose: [80] })
  assert.equal((await until('conn', 'reader', 'has ended', hasEnded)).exit!.status, 0)
  assert.equal(await host.ok(['logs', '-P', 'conn', 'reader']), 'idle\n')
})

test('a guest of which one port is taken has none of them, and starts when it is free', async () => {
  const [busy, free] = [await listening(), await listening()]
  await new Promise((resolve) => free.server.close(resolve))
  await create('ports', 'two', { image: 'echo', args: ['echo'], ports: [`${free.port}:80`, `${busy.port}:81`] })
  const { exit } = await until('ports', 'two', 'has failed', ({ phase }) => phase === 'backing-off')
  assert.match(exit!.reason, new RegExp(`Cannot listen on 127.0.0.1:${busy.port} as the port is in use`))
  await new Promise((resolve) => busy.server.close(resolve))
  const { ports } = await until('ports', 'two', 'runs', isRunning)
  assert.deepEqual(ports.map(({ port }) => port), [free.port, busy.port])
})

test('two guests can not publish one port', async () => {
  const { server, port } = await listening()
  await new Promise((resolve) => server.close(resolve))
  await create('ports', 'first', { image: 'echo', args: ['echo'], ports: [`${port}:80`] })
  await until('ports', 'first', 'runs', isRunning)
  const { status, body } = await host.api('POST', '/v1/projects/ports/guests', { name: 'second',
    spec: { image: 'echo', ports: [`${port}:80`] } })
  assert.deepEqual([status, (body as { code: string }).code], [409, 'PORT_TAKEN'])
})

test('a guest that answers its health check no more is restarted', async () => {
  // idle answers; nap has the port and never accepts. The backlog takes its connections, so it is asked by HTTP.
  await create('health', 'sick', { image: 'nap', args: ['nap', '1000000'], expose: [80],
    health: { http: '80/healthz', interval: '100ms', timeout: '100ms', retries: 2, 'start-period': '1ms' } })
  const { exit } = await until('health', 'sick', 'was restarted', ({ restarts }) => restarts >= 1)
  assert.equal(exit!.reason, 'stopped as it was unhealthy')
  await create('health', 'well', { image: 'idle', args: ['idle', 'well'], expose: [80],
    health: { tcp: 80, interval: '100ms', 'start-period': '1ms' } })
  assert.equal((await until('health', 'well', 'is well', ({ healthy }) => healthy === true)).restarts, 0)
})

test('a name that leads to this machine is not reached, whatever its rule says', async () => {
  const { server, port } = await listening()
  try {
    await create('egress', 'inward', { image: 'dial', args: ['dial', 'localhost', String(port), 'x'],
      egress: ['localhost'], restart: 'no' })
    assert.notEqual((await until('egress', 'inward', 'has ended', hasEnded)).exit!.status, 0)
    const { body } = await host.api('GET', '/v1/events?follow=false&project=egress')
    assert.match(JSON.stringify(body), /egress\.denied.*not public/)
  } finally {
    server.close()
  }
})
