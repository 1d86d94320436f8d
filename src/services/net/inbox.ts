// services/net/inbox.ts: what a connection has received and its guest has not read, in the pieces in which it came.
//
// Each piece is charged PIECE_BYTES besides its own length, or a peer that sends byte by byte could make us hold a
// hundred times the limit in objects.

import type { Iovecs } from '../iovecs.ts'

/** Charged for each buffered piece, for the objects that hold it. */
export const PIECE_BYTES = 256

/** Received bytes in order. */
export class Inbox {
  readonly #pieces: Buffer[] = []
  /** Bytes of the first piece that are gone already. */
  #consumed = 0
  #unread = 0

  /** Bytes that can be read. */
  get unread(): number { return this.#unread }

  /** What is charged for them. */
  get held(): number { return this.#unread + this.#pieces.length * PIECE_BYTES }

  push(piece: Buffer): void {
    this.#pieces.push(piece)
    this.#unread += piece.length
  }

  /** Lets go of the first `count` bytes: what is no longer charged. */
  drop(count: number): number {
    const before = this.held
    this.#unread -= count
    let consumed = this.#consumed + count
    while (this.#pieces.length > 0 && consumed >= this.#pieces[0]!.length) consumed -= this.#pieces.shift()!.length
    this.#consumed = consumed
    return before - this.held
  }

  /** Lets go of everything: what is no longer charged. */
  clear(): number {
    const { held } = this
    this.#pieces.length = 0
    this.#consumed = 0
    this.#unread = 0
    return held
  }

  /**
   * Copies bytes into the ranges, the first `from` bytes of which are left alone: how many. Hot path: numbers only.
   */
  copy(iovecs: Iovecs, from: number): number {
    const target = iovecs.memory!.bytes
    const pieces = this.#pieces
    let piece = 0
    let at = this.#consumed
    let skip = from
    let done = 0
    for (let i = 0; i < iovecs.count && piece < pieces.length; i++) {
      let offset = iovecs.offsets[i]! + skip
      let length = iovecs.lengths[i]! - skip
      skip = Math.max(0, -length)
      while (length > 0 && piece < pieces.length) {
        const source = pieces[piece]!
        const part = Math.min(length, source.length - at)
        source.copy(target, offset, at, at + part)
        offset += part
        length -= part
        at += part
        done += part
        if (at === source.length) {
          piece++
          at = 0
        }
      }
    }
    return done
  }
}
