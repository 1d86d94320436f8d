// sys/linux_files.ts: the system calls on files, as their manual pages name them.
//
// A path is bytes without a NUL, shorter than PATH_BYTES_MAX: the caller has checked that (a longer one is a bug and
// throws). Answers are as everywhere in sys: ≥ 0, or a negated errno of base/errno.ts. Offsets are numbers, exact up
// to 2^53, except where they are cookies of the kernel. Elsewhere: how calls are made (libc.ts).
//
// Hot path in readv and writev: nothing is allocated for an offset that is a constant.

import { constants } from 'node:fs'
import { assert } from '../base/assert.ts'
import { EFAULT, ENOENT, EPERM } from '../base/errno.ts'
import { IOVECS_MAX, PATH_BYTES_MAX } from '../base/limits.ts'
import { Scratch, answer, bind, rawAddress } from './libc.ts'
import { errnoFromLinux } from './errno_linux.ts'

// Some differ between x86-64 and arm64, so that Node's table is asked; the others are the same on both.
export const { O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK, O_SYNC, O_DSYNC } = constants
export const { O_NOCTTY, O_DIRECTORY, O_NOFOLLOW } = constants
export const O_CLOEXEC = 0o2000000
export const O_PATH = 0o10000000
/** A file without a name in the folder opened; linkFd may give it one. */
export const O_TMPFILE = 0o20000000 | O_DIRECTORY

export const RESOLVE_NO_MAGICLINKS = 0x02
export const RESOLVE_BENEATH = 0x08

/** As a directory descriptor: the current folder. */
export const AT_FDCWD = -100
export const AT_SYMLINK_NOFOLLOW = 0x100
export const AT_REMOVEDIR = 0x200
const AT_SYMLINK_FOLLOW = 0x400
export const AT_EMPTY_PATH = 0x1000

/** Flag of preadv2: answer -EAGAIN rather than wait for the disk. */
export const RWF_NOWAIT = 0x08

export const UTIME_NOW = 0x3fffffff
export const UTIME_OMIT = 0x3ffffffe

/** Offset of readv and writev that means the descriptor's own, which they move. */
export const OFFSET_CURRENT = -1n

const SYS_openat2 = 437n
const SYS_cachestat = 451n
const SYS_getdents64 = process.arch === 'x64' ? 217n : 61n
const F_SETFL = 4
const F_SETSIG = 10
const F_SETLEASE = 1024
const F_WRLCK = 1
const F_UNLCK = 2
const SIGURG = 23
const FICLONE = 0x40049409n
const STATX_BASIC_STATS = 0x7ff

const native = bind({
  openat: { arguments: ['int32', 'pointer', 'int32', 'uint32'], return: 'int32' },
  syscall: { arguments: ['int64', 'int64', 'pointer', 'pointer', 'int64'], return: 'int64' },
  close: { arguments: ['int32'], return: 'int32' },
  read: { arguments: ['int32', 'pointer', 'uint32'], return: 'int32' },
  preadv2: { arguments: ['int32', 'pointer', 'int32', 'int64', 'int32'], return: 'int32' },
  pwritev2: { arguments: ['int32', 'pointer', 'int32', 'int64', 'int32'], return: 'int32' },
  lseek: { arguments: ['int32', 'int64', 'int32'], return: 'int64' },
  ftruncate: { arguments: ['int32', 'int64'], return: 'int32' },
  fallocate: { arguments: ['int32', 'int32', 'int64', 'int64'], return: 'int32' },
  posix_fadvise: { arguments: ['int32', 'int64', 'int64', 'int32'], return: 'int32' },
  fcntl: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
  ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' },
  fchmod: { arguments: ['int32', 'uint32'], return: 'int32' },
  fchownat: { arguments: ['int32', 'pointer', 'uint32', 'uint32', 'int32'], return: 'int32' },
  statx: { arguments: ['int32', 'pointer', 'int32', 'uint32', 'pointer'], return: 'int32' },
  mkdirat: { arguments: ['int32', 'pointer', 'uint32'], return: 'int32' },
  unlinkat: { arguments: ['int32', 'pointer', 'int32'], return: 'int32' },
  renameat: { arguments: ['int32', 'pointer', 'int32', 'pointer'], return: 'int32' },
  linkat: { arguments: ['int32', 'pointer', 'int32', 'pointer', 'int32'], return: 'int32' },
  symlinkat: { arguments: ['pointer', 'int32', 'pointer'], return: 'int32' },
  readlinkat: { arguments: ['int32', 'pointer', 'pointer', 'uint64'], return: 'int32' },
  utimensat: { arguments: ['int32', 'pointer', 'pointer', 'int32'], return: 'int32' },
})

