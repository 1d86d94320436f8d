// host/frames.ts: how messages and bytes lie on the connection between the host and a cell process.
//
//   0  length of what follows, u32 little-endian
//   4  kind, u8    0: a message, JSON in UTF-8
//                  1: bytes of a stream: its number, u32; a channel, u8 (STDIN, STDOUT, STDERR of protocol.ts); bytes
//
// Either side may be talking to something hostile: a length beyond the limit, an unknown kind, a frame that is too
// short and JSON that is none are errors, after which nothing of the connection can be understood. A frame that lies
// within one chunk isn't copied; one that spans several is copied once, into a buffer of its size (of which the kernel
// gives only the pages that are written: a length alone costs no memory).

import { FRAME_BYTES_MAX } from '../base/limits.ts'

const HEADER_BYTES = 5
const STREAM_HEADER_BYTES = 5
const MESSAGE = 0
const BYTES = 1

/** What a frame carries. `bytes` may share memory with the chunk that it came in. */
export type Frame =
  | { readonly kind: 'message'; readonly message: unknown }
  | { readonly kind: 'bytes'; readonly stream: number; readonly channel: number; readonly bytes: Buffer }

/** Something came that isn't a frame of ours. */
export class BadFrame extends Error {
  override readonly name = 'BadFrame'
}

/** A message as a frame. Throws RangeError if it is too large. */
export function messageFrame(message: unknown): Buffer {
  const text = JSON.stringify(message)
  const size = Buffer.byteLength(text)
  if (size + 1 > FRAME_BYTES_MAX) throw new RangeError(`Cannot send a message of ${size} bytes`)
  const frame = Buffer.allocUnsafe(HEADER_BYTES + size)
  frame.writeUInt32LE(size + 1, 0)
  frame[4] = MESSAGE
  frame.write(text, HEADER_BYTES)
  return frame
}

/** What goes before `size` bytes of a stream: they are sent after it as they are. */
export function bytesHeader(stream: number, channel: number, size: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES + STREAM_HEADER_BYTES)
  header.writeUInt32LE(1 + STREAM_HEADER_BYTES + size, 0)
  header[4] = BYTES
  header.writeUInt32LE(stream, HEADER_BYTES)
  header[HEADER_BYTES + 4] = channel
  return header
}

/** Makes frames of chunks, however they are cut. */
export class FrameDecoder {
  /** The frame that isn't complete yet: its header, or header and body; and how much of it is there. */
  #partial: Buffer = Buffer.alloc(0)
  #have = 0

  /** The frames that are complete with this chunk. Throws BadFrame. */
  push(chunk: Buffer): Frame[] {
    const frames: Frame[] = []
    let at = 0
    while (at < chunk.length) {
      if (this.#have === 0) {
        const end = chunk.length - at >= HEADER_BYTES ? at + sizeOf(chunk, at) : Infinity
        if (end <= chunk.length) {
          frames.push(parse(chunk.subarray(at, end)))
          at = end
          continue
        }
      }
      at += this.#keep(chunk, at)
      if (this.#have < HEADER_BYTES || this.#have < sizeOf(this.#partial, 0)) continue
      frames.push(parse(this.#partial.subarray(0, this.#have)))
      this.#partial = Buffer.alloc(0)
      this.#have = 0
    }
    return frames
  }

  // Takes what belongs to the frame in progress, up to its end or that of its header: how many bytes.
  #keep(chunk: Buffer, at: number): number {
    const wanted = this.#have < HEADER_BYTES ? HEADER_BYTES : sizeOf(this.#partial, 0)
    const count = Math.min(wanted - this.#have, chunk.length - at)
    const size = this.#have + count
    if (wanted > this.#partial.length) {
      const whole = Buffer.allocUnsafe(wanted)
      this.#partial.copy(whole, 0, 0, this.#have)
      this.#partial = whole
    }
    chunk.copy(this.#partial, this.#have, at, at + count)
    this.#have = size
    return count
  }
}

// Of a whole frame, its header included.
function sizeOf(bytes: Buffer, at: number): number {
  const length = bytes.readUInt32LE(at)
  if (length === 0 || length > FRAME_BYTES_MAX) throw new BadFrame(`a frame of ${length} bytes`)
  return 4 + length
}

function parse(frame: Buffer): Frame {
  const kind = frame[4]
  if (kind === BYTES) {
    if (frame.length < HEADER_BYTES + STREAM_HEADER_BYTES) throw new BadFrame('bytes of no stream')
    return { kind: 'bytes', stream: frame.readUInt32LE(HEADER_BYTES), channel: frame[HEADER_BYTES + 4]!,
      bytes: frame.subarray(HEADER_BYTES + STREAM_HEADER_BYTES) }
  }
  if (kind !== MESSAGE) throw new BadFrame(`a frame of kind ${kind}`)
  try {
    return { kind: 'message', message: JSON.parse(frame.toString('utf8', HEADER_BYTES)) as unknown }
  } catch (cause) {
    throw new BadFrame('a message that is no JSON', { cause })
  }
}
