// qemu/agent_port_test.ts: a port as streams, as the guest opens and closes it.

import assert from 'node:assert/strict'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { describe, test, type TestContext } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { socketPair } from '../sys/sockets.ts'
import { AgentPort } from './agent_port.ts'

function open(t: TestContext): { port: AgentPort; guest: Socket; streams: Duplex[] } {
  const [ours, theirs] = socketPair()
  const guest = new Socket({ fd: theirs, readable: true, writable: true })
  const streams: Duplex[] = []
  const port = new AgentPort(ours, (stream) => { streams.push(stream) })
  t.after(() => {
    port.close()
    guest.destroy()
  })
  return { port, guest, streams }
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 20))
const once = (stream: Duplex | Socket): Promise<string> => new Promise((resolve) => {
  stream.once('data', (bytes: Buffer) => resolve(bytes.toString()))
})

describe('the port of the agent', { skip: isSupported() ? false : 'no system calls here' }, () => {
  test('what the guest says before it is known to be there is the first that its stream has', async (t) => {
    const { port, guest, streams } = open(t)
    guest.write('early')
    await turn()
    assert.equal(streams.length, 0)
    port.changed(true)
    assert.equal(await once(streams[0]!), 'early')
    streams[0]!.write('answer')
    assert.equal(await once(guest), 'answer')
  })

  test('a guest that closes the port ends its stream, and has a new one when it opens it again', async (t) => {
    const { port, guest, streams } = open(t)
    port.changed(true)
    const ended = new Promise((resolve) => streams[0]!.once('end', resolve))
    streams[0]!.resume()
    port.changed(false)
    await ended
    port.changed(true)
    guest.write('again')
    assert.equal(await once(streams[1]!), 'again')
    assert.equal(streams.length, 2)
  })

  test('two openings without a closing between them are two streams', async (t) => {
    const { port, streams } = open(t)
    port.changed(true)
    streams[0]!.resume()
    port.changed(true)
    await turn()
    assert.ok(streams[0]!.readableEnded)
    assert.equal(streams.length, 2)
  })

  test('a guest that sends more than is read waits', async (t) => {
    const { port, guest, streams } = open(t)
    port.changed(true)
    let sent = 0
    while (guest.write(Buffer.alloc(65_536)) || guest.writableLength < 8 * 2 ** 20) sent += 65_536
    await turn()
    assert.ok(streams[0]!.readableLength < 2 * 2 ** 20, `${streams[0]!.readableLength} of ${sent}`)
    const count = { read: 0 }
    streams[0]!.on('data', (bytes: Buffer) => { count.read += bytes.length })
    const wanted = sent
    while (count.read < wanted) await turn()
  })

  test('writing to a stream that is over is an error of that stream alone', async (t) => {
    const { port, streams } = open(t)
    port.changed(true)
    const [first] = streams
    first!.resume().on('error', () => { /* As it should. */ })
    port.changed(true)
    await turn()
    const failed = await new Promise((resolve) => first!.write('late', resolve))
    assert.ok(failed instanceof Error)
    assert.equal(streams[1]!.writable, true)
  })

  test('an end of QEMU ends the stream', async (t) => {
    const { port, guest, streams } = open(t)
    port.changed(true)
    const ended = new Promise((resolve) => streams[0]!.once('end', resolve))
    streams[0]!.resume()
    guest.destroy()
    await ended
    port.changed(true)
  })
})
