// services/file/held_fd.ts: a descriptor of the host that calls on libuv's thread pool may be using.

import { flush } from '../../sys/flush.ts'
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

  /** fsync, or fdatasync if only the data matters, on another thread: 0 or a negated errno. */
  async sync(dataOnly: boolean): Promise<number> {
    this.hold()
    try {
      return await flush(this.#fd, dataOnly)
    } finally {
      this.release()
    }
  }
}
