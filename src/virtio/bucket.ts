// virtio/bucket.ts: a device's limits of operations and bytes per second, as token buckets that may go into debt.
//
// A request is served when no bucket is in debt, and is charged with what it took afterwards: its size needn't be known
// before, and a request larger than a bucket is served as well. A bucket holds what comes in BURST_MS, one at least.

const BURST_MS = 100

/** What a device may do. Undefined: as much as it likes. */
export type DeviceLimits = { readonly bytesPerSecond?: number | undefined; readonly opsPerSecond?: number | undefined }

export class Bucket {
  // Per millisecond; 0: unlimited.
  readonly #rates: readonly [bytes: number, ops: number]
  readonly #nowMs: () => number
  readonly #levels = new Float64Array(2)
  #lastMs: number

  constructor(limits: DeviceLimits, nowMs: () => number) {
    this.#rates = [(limits.bytesPerSecond ?? 0) / 1e3, (limits.opsPerSecond ?? 0) / 1e3]
    this.#nowMs = nowMs
    this.#lastMs = nowMs()
    this.#fill(BURST_MS)
  }

  #fill(passedMs: number): void {
    for (let i = 0; i < 2; i++) {
      const rate = this.#rates[i]!
      this.#levels[i] = Math.min(Math.max(1, rate * BURST_MS), this.#levels[i]! + rate * passedMs)
    }
  }

  /** Milliseconds until the next request may be served; 0: now. */
  waitMs(): number {
    if (this.#rates[0] === 0 && this.#rates[1] === 0) return 0
    const now = this.#nowMs()
    this.#fill(Math.max(0, now - this.#lastMs))
    this.#lastMs = now
    let wait = 0
    for (let i = 0; i < 2; i++) {
      const level = this.#levels[i]!
      if (this.#rates[i]! > 0 && level < 0) wait = Math.max(wait, -level / this.#rates[i]!)
    }
    return wait
  }

  /** One request of `bytes` was served. */
  charge(bytes: number): void {
    if (this.#rates[0] > 0) this.#levels[0]! -= bytes
    if (this.#rates[1] > 0) this.#levels[1]! -= 1
  }
}
