// services/file/quota.ts: how much a volume holds, and that it never holds more than its size.
//
// One block of shared memory for each volume of a process: the bytes used, the size, and a table of the files that any
// of the process's threads has open. All threads see the same. What is charged:
//   a name (file, folder, link)   VOLUME_ENTRY_BYTES, from its creation to its removal
//   a folder's own bytes          beyond the first VOLUME_ENTRY_BYTES: many file systems never shrink a folder
//   a file's bytes                its length, holes too, once, however many names it has: until its last name is gone
//                                 and nobody in this process has it open any more; a folder likewise
// Whoever makes a file longer reserves the growth before, so that `used` is never below what is there.
//
// Three kinds of locks, taken in this order and held for one change: the names of the volume, the length of an open
// file, the counter. The kernel serialises writes to a file anyway. A thread that dies with a lock (its memory ran out)
// mustn't stop the others for ever: a lock that isn't free after VOLUME_LOCK_MS_MAX is taken all the same.
//
// Lengths and counts are float64, exact up to 2^53: atomics on 64-bit integers would allocate a BigInt for each call.
// They are only touched under a lock, whose atomics order them.
//
// Hot path in Charge: no allocation, no closures.

import { ENFILE } from '../../base/errno.ts'
import { assert } from '../../base/assert.ts'
import { VOLUME_ENTRY_BYTES, VOLUME_LOCK_MS_MAX, VOLUME_OPEN_FILES_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'

// Words of the memory. A file of the table is a slot, numbered from 1; 0 is none.
const NAMES_LOCK = 0
const COUNTER_LOCK = 1
const FREE = 2          // the first slot that was used and is free
const FRESH = 3         // how many slots were ever used
const BUCKETS = 16      // a hash table of chains
const BUCKET_COUNT = 16_384
const SLOTS = BUCKETS + BUCKET_COUNT
const SLOT_WORDS = 8    // as follows, then the four words of the inode's identity
const LOCK = 0
const OPEN = 1          // how often it is open
const GONE = 2          // 1: its last name was removed
const NEXT = 3          // in its bucket, or of the free
const IDENTITY = 4
const WORDS = SLOTS + (VOLUME_OPEN_FILES_MAX + 1) * SLOT_WORDS

// Numbers behind the words: used, size, then each slot's length.
const USED = 0
const SIZE = 1
const LENGTHS = 2

/** Memory for a volume of `sizeBytes` that holds `usedBytes`. */
export function newQuota(sizeBytes: number, usedBytes: number): SharedArrayBuffer {
  const shared = new SharedArrayBuffer(WORDS * 4 + (LENGTHS + VOLUME_OPEN_FILES_MAX + 1) * 8)
  const numbers = new Float64Array(shared, WORDS * 4)
  numbers[USED] = usedBytes
  numbers[SIZE] = sizeBytes
  return shared
}

const quotas = new WeakMap<SharedArrayBuffer, Quota>()

/** This thread's view of a volume's memory: one for each. */
export function quotaOf(shared: SharedArrayBuffer): Quota {
  let quota = quotas.get(shared)
  if (quota === undefined) quotas.set(shared, quota = new Quota(shared))
  return quota
}

/** What a volume holds: see the head of the file. */
export class Quota {
  readonly #words: Int32Array
  readonly #numbers: Float64Array
  readonly #lockMsMax: number

  /** `lockMsMax`: for tests. Others use quotaOf. */
  constructor(shared: SharedArrayBuffer, lockMsMax = VOLUME_LOCK_MS_MAX) {
    this.#lockMsMax = lockMsMax
    this.#words = new Int32Array(shared, 0, WORDS)
    this.#numbers = new Float64Array(shared, WORDS * 4)
  }

  get usedBytes(): number { return this.#numbers[USED]! }

  /** Charges all of `bytes`, or nothing: false. */
  reserve(bytes: number): boolean {
    this.#lock(COUNTER_LOCK)
    const used = this.#numbers[USED]! + bytes
    const fits = used <= this.#numbers[SIZE]!
    if (fits) this.#numbers[USED] = used
    this.#unlock(COUNTER_LOCK)
    return fits
  }

  /** Charges as much of `bytes` as is left, and answers how much that is. */
  take(bytes: number): number {
    this.#lock(COUNTER_LOCK)
    const taken = Math.max(0, Math.min(bytes, this.#numbers[SIZE]! - this.#numbers[USED]!))
    this.#numbers[USED] = this.#numbers[USED]! + taken
    this.#unlock(COUNTER_LOCK)
    return taken
  }

  /** Never below zero: the host may have put files there that weren't charged. A negative amount is charged at once. */
  giveBack(bytes: number): void {
    this.#lock(COUNTER_LOCK)
    this.#numbers[USED] = Math.max(0, this.#numbers[USED]! - bytes)
    this.#unlock(COUNTER_LOCK)
  }

  /** Nobody else in the process changes names, opens or closes until `unlockNames`. */
  lockNames(): void { this.#lock(NAMES_LOCK) }
  unlockNames(): void { this.#unlock(NAMES_LOCK) }

  /** Names locked: what the last statx was about is opened once more. Its slot, or -ENFILE. */
  open(): number {
    sys.statxIdentity(identity)
    const words = this.#words
    let slot = this.find(identity)
    if (slot === 0) {
      slot = this.#newSlot()
      if (slot === 0) return -ENFILE
      const bucket = bucketOf(identity)
      words.set(identity, at(slot) + IDENTITY)
      words[at(slot) + LOCK] = 0
      words[at(slot) + OPEN] = 0
      words[at(slot) + GONE] = 0
      words[at(slot) + NEXT] = words[bucket]!
      words[bucket] = slot
      this.#numbers[LENGTHS + slot] = sys.statxSize()
    }
    words[at(slot) + OPEN]!++
    return slot
  }

  /** Names not locked: undoes `open`. The last one gives back what a file without names has. */
  close(slot: number): void {
    const words = this.#words
    this.lockNames()
    assert(words[at(slot) + OPEN]! > 0, 'a file that is closed is open', slot)
    if (--words[at(slot) + OPEN]! === 0) {
      if (words[at(slot) + GONE] === 1) this.giveBack(this.#numbers[LENGTHS + slot]!)
      this.#unchain(slot)
      words[at(slot) + NEXT] = words[FREE]!
      words[FREE] = slot
    }
    this.unlockNames()
  }

  /** Names locked: the slot of a file that is open, or 0. */
  find(id: Int32Array): number {
    const words = this.#words
    for (let slot = words[bucketOf(id)]!; slot !== 0; slot = words[at(slot) + NEXT]!) {
      const from = at(slot) + IDENTITY
      if (words[from] === id[0] && words[from + 1] === id[1] && words[from + 2] === id[2] &&
        words[from + 3] === id[3]) return slot
    }
    return 0
  }

  /** Names locked: an open file has lost its last name. Its bytes stay charged until it is closed. */
  gone(slot: number): void {
    this.#words[at(slot) + GONE] = 1
  }

  /** Names locked: a folder of `bytes` in all was removed. */
  folderGone(id: Int32Array, bytes: number): void {
    const slot = this.find(id)
    if (slot === 0) {
      this.giveBack(bytes)
      return
    }
    this.setLength(slot, bytes)
    this.gone(slot)
  }

  /** Names locked: a name of anything else was removed; `last`: the last one of a file of `bytes`. */
  nameGone(id: Int32Array, bytes: number, last: boolean): void {
    this.giveBack(VOLUME_ENTRY_BYTES)
    if (!last) return
    const slot = this.find(id)
    if (slot === 0) this.giveBack(bytes)
    else this.gone(slot)
  }

  lockFile(slot: number): void { this.#lock(at(slot) + LOCK) }
  unlockFile(slot: number): void { this.#unlock(at(slot) + LOCK) }

  /** File locked: what it is charged. */
  length(slot: number): number { return this.#numbers[LENGTHS + slot]! }
  setLength(slot: number, bytes: number): void { this.#numbers[LENGTHS + slot] = bytes }

  #newSlot(): number {
    const words = this.#words
    const free = words[FREE]!
    if (free !== 0) {
      words[FREE] = words[at(free) + NEXT]!
      return free
    }
    return words[FRESH]! < VOLUME_OPEN_FILES_MAX ? ++words[FRESH]! : 0
  }

  #unchain(slot: number): void {
    const words = this.#words
    const start = at(slot) + IDENTITY
    let link = bucketOf(words.subarray(start, start + 4))
    while (words[link] !== slot) link = at(words[link]!) + NEXT
    words[link] = words[at(slot) + NEXT]!
  }

  // 0: free, 1: locked, 2: locked, and somebody may wait.
  #lock(word: number): void {
    if (Atomics.compareExchange(this.#words, word, 0, 1) !== 0) this.#wait(word)
  }

  #wait(word: number): void {
    const until = performance.now() + this.#lockMsMax
    while (Atomics.exchange(this.#words, word, 2) !== 0) {
      const left = until - performance.now()
      if (left <= 0) return
      Atomics.wait(this.#words, word, 2, left)
    }
  }

  #unlock(word: number): void {
    if (Atomics.exchange(this.#words, word, 0) === 2) Atomics.notify(this.#words, word, 1)
  }
}

/** One open file's part of its volume's quota. Between `begin` and `end` nobody else changes the file's length. */
export class Charge {
  readonly #quota: Quota
  readonly #slot: number

  /** `slot`: from Quota.open, and given back by `close`. */
  constructor(quota: Quota, slot: number) {
    this.#quota = quota
    this.#slot = slot
  }

  /** Locks: the file's length, which is charged. */
  begin(): number {
    this.#quota.lockFile(this.#slot)
    return this.#quota.length(this.#slot)
  }

  /** Charges a growth from `length` to `end`, or as far as the volume goes: the length that is now paid for. */
  grow(length: number, end: number): number {
    const paid = length + this.#quota.take(end - length)
    this.#quota.setLength(this.#slot, paid)
    return paid
  }

  /** The file's length is `length`, whatever was charged. It is less or the same, unless the host wrote to the file. */
  settle(length: number): void {
    const charged = this.#quota.length(this.#slot)
    if (charged === length) return
    this.#quota.giveBack(charged - length)
    this.#quota.setLength(this.#slot, length)
  }

  end(): void { this.#quota.unlockFile(this.#slot) }

  close(): void { this.#quota.close(this.#slot) }
}

/** What a folder of `size` (as statx tells) is charged beyond its name. */
export function folderExcess(size: number): number {
  return Math.max(0, size - VOLUME_ENTRY_BYTES)
}

const identity = new Int32Array(4)

function at(slot: number): number { return SLOTS + slot * SLOT_WORDS }

function bucketOf(id: Int32Array): number {
  return BUCKETS + ((Math.imul(id[0]! ^ (id[1]! * 31), 0x9e3779b1) >>> 16) & (BUCKET_COUNT - 1))
}
