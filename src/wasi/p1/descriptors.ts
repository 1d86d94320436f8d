// wasi/p1/descriptors.ts: a cell's descriptor numbers, with their rights and flags.
//
// Numbers are given lowest first, as POSIX does. `lowestFree` is a lower bound of the lowest free number, so that a
// server that accepts thousands of connections doesn't search the table from its start.

import { EBADF, EMFILE, ENOTCAPABLE } from '../../base/errno.ts'
import { DESCRIPTORS_MAX } from '../../base/limits.ts'
import type { Descriptor } from '../../services/descriptor.ts'

/** One descriptor number of a cell. */
export type Entry = {
  readonly descriptor: Descriptor
  /** RIGHTS_*: what may be done with it, and with what is opened through it. */
  rightsBase: number
  rightsInheriting: number
  /** FDFLAGS_* */
  flags: number
  /** The name that the guest sees of a granted folder. */
  readonly preopen?: Uint8Array
}

/** The descriptor numbers of one cell. */
export class Descriptors {
  readonly #entries: (Entry | undefined)[] = []
  #lowestFree = 0

  /** The entry of number `fd`, or undefined: EBADF. */
  get(fd: number): Entry | undefined { return this.#entries[fd >>> 0] }

  /** True if no number is left: to be asked before something is opened or created for one. */
  get full(): boolean {
    while (this.#entries[this.#lowestFree] !== undefined) this.#lowestFree++
    return this.#lowestFree >= DESCRIPTORS_MAX
  }

  /** Gives `entry` the lowest free number. -EMFILE when the cell has DESCRIPTORS_MAX; the descriptor is then closed. */
  add(entry: Entry): number {
    if (this.full) {
      entry.descriptor.close()
      return -EMFILE
    }
    const fd = this.#lowestFree
    this.#entries[fd] = entry
    this.#lowestFree = fd + 1
    return fd
  }

  /** Closes number `fd`: 0 or -EBADF. */
  close(fd: number): number {
    const entry = this.get(fd)
    if (entry === undefined) return -EBADF
    this.#entries[fd >>> 0] = undefined
    this.#lowestFree = Math.min(this.#lowestFree, fd >>> 0)
    entry.descriptor.close()
    return 0
  }

  /** Moves number `from` to `to`, which is closed first (fd_renumber: both must be open). */
  renumber(from: number, to: number): number {
    const entry = this.get(from)
    const target = this.get(to)
    if (entry === undefined || target === undefined) return -EBADF
    if (from >>> 0 === to >>> 0) return 0
    target.descriptor.close()
    this.#entries[to >>> 0] = entry
    this.#entries[from >>> 0] = undefined
    this.#lowestFree = Math.min(this.#lowestFree, from >>> 0)
    return 0
  }

  /** Closes everything: the cell has ended, or was `aborted`. */
  closeAll(aborted = false): void {
    for (const entry of this.#entries) {
      if (aborted) entry?.descriptor.abort?.()
      entry?.descriptor.close()
    }
    this.#entries.length = 0
    this.#lowestFree = 0
  }
}

/** 0 if `entry` exists and has all of `rights`; else EBADF or ENOTCAPABLE. */
export function lacks(entry: Entry | undefined, rights: number): number {
  if (entry === undefined) return EBADF
  return (entry.rightsBase & rights) === rights ? 0 : ENOTCAPABLE
}
