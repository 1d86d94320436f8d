// wasi/p1/poll_test.ts: poll_oneoff over fake descriptors and a fake clock, against a naive model, and over sockets.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { EAGAIN, EBADF, EINVAL, EIO, ENOTCAPABLE, ENOTSUP, ESUCCESS } from '../../base/errno.ts'
import { POLL_SUBSCRIPTIONS_MAX } from '../../base/limits.ts'
import {
  FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM, type Descriptor,
} from '../../services/descriptor.ts'
import { GuestFault, GuestMemory } from '../../services/guest_memory.ts'
import { Iovecs } from '../../services/iovecs.ts'
import type { Connection } from '../../services/net/connection.ts'
import { listen } from '../../services/net/listener.ts'
import { WaitQueue, type Waker } from '../../services/wait_queue.ts'
import * as abi from './abi.ts'
import { Context, WAIT } from './context.ts'
import { Descriptors } from './descriptors.ts'
import { poll_oneoff } from './poll.ts'

const [INPUT, OUTPUT, OUT] = [1024, 524_288, 64]
const MS = 1e6

class FakeDescriptor implements Descriptor {
  readonly filetype = FILETYPE_SOCKET_STREAM
  reads = -EAGAIN
  writes = -EAGAIN
  gone = false
  readonly readable = new WaitQueue()
  readonly writable = new WaitQueue()

  pollRead(): number { return this.reads }
  pollWrite(): number { return this.writes }
  hangup(): boolean { return this.gone }
  awaitReadable(waker: Waker): void { this.readable.add(waker) }
  awaitWritable(waker: Waker): void { this.writable.add(waker) }
  forget(waker: Waker): void {
    this.readable.delete(waker)
    this.writable.delete(waker)
  }

  close(): void {}
}

/** The time is what a test says. */
class FakeClock {
  now = 5e9
  /** Since 1970: a number of nanoseconds that no double has. */
  wall = 1_750_000_000_123_456_789n
  readonly resolution = 1
  readonly #parts = new Float64Array(2)

  monotonic(): number { return this.now }
  realtime(): Float64Array {
    this.#parts[0] = Number(this.wall / 1_000_000_000n)
    this.#parts[1] = Number(this.wall % 1_000_000_000n)
    return this.#parts
  }

  advance(ns: number): void {
    this.now += ns
    this.wall += BigInt(ns)
  }
}

type Subscription = { userdata: bigint } & (
  | { tag: 0; id: number; timeout: bigint; flags: number }
  | { tag: 1 | 2; fd: number }
)
type Event = { userdata: bigint; error: number; type: number; bytes: bigint; flags: number }

const clockAt = (timeout: bigint | number, id = abi.CLOCKID_MONOTONIC, flags = 0, userdata = 7n): Subscription =>
  ({ userdata, tag: 0, id, timeout: BigInt(timeout), flags })
const reading = (fd: number, userdata = 0x1234_5678_9abc_def0n): Subscription => ({ userdata, tag: 1, fd })
const writing = (fd: number, userdata = 0xffff_ffff_0000_0001n): Subscription => ({ userdata, tag: 2, fd })

