// host/allowance.ts: how often something may happen: so many times in a while, and then not until the next one.
//
// For what a guest or its process can make the host write down: its log, its database. Times are monotonic.

/** An allowance of `most` in `ms` milliseconds. */
export class Allowance {
  readonly #most: number
  readonly #ms: number
  #until = 0
  #count = 0

  constructor(most: number, ms: number) {
    this.#most = most
    this.#ms = ms
  }

  /** True, and counted, if it may happen now. */
  allow(): boolean {
    const now = performance.now()
    if (now >= this.#until) {
      this.#until = now + this.#ms
      this.#count = 0
    }
    return ++this.#count <= this.#most
  }
}
