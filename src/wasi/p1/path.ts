// wasi/p1/path.ts: everything by path: open, create, remove, rename, link, and attributes.
//
// A path is relative to a folder's descriptor and never leads out of it; the file service sees to that
// (services/file/directory.ts). Here: rights, flags and pointers, all checked before anything happens.
//
// A file that a volume shares with its clone is copied before it is changed. The three calls that may do so wait for
// the copy of a large one, and then begin anew.
//
// Rights of what path_open opens are those asked for that a file or a folder can have at all. Rights that neither has
// (those of sockets, unknown bits) are not granted and not an error, since some runtimes ask for everything.

import {
  EACCES, EAGAIN, EBADF, EINVAL, EISDIR, EMFILE, ENOTCAPABLE, ENOTDIR, EPERM, EROFS, ESUCCESS, ETXTBSY,
} from '../../base/errno.ts'
import { Directory, type OpenHow } from '../../services/file/directory.ts'

import * as abi from './abi.ts'
import type { Context } from './context.ts'
import { FILESTAT_BYTES, readTimes, writeFilestat } from './filestat.ts'

// Rights that need a file opened for writing. FD_WRITE insists on it. The others come along if it can be had: Go asks
// for FD_FILESTAT_SET_SIZE even to read a file, or a folder.
const RIGHTS_NEEDING_WRITE = abi.RIGHTS_FD_WRITE | abi.RIGHTS_FD_ALLOCATE | abi.RIGHTS_FD_FILESTAT_SET_SIZE
const RIGHTS_WISHING_WRITE = abi.RIGHTS_FD_ALLOCATE | abi.RIGHTS_FD_FILESTAT_SET_SIZE
const RIGHTS_POSSIBLE = abi.RIGHTS_FILE | abi.RIGHTS_DIRECTORY
const OFLAGS_ALL = abi.OFLAGS_CREAT | abi.OFLAGS_DIRECTORY | abi.OFLAGS_EXCL | abi.OFLAGS_TRUNC

export function path_open(
  context: Context, fd: number, dirflags: number, pathPointer: number, pathLength: number, oflags: number,
  rightsLo: number, _rightsHi: number, inheritingLo: number, _inheritingHi: number, fdflags: number, out: number,
): number {
  const { memory, descriptors } = context
  let needed = abi.RIGHTS_PATH_OPEN
  if ((oflags & abi.OFLAGS_CREAT) !== 0) needed |= abi.RIGHTS_PATH_CREATE_FILE
  if ((oflags & abi.OFLAGS_TRUNC) !== 0) needed |= abi.RIGHTS_PATH_FILESTAT_SET_SIZE
  const folder = folderOf(context, fd, needed)
  if (typeof folder === 'number') return folder
  if (unknown(dirflags) || (oflags & ~OFLAGS_ALL) !== 0 || (fdflags & ~abi.FDFLAGS_ALL) !== 0) return EINVAL
  const path = memory.at(pathPointer, pathLength)
  const outAt = memory.check(out, 4)

  let rightsBase = rightsLo & RIGHTS_POSSIBLE
  const rightsInheriting = inheritingLo & RIGHTS_POSSIBLE
  if (((rightsBase | rightsInheriting) & ~descriptors.get(fd)!.rightsInheriting) !== 0) return ENOTCAPABLE

  if (descriptors.full) return EMFILE
  const copied = afterCopy(context)
  if (copied !== ESUCCESS) return copied
  let opened = folder.open(path, howOf(dirflags, oflags, rightsBase, fdflags))
  if (typeof opened === 'number' && WRITE_REFUSED.has(-opened) && (rightsBase & abi.RIGHTS_FD_WRITE) === 0 &&
    (rightsBase & RIGHTS_WISHING_WRITE) !== 0) {
    rightsBase &= ~RIGHTS_WISHING_WRITE
    opened = folder.open(path, howOf(dirflags, oflags, rightsBase, fdflags))
  }
  if (typeof opened === 'number') return orCopy(context, folder, opened)
  rightsBase &= opened instanceof Directory ? abi.RIGHTS_DIRECTORY : abi.RIGHTS_FILE
  const number = descriptors.add({ descriptor: opened, rightsBase, rightsInheriting, flags: fdflags })
  if (number < 0) return -number
  memory.view.setUint32(outAt, number, true)
  return ESUCCESS
}

// What opening for writing may be refused with where reading is allowed.
const WRITE_REFUSED: ReadonlySet<number> = new Set([EACCES, EISDIR, EPERM, EROFS, ETXTBSY])

function howOf(dirflags: number, oflags: number, rights: number, fdflags: number): OpenHow {
  return {
    read: (rights & (abi.RIGHTS_FD_READ | abi.RIGHTS_FD_READDIR)) !== 0,
    write: (rights & RIGHTS_NEEDING_WRITE) !== 0,
    wish: (rights & abi.RIGHTS_FD_WRITE) === 0,
    append: (fdflags & abi.FDFLAGS_APPEND) !== 0,
    create: (oflags & abi.OFLAGS_CREAT) !== 0,
    exclusive: (oflags & abi.OFLAGS_EXCL) !== 0,
    truncate: (oflags & abi.OFLAGS_TRUNC) !== 0,
    directory: (oflags & abi.OFLAGS_DIRECTORY) !== 0,
    follow: (dirflags & abi.LOOKUPFLAGS_SYMLINK_FOLLOW) !== 0,
    sync: (fdflags & (abi.FDFLAGS_SYNC | abi.FDFLAGS_RSYNC)) !== 0 ? 'all'
      : (fdflags & abi.FDFLAGS_DSYNC) !== 0 ? 'data' : 'none',
  }
}

