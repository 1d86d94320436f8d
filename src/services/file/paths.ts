// services/file/paths.ts: a guest's path as bytes: what is refused, and where its last name begins.
//
// Paths are relative to a descriptor. What they mean is decided by resolve.ts; here nothing is looked up.

import { EILSEQ, EINVAL, ENAMETOOLONG, ENOENT, EPERM } from '../../base/errno.ts'
import { PATH_BYTES_MAX } from '../../base/limits.ts'
import { isUtf8 } from 'node:buffer'

export const SLASH = 0x2f
const DOT = 0x2e

/** A path split before its last name: `parent` is empty if there is nothing before it. */
export type Split = {
  parent: Uint8Array
  /** The last name with no slash; '.' and '..' are possible, and empty only for a path of slashes. */
  name: Uint8Array
  /** The path ended with a slash: it can only mean a folder. */
  trailing: boolean
}

/**
 * 0, or why `path` can't be one: empty ENOENT, too long ENAMETOOLONG, a NUL EINVAL, not UTF-8 EILSEQ, absolute EPERM.
 * The contents of a symbolic link are refused for the same reasons: an absolute one would lead nowhere.
 */
export function refusePath(path: Uint8Array): number {
  if (path.length === 0) return ENOENT
  if (path.length >= PATH_BYTES_MAX) return ENAMETOOLONG
  if (path.includes(0)) return EINVAL
  if (!isUtf8(path)) return EILSEQ
  return path[0] === SLASH ? EPERM : 0
}

/** Splits a path that isn't refused before its last name. */
export function splitPath(path: Uint8Array): Split {
  let end = path.length
  while (end > 0 && path[end - 1] === SLASH) end--
  const start = path.subarray(0, end).lastIndexOf(SLASH) + 1
  return { parent: path.subarray(0, start), name: path.subarray(start, end), trailing: end < path.length }
}

/** True for '.' and '..'. */
export function isDots(name: Uint8Array): boolean {
  return name[0] === DOT && (name.length === 1 || isDotDot(name))
}

/** True for '..'. */
export function isDotDot(name: Uint8Array): boolean {
  return name.length === 2 && name[0] === DOT && name[1] === DOT
}

/** `name` with the final slash that makes the kernel insist on a folder. */
export function withSlash(name: Uint8Array): Uint8Array {
  const longer = new Uint8Array(name.length + 1)
  longer.set(name)
  longer[name.length] = SLASH
  return longer
}
