// services/block/qcow2.ts: a disk in a qcow2 image, versions 2 and 3 (QEMU's docs/interop/qcow2.txt).
//
// Hot path: no allocation, no closures, numbers and typed arrays only. Exceptions are compressed clusters, and the
// BigInts of system calls that give room back.
//
// A disk is an L1 table of L2 tables of clusters. Tables change in memory (qcow2_tables.ts); `commit` brings them to
// the file in an order that holds at any crash:
//   data and refcounts → sync → L2 tables → sync → the L1 table, if it changed → sync → what was freed counts less
// So what a table in the file points at is there, is counted, and isn't used for anything else. What a guest has not
// flushed may be lost, as of any disk; what it has flushed is there.
//
// The image may be anybody's. What is touched is checked when it is touched: offsets inside the file, tables not where
// data goes. An image found inconsistent answers -EIO there, is marked, and is written to no more.

import { EIO, ENOSPC, EROFS, errnoOf } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import type { Disk } from './disk.ts'
import { writeZeros, type ImageFile } from './image_file.ts'
import { unpackCluster } from './qcow2_compressed.ts'
import { compressedBytes, compressedOffset, PACKED, PLAIN, UNALLOCATED, ZEROS } from './qcow2_entry.ts'
import { clearAutoclear, readHeader, type Header } from './qcow2_header.ts'
import { rebuild, type Plan } from './qcow2_rebuild.ts'
import { newSnapshot, readSnapshots, snapshotOf, type DiskSnapshot } from './qcow2_snapshots.ts'
import { Tables } from './qcow2_tables.ts'
import { checkRequest, type Extent, type ImageDisk } from './raw.ts'

/** What is written where clusters can't say that they are zero. */
const ZERO_BYTES = new Uint8Array(64 * 1024)

/** What a disk is made of; it owns both. */
export type Qcow2Parts = {
  readonly file: ImageFile
  readonly path: string
  readonly isReadOnly: boolean
  /** Given the name and format that the header states. Undefined if it states none. */
  openBacking(backing: NonNullable<Header['backing']>): Disk
}

/** A disk in a qcow2 image. */
export class Qcow2Disk implements ImageDisk {
  readonly isReadOnly: boolean
  readonly #file: ImageFile
  readonly #path: string
  readonly #backing: Disk | undefined
  readonly #bounce: Uint8Array
  readonly #clusterBytes: number
  readonly #clusterBits: number
  readonly #version: number
  #header: Header
  #snapshots: readonly DiskSnapshot[] = []
  #tables: Tables
  #unpacked: Buffer | undefined
  #unpackedFrom = -1

  /** Throws CellarError; the file is still the caller's then. */
  constructor({ file, path, isReadOnly, openBacking }: Qcow2Parts) {
    this.#file = file
    this.#path = path
    this.isReadOnly = isReadOnly
    this.#header = readHeader(file, path)
    this.#clusterBits = this.#header.clusterBits
    this.#clusterBytes = 2 ** this.#clusterBits
    this.#version = this.#header.version
    this.#bounce = new Uint8Array(isReadOnly ? 0 : this.#clusterBytes)
    if (!isReadOnly) this.#makeWritable()
    this.#tables = this.#load()
    this.#backing = this.#header.backing === undefined ? undefined : openBacking(this.#header.backing)
  }