// What lies where in `scratch`. Two paths, for the calls that take two.
const PATH_A = 0
const PATH_B = PATH_BYTES_MAX
const OPEN_HOW = 2 * PATH_BYTES_MAX     // struct open_how { u64 flags; u64 mode; u64 resolve; }
const TIMESPECS = OPEN_HOW + 64         // struct timespec[2]: access, modification
const STATX = TIMESPECS + 64            // struct statx, 256 bytes
const CACHESTAT = STATX + 256           // struct cachestat_range { u64 off; u64 len; }, then struct cachestat
const LINK = CACHESTAT + 64             // what readlinkat answers
const ENTRIES = LINK + PATH_BYTES_MAX   // what getdents64 answers
const ENTRIES_BYTES = 32 * 1024
const IOVECS = ENTRIES + ENTRIES_BYTES  // struct iovec[IOVECS_MAX]

const scratch = new Scratch(IOVECS + IOVECS_MAX * 16)
const kernelIovecs = new Uint32Array(scratch.bytes.buffer, IOVECS, IOVECS_MAX * 4)

// Addresses of the places above, taken once: a BigInt for each call would be an allocation.
type Place = 'a' | 'b' | 'how' | 'times' | 'statx' | 'range' | 'cachestat' | 'link' | 'entries' | 'iovecs'
type Places = Record<Place, bigint>
let at: Places | undefined
function places(): Places {
  if (at !== undefined) return at
  const base = scratch.address
  const place = (offset: number) => base + BigInt(offset)
  at = { a: place(PATH_A), b: place(PATH_B), how: place(OPEN_HOW), times: place(TIMESPECS), statx: place(STATX),
    range: place(CACHESTAT), cachestat: place(CACHESTAT + 16), link: place(LINK), entries: place(ENTRIES),
    iovecs: place(IOVECS) }
  return at
}

// Copies `path` with a final NUL to PATH_A or PATH_B.
function put(place: number, path: Uint8Array): void {
  assert(path.length < PATH_BYTES_MAX, 'a path fits', path.length)
  scratch.bytes.set(path, place)
  scratch.bytes[place + path.length] = 0
}

// SAFETY, for every call below: pointers are into `scratch`, which lives as long as the thread; paths end with a NUL;
// lengths given to the kernel are those of the places. Only readv and writev point elsewhere, and say why they may.

export function openat(dirfd: number, path: Uint8Array, flags: number, mode: number): number {
  put(PATH_A, path)
  return answer(native.openat(dirfd, places().a, flags | O_CLOEXEC, mode))
}

/** openat2(2), since Linux 5.6: `resolve` is RESOLVE_*. -ENOSYS or -EPERM where it isn't to be had. */
export function openat2(dirfd: number, path: Uint8Array, flags: number, mode: number, resolve: number): number {
  put(PATH_A, path)
  const { view } = scratch
  view.setUint32(OPEN_HOW, (flags | O_CLOEXEC) >>> 0, true)
  // The kernel refuses a mode where nothing may be created.
  view.setUint32(OPEN_HOW + 8, (flags & O_CREAT) !== 0 ? mode : 0, true)
  view.setUint32(OPEN_HOW + 16, resolve, true)
  return answer(Number(native.syscall(SYS_openat2, BigInt(dirfd), places().a, places().how, 24n)))
}

export function close(fd: number): number {
  return answer(native.close(fd))
}

