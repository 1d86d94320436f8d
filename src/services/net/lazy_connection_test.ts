// services/net/lazy_connection_test.ts: a connection that is made at its first use.

import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'node:test'
import { EAGAIN, ECONNREFUSED, ECONNRESET, ENOTCONN } from '../../base/errno.ts'
import { LazyConnection } from './lazy_connection.ts'
import { linkedEnds } from './pipe_end.ts'
import type { StreamSocket } from './stream_socket.ts'
import { put, ranges, readable, receive, writable } from './test_support.ts'

test('a LazyConnection dials at its first use, again and again, and then is what it got', async () => {
  const [end, other] = linkedEnds()
  other.start()
  let dials = 0
  const lazy = new LazyConnection(async () => ++dials < 3 ? ECONNREFUSED : end)
  await turn()
  assert.equal(dials, 0)
  assert.equal(lazy.shutdown({ read: true, write: true }), -ENOTCONN)
  assert.equal(lazy.pollWrite(), -EAGAIN)
  assert.equal(lazy.send(put('early')), -EAGAIN)
  await writable(lazy)
  assert.equal(dials, 3)
  assert.equal(lazy.send(put('hello')), 5)
  assert.equal(await receive(other), 'hello')
  other.send(put('answer'))
  assert.deepEqual([lazy.unread, lazy.pollRead()], [6, 6])
  assert.equal(await receive(lazy), 'answer')
  assert.equal(lazy.shutdown({ read: false, write: true }), 0)
  assert.equal(await receive(other), '')
  assert.equal(lazy.hangup(), false)
})

test('a LazyConnection tells at each use why it could not be made', async () => {
  const lazy = new LazyConnection(async () => ECONNREFUSED, 120)
  assert.equal(lazy.recv(ranges(1)), -EAGAIN)
  await readable(lazy)
  for (let i = 0; i < 2; i++) {
    assert.equal(lazy.recv(ranges(1)), -ECONNREFUSED)
    assert.equal(lazy.send(put('x')), -ECONNREFUSED)
  }
  assert.deepEqual([lazy.pollRead(), lazy.pollWrite(), lazy.hangup(), lazy.complete], [0, 0, true, true])
})

test('close() of a LazyConnection ends its tries, and closes what comes late', async () => {
  const [end, other] = linkedEnds()
  const late = Promise.withResolvers<StreamSocket>()
  const lazy = new LazyConnection(() => late.promise)
  assert.equal(lazy.pollRead(), -EAGAIN)
  lazy.close()
  late.resolve(end)
  await turn()
  assert.equal(other.pollRead(), 0)
  assert.equal(await receive(other), '')

  let dials = 0
  const trying = new LazyConnection(async () => { dials++; return ECONNREFUSED })
  assert.equal(trying.pollRead(), -EAGAIN)
  await turn()
  trying.close()
  assert.equal(dials, 1)
})

for (const way of ['abort', 'leave'] as const) {
  test(`${way}() of a LazyConnection breaks what it has`, async () => {
    const [end, other] = linkedEnds()
    const lazy = new LazyConnection(async () => end)
    assert.equal(lazy.pollRead(), -EAGAIN)
    await readable(lazy)
    lazy[way]()
    assert.equal(await receive(other), `error ${ECONNRESET}`)
  })
}
