// host/cells_captures_test.ts: captures, forks and who is held, with a stack, a store and a host of the test's own.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { SNAPSHOTS_AT_ONCE } from '../base/limits.ts'
import type { Stack } from '../cell/stack.ts'
import type { CellState } from '../cell/state.ts'
import type { SnapshotStore } from '../snapshot/store.ts'
import { Captures } from './cells_captures.ts'
import type { Guest } from './cells_guest.ts'
import { Snapshots } from './cells_snapshots.ts'
import type { HealthChecks } from './health.ts'
import type { HostLine } from './host_line.ts'
import type { FromProcess, GuestLaunch, ToProcess } from './protocol.ts'

const STATE = { monotonicNs: 5e9, deadlineNs: 6.5e9 } as unknown as CellState
const WRITTEN = { digest: 'sha256:d', memoryBytes: 1, newBytes: 2, storedBytes: 3, chunks: 4, newChunks: 5,
  known: undefined }

/** Guests by their numbers, what is done to them in order, and a store that waits to be told. */
class Rig {
  readonly did: string[] = []
  readonly sent: FromProcess[] = []
  readonly guests = new Map<string, Guest>()
  readonly line = { isConnected: true, connections: 1, send: (message: FromProcess) => this.sent.push(message) }
  /** What capturing and writing result in; until `settle`, if they are to wait. */
  capture: () => Promise<CellState> = async () => STATE
  write: () => Promise<typeof WRITTEN> = async () => WRITTEN
  readonly children: { launch: GuestLaunch; saved: Promise<CellState> }[] = []
  readonly captures: Captures

  constructor() {
    const note = (what: string) => (number: number) => { this.did.push(`${what} ${number}`) }
    const capture = (number: number): Promise<CellState> => {
      note('capture')(number)
      return this.capture()
    }
    const write = (_: unknown, __: unknown, { durable }: { durable: boolean }): Promise<typeof WRITTEN> => {
      this.did.push(durable ? 'write, durable' : 'write')
      return this.write()
    }
    const stack = { goOn: note('go on'), giveUp: async (number: number) => note('give up')(number), capture }
    const health = { rest: (id: string, is: boolean) => this.did.push(`${id} ${is ? 'rests' : 'is awake'}`) }
    this.captures = new Captures({ stack: stack as unknown as Stack,
      snapshots: new Snapshots({ write } as unknown as SnapshotStore, () => {}),
      line: this.line as unknown as HostLine, health: health as unknown as HealthChecks,
      find: (id, run) => run === 1 ? this.guests.get(id) : undefined,
      start: (launch, saved) => {
        saved.catch(() => {})
        this.children.push({ launch, saved })
      } })
    for (const [number, id] of ['a', 'b', 'c', 'd'].entries()) {
      this.guests.set(id, { launch: { id, run: 1, name: `${id}-name`, module: 'sha256:m' }, number, signal: undefined,
        isHeld: false, isReleased: false, isPaused: false, work: Promise.resolve(), known: undefined,
      } as unknown as Guest)
    }
  }

  order(id: string, request: number, then: 'resume' | 'hold', durable = false): void {
    this.captures.capture({ capture: id, run: 1, request, next: then, durable } satisfies ToProcess)
  }

  guest(id: string): Guest { return this.guests.get(id)! }
  /** What was sent last, when all that could happen has. */
  async last(): Promise<FromProcess | undefined> {
    await new Promise(setImmediate)
    return this.sent.at(-1)
  }
}

const error = (message: FromProcess | undefined): readonly [string | undefined, ...unknown[]] =>
  message !== undefined && 'captured' in message ? [message.error?.code, ...message.error?.values ?? []] : [undefined]

