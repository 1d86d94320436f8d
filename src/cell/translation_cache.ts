// cell/translation_cache.ts: translated modules on disk, so that a program is translated once and not at each start.
//
// An entry is a file whose name is the key: the SHA-256 of what the translation was made of, by whom and how (keyOf).
// So nothing ever changes under a name, and nothing has to be invalidated: what nobody asks for grows old and goes.
//
//   entry    0  magic, 8 bytes      12  CRC-32 of the payload, u32        24  the key, 32 bytes
//            8  format, u32         16  the payload's length, u64         56  the payload: a module
//
// Writers and readers need no lock, and any of them may be killed at any moment: a writer fills a file of its own
// (KEY.PID-RANDOM.tmp) and renames it, which is atomic; a reader believes nothing that it hasn't checked. There is no
// fsync: after a power cut an entry may hold anything, and then it is one that doesn't read well, and is removed.
//
// The checksum is against damage, not against people: who can write here can write a right one. Hence the folder and
// each file must be the user's own, and writable by nobody else. It is a CRC-32 as SHA-256 would halve the speed of
// reading: of clang's 64 MB 30 ms are the reading, 34 ms SHA-256, 11 ms CRC-32. One damage in 2^32 is overlooked, and
// even that one V8 has to find valid.
//
// A cache that can't be used is no error: what fails on the disk is as if nothing were there, and nothing is kept.

import {
  closeSync, constants, fstatSync, lstatSync, lutimesSync, mkdirSync, openSync, readdirSync, readSync, renameSync,
  type Stats, unlinkSync, writeSync,
} from 'node:fs'
import { dirname, isAbsolute, join } from 'node:path'
import { TRANSLATOR_VERSION } from '../translate/translate.ts'

/** Bytes of all entries together: some ten programs of clang's size, or thousands of the usual ones. */
const TRANSLATION_CACHE_BYTES_MAX = 1024 * 1024 * 1024

/** The age at which a writer's file is taken for that of one who was killed. */
const PARTIAL_MS_MAX = 3_600_000

const MAGIC = 'CELLARTC'
const FORMAT = 1
const HEADER_BYTES = 56

const KEY = /^[0-9a-f]{64}$/
const PARTIAL = /^[0-9a-f]{64}\.[0-9a-z-]+\.tmp$/

/** The key of the translation of `bytes` with `options` by the translator of this version: 64 hexadecimal digits. */
export function keyOf(bytes: Uint8Array, options: string, version: string = TRANSLATOR_VERSION): string {
  // Loaded at first use, as it takes some 5 ms. JSON has no line end of its own: no two triples are the same bytes.
  const { createHash } = process.getBuiltinModule('node:crypto')
  return createHash('sha256').update(`${JSON.stringify([version, options])}\n`).update(bytes).digest('hex')
}

/** Where this user's translations are kept; undefined if the environment names no home. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string | undefined {
  const { XDG_CACHE_HOME: cache = '', HOME: home = '' } = env
  // A relative path is to be ignored, says the XDG base directory specification.
  if (isAbsolute(cache)) return join(cache, 'cellar/translated')
  return isAbsolute(home) ? join(home, '.cache/cellar/translated') : undefined
}

/** A folder of translated modules. It is made when the first one is put into it. */
export class TranslationCache {
  readonly #folder: string | undefined
  readonly #maxBytes: number

  /** Without a folder nothing is kept. Of more than `maxBytes` the least recently used go. */
  constructor(folder: string | undefined, maxBytes: number = TRANSLATION_CACHE_BYTES_MAX) {
    this.#folder = folder
    this.#maxBytes = maxBytes
  }

  /** What was put under this key, or undefined; a damaged entry is removed. Never throws for the disk's sake. */
  get(key: string): Uint8Array<ArrayBuffer> | undefined {
    checkKey(key)
    const folder = this.#folder
    if (folder === undefined) return undefined
    return unlessDiskFails(() => {
      if (!isOwnFolder(folder)) return undefined
      const path = join(folder, key)
      // Not waiting, as opening somebody's pipe would.
      const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
      try {
        const stat = fstatSync(fd)
        if (!isOwn(stat)) return undefined
        const bytes = this.#read(fd, key, stat)
        if (bytes === undefined) remove(path)
        else touch(path)
        return bytes
      } finally {
        closeSync(fd)
      }
    })
  }

