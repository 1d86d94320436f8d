// host/admission_test.ts: what a host promises, and what it refuses.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { admit, admitPool, ofHost, ofPool } from './admission.ts'
import { GUEST_SPEC, POOL_SPEC, type GuestSpec } from './spec.ts'

const GIB = 1024 ** 3
const capacity = { pcpus: 2, memoryBytes: 4 * GIB }
const NOTHING = { cpu: 0, memoryBytes: 0 }

function spec(fields: object): GuestSpec {
  return GUEST_SPEC.parse({ image: 'app', ...fields })
}

function refused(message: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof CellarError && error.code === 'ADMISSION_REFUSED' && message.test(error.message)
}

test('admit() takes a guest that asks for nothing on a host that has promised all', () => {
  admit('a', spec({}), { host: { cpu: 1.9, memoryBytes: 4 * GIB }, pool: undefined, inPool: NOTHING, capacity })
})

test('admit() refuses CPU beyond 95 % of the pCPUs, and says what is left', () => {
  const parts = { host: { cpu: 1.5, memoryBytes: 0 }, pool: undefined, inPool: NOTHING, capacity }
  admit('a', spec({ 'cpu-reservation': '40%' }), parts)
  assert.throws(() => admit('a', spec({ 'cpu-reservation': '41%' }), parts),
    refused(/CPU is missing: it asks for 41% of a pCPU, and 40% of a pCPU is left/))
})

test('admit() refuses memory beyond what the host has', () => {
  const parts = { host: { cpu: 0, memoryBytes: 3 * GIB }, pool: undefined, inPool: NOTHING, capacity }
  admit('a', spec({ 'memory-reservation': '1GiB' }), parts)
  assert.throws(() => admit('a', spec({ 'memory-reservation': '2GiB' }), parts),
    refused(/memory is missing.*1 GiB is left/))
})

test('admit() promises a cell of a pool no more CPU than the pool has', () => {
  const pool = POOL_SPEC.parse({ 'cpu-reservation': '50%' })
  const parts = { host: { cpu: 1.9, memoryBytes: 0 }, pool, inPool: { cpu: 0.3, memoryBytes: 0 }, capacity }
  admit('a', spec({ pool: 'p', 'cpu-reservation': '20%' }), parts)
  assert.throws(() => admit('a', spec({ pool: 'p', 'cpu-reservation': '21%' }), parts), refused(/CPU of pool "p"/))
})

test('admit() lets the limits of a pool\'s cells add up to no more than its memory', () => {
  const pool = POOL_SPEC.parse({ memory: '100MiB' })
  const parts = { host: NOTHING, pool, inPool: { cpu: 0, memoryBytes: 64 * 1024 ** 2 }, capacity }
  admit('a', spec({ pool: 'p', memory: '36MiB' }), parts)
  assert.throws(() => admit('a', spec({ pool: 'p', memory: '37MiB' }), parts), refused(/memory of pool "p"/))
  assert.throws(() => admit('a', spec({ pool: 'p' }), parts), refused(/asks for 4 GiB, and 36 MiB is left/))
})

test('admitPool() refuses terms that its cells or the host can not have', () => {
  const pool = POOL_SPEC.parse({ 'cpu-reservation': '50%', memory: '1GiB' })
  admitPool('p', pool, { host: { cpu: 1.4, memoryBytes: 0 }, inPool: { cpu: 0.5, memoryBytes: GIB }, capacity })
  assert.throws(() => admitPool('p', pool, { host: { cpu: 1.5, memoryBytes: 0 }, inPool: NOTHING, capacity }),
    refused(/CPU/))
  assert.throws(() => admitPool('p', pool, { host: NOTHING, inPool: { cpu: 0.6, memoryBytes: 0 }, capacity }),
    refused(/CPU for its cells/))
  assert.throws(() => admitPool('p', pool, { host: NOTHING, inPool: { cpu: 0, memoryBytes: GIB + 1 }, capacity }),
    refused(/memory for its cells/))
})

test('ofHost() charges CPU to the host unless it is the pool\'s', () => {
  assert.deepEqual(ofHost(spec({ 'cpu-reservation': '25%', 'memory-reservation': '1MiB' })),
    { cpu: 0.25, memoryBytes: 1024 ** 2 })
  assert.equal(ofHost(spec({ 'cpu-reservation': '25%', pool: 'p' })).cpu, 0)
  assert.deepEqual(ofPool(spec({ 'cpu-reservation': '25%', pool: 'p', memory: '1MiB' })),
    { cpu: 0.25, memoryBytes: 1024 ** 2 })
})
