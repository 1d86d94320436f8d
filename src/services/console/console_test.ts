// services/console/console_test.ts: consoles in memory: nothing is lost, nothing grows without bound.

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { EAGAIN, EPIPE } from '../../base/errno.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import { InputBuffer, nullConsole, OutputBuffer } from './console.ts'

const AT = 4096
const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
const iovecs = new Iovecs()

/** Ranges of these lengths, one after another from AT. */
function ranges(...lengths: number[]): Iovecs {
  let at = AT
  lengths.forEach((length, i) => {
    memory.setU32(8 * i, at)
    memory.setU32(8 * i + 4, length)
    at += length
  })
  assert.equal(iovecs.load(memory, 0, lengths.length), true)
  return iovecs
}

/** A range that holds `text`. */
function text(text: string): Iovecs {
  memory.at(AT, text.length).set(Buffer.from(text))
  return ranges(text.length)
}

const seen = (length: number): string => Buffer.from(memory.at(AT, length)).toString()

/** A waker that counts. */
function counter(): { (): void; calls: number } {
  const waker = Object.assign(() => { waker.calls++ }, { calls: 0 })
  return waker
}

describe('OutputBuffer', () => {
  test('it is taken in the order in which it was written, each byte once', () => {
    const output = new OutputBuffer(100)
    assert.equal(output.take().length, 0)
    for (const part of ['one ', 'two ', 'three']) assert.equal(output.write(text(part)), part.length)
    assert.equal(output.take().toString(), 'one two three')
    assert.equal(output.take().length, 0)
    output.write(text('four'))
    assert.equal(output.take().toString(), 'four')
  })

  test('it keeps a copy: the guest may use its buffer again', () => {
    const output = new OutputBuffer(100)
    output.write(text('kept'))
    memory.at(AT, 4).fill(0)
    assert.equal(output.take().toString(), 'kept')
  })

  test('it takes what there is room for, then says "later" until somebody takes', () => {
    const output = new OutputBuffer(10)
    assert.equal(output.write(text('0123456')), 7)
    assert.equal(output.write(text('789ABC')), 3)
    assert.equal(output.write(text('x')), -EAGAIN)
    assert.equal(output.pollWrite(), -EAGAIN)
    assert.equal(output.take().toString(), '0123456789')
    assert.equal(output.pollWrite(), 1)
    assert.equal(output.write(text('x')), 1)
  })

  test('whoever waits for room is woken by take, once, unless it gave up', () => {
    const output = new OutputBuffer(1)
    output.write(text('x'))
    const [waits, gaveUp] = [counter(), counter()]
    output.awaitWritable(waits)
    output.awaitWritable(gaveUp)
    output.forget(gaveUp)
    assert.equal(waits.calls, 0)
    output.take()
    output.take()
    assert.deepEqual([waits.calls, gaveUp.calls], [1, 0])
  })

  test('nobody reads any more: a waiting guest is woken and told EPIPE, what was written can be taken', () => {
    const output = new OutputBuffer(4)
    output.write(text('full'))
    const waits = counter()
    output.awaitWritable(waits)
    output.hangUp()
    assert.equal(waits.calls, 1)
    assert.equal(output.pollWrite(), 1)
    assert.equal(output.write(text('x')), -EPIPE)
    assert.equal(output.take().toString(), 'full')
    assert.equal(output.write(text('x')), -EPIPE)
  })

  test('onData is told of each write that brought something', () => {
    const output = new OutputBuffer(2)
    let told = 0
    output.onData = () => { told++ }
    output.write(text('a'))
    output.write(text('bc'))
    output.write(text('d'))
    assert.equal(told, 2)
  })

  test('it never holds more than its capacity, and loses nothing, however it is used', () => {
    const steps = fc.array(fc.oneof(fc.string({ unit: 'binary-ascii', maxLength: 40 }), fc.constant(null)))
    fc.assert(fc.property(fc.integer({ min: 1, max: 50 }), steps, (capacity, steps) => {
      const output = new OutputBuffer(capacity)
      let [written, taken, held] = ['', '', 0]
      for (const step of steps) {
        if (step === null) {
          const bytes = output.take()
          assert.ok(bytes.length <= capacity)
          taken += bytes.toString()
          held = 0
        } else if (step.length > 0) {
          const count = output.write(text(step))
          assert.equal(count, held === capacity ? -EAGAIN : Math.min(step.length, capacity - held))
          written += step.slice(0, Math.max(0, count))
          held += Math.max(0, count)
        }
      }
      assert.equal(taken + output.take().toString(), written)
    }))
  })
})

describe('InputBuffer', () => {
  test('it is read in the order in which it was pushed, as far as the guest has room', () => {
    const input = new InputBuffer()
    input.push(Buffer.from('hello '))
    input.push(Buffer.from('world'))
    assert.equal(input.read(ranges(4)), 4)
    assert.equal(seen(4), 'hell')
    assert.equal(input.read(ranges(100)), 2)
    assert.equal(seen(2), 'o ')
    assert.equal(input.read(ranges(100)), 5)
    assert.equal(seen(5), 'world')
  })

  test('it is scattered over all ranges', () => {
    const input = new InputBuffer()
    input.push(Buffer.from('0123456789'))
    memory.at(AT, 20).fill(0x2e)
    assert.equal(input.read(ranges(1, 0, 4, 2)), 7)
    assert.equal(seen(8), '0123456.')
    assert.equal(input.read(ranges(2, 5)), 3)
    assert.equal(seen(4), '7893')
  })

  test('with nothing in it a read has to wait, and is woken by push', () => {
    const input = new InputBuffer()
    assert.equal(input.read(ranges(1)), -EAGAIN)
    const [waits, gaveUp] = [counter(), counter()]
    input.awaitReadable(waits)
    input.awaitReadable(gaveUp)
    input.forget(gaveUp)
    input.push(Buffer.from('x'))
    assert.deepEqual([waits.calls, gaveUp.calls], [1, 0])
    assert.equal(input.read(ranges(1)), 1)
    assert.equal(input.read(ranges(1)), -EAGAIN)
  })

  test('after the end what is there is read, then 0 again and again', () => {
    const input = new InputBuffer()
    const waits = counter()
    input.push(Buffer.from('x'))
    input.awaitReadable(waits)
    input.end()
    assert.equal(waits.calls, 1)
    assert.deepEqual([1, 2, 3].map(() => input.read(ranges(8))), [1, 0, 0])
  })

  test('an empty push is not the end', () => {
    const input = new InputBuffer()
    input.push(new Uint8Array(0))
    assert.equal(input.read(ranges(1)), -EAGAIN)
    assert.equal(input.pollRead(), -EAGAIN)
  })

  test('pollRead tells all bytes that are there; 0 at the end', () => {
    const input = new InputBuffer()
    assert.equal(input.pollRead(), -EAGAIN)
    input.push(Buffer.from('abc'))
    input.push(Buffer.from('de'))
    assert.equal(input.pollRead(), 5)
    input.read(ranges(1))
    assert.equal(input.pollRead(), 4)
    input.end()
    assert.equal(input.pollRead(), 4)
    input.read(ranges(2))
    input.read(ranges(2))
    assert.equal(input.pollRead(), 0)
  })
})

test('nullConsole takes everything, reads as ended, and never waits', () => {
  assert.equal(nullConsole.write!(ranges(100, 23)), 123)
  assert.equal(nullConsole.read!(ranges(100)), 0)
  assert.equal(nullConsole.pollRead!(), 0)
  assert.equal(nullConsole.pollWrite!(), 1)
})
