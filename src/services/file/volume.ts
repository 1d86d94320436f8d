// services/file/volume.ts: a folder of the host, granted to a guest.
//
// It is opened once. From then on the guest reaches what is beneath the open folder and nothing else, even if the
// folder is renamed on the host. Elsewhere: what can be done with it (directory.ts), how paths are resolved
// (resolve.ts).

import { EACCES, EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, ERRNO_NAMES } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { PATH_BYTES_MAX } from '../../base/limits.ts'
import { isSupported } from '../../sys/libc.ts'
import * as sys from '../../sys/linux_files.ts'
import { Directory } from './directory.ts'
import { ChargedNames, PLAIN_NAMES } from './names.ts'
import { quotaOf } from './quota.ts'
import { bestResolver, type Resolver } from './resolve.ts'
import { VolumeRoot } from './volume_root.ts'

/** How a folder is granted. `resolver` is for tests; left out, it is the best that this kernel allows. */
export type VolumeOptions = {
  readOnly: boolean; resolver?: Resolver
  /** Of openQuota (open_quota.ts): it is bounded, and its files may be shared with clones. */
  quota?: SharedArrayBuffer | undefined
}

/** Opens the host's folder `path` as a volume. Throws CellarError VOLUME_*. */
export function openVolume(path: string, { readOnly, resolver, quota: shared }: VolumeOptions): Directory {
  const fd = opened(path, 0)
  const quota = shared === undefined ? undefined : quotaOf(shared)
  const names = quota === undefined ? PLAIN_NAMES : new ChargedNames(quota)
  const itsResolver = resolver ?? bestResolver(fd)
  return new Directory(fd, { readOnly, resolver: itsResolver, names, quota, root: new VolumeRoot(fd, itsResolver) })
}

/**
 * Opens the host's folder `path`: a descriptor, which the caller closes. A link is none: where projects have no users
 * of their own, a process could put one in the place of its volume, for its host to follow. Throws CellarError
 * VOLUME_*.
 */
export function openHostFolder(path: string): number {
  return opened(path, sys.O_NOFOLLOW)
}

function opened(path: string, flags: number): number {
  if (!isSupported()) throw new CellarError('VOLUME_UNSUPPORTED', [path, whyUnsupported()])
  const fd = openFolder(path, flags)
  if (fd === -ENOENT) throw new CellarError('VOLUME_NOT_FOUND', [path])
  if (fd === -ENOTDIR) throw new CellarError('VOLUME_NOT_A_FOLDER', [path])
  if (fd < 0) throw new CellarError('VOLUME_UNREADABLE', [path, whyUnreadable(-fd)])
  return fd
}

// Not through node:fs: a worker thread of Node keeps a list of what fs.open gave it, and closes that when it ends.
function openFolder(path: string, flags: number): number {
  const bytes = Buffer.from(path)
  if (bytes.length === 0) return -ENOENT
  if (bytes.includes(0)) return -EINVAL
  if (bytes.length >= PATH_BYTES_MAX) return -ENAMETOOLONG
  return sys.openat(sys.AT_FDCWD, bytes, sys.O_RDONLY | sys.O_DIRECTORY | flags, 0)
}

function whyUnreadable(errno: number): string {
  return errno === EACCES || errno === EPERM ? 'permission denied' : ERRNO_NAMES[errno] ?? `errno ${errno}`
}

function whyUnsupported(): string {
  if (process.platform !== 'linux') return `volumes need Linux, this is ${process.platform}`
  return `this Node ${process.version} (${process.arch}) can't make system calls`
}
