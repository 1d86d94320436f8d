// host/process_net_test.ts: descriptors that a host hands to a cell process: published ports, dials, incoming
// connections; and volumes with a size.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, statSync } from 'node:fs'
import { connect, Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { ECONNREFUSED } from '../base/errno.ts'
import { isSupported } from '../sys/libc.ts'
import { closeFd, listenTcp, socketPair } from '../sys/sockets.ts'
import { ProcessRig } from './process_rig.ts'
import type { FromProcess } from './protocol.ts'

const options = { timeout: 60_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }
const isDial = (message: FromProcess): message is Extract<FromProcess, { dial: number }> => 'dial' in message

/** Says something over a socket, and what comes back until the other side ends. */
async function talk(socket: Socket, text: string): Promise<string> {
  let back = ''
  socket.on('data', (bytes) => { back += String(bytes) })
  socket.end(text)
  await once(socket, 'end')
  return back
}

test('a guest serves on the socket that the host has opened for it', options, async () => {
  using rig = await ProcessRig.start()
  const listening = listenTcp('127.0.0.1', 0, 16)
  assert.ok(typeof listening === 'object')
  rig.link.sendDescriptor(listening.fd, 99)
  closeFd(listening.fd)
  rig.start('echo', ['echo'], { ports: [{ port: 7, tickets: [99] }] })
  await rig.started('echo')
  assert.equal(await talk(connect(listening.port, '127.0.0.1'), 'over tcp'), 'over tcp')
  rig.link.send({ stop: 'echo', run: 1, signal: 15 })
  await rig.ended('echo')
  const [error] = await once(connect(listening.port, '127.0.0.1'), 'error') as [NodeJS.ErrnoException]
  assert.equal(error.code, 'ECONNREFUSED', 'the process has closed it')
})

test('a guest that is being made is told of in hello and keeps its sockets; a start that is repeated is given up',
  options, async () => {
    using rig = await ProcessRig.start()
    const [own, again] = [listenTcp('127.0.0.1', 0, 16), listenTcp('127.0.0.1', 0, 16)]
    assert.ok(typeof own === 'object' && typeof again === 'object')
    const path = join(rig.folder, 'volume')
    mkdirSync(path)
    for (const [{ fd }, ticket] of [[own, 1], [again, 2]] as const) {
      rig.link.sendDescriptor(fd, ticket)
      closeFd(fd)
    }
    const launch = (ticket: number): void => rig.start('echo', ['echo'], {
      ports: [{ port: 7, tickets: [ticket] }],
      // Its quota is opened first, which takes a moment.
      volumes: [{ path, guest: '/data', readOnly: false, sizeBytes: 1 << 20 }],
    })
    launch(1)
    launch(2)
    rig.link.send({ hello: 1, version: '' })
    const hello = await rig.hear((message): message is Extract<FromProcess, { pid: number }> => 'pid' in message)
    assert.deepEqual(hello.guests, [{ id: 'echo', run: 1 }])
    await rig.started('echo')
    assert.equal((await once(connect(again.port, '127.0.0.1'), 'error') as [NodeJS.ErrnoException])[0].code,
      'ECONNREFUSED')
    const client = connect(own.port, '127.0.0.1')
    client.on('error', () => {})
    await once(client, 'connect')
    client.destroy()
  })

test('a guest dials another of its network, and through the host what is elsewhere', options, async () => {
  using rig = await ProcessRig.start()
  const networks = ['default']
  rig.start('echo', ['echo'], { ports: [{ port: 7, tickets: [] }], networks })
  await rig.started('echo')
  const dial = async (id: string, name: string): Promise<string> => {
    const stream = rig.link.openStream()
    rig.start(id, ['dial', name, '7', 'knock'], { networks, stream: stream.id })
    let said = ''
    for await (const { bytes } of stream.output) said += Buffer.from(bytes).toString()
    return `${await stream.status} ${said}`
  }
  assert.match(await dial('near', 'echo'), /^0 knock/)
  const far = dial('far', 'elsewhere')
  const asked = await rig.hear(isDial)
  assert.deepEqual([asked.id, asked.name, asked.port], ['far', 'elsewhere', 7])
  const [mine, theirs] = socketPair()
  rig.link.sendDescriptor(theirs, 5)
  closeFd(theirs)
  rig.link.send({ dialled: asked.dial, ticket: 5 })
  const socket = new Socket({ fd: mine })
  const [heard] = await once(socket, 'data')
  assert.equal(String(heard), 'knock')
  socket.end('who is there?')
  assert.match(await far, /^0 who is there\?/)
  const since = rig.heard.length
  const refused = dial('refused', 'nowhere')
  rig.link.send({ dialled: (await rig.hear(isDial, since)).dial, errno: ECONNREFUSED })
  assert.match(await refused, /^1 dial: /)
})

test('a connection from another process is a guest\'s if it listens there', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('echo', ['echo'], { ports: [{ port: 7, tickets: [] }] })
  await rig.started('echo')
  const answered = async (port: number, request: number): Promise<{ errno: number; socket: Socket }> => {
    const [mine, theirs] = socketPair()
    rig.link.sendDescriptor(theirs, request)
    closeFd(theirs)
    rig.link.send({ incoming: 'echo', port, ticket: request, request })
    const { errno } = await rig.hear((message): message is Extract<FromProcess, { errno: number }> =>
      'incoming' in message && message.incoming === request)
    return { errno, socket: new Socket({ fd: mine }) }
  }
  const taken = await answered(7, 1)
  assert.equal(taken.errno, 0)
  assert.equal(await talk(taken.socket, 'from afar'), 'from afar')
  const other = await answered(8, 2)
  assert.equal(other.errno, ECONNREFUSED)
  other.socket.destroy()
})

test('a volume holds no more than its size, whoever of the process writes', options, async () => {
  using rig = await ProcessRig.start()
  const path = join(rig.folder, 'volume')
  mkdirSync(path)
  const volumes = [{ path, guest: '/data', readOnly: false, sizeBytes: 1024 * 1024 }]
  rig.start('fill', ['fill', 'bytes', '/data/file', '4096'], { volumes })
  await rig.ended('fill')
  const { size } = statSync(join(path, 'file'))
  assert.ok(size > 512 * 1024 && size <= 1024 * 1024, `${size}`)
  rig.start('gone', ['hello'], { volumes: [{ ...volumes[0]!, path: join(rig.folder, 'missing') }] })
  assert.equal((await rig.ended('gone')).outcome.kind, 'failed')
})
