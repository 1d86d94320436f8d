// virtio/test_support.ts: a driver for devices in the same thread: rings in a plain memory, registers through Windows.
//
// The memory has guard bytes on both sides, which nobody may touch. A `Rig` is one device; `Ring` is a queue as a
// driver has it. Everything a hostile driver needs is open: rings and registers can be written as one likes.

import assert from 'node:assert/strict'
import { SECTOR_BYTES, type Disk } from '../services/block/disk.ts'
import { GuestRam } from '../services/guest_ram.ts'
import { poll1 } from '../sys/libc.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { Vectors } from '../sys/vectors.ts'
import type { Device } from './device.ts'
import { Port } from './port.ts'
import { Windows, windowsBytes } from './windows.ts'

const GUARD_BYTES = 4096
export const RAM_BYTES = 1024 * 1024
/** Rings lie from here on, RING_BYTES each; what is below is for data. */
const RINGS_START = 0x80_000
const RING_BYTES = 0x4000

export const NEXT = 1
export const WRITE = 2
export const INDIRECT = 4

export const INDIRECT_DESC = 28
export const EVENT_IDX = 29
export const VERSION_1 = 32
export const RING_RESET = 40

/** A part of a buffer. */
export type Part = { at: number; length: number; isWritable?: boolean }

/** A queue as the driver has it. */
export class Ring {
  readonly view: DataView
  readonly desc: number
  readonly avail: number
  readonly used: number
  readonly size: number
  #free = 0
  #availIndex = 0
  #usedIndex = 0

  constructor(view: DataView, index: number, size: number) {
    this.view = view
    this.size = size
    this.desc = RINGS_START + index * RING_BYTES
    this.avail = this.desc + 16 * size
    this.used = (this.avail + 6 + 2 * size + 3) & ~3
  }

  setDesc(at: number, address: number, length: number, flags: number, next: number): void {
    this.view.setUint32(at, address % 4294967296, true)
    this.view.setUint32(at + 4, Math.floor(address / 4294967296), true)
    this.view.setUint32(at + 8, length, true)
    this.view.setUint16(at + 12, flags, true)
    this.view.setUint16(at + 14, next, true)
  }

  /** Makes a chain of `parts` available, in descriptors of the ring or in the indirect table at `table`. Its head. */
  add(parts: readonly Part[], table?: number): number {
    const head = this.#free
    const place = (i: number): number =>
      table === undefined ? this.desc + 16 * ((head + i) % this.size) : table + 16 * i
    parts.forEach((part, i) => {
      const isLast = i === parts.length - 1
      this.setDesc(place(i), part.at, part.length, (isLast ? 0 : NEXT) | (part.isWritable === true ? WRITE : 0),
        table === undefined ? (head + i + 1) % this.size : i + 1)
    })
    if (table !== undefined) this.setDesc(this.desc + 16 * head, table, 16 * parts.length, INDIRECT, 0)
    this.#free = (head + (table === undefined ? parts.length : 1)) % this.size
    this.offer(head)
    return head
  }

