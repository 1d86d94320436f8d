// virtio/net_link.ts: what a network card's frames go to and come from: a stream socket (frames.ts), or a TAP device.
//
// A link takes frames out of a guest's buffers and puts them into them; which buffers, and what is in their headers
// (struct virtio_net_hdr, NET_HDR_BYTES before each frame), is the card's business (net.ts). A stream has no headers:
// checksums that the guest has left to us are filled in here, in a copy of the frame's own headers, as a buffer that
// was given to be read is not ours to write. The kernel does that behind a TAP device, which has the headers.
//
// Hot path: no allocation.

import { EAGAIN, EINTR } from '../base/errno.ts'
import { NET_FRAME_BYTES_MAX, NET_HEADERS_BYTES_MAX } from '../base/limits.ts'
import type { GuestRam } from '../services/guest_ram.ts'
import { Vectors } from '../sys/vectors.ts'
import { FrameReader, Sender } from './frames.ts'
import { fold, sumOf, swapped } from './net_checksum.ts'
import { addReadable } from './pieces.ts'
import type { Chain } from './queue.ts'

/** struct virtio_net_hdr_v1 { u8 flags, gso_type; le16 hdr_len, gso_size, csum_start, csum_offset, num_buffers; } */
export const NET_HDR_BYTES = 12
export const H_FLAGS = 0
export const H_GSO_TYPE = 1
export const H_HDR_LEN = 2
export const H_GSO_SIZE = 4
const H_CSUM_START = 6
const H_CSUM_OFFSET = 8
export const H_NUM_BUFFERS = 10
const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1

const LENGTH_BYTES = 4
const PIECES_MAX = 1000

/** Frames of a card. */
export interface Link {
  /** True while a frame that was begun has no end yet. */
  readonly isFilling: boolean
  /** Frames come with their header: the place must have room for it. */
  readonly hasHeader: boolean
  readonly isStuck: boolean
  readonly isClosed: boolean
  /** Bytes that must be placed for what comes next, without the header; 0: nothing comes now. */
  next(): number
  /** Begins a place for it, of `length` bytes, to which pieces are added; `place` follows, or another `next`. */
  begin(): Vectors
  place(length: number): void
  /** Fills the place. How many bytes there were, or 0: not yet. */
  fill(): number
  /** What comes next is nobody's. */
  skip(): void
  /** Makes the chain, of which `header` is a copy of the header, a frame on its way. False if it is no frame. */
  put(ram: GuestRam, chain: Chain, header: DataView): boolean
  /** Sends what is on its way. True if all of it has gone. */
  flush(): boolean
  /** The chain that is on its way, or -1; to be set back by the card. */
  chain: number
  /** The driver has taken its buffers away. */
  abandon(): void
}

/** Frames on a stream. */
export class StreamLink implements Link {
  readonly #in: FrameReader
  readonly #out: Sender
  readonly #headers: Uint8Array
  #length = 0

  constructor(memory: Uint8Array, fd: number) {
    this.#in = new FrameReader({ memory, fd, extra: 0, bodyMax: NET_FRAME_BYTES_MAX })
    this.#out = new Sender(memory, fd, LENGTH_BYTES + NET_HEADERS_BYTES_MAX)
    this.#headers = this.#out.vectors.head.subarray(LENGTH_BYTES)
  }

