// services/console/stdio.ts: the console of `cellar run`: the stdin, stdout and stderr that it was started with.
//
// The streams may be files, terminals, pipes or sockets, blocking ones, and others may hold them too, so that making
// them non-blocking is not ours to do. A file is read and written at once. For all others poll(2) says whether one
// transfer would block. If it would, the transfer itself is done by libuv's thread pool while the vCPU is parked:
// a read's bytes are kept for the guest's next try, a write's count is the answer to it. Only what the guest asked for
// is read, so that a program started after it finds the rest.
// Binary safe: bytes go from and to guest memory without a copy of ours, unless they have to wait.

import { fstatSync, read, readSync, write, writeSync, type Stats } from 'node:fs'
import { EAGAIN, ECONNRESET, EPIPE, errnoOf } from '../../base/errno.ts'
import { CONSOLE_READ_BYTES_MAX } from '../../base/limits.ts'
import { isSupported, POLLIN, POLLOUT, poll1 } from '../../sys/libc.ts'
import { FILETYPE_CHARACTER_DEVICE, FILETYPE_REGULAR_FILE, FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { consoleStream, type SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'

/** A pipe that polls as writable takes this much without blocking (POSIX PIPE_BUF on Linux). */
const PIPE_BUF = 4096

/** Handed to the thread pool at once by a write that must wait: a Linux pipe's default capacity. */
const PENDING_WRITE_BYTES_MAX = 65_536

/** One of the process's standard streams, as a guest's descriptor. */
class StandardStream {
  readonly grant = 'console'
  readonly fd: number
  readonly waiters = new WaitQueue()
  #stats: Stats | undefined

  constructor(fd: number) { this.fd = fd }

  /** True if transfers never wait for another process, or if there is no poll(2) to ask: then they wait as they do. */
  get isFile(): boolean {
    const stats = this.#stats ??= this.#fstat()
    return stats.isFile() || (stats.isCharacterDevice() && !isTerminal(stats)) || !isSupported()
  }

  get filetype(): number {
    const stats = this.#stats ??= this.#fstat()
    if (stats.isFile()) return FILETYPE_REGULAR_FILE
    return isTerminal(stats) ? FILETYPE_CHARACTER_DEVICE : FILETYPE_UNKNOWN
  }

  #fstat(): Stats { return fstatSync(this.fd) }
  forget(waker: Waker): void { this.waiters.delete(waker) }
  save(number: number): SavedIs { return consoleStream(number) }
  // The process's own streams outlive the guest.
  close(): void {}
}

/** The process's stdin as a guest's descriptor 0. */
export class StandardInput extends StandardStream implements Descriptor {
  #ahead = Buffer.alloc(0)
  #error = 0
  #ended = false
  #reading = false
  #wanted = CONSOLE_READ_BYTES_MAX

  read(iovecs: Iovecs): number {
    if (this.#ahead.length > 0) {
      const count = iovecs.scatter(this.#ahead)
      this.#ahead = this.#ahead.subarray(count)
      return count
    }
    if (this.#error !== 0) return -this.#takeError()
    if (this.#ended) { this.#ended = false; return 0 }
    if (this.#reading) return -EAGAIN
    if (!this.isFile && poll1(this.fd, POLLIN) === 0) {
      this.#wanted = Math.min(iovecs.total, CONSOLE_READ_BYTES_MAX)
      return -EAGAIN
    }
    return this.#readNow(iovecs)
  }

  #readNow(iovecs: Iovecs): number {
    let done = 0
    for (let i = 0; i < iovecs.count; i++) {
      const length = iovecs.lengths[i]!
      if (length === 0) continue
      if (done > 0 && !this.isFile) break
      try {
        const count = readSync(this.fd, iovecs.memory!.bytes, iovecs.offsets[i]!, length, null)
        done += count
        if (count < length) break
      } catch (error) {
        return done > 0 ? done : -errnoOf(error)
      }
    }
    return done
  }

  pollRead(): number {
    if (this.#ahead.length > 0) return this.#ahead.length
    if (this.#ended || this.#error !== 0) return 0
    if (this.#reading) return -EAGAIN
    return this.isFile || poll1(this.fd, POLLIN) !== 0 ? 1 : -EAGAIN
  }

  awaitReadable(waker: Waker): void {
    this.waiters.add(waker)
    if (this.#reading) return
    this.#reading = true
    const buffer = Buffer.allocUnsafeSlow(this.#wanted)
    read(this.fd, buffer, 0, buffer.length, null, (error, count) => {
      this.#reading = false
      if (error !== null && errnoOf(error) === EAGAIN) {
        // Somebody made the stream non-blocking: look again a little later.
        setTimeout(() => this.waiters.notify(), 1)
        return
      }
      if (error !== null) this.#error = errnoOf(error)
      else if (count === 0) this.#ended = true
      else this.#ahead = buffer.subarray(0, count)
      this.waiters.notify()
    })
  }

  #takeError(): number {
    const error = this.#error
    this.#error = 0
    return error
  }
}

/** The process's stdout or stderr as a guest's descriptor. */
export class StandardOutput extends StandardStream implements Descriptor {
  /** What a write that had to wait has come to: bytes, or a negated errno. The guest's next try gets it. */
  #result: number | undefined
  #writing = false

  write(iovecs: Iovecs): number {
    if (this.#result !== undefined) return this.#takeResult()
    if (this.#writing) return -EAGAIN
    let done = 0
    for (let i = 0; i < iovecs.count; i++) {
      const count = this.#writeRange(iovecs.memory!.bytes, iovecs.offsets[i]!, iovecs.lengths[i]!)
      if (count < 0) {
        if (done > 0) return done
        if (count === -EAGAIN) this.#writeLater(iovecs.gather())
        return count
      }
      done += count
      if (count < iovecs.lengths[i]!) return done
    }
    return done
  }

  /** As write, of bytes that stay as they are until they are written: an answer of EAGAIN has begun to write them. */
  writeBytes(bytes: Uint8Array): number {
    if (this.#result !== undefined) return this.#takeResult()
    if (this.#writing) return -EAGAIN
    const count = this.#writeRange(bytes, 0, bytes.length)
    if (count === -EAGAIN) this.#writeLater(bytes)
    return count
  }

  #takeResult(): number {
    const result = this.#result!
    this.#result = undefined
    return result
  }

  #writeRange(bytes: Uint8Array, offset: number, length: number): number {
    let done = 0
    try {
      while (done < length) {
        // An error or a hang-up polls as an event too, and is for write(2) to tell.
        if (!this.isFile && poll1(this.fd, POLLOUT) === 0) return done > 0 ? done : -EAGAIN
        done += writeSync(this.fd, bytes, offset + done,
          this.isFile ? length - done : Math.min(length - done, PIPE_BUF))
      }
      return done
    } catch (error) {
      return done > 0 ? done : -writeErrno(error)
    }
  }

  #writeLater(bytes: Uint8Array): void {
    this.#writing = true
    this.#retry(bytes.subarray(0, PENDING_WRITE_BYTES_MAX))
  }

  #retry(bytes: Uint8Array): void {
    write(this.fd, bytes, 0, bytes.length, null, (error, count) => {
      if (error !== null && errnoOf(error) === EAGAIN) {
        setTimeout(() => this.#retry(bytes), 1)
        return
      }
      this.#writing = false
      this.#result = error === null ? count : -writeErrno(error)
      this.waiters.notify()
    })
  }

  pollWrite(): number {
    if (this.#result !== undefined) return 1
    if (this.#writing) return -EAGAIN
    return this.isFile || poll1(this.fd, POLLOUT) !== 0 ? 1 : -EAGAIN
  }

  awaitWritable(waker: Waker): void {
    this.waiters.add(waker)
    // poll_oneoff waits with nothing to write: nobody will tell us, so look again.
    if (!this.#writing) setTimeout(() => this.waiters.notify(), 10)
  }
}

/** The errno of a failed write. A socket may say that its reader is gone in another way than a pipe does. */
function writeErrno(error: unknown): number {
  const errno = errnoOf(error)
  return errno === ECONNRESET ? EPIPE : errno
}

/** A character device whose driver is a terminal's: majors 4 (tty, ttyS), 5 (tty, console), 136–143 (pts). */
function isTerminal(stats: Stats): boolean {
  if (!stats.isCharacterDevice()) return false
  const major = (stats.rdev >> 8) & 0xfff
  return major === 4 || major === 5 || (major >= 136 && major <= 143)
}
