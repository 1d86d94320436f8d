// wasi/p1/descriptors.ts: a cell's descriptor numbers, with their rights and flags.
//
// Numbers are given lowest first, as POSIX does. `lowestFree` is a lower bound of the lowest free number, so that a
// server that accepts thousands of connections doesn't search the table from its start.

import { assert } from '../../base/assert.ts'
import { EBADF, EMFILE, ENOTCAPABLE } from '../../base/errno.ts'
import { DESCRIPTORS_MAX } from '../../base/limits.ts'
import type { Descriptor, GrantKind } from '../../services/descriptor.ts'

/** One descriptor number of a cell. */
export type Entry = {
  readonly descriptor: Descriptor
  /** RIGHTS_*: what may be done with it, and with what is opened through it. */
  rightsBase: number
  rightsInheriting: number
  /** FDFLAGS_* */
  flags: number
  /** The name that the guest sees of a granted folder. */
  readonly preopen?: Uint8Array | undefined
  /** Of what was granted: which one of its kind. */
  grant?: number
}

/** The descriptor numbers of one cell. */
export class Descriptors {
  readonly #entries: (Entry | undefined)[] = []
  #lowestFree = 0
  #isClosed = false
  readonly #granted: Record<GrantKind, number> = { console: 0, volume: 0, listener: 0 }

  /** The entry of number `fd`, or undefined: EBADF. */
  get(fd: number): Entry | undefined { return this.#entries[fd >>> 0] }

  /** True if no number is left: to be asked before something is opened or created for one. */
  get full(): boolean {
    while (this.#entries[this.#lowestFree] !== undefined) this.#lowestFree++
    return this.#lowestFree >= DESCRIPTORS_MAX
  }

  /**
   * Gives `entry` the lowest free number. -EMFILE when the cell has DESCRIPTORS_MAX, or is gone while what it has asked
   * for is being made; the descriptor is then closed.
   */
  add(entry: Entry): number {
    if (this.#isClosed || this.full) {
      entry.descriptor.close()
      return -EMFILE
    }
    const fd = this.#lowestFree
    this.#entries[fd] = entry
    this.#lowestFree = fd + 1
    const { descriptor } = entry
    if (descriptor.grant !== undefined) {
      entry.grant = this.#granted[descriptor.grant]++
      descriptor.granted?.(entry.grant)
    }
    return fd
  }

  /** Gives `entry` the number that it had in a snapshot, below DESCRIPTORS_MAX and free; `entry.grant` stays. */
  put(fd: number, entry: Entry): void {
    assert(fd >= 0 && fd < DESCRIPTORS_MAX && this.#entries[fd] === undefined, 'the number is free', fd)
    // Without holes the numbers stay an array to V8.
    while (this.#entries.length < fd) this.#entries.push(undefined)
    this.#entries[fd] = entry
  }

  /** Those that are open, by number. */
  * all(): Generator<[fd: number, entry: Entry]> {
    for (let fd = 0; fd < this.#entries.length; fd++) {
      const entry = this.#entries[fd]
      if (entry !== undefined) yield [fd, entry]
    }
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
    this.#closeAll((descriptor) => { if (aborted) descriptor.abort?.() })
  }

  /** Closes everything: the cell goes on elsewhere, with what was saved. */
  leaveAll(): void {
    this.#closeAll((descriptor) => { descriptor.leave?.() })
  }

  #closeAll(before: (descriptor: Descriptor) => void): void {
    for (const entry of this.#entries) {
      if (entry === undefined) continue
      before(entry.descriptor)
      entry.descriptor.close()
    }
    this.#entries.length = 0
    this.#lowestFree = 0
    this.#isClosed = true
  }
}

/** 0 if `entry` exists and has all of `rights`; else EBADF or ENOTCAPABLE. */
export function lacks(entry: Entry | undefined, rights: number): number {
  if (entry === undefined) return EBADF
  return (entry.rightsBase & rights) === rights ? 0 : ENOTCAPABLE
}
