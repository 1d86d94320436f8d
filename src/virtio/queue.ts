// virtio/queue.ts: a split virtqueue, seen by the device (Virtio 1.3 §2.7).
//
// The driver owns the descriptor table and the available ring, the device the used ring; all lie in guest memory:
//   descriptors  16 × size     {addr u64, len u32, flags u16, next u16}
//   available     6 + 2 × size  {flags u16, idx u16, ring u16[size], used_event u16}
//   used          6 + 8 × size  {flags u16, idx u16, ring {id u32, len u32}[size], avail_event u16}
// The places of the three are proved to be RAM once, in `enable`. What is in them changes under our hands: each field
// is read once, into a local, and checked there. A chain is copied into a `Chain` of proved ranges before a device
// sees it. Whatever breaks the rules is a GuestFault, upon which the device needs a reset (transport.ts); that
// includes what the specification leaves open: descriptors of no bytes, and an available index more than a ring ahead.
//
// Order: `idx` fields go through Atomics, which keeps the loads and stores around them in their places, and puts a full
// fence between publishing an index and reading the other side's event index.
//
// Hot path: no allocation, no closures, numbers and typed arrays only.

import { assert } from '../base/assert.ts'
import { VIRTQUEUE_SIZE_MAX } from '../base/limits.ts'
import { GuestFault } from '../services/guest_memory.ts'
import type { GuestRam } from '../services/guest_ram.ts'

const VIRTQ_DESC_F_NEXT = 1
const VIRTQ_DESC_F_WRITE = 2
const VIRTQ_DESC_F_INDIRECT = 4
const VIRTQ_AVAIL_F_NO_INTERRUPT = 1
const DESC_BYTES = 16

// One instance each, without a stack: they are the guest's to cause.
function fault(message: string): GuestFault {
  const made = new GuestFault(message)
  made.stack = ''
  return made
}
const BAD_INDEX = fault('A virtqueue: the available index is more than a ring ahead')
const BAD_HEAD = fault('A virtqueue: a descriptor index is beyond the table')
const TOO_LONG = fault('A virtqueue: a chain is longer than the queue, or loops')
const BAD_INDIRECT = fault('A virtqueue: an indirect descriptor against the rules')
const EMPTY_DESCRIPTOR = fault('A virtqueue: a descriptor of no bytes')
const BAD_ORDER = fault('A virtqueue: a readable descriptor after a writable one')
const BAD_RING = fault('A virtqueue: a ring of wrong size or alignment')

/** A descriptor chain, copied: proved ranges of RAM, the readable before the writable ones. Reused for each request. */
export class Chain {
  head = 0
  /** Ranges: `offsets[i]` into GuestRam.bytes. The first `readable` are the driver's data, the others are for ours. */
  count = 0
  readable = 0
  /** Sums. Ranges may overlap, so that they aren't bounded by RAM, and may pass 2^32. */
  readBytes = 0
  writeBytes = 0
  readonly offsets = new Float64Array(VIRTQUEUE_SIZE_MAX)
  readonly lengths = new Float64Array(VIRTQUEUE_SIZE_MAX)

  /** Copies `length` readable bytes from position `from` on into `to`; false if there are fewer. */
  gather(ram: GuestRam, from: number, length: number, to: Uint8Array): boolean {
    if (from + length > this.readBytes) return false
    const bytes = ram.bytes
    let done = 0
    for (let i = 0, start = 0; i < this.readable && done < length; i++) {
      const end = start + this.lengths[i]!
      let at = this.offsets[i]! + from + done - start
      for (; done < length && from + done < end; done++) to[done] = bytes[at++]!
      start = end
    }
    return true
  }

  /** Copies `length` bytes of `bytes` to the writable ranges, from position `to` of them on; false if they are less. */
  scatter(ram: GuestRam, to: number, length: number, bytes: Uint8Array): boolean {
    if (to + length > this.writeBytes) return false
    const memory = ram.bytes
    let done = 0
    for (let i = this.readable, start = 0; i < this.count && done < length; i++) {
      const end = start + this.lengths[i]!
      let at = this.offsets[i]! + to + done - start
      for (; done < length && to + done < end; done++) memory[at++] = bytes[done]!
      start = end
    }
    return true
  }
}

