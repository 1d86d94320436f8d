// snapshot/codec.ts: values as bytes and back, described by one table that reads, writes and documents them.
//
// A codec is canonical: a value has one encoding and an encoding one value. Numbers have fixed widths, little-endian;
// lengths come first; what may be missing has a byte before it that is 0 or 1; lists that are sets ascend. So
// `encode(decode(bytes))` is `bytes`, and whatever else is not an encoding is refused.
//
// What is decoded is hostile: each length has a cap, and nothing is allocated for more than there are bytes. Elsewhere:
// what a snapshot has (format.ts).

import { Buffer } from 'node:buffer'

/** Why bytes aren't what they claim to be. */
export class Malformed extends Error {}

/** How a type is written. `describe`: for the reference, in words. */
export interface Codec<T> {
  readonly describe: string
  /** Rows of its parts, for the reference. */
  readonly parts?: readonly Part[]
  write(value: T, to: Writer): void
  read(from: Reader): T
}

/** One line of the reference: a field, or a part of one. */
export type Part = { readonly name: string; readonly type: string; readonly meaning: string
  readonly parts?: readonly Part[] | undefined }

/** Bytes as they come about. */
export class Writer {
  #bytes = Buffer.allocUnsafe(4096)
  size = 0

  /** Room for `length` more bytes, and where they begin. */
  room(length: number): { readonly bytes: Buffer; readonly at: number } {
    const at = this.size
    if (at + length > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(2 * this.#bytes.length, at + length))
      this.#bytes.copy(larger, 0, 0, at)
      this.#bytes = larger
    }
    this.size += length
    return { bytes: this.#bytes, at }
  }

  /** All that was written. */
  done(): Buffer { return this.#bytes.subarray(0, this.size) }
}

/** Bytes that are read from the front. */
export class Reader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** The next bytes; not a copy. Throws Malformed. */
  take(length: number): Buffer {
    if (length > this.left) throw new Malformed('it ends too early')
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }

  /** Bytes that follow. */
  get left(): number { return this.#bytes.length - this.#at }
}

/** A number of 32 bits, `max` at most. */
export function u32(max = 0xffff_ffff): Codec<number> {
  return {
    describe: max === 0xffff_ffff ? 'u32' : `u32, ${max.toLocaleString('en')} at most`,
    write(value, to) {
      checked(Number.isInteger(value) && value >= 0 && value <= max, 'a number is too large')
      const { bytes, at } = to.room(4)
      bytes.writeUInt32LE(value, at)
    },
    read(from) {
      const value = from.take(4).readUInt32LE()
      checked(value <= max, 'a number is too large')
      return value
    },
  }
}

/** A whole number that JavaScript can hold. */
export const u53: Codec<number> = {
  describe: 'u64, below 2⁵³',
  write(value, to) {
    checked(Number.isSafeInteger(value) && value >= 0, 'a number is too large')
    const { bytes, at } = to.room(8)
    bytes.writeBigUInt64LE(BigInt(value), at)
  },
  read(from) {
    const value = from.take(8).readBigUInt64LE()
    checked(value <= BigInt(Number.MAX_SAFE_INTEGER), 'a number is too large')
    return Number(value)
  },
}

/** A number of 64 bits that may have a fraction: finite, and `min` or more. */
export function f64(min: number): Codec<number> {
  const check = (value: number): void =>
    checked(Number.isFinite(value) && value >= min && !Object.is(value, -0), 'a number is out of bounds')
  return {
    describe: `f64, ${min} or more`,
    write(value, to) {
      check(value)
      const { bytes, at } = to.room(8)
      bytes.writeDoubleLE(value, at)
    },
    read(from) {
      const value = from.take(8).readDoubleLE()
      check(value)
      return value
    },
  }
}

/** Yes or no. */
export const bool: Codec<boolean> = {
  describe: 'u8, 0 or 1',
  write(value, to) {
    const { bytes, at } = to.room(1)
    bytes[at] = value ? 1 : 0
  },
  read(from) {
    const value = from.take(1)[0]!
    checked(value <= 1, 'a yes or no is neither')
    return value === 1
  },
}

/** `length` bytes. */
export function fixed(length: number): Codec<Uint8Array<ArrayBuffer>> {
  return {
    describe: `${length} bytes`,
    write(value, to) {
      checked(value.length === length, 'a part has a wrong length')
      const { bytes, at } = to.room(length)
      bytes.set(value, at)
    },
    read: (from) => Uint8Array.from(from.take(length)),
  }
}

/** Up to `max` bytes. */
export function bytes(max: number): Codec<Uint8Array<ArrayBuffer>> {
  const length = u32(max)
  return {
    describe: `bytes, ${max.toLocaleString('en')} at most`,
    write(value, to) {
      length.write(value.length, to)
      const { bytes, at } = to.room(value.length)
      bytes.set(value, at)
    },
    read: (from) => Uint8Array.from(from.take(length.read(from))),
  }
}

/** Text of up to `max` bytes of UTF-8. */
export function text(max: number): Codec<string> {
  const length = u32(max)
  return {
    describe: `text, ${max.toLocaleString('en')} bytes at most`,
    write(value, to) {
      const encoded = Buffer.from(value, 'utf8')
      length.write(encoded.length, to)
      const { bytes, at } = to.room(encoded.length)
      bytes.set(encoded, at)
    },
    read(from) {
      const encoded = from.take(length.read(from))
      const value = encoded.toString('utf8')
      // What isn't UTF-8 comes out as other bytes.
      checked(Buffer.byteLength(value) === encoded.length && Buffer.from(value).equals(encoded), 'a text is no UTF-8')
      return value
    },
  }
}

/** Whatever JSON can say, as JSON without spaces, in up to `max` bytes. */
export function json(max: number): Codec<unknown> {
  const encoded = text(max)
  return {
    describe: `JSON without spaces, ${max.toLocaleString('en')} bytes at most`,
    // Once more through the parser: it puts keys in the order that they then keep.
    write: (value, to) => encoded.write(JSON.stringify(JSON.parse(JSON.stringify(value ?? null))), to),
    read(from) {
      const given = encoded.read(from)
      let value: unknown
      try {
        value = JSON.parse(given)
        checked(JSON.stringify(value) === given, 'a JSON is not in its shortest form')
      } catch (error) {
        throw error instanceof Malformed ? error : new Malformed('a JSON is none', { cause: error })
      }
      return value
    },
  }
}

/** One of these words. */
export function word<W extends string>(...words: readonly W[]): Codec<W> {
  const index = u32(words.length - 1)
  return {
    describe: `u32: ${words.map((one, number) => `${number} ${one}`).join(', ')}`,
    write: (value, to) => index.write(words.indexOf(value), to),
    read: (from) => words[index.read(from)]!,
  }
}

/** Something, or undefined. */
export function optional<T>(of: Codec<T>): Codec<T | undefined> {
  return {
    describe: `0, or 1 and ${of.describe}`, ...(of.parts === undefined ? {} : { parts: of.parts }),
    write(value, to) {
      bool.write(value !== undefined, to)
      if (value !== undefined) of.write(value, to)
    },
    read: (from) => bool.read(from) ? of.read(from) : undefined,
  }
}

/** Up to `max` of the same, which have `bytesMin` bytes each at least. `ascending`: by this, no two are alike. */
export function list<T>(of: Codec<T>, max: number, bytesMin: number, ascending?: (one: T) => number | string):
Codec<readonly T[]> {
  const length = u32(max)
  return {
    describe: `${max.toLocaleString('en')} at most of${ascending === undefined ? '' : ', ascending'}: ${of.describe}`,
    ...(of.parts === undefined ? {} : { parts: of.parts }),
    write(values, to) {
      const sorted = ascending === undefined ? values : values.toSorted((a, b) =>
        ascending(a) < ascending(b) ? -1 : 1)
      length.write(sorted.length, to)
      for (const one of sorted) of.write(one, to)
    },
    read(from) {
      const count = length.read(from)
      checked(count * bytesMin <= from.left, 'it ends too early')
      const values: T[] = []
      for (let index = 0; index < count; index++) {
        const value = of.read(from)
        checked(index === 0 || ascending === undefined || ascending(values[index - 1]!) < ascending(value),
          'a list does not ascend')
        values.push(value)
      }
      return values
    },
  }
}

/** Up to `max` numbers, or null for what isn't there: 2³² − 1. */
export function indices(max: number): Codec<readonly (number | null)[]> {
  const length = u32(max)
  return {
    describe: `${max.toLocaleString('en')} at most of: u32, 0xffffffff is null`,
    write(values, to) {
      length.write(values.length, to)
      const { bytes, at } = to.room(4 * values.length)
      for (let index = 0; index < values.length; index++) bytes.writeUInt32LE(values[index] ?? NONE, at + 4 * index)
    },
    read(from) {
      const encoded = from.take(4 * length.read(from))
      return Array.from({ length: encoded.length / 4 }, (_, index) => {
        const value = encoded.readUInt32LE(4 * index)
        return value === NONE ? null : value
      })
    },
  }
}

/** Fields one after the other. */
export function record<T extends object>(fields: { readonly [K in keyof T]-?: readonly [Codec<T[K]>, string] }):
Codec<T> {
  const rows = Object.entries(fields) as [keyof T & string, readonly [Codec<unknown>, string]][]
  return {
    describe: 'as below',
    parts: rows.map(([name, [codec, meaning]]) => ({ name, type: codec.describe, meaning, parts: codec.parts })),
    write(value, to) {
      for (const [name, [codec]] of rows) codec.write(value[name], to)
    },
    // What is undefined stays away: so it is with who made the value, too.
    read: (from) => Object.fromEntries(rows.map(([name, [codec]]) => [name, codec.read(from)] as const)
      .filter(([, value]) => value !== undefined)) as T,
  }
}

/** One of several kinds of thing, told apart by `kind`. */
export function oneOf<T extends { readonly kind: string }>(kinds: {
  readonly [K in T['kind']]: Codec<Omit<Extract<T, { kind: K }>, 'kind'>>
}): Codec<T> {
  const names = Object.keys(kinds) as T['kind'][]
  const which = word(...names)
  const codecOf = (kind: T['kind']): Codec<object> => kinds[kind] as unknown as Codec<object>
  return {
    describe: `${which.describe}; then what it has`,
    parts: names.map((name) => ({ name, type: 'of this kind', meaning: '', parts: codecOf(name).parts })),
    write(value, to) {
      which.write(value.kind, to)
      codecOf(value.kind).write(value, to)
    },
    read(from) {
      const kind = which.read(from)
      return { kind, ...codecOf(kind).read(from) } as unknown as T
    },
  }
}

const NONE = 0xffff_ffff

function checked(holds: boolean, why: string): void {
  if (!holds) throw new Malformed(why)
}
