// services/gateway/reassembly_test.ts: received ranges against a model that keeps each byte; and the memory they take.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TCP_BUFFER_BYTES_MAX, TCP_HOLES_MAX } from '../../base/limits.ts'
import { Random } from '../../../tests/fuzz/random.ts'
import { Reassembly } from './reassembly.ts'
import { RingMemory } from './ring.ts'

const SPAN = 3000

test('Reassembly has what a model of single bytes has, over the wrap of sequence numbers', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = new Random(seed)
    const memory = new RingMemory(TCP_BUFFER_BYTES_MAX)
    const first = random.pick([0, -1000, 0x7fff_fc00, -1]) | 0
    const reassembly = new Reassembly(memory, first)
    const content = Buffer.from(Array.from({ length: 20 * SPAN }, () => random.below(256)))
    const has = new Uint8Array(20 * SPAN)
    let [next, read] = [0, 0]
    for (let step = 0; step < 200; step++) {
      const from = Math.min(next + random.pick([0, 0, random.below(50), random.below(SPAN)]), content.length)
      const to = Math.min(from + random.between(1, random.pick([1, 20, 1460])), content.length)
      if (from === to) break
      const advanced = reassembly.put(first + from | 0, content, from, to)
      if (advanced >= 0) has.fill(1, from, to)
      const before = next
      while (has[next] === 1) next++
      assert.equal(Math.max(advanced, 0), next - before, `seed ${seed}, step ${step}`)
      assert.equal(reassembly.next, first + next | 0)
      const size = random.below(next - read + 1)
      if (random.chance(30) && size > 0) {
        const target = Buffer.alloc(size)
        reassembly.take(target, size)
        assert.ok(target.equals(content.subarray(read, read + size)), `seed ${seed}, step ${step}`)
        read += size
      }
      assert.equal(reassembly.unread, next - read)
    }
    reassembly.release()
    assert.ok(memory.take(TCP_BUFFER_BYTES_MAX) !== undefined, 'all memory is given back')
  }
})

test('holes are bounded: a range beyond them is dropped, one that fills a hole is not', () => {
  const reassembly = new Reassembly(new RingMemory(TCP_BUFFER_BYTES_MAX), 0)
  const byte = Buffer.from('x')
  for (let i = 1; i <= TCP_HOLES_MAX; i++) assert.equal(reassembly.put(2 * i, byte, 0, 1), 0)
  assert.equal(reassembly.put(2 * TCP_HOLES_MAX + 2, byte, 0, 1), -1)
  assert.equal(reassembly.put(3, byte, 0, 1), 0)
  assert.equal(reassembly.put(0, byte, 0, 1), 1)
  assert.equal(reassembly.put(1, byte, 0, 1), 4)
})

test('without memory in the budget nothing is taken, and it is when there is some', () => {
  const memory = new RingMemory(TCP_BUFFER_BYTES_MAX / 16)
  const [one, other] = [new Reassembly(memory, 0), new Reassembly(memory, 0)]
  const bytes = Buffer.alloc(100)
  assert.equal(one.put(0, bytes, 0, 100), 100)
  assert.equal(other.put(0, bytes, 0, 100), -1)
  one.take(Buffer.alloc(100), 100)
  assert.equal(other.put(0, bytes, 0, 100), 100)
})
