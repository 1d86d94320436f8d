// host/volume_clone.ts: makes a folder tree that is a volume's own, of another volume's.
//
// Folders and links are made anew. A file, the first of these that can be had:
//   reflink  a file that shares its blocks with the source's: the file system sees to it that writes part them
//   link     a hard link to the source's inode, which bears the mark of services/file/shared_file.ts from before the
//            link is there: whoever writes first, in any volume, makes a copy then
//   copy     a copy
// A volume that guests use right now is copied (or reflinked): they may have its files open for writing. A file with
// several names in the source is copied once, and the copy has those names. Sockets and devices are left out.
//
// The source belongs to guests: it is walked by descriptors, no link is followed, and a tree that grows faster than it
// is copied is given up. The target is ours alone until it is renamed to its place.

import { EDQUOT, EEXIST, ENOSPC, ERRNO_NAMES } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { copyLater } from '../services/file/copy_content.ts'
import { contentsOf } from '../services/file/open_quota.ts'
import { isShared } from '../services/file/shared_file.ts'
import { walkTree } from '../services/file/tree_walk.ts'
import { openHostFolder } from '../services/file/volume.ts'
import * as sys from '../sys/linux_files.ts'

/** How long work is told of and ended: `progress` gets entries done and in all. */
export type LongWork = {
  readonly progress?: ((done: number, total: number) => void) | undefined; readonly signal?: AbortSignal | undefined
}

/** Who the files belong to (uid and gid); undefined: to us. `inUse`: guests have the source right now. */
export type CloneOptions = LongWork & { readonly inUse: boolean; readonly uid?: number | undefined }

/**
 * Fills the empty folder `work`: `tree` becomes what the folder `source` is, and `links` is needed only meanwhile.
 * `name` is the source's, for messages. Throws CellarError HOST_DISK_FULL, VOLUME_*, or the reason of `signal`; then
 * `work` is to be removed.
 */
export async function cloneTree(source: string, work: string, name: string, options: CloneOptions): Promise<void> {
  const { entries } = await contentsOf(source, { signal: options.signal })
  const from = openHostFolder(source)
  const clone = new Clone(name, entries, options)
  try {
    clone.begin(from, work)
    await walkTree(from, clone, options.signal)
    clone.leave()
  } finally {
    clone.close()
    sys.close(from)
  }
}

type Kept = { readonly mode: number; readonly atim: bigint; readonly mtim: bigint }

class Clone {
  readonly #name: string
  readonly #total: number
  readonly #options: CloneOptions
  #links = -1
  // The folder that is being filled, and what the folders from the top to it are to be like in the end.
  #to = -1
  readonly #folders: Kept[] = []
  #way: 'unknown' | 'reflink' | 'link' | 'copy'
  readonly #copied = new Set<string>()
  #done = 0

  constructor(name: string, total: number, options: CloneOptions) {
    this.#name = name
    this.#total = total
    this.#options = options
    this.#way = options.inUse ? 'copy' : 'unknown'
  }

  begin(from: number, work: string): void {
    const at = openHostFolder(work)
    try {
      this.#links = this.#folder(at, Buffer.from('links'))
      this.#to = this.#folder(at, Buffer.from('tree'))
      this.#folders.push(keptOf(from))
    } finally {
      sys.close(at)
    }
  }

