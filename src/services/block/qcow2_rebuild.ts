// services/block/qcow2_rebuild.ts: gives a qcow2 image new tables, in one step that can't be seen half done.
//
// Refcounts say what the tables say already: how often each cluster is pointed at. So that taking, applying and
// deleting snapshots, making room in the refcount table and mending an image that wasn't closed are the same: say which
// L1 table is the disk's from now on and which snapshots there are, count everything anew, and write what changes
// behind the end of the file: L2 tables whose flags change, the L1 table, the snapshots, all refcounts. None of that is
// pointed at until the first sector of the header is written. A crash before leaves the old image, one after the new.
//
// Everything found is checked on the way: a table that lies in another's place is refused, and nothing was changed.
// The work is bounded by the image's size: an L2 table that several snapshots share is read once.

import { ERRNO_NAMES } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { SECTOR_BYTES } from './disk.ts'
import type { ImageFile } from './image_file.ts'
import { compressedBytes, compressedOffset } from './qcow2_entry.ts'
import { movedHeader, REFCOUNT_TABLE_BYTES_MAX, type Header } from './qcow2_header.ts'
import { setRefcount } from './qcow2_refcounts.ts'
import { encodeSnapshots, type DiskSnapshot } from './qcow2_snapshots.ts'

/** Clusters of a file: 4 TiB in clusters of 64 KiB. What we count in takes four bytes for each. */
const CLUSTERS_MAX = 2 ** 26
// What a cluster is, beside its count.
const TABLE = 2 ** 31
const DATA = 2 ** 30
const COUNT = DATA - 1

/** What the image is to be. */
export type Plan = {
  readonly path: string
  /** The L1 table: the old one's bytes, or a snapshot's. */
  readonly l1: Uint8Array
  readonly sizeBytes: number
  readonly snapshots: readonly DiskSnapshot[]
  /** The refcount table gets room for so many clusters at least. */
  readonly clusters: number
}

/** Makes the image what `plan` says. Everything of it is to be read anew afterwards. Throws CellarError. */
export function rebuild(file: ImageFile, header: Header, plan: Plan): void {
  new Rebuilding(file, header, plan).run()
}

class Rebuilding {
  readonly #file: ImageFile
  readonly #header: Header
  readonly #plan: Plan
  readonly #clusterBytes: number
  /** Clusters before we began. */
  readonly #before: number
  #counts: Uint32Array
  /** L2 tables, each once. */
  readonly #l2: number[] = []
  readonly #table: Uint8Array
  readonly #tableView: DataView
  /** Where the next new cluster goes. */
  #next: number

