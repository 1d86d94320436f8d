// image/machine_cpio.ts: cpio archives in the "newc" form: what Linux unpacks into its first root file system.
//
//   header   110 characters: '070701', then thirteen numbers of eight hex digits
//   name     NUL-terminated, padded so that header and name end at a multiple of 4
//   content  padded to a multiple of 4
//   …        until an entry called TRAILER!!!
//
// The same entries always give the same bytes: times are 0, owners root, inodes count from 1. Device nodes are entries
// as others are, so an initramfs with /dev/console is made without being root (kernel: Documentation/driver-api/
// early-userspace/buffer-format.rst). The reader is for archives of strangers: it believes no length, and reads several
// archives one behind the other, as the kernel does.

import { assert } from '../base/assert.ts'

const HEADER_BYTES = 110
const MAGIC = '070701'
/** The same with checksums, which nobody checks. */
const MAGIC_CRC = '070702'
const TRAILER = 'TRAILER!!!'
const NAME_BYTES_MAX = 4096
/** A size has 32 bits. */
const FILE_BYTES_MAX = 0xffff_ffff
const ENTRIES_MAX = 200_000

// Types of files in a mode (inode(7)).
const S_IFMT = 0o170000
const S_IFREG = 0o100000
const S_IFDIR = 0o040000
const S_IFLNK = 0o120000
const S_IFCHR = 0o020000
const S_IFBLK = 0o060000

const TYPES: Readonly<Record<number, CpioEntry['type']>> = {
  [S_IFREG]: 'file', [S_IFDIR]: 'folder', [S_IFLNK]: 'link', [S_IFCHR]: 'char', [S_IFBLK]: 'block',
}

/** One entry of an archive. `content`: of a file, or the target of a link. `mode`: permissions alone. */
export type CpioEntry = {
  readonly name: string
  readonly type: 'file' | 'folder' | 'link' | 'char' | 'block' | 'other'
  readonly mode: number
  readonly content: Uint8Array
  readonly major: number
  readonly minor: number
}

/** The bytes aren't such an archive. */
export class CpioError extends Error {}

/** Writes one archive. Names are paths from its root, without a slash at the begin; missing folders are added. */
export class CpioWriter {
  readonly #pieces: Uint8Array[] = []
  readonly #names = new Set<string>()
  #inode = 0

  has(name: string): boolean { return this.#names.has(name) }

  folder(name: string, mode = 0o755): this { return this.#add(name, S_IFDIR | mode, NOTHING) }

  file(name: string, content: Uint8Array | string, mode = 0o644): this {
    return this.#add(name, S_IFREG | mode, Buffer.from(content as Uint8Array))
  }

  /** A symbolic link to `target`. */
  link(name: string, target: string): this { return this.#add(name, S_IFLNK | 0o777, Buffer.from(target)) }

  device(name: string, type: 'char' | 'block', major: number, minor: number, mode = 0o600): this {
    return this.#add(name, (type === 'char' ? S_IFCHR : S_IFBLK) | mode, NOTHING, major, minor)
  }

  /** The archive: nothing is to be added afterwards. */
  finish(): Buffer {
    this.#piece(TRAILER, 0, 0, NOTHING, 0, 0)
    return Buffer.concat(this.#pieces)
  }

  #add(name: string, mode: number, content: Uint8Array, major = 0, minor = 0): this {
    assert(isPlain(name) && Buffer.byteLength(name) < NAME_BYTES_MAX, 'a name in an archive is a path below it', name)
    assert(content.length <= FILE_BYTES_MAX, 'a file in an archive is smaller than 4 GiB', name)
    assert(!this.#names.has(name), 'a name is in an archive once', name)
    const slash = name.lastIndexOf('/')
    if (slash > 0 && !this.#names.has(name.slice(0, slash))) this.folder(name.slice(0, slash))
    this.#names.add(name)
    this.#piece(name, ++this.#inode, mode, content, major, minor)
    return this
  }

  #piece(name: string, inode: number, mode: number, content: Uint8Array, major: number, minor: number): void {
    const nameBytes = Buffer.byteLength(name) + 1
    const links = (mode & S_IFMT) === S_IFDIR ? 2 : 1
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    const numbers = [inode, mode, 0, 0, links, 0, content.length, 0, 0, major, minor, nameBytes, 0]
    const head = Buffer.alloc(padded(HEADER_BYTES + nameBytes))
    head.write(MAGIC + numbers.map((value) => value.toString(16).padStart(8, '0')).join('') + name)
    this.#pieces.push(head)
    if (content.length > 0) this.#pieces.push(content, Buffer.alloc(padded(content.length) - content.length))
  }
}

/** The entries of archives, one behind the other. Throws CpioError. Contents are views of `bytes`. */
export function readCpio(bytes: Uint8Array): CpioEntry[] {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const entries: CpioEntry[] = []
  let at = 0
  for (;;) {
    // Zeroes fill up what is between archives, and behind the last.
    while (at < all.length && all[at] === 0) at++
    if (at === all.length) return entries
    if (at % 4 !== 0) throw new CpioError(`an archive begins at ${at}, which isn't a multiple of 4`)
    for (;;) {
      const { entry, end } = entryAt(all, at)
      at = end
      if (entry === undefined) break
      if (entries.length === ENTRIES_MAX) throw new CpioError('it has too many entries')
      entries.push(entry)
    }
  }
}

function entryAt(all: Buffer, at: number): { entry: CpioEntry | undefined; end: number } {
  const head = all.toString('latin1', at, at + HEADER_BYTES)
  if (head.length < HEADER_BYTES) throw new CpioError('it is cut off')
  if (!head.startsWith(MAGIC) && !head.startsWith(MAGIC_CRC)) throw new CpioError(`there is no entry at ${at}`)
  if (!/^[0-9a-fA-F]+$/.test(head)) throw new CpioError(`a number at ${at} is none`)
  const number = (index: number): number => Number.parseInt(head.slice(6 + index * 8, 14 + index * 8), 16)
  const [mode, size, nameBytes] = [number(1), number(6), number(11)]
  if (nameBytes < 1 || nameBytes > NAME_BYTES_MAX) throw new CpioError(`a name at ${at} has ${nameBytes} bytes`)
  const from = padded(at + HEADER_BYTES + nameBytes)
  const end = padded(from + size)
  // The last archive's padding may be missing.
  if (from > all.length || from + size > all.length) throw new CpioError('it is cut off')
  const name = all.toString('utf8', at + HEADER_BYTES, at + HEADER_BYTES + nameBytes - 1)
  if (all[at + HEADER_BYTES + nameBytes - 1] !== 0 || name.includes('\0')) {
    throw new CpioError(`a name at ${at} doesn't end where it says`)
  }
  if (name === TRAILER) return { entry: undefined, end: Math.min(end, all.length) }
  return { entry: { name, type: TYPES[mode & S_IFMT] ?? 'other', mode: mode & 0o7777,
    content: all.subarray(from, from + size), major: number(9), minor: number(10) }, end: Math.min(end, all.length) }
}

function isPlain(name: string): boolean {
  return name.split('/').every((part) => part !== '' && part !== '.' && part !== '..') && !name.includes('\0')
}

// Not by bits: sums are beyond 31 of them.
function padded(length: number): number { return Math.ceil(length / 4) * 4 }

const NOTHING = new Uint8Array(0)
