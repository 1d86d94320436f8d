// virtio/rng_test.ts: entropy for the guest, within its limit.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ENTROPY_BYTES_MAX } from '../base/limits.ts'
import { Rng } from './rng.ts'
import { Rig } from './test_support.ts'

function rigOf(): Rig {
  let value = 0
  return new Rig(new Rng({ fill(bytes) { for (let i = 0; i < bytes.length; i++) bytes[i] = value++ % 251 } })).start()
}

test('each byte that is asked for is filled, and no other', () => {
  const rig = rigOf()
  rig.bytes.fill(0xff, 0, 0x4000)
  rig.request(0, [{ at: 0x100, length: 5000, isWritable: true }, { at: 0x2000, length: 3, isWritable: true }])
  const wanted = Array.from({ length: 5003 }, (_, i) => i % 251)
  assert.deepEqual([...rig.get(0x100, 5000), ...rig.get(0x2000, 3)], wanted)
  assert.deepEqual(rig.rings[0]!.taken(), [{ head: 0, written: 5003 }])
  assert.equal(rig.bytes[0xff], 0xff)
  assert.equal(rig.bytes[0x2003], 0xff)
})

test('ranges that overlap are filled up to a limit, and the guest is told how much that was', () => {
  const rig = rigOf()
  rig.request(0, Array.from({ length: 16 }, () => ({ at: 0, length: 0x8_0000, isWritable: true })))
  assert.deepEqual(rig.rings[0]!.taken(), [{ head: 0, written: ENTROPY_BYTES_MAX }])
})

test('a buffer that may not be written gets nothing', () => {
  const rig = rigOf()
  rig.request(0, [{ at: 0x100, length: 100 }])
  assert.deepEqual(rig.rings[0]!.taken(), [{ head: 0, written: 0 }])
  assert.ok(rig.get(0x100, 100).every((byte) => byte === 0))
})

test('a ring of requests is served in turns', () => {
  const rig = rigOf()
  for (let i = 0; i < 16; i++) rig.rings[0]!.add([{ at: 0x100, length: 1, isWritable: true }])
  rig.write(0x50, 0)
  assert.notEqual(rig.port.pending, 0)
  rig.settle()
  assert.equal(rig.rings[0]!.taken().length, 16)
})