  readonly hasHeader = false
  get isFilling(): boolean { return this.#in.isFilling }
  get isStuck(): boolean { return this.#out.isStuck }
  get isClosed(): boolean { return this.#in.isClosed }
  get chain(): number { return this.#out.chain }
  set chain(chain: number) { this.#out.chain = chain }

  next(): number {
    // A frame of no bytes is nothing.
    while (this.#in.readHead()) {
      if (this.#in.bodyLeft > 0) return this.#in.bodyLeft
      this.#in.skip()
    }
    return 0
  }

  begin(): Vectors { return this.#in.begin() }

  place(length: number): void {
    this.#length = length
    this.#in.place(length)
  }

  fill(): number { return this.#in.fill() ? this.#length : 0 }
  skip(): void { this.#in.skip() }
  abandon(): void { this.#in.abandon() }
  flush(): boolean { return this.#out.flush() }

  put(ram: GuestRam, chain: Chain, header: DataView): boolean {
    const { vectors } = this.#out
    const length = chain.readBytes - NET_HDR_BYTES
    vectors.clear()
    vectors.headView.setUint32(0, length, false)
    const copied = (header.getUint8(H_FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM) === 0 ? 0
      : this.#fillChecksum(ram, chain, header)
    if (copied < 0) return false
    vectors.addHead(0, LENGTH_BYTES + copied)
    addReadable(vectors, chain, NET_HDR_BYTES + copied, chain.readBytes)
    return true
  }

  // Copies the frame's headers behind its length and fills the checksum in there. How many bytes; -1: there is none.
  #fillChecksum(ram: GuestRam, chain: Chain, header: DataView): number {
    const { headView } = this.#out.vectors
    const start = header.getUint16(H_CSUM_START, true)
    const field = start + header.getUint16(H_CSUM_OFFSET, true)
    const length = chain.readBytes - NET_HDR_BYTES
    if (field + 2 > length || field + 2 > NET_HEADERS_BYTES_MAX) return -1
    const copied = Math.min(length, NET_HEADERS_BYTES_MAX)
    let sum = 0
    let isOdd = false
    for (let i = 0, at = 0; i < chain.readable; i++) {
      // [low, high) of the chain's bytes belongs to the sum: all after the copied headers.
      const low = Math.max(at, NET_HDR_BYTES + copied)
      at += chain.lengths[i]!
      if (at <= low) continue
      const size = at - low
      const part = sumOf(ram.view, chain.offsets[i]! + chain.lengths[i]! - size, size)
      sum += isOdd ? swapped(part) : part
      isOdd = isOdd !== (size % 2 === 1)
    }
    chain.gather(ram, NET_HDR_BYTES, copied, this.#headers)
    const of = copied - start
    const rest = fold(sum)
    const total = fold(sumOf(headView, LENGTH_BYTES + start, of) + (of % 2 === 1 ? swapped(rest) : rest))
    // A sum of 0 would say that there is no checksum (UDP); all ones is the same number.
    headView.setUint16(LENGTH_BYTES + field, total === 0xffff ? 0xffff : ~total & 0xffff, true)
    return copied
  }
}

/** Frames of a TAP device that has virtio's headers: each read and each write is one, header and all. */
export class TapLink implements Link {
  readonly #fd: number
  readonly #in: Vectors
  readonly #out: Sender
  readonly #frameMax: () => number
  isClosed = false
  readonly isFilling = false
  readonly hasHeader = true

  /** `frameMax`: the longest frame that the guest takes. */
  constructor(memory: Uint8Array, fd: number, frameMax: () => number) {
    this.#fd = fd
    this.#in = new Vectors(memory, PIECES_MAX, 0)
    this.#out = new Sender(memory, fd, 0)
    this.#frameMax = frameMax
  }

  get isStuck(): boolean { return this.#out.isStuck }
  get chain(): number { return this.#out.chain }
  set chain(chain: number) { this.#out.chain = chain }

  // How long the next one is isn't known: there must be room for the longest.
  next(): number { return this.#frameMax() }

  begin(): Vectors {
    this.#in.clear()
    return this.#in
  }

  place(): void {}

  fill(): number {
    const read = this.#in.read(this.#fd)
    if (read > NET_HDR_BYTES) return read - NET_HDR_BYTES
    if (read !== -EAGAIN && read !== -EINTR && read <= 0) this.isClosed = true
    return 0
  }

  skip(): void {}
  abandon(): void {}

  put(_ram: GuestRam, chain: Chain): boolean {
    this.#out.vectors.clear()
    addReadable(this.#out.vectors, chain, 0, chain.readBytes)
    return true
  }

  flush(): boolean {
    const isDone = this.#out.flush()
    // A frame that the kernel doesn't like is no reason to send no other.
    this.#out.isClosed = false
    return isDone
  }
}
