// image/tar_reader.ts: tar archives of strangers, read as a stream.
//
// An archive is blocks of 512 bytes: a header for each entry, then its content, padded. Long names come before their
// entry, as entries of their own: pax (`x`: records "LENGTH KEY=VALUE\n") and GNU (`L`, `K`). Nothing is unpacked here:
// the caller is told what there is and reads the content that it wants.
//
// It is our own, as an image's author chooses every byte: each step costs time and memory in proportion to the bytes
// that it consumes, and an entry's names have a limit. (The parser of pax records in modern-tar takes quadratic time.)
// What isn't understood is an error and never skipped, so that nothing is seen otherwise than by other tools.

import { IMAGE_ENTRIES_MAX } from '../base/limits.ts'

const BLOCK = 512
/** A pax header or long name: attributes of files have 64 KiB each. */
const META_BYTES_MAX = 1024 * 1024
const NAME_BYTES_MAX = 4096
/** Extended attributes in pax headers, as star has begun it and all others do it. */
const XATTR = 'SCHILY.xattr.'
const NO_XATTRS: ReadonlyMap<string, Uint8Array> = new Map()
const KINDS: Readonly<Record<string, TarDetails['kind']>> = {
  1: 'hard link', 2: 'link', 3: 'char', 4: 'block', 5: 'folder', 6: 'fifo',
}

/** One entry. `other`: links, devices, pipes. */
export type TarEntry = {
  readonly name: string
  readonly type: 'file' | 'folder' | 'other'
  /** Bytes of its content: 0 for all but files. */
  readonly size: number
  /** Its content has holes, kept in a way of its own. */
  readonly sparse: boolean
}

/** What else an entry says of itself, for who unpacks it: `details`. */
export type TarDetails = {
  readonly kind: 'file' | 'folder' | 'hard link' | 'link' | 'char' | 'block' | 'fifo' | 'other'
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970. */
  readonly mtime: number
  /** What a link leads to. */
  readonly link: string
  readonly major: number
  readonly minor: number
  readonly xattrs: ReadonlyMap<string, Uint8Array>
}

/** The archive isn't one, or isn't one that we read. */
export class TarError extends Error {}

type Meta = { path?: string; size?: number; sparse?: boolean; link?: string; uid?: number; gid?: number; mtime?: number
  xattrs?: Map<string, Uint8Array> }

/** Reads the entries of one archive, in order. */
export class TarReader {
  readonly #chunks: AsyncIterator<Uint8Array>
  #chunk: Uint8Array = new Uint8Array(0)
  #at = 0
  // Content of the entry that nobody has read yet, and the padding behind it.
  #left = 0
  #padding = 0
  #entries = 0
  #header: Uint8Array = new Uint8Array(BLOCK)
  #meta: Meta = {}

  /** `stream`: the archive, not compressed. The caller ends it. */
  constructor(stream: AsyncIterable<Uint8Array>) {
    this.#chunks = stream[Symbol.asyncIterator]()
  }