/**
 * read(2) of `length` bytes into `memory` at `offset`. Node calls C functions of up to three arguments in a third of
 * the time that it takes for more, so that this is worth having beside readv.
 */
export function read(fd: number, memory: Uint8Array, offset: number, length: number): number {
  if (!(offset + length <= memory.length)) return -EFAULT
  const address = baseOf(memory) + offset
  if (address !== lastAddress) {
    lastAddress = address
    lastPointer = BigInt(address)
  }
  // SAFETY: the range is inside `memory`, which can't be unmapped before the call returns: see readv.
  return answer(native.read(fd, lastPointer, length))
}

// Programs read into one buffer again and again: its address is made a BigInt once.
let lastAddress = -1
let lastPointer = 0n

/** cachestat(2), since Linux 6.5: how many pages of [offset, offset + length) are in the page cache. */
export function cachedPages(fd: number, offset: number, length: number): number {
  const { view } = scratch
  view.setBigUint64(CACHESTAT, BigInt(offset), true)
  view.setBigUint64(CACHESTAT + 8, BigInt(length), true)
  const { range, cachestat } = places()
  const result = answer(Number(native.syscall(SYS_cachestat, BigInt(fd), range, cachestat, 0n)))
  return result < 0 ? result : Number(view.getBigUint64(CACHESTAT + 16, true))
}

/**
 * preadv2(2) into `count` ranges of `memory`. At most 2^31 - 1 bytes in all.
 * Zero ranges, or an empty memory, still ask the kernel whether `fd` may be read.
 */
export function readv(
  fd: number, memory: Uint8Array, offsets: Uint32Array, lengths: Uint32Array, count: number,
  offset: bigint, flags: number,
): number {
  if (!point(memory, offsets, lengths, count)) return -EFAULT
  // SAFETY: `point` proved that every range is inside `memory`. It can't be unmapped before the call returns:
  // WebAssembly memory never shrinks, and its guest, the only one to grow it, doesn't run meanwhile.
  return answer(native.preadv2(fd, places().iovecs, count, offset, flags))
}

/** pwritev2(2) from `count` ranges of `memory`. */
export function writev(
  fd: number, memory: Uint8Array, offsets: Uint32Array, lengths: Uint32Array, count: number, offset: bigint,
): number {
  if (!point(memory, offsets, lengths, count)) return -EFAULT
  // SAFETY: as in readv.
  return answer(native.pwritev2(fd, places().iovecs, count, offset, 0))
}

// Where a guest's memory begins. The key is the view that its owner takes anew when memory.grow detaches the buffer.
const bases = new WeakMap<Uint8Array, number>()

function baseOf(memory: Uint8Array): number {
  let base = bases.get(memory)
  if (base === undefined) {
    // A detached or empty memory has no address; every range in it has length 0.
    base = memory.length === 0 ? Number(scratch.address) : Number(rawAddress(memory.buffer)) + memory.byteOffset
    if (memory.length > 0) bases.set(memory, base)
  }
  return base
}

// Fills struct iovec[count]; false if a range isn't inside `memory`.
function point(memory: Uint8Array, offsets: Uint32Array, lengths: Uint32Array, count: number): boolean {
  const base = baseOf(memory)
  for (let i = 0, to = 0; i < count; i++, to += 4) {
    const length = lengths[i]!
    if (!(offsets[i]! + length <= memory.length)) return false
    const address = base + offsets[i]!
    kernelIovecs[to] = address >>> 0
    kernelIovecs[to + 1] = (address / 4294967296) >>> 0
    kernelIovecs[to + 2] = length
    kernelIovecs[to + 3] = 0
  }
  return true
}

export function lseek(fd: number, offset: number | bigint, whence: number): number {
  return answer(Number(native.lseek(fd, BigInt(offset), whence)))
}

export function ftruncate(fd: number, size: number): number {
  return answer(native.ftruncate(fd, BigInt(size)))
}