/** A cell that polls. `slept` has the timers that it asked for. */
class Rig {
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 64 }))
  readonly descriptors = new Descriptors()
  readonly clock = new FakeClock()
  readonly context: Context
  readonly slept: number[] = []
  input = INPUT
  output = OUTPUT
  count = 0

  constructor(options: { realTimers?: boolean } = {}) {
    const { memory, descriptors, clock } = this
    const rest = { args: [], env: [], iovecs: new Iovecs(), entropy: { fill: () => {} } }
    this.context = new Context({ memory, descriptors, clock, ...rest } as never)
    const awaitTimer = this.context.awaitTimer.bind(this.context)
    this.context.awaitTimer = (ns, dueNs) => {
      this.slept.push(ns)
      return awaitTimer(options.realTimers === true ? ns : 3600e9, dueNs)
    }
  }

  add(descriptor: Descriptor, rightsBase = abi.RIGHTS_SOCKET): number {
    return this.descriptors.add({ descriptor, rightsBase, rightsInheriting: 0, flags: 0 })
  }

  fake(reads = -EAGAIN, writes = -EAGAIN): FakeDescriptor {
    const fake = new FakeDescriptor()
    fake.reads = reads
    fake.writes = writes
    this.add(fake)
    return fake
  }

  /** Writes the subscriptions. Their padding is noise. */
  subscribe(subscriptions: readonly Subscription[]): void {
    const { memory } = this
    memory.at(this.input, subscriptions.length * 48).fill(0xee)
    subscriptions.forEach((subscription, i) => {
      const at = this.input + 48 * i
      memory.setU64(at, subscription.userdata)
      memory.setU8(at + 8, subscription.tag)
      memory.setU32(at + 16, subscription.tag === 0 ? subscription.id : subscription.fd)
      if (subscription.tag !== 0) return
      memory.setU64(at + 24, subscription.timeout)
      memory.setU16(at + 40, subscription.flags)
    })
    this.count = subscriptions.length
  }

  /** One try: an errno or WAIT. */
  attempt(): number { return poll_oneoff(this.context, this.input, this.output, this.count, OUT) }

  /** Polls as the gate does, by real waiting. */
  async poll(...subscriptions: Subscription[]): Promise<Event[]> {
    this.subscribe(subscriptions)
    let answer = this.attempt()
    while (answer === WAIT) {
      await this.context.parked()
      answer = this.attempt()
    }
    assert.equal(answer, ESUCCESS)
    return this.events()
  }

  /** Polls what can be answered at once. */
  now(...subscriptions: Subscription[]): Event[] {
    this.subscribe(subscriptions)
    assert.equal(this.attempt(), ESUCCESS)
    return this.events()
  }

  events(): Event[] {
    const { memory } = this
    return Array.from({ length: memory.u32(OUT) }, (_, i) => {
      const at = this.output + 32 * i
      return {
        userdata: memory.u64(at), error: memory.u16(at + 8), type: memory.u8(at + 10),
        bytes: memory.u64(at + 16), flags: memory.u16(at + 24),
      }
    })
  }
}

const event = (type: number, userdata: bigint, more: Partial<Event> = {}): Event =>
  ({ userdata, error: ESUCCESS, type, bytes: 0n, flags: 0, ...more })

describe('descriptors', () => {
  test('all that are ready are reported, in the order of the subscriptions', () => {
    const rig = new Rig()
    rig.fake(10, -EAGAIN)
    rig.fake(-EAGAIN, 20)
    rig.fake(0, 7).gone = true
    assert.deepEqual(rig.now(reading(0), writing(0), reading(1), writing(1), reading(2, 5n), writing(2, 6n)), [
      event(1, 0x1234_5678_9abc_def0n, { bytes: 10n }),
      event(2, 0xffff_ffff_0000_0001n, { bytes: 20n }),
      event(1, 5n, { flags: abi.EVENTRWFLAGS_FD_READWRITE_HANGUP }),
      event(2, 6n, { bytes: 7n, flags: abi.EVENTRWFLAGS_FD_READWRITE_HANGUP }),
    ])
  })

  test('a bad number, a missing right and a failure are events, and are not waited for', () => {
    const rig = new Rig()
    rig.add(new FakeDescriptor(), abi.RIGHTS_FD_READ | abi.RIGHTS_FD_WRITE)
    rig.add(new FakeDescriptor(), abi.RIGHTS_POLL_FD_READWRITE | abi.RIGHTS_FD_READ)
    rig.fake(-EIO)
    rig.add({ filetype: FILETYPE_DIRECTORY, close: () => {} })
    const errors = rig.now(
      reading(99), writing(-1), reading(0), writing(1), reading(2), reading(3), writing(3), reading(1),
    ).map(({ error, type }) => [error, type])
    assert.deepEqual(errors, [
      [EBADF, 1], [EBADF, 2], [ENOTCAPABLE, 1], [ENOTCAPABLE, 2], [EIO, 1], [EBADF, 1], [EBADF, 2],
    ])
  })

  test('a regular file is always ready', () => {
    const rig = new Rig()
    const file: Descriptor = { filetype: FILETYPE_REGULAR_FILE, read: () => 0, write: () => 0, close: () => {} }
    rig.add(file, abi.RIGHTS_FILE)
    const ready = [event(1, 1n, { bytes: 1n }), event(2, 2n, { bytes: 1n })]
    assert.deepEqual(rig.now(reading(0, 1n), writing(0, 2n)), ready)
  })

  test('a listening socket is read by who may accept', () => {
    const rig = new Rig()
    const listener = new FakeDescriptor()
    listener.reads = 1
    rig.add(listener, abi.RIGHTS_LISTENER)
    assert.deepEqual(rig.now(reading(0, 1n), writing(0, 2n)), [
      event(1, 1n, { bytes: 1n }), event(2, 2n, { error: ENOTCAPABLE }),
    ])
  })

  test('the vCPU is woken by any of them, and is then forgotten by all', async () => {
    const rig = new Rig()
    const fakes = [rig.fake(), rig.fake(), rig.fake()]
    const polling = rig.poll(reading(0), writing(0), reading(1), writing(2, 9n), clockAt(1e9))
    assert.deepEqual(fakes.map(({ readable, writable }) => [readable.waited, writable.waited]), [
      [true, true], [true, false], [false, true],
    ])
    assert.deepEqual(rig.slept, [1e9])
    fakes[2]!.writes = 5
    fakes[2]!.writable.notify()
    assert.deepEqual(await polling, [event(2, 9n, { bytes: 5n })])
    for (const { readable, writable } of fakes) assert.equal(readable.waited || writable.waited, false)
  })

  test('being woken for nothing is not an answer', async () => {
    const rig = new Rig()
    const fake = rig.fake()
    const polling = rig.poll(reading(0, 1n))
    fake.readable.notify()
    await new Promise(setImmediate)
    assert.equal(fake.readable.waited, true)
    fake.reads = 3
    fake.readable.notify()
    assert.deepEqual(await polling, [event(1, 1n, { bytes: 3n })])
  })

  test('two thousand subscriptions cost microseconds each at most', async () => {
    const rig = new Rig()
    const fakes = Array.from({ length: 2000 }, () => rig.fake())
    const subscriptions = fakes.map((_, fd) => reading(fd, BigInt(fd)))
    rig.subscribe(subscriptions)
    const start = performance.now()
    const rounds = 50
    for (let i = 0; i < rounds; i++) {
      assert.equal(rig.attempt(), WAIT)
      rig.context.wake()
    }
    const us = (performance.now() - start) * 1000 / rounds / fakes.length
    assert.ok(us < 20, `${us} µs a subscription`)
    for (const fake of fakes) fake.reads = 1
    assert.equal(rig.attempt(), ESUCCESS)
    assert.deepEqual(rig.events(), subscriptions.map(({ userdata }) => event(1, userdata, { bytes: 1n })))
  })
})