  /** The next entry; undefined at the archive's end. Throws TarError, and what the stream throws. */
  async next(): Promise<TarEntry | undefined> {
    const meta: Meta = {}
    for (;;) {
      await this.#skip(this.#left + this.#padding)
      this.#left = this.#padding = 0
      const block = await this.#take(BLOCK, true)
      if (block === undefined || block.every((byte) => byte === 0)) return undefined
      if (++this.#entries > IMAGE_ENTRIES_MAX) throw new TarError('it has too many entries')
      const header = headerOf(block)
      if (!'xgLK'.includes(header.flag)) {
        this.#header = block
        this.#meta = meta
        return this.#entry(header, meta)
      }
      if (header.size > META_BYTES_MAX) throw new TarError('a header in it is too long')
      const content = (await this.#take(header.size + padding(header.size)))!.subarray(0, header.size)
      if (header.flag === 'x') readPax(content, meta)
      else if (header.flag === 'g') readGlobal(content)
      else if (header.flag === 'L') meta.path = text(content)
      else meta.link = text(content)
    }
  }

  /** More about the entry that `next` told of. Owners and times that can't be read are 0. Throws TarError. */
  details(): TarDetails {
    const [block, meta] = [this.#header, this.#meta]
    const flag = String.fromCharCode(block[156]!)
    const kind = '0\x007S'.includes(flag) ? 'file' : KINDS[flag] ?? 'other'
    const link = meta.link ?? text(block.subarray(157, 257))
    if (Buffer.byteLength(link) > NAME_BYTES_MAX) throw new TarError('a link in it is too long')
    const isDevice = kind === 'char' || kind === 'block'
    return {
      kind, link, mode: lenient(block.subarray(100, 108)) & 0o7777,
      uid: meta.uid ?? lenient(block.subarray(108, 116)), gid: meta.gid ?? lenient(block.subarray(116, 124)),
      mtime: meta.mtime ?? lenient(block.subarray(136, 148)),
      major: isDevice ? lenient(block.subarray(329, 337)) : 0, minor: isDevice ? lenient(block.subarray(337, 345)) : 0,
      xattrs: meta.xattrs ?? NO_XATTRS,
    }
  }

  /** The content of the entry that `next` told of, once. */
  async *content(): AsyncGenerator<Uint8Array> {
    while (this.#left > 0) {
      if (this.#at === this.#chunk.length && !await this.#fill()) throw new TarError('it is cut off')
      const piece = this.#chunk.subarray(this.#at, this.#at + this.#left)
      this.#at += piece.length
      this.#left -= piece.length
      yield piece
    }
  }

  #entry(header: Header, meta: Meta): TarEntry {
    const name = meta.path ?? header.name
    if (Buffer.byteLength(name) > NAME_BYTES_MAX) throw new TarError('a name in it is too long')
    const isFolder = header.flag === '5' || ('0\0'.includes(header.flag) && name.endsWith('/'))
    const type = isFolder ? 'folder' : '0\x007S'.includes(header.flag) ? 'file' : 'other'
    const size = type === 'file' ? meta.size ?? header.size : 0
    this.#left = size
    this.#padding = padding(size)
    return { name, type, size, sparse: meta.sparse === true || header.flag === 'S' }
  }

  // So many bytes; undefined if the archive ends before the first of them and may.
  async #take(length: number, mayEnd = false): Promise<Uint8Array | undefined> {
    const bytes = Buffer.alloc(length)
    for (let got = 0; got < length;) {
      if (this.#at === this.#chunk.length && !await this.#fill()) {
        if (got === 0 && mayEnd) return undefined
        throw new TarError('it is cut off')
      }
      const piece = this.#chunk.subarray(this.#at, this.#at + length - got)
      bytes.set(piece, got)
      got += piece.length
      this.#at += piece.length
    }
    return bytes
  }

  async #skip(length: number): Promise<void> {
    while (length > 0) {
      if (this.#at === this.#chunk.length && !await this.#fill()) throw new TarError('it is cut off')
      const step = Math.min(length, this.#chunk.length - this.#at)
      this.#at += step
      length -= step
    }
  }

  async #fill(): Promise<boolean> {
    const { value, done } = await this.#chunks.next()
    if (done === true) return false
    this.#chunk = value
    this.#at = 0
    return true
  }
}

type Header = { name: string; flag: string; size: number }

function headerOf(block: Uint8Array): Header {
  checkSum(block)
  const name = text(block.subarray(0, 100))
  // Only POSIX archives have it there: GNU's have times.
  const isPosix = text(block.subarray(257, 263)) === 'ustar' && block[262] === 0
  const prefix = isPosix ? text(block.subarray(345, 500)) : ''
  return {
    name: prefix === '' ? name : `${prefix}/${name}`,
    flag: String.fromCharCode(block[156]!),
    size: number(block.subarray(124, 136)),
  }
}

function checkSum(block: Uint8Array): void {
  let sum = 0
  for (let i = 0; i < BLOCK; i++) sum += i >= 148 && i < 156 ? 32 : block[i]!
  if (number(block.subarray(148, 156)) !== sum) throw new TarError('a header in it has a wrong checksum')
}

// Octal digits between blanks; or, if the first bit is set, the rest as a binary number.
function number(field: Uint8Array): number {
  let value = 0
  if (field[0]! >= 0x80) {
    value = field[0]! & 0x7f
    for (const byte of field.subarray(1)) value = value * 256 + byte
  } else {
    const digits = /^ *([0-7]*)[ \0]*$/.exec(Buffer.from(field).toString('latin1'))
    if (digits === null) throw new TarError('a number in it is none')
    value = Number.parseInt(digits[1] || '0', 8)
  }
  if (!Number.isSafeInteger(value)) throw new TarError('a number in it is too large')
  return value
}

// A number that decides nothing: old archives leave blanks, or have times before 1970.
function lenient(field: Uint8Array): number {
  try {
    return number(field)
  } catch (error) {
    if (error instanceof TarError) return 0
    throw error
  }
}

function readPax(bytes: Uint8Array, meta: Meta): void {
  const content = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  for (let at = 0; at < content.length;) {
    const length = /^([1-9]\d{0,7}) /.exec(content.toString('latin1', at, at + 9))
    const end = at + Number(length?.[1])
    const from = at + (length?.[0].length ?? 0)
    if (length === null || end > content.length || end <= from || content[end - 1] !== 0x0a) {
      throw new TarError('a header in it is malformed')
    }
    const record = content.subarray(from, end - 1)
    const equals = record.indexOf('=')
    const key = record.toString('utf8', 0, Math.max(equals, 0))
    if (key === 'path') meta.path = record.toString('utf8', equals + 1)
    if (key === 'size') meta.size = decimal(record.toString('latin1', equals + 1))
    if (key.startsWith('GNU.sparse.')) meta.sparse = true
    if (key === 'linkpath') meta.link = record.toString('utf8', equals + 1)
    if (key === 'uid' || key === 'gid') meta[key] = decimal(record.toString('latin1', equals + 1))
    if (key === 'mtime') meta.mtime = Math.max(0, Math.floor(Number(record.toString('latin1', equals + 1)) || 0))
    if (key.startsWith(XATTR)) {
      (meta.xattrs ??= new Map()).set(key.slice(XATTR.length), Uint8Array.from(record.subarray(equals + 1)))
    }
    at = end
  }
}

// Attributes of all entries to come: times and owners, at most.
function readGlobal(bytes: Uint8Array): void {
  const meta: Meta = {}
  readPax(bytes, meta)
  const { path, link, size, sparse } = meta
  const isNamed = [path, link, size, sparse].some((one) => one !== undefined)
  if (isNamed) throw new TarError('a header in it names all entries alike')
}

function decimal(digits: string): number {
  const value = /^\d{1,16}$/.test(digits) ? Number(digits) : NaN
  if (!Number.isSafeInteger(value)) throw new TarError('a number in it is none')
  return value
}

function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0)
  return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('utf8')
}

function padding(size: number): number {
  return (BLOCK - size % BLOCK) % BLOCK
}