test('a capture lets its guest go on before its snapshot is written, and tells when a timer of it is due', async () => {
  const rig = new Rig()
  rig.order('a', 7, 'resume')
  const told = await rig.last()
  assert.deepEqual(rig.did, ['capture 0', 'go on 0', 'write'])
  assert.ok(told !== undefined && 'captured' in told)
  const { stoppedNs, ...written } = told.written!
  assert.deepEqual({ ...told, written }, { captured: 7, id: 'a', written: { snapshot: 'sha256:d', memoryBytes: 1,
    newBytes: 2, storedBytes: 3, chunks: 4, newChunks: 5, wakeInMs: 1500 } })
  assert.ok(stoppedNs > 0)
})

test('a guest that is held rests until it is told to go on, or is given up', async () => {
  const rig = new Rig()
  for (const id of ['a', 'b']) rig.order(id, 1, 'hold', true)
  await rig.last()
  assert.deepEqual(rig.did.filter((what) => !what.startsWith('capture')).toSorted(),
    ['a rests', 'b rests', 'write, durable', 'write, durable'])
  assert.deepEqual(['a', 'b'].map((id) => rig.guest(id).isHeld), [true, true])
  rig.did.length = 0
  rig.captures.go('a', 1)
  rig.captures.go('a', 1)
  rig.captures.release('b', 1)
  assert.deepEqual(rig.did, ['go on 0', 'a is awake', 'give up 1'])
  // Words about others, or about what isn't held, are none.
  for (const [id, run] of [['c', 1], ['a', 2], ['x', 1]] as const) rig.captures.go(id, run)
  rig.captures.release('a', 1)
  assert.equal(rig.did.length, 3)
  rig.captures.release('x', 1)
  assert.deepEqual(rig.sent.at(-1), { released: 'x', run: 1 })
})

test('one that is given up is so once, and is no one that goes on', async () => {
  const rig = new Rig()
  for (const id of ['a', 'b']) rig.order(id, 1, 'hold')
  await rig.last()
  rig.did.length = 0
  rig.captures.release('a', 1)
  rig.captures.release('a', 1)
  rig.captures.go('a', 1)
  assert.deepEqual(rig.did, ['give up 0'])
  // By a stop it is leaving already.
  rig.guest('b').signal = 9
  rig.captures.go('b', 1)
  rig.captures.release('b', 1)
  assert.deepEqual([rig.did.length, rig.guest('b').isReleased], [1, true])
})

test('one that is paused and held does not wake when it goes on', async () => {
  const rig = new Rig()
  rig.guest('a').isPaused = true
  rig.order('a', 1, 'hold')
  await rig.last()
  rig.captures.go('a', 1)
  assert.deepEqual(rig.did.slice(-2), ['go on 0', 'a rests'])
})

test('a guest whose snapshot can\'t be written goes on, and the host hears why', async () => {
  const rig = new Rig()
  rig.write = async () => { throw new CellarError('HOST_DISK_FULL', ['/x']) }
  rig.order('a', 1, 'hold')
  assert.deepEqual(error(await rig.last()), ['HOST_DISK_FULL', '/x'])
  assert.deepEqual([rig.guest('a').isHeld, rig.did.slice(-2)], [false, ['go on 0', 'a is awake']])
  rig.order('b', 2, 'resume')
  assert.deepEqual(error(await rig.last()), ['HOST_DISK_FULL', '/x'])
  assert.equal(rig.did.filter((what) => what === 'go on 1').length, 1)
})

test('what can\'t be captured, isn\'t there or is held already is answered with an error', async () => {
  const rig = new Rig()
  rig.order('x', 1, 'resume')
  assert.deepEqual(error(await rig.last()), ['CAPTURE_ENDED', 'x'])
  rig.capture = async () => { throw new CellarError('CAPTURE_IMPOSSIBLE', ['a-name', 'it may not be']) }
  rig.order('a', 2, 'hold')
  assert.deepEqual(error(await rig.last()), ['CAPTURE_IMPOSSIBLE', 'a-name', 'it may not be'])
  assert.equal(rig.guest('a').isHeld, false)
  rig.guest('b').isHeld = true
  rig.order('b', 3, 'hold')
  assert.equal(error(await rig.last())[0], 'CAPTURE_IMPOSSIBLE')
  rig.guest('c').number = undefined
  rig.order('c', 4, 'hold')
  assert.deepEqual(error(await rig.last()), ['CAPTURE_ENDED', 'c-name'])
})

