// snapshot/packs.ts: chunks on disk, many in a file, found by their hashes.
//
//   CELLPACK · version u32 = 1 · stored chunks · index: a row for each · count u32 · SHA-256 of the index · CELLPACK
//   a row: SHA-256 of the chunk, 32 bytes · offset u32 · length u32
//
// A stored chunk of 65,536 bytes is the chunk; a shorter one is a zstd frame of it. A file holds what one snapshot has
// brought, 2,048 chunks at most: 256 files of one chunk each took 20 ms to write, one file of 256 takes 5 ms.
//
// Several processes add packs to a folder and remove them (collect.ts), so what is known of the folder is looked up
// again whenever something isn't found. An index is an allegation: that a chunk is there is believed once this process
// has written it, or has unpacked it and found its hash right. So what a power cut or a neighbour has damaged is never
// the reason not to store a chunk again.

import { Buffer } from 'node:buffer'
import { hash, randomBytes } from 'node:crypto'
import { closeSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { SNAPSHOT_CHUNKS_MAX } from '../base/limits.ts'
import { CHUNK_BYTES, HASH_BYTES, hashAt, jobOf, SIZE, type Job } from './chunk_work.ts'
import { crew } from './crew.ts'
import type { Folder, NewFile } from './disk.ts'
import { readAt } from './positioned.ts'

const MAGIC = Buffer.from('CELLPACK')
const VERSION = 1
const HEAD_BYTES = MAGIC.length + 4
const ROW_BYTES = HASH_BYTES + 8
const TAIL_BYTES = 4 + HASH_BYTES + MAGIC.length
/** Chunks of one pack: 128 MiB. */
const PACK_CHUNKS_MAX = 2048
/** Times that a chunk is looked for elsewhere when it isn't where it was. */
const TRIES_MAX = 8

const LOOKS = 3
/** Times SNAPSHOT_CHUNKS_MAX: several who write at once may pass it, not by so much. */
const MALICE = 2

/** Endings of packs, and of those that are being removed. */
export const PACK = '.pack'
export const OLD = '.pack.old'

/** A file with chunks. */
export type Pack = {
  /** With its ending. */
  readonly file: string
  readonly bytes: number
  readonly hashes: readonly string[]
  /** It is known to be on the disk. */
  synced: boolean
}

/** Where a chunk is. `trusted`: it was found right by this process. */
type Place = { readonly pack: Pack; readonly offset: number; readonly length: number; trusted: boolean }

/** A chunk that is wanted, and the page of a memory that it is, or shall be. */
export type Wanted = { readonly hash: string; readonly slot: number }

/** The packs of a folder. */
export class Packs {
  readonly #folder: Folder
  readonly #packs = new Map<string, Pack>()
  readonly #places = new Map<string, Place[]>()
  // Files that are no packs of ours: not looked at again.
  readonly #others = new Set<string>()
  readonly #chunksMax: number

  constructor(folder: Folder, chunksMax = SNAPSHOT_CHUNKS_MAX) {
    this.#folder = folder
    this.#chunksMax = chunksMax
  }

  /** Looks what there is in the folder. Throws HOST_STATE_UNUSABLE if there is too much. */
  refresh(): void {
    const found = new Set(this.#folder.files([PACK, OLD]))
    for (const [file, pack] of this.#packs) if (!found.has(file)) this.#forget(pack)
    for (const file of found) {
      if (this.#packs.has(file) || this.#others.has(file)) continue
      const read = this.#read(file)
      if (typeof read === 'object') this.#learn(read.pack, read.rows, false)
      else if (read !== 'gone') this.#others.add(file)
    }
  }

  /** All that are known. */
  all(): Iterable<Pack> { return this.#packs.values() }

  /** Files that claim to be packs and are damaged: nothing can be had of them. */
  damaged(): string[] { return [...this.#others].filter((file) => this.#read(file) === 'damaged') }

  /** Bytes that a chunk takes; 0 if it isn't there. */
  storedBytes(hash: string): number { return this.#place(hash)?.length ?? 0 }

  /** The first of these chunks that isn't known to be here, if there is one. */
  absent(hashes: readonly string[]): string | undefined {
    const find = (): string | undefined => hashes.find((one) => this.#place(one) === undefined)
    // More than once: while a file gets another name, a look at the folder may show neither.
    for (let tries = 0; tries < LOOKS && find() !== undefined; tries++) this.refresh()
    return find()
  }

  /** Those of these chunks that aren't here, each looked at. */
  async lacking(hashes: Iterable<string>): Promise<string[]> {
    this.refresh()
    const wanted = [...new Set(hashes)]
    const untrusted = wanted.filter((one) => this.#place(one)?.trusted === false)
    await this.unpack(untrusted.map((hash) => ({ hash, slot: 0 })), undefined)
    return wanted.filter((one) => !this.isKept(one))
  }

  /** Compresses pages of a memory into drafts of packs: who disposes them keeps nothing. */
  async pack(wanted: readonly Wanted[], memory: SharedArrayBuffer): Promise<Draft[]> {
    const drafts: Draft[] = []
    try {
      for (let at = 0; at < wanted.length; at += PACK_CHUNKS_MAX) {
        const part = wanted.slice(at, at + PACK_CHUNKS_MAX)
        const draft = this.draft()
        drafts.push(draft)
        const job = jobOf('pack', part.length, memory)
        part.forEach(({ slot }, row) => { job.slots[row] = slot })
        job.files.fill(draft.fd)
        job.control[SIZE] = draft.size
        await this.#run(job)
        part.forEach(({ hash }, row) => draft.has(hash, job.offsets[row]!, job.lengths[row]!))
      }
      return drafts
    } catch (error) {
      for (const draft of drafts) draft[Symbol.dispose]()
      throw error
    }
  }

  /** Begins a pack. */
  draft(): Draft { return new Draft(this.#folder.create()) }

  /** Gives drafts that are finished their names: from now on they are found. Throws ADMISSION_REFUSED: none is then. */
  publish(drafts: readonly Draft[], synced: boolean): void {
    const more = new Set(drafts.flatMap(({ rows }) => rows.map((row) => row.hash))).difference(this.#places).size
    if (more > 0 && this.#places.size + more > this.#chunksMax) {
      const left = `${Math.max(0, this.#chunksMax - this.#places.size)} of ${this.#chunksMax}`
      throw new CellarError('ADMISSION_REFUSED', ['a snapshot', 'room', `${more} chunks`, left])
    }
    for (const draft of drafts) {
      const file = randomBytes(16).toString('hex') + PACK
      draft.keep(file)
      const pack = { file, bytes: draft.size, hashes: draft.rows.map((row) => row.hash), synced }
      this.#learn(pack, draft.rows, true)
    }
  }

  /**
   * Unpacks chunks, into a memory if there is one, and verifies them. Answers those that can't be had. What is found
   * damaged counts as not there from now on.
   */
  async unpack(wanted: readonly Wanted[], memory: SharedArrayBuffer | undefined): Promise<string[]> {
    let left = wanted
    for (let tries = 0; left.length > 0 && tries < TRIES_MAX; tries++) {
      if (tries > 0 || left.some(({ hash }) => this.#place(hash) === undefined)) this.refresh()
      const next = await this.#unpackOnce(left, memory)
      if (next.every(({ hash }) => this.#place(hash) === undefined)) {
        this.refresh()
        if (next.every(({ hash }) => this.#place(hash) === undefined)) return next.map(({ hash }) => hash)
      }
      left = next
    }
    return left.map(({ hash }) => hash)
  }

  /** Chunks as they are stored, in this order. Throws SNAPSHOT_DAMAGED with `name` if one isn't there. */
  *stored(hashes: Iterable<string>, name: string): Generator<Buffer> {
    using files = new OpenPacks(this.#folder)
    for (const hash of hashes) {
      let bytes: Buffer | undefined
      for (let tries = 0; bytes === undefined && tries < TRIES_MAX; tries++) {
        const place = this.#place(hash)
        const fd = place === undefined ? undefined : files.open(place.pack)
        if (fd === undefined) this.refresh()
        else bytes = this.#folder.attempt(() => readAt(fd, place!.offset, place!.length))
      }
      if (bytes === undefined) throw new CellarError('SNAPSHOT_DAMAGED', [name, `chunk ${hash} isn't there`])
      yield bytes
    }
  }

  /** True if the packs that have these chunks are there still. */
  areThere(hashes: Iterable<string>): boolean {
    this.refresh()
    for (const hash of hashes) if (!this.isKept(hash)) return false
    return true
  }

  /** These chunks are on the disk when it resolves. */
  async sync(hashes: Iterable<string>): Promise<void> {
    const packs = new Set(Array.from(hashes, (hash) => this.#place(hash)?.pack).filter((pack) =>
      pack !== undefined && !pack.synced))
    using files = new OpenPacks(this.#folder)
    await Promise.all(Array.from(packs, async (pack) => {
      const fd = files.open(pack!)
      if (fd === undefined) return
      await this.#folder.syncFile(fd)
      pack!.synced = true
    }))
  }

  // Those that weren't right, or whose pack is gone: these places are forgotten.
  async #unpackOnce(wanted: readonly Wanted[], memory: SharedArrayBuffer | undefined): Promise<Wanted[]> {
    using files = new OpenPacks(this.#folder)
    const places: Place[] = []
    const found = wanted.filter(({ hash }) => {
      const place = this.#place(hash)
      if (place === undefined || files.open(place.pack) === undefined) return false
      places.push(place)
      return true
    })
    const job = jobOf('unpack', found.length, memory)
    found.forEach(({ slot }, row) => {
      const { pack, offset, length } = places[row]!
      job.slots[row] = slot
      job.files[row] = files.open(pack)!
      job.offsets[row] = offset
      job.lengths[row] = length
    })
    await this.#run(job)
    const wrong = new Set<Wanted>(wanted).difference(new Set(found))
    found.forEach((one, row) => {
      const isRight = hashAt(job, row) === one.hash
      places[row]!.trusted = isRight
      if (isRight) return
      wrong.add(one)
      this.#drop(one.hash, places[row]!)
    })
    return [...wrong]
  }

  async #run(job: Job): Promise<void> {
    try {
      await crew.run(job)
    } catch (error) {
      this.#folder.attempt(() => { throw error })
    }
  }

  // Where the chunk is; first where it is known to be right, last what is being removed.
  #place(hash: string): Place | undefined {
    const places = this.#places.get(hash)
    if (places === undefined || places.length === 1) return places?.[0]
    const kept = places.filter(({ pack }) => pack.file.endsWith(PACK))
    return kept.find((one) => one.trusted) ?? kept[0] ?? places[0]
  }

  /** True if a chunk is in a pack that stays. */
  isKept(hash: string): boolean { return this.#place(hash)?.pack.file.endsWith(PACK) === true }

  #learn(pack: Pack, rows: readonly Row[], trusted: boolean): void {
    this.#packs.set(pack.file, pack)
    for (const { hash, offset, length } of rows) {
      const place = { pack, offset, length, trusted }
      const others = this.#places.get(hash)
      if (others === undefined) this.#places.set(hash, [place])
      else others.push(place)
    }
    // Who writes stops before that, or what there is could be neither read nor freed: so much is somebody's malice.
    if (this.#places.size > this.#chunksMax * MALICE) {
      const why = `it has more than ${this.#chunksMax * MALICE} chunks`
      throw new CellarError('HOST_STATE_UNUSABLE', [this.#folder.path, why])
    }
  }

  #forget(pack: Pack): void {
    this.#packs.delete(pack.file)
    for (const hash of pack.hashes) {
      for (const place of this.#places.get(hash)?.filter((one) => one.pack === pack) ?? []) this.#drop(hash, place)
    }
  }

  #drop(hash: string, place: Place): void {
    const places = this.#places.get(hash)
    const at = places?.indexOf(place) ?? -1
    if (at >= 0) places!.splice(at, 1)
    if (places?.length === 0) this.#places.delete(hash)
  }

  #read(file: string): { pack: Pack; rows: readonly Row[] } | 'gone' | 'damaged' | 'newer' {
    const opened = this.#folder.open(file)
    if (opened === undefined) return 'gone'
    const { fd, size } = opened
    try {
      return this.#folder.attempt(() => {
        const head = readAt(fd, 0, HEAD_BYTES)
        if (head.length < HEAD_BYTES || !head.subarray(0, MAGIC.length).equals(MAGIC)) return 'damaged'
        const version = head.readUInt32LE(MAGIC.length)
        if (version > VERSION) return 'newer'
        const rows = version === VERSION ? readIndex(fd, size) : undefined
        if (rows === undefined) return 'damaged'
        const hashes = rows.map((row) => row.hash)
        return { pack: { file, bytes: size, hashes, synced: false }, rows }
      })
    } finally {
      closeSync(fd)
    }
  }
}

/** A pack that is being written. Dispose it: what wasn't published is gone then. */
export class Draft {
  readonly #file: NewFile
  readonly rows: Row[] = []
  /** Bytes that it has. */
  size = HEAD_BYTES

  constructor(file: NewFile) {
    this.#file = file
    const head = Buffer.alloc(HEAD_BYTES)
    MAGIC.copy(head)
    head.writeUInt32LE(VERSION, MAGIC.length)
    file.write(head, 0)
  }

  get fd(): number { return this.#file.fd }
  get isFull(): boolean { return this.rows.length >= PACK_CHUNKS_MAX }

  /** Somebody has written a chunk into the file. */
  has(hash: string, offset: number, length: number): void {
    this.rows.push({ hash, offset, length })
    this.size = Math.max(this.size, offset + length)
  }

  /** Adds a chunk as it is stored. */
  add(hash: string, stored: Uint8Array): void {
    this.#file.write(stored, this.size)
    this.has(hash, this.size, stored.length)
  }

  /** Writes the index. */
  async finish(durable: boolean): Promise<void> {
    const index = Buffer.alloc(this.rows.length * ROW_BYTES + TAIL_BYTES)
    this.rows.forEach(({ hash, offset, length }, row) => {
      index.write(hash, row * ROW_BYTES, 'hex')
      index.writeUInt32LE(offset, row * ROW_BYTES + HASH_BYTES)
      index.writeUInt32LE(length, row * ROW_BYTES + HASH_BYTES + 4)
    })
    const tail = this.rows.length * ROW_BYTES
    index.writeUInt32LE(this.rows.length, tail)
    hash('sha256', index.subarray(0, tail), 'buffer').copy(index, tail + 4)
    MAGIC.copy(index, tail + 4 + HASH_BYTES)
    this.#file.write(index, this.size)
    this.size += index.length
    await this.#file.finish(durable)
  }

  keep(file: string): void { this.#file.keep(file) }

  [Symbol.dispose](): void { this.#file[Symbol.dispose]() }
}

type Row = { readonly hash: string; readonly offset: number; readonly length: number }

/** Packs that are open together. */
class OpenPacks {
  readonly #folder: Folder
  readonly #files = new Map<Pack, number | undefined>()

  constructor(folder: Folder) {
    this.#folder = folder
  }

  /** The descriptor of a pack; undefined if it isn't there. */
  open(pack: Pack): number | undefined {
    if (!this.#files.has(pack)) this.#files.set(pack, this.#folder.open(pack.file)?.fd)
    return this.#files.get(pack)
  }

  [Symbol.dispose](): void {
    for (const fd of this.#files.values()) if (fd !== undefined) closeSync(fd)
  }
}

// The rows of a pack; undefined if it is damaged. Nothing is read beyond the sizes that a pack may have.
function readIndex(fd: number, size: number): Row[] | undefined {
  if (size < HEAD_BYTES + TAIL_BYTES) return undefined
  const tail = readAt(fd, size - TAIL_BYTES, TAIL_BYTES)
  if (tail.length < TAIL_BYTES || !tail.subarray(4 + HASH_BYTES).equals(MAGIC)) return undefined
  const count = tail.readUInt32LE()
  const at = size - TAIL_BYTES - count * ROW_BYTES
  if (count > PACK_CHUNKS_MAX || at < HEAD_BYTES) return undefined
  const index = readAt(fd, at, count * ROW_BYTES)
  if (!hash('sha256', index, 'buffer').equals(tail.subarray(4, 4 + HASH_BYTES))) return undefined
  const rows = Array.from({ length: count }, (_, row) => ({
    hash: index.toString('hex', row * ROW_BYTES, row * ROW_BYTES + HASH_BYTES),
    offset: index.readUInt32LE(row * ROW_BYTES + HASH_BYTES),
    length: index.readUInt32LE(row * ROW_BYTES + HASH_BYTES + 4),
  }))
  const isSound = rows.every(({ offset, length }) =>
    length > 0 && length <= CHUNK_BYTES && offset >= HEAD_BYTES && offset + length <= at)
  return isSound ? rows : undefined
}
