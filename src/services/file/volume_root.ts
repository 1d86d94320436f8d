// services/file/volume_root.ts: the folder that a volume is, and where beneath it an open file or folder is now.
//
// The path that a guest has opened says little: it led over links and `..`, and folders were renamed since. The kernel
// knows where a descriptor is (/proc/self/fd), but not whether that name still stands for it, and it tells paths of
// the whole machine. So what it says of the volume's own folder is taken off, and the rest is opened beneath that
// folder: only if this is the same file, it is the answer. A file without a name, or with one that has become another
// file's, is lost to a snapshot.
//
// The volume's folder stays open as long as anything of the volume is, also if the guest has closed it.

import { EIO } from '../../base/errno.ts'
import { PATH_BYTES_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import type { SavedIs } from '../saved.ts'
import { HeldFd } from './held_fd.ts'
import { openBeneath, type Resolver } from './resolve.ts'

/** Where something is: the number of the granted folder, and the path from there, '' for itself. */
type Place = { readonly volume: number; readonly path: string }

/** A volume's folder. */
export class VolumeRoot {
  readonly fd: number
  /** Held by all that is open beneath. */
  readonly held: HeldFd
  /** Which of a guest's volumes it is; -1: of none yet. */
  number = -1
  readonly #resolver: Resolver

  /** Takes over the host's descriptor `fd`. */
  constructor(fd: number, resolver: Resolver) {
    this.fd = fd
    this.held = new HeldFd(fd)
    this.#resolver = resolver
  }

  /** What a snapshot keeps of what the host has open as `fd`: what `at` makes of its place, if it has one. */
  save(fd: number, filetype: number, at: (place: Place) => SavedIs): SavedIs {
    const path = this.#pathOf(fd)
    if (typeof path !== 'string') return { kind: 'lost', filetype, errno: EIO, why: path.why }
    return at({ volume: this.number, path })
  }

  #pathOf(fd: number): string | { readonly why: string } {
    if (this.number < 0) return { why: 'its folder was granted to nobody' }
    const root = kernelPath(this.fd)
    const whole = kernelPath(fd)
    if (root === undefined || whole === undefined) return { why: 'the system doesn\'t tell where it is' }
    // Of the machine's own root nothing is taken off but the slash.
    const from = root.length === 1 ? 0 : root.length
    if (!whole.subarray(0, from).equals(root.subarray(0, from))) return { why: REMOVED }
    const path = whole.subarray(from + 1)
    if (!this.#leadsTo(path, fd)) return { why: REMOVED }
    try {
      return UTF8.decode(path)
    } catch {
      return { why: 'its name is no text' }
    }
  }

  #leadsTo(path: Uint8Array, fd: number): boolean {
    if (!identify(fd, wanted)) return false
    const flags = sys.O_PATH | sys.O_NOFOLLOW
    const opened = openBeneath(this.#resolver, this.fd, path.length === 0 ? DOT : path, flags, 0)
    if (opened < 0) return false
    const isFound = identify(opened, found)
    sys.close(opened)
    return isFound && found.every((word, i) => word === wanted[i])
  }
}

// Where the kernel has the descriptor `fd`; with " (deleted)" after it if its name is gone.
function kernelPath(fd: number): Buffer | undefined {
  const length = sys.readlinkat(sys.AT_FDCWD, Buffer.from(`/proc/self/fd/${fd}`))
  return length <= 0 || length >= PATH_BYTES_MAX ? undefined : Buffer.from(sys.linkTarget(length))
}

function identify(fd: number, to: Int32Array): boolean {
  if (sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH) < 0) return false
  sys.statxIdentity(to)
  return true
}

const REMOVED = 'the file was removed'
const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const DOT = Uint8Array.of(0x2e)
const NOTHING = new Uint8Array(0)
const wanted = new Int32Array(4)
const found = new Int32Array(4)