export function path_create_directory(context: Context, fd: number, pointer: number, length: number): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_CREATE_DIRECTORY)
  if (typeof folder === 'number') return folder
  return 0 - folder.mkdir(context.memory.at(pointer, length))
}

export function path_remove_directory(context: Context, fd: number, pointer: number, length: number): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_REMOVE_DIRECTORY)
  if (typeof folder === 'number') return folder
  return 0 - folder.rmdir(context.memory.at(pointer, length))
}

export function path_unlink_file(context: Context, fd: number, pointer: number, length: number): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_UNLINK_FILE)
  if (typeof folder === 'number') return folder
  return 0 - folder.unlink(context.memory.at(pointer, length))
}

export function path_rename(
  context: Context, fd: number, oldPointer: number, oldLength: number,
  newFd: number, newPointer: number, newLength: number,
): number {
  const from = folderOf(context, fd, abi.RIGHTS_PATH_RENAME_SOURCE)
  if (typeof from === 'number') return from
  const to = folderOf(context, newFd, abi.RIGHTS_PATH_RENAME_TARGET)
  if (typeof to === 'number') return to
  return 0 - from.rename(context.memory.at(oldPointer, oldLength), to, context.memory.at(newPointer, newLength))
}

/** Following a symbolic link to link what it leads to is EINVAL, as in other runtimes. */
export function path_link(
  context: Context, oldFd: number, oldFlags: number, oldPointer: number, oldLength: number,
  newFd: number, newPointer: number, newLength: number,
): number {
  const from = folderOf(context, oldFd, abi.RIGHTS_PATH_LINK_SOURCE)
  if (typeof from === 'number') return from
  const to = folderOf(context, newFd, abi.RIGHTS_PATH_LINK_TARGET)
  if (typeof to === 'number') return to
  if (oldFlags !== 0) return EINVAL
  const oldPath = context.memory.at(oldPointer, oldLength)
  const newPath = context.memory.at(newPointer, newLength)
  const copied = afterCopy(context)
  return copied !== ESUCCESS ? copied : orCopy(context, from, from.link(oldPath, to, newPath))
}

export function path_symlink(
  context: Context, targetPointer: number, targetLength: number, fd: number, pointer: number, length: number,
): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_SYMLINK)
  if (typeof folder === 'number') return folder
  return 0 - folder.symlink(context.memory.at(targetPointer, targetLength), context.memory.at(pointer, length))
}

/** A target that doesn't fit is cut off. */
export function path_readlink(
  context: Context, fd: number, pointer: number, length: number, buffer: number, bufferLength: number, out: number,
): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_READLINK)
  if (typeof folder === 'number') return folder
  const { memory } = context
  const path = memory.at(pointer, length)
  const to = memory.at(buffer, bufferLength)
  const outAt = memory.check(out, 4)
  const target = folder.readlink(path)
  if (typeof target === 'number') return -target
  const used = Math.min(target.length, to.length)
  to.set(target.subarray(0, used))
  memory.view.setUint32(outAt, used, true)
  return ESUCCESS
}

export function path_filestat_get(
  context: Context, fd: number, flags: number, pointer: number, length: number, out: number,
): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_FILESTAT_GET)
  if (typeof folder === 'number') return folder
  if (unknown(flags)) return EINVAL
  const { memory } = context
  const path = memory.at(pointer, length)
  const at = memory.check(out, FILESTAT_BYTES)
  const stat = folder.statAt(path, follows(flags))
  if (typeof stat === 'number') return -stat
  writeFilestat(memory, at, stat)
  return ESUCCESS
}

export function path_filestat_set_times(
  context: Context, fd: number, flags: number, pointer: number, length: number,
  atimLo: number, atimHi: number, mtimLo: number, mtimHi: number, fstflags: number,
): number {
  const folder = folderOf(context, fd, abi.RIGHTS_PATH_FILESTAT_SET_TIMES)
  if (typeof folder === 'number') return folder
  const times = readTimes(atimLo, atimHi, mtimLo, mtimHi, fstflags)
  if (typeof times === 'number') return times
  if (unknown(flags)) return EINVAL
  const path = context.memory.at(pointer, length)
  const copied = afterCopy(context)
  return copied !== ESUCCESS ? copied : orCopy(context, folder, folder.setTimesAt(path, follows(flags), times))
}

/** ESUCCESS if no copy is under way or it is done; else WAIT or its errno. */
function afterCopy(context: Context): number {
  // An operation that has begun is asked for its result; another isn't started here.
  return context.hasOperation ? context.awaitOperation(() => Promise.resolve(ESUCCESS)) : ESUCCESS
}

/** The errno of `result` (0 or a negated errno), or WAIT if it says that something is to be copied first. */
function orCopy(context: Context, folder: Directory, result: number): number {
  const copy = result === -EAGAIN ? folder.takePending() : undefined
  return copy === undefined ? 0 - result : context.awaitOperation(async () => 0 - await copy())
}

/** The folder of number `fd`, if it has `rights`; else an errno. */
function folderOf(context: Context, fd: number, rights: number): Directory | number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  if (!(entry.descriptor instanceof Directory)) return entry.descriptor.lost ?? ENOTDIR
  return (entry.rightsBase & rights) === rights ? entry.descriptor : ENOTCAPABLE
}

function follows(lookupflags: number): boolean {
  return (lookupflags & abi.LOOKUPFLAGS_SYMLINK_FOLLOW) !== 0
}

function unknown(lookupflags: number): boolean {
  return (lookupflags & ~abi.LOOKUPFLAGS_SYMLINK_FOLLOW) !== 0
}
