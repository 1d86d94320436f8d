// services/iovecs_test.ts: scatter/gather lists: what is taken, cut and refused, and that no byte is lost or moved.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { IOVECS_MAX, TRANSFER_BYTES_MAX } from '../base/limits.ts'
import { GuestFault, GuestMemory } from './guest_memory.ts'
import { Iovecs } from './iovecs.ts'

const PAGES = 48
const SIZE = PAGES * 65_536

const memoryOf = (pages = PAGES) => new GuestMemory(new WebAssembly.Memory({ initial: pages }))

/** Writes the pairs at `at`. */
function put(memory: GuestMemory, at: number, pairs: readonly (readonly [pointer: number, length: number])[]): void {
  pairs.forEach(([pointer, length], i) => {
    memory.setU32(at + 8 * i, pointer)
    memory.setU32(at + 8 * i + 4, length)
  })
}

function loaded(memory: GuestMemory, pairs: readonly (readonly [number, number])[]): Iovecs {
  const iovecs = new Iovecs()
  put(memory, 0, pairs)
  assert.equal(iovecs.load(memory, 0, pairs.length), true)
  return iovecs
}

test('load copies the list: what the guest writes into it later changes nothing', () => {
  const memory = memoryOf()
  const iovecs = loaded(memory, [[100, 3], [200, 0], [SIZE - 4, 4]])
  memory.bytes.fill(0xff, 0, 24)
  assert.deepEqual([iovecs.count, iovecs.total], [3, 7])
  assert.deepEqual([...iovecs.offsets.subarray(0, 3)], [100, 200, SIZE - 4])
  assert.deepEqual([...iovecs.lengths.subarray(0, 3)], [3, 0, 4])
})

test('load takes an empty list, even at the end of memory', () => {
  const memory = memoryOf()
  const iovecs = new Iovecs()
  for (const pointer of [0, SIZE]) {
    assert.equal(iovecs.load(memory, pointer, 0), true)
    assert.deepEqual([iovecs.count, iovecs.total, iovecs.gather().length], [0, 0, 0])
  }
})

test('load refuses more than IOVECS_MAX ranges, and looks at none of them', () => {
  const memory = memoryOf()
  const iovecs = new Iovecs()
  assert.equal(iovecs.load(memory, 0, IOVECS_MAX), true)
  assert.equal(iovecs.count, IOVECS_MAX)
  for (const count of [IOVECS_MAX + 1, 2 ** 29, -1, -(2 ** 31)]) assert.equal(iovecs.load(memory, SIZE, count), false)
})

const BAD_LISTS: readonly [string, number, number][] = [
  ['behind the end', SIZE, 1], ['over the end', SIZE - 8, 2], ['over the end by a byte', SIZE - 7, 1],
  ['that wraps around', -8, 2],
]
for (const [what, pointer, count] of BAD_LISTS) {
  test(`load faults on a list ${what}`, () => {
    const memory = memoryOf()
    assert.throws(() => new Iovecs().load(memory, pointer, count), GuestFault)
  })
}

const BAD_RANGES: readonly [string, number, number][] = [
  ['behind the end', SIZE + 1, 0], ['over the end', SIZE - 1, 2], ['that wraps around', 0xffff_ffff, 2],
  ['of a negative length', 100, -1],
]
for (const [what, pointer, length] of BAD_RANGES) {
  test(`load faults on a range ${what}, wherever in the list it stands, and keeps the list that it had`, () => {
    const memory = memoryOf()
    const iovecs = loaded(memory, [[100, 3]])
    for (const position of [0, 1, 2]) {
      const pairs: [number, number][] = [[200, 1], [300, 2], [400, TRANSFER_BYTES_MAX]]
      pairs[position] = [pointer, length]
      put(memory, 0, pairs)
      assert.throws(() => iovecs.load(memory, 0, 3), GuestFault)
      assert.deepEqual([iovecs.count, iovecs.total], [1, 3])
    }
  })
}

test('load cuts the total at TRANSFER_BYTES_MAX, and what is beyond has length 0', () => {
  const memory = memoryOf()
  const whole = loaded(memory, [[65_536, TRANSFER_BYTES_MAX]])
  assert.deepEqual([whole.lengths[0], whole.total], [TRANSFER_BYTES_MAX, TRANSFER_BYTES_MAX])
  const over = loaded(memory, [[65_536, TRANSFER_BYTES_MAX + 1]])
  assert.deepEqual([over.lengths[0], over.total], [TRANSFER_BYTES_MAX, TRANSFER_BYTES_MAX])
  const straddling = loaded(memory, [[65_536, TRANSFER_BYTES_MAX - 5], [8, 9], [16, 1], [0, 0]])
  assert.deepEqual([...straddling.lengths.subarray(0, 4)], [TRANSFER_BYTES_MAX - 5, 5, 0, 0])
  assert.deepEqual([straddling.count, straddling.total], [4, TRANSFER_BYTES_MAX])
})

test('scatter fills the ranges in order, and says how much fitted', () => {
  const memory = memoryOf()
  const text = (from: number, length: number) => new TextDecoder().decode(memory.at(from, length))
  const iovecs = loaded(memory, [[100, 3], [200, 0], [103, 2]])
  assert.equal(iovecs.scatter(Buffer.from('abcdefg')), 5)
  assert.equal(text(100, 6), 'abcde\0')
  assert.equal(iovecs.scatter(Buffer.from('XYZW')), 4)
  assert.equal(text(100, 5), 'XYZWe')
  assert.equal(iovecs.scatter(new Uint8Array(0)), 0)
})

test('gather copies, so that a transfer may outlive the hypercall', () => {
  const memory = memoryOf()
  memory.bytes.set(Buffer.from('hello'), 100)
  const iovecs = loaded(memory, [[103, 2], [100, 3], [100, 1]])
  const copy = iovecs.gather()
  memory.bytes.fill(0, 100, 105)
  assert.equal(new TextDecoder().decode(copy), 'lohelh')
})

test('bytes is the range itself', () => {
  const memory = memoryOf()
  const iovecs = loaded(memory, [[100, 3], [200, 2]])
  iovecs.bytes(1).set([1, 2])
  assert.deepEqual([...memory.at(199, 4)], [0, 1, 2, 0])
})

test('gather gives back what scatter took, over any ranges, and nothing else is written', () => {
  // Ranges one behind another, with gaps of at least a byte, in an order of the guest's own.
  const parts = fc.array(fc.tuple(fc.integer({ min: 1, max: 40 }), fc.nat({ max: 60 })), { maxLength: 30 })
  const bytes = fc.uint8Array({ maxLength: 1000 })
  fc.assert(fc.property(parts, bytes, fc.infiniteStream(fc.nat()), (parts, source, order) => {
    const memory = memoryOf(1)
    let at = 1024
    const placed = parts.map(([gap, length]) => {
      const range = [at + gap, length] as const
      at += gap + length
      return [order.next().value, range] as const
    })
    const ranges = placed.sort(([a], [b]) => a - b).map(([, range]) => range)
    const iovecs = loaded(memory, ranges)
    const before = memory.bytes.slice()
    const count = iovecs.scatter(source)
    assert.equal(count, Math.min(source.length, iovecs.total))
    assert.deepEqual(iovecs.gather().subarray(0, count), source.subarray(0, count))
    for (const [offset, length] of ranges) memory.bytes.fill(0, offset, offset + length)
    assert.ok(memory.bytes.every((byte, i) => byte === before[i]))
  }))
})
