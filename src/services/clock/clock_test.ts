// services/clock/clock_test.ts: the host's clocks as they are, and rounded down.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hostClock, type Clock } from './clock.ts'

/** Reads the real-time clock by `realtime()`, in nanoseconds. */
function realtime(clock: Clock): bigint {
  const now = clock.realtime()
  return BigInt(now[0]!) * 1_000_000_000n + BigInt(now[1]!)
}

test('hostClock is exact unless told otherwise: both ways to ask give Node\'s own times', () => {
  const clock = hostClock()
  assert.equal(clock.resolution, 1)
  const monotonic = process.hrtime.bigint()
  const times = [monotonic, clock.time(1), BigInt(clock.monotonic()), process.hrtime.bigint()]
  assert.deepEqual(times, times.toSorted((a, b) => a < b ? -1 : 1))
  // Real time may be set back meanwhile, but hardly now; Date counts in whole milliseconds.
  const before = BigInt(Date.now()) * 1_000_000n
  const seen = [clock.time(0), realtime(clock)]
  const after = BigInt(Date.now() + 1) * 1_000_000n
  for (const time of seen) assert.ok(time >= before && time <= after, `${before} ≤ ${time} ≤ ${after}`)
})

const RESOLUTIONS_NS = [10, 1000, 1_000_000, 250_000_000, 1_000_000_000, 10_000_000_000, 3600e9]

for (const resolution of RESOLUTIONS_NS) {
  test(`a clock of ${resolution} ns is never early by more than that, and never late`, () => {
    const exact = hostClock()
    const clock = hostClock(resolution)
    const step = BigInt(resolution)
    assert.equal(clock.resolution, resolution)
    const readings: [string, () => bigint, () => bigint][] = [
      ['monotonic time', () => exact.time(1), () => clock.time(1)],
      ['monotonic number', () => exact.time(1), () => BigInt(clock.monotonic())],
      ['real time', () => exact.time(0), () => clock.time(0)],
      ['real time in two numbers', () => exact.time(0), () => realtime(clock)],
    ]
    for (const [what, exactly, rounded] of readings) {
      const before = exactly()
      const time = rounded()
      const after = exactly()
      assert.equal(time % step, 0n, what)
      assert.ok(time > before - step && time <= after, `${what}: ${before} - ${step} < ${time} ≤ ${after}`)
    }
  })
}

test('a coarse clock tells nothing within its step', () => {
  const clock = hostClock(3600e9)
  const seen = new Set<bigint>()
  for (let i = 0; i < 1000; i++) seen.add(clock.time(1)).add(BigInt(clock.monotonic()))
  assert.ok(seen.size <= 2, 'one value, or two if the hour ended just now')
})

test('both ways to read real time agree for a resolution that doesn\'t divide a second', () => {
  for (const resolution of [7, 300_000_000, 1_500_000_000]) {
    const clock = hostClock(resolution)
    for (let i = 0; i < 3; i++) {
      const before = clock.time(0)
      const time = realtime(clock)
      const after = clock.time(0)
      assert.ok(before <= time && time <= after, `${resolution}: ${before} ≤ ${time} ≤ ${after}`)
    }
  }
})

for (const resolution of [1, 1000]) {
  test(`a monotonic clock of ${resolution} ns goes on from where a snapshot has it, real time doesn't`, () => {
    // Stopped on a host that had run for a day, or a moment ago; and on one that had run for longer than this one.
    for (const stoppedAt of [0, 1e6, 86_400e9, Number(process.hrtime.bigint()) * 3]) {
      const clock = hostClock(resolution, stoppedAt - hostClock().monotonic())
      const first = clock.time(1)
      assert.ok(first >= BigInt(stoppedAt) - BigInt(resolution) && first < BigInt(stoppedAt) + 1_000_000_000n,
        `${stoppedAt} ≤ ${first}`)
      assert.ok(clock.monotonic() >= Number(first) && clock.time(1) >= first)
      assert.ok(Math.abs(Number(clock.time(0) / 1_000_000n) - Date.now()) < 1000)
    }
  })
}
