// services/block/qcow2_refcounts.ts: which clusters of a qcow2 image are in use, and by how many.
//
// Hot path: no allocation, no closures, numbers and typed arrays only.
//
// A table of offsets leads to blocks of refcounts. Both are changed in memory; `write` brings them to the file, blocks
// before the table that points at them. Its caller syncs then, and only then writes what points at new clusters: after
// a crash a count may be too high, which loses room, and is never too low. Likewise `release` is for clusters that
// nothing in the file points at any more.
//
// The table never grows here: qcow2_rebuild.ts makes a larger one. Elsewhere: the order of writes (qcow2.ts).

import { EIO, ENOSPC } from '../../base/errno.ts'
import type { ClusterSet } from './cluster_set.ts'
import { SECTOR_BYTES } from './disk.ts'
import type { ImageFile } from './image_file.ts'
import type { Header } from './qcow2_header.ts'
import { TableCache } from './table_cache.ts'

/** The i-th refcount of a block, of 2^order bits. */
function refcountAt(view: DataView, order: number, i: number): number {
  if (order === 4) return view.getUint16(i * 2)
  if (order === 5) return view.getUint32(i * 4)
  if (order === 6) return view.getUint32(i * 8) * 2 ** 32 + view.getUint32(i * 8 + 4)
  const bits = 1 << order
  const perByte = 8 >> order
  return view.getUint8(Math.floor(i / perByte)) >> (i % perByte * bits) & (1 << bits) - 1
}

/** Sets the i-th refcount of a block. */
export function setRefcount(view: DataView, order: number, i: number, count: number): void {
  if (order === 4) view.setUint16(i * 2, count)
  else if (order === 5) view.setUint32(i * 4, count)
  else if (order === 6) {
    view.setUint32(i * 8, Math.floor(count / 2 ** 32))
    view.setUint32(i * 8 + 4, count >>> 0)
  } else {
    const bits = 1 << order
    const perByte = 8 >> order
    const shift = i % perByte * bits
    const at = Math.floor(i / perByte)
    view.setUint8(at, view.getUint8(at) & ~((1 << bits) - 1 << shift) | count << shift)
  }
}

/** The refcounts of an image that is written to. Answers are ≥ 0 or a negated errno, -EIO if it is inconsistent. */
export class Refcounts {
  /** How many clusters the last `allocate` got. */
  got = 0
  /** What is wrong with the image, once something is. */
  damage: string | undefined
  readonly #file: ImageFile
  readonly #clusterBytes: number
  readonly #order: number
  readonly #perBlock: number
  readonly #tableOffset: number
  readonly #table: DataView
  readonly #tableBytes: Uint8Array
  readonly #blocks: TableCache
  readonly #tables: ClusterSet
  // All clusters below are in use.
  #lowest = 0
  // Entries of the table that the file doesn't have yet.
  #changedFrom = Infinity
  #changedTo = 0

  constructor(file: ImageFile, header: Header, tableBytes: Uint8Array, tables: ClusterSet) {
    this.#file = file
    this.#clusterBytes = 2 ** header.clusterBits
    this.#order = header.refcountOrder
    this.#perBlock = this.#clusterBytes * 8 / 2 ** this.#order
    this.#tableOffset = header.refcountOffset
    this.#tableBytes = tableBytes
    this.#table = new DataView(tableBytes.buffer)
    this.#blocks = new TableCache(tableBytes.length / 8, this.#clusterBytes)
    this.#tables = tables
  }