  /** Puts `head` into the available ring. */
  offer(head: number): void {
    this.view.setUint16(this.avail + 4 + 2 * (this.#availIndex % this.size), head, true)
    this.#availIndex = (this.#availIndex + 1) & 0xffff
    this.view.setUint16(this.avail + 2, this.#availIndex, true)
  }

  get usedIndex(): number { return this.view.getUint16(this.used + 2, true) }

  /** What the device has given back since the last call. */
  taken(): { head: number; written: number }[] {
    const found = []
    for (; this.#usedIndex !== this.usedIndex; this.#usedIndex = (this.#usedIndex + 1) & 0xffff) {
      const at = this.used + 4 + 8 * (this.#usedIndex % this.size)
      found.push({ head: this.view.getUint32(at, true), written: this.view.getUint32(at + 4, true) })
    }
    return found
  }
}

/** One device, its driver and its memory. */
export class Rig {
  readonly shared = new SharedArrayBuffer(windowsBytes(1))
  readonly memory = new Uint8Array(RAM_BYTES + 2 * GUARD_BYTES).fill(0xa5)
  readonly bytes = this.memory.subarray(GUARD_BYTES, GUARD_BYTES + RAM_BYTES).fill(0)
  readonly view = new DataView(this.memory.buffer, GUARD_BYTES, RAM_BYTES)
  readonly ram = new GuestRam(this.bytes)
  readonly windows: Windows
  readonly port: Port
  readonly rings: Ring[] = []
  interrupts = 0

  constructor(device: Device, memory?: Uint8Array) {
    if (memory !== undefined) this.memory.set(memory)
    this.port = new Port({ shared: this.shared, index: 0, ram: this.ram, device, signal: () => { this.interrupts++ } })
    this.windows = new Windows(this.shared, {
      changed: (_index, offset, size, value, queue) => this.port.changed(offset, size, value, queue),
      notify: (_fd, _index, queue) => this.port.serve(queue),
    })
  }

  read(offset: number): number { return this.windows.read(0, offset, 4) }
  write(offset: number, value: number): void { this.windows.write(0, offset, 4, value) }
  get status(): number { return this.read(0x70) }
  get ignored(): number { return new Int32Array(this.shared)[16 + 13]! }

  /** Features that the device offers. */
  get offered(): bigint {
    this.write(0x14, 1)
    const high = BigInt(this.read(0x10))
    this.write(0x14, 0)
    return high << 32n | BigInt(this.read(0x10))
  }

  accept(features: bigint): void {
    this.write(0x24, 0)
    this.write(0x20, Number(features & 0xffff_ffffn))
    this.write(0x24, 1)
    this.write(0x20, Number(features >> 32n))
    this.write(0x70, 0xb)
  }

  /** Brings the device up to FEATURES_OK, with all that it offers but `without`. */
  negotiate(without: readonly number[] = []): void {
    this.write(0x70, 0)
    this.write(0x70, 1)
    this.write(0x70, 3)
    this.accept(without.reduce((features, bit) => features & ~(1n << BigInt(bit)), this.offered))
    assert.equal(this.status, 0xb)
  }

  /** Tells the device where ring `index` is, and that it is ready. */
  setQueue(index: number, ring: Pick<Ring, 'size' | 'desc' | 'avail' | 'used'>): void {
    this.write(0x30, index)
    this.write(0x38, ring.size)
    const wide = (offset: number, value: number): void => {
      this.write(offset, value % 4294967296)
      this.write(offset + 4, Math.floor(value / 4294967296))
    }
    wide(0x80, ring.desc)
    wide(0x90, ring.avail)
    wide(0xa0, ring.used)
    this.write(0x44, 1)
  }

  /** Brings it up wholly, each ring of `size` entries. */
  start({ size = 16, without = [] as readonly number[] } = {}): this {
    this.negotiate(without)
    this.rings.length = 0
    this.port.queues.forEach(({ sizeMax }, i) => {
      const ring = new Ring(this.view, i, Math.min(size, sizeMax))
      this.bytes.fill(0, ring.desc, ring.desc + RING_BYTES)
      this.rings.push(ring)
      this.setQueue(i, ring)
    })
    this.write(0x70, 0xf)
    assert.equal(this.status, 0xf)
    return this
  }

  /** Makes a chain available and notifies. */
  request(queue: number, parts: readonly Part[], table?: number): void {
    this.rings[queue]!.add(parts, table)
    this.kick(queue)
  }

  /** Notifies, and lets the device come to an end, as the device thread does. */
  kick(queue: number): void {
    this.write(0x50, queue)
    this.settle()
  }

  /** Serves what the device has put off, for a bounded number of rounds. */
  settle(): void {
    for (let round = 0; this.port.pending !== 0; round++) {
      assert.ok(round < 100_000, 'a device comes to an end')
      for (let queue = 0; queue < this.port.queues.length; queue++) {
        if ((this.port.pending >>> queue & 1) === 1) this.port.serve(queue)
      }
    }
  }

  put(at: number, bytes: Uint8Array): void { this.bytes.set(bytes, at) }
  get(at: number, length: number): Uint8Array { return this.bytes.slice(at, at + length) }

  /** Throws if something has been written outside of RAM. */
  checkGuards(): void {
    const isWhole = (part: Uint8Array): boolean => part.every((byte) => byte === 0xa5)
    assert.ok(isWhole(this.memory.subarray(0, GUARD_BYTES)), 'nothing is written before RAM')
    assert.ok(isWhole(this.memory.subarray(GUARD_BYTES + RAM_BYTES)), 'nothing is written behind RAM')
  }
}

/** Numbers below `limit`, the same for each seed (mulberry32). */
export function random(seed: number): (limit: number) => number {
  let state = seed >>> 0
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ state >>> 15, state | 1)
    t ^= t + Math.imul(t ^ t >>> 7, t | 61)
    return ((t ^ t >>> 14) >>> 0) % limit
  }
}

/** A disk in memory. */
export class MemoryDisk implements Disk {
  readonly bytes: Uint8Array
  readonly sizeBytes: number
  readonly isReadOnly: boolean
  flushes = 0
  /** Of each writeZeroes, whether its room might be given back. */
  readonly unmaps: boolean[] = []
  /** What every call answers if it isn't 0. */
  failsWith = 0

  constructor(sizeBytes: number, isReadOnly = false) {
    this.bytes = new Uint8Array(sizeBytes)
    this.sizeBytes = sizeBytes
    this.isReadOnly = isReadOnly
  }

  read(position: number, memory: Uint8Array, offset: number, length: number): number {
    this.#check(position, length)
    if (this.failsWith === 0) memory.set(this.bytes.subarray(position, position + length), offset)
    return this.failsWith
  }

  write(position: number, memory: Uint8Array, offset: number, length: number): number {
    this.#check(position, length)
    assert.ok(!this.isReadOnly, 'a disk may be written')
    if (this.failsWith === 0) this.bytes.set(memory.subarray(offset, offset + length), position)
    return this.failsWith
  }

  flush(): number {
    this.flushes++
    return this.failsWith
  }

  discard(position: number, length: number): number {
    this.#check(position, length)
    this.bytes.fill(0, position, position + length)
    return this.failsWith
  }

  writeZeroes(position: number, length: number, mayUnmap: boolean): number {
    this.unmaps.push(mayUnmap)
    return this.discard(position, length)
  }

  close(): number { return 0 }

  #check(position: number, length: number): void {
    assert.ok(position >= 0 && length >= 0 && position + length <= this.sizeBytes, `within the disk: ${position}`)
    assert.ok(position % SECTOR_BYTES === 0 && length % SECTOR_BYTES === 0, `a request is of whole sectors: ${length}`)
  }
}

/** The other end of a device's stream: what has come so far, and what is to go, without waiting. */
export class Peer {
  readonly fd: number
  readonly deviceFd: number
  readonly #in = new Uint8Array(1024 * 1024)
  readonly #vectors = new Vectors(this.#in, 1, 0)