describe('clocks', () => {
  const [{ CLOCKID_REALTIME: REAL, CLOCKID_MONOTONIC: MONO }, ABS] = [abi, abi.SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME]

  test('zero timeouts and past deadlines of both clocks answer at once', () => {
    const rig = new Rig()
    const past = [
      clockAt(0, MONO), clockAt(0, REAL), clockAt(0, MONO, ABS), clockAt(0, REAL, ABS),
      clockAt(rig.clock.now, MONO, ABS), clockAt(rig.clock.wall, REAL, ABS),
    ]
    assert.deepEqual(rig.now(...past), past.map(() => event(0, 7n)))
    assert.deepEqual(rig.slept, [])
  })

  for (const [name, id, flags] of [
    ['relative monotonic', MONO, 0], ['relative realtime', REAL, 0], ['absolute monotonic', MONO, ABS],
    ['absolute realtime', REAL, ABS],
  ] as const) {
    test(`the ${name} clock rings at its nanosecond, counted from the first try`, () => {
      const rig = new Rig()
      const base = flags === 0 ? 0n : id === MONO ? BigInt(rig.clock.now) : rig.clock.wall
      rig.subscribe([clockAt(base + 300n * BigInt(MS), id, flags)])
      assert.equal(rig.attempt(), WAIT)
      rig.clock.advance(100 * MS)
      rig.context.wake()
      assert.equal(rig.attempt(), WAIT)
      rig.clock.advance(200 * MS - 1)
      rig.context.wake()
      assert.equal(rig.attempt(), WAIT)
      assert.deepEqual(rig.slept, [300 * MS, 200 * MS, 1])
      rig.clock.advance(1)
      rig.context.wake()
      assert.equal(rig.attempt(), ESUCCESS)
      assert.deepEqual(rig.events(), [event(0, 7n)])
      // The next poll counts anew.
      assert.equal(rig.context.since, -1)
    })
  }

  test('the nearest of several decides, and those that are due together are reported together', () => {
    const rig = new Rig()
    const never = clockAt(2n ** 64n - 1n)
    rig.subscribe([clockAt(50, MONO, 0, 1n), clockAt(20, MONO, 0, 2n), clockAt(20, REAL, 0, 3n), never])
    assert.equal(rig.attempt(), WAIT)
    assert.deepEqual(rig.slept, [20])
    rig.clock.advance(20)
    rig.context.wake()
    assert.equal(rig.attempt(), ESUCCESS)
    assert.deepEqual(rig.events(), [event(0, 2n), event(0, 3n)])
  })

  test('a wall clock that is set while the guest waits is noticed', () => {
    const rig = new Rig()
    rig.subscribe([clockAt(rig.clock.wall + 3600n * 1_000_000_000n, REAL, ABS)])
    assert.equal(rig.attempt(), WAIT)
    assert.deepEqual(rig.slept, [1e9])
    rig.clock.wall += 3600n * 1_000_000_000n
    rig.context.wake()
    assert.equal(rig.attempt(), ESUCCESS)
  })

  test('a clock that does not exist or can not ring is an event', () => {
    const rig = new Rig()
    const errors = rig.now(clockAt(0, 4), clockAt(0, 0xffff_ffff), clockAt(0, 2), clockAt(0, 3), clockAt(0, MONO, 2))
    assert.deepEqual(errors.map(({ error }) => error), [EINVAL, EINVAL, ENOTSUP, ENOTSUP, EINVAL])
  })

  test('a real sleep lasts as long as asked', async () => {
    const rig = new Rig({ realTimers: true })
    rig.clock.monotonic = () => performance.now() * 1e6
    for (const ms of [0, 0.2, 3, 25]) {
      const start = performance.now()
      assert.equal((await rig.poll(clockAt(ms * MS))).length, 1)
      const slept = performance.now() - start
      assert.ok(slept >= ms && slept < ms + 1000, `${ms} ms lasted ${slept} ms`)
    }
  })
})