  /** Clusters that the table has room for. */
  get capacity(): number { return this.#tableBytes.length / 8 * this.#perBlock }

  get isDirty(): boolean { return this.#blocks.dirtySlots > 0 || this.#changedTo > 0 }

  /** Takes up to `wanted` free clusters in a row, `got` of them: the number of the first. They have refcount 1. */
  allocate(wanted: number): number {
    for (let cluster = this.#lowest; cluster < this.capacity;) {
      const block = Math.floor(cluster / this.#perBlock)
      const slot = this.#slot(block, cluster)
      if (slot < 0) return slot
      const view = this.#blocks.view(slot)
      const first = block * this.#perBlock
      let i = cluster - first
      while (i < this.#perBlock && refcountAt(view, this.#order, i) !== 0) i++
      this.#lowest = first + i
      let got = 0
      while (got < wanted && i + got < this.#perBlock && refcountAt(view, this.#order, i + got) === 0) {
        if (this.#tables.has(first + i + got)) return this.#damaged('a table lies in clusters that count as free')
        setRefcount(view, this.#order, i + got, 1)
        got++
      }
      if (got > 0) {
        this.#blocks.soil(slot)
        this.#lowest = first + i + got
        this.got = got
        return first + i
      }
      cluster = first + this.#perBlock
    }
    return -ENOSPC
  }

  /** One less points at `cluster`. How many still do. */
  release(cluster: number): number {
    const block = Math.floor(cluster / this.#perBlock)
    if (!Number.isInteger(cluster)) return this.#damaged('a cluster isn\'t aligned')
    if (cluster >= this.capacity || this.#offset(block) === 0) return this.#damaged('a cluster in use has no refcount')
    const slot = this.#slot(block, cluster)
    if (slot < 0) return slot
    const view = this.#blocks.view(slot)
    const i = cluster - block * this.#perBlock
    const count = refcountAt(view, this.#order, i)
    if (count === 0) return this.#damaged('a cluster in use has the refcount 0')
    setRefcount(view, this.#order, i, count - 1)
    this.#blocks.soil(slot)
    if (count === 1) {
      this.#lowest = Math.min(this.#lowest, cluster)
      this.#tables.delete(cluster)
    }
    return count - 1
  }

  /** Brings all to the file. To be synced by the caller, before anything points at a cluster that was allocated. */
  write(): number {
    const written = this.#writeBlocks()
    if (written < 0 || this.#changedTo === 0) return written
    const synced = this.#file.sync()
    if (synced < 0) return synced
    const from = Math.floor(this.#changedFrom * 8 / SECTOR_BYTES) * SECTOR_BYTES
    const to = Math.ceil(this.#changedTo * 8 / SECTOR_BYTES) * SECTOR_BYTES
    const result = this.#file.write(this.#tableOffset + from, this.#tableBytes, from, to - from)
    if (result < 0) return result
    this.#changedFrom = Infinity
    this.#changedTo = 0
    return 0
  }

  #writeBlocks(): number {
    for (let slot = 0; this.#blocks.dirtySlots > 0 && slot < this.#blocks.slots; slot++) {
      if (!this.#blocks.isDirty(slot)) continue
      const offset = this.#offset(this.#blocks.tableOf(slot))
      const result = this.#file.write(offset, this.#blocks.bytes(slot), 0, this.#clusterBytes)
      if (result < 0) return result
      this.#blocks.clean(slot)
    }
    return 0
  }

  #offset(block: number): number {
    return this.#table.getUint32(block * 8) * 2 ** 32 + this.#table.getUint32(block * 8 + 4)
  }

  // The slot of a block. One that isn't there yet is made in the first cluster that is free of those it counts.
  #slot(block: number, free: number): number {
    const found = this.#blocks.find(block)
    if (found >= 0) return found
    let slot = this.#blocks.claim(block)
    if (slot < 0) {
      const written = this.#writeBlocks()
      if (written < 0) return written
      slot = this.#blocks.claim(block)
    }
    const offset = this.#offset(block)
    const result = offset === 0 ? this.#make(slot, block, free) : this.#load(slot, offset)
    if (result < 0) this.#blocks.drop(slot)
    return result < 0 ? result : slot
  }

  #load(slot: number, offset: number): number {
    if (offset % this.#clusterBytes !== 0 || offset + this.#clusterBytes > this.#file.sizeBytes) {
      return this.#damaged('a block of refcounts lies outside the file')
    }
    return this.#file.read(offset, this.#blocks.bytes(slot), 0, this.#clusterBytes)
  }

  #make(slot: number, block: number, cluster: number): number {
    if (this.#tables.has(cluster)) return this.#damaged('a table lies in clusters that count as free')
    this.#blocks.bytes(slot).fill(0)
    setRefcount(this.#blocks.view(slot), this.#order, cluster - block * this.#perBlock, 1)
    this.#blocks.soil(slot)
    this.#tables.add(cluster)
    const offset = cluster * this.#clusterBytes
    this.#table.setUint32(block * 8, Math.floor(offset / 2 ** 32))
    this.#table.setUint32(block * 8 + 4, offset >>> 0)
    this.#changedFrom = Math.min(this.#changedFrom, block)
    this.#changedTo = Math.max(this.#changedTo, block + 1)
    return 0
  }

  #damaged(why: string): number {
    this.damage ??= why
    return -EIO
  }
}
