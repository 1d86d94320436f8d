// host/out_stream.ts: output of a guest on its way to the host, as fast as the host takes it.
//
// The host grants room (`credit`), STREAM_WINDOW_BYTES_MAX at first; what has none waits here. Who wrote a piece is
// told when all of it has been sent: that is how `exec` slows its guest. An attachment slows nobody, so what waits for
// it is bounded by who writes (consoles.ts).

import { STREAM_FRAME_BYTES_MAX, STREAM_WINDOW_BYTES_MAX } from '../base/limits.ts'
import type { HostLine } from './host_line.ts'

type Piece = { readonly channel: number; bytes: Uint8Array; readonly done: (() => void) | undefined }

/** One stream to the host. */
export class OutStream {
  readonly number: number
  readonly #line: HostLine
  readonly #over: () => void
  #room = STREAM_WINDOW_BYTES_MAX
  #pieces: Piece[] = []
  /** Bytes that wait. */
  waiting = 0
  #end: { status: number | undefined } | undefined
  #isOver = false

  /** `over` is called when all is sent, its end too. */
  constructor(line: HostLine, number: number, over: () => void) {
    this.#line = line
    this.#over = over
    this.number = number
  }

  /** `done` is called when it is sent, or nobody wants it any more. */
  write(channel: number, bytes: Uint8Array, done?: () => void): void {
    if (this.#isOver) return done?.()
    this.#pieces.push({ channel, bytes, done })
    this.waiting += bytes.length
    this.#pump()
  }

  /** The host takes so many bytes more. */
  credit(bytes: number): void {
    this.#room += bytes
    this.#pump()
  }

  /** Nothing more comes: the host is told when all was sent. */
  end(status?: number): void {
    this.#end ??= { status }
    this.#pump()
  }

  /** What waits is dropped; the host is told the end at once, unless nobody is there to be told. */
  cut(tell: boolean): void {
    if (this.#isOver) return
    for (const { done } of this.#pieces.splice(0)) done?.()
    this.waiting = 0
    if (tell) this.end()
    this.#isOver = true
  }

  #pump(): void {
    while (this.#room > 0 && this.#pieces.length > 0) {
      const piece = this.#pieces[0]!
      const bytes = piece.bytes.subarray(0, Math.min(this.#room, STREAM_FRAME_BYTES_MAX))
      this.#room -= bytes.length
      this.waiting -= bytes.length
      this.#line.sendBytes(this.number, piece.channel, bytes)
      if (bytes.length < piece.bytes.length) piece.bytes = piece.bytes.subarray(bytes.length)
      else {
        this.#pieces.shift()
        piece.done?.()
      }
    }
    if (this.#pieces.length > 0 || this.#end === undefined || this.#isOver) return
    this.#isOver = true
    const { status } = this.#end
    this.#line.send({ eof: this.number, ...(status === undefined ? {} : { status }) })
    this.#over()
  }
}
