// host/complete_test.ts: what a machine's image adds to a spec, and each word that fits only the other kind refused.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { complete } from './complete.ts'
import { GUEST_SPEC, type GuestSpec } from './spec.ts'

const specOf = (more: object = {}): GuestSpec => GUEST_SPEC.parse({ image: 'it:1', ...more })

test("complete() leaves a cell's spec as it is", () => {
  const spec = specOf({ memory: '4MiB' })
  assert.equal(complete('one', spec, {}), spec)
})

test('complete() gives a machine its terms and a size of memory: its own, its image\'s, or a default', () => {
  const said = { vcpus: 2, engine: 'qemu', 'kernel-args': 'quiet' }
  const image = { machine: { memory: '64MiB' } }
  const { machine, memory } = complete('vm', specOf({ memory: '1GiB', machine: said }), image)
  assert.deepEqual({ machine, memory }, { machine: said, memory: '1GiB' })
  assert.equal(complete('vm', specOf(), image).memory, '64MiB')
  const usual = complete('vm', specOf(), { machine: {} })
  assert.equal(usual.memory, '256MiB')
  assert.deepEqual(usual.machine, { vcpus: 1, engine: 'auto' })
})

test('complete() of what it has completed changes nothing', () => {
  const once = complete('vm', specOf({ machine: { vcpus: 3 } }), { machine: { memory: '64MiB' } })
  assert.deepEqual(complete('vm', once, { machine: { memory: '128MiB' } }), once)
})

test('complete() refuses the words of a machine for a cell', () => {
  assert.throws(() => complete('one', specOf({ machine: {} }), {}),
    { code: 'CELL_WORD', message: 'Cannot use "machine" for "one" as its image is a cell\'s' })
})

test('complete() refuses each word that only cells have, and none that says nothing', () => {
  const words: Record<string, unknown> = { stubs: ['env'], calls: [{ call: 'main' }], deterministic: true,
    unbounded: true, connect: ['db:5432'], files: { '/etc': { a: 'b' } } }
  for (const [field, value] of Object.entries(words)) {
    assert.throws(() => complete('vm', specOf({ [field]: value }), { machine: {} }),
      { code: 'MACHINE_WORD', message: `Cannot use "${field}" for "vm" as it is a machine` })
  }
  complete('vm', specOf({ stubs: [], deterministic: false, unbounded: false, connect: [], files: {} }), { machine: {} })
})

test('complete() refuses memory that no machine can have', () => {
  for (const memory of ['16MiB', '33MiB', '32MB', '100000001', '2048GiB']) {
    assert.throws(() => complete('vm', specOf({ memory }), { machine: {} }),
      { code: 'GUEST_UNSUPPORTED', message: /its memory must be 32 ?MiB to 1 ?TiB in steps of 2 ?MiB/ }, memory)
  }
  for (const memory of ['32MiB', '34MiB', '1024GiB']) complete('vm', specOf({ memory }), { machine: {} })
  complete('one', specOf({ memory: '1MiB' }), {})
})
