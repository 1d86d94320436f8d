// wasi/p1/fd.ts: reading, writing, seeking and describing descriptors.
//
// Elsewhere: file attributes (filestat.ts), folders (readdir.ts, path.ts), sockets' own calls (sock.ts).
// Hot path in fd_read and fd_write: no allocation, no closures. Everything is checked before anything moves.

import { EAGAIN, EBADF, EINVAL, ENOTCAPABLE, ENOTDIR, ENOTSUP, EOVERFLOW, EPIPE, ESPIPE, ESUCCESS,
  ENAMETOOLONG } from '../../base/errno.ts'
import { FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM } from '../../services/descriptor.ts'
import * as abi from './abi.ts'
import { STOP, type Context } from './context.ts'
import { lacks, type Entry } from './descriptors.ts'
import { wouldBlock } from './nonblock.ts'

const SIGPIPE = 13

export function fd_read(context: Context, fd: number, iovs: number, count: number, out: number): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  if ((entry.rightsBase & abi.RIGHTS_FD_READ) === 0) return entry.descriptor.read === undefined ? EBADF : ENOTCAPABLE
  const { descriptor } = entry
  if (descriptor.read === undefined) return EBADF
  const { memory, iovecs } = context
  const at = memory.check(out, 4)
  if (!iovecs.load(memory, iovs, count)) return EINVAL
  if (iovecs.total === 0) return answer(context, at, 0)
  const result = descriptor.read(iovecs)
  if (result === -EAGAIN) return refused(context, entry) ?? context.awaitReadable(descriptor)
  return answer(context, at, result)
}

export function fd_write(context: Context, fd: number, iovs: number, count: number, out: number): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  if ((entry.rightsBase & abi.RIGHTS_FD_WRITE) === 0) return entry.descriptor.write === undefined ? EBADF : ENOTCAPABLE
  const { descriptor } = entry
  if (descriptor.write === undefined) return EBADF
  const { memory, iovecs } = context
  const at = memory.check(out, 4)
  if (!iovecs.load(memory, iovs, count)) return EINVAL
  if (iovecs.total === 0) return answer(context, at, 0)
  // A stream may take the bytes while it says "later", so that a guest that doesn't wait must not begin.
  if ((entry.flags & abi.FDFLAGS_NONBLOCK) !== 0 && descriptor.pollWrite?.() === -EAGAIN) return refused(context,
    entry)!
  const result = descriptor.write(iovecs)
  if (result === -EAGAIN) return refused(context, entry) ?? context.awaitWritable(descriptor)
  // A console whose reader is gone ends the guest, as a pipe does on Unix; a connection only reports it.
  if (result === -EPIPE && descriptor.filetype !== FILETYPE_SOCKET_STREAM) {
    context.end = { kind: 'signal', signal: SIGPIPE }
    return STOP
  }
  return answer(context, at, result)
}

export function fd_pread(context: Context, fd: number, iovs: number, count: number, lo: number, hi: number,
  out: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_READ | abi.RIGHTS_FD_SEEK)
  if (lacking !== 0) return notPositioned(entry, lacking)
  const file = entry!.descriptor
  if (file.pread === undefined) return ESPIPE
  const offset = u64(lo, hi)
  const at = context.memory.check(out, 4)
  if (!Number.isSafeInteger(offset) || !context.iovecs.load(context.memory, iovs, count)) return EINVAL
  if (context.iovecs.total === 0) return answer(context, at, 0)
  const result = file.pread(context.iovecs, offset)
  if (result === -EAGAIN) return context.awaitReadable(file)
  return answer(context, at, result)
}

