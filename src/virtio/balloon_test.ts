// virtio/balloon_test.ts: memory that the guest leaves to the host.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { closeFd } from '../sys/sockets.ts'
import { isSupported } from '../sys/libc.ts'
import { makeRam, mapRam, residentBytes, unmapRam } from '../sys/guest_ram.ts'
import { punch } from '../sys/punch.ts'
import { Balloon } from './balloon.ts'
import { RAM_BYTES, Rig } from './test_support.ts'

const [INFLATE, DEFLATE, REPORTING] = [0, 1, 2]
const DATA = 0x1000

function rigOf(): { rig: Rig; balloon: Balloon; returned: [number, number][] } {
  const returned: [number, number][] = []
  const balloon = new Balloon((offset, length) => {
    returned.push([offset, length])
    return length
  })
  return { rig: new Rig(balloon).start(), balloon, returned }
}

function pages(rig: Rig, queue: number, numbers: readonly number[]): void {
  numbers.forEach((number, i) => rig.view.setUint32(DATA + 4 * i, number, true))
  rig.request(queue, [{ at: DATA, length: 4 * numbers.length }])
}

test('the guest is asked for pages, no more than it has', () => {
  const { rig, balloon } = rigOf()
  balloon.setTarget(10 * 4096 + 5)
  assert.equal(rig.read(0x100), 10)
  assert.equal(rig.read(0x60), 2)
  balloon.setTarget(2 ** 50)
  assert.equal(rig.read(0x100), RAM_BYTES / 4096)
  rig.write(0x104, 7)
  assert.equal(rig.read(0x104), 7)
  rig.write(0x100, 7)
  assert.equal(rig.read(0x100), RAM_BYTES / 4096, 'the target is the host\'s')
})

test('pages that are given go back in runs, up or down; pages taken back need nothing', () => {
  const { rig, returned } = rigOf()
  pages(rig, INFLATE, [20, 21, 22, 40, 39, 38, 7])
  assert.deepEqual(returned, [[20 * 4096, 3 * 4096], [38 * 4096, 3 * 4096], [7 * 4096, 4096]])
  pages(rig, DEFLATE, [20, 21])
  assert.equal(returned.length, 3)
  pages(rig, INFLATE, Array.from({ length: 255 }, (_, i) => 255 - i))
  assert.deepEqual(returned[3], [4096, 255 * 4096])
})

test('a page outside of RAM is a fault, and those before it have gone', () => {
  for (const bad of [256, 0xffff_ffff, 0xd_0000, 0x10_0000]) {
    const { rig, returned } = rigOf()
    pages(rig, INFLATE, [3, bad, 5])
    assert.equal(rig.status, 0x4f)
    assert.deepEqual(returned, [[3 * 4096, 4096]])
  }
  const { rig } = rigOf()
  rig.request(INFLATE, [{ at: DATA, length: 7 }])
  assert.equal(rig.status, 0x4f)
  const long = rigOf().rig
  long.request(INFLATE, [{ at: 0, length: 4 * 16_385 }])
  assert.equal(long.status, 0x4f)
})

test('free ranges that are reported go back, and are answered', () => {
  const { rig, returned } = rigOf()
  rig.request(REPORTING, [{ at: 0x1_0000, length: 0x2000, isWritable: true }, { at: 0x4_0000, length: 0x1_0000,
    isWritable: true }])
  assert.deepEqual(returned, [[0x1_0000, 0x2000], [0x4_0000, 0x1_0000]])
  assert.deepEqual(rig.rings[REPORTING]!.taken(), [{ head: 0, written: 0 }])
})

test('a saved balloon keeps its target, and one larger than RAM is refused', () => {
  const { rig, balloon } = rigOf()
  balloon.setTarget(8 * 4096)
  rig.write(0x104, 5)
  const saved = rig.port.save()
  const other = new Rig(new Balloon(() => 0), rig.memory)
  other.port.restore('virtio2', saved)
  assert.deepEqual([other.read(0x100), other.read(0x104)], [8, 5])
  assert.deepEqual(other.port.save(), saved)
  new DataView(saved.buffer).setUint32(saved.length - 8, RAM_BYTES / 4096 + 1, true)
  assert.throws(() => new Rig(new Balloon(() => 0)).port.restore('virtio2', saved), { code: 'SNAPSHOT_DAMAGED' })
})

test('pages of a memfd are given back to the system, shared or private; parts of pages stay', {
  skip: isSupported() ? false : 'no FFI here',
}, () => {
  for (const isPrivate of [false, true]) {
    const size = 4 * 1024 * 1024
    const fd = makeRam(size)
    const ram = mapRam(fd, size, isPrivate)
    ram.bytes.fill(7)
    assert.equal(residentBytes(ram), size)
    assert.equal(punch(ram.address, 4096 + 1, 3 * 1024 * 1024), 3 * 1024 * 1024 - 4096)
    assert.deepEqual([ram.bytes[4096], ram.bytes[8191], ram.bytes[8192]], [7, 7, 0])
    assert.equal(punch(ram.address, 10, 4096), 0)
    // What lies under a private mapping is the memfd, whose pages others share: mincore(2) tells of those.
    if (!isPrivate) assert.ok(residentBytes(ram) <= 1024 * 1024 + 3 * 4096, `${residentBytes(ram)}`)
    unmapRam(ram)
    closeFd(fd)
  }
})
