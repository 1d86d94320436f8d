// virtio/queue_test.ts: virtqueues against an executable model of §2.7, exhaustively where that is possible.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GuestFault } from '../services/guest_memory.ts'
import { GuestRam } from '../services/guest_ram.ts'
import { Chain, Queue } from './queue.ts'
import { INDIRECT, NEXT, random, Ring, WRITE } from './test_support.ts'

const RAM = 0x90_000
const TABLE = 0x1000

type Setup = { bytes: Uint8Array; view: DataView; ram: GuestRam; ring: Ring; queue: Queue; chain: Chain }

function setup(size: number, features: { hasIndirect?: boolean; hasEventIndex?: boolean } = {}): Setup {
  const bytes = new Uint8Array(RAM)
  const view = new DataView(bytes.buffer)
  const ram = new GuestRam(bytes)
  const ring = new Ring(view, 0, size)
  const queue = new Queue(ram, 16)
  queue.enable({ size, desc: ring.desc, avail: ring.avail, used: ring.used, hasIndirect: true, hasEventIndex: false,
    ...features })
  return { bytes, view, ram, ring, queue, chain: new Chain() }
}

type Parts = [offset: number, length: number, isWritable: boolean][]

// What a chain must be, told from the specification alone: a list of parts, or undefined for a fault.
function model(view: DataView, ring: Ring, head: number, hasIndirect: boolean): Parts | undefined {
  const parts: Parts = []
  let [table, size, index, isNested] = [ring.desc, ring.size, head, false]
  for (;;) {
    if (index >= size) return undefined
    const at = table + 16 * index
    const address = Number(view.getBigUint64(at, true))
    const length = view.getUint32(at + 8, true)
    const flags = view.getUint16(at + 12, true)
    if ((flags & INDIRECT) !== 0) {
      const isLegal = hasIndirect && !isNested && (flags & NEXT) === 0 && length % 16 === 0 &&
        length >= 16 && length <= 16 * ring.size && address + length <= RAM
      if (!isLegal) return undefined
      ;[table, size, index, isNested] = [address, length / 16, 0, true]
      continue
    }
    const isWritable = (flags & WRITE) !== 0
    if (parts.length === ring.size || length === 0 || address + length > RAM) return undefined
    if (!isWritable && parts.some(([, , before]) => before)) return undefined
    parts.push([address, length, isWritable])
    if ((flags & NEXT) === 0) return parts
    index = view.getUint16(at + 14, true)
  }
}

function popped({ queue, chain }: Setup): Parts | undefined {
  try {
    assert.ok(queue.pop(chain))
  } catch (error) {
    assert.ok(error instanceof GuestFault, String(error))
    return undefined
  }
  const parts: Parts = []
  for (let i = 0; i < chain.count; i++) parts.push([chain.offsets[i]!, chain.lengths[i]!, i >= chain.readable])
  const sum = (wanted: boolean): number => parts.reduce((all, [, length, is]) => is === wanted ? all + length : all, 0)
  assert.equal(chain.readBytes, sum(false))
  assert.equal(chain.writeBytes, sum(true))
  return parts
}

// Every descriptor of a queue of two and of a table of two, each of a small set of contents.
const CONTENTS: readonly (readonly [address: number, length: number, flags: number, next: number])[] = [
  [0x100, 8, 0, 0], [0x100, 8, NEXT, 0], [0x100, 8, NEXT, 1], [0x100, 8, NEXT, 2], [0x200, 8, WRITE, 0],
  [0x200, 8, WRITE | NEXT, 1], [0x200, 8, WRITE | NEXT, 0], [0x100, 0, 0, 0], [RAM - 8, 9, 0, 0],
  [2 ** 53 - 1, 8, 0, 0], [0, 0xffff_ffff, WRITE, 0], [TABLE, 32, INDIRECT, 0], [TABLE, 32, INDIRECT | NEXT, 1],
  [TABLE, 16, INDIRECT | WRITE, 0], [TABLE, 48, INDIRECT, 0], [TABLE, 24, INDIRECT, 0], [RAM - 16, 32, INDIRECT, 0],
]

