// services/block/table_cache.ts: tables of one size that are in memory for a while: L2 tables, blocks of refcounts.
//
// Hot path in find: no allocation, no closures, numbers and typed arrays only.
//
// A table has a number, and sits in a slot while it is here. Slots are given out by a clock's hand: one that was used
// since the hand came by stays. A dirty table never leaves; its owner writes it first, in its order.

/** Bytes of all tables of one cache: L2 tables for 32 GiB of a disk with clusters of 64 KiB. */
const CACHE_BYTES_MAX = 4 * 2 ** 20
/** Fewer can't be, however large: a request may need two at once. */
const SLOTS_MIN = 4

/** Tables in memory, by their numbers from 0 to `tables` - 1. */
export class TableCache {
  readonly slots: number
  /** Slots whose tables are newer than in the file. */
  dirtySlots = 0
  readonly #tableBytes: number
  readonly #slotOf: Int32Array
  readonly #tableOf: Int32Array
  readonly #used: Uint8Array
  readonly #dirty: Uint8Array
  readonly #views: (DataView | undefined)[]
  readonly #bytes: (Uint8Array | undefined)[]
  #hand = 0

  constructor(tables: number, tableBytes: number) {
    this.slots = Math.max(SLOTS_MIN, Math.min(tables, Math.floor(CACHE_BYTES_MAX / tableBytes)))
    this.#tableBytes = tableBytes
    this.#slotOf = new Int32Array(tables).fill(-1)
    this.#tableOf = new Int32Array(this.slots).fill(-1)
    this.#used = new Uint8Array(this.slots)
    this.#dirty = new Uint8Array(this.slots)
    this.#views = Array.from({ length: this.slots }, () => undefined)
    this.#bytes = Array.from({ length: this.slots }, () => undefined)
  }

  /** The slot of a table, or -1 if it isn't here. */
  find(table: number): number {
    const slot = this.#slotOf[table]!
    if (slot >= 0) this.#used[slot] = 1
    return slot
  }

  /** A slot for a table that isn't here, with any content; -1 if all are dirty. */
  claim(table: number): number {
    for (let turns = 2 * this.slots; turns > 0; turns--) {
      const slot = this.#hand
      this.#hand = slot + 1 === this.slots ? 0 : slot + 1
      if (this.#dirty[slot] === 1) continue
      if (this.#used[slot] === 1) {
        this.#used[slot] = 0
        continue
      }
      const before = this.#tableOf[slot]!
      if (before >= 0) this.#slotOf[before] = -1
      if (this.#bytes[slot] === undefined) {
        const bytes = new Uint8Array(this.#tableBytes)
        this.#bytes[slot] = bytes
        this.#views[slot] = new DataView(bytes.buffer)
      }
      this.#tableOf[slot] = table
      this.#slotOf[table] = slot
      this.#used[slot] = 1
      return slot
    }
    return -1
  }

  /** What was claimed couldn't be filled. */
  drop(slot: number): void {
    this.#slotOf[this.#tableOf[slot]!] = -1
    this.#tableOf[slot] = -1
  }

  tableOf(slot: number): number { return this.#tableOf[slot]! }
  bytes(slot: number): Uint8Array { return this.#bytes[slot]! }
  view(slot: number): DataView { return this.#views[slot]! }
  isDirty(slot: number): boolean { return this.#dirty[slot] === 1 }

  /** Its table was changed. */
  soil(slot: number): void {
    if (this.#dirty[slot] === 1) return
    this.#dirty[slot] = 1
    this.dirtySlots++
  }

  /** Its table was written. */
  clean(slot: number): void {
    if (this.#dirty[slot] === 0) return
    this.#dirty[slot] = 0
    this.dirtySlots--
  }
}
