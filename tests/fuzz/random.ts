// tests/fuzz/random.ts: a small source of random numbers: the same seed gives the same numbers on every machine.

/** Random numbers by Mulberry32: 32 bits of state, good enough to choose instructions with. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = Math.imul(seed, 0x9e37_79b1) ^ 0x5bd1_e995
  }

  /** 32 bits, unsigned. */
  bits(): number {
    this.#state = this.#state + 0x6d2b_79f5 | 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ mixed >>> 15, mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61)
    return (mixed ^ mixed >>> 14) >>> 0
  }

  /** An integer in [0, end). */
  below(end: number): number {
    return end <= 1 ? 0 : this.bits() % end
  }

  /** An integer in [from, to]. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1)
  }

  /** True in `percent` of 100. */
  chance(percent: number): boolean {
    return this.bits() % 1000 < percent * 10
  }

  pick<T>(all: readonly T[]): T {
    const one = all[this.below(all.length)]
    if (one === undefined && all.length === 0) throw new RangeError('Cannot pick from nothing')
    return one as T
  }

  /** One of `all`, each as often as its weight says. */
  weighted<T>(all: readonly (readonly [weight: number, one: T])[]): T {
    let rest = this.below(all.reduce((sum, [weight]) => sum + weight, 0))
    for (const [weight, one] of all) {
      if (rest < weight) return one
      rest -= weight
    }
    throw new RangeError('Cannot pick from nothing')
  }
}