/** What is kept of a queue: plain numbers, an allegation until `restore` has checked them. */
export type SavedQueue = {
  readonly size: number; readonly isReady: boolean
  readonly desc: number; readonly avail: number; readonly used: number
  readonly next: number; readonly usedIndex: number; readonly signalled: number
}

/** One virtqueue of a device. */
export class Queue {
  readonly sizeMax: number
  readonly #ram: GuestRam
  readonly #halfwords: Uint16Array
  size = 0
  isReady = false
  // Guest-physical, as the driver gave them.
  #descGpa = 0
  #availGpa = 0
  #usedGpa = 0
  // Offsets of RAM, proved.
  #desc = 0
  #avail = 0
  #used = 0
  #hasIndirect = false
  #hasEventIndex = false
  /** Index of the next chain to be taken; of the next one to be given back; the latter when we last interrupted. */
  #next = 0
  #usedIndex = 0
  #signalled = 0

  constructor(ram: GuestRam, sizeMax: number) {
    assert(sizeMax <= VIRTQUEUE_SIZE_MAX && (sizeMax & (sizeMax - 1)) === 0, 'a queue has a legal size', sizeMax)
    assert(ram.bytes.byteOffset % 2 === 0, 'RAM is aligned', ram.bytes.byteOffset)
    this.sizeMax = sizeMax
    this.#ram = ram
    this.#halfwords = new Uint16Array(ram.bytes.buffer, ram.bytes.byteOffset, Math.floor(ram.bytes.length / 2))
  }

  /** Takes the rings into use. Throws GuestFault if they aren't legal; the queue isn't ready then. */
  enable(o: {
    size: number; desc: number; avail: number; used: number; hasIndirect: boolean; hasEventIndex: boolean
  }): void {
    this.disable()
    const { size } = o
    if (!(size >= 1 && size <= this.sizeMax) || (size & (size - 1)) !== 0) throw BAD_RING
    if (o.desc % 16 !== 0 || o.avail % 2 !== 0 || o.used % 4 !== 0) throw BAD_RING
    this.#desc = this.#ram.at(o.desc, DESC_BYTES * size)
    this.#avail = this.#ram.at(o.avail, 6 + 2 * size)
    this.#used = this.#ram.at(o.used, 6 + 8 * size)
    this.#descGpa = o.desc
    this.#availGpa = o.avail
    this.#usedGpa = o.used
    this.#hasIndirect = o.hasIndirect
    this.#hasEventIndex = o.hasEventIndex
    this.size = size
    this.isReady = true
  }

  disable(): void {
    this.isReady = false
    this.size = 0
    this.#descGpa = 0
    this.#availGpa = 0
    this.#usedGpa = 0
    this.#next = 0
    this.#usedIndex = 0
    this.#signalled = 0
  }