for (const hasIndirect of [true, false]) {
  test(`a chain is what the model says, for all contents of two descriptors and a table, indirect ${hasIndirect}`,
    () => {
      let [legal, faults] = [0, 0]
      const kit = setup(2, { hasIndirect })
      const { view, ring, queue } = kit
      const put = (at: number, i: number): void => ring.setDesc(at, ...CONTENTS[i]! as [number, number, number, number])
      const n = CONTENTS.length
      for (let code = 0; code < n ** 4; code++) {
        // Tables matter only if somebody points there.
        if (code >= n * n && !hasIndirect) break
        put(ring.desc, code % n)
        put(ring.desc + 16, Math.floor(code / n) % n)
        put(TABLE, Math.floor(code / n ** 2) % n)
        put(TABLE + 16, Math.floor(code / n ** 3))
        view.setUint16(ring.avail + 2, 1, true)
        view.setUint16(ring.avail + 4, 0, true)
        const wanted = model(view, ring, 0, hasIndirect)
        const got = popped(kit)
        // deepEqual would take a minute for 80,000 of them.
        if (String(got) !== String(wanted)) assert.deepEqual(got, wanted, `code ${code}`)
        if (wanted === undefined) faults++
        else {
          legal++
          queue.unpop(1)
        }
      }
      assert.ok(legal > 20 && faults > 100, `${legal} legal, ${faults} faults`)
    })
}

test('what is given back is in the used ring in order, over many rounds of both indexes', () => {
  const { queue, ring, chain } = setup(4)
  for (let i = 0; i < 70_000; i++) {
    const head = ring.add([{ at: 0x100, length: 8, isWritable: true }])
    assert.ok(queue.pop(chain))
    assert.equal(chain.head, head)
    queue.push(head, i)
    const [used] = ring.taken()
    if (used?.head !== head || used.written !== i) assert.fail(`round ${i}: ${JSON.stringify(used)}`)
    if (queue.pop(chain)) assert.fail('nothing more is there')
  }
})

test('chains that were taken and put back are taken again', () => {
  const { queue, ring, chain } = setup(8)
  const heads = [1, 2, 3].map(() => ring.add([{ at: 0x100, length: 8 }]))
  assert.ok(queue.pop(chain) && queue.pop(chain))
  queue.unpop(2)
  for (const head of heads) {
    assert.ok(queue.pop(chain))
    assert.equal(chain.head, head)
  }
  assert.equal(queue.pop(chain), false)
})

test('the driver is interrupted as its event index says, for all distances', () => {
  const size = 16
  for (let start = 0; start < 4; start++) {
    for (let count = 1; count <= size; count++) {
      for (let event = 0; event < 40; event++) {
        const { queue, ring, chain, view } = setup(size, { hasEventIndex: true })
        const step = (): void => {
          ring.add([{ at: 0x100, length: 8 }])
          queue.pop(chain)
          queue.push(chain.head, 0)
        }
        view.setUint16(ring.avail + 4 + 2 * size, 0xffff, true)
        for (let i = 0; i < start; i++) step()
        queue.wantsInterrupt()
        view.setUint16(ring.avail + 4 + 2 * size, event, true)
        for (let i = 0; i < count; i++) step()
        // The entry that the driver waits for, number `event`, is among those given back since.
        assert.equal(queue.wantsInterrupt(), event >= start && event < start + count, `${start} ${count} ${event}`)
        assert.equal(queue.wantsInterrupt(), false, 'nothing has been given back since')
      }
    }
  }
})

test('without an event index the driver is interrupted unless its flag forbids it', () => {
  const { queue, ring, chain, view } = setup(4)
  for (const flag of [0, 1]) {
    view.setUint16(ring.avail, flag, true)
    ring.add([{ at: 0x100, length: 8 }])
    queue.pop(chain)
    assert.equal(queue.wantsInterrupt(), false)
    queue.push(chain.head, 0)
    assert.equal(queue.wantsInterrupt(), flag === 0)
  }
})

test('an empty queue asks for a notification of the very next chain', () => {
  const { queue, ring, chain, view } = setup(4, { hasEventIndex: true })
  const event = (): number => view.getUint16(ring.used + 4 + 8 * 4, true)
  view.setUint16(ring.used + 4 + 8 * 4, 0x7777, true)
  assert.equal(queue.pop(chain), false)
  assert.equal(event(), 0)
  ring.add([{ at: 0x100, length: 8 }])
  ring.add([{ at: 0x100, length: 8 }])
  assert.ok(queue.pop(chain) && queue.pop(chain))
  assert.equal(event(), 0, 'while there is something, nobody is asked')
  assert.equal(queue.pop(chain), false)
  assert.equal(event(), 2)
})

