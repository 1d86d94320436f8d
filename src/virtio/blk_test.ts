// virtio/blk_test.ts: the block device, by a driver that keeps the rules and one that doesn't.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EIO } from '../base/errno.ts'
import { BLK_REQUEST_BYTES_MAX } from '../base/limits.ts'
import { Blk } from './blk.ts'
import { MemoryDisk, random, Rig, type Part } from './test_support.ts'

const HEADER = 0x100
const STATUS = 0x200
const DATA = 0x1000
const OK = 0
const IOERR = 1
const UNSUPP = 2
const F_FLUSH = 9
const F_RO = 5

function rigOf(disk: MemoryDisk, o: { queues?: number; opsPerSecond?: number; nowMs?: () => number } = {}): Rig {
  return new Rig(new Blk({ name: 'blk0', disk, serial: 'cellar-disk-1', queues: o.queues ?? 1,
    limits: { opsPerSecond: o.opsPerSecond }, nowMs: o.nowMs ?? ((): number => 0) }))
}

function request(rig: Rig, type: number, sector: number, data: readonly Part[], queue = 0): number {
  rig.view.setUint32(HEADER, type, true)
  rig.view.setUint32(HEADER + 4, 0xdddd_dddd, true)
  rig.view.setBigUint64(HEADER + 8, BigInt(sector), true)
  rig.bytes[STATUS] = 0xee
  rig.request(queue, [{ at: HEADER, length: 16 }, ...data, { at: STATUS, length: 1, isWritable: true }])
  return rig.bytes[STATUS]
}

test('sectors are read and written in whatever pieces the driver gives', () => {
  const disk = new MemoryDisk(64 * 512)
  const rig = rigOf(disk).start()
  const next = random(7)
  for (let round = 0; round < 300; round++) {
    const sectors = 1 + next(8)
    const sector = next(64 - sectors + 1)
    // Whole sectors at times, and cuts at any byte at others.
    const unit = round % 2 === 0 ? 512 : 1
    const data: { at: number; length: number; isWritable: boolean }[] = []
    const isRead = next(2) === 0
    for (let left = sectors * 512, i = 0; left > 0; i++) {
      const length = i === 5 ? left : Math.min(left, unit * (1 + next(Math.ceil(left / unit))))
      data.push({ at: DATA + 0x1800 * i, length, isWritable: isRead })
      left -= length
    }
    for (const { at, length } of data) for (let i = 0; i < length; i++) rig.bytes[at + i] = next(256)
    const before = disk.bytes.slice()
    assert.equal(request(rig, isRead ? 0 : 1, sector, data), OK)
    const there = Buffer.concat(data.map(({ at, length }) => rig.get(at, length)))
    assert.deepEqual(there, Buffer.from(disk.bytes.subarray(sector * 512, (sector + sectors) * 512)))
    if (isRead) assert.deepEqual(disk.bytes, before)
    assert.equal(rig.rings[0]!.taken()[0]!.written, isRead ? sectors * 512 + 1 : 1)
  }
  rig.checkGuards()
})

test('the header, and data with the status, may share a descriptor', () => {
  const disk = new MemoryDisk(8 * 512)
  disk.bytes.fill(0x5a, 512, 1024)
  const rig = rigOf(disk).start()
  rig.view.setBigUint64(HEADER + 8, 1n, true)
  const header = [{ at: HEADER, length: 7 }, { at: HEADER + 7, length: 9 }]
  rig.request(0, [...header, { at: DATA, length: 513, isWritable: true }])
  assert.ok(rig.get(DATA, 512).every((byte) => byte === 0x5a))
  assert.equal(rig.bytes[DATA + 512], OK)
})

