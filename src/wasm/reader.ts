// wasm/reader.ts: the one checked door into a module's bytes (spec §5.2, "Values").
//
// A module is a guest's allegation from its first byte. Every read is checked against `end`, which is the end of the
// section that is being read, and integers in LEB128 are refused when they are longer than their type allows or have
// bits beyond it, as the specification demands: V8 then reads the same numbers as we do.
//
// Two kinds of failure: the file ends too early (`truncated`: a download broke off), or it says something impossible.

/** The bytes are not a WebAssembly module. */
export class MalformedModule extends Error {
  override readonly name = 'MalformedModule'
  /** Byte of the file at which reading failed. */
  readonly offset: number
  /** What is wrong there. */
  readonly what: string
  /** Where that is, in words: 'header', 'import section'. */
  readonly where: string
  /** True if the file ends before the module does. */
  readonly truncated: boolean

  constructor(at: { offset: number; where: string; truncated?: boolean }, what: string) {
    super(`Cannot decode the ${at.where} at byte ${at.offset}: ${what}`)
    this.offset = at.offset
    this.what = what
    this.where = at.where
    this.truncated = at.truncated ?? false
  }
}

/** A position in a module's bytes, and the range that it may not leave. */
export class Reader {
  readonly bytes: Uint8Array
  /** The next byte to be read. */
  at: number
  readonly end: number
  /** What is being read, for messages. */
  readonly where: string

  constructor(bytes: Uint8Array, at: number, end: number, where: string) {
    this.bytes = bytes
    this.at = at
    this.end = end
    this.where = where
  }

  get done(): boolean { return this.at >= this.end }

  u8(): number {
    if (this.at >= this.end) this.fail('it ends too early')
    return this.bytes[this.at++]!
  }

  /** An unsigned 32-bit integer in LEB128. */
  u32(): number {
    const start = this.at
    let byte = this.u8()
    let result = byte & 0x7f
    // A factor, not a shift: JavaScript's shifts are signed.
    for (let factor = 0x80; byte >= 0x80; factor *= 0x80) {
      if (this.at - start === 5) this.fail('an integer is longer than 32 bits', start)
      byte = this.u8()
      result += (byte & 0x7f) * factor
    }
    if (result > 0xffff_ffff) this.fail('an integer is larger than 32 bits', start)
    return result
  }

  /** A signed 33-bit integer in LEB128: a type index, or a negative number that stands for an abstract heap type. */
  s33(): number {
    const start = this.at
    let byte = this.u8()
    let result = byte & 0x7f
    let factor = 0x80
    for (; byte >= 0x80; factor *= 0x80) {
      if (this.at - start === 5) this.fail('an integer is longer than 33 bits', start)
      byte = this.u8()
      result += (byte & 0x7f) * factor
    }
    if ((byte & 0x40) !== 0) result -= factor
    if (result < -(2 ** 32) || result >= 2 ** 32) this.fail('an integer is larger than 33 bits', start)
    return result
  }

  /** An unsigned 64-bit integer in LEB128. */
  u64(): bigint {
    const start = this.at
    let result = 0n
    for (let shift = 0n; ; shift += 7n) {
      if (this.at - start === 10) this.fail('an integer is longer than 64 bits', start)
      const byte = this.u8()
      result |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) break
    }
    if (result >> 64n !== 0n) this.fail('an integer is larger than 64 bits', start)
    return result
  }

  /** Goes over `count` bytes; the position of the first. */
  skip(count: number): number {
    const start = this.at
    if (count > this.end - start) this.fail('it ends too early')
    this.at = start + count
    return start
  }

  /** Goes over an integer in LEB128 of up to `bits` bits, signed or not. */
  skipLeb(bits: 32 | 64): void {
    const start = this.at
    while (this.u8() >= 0x80) {
      if (this.at - start === Math.ceil(bits / 7)) this.fail(`an integer is longer than ${bits} bits`, start)
    }
  }

  /** A name: its length, then UTF-8. */
  name(): string {
    const length = this.u32()
    const start = this.skip(length)
    const text = ascii(this.bytes, start, length)
    if (text !== undefined) return text
    try {
      return UTF8.decode(this.bytes.subarray(start, start + length))
    } catch {
      return this.fail('a name is not UTF-8', start)
    }
  }

  fail(what: string, offset = this.at): never {
    throw new MalformedModule({ offset, where: this.where }, what)
  }
}

// Nearly all names are short and ASCII, and a module may have tens of thousands: that many decoder calls cost more.
function ascii(bytes: Uint8Array, start: number, length: number): string | undefined {
  if (length > 64) return undefined
  let text = ''
  for (let i = start; i < start + length; i++) {
    const byte = bytes[i]!
    if (byte >= 0x80) return undefined
    text += String.fromCharCode(byte)
  }
  return text
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
