// services/file/file.ts: an open file of a volume.
//
// Bytes move between the page cache and the guest's memory in one system call, with no copy of ours. The offset is the
// kernel's; `#position` follows it. A pCPU must not wait for a disk. Reading in sequence, we ask once for a window
// ahead whether all of it is in the page cache (cachestat), and if so read it plainly. Else reads ask with RWF_NOWAIT.
// If not all of it is in the page cache the answer is -EAGAIN; awaitReadable() then has libuv's pool read that range,
// which brings it in, and wakes. The try after that reads without NOWAIT, so that it makes progress even if the pages
// are gone again. A file system without NOWAIT is read plainly. Writes go to the page cache; they wait only where the
// kernel throttles or O_SYNC is set.
//
// Hot path in read and write: no allocation, no closures, numbers and typed arrays only.

import { read } from 'node:fs'
import { EAGAIN, EBADF, EINVAL, ENOSPC, ENOTSUP, EPERM, EROFS } from '../../base/errno.ts'
import { TRANSFER_BYTES_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import { FILETYPE_REGULAR_FILE, type Descriptor, type Stat } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import type { SavedIs } from '../saved.ts'
import { WaitQueue, type Waker } from '../wait_queue.ts'
import { statOf, timesOf, type Times } from './attributes.ts'
import { HeldFd } from './held_fd.ts'
import type { Charge } from './quota.ts'
import { isShared } from './shared_file.ts'
import type { VolumeRoot } from './volume_root.ts'

const SEEK_SET = 0
const SEEK_CUR = 1

/** Asked about at once: two system calls for each, and the most that a guest may wait for if the pages go meanwhile. */
const WINDOW_BYTES = 1024 * 1024
/** Where pages are larger, fewer are counted than expected, and reads ask with RWF_NOWAIT. */
const PAGE_BYTES = 4096

/** How a file was opened. */
export type FileModes = {
  readable: boolean; writable: boolean; append: boolean; readOnlyVolume: boolean
  root: VolumeRoot
  /** Of a volume with a quota. The file closes it. */
  charge?: Charge
}

/** An open regular file. Offsets and sizes are numbers below 2^53. */
export class File implements Descriptor {
  readonly filetype = FILETYPE_REGULAR_FILE
  readonly #fd: number
  readonly #held: HeldFd
  readonly #modes: FileModes
  readonly #charge: Charge | undefined
  #append: boolean
  #isClosed = false
  readonly #waiters = new WaitQueue()
  // False when the file system can't tell whether a read would wait.
  #nowait = true
  // The range that the last read missed, brought in by awaitReadable; then `#warm`: the next read may wait.
  #missOffset = 0
  #missLength = 0
  #warm = false
  // The kernel's offset, or -1 if it isn't known. Of [#from, #to) it is known whether all was in the page cache.
  #position = 0
  #from = 0
  #to = 0
  #cached = false

  /** Takes over the host's descriptor `fd`. */
  constructor(fd: number, modes: FileModes) {
    this.#fd = fd
    this.#held = new HeldFd(fd)
    modes.root.held.hold()
    this.#modes = modes
    this.#charge = modes.charge
    this.#append = modes.append
  }

  read(iovecs: Iovecs): number {
    const simple = iovecs.count === 1 && this.#modes.readable && this.#isCached(iovecs.total)
    const result = simple ? sys.read(this.#fd, iovecs.memory!.bytes, iovecs.offsets[0]!, iovecs.total)
      : this.#read(iovecs, sys.OFFSET_CURRENT)
    if (result > 0 && this.#position >= 0) this.#position += result
    return result
  }

  // True if the next `length` bytes were in the page cache when last asked. Should they be gone, the read waits: a
  // window is short, and its pages were used just now.
  #isCached(length: number): boolean {
    const end = this.#currentPosition() + length
    if (this.#position < this.#from || end > this.#to) this.#lookAhead(length)
    return this.#cached
  }

  #lookAhead(length: number): void {
    this.#from = this.#position
    this.#to = this.#position + Math.max(length, WINDOW_BYTES)
    const pages = sys.cachedPages(this.#fd, this.#from, this.#to - this.#from)
    const end = Math.min(this.#to, this.#size())
    const expected = Math.max(0, Math.ceil(end / PAGE_BYTES) - Math.floor(this.#from / PAGE_BYTES))
    this.#cached = pages >= expected
  }

  write(iovecs: Iovecs): number {
    if (!this.#modes.writable) return -EBADF
    if (this.#charge !== undefined) return this.#writeCharged(this.#charge, iovecs, -1)
    this.#position = -1
    return sys.writev(this.#fd, iovecs.memory!.bytes, iovecs.offsets, iovecs.lengths, iovecs.count, sys.OFFSET_CURRENT)
  }

  /** Reads at `offset`; the file's own offset stays. */
  pread(iovecs: Iovecs, offset: number): number {
    return this.#read(iovecs, BigInt(offset))
  }

  /** Writes at `offset`; the file's own offset stays. A file opened to append is written at its end, as on Linux. */
  pwrite(iovecs: Iovecs, offset: number): number {
    if (!this.#modes.writable) return -EBADF
    if (this.#charge !== undefined) return this.#writeCharged(this.#charge, iovecs, offset)
    return sys.writev(this.#fd, iovecs.memory!.bytes, iovecs.offsets, iovecs.lengths, iovecs.count, BigInt(offset))
  }

  // Writes at `offset`, or where the file's own offset is (-1). What makes the file longer is charged before; what
  // doesn't fit in the volume isn't written.
  #writeCharged(charge: Charge, iovecs: Iovecs, offset: number): number {
    const length = charge.begin()
    try {
      const at = this.#append ? length : offset >= 0 ? offset : this.#currentPosition()
      const end = iovecs.total === 0 ? 0 : at + iovecs.total
      if (end > length) {
        const paid = charge.grow(length, end)
        if (paid <= at) {
          charge.settle(length)
          return -ENOSPC
        }
        if (paid < end) iovecs.cut(paid - at)
      }
      const kernelOffset = offset >= 0 ? BigInt(offset) : sys.OFFSET_CURRENT
      const { offsets, lengths, count } = iovecs
      const result = sys.writev(this.#fd, iovecs.memory!.bytes, offsets, lengths, count, kernelOffset)
      if (end > length && result !== end - at) charge.settle(this.#size())
      if (offset < 0 && result > 0) this.#position = at + result
      return result
    } finally {
      charge.end()
    }
  }

  #currentPosition(): number {
    if (this.#position < 0) this.#position = sys.lseek(this.#fd, 0, SEEK_CUR)
    return this.#position
  }

  #read(iovecs: Iovecs, offset: bigint): number {
    if (!this.#modes.readable) return -EBADF
    const nowait = this.#nowait && !this.#warm
    this.#warm = false
    const bytes = iovecs.memory!.bytes
    const flags = nowait ? sys.RWF_NOWAIT : 0
    const result = sys.readv(this.#fd, bytes, iovecs.offsets, iovecs.lengths, iovecs.count, offset, flags)
    if (!nowait || result === iovecs.total) return result
    if (result === -ENOTSUP) {
      this.#nowait = false
      return sys.readv(this.#fd, bytes, iovecs.offsets, iovecs.lengths, iovecs.count, offset, 0)
    }
    if (result !== -EAGAIN && result <= 0) return result
    return this.#missed(iovecs.total, offset, Math.max(result, 0))
  }

  // Not everything was in the page cache, or the file ends here: `got` bytes came. Programs expect a file to be read in
  // full, so that a part before the end isn't an answer; it is taken back and the whole waited for.
  #missed(total: number, offset: bigint, got: number): number {
    const current = offset === sys.OFFSET_CURRENT
    const start = current ? sys.lseek(this.#fd, 0, SEEK_CUR) - got : Number(offset)
    if (got > 0) {
      const size = this.#size()
      if (size < 0 || start + got >= size) return got
      if (current) this.seek(start, SEEK_SET)
    }
    this.#missOffset = start
    this.#missLength = Math.min(total, TRANSFER_BYTES_MAX)
    return -EAGAIN
  }

  /** Bytes from the offset to the end. A file never makes its reader wait, in the sense of poll. */
  pollRead(): number {
    const offset = sys.lseek(this.#fd, 0, SEEK_CUR)
    return Math.max(0, this.#size() - Math.max(0, offset))
  }

  pollWrite(): number { return 1 }

  awaitReadable(waker: Waker): void {
    this.#waiters.add(waker)
    if (this.#missLength === 0) {
      this.awaitWritable(waker)
      return
    }
    const length = this.#missLength
    this.#missLength = 0
    this.#held.hold()
    // What is read is thrown away, an error too: the guest's own read meets it again.
    read(this.#fd, discarded ??= new Uint8Array(TRANSFER_BYTES_MAX), 0, length, this.#missOffset, () => {
      this.#warm = true
      this.#held.release()
      this.#waiters.notify()
    })
  }

  /** Writing is never answered with -EAGAIN; whoever waits all the same is woken in the next turn. */
  awaitWritable(waker: Waker): void {
    this.#waiters.add(waker)
    setImmediate(() => { this.#waiters.notify() })
  }

  forget(waker: Waker): void { this.#waiters.delete(waker) }

  /** Moves the offset (whence 0 from the start, 1 from here, 2 from the end): the new one, or a negated errno. */
  seek(offset: number, whence: number): number {
    const result = sys.lseek(this.#fd, offset, whence)
    if (result >= 0) this.#position = result
    return result
  }

  stat(): Stat | number {
    return statOf(this.#fd)
  }

  #size(): number {
    const result = sys.statx(this.#fd, NOTHING, sys.AT_EMPTY_PATH)
    return result < 0 ? result : sys.statxSize()
  }

  /** Cuts or extends the file to `size` bytes: 0 or a negated errno. */
  setSize(size: number): number {
    if (this.#modes.readOnlyVolume) return -EROFS
    if (!this.#modes.writable) return -EINVAL
    return this.#resized(size, () => sys.ftruncate(this.#fd, size))
  }

  /** Cuts it to nothing: what opening it so means. */
  empty(): void {
    this.#resized(0, () => sys.ftruncate(this.#fd, 0))
  }

  // Charges the growth to `end`, all of it, then calls `resize`.
  #resized(end: number, resize: () => number): number {
    const charge = this.#charge
    if (charge === undefined) return resize()
    const length = charge.begin()
    try {
      if (end > length && charge.grow(length, end) < end) {
        charge.settle(length)
        return -ENOSPC
      }
      const result = resize()
      charge.settle(this.#size())
      return result
    } finally {
      charge.end()
    }
  }

  /** Makes room for [offset, offset + length), and the file as long as that; it never gets shorter. */
  allocate(offset: number, length: number): number {
    if (this.#modes.readOnlyVolume) return -EROFS
    if (!this.#modes.writable) return -EBADF
    return this.#resized(offset + length, () => sys.fallocate(this.#fd, offset, length))
  }

  /** A file that is shared with a clone, and so is open for reading only, keeps its times: -EPERM. */
  setTimes(times: Times): number {
    if (this.#modes.readOnlyVolume) return -EROFS
    if (this.#charge !== undefined && this.#size() >= 0 && isShared(sys.statxMode())) return -EPERM
    return timesOf(this.#fd, times)
  }

  /** Tells the kernel how [offset, offset + length) will be used: `advice` of WASI preview 1. Changes nothing else. */
  advise(offset: number, length: number, advice: number): number {
    const known = ADVICE[advice]
    return known === undefined ? -EINVAL : sys.fadvise(this.#fd, offset, length, known)
  }

  /** Whether each write goes to the end of the file. */
  setAppend(append: boolean): number {
    const result = sys.setStatusFlags(this.#fd, sys.O_NONBLOCK | (append ? sys.O_APPEND : 0))
    if (result === 0) this.#append = append
    return result
  }

  /** Resolved when everything written so far is on the disk: 0 or a negated errno. `dataOnly`: as fdatasync. */
  sync(dataOnly: boolean): Promise<number> { return this.#held.sync(dataOnly) }

  save(): SavedIs {
    const offset = sys.lseek(this.#fd, 0, SEEK_CUR)
    const { readable: read, writable: write, root } = this.#modes
    return root.save(this.#fd, this.filetype, (place) =>
      ({ kind: 'file', ...place, offset, read, write, append: this.#append }))
  }

  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#held.close()
    this.#charge?.close()
    this.#modes.root.held.release()
  }
}

const NOTHING = new Uint8Array(0)

// Where reads that only warm the page cache put what they read; nobody looks at it, so that all share it.
let discarded: Uint8Array | undefined

// WASI's `advice` (normal, sequential, random, willneed, dontneed, noreuse) → Linux's POSIX_FADV_*.
const ADVICE = [0, 2, 1, 3, 4, 5]
