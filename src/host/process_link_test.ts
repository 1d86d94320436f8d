// host/process_link_test.ts: a link to something that isn't a cell process, and does as it likes.

import assert from 'node:assert/strict'
import { symlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { UNREAD_BYTES_MAX } from '../base/limits.ts'
import { bytesHeader, messageFrame } from './frames.ts'
import { ProcessLink } from './process_link.ts'
import { STDOUT, type FromProcess } from './protocol.ts'
import { disposableFolder } from './test_support.ts'

const HELLO = { hello: 1, process: 1, project: 'test', pid: 1, guests: [], ends: [] } satisfies FromProcess
const DIAL = messageFrame({ dial: 1, id: 'nobody', name: 'x', port: 1 } satisfies FromProcess)

/** Listens in a run folder; `then` is what it does after its hello. */
async function rogue(runFolder: string, then: (socket: Socket) => void): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket.on('error', () => {}))
    socket.write(messageFrame(HELLO))
    then(socket)
  })
  await new Promise<void>((resolve) => { server.listen(join(runFolder, 'c'), resolve) })
  return {
    async [Symbol.asyncDispose](): Promise<void> {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => { server.close(resolve) })
    },
  }
}

test('ProcessLink tells the number of the process that listens, whatever its hello says', async () => {
  using folder = disposableFolder()
  await using _ = await rogue(folder.path, () => {})
  const link = await ProcessLink.connect(folder.path, { message() {}, closed() {} })
  link.close()
  assert.deepEqual([link.pid, link.hello.pid], [process.pid, 1])
})

test('ProcessLink hears no more of a process that asks and reads no answers', async () => {
  using folder = disposableFolder()
  await using _ = await rogue(folder.path, (socket) => {
    const many = Buffer.concat(Array.from({ length: 1000 }, () => DIAL))
    const more = (): void => {
      while (!socket.destroyed && socket.write(many));
      socket.pause().once('drain', more)
    }
    // Once the link is there to answer with.
    socket.once('data', () => setTimeout(more, 50))
  })
  let answered = 0
  const link = await ProcessLink.connect(folder.path, { closed() {}, message() {
    answered += 1000
    link.send({ dialled: 1, errno: 14, name: 'x'.repeat(1000) } as never)
  } })
  // Until nothing has come for a while.
  for (let before = -1; before !== answered; await sleep(200)) before = answered
  link.close()
  assert.ok(answered > UNREAD_BYTES_MAX && answered < 2 * UNREAD_BYTES_MAX, `${answered} bytes of answers`)
})

test('ProcessLink does not keep pieces of a stream that have no bytes', async () => {
  using folder = disposableFolder()
  let socket: Socket | undefined
  await using _ = await rogue(folder.path, (one) => { socket = one })
  const link = await ProcessLink.connect(folder.path, { message() {}, closed() {} })
  const stream = link.openStream()
  for (let i = 0; i < 100; i++) socket!.write(bytesHeader(stream.id, STDOUT, 0))
  socket!.write(Buffer.concat([bytesHeader(stream.id, STDOUT, 1), Buffer.from('x')]))
  const first = await stream.output[Symbol.asyncIterator]().next()
  link.close()
  assert.equal(Buffer.from((first.value as { bytes: Uint8Array }).bytes).toString(), 'x')
})

test('ProcessLink does not follow a link that lies in place of the socket', async () => {
  using folder = disposableFolder()
  using other = disposableFolder()
  let isReached = false
  await using _ = await rogue(other.path, () => { isReached = true })
  symlinkSync(join(other.path, 'c'), join(folder.path, 'c'))
  await assert.rejects(ProcessLink.connect(folder.path, { message() {}, closed() {} }), { code: 'ENOTSOCK' })
  assert.equal(isReached, false)
})
