// host/log_lines.ts: output of one guest as lines of its log, in the format of Kubernetes' CRI.
//
//   2026-11-21T14:00:00.123456789Z stdout F a line
//   2026-11-21T14:00:00.123456790Z stdout P a part of a long line, or a last one that had no end
//
// A line that has no end yet is kept, up to LOG_LINE_BYTES_MAX of it, and has the time of its end.

import { LOG_LINE_BYTES_MAX } from '../base/limits.ts'

const NEWLINE = 0x0a
const NOTHING = Buffer.alloc(0)
const STREAMS = ['', 'stdout', 'stderr']

/** A piece of output (`channel`: 1 stdout, 2 stderr), or the guest's end: then `bytes` is undefined. */
export type LogPiece = { readonly time: string; readonly channel: 1 | 2; readonly bytes: Uint8Array | undefined }

/** Cuts one guest's output into lines. */
export class LogLines {
  readonly #partial = [NOTHING, NOTHING, NOTHING]

  /** True if nothing is kept of a line that has no end yet. */
  get isWhole(): boolean {
    return this.#partial.every(({ length }) => length === 0)
  }

  /** The lines that are complete with these pieces, each with its newline, and how many there are. */
  take(pieces: readonly LogPiece[]): { bytes: Buffer; count: number } {
    const made: Buffer[] = []
    let count = 0
    const keep = (lines: Lines): void => {
      made.push(lines.bytes.subarray(0, lines.size))
      count += lines.count
    }
    for (const { time, channel, bytes } of pieces) {
      if (bytes === undefined) for (const one of [1, 2]) keep(this.#finish(time, one))
      else keep(this.#cut(time, channel, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)))
    }
    return { bytes: made.length === 1 ? made[0]! : Buffer.concat(made), count }
  }

  #cut(time: string, channel: number, bytes: Buffer): Lines {
    let rest = this.#partial[channel]!.length === 0 ? bytes : Buffer.concat([this.#partial[channel]!, bytes])
    const lines = new Lines(time, channel, rest)
    for (;;) {
      const newline = rest.indexOf(NEWLINE)
      const isLong = newline < 0 ? rest.length > LOG_LINE_BYTES_MAX : newline > LOG_LINE_BYTES_MAX
      if (newline < 0 && !isLong) break
      const end = isLong ? characterEnd(rest, LOG_LINE_BYTES_MAX) : newline
      lines.add(isLong, rest, end)
      rest = rest.subarray(isLong ? end : end + 1)
    }
    // A copy: what is kept must not keep the piece.
    this.#partial[channel] = rest.length === 0 ? NOTHING : Buffer.from(rest)
    return lines
  }

  #finish(time: string, channel: number): Lines {
    const rest = this.#partial[channel]!
    const lines = new Lines(time, channel, rest)
    if (rest.length > 0) lines.add(true, rest, rest.length)
    this.#partial[channel] = NOTHING
    return lines
  }
}

/** Lines that are made of one text, in one buffer. */
class Lines {
  readonly bytes: Buffer
  size = 0
  count = 0
  readonly #whole: Buffer
  readonly #part: Buffer

  constructor(time: string, channel: number, text: Buffer) {
    this.#whole = Buffer.from(`${time} ${STREAMS[channel]} F `)
    this.#part = Buffer.from(`${time} ${STREAMS[channel]} P `)
    let most = 1 + Math.ceil(text.length / (LOG_LINE_BYTES_MAX - 3))
    for (let at = text.indexOf(NEWLINE); at >= 0; at = text.indexOf(NEWLINE, at + 1)) most++
    this.bytes = Buffer.allocUnsafe(text.length + most * (this.#whole.length + 1))
  }

  add(isPart: boolean, text: Buffer, end: number): void {
    const prefix = isPart ? this.#part : this.#whole
    prefix.copy(this.bytes, this.size)
    text.copy(this.bytes, this.size + prefix.length, 0, end)
    this.size += prefix.length + end
    this.bytes[this.size++] = NEWLINE
    this.count++
  }
}

// The end of a character at or before `at`: a part of a line is text by itself.
function characterEnd(bytes: Buffer, at: number): number {
  let end = at
  while (end > at - 4 && (bytes[end]! & 0xc0) === 0x80) end--
  return end > at - 4 ? end : at
}