  constructor() {
    [this.fd, this.deviceFd] = socketPair()
  }

  /** What has come since the last call. */
  received(): Buffer {
    let length = 0
    for (;;) {
      this.#vectors.clear()
      this.#vectors.add(length, this.#in.length - length)
      const read = this.#vectors.read(this.fd)
      if (read <= 0) return Buffer.from(this.#in.subarray(0, length))
      length += read
    }
  }

  /** What has come, as frames after their lengths. */
  frames(): Buffer[] {
    const bytes = this.received()
    const found = []
    for (let at = 0; at < bytes.length;) {
      const length = bytes.readUInt32BE(at)
      found.push(bytes.subarray(at + 4, at + 4 + length))
      assert.ok(at + 4 + length <= bytes.length, 'a frame is whole')
      at += 4 + length
    }
    return found
  }

  /** How many of `bytes` fit at once. */
  send(bytes: Uint8Array): number {
    const vectors = new Vectors(bytes, 1, 0)
    vectors.add(0, bytes.length)
    return Math.max(0, vectors.write(this.fd))
  }

  sendFrame(frame: Uint8Array): void {
    assert.equal(this.send(framed(frame)), 4 + frame.length)
  }

  /** Closes this end alone. */
  hangUp(): void { closeFd(this.fd) }

  close(): void {
    closeFd(this.fd)
    closeFd(this.deviceFd)
  }
}

/** A frame after its length. */
export function framed(frame: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + frame.length)
  new DataView(bytes.buffer).setUint32(0, frame.length)
  bytes.set(frame, 4)
  return bytes
}

/** Lets a device do what its descriptor allows, as the device thread does, until it waits. */
export function pump(rig: Rig): void {
  for (let round = 0; round < 1000; round++) {
    const wanted = rig.port.wanted()
    if (wanted === 0) return
    const events = poll1(rig.port.device.fd, wanted)
    if (events <= 0) return
    rig.port.ready(events)
    rig.settle()
  }
  assert.fail('a device that is ready does something about it')
}
