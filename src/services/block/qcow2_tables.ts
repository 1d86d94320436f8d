// services/block/qcow2_tables.ts: where the clusters of a qcow2 disk are: its L1 and L2 tables, and their changes.
//
// Hot path: no allocation, no closures, numbers and typed arrays only. So `find` and `allocate` answer in fields.
//
// Changes are made in memory and come to the file by `commit`, in the order that qcow2.ts states. Until then nothing in
// the file points at what is new, and what is no longer pointed at stays untouched: it waits in a list, which is short:
// when it is full, everything is committed.

import { EIO } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { ClusterSet } from './cluster_set.ts'
import { SECTOR_BYTES } from './disk.ts'
import type { ImageFile } from './image_file.ts'
import {
  compressedBytes, compressedOffset, COPIED, kindOf, offsetOf, PACKED, PLAIN, UNALLOCATED, WRONG, ZERO, ZEROS,
} from './qcow2_entry.ts'
import { markCorrupt, type Header } from './qcow2_header.ts'
import { Refcounts } from './qcow2_refcounts.ts'
import type { DiskSnapshot } from './qcow2_snapshots.ts'
import { TableCache } from './table_cache.ts'

/** Clusters that wait to be freed. */
const FREED_MAX = 4096
/** How many one entry may free: a compressed cluster has up to two clusters' bytes, and may begin within one. */
const FREED_BY_ENTRY = 3

/** The tables of an open image. Answers are ≥ 0 or a negated errno. */
export class Tables {
  /** The L1 table as it is in memory. */
  readonly l1: Uint8Array
  /** What `find` found: how many bytes are alike from there on; where they are in the file; the first entry. */
  run = 0
  host = 0
  isOwn = false
  entryHigh = 0
  entryLow = 0
  /** How many clusters `take` took. */
  got = 0
  readonly #file: ImageFile
  readonly #header: Header
  readonly #canWrite: boolean
  readonly #clusterBytes: number
  /** Bytes of the disk that one L2 table is about. */
  readonly #tableReach: number
  readonly #l1View: DataView
  readonly #cache: TableCache
  readonly #refcounts: Refcounts | undefined
  readonly #tables: ClusterSet
  readonly #freed = new Float64Array(FREED_MAX)
  #freedCount = 0
  // Entries of the L1 table that the file doesn't have yet.
  #l1From = Infinity
  #l1To = 0
  // Clusters that were taken since the last commit, and what counts them: they may lie behind the end of the file.
  #unwritten = 0
  #damage: string | undefined

