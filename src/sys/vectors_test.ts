// sys/vectors_test.ts: lists of pieces, eventfds and poll sets against real descriptors.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EAGAIN } from '../base/errno.ts'
import { clearEventFd, makeEventFd, signalEventFd } from './eventfd.ts'
import { isSupported, POLLIN, POLLOUT } from './libc.ts'
import { PollSet } from './ppoll.ts'
import { closeFd, socketPair } from './sockets.ts'
import { Vectors } from './vectors.ts'

const skip = isSupported() ? false : 'no FFI here'

test('an eventfd is rung, is ready until it is cleared, and never blocks', { skip }, () => {
  const fd = makeEventFd()
  const set = new PollSet(1)
  const slot = set.add(fd, POLLIN)
  assert.equal(set.wait(0), 0)
  assert.equal(clearEventFd(fd), false)
  signalEventFd(fd)
  signalEventFd(fd)
  assert.equal(set.wait(-1), 1)
  assert.equal(set.ready(slot), POLLIN)
  assert.equal(clearEventFd(fd), true)
  assert.equal(set.wait(0), 0)
  assert.equal(set.ready(slot), 0)
  closeFd(fd)
})

test('a poll set waits for what is wanted of each slot, descriptor 0 included, and no longer than it is told', { skip },
  () => {
    const [a, b] = socketPair()
    const set = new PollSet(3)
    const zero = set.add(0, 0)
    const slot = set.add(a, 0)
    const other = set.add(b, POLLIN)
    const begun = performance.now()
    assert.equal(set.wait(1.5), 0)
    assert.ok(performance.now() - begun >= 1)
    set.want(slot, POLLOUT)
    assert.equal(set.wait(-1), 1)
    assert.equal(set.ready(slot), POLLOUT)
    set.want(slot, 0)
    closeFd(a)
    assert.equal(set.wait(-1), 1)
    assert.notEqual(set.ready(other), 0)
    set.want(other, 0)
    assert.equal(set.wait(0), 0, 'a slot of which nothing is wanted is silent, though its peer has hung up')
    assert.equal(set.ready(zero), 0)
    closeFd(b)
  })

test('pieces of a memory and of the head go out and come in, in order, however the kernel cuts them', { skip }, () => {
  const [a, b] = socketPair()
  const memory = new Uint8Array(4 * 1024 * 1024)
  for (let i = 0; i < memory.length; i++) memory[i] = i * 7 + (i >>> 8)
  const to = new Uint8Array(memory.length)
  const out = new Vectors(memory, 8, 4)
  const into = new Vectors(to, 8, 4)
  out.headView.setUint32(0, 0xdecafbad)
  out.addHead(0, 4)
  const pieces: [number, number][] = [[3_000_000, 1_000_000], [5, 1], [100, 999_999], [0, 0]]
  for (const [offset, length] of pieces) out.add(offset, length)
  into.addHead(0, 4)
  for (const [offset, length] of pieces) into.add(offset, length)
  assert.equal(into.read(b), -EAGAIN)
  const total = out.left
  assert.equal(total, 4 + 1_000_000 + 1 + 999_999)
  for (let rounds = 0; !into.isDone; rounds++) {
    assert.ok(rounds < 10_000)
    if (!out.isDone) out.write(a)
    into.read(b)
  }
  assert.equal(into.headView.getUint32(0), 0xdecafbad)
  for (const [offset, length] of pieces) {
    assert.deepEqual(to.subarray(offset, offset + length), memory.subarray(offset, offset + length))
  }
  closeFd(a)
  assert.equal((into.clear(), into.add(0, 1), into.read(b)), 0, 'the end')
  closeFd(b)
})

test('a piece outside of its memory is a bug that is caught before the kernel sees it', { skip }, () => {
  const vectors = new Vectors(new Uint8Array(16), 1, 4)
  for (const [offset, length] of [[-1, 2], [15, 2], [NaN, 1], [0, NaN], [17, 0], [0, 2 ** 32]] as const) {
    assert.throws(() => vectors.add(offset, length), /Bug in Cellar/)
  }
  assert.throws(() => vectors.addHead(2, 3), /Bug in Cellar/)
  vectors.add(0, 16)
  assert.throws(() => vectors.add(0, 1), /Bug in Cellar/)
})
