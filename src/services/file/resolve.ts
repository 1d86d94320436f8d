// services/file/resolve.ts: opens what a guest's path means beneath a folder, and nothing outside it.
//
// Two resolvers with one behaviour. Neither can be tricked by another process that renames things meanwhile.
//   openat2  The kernel walks, with RESOLVE_BENEATH: one system call. `..` beyond the folder and absolute links are
//            EXDEV, which we answer as EPERM. Magic links of /proc are refused.
//   walk     For kernels that lack it (before 5.6) or forbid it (a container's seccomp filter): we walk, name by name,
//            with O_NOFOLLOW. A symbolic link is read and its names are put before the rest. `..` goes back to the
//            descriptor that we came from, never to what the kernel calls the parent.
// They differ where a folder is moved while it is walked: openat2 sees the new place, the walk the old one. Both stay
// beneath.
//
// A path has been checked (refusePath). Flags are O_*; O_NOFOLLOW means the last name, and only without a final slash.

import { EAGAIN, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOSYS, ENOTDIR, EPERM, EXDEV } from '../../base/errno.ts'
import { LINKS_MAX, OPENAT2_TRIES_MAX, PATH_BYTES_MAX, WALK_DEPTH_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import { SLASH, isDotDot, isDots, splitPath } from './paths.ts'

/** How paths are resolved: see the head of the file. */
export type Resolver = 'openat2' | 'walk'

/** Opens `path` beneath the host's descriptor `root`: the new descriptor, or a negated errno. */
export function openBeneath(resolver: Resolver, root: number, path: Uint8Array, flags: number, mode: number): number {
  return resolver === 'openat2' ? openByKernel(root, path, flags, mode) : walk(root, path, flags, mode)
}

/** The best resolver for this kernel and this process. */
export function bestResolver(root: number): Resolver {
  const fd = sys.openat2(root, DOT, sys.O_PATH, 0, BENEATH)
  if (fd === -ENOSYS || fd === -EPERM) return 'walk'
  if (fd >= 0) sys.close(fd)
  return 'openat2'
}

const BENEATH = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_MAGICLINKS

const DOT = Uint8Array.of(0x2e)

function openByKernel(root: number, path: Uint8Array, flags: number, mode: number): number {
  // openat2 refuses a mode that nothing is created with.
  const created = (flags & sys.O_CREAT) !== 0 ? mode : 0
  for (let i = 0; i < OPENAT2_TRIES_MAX; i++) {
    const fd = sys.openat2(root, path, flags, created, BENEATH)
    if (fd === -EXDEV) return -EPERM
    if (fd !== -EAGAIN) return fd
  }
  return walk(root, path, flags, mode)
}

// `folders` are the descriptors from `root` (which isn't ours to close) down to where we are.
function walk(root: number, path: Uint8Array, flags: number, mode: number): number {
  const folders = [root]
  try {
    return walkFrom(folders, path, flags, mode)
  } finally {
    for (let i = 1; i < folders.length; i++) sys.close(folders[i]!)
  }
}

// Each round goes down to the last name, or to a link on the way, whose target then stands before what is left.
function walkFrom(folders: number[], path: Uint8Array, flags: number, mode: number): number {
  let rest = path
  for (let links = 0; links <= LINKS_MAX; links++) {
    const { parent, name, trailing } = splitPath(rest)
    const blocked = descend(folders, parent)
    if (typeof blocked === 'number') {
      if (blocked < 0) return blocked
      const here = folders.at(-1)!
      if (isDots(name)) return openDots(folders, name, flags)
      const fd = openLast(here, name, trailing, flags, mode)
      if (fd !== -ELOOP || (!trailing && (flags & sys.O_NOFOLLOW) !== 0)) return fd
      const target = readTarget(here, name)
      // It was a link a moment ago and isn't now: somebody else changes the folder. Look again, within the same limit.
      if (typeof target === 'number' && target !== -EINVAL) return target
      rest = joined(typeof target === 'number' ? name : target, trailing ? SLASH_ONLY : NOTHING)
    } else {
      rest = joined(blocked.target, joined(blocked.rest, joined(name, trailing ? SLASH_ONLY : NOTHING)))
    }
  }
  return -ELOOP
}

const SLASH_ONLY = Uint8Array.of(SLASH)
const NOTHING = new Uint8Array(0)

// Goes down the names of `parent`. 0 when done, a negated errno, or the link that stands in the way and what is left.
function descend(folders: number[], parent: Uint8Array): number | { target: Uint8Array; rest: Uint8Array } {
  for (let start = 0; start < parent.length;) {
    const slash = parent.indexOf(SLASH, start)
    const end = slash < 0 ? parent.length : slash
    const name = parent.subarray(start, end)
    start = end + 1
    const entered = enter(folders, name)
    if (entered === -ELOOP) {
      const target = readTarget(folders.at(-1)!, name)
      if (target === -EINVAL) return -ENOTDIR
      if (typeof target === 'number') return target
      return { target, rest: joined(SLASH_ONLY, parent.subarray(start)) }
    }
    if (entered < 0) return entered
  }
  return 0
}

// Enters the folder `name`: 0, a negated errno, or -ELOOP if it may be a link.
function enter(folders: number[], name: Uint8Array): number {
  if (name.length === 0) return 0
  if (isDots(name)) {
    if (!isDotDot(name)) return 0
    if (folders.length === 1) return -EPERM
    sys.close(folders.pop()!)
    return 0
  }
  if (folders.length >= WALK_DEPTH_MAX) return -ENAMETOOLONG
  const fd = sys.openat(folders.at(-1)!, name, sys.O_PATH | sys.O_DIRECTORY | sys.O_NOFOLLOW, 0)
  // With O_DIRECTORY a link is "not a folder" to the kernel: reading it tells which.
  if (fd === -ENOTDIR) return -ELOOP
  if (fd < 0) return fd
  folders.push(fd)
  return 0
}

// '.' or '..' as the last name: the folder that we are in, or came from, opened again with the flags asked for.
function openDots(folders: number[], name: Uint8Array, flags: number): number {
  const entered = enter(folders, name)
  if (entered < 0) return entered
  if ((flags & sys.O_CREAT) !== 0) return -EISDIR
  return sys.openat(folders.at(-1)!, DOT, flags & ~sys.O_NOFOLLOW, 0)
}

// The last name, not following: -ELOOP if it is a link that the caller may want followed.
function openLast(folder: number, name: Uint8Array, trailing: boolean, flags: number, mode: number): number {
  if (trailing && (flags & sys.O_CREAT) !== 0) return -EISDIR
  const wanted = flags | sys.O_NOFOLLOW | (trailing ? sys.O_DIRECTORY : 0)
  const fd = sys.openat(folder, name, wanted, mode)
  const follows = trailing || (flags & sys.O_NOFOLLOW) === 0
  if (!follows) return fd
  if (fd === -ENOTDIR && (wanted & sys.O_DIRECTORY) !== 0) return isLink(folder, name) ? -ELOOP : -ENOTDIR
  // O_PATH with O_NOFOLLOW opens the link itself.
  if (fd >= 0 && (flags & sys.O_PATH) !== 0 && sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH) === 0 &&
    (sys.statxMode() & sys.S_IFMT) === sys.S_IFLNK) {
    sys.close(fd)
    return -ELOOP
  }
  return fd
}

function isLink(folder: number, name: Uint8Array): boolean {
  return sys.readlinkat(folder, name) >= 0
}

// What the link `name` holds; -EINVAL if it isn't one, -EPERM if it leads to an absolute path.
function readTarget(folder: number, name: Uint8Array): Uint8Array | number {
  const length = sys.readlinkat(folder, name)
  if (length < 0) return length
  if (length === 0) return -ENOENT
  if (length >= PATH_BYTES_MAX) return -ENAMETOOLONG
  const target = sys.linkTarget(length).slice()
  return target[0] === SLASH ? -EPERM : target
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  if (second.length === 0) return first
  const both = new Uint8Array(first.length + second.length)
  both.set(first)
  both.set(second, first.length)
  return both
}
