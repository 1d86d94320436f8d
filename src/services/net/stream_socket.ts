// services/net/stream_socket.ts: what a guest can do with a connection, and with what gives it connections.
//
// WASI's socket calls (wasi/p1/sock.ts) know these and no class: a connection may be one of TCP (connection.ts), one
// that stays within the process (pipe_end.ts), or one that isn't made before it is used (lazy_connection.ts).

import type { Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import type { Waker } from '../wait_queue.ts'

/** One end of a stream in both directions, with the semantics of a TCP socket. Counts are in bytes. */
export interface StreamSocket extends Descriptor {
  /** Bytes received that the guest has not read. */
  readonly unread: number
  /** True if waiting brings no more than `unread` bytes: the end is known, or the buffer is full. */
  readonly complete: boolean
  /** Begins to receive. Called once, when the guest has got the connection. */
  start(): void
  /**
   * Moves received bytes into the ranges, the first `from` bytes of which are left alone: bytes moved, 0 at the end,
   * -EAGAIN if nothing is there yet, -ECONNRESET after a reset.
   */
  recv(iovecs: Iovecs, from?: number): number
  /** As recv(), but the bytes stay to be received again. */
  peek(iovecs: Iovecs, from?: number): number
  /**
   * Accepts as many of the ranges' bytes as there is room for: the count, which may be short; -EAGAIN if there is no
   * room; -EPIPE if nobody will receive them.
   */
  send(iovecs: Iovecs): number
  /** Ends one direction or both: 0, or -ENOTCONN after a reset. What was accepted before is still sent, then a FIN. */
  shutdown(how: { read: boolean; write: boolean }): number
  pollRead(): number
  pollWrite(): number
  /** True when neither direction works any more. A FIN alone isn't that: the peer may still wait for an answer. */
  hangup(): boolean
  awaitReadable(waker: Waker): void
  awaitWritable(waker: Waker): void
  forget(waker: Waker): void
  /** Drops the connection; its peer learns that it was not ended. */
  reset(): void
}

/** A socket that accepts connections. */
export interface StreamListener extends Descriptor {
  /** A connection that waits, started; or -EAGAIN. */
  accept(): StreamSocket | number
  pollRead(): number
  awaitReadable(waker: Waker): void
  forget(waker: Waker): void
}
