// wasi/p1/args_test.ts: arguments and environment as they lie in the guest's memory.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EFAULT, ESUCCESS } from '../../base/errno.ts'
import { args_get, args_sizes_get, environ_get, environ_sizes_get } from './args.ts'
import type { Hypercall } from './context.ts'
import { answered, contextOf, MEMORY_BYTES } from './test_support.ts'

const terminated = (text: string) => new TextEncoder().encode(`${text}\0`)

const LIST = ['prog', '', 'a b', 'ä€😀'].map(terminated)
const BYTES = LIST.reduce((sum, item) => sum + item.length, 0)

const LISTS: readonly [name: string, part: 'args' | 'env', get: Hypercall, sizes: Hypercall][] = [
  ['args', 'args', args_get, args_sizes_get], ['environ', 'env', environ_get, environ_sizes_get],
]

for (const [name, part, get, sizes] of LISTS) {
  test(`${name}_sizes_get counts items and bytes, with their final NULs`, () => {
    const context = contextOf({ [part]: LIST })
    assert.equal(sizes(context, 8, 100), ESUCCESS)
    assert.deepEqual([context.memory.u32(8), context.memory.u32(100)], [4, BYTES])
  })

  test(`${name}_get writes the strings one after another, and where each begins`, () => {
    const context = contextOf({ [part]: LIST })
    const { memory } = context
    memory.bytes.fill(0xee)
    const [pointers, buffer] = [1001, 2003]
    assert.equal(get(context, pointers, buffer), ESUCCESS)
    const seen = LIST.map((item, i) => memory.at(memory.u32(pointers + 4 * i), item.length))
    assert.deepEqual(seen.map((bytes) => [...bytes]), LIST.map((item) => [...item]))
    assert.equal(memory.u32(pointers), buffer)
    const around = [pointers - 1, pointers + 16, buffer - 1, buffer + BYTES]
    assert.deepEqual(around.map((at) => memory.u8(at)), [0xee, 0xee, 0xee, 0xee])
  })

  test(`${name}: an empty list is no item and no byte, wherever the pointers are`, () => {
    const context = contextOf()
    assert.equal(sizes(context, 0, 4), ESUCCESS)
    assert.deepEqual([context.memory.u32(0), context.memory.u32(4)], [0, 0])
    assert.equal(get(context, MEMORY_BYTES, MEMORY_BYTES), ESUCCESS)
  })

  test(`${name}: a bad pointer is EFAULT, and nothing is written`, () => {
    const context = contextOf({ [part]: LIST })
    const calls: [Hypercall, number, number][] = [
      [get, MEMORY_BYTES - 15, 0], [get, 0, MEMORY_BYTES - BYTES + 1], [get, -1, 0], [get, 0, -1],
      [sizes, MEMORY_BYTES - 3, 0], [sizes, 0, MEMORY_BYTES - 3], [sizes, -4, 0], [sizes, 0, -2],
    ]
    for (const [call, a, b] of calls) assert.equal(answered(() => call(context, a, b)), EFAULT, `${a}, ${b}`)
    assert.ok(context.memory.bytes.every((byte) => byte === 0))
    assert.equal(get(context, MEMORY_BYTES - 16, 0), ESUCCESS)
    assert.equal(get(context, 0, MEMORY_BYTES - BYTES), ESUCCESS)
  })
}

test('arguments are not the environment', () => {
  const context = contextOf({ args: [terminated('x')], env: [] })
  args_sizes_get(context, 0, 4)
  environ_sizes_get(context, 8, 12)
  assert.deepEqual([0, 4, 8, 12].map((at) => context.memory.u32(at)), [1, 2, 0, 0])
})