/** fallocate(2), mode 0: room for [offset, offset + length), and the file grows to it if it is shorter. */
export function fallocate(fd: number, offset: number, length: number): number {
  return answer(native.fallocate(fd, 0, BigInt(offset), BigInt(length)))
}

/** posix_fadvise(2), which answers the errno itself. */
export function fadvise(fd: number, offset: number, length: number, advice: number): number {
  const errno = native.posix_fadvise(fd, BigInt(offset), BigInt(length), advice)
  return errno === 0 ? 0 : -errnoFromLinux(errno)
}

/** fcntl(2) F_SETFL: of `flags` (O_*), Linux changes APPEND, ASYNC, DIRECT, NOATIME and NONBLOCK. */
export function setStatusFlags(fd: number, flags: number): number {
  return answer(native.fcntl(fd, F_SETFL, flags))
}

/**
 * True if `fd` is the only open descriptor of its file, in any process: a lease is granted only then. It is given back
 * at once. Who opens the file at that moment waits, and we are told by SIGURG, which nobody minds.
 */
export function isOpenOnlyHere(fd: number): boolean {
  native.fcntl(fd, F_SETSIG, SIGURG)
  if (native.fcntl(fd, F_SETLEASE, F_WRLCK) < 0) return false
  native.fcntl(fd, F_SETLEASE, F_UNLCK)
  return true
}

/** ioctl FICLONE: `to` gets the content of `from` and shares its blocks. Most file systems can't: a negated errno. */
export function reflink(to: number, from: number): number {
  return answer(native.ioctl(to, FICLONE, BigInt(from)))
}

export function fchmod(fd: number, mode: number): number {
  return answer(native.fchmod(fd, mode))
}

/** fchownat(2): user and group both become `uid`. */
export function chown(dirfd: number, path: Uint8Array, uid: number, flags: number): number {
  put(PATH_A, path)
  return answer(native.fchownat(dirfd, places().a, uid, uid, flags))
}

/** statx(2); the answer is read with `statxMode` and `statxResult` until the next call. */
export function statx(dirfd: number, path: Uint8Array, flags: number): number {
  put(PATH_A, path)
  return answer(native.statx(dirfd, places().a, flags, STATX_BASIC_STATS, places().statx))
}

export const S_IFMT = 0o170000
export const S_IFDIR = 0o040000
export const S_IFREG = 0o100000
export const S_IFLNK = 0o120000
export const S_IFCHR = 0o020000
export const S_IFBLK = 0o060000
export const S_IFSOCK = 0o140000
/** The sticky bit: on a regular file the kernel gives it no meaning. */
export const S_ISVTX = 0o1000

/** stx_mode of the last statx: S_IF* and permissions. */
export function statxMode(): number {
  return scratch.view.getUint16(STATX + 28, true)
}

/** stx_size of the last statx. */
export function statxSize(): number {
  return Number(scratch.view.getBigUint64(STATX + 40, true))
}

/** stx_nlink of the last statx. */
export function statxLinks(): number {
  return scratch.view.getUint32(STATX + 16, true)
}

/** Which inode the last statx was about: its number's halves and its device's, to `out`, four of them. */
export function statxIdentity(out: Int32Array): void {
  const { view } = scratch
  out[0] = view.getInt32(STATX + 32, true)
  out[1] = view.getInt32(STATX + 36, true)
  out[2] = view.getInt32(STATX + 136, true)
  out[3] = view.getInt32(STATX + 140, true)
}

/** The last statx. Times in nanoseconds since 1970; earlier ones are 0, since WASI's are unsigned. */
export function statxResult(): {
  dev: bigint; ino: bigint; nlink: bigint; size: bigint; atim: bigint; mtim: bigint; ctim: bigint
} {
  const { view } = scratch
  const time = (offset: number): bigint => {
    const seconds = view.getBigInt64(STATX + offset, true)
    return seconds < 0n ? 0n : seconds * 1_000_000_000n + BigInt(view.getUint32(STATX + offset + 8, true))
  }
  return {
    dev: (BigInt(view.getUint32(STATX + 136, true)) << 32n) | BigInt(view.getUint32(STATX + 140, true)),
    ino: view.getBigUint64(STATX + 32, true),
    nlink: BigInt(view.getUint32(STATX + 16, true)),
    size: view.getBigUint64(STATX + 40, true),
    atim: time(64), ctim: time(96), mtim: time(112),
  }
}

