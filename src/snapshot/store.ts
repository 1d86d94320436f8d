// snapshot/store.ts: the snapshots of a project in one folder, which several processes use at once.
//
// A snapshot is a small file with its digest as a name, and chunks in packs, which snapshots share. Its file comes
// last: one that is there is complete. What fails or is killed on the way leaves nothing that counts; what a power
// failure cuts off is noticed when it is read, as each byte is covered by a digest.
//
// Elsewhere: what a snapshot says (format.ts), files (disk.ts), chunks on disk (packs.ts), what is freed (collect.ts),
// streams between hosts (transfer.ts), registries (artifact.ts).

import { Buffer } from 'node:buffer'
import { hash } from 'node:crypto'
import { setImmediate as otherWork } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'
import { SNAPSHOT_BYTES_MAX } from '../base/limits.ts'
import { CAPTURE_VERSION, type CellState, type MemoryImage } from '../cell/state.ts'
import { isDigest } from '../image/reference.ts'
import type { MachineState } from '../machine/state.ts'
import { CHUNK_BYTES, hashAt, jobOf } from './chunk_work.ts'
import { collectGarbage, SNAPSHOT_FILE } from './collect.ts'
import { crew } from './crew.ts'
import { Malformed } from './codec.ts'
import { Folder } from './disk.ts'
import { decodeSnapshot, encodeSnapshot, ZERO_HASH, type ChunkRef, type Snapshot, type SnapshotMeta } from './format.ts'
import { Packs, type Draft } from './packs.ts'
import { Incoming, RECEIVED, recordsOf, streamOf } from './transfer.ts'

/** Chunks that are verified at once while a stream comes in: 4 MiB. */
const BATCH_CHUNKS = 64
/** Times that chunks are stored again because somebody has removed them meanwhile. */
const TRIES_MAX = 8

/**
 * The memory of a guest's last snapshot, to compare the next one with: pages that are the same are neither hashed nor
 * stored again. It keeps the memory's bytes.
 */
export type Known = { readonly image: MemoryImage; readonly hashes: readonly string[] }

/** What was written. Bytes on disk: of what it has brought, of all that it refers to. */
export type WrittenSnapshot = {
  readonly digest: string; readonly memoryBytes: number; readonly newBytes: number; readonly storedBytes: number
  readonly chunks: number; readonly newChunks: number
  readonly known: Known | undefined
}

/** What a reader expects: the program, how many pages its memory may have. Else SNAPSHOT_FOREIGN. */
export type Expected = { readonly module?: string | undefined; readonly pagesMax?: number | undefined }

/** What `receive` has got: the snapshot is here if nothing is missing. */
export type Received = { readonly digest: string; readonly missing: readonly string[] }

/** Snapshots. Errors of the disk are HOST_DISK_FULL and HOST_STATE_UNUSABLE; then nothing was kept. */
export class SnapshotStore {
  readonly #folder: Folder
  readonly #packs: Packs

  /** Makes the folder if it isn't there, and removes what writers that were killed have left. */
  constructor(folder: string) {
    this.#folder = new Folder(folder)
    this.#packs = new Packs(this.#folder)
  }

