// wasi/p1/random_test.ts: random_get, with a source that can be told apart.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EFAULT, ESUCCESS } from '../../base/errno.ts'
import { ENTROPY_BYTES_MAX } from '../../base/limits.ts'
import { hostEntropy } from '../../services/entropy/entropy.ts'
import { GuestMemory } from '../../services/guest_memory.ts'
import { WAIT } from './context.ts'
import { random_get } from './random.ts'
import { answered, contextOf, MEMORY_BYTES } from './test_support.ts'

/** A source that writes which call it is, and remembers how much each was asked for. */
function counting(): { asked: number[]; fill(bytes: Uint8Array): void } {
  const asked: number[] = []
  return { asked, fill(bytes) { bytes.fill(asked.push(bytes.length)) } }
}

test('random_get fills the range and nothing else', () => {
  const context = contextOf({ entropy: counting() })
  assert.equal(random_get(context, 100, 3), ESUCCESS)
  assert.deepEqual([...context.memory.at(98, 7)], [0, 0, 1, 1, 1, 0, 0])
})

test('random_get gives the others a turn after each ENTROPY_BYTES_MAX, and fills everything', async () => {
  const entropy = counting()
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 4 }))
  const context = contextOf({ entropy, memory })
  const length = 2 * ENTROPY_BYTES_MAX + 5
  for (const steps of [1, 2]) {
    assert.equal(random_get(context, 7, length), WAIT)
    assert.equal(entropy.asked.length, steps)
    await context.parked()
  }
  assert.equal(random_get(context, 7, length), ESUCCESS)
  assert.deepEqual([entropy.asked, context.since], [[ENTROPY_BYTES_MAX, ENTROPY_BYTES_MAX, 5], -1])
  assert.deepEqual([memory.u8(6), memory.u8(7), memory.u8(7 + length - 1), memory.u8(7 + length)], [0, 1, 3, 0])
})

test('random_get of a guest that was captured half-way fills all anew: two copies of it have nothing in common', () => {
  const length = ENTROPY_BYTES_MAX + 5
  const first = new GuestMemory(new WebAssembly.Memory({ initial: 4 }))
  const captured = contextOf({ entropy: counting(), memory: first })
  assert.equal(random_get(captured, 7, length), WAIT)
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 4 }))
  memory.bytes.set(first.bytes)
  const entropy = counting()
  entropy.asked.push(0, 0, 0)
  const restored = contextOf({ entropy, memory })
  restored.since = captured.since
  assert.equal(random_get(restored, 7, length), WAIT)
  assert.equal(memory.u8(7), 4)
})

test('random_get of nothing asks for nothing, also at the end of memory', () => {
  const entropy = counting()
  assert.equal(random_get(contextOf({ entropy }), MEMORY_BYTES, 0), ESUCCESS)
  assert.deepEqual(entropy.asked, [])
})

test('random_get beyond the memory is EFAULT and fills nothing', () => {
  const entropy = counting()
  const context = contextOf({ entropy })
  for (const [pointer, length] of [[MEMORY_BYTES - 1, 2], [0, -1], [-1, 2], [1, MEMORY_BYTES]] as const) {
    assert.equal(answered(() => random_get(context, pointer, length)), EFAULT)
  }
  assert.deepEqual(entropy.asked, [])
})

test('hostEntropy gives other bytes each time', () => {
  const context = contextOf({ entropy: hostEntropy })
  random_get(context, 0, 32)
  random_get(context, 32, 32)
  const [first, second] = [Buffer.from(context.memory.at(0, 32)), Buffer.from(context.memory.at(32, 32))]
  assert.ok(!first.equals(second) && !first.equals(Buffer.alloc(32)) && !second.equals(Buffer.alloc(32)))
})
