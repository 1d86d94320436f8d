// wasi/cellar/lifecycle_test.ts: who a guest is told that it is, and both ways out of each call that copies it.

import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'node:test'
import {
  EACCES, EAGAIN, EFAULT, EILSEQ, EINTR, EINVAL, EMFILE, ENOMEM, ENOTSUP, ERANGE, ESUCCESS,
} from '../../base/errno.ts'
import { DESCRIPTORS_MAX, FORKS_MAX, SNAPSHOT_NAME_BYTES_MAX } from '../../base/limits.ts'
import type { Clock } from '../../services/clock/clock.ts'
import { Events } from '../../services/lifecycle/events.ts'
import {
  EVENT_KINDS, movedGrant, newGrant, type Asked, type EventKind, type LifecycleGrant,
} from '../../services/lifecycle/lifecycle.ts'
import { FDFLAGS_NONBLOCK, RIGHTS_EVENTS, RIGHTS_FD_READ } from '../p1/abi.ts'
import { WAIT, type Context, type Hypercall } from '../p1/context.ts'
import { fd_read } from '../p1/fd.ts'
import { answered, called, contextOf, MEMORY_BYTES, OUT } from '../p1/test_support.ts'
import {
  event_last, events_open, generation_get, guest_fork, guest_hibernate, guest_snapshot, identity_get,
} from './lifecycle.ts'

const BUFFER = 1024
// As coarse as a clock can be.
const clock = { monotonic: () => 5e9 } as Clock

type Host = { readonly asked: [Asked, number][]; readonly answers: ((errno: number) => void)[] }

/** A guest with a host that answers when a test says so. */
function guestOf(grant: LifecycleGrant, since = -1): { context: Context } & Host {
  const host: Host = { asked: [], answers: [] }
  const lifecycle = {
    grant,
    request: (asked: Asked, serial: number) => {
      host.asked.push([asked, serial])
      return new Promise<number>((resolve) => host.answers.push(resolve))
    },
  }
  const context = contextOf({ lifecycle, clock })
  context.since = since
  return { context, ...host }
}

/** The same guest as it goes on from having been captured, in another context, by `event` or moved in its process. */
function goesOn(captured: Context, event: EventKind | undefined, number = 0): ReturnType<typeof guestOf> {
  const grant = event === undefined ? movedGrant(captured.lifecycle!.grant)
    : newGrant({ id: 'g2', name: 'copy', event, number })
  return guestOf(grant, captured.since)
}

const plain = (): LifecycleGrant => newGrant({ id: 'g1', name: 'wéb' })

function named(context: Context, name: string): [number, number] {
  const bytes = Buffer.from(name)
  context.memory.bytes.set(bytes, BUFFER)
  return [BUFFER, bytes.length]
}

test('identity_get tells id and name, and how long they are if they do not fit', () => {
  const { context } = guestOf(plain())
  const { memory } = context
  assert.equal(identity_get(context, 1, BUFFER, 100, OUT), ESUCCESS)
  assert.equal(Buffer.from(memory.at(BUFFER, memory.u32(OUT))).toString(), 'wéb')
  assert.equal(identity_get(context, 0, BUFFER, 2, OUT), ESUCCESS)
  assert.equal(Buffer.from(memory.at(BUFFER, 2)).toString(), 'g1')
  assert.equal(identity_get(context, 1, BUFFER, 3, OUT), ERANGE)
  assert.deepEqual([memory.u32(OUT), Buffer.from(memory.at(BUFFER, 2)).toString()], [4, 'g1'])
  assert.equal(identity_get(context, 2, BUFFER, 100, OUT), EINVAL)
})

test('calls that tell something check their pointers first', async () => {
  const { context, asked } = guestOf(plain())
  const end = MEMORY_BYTES - 3
  assert.equal(answered(() => identity_get(context, 0, BUFFER, -1, OUT)), EFAULT)
  assert.equal(answered(() => identity_get(context, 0, BUFFER, 10, end)), EFAULT)
  assert.equal(answered(() => generation_get(context, MEMORY_BYTES - 15)), EFAULT)
  assert.equal(answered(() => event_last(context, MEMORY_BYTES - 31)), EFAULT)
  assert.equal(answered(() => events_open(context, end)), EFAULT)
  assert.equal(context.descriptors.get(0), undefined)
  assert.equal(answered(() => guest_fork(context, 1, end)), EFAULT)
  assert.equal(answered(() => guest_snapshot(context, BUFFER, 1, end)), EFAULT)
  assert.equal(answered(() => guest_snapshot(context, MEMORY_BYTES - 1, 2, OUT)), EFAULT)
  assert.deepEqual([asked, context.since], [[], -1])
})

