// qemu/disk_chain.ts: opens a disk and what it is based on, for QEMU, which opens no file itself.
//
// QEMU would open whatever name stands in a qcow2's header, and whoever made the image chose that. So the chain is
// followed here, by the rules of services/block/open_disk.ts, and QEMU gets the descriptors and the whole graph: in it
// no image is asked what it is based on. Reading and writing the formats is QEMU's own.

import { closeSync, constants, fstatSync, openSync, realpathSync } from 'node:fs'
import { dirname, isAbsolute, relative, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'
import type { DiskSpec } from '../machine/spec.ts'
import { SECTOR_BYTES } from '../services/block/disk.ts'
import { DescriptorFile } from '../services/block/image_file.ts'
import { readHeader } from '../services/block/qcow2_header.ts'
import { lockImage } from '../sys/image_lock.ts'

/** One file of a chain, open. The first is the disk itself, each other one what the one before is based on. */
export type ChainLink = { readonly fd: number; readonly format: 'raw' | 'qcow2'; readonly isReadOnly: boolean }

/** Files behind one disk, itself included: as services/block has it. */
const CHAIN_MAX = 16

/** Opens and locks the files of a disk. Throws CellarError; nothing is open then. */
export function openChain(disk: DiskSpec): ChainLink[] {
  const folders = disk.backingFolders.flatMap((folder) => realPath(folder) ?? [])
  const chain: ChainLink[] = []
  const seen = new Set<string>()
  try {
    let next: { path: string; format: string } | undefined = disk
    while (next !== undefined) {
      const { path, format }: { path: string; format: string } = next
      if (chain.length === CHAIN_MAX) {
        throw new CellarError('DISK_UNSUPPORTED', [disk.path, `more than ${CHAIN_MAX - 1} backing files`])
      }
      if (format !== 'raw' && format !== 'qcow2') {
        throw new CellarError('DISK_UNSUPPORTED', [disk.path, `a backing file of format ${JSON.stringify(format)}`])
      }
      const isReadOnly = chain.length > 0 || disk.readOnly
      const fd = openFile(path, isReadOnly)
      chain.push({ fd, format, isReadOnly })
      next = enter(fd, path, format, isReadOnly, { top: disk.path, folders, seen })
    }
    return chain
  } catch (error) {
    closeChain(chain)
    throw error
  }
}

/** Closes our descriptors of it. */
export function closeChain(chain: readonly ChainLink[]): void {
  for (const { fd } of chain) closeSync(fd)
}

type Walk = { readonly top: string; readonly folders: readonly string[]; readonly seen: Set<string> }

// Checks one file; what it is based on.
function enter(fd: number, path: string, format: 'raw' | 'qcow2', isReadOnly: boolean, walk: Walk):
  { path: string; format: string } | undefined {
  const found = fstatSync(fd, { bigint: true })
  if (!found.isFile()) throw new CellarError('DISK_UNREADABLE', [path, 'it isn\'t a file'])
  const id = `${found.dev}:${found.ino}`
  if (walk.seen.has(id)) throw new CellarError('DISK_DAMAGED', [walk.top, 'its backing files are a loop'])
  walk.seen.add(id)
  // Locks are the open file's, and so QEMU has them when it has the file, and for as long.
  if (lockImage(fd, !isReadOnly) === 0) throw new CellarError('DISK_IN_USE', [path])
  if (format === 'raw') {
    const size = Number(found.size)
    if (size % SECTOR_BYTES !== 0) throw new CellarError('DISK_SIZE_UNALIGNED', [path, SECTOR_BYTES, size])
    return undefined
  }
  const { backing, isCorrupt } = readHeader(new DescriptorFile(fd), path)
  if (isCorrupt && !isReadOnly) throw new CellarError('DISK_DAMAGED', [path, 'it is marked so'])
  return backing === undefined ? undefined : { path: backingPath(path, backing.name, walk), format: backing.format }
}

function backingPath(path: string, name: string, { folders }: Walk): string {
  // "json:…", "nbd://…": QEMU's words for what isn't a file.
  if (/^[a-z][a-z0-9+.-]*:/i.test(name)) throw new CellarError('DISK_UNSUPPORTED', [path, `backing file "${name}"`])
  const found = realPath(resolve(dirname(path), name))
  // What isn't there could be anywhere: it isn't told apart from what is outside.
  if (found === undefined || !folders.some((folder) => isInside(folder, found))) {
    throw new CellarError('DISK_BACKING_OUTSIDE', [path, name])
  }
  return found
}

function isInside(folder: string, path: string): boolean {
  const way = relative(folder, path)
  return way !== '' && way !== '..' && !way.startsWith('../') && !isAbsolute(way)
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}

// As services/block/open_disk.ts has it: no link is followed here.
function openFile(path: string, isReadOnly: boolean): number {
  try {
    // Not to wait for the other end of a pipe, which isn't a disk.
    const flags = (isReadOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK
    return openSync(path, flags | constants.O_NOFOLLOW)
  } catch (error) {
    const { code = 'EIO' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new CellarError('DISK_NOT_FOUND', [path], { cause: error })
    throw new CellarError('DISK_UNREADABLE', [path, code], { cause: error })
  }
}
