// services/console/remote_test.ts: a console that another thread keeps: windows, credit, order, ends.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EAGAIN, EPIPE } from '../../base/errno.ts'
import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../../base/limits.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import { RemoteInput, RemoteOutput, type RemotePort } from './remote.ts'

const memory = new GuestMemory(new WebAssembly.Memory({ initial: 8 }))
const AT = 4096

function ranges(...lengths: number[]): Iovecs {
  const iovecs = new Iovecs()
  let at = AT
  lengths.forEach((length, i) => {
    memory.setU32(8 * i, at)
    memory.setU32(8 * i + 4, length)
    at += length
  })
  assert.ok(iovecs.load(memory, 0, lengths.length))
  return iovecs
}

function text(text: string): Iovecs {
  memory.at(AT, text.length).set(Buffer.from(text))
  return ranges(text.length)
}

function rig(): { posted: [number, number, string][]; taken: number[]; port: RemotePort } {
  const posted: [number, number, string][] = []
  const taken: number[] = []
  return { posted, taken, port: {
    output: (guest, channel, bytes) => {
      posted.push([guest, channel, Buffer.from(bytes).toString()])
      // As a port does that takes it over.
      structuredClone(bytes, { transfer: [bytes.buffer] })
    },
    taken: (_, count) => taken.push(count),
  } }
}

test('RemoteOutput posts each write with who and where, in order over both streams', () => {
  const { posted, port } = rig()
  const [out, err] = [new RemoteOutput(port, 5, 1), new RemoteOutput(port, 5, 2)]
  assert.equal(out.write(text('one')), 3)
  assert.equal(err.write(text('two')), 3)
  memory.at(AT, 6).set(Buffer.from('abcdef'))
  assert.equal(out.write(ranges(2, 0, 4)), 6)
  assert.equal(out.write(ranges(0)), 0)
  assert.deepEqual(posted, [[5, 1, 'one'], [5, 2, 'two'], [5, 1, 'abcdef']])
})

test('RemoteOutput takes no more than its window until it gets credit, and small writes whole or not at all', () => {
  const { posted, port } = rig()
  const out = new RemoteOutput(port, 1, 1)
  const taken = out.write(ranges(200_000, 100_000))
  assert.equal(taken, OUTPUT_WINDOW_BYTES_MAX - OUTPUT_PIECE_BYTES)
  assert.equal(posted[0]![2].length, taken)
  assert.deepEqual([out.write(text('x')), out.pollWrite()], [-EAGAIN, -EAGAIN])
  let woken = 0
  const waker = (): void => { woken++ }
  out.awaitWritable(waker)
  out.credit(2000 + OUTPUT_PIECE_BYTES)
  assert.deepEqual([woken, out.write(ranges(2001)), out.write(ranges(2000))], [1, -EAGAIN, 2000])
  out.credit(10 * OUTPUT_WINDOW_BYTES_MAX)
  assert.deepEqual([out.pollWrite(), out.write(ranges(300_000))], [1, taken], 'never more than a window')
  // Many tiny pieces cost what carries them, too.
  const tiny = new RemoteOutput(port, 1, 1)
  let count = 0
  while (tiny.write(text('y')) === 1) count++
  assert.ok(count <= OUTPUT_WINDOW_BYTES_MAX / OUTPUT_PIECE_BYTES)
})

test('RemoteOutput of which nobody reads answers EPIPE, also to who waits', () => {
  const out = new RemoteOutput(rig().port, 1, 1)
  out.write(ranges(300_000))
  let woken = false
  out.awaitWritable(() => { woken = true })
  out.hangUp()
  assert.deepEqual([woken, out.pollWrite(), out.write(text('x'))], [true, 1, -EPIPE])
})

test('RemoteInput gives what came in parts as it is read, says so, and then the end', () => {
  const { port, taken } = rig()
  const input = new RemoteInput(port, 1)
  assert.deepEqual([input.pollRead(), input.read(ranges(10))], [-EAGAIN, -EAGAIN])
  let woken = 0
  input.awaitReadable(() => { woken++ })
  input.push(Buffer.from('hello'))
  input.push(Buffer.from('you'))
  input.push(Buffer.alloc(0))
  assert.deepEqual([woken, input.pollRead()], [1, 8])
  assert.deepEqual([input.read(ranges(2)), input.read(ranges(10)), input.read(ranges(10))], [2, 3, 3])
  assert.deepEqual(taken, [2, 3, 3])
  const gone = (): void => { woken++ }
  input.awaitReadable(gone)
  input.forget(gone)
  input.end()
  input.push(Buffer.from('late'))
  assert.deepEqual([woken, input.pollRead(), input.read(ranges(10))], [1, 0, 0])
})

test('RemoteInput gives back what the guest has not read, so that it can read it elsewhere', () => {
  const { port, taken } = rig()
  const input = new RemoteInput(port, 1)
  assert.deepEqual(input.takeUnread(), { pieces: [], ended: false })
  input.push(Buffer.from('hello'))
  input.push(Buffer.from('you'))
  input.end()
  input.read(ranges(2))
  const { pieces, ended } = input.takeUnread()
  assert.deepEqual([Buffer.concat(pieces).toString(), ended], ['lloyou', true])
  assert.equal(input.pollRead(), 0)
  assert.deepEqual(taken, [2], 'nobody is told that it was read')
})