describe('arguments', () => {
  test('no subscription, too many, and a kind that does not exist are EINVAL', () => {
    const rig = new Rig()
    for (const count of [0, POLL_SUBSCRIPTIONS_MAX + 1, -1]) {
      assert.equal(poll_oneoff(rig.context, INPUT, OUTPUT, count, OUT), EINVAL)
    }
    rig.fake(1)
    rig.subscribe([reading(0), reading(0)])
    rig.memory.setU8(INPUT + 48 + 8, 3)
    assert.equal(rig.attempt(), EINVAL)
    assert.equal(rig.context.since, -1)
  })

  test('a bad pointer faults before anything is waited for or written', () => {
    const rig = new Rig()
    const fake = rig.fake()
    rig.subscribe([reading(0), clockAt(0)])
    const end = rig.memory.bytes.length
    const before = rig.memory.bytes.slice()
    for (const [input, output, out] of [
      [end - 95, OUTPUT, OUT], [INPUT, end - 63, OUT], [INPUT, OUTPUT, end - 3], [-48, OUTPUT, OUT], [INPUT, -1, OUT],
    ] as const) {
      assert.throws(() => poll_oneoff(rig.context, input, output, 2, out), GuestFault)
    }
    assert.equal(rig.context.since, -1)
    assert.equal(fake.readable.waited, false)
    assert.equal(Buffer.compare(before, rig.memory.bytes), 0)
  })

  test('events may be written over the subscriptions, wherever they overlap', () => {
    for (const shift of [-64, -32, -1, 0, 1, 8, 33, 48, 100]) {
      const rig = new Rig()
      rig.output = INPUT + shift
      const subscriptions = Array.from({ length: 20 }, (_, fd) => {
        rig.fake(fd + 1)
        return reading(fd, BigInt(fd) << 40n)
      })
      assert.deepEqual(rig.now(...subscriptions),
        subscriptions.map(({ userdata }, fd) => event(1, userdata, { bytes: BigInt(fd + 1) })))
    }
  })
})

describe('sockets', () => {
  test('a guest that polls with a zero timeout in a loop sees what arrives', async () => {
    const rig = new Rig({ realTimers: true })
    const listener = await listen('tcp:127.0.0.1:0')
    rig.add(listener, abi.RIGHTS_LISTENER)
    const peer = connect(listener.port, '127.0.0.1')
    const loop = async (subscription: Subscription): Promise<Event> => {
      for (let tries = 0; tries < 100_000; tries++) {
        const [first] = await rig.poll(subscription, clockAt(0))
        if (first!.type !== 0) return first!
      }
      throw new Error('nothing came')
    }
    assert.deepEqual(await loop(reading(0, 1n)), event(1, 1n, { bytes: 1n }))
    const connection = listener.accept() as Connection
    rig.add(connection)
    peer.write('data')
    assert.deepEqual(await loop(reading(1, 2n)), event(1, 2n, { bytes: 4n }))
    peer.destroy()
    rig.descriptors.closeAll()
  })

  test('a guest waits for a connection, for its bytes, for room to send, and for its end', async () => {
    const rig = new Rig({ realTimers: true })
    const listener = await listen('tcp:127.0.0.1:0')
    rig.add(listener, abi.RIGHTS_LISTENER)
    const accepting = rig.poll(reading(0, 1n))
    const peer = connect({ port: listener.port, host: '127.0.0.1', allowHalfOpen: true })
    assert.deepEqual(await accepting, [event(1, 1n, { bytes: 1n })])
    const connection = listener.accept() as Connection
    rig.add(connection)

    const waiting = rig.poll(reading(0, 1n), reading(1, 2n), clockAt(60e9))
    peer.write('bytes')
    assert.deepEqual(await waiting, [event(1, 2n, { bytes: 5n })])
    const [room] = await rig.poll(writing(1, 3n))
    assert.ok(room!.bytes > 0n && room!.type === 2)

    peer.resetAndDestroy()
    await once(peer, 'close')
    for (let events = await rig.poll(reading(1, 4n)); events[0]!.flags === 0; events = await rig.poll(reading(1, 4n))) {
      await new Promise(setImmediate)
    }
    rig.descriptors.closeAll()
  })
})

