// virtio/section.ts: a device's part of a snapshot, as bytes: little-endian numbers one after another, no names.
//
// Each section begins with a u16 version. What is read is an allegation: a section that is too short, too long or of
// another version is refused (SNAPSHOT_DAMAGED), and each number is checked by who asked for it.

import { CellarError } from '../base/errors.ts'

const SECTION_BYTES_MAX = 64 * 1024

/** Writes a section. */
export class SectionWriter {
  #bytes = new Uint8Array(256)
  #view = new DataView(this.#bytes.buffer)
  #length = 0

  #room(count: number): number {
    const at = this.#length
    this.#length += count
    if (this.#length > this.#bytes.length) {
      const larger = new Uint8Array(2 * this.#length)
      larger.set(this.#bytes)
      this.#bytes = larger
      this.#view = new DataView(larger.buffer)
    }
    return at
  }

  u16(value: number): void { this.#view.setUint16(this.#room(2), value, true) }
  u32(value: number): void { this.#view.setUint32(this.#room(4), value, true) }
  /** A whole number below 2^53. */
  number(value: number): void { this.#view.setFloat64(this.#room(8), value, true) }

  finish(): Uint8Array {
    return this.#bytes.slice(0, this.#length)
  }
}

/** Reads one. `name` is for the message of what is wrong. */
export class SectionReader {
  readonly #name: string
  readonly #view: DataView
  #at = 0

  constructor(name: string, bytes: Uint8Array) {
    this.#name = name
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    if (bytes.length > SECTION_BYTES_MAX) this.refuse('a section is too long')
  }

  #take(count: number): number {
    const at = this.#at
    this.#at += count
    if (this.#at > this.#view.byteLength) this.refuse('a section is cut off')
    return at
  }

  u16(): number { return this.#view.getUint16(this.#take(2), true) }
  u32(): number { return this.#view.getUint32(this.#take(4), true) }

  /** A whole number, 0 ≤ it ≤ `max`. */
  number(max: number): number {
    const value = this.#view.getFloat64(this.#take(8), true)
    if (!Number.isInteger(value) || !(value >= 0 && value <= max)) this.refuse('a number is out of its range')
    return value
  }

  /** To be called last. */
  end(): void {
    if (this.#at !== this.#view.byteLength) this.refuse('a section is too long')
  }

  refuse(why: string): never {
    throw new CellarError('SNAPSHOT_DAMAGED', [this.#name, why])
  }
}
