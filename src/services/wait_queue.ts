// services/wait_queue.ts: who waits for a descriptor.
//
// A service holds one queue for each thing that can be waited for ("there is something to read", "there is room to
// write"). It calls notify() when that may have become true; everyone is woken and tries again. A wake-up is a hint,
// never a promise: two cells may wait for one listening socket.

/** Called once, then forgotten. */
export type Waker = () => void

/** Those who wait for one condition. */
export class WaitQueue {
  #wakers: Set<Waker> = new Set()

  /** True if somebody waits. */
  get waited(): boolean { return this.#wakers.size > 0 }

  add(waker: Waker): void { this.#wakers.add(waker) }
  delete(waker: Waker): void { this.#wakers.delete(waker) }

  /** Wakes everyone, and forgets them. */
  notify(): void {
    if (this.#wakers.size === 0) return
    const wakers = this.#wakers
    this.#wakers = new Set()
    for (const wake of wakers) wake()
  }
}
