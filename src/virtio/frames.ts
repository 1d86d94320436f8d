// virtio/frames.ts: frames on a stream socket, read straight into a guest's buffers and written straight out of them.
//
// On the stream each frame comes after its length, 32 bits, big-endian (as QEMU's stream netdev has it). A reader takes
// the length of the next frame with the rest of this one, so that a frame costs one system call. Some of a frame may
// belong to its head (`extra` bytes: a vsock packet's header), which is read into memory of ours before there is a
// place for the rest. A stream has no frame boundaries to find again: what was begun is always brought to its end, even
// if the driver has taken its buffers away meanwhile; then the rest goes nowhere (`abandon`).
//
// Hot path: no allocation.

import { EAGAIN, EINTR } from '../base/errno.ts'
import { Vectors } from '../sys/vectors.ts'

const LENGTH_BYTES = 4
/** Pieces of a frame: more are not looked for. */
const PIECES_MAX = 1000
const SINK_BYTES = 16 * 1024

/** What a reader is doing: reading a head, waiting for a place for a body, filling that place. */
const HEAD = 0
const BODY = 1
const FILLING = 2

/** Frames from a stream. */
export class FrameReader {
  readonly vectors: Vectors
  readonly #fd: number
  readonly #headBytes: number
  readonly #bodyMax: number
  #phase: typeof HEAD | typeof BODY | typeof FILLING = HEAD
  /** Bytes of the frame that have no place yet. */
  #bodyLeft = 0
  // Bytes at the end of the list that are the next frame's head.
  #trailing = 0
  #skip = 0
  /** The other side has gone, or has sent what is no frame. */
  isClosed = false

  /** Frames of `extra` to `extra + bodyMax` bytes. */
  constructor(o: { memory: Uint8Array; fd: number; extra: number; bodyMax: number }) {
    this.#fd = o.fd
    this.#headBytes = LENGTH_BYTES + o.extra
    this.#bodyMax = o.bodyMax
    this.vectors = new Vectors(o.memory, PIECES_MAX + 1, this.#headBytes + SINK_BYTES)
    this.#nextHead()
  }

  /** True while a place that was given isn't full. */
  get isFilling(): boolean { return this.#phase === FILLING }
  /** Bytes of the current frame that have no place yet. */
  get bodyLeft(): number { return this.#bodyLeft }
  /** The `extra` bytes of the current frame, in `vectors.head`. */
  get extraAt(): number { return LENGTH_BYTES }

  /** True if a head has been read, and the frame's body waits for a place (it may be empty). */
  readHead(): boolean {
    if (this.#phase === BODY) return true
    if (this.isClosed || this.#phase === FILLING) return false
    while (this.#skip > 0) {
      this.vectors.clear()
      this.vectors.addHead(this.#headBytes, Math.min(this.#skip, SINK_BYTES))
      const read = this.#read()
      if (read <= 0) return false
      this.#skip -= read
      if (this.#skip === 0) this.#nextHead()
    }
    while (!this.vectors.isDone) if (this.#read() <= 0) return false
    const length = this.vectors.headView.getUint32(0, false)
    const body = length - (this.#headBytes - LENGTH_BYTES)
    if (!(body >= 0 && body <= this.#bodyMax)) {
      this.isClosed = true
      return false
    }
    this.#bodyLeft = body
    this.#phase = BODY
    return true
  }

  /** Begins a place for some of the body: its pieces are added to `vectors`; then `place` is called, or `unplace`. */
  begin(): Vectors {
    this.vectors.clear()
    return this.vectors
  }

  /** The pieces that were added, `length` bytes, are the place for the next so many bytes. */
  place(length: number): void {
    this.#bodyLeft -= length
    this.#trailing = this.#bodyLeft === 0 ? this.#headBytes : 0
    if (this.#trailing > 0) this.vectors.addHead(0, this.#trailing)
    this.#phase = FILLING
  }

  /** Reads into the place. True if it is full: then the next part of the body, or a head, is next. */
  fill(): boolean {
    while (this.vectors.left > this.#trailing) if (this.#read() <= 0) return false
    this.#phase = this.#trailing > 0 ? HEAD : BODY
    return true
  }

  /** Nobody wants the current frame's rest. */
  skip(): void {
    this.#skip = this.#bodyLeft + (this.#phase === FILLING ? this.vectors.left - this.#trailing : 0)
    this.#bodyLeft = 0
    this.#phase = HEAD
    if (this.#skip === 0) this.#nextHead()
  }

  /** The places that were given are gone. */
  abandon(): void {
    if (this.#phase !== HEAD) this.skip()
  }

  #nextHead(): void {
    this.vectors.clear()
    this.vectors.addHead(0, this.#headBytes)
  }

  #read(): number {
    const read = this.vectors.read(this.#fd)
    if (read === 0 || (read < 0 && read !== -EAGAIN && read !== -EINTR)) this.isClosed = true
    return read
  }
}

/** Something on its way to a stream or a device, one thing at a time. */
export class Sender {
  readonly vectors: Vectors
  readonly #fd: number
  /** The chain whose bytes they are, to be given back when they have gone; -1: none. */
  chain = -1
  /** The other side doesn't take any more at present. */
  isStuck = false
  isClosed = false

  constructor(memory: Uint8Array, fd: number, headBytes: number) {
    this.#fd = fd
    this.vectors = new Vectors(memory, PIECES_MAX, headBytes)
  }

  /** Writes what is left. True if nothing is. After the other side has gone everything goes, to nobody. */
  flush(): boolean {
    while (!this.vectors.isDone) {
      const written = this.vectors.write(this.#fd)
      if (written === -EINTR) continue
      if (written === -EAGAIN) {
        this.isStuck = true
        return false
      }
      if (written <= 0) {
        this.isClosed = true
        this.vectors.clear()
      }
    }
    this.isStuck = false
    return true
  }
}
