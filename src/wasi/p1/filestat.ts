// wasi/p1/filestat.ts: size, times and identity of what a descriptor stands for.
//
// Elsewhere: the same by path (path.ts, which uses writeFilestat and readTimes from here).

import { EBADF, EFBIG, EINVAL, ENOTSUP, ESUCCESS } from '../../base/errno.ts'
import type { Stat } from '../../services/descriptor.ts'
import type { Times } from '../../services/file/attributes.ts'
import { Directory } from '../../services/file/directory.ts'
import { File } from '../../services/file/file.ts'
import type { GuestMemory } from '../../services/guest_memory.ts'
import * as abi from './abi.ts'
import type { Context } from './context.ts'
import { lacks } from './descriptors.ts'

/** Bytes of a `filestat`. */
export const FILESTAT_BYTES = 64

/** Every descriptor has a filestat; a console or a socket has only its filetype. */
export function fd_filestat_get(context: Context, fd: number, out: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_FILESTAT_GET)
  if (lacking !== 0) return lacking
  const { descriptor } = entry!
  const at = context.memory.check(out, FILESTAT_BYTES)
  const stat = descriptor.stat?.() ?? { ...NO_STAT, filetype: descriptor.filetype }
  if (typeof stat === 'number') return -stat
  writeFilestat(context.memory, at, stat)
  return ESUCCESS
}

export function fd_filestat_set_size(context: Context, fd: number, lo: number, hi: number): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_FILESTAT_SET_SIZE)
  if (lacking !== 0) return lacking
  if (!(entry!.descriptor instanceof File)) return entry!.descriptor.lost ?? EINVAL
  // As the kernel: a size beyond 2^63 is negative to it, one beyond what a number holds is beyond any file.
  if (hi < 0) return EINVAL
  const size = hi * 4294967296 + (lo >>> 0)
  if (!Number.isSafeInteger(size)) return EFBIG
  return 0 - entry!.descriptor.setSize(size)
}

export function fd_filestat_set_times(
  context: Context, fd: number, atimLo: number, atimHi: number, mtimLo: number, mtimHi: number, flags: number,
): number {
  const entry = context.descriptors.get(fd)
  if (entry === undefined) return EBADF
  const lacking = lacks(entry, abi.RIGHTS_FD_FILESTAT_SET_TIMES)
  if (lacking !== 0) return lacking
  const times = readTimes(atimLo, atimHi, mtimLo, mtimHi, flags)
  if (typeof times === 'number') return times
  const { descriptor } = entry
  if (!(descriptor instanceof File || descriptor instanceof Directory)) return descriptor.lost ?? ENOTSUP
  return 0 - descriptor.setTimes(times)
}

/** The times that `flags` (FSTFLAGS_*) and the two timestamps ask for; EINVAL if a time is both given and "now". */
export function readTimes(
  atimLo: number, atimHi: number, mtimLo: number, mtimHi: number, flags: number,
): Times | typeof EINVAL {
  if ((flags & ~FSTFLAGS_ALL) !== 0) return EINVAL
  if ((flags & ATIM_BOTH) === ATIM_BOTH || (flags & MTIM_BOTH) === MTIM_BOTH) return EINVAL
  const has = (flag: number) => (flags & flag) !== 0
  return {
    atim: has(abi.FSTFLAGS_ATIM_NOW) ? 'now' : has(abi.FSTFLAGS_ATIM) ? u64(atimLo, atimHi) : undefined,
    mtim: has(abi.FSTFLAGS_MTIM_NOW) ? 'now' : has(abi.FSTFLAGS_MTIM) ? u64(mtimLo, mtimHi) : undefined,
  }
}

/**
 * Writes a `filestat` at `at`, which has been checked: dev u64 @0, ino u64 @8, filetype u8 @16, nlink u64 @24,
 * size u64 @32, atim u64 @40, mtim u64 @48, ctim u64 @56.
 */
export function writeFilestat(memory: GuestMemory, at: number, stat: Stat): void {
  memory.setU64(at, stat.dev)
  memory.setU64(at + 8, stat.ino)
  memory.setU64(at + 16, BigInt(stat.filetype))
  memory.setU64(at + 24, stat.nlink)
  memory.setU64(at + 32, stat.size)
  memory.setU64(at + 40, stat.atim)
  memory.setU64(at + 48, stat.mtim)
  memory.setU64(at + 56, stat.ctim)
}

function u64(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0)
}

const ATIM_BOTH = abi.FSTFLAGS_ATIM | abi.FSTFLAGS_ATIM_NOW
const MTIM_BOTH = abi.FSTFLAGS_MTIM | abi.FSTFLAGS_MTIM_NOW
const FSTFLAGS_ALL = ATIM_BOTH | MTIM_BOTH
const NO_STAT = { dev: 0n, ino: 0n, nlink: 0n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