  constructor(file: ImageFile, header: Header, plan: Plan) {
    this.#file = file
    this.#header = header
    this.#plan = plan
    this.#clusterBytes = 2 ** header.clusterBits
    this.#before = Math.ceil(file.sizeBytes / this.#clusterBytes)
    if (this.#before > CLUSTERS_MAX) throw new CellarError('DISK_TOO_LARGE', [plan.path, file.sizeBytes])
    this.#counts = new Uint32Array(this.#before)
    this.#next = this.#before
    this.#table = new Uint8Array(this.#clusterBytes)
    this.#tableView = new DataView(this.#table.buffer)
  }

  run(): void {
    const { snapshots, l1 } = this.#plan
    this.#point(0, TABLE, 1)
    for (const snapshot of snapshots) this.#countL1(this.#l1Of(snapshot), snapshot.l1Offset)
    this.#countL1(l1, -1)
    for (const cluster of this.#l2) this.#countL2(cluster)
    const limit = 2 ** Math.min(30, 2 ** this.#header.refcountOrder) - 1
    for (let i = 0; i < this.#before; i++) {
      if ((this.#counts[i]! & COUNT) > limit) {
        throw new CellarError('DISK_SNAPSHOT_REFUSED', [this.#plan.path, `its refcounts count to ${limit} only`])
      }
    }
    const fresh = this.#flag(l1)
    const l1Offset = this.#append(fresh)
    const table = encodeSnapshots(snapshots)
    const snapshotsOffset = snapshots.length === 0 ? 0 : this.#append(table)
    const { refcountOffset, refcountClusters } = this.#writeCounts()
    this.#must('sync', this.#file.sync())
    const sector = new Uint8Array(SECTOR_BYTES)
    this.#must('read', this.#file.read(0, sector, 0, SECTOR_BYTES))
    movedHeader(sector, { sizeBytes: this.#plan.sizeBytes, l1Size: l1.length / 8, l1Offset, refcountOffset,
      refcountClusters, snapshots: snapshots.length, snapshotsOffset })
    this.#must('write', this.#file.write(0, sector, 0, SECTOR_BYTES))
    this.#must('sync', this.#file.sync())
    this.#giveBack()
  }

  #must(what: string, result: number): void {
    if (result >= 0) return
    const why = ERRNO_NAMES[-result] ?? String(result)
    throw new CellarError('DISK_UNWRITABLE', [this.#plan.path, `${what}: ${why}`], { cause: { code: why } })
  }

  #damaged(why: string): CellarError {
    return new CellarError('DISK_DAMAGED', [this.#plan.path, why])
  }

  /** Counts `times` references to a cluster that is `role`. */
  #point(cluster: number, role: number, times: number): void {
    const had = this.#counts[cluster]
    if (had === undefined) throw this.#damaged('something of it lies outside it')
    if (had !== 0 && ((had & role) === 0) !== (role === 0)) throw this.#damaged('a table lies where data is')
    if ((had & COUNT) + times > COUNT) throw this.#damaged('a cluster is pointed at too often')
    this.#counts[cluster] = ((had | role) + times) >>> 0
  }

  #l1Of({ l1Offset, l1Size }: DiskSnapshot): Uint8Array {
    const bytes = new Uint8Array(l1Size * 8)
    this.#must('read', this.#file.read(l1Offset, bytes, 0, bytes.length))
    return bytes
  }

  /** Counts the L2 tables that an L1 table has, and the L1 table itself if it is to stay at `offset`. */
  #countL1(l1: Uint8Array, offset: number): void {
    for (let at = offset < 0 ? l1.length : 0; at < l1.length; at += this.#clusterBytes) {
      const cluster = (offset + at) / this.#clusterBytes
      if (this.#counts[cluster] !== 0) throw this.#damaged('two tables lie in one place')
      this.#point(cluster, TABLE, 1)
    }
    const view = new DataView(l1.buffer, l1.byteOffset, l1.length)
    for (let at = 0; at < l1.length; at += 8) {
      const l2 = this.#l2At(view, at)
      if (l2 === 0) continue
      if (this.#counts[l2] === 0) this.#l2.push(l2)
      this.#point(l2, TABLE, 1)
    }
  }

  /** The cluster of an L1 entry's table; 0 if it has none. */
  #l2At(view: DataView, at: number): number {
    const high = view.getUint32(at) & 0x00ffffff
    const low = view.getUint32(at + 4)
    const offset = high * 2 ** 32 + low
    if (offset % this.#clusterBytes !== 0 || offset + this.#clusterBytes > this.#file.sizeBytes) {
      throw this.#damaged('an L2 table lies outside it')
    }
    return offset / this.#clusterBytes
  }

  #load(cluster: number): void {
    this.#must('read', this.#file.read(cluster * this.#clusterBytes, this.#table, 0, this.#clusterBytes))
  }

  /** Counts what an L2 table points at, as often as the table is pointed at. */
  #countL2(cluster: number): void {
    this.#load(cluster)
    const times = this.#counts[cluster]! & COUNT
    for (let at = 0; at < this.#clusterBytes; at += 8) {
      const high = this.#tableView.getUint32(at)
      const low = this.#tableView.getUint32(at + 4)
      if ((high & 0x40000000) !== 0) {
        const first = compressedOffset(high, low, this.#header.clusterBits)
        const last = first + compressedBytes(high, low, this.#header.clusterBits) - 1
        // Its last sector may be cut off by the end of the file.
        const end = Math.min(Math.floor(last / this.#clusterBytes), this.#before - 1)
        if (first < this.#clusterBytes || first >= this.#file.sizeBytes) throw this.#damaged('data lies outside it')
        for (let one = Math.floor(first / this.#clusterBytes); one <= end; one++) this.#point(one, DATA, times)
        continue
      }
      const offset = (high & 0x00ffffff) * 2 ** 32 + low - low % 512
      if (offset === 0) continue
      if (offset % this.#clusterBytes !== 0) throw this.#damaged('a cluster isn\'t aligned')
      this.#point(offset / this.#clusterBytes, DATA, times)
    }
  }

  /**
   * The L1 table with its flags right, and its L2 tables: the flag says that nobody else points there, so that it may
   * be written in place. A table that changes, or that a snapshot has too, becomes a new one.
   */
  #flag(l1: Uint8Array): Uint8Array {
    const fresh = l1.slice()
    const view = new DataView(fresh.buffer)
    for (let at = 0; at < fresh.length; at += 8) {
      const cluster = this.#l2At(view, at)
      if (cluster === 0) continue
      this.#load(cluster)
      const count = this.#counts[cluster]! & COUNT
      let place = cluster
      if (this.#flagL2() || count > 1) {
        place = this.#next
        this.#append(this.#table)
        this.#counts[cluster]!--
        if (count === 1) this.#counts[cluster] = 0
      }
      const offset = place * this.#clusterBytes
      view.setUint32(at, (0x80000000 | Math.floor(offset / 2 ** 32)) >>> 0)
      view.setUint32(at + 4, offset >>> 0)
    }
    return fresh
  }

  // True if a flag of the loaded table changes.
  #flagL2(): boolean {
    let changed = false
    for (let at = 0; at < this.#clusterBytes; at += 8) {
      const high = this.#tableView.getUint32(at)
      const low = this.#tableView.getUint32(at + 4)
      const offset = (high & 0x00ffffff) * 2 ** 32 + low - low % 512
      const isOwn = (high & 0x40000000) === 0 && offset !== 0 &&
        (this.#counts[offset / this.#clusterBytes]! & COUNT) === 1
      const flagged = ((high & 0x7fffffff) | (isOwn ? 0x80000000 : 0)) >>> 0
      if (flagged === high) continue
      this.#tableView.setUint32(at, flagged)
      changed = true
    }
    return changed
  }

  /** Writes a table behind everything, in clusters of its own. */
  #append(bytes: Uint8Array): number {
    const offset = this.#next * this.#clusterBytes
    const clusters = Math.max(1, Math.ceil(bytes.length / this.#clusterBytes))
    this.#must('write', this.#file.write(offset, bytes, 0, bytes.length))
    // Tables are whole clusters in the file: what is behind the end can't be told from what was cut off.
    const rest = clusters * this.#clusterBytes - bytes.length
    if (rest > 0) this.#must('write', this.#file.write(offset + bytes.length, new Uint8Array(rest), 0, rest))
    this.#next += clusters
    return offset
  }

  /** All refcounts, those of their own clusters included. */
  #writeCounts(): { refcountOffset: number; refcountClusters: number } {
    const { refcountOrder } = this.#header
    const perBlock = this.#clusterBytes * 8 / 2 ** refcountOrder
    const used = this.#next
    let [blocks, clusters] = [0, 0]
    for (;;) {
      const wanted = Math.ceil((used + blocks + clusters) / perBlock)
      const entries = Math.max(wanted, Math.ceil(this.#plan.clusters / perBlock))
      const room = Math.ceil(entries * 8 / this.#clusterBytes)
      if (wanted === blocks && room === clusters) break
      // Neither shrinks, so that this ends.
      blocks = Math.max(wanted, blocks)
      clusters = Math.max(room, clusters)
    }
    if (clusters * this.#clusterBytes > REFCOUNT_TABLE_BYTES_MAX) {
      throw new CellarError('DISK_TOO_LARGE', [this.#plan.path, this.#file.sizeBytes])
    }
    const table = new Uint8Array(clusters * this.#clusterBytes)
    const entries = new DataView(table.buffer)
    for (let block = 0; block < blocks; block++) {
      entries.setBigUint64(block * 8, BigInt((used + block) * this.#clusterBytes))
      this.#table.fill(0)
      for (let i = 0; i < perBlock; i++) {
        const cluster = block * perBlock + i
        if (cluster >= used + blocks + clusters) break
        const count = cluster < this.#before ? this.#counts[cluster]! & COUNT : 1
        setRefcount(this.#tableView, refcountOrder, i, count)
      }
      this.#append(this.#table)
    }
    return { refcountOffset: this.#append(table), refcountClusters: clusters }
  }

  /** Room of clusters that nothing points at any more. */
  #giveBack(): void {
    for (let from = 0; from < this.#before;) {
      let to = from
      while (to < this.#before && (this.#counts[to]! & COUNT) === 0) to++
      if (to > from) this.#file.giveBack(from * this.#clusterBytes, (to - from) * this.#clusterBytes)
      from = to + 1
    }
  }
}
