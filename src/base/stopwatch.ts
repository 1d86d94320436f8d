// base/stopwatch.ts: the clock by which the hypervisor measures itself and charges its guests.

/**
 * Nanoseconds since some start, as a number: differences are exact to the nanosecond for a hundred days. (Not
 * performance.now(): the first use of `performance` loads it, which is a millisecond of a guest's start.)
 */
export const nowNs = (): number => Number(process.hrtime.bigint())
