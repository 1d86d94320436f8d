// tests/faults/host_slow_reader_test.ts: clients that ask for much and never read: they hold up nobody but themselves.
//
// The guest floods. Each client opens its stream and then reads nothing: the host and the guest's process keep what
// they have, and other clients are served.

import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startHost, type TestHost } from '../host_support.ts'
import { createGuest, importProgram, inPhase, pidOf, residentBytes } from './faults_support.ts'

/** What a process may grow by: buffers of all clients, and what V8 keeps before it collects. */
const GROWTH_BYTES_MAX = 160 * 1024 * 1024
const CLIENTS_EACH = 4
const WATCHED_MS = 3000

const UPGRADE = 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n' +
  'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: v1.session.cellar\r\n'

/** A client that asks and then reads no more than the first bytes of the answer. */
async function deaf(host: TestHost, path: string, headers = ''): Promise<Socket> {
  const socket = connect(join(host.state, 'host.sock')).on('error', () => {})
  socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n${headers}\r\n`)
  const first = await new Promise<string>((resolve) => {
    socket.once('data', (data: Buffer) => resolve(data.toString('latin1'))).once('close', () => resolve('closed'))
  })
  socket.pause()
  assert.match(first, /^HTTP\/1\.1 (200|101)/, `${path}: ${first.slice(0, 600)}`)
  return socket
}

test('clients that never read logs, events, consoles or exec hold neither memory nor others', async () => {
  await using host = await startHost()
  for (const name of ['flood', 'nap', 'exit']) await importProgram(host, name)
  await createGuest(host, 'loud', { image: 'flood', args: ['flood'], restart: 'always' })
  await createGuest(host, 'calm', { image: 'nap', args: ['nap', '100000000'] })
  await createGuest(host, 'busy', { image: 'exit', args: ['exit', '1'], restart: 'always' })
  await inPhase(host, 'loud', 'running')
  await inPhase(host, 'calm', 'running')
  const one = '/v1/projects/default/guests'
  const sockets: Socket[] = []
  const [pid, cell] = [await pidOf(host), host.cellProcesses()[0]!]
  await sleep(500)
  const before = [residentBytes(pid), residentBytes(cell)]
  try {
    for (let i = 0; i < CLIENTS_EACH; i++) {
      sockets.push(await deaf(host, `${one}/loud/logs?follow=true`), await deaf(host, '/v1/events'),
        await deaf(host, `${one}/loud/attach`, UPGRADE),
        await deaf(host, `${one}/loud/exec?image=flood&arg=flood`, UPGRADE))
    }
    const until = performance.now() + WATCHED_MS
    while (performance.now() < until) {
      await sleep(200)
      for (const [i, process] of [pid, cell].entries()) {
        const grown = residentBytes(process) - before[i]!
        const who = i === 0 ? 'the host' : 'its cell process'
        assert.ok(grown < GROWTH_BYTES_MAX, `${who} has grown by ${grown >> 20} MiB`)
      }
    }
    assert.equal((await host.cellar(['exec', '--image', 'exit', 'calm', 'exit', '7'])).status, 7)
    assert.match(await host.ok(['logs', '--tail', '1', 'loud']), /flood/)
    assert.equal((await host.api('GET', '/readyz')).status, 200)
  } finally {
    for (const socket of sockets) socket.destroy()
  }
  await host.ok(['rm', '--force', 'loud', 'calm', 'busy'])
})