test('rings that are not in RAM, not aligned or of no legal size are refused', () => {
  const { queue, ring } = setup(4)
  const good = { size: 4, desc: ring.desc, avail: ring.avail, used: ring.used, hasIndirect: true, hasEventIndex: true }
  const bad: Partial<typeof good>[] = [
    { size: 0 }, { size: 3 }, { size: 32 }, { size: 0xffff_ffff }, { desc: ring.desc + 8 }, { avail: ring.avail + 1 },
    { used: ring.used + 2 }, { desc: RAM - 48 }, { desc: 2 ** 64 }, { avail: RAM }, { used: RAM - 36 },
    { avail: 2 ** 32 - 2 }, { used: 0xd000_0000 },
  ]
  for (const change of bad) {
    assert.throws(() => queue.enable({ ...good, ...change }), GuestFault, JSON.stringify(change))
    assert.equal(queue.isReady, false)
  }
  queue.enable({ ...good, desc: RAM - 64 })
  assert.ok(queue.isReady)
})

test('an index more than a ring ahead, and a head beyond the table, are faults', () => {
  for (const index of [5, 0x8000, 0xffff]) {
    const kit = setup(4)
    kit.view.setUint16(kit.ring.avail + 2, index, true)
    assert.equal(popped(kit), undefined)
  }
  for (const head of [4, 0xffff]) {
    const kit = setup(4)
    kit.ring.offer(head)
    assert.equal(popped(kit), undefined)
  }
})

test('random memory is a chain within RAM, or a fault, and never takes long', () => {
  const next = random(1)
  const kit = setup(16)
  for (let round = 0; round < 20_000; round++) {
    for (let i = 0; i < 16; i++) {
      kit.ring.setDesc(kit.ring.desc + 16 * i, next(4) === 0 ? next(0xffff_ffff) * 16 : next(RAM), next(3) === 0
        ? 16 * next(20) : next(5000), next(8), next(18))
    }
    kit.view.setUint16(kit.ring.avail + 2, 1, true)
    kit.view.setUint16(kit.ring.avail + 4, next(16), true)
    const parts = popped(kit)
    if (parts === undefined) continue
    kit.queue.unpop(1)
    assert.ok(parts.length <= 16)
    for (const [offset, length] of parts) assert.ok(offset >= 0 && offset + length <= RAM)
  }
})

test('gather and scatter move any part of a chain, however it is cut', () => {
  const next = random(2)
  const { bytes, ram, ring, queue, chain } = setup(16)
  for (let round = 0; round < 500; round++) {
    const parts = Array.from({ length: 2 + next(10) }, (_, i) => ({ at: 0x2000 + 0x100 * i, length: 1 + next(40),
      isWritable: i > 0 && i % 2 === 1 })).sort((a, b) => Number(a.isWritable) - Number(b.isWritable))
    for (let i = 0; i < 0x2000; i++) bytes[0x2000 + i] = next(256)
    const flat = (isWritable: boolean): number[] => parts.filter((part) => part.isWritable === isWritable)
      .flatMap(({ at, length }) => [...bytes.subarray(at, at + length)])
    ring.add(parts)
    assert.ok(queue.pop(chain))
    queue.push(chain.head, 0)
    const readable = flat(false)
    const from = next(readable.length)
    const count = next(readable.length - from + 1)
    const to = new Uint8Array(count)
    assert.ok(chain.gather(ram, from, count, to))
    assert.deepEqual([...to], readable.slice(from, from + count))
    assert.equal(chain.gather(ram, from, readable.length - from + 1, new Uint8Array(1000)), false)
    const writable = flat(true)
    const place = next(writable.length)
    const data = Uint8Array.from({ length: next(writable.length - place + 1) }, () => next(256))
    assert.ok(chain.scatter(ram, place, data.length, data))
    assert.deepEqual(flat(true), [...writable.slice(0, place), ...data, ...writable.slice(place + data.length)])
    assert.equal(chain.scatter(ram, place, writable.length - place + 1, data), false)
  }
})

test('a saved queue goes on where it was, without what its device holds', () => {
  const { queue, ring, ram, chain } = setup(8)
  for (let i = 0; i < 3; i++) ring.add([{ at: 0x100, length: 8 }])
  queue.pop(chain)
  queue.push(chain.head, 0)
  queue.pop(chain)
  const held = chain.head
  const other = new Queue(ram, 16)
  other.restore(queue.save(1), { hasIndirect: true, hasEventIndex: false })
  assert.deepEqual(other.save(0), queue.save(1))
  assert.ok(other.pop(chain))
  assert.equal(chain.head, held)
})
