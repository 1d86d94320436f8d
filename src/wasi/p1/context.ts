// wasi/p1/context.ts: all that the hypercalls of one cell may touch.
//
// A hypercall is a function (context, ...arguments) → number. Arguments are i32 as JavaScript numbers; an i64 comes as
// two, low half first (a BigInt would be an allocation for each call). It answers with an errno ≥ 0, or with one of two
// numbers that the gate (cell/gate.ts) understands:
//   WAIT  it can't be answered yet. The hypercall has arranged to be woken; the gate parks the vCPU (JSPI) and then
//         calls the same hypercall again with the same arguments. State of a hypercall that spans the tries is in
//         `operation` and `since`, and is cleared when it answers.
//   STOP  the guest ends here: `end` says how. The gate traps, which no guest code can catch.
// A GuestFault thrown by the memory is answered as EFAULT by the dispatcher.

import type { Clock } from '../../services/clock/clock.ts'
import { FILETYPE_REGULAR_FILE, type Descriptor } from '../../services/descriptor.ts'
import type { Entropy } from '../../services/entropy/entropy.ts'
import type { GuestMemory } from '../../services/guest_memory.ts'
import type { Iovecs } from '../../services/iovecs.ts'
import type { Lifecycle } from '../../services/lifecycle/lifecycle.ts'
import type { Dialer } from '../../services/net/dialer.ts'
import type { Descriptors } from './descriptors.ts'
import { OwnTurn } from './own_turn.ts'

/** Answer of a hypercall that has to wait. */
export const WAIT = -1
/** Answer of a hypercall after which the guest doesn't go on. */
export const STOP = -2

/** How a guest ended by itself: with a code, or by a signal number as a process on Unix does (SIGPIPE, SIGABRT). */
export type End = { kind: 'exit'; code: number } | { kind: 'signal'; signal: number }

/** A hypercall: see the head of this file. */
export type Hypercall = (context: Context, ...args: number[]) => number

/** A vCPU's place on its pCPU: when it runs, and what it is charged. Times in nanoseconds. */
export interface Turn {
  /** It wants to run: resolves when it may. undefined: it may at once. */
  begin(): Promise<void> | undefined
  /** It runs: from here its time is charged. */
  enter(): void
  /** It has run to the end of what it was called for. */
  leave(): void
  /** It leaves the pCPU until it is woken; resolves when it may go on. */
  park(): Promise<void>
  /** It leaves the pCPU to others; resolves when it may go on. */
  yield(): Promise<void>
  /** What it waited for is there. Nothing happens if it doesn't wait. */
  wake(): void
  /** Calls `wake` after `ns` nanoseconds; the result calls that off. */
  after(ns: number, wake: () => void): () => void
  /** The CPU time that it was charged, up to now. */
  cpuNs(): number
  /** It will never run again. */
  end(): void
}

/** What a context is made of. `turn`: its own, unless somebody schedules. */
export type ContextParts = Pick<Context, 'memory' | 'descriptors' | 'args' | 'env' | 'clock' | 'entropy' | 'iovecs'> & {
  readonly turn?: Turn | undefined; readonly dialer?: Dialer | undefined
  readonly lifecycle?: Lifecycle | undefined
}

/** What a cell gives to its hypercalls. */
export class Context {
  readonly memory: GuestMemory
  readonly descriptors: Descriptors
  /** Each argument and `KEY=value` in UTF-8 with its final NUL. */
  readonly args: readonly Uint8Array[]
  readonly env: readonly Uint8Array[]
  readonly clock: Clock
  readonly entropy: Entropy
  /** Shared by the cells of a pCPU; valid within one hypercall. */
  readonly iovecs: Iovecs
  readonly turn: Turn
  /** How the guest reaches others by name; undefined: it is in no network. */
  readonly dialer: Dialer | undefined
  /** Who the guest is, and what becomes of it; undefined: no host keeps it, and it hasn't asked yet. */
  lifecycle: Lifecycle | undefined

  /** Set before STOP is answered. */
  end: End | undefined
  /** It was ended from outside. */
  stopped = false
  /** An exception of ours inside a hypercall: a bug, reported when the guest has unwound. */
  bug: unknown
  /** The name of a stub that the guest called. */
  stub: string | undefined

  /**
   * What spans the tries of the hypercall in progress, and its capture: when it was first tried, in nanoseconds of the
   * monotonic clock, or -1.
   */
  since = -1
  /** Of random_get: the bytes that it has filled. */
  filled = 0
  #operation: { done: boolean; result: number } | undefined
  readonly #queues: Descriptor[] = []
  #callOff: (() => void) | undefined
  #awake = true
  /** As deadlineNs: of the wait that is on, and of the one that was interrupted last. */
  #dueNs: number | undefined = 0
  #interruptedDueNs: number | undefined = 0
  /** How often the vCPU was parked. */
  waits = 0