test('generation_get and event_last tell of the launch that the guest is in', () => {
  const { context } = guestOf(newGrant({ id: 'g1', name: 'web', event: 'fork', number: 3 }))
  const { memory } = context
  assert.equal(generation_get(context, BUFFER), ESUCCESS)
  assert.equal(event_last(context, OUT), ESUCCESS)
  assert.deepEqual([memory.u32(OUT), memory.u32(OUT + 4)], [EVENT_KINDS.fork, 3])
  const generation = Buffer.from(memory.at(BUFFER, 16)).toString('hex')
  assert.equal(generation, context.lifecycle!.grant.generation)
  assert.equal(Buffer.from(memory.at(OUT + 16, 16)).toString('hex'), generation)
  const first = guestOf(plain()).context
  first.memory.setU32(OUT, 99)
  assert.equal(event_last(first, OUT), ESUCCESS)
  assert.equal(first.memory.u32(OUT), 0)
})

test('events_open gives a descriptor to read, which waits or answers EAGAIN', () => {
  const { context } = guestOf(newGrant({ id: 'g1', name: 'web', event: 'wake' }))
  assert.equal(events_open(context, OUT), ESUCCESS)
  const fd = context.memory.u32(OUT)
  const entry = context.descriptors.get(fd)!
  assert.ok(entry.descriptor instanceof Events && entry.rightsBase === RIGHTS_EVENTS)
  assert.ok((RIGHTS_EVENTS & RIGHTS_FD_READ) !== 0)
  context.memory.setU32(0, BUFFER)
  context.memory.setU32(4, 64)
  // What was before it was opened is no news.
  assert.equal(fd_read(context, fd, 0, 1, OUT), WAIT)
  context.wake()
  entry.flags = FDFLAGS_NONBLOCK
  let answer = WAIT
  for (let i = 0; i < 1000 && answer === WAIT; i++) answer = fd_read(context, fd, 0, 1, OUT)
  assert.equal(answer, EAGAIN)
})

test('events_open is EMFILE for a guest that has all its numbers', () => {
  const { context } = guestOf(plain())
  const taken = { descriptor: { filetype: 0, close: () => {} }, rightsBase: 0, rightsInheriting: 0, flags: 0 }
  for (let i = 0; i < DESCRIPTORS_MAX; i++) context.descriptors.add(taken)
  assert.equal(events_open(context, OUT), EMFILE)
})

type Args = (context: Context) => number[]
const CALLS: readonly (readonly [name: string, call: Hypercall, args: Args, asked: Asked])[] = [
  ['guest_snapshot', guest_snapshot, (context) => [...named(context, 'base'), OUT], { what: 'snapshot', name: 'base' }],
  ['guest_fork', guest_fork, () => [3, OUT], { what: 'fork', count: 3 }],
  ['guest_hibernate', guest_hibernate, () => [], { what: 'hibernate' }],
]

/** Brings a guest into a call that waits for its host. */
function waitsIn(call: Hypercall, args: Args): ReturnType<typeof guestOf> {
  const guest = guestOf(plain())
  assert.equal(call(guest.context, ...args(guest.context)), WAIT)
  guest.context.memory.setU32(OUT, 99)
  return guest
}

for (const [name, call, args, wanted] of CALLS) {
  test(`${name} asks the host once, and answers as it has`, async () => {
    for (const errno of [ESUCCESS, ENOMEM]) {
      const { context, asked, answers } = waitsIn(call, args)
      assert.deepEqual(asked, [[wanted, context.since]])
      assert.equal(call(context, ...args(context)), WAIT, 'woken by something else')
      const parked = context.parked()
      answers[0]!(errno)
      await parked
      assert.equal(call(context, ...args(context)), errno)
      assert.deepEqual([asked.length, context.since], [1, -1])
      const unwritten = name === 'guest_hibernate' || errno !== ESUCCESS
      assert.equal(context.memory.u32(OUT), unwritten ? 99 : 0)
    }
  })

  test(`${name}: a guest that is moved to another thread meanwhile asks the same again`, () => {
    const before = waitsIn(call, args)
    const { context, asked } = goesOn(before.context, undefined)
    assert.equal(call(context, ...args(context)), WAIT)
    assert.deepEqual(asked, before.asked)
  })

  test(`${name}: who was captured after the answer, but before it was taken, doesn't ask again`, async () => {
    const { context, answers } = waitsIn(call, args)
    const parked = context.parked()
    answers[0]!(ESUCCESS)
    await parked
    const copy = goesOn(context, 'migrate')
    assert.equal(call(copy.context, ...args(copy.context)), name === 'guest_hibernate' ? ESUCCESS : EINTR)
    assert.equal(copy.asked.length, 0)
  })

  test(`${name} answers anew in a guest that has come out of it by an event`, () => {
    const copy = goesOn(waitsIn(call, args).context, 'migrate')
    void call(copy.context, ...args(copy.context))
    assert.equal(copy.asked.length, 0)
    assert.equal(call(copy.context, ...args(copy.context)), WAIT)
    assert.equal(copy.asked.length, 1)
  })
}