  /** Keeps `bytes` under this key, if the disk allows. Never throws for the disk's sake. */
  put(key: string, bytes: Uint8Array): void {
    checkKey(key)
    const folder = this.#folder
    if (folder === undefined) return
    unlessDiskFails(() => {
      makeFolder(folder)
      if (!isOwnFolder(folder) || !this.#makeRoom(folder, key, HEADER_BYTES + bytes.length)) return
      const partial = join(folder, `${key}.${process.pid}-${Math.random().toString(36).slice(2)}.tmp`)
      // Exclusively: a name that is taken is another's.
      const fd = openSync(partial, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
      try {
        try {
          writeAll(fd, headerOf(key, bytes))
          writeAll(fd, bytes)
        } finally {
          closeSync(fd)
        }
        renameSync(partial, join(folder, key))
      } catch (error) {
        remove(partial)
        throw error
      }
    })
  }

  #read(fd: number, key: string, stat: Stats): Uint8Array<ArrayBuffer> | undefined {
    // Also bounds what is allocated on a damaged file's word.
    if (!stat.isFile() || stat.size < HEADER_BYTES || stat.size > this.#maxBytes) return undefined
    const header = new Uint8Array(HEADER_BYTES)
    const bytes = new Uint8Array(stat.size - HEADER_BYTES)
    if (!readAll(fd, header) || !readAll(fd, bytes)) return undefined
    // Each byte of the header says what we know by now.
    return headerOf(key, bytes).every((byte, i) => byte === header[i]) ? bytes : undefined
  }

  /**
   * Removes what killed writers have left, and old entries until one of `size` bytes has room. Files of writers count:
   * the limit is that of the disk. Where two write at once it may be passed; the next one sees to it.
   */
  #makeRoom(folder: string, key: string, size: number): boolean {
    if (size > this.#maxBytes) return false
    const now = Date.now()
    const entries: { path: string; size: number; usedAt: number }[] = []
    let sum = size
    for (const name of readdirSync(folder)) {
      const isPartial = PARTIAL.test(name)
      if (!isPartial && !KEY.test(name)) continue
      const path = join(folder, name)
      const stat = lstatSync(path, { throwIfNoEntry: false })
      if (stat === undefined) continue
      if (name === key) {
        // Replaced, unless somebody else has put it there.
        if (!isOwn(stat)) return false
        continue
      }
      // Either way, as the clock may have been set.
      if (isPartial && Math.abs(now - stat.mtimeMs) > PARTIAL_MS_MAX) {
        remove(path)
        continue
      }
      sum += stat.size
      if (!isPartial) entries.push({ path, size: stat.size, usedAt: stat.mtimeMs })
    }
    entries.sort((a, b) => a.usedAt - b.usedAt)
    for (const entry of entries) {
      if (sum <= this.#maxBytes) break
      if (remove(entry.path)) sum -= entry.size
    }
    return sum <= this.#maxBytes
  }
}

// A key becomes a file's name: nothing else may.
function checkKey(key: string): void {
  if (!KEY.test(key)) throw new RangeError('Cannot look up a translation by what is not the key of one')
}

function headerOf(key: string, bytes: Uint8Array): Uint8Array {
  const header = Buffer.alloc(HEADER_BYTES)
  header.write(MAGIC, 0, 'latin1')
  header.writeUInt32LE(FORMAT, 8)
  header.writeUInt32LE(process.getBuiltinModule('node:zlib').crc32(bytes), 12)
  header.writeBigUInt64LE(BigInt(bytes.length), 16)
  header.write(key, 24, 'hex')
  return header
}

// ---- the disk

// What `attempt` answers; undefined if a system call fails. Other errors are mistakes of ours.
function unlessDiskFails<T>(attempt: () => T): T | undefined {
  try {
    return attempt()
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error
    return undefined
  }
}

// With those above it that are missing. Not by mkdir's own `recursive`: beneath /proc Node 26 never comes back from it.
function makeFolder(folder: string): void {
  for (let again = false; ; again = true) {
    try {
      mkdirSync(folder, 0o700)
      return
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EEXIST') return
      if (code !== 'ENOENT' || again) throw error
      makeFolder(dirname(folder))
    }
  }
}

function isOwnFolder(folder: string): boolean {
  const stat = lstatSync(folder, { throwIfNoEntry: false })
  return stat !== undefined && stat.isDirectory() && isOwn(stat)
}

// True if nobody else (but the administrator) can have written it. Where there are no users all is ours.
function isOwn(stat: Stats): boolean {
  return stat.uid === (process.geteuid?.() ?? stat.uid) && (stat.mode & 0o022) === 0
}

// An entry was used now. On a disk that can't be written it is used all the same. By its name, as under Node's
// permission model there is no other way.
function touch(path: string): void {
  const now = new Date()
  unlessDiskFails(() => lutimesSync(path, now, now))
}

// False if it can't be removed. That it is gone already is as good.
function remove(path: string): boolean {
  return unlessDiskFails(() => {
    try {
      unlinkSync(path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
    return true
  }) ?? false
}

// False if the file ends before.
function readAll(fd: number, bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length;) {
    const got = readSync(fd, bytes, at, bytes.length - at, null)
    if (got === 0) return false
    at += got
  }
  return true
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at, bytes.length - at)
}