test('requests beyond the end, of no whole sectors, or too large are errors and touch nothing', () => {
  const disk = new MemoryDisk(8 * 512)
  disk.bytes.fill(0x33)
  const rig = rigOf(disk).start()
  const at = (length: number, isWritable: boolean): Part[] => [{ at: DATA, length, isWritable }]
  for (const [type, isWritable] of [[0, true], [1, false]] as const) {
    for (const sector of [8, 7.5 * 2, 2 ** 32, 2 ** 53, Number(2n ** 63n)]) {
      assert.equal(request(rig, type, sector, at(512, isWritable)), IOERR, `${sector}`)
    }
    assert.equal(request(rig, type, 7, at(1024, isWritable)), IOERR)
    assert.equal(request(rig, type, 0, at(511, isWritable)), IOERR)
    assert.equal(request(rig, type, 8, []), OK, 'nothing, at the end')
  }
  assert.ok(disk.bytes.every((byte) => byte === 0x33))
  assert.ok(rig.get(DATA, 1024).every((byte) => byte === 0))
  const large = new MemoryDisk(0)
  Object.assign(large, { sizeBytes: 2 ** 40 })
  const huge = rigOf(large).start({ size: 128 })
  // Ranges that overlap make a sum beyond RAM: 80 times half a MiB.
  assert.ok(80 * 2 ** 19 > BLK_REQUEST_BYTES_MAX)
  const overlapping = Array.from({ length: 80 }, () => ({ at: 0, length: 2 ** 19, isWritable: true }))
  assert.equal(request(huge, 0, 0, overlapping), IOERR)
})

test('the status descriptor is last, writable, and not more than asked for is written', () => {
  for (const parts of [[{ at: HEADER, length: 16 }], [{ at: HEADER, length: 15 }, { at: STATUS, length: 1,
    isWritable: true }]]) {
    const rig = rigOf(new MemoryDisk(4096)).start()
    rig.request(0, parts)
    assert.equal(rig.status, 0x4f)
  }
})

test('a flush reaches the disk; without the feature each write does', () => {
  const disk = new MemoryDisk(4096)
  const rig = rigOf(disk).start()
  request(rig, 1, 0, [{ at: DATA, length: 512 }])
  assert.equal(disk.flushes, 0)
  assert.equal(request(rig, 4, 0, []), OK)
  assert.equal(disk.flushes, 1)
  const plain = rigOf(disk).start({ without: [F_FLUSH] })
  request(plain, 1, 0, [{ at: DATA, length: 512 }])
  assert.equal(disk.flushes, 2)
  disk.failsWith = -EIO
  assert.equal(request(rig, 4, 0, []), IOERR)
  assert.equal(request(rig, 0, 0, [{ at: DATA, length: 512, isWritable: true }]), IOERR)
  assert.equal(request(rig, 1, 0, [{ at: DATA, length: 512 }]), IOERR)
})

function ranges(rig: Rig, ...list: [sector: number, sectors: number, flags: number][]): Part[] {
  list.forEach(([sector, sectors, flags], i) => {
    rig.view.setBigUint64(DATA + 16 * i, BigInt(sector), true)
    rig.view.setUint32(DATA + 16 * i + 8, sectors, true)
    rig.view.setUint32(DATA + 16 * i + 12, flags, true)
  })
  return [{ at: DATA, length: 16 * list.length }]
}

test('discard and write zeroes do all of their ranges, or none that is against the rules', () => {
  const disk = new MemoryDisk(64 * 512)
  const rig = rigOf(disk).start()
  const zeros = (from: number, to: number): boolean => disk.bytes.subarray(from * 512, to * 512).every((b) => b === 0)
  disk.bytes.fill(1)
  assert.equal(request(rig, 11, 0, ranges(rig, [1, 2, 0], [8, 1, 0], [9, 0, 0])), OK)
  assert.ok(zeros(1, 3) && zeros(8, 9) && !zeros(0, 1) && !zeros(9, 10))
  disk.bytes.fill(1)
  assert.equal(request(rig, 13, 0, ranges(rig, [1, 2, 1], [5, 1, 0])), OK)
  assert.ok(zeros(1, 3) && zeros(5, 6))
  assert.deepEqual(disk.unmaps, [true, false])
  disk.bytes.fill(1)
  assert.equal(request(rig, 11, 0, ranges(rig, [1, 1, 1])), UNSUPP, 'a discard has no flags')
  assert.equal(request(rig, 13, 0, ranges(rig, [1, 1, 2])), UNSUPP)
  for (const bad of [[60, 5, 0], [64, 1, 0], [2 ** 60, 1, 0], [0, 0xffff_ffff, 0]] as [number, number, number][]) {
    for (const type of [11, 13]) assert.equal(request(rig, type, 0, ranges(rig, [0, 1, 0], bad)), IOERR)
  }
  assert.equal(request(rig, 11, 0, []), IOERR)
  assert.equal(request(rig, 11, 0, [{ at: DATA, length: 17 }]), IOERR)
  assert.equal(request(rig, 11, 0, [{ at: DATA, length: 16 * 65 }]), IOERR)
  assert.ok(disk.bytes.every((byte) => byte === 1))
})

