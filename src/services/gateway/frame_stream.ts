// services/gateway/frame_stream.ts: frames over a stream socket, each after its length: 32 bits, big-endian.
//
// As QEMU's `-netdev stream` has it. Frames come out of one slab, whose rest waits for its other half; frames go into
// slabs that belong to the socket until it has written them. When all of them do, there is no room: who sends frames
// asks again when told (`room`). So a guest that takes no frames costs a bounded amount of memory. What comes is always
// read: a guest that sends must not be kept from it by what it doesn't read itself.

import type { Duplex } from 'node:stream'
import { GATEWAY_FRAME_BYTES_MAX } from '../../base/limits.ts'
import { Slab, type FramePort, type FrameTaker } from './slab.ts'

const LENGTH_BYTES = 4
/** Half as many again as a frame needs: then several frames go together. */
const SLAB_BYTES = 128 * 1024
const SLABS = 6
const IN_BYTES = 256 * 1024

/** See the head of this file. */
export class FrameStream implements FramePort {
  slab: Slab
  readonly #socket: Duplex
  readonly #free: Slab[] = []
  #made = 1
  #isOwned = true
  #used = 0
  #building = 0
  #wasFull = false
  readonly #in = new Slab(IN_BYTES)
  #held = 0
  #isClosed = false
  #taker: FrameTaker | undefined

  constructor(socket: Duplex) {
    this.#socket = socket
    this.slab = new Slab(SLAB_BYTES)
  }

  start(taker: FrameTaker): void {
    this.#taker = taker
    this.#socket.on('data', (bytes: Buffer) => this.#came(bytes))
    this.#socket.on('end', () => this.#end(this.#held === 0 ? '' : 'the stream ended within a frame'))
    this.#socket.on('error', (error) => this.#end(error.message))
    this.#socket.on('close', () => this.#end(''))
  }

  begin(size: number): number {
    const needed = LENGTH_BYTES + size
    if (this.#isClosed) return -1
    if (this.#isOwned && SLAB_BYTES - this.#used < needed) this.flush()
    if (!this.#isOwned && !this.#takeSlab()) {
      this.#wasFull = true
      return -1
    }
    this.slab.view.setUint32(this.#used, size)
    this.#building = needed
    return this.#used + LENGTH_BYTES
  }

  end(): void {
    this.#used += this.#building
  }

  flush(): void {
    if (!this.#isOwned || this.#used === 0 || this.#isClosed) return
    const { slab } = this
    const bytes = slab.bytes.subarray(0, this.#used)
    this.#isOwned = false
    this.#used = 0
    this.#socket.write(bytes, () => this.#written(slab))
  }

  close(): void {
    this.#isClosed = true
    this.#socket.destroy()
  }

  #takeSlab(): boolean {
    const free = this.#free.pop()
    if (free === undefined && this.#made === SLABS) return false
    if (free === undefined) this.#made++
    this.slab = free ?? new Slab(SLAB_BYTES)
    this.#isOwned = true
    return true
  }

  #written(slab: Slab): void {
    this.#free.push(slab)
    if (!this.#wasFull || this.#isClosed) return
    this.#wasFull = false
    this.#taker?.room()
  }

  #came(bytes: Buffer): void {
    for (let from = 0; from < bytes.length && !this.#isClosed;) {
      const size = Math.min(bytes.length - from, IN_BYTES - this.#held)
      bytes.copy(this.#in.bytes, this.#held, from, from + size)
      this.#held += size
      from += size
      this.#takeFrames()
    }
    if (!this.#isClosed) this.#taker!.batch()
  }

  #takeFrames(): void {
    let at = 0
    while (this.#held - at >= LENGTH_BYTES && !this.#isClosed) {
      const size = this.#in.view.getUint32(at)
      if (size > GATEWAY_FRAME_BYTES_MAX) return this.#end(`a frame of ${size} bytes`)
      const end = at + LENGTH_BYTES + size
      if (end > this.#held) break
      this.#taker!.frame(this.#in, at + LENGTH_BYTES, end)
      at = end
    }
    if (at === 0) return
    this.#in.bytes.copyWithin(0, at, this.#held)
    this.#held -= at
  }

  #end(why: string): void {
    if (this.#isClosed) return
    this.close()
    this.#taker!.ended(why)
  }
}
