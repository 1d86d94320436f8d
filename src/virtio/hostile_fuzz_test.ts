// virtio/hostile_fuzz_test.ts: every device against a driver that does anything, by seed.
//
// Registers are written with random values of random sizes, rings and data are random bytes, sometimes legal enough to
// get far; streams are filled, drained and cut. What must hold: nothing is thrown, nothing outside of RAM is written,
// each step ends soon, a device that needs a reset has one, and then works. CELLAR_FUZZ_ROUNDS asks for more rounds.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hostEntropy } from '../services/entropy/entropy.ts'
import { isSupported } from '../sys/libc.ts'
import { Balloon } from './balloon.ts'
import { Blk } from './blk.ts'
import { VirtioConsole } from './console.ts'
import type { Device } from './device.ts'
import { Net } from './net.ts'
import { Rng } from './rng.ts'
import { framed, MemoryDisk, Peer, pump, RAM_BYTES, random, Rig, WRITE, NEXT, INDIRECT } from './test_support.ts'
import { Vsock } from './vsock.ts'

const skip = isSupported() ? false : 'no FFI here'
const ROUNDS = Number(process.env['CELLAR_FUZZ_ROUNDS'] ?? 40)
const STEPS = 150
const STEP_MS_MAX = 2000

type Random = (limit: number) => number

const MAKE: Record<string, (peer: Peer, next: Random) => Device> = {
  rng: () => new Rng(hostEntropy),
  balloon: () => new Balloon((_offset, length) => length),
  console: (peer) => new VirtioConsole(peer.deviceFd),
  vsock: (peer) => new Vsock(7, peer.deviceFd),
  net: (peer) => new Net({ name: 'net0', mac: '02:00:00:00:00:01', mtu: 1500, fd: peer.deviceFd, kind: 'stream',
    takesSegments: true, nowMs: () => 0 }),
  blk: (_peer, next) => new Blk({ name: 'blk0', disk: new MemoryDisk(512 * (1 + next(256)), next(4) === 0), serial: 'x',
    queues: 1 + next(4), nowMs: () => 0 }),
}

const ADDRESSES = [0, 1, 0x100, RAM_BYTES - 1, RAM_BYTES, 0xffff_ffff, 2 ** 32, 0xd000_0000, 2 ** 40, 2 ** 64 - 2 ** 12]
const LENGTHS = [0, 1, 12, 16, 44, 511, 512, 4096, 65_536, RAM_BYTES, 0xffff_ffff]
const VALUES = [0, 1, 2, 3, 8, 0xb, 0xf, 0x40, 0x80, 0xffff_ffff]
const REGISTERS = [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xc0]

function one<T>(next: Random, of: readonly T[]): T { return of[next(of.length)]! }

// A descriptor somewhere in the ring or in a table, more or less legal.
function scribble(rig: Rig, next: Random): void {
  const ring = one(next, rig.rings)
  const at = next(4) === 0 ? 16 * next(4096) : ring.desc + 16 * next(ring.size)
  const address = next(5) === 0 ? one(next, ADDRESSES) : next(0x8_0000)
  const length = next(3) === 0 ? one(next, LENGTHS) : 1 + next(4000)
  const flags = next(6) === 0 ? next(8) : one(next, [0, NEXT, WRITE, WRITE | NEXT, INDIRECT])
  const isTable = flags === INDIRECT && next(3) > 0
  ring.setDesc(at, address, isTable ? 16 * (1 + next(20)) : length, flags, next(ring.size + 1))
}