test('a disk that may only be read says so, and refuses to be changed', () => {
  const disk = new MemoryDisk(4096, true)
  const rig = rigOf(disk).start()
  assert.ok(rig.port.has(F_RO))
  assert.equal(request(rig, 1, 0, [{ at: DATA, length: 512 }]), IOERR)
  assert.equal(request(rig, 11, 0, ranges(rig, [0, 1, 0])), IOERR)
  assert.equal(request(rig, 13, 0, ranges(rig, [0, 1, 0])), IOERR)
  assert.equal(request(rig, 0, 0, [{ at: DATA, length: 512, isWritable: true }]), OK)
})

test('the serial number is told, cut to the room there is, and unknown requests are unsupported', () => {
  const rig = rigOf(new MemoryDisk(4096)).start()
  assert.equal(request(rig, 8, 0, [{ at: DATA, length: 20, isWritable: true }]), OK)
  assert.equal(Buffer.from(rig.get(DATA, 20)).toString('latin1'), 'cellar-disk-1\0\0\0\0\0\0\0')
  assert.equal(request(rig, 8, 0, [{ at: DATA + 100, length: 6, isWritable: true }]), OK)
  assert.equal(Buffer.from(rig.get(DATA + 100, 8)).toString('latin1'), 'cellar\0\0')
  for (const type of [2, 5, 7, 14, 0xffff_ffff]) assert.equal(request(rig, type, 0, []), UNSUPP)
})

test('the configuration says how large the disk is, and what a request may have', () => {
  const rig = rigOf(new MemoryDisk(8 * 512), { queues: 3 })
  assert.equal(rig.read(0x100), 8)
  assert.equal(rig.read(0x100 + 12), 254)
  assert.equal(rig.read(0x100 + 20), 512)
  assert.equal(rig.windows.read(0, 0x100 + 34, 2), 3)
  rig.start()
  for (const queue of [0, 1, 2]) {
    assert.equal(request(rig, 0, 0, [{ at: DATA, length: 512, isWritable: true }], queue), OK)
  }
})

test('a limit of operations lets requests wait, and counts for how long', () => {
  let now = 0
  const rig = rigOf(new MemoryDisk(4096), { queues: 2, opsPerSecond: 100, nowMs: () => now }).start()
  const { device } = rig.port
  let done = 0
  for (let i = 0; i < 30; i++) {
    request(rig, 0, 0, [{ at: DATA, length: 512, isWritable: true }], i % 2)
    // The rings have 16 entries, three for each request: the driver waits until there is room.
    for (; rig.rings[i % 2]!.taken().length === 0; now += device.dueMs()) {
      assert.ok(device.dueMs() >= 0 && device.dueMs() <= 20, `${device.dueMs()}`)
      rig.port.serveAll()
      done++
      if (done > 1000) assert.fail('it waits for ever')
    }
  }
  // 11 at once, the others at one in 10 ms.
  assert.ok(now > 170 && now < 220, `${now} ms`)
})

test('a saved disk goes on, and is refused where the disk has another size', () => {
  const disk = new MemoryDisk(8 * 512)
  const rig = rigOf(disk).start()
  request(rig, 1, 0, [{ at: DATA, length: 512 }])
  const saved = rig.port.save()
  const other = new Rig(new Blk({ name: 'blk0', disk, serial: '', queues: 1, nowMs: () => 0 }), rig.memory)
  other.port.restore('virtio4', saved)
  other.settle()
  assert.deepEqual(other.port.save(), rig.port.save())
  const smaller = rigOf(new MemoryDisk(4 * 512))
  assert.throws(() => smaller.port.restore('virtio4', saved), { code: 'SNAPSHOT_FOREIGN' })
})
