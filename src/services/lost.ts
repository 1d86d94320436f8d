// services/lost.ts: what a snapshot couldn't keep: its number stays taken, and each use answers why it is gone.
//
// To poll it is ready, since whoever then uses it learns the reason. A socket answers as one that its peer has reset.

import { FILETYPE_SOCKET_STREAM, type Descriptor } from './descriptor.ts'
import type { SavedIs } from './saved.ts'

/** A descriptor that is no more. */
export class LostDescriptor implements Descriptor {
  readonly filetype: number
  readonly lost: number
  readonly #why: string

  /** `errno` isn't EAGAIN: nobody would ever be woken. */
  constructor(filetype: number, errno: number, why: string) {
    this.filetype = filetype
    this.lost = errno
    this.#why = why
  }

  read(): number { return -this.lost }
  write(): number { return -this.lost }
  stat(): number { return -this.lost }
  pread(): number { return -this.lost }
  pwrite(): number { return -this.lost }
  seek(): number { return -this.lost }
  advise(): number { return -this.lost }
  allocate(): number { return -this.lost }
  setAppend(): number { return -this.lost }
  sync(): Promise<number> { return Promise.resolve(-this.lost) }
  pollRead(): number { return 0 }
  pollWrite(): number { return 1 }
  hangup(): boolean { return this.filetype === FILETYPE_SOCKET_STREAM }
  close(): void {}

  /** A snapshot of who has lost it keeps that. */
  save(): SavedIs { return { kind: 'lost', filetype: this.filetype, errno: this.lost, why: this.#why } }
}
