// services/gateway/tcp_stream.ts: a connection with the guest as a stream of Node's; and two streams made one.
//
// Data waits in the connection's rings until the stream's reader wants it, so that a slow reader closes the guest's
// window. A stream that is destroyed before both sides have ended resets the connection.

import { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { ERRNO_NAMES } from '../../base/errno.ts'
import type { Tcp } from './tcp.ts'

/** Handed over at once. */
const PIECE_BYTES_MAX = 65_536

/** See the head of this file. */
export class TcpStream extends Duplex {
  readonly #tcp: Tcp
  readonly #touch: () => void
  #wantsMore = false
  #isEnded = false
  #left: { bytes: Buffer; from: number; done: () => void } | undefined

  /** `touch` sees to it that `deliver` and the connection's `pump` are called soon. */
  constructor(tcp: Tcp, touch: () => void) {
    super({ allowHalfOpen: true, writableHighWaterMark: PIECE_BYTES_MAX, readableHighWaterMark: PIECE_BYTES_MAX })
    this.#tcp = tcp
    this.#touch = touch
  }

  /** Hands on what has come, as far as it is wanted. */
  deliver(): void {
    while (this.#wantsMore && this.#tcp.unread > 0) {
      const size = Math.min(this.#tcp.unread, PIECE_BYTES_MAX)
      const piece = Buffer.allocUnsafeSlow(size)
      this.#tcp.read(piece, size)
      this.#wantsMore = this.push(piece)
    }
    if (this.#tcp.isEnded && this.#tcp.unread === 0 && !this.#isEnded) {
      this.#isEnded = true
      this.push(null)
    }
  }

  /** There is room for more. */
  fill(): void {
    const left = this.#left
    if (left === undefined) return
    const written = this.#tcp.write(left.bytes, left.from, left.bytes.length)
    left.from += written
    if (written > 0) this.#touch()
    if (left.from < left.bytes.length) return
    this.#left = undefined
    left.done()
  }

  /** The connection is over: 0 if in order. */
  finish(errno: number): void {
    if (errno === 0 || this.destroyed) return
    const code = ERRNO_NAMES[errno] ?? 'EIO'
    this.destroy(Object.assign(new Error(`The connection with the guest has failed: ${code}`), { code }))
  }

  override _read(): void {
    this.#wantsMore = true
    if (this.#tcp.unread > 0 || (this.#tcp.isEnded && !this.#isEnded)) this.#touch()
  }

  override _write(bytes: Buffer, _: string, done: () => void): void {
    this.#left = { bytes, from: 0, done }
    this.fill()
  }

  override _final(done: () => void): void {
    this.#tcp.end()
    this.#touch()
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#left = undefined
    // In order if both sides have ended: the connection goes on by itself until the guest has heard of it.
    if (!this.writableFinished || !this.#isEnded) {
      this.#tcp.abort()
      this.#touch()
    }
    done(error)
  }
}

/** What one receives, the other sends, until both have ended; if one fails, the other fails too. */
export function join(one: Duplex, other: Duplex): void {
  one.pipe(other)
  other.pipe(one)
  for (const [from, to] of [[one, other], [other, one]] as const) {
    from.on('error', () => {})
    from.on('close', () => {
      if (from.readableEnded && from.writableFinished && from.errored === null) return
      // A Unix socket, which leads to another guest, has no reset.
      if (to instanceof Socket && to.remoteFamily !== undefined) to.resetAndDestroy()
      else to.destroy()
    })
  }
}
