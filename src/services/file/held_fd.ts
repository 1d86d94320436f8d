// services/file/held_fd.ts: a descriptor of the host that calls on libuv's thread pool may be using.

import { fdatasync, fsync } from 'node:fs'
import { errnoOf } from '../../base/errno.ts'
import { close } from '../../sys/linux_files.ts'

/** Closes the host's descriptor `fd` after the last call that uses it, so that its number isn't reused under one. */
export class HeldFd {
  readonly #fd: number
  #users = 0
  #closed = false

  constructor(fd: number) { this.#fd = fd }

  /** A call on the pool begins; `release` when it is done. */
  hold(): void { this.#users++ }

  release(): void {
    if (--this.#users === 0 && this.#closed) close(this.#fd)
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#users === 0) close(this.#fd)
  }

  /** fsync, or fdatasync if only the data matters, on the pool: 0 or a negated errno. */
  sync(dataOnly: boolean): Promise<number> {
    this.hold()
    return new Promise((resolve) => {
      const done = (error: NodeJS.ErrnoException | null): void => {
        this.release()
        resolve(error === null ? 0 : -errnoOf(error))
      }
      if (dataOnly) fdatasync(this.#fd, done)
      else fsync(this.#fd, done)
    })
  }
}
