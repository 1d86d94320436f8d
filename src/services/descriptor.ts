// services/descriptor.ts: what a guest's descriptor number stands for.
//
// Every service gives out descriptors: a console's stream, a file, a folder, a listening socket, a connection. A cell
// reaches them through WASI (wasi/p1), later a machine through its virtio queues. Calls answer at once, with a count
// ≥ 0 or a negated errno (base/errno.ts). -EAGAIN means "would have to wait": the caller adds itself to `readable` or
// `writable` by calling awaitReadable() or awaitWritable(), and tries again when woken. Nothing here ever blocks.
//
// Elsewhere: rights, flags and numbers (wasi/p1/descriptors.ts), snapshots (saved.ts, wasi/p1/saved_descriptors.ts).

import type { Iovecs } from './iovecs.ts'
import type { SavedIs } from './saved.ts'
import type { Waker } from './wait_queue.ts'

/** Kinds, numbered as WASI preview 1's `filetype`. */
export const FILETYPE_UNKNOWN = 0
export const FILETYPE_BLOCK_DEVICE = 1
export const FILETYPE_CHARACTER_DEVICE = 2
export const FILETYPE_DIRECTORY = 3
export const FILETYPE_REGULAR_FILE = 4
export const FILETYPE_SOCKET_DGRAM = 5
export const FILETYPE_SOCKET_STREAM = 6
export const FILETYPE_SYMBOLIC_LINK = 7

/** What `stat` tells. Times in nanoseconds since 1970. */
export type Stat = {
  dev: bigint; ino: bigint; filetype: number; nlink: bigint; size: bigint; atim: bigint; mtim: bigint; ctim: bigint
}

/** What a guest has from its start. The grants of each kind are numbered in the order in which they are given. */
export type GrantKind = 'console' | 'volume' | 'listener'

/** What any descriptor can do. A missing method means that its kind can't: callers answer EBADF, ESPIPE or ENOTSOCK. */
export interface Descriptor {
  readonly filetype: number
  /** Reads at the current offset: bytes read, 0 at the end, or a negated errno. */
  read?(iovecs: Iovecs): number
  /** Writes at the current offset (at the end, if opened to append): bytes written, or a negated errno. */
  write?(iovecs: Iovecs): number
  stat?(): Stat | number

  /** Files only: as read and write, at `offset`; the current offset stays. */
  pread?(iovecs: Iovecs, offset: number): number
  pwrite?(iovecs: Iovecs, offset: number): number
  /** Files only: moves the current offset (`whence`: 0 start, 1 current, 2 end) and answers where it is. */
  seek?(offset: number, whence: number): number
  advise?(offset: number, length: number, advice: number): number
  allocate?(offset: number, length: number): number
  setAppend?(append: boolean): number
  /** Files and folders: what was written is on the disk when this resolves, to 0 or a negated errno. */
  sync?(dataOnly: boolean): Promise<number>

  /** Bytes that read() would give now (1 if unknown but some); 0 at the end; -EAGAIN if it would wait. */
  pollRead?(): number
  /** Bytes that write() would take now (1 if unknown but some), or -EAGAIN. */
  pollWrite?(): number
  /** True if the other side is gone: reported by poll_oneoff as FD_READWRITE_HANGUP. */
  hangup?(): boolean
  /**
   * Adds a waker for "read() may go on", and starts whatever must be started for that. The waker is called later,
   * never from within: its owner may be about to wait for other descriptors, too.
   */
  awaitReadable?(waker: Waker): void
  awaitWritable?(waker: Waker): void
  /** Takes the waker back from both. */
  forget?(waker: Waker): void

  /** Of a grant: its kind. It is told which one of its kind it is. */
  readonly grant?: GrantKind | undefined
  granted?(number: number): void
  /** What a snapshot keeps of it; `number`: which of the grants of its kind it is. Missing: in a snapshot it's lost. */
  save?(number: number): SavedIs
  /** Of what was lost in a snapshot: the errno of each use. */
  readonly lost?: number

  /** As close(), of a guest that didn't end by itself: whoever is at the other side must not take it for an end. */
  abort?(): void
  /** As close(), of a guest that goes on elsewhere without it: whoever is at the other side learns that it was cut. */
  leave?(): void
  /** Releases what it holds. Idempotent. Called by the descriptor table when the last number goes. */
  close(): void
}