// What a call answers, and what it tells, in a guest that was captured in it and goes on by an event.
const WAYS_OUT: readonly (readonly [name: string, event: EventKind, errno: number, told: number])[] = [
  ['guest_snapshot', 'restore', ESUCCESS, 1], ['guest_snapshot', 'fork', ESUCCESS, 1],
  ['guest_snapshot', 'wake', EINTR, 99], ['guest_snapshot', 'migrate', EINTR, 99],
  ['guest_fork', 'fork', ESUCCESS, 2], ['guest_fork', 'restore', EINTR, 99],
  ['guest_fork', 'wake', EINTR, 99], ['guest_fork', 'migrate', EINTR, 99],
  ['guest_hibernate', 'wake', ESUCCESS, 99], ['guest_hibernate', 'restore', ESUCCESS, 99],
  ['guest_hibernate', 'fork', ESUCCESS, 99], ['guest_hibernate', 'migrate', ESUCCESS, 99],
]

test('a guest that was captured in a call comes out of it as what brought it there says', () => {
  for (const [name, event, errno, told] of WAYS_OUT) {
    const [, call, args] = CALLS.find(([one]) => one === name)!
    const { context } = goesOn(waitsIn(call, args).context, event, event === 'fork' ? 2 : 0)
    context.memory.setU32(OUT, 99)
    const found = [call(context, ...args(context)), context.memory.u32(OUT), context.since]
    assert.deepEqual(found, [errno, told, -1], `${name} after ${event}`)
  }
})

test('each request has a serial of its own, however coarse the clock of the guest is', async () => {
  const { context, asked, answers } = guestOf(plain())
  for (const i of [0, 1]) {
    assert.equal(guest_hibernate(context), WAIT)
    const parked = context.parked()
    answers[i]!(EACCES)
    await parked
    assert.equal(guest_hibernate(context), EACCES)
  }
  assert.notEqual(asked[0]![1], asked[1]![1])
})

test('who has asked for sleep has no time of its own at which it is to be woken; who has asked for more has', () => {
  for (const [name, call, args] of CALLS) {
    const { context } = waitsIn(call, args)
    context.interrupt()
    assert.equal(context.deadlineNs, name === 'guest_hibernate' ? undefined : 0, name)
  }
})

test('a guest that goes on from elsewhere asks its host when it calls for the first time', () => {
  const { context, asked } = guestOf(newGrant({ id: 'g1', name: 'web', event: 'fork', number: 1 }))
  assert.equal(guest_fork(context, 1, OUT), WAIT)
  assert.equal(asked.length, 1)
})

test('guest_fork and guest_snapshot refuse what is no count and no name without asking', () => {
  const { context, asked } = guestOf(plain())
  for (const count of [0, -1, FORKS_MAX + 1]) assert.equal(guest_fork(context, count, OUT), EINVAL)
  const long = named(context, 'x'.repeat(SNAPSHOT_NAME_BYTES_MAX + 1))
  assert.equal(guest_snapshot(context, ...long, OUT), EINVAL)
  context.memory.setU8(BUFFER, 0xff)
  assert.equal(guest_snapshot(context, BUFFER, 1, OUT), EILSEQ)
  assert.deepEqual([asked, context.since], [[], -1])
  assert.equal(guest_snapshot(context, BUFFER, 0, OUT), WAIT)
  assert.deepEqual(asked[0]![0], { what: 'snapshot' }, 'a snapshot without a name')
})

test('a guest without a host has a generation of its own, no name, and can ask for nothing', async () => {
  const [context, other] = [contextOf({ clock }), contextOf({ clock })]
  for (const one of [context, other]) assert.equal(generation_get(one, BUFFER), ESUCCESS)
  assert.notDeepEqual(Buffer.from(context.memory.at(BUFFER, 16)), Buffer.from(other.memory.at(BUFFER, 16)))
  assert.equal(identity_get(context, 1, BUFFER, 0, OUT), ESUCCESS)
  assert.equal(context.memory.u32(OUT), 0)
  assert.equal(await called(context, guest_fork, 2, OUT), ENOTSUP)
  assert.equal(await called(context, guest_snapshot, ...named(context, 'base'), OUT), ENOTSUP)
  assert.equal(await called(context, guest_hibernate), ENOTSUP)
  assert.equal(context.since, -1)
})

test('a guest that is stopped while it asks ends, and the answer that comes then is nobody\'s', async () => {
  const { context, answers } = waitsIn(guest_fork, () => [3, OUT])
  const parked = context.parked()
  context.stop({ kind: 'signal', signal: 9 })
  await parked
  answers[0]!(ESUCCESS)
  await turn()
  assert.deepEqual([context.end, context.memory.u32(OUT)], [{ kind: 'signal', signal: 9 }, 99])
})
