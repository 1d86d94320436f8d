// virtio/blk.ts: block device (Virtio 1.3 §5.2).
//
// A request is a chain: a header of 16 bytes that we read, data, and last one byte of status that we write; how it is
// cut into descriptors means nothing. The header is copied and checked before anything else; data goes between the disk
// and the guest's memory without a copy, a call of the disk for each range that lies together. Ranges that aren't whole
// sectors, which no driver of today makes, go through a buffer of ours.
//
// Requests are served one after another, in their order, and each is done when it is given back: a flush therefore is
// for all that came before it. A driver that hasn't accepted FLUSH relies on each write being on the disk (§5.2.6.2).
// Errors of the disk are answers (S_IOERR), rings against the rules are faults.
//
// Hot path in reads and writes: no allocation, no closures. Elsewhere: files and formats (services/block).

import { BLK_DISCARD_BYTES_MAX, BLK_DISCARD_RANGES_MAX, BLK_REQUEST_BYTES_MAX, VIRTQUEUE_ROUND_MAX,
  VIRTQUEUE_SIZE_MAX } from '../base/limits.ts'
import { CellarError } from '../base/errors.ts'
import { SECTOR_BYTES, type Disk } from '../services/block/disk.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { Bucket, type DeviceLimits } from './bucket.ts'
import { Device, type DeviceType } from './device.ts'
import { Chain } from './queue.ts'
import type { SectionReader, SectionWriter } from './section.ts'

const VIRTIO_ID_BLOCK = 2
const VIRTIO_BLK_F_SEG_MAX = 2
const VIRTIO_BLK_F_RO = 5
const VIRTIO_BLK_F_BLK_SIZE = 6
const VIRTIO_BLK_F_FLUSH = 9
const VIRTIO_BLK_F_TOPOLOGY = 10
const VIRTIO_BLK_F_MQ = 12
const VIRTIO_BLK_F_DISCARD = 13
const VIRTIO_BLK_F_WRITE_ZEROES = 14

const VIRTIO_BLK_T_IN = 0
const VIRTIO_BLK_T_OUT = 1
const VIRTIO_BLK_T_FLUSH = 4
const VIRTIO_BLK_T_GET_ID = 8
const VIRTIO_BLK_T_DISCARD = 11
const VIRTIO_BLK_T_WRITE_ZEROES = 13

const VIRTIO_BLK_S_OK = 0
const VIRTIO_BLK_S_IOERR = 1
const VIRTIO_BLK_S_UNSUPP = 2

const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

const HEADER_BYTES = 16
const RANGE_BYTES = 16      // struct virtio_blk_discard_write_zeroes { u64 sector; u32 num_sectors; u32 flags; }
const ID_BYTES = 20
const BOUNCE_BYTES = 64 * 1024
/** Header and status are descriptors of their own with most drivers. */
const SEGMENTS_MAX = VIRTQUEUE_SIZE_MAX - 2
/** What a sector is to the host's file systems, as a power of two of sectors: 4 KiB. */
const PHYSICAL_BLOCK_EXP = 3
/** One for each vCPU, as far as a window has room. */
export const BLK_QUEUES_MAX = 8

const C_READS = 0
const C_READ_BYTES = 1
const C_WRITES = 2
const C_WRITTEN_BYTES = 3
const C_FLUSHES = 4
const C_DISCARDED_BYTES = 5
const C_ERRORS = 6
const C_THROTTLED_MS = 7

const NO_STATUS = new GuestFault('blk: a request has no room for its status')
const NO_HEADER = new GuestFault('blk: a request has no header')
NO_STATUS.stack = ''
NO_HEADER.stack = ''

/** What a disk is to the guest. */
export type BlkOptions = {
  readonly name: string; readonly disk: Disk; readonly serial: string; readonly queues: number
  readonly limits?: DeviceLimits | undefined; readonly nowMs: () => number
}

export class Blk extends Device {
  override readonly type: DeviceType
  readonly #disk: Disk
  readonly #id = new Uint8Array(ID_BYTES)
  readonly #chain = new Chain()
  readonly #header = new Uint8Array(HEADER_BYTES)
  readonly #headerView = new DataView(this.#header.buffer)
  readonly #ranges = new Uint8Array(RANGE_BYTES * BLK_DISCARD_RANGES_MAX)
  readonly #rangesView = new DataView(this.#ranges.buffer)
  readonly #status = new Uint8Array(1)
  #bounce: Uint8Array | undefined
  // Ranges of RAM of the request's data: those that lie together are one.
  readonly #offsets = new Float64Array(VIRTQUEUE_SIZE_MAX)
  readonly #lengths = new Float64Array(VIRTQUEUE_SIZE_MAX)
  #pieces = 0
  readonly #bucket: Bucket
  #dueMs = -1
  // Queues that wait for the bucket, as bits.
  #waiting = 0

