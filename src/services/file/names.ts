// services/file/names.ts: creates, removes, renames and links names in folders: plainly, or charged to a quota.
//
// Both have the kernel's meaning. The charged ones hold the lock of the volume's names, so that what they look at
// before they act is what they act on. A name is the last one of a path, in an open folder; with a final slash it means
// a folder.

import { ENOENT, ENOSPC } from '../../base/errno.ts'
import { VOLUME_ENTRY_BYTES } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import { folderExcess, type Quota } from './quota.ts'
import { isShared, makePrivate, type Later } from './shared_file.ts'

/** What changes folders. Answers are as in sys: ≥ 0 or a negated errno. */
export interface Names {
  /** Opens with `flags` (O_*), which may create. `place` calls `act` with where the name is that isn't there yet. */
  open(flags: number, open: (flags: number) => number,
    place: (act: (folder: number, name: Uint8Array) => number) => number): number
  mkdir(folder: number, name: Uint8Array): number
  symlink(target: Uint8Array, folder: number, name: Uint8Array): number
  /** `flags`: 0 or AT_REMOVEDIR. */
  remove(folder: number, name: Uint8Array, flags: number): number
  rename(folder: number, name: Uint8Array, toFolder: number, toName: Uint8Array): number
  link(folder: number, name: Uint8Array, toFolder: number, toName: Uint8Array): number | Later
}

/** Of a folder without a quota. */
export const PLAIN_NAMES: Names = {
  open: (flags, open) => open(flags),
  mkdir: (folder, name) => sys.mkdirat(folder, name, 0o777),
  symlink: (target, folder, name) => sys.symlinkat(target, folder, name),
  remove: (folder, name, flags) => sys.unlinkat(folder, name, flags),
  rename: (folder, name, toFolder, toName) => sys.renameat(folder, name, toFolder, toName),
  link: (folder, name, toFolder, toName) => sys.linkat(folder, name, toFolder, toName),
}

/** Of a volume with a quota. */
export class ChargedNames implements Names {
  readonly #quota: Quota

  constructor(quota: Quota) { this.#quota = quota }

  /** Called with the names locked: what is opened is counted under the same lock. */
  open(flags: number, open: (flags: number) => number,
    place: (act: (folder: number, name: Uint8Array) => number) => number): number {
    if ((flags & sys.O_CREAT) === 0) return open(flags)
    if ((flags & sys.O_EXCL) === 0) {
      const fd = open(flags & ~sys.O_CREAT)
      if (fd !== -ENOENT) return fd
    }
    return place((folder, name) =>
      this.#reserved(folder, () => sys.openat(folder, name, flags | sys.O_NOFOLLOW, 0o666)))
  }

  mkdir(folder: number, name: Uint8Array): number {
    return this.#locked(() => this.#reserved(folder, () => sys.mkdirat(folder, name, 0o777)))
  }

  symlink(target: Uint8Array, folder: number, name: Uint8Array): number {
    return this.#locked(() => this.#reserved(folder, () => sys.symlinkat(target, folder, name)))
  }

  remove(folder: number, name: Uint8Array, flags: number): number {
    return this.#locked(() => {
      const there = this.#look(folder, name, target)
      const result = this.#settling(folder, () => sys.unlinkat(folder, name, flags))
      if (result === 0 && there) this.#gone(target)
      return result
    })
  }

  rename(folder: number, name: Uint8Array, toFolder: number, toName: Uint8Array): number {
    return this.#locked(() => {
      const replaces = this.#look(toFolder, toName, target) && this.#look(folder, name, source) &&
        target.id.some((word, i) => word !== source.id[i])
      const result = this.#settling(folder, () => this.#settlingOther(folder, toFolder, () =>
        sys.renameat(folder, name, toFolder, toName)))
      if (result === 0 && replaces) this.#gone(target)
      return result
    })
  }

  /** A shared file has one name in each volume: it is made this volume's own first. */
  link(folder: number, name: Uint8Array, toFolder: number, toName: Uint8Array): number | Later {
    return this.#locked(() => {
      if (this.#look(folder, name, source) && source.isShared) {
        const made = makePrivate(this.#quota, folder, name, true)
        if (made !== 0) return made
      }
      return this.#reserved(toFolder, () => sys.linkat(folder, name, toFolder, toName))
    })
  }

  #locked<T>(act: () => T): T {
    this.#quota.lockNames()
    try {
      return act()
    } finally {
      this.#quota.unlockNames()
    }
  }

  #reserved(folder: number, create: () => number): number {
    if (!this.#quota.reserve(VOLUME_ENTRY_BYTES)) return -ENOSPC
    const result = this.#settling(folder, create)
    if (result < 0) this.#quota.giveBack(VOLUME_ENTRY_BYTES)
    return result
  }

  // Charges what the folder itself grows by `change`, some blocks at most: then it is too late to refuse.
  #settling(folder: number, change: () => number): number {
    const before = excessOf(folder)
    const result = change()
    const after = excessOf(folder)
    if (after !== before) this.#quota.giveBack(before - after)
    return result
  }

  #settlingOther(folder: number, other: number, change: () => number): number {
    if (sys.statx(folder, NOTHING, sys.AT_EMPTY_PATH) === 0) sys.statxIdentity(folderId)
    if (sys.statx(other, NOTHING, sys.AT_EMPTY_PATH) === 0) sys.statxIdentity(otherId)
    return otherId.every((word, i) => word === folderId[i]) ? change() : this.#settling(other, change)
  }

  // False if there is nothing.
  #look(folder: number, name: Uint8Array, to: Seen): boolean {
    if (sys.statx(folder, name, sys.AT_SYMLINK_NOFOLLOW) < 0) return false
    const mode = sys.statxMode()
    sys.statxIdentity(to.id)
    to.isShared = isShared(mode)
    to.isFile = (mode & sys.S_IFMT) === sys.S_IFREG
    to.isFolder = (mode & sys.S_IFMT) === sys.S_IFDIR
    to.bytes = sys.statxSize()
    to.links = sys.statxLinks()
    return true
  }

  // A shared file's other names are in other volumes.
  #gone({ id, bytes, isFile, isFolder, isShared, links }: Seen): void {
    if (isFolder) this.#quota.folderGone(id, VOLUME_ENTRY_BYTES + folderExcess(bytes))
    else this.#quota.nameGone(id, bytes, isFile && (isShared || links === 1))
  }
}

function excessOf(folder: number): number {
  return sys.statx(folder, NOTHING, sys.AT_EMPTY_PATH) < 0 ? 0 : folderExcess(sys.statxSize())
}

type Seen = {
  readonly id: Int32Array; bytes: number; links: number; isFile: boolean; isFolder: boolean; isShared: boolean
}

const newSeen = (): Seen =>
  ({ id: new Int32Array(4), bytes: 0, links: 0, isFile: false, isFolder: false, isShared: false })
const folderId = new Int32Array(4)
const otherId = new Int32Array(4)
const NOTHING = new Uint8Array(0)
const source = newSeen()
const target = newSeen()