export function fd_pwrite(context: Context, fd: number, iovs: number, count: number, lo: number, hi: number,
  out: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_WRITE | abi.RIGHTS_FD_SEEK)
  if (lacking !== 0) return notPositioned(entry, lacking)
  const file = entry!.descriptor
  if (file.pwrite === undefined) return ESPIPE
  const offset = u64(lo, hi)
  const at = context.memory.check(out, 4)
  if (!Number.isSafeInteger(offset) || !context.iovecs.load(context.memory, iovs, count)) return EINVAL
  if (context.iovecs.total === 0) return answer(context, at, 0)
  const result = file.pwrite(context.iovecs, offset)
  if (result === -EAGAIN) return context.awaitWritable(file)
  return answer(context, at, result)
}

export function fd_seek(context: Context, fd: number, lo: number, hi: number, whence: number, out: number): number {
  const entry = context.descriptors.get(fd)
  const tells = whence === abi.WHENCE_CUR && lo === 0 && hi === 0
  // The right to seek implies the right to tell.
  const lacking = lacks(entry, tells && !has(entry, abi.RIGHTS_FD_SEEK) ? abi.RIGHTS_FD_TELL : abi.RIGHTS_FD_SEEK)
  if (lacking !== 0) return notPositioned(entry, lacking)
  const file = entry!.descriptor
  if (file.seek === undefined) return file.filetype === FILETYPE_DIRECTORY ? EBADF : ESPIPE
  if (whence < abi.WHENCE_SET || whence > abi.WHENCE_END) return EINVAL
  const offset = hi * 4294967296 + (lo >>> 0)
  if (!Number.isSafeInteger(offset)) return offset < 0 ? EINVAL : EOVERFLOW
  context.memory.check(out, 8)
  const result = file.seek(offset, whence)
  if (result < 0) return -result
  context.memory.setU64Number(out, result)
  return ESUCCESS
}

export function fd_tell(context: Context, fd: number, out: number): number {
  return fd_seek(context, fd, 0, 0, abi.WHENCE_CUR, out)
}

export function fd_close(context: Context, fd: number): number {
  return 0 - context.descriptors.close(fd)
}

export function fd_renumber(context: Context, from: number, to: number): number {
  return 0 - context.descriptors.renumber(from, to)
}

export function fd_sync(context: Context, fd: number): number {
  return flush(context, fd, abi.RIGHTS_FD_SYNC, false)
}

export function fd_datasync(context: Context, fd: number): number {
  // The right to sync implies this one.
  const syncs = has(context.descriptors.get(fd), abi.RIGHTS_FD_SYNC)
  return flush(context, fd, syncs ? abi.RIGHTS_FD_SYNC : abi.RIGHTS_FD_DATASYNC, true)
}

export function fd_advise(context: Context, fd: number, offLo: number, offHi: number, lenLo: number, lenHi: number,
  advice: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_ADVISE)
  if (lacking !== 0) return notPositioned(entry, lacking)
  const file = entry!.descriptor
  if (file.advise === undefined) return ESPIPE
  if (advice < 0 || advice > 5) return EINVAL
  const offset = u64(offLo, offHi)
  const length = u64(lenLo, lenHi)
  if (!Number.isSafeInteger(offset + length)) return EINVAL
  return 0 - file.advise(offset, length, advice)
}

export function fd_allocate(context: Context, fd: number, offLo: number, offHi: number, lenLo: number,
  lenHi: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_ALLOCATE)
  if (lacking !== 0) return notPositioned(entry, lacking)
  const file = entry!.descriptor
  if (file.allocate === undefined) return ESPIPE
  const offset = u64(offLo, offHi)
  const length = u64(lenLo, lenHi)
  if (length === 0 || !Number.isSafeInteger(offset + length)) return EINVAL
  return 0 - file.allocate(offset, length)
}

// fdstat, 24 bytes: filetype u8 @0, flags u16 @2, rights_base u64 @8, rights_inheriting u64 @16.
export function fd_fdstat_get(context: Context, fd: number, out: number): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  const { memory } = context
  const at = memory.check(out, 24)
  memory.bytes.fill(0, at, at + 24)
  memory.setU8(at, entry.descriptor.filetype)
  memory.setU16(at + 2, entry.flags)
  memory.setU32(at + 8, entry.rightsBase)
  memory.setU32(at + 16, entry.rightsInheriting)
  return ESUCCESS
}

