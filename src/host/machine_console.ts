// host/machine_console.ts: a machine's console between its engine and who reads and writes it.
//
// What the guest writes goes to its log and to whoever is attached (consoles.ts), which tell when they are done with
// it: while more than a window waits for the log the engine takes no more, and the guest waits. Input goes in as the
// guest takes it: a serial port takes a few bytes at a time, and doesn't tell when it would take more.

import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../base/limits.ts'
import type { Engine } from '../machine/engine.ts'
import type { Consoles } from './consoles.ts'
import { STDOUT } from './protocol.ts'

/** How often input is offered that was not taken. */
const OFFER_MS = 10
/** What somebody sees who comes later: some screens. */
const REPLAY_BYTES = 16 * 1024
/** Bytes of input that may wait; what attached consoles may send is bounded by their streams as well. */
const INPUT_BYTES_MAX = 1024 * 1024

/** One machine's console. */
export class MachineConsole {
  readonly #number: number
  readonly #consoles: Consoles
  #engine: Engine | undefined
  #waiting = 0
  #isHeld = false
  readonly #last: Uint8Array[] = []
  #lastBytes = 0
  #input: Uint8Array[] = []
  #inputBytes = 0
  #offering: NodeJS.Timeout | undefined

  /** `number`: what it is called among the consoles of the process. */
  constructor(number: number, consoles: Consoles) {
    this.#number = number
    this.#consoles = consoles
  }

  /** The engine that has the guest now; undefined: none has. */
  connect(engine: Engine | undefined): void {
    this.#engine = engine
    this.#isHeld = false
    clearTimeout(this.#offering)
    this.#offering = undefined
    if (engine === undefined) return this.#forgetInput()
    this.#hold()
    this.#offer()
  }

  // Nobody reads it any more: who has sent it may send as much to the next.
  #forgetInput(): void {
    this.#input = []
    if (this.#inputBytes > 0) this.#consoles.taken(this.#number, this.#inputBytes)
    this.#inputBytes = 0
  }

  /** The last that it has written, for who looks at it from now on. */
  replay(show: (bytes: Uint8Array) => void): void {
    for (const bytes of this.#last) show(bytes)
  }

  /** The guest has written. */
  write(bytes: Uint8Array): void {
    const end = bytes.length > REPLAY_BYTES ? Uint8Array.from(bytes.subarray(-REPLAY_BYTES)) : bytes
    this.#last.push(end)
    this.#lastBytes += end.length
    while (this.#lastBytes > REPLAY_BYTES) this.#lastBytes -= this.#last.shift()!.length
    this.#waiting += bytes.length + OUTPUT_PIECE_BYTES
    this.#consoles.output(this.#number, STDOUT, bytes)
    this.#hold()
  }

  /** So many bytes of what it wrote are done with: in the window's units (consoles.ts), so more than were written. */
  credit(bytes: number): void {
    this.#waiting = Math.max(0, this.#waiting - bytes)
    this.#hold()
  }

  /** Input for the guest. A machine's console has no end of input. */
  read(bytes: Uint8Array | null): void {
    if (bytes === null || bytes.length === 0) return
    if (this.#inputBytes + bytes.length > INPUT_BYTES_MAX) return this.#consoles.taken(this.#number, bytes.length)
    this.#input.push(bytes)
    this.#inputBytes += bytes.length
    this.#offer()
  }

  #hold(): void {
    const isFull = this.#waiting > OUTPUT_WINDOW_BYTES_MAX
    if (isFull === this.#isHeld) return
    this.#isHeld = isFull
    this.#engine?.holdConsole(isFull)
  }

  #offer(): void {
    if (this.#engine === undefined || this.#offering !== undefined) return
    while (this.#input.length > 0) {
      const first = this.#input[0]!
      const taken = this.#engine.input(first)
      this.#inputBytes -= taken
      if (taken > 0) this.#consoles.taken(this.#number, taken)
      if (taken < first.length) {
        this.#input[0] = first.subarray(taken)
        this.#offering = setTimeout(() => {
          this.#offering = undefined
          this.#offer()
        }, OFFER_MS)
        return
      }
      this.#input.shift()
    }
  }
}
