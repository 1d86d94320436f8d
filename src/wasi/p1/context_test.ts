// wasi/p1/context_test.ts: what a captured cell tells of its wait: when it has something to do again.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EIO, ESUCCESS } from '../../base/errno.ts'
import type { Clock } from '../../services/clock/clock.ts'
import {
  FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM, FILETYPE_UNKNOWN, type Descriptor,
} from '../../services/descriptor.ts'
import { consoleStream } from '../../services/saved.ts'
import * as abi from './abi.ts'
import { WAIT, type Context } from './context.ts'
import { poll_oneoff } from './poll.ts'
import { BUFFER, contextOf, LIST, OUT } from './test_support.ts'

const [NOW, WALL] = [5e9, 1_750_000_000_000_000_000n]
const [MONO, REAL, ABS] = [abi.CLOCKID_MONOTONIC, abi.CLOCKID_REALTIME, abi.SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME]

/** A clock that stands still. */
const clockAt = (now = NOW): Clock => ({
  resolution: 1,
  time: (id) => id === 1 ? BigInt(now) : WALL,
  monotonic: () => now,
  realtime: () => Float64Array.of(Number(WALL / 1_000_000_000n), Number(WALL % 1_000_000_000n)),
})

const waiting = (filetype: number, save?: Descriptor['save']): Descriptor =>
  ({ filetype, close: () => {}, awaitReadable: () => {}, forget: () => {}, ...(save === undefined ? {} : { save }) })
const console = waiting(FILETYPE_UNKNOWN, consoleStream)

/** Polls for clocks: one try. */
function poll(context: Context, ...clocks: readonly [id: number, timeout: bigint, flags: number][]): number {
  const { memory } = context
  clocks.forEach(([id, timeout, flags], i) => {
    const at = LIST + 48 * i
    memory.bytes.fill(0, at, at + 48)
    memory.setU32(at + 16, id)
    memory.setU64(at + 24, timeout)
    memory.setU16(at + 40, flags)
  })
  return poll_oneoff(context, LIST, BUFFER, clocks.length, OUT)
}

const CASES: readonly [what: string, waits: (context: Context) => unknown, deadlineNs: number | undefined][] = [
  ['runs', () => {}, 0],
  ['waits for its console', (context) => context.awaitReadable(console), undefined],
  ['waits to write to its console', (context) => context.awaitWritable(console), undefined],
  ['waits for a disk', (context) => context.awaitReadable(waiting(FILETYPE_REGULAR_FILE, consoleStream)), 0],
  ['waits for a connection, which it loses', (context) => context.awaitReadable(waiting(FILETYPE_SOCKET_STREAM)), 0],
  ['waits for its console and for such a connection', (context) => {
    context.awaitReadable(console)
    context.awaitReadable(waiting(FILETYPE_SOCKET_STREAM))
  }, 0],
  ['waits for a flush', (context) => context.awaitOperation(() => new Promise(() => {})), 0],
  ['lets others run', (context) => context.awaitTimer(0), 0],
  ['sleeps', (context) => poll(context, [MONO, 7_000_000_000n, 0]), NOW + 7e9],
  ['sleeps until a time', (context) => poll(context, [MONO, 9_000_000_000n, ABS]), 9e9],
  ['sleeps until a day', (context) => poll(context, [REAL, WALL + 86_400_000_000_000n, ABS]), NOW + 86_400e9],
  ['sleeps by several clocks', (context) =>
    poll(context, [REAL, WALL + 86_400_000_000_000n, ABS], [MONO, 3_000_000_000n, 0], [MONO, 2n ** 62n, 0]), NOW + 3e9],
  ['waits for its console, for a time', (context) => {
    context.awaitReadable(console)
    context.awaitTimer(5, NOW + 5)
  }, NOW + 5],
]

for (const [what, waits, deadlineNs] of CASES) {
  const when = deadlineNs === undefined ? 'when others do something' : deadlineNs === 0 ? 'at once' : 'at that time'
  test(`a cell that is captured while it ${what} goes on ${when}`, () => {
    const context = contextOf({ clock: clockAt() })
    waits(context)
    assert.equal(context.deadlineNs, deadlineNs)
    context.interrupt()
    assert.equal(context.deadlineNs, deadlineNs, 'also after it has left its wait')
  })
}

test('a cell whose wait has ended goes on at once', () => {
  const context = contextOf({ clock: clockAt() })
  context.awaitReadable(console)
  context.wake()
  assert.equal(context.deadlineNs, 0)
  context.interrupt()
  assert.equal(context.deadlineNs, 0)
})

test('an interrupted wait says nothing of the next', () => {
  const context = contextOf({ clock: clockAt() })
  context.awaitReadable(console)
  context.interrupt()
  context.awaitTimer(5, NOW + 5)
  context.wake()
  assert.equal(context.deadlineNs, 0)
})

test('interrupt takes the vCPU out of every queue, and calls off its timer', () => {
  let [queued, timers] = [0, 0]
  const turn = { after: () => { timers++; return () => { timers-- } }, wake: () => {} }
  const context = contextOf({ clock: clockAt(), turn: turn as never })
  const one: Descriptor = { ...console, awaitReadable: () => { queued++ }, forget: () => { queued-- } }
  context.awaitReadable(one)
  context.awaitReadable(one)
  context.awaitTimer(5)
  assert.deepEqual([queued, timers], [2, 1])
  context.interrupt()
  assert.deepEqual([queued, timers], [0, 0])
})

test('an operation that was under way when the cell was captured gives its result to the next try', async () => {
  const context = contextOf()
  const done = Promise.withResolvers<number>()
  assert.equal(context.awaitOperation(() => done.promise), WAIT)
  context.interrupt()
  assert.equal(context.awaitOperation(() => assert.fail('it has begun')), WAIT)
  done.resolve(EIO)
  await context.parked()
  assert.equal(context.awaitOperation(() => assert.fail('it is done')), EIO)
})

test('a sleeper that goes on from a snapshot sleeps for what is left', () => {
  const before = contextOf({ clock: clockAt(NOW) })
  assert.equal(poll(before, [MONO, 1000n, 0]), WAIT)
  // Its clock goes on from where it was, however long nobody ran it.
  const stoppedAt = NOW + 400
  const after = contextOf({ clock: clockAt(stoppedAt) })
  after.since = before.since
  assert.equal(poll(after, [MONO, 1000n, 0]), WAIT)
  assert.equal(after.deadlineNs, NOW + 1000)
  const late = contextOf({ clock: clockAt(NOW + 1000) })
  late.since = before.since
  assert.equal(poll(late, [MONO, 1000n, 0]), ESUCCESS)
})
