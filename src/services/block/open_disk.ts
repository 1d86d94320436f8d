// services/block/open_disk.ts: opens disks, with the files behind them; and makes new ones.
//
// A qcow2 image names its backing file itself, and whoever made the image chose the name: it may lie in folders that
// the operator has named, with all links resolved, and nowhere else. A chain is of a limited depth and comes to no file
// twice. Every file of it is locked (sys/image_lock.ts): the first for us alone if it is written, those behind it
// against all who write.

import { closeSync, constants, fstatSync, ftruncateSync, openSync, realpathSync, unlinkSync } from 'node:fs'
import { dirname, isAbsolute, relative, resolve } from 'node:path'
import { CellarError } from '../../base/errors.ts'
import { lockImage } from '../../sys/image_lock.ts'
import { isSupported } from '../../sys/libc.ts'
import { SECTOR_BYTES } from './disk.ts'
import { DescriptorFile } from './image_file.ts'
import { createQcow2 } from './qcow2_create.ts'
import { DISK_BYTES_MAX } from './qcow2_header.ts'
import { Qcow2Disk } from './qcow2.ts'
import { RawDisk } from './raw.ts'

/** Files behind one disk, itself included. */
const CHAIN_MAX = 16

/** How a disk is opened. */
export type OpenOptions = {
  readonly readOnly: boolean
  /** Folders in which backing files may lie; empty: none may. */
  readonly backingFolders: readonly string[]
  /** The disk itself, opened already; it is ours then, and closed whatever comes of it. */
  readonly fd?: number | undefined
}

/** Opens a disk and what is behind it. Throws CellarError; everything is closed then. */
export function openDisk(path: string, format: 'raw' | 'qcow2', options: OpenOptions): RawDisk | Qcow2Disk {
  const fd = options.fd ?? openFile(path, options.readOnly)
  const folders = options.backingFolders.flatMap((folder) => {
    try {
      return [realpathSync(folder)]
    } catch {
      // Nothing lies in a folder that isn't there.
      return []
    }
  })
  return new Chain(path, folders).open(fd, path, format, options.readOnly)
}

class Chain {
  readonly #top: string
  readonly #folders: readonly string[]
  /** Device and inode of each file so far. */
  readonly #seen: string[] = []

  constructor(top: string, folders: readonly string[]) {
    this.#top = top
    this.#folders = folders
  }

  open(fd: number, path: string, format: 'raw' | 'qcow2', isReadOnly: boolean): RawDisk | Qcow2Disk {
    try {
      this.#enter(fd, path, isReadOnly)
      const file = new DescriptorFile(fd)
      if (format === 'raw') {
        if (file.sizeBytes % SECTOR_BYTES !== 0) {
          throw new CellarError('DISK_SIZE_UNALIGNED', [path, SECTOR_BYTES, file.sizeBytes])
        }
        return new RawDisk(file, isReadOnly)
      }
      return new Qcow2Disk({ file, path, isReadOnly, openBacking: ({ name, format: behind }) =>
        this.#openBacking(path, name, behind) })
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  #enter(fd: number, path: string, isReadOnly: boolean): void {
    const { dev, ino, isFile } = identity(fd)
    if (!isFile) throw new CellarError('DISK_UNREADABLE', [path, 'it isn\'t a file'])
    const id = `${dev}:${ino}`
    if (this.#seen.includes(id)) throw new CellarError('DISK_DAMAGED', [this.#top, 'its backing files are a loop'])
    if (this.#seen.length === CHAIN_MAX) {
      throw new CellarError('DISK_UNSUPPORTED', [this.#top, `more than ${CHAIN_MAX - 1} backing files`])
    }
    this.#seen.push(id)
    // Elsewhere than on Linux no machine of ours runs, and QEMU's own locks are of no use to us.
    if (isSupported() && lockImage(fd, !isReadOnly) === 0) throw new CellarError('DISK_IN_USE', [path])
  }

  #openBacking(path: string, name: string, format: string): RawDisk | Qcow2Disk {
    if (format !== 'raw' && format !== 'qcow2') {
      throw new CellarError('DISK_UNSUPPORTED', [path, `a backing file of format ${JSON.stringify(format)}`])
    }
    // "json:…", "nbd://…": QEMU's words for what isn't a file.
    if (/^[a-z][a-z0-9+.-]*:/i.test(name)) throw new CellarError('DISK_UNSUPPORTED', [path, `backing file "${name}"`])
    let found: string
    try {
      found = realpathSync(resolve(dirname(path), name))
    } catch {
      // What isn't there could be anywhere: it isn't told apart from what is outside.
      throw new CellarError('DISK_BACKING_OUTSIDE', [path, name])
    }
    if (!this.#folders.some((folder) => isInside(folder, found))) {
      throw new CellarError('DISK_BACKING_OUTSIDE', [path, name])
    }
    return this.open(openFile(found, true), found, format, true)
  }
}

function isInside(folder: string, path: string): boolean {
  const way = relative(folder, path)
  return way !== '' && way !== '..' && !way.startsWith('../') && !isAbsolute(way)
}

function identity(fd: number): { dev: bigint; ino: bigint; isFile: boolean } {
  const found = fstatSync(fd, { bigint: true })
  return { dev: found.dev, ino: found.ino, isFile: found.isFile() }
}

// A volume may be another guest's, too, which can put a link in the disk's place; those of backing files are resolved.
function openFile(path: string, readOnly: boolean): number {
  try {
    // Not to wait for the other end of a pipe, which isn't a disk.
    const flags = constants.O_NONBLOCK | constants.O_NOFOLLOW
    return openSync(path, (readOnly ? constants.O_RDONLY : constants.O_RDWR) | flags)
  } catch (error) {
    const { code = 'EIO' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new CellarError('DISK_NOT_FOUND', [path], { cause: error })
    throw new CellarError('DISK_UNREADABLE', [path, code], { cause: error })
  }
}

/** What a new disk is. */
export type NewDisk = {
  readonly format: 'raw' | 'qcow2'
  readonly sizeBytes: number
  /** What a qcow2 shows where nothing was written. `path` goes into the image: relative to the image's own folder. */
  readonly backing?: { readonly path: string; readonly format: 'raw' | 'qcow2' } | undefined
  /** Bytes of a cluster, a power of two from 512 to 2 MiB: 64 KiB if it isn't said. */
  readonly clusterBytes?: number | undefined
}

/** Makes a new disk, which reads as zeros or as its backing file. Throws CellarError; nothing is left then. */
export function createDisk(path: string, disk: NewDisk): void {
  const { sizeBytes, format } = disk
  if (!(sizeBytes >= 0) || sizeBytes % SECTOR_BYTES !== 0) {
    throw new CellarError('DISK_SIZE_UNALIGNED', [path, SECTOR_BYTES, sizeBytes])
  }
  if (sizeBytes > DISK_BYTES_MAX) throw new CellarError('DISK_TOO_LARGE', [path, sizeBytes])
  let fd: number
  try {
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600)
  } catch (error) {
    const { code = 'EIO' } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') throw new CellarError('DISK_EXISTS', [path], { cause: error })
    throw new CellarError('DISK_UNWRITABLE', [path, code], { cause: error })
  }
  try {
    if (format === 'raw') ftruncateSync(fd, sizeBytes)
    else createQcow2(new DescriptorFile(fd), path, disk)
  } catch (error) {
    unlinkSync(path)
    const code = (error as NodeJS.ErrnoException).code ?? 'EIO'
    throw error instanceof CellarError ? error : new CellarError('DISK_UNWRITABLE', [path, code], { cause: error })
  } finally {
    closeSync(fd)
  }
}
