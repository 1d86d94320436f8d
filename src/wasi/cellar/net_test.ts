// wasi/cellar/net_test.ts: net_connect: what it checks, what it answers, and who closes what comes late.

import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'node:test'
import {
  ECONNREFUSED, EFAULT, EILSEQ, EINVAL, EMFILE, ENETUNREACH, ESUCCESS,
} from '../../base/errno.ts'
import { DESCRIPTORS_MAX, HOST_NAME_BYTES_MAX } from '../../base/limits.ts'
import { linkedEnds } from '../../services/net/pipe_end.ts'
import type { StreamSocket } from '../../services/net/stream_socket.ts'
import { RIGHTS_SOCKET } from '../p1/abi.ts'
import { WAIT, type Context } from '../p1/context.ts'
import { answered, called, contextOf, MEMORY_BYTES, OUT } from '../p1/test_support.ts'
import { net_connect } from './net.ts'

const NAME = 1024

function contextTo(dial: (name: string, port: number) => Promise<StreamSocket | number>): Context {
  return contextOf({ dialer: { dial } })
}

/** Puts a name into the memory: its pointer and length. */
function named(context: Context, name: string): [number, number] {
  const bytes = Buffer.from(name, 'latin1')
  context.memory.bytes.set(bytes, NAME)
  return [NAME, bytes.length]
}

test('net_connect gives a descriptor with the rights of a socket', async () => {
  const asked: unknown[] = []
  const [end] = linkedEnds()
  const context = contextTo(async (...what) => {
    asked.push(what)
    return end
  })
  assert.equal(await called(context, net_connect, ...named(context, 'db'), 5432, OUT), ESUCCESS)
  const entry = context.descriptors.get(context.memory.u32(OUT))
  assert.equal(entry?.descriptor, end)
  assert.equal(entry?.rightsBase, RIGHTS_SOCKET)
  assert.deepEqual(asked, [['db', 5432]])
})

test('net_connect answers the errno of a dial that fails, and keeps no number', async () => {
  const context = contextTo(async () => ECONNREFUSED)
  assert.equal(await called(context, net_connect, ...named(context, 'db'), 1, OUT), ECONNREFUSED)
  assert.equal(context.descriptors.get(0), undefined)
})

test('net_connect checks pointers, name and port before anybody is asked', async () => {
  const context = contextTo(async () => assert.fail('was asked'))
  const [name, length] = named(context, 'x'.repeat(HOST_NAME_BYTES_MAX + 1))
  assert.equal(answered(() => net_connect(context, MEMORY_BYTES - 1, 2, 80, OUT)), EFAULT)
  assert.equal(answered(() => net_connect(context, name, -1, 80, OUT)), EFAULT)
  assert.equal(answered(() => net_connect(context, name, 2, 80, MEMORY_BYTES - 3)), EFAULT)
  assert.equal(net_connect(context, name, length, 80, OUT), EINVAL)
  assert.equal(net_connect(context, name, 0, 80, OUT), EINVAL)
  for (const port of [0, -1, 65_536]) assert.equal(net_connect(context, name, 2, port, OUT), EINVAL)
  assert.equal(await called(context, net_connect, ...named(context, 'a\xff'), 80, OUT), EILSEQ)
})

test('net_connect is ENETUNREACH for a guest in no network', () => {
  const context = contextOf()
  assert.equal(net_connect(context, ...named(context, 'db'), 80, OUT), ENETUNREACH)
})

test('net_connect dials only if a number is left', async () => {
  const context = contextTo(async () => assert.fail('was asked'))
  const taken = { descriptor: { filetype: 0, close: () => {} }, rightsBase: 0, rightsInheriting: 0, flags: 0 }
  for (let i = 0; i < DESCRIPTORS_MAX; i++) context.descriptors.add(taken)
  assert.equal(await called(context, net_connect, ...named(context, 'db'), 80, OUT), EMFILE)
})

test('net_connect may take the last number', async () => {
  const [end] = linkedEnds()
  const context = contextTo(async () => end)
  const taken = { descriptor: { filetype: 0, close: () => {} }, rightsBase: 0, rightsInheriting: 0, flags: 0 }
  for (let i = 1; i < DESCRIPTORS_MAX; i++) context.descriptors.add(taken)
  assert.equal(await called(context, net_connect, ...named(context, 'db'), 80, OUT), ESUCCESS)
  assert.equal(context.memory.u32(OUT), DESCRIPTORS_MAX - 1)
})

test('a connection that comes when the guest was stopped is closed, before and after it has its number', async () => {
  for (const late of [true, false]) {
    const [end, other] = linkedEnds()
    const { promise, resolve } = Promise.withResolvers<StreamSocket>()
    const context = contextTo(() => promise)
    assert.equal(net_connect(context, ...named(context, 'db'), 80, OUT), WAIT)
    const parked = context.parked()
    if (!late) resolve(end)
    if (!late) await turn()
    context.stop({ kind: 'signal', signal: 15 })
    await parked
    context.descriptors.closeAll()
    if (late) resolve(end)
    await turn()
    assert.equal(other.pollRead(), 0, `the other end sees it closed: late ${late}`)
  }
})