test('a guest that was sent a signal while it was captured is given up', async () => {
  const rig = new Rig()
  rig.capture = async () => {
    rig.guest('a').signal = 15
    return STATE
  }
  rig.order('a', 1, 'resume')
  assert.deepEqual(error(await rig.last()), ['CAPTURE_ENDED', 'a-name'])
  assert.deepEqual(rig.did, ['capture 0', 'give up 0'])
})

test('a guest that has ended while it was written is an error, and nothing goes on', async () => {
  const rig = new Rig()
  rig.write = async () => {
    // As a stop ends one that is held.
    rig.guest('a').signal = 9
    rig.guests.delete('a')
    return WRITTEN
  }
  rig.order('a', 1, 'hold')
  assert.deepEqual(error(await rig.last()), ['CAPTURE_ENDED', 'a-name'])
  assert.ok(!rig.did.includes('go on 0'))
})

test('a guest goes on when the host that wanted it held is gone before it was told', async () => {
  for (const leave of [(rig: Rig) => { rig.line.isConnected = false }, (rig: Rig) => { rig.line.connections++ }]) {
    const rig = new Rig()
    rig.write = async () => {
      leave(rig)
      return WRITTEN
    }
    rig.order('a', 1, 'hold')
    assert.equal(await rig.last(), undefined)
    assert.deepEqual([rig.guest('a').isHeld, rig.did.at(-2)], [false, 'go on 0'])
  }
})

test('of one guest one thing is done at a time, of all few', async () => {
  const rig = new Rig()
  const ends: (() => void)[] = []
  rig.write = () => new Promise((resolve) => { ends.push(() => resolve(WRITTEN)) })
  for (const [at, id] of ['a', 'a', 'b', 'c', 'd'].entries()) rig.order(id, at, 'resume')
  rig.captures.fork({ fork: 'a', run: 1, request: 9, children: [] })
  await rig.last()
  assert.deepEqual(rig.did.filter((what) => what.startsWith('capture')), ['capture 0', 'capture 1'])
  assert.equal(SNAPSHOTS_AT_ONCE, 2)
  while (ends.length > 0) {
    ends.shift()!()
    await rig.last()
  }
  assert.deepEqual(rig.did.filter((what) => what === 'capture 0').length, 3)
  const answers = rig.sent.flatMap((message) => 'captured' in message && message.id === 'a' ? [message.captured] : [])
  assert.deepEqual(answers, [0, 1, 9])
})

test('a fork starts each child from what was captured once, and the guest goes on', async () => {
  const rig = new Rig()
  const children = ['x', 'y'].map((id) => ({ id, module: 'sha256:m' }) as GuestLaunch)
  rig.captures.fork({ fork: 'a', run: 1, request: 3, children: [...children, { id: 'z', module: 'sha256:n' } as
    GuestLaunch] })
  assert.deepEqual(rig.children.map(({ launch }) => launch.id), ['x', 'y', 'z'])
  await assert.rejects(rig.children.pop()!.saved, { code: 'SNAPSHOT_FOREIGN' })
  assert.deepEqual(await rig.last(), { captured: 3, id: 'a' })
  assert.deepEqual(rig.did, ['capture 0', 'go on 0'])
  assert.deepEqual(await Promise.all(rig.children.map(({ saved }) => saved)), [STATE, STATE])
})

test('children of a guest that can\'t be captured hear why', async () => {
  const rig = new Rig()
  rig.capture = async () => { throw new CellarError('CAPTURE_ENDED', ['a-name']) }
  rig.captures.fork({ fork: 'a', run: 1, request: 3, children: [{ id: 'x', module: 'sha256:m' } as GuestLaunch] })
  assert.deepEqual(error(await rig.last()), ['CAPTURE_ENDED', 'a-name'])
  await assert.rejects(rig.children[0]!.saved, { code: 'CAPTURE_ENDED' })
})