  constructor({ name, disk, serial, queues, limits, nowMs }: BlkOptions) {
    super()
    this.#disk = disk
    this.#id.set(Buffer.from(serial, 'latin1').subarray(0, ID_BYTES))
    this.#bucket = new Bucket(limits ?? {}, nowMs)
    const count = Math.min(Math.max(1, queues), BLK_QUEUES_MAX)
    const writable = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    this.type = {
      id: VIRTIO_ID_BLOCK, name, config: configOf(disk, count),
      features: [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ, ...disk.isReadOnly ? [VIRTIO_BLK_F_RO] : writable],
      queues: new Array<number>(count).fill(VIRTQUEUE_SIZE_MAX),
      counters: ['reads', 'readBytes', 'writes', 'writtenBytes', 'flushes', 'discardedBytes', 'errors', 'throttledMs'],
    }
  }

  override dueMs(): number { return this.#dueMs }

  override serve(queue: number): boolean {
    const { queues } = this.port
    const isOld = (this.#waiting >>> queue & 1) === 1
    this.#waiting &= ~(1 << queue)
    // Others that wait have their turn, too.
    this.#dueMs = this.#waiting === 0 ? -1 : 0
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      const waitMs = this.#bucket.waitMs()
      if (waitMs > 0) {
        this.#dueMs = waitMs
        this.#waiting |= 1 << queue
        if (!isOld || i > 0) this.port.count(C_THROTTLED_MS, waitMs)
        return false
      }
      if (!queues[queue]!.pop(this.#chain)) return false
      queues[queue]!.push(this.#chain.head, this.#request())
    }
    return true
  }

  // Serves the popped chain. How many bytes of it were written.
  #request(): number {
    const chain = this.#chain
    const { ram } = this.port
    if (chain.writeBytes < 1) throw NO_STATUS
    if (!chain.gather(ram, 0, HEADER_BYTES, this.#header)) throw NO_HEADER
    const view = this.#headerView
    const type = view.getUint32(0, true)
    // Beyond 2^53 it is no exact number any more, nor any disk's.
    const position = (view.getUint32(8, true) + view.getUint32(12, true) * 4294967296) * SECTOR_BYTES
    const room = chain.writeBytes - 1
    let status: number
    let moved = 0
    switch (type) {
      case VIRTIO_BLK_T_IN:
        status = this.#move(position, room, true)
        moved = room
        break
      case VIRTIO_BLK_T_OUT:
        moved = chain.readBytes - HEADER_BYTES
        status = this.#disk.isReadOnly ? VIRTIO_BLK_S_IOERR : this.#move(position, moved, false)
        break
      case VIRTIO_BLK_T_FLUSH:
        status = this.#flush()
        break
      case VIRTIO_BLK_T_GET_ID:
        moved = Math.min(room, ID_BYTES)
        chain.scatter(ram, 0, moved, this.#id)
        status = VIRTIO_BLK_S_OK
        break
      case VIRTIO_BLK_T_DISCARD: case VIRTIO_BLK_T_WRITE_ZEROES:
        status = this.#ranged(type)
        break
      default: status = VIRTIO_BLK_S_UNSUPP
    }
    if (status !== VIRTIO_BLK_S_OK) this.port.count(C_ERRORS, 1)
    this.#bucket.charge(Math.min(moved, BLK_REQUEST_BYTES_MAX))
    this.#status[0] = status
    chain.scatter(ram, room, 1, this.#status)
    return status === VIRTIO_BLK_S_OK && type !== VIRTIO_BLK_T_OUT ? moved + 1 : 1
  }

  #flush(): number {
    this.port.count(C_FLUSHES, 1)
    return this.#disk.flush() < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK
  }

  // Reads or writes `length` bytes.
  #move(position: number, length: number, isRead: boolean): number {
    if (length % SECTOR_BYTES !== 0 || length > BLK_REQUEST_BYTES_MAX) return VIRTIO_BLK_S_IOERR
    if (!(position + length <= this.#disk.sizeBytes)) return VIRTIO_BLK_S_IOERR
    const isWhole = this.#collect(isRead ? 0 : HEADER_BYTES, length, isRead)
    const result = isWhole ? this.#moveDirect(position, isRead) : this.#moveBounced(position, length, isRead)
    this.port.count(isRead ? C_READS : C_WRITES, 1)
    if (result < 0) return VIRTIO_BLK_S_IOERR
    this.port.count(isRead ? C_READ_BYTES : C_WRITTEN_BYTES, length)
    return isRead || this.port.has(VIRTIO_BLK_F_FLUSH) ? VIRTIO_BLK_S_OK : this.#flush()
  }

  // Fills the list of pieces with [from, from + length) of the chain. True if all of them are whole sectors.
  #collect(from: number, length: number, isRead: boolean): boolean {
    const { readable, count, offsets, lengths } = this.#chain
    const [first, last] = isRead ? [readable, count] : [0, readable]
    let pieces = 0
    let isWhole = true
    for (let i = first, start = 0; i < last && start < from + length; i++) {
      const low = Math.max(from, start)
      const size = Math.min(from + length, start + lengths[i]!) - low
      const offset = offsets[i]! + low - start
      start += lengths[i]!
      if (size <= 0) continue
      const end = pieces === 0 ? -1 : this.#offsets[pieces - 1]! + this.#lengths[pieces - 1]!
      if (end === offset) {
        this.#lengths[pieces - 1]! += size
        continue
      }
      if (pieces > 0 && this.#lengths[pieces - 1]! % SECTOR_BYTES !== 0) isWhole = false
      this.#offsets[pieces] = offset
      this.#lengths[pieces++] = size
    }
    this.#pieces = pieces
    return isWhole
  }

  #moveDirect(position: number, isRead: boolean): number {
    const { bytes } = this.port.ram
    const disk = this.#disk
    for (let i = 0, at = position; i < this.#pieces; i++) {
      const size = this.#lengths[i]!
      const result = isRead ? disk.read(at, bytes, this.#offsets[i]!, size)
        : disk.write(at, bytes, this.#offsets[i]!, size)
      if (result < 0) return result
      at += size
    }
    return 0
  }

  #moveBounced(position: number, length: number, isRead: boolean): number {
    const bounce = this.#bounce ??= new Uint8Array(BOUNCE_BYTES)
    const { ram } = this.port
    for (let done = 0; done < length; done += BOUNCE_BYTES) {
      const size = Math.min(BOUNCE_BYTES, length - done)
      if (!isRead) this.#chain.gather(ram, HEADER_BYTES + done, size, bounce)
      const result = isRead ? this.#disk.read(position + done, bounce, 0, size)
        : this.#disk.write(position + done, bounce, 0, size)
      if (result < 0) return result
      if (isRead) this.#chain.scatter(ram, done, size, bounce)
    }
    return 0
  }

  // Discards, or zeroes, what a list of ranges says. All are checked before the first is touched.
  #ranged(type: number): number {
    const length = this.#chain.readBytes - HEADER_BYTES
    if (this.#disk.isReadOnly) return VIRTIO_BLK_S_IOERR
    if (length <= 0 || length % RANGE_BYTES !== 0 || length > this.#ranges.length) return VIRTIO_BLK_S_IOERR
    this.#chain.gather(this.port.ram, HEADER_BYTES, length, this.#ranges)
    const view = this.#rangesView
    const allowed = type === VIRTIO_BLK_T_DISCARD ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    for (let at = 0; at < length; at += RANGE_BYTES) {
      if ((view.getUint32(at + 12, true) & ~allowed) !== 0) return VIRTIO_BLK_S_UNSUPP
      const size = this.#rangeSize(at)
      if (size > BLK_DISCARD_BYTES_MAX || !(this.#rangeStart(at) + size <= this.#disk.sizeBytes)) {
        return VIRTIO_BLK_S_IOERR
      }
    }
    for (let at = 0; at < length; at += RANGE_BYTES) {
      const size = this.#rangeSize(at)
      if (size === 0) continue
      const result = type === VIRTIO_BLK_T_DISCARD ? this.#disk.discard(this.#rangeStart(at), size)
        : this.#disk.writeZeroes(this.#rangeStart(at), size, view.getUint32(at + 12, true) !== 0)
      if (result < 0) return VIRTIO_BLK_S_IOERR
      this.port.count(C_DISCARDED_BYTES, size)
    }
    return VIRTIO_BLK_S_OK
  }

  #rangeStart(at: number): number {
    return (this.#rangesView.getUint32(at, true) + this.#rangesView.getUint32(at + 4, true) * 4294967296) * SECTOR_BYTES
  }
  #rangeSize(at: number): number { return this.#rangesView.getUint32(at + 8, true) * SECTOR_BYTES }

  override reset(): void {
    this.#dueMs = -1
    this.#waiting = 0
  }

  override save(to: SectionWriter): void {
    to.number(this.#disk.sizeBytes)
  }

  override restore(from: SectionReader): void {
    if (from.number(Number.MAX_SAFE_INTEGER) === this.#disk.sizeBytes) return
    throw new CellarError('SNAPSHOT_FOREIGN', [`the disk ${this.type.name} has another size`])
  }
}

// struct virtio_blk_config
function configOf(disk: Disk, queues: number): Uint8Array {
  const config = new Uint8Array(60)
  const view = new DataView(config.buffer)
  const sectors = disk.sizeBytes / SECTOR_BYTES
  view.setUint32(0, sectors >>> 0, true)
  view.setUint32(4, Math.floor(sectors / 4294967296), true)
  view.setUint32(12, SEGMENTS_MAX, true)
  view.setUint32(20, SECTOR_BYTES, true)
  view.setUint8(24, PHYSICAL_BLOCK_EXP)
  view.setUint16(26, 1, true)
  view.setUint16(34, queues, true)
  if (disk.isReadOnly) return config
  for (const at of [36, 48]) {
    view.setUint32(at, BLK_DISCARD_BYTES_MAX / SECTOR_BYTES, true)
    view.setUint32(at + 4, BLK_DISCARD_RANGES_MAX, true)
  }
  view.setUint32(44, 1 << PHYSICAL_BLOCK_EXP, true)
  view.setUint8(56, 1)
  return config
}
