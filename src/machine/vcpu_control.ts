// machine/vcpu_control.ts: the words through which the main thread and the vCPUs' threads tell each other what to do.
//
// For each vCPU, in one shared memory: what it is to do (the main thread writes it), what it does (its own thread
// does), and how often it has left the guest, by reason. A vCPU's thread looks at its wish when the kernel has come
// back with EINTR, and nowhere else: a loop that runs a guest costs nothing for it.
//
// To stop a vCPU: write the wish, set immediate_exit in its page, kick its thread (Board.kick). If the thread is in the
// kernel, the signal brings it back; if it is about to enter, immediate_exit does. Either way the instruction that it
// was answering is complete when it comes to rest, as KVM demands before state is read.

import * as abi from '../kvm/abi.ts'

/** What a vCPU is to do. */
export const RUN = 0
export const REST = 1
export const QUIT = 2

/** Reasons for which a vCPU leaves the guest; names as in KVM, and two of our own. */
const REASONS: readonly [number, string][] = [
  ...Object.entries(abi).filter(([name, value]) => name.startsWith('KVM_EXIT_') && name !== 'KVM_EXIT_IO_OUT' &&
    typeof value === 'number').map(([name, value]): [number, string] => [value as number, name]),
  [61, 'unclaimed_mmio'], [62, 'unclaimed_io'], [63, 'interrupted'],
]
const REASONS_MAX = 64
export const UNCLAIMED_MMIO = 61
export const UNCLAIMED_IO = 62
export const INTERRUPTED = 63

// A vCPU's part: words 0 and 1, then the counters.
const WISH = 0
const STATE = 1
const HEAD_BYTES = 64
const VCPU_BYTES = HEAD_BYTES + 8 * REASONS_MAX

/** The control words of a machine's vCPUs. */
export class VcpuControl {
  readonly shared: SharedArrayBuffer

  constructor(shared: SharedArrayBuffer) {
    this.shared = shared
  }

  static make(vcpus: number): VcpuControl {
    return new VcpuControl(new SharedArrayBuffer(vcpus * VCPU_BYTES))
  }

  /** A vCPU's counters by reason: its own thread alone writes them. */
  counters(id: number): Float64Array {
    return new Float64Array(this.shared, id * VCPU_BYTES + HEAD_BYTES, REASONS_MAX)
  }

  wish(id: number): number {
    return Atomics.load(this.#words(id), WISH)
  }

  /** By the main thread. Wakes a vCPU that rests. */
  setWish(id: number, wish: number): void {
    Atomics.store(this.#words(id), WISH, wish)
    Atomics.notify(this.#words(id), WISH)
  }

  /** By a vCPU's thread: rests until the wish is another one than `wish`. */
  rest(id: number, wish: number): void {
    const words = this.#words(id)
    Atomics.store(words, STATE, RESTS)
    Atomics.notify(words, STATE)
    while (Atomics.load(words, WISH) === wish) Atomics.wait(words, WISH, wish)
    Atomics.store(words, STATE, 0)
  }

  /** By the main thread: resolves when the vCPU rests. False if it doesn't within `timeoutMs`. */
  async rested(id: number, timeoutMs: number): Promise<boolean> {
    const words = this.#words(id)
    while (Atomics.load(words, STATE) !== RESTS) {
      const waiting = Atomics.waitAsync(words, STATE, 0, timeoutMs)
      if (waiting.async && await waiting.value === 'timed-out') return false
    }
    return true
  }

  /** How often all vCPUs have left the guest, by reason; reasons that never were are left out. */
  exits(): Record<string, number> {
    const exits: Record<string, number> = {}
    for (let id = 0; id < this.shared.byteLength / VCPU_BYTES; id++) {
      const counters = this.counters(id)
      for (const [reason, name] of REASONS) {
        if (counters[reason]! > 0) exits[name] = (exits[name] ?? 0) + counters[reason]!
      }
    }
    return exits
  }

  #words(id: number): Int32Array {
    return new Int32Array(this.shared, id * VCPU_BYTES, 2)
  }
}

const RESTS = 1