  /**
   * Keeps a snapshot. `durable`: it is on the disk when this resolves. Throws CAPTURE_IMPOSSIBLE for what no snapshot
   * can have.
   */
  async write(meta: SnapshotMeta, state: CellState | MachineState,
    options: { durable: boolean; known?: Known | undefined }):
  Promise<WrittenSnapshot> {
    const { durable, known } = options
    const { memory } = state
    const hashes = memory === undefined ? [] : await hashesOf(memory, known)
    // A page that is all zero is left out: so a state has one snapshot.
    const slots = new Map<string, number>()
    const chunks: ChunkRef[] = []
    hashes.forEach((hash, slot) => {
      if (hash === ZERO_HASH) return
      chunks.push({ page: memory!.present[slot]!, hash })
      slots.set(hash, slot)
    })
    const bytes = encoded(meta, state, chunks)
    const digest = hash('sha256', bytes)
    const added = { bytes: bytes.length, chunks: 0 }
    for (let tries = 0; tries === 0 || (tries < TRIES_MAX && !this.#packs.areThere(slots.keys())); tries++) {
      const lacking = await this.#packs.lacking(slots.keys())
      const drafts = lacking.length === 0 ? []
        : await this.#packs.pack(lacking.map((hash) => ({ hash, slot: slots.get(hash)! })), memory!.bytes)
      await this.#keep(drafts, slots.keys(), { digest, bytes }, durable)
      added.chunks += lacking.length
      for (const draft of drafts) added.bytes += draft.size
    }
    let storedBytes = bytes.length
    for (const hash of slots.keys()) storedBytes += this.#packs.storedBytes(hash)
    return {
      digest: `sha256:${digest}`, memoryBytes: (memory?.pages ?? 0) * CHUNK_BYTES, newBytes: added.bytes, storedBytes,
      chunks: chunks.length, newChunks: added.chunks,
      known: memory === undefined ? undefined : { image: memory, hashes },
    }
  }

  /**
   * A snapshot, whole and verified. `known`: as if it had just been written. `before`: what was read or written lately:
   * pages of it aren't read again. `spare`: memory of an image that nobody needs any more. Throws NOT_FOUND,
   * SNAPSHOT_DAMAGED, SNAPSHOT_FOREIGN, SNAPSHOT_NEWER.
   */
  async read(digest: string, expected: Expected = {}, before?: Known, spare?: SharedArrayBuffer):
  Promise<{ meta: SnapshotMeta; state: CellState; known: Known | undefined }> {
    const snapshot = this.inspect(digest)
    const { meta, state, chunks } = snapshot
    checkExpected(snapshot, expected)
    if ('machine' in state) throw new CellarError('SNAPSHOT_FOREIGN', [`it is of "${meta.guest}", a machine`])
    if (state.memory === undefined) return { meta, state: { ...state, memory: undefined }, known: undefined }
    const { memory, known } = await this.#memory(digest, state.memory.pages, chunks, before, spare)
    return { meta, state: { ...state, memory }, known }
  }

  /** As read, of a machine. */
  async readMachine(digest: string, expected: Expected = {}, before?: Known, spare?: SharedArrayBuffer):
  Promise<{ meta: SnapshotMeta; state: MachineState; known: Known }> {
    const snapshot = this.inspect(digest)
    const { meta, state, chunks } = snapshot
    checkExpected(snapshot, expected)
    if (!('machine' in state)) throw new CellarError('SNAPSHOT_FOREIGN', [`it is of "${meta.guest}", a cell`])
    const { memory, known } = await this.#memory(digest, state.memory.pages, chunks, before, spare)
    return { meta, state: { ...state, memory }, known }
  }

  async #memory(digest: string, pages: number, chunks: readonly ChunkRef[], before: Known | undefined,
    spare: SharedArrayBuffer | undefined): Promise<{ memory: MemoryImage; known: Known }> {
    const hashes = chunks.map((one) => one.hash)
    const lost = this.#packs.absent(hashes)
    if (lost !== undefined) throw new CellarError('SNAPSHOT_DAMAGED', [digest, `chunk ${lost} isn't there`])
    const needed = chunks.length * CHUNK_BYTES
    const bytes = spare !== undefined && spare.byteLength >= needed ? spare : roomFor(needed, digest)
    const slots = hashes.map((hash, slot) => ({ hash, slot }))
    const [bad] = await this.#packs.unpack(before === undefined ? slots : copyKnown(slots, before, bytes), bytes)
    if (bad !== undefined) throw new CellarError('SNAPSHOT_DAMAGED', [digest, `chunk ${bad} isn't there, or is wrong`])
    const memory = { pages, present: Uint32Array.from(chunks, (one) => one.page), bytes }
    return { memory, known: { image: memory, hashes } }
  }

  /** What a snapshot says, and the hashes of its chunks. Throws NOT_FOUND, SNAPSHOT_DAMAGED, SNAPSHOT_NEWER. */
  inspect(digest: string): Snapshot { return decodeSnapshot(this.manifest(digest), digest) }

  /** A snapshot's bytes without its chunks: what goes to another host first. Throws NOT_FOUND, SNAPSHOT_DAMAGED. */
  manifest(digest: string): Buffer {
    const bytes = isDigest(digest) ? this.#folder.read(fileOf(digest), SNAPSHOT_BYTES_MAX) : undefined
    if (bytes === undefined) throw new CellarError('NOT_FOUND', ['snapshot', digest])
    if (`sha256:${hash('sha256', bytes)}` === digest) return bytes
    throw new CellarError('SNAPSHOT_DAMAGED', [digest, 'its digest is wrong'])
  }

  /** Digests of all snapshots, in no order. */
  list(): string[] {
    return this.#folder.names(SNAPSHOT_FILE).filter((name) => name.length === 64).map((name) => `sha256:${name}`)
  }