  /** Takes the next chain that the driver has made available; false if there is none. Throws GuestFault. */
  pop(chain: Chain): boolean {
    if (!this.isReady) return false
    const index = this.#available()
    if (index === this.#next) return false
    if (((index - this.#next) & 0xffff) > this.size) throw BAD_INDEX
    const head = this.#ram.view.getUint16(this.#avail + 4 + 2 * (this.#next & (this.size - 1)), true)
    if (head >= this.size) throw BAD_HEAD
    this.#copy(chain, head)
    // What is taken while the machine runs is given back before it stands still: so before the writes is soon enough.
    for (let i = chain.readable; i < chain.count; i++) this.#ram.mark(chain.offsets[i]!, chain.lengths[i]!)
    this.#next = (this.#next + 1) & 0xffff
    return true
  }

  /** Puts the last `count` chains that were taken, and not given back, where they were. */
  unpop(count: number): void {
    this.#next = (this.#next - count) & 0xffff
  }

  /** Gives a chain back: the driver sees that `written` bytes of its writable part are ours. */
  push(head: number, written: number): void {
    if (!this.isReady) return
    const at = this.#used + 4 + 8 * (this.#usedIndex & (this.size - 1))
    const view = this.#ram.view
    // The entry, the index before it, and the event index behind the last entry (`arm`).
    this.#ram.mark(at, 8)
    this.#ram.mark(this.#used, 4)
    this.#ram.mark(this.#used + 4 + 8 * this.size, 2)
    view.setUint32(at, head, true)
    view.setUint32(at + 4, written, true)
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff
    Atomics.store(this.#halfwords, (this.#used + 2) / 2, this.#usedIndex)
  }

  /** True if the driver wants to be interrupted for what was given back since this was last true. */
  wantsInterrupt(): boolean {
    if (!this.isReady || this.#usedIndex === this.#signalled) return false
    if (this.#hasEventIndex) {
      const event = Atomics.load(this.#halfwords, (this.#avail + 4) / 2 + this.size)
      // vring_need_event of <linux/virtio_ring.h>.
      const isWanted = ((this.#usedIndex - event - 1) & 0xffff) < ((this.#usedIndex - this.#signalled) & 0xffff)
      this.#signalled = this.#usedIndex
      return isWanted
    }
    this.#signalled = this.#usedIndex
    return (Atomics.load(this.#halfwords, this.#avail / 2) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0
  }

  // The driver's index. Before we answer that nothing is there, the driver is asked to notify us of the next one.
  #available(): number {
    const at = (this.#avail + 2) / 2
    const index = Atomics.load(this.#halfwords, at)
    if (index !== this.#next || !this.#hasEventIndex) return index
    Atomics.store(this.#halfwords, (this.#used + 4) / 2 + 4 * this.size, this.#next)
    return Atomics.load(this.#halfwords, at)
  }

  #copy(chain: Chain, head: number): void {
    const view = this.#ram.view
    chain.head = head
    chain.count = 0
    chain.readable = 0
    chain.readBytes = 0
    chain.writeBytes = 0
    let table = this.#desc
    let tableSize = this.size
    let isIndirect = false
    for (let index = head; ;) {
      if (index >= tableSize) throw BAD_HEAD
      const at = table + DESC_BYTES * index
      const address = view.getUint32(at, true) + view.getUint32(at + 4, true) * 4294967296
      const length = view.getUint32(at + 8, true)
      const flags = view.getUint16(at + 12, true)
      const next = view.getUint16(at + 14, true)
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        // §2.7.5.3: one table, last in its chain; its own WRITE flag means nothing.
        if (!this.#hasIndirect || isIndirect || (flags & VIRTQ_DESC_F_NEXT) !== 0) throw BAD_INDIRECT
        if (length === 0 || length % DESC_BYTES !== 0) throw BAD_INDIRECT
        if (length / DESC_BYTES > this.size) throw TOO_LONG
        table = this.#ram.at(address, length)
        tableSize = length / DESC_BYTES
        isIndirect = true
        index = 0
        continue
      }
      this.#add(chain, address, length, (flags & VIRTQ_DESC_F_WRITE) !== 0)
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) return
      index = next
    }
  }

  #add(chain: Chain, address: number, length: number, isWritable: boolean): void {
    const i = chain.count
    if (i === this.size) throw TOO_LONG
    if (length === 0) throw EMPTY_DESCRIPTOR
    chain.offsets[i] = this.#ram.at(address, length)
    chain.lengths[i] = length
    chain.count = i + 1
    if (isWritable) {
      chain.writeBytes += length
      return
    }
    if (chain.readable !== i) throw BAD_ORDER
    chain.readable = i + 1
    chain.readBytes += length
  }

  /** `held`: how many chains the device has taken that it will take again. */
  save(held: number): SavedQueue {
    return {
      size: this.size, isReady: this.isReady, desc: this.#descGpa, avail: this.#availGpa, used: this.#usedGpa,
      next: (this.#next - held) & 0xffff, usedIndex: this.#usedIndex, signalled: this.#signalled,
    }
  }

  /** Throws GuestFault if it can't have been saved by us. */
  restore(saved: SavedQueue, features: { hasIndirect: boolean; hasEventIndex: boolean }): void {
    this.disable()
    if (!saved.isReady) return
    this.enable({ ...saved, ...features })
    this.#next = saved.next & 0xffff
    this.#usedIndex = saved.usedIndex & 0xffff
    this.#signalled = saved.signalled & 0xffff
    // Somebody may have been waiting for a notification when the snapshot was taken: devices look again by themselves.
  }
}
