// sys/ppoll.ts: waiting for many descriptors at once (ppoll(2)), by a thread that does nothing else.
//
// A set is built once and waited for again and again; what is waited for of each descriptor may change between.
// Hot path in `wait`: one system call, nothing allocated. Elsewhere: one descriptor at once (poll1 in libc.ts).

import { assert } from '../base/assert.ts'
import { EINTR } from '../base/errno.ts'
import { Scratch, answer, bind } from './libc.ts'

const native = bind({
  ppoll: { arguments: ['pointer', 'uint64', 'pointer', 'uint64', 'uint64'], return: 'int32' },
})

const POLLFD_BYTES = 8      // struct pollfd { int fd; short events; short revents; }
const TIMESPEC_BYTES = 16

/** Descriptors that are waited for together. Slots are numbered in the order of `add`. */
export class PollSet {
  readonly #scratch: Scratch
  readonly #capacity: number
  readonly #fds: bigint
  readonly #timeout: bigint
  #count = 0
  #countBig = 0n

  constructor(capacity: number) {
    this.#capacity = capacity
    this.#scratch = new Scratch(capacity * POLLFD_BYTES + TIMESPEC_BYTES)
    this.#fds = this.#scratch.address
    this.#timeout = this.#fds + BigInt(capacity * POLLFD_BYTES)
  }

  /** Adds `fd`, to be waited for until `events` (POLL* of libc.ts) are true; 0: nothing yet. The slot's number. */
  add(fd: number, events: number): number {
    assert(this.#count < this.#capacity, 'a poll set has room', this.#count)
    const slot = this.#count++
    this.#countBig = BigInt(this.#count)
    this.#scratch.view.setInt32(slot * POLLFD_BYTES, fd, true)
    this.want(slot, events)
    return slot
  }

  /** Changes what slot `slot` is waited for. With `events` 0 it isn't looked at, so that a hung-up peer is no noise. */
  want(slot: number, events: number): void {
    const view = this.#scratch.view
    const fd = view.getInt32(slot * POLLFD_BYTES, true)
    // poll(2) skips a negative descriptor; ~fd is one, for 0 as well.
    if ((events === 0) !== (fd < 0)) view.setInt32(slot * POLLFD_BYTES, ~fd, true)
    view.setInt16(slot * POLLFD_BYTES + 4, events, true)
    view.setInt16(slot * POLLFD_BYTES + 6, 0, true)
  }

  /** Waits for at most `timeoutMs`, for ever if it is negative. How many are ready; a signal counts as none. */
  wait(timeoutMs: number): number {
    const at = this.#capacity * POLLFD_BYTES
    const view = this.#scratch.view
    let timeout = 0n
    if (timeoutMs >= 0) {
      const seconds = Math.floor(timeoutMs / 1e3)
      view.setUint32(at, seconds, true)
      view.setUint32(at + 4, 0, true)
      view.setUint32(at + 8, Math.floor((timeoutMs - seconds * 1e3) * 1e6), true)
      view.setUint32(at + 12, 0, true)
      timeout = this.#timeout
    }
    // SAFETY: `count` pollfds and one timespec, all in `scratch`, which lives as long as this object.
    const ready = answer(native.ppoll(this.#fds, this.#countBig, timeout, 0n, 0n))
    if (ready > 0) return ready
    // Unchanged after a failure: what is left there is of an earlier call.
    for (let slot = 0; slot < this.#count; slot++) view.setInt16(slot * POLLFD_BYTES + 6, 0, true)
    assert(ready === 0 || ready === -EINTR, 'ppoll works', ready)
    return 0
  }

  /** What is true of slot `slot` since the last `wait` (POLL*, with POLLERR and POLLHUP). */
  ready(slot: number): number {
    return this.#scratch.view.getInt16(slot * POLLFD_BYTES + 6, true)
  }
}
