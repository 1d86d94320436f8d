// services/gateway/clock.ts: time and chance, as a gateway is given them: its tests have their own.

import { randomBytes } from 'node:crypto'

/** Time and chance. */
export interface Clock {
  /** Milliseconds, of which only differences count. */
  now(): number
  /** Calls `what` after so many milliseconds, unless the returned function is called before. */
  after(ms: number, what: () => void): () => void
  /** A number of 32 bits that nobody can guess. */
  random(): number
}

/** The process's own. Timers keep no process alive. */
export const processClock: Clock = {
  now: () => performance.now(),
  after: (ms, what) => {
    const timer = setTimeout(what, ms)
    timer.unref()
    return () => clearTimeout(timer)
  },
  random: () => randomBytes(4).readUInt32LE(),
}