export function fd_fdstat_set_flags(context: Context, fd: number, flags: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_FDSTAT_SET_FLAGS)
  if (lacking !== 0) return lacking
  if ((flags & ~abi.FDFLAGS_ALL) !== 0) return EINVAL
  const changed = flags ^ entry!.flags
  if ((changed & (abi.FDFLAGS_DSYNC | abi.FDFLAGS_RSYNC | abi.FDFLAGS_SYNC)) !== 0) return ENOTSUP
  const { descriptor } = entry!
  if ((changed & abi.FDFLAGS_APPEND) !== 0 && descriptor.setAppend !== undefined) {
    const result = descriptor.setAppend((flags & abi.FDFLAGS_APPEND) !== 0)
    if (result < 0) return -result
  }
  entry!.flags = flags
  return ESUCCESS
}

/** Rights can only be given up. */
export function fd_fdstat_set_rights(context: Context, fd: number, baseLo: number, baseHi: number, inheritingLo: number,
  inheritingHi: number): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  if (baseHi !== 0 || inheritingHi !== 0) return ENOTCAPABLE
  if ((baseLo & ~entry.rightsBase) !== 0 || (inheritingLo & ~entry.rightsInheriting) !== 0) return ENOTCAPABLE
  entry.rightsBase = baseLo
  entry.rightsInheriting = inheritingLo
  return ESUCCESS
}

// prestat, 8 bytes: tag u8 @0 (PREOPENTYPE_DIR), length of the name u32 @4.
export function fd_prestat_get(context: Context, fd: number, out: number): number {
  const entry = context.descriptors.get(fd)
  if (entry?.preopen === undefined) return EBADF
  const at = context.memory.check(out, 8)
  context.memory.setU32(at, abi.PREOPENTYPE_DIR)
  context.memory.setU32(at + 4, entry.preopen.length)
  return ESUCCESS
}

export function fd_prestat_dir_name(context: Context, fd: number, pointer: number, length: number): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  if (entry.preopen === undefined) return ENOTDIR
  if (length >>> 0 < entry.preopen.length) return ENAMETOOLONG
  context.memory.at(pointer, entry.preopen.length).set(entry.preopen)
  return ESUCCESS
}

/** Writes the count of a transfer, or answers its errno. */
function answer(context: Context, at: number, result: number): number {
  if (result < 0) return -result
  context.memory.view.setUint32(at, result, true)
  return ESUCCESS
}

/** What a guest that doesn't wait is told; undefined if it waits. */
function refused(context: Context, entry: Entry): number | undefined {
  // A file's disk is waited for even by a guest that set NONBLOCK, as Linux does: "later" is not an answer for files.
  return entry.descriptor.filetype === FILETYPE_REGULAR_FILE ? undefined : wouldBlock(context, entry)
}

function has(entry: Entry | undefined, right: number): boolean {
  return entry !== undefined && (entry.rightsBase & right) !== 0
}

function flush(context: Context, fd: number, right: number, dataOnly: boolean): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, right)
  if (lacking !== 0) return lacking
  const { descriptor } = entry!
  if (descriptor.sync === undefined) return EINVAL
  return context.awaitOperation(async () => 0 - await descriptor.sync!(dataOnly))
}

/** What a stream answers to a call for files: it has no position, whatever its rights. */
function notPositioned(entry: Entry | undefined, lacking: number): number {
  if (entry === undefined) return EBADF
  const { filetype } = entry.descriptor
  return filetype === FILETYPE_REGULAR_FILE || filetype === FILETYPE_DIRECTORY ? lacking : ESPIPE
}

function u64(lo: number, hi: number): number {
  return (hi >>> 0) * 4294967296 + (lo >>> 0)
}