function act(rig: Rig, peer: Peer, next: Random): void {
  const ring = one(next, rig.rings)
  switch (next(14)) {
    case 0: {
      const offset = next(0x120) * (next(3) === 0 ? 1 : 4)
      return rig.windows.write(next(3), offset, one(next, [1, 2, 3, 4, 4, 8]), next(256))
    }
    case 1: return rig.windows.write(0, one(next, REGISTERS), 4, one(next, VALUES))
    case 2: return void rig.windows.read(next(2), next(0x200), one(next, [1, 2, 4, 8]))
    case 3: {
      const index = rig.view.getUint16(ring.avail + 2, true)
      return rig.view.setUint16(ring.avail + 2, next(3) === 0 ? next(65_536) : index + next(20), true)
    }
    case 4: return rig.view.setUint16(ring.avail + 4 + 2 * next(ring.size), next(ring.size + 2), true)
    case 5: return rig.view.setUint32(next(RAM_BYTES - 4), next(0xffff_ffff), true)
    case 6:
      return void peer.send(next(4) === 0 ? Uint8Array.from({ length: next(80) }, () => next(256))
        : framed(new Uint8Array(next(3000))))
    case 7: return void peer.received()
    case 8: {
      // A header that some device takes for its own.
      const at = 0x100 * next(16)
      rig.view.setUint32(at, next(16), true)
      rig.view.setBigUint64(at + 8, BigInt(next(300)), true)
      rig.view.setUint32(at + 24, next(100), true)
      return
    }
    case 9: {
      const parts = Array.from({ length: 1 + next(6) }, (_, i) => ({ at: 0x100 * next(16), length: one(next, [1, 16, 44,
        512, 1 + next(3000)]), isWritable: i > next(3) }))
      ring.add(parts.sort((a, b) => Number(a.isWritable) - Number(b.isWritable)))
      return rig.kick(next(rig.rings.length))
    }
    case 10: return pump(rig)
    case 11: return rig.kick(next(rig.rings.length))
    default: return scribble(rig, next)
  }
}

for (const [name, make] of Object.entries(MAKE)) {
  test(`${name} survives a driver that does anything`, { skip }, () => {
    let faults = 0
    for (let seed = 1; seed <= ROUNDS; seed++) {
      const next = random(seed * 7919)
      const peer = new Peer()
      const rig = new Rig(make(peer, next)).start()
      for (let step = 0; step < STEPS; step++) {
        const begun = performance.now()
        act(rig, peer, next)
        rig.settle()
        const took = performance.now() - begun
        assert.ok(took < STEP_MS_MAX, `seed ${seed}, step ${step}: ${took} ms`)
        if ((rig.status & 0x40) !== 0 && next(4) === 0) {
          faults++
          rig.start()
        }
      }
      rig.checkGuards()
      const saved = rig.port.save()
      const second = new Peer()
      const other = new Rig(make(second, random(seed * 7919)), rig.memory)
      other.port.restore('virtio0', saved)
      other.settle()
      other.checkGuards()
      // Whatever has happened: after a reset it is as new.
      rig.start()
      assert.equal(rig.status, 0xf)
      peer.close()
      second.close()
    }
    assert.ok(faults > 0 || ROUNDS < 10, 'some went far enough to be faults')
  })
}

test('loops, lengths of 2^32 - 1 and rings outside of memory end in a reset of any device', { skip }, () => {
  const hostile: ((rig: Rig, queue: number) => void)[] = [
    (rig, queue) => {
      const ring = rig.rings[queue]!
      ring.setDesc(ring.desc, 0x100, 8, NEXT, 1)
      ring.setDesc(ring.desc + 16, 0x100, 8, NEXT, 0)
      ring.offer(0)
    },
    (rig, queue) => void rig.rings[queue]!.add([{ at: 0x100, length: 0xffff_ffff, isWritable: queue === 0 }]),
    (rig, queue) => void rig.rings[queue]!.add([{ at: 2 ** 40, length: 16 }]),
    (rig, queue) => rig.view.setUint16(rig.rings[queue]!.avail + 2, 0x4000, true),
    (rig, queue) => void rig.rings[queue]!.offer(0xffff),
    (rig, queue) => {
      const ring = rig.rings[queue]!
      ring.setDesc(0x1000, 0x1000, 16, INDIRECT, 0)
      ring.setDesc(ring.desc, 0x1000, 16, INDIRECT, 0)
      ring.offer(0)
    },
  ]
  for (const [name, make] of Object.entries(MAKE)) {
    hostile.forEach((attack, i) => {
      const peer = new Peer()
      const rig = new Rig(make(peer, random(1))).start()
      // The queue that each device looks at by itself: sending for those that have one.
      const queue = name === 'net' || name === 'vsock' || name === 'console' ? 1 : 0
      attack(rig, queue)
      rig.kick(queue)
      assert.equal(rig.status, 0x4f, `${name}, attack ${i}`)
      assert.equal(rig.rings[queue]!.usedIndex, 0)
      rig.checkGuards()
      peer.close()
    })
  }
})
