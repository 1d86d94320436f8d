// snapshot/transfer.ts: a snapshot as a stream of bytes, from host to host.
//
//   CELLSEND · version u32 = 1 · length u32 · the snapshot (format.ts) · chunks · 0 u32
//   a chunk: length u32 · as it is stored
//
// Chunks come in any order, only those that the receiver lacks, and are known by the hashes of what they unpack to. The
// last length is 0: what is cut off is noticed. Elsewhere: what the receiver believes of it (store.ts).

import { Buffer } from 'node:buffer'
import { setImmediate as otherWork } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { SNAPSHOT_BYTES_MAX } from '../base/limits.ts'
import { CHUNK_BYTES } from './chunk_work.ts'

const MAGIC = Buffer.from('CELLSEND')
const VERSION = 1
/** Bytes that are gathered before they are sent. */
const PIECE_BYTES = 256 * 1024

/** The stream of a snapshot and chunks, these as recordsOf has them. */
export async function* streamOf(
  manifest: Uint8Array, records: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  yield Buffer.concat([MAGIC, u32(VERSION), u32(manifest.length), manifest])
  for await (const piece of records) {
    yield piece
    // Files are read at once, and who takes it may have room for all: consoles are served between pieces.
    await otherWork()
  }
  yield u32(0)
}

/** Chunks with their lengths, in pieces of some size. */
export function* recordsOf(stored: Iterable<Uint8Array>): Generator<Buffer> {
  let pieces: Uint8Array[] = []
  let size = 0
  for (const chunk of stored) {
    pieces.push(u32(chunk.length), chunk)
    size += chunk.length
    if (size < PIECE_BYTES) continue
    yield Buffer.concat(pieces)
    pieces = []
    size = 0
  }
  yield Buffer.concat(pieces)
}

/** Reads such a stream. Throws SNAPSHOT_DAMAGED, SNAPSHOT_NEWER, and what the stream throws. */
export class Incoming implements AsyncDisposable {
  readonly #stream: AsyncIterator<Uint8Array>
  #bytes = Buffer.alloc(0)
  #hasEnded = false

  constructor(stream: AsyncIterable<Uint8Array>) {
    this.#stream = stream[Symbol.asyncIterator]()
  }

  /** The snapshot, which comes first. */
  async manifest(): Promise<Buffer> {
    const head = await this.#take(MAGIC.length + 4)
    if (!head.subarray(0, MAGIC.length).equals(MAGIC)) throw damaged('it is none')
    const version = head.readUInt32LE(MAGIC.length)
    if (version > VERSION) throw new CellarError('SNAPSHOT_NEWER', [RECEIVED, version, VERSION])
    const length = (await this.#take(4)).readUInt32LE()
    if (length > SNAPSHOT_BYTES_MAX) throw damaged('it is too large')
    return await this.#take(length)
  }

  /** The next chunk as it is stored; undefined at the end. */
  async chunk(): Promise<Buffer | undefined> {
    if (this.#hasEnded) return undefined
    const length = (await this.#take(4)).readUInt32LE()
    if (length > CHUNK_BYTES) throw damaged('a chunk is too large')
    if (length > 0) return await this.#take(length)
    if (this.#bytes.length > 0 || (await this.#stream.next()).done !== true) throw damaged('something follows it')
    this.#hasEnded = true
    return undefined
  }

  /** No more of it is wanted. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stream.return?.()
  }

  // The next bytes. They are copies: the stream may use its own again.
  async #take(length: number): Promise<Buffer> {
    if (this.#bytes.length < length) {
      const pieces = [this.#bytes]
      for (let have = this.#bytes.length; have < length;) {
        const next = await this.#stream.next()
        if (next.done === true) throw damaged('it ends too early')
        pieces.push(Buffer.from(next.value))
        have += next.value.length
      }
      this.#bytes = Buffer.concat(pieces)
    }
    const taken = this.#bytes.subarray(0, length)
    this.#bytes = this.#bytes.subarray(length)
    return taken
  }
}

/** What a snapshot that comes is called in messages. */
export const RECEIVED = 'received'

function damaged(why: string): CellarError {
  return new CellarError('SNAPSHOT_DAMAGED', [RECEIVED, why])
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