  close(): void {
    for (const fd of [this.#links, this.#to]) if (fd >= 0) sys.close(fd)
  }

  enter(_folder: number, name: Uint8Array, fd: number): void {
    this.#count()
    this.#folders.push(keptOf(fd))
    const to = this.#folder(this.#to, name)
    sys.close(this.#to)
    this.#to = to
  }

  leave(): void {
    this.#finish(this.#to, this.#folders.pop()!)
    const up = this.#must(sys.openat(this.#to, Buffer.from('..'), sys.O_RDONLY | sys.O_DIRECTORY, 0))
    sys.close(this.#to)
    this.#to = up
  }

  async entry(folder: number, name: Uint8Array): Promise<void> {
    this.#count()
    const kind = sys.statxMode() & sys.S_IFMT
    if (kind === sys.S_IFLNK) this.#symlink(folder, name)
    if (kind !== sys.S_IFREG) return
    // Looked at again by its descriptor: a guest may have put something else there.
    const fd = sys.openat(folder, name, READ, 0)
    if (fd < 0) return
    try {
      await this.#file(fd, name)
    } finally {
      sys.close(fd)
    }
  }

  #symlink(folder: number, name: Uint8Array): void {
    const length = sys.readlinkat(folder, name)
    if (length <= 0) return
    const target = sys.linkTarget(length).slice()
    sys.statx(folder, name, sys.AT_SYMLINK_NOFOLLOW)
    const { atim, mtim } = sys.statxResult()
    this.#must(sys.symlinkat(target, this.#to, name))
    const { uid } = this.#options
    if (uid !== undefined) this.#must(sys.chown(this.#to, name, uid, sys.AT_SYMLINK_NOFOLLOW))
    sys.utimensat(this.#to, name, atim, mtim, sys.AT_SYMLINK_NOFOLLOW)
  }

  async #file(fd: number, name: Uint8Array): Promise<void> {
    const kept = keptOf(fd)
    if ((kept.mode & sys.S_IFMT) !== sys.S_IFREG) return
    const length = sys.statxSize()
    if (sys.statxLinks() > 1 && !isShared(kept.mode)) {
      const id = new Int32Array(4)
      sys.statxIdentity(id)
      const key = id.join()
      const copy = Buffer.from(key)
      if (!this.#copied.has(key)) await this.#copy(fd, kept, length, this.#links, copy)
      this.#copied.add(key)
      this.#must(sys.linkat(this.#links, copy, this.#to, name))
      return
    }
    if (this.#way === 'link' && this.#share(fd, kept.mode, name)) return
    await this.#copy(fd, kept, length, this.#to, name)
  }

  // False if the inode can't have one more name, or isn't ours to mark.
  #share(fd: number, mode: number, name: Uint8Array): boolean {
    if (!isShared(mode) && sys.fchmod(fd, (mode & 0o777) | sys.S_ISVTX) < 0) return false
    const result = sys.linkFd(fd, this.#to, name)
    if (result === -ENOSPC || result === -EDQUOT || result === -EEXIST) this.#must(result)
    return result === 0
  }

  async #copy(fd: number, kept: Kept, length: number, folder: number, name: Uint8Array): Promise<void> {
    const to = this.#must(sys.openat(folder, name, sys.O_RDWR | sys.O_CREAT | sys.O_EXCL | sys.O_NOFOLLOW, 0o600))
    try {
      if (this.#way === 'unknown') {
        this.#way = sys.reflink(to, fd) === 0 ? 'reflink' : 'link'
        if (this.#way === 'link' && folder === this.#to) {
          this.#must(sys.unlinkat(folder, name, 0))
          if (this.#share(fd, kept.mode, name)) return
          await this.#copy(fd, kept, length, folder, name)
          return
        }
      }
      const copied = await copyLater(fd, to, length, this.#options.signal)
      this.#options.signal?.throwIfAborted()
      this.#must(copied)
      this.#finish(to, kept)
    } finally {
      sys.close(to)
    }
  }

  #folder(at: number, name: Uint8Array): number {
    this.#must(sys.mkdirat(at, name, 0o700))
    return this.#must(sys.openat(at, name, sys.O_RDONLY | sys.O_DIRECTORY | sys.O_NOFOLLOW, 0))
  }

  #finish(fd: number, { mode, atim, mtim }: Kept): void {
    const { uid } = this.#options
    if (uid !== undefined) this.#must(sys.chown(fd, NOTHING, uid, sys.AT_EMPTY_PATH))
    this.#must(sys.fchmod(fd, mode & 0o777))
    this.#must(sys.utimensat(fd, NOTHING, atim, mtim, sys.AT_EMPTY_PATH))
  }

  #count(): void {
    // Guests that move folders about may be met again and again.
    if (++this.#done > 2 * this.#total + GROWTH_MAX) throw new CellarError('VOLUME_IN_USE', [this.#name, 'it grows'])
    this.#options.progress?.(Math.min(this.#done, this.#total), this.#total)
  }

  #must(result: number): number {
    if (result < 0) throw failure(`clone volume "${this.#name}"`, this.#name, result)
    return result
  }
}

/** The error of work on files that failed with the negated errno `result`. */
export function failure(what: string, where: string, result: number): CellarError {
  if (result === -ENOSPC || result === -EDQUOT) return new CellarError('HOST_DISK_FULL', [what])
  return new CellarError('HOST_STATE_UNUSABLE', [where, ERRNO_NAMES[-result] ?? `errno ${-result}`])
}

function keptOf(fd: number): Kept {
  sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
  const { atim, mtim } = sys.statxResult()
  return { mode: sys.statxMode(), atim, mtim }
}

const READ = sys.O_RDONLY | sys.O_NOFOLLOW | sys.O_NONBLOCK | sys.O_NOCTTY
const GROWTH_MAX = 10_000
const NOTHING = new Uint8Array(0)