  /** Ends the waiting, whatever was waited for: the hypercall will be tried again. */
  readonly wake = (): void => {
    if (this.#awake) return
    this.#awake = true
    for (const queue of this.#queues) queue.forget?.(this.wake)
    this.#queues.length = 0
    this.#callOff?.()
    this.#callOff = undefined
    this.turn.wake()
  }

  /** Has a vCPU that may be parked leave its wait, to be captured. `deadlineNs` goes on telling what it was for. */
  interrupt(): void {
    this.#interruptedDueNs = this.#awake ? 0 : this.#dueNs
    this.wake()
  }

  /**
   * When a cell that is captured now has something to do again, in nanoseconds of its monotonic clock; 0: at once.
   * undefined: it waits for what others do, for as long as that takes.
   */
  get deadlineNs(): number | undefined { return this.#awake ? this.#interruptedDueNs : this.#dueNs }

  constructor(parts: ContextParts) {
    this.turn = parts.turn ?? new OwnTurn()
    this.dialer = parts.dialer
    this.lifecycle = parts.lifecycle
    this.memory = parts.memory
    this.descriptors = parts.descriptors
    this.args = parts.args
    this.env = parts.env
    this.clock = parts.clock
    this.entropy = parts.entropy
    this.iovecs = parts.iovecs
  }

  /** Waits until `descriptor` may be read. Answer the result: `return context.awaitReadable(d)`. */
  awaitReadable(descriptor: Descriptor): typeof WAIT {
    this.#begin(isDue(descriptor) ? 0 : undefined)
    this.#queues.push(descriptor)
    descriptor.awaitReadable?.(this.wake)
    return WAIT
  }

  /** Waits until `descriptor` may be written. */
  awaitWritable(descriptor: Descriptor): typeof WAIT {
    this.#begin(isDue(descriptor) ? 0 : undefined)
    this.#queues.push(descriptor)
    descriptor.awaitWritable?.(this.wake)
    return WAIT
  }

  /**
   * Waits for at most `ns` nanoseconds; may be combined with the others: the first to come wakes. `dueNs`: what it is
   * for by the guest's monotonic clock, 0 for a time that has come.
   */
  awaitTimer(ns: number, dueNs = 0): typeof WAIT {
    this.#begin(dueNs)
    this.#callOff = this.turn.after(ns, this.wake)
    return WAIT
  }

  /**
   * For work that is done elsewhere (a flush on the thread pool): the first try starts it and waits, the try after it
   * is done gives its result, an errno.
   * `isDue`: it is done soon. Default, and false for what others do when they like.
   */
  awaitOperation(start: () => Promise<number>, { isDue = true }: { isDue?: boolean } = {}): number {
    const operation = this.#operation
    if (operation === undefined) {
      this.#begin(isDue ? 0 : undefined)
      const started = { done: false, result: 0 }
      this.#operation = started
      void start().then((result) => {
        started.done = true
        started.result = result
        if (this.#operation === started) this.wake()
      })
      return WAIT
    }
    if (!operation.done) {
      this.#begin(isDue ? 0 : undefined)
      return WAIT
    }
    this.#operation = undefined
    return operation.result
  }

  // Waits for one thing more, which happens by itself at `dueNs`, or because of others.
  #begin(dueNs: number | undefined): void {
    if (this.#awake) {
      this.#dueNs = dueNs
      this.#interruptedDueNs = 0
    } else if (dueNs !== undefined) {
      this.#dueNs = Math.min(dueNs, this.#dueNs ?? Infinity)
    }
    this.#awake = false
  }

  /** True in a try of a hypercall that has begun an operation whose result wasn't taken yet. */
  get hasOperation(): boolean { return this.#operation !== undefined }

  /** How often the vCPU had to leave the pCPU because its quantum had ended. */
  preemptions = 0

  /** For the gate's `preempt`: resolves when the others on the pCPU had their turn. */
  preempted(): Promise<void> {
    this.preemptions++
    return this.turn.yield()
  }

  /** For the gate's `wait`: resolves when the vCPU may try its hypercall again. */
  parked(): Promise<void> {
    this.waits++
    return this.#awake ? this.turn.yield() : this.turn.park()
  }

  /** Stops a parked guest from outside: it doesn't go on. */
  stop(end: End): void {
    this.end = end
    this.stopped = true
    this.#awake = false
    this.wake()
  }
}

// Of a disk, that it answers isn't up to others; and what a snapshot loses, the guest is to learn at once.
function isDue({ filetype, save }: Descriptor): boolean {
  return filetype === FILETYPE_REGULAR_FILE || save === undefined
}
