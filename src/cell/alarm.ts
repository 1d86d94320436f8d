// cell/alarm.ts: how a pCPU is told the time while a guest keeps it busy, and woken while it is idle.
//
// Words of the pCPU's control memory, which it shares with the timer (timer_worker.ts):
//   PREEMPT   not 0: the guest that runs must leave. Translated code looks at it, hence its place: the first;
//   WAKE      counts rings; an idle pCPU waits for it to change;
//   ARMED     1: DEADLINE is set. The timer takes it back when it rings;
//   DEADLINE  when to ring: microseconds of the monotonic clock, modulo 2^32;
//   POSTED    counts messages that other threads have posted to this one.
// And one word of all pCPUs, POKE, that wakes the timer: counted up by a pCPU whose deadline comes before the timer's
// next one (SLEEPS_UNTIL, while SLEEPS is 1). A pCPU that puts its deadline off writes two words and calls nobody.

import { nowNs } from '../base/stopwatch.ts'

/** Words of a pCPU's control memory. */
const PREEMPT = 0
const WAKE = 1
const ARMED = 2
const DEADLINE = 3
const POSTED = 4
/** Words of what the timer shares with all pCPUs. */
const POKE = 0
const SLEEPS = 1
const SLEEPS_UNTIL = 2

/** Farther deadlines are looked at again after this: half of what the words can tell apart. */
const FAR_US = 2 ** 30

/** What the timer shares with all pCPUs. */
export function newBell(): SharedArrayBuffer {
  return new SharedArrayBuffer(3 * 4)
}

/** Tells a pCPU that it has been posted a message: a guest that is alone is asked to leave, so that it is read. */
export function announce(control: Int32Array): void {
  Atomics.add(control, POSTED, 1)
  Atomics.store(control, PREEMPT, 1)
}

/** A pCPU's end. */
export class Alarm {
  readonly #control: Int32Array
  readonly #bell: Int32Array
  #armed = Infinity
  #waiting = false
  #read = 0

  constructor(control: Int32Array, bell: SharedArrayBuffer) {
    this.#control = control
    this.#bell = new Int32Array(bell)
  }

  /** Rings at `atNs` (of nowNs), or never if that is Infinity: PREEMPT is set, an idle pCPU is woken. */
  arm(atNs: number): void {
    if (atNs === this.#armed && Atomics.load(this.#control, ARMED) === (atNs === Infinity ? 0 : 1)) return
    this.#armed = atNs
    if (atNs === Infinity) {
      Atomics.store(this.#control, ARMED, 0)
      return
    }
    const deadline = microseconds(atNs)
    Atomics.store(this.#control, DEADLINE, deadline)
    Atomics.store(this.#control, ARMED, 1)
    // A timer that doesn't sleep is about to look at deadlines, and may have looked at this one already.
    const bell = this.#bell
    if (Atomics.load(bell, SLEEPS) === 1 && (Atomics.load(bell, SLEEPS_UNTIL) - deadline | 0) <= 0) return
    Atomics.add(bell, POKE, 1)
    Atomics.notify(bell, POKE)
  }

  /** The guest that is picked next may run. Who posts a message after this rings again. */
  clear(): void {
    Atomics.store(this.#control, PREEMPT, 0)
  }

  /** True if a message was announced that hasn't been read yet: the event loop will bring it. */
  get hasMail(): boolean {
    return (Atomics.load(this.#control, POSTED) - this.#read | 0) > 0
  }

  /** To be called at each message. */
  messageRead(): void {
    this.#read = this.#read + 1 | 0
  }

  /** The guest that runs must leave. */
  ring(): void {
    Atomics.store(this.#control, PREEMPT, 1)
  }

  /** Rings at `atNs`, and calls `wake` then. One is waited for at a time. */
  wakeAt(atNs: number, wake: () => void): void {
    // Read first: a ring that comes as soon as it is armed must not be missed.
    const seen = Atomics.load(this.#control, WAKE)
    this.arm(atNs)
    if (this.#waiting) return
    const rung = Atomics.waitAsync(this.#control, WAKE, seen)
    if (!rung.async) {
      setImmediate(wake)
      return
    }
    this.#waiting = true
    void rung.value.then(() => {
      this.#waiting = false
      wake()
    })
  }
}

/** The timer's end: sleeps until the next deadline or poke, and rings. Never returns. */
export function keepTime(controls: readonly Int32Array[], bell: SharedArrayBuffer): never {
  const words = new Int32Array(bell)
  for (;;) {
    Atomics.store(words, SLEEPS, 0)
    const seen = Atomics.load(words, POKE)
    const now = microseconds(nowNs())
    let next = FAR_US
    for (const control of controls) {
      if (Atomics.load(control, ARMED) === 0) continue
      const left = Atomics.load(control, DEADLINE) - now | 0
      if (left > 0) next = Math.min(next, left)
      else {
        Atomics.store(control, ARMED, 0)
        Atomics.store(control, PREEMPT, 1)
        Atomics.add(control, WAKE, 1)
        Atomics.notify(control, WAKE)
      }
    }
    Atomics.store(words, SLEEPS_UNTIL, now + next | 0)
    Atomics.store(words, SLEEPS, 1)
    Atomics.wait(words, POKE, seen, next / 1e3)
  }
}

// Rounded up: who is rung finds that it is time. What is too far away is rung for early, and armed again.
function microseconds(atNs: number): number {
  const now = nowNs()
  return Math.ceil(Math.min(atNs, now + FAR_US * 1e3) / 1e3) | 0
}