  has(digest: string): boolean { return isDigest(digest) && this.#folder.has(fileOf(digest)) }

  /** Since when a snapshot is here, in milliseconds since 1970; undefined if it isn't. */
  cameAt(digest: string): number | undefined {
    return isDigest(digest) ? this.#folder.writtenAt(fileOf(digest)) : undefined
  }

  /** Removes a snapshot; what only it refers to goes with the next `collect`. False if it isn't there. */
  remove(digest: string): boolean { return isDigest(digest) && this.#folder.remove(fileOf(digest)) }

  /** Frees what no snapshot refers to, whoever else uses the folder meanwhile; answers the bytes. */
  async collect(): Promise<number> {
    this.#folder.sweep()
    return await collectGarbage(this.#folder, this.#packs)
  }

  /** Which chunks of a snapshot (its bytes, as `manifest` gives them) aren't here. Throws as `inspect`. */
  async lacking(manifest: Uint8Array, expected: Expected = {}): Promise<string[]> {
    const snapshot = decodeSnapshot(manifest, RECEIVED)
    checkExpected(snapshot, expected)
    return await this.#packs.lacking(snapshot.chunks.map((one) => one.hash))
  }

  /** A snapshot as a stream for `receive`, with these of its chunks: by default all. Throws as `inspect`. */
  send(digest: string, chunks?: Iterable<string>): AsyncGenerator<Uint8Array> {
    const wanted = chunks ?? new Set(this.inspect(digest).chunks.map((one) => one.hash))
    return streamOf(this.manifest(digest), this.records(digest, wanted))
  }

  /** These chunks of a snapshot, as a stream has them. Throws SNAPSHOT_DAMAGED. */
  records(digest: string, chunks: Iterable<string>): Generator<Uint8Array> {
    return recordsOf(this.#packs.stored(chunks, digest))
  }

  /**
   * Takes what `send` gives. Each chunk is verified, and must be one of the snapshot's. If none is missing in the end,
   * the snapshot is kept; else its chunks are, until `collect`. A stream that fails leaves whole packs at most.
   */
  async receive(stream: AsyncIterable<Uint8Array>, options: { durable: boolean } & Expected): Promise<Received> {
    const { durable, ...expected } = options
    await using incoming = new Incoming(stream)
    const bytes = await incoming.manifest()
    const snapshot = decodeSnapshot(bytes, RECEIVED)
    checkExpected(snapshot, expected)
    const wanted = new Set(snapshot.chunks.map((one) => one.hash))
    const digest = hash('sha256', bytes)
    const drafts = await this.#take(incoming, new Set(wanted), durable)
    using _drafts = disposing(drafts)
    await this.#keep(drafts, wanted, undefined, durable)
    const missing = await this.#packs.lacking(wanted)
    if (missing.length > 0) return { digest: `sha256:${digest}`, missing }
    await this.#keep([], wanted, { digest, bytes }, durable)
    const gone = this.#packs.areThere(wanted) ? [] : await this.#packs.lacking(wanted)
    if (gone.length > 0) this.remove(`sha256:${digest}`)
    return { digest: `sha256:${digest}`, missing: gone }
  }

  // Drafts of what comes; those that are full are kept at once.
  async #take(incoming: Incoming, wanted: Set<string>, durable: boolean): Promise<Draft[]> {
    let draft: Draft | undefined
    try {
      for (let batch; (batch = await batchOf(incoming)).length > 0;) {
        const hashes = await hashesOfStored(batch)
        for (const [index, stored] of batch.entries()) {
          if (!wanted.delete(hashes[index]!)) {
            const why = "it comes with a chunk that it doesn't name, or with one twice"
            throw new CellarError('SNAPSHOT_DAMAGED', [RECEIVED, why])
          }
          draft ??= this.#packs.draft()
          draft.add(hashes[index]!, stored)
          if (!draft.isFull) continue
          await this.#keep([draft], [], undefined, durable)
          draft = undefined
        }
        await otherWork()
      }
    } catch (error) {
      draft?.[Symbol.dispose]()
      throw error
    }
    return draft === undefined ? [] : [draft]
  }

  // Gives drafts their names, and then the snapshot its own. All is written before anything has a name.
  async #keep(drafts: readonly Draft[], chunks: Iterable<string>,
    snapshot: { readonly digest: string; readonly bytes: Uint8Array } | undefined, durable: boolean): Promise<void> {
    using _drafts = disposing(drafts)
    using file = snapshot === undefined ? undefined : this.#folder.create()
    if (snapshot !== undefined) file!.write(snapshot.bytes, 0)
    await Promise.all([...drafts.map((draft) => draft.finish(durable)), file?.finish(durable)])
    this.#packs.publish(drafts, durable)
    if (durable) await this.#packs.sync(chunks)
    // Names come to the disk in the order in which they are given, as far as they are in one folder.
    file?.keep(fileOf(snapshot!.digest))
    if (durable) await this.#folder.sync()
  }
}

function encoded(meta: SnapshotMeta, state: CellState | MachineState, chunks: readonly ChunkRef[]): Buffer {
  try {
    return encodeSnapshot(meta, state, chunks)
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    throw new CellarError('CAPTURE_IMPOSSIBLE', [meta.guest, error.message], { cause: error })
  }
}

// The hashes of a memory's pages; those that are the same as in the last one are taken from there.
async function hashesOf(memory: MemoryImage, known: Known | undefined): Promise<string[]> {
  const hashes = Array.from(memory.present, () => '')
  const slots: number[] = []
  const before = known?.image
  let other = 0
  for (const [slot, page] of memory.present.entries()) {
    while (before?.present[other] !== undefined && before.present[other]! < page) other++
    const isSame = before?.present[other] === page &&
      Buffer.from(memory.bytes, slot * CHUNK_BYTES, CHUNK_BYTES)
        .equals(Buffer.from(before.bytes, other * CHUNK_BYTES, CHUNK_BYTES))
    if (isSame) hashes[slot] = known!.hashes[other]!
    else slots.push(slot)
  }
  const job = jobOf('hash', slots.length, memory.bytes)
  job.slots.set(slots)
  await crew.run(job)
  slots.forEach((slot, row) => { hashes[slot] = hashAt(job, row) })
  return hashes
}

// What a machine has too little memory for isn't the process's end.
function roomFor(bytes: number, digest: string): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(bytes)
  } catch (cause) {
    throw new CellarError('MEMORY_UNAVAILABLE', [digest, formatSize(bytes)], { cause })
  }
}

