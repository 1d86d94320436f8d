// wasi/p1/clock_test.ts: the calls that tell the time, with a clock that stands still.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EFAULT, EINVAL, ESUCCESS } from '../../base/errno.ts'
import type { Clock } from '../../services/clock/clock.ts'
import * as abi from './abi.ts'
import { clock_res_get, clock_time_get } from './clock.ts'
import { answered, contextOf, MEMORY_BYTES, OUT } from './test_support.ts'

const REALTIME = 1_700_000_000_123_456_789n
const MONOTONIC = 0x1_0000_0007n

const clock: Clock = {
  resolution: 5_000_000_000, time: (id) => id === 0 ? REALTIME : MONOTONIC, monotonic: () => Number(MONOTONIC),
  realtime: () => new Float64Array(2),
}

const ALL = [abi.CLOCKID_REALTIME, abi.CLOCKID_MONOTONIC, abi.CLOCKID_PROCESS_CPUTIME_ID, abi.CLOCKID_THREAD_CPUTIME_ID]

test('clock_time_get tells real and monotonic time to the nanosecond', () => {
  const context = contextOf({ clock })
  assert.equal(clock_time_get(context, abi.CLOCKID_REALTIME, 0, 0, OUT), ESUCCESS)
  assert.equal(context.memory.u64(OUT), REALTIME)
  assert.equal(clock_time_get(context, abi.CLOCKID_MONOTONIC, -1, -1, OUT), ESUCCESS)
  assert.equal(context.memory.u64(OUT), MONOTONIC)
})

test('clock_time_get tells the CPU time of the guest, not of the process', () => {
  const context = contextOf({ clock })
  context.turn.enter()
  for (const id of [abi.CLOCKID_PROCESS_CPUTIME_ID, abi.CLOCKID_THREAD_CPUTIME_ID]) {
    const before = context.turn.cpuNs()
    assert.equal(clock_time_get(context, id, 0, 0, OUT), ESUCCESS)
    const time = Number(context.memory.u64(OUT))
    assert.ok(time >= Math.floor(before) && time <= Math.ceil(context.turn.cpuNs()))
  }
  assert.ok(Number(context.memory.u64(OUT)) < process.cpuUsage().user * 1000, 'this process has run for longer')
})

test('clock_res_get tells the resolution of each clock', () => {
  const context = contextOf({ clock })
  for (const id of ALL) {
    context.memory.setU64(OUT, 0n)
    assert.equal(clock_res_get(context, id, OUT), ESUCCESS)
    assert.equal(context.memory.u64(OUT), 5_000_000_000n)
  }
})

test('a clock that isn\'t one is EINVAL, a bad pointer EFAULT, and nothing is written', () => {
  const context = contextOf({ clock })
  context.turn.enter()
  for (const id of [4, 5, -1, -(2 ** 31)]) {
    assert.equal(clock_time_get(context, id, 0, 0, OUT), EINVAL)
    assert.equal(clock_res_get(context, id, OUT), EINVAL)
  }
  for (const id of ALL) {
    for (const out of [MEMORY_BYTES - 7, -1]) {
      assert.equal(answered(() => clock_time_get(context, id, 0, 0, out)), EFAULT)
      assert.equal(answered(() => clock_res_get(context, id, out)), EFAULT)
    }
  }
  assert.ok(context.memory.bytes.every((byte) => byte === 0))
})
