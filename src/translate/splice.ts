// translate/splice.ts: one body on its way from the guest's code to the translated: copied, with insertions.
//
// Hot path: no allocation. One splice serves all bodies of a module.

import type { BodyReader } from '../wasm/body.ts'
import { lebLength, type BodyWriter } from '../wasm/body_writer.ts'

/** A mode's part: it changes bodies. */
export interface BodyTranslator {
  /** How many checks were put so far. */
  readonly checks: number
  /** False if the body of function `f` stays as it is. */
  touches(f: number): boolean
  /** Writes the body on which `splice` stands. */
  translate(f: number, reader: BodyReader, splice: Splice): void
}

/** Code to be put in. `branch` is the offset of its `if`, which is hinted as unlikely. */
export type Check = { readonly code: Uint8Array; readonly branch: number }

/** A body that is being written. */
export class Splice {
  readonly bytes: Uint8Array
  readonly out: BodyWriter
  start = 0
  end = 0
  /** Offsets of unlikely branches in the new body. */
  hints = new Uint32Array(256)
  hintCount = 0
  /** The length of the body that was written last. */
  size = 0
  #from = 0
  #bodyStart = 0
  #sizeBytes = 0

  constructor(bytes: Uint8Array, out: BodyWriter) {
    this.bytes = bytes
    this.out = out
  }

  /** Goes to the body in [start, end). */
  begin(start: number, end: number): void {
    this.start = this.#from = start
    this.end = end
    this.hintCount = 0
    this.#sizeBytes = lebLength(end - start)
    this.#bodyStart = this.out.beginSized(this.#sizeBytes)
  }

  /** Ends the body: writes its length. */
  finish(): void {
    this.size = this.out.length - this.#bodyStart
    this.out.endSized(this.#bodyStart, this.#sizeBytes)
  }

  /** Copies what comes before `at` and wasn't copied yet. */
  upTo(at: number): void {
    this.out.copy(this.bytes, this.#from, at)
    this.#from = at
  }

  /** Leaves out what comes before `at`. */
  skipTo(at: number): void {
    this.#from = at
  }

  put({ code, branch }: Check): void {
    this.hint(branch)
    this.out.copy(code, 0, code.length)
  }

  /** The instruction that is written next, or after `more` bytes, is an unlikely branch. */
  hint(more = 0): void {
    if (this.hintCount === this.hints.length) {
      const more = new Uint32Array(this.hintCount * 2)
      more.set(this.hints)
      this.hints = more
    }
    this.hints[this.hintCount++] = this.out.length + more - this.#bodyStart
  }

  /** Declares locals behind those of the body, of which nothing was copied yet. */
  addLocals(reader: BodyReader, count: number, type: number): void {
    this.out.u32(reader.localGroups + 1)
    this.#from = reader.localsStart
    this.upTo(reader.codeStart)
    this.out.u32(count)
    this.out.byte(type)
  }
}