// Copies what is there already: what is left to be read.
function copyKnown<T extends { readonly hash: string; readonly slot: number }>(wanted: readonly T[],
  { image, hashes }: Known, bytes: SharedArrayBuffer): T[] {
  const [from, to] = [new Uint8Array(image.bytes), new Uint8Array(bytes)]
  const known = new Map(hashes.map((hash, slot) => [hash, slot]))
  return wanted.filter(({ hash, slot }) => {
    const at = known.get(hash)
    if (at === undefined) return true
    to.set(from.subarray(at * CHUNK_BYTES, (at + 1) * CHUNK_BYTES), slot * CHUNK_BYTES)
    return false
  })
}

async function batchOf(incoming: Incoming): Promise<Buffer[]> {
  const batch: Buffer[] = []
  for (let stored; batch.length < BATCH_CHUNKS && (stored = await incoming.chunk()) !== undefined;) batch.push(stored)
  return batch
}

// The hashes of what these unpack to. Throws nothing: zeros for what unpacks to no chunk.
async function hashesOfStored(batch: readonly Buffer[]): Promise<string[]> {
  const shared = new SharedArrayBuffer(batch.length * CHUNK_BYTES)
  const job = jobOf('unpack', batch.length, undefined, shared)
  batch.forEach((stored, row) => {
    Buffer.from(shared).set(stored, row * CHUNK_BYTES)
    job.offsets[row] = row * CHUNK_BYTES
    job.lengths[row] = stored.length
  })
  await crew.run(job)
  return batch.map((_, row) => hashAt(job, row))
}

function checkExpected({ meta, state }: Snapshot, { module, pagesMax }: Expected): void {
  const foreign = (why: string): CellarError => new CellarError('SNAPSHOT_FOREIGN', [why])
  if (!('machine' in state) && state.version !== CAPTURE_VERSION) {
    throw foreign(`its frames have layout ${state.version}, this Cellar goes on with ${CAPTURE_VERSION}`)
  }
  if (module !== undefined && meta.module !== module) throw foreign(`it is of program ${meta.module}, not ${module}`)
  const pages = state.memory?.pages ?? 0
  if (pagesMax !== undefined && pages > pagesMax) {
    throw foreign(`its memory has ${pages} pages of 64 KiB, ${pagesMax} is the most`)
  }
}

function disposing(all: readonly Disposable[]): Disposable {
  return { [Symbol.dispose]: () => { for (const one of all) one[Symbol.dispose]() } }
}

function fileOf(digest: string): string { return digest.replace('sha256:', '') + SNAPSHOT_FILE }
