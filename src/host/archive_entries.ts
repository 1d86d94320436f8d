// host/archive_entries.ts: puts the entries of a tar archive beneath an open folder, and nothing anywhere else.
//
// The archive is hostile. A path has no "..", no slash at its front, and goes through real folders only; links lead to
// places inside of the volume, as far as their text says (guests' own links are never believed either: whoever follows
// one does so beneath the volume). Devices and FIFOs are refused. Sizes are checked before a byte is written, entries
// are counted, and a mode is permissions only. modern-tar bounds an entry's own data (8 MiB).

import { Readable } from 'node:stream'
import type { ReadableStream as NodeReadableStream } from 'node:stream/web'
import { createTarDecoder, type ParsedTarEntry, type TarHeader } from 'modern-tar'
import {
  EDQUOT, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, ERRNO_NAMES, EXDEV,
} from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { ARCHIVE_ENTRIES_MAX, VOLUME_ENTRY_BYTES } from '../base/limits.ts'
import { formatSize } from '../base/units.ts'
import { writeAll } from '../services/file/copy_content.ts'
import { refusePath } from '../services/file/paths.ts'
import { newQuota, quotaOf } from '../services/file/quota.ts'
import { PUT_PREFIX, isShared, makePrivate, momentaryName } from '../services/file/shared_file.ts'
import * as sys from '../sys/linux_files.ts'
import { failure } from './volume_clone.ts'

/** Where an archive goes. */
export type Target = {
  /** The volume's, for messages. */
  readonly name: string
  /** How many folders the place is beneath the volume's top: so far up links may lead. */
  readonly depth: number
  readonly sizeBytes: number; readonly usedBytes: number; readonly uid?: number | undefined
}

/** Unpacks one archive. */
export class Unpacking {
  readonly #place: number
  readonly #target: Target
  #used: number
  #entries = 0

  /** `place`: the host's descriptor of the folder, which stays open. */
  constructor(place: number, target: Target) {
    this.#place = place
    this.#target = target
    this.#used = target.usedBytes
  }

  /** Throws PATH_UNSAFE, ARCHIVE_INVALID, VOLUME_TOO_SMALL, HOST_DISK_FULL. */
  async run(tar: Readable): Promise<void> {
    const bytes = Readable.toWeb(tar) as ReadableStream<Uint8Array>
    const entries = bytes.pipeThrough(createTarDecoder({ strict: true })) as NodeReadableStream<ParsedTarEntry>
    try {
      for await (const { header, body } of entries) {
        if (++this.#entries > ARCHIVE_ENTRIES_MAX) throw this.#invalid(`more than ${ARCHIVE_ENTRIES_MAX} entries`)
        await this.#entry(header, body as NodeReadableStream<Uint8Array>)
      }
    } catch (error) {
      if (error instanceof CellarError) throw error
      throw new CellarError('ARCHIVE_INVALID', [this.#what, (error as Error).message], { cause: error })
    }
  }

  get #what(): string { return `into volume "${this.#target.name}"` }

  async #entry(header: TarHeader, body: NodeReadableStream<Uint8Array>): Promise<void> {
    const names = this.#names(header.name)
    const { type = 'file' } = header
    if (!Number.isSafeInteger(header.size) || header.size < 0) throw this.#invalid(`"${header.name}" has no size`)
    if (type === 'directory') {
      sys.close(this.#folder(names, header.name, true))
      await body.cancel()
      return
    }
    const name = names.pop()
    if (name === undefined) throw this.#invalid(`"${header.name}" isn't a folder`)
    const folder = this.#folder(names, header.name, true)
    try {
      await this.#put(folder, name, header, async (temporary) => {
        if (type === 'file') return this.#file(folder, temporary, header, body)
        if (type === 'symlink') this.#symlink(folder, temporary, header)
        else if (type === 'link') await this.#link(folder, temporary, header)
        else throw this.#invalid(`"${header.name}" is a ${type}`)
        await body.cancel()
      })
    } finally {
      sys.close(folder)
    }
  }

  // Has `make` make something under another name, then puts it in the place of what `name` is.
  async #put(folder: number, name: Uint8Array, header: TarHeader,
    make: (temporary: Uint8Array) => Promise<void>): Promise<void> {
    const replaced = heldBy(folder, name)
    this.#charge(header.size + VOLUME_ENTRY_BYTES - replaced)
    const temporary = momentaryName(PUT_PREFIX)
    try {
      await make(temporary)
      this.#must(sys.renameat(folder, temporary, folder, name), header.name)
    } finally {
      // Of two names of one file a rename leaves both.
      sys.unlinkat(folder, temporary, 0)
    }
  }

