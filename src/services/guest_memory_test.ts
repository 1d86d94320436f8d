// services/guest_memory_test.ts: the checked door: no range that isn't all memory gets through it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { GuestFault, GuestMemory } from './guest_memory.ts'

const SIZE = 65_536

const onePage = () => new GuestMemory(new WebAssembly.Memory({ initial: 1, maximum: 4 }))

const faults = (call: () => unknown) => { assert.throws(call, GuestFault) }

test('check accepts exactly the ranges inside, and gives their start as an index', () => {
  const memory = onePage()
  // Near the ends, where mistakes are, and anywhere in 32 bits, signed and unsigned alike.
  const near = fc.integer({ min: SIZE - 16, max: SIZE + 16 })
  const pointer = fc.oneof(near, fc.integer({ min: -16, max: 16 }), fc.integer({ min: -(2 ** 31), max: 2 ** 32 - 1 }))
  const length = fc.oneof(near, fc.integer({ min: 0, max: 16 }), fc.integer({ min: 0, max: 2 ** 32 - 1 }))
  fc.assert(fc.property(pointer, length, (pointer, length) => {
    const start = Number(BigInt.asUintN(32, BigInt(pointer)))
    if (BigInt(start) + BigInt(length) <= BigInt(SIZE)) assert.equal(memory.check(pointer, length), start)
    else faults(() => memory.check(pointer, length))
  }), { numRuns: 2000 })
})

test('check takes the empty range at the end, and none behind it', () => {
  const memory = onePage()
  assert.equal(memory.check(SIZE, 0), SIZE)
  faults(() => memory.check(SIZE + 1, 0))
  faults(() => memory.check(SIZE, 1))
  faults(() => memory.check(SIZE - 1, 2))
})

test('check lets no range wrap around, and no length that is not a number through', () => {
  const memory = onePage()
  faults(() => memory.check(-1, 2))
  faults(() => memory.check(0xffff_ffff, 0xffff_ffff))
  faults(() => memory.check(8, 2 ** 32 - 4))
  faults(() => memory.check(0, NaN))
  faults(() => memory.at(1, -1))
})

const ACCESSES: Readonly<Record<string, [size: number, access: (memory: GuestMemory, pointer: number) => unknown]>> = {
  u8: [1, (memory, at) => memory.u8(at)], u16: [2, (memory, at) => memory.u16(at)],
  u32: [4, (memory, at) => memory.u32(at)], u64: [8, (memory, at) => memory.u64(at)],
  setU8: [1, (memory, at) => memory.setU8(at, -1)], setU16: [2, (memory, at) => memory.setU16(at, -1)],
  setU32: [4, (memory, at) => memory.setU32(at, -1)], setU64: [8, (memory, at) => memory.setU64(at, -1n)],
  setU64Number: [8, (memory, at) => memory.setU64Number(at, Number.MAX_SAFE_INTEGER)],
  at: [5, (memory, at) => memory.at(at, 5)],
}

for (const [name, [size, access]] of Object.entries(ACCESSES)) {
  test(`${name} reaches the last ${size} bytes, and writes nothing of what would reach beyond`, () => {
    const memory = onePage()
    for (const pointer of [SIZE - size + 1, SIZE, -1, -(2 ** 31)]) faults(() => access(memory, pointer))
    assert.ok(memory.bytes.every((byte) => byte === 0))
    access(memory, SIZE - size)
    assert.equal(memory.bytes.some((byte) => byte !== 0), name.startsWith('set'))
    assert.ok(memory.bytes.subarray(0, SIZE - size).every((byte) => byte === 0))
  })
}

test('numbers are little-endian and unsigned', () => {
  const memory = onePage()
  memory.setU32(0, -2)
  memory.setU32(4, 0x0102_0304)
  assert.deepEqual([...memory.at(0, 8)], [0xfe, 0xff, 0xff, 0xff, 4, 3, 2, 1])
  assert.deepEqual([memory.u8(0), memory.u16(0), memory.u32(0)], [0xfe, 0xfffe, 0xffff_fffe])
  assert.equal(memory.u64(0), 0x0102_0304_ffff_fffen)
  memory.setU16(8, 0x1_2345)
  memory.setU8(10, 0x678)
  assert.deepEqual([...memory.at(8, 3)], [0x45, 0x23, 0x78])
})

test('setU64Number writes what setU64 writes, for each integer that a number can hold', () => {
  const memory = onePage()
  fc.assert(fc.property(fc.nat({ max: Number.MAX_SAFE_INTEGER }), (value) => {
    memory.setU64Number(8, value)
    assert.equal(memory.u64(8), BigInt(value))
  }))
})

test('at shares the bytes with the guest', () => {
  const memory = onePage()
  const bytes = memory.at(100, 2)
  new Uint8Array(memory.memory.buffer)[101] = 7
  assert.deepEqual([...bytes], [0, 7])
})

test('refresh takes the memory that has grown; without it, everything faults', () => {
  const memory = onePage()
  memory.setU8(SIZE - 1, 5)
  memory.memory.grow(2)
  faults(() => memory.check(0, 1))
  memory.refresh()
  assert.equal(memory.u8(SIZE - 1), 5)
  assert.equal(memory.check(3 * SIZE - 1, 1), 3 * SIZE - 1)
  faults(() => memory.check(3 * SIZE, 1))
  const { bytes, view } = memory
  memory.refresh()
  assert.equal(memory.bytes, bytes, 'nothing has grown: the views stay')
  assert.equal(memory.view, view)
})

test('an empty memory has no byte, and gets its first by growing', () => {
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 0, maximum: 1 }))
  assert.equal(memory.check(0, 0), 0)
  faults(() => memory.u8(0))
  memory.memory.grow(1)
  memory.refresh()
  assert.equal(memory.u8(SIZE - 1), 0)
})

test('a fault costs no stack trace', () => {
  try {
    onePage().u8(-1)
    assert.fail('it was let through')
  } catch (error) {
    assert.ok(error instanceof GuestFault)
    assert.equal(error.stack, '')
  }
})