  get granularityBytes(): number { return this.#clusterBytes }

  get sizeBytes(): number { return this.#header.sizeBytes }

  /** What is wrong with the image, once something was found to be: for the log. */
  get damage(): string | undefined { return this.#tables.damage }

  read(position: number, memory: Uint8Array, offset: number, length: number): number {
    checkRequest(this, position, length)
    while (length > 0) {
      const kind = this.#tables.find(position, length)
      if (kind < 0) return kind
      const run = this.#tables.run
      const result = this.#readRun(kind, position, memory, offset, run)
      if (result < 0) return result
      position += run
      offset += run
      length -= run
    }
    return 0
  }

  write(position: number, memory: Uint8Array, offset: number, length: number): number {
    checkRequest(this, position, length)
    if (this.isReadOnly) return -EROFS
    if (this.#tables.damage !== undefined) return -EIO
    while (length > 0) {
      const kind = this.#tables.find(position, length)
      if (kind < 0) return kind
      const done = kind === PLAIN && this.#tables.isOwn ? this.#overwrite(memory, offset) :
        this.#allocate(kind, position, memory, offset)
      if (done < 0) return done
      position += done
      offset += done
      length -= done
    }
    return 0
  }

  flush(): number {
    return this.isReadOnly ? 0 : this.#tables.commit()
  }

  discard(position: number, length: number): number {
    return this.writeZeroes(position, length, true)
  }

  writeZeroes(position: number, length: number, mayUnmap: boolean): number {
    checkRequest(this, position, length)
    if (this.isReadOnly) return -EROFS
    if (this.#tables.damage !== undefined) return -EIO
    const end = position + length
    while (position < end) {
      const inCluster = position % this.#clusterBytes
      // The last cluster of a disk may be cut off.
      const wholeEnd = end === this.sizeBytes ? Math.ceil(end / this.#clusterBytes) * this.#clusterBytes :
        end - end % this.#clusterBytes
      const isWhole = inCluster === 0 && position < wholeEnd
      const most = isWhole ? wholeEnd - position : Math.min(end - position, this.#clusterBytes - inCluster)
      const kind = this.#tables.find(position, Math.min(most, end - position))
      if (kind < 0) return kind
      const run = this.#tables.run
      const result = isWhole ? this.#zeroRun(kind, position, run, mayUnmap) : this.#zeroPart(kind, position, run)
      if (result < 0) return result
      position += run
    }
    return 0
  }

  * allocated(): Generator<Extent> {
    let [from, to, isZero] = [0, 0, false]
    for (let position = 0; position < this.sizeBytes;) {
      const kind = this.#tables.find(position, this.sizeBytes - position)
      if (kind < 0) throw new CellarError('DISK_DAMAGED', [this.#path, this.damage ?? 'it can\'t be read'])
      const run = this.#tables.run
      const counts = kind !== UNALLOCATED && (kind !== ZEROS || this.#backing !== undefined)
      if (counts && to === position && (kind === ZEROS) === isZero) {
        to = position + run
      } else if (counts) {
        if (to > from) yield { position: from, length: to - from, isZero }
        ;[from, to, isZero] = [position, position + run, kind === ZEROS]
      }
      position += run
    }
    if (to > from) yield { position: from, length: to - from, isZero }
  }

  sizeOnDisk(): number {
    return this.#file.sizeOnDisk()
  }

  close(): number {
    const flushed = this.isReadOnly ? 0 : this.#tables.settle()
    const backing = this.#backing?.close() ?? 0
    const closed = this.#file.close()
    return flushed < 0 ? flushed : closed < 0 ? closed : backing
  }

  /** The image's own snapshots, as they were taken. */
  snapshots(): readonly DiskSnapshot[] {
    return this.#snapshots
  }

  /** Keeps the disk as it is under a name. Throws CellarError; nothing was changed then. */
  createSnapshot(name: string, nowMs: number): void {
    this.#rebuilt(() => {
      const made = newSnapshot(this.#snapshots, name, this.#header, nowMs, this.#path)
      return { snapshots: [...this.#snapshots, made] }
    })
  }

  /** The disk is again what it was, its size included. Throws CellarError; nothing was changed then. */
  applySnapshot(wanted: string): void {
    this.#rebuilt(() => {
      const { l1Offset, l1Size, sizeBytes } = snapshotOf(this.#snapshots, wanted, this.#path)
      const l1 = new Uint8Array(l1Size * 8)
      const result = this.#file.read(l1Offset, l1, 0, l1.length)
      if (result < 0) throw new CellarError('DISK_UNREADABLE', [this.#path, 'a snapshot can\'t be read'])
      return { l1, sizeBytes }
    })
  }

  /** Throws CellarError; nothing was changed then. */
  deleteSnapshot(wanted: string): void {
    this.#rebuilt(() => {
      const gone = snapshotOf(this.#snapshots, wanted, this.#path)
      return { snapshots: this.#snapshots.filter((one) => one !== gone) }
    })
  }

  #rebuilt(plan: () => Partial<Plan>): void {
    if (this.isReadOnly) throw new CellarError('DISK_UNWRITABLE', [this.#path, 'it is open for reading only'])
    if (this.flush() < 0) throw new CellarError('DISK_UNWRITABLE', [this.#path, this.damage ?? 'it can\'t be flushed'])
    this.#rebuild(plan())
  }

  #rebuild(plan: Partial<Plan>): void {
    rebuild(this.#file, this.#header, { path: this.#path, l1: this.#tables.l1, sizeBytes: this.sizeBytes, clusters: 0,
      snapshots: this.#snapshots, ...plan })
    this.#header = readHeader(this.#file, this.#path)
    this.#tables = this.#load()
  }

  #load(): Tables {
    this.#snapshots = readSnapshots(this.#file, this.#header, this.#path)
    this.#unpackedFrom = -1
    return new Tables(this.#file, this.#header, this.#path, !this.isReadOnly, this.#snapshots)
  }

  /** Who writes must be able to trust the refcounts, and others must know that what only they understand is stale. */
  #makeWritable(): void {
    const header = this.#header
    if (header.isCorrupt) throw new CellarError('DISK_DAMAGED', [this.#path, 'it is marked as corrupt'])
    if (header.isDirty) {
      const l1 = new Uint8Array(header.l1Size * 8)
      const read = this.#file.read(header.l1Offset, l1, 0, l1.length)
      if (read < 0) throw new CellarError('DISK_UNREADABLE', [this.#path, 'its L1 table can\'t be read'])
      rebuild(this.#file, header, { path: this.#path, l1, sizeBytes: header.sizeBytes, clusters: 0,
        snapshots: readSnapshots(this.#file, header, this.#path) })
      this.#header = readHeader(this.#file, this.#path)
    }
    if (header.hasAutoclear && clearAutoclear(this.#file) < 0) {
      throw new CellarError('DISK_UNWRITABLE', [this.#path, 'its header can\'t be written'])
    }
  }

  #readRun(kind: number, position: number, memory: Uint8Array, offset: number, length: number): number {
    if (kind === PLAIN) return this.#file.read(this.#tables.host, memory, offset, length)
    if (kind === PACKED) return this.#readPacked(position, memory, offset, length)
    return this.#readAbsent(kind, position, memory, offset, length)
  }

  /** What clusters read as that have no data here. `length` may reach beyond the disk. */
  #readAbsent(kind: number, position: number, memory: Uint8Array, offset: number, length: number): number {
    const backing = kind === UNALLOCATED ? this.#backing : undefined
    const behind = backing === undefined ? 0 : Math.max(0, Math.min(length, backing.sizeBytes - position))
    if (behind < length) memory.fill(0, offset + behind, offset + length)
    return behind > 0 ? backing!.read(position, memory, offset, behind) : 0
  }

  #readPacked(position: number, memory: Uint8Array, offset: number, length: number): number {
    const { entryHigh, entryLow } = this.#tables
    const from = compressedOffset(entryHigh, entryLow, this.#clusterBits)
    if (this.#unpackedFrom !== from) {
      if (from >= this.#file.sizeBytes) return this.#tables.damaged('a compressed cluster lies outside the file')
      const packed = new Uint8Array(compressedBytes(entryHigh, entryLow, this.#clusterBits))
      const result = this.#file.read(from, packed, 0, packed.length)
      if (result < 0) return result
      this.#unpacked = unpackCluster(packed, this.#header.compression, this.#clusterBytes)
      if (this.#unpacked === undefined) {
        this.#unpackedFrom = -1
        return this.#tables.damaged('a compressed cluster can\'t be unpacked')
      }
      this.#unpackedFrom = from
    }
    const start = position % this.#clusterBytes
    this.#unpacked!.copy(memory, offset, start, start + length)
    return 0
  }

  // Writes where data is already, and nobody else's.
  #overwrite(memory: Uint8Array, offset: number): number {
    const { host, run } = this.#tables
    if (this.#tables.isTable(host, run)) return this.#tables.damaged('a guest\'s cluster lies where a table is')
    const result = this.#file.write(host, memory, offset, run)
    return result < 0 ? result : run
  }

  /**
   * Writes to clusters that have no place of their own yet: how many bytes, or 0 to look again. The run that was found
   * says how far the same holds.
   */
  #allocate(kind: number, position: number, memory: Uint8Array, offset: number): number {
    const { run } = this.#tables
    const cluster = this.#clusterBytes
    const start = position - position % cluster
    const wanted = Math.ceil((position + run - start) / cluster)
    const entryHigh = this.#tables.entryHigh
    const entryLow = this.#tables.entryLow
    if (!this.#tables.hasRoom(wanted)) return this.#enlarge(wanted)
    const ready = this.#tables.own(position)
    if (ready < 0) return ready
    const before = this.#file.sizeBytes
    const first = this.#tables.take(position, wanted)
    if (first < 0) return first
    const got = this.#tables.got
    const length = Math.min(run, start + got * cluster - position)
    const host = first * cluster
    // Behind the end of the file are zeros already.
    const isReady = host >= before && (kind === ZEROS || (kind === UNALLOCATED && this.#backing === undefined))
    // Filling may read a compressed cluster: by its entry, which own and take left alone.
    let result = isReady ? 0 : this.#fill(kind, start, position, host, entryHigh, entryLow)
    if (result === 0 && !isReady) {
      result = this.#fillEnd(kind, position + length, host + (position - start) + length, entryHigh, entryLow)
    }
    if (result === 0) result = this.#file.write(host + position - start, memory, offset, length)
    if (result < 0) return this.#tables.giveBack(position, first, got, result)
    this.#tables.point(position, first, got)
    return length
  }

  // What was in the first cluster before `position`.
  #fill(kind: number, start: number, position: number, host: number, high: number, low: number): number {
    return position === start ? 0 : this.#copy(kind, start, position - start, host, high, low)
  }

  // What was in the last cluster from `position` on.
  #fillEnd(kind: number, position: number, host: number, high: number, low: number): number {
    const rest = (this.#clusterBytes - position % this.#clusterBytes) % this.#clusterBytes
    return rest === 0 ? 0 : this.#copy(kind, position, rest, host, high, low)
  }

  // Copies `length` bytes of one cluster to `host`, as they read where the disk still has its old entry.
  #copy(kind: number, position: number, length: number, host: number, high: number, low: number): number {
    if (kind === ZEROS) return writeZeros(this.#file, host, length)
    let result: number
    if (kind === PLAIN) {
      this.#tables.find(position, 1)
      result = this.#file.read(this.#tables.host, this.#bounce, 0, length)
    } else if (kind === PACKED) {
      this.#tables.entryHigh = high
      this.#tables.entryLow = low
      result = this.#readPacked(position, this.#bounce, 0, length)
    } else {
      result = this.#readAbsent(kind, position, this.#bounce, 0, length)
    }
    return result < 0 ? result : this.#file.write(host, this.#bounce, 0, length)
  }

  // The refcount table is full: a larger one. The disk is the same, but where its tables are has changed.
  #enlarge(wanted: number): number {
    const committed = this.flush()
    if (committed < 0 || this.#tables.hasRoom(wanted)) return committed
    try {
      this.#rebuild({ clusters: 2 * (Math.ceil(this.#file.sizeBytes / this.#clusterBytes) + wanted) + 1024 })
      return 0
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      if (error.code === 'DISK_DAMAGED') return this.#tables.damaged(error.message)
      return error.code === 'DISK_TOO_LARGE' ? -ENOSPC : -errnoOf(error.cause)
    }
  }

  // Part of a cluster becomes zeros.
  #zeroPart(kind: number, position: number, length: number): number {
    if (kind === ZEROS || (kind === UNALLOCATED && this.#backing === undefined)) return 0
    return this.#writeZeroBytes(position, length)
  }

  #writeZeroBytes(position: number, length: number): number {
    for (let done = 0; done < length; done += ZERO_BYTES.length) {
      const result = this.write(position + done, ZERO_BYTES, 0, Math.min(ZERO_BYTES.length, length - done))
      if (result < 0) return result
    }
    return 0
  }

  // Whole clusters of one kind become zeros: by their entries where those can say so.
  #zeroRun(kind: number, position: number, length: number, mayUnmap: boolean): number {
    const hasBacking = this.#backing !== undefined
    if (kind === UNALLOCATED && !hasBacking) return 0
    if (kind === ZEROS && (!mayUnmap || this.#tables.host === 0)) return 0
    if (this.#version === 2 && (hasBacking || !mayUnmap)) return this.#writeZeroBytes(position, length)
    if (!this.#tables.hasRoom(1)) {
      const larger = this.#enlarge(1)
      if (larger < 0) return larger
    }
    const ready = this.#tables.own(position)
    if (ready < 0) return ready
    return this.#tables.clear(position, Math.ceil(length / this.#clusterBytes), mayUnmap, hasBacking)
  }
}