  async #file(folder: number, name: Uint8Array, header: TarHeader,
    body: NodeReadableStream<Uint8Array>): Promise<void> {
    const flags = sys.O_WRONLY | sys.O_CREAT | sys.O_EXCL | sys.O_NOFOLLOW
    const fd = this.#must(sys.openat(folder, name, flags, 0o600), header.name)
    try {
      let at = 0
      for await (const bytes of body) {
        this.#must(await writeAll(fd, bytes, at), header.name)
        at += bytes.length
      }
      this.#own(fd, header.name)
      this.#must(sys.fchmod(fd, (header.mode ?? 0o644) & 0o777), header.name)
      const ms = header.mtime?.getTime() ?? NaN
      if (ms >= 0 && ms <= Number.MAX_SAFE_INTEGER) {
        const ns = BigInt(Math.trunc(ms)) * 1_000_000n
        this.#must(sys.utimensat(fd, NOTHING, ns, ns, sys.AT_EMPTY_PATH), header.name)
      }
    } finally {
      sys.close(fd)
    }
  }

  #symlink(folder: number, name: Uint8Array, header: TarHeader): void {
    const target = Buffer.from(header.linkname ?? '')
    const parents = header.name.split('/').filter((part) => part !== '' && part !== '.').length - 1
    let depth = this.#target.depth + parents
    for (const part of target.toString().split('/')) {
      depth += part === '..' ? -1 : part === '' || part === '.' ? 0 : 1
      if (depth < 0) throw this.#unsafe(`${header.name} -> ${header.linkname}`)
    }
    if (refusePath(target) !== 0) throw this.#unsafe(`${header.name} -> ${header.linkname}`)
    this.#must(sys.symlinkat(target, folder, name), header.name)
    const { uid } = this.#target
    if (uid !== undefined) this.#must(sys.chown(folder, name, uid, sys.AT_SYMLINK_NOFOLLOW), header.name)
  }

  // One more name for a file of the archive, or of the volume: not for one that is shared with a clone.
  async #link(folder: number, name: Uint8Array, header: TarHeader): Promise<void> {
    const linkname = header.linkname ?? ''
    const names = this.#names(linkname)
    const last = names.pop()
    if (last === undefined) throw this.#invalid(`"${header.name}" is a link to nothing`)
    const from = this.#folder(names, linkname, false)
    try {
      const quota = sys.statx(from, last, sys.AT_SYMLINK_NOFOLLOW) === 0 && isShared(sys.statxMode())
        ? quotaOf(newQuota(Infinity, 0)) : undefined
      if (quota !== undefined) {
        const made = makePrivate(quota, from, last, true)
        this.#must(typeof made === 'number' ? made : await made(), linkname)
      }
      const fd = this.#must(sys.openat(from, last, sys.O_RDONLY | sys.O_NOFOLLOW | sys.O_NONBLOCK, 0), linkname)
      try {
        this.#must(sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH), linkname)
        const mode = sys.statxMode()
        if ((mode & sys.S_IFMT) !== sys.S_IFREG || isShared(mode)) throw this.#invalid(`"${linkname}" can't be linked`)
        this.#must(sys.linkFd(fd, folder, name), header.name)
      } finally {
        sys.close(fd)
      }
    } finally {
      sys.close(from)
    }
  }

  // Opens the folder of these names, from one to the next; those that aren't there are made if `make`.
  #folder(names: readonly Uint8Array[], path: string, make: boolean): number {
    let folder = this.#must(sys.openat(this.#place, DOT, FOLDER, 0), path)
    for (const name of names) {
      let next = sys.openat(folder, name, FOLDER, 0)
      try {
        if (next === -ENOENT && make) {
          this.#charge(VOLUME_ENTRY_BYTES)
          this.#must(sys.mkdirat(folder, name, 0o755), path)
          next = this.#must(sys.openat(folder, name, FOLDER, 0), path)
          this.#own(next, path)
        }
        if (next === -ENOTDIR && sys.readlinkat(folder, name) >= 0) throw this.#unsafe(path)
        this.#must(next, path)
      } catch (error) {
        if (next >= 0) sys.close(next)
        throw error
      } finally {
        sys.close(folder)
      }
      folder = next
    }
    return folder
  }

  #names(path: string): Uint8Array[] {
    const refused = refusePath(Buffer.from(path))
    const names = path.split('/').filter((name) => name !== '' && name !== '.')
    if ((refused !== 0 && refused !== ENOENT) || names.includes('..')) throw this.#unsafe(path)
    return names.map((name) => Buffer.from(name))
  }

  #own(fd: number, path: string): void {
    const { uid } = this.#target
    if (uid !== undefined) this.#must(sys.chown(fd, NOTHING, uid, sys.AT_EMPTY_PATH), path)
  }

  #charge(bytes: number): void {
    const { name, sizeBytes } = this.#target
    if (bytes > 0 && this.#used + bytes > sizeBytes) {
      throw new CellarError('VOLUME_TOO_SMALL', [name, formatSize(sizeBytes), `${this.#used + bytes} bytes then`])
    }
    this.#used += bytes
  }

  #must(result: number, path: string): number {
    if (result >= 0) return result
    if (result === -ELOOP || result === -EXDEV) throw this.#unsafe(path)
    if (result !== -ENOSPC && result !== -EDQUOT && ODD.has(-result)) {
      throw this.#invalid(`"${path}" can't be made: ${ERRNO_NAMES[-result]}`)
    }
    throw failure(`unpack ${this.#what}`, path, result)
  }

  #invalid(why: string): CellarError { return new CellarError('ARCHIVE_INVALID', [this.#what, why]) }
  #unsafe(path: string): CellarError { return new CellarError('PATH_UNSAFE', [this.#what, path]) }
}

// What goes when the name is replaced.
function heldBy(folder: number, name: Uint8Array): number {
  if (sys.statx(folder, name, sys.AT_SYMLINK_NOFOLLOW) < 0) return 0
  const mode = sys.statxMode()
  const isLast = (mode & sys.S_IFMT) === sys.S_IFREG && (sys.statxLinks() === 1 || isShared(mode))
  return VOLUME_ENTRY_BYTES + (isLast ? sys.statxSize() : 0)
}

const FOLDER = sys.O_PATH | sys.O_DIRECTORY | sys.O_NOFOLLOW
const ODD: ReadonlySet<number> = new Set([EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY])
const DOT = Uint8Array.of(0x2e)
const NOTHING = new Uint8Array(0)
