// virtio/console_test.ts: the console's bytes in both directions.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { VIRTIO_CONSOLE_BYTES_MAX } from '../base/limits.ts'
import { VirtioConsole } from './console.ts'
import { Peer, pump, Rig } from './test_support.ts'

const skip = isSupported() ? false : 'no FFI here'
const INPUT = 0
const OUTPUT = 1
const DATA = 0x1000

function rigOf(peer: Peer): Rig { return new Rig(new VirtioConsole(peer.deviceFd)).start() }

function write(rig: Rig, text: string): void {
  rig.put(DATA, Buffer.from(text))
  const half = text.length >> 1
  rig.request(OUTPUT, [{ at: DATA, length: half }, { at: DATA + half, length: text.length - half }])
}

test('what the guest writes comes out, in order', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  for (const text of ['hello ', 'from ', 'the guest\n']) write(rig, text)
  assert.equal(peer.received().toString(), 'hello from the guest\n')
  assert.equal(rig.rings[OUTPUT]!.taken().length, 3)
  peer.close()
})

test('a guest that writes more than anybody reads waits, and nothing is lost', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.bytes.fill(0x61, DATA, DATA + 60_000)
  for (let i = 0; i < 12; i++) rig.request(OUTPUT, [{ at: DATA, length: 60_000 }])
  const before = rig.rings[OUTPUT]!.taken().length
  assert.ok(before < 12)
  let length = 0
  for (let i = 0; i < 50; i++) {
    length += peer.received().length
    pump(rig)
  }
  assert.equal(length, 12 * 60_000)
  assert.equal(before + rig.rings[OUTPUT]!.taken().length, 12)
  peer.close()
})

test('a chain of overlapping ranges is written up to a limit', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.request(OUTPUT, Array.from({ length: 16 }, () => ({ at: 0, length: 0x8_0000 })))
  assert.equal(peer.received().length, VIRTIO_CONSOLE_BYTES_MAX)
  peer.close()
})

test('input is read when the guest has room for it, and not before', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  peer.send(Buffer.from('typed'))
  pump(rig)
  rig.request(INPUT, [{ at: DATA, length: 3, isWritable: true }])
  pump(rig)
  assert.deepEqual(rig.rings[INPUT]!.taken(), [{ head: 0, written: 3 }])
  assert.equal(rig.port.wanted(), 0)
  rig.request(INPUT, [{ at: DATA + 3, length: 100, isWritable: true }])
  pump(rig)
  assert.equal(Buffer.from(rig.get(DATA, 5)).toString(), 'typed')
  peer.close()
})

test('the size of the terminal is told', { skip }, () => {
  const peer = new Peer()
  const device = new VirtioConsole(peer.deviceFd)
  const rig = new Rig(device).start()
  device.resize(132, 43)
  assert.deepEqual([rig.windows.read(0, 0x100, 2), rig.windows.read(0, 0x102, 2)], [132, 43])
  assert.equal(rig.read(0x60), 2)
  const other = new Rig(new VirtioConsole(peer.deviceFd), rig.memory)
  const saved = rig.port.save()
  other.port.restore('virtio0', saved)
  assert.deepEqual(other.port.save(), saved)
  peer.close()
})

test('a peer that has gone is no reason to wait, nor to spin', { skip }, () => {
  const peer = new Peer()
  const rig = rigOf(peer)
  rig.request(INPUT, [{ at: DATA, length: 3, isWritable: true }])
  peer.hangUp()
  pump(rig)
  assert.equal(rig.port.wanted(), 0)
  for (let i = 0; i < 30; i++) write(rig, 'to nobody')
  assert.equal(rig.rings[OUTPUT]!.taken().length, 30)
})
