// host/volumes.ts: the folders of a project's volumes.
//
// `volumes/V/` is what guests see of volume V. A clone grows in `volumes/.clone-…` and is renamed to its place when it
// is whole; what is removed is renamed to `volumes/.trash-…` and then taken apart. So a volume is there or it isn't,
// whenever the host is killed; `sweep` removes what was left. Names are checked, and paths are made here only.
// Elsewhere: how a clone is made (volume_clone.ts), archives (volume_archive.ts), sizes (services/file/quota.ts).
//
// The caller sees to it that no guest that has a volume starts while it is cloned (unless it says that it is in use) or
// removed.

import { constants } from 'node:fs'
import { chown, mkdir, open, readdir, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { DISK_FILE } from '../services/block/disk.ts'
import { contentsOf } from '../services/file/open_quota.ts'
import { walkTree } from '../services/file/tree_walk.ts'
import { openHostFolder } from '../services/file/volume.ts'
import * as sys from '../sys/linux_files.ts'
import { NAME } from './spec.ts'
import { cloneTree, failure, type LongWork } from './volume_clone.ts'

/** The folders of one project's volumes. */
export class VolumeFolders {
  readonly #folder: string
  readonly #uid: number | undefined

  /** `uid`: whom volumes belong to, user and group; default: us. */
  constructor(projectFolder: string, uid?: number) {
    this.#folder = join(projectFolder, 'volumes')
    this.#uid = uid
  }

  /** The folder of volume `name`, whether it is there or not. Throws NAME_INVALID. */
  path(name: string): string {
    if (!NAME.safeParse(name).success) throw new CellarError('NAME_INVALID', ['volume', name])
    return join(this.#folder, name)
  }

  /** `diskBytes`: it is a disk of that size. Throws EXISTS, NAME_INVALID, HOST_DISK_FULL. */
  async create(name: string, diskBytes?: number): Promise<void> {
    const path = this.path(name)
    await attempt(`create volume "${name}"`, path, async () => {
      await mkdir(this.#folder, { recursive: true, mode: 0o711 })
      if (isThere(path)) throw new CellarError('EXISTS', ['volume', name])
      await mkdir(path, { mode: 0o700 })
      if (diskBytes !== undefined) await this.#makeDisk(join(path, DISK_FILE), diskBytes)
      if (this.#uid !== undefined) await chown(path, this.#uid, this.#uid)
      await this.#settle()
    })
  }

  // Sparse: it takes what is written.
  async #makeDisk(path: string, sizeBytes: number): Promise<void> {
    await using file = await open(path, 'wx', 0o600)
    await file.truncate(sizeBytes)
    if (this.#uid !== undefined) await file.chown(this.#uid, this.#uid)
  }

  /** Makes a disk larger. Its folder is its project's: what is there must be a file, and no link. */
  async growDisk(name: string, sizeBytes: number): Promise<void> {
    const path = join(this.path(name), DISK_FILE)
    await attempt(`resize volume "${name}"`, path, async () => {
      await using file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW)
      if ((await file.stat()).size < sizeBytes) await file.truncate(sizeBytes)
    })
  }

  /**
   * Makes volume `to` with the content that `from` has now. `inUse`: guests have it, so that it is copied. Throws
   * NOT_FOUND, EXISTS, NAME_INVALID, HOST_DISK_FULL, VOLUME_IN_USE, OPERATION_CANCELLED; then nothing is left behind.
   */
  async clone(from: string, to: string, options: LongWork & { readonly inUse: boolean }): Promise<void> {
    const [source, target] = [this.path(from), this.path(to)]
    const what = `clone volume "${from}"`
    if (!isThere(source)) throw new CellarError('NOT_FOUND', ['volume', from])
    if (isThere(target)) throw new CellarError('EXISTS', ['volume', to])
    const work = join(this.#folder, `${CLONE}${crypto.randomUUID()}`)
    try {
      await attempt(what, source, async () => {
        await mkdir(work, { mode: 0o700 })
        await cloneTree(source, work, from, { ...options, uid: this.#uid })
        options.signal?.throwIfAborted()
        await rename(join(work, 'tree'), target)
        await this.#settle()
      })
    } catch (error) {
      if (options.signal?.aborted !== true) throw error
      throw new CellarError('OPERATION_CANCELLED', [`the clone of volume "${from}"`], { cause: error })
    } finally {
      await removeTree(work)
    }
  }

  /**
   * Removes a volume: it is gone at once, and its files when this resolves. Ended by the signal, or failed, it leaves
   * files to `sweep`. Throws NOT_FOUND, NAME_INVALID.
   */
  async remove(name: string, { progress, signal }: LongWork = {}): Promise<void> {
    const path = this.path(name)
    const trash = join(this.#folder, `${TRASH}${crypto.randomUUID()}`)
    try {
      await rename(path, trash)
    } catch (error) {
      throw new CellarError('NOT_FOUND', ['volume', name], { cause: error })
    }
    await this.#settle()
    const { entries } = await contentsOf(trash)
    let done = 0
    try {
      await removeTree(trash, () => progress?.(Math.min(++done, entries), entries), signal)
    } catch (error) {
      if (signal?.aborted !== true) throw error
    }
  }

  /** Removes what clones and removals left that were cut short. At the host's start, before anything else is asked. */
  async sweep(): Promise<void> {
    for (const name of await readdir(this.#folder).catch(() => [])) {
      if (name.startsWith(CLONE) || name.startsWith(TRASH)) await removeTree(join(this.#folder, name))
    }
  }

  /** What a volume holds, as it is charged: bytes of files and 4096 for each name. Throws VOLUME_NOT_FOUND. */
  async usage(name: string): Promise<number> {
    return (await contentsOf(this.path(name))).bytes
  }

  // Names that were made or taken are on the disk.
  async #settle(): Promise<void> {
    const folder = await open(this.#folder)
    try {
      await folder.sync()
    } finally {
      await folder.close()
    }
  }
}

const CLONE = '.clone-'
const TRASH = '.trash-'

/**
 * Removes a folder of ours and all that is in it, however deep and much that is: it need not be there, and others may
 * change it meanwhile. Node's own rmSync holds a descriptor for each level, and the thread until it is done.
 */
export async function removeTree(path: string, each = (): void => {}, signal?: AbortSignal): Promise<void> {
  if (!isThere(path)) return
  const root = openHostFolder(path)
  try {
    await walkTree(root, {
      entry: (folder, name) => { sys.unlinkat(folder, name, 0); each() },
      leave: (folder, name) => { sys.unlinkat(folder, name, sys.AT_REMOVEDIR); each() },
    }, signal)
  } finally {
    sys.close(root)
  }
  const result = sys.unlinkat(sys.AT_FDCWD, Buffer.from(path), sys.AT_REMOVEDIR)
  if (result < 0) throw failure('remove a volume', path, result)
}

function isThere(path: string): boolean {
  return sys.statx(sys.AT_FDCWD, Buffer.from(path), sys.AT_SYMLINK_NOFOLLOW) === 0
}

async function attempt(what: string, where: string, work: () => Promise<void>): Promise<void> {
  try {
    await work()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error
    throw failure(what, where, -errnoOf(error))
  }
}
