// cell/save_area.ts: JavaScript's end of the save area (translate/save_area.ts): the frames of a vCPU that has left its
// stack, on their way out of the pCPU's control memory or into it.
//
// Leaving and going on are each one step of this thread: between them the area is nobody's. Either may end in a trap (a
// stack too deep for the area), of which nobody hears in time: so each vCPU that goes on clears it first.

import {
  CONTROL_BASE, CONTROL_EXTERNS, CONTROL_FRAMES, CONTROL_FUNCS, CONTROL_ORIGIN, CONTROL_POINTER, CONTROL_STATE,
  UNWINDING,
} from '../translate/control_words.ts'

/** The word that translated code looks at (alarm.ts). */
const PREEMPT = 0

/** The save area of a pCPU. */
export class SaveArea {
  readonly #words: Int32Array
  readonly #bytes: Uint8Array

  constructor(control: WebAssembly.Memory) {
    this.#words = new Int32Array(control.buffer)
    this.#bytes = new Uint8Array(control.buffer)
    this.clear()
  }

  /** The vCPU that runs leaves its stack from here on: each of its checks sees it. */
  unwind(): void {
    this.clear()
    this.#words[CONTROL_STATE >> 2] = UNWINDING
    Atomics.store(this.#words, PREEMPT, 1)
  }

  get isUnwinding(): boolean { return this.#words[CONTROL_STATE >> 2] === UNWINDING }

  /** What was kept: the bytes, and how many references of functions and of the host. The area is empty then. */
  take(): { bytes: Uint8Array<ArrayBuffer>; funcs: number; externs: number } {
    const words = this.#words
    const taken = {
      bytes: this.#bytes.slice(CONTROL_FRAMES, words[CONTROL_POINTER >> 2]) as Uint8Array<ArrayBuffer>,
      funcs: words[CONTROL_FUNCS >> 2]!, externs: words[CONTROL_EXTERNS >> 2]!,
    }
    // What one guest kept is nothing for the next.
    this.#bytes.fill(0, CONTROL_FRAMES, words[CONTROL_POINTER >> 2])
    this.clear()
    return taken
  }

  /** How many bytes of frames it holds. */
  get room(): number { return this.#bytes.length - CONTROL_FRAMES }

  /** Fills it, for what goes on next: no more than there is `room` for. */
  put(bytes: Uint8Array, funcs = 0): void {
    this.#bytes.set(bytes, CONTROL_FRAMES)
    this.#words[CONTROL_POINTER >> 2] = CONTROL_FRAMES + bytes.length
    this.#words[CONTROL_FUNCS >> 2] = funcs
  }

  /** Nobody leaves its stack, and nothing is kept. */
  clear(): void {
    const words = this.#words
    words[CONTROL_STATE >> 2] = words[CONTROL_ORIGIN >> 2] = 0
    words[CONTROL_FUNCS >> 2] = words[CONTROL_EXTERNS >> 2] = 0
    words[CONTROL_POINTER >> 2] = words[CONTROL_BASE >> 2] = CONTROL_FRAMES
  }
}
