// virtio/port_test.ts: registers and the status, as a driver meets them (Virtio 1.3 §3.1, §4.2).

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { Device, type DeviceType } from './device.ts'
import { Chain } from './queue.ts'
import { EVENT_IDX, INDIRECT_DESC, Rig, RING_RESET, VERSION_1 } from './test_support.ts'

const OWN = 5
const NEEDY = 7
const S_NEEDS_RESET = 64
const S_FAILED = 128

// Gives each chain back, with the number of its bytes; a chain of 13 bytes is a fault.
class Echo extends Device {
  override readonly type: DeviceType = {
    id: 42, name: 'echo0', features: [OWN, NEEDY], needs: [[NEEDY, OWN]], queues: [16, 8],
    config: Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]), counters: ['chains'],
  }
  readonly calls: string[] = []
  #chain = new Chain()
  override serve(queue: number): boolean {
    this.calls.push(`serve ${queue}`)
    while (this.port.queues[queue]!.pop(this.#chain)) {
      if (this.#chain.readBytes === 13) throw new GuestFault('echo: 13')
      this.port.count(0, 1)
      this.port.queues[queue]!.push(this.#chain.head, this.#chain.readBytes)
    }
    return false
  }
  override activate(): void { this.calls.push('activate') }
  override reset(): void { this.calls.push('reset') }
  override configure(at: number, size: number, value: number): boolean {
    this.calls.push(`configure ${at} ${size} ${value}`)
    return at === 4
  }
}

test('a window says what it is', () => {
  const rig = new Rig(new Echo())
  assert.deepEqual([0, 4, 8].map((offset) => rig.read(offset)), [0x74726976, 2, 42])
  assert.equal(rig.offered, 1n << 5n | 1n << 7n | 1n << 28n | 1n << 29n | 1n << 32n | 1n << 40n)
  rig.write(0x30, 1)
  assert.equal(rig.read(0x34), 8)
  rig.write(0x30, 2)
  assert.equal(rig.read(0x34), 0, 'a queue that there is not')
  rig.write(0x14, 2)
  assert.equal(rig.read(0x10), 0, 'features beyond 64')
  assert.equal(rig.read(0xb0), 0xffff_ffff, 'no shared memory')
})

test('the configuration is read in naturally aligned pieces of 1, 2 and 4 bytes, and in no others', () => {
  const rig = new Rig(new Echo())
  const read = (at: number, size: number): number => rig.windows.read(0, 0x100 + at, size)
  assert.equal(read(0, 4), 0x04030201)
  assert.equal(read(2, 2), 0x0403)
  assert.equal(read(7, 1), 8)
  assert.equal(rig.ignored, 0)
  for (const [at, size] of [[1, 2], [2, 4], [0, 8], [0, 3], [8, 1], [6, 4], [0xe00, 4], [0, 0]] as const) {
    assert.equal(read(at, size), 0, `${size} at ${at}`)
  }
  assert.equal(rig.ignored, 8)
})

test('the status goes forward in the only legal order, bit by bit', () => {
  for (let status = 0; status < 256; status++) {
    for (const [path, next] of [[[], 1], [[1], 3], [[1, 3], 0xb], [[1, 3, 0xb], 0xf], [[1, 3, 0xb, 0xf], 0]] as const) {
      const rig = new Rig(new Echo())
      for (const step of path) {
        if (step === 0xb) rig.accept(rig.offered)
        else rig.write(0x70, step)
      }
      const before = path.at(-1) ?? 0
      assert.equal(rig.status, before)
      if (status === 0xb && before === 3) continue
      rig.write(0x70, status)
      const isFailed = status === (before | S_FAILED)
      const wanted = status === 0 ? 0 : isFailed ? status : status === next && next !== 0 ? next : before
      assert.equal(rig.status, wanted, `${before} → ${status}`)
    }
  }
})

test('FEATURES_OK stays away from features that were not offered, lack what they need, or lack VERSION_1', () => {
  const all = (rig: Rig): bigint => rig.offered
  const cases: [string, (rig: Rig) => bigint][] = [
    ['never offered', (rig) => all(rig) | 1n << 3n], ['never offered, high', (rig) => all(rig) | 1n << 63n],
    ['without VERSION_1', (rig) => all(rig) & ~(1n << BigInt(VERSION_1))],
    ['without what it needs', (rig) => all(rig) & ~(1n << BigInt(OWN))], ['nothing', () => 0n],
  ]
  for (const [what, features] of cases) {
    const rig = new Rig(new Echo())
    rig.write(0x70, 1)
    rig.write(0x70, 3)
    rig.accept(features(rig))
    assert.equal(rig.status, 3, what)
    rig.write(0x70, 0xf)
    assert.equal(rig.status, 3, what)
    // Another attempt is allowed.
    rig.accept(rig.offered)
    assert.equal(rig.status, 0xb, what)
  }
})

test('features are fixed once they are accepted', () => {
  const rig = new Rig(new Echo())
  rig.negotiate([OWN, NEEDY])
  rig.write(0x24, 0)
  rig.write(0x20, 0xffff_ffff)
  assert.equal(rig.port.has(OWN), false)
  assert.ok(rig.ignored > 0)
})

test('a queue begins after FEATURES_OK only, and its place is fixed while it is ready', () => {
  const echo = new Echo()
  const rig = new Rig(echo)
  rig.write(0x70, 1)
  rig.write(0x70, 3)
  const ring = { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 }
  rig.setQueue(0, ring)
  assert.equal(rig.read(0x44), 0)
  rig.accept(rig.offered)
  rig.write(0x44, 1)
  assert.equal(rig.read(0x44), 1)
  const { ignored } = rig
  rig.write(0x80, 0x5000)
  rig.write(0x38, 16)
  assert.equal(rig.ignored, ignored + 2)
  rig.write(0x44, 7)
  assert.equal(rig.ignored, ignored + 3)
})

test('nothing is served before DRIVER_OK, and then what waits already', () => {
  const echo = new Echo()
  const rig = new Rig(echo)
  rig.negotiate()
  rig.setQueue(0, { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 })
  rig.kick(0)
  assert.deepEqual(echo.calls.filter((call) => call !== 'reset'), [])
  rig.write(0x70, 0xf)
  assert.deepEqual(echo.calls.filter((call) => call !== 'reset'), ['activate', 'serve 0'])
})

test('a queue against the rules makes the device need a reset, tells the driver, and a reset mends it', () => {
  const rig = new Rig(new Echo()).start()
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.deepEqual(rig.rings[0]!.taken(), [{ head: 0, written: 5 }])
  rig.write(0x64, 3)
  const { interrupts } = rig
  rig.request(0, [{ at: 0x100, length: 13 }])
  assert.equal(rig.status, 0xf | S_NEEDS_RESET)
  assert.equal(rig.read(0x60), 2, 'a change of the configuration')
  assert.equal(rig.interrupts, interrupts + 1)
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.deepEqual(rig.rings[0]!.taken(), [], 'nothing is served')
  rig.write(0x70, 0xf)
  assert.equal(rig.status, 0xf | S_NEEDS_RESET, 'only 0 helps')
  rig.write(0x70, 0)
  assert.equal(rig.status, 0)
  assert.equal(rig.read(0x60), 0)
  rig.start()
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.deepEqual(rig.rings[0]!.taken(), [{ head: 0, written: 5 }])
})

test('rings outside of RAM make the device need a reset when they are made ready', () => {
  for (const bad of [{ desc: 0x10_0000 }, { used: 2 ** 40 }, { avail: 0xffff_fffe }, { size: 3 }, { desc: 8 }]) {
    const rig = new Rig(new Echo())
    rig.negotiate()
    rig.setQueue(0, { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000, ...bad })
    assert.equal(rig.status, 0xb | S_NEEDS_RESET, JSON.stringify(bad))
    assert.equal(rig.read(0x44), 0)
  }
})

test('accesses of odd sizes, at odd places and to what is not there are ignored, counted and harmless', () => {
  const rig = new Rig(new Echo()).start()
  const { ignored } = rig
  let count = 0
  for (const size of [0, 1, 2, 3, 5, 8, 4096]) {
    for (const offset of [0, 0x30, 0x70, 0x44, 0x50]) {
      rig.windows.write(0, offset, size, 0)
      assert.equal(rig.windows.read(0, offset, size), 0)
      count += 2
    }
  }
  for (const offset of [0x00, 0x10, 0x34, 0x60, 0xfc]) {
    rig.write(offset, 1)
    count++
  }
  for (const offset of [0x20, 0x50, 0x64, 0x200, 0xffc, 0x48]) {
    rig.read(offset)
    count++
  }
  assert.equal(rig.ignored, ignored + count)
  rig.windows.write(7, 0x70, 4, 0)
  assert.equal(rig.windows.read(-1, 0, 4), 0)
  assert.equal(rig.windows.read(1, 0, 4), 0)
  assert.equal(rig.status, 0xf)
})

test('interrupts follow the event index, and are acknowledged bit by bit', () => {
  const rig = new Rig(new Echo()).start()
  const ring = rig.rings[0]!
  rig.view.setUint16(ring.avail + 4 + 2 * ring.size, 2, true)
  rig.request(0, [{ at: 0x100, length: 5 }])
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.equal(rig.interrupts, 0)
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.equal(rig.interrupts, 1)
  assert.equal(rig.read(0x60), 1)
  rig.write(0x64, 2)
  assert.equal(rig.read(0x60), 1)
  rig.write(0x64, 1)
  assert.equal(rig.read(0x60), 0)
})

test('one queue is reset and begins again elsewhere, where RING_RESET was accepted', () => {
  const rig = new Rig(new Echo()).start()
  rig.request(1, [{ at: 0x100, length: 5 }])
  rig.write(0x30, 0)
  rig.write(0xc0, 1)
  assert.equal(rig.read(0xc0), 0)
  assert.equal(rig.read(0x44), 0)
  rig.request(0, [{ at: 0x100, length: 5 }])
  assert.deepEqual(rig.rings[0]!.taken(), [])
  rig.bytes.fill(0, 0x1000, 0x4000)
  rig.setQueue(0, { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 })
  assert.equal(rig.read(0x44), 1)
  rig.request(1, [{ at: 0x100, length: 6 }])
  assert.deepEqual(rig.rings[1]!.taken().map(({ written }) => written), [5, 6], 'the other one goes on')

  const plain = new Rig(new Echo()).start({ without: [RING_RESET] })
  plain.write(0x30, 0)
  plain.write(0xc0, 1)
  assert.equal(plain.read(0x44), 1)
  plain.write(0x44, 0)
  plain.write(0x44, 1)
  assert.equal(plain.read(0x44), 0, 'without it a stopped queue stays stopped')
})

test('writes to the configuration reach the device, and are counted when it refuses them', () => {
  const echo = new Echo()
  const rig = new Rig(echo).start()
  rig.write(0x104, 0x8000_0001)
  assert.ok(echo.calls.includes('configure 4 4 2147483649'))
  assert.equal(rig.ignored, 0)
  rig.write(0x100, 1)
  assert.equal(rig.ignored, 1)
})

test('a change of the configuration has a new generation and is told, once the driver is ready', () => {
  const rig = new Rig(new Echo())
  const generation = rig.read(0xfc)
  rig.port.setConfig32(0, 9, true)
  assert.notEqual(rig.read(0xfc), generation)
  assert.equal(rig.interrupts, 0)
  rig.start()
  rig.port.setConfig32(0, 9, true)
  assert.equal(rig.interrupts, 0, 'no change')
  rig.port.setConfig32(0, 10, true)
  assert.equal(rig.interrupts, 1)
  assert.equal(rig.read(0x60), 2)
})

test('a saved port goes on from the same section, at each step of its start', () => {
  const steps: ((rig: Rig) => void)[] = [
    () => {}, (rig) => rig.write(0x70, 1), (rig) => { rig.write(0x70, 1); rig.write(0x70, 3) },
    (rig) => rig.negotiate([INDIRECT_DESC]),
    (rig) => { rig.negotiate([EVENT_IDX]); rig.setQueue(1, { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 }) },
    (rig) => { rig.start(); rig.request(0, [{ at: 0x100, length: 5 }]) },
    (rig) => { rig.start(); rig.request(0, [{ at: 0x100, length: 13 }]) },
    (rig) => { rig.start(); rig.write(0x70, 0x8f) },
  ]
  for (const step of steps) {
    const rig = new Rig(new Echo())
    step(rig)
    const saved = rig.port.save()
    const other = new Rig(new Echo(), rig.memory)
    other.port.restore('virtio0', saved)
    assert.deepEqual(other.port.save(), saved)
    assert.equal(other.status, rig.status)
    if (rig.status !== 0xf) continue
    rig.rings[0]!.taken()
    for (const each of [rig, other]) {
      each.settle()
      each.kick(0)
    }
    assert.deepEqual(other.bytes, rig.bytes)
  }
})

test('a section that is damaged is refused, whatever byte of it was changed, or it is one that could have been', () => {
  const rig = new Rig(new Echo()).start()
  const saved = rig.port.save()
  const isRefusal = (error: unknown): boolean => error instanceof CellarError &&
    (error.code === 'SNAPSHOT_DAMAGED' || error.code === 'SNAPSHOT_FOREIGN')
  let refused = 0
  for (let at = 0; at < saved.length; at++) {
    for (const value of [0, 1, 0x7f, 0x80, 0xff]) {
      const bytes = saved.slice()
      bytes[at] = value
      const other = new Rig(new Echo(), rig.memory)
      try {
        other.port.restore('virtio0', bytes)
      } catch (error) {
        assert.ok(isRefusal(error), `byte ${at}: ${String(error)}`)
        refused++
        continue
      }
      other.settle()
      other.checkGuards()
    }
  }
  assert.ok(refused > 50, `${refused} refused`)
  for (let length = 0; length < saved.length; length++) {
    assert.throws(() => new Rig(new Echo()).port.restore('virtio0', saved.subarray(0, length)), isRefusal)
  }
  assert.throws(() => new Rig(new Echo()).port.restore('virtio0', new Uint8Array([...saved, 0])), isRefusal)
})