describe('poll_oneoff and its model', () => {
  const userdata = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
  const subscription: fc.Arbitrary<Subscription> = fc.oneof(
    fc.record({
      userdata, tag: fc.constant(0 as const), id: fc.nat(5), flags: fc.nat(2),
      timeout: fc.oneof(fc.bigInt(0n, 40n), fc.bigInt(5_000_000_000n, 5_000_000_040n),
        fc.bigInt(1_750_000_000_123_456_789n, 1_750_000_000_123_456_829n), fc.constant(2n ** 64n - 1n)),
    }),
    fc.record({ userdata, tag: fc.constantFrom(1 as const, 2 as const), fd: fc.nat(7) }),
  )
  const step = fc.record({
    ns: fc.nat(15), fd: fc.nat(5), reads: fc.constantFrom(-EAGAIN, 0, 5, 2 ** 33), writes: fc.constantFrom(-EAGAIN, 1),
  })

  /** What a try must find, by the text of the specification, one subscription at a time. */
  const model = (rig: Rig, fakes: FakeDescriptor[], subscriptions: Subscription[], start: number): Event[] =>
    subscriptions.flatMap((s): Event[] => {
      if (s.tag === 0) {
        if (s.id > 3 || s.flags > 1) return [event(0, s.userdata, { error: EINVAL })]
        if (s.id > 1) return [event(0, s.userdata, { error: ENOTSUP })]
        const time = s.flags === 0 ? BigInt(rig.clock.now - start) : s.id === 1 ? BigInt(rig.clock.now) : rig.clock.wall
        return time >= s.timeout ? [event(0, s.userdata)] : []
      }
      const fake = fakes[s.fd]
      if (fake === undefined) return [event(s.tag, s.userdata, { error: EBADF })]
      const ready = s.tag === 1 ? fake.reads : fake.writes
      return ready < 0 ? [] : [event(s.tag, s.userdata, { bytes: BigInt(ready), flags: fake.gone ? 1 : 0 })]
    })

  test('they find the same, whatever happens between the tries and wherever the lists lie', () => {
    fc.assert(fc.property(
      fc.array(subscription, { minLength: 1, maxLength: 100 }), fc.array(step, { maxLength: 12 }),
      fc.array(step, { minLength: 6, maxLength: 6 }), fc.integer({ min: -200, max: 200 }), fc.boolean(),
      (subscriptions, steps, initial, shift, overlapping) => {
        const rig = new Rig()
        if (overlapping) rig.output = INPUT + shift
        const fakes = initial.map(({ reads, writes, ns }) => {
          const fake = rig.fake(reads, writes)
          fake.gone = ns === 0
          return fake
        })
        rig.subscribe(subscriptions)
        const start = rig.clock.now
        for (const [i, { ns, fd, reads, writes }] of steps.entries()) {
          const expected = model(rig, fakes, subscriptions, start)
          const answer = rig.attempt()
          const unready = subscriptions.some((s) => s.tag === 1 && fakes[s.fd] !== undefined && fakes[s.fd]!.reads < 0
            || s.tag === 2 && fakes[s.fd] !== undefined && fakes[s.fd]!.writes < 0)
          const turn = i === 0 && unready && expected.every(({ type, error }) => type === 0 && error === ESUCCESS)
          if (expected.length > 0 && !turn) {
            assert.equal(answer, ESUCCESS)
            assert.deepEqual(rig.events(), expected)
            assert.equal(rig.context.since, -1)
            return
          }
          assert.equal(answer, WAIT)
          rig.context.wake()
          rig.clock.advance(ns)
          Object.assign(fakes[fd]!, { reads, writes })
        }
      }), { numRuns: 300 })
  })
})
