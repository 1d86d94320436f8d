// services/file/attributes.ts: what stat tells and what utimens sets, for files, folders and links alike.

import { EINVAL } from '../../base/errno.ts'
import * as sys from '../../sys/linux_files.ts'
import {
  FILETYPE_BLOCK_DEVICE, FILETYPE_CHARACTER_DEVICE, FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM,
  FILETYPE_SYMBOLIC_LINK, FILETYPE_UNKNOWN, type Stat,
} from '../descriptor.ts'

/** Access and modification time to set: nanoseconds since 1970, 'now', or undefined to leave it. */
export type Times = { atim: bigint | 'now' | undefined; mtim: bigint | 'now' | undefined }

/** What the host's descriptor `fd` stands for, or a negated errno. O_PATH is enough. */
export function statOf(fd: number): Stat | number {
  const result = sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
  return result < 0 ? result : { filetype: filetypeOf(sys.statxMode()), ...sys.statxResult() }
}

/** The filetype of WASI for a mode of Linux. A FIFO has none of its own there. */
export function filetypeOf(mode: number): number {
  return FILETYPES.get(mode & sys.S_IFMT) ?? FILETYPE_UNKNOWN
}

/** Sets the times of what `fd` stands for, which may be a link opened with O_PATH (Linux 5.8): 0 or a negated errno. */
export function timesOf(fd: number, { atim, mtim }: Times): number {
  const kernel = (time: bigint | 'now' | undefined) =>
    time === undefined ? sys.UTIME_OMIT : time === 'now' ? sys.UTIME_NOW : time
  if (tooLate(atim) || tooLate(mtim)) return -EINVAL
  return sys.utimensat(fd, NOTHING, kernel(atim), kernel(mtim), sys.AT_EMPTY_PATH)
}

// The kernel counts seconds in 64 bits, signed; nanoseconds of 64 bits always fit, but not those of a careless caller.
function tooLate(time: bigint | 'now' | undefined): boolean {
  return typeof time === 'bigint' && (time < 0n || time >= 1n << 64n)
}

const NOTHING = new Uint8Array(0)

const FILETYPES = new Map([
  [sys.S_IFREG, FILETYPE_REGULAR_FILE],
  [sys.S_IFDIR, FILETYPE_DIRECTORY],
  [sys.S_IFLNK, FILETYPE_SYMBOLIC_LINK],
  [sys.S_IFCHR, FILETYPE_CHARACTER_DEVICE],
  [sys.S_IFBLK, FILETYPE_BLOCK_DEVICE],
  [sys.S_IFSOCK, FILETYPE_SOCKET_STREAM],
])