export function mkdirat(dirfd: number, path: Uint8Array, mode: number): number {
  put(PATH_A, path)
  return answer(native.mkdirat(dirfd, places().a, mode))
}

export function unlinkat(dirfd: number, path: Uint8Array, flags: number): number {
  put(PATH_A, path)
  return answer(native.unlinkat(dirfd, places().a, flags))
}

export function renameat(from: number, fromPath: Uint8Array, to: number, toPath: Uint8Array): number {
  put(PATH_A, fromPath)
  put(PATH_B, toPath)
  return answer(native.renameat(from, places().a, to, places().b))
}

export function linkat(from: number, fromPath: Uint8Array, to: number, toPath: Uint8Array): number {
  put(PATH_A, fromPath)
  put(PATH_B, toPath)
  return answer(native.linkat(from, places().a, to, places().b, 0))
}

/** Gives the open file `fd` the name `path`: a file with a name already, or one of O_TMPFILE. */
export function linkFd(fd: number, dirfd: number, path: Uint8Array): number {
  put(PATH_A, new Uint8Array(0))
  put(PATH_B, path)
  const { a, b } = places()
  const direct = answer(native.linkat(fd, a, dirfd, b, AT_EMPTY_PATH))
  if (direct !== -ENOENT && direct !== -EPERM) return direct
  // Kernels before 6.10 allow that to root only; all allow it by way of /proc.
  put(PATH_A, Buffer.from(`/proc/self/fd/${fd}`))
  return answer(native.linkat(AT_FDCWD, a, dirfd, b, AT_SYMLINK_FOLLOW))
}

export function symlinkat(target: Uint8Array, dirfd: number, path: Uint8Array): number {
  put(PATH_A, target)
  put(PATH_B, path)
  return answer(native.symlinkat(places().a, dirfd, places().b))
}

/** readlinkat(2): the length of the target, which `linkTarget` then shows. */
export function readlinkat(dirfd: number, path: Uint8Array): number {
  put(PATH_A, path)
  return answer(native.readlinkat(dirfd, places().a, places().link, BigInt(PATH_BYTES_MAX)))
}

/** What the last readlinkat answered; good until the next. */
export function linkTarget(length: number): Uint8Array {
  return scratch.bytes.subarray(LINK, LINK + length)
}

/** A time for utimensat: nanoseconds since 1970, or one of UTIME_NOW and UTIME_OMIT as a number. */
export type Time = bigint | typeof UTIME_NOW | typeof UTIME_OMIT

export function utimensat(dirfd: number, path: Uint8Array, atim: Time, mtim: Time, flags: number): number {
  put(PATH_A, path)
  putTime(TIMESPECS, atim)
  putTime(TIMESPECS + 16, mtim)
  return answer(native.utimensat(dirfd, places().a, places().times, flags))
}

function putTime(place: number, time: Time): void {
  scratch.view.setBigInt64(place, typeof time === 'bigint' ? time / 1_000_000_000n : 0n, true)
  scratch.view.setBigInt64(place + 8, typeof time === 'bigint' ? time % 1_000_000_000n : BigInt(time), true)
}

/** getdents64(2) of up to `size` bytes: how many of `entries` are filled; 0 at the end. */
export function getdents64(fd: number, size: number): number {
  const room = Math.max(512, Math.min(size, ENTRIES_BYTES))
  return answer(Number(native.syscall(SYS_getdents64, BigInt(fd), places().entries, BigInt(room), 0n)))
}

/** struct linux_dirent64 one after another: u64 d_ino, i64 d_off, u16 d_reclen, u8 d_type, d_name with a NUL. */
export const entries = scratch.bytes.subarray(ENTRIES, ENTRIES + ENTRIES_BYTES)
