// api/session_socket_test.ts: consoles over real WebSockets: frames, ends, refusals, and clients that don't read.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import test from 'node:test'
import type { TestContext } from 'node:test'
import { WebSocket } from 'ws'
import { SESSION_PROTOCOL } from './guest_routes.ts'
import { serve, type ServeOptions } from './server.ts'
import { bearer, FakeOperator, FakeSession, specOf } from './test_support.ts'

async function served(t: TestContext, limits: ServeOptions['limits'] = {}): Promise<{
  operator: FakeOperator; url: string; close: () => Promise<void>
  open: (path: string, token?: string, protocol?: string) => WebSocket }> {
  const operator = new FakeOperator()
  await operator.createGuest('a', 'g', specOf(), true)
  const server = await serve(operator, { listen: [{ host: '127.0.0.1', port: 0 }], limits })
  const close = (): Promise<void> => server.close({ graceMs: 1000 })
  t.after(() => server.close({ graceMs: 0 }))
  const url = server.urls[0]!
  const open = (path: string, token = 'writer', protocol = SESSION_PROTOCOL): WebSocket => {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/projects/a/guests/g/${path}`, protocol,
      { headers: bearer(token) })
    socket.on('error', () => {})
    t.after(() => socket.terminate())
    return socket
  }
  return { operator, url, close, open }
}

/** Frames as [channel, text] until the close, and its code. */
async function heard(socket: WebSocket): Promise<{ frames: [number, string][]; code: number }> {
  const frames: [number, string][] = []
  socket.on('message', (data: Buffer) => frames.push([data[0]!, data.subarray(1).toString()]))
  const [code] = await once(socket, 'close') as [number]
  return { frames, code }
}

async function refused(socket: WebSocket): Promise<[status: number, code: string]> {
  const [, response] = await once(socket, 'unexpected-response') as [unknown, import('node:http').IncomingMessage]
  let text = ''
  for await (const piece of response) text += String(piece)
  assert.equal(response.headers['content-type'], 'application/problem+json')
  return [response.statusCode!, (JSON.parse(text) as { code: string }).code]
}

test('carry brings input in, output and the exit status out', async (t) => {
  const { operator, open } = await served(t)
  const socket = open('exec?arg=sh&arg=-c&env=A%3Db%3Dc&image=tools')
  await once(socket, 'open')
  assert.equal(socket.protocol, SESSION_PROTOCOL)
  socket.send(Buffer.from('\0hello'))
  socket.send(Buffer.from('\0 you'))
  socket.send(Buffer.from('\x03{"eof":true}'))
  const { frames, code } = await heard(socket)
  assert.equal(frames.filter(([channel]) => channel === 1).map(([, text]) => text).join(''), 'hello you')
  assert.deepEqual([frames.at(-1), code], [[3, '{"exit":7}'], 1000])
  assert.deepEqual(operator.exec1, { image: 'tools', args: ['sh', '-c'], env: { A: 'b=c' } })
  assert.ok(operator.recorded.some(({ action, outcome }) => action === 'execGuest' && outcome === 'ok'))
})

test('a log is read over a WebSocket, too, by who may read only', async (t) => {
  const { operator, open } = await served(t)
  operator.logs = async function* () {
    yield { time: '2026-11-21T00:00:00Z', stream: 'stdout', text: 'one', partial: false }
    yield { time: '2026-11-21T00:00:00Z', stream: 'stderr', text: 'two', partial: true }
  }
  const { frames, code } = await heard(open('logs/session?follow', 'reader'))
  assert.deepEqual(frames.filter(([channel]) => channel < 3), [[1, 'one\n'], [2, 'two']])
  assert.equal(code, 1000)
})

test('a WebSocket is refused with a problem before it is one', async (t) => {
  const { operator, open, url } = await served(t)
  assert.deepEqual(await refused(open('attach', 'stranger')), [401, 'UNAUTHENTICATED'])
  assert.deepEqual(await refused(open('attach', 'reader')), [403, 'FORBIDDEN'])
  assert.deepEqual(await refused(open('../h/attach')), [404, 'NOT_FOUND'])
  assert.deepEqual(await refused(open('exec?odd=1')), [400, 'REQUEST_INVALID'])
  assert.deepEqual(await refused(open('attach', 'writer', 'v0.session.cellar')), [400, 'REQUEST_INVALID'])
  assert.deepEqual(await refused(open('logs?follow')), [400, 'REQUEST_INVALID'])
  assert.equal(operator.sessions.length, 0)
  // Who offers another protocol gets a plain answer.
  const { hostname, port } = new URL(url)
  const plain = connect(Number(port), hostname)
  t.after(() => plain.destroy())
  plain.write(`GET /livez HTTP/1.1\r\nHost: ${hostname}\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n`)
  let answer = ''
  for await (const piece of plain) answer += String(piece)
  assert.match(answer, /^HTTP\/1.1 200 /)
})

test('a frame that is none of the protocol ends the session with the reason', async (t) => {
  const { operator, open } = await served(t)
  const binary = ['\x09', '', '\x03{"eof":1}', '\x03['].map((text) => Buffer.from(text))
  for (const frame of ['text', ...binary]) {
    const socket = open('attach')
    await once(socket, 'open')
    socket.send(frame)
    const { frames, code } = await heard(socket)
    assert.equal(code, 1008)
    assert.match(frames[0]![1], /REQUEST_INVALID/)
  }
  while (operator.sessions.some(({ closed }) => closed === 0)) await new Promise(setImmediate)
})

test('a session is closed when its client goes', async (t) => {
  const { operator, open } = await served(t)
  for (const leave of [(one: WebSocket) => one.close(), (one: WebSocket) => one.terminate()]) {
    const socket = open('attach')
    await once(socket, 'open')
    leave(socket)
    await once(socket, 'close')
    const session = operator.sessions.at(-1)!
    while (session.closed === 0) await new Promise(setImmediate)
  }
})

test('output waits for a client that does not read, and then ends its session', async (t) => {
  const { operator, open } = await served(t, { stallMs: 300, pingMs: 100 })
  let taken = 0
  const session = new FakeSession()
  session.output = (async function* () {
    for (;;) {
      taken++
      yield { channel: 1, bytes: Buffer.alloc(65_536) }
    }
  })()
  operator.nextSession = session
  const socket = open('attach')
  await once(socket, 'open')
  socket.pause()
  while (session.closed === 0) await new Promise((resolve) => { setTimeout(resolve, 20) })
  // What the kernel's buffers take, and ours: some megabytes, not without end.
  assert.ok(taken < 2000, `${taken} pieces were taken`)
})

test('input waits for a guest that does not read', async (t) => {
  const { operator, open } = await served(t)
  let give: () => void = () => {}
  operator.nextSession.room = new Promise((resolve) => { give = resolve })
  const session = operator.nextSession
  const socket = open('attach')
  await once(socket, 'open')
  const frame = Buffer.alloc(65_536)
  for (let i = 0; i < 500; i++) socket.send(frame)
  await new Promise((resolve) => { setTimeout(resolve, 200) })
  assert.ok(socket.bufferedAmount > 16 * 2 ** 20, 'most of it is still with the client')
  give()
  while (session.input.length < 500) await new Promise((resolve) => { setTimeout(resolve, 20) })
})

test('the end of the API tells sessions to come again', async (t) => {
  const { open, close } = await served(t)
  const socket = open('attach')
  await once(socket, 'open')
  const [{ code }] = await Promise.all([heard(socket), close()])
  assert.equal(code, 1012)
})