  /** Throws CellarError if tables can't be read, or lie in one place. */
  constructor(
    file: ImageFile, header: Header, path: string, canWrite: boolean, snapshots: readonly DiskSnapshot[],
  ) {
    this.#file = file
    this.#header = header
    this.#canWrite = canWrite
    this.#clusterBytes = 2 ** header.clusterBits
    this.#tableReach = this.#clusterBytes * (this.#clusterBytes / 8)
    // Whole sectors, as it is written in those.
    this.l1 = new Uint8Array(new ArrayBuffer(Math.ceil(header.l1Size * 8 / SECTOR_BYTES) * SECTOR_BYTES),
      0, header.l1Size * 8)
    this.#l1View = new DataView(this.l1.buffer)
    this.#cache = new TableCache(header.l1Size, this.#clusterBytes)
    const counts = new Uint8Array(canWrite ? header.refcountClusters * this.#clusterBytes : 0)
    if (file.read(header.l1Offset, this.l1, 0, this.l1.length) < 0 ||
      file.read(header.refcountOffset, counts, 0, counts.length) < 0) {
      throw new CellarError('DISK_UNREADABLE', [path, 'its tables can\'t be read'])
    }
    this.#tables = new ClusterSet(canWrite ? tablesOf(header, this.l1, counts, snapshots) : new Float64Array(0))
    if (this.#tables.twice() >= 0) throw new CellarError('DISK_DAMAGED', [path, 'two of its tables lie in one place'])
    this.#refcounts = canWrite ? new Refcounts(file, header, counts, this.#tables) : undefined
  }

  /** What is wrong, once something is: nothing is written any more. */
  get damage(): string | undefined { return this.#damage }

  /** What is at `position`: a kind, with `run` (at most `length`) and `host` if it is there. */
  find(position: number, length: number): number {
    const number = Math.floor(position / this.#tableReach)
    const inTable = position - number * this.#tableReach
    this.run = Math.min(length, this.#tableReach - inTable)
    if (this.#l1Low(number) === 0 && this.#l1High(number) === 0) {
      this.host = 0
      return UNALLOCATED
    }
    const slot = this.#slot(number)
    if (slot < 0) return slot
    return this.#findIn(this.#cache.view(slot), inTable, this.run)
  }

  #findIn(view: DataView, inTable: number, length: number): number {
    const cluster = this.#clusterBytes
    const { version } = this.#header
    let at = Math.floor(inTable / cluster) * 8
    const inCluster = inTable % cluster
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    const kind = kindOf(high, low, version)
    this.entryHigh = high
    this.entryLow = low
    this.isOwn = (high & COPIED) !== 0
    const first = kind === PACKED ? 0 : offsetOf(high, low)
    this.host = first === 0 ? 0 : first + inCluster
    if (kind === WRONG) return this.damaged('an entry of an L2 table has unknown bits')
    if (first % cluster !== 0) return this.damaged('a cluster isn\'t aligned')
    // Where something was, or a zero has kept its place.
    if (kind !== PACKED && first >= this.#file.sizeBytes) return this.damaged('a cluster lies outside the file')
    let run = cluster - inCluster
    let next = first + cluster
    // Compressed clusters come one by one.
    const most = kind === PACKED ? run : length
    while (run < most) {
      at += 8
      const nextHigh = view.getUint32(at)
      const nextLow = view.getUint32(at + 4)
      if (kindOf(nextHigh, nextLow, version) !== kind) break
      if (kind === PLAIN && (offsetOf(nextHigh, nextLow) !== next || ((nextHigh ^ high) & COPIED) !== 0 ||
        next >= this.#file.sizeBytes)) break
      // Clusters of zeros with a place and without are told apart, as what becomes of them differs.
      if (kind === ZEROS && (offsetOf(nextHigh, nextLow) === 0) !== (first === 0)) break
      run += cluster
      next += cluster
    }
    this.run = Math.min(run, length)
    return kind
  }

  /** True if one of these bytes of the file belongs to a table. */
  isTable(host: number, length: number): boolean {
    const last = Math.floor((host + length - 1) / this.#clusterBytes)
    for (let one = Math.floor(host / this.#clusterBytes); one <= last; one++) if (this.#tables.has(one)) return true
    return false
  }

  /** True if so many clusters, and what counts them, can be had without a larger refcount table. */
  hasRoom(clusters: number): boolean {
    const used = Math.ceil(this.#file.sizeBytes / this.#clusterBytes) + this.#unwritten
    // One L2 table, and a block of refcounts for each 64 clusters at the worst.
    return used + 2 * clusters + 8 <= this.#refcounts!.capacity
  }

  /** The L2 table of `position` is the disk's own from now on, so that it may be changed. */
  own(position: number): number {
    const number = Math.floor(position / this.#tableReach)
    const high = this.#l1High(number)
    const isNew = high === 0 && this.#l1Low(number) === 0
    if (!isNew) {
      const slot = this.#slot(number)
      if (slot < 0 || (high & COPIED) !== 0) return Math.min(slot, 0)
    }
    if (this.#freedCount === FREED_MAX || (isNew && this.#cache.dirtySlots === this.#cache.slots)) {
      const committed = this.commit()
      if (committed < 0) return committed
    }
    const cluster = this.#refcounts!.allocate(1)
    if (cluster < 0) return this.#failed(cluster)
    this.#unwritten += 2
    const slot = isNew ? this.#cache.claim(number) : this.#slot(number)
    if (slot < 0) return slot
    if (isNew) this.#cache.bytes(slot).fill(0)
    else this.#free(Math.floor(offsetOf(high, this.#l1Low(number)) / this.#clusterBytes))
    this.#cache.soil(slot)
    this.#tables.add(cluster)
    const offset = cluster * this.#clusterBytes
    this.#l1View.setUint32(number * 8, (COPIED | Math.floor(offset / 2 ** 32)) >>> 0)
    this.#l1View.setUint32(number * 8 + 4, offset >>> 0)
    this.#l1From = Math.min(this.#l1From, number)
    this.#l1To = Math.max(this.#l1To, number + 1)
    return 0
  }

  /** A place for up to `wanted` clusters from `position` on, `got` of them: the first one's number. After `own`. */
  take(position: number, wanted: number): number {
    const kept = this.#kept(position)
    if (kept > 0) {
      if (this.#tables.has(kept)) return this.damaged('a guest\'s cluster lies where a table is')
      this.got = 1
      return kept
    }
    const first = this.#refcounts!.allocate(wanted)
    if (first < 0) return this.#failed(first)
    this.got = this.#refcounts!.got
    this.#unwritten += 2 * this.got
    return first
  }

  /** `result`, after what was taken for `position` was given back: it couldn't be written. */
  giveBack(position: number, first: number, count: number, result: number): number {
    if (this.#kept(position) === first) return result
    for (let i = 0; i < count; i++) this.#refcounts!.release(first + i)
    return result
  }

  // The cluster of a zero that has kept its place; 0 if it has none.
  #kept(position: number): number {
    const view = this.#viewOf(position)
    const at = this.#entry(position)
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    if (kindOf(high, low, this.#header.version) !== ZEROS || (high & COPIED) === 0) return 0
    return offsetOf(high, low) / this.#clusterBytes
  }

  /** From now on the clusters from `position` on are these. */
  point(position: number, first: number, count: number): number {
    for (let i = 0; i < count; i++) {
      const offset = (first + i) * this.#clusterBytes
      const result = this.#change(position + i * this.#clusterBytes,
        (COPIED | Math.floor(offset / 2 ** 32)) >>> 0, offset >>> 0)
      if (result < 0) return result
    }
    return 0
  }

  /** From now on so many clusters read as zeros; `unmap`: they lose their places. */
  clear(position: number, count: number, unmap: boolean, hasBacking: boolean): number {
    const absent = this.#header.version === 3 && hasBacking ? ZERO : 0
    for (let i = 0; i < count; i++) {
      const place = position + i * this.#clusterBytes
      const view = this.#viewOf(place)
      const at = this.#entry(place)
      const high = view.getUint32(at)
      const low = view.getUint32(at + 4)
      const stays = !unmap && kindOf(high, low, this.#header.version) === PLAIN && (high & COPIED) !== 0
      const none = unmap ? absent : ZERO
      const result = stays ? this.#change(place, high, (low | ZERO) >>> 0) : this.#change(place, 0, none)
      if (result < 0) return result
    }
    return 0
  }

  // Changes one entry of an L2 table that is the disk's own, and frees what the old one pointed at.
  #change(position: number, high: number, low: number): number {
    if (this.#freedCount >= FREED_MAX - FREED_BY_ENTRY) {
      const committed = this.commit()
      if (committed < 0) return committed
    }
    const view = this.#viewOf(position)
    const at = this.#entry(position)
    const oldHigh = view.getUint32(at)
    const oldLow = view.getUint32(at + 4)
    view.setUint32(at, high)
    view.setUint32(at + 4, low)
    this.#cache.soil(this.#cache.find(Math.floor(position / this.#tableReach)))
    const kind = kindOf(oldHigh, oldLow, this.#header.version)
    if (kind === PACKED) {
      const from = compressedOffset(oldHigh, oldLow, this.#header.clusterBits)
      const end = from + compressedBytes(oldHigh, oldLow, this.#header.clusterBits)
      for (let one = Math.floor(from / this.#clusterBytes); one * this.#clusterBytes < end; one++) this.#free(one)
    } else {
      const old = offsetOf(oldHigh, oldLow)
      if (old !== 0 && old !== offsetOf(high, low)) this.#free(old / this.#clusterBytes)
    }
    return 0
  }

  #free(cluster: number): void {
    this.#freed[this.#freedCount++] = cluster
  }

  /** Brings everything to the disk. 0, or a negated errno: what couldn't be written is tried again the next time. */
  commit(): number {
    const refcounts = this.#refcounts
    if (refcounts === undefined) return 0
    if (this.#damage !== undefined) return -EIO
    let result = refcounts.write()
    if (result < 0) return result
    if ((result = this.#file.sync()) < 0) return result
    if (this.#cache.dirtySlots === 0 && this.#l1To === 0) return 0
    if ((result = this.#writeL2()) < 0) return result
    if ((result = this.#file.sync()) < 0) return result
    if ((result = this.#writeL1()) < 0) return result
    this.#unwritten = 0
    return this.#releaseFreed()
  }

  /** As `commit`, with nothing left to do: also what was freed by that. */
  settle(): number {
    const result = this.commit()
    return result < 0 || this.#refcounts?.isDirty !== true ? result : this.commit()
  }

  #writeL2(): number {
    for (let slot = 0; this.#cache.dirtySlots > 0 && slot < this.#cache.slots; slot++) {
      if (!this.#cache.isDirty(slot)) continue
      const number = this.#cache.tableOf(slot)
      const offset = offsetOf(this.#l1High(number), this.#l1Low(number))
      const result = this.#file.write(offset, this.#cache.bytes(slot), 0, this.#clusterBytes)
      if (result < 0) return result
      this.#cache.clean(slot)
    }
    return 0
  }

  #writeL1(): number {
    if (this.#l1To === 0) return 0
    const from = Math.floor(this.#l1From * 8 / SECTOR_BYTES) * SECTOR_BYTES
    const to = Math.min(this.l1.length, Math.ceil(this.#l1To * 8 / SECTOR_BYTES) * SECTOR_BYTES)
    const written = this.#file.write(this.#header.l1Offset + from, this.l1, from, to - from)
    const result = written < 0 ? written : this.#file.sync()
    if (result < 0) return result
    this.#l1From = Infinity
    this.#l1To = 0
    return 0
  }

  // Nothing in the file points at these any more. Clusters next to each other are given back together.
  #releaseFreed(): number {
    let [from, to] = [0, 0]
    for (let i = 0; i < this.#freedCount; i++) {
      const cluster = this.#freed[i]!
      const left = this.#refcounts!.release(cluster)
      if (left < 0) {
        this.#unmap(from, to)
        this.#freed.copyWithin(0, i, this.#freedCount)
        this.#freedCount -= i
        return this.#failed(left)
      }
      if (left > 0) continue
      if (cluster === to) {
        to++
        continue
      }
      this.#unmap(from, to)
      from = cluster
      to = cluster + 1
    }
    this.#unmap(from, to)
    this.#freedCount = 0
    return 0
  }

  #unmap(from: number, to: number): void {
    if (to > from) this.#file.giveBack(from * this.#clusterBytes, (to - from) * this.#clusterBytes)
  }

  /** Marks the image as inconsistent: -EIO. */
  damaged(why: string): number {
    if (this.#damage !== undefined) return -EIO
    this.#damage = why
    if (this.#canWrite) markCorrupt(this.#file)
    return -EIO
  }

  #failed(result: number): number {
    return this.#refcounts!.damage === undefined ? result : this.damaged(this.#refcounts!.damage)
  }

  #l1High(number: number): number { return this.#l1View.getUint32(number * 8) }
  #l1Low(number: number): number { return this.#l1View.getUint32(number * 8 + 4) }

  // The view of a table that is in memory, as `own` has just seen to.
  #viewOf(position: number): DataView {
    return this.#cache.view(this.#slot(Math.floor(position / this.#tableReach)))
  }

  #entry(position: number): number {
    return Math.floor(position % this.#tableReach / this.#clusterBytes) * 8
  }

  // The slot of a table that the disk has.
  #slot(number: number): number {
    const found = this.#cache.find(number)
    if (found >= 0) return found
    const high = this.#l1High(number)
    const low = this.#l1Low(number)
    const offset = offsetOf(high, low)
    if ((high & 0x7f000000) !== 0 || low % 512 !== 0 || offset % this.#clusterBytes !== 0 ||
      offset < this.#clusterBytes || offset + this.#clusterBytes > this.#file.sizeBytes) {
      return this.damaged('an L2 table lies outside the file')
    }
    let slot = this.#cache.claim(number)
    if (slot < 0) {
      const committed = this.commit()
      if (committed < 0) return committed
      slot = this.#cache.claim(number)
    }
    const result = this.#file.read(offset, this.#cache.bytes(slot), 0, this.#clusterBytes)
    if (result < 0) this.#cache.drop(slot)
    return result < 0 ? result : slot
  }
}

// Clusters of everything that isn't a guest's data.
function tablesOf(
  header: Header, l1: Uint8Array, counts: Uint8Array, snapshots: readonly DiskSnapshot[],
): Float64Array {
  const cluster = 2 ** header.clusterBits
  const found: number[] = [0]
  const range = (offset: number, bytes: number): void => {
    for (let at = 0; at < bytes; at += cluster) found.push((offset + at) / cluster)
  }
  const offsets = (table: Uint8Array): void => {
    const view = new DataView(table.buffer, table.byteOffset, table.length)
    for (let at = 0; at < table.length; at += 8) {
      const offset = offsetOf(view.getUint32(at), view.getUint32(at + 4))
      if (offset !== 0) found.push(Math.floor(offset / cluster))
    }
  }
  range(header.l1Offset, header.l1Size * 8)
  range(header.refcountOffset, counts.length)
  if (header.snapshots > 0) range(header.snapshotsOffset, 1)
  for (const { l1Offset, l1Size } of snapshots) range(l1Offset, l1Size * 8)
  offsets(l1)
  offsets(counts)
  return new Float64Array(found)
}
