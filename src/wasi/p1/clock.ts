// wasi/p1/clock.ts: clock_res_get, clock_time_get.

import { EINVAL, ESUCCESS } from '../../base/errno.ts'
import { CLOCKID_MONOTONIC, CLOCKID_REALTIME, CLOCKID_THREAD_CPUTIME_ID } from './abi.ts'
import type { Context } from './context.ts'

export function clock_res_get(context: Context, id: number, out: number): number {
  if (id >>> 0 > CLOCKID_THREAD_CPUTIME_ID) return EINVAL
  context.memory.setU64Number(out, context.clock.resolution)
  return ESUCCESS
}

// Hot path: no allocation. The BigInt lives in registers, since it goes straight from one 64-bit cell to another.
export function clock_time_get(context: Context, id: number, _precisionLo: number, _precisionHi: number,
  out: number): number {
  const { memory } = context
  const at = memory.check(out, 8)
  if (id === CLOCKID_MONOTONIC || id === CLOCKID_REALTIME) memory.view.setBigUint64(at, context.clock.time(id), true)
  else if (id >>> 0 <= CLOCKID_THREAD_CPUTIME_ID) memory.setU64Number(at, Math.round(context.turn.cpuNs()))
  else return EINVAL
  return ESUCCESS
}
