// services/file/shared_file.ts: files that a clone of a volume has in common with its source, until one of them writes.
//
// A clone's files are hard links to those of its source (host/volume_clone.ts). Such an inode bears a mark, the sticky
// bit, which means nothing else on a regular file and which no guest can see. A marked inode is never written, and each
// volume has exactly one name for it: whoever is about to change it (open it for writing, cut it, set its times, link
// it) first puts a private copy in the place of that name. Who has it open for reading keeps the old content.
//
// A mark outlives the other volumes. If the name is the inode's only one and nobody else has it open, in any process,
// the mark is taken off and nothing is copied. A copy has a name of its own for a moment, COPY_PREFIX…, which is
// removed at the volume's next start if the process was killed then.

import { ENOSPC } from '../../base/errno.ts'
import { COPY_AT_ONCE_BYTES_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import { copyLater, copyNow } from './copy_content.ts'
import type { Quota } from './quota.ts'

/** How names begin that are only for a moment: of copies, and of files of an archive (host/archive_entries.ts). */
export const COPY_PREFIX = '.cellar-copy-'
export const PUT_PREFIX = '.cellar-put-'

/** A copy that takes long: the call resolves to 0 or a negated errno, and then everything is looked up anew. */
export type Later = () => Promise<number>

/** True for a mode (statxMode) of a marked file. */
export function isShared(mode: number): boolean {
  return (mode & (sys.S_IFMT | sys.S_ISVTX)) === (sys.S_IFREG | sys.S_ISVTX)
}

/** A name in a folder of the volume that nothing has yet. */
export function momentaryName(prefix: typeof COPY_PREFIX | typeof PUT_PREFIX): Uint8Array {
  return Buffer.from(`${prefix}${crypto.randomUUID()}`)
}

/**
 * Makes the file `name` of `folder` this volume's own. `keep`: with its content; else empty. Called with the names of
 * the volume locked, and so is what it did: 0, a negated errno, or what is to be called without the lock.
 */
export function makePrivate(quota: Quota, folder: number, name: Uint8Array, keep: boolean): number | Later {
  const from = sys.openat(folder, name, sys.O_RDONLY | sys.O_NOFOLLOW | sys.O_NONBLOCK, 0)
  if (from < 0) return from
  let isLater = false
  try {
    const source = sourceOf(from)
    if (typeof source === 'number') return source
    if (source.links === 1 && sys.isOpenOnlyHere(from)) return sys.fchmod(from, source.mode & ~sys.S_ISVTX)
    if (keep && source.length > COPY_AT_ONCE_BYTES_MAX) {
      const later = copyLaterOf(quota, from, folder, name, source)
      if (later !== undefined) {
        isLater = true
        return later
      }
    }
    const temporary = momentaryName(COPY_PREFIX)
    const to = sys.openat(folder, temporary, sys.O_RDWR | sys.O_CREAT | sys.O_EXCL | sys.O_NOFOLLOW, 0o600)
    if (to < 0) return to
    const copied = keep ? copyNow(from, to, source.length) : 0
    const result = copied < 0 ? copied : replace(quota, { folder, name, temporary, to, source, keep })
    sys.close(to)
    if (result < 0) sys.unlinkat(folder, temporary, 0)
    return result
  } finally {
    if (!isLater) sys.close(from)
  }
}

type Source = {
  readonly id: Int32Array; readonly length: number; readonly mode: number; readonly links: number
  readonly atim: bigint; readonly mtim: bigint
}

// 0: it isn't marked (any more).
function sourceOf(fd: number): Source | number {
  const result = sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
  if (result < 0) return result
  const mode = sys.statxMode()
  if (!isShared(mode)) return 0
  const id = new Int32Array(4)
  sys.statxIdentity(id)
  const { atim, mtim } = sys.statxResult()
  return { id, length: sys.statxSize(), mode: mode & 0o7777, links: sys.statxLinks(), atim, mtim }
}

// undefined: the file system has no files without a name. Takes over `from`, unless it is undefined.
function copyLaterOf(quota: Quota, from: number, folder: number, name: Uint8Array, source: Source): Later | undefined {
  const to = sys.openat(folder, DOT, sys.O_TMPFILE | sys.O_RDWR, 0o600)
  if (to < 0) return undefined
  // The caller closes its own.
  const held = sys.openat(folder, DOT, sys.O_PATH | sys.O_DIRECTORY, 0)
  const itsName = name.slice()
  return async () => {
    try {
      const copied = held < 0 ? held : await copyLater(from, to, source.length)
      return copied < 0 ? copied : placeLater(quota, { folder: held, name: itsName, to, source })
    } finally {
      for (const fd of [from, to, held]) if (fd >= 0) sys.close(fd)
    }
  }
}

function placeLater(quota: Quota, { folder, name, to, source }: Omit<Replacement, 'temporary' | 'keep'>): number {
  quota.lockNames()
  try {
    // Somebody else may have been faster, or have removed it.
    if (sys.statx(folder, name, sys.AT_SYMLINK_NOFOLLOW) < 0 || !isShared(sys.statxMode())) return 0
    sys.statxIdentity(identity)
    if (identity.some((word, i) => word !== source.id[i])) return 0
    const temporary = momentaryName(COPY_PREFIX)
    const linked = sys.linkFd(to, folder, temporary)
    if (linked < 0) return linked
    const result = replace(quota, { folder, name, temporary, to, source, keep: true })
    if (result < 0) sys.unlinkat(folder, temporary, 0)
    return result
  } finally {
    quota.unlockNames()
  }
}

type Replacement = {
  readonly folder: number; readonly name: Uint8Array; readonly temporary: Uint8Array; readonly to: number
  readonly source: Source; readonly keep: boolean
}

// The copy takes the name. What the name was charged goes over to the copy, or, if somebody has the old content open,
// stays with that until it is closed: then the copy is charged apart.
function replace(quota: Quota, { folder, name, temporary, to, source, keep }: Replacement): number {
  const open = quota.find(source.id)
  if (open !== 0 && keep && !quota.reserve(source.length)) return -ENOSPC
  let result = sys.fchmod(to, source.mode & 0o777)
  if (result === 0 && keep) result = sys.utimensat(to, NOTHING, source.atim, source.mtim, sys.AT_EMPTY_PATH)
  if (result === 0) result = sys.renameat(folder, temporary, folder, name)
  if (result < 0) {
    if (open !== 0 && keep) quota.giveBack(source.length)
    return result
  }
  if (open !== 0) quota.gone(open)
  else if (!keep) quota.giveBack(source.length)
  return 0
}

const identity = new Int32Array(4)
const NOTHING = new Uint8Array(0)
const DOT = Uint8Array.of(0x2e)
