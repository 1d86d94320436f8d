// services/clock/clock.ts: what time it is, for guests.
//
// Four clocks, numbered as WASI and Linux number them: 0 real time, 1 monotonic, 2 CPU time of the process, 3 CPU time
// of the thread. A guest asks one thread's question only, so 2 and 3 are both the CPU time of the guest itself.
// `resolution` is 1 ns unless a coarser clock is asked for: then every reading is rounded down to it, since precise
// time is what side-channel attacks are built from.

import { clockGettime, isSupported } from '../../sys/libc.ts'

/** The clocks of one guest. */
export interface Clock {
  /** Nanoseconds of clock `id` (0 real time since 1970, 1 monotonic). */
  time(id: 0 | 1): bigint
  /** The monotonic clock as a number of nanoseconds: exact enough for deadlines. */
  monotonic(): number
  /** Whole seconds and nanoseconds since 1970: [0] and [1] of the returned array, which the next call overwrites. */
  realtime(): Float64Array
  /** Resolution, in nanoseconds. */
  readonly resolution: number
}

const GIGA = 1_000_000_000n

/**
 * The host's clocks, rounded down to `resolution` nanoseconds. The monotonic one is ahead by `monotonicOffsetNs`: of a
 * guest that goes on from a snapshot, what it showed then minus what this host's shows now, which may be negative.
 */
export function hostClock(resolution = 1, monotonicOffsetNs = 0): Clock {
  const now = new Float64Array(2)
  const read = (): void => {
    if (isSupported()) {
      clockGettime(0, now)
      return
    }
    const ms = Date.now()
    now[0] = Math.floor(ms / 1e3)
    now[1] = (ms % 1e3) * 1e6
  }
  const step = BigInt(resolution)
  const real = (): bigint => {
    read()
    return BigInt(now[0]!) * GIGA + BigInt(now[1]!)
  }
  const offset = BigInt(Math.round(monotonicOffsetNs))
  const exact: Clock = {
    resolution,
    time: (id) => id === 1 ? process.hrtime.bigint() + offset : real(),
    monotonic: () => Number(process.hrtime.bigint() + offset),
    realtime: () => { read(); return now },
  }
  if (resolution === 1) return exact
  return {
    resolution,
    time: (id) => { const time = exact.time(id); return time - time % step },
    monotonic: () => { const time = exact.monotonic(); return time - time % resolution },
    realtime: () => {
      const time = real()
      const rounded = time - time % step
      now[0] = Number(rounded / GIGA)
      now[1] = Number(rounded % GIGA)
      return now
    },
  }
}
