// services/lifecycle/lifecycle_test.ts: grants, the descriptor of events, and requests that go through another thread.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EAGAIN, EINVAL, ENOTSUP } from '../../base/errno.ts'
import { EVENTS_UNREAD_MAX } from '../../base/limits.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import { EVENT_BYTES, Events, restoreEvents, writeEvent } from './events.ts'
import { lonelyLifecycle, movedGrant, newGrant, type GuestEvent } from './lifecycle.ts'
import { RemoteLifecycle, Requests } from './remote.ts'

const WOKEN: GuestEvent = { kind: 'wake', number: 0, at: 1_700_000_000_123, generation: '0123456789abcdef'.repeat(2) }
const FORKED: GuestEvent = { ...WOKEN, kind: 'fork', number: 7 }

/** Ranges of these lengths, one after another. */
function ranges(...lengths: readonly number[]): Iovecs {
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  let at = 4096
  lengths.forEach((length, i) => {
    memory.setU32(i * 8, at)
    memory.setU32(i * 8 + 4, length)
    at += length
  })
  const iovecs = new Iovecs()
  assert.ok(iovecs.load(memory, 0, lengths.length))
  return iovecs
}

test('newGrant gives each launch a generation that no other has, and its event', () => {
  const [first, second] = [newGrant({ id: 'g1', name: 'web' }), newGrant({ id: 'g1', name: 'web', event: 'wake' })]
  assert.match(first.generation, /^[0-9a-f]{32}$/)
  assert.notEqual(first.generation, second.generation)
  assert.equal(first.last, undefined)
  assert.deepEqual({ ...second.last, at: 0 }, { kind: 'wake', number: 0, at: 0, generation: second.generation })
})

test('movedGrant keeps who the guest is: only what has become of it is no news any more', () => {
  const grant = newGrant({ id: 'g1', name: 'web', event: 'fork', number: 3 })
  assert.deepEqual(movedGrant(grant), { ...grant, isNew: false })
})

test('a guest that no host keeps has a generation of its own, and can ask for nothing', async () => {
  const lifecycle = lonelyLifecycle()
  assert.equal(await lifecycle.request({ what: 'hibernate' }, 1), ENOTSUP)
  assert.notEqual(lifecycle.grant.generation, lonelyLifecycle().grant.generation)
})

test('writeEvent lays an event out as cellar.h has it', () => {
  const bytes = new Uint8Array(EVENT_BYTES)
  writeEvent(FORKED, bytes)
  const view = new DataView(bytes.buffer)
  assert.deepEqual([view.getUint32(0, true), view.getUint32(4, true)], [1, 7])
  assert.equal(view.getBigUint64(8, true), 1_700_000_000_123_000_000n)
  assert.equal(Buffer.from(bytes.subarray(16)).toString('hex'), FORKED.generation)
  writeEvent(undefined, bytes)
  assert.deepEqual(bytes, new Uint8Array(EVENT_BYTES), 'no event')
})

test('Events gives whole events, oldest first, as many as fit', () => {
  const events = new Events([FORKED, WOKEN, WOKEN])
  assert.equal(events.pollRead(), 3 * EVENT_BYTES)
  assert.equal(events.read(ranges(EVENT_BYTES - 1)), -EINVAL)
  const split = ranges(20, 12)
  assert.equal(events.read(split), EVENT_BYTES, 'over two ranges')
  assert.equal(split.memory!.u32(4096), 1)
  assert.equal(events.read(ranges(2 * EVENT_BYTES + 31)), 2 * EVENT_BYTES)
  assert.equal(events.read(ranges(EVENT_BYTES)), -EAGAIN)
  assert.equal(events.pollRead(), -EAGAIN)
})

test('what was not read is saved, and comes before what has become of the guest since', () => {
  const events = new Events([FORKED])
  const saved = JSON.parse(JSON.stringify(events.save()))
  const grant = newGrant({ id: 'g1', name: 'web', event: 'migrate' })
  assert.deepEqual(restoreEvents(saved, grant).save(), { kind: 'events', unread: [FORKED, grant.last] })
  assert.deepEqual(restoreEvents(saved, movedGrant(grant)).save(), { kind: 'events', unread: [FORKED] })
  assert.deepEqual(restoreEvents({ kind: 'events' }, undefined).save(), { kind: 'events', unread: [] })
})

test('restoreEvents takes nothing from a snapshot that is no event, and EVENTS_UNREAD_MAX at most', () => {
  const forged = [null, 1, {}, { ...WOKEN, kind: 'constructor' }, { ...WOKEN, number: -1 }, { ...WOKEN, at: 0.5 },
    { ...WOKEN, at: 1e300 }, { ...WOKEN, generation: 'x'.repeat(32) }, { ...WOKEN, number: undefined }]
  const restored = restoreEvents({ kind: 'events', unread: [...forged, WOKEN] as never }, undefined)
  assert.deepEqual(restored.save(), { kind: 'events', unread: [WOKEN] })
  assert.equal(restoreEvents({ kind: 'events', unread: 'many' as never }, undefined).pollRead(), -EAGAIN)
  const grant = newGrant({ id: 'g1', name: 'web', event: 'wake' })
  const unread = Array.from({ length: EVENTS_UNREAD_MAX + 9 }, () => FORKED)
  const many = restoreEvents({ kind: 'events', unread }, grant)
  assert.equal(many.pollRead(), EVENTS_UNREAD_MAX * EVENT_BYTES)
  const saved = many.save()
  assert.deepEqual(saved.kind === 'events' && saved.unread?.at(-1), grant.last)
})

test('RemoteLifecycle asks through its port, and takes the answer to what it has asked last', async () => {
  const asked: unknown[] = []
  const lifecycle = new RemoteLifecycle({ ask: (...what) => { asked.push(what) } }, 5, newGrant({ id: 'g', name: 'n' }))
  const answer = lifecycle.request({ what: 'fork', count: 2 }, 1000)
  assert.deepEqual(asked, [[5, { what: 'fork', count: 2 }, 1000]])
  lifecycle.told(999, 0)
  lifecycle.told(1000, EINVAL)
  lifecycle.told(1000, 0)
  assert.equal(await answer, EINVAL)
})

test('Requests passes each request on once, however often a guest that is moved asks it', () => {
  const requests = new Requests()
  assert.equal(requests.ask(5, 1000), 'new')
  assert.equal(requests.ask(5, 1000), 'waiting', 'moved before the answer')
  assert.equal(requests.ask(6, 1000), 'new', 'another guest')
  assert.equal(requests.told(5, EINVAL), 1000)
  assert.equal(requests.ask(5, 1000), EINVAL, 'moved after the answer')
  assert.equal(requests.ask(5, 2000), 'new', 'its next request')
  requests.forget(5)
  assert.equal(requests.told(5, 0), undefined)
})
