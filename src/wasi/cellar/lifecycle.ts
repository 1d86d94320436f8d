// wasi/cellar/lifecycle.ts: how a guest learns who it is and what has become of it, and how it saves and copies itself.
//
// guest_snapshot, guest_fork and guest_hibernate ask the host, which captures the guest while its vCPU waits in this
// very call; `context.since`, which is saved with it, then has the time of the first try. In the guest that goes on,
// the call is tried again with its operation, and answers as the host has. In one that goes on from what was saved the
// operation isn't there, and the event that brought it says which of the two ways out of the call this is.
//
// A guest may be captured here for another's reason: the operator moves it or saves it. It is no child of its fork then
// and isn't what its snapshot was to be, and what became of the request it can't know: EINTR. If it was only moved to
// another thread, it asks again, under the same serial.

import { EILSEQ, EINTR, EINVAL, ERANGE, ESUCCESS } from '../../base/errno.ts'
import { FORKS_MAX, SNAPSHOT_NAME_BYTES_MAX } from '../../base/limits.ts'
import { nowNs } from '../../base/stopwatch.ts'
import { EVENT_BYTES, Events, writeEvent } from '../../services/lifecycle/events.ts'
import {
  lonelyLifecycle, type Asked, type GuestEvent, type Lifecycle, type LifecycleGrant,
} from '../../services/lifecycle/lifecycle.ts'
import { RIGHTS_EVENTS } from '../p1/abi.ts'
import { WAIT, type Context } from '../p1/context.ts'

/** The guest's id (`what` is 0) or name (1) goes to `buffer`, without a NUL, and its length to `out`. */
export function identity_get(context: Context, what: number, buffer: number, size: number, out: number): number {
  const { memory } = context
  memory.check(out, 4)
  const bytes = memory.at(buffer, size)
  if (what !== 0 && what !== 1) return EINVAL
  const { id, name } = lifecycleOf(context).grant
  const text = UTF8.encode(what === 0 ? id : name)
  memory.setU32(out, text.length)
  if (text.length > bytes.length) return ERANGE
  bytes.set(text)
  return ESUCCESS
}

/** The generation, 16 bytes, goes to `out`. Hot path: a guest may look at it before each random number it draws. */
export function generation_get(context: Context, out: number): number {
  const { memory } = context
  const at = memory.check(out, 16)
  const { grant } = lifecycleOf(context)
  let bytes = generations.get(grant)
  if (bytes === undefined) generations.set(grant, bytes = Buffer.from(grant.generation, 'hex'))
  memory.bytes.set(bytes, at)
  return ESUCCESS
}

/** The last event goes to `out`: one of kind 0 if there was none. */
export function event_last(context: Context, out: number): number {
  const bytes = context.memory.at(out, EVENT_BYTES)
  writeEvent(lifecycleOf(context).grant.last, bytes)
  return ESUCCESS
}

/** The number of a descriptor of what happens from now on goes to `out`. */
export function events_open(context: Context, out: number): number {
  context.memory.check(out, 4)
  const number = context.descriptors.add({ descriptor: new Events(), rightsBase: RIGHTS_EVENTS, rightsInheriting: 0,
    flags: 0 })
  if (number < 0) return -number
  context.memory.setU32(out, number)
  return ESUCCESS
}

/** Saves the guest, as `name` if it has a length; 0 goes to `out`, and 1 in who goes on from the snapshot. */
export function guest_snapshot(context: Context, name: number, length: number, out: number): number {
  const { memory } = context
  const bytes = memory.at(name, length)
  memory.check(out, 4)
  if (bytes.length > SNAPSHOT_NAME_BYTES_MAX) return EINVAL
  let text: string
  try {
    text = NAME.decode(bytes)
  } catch {
    return EILSEQ
  }
  const asked: Asked = text === '' ? { what: 'snapshot' } : { what: 'snapshot', name: text }
  return ask(context, asked, out, ({ kind }) => kind === 'restore' || kind === 'fork' ? 1 : undefined)
}

/** Makes `count` copies; 0 goes to `out`, and in each copy its number. */
export function guest_fork(context: Context, count: number, out: number): number {
  context.memory.check(out, 4)
  if (count < 1 || count > FORKS_MAX) return EINVAL
  return ask(context, { what: 'fork', count }, out, ({ kind, number }) => kind === 'fork' ? number : undefined)
}

/** Puts the guest to sleep; answers when it is awake. */
export function guest_hibernate(context: Context): number {
  return ask(context, { what: 'hibernate' }, undefined, () => 0)
}

/**
 * Asks and waits. `other`: what goes to `out` in a guest that goes on by an event from what was saved in this call;
 * undefined if it hasn't to do with what was asked.
 */
function ask(
  context: Context, asked: Asked, out: number | undefined, other: (event: GuestEvent) => number | undefined,
): number {
  const lifecycle = lifecycleOf(context)
  const { since } = context
  if (since >= 0 && !context.hasOperation && lifecycle.grant.isNew) {
    context.since = -1
    const { last } = lifecycle.grant
    const value = last === undefined ? undefined : other(last)
    if (value === undefined) return EINTR
    if (out !== undefined) context.memory.setU32(out, value)
    return ESUCCESS
  }
  // Not of the guest's clock, which may be coarse: two requests must not have the same.
  const serial = since >= 0 ? since : context.since = nowNs()
  // Who asks for sleep sleeps until somebody wakes it: no deadline of its own is to do that.
  const isDue = asked.what !== 'hibernate'
  const answer = context.awaitOperation(() => lifecycle.request(asked, serial), { isDue })
  if (answer === WAIT) return WAIT
  // Not when the answer comes: who is captured between that and this try has been in this call, too.
  context.since = -1
  if (answer === ESUCCESS && out !== undefined) context.memory.setU32(out, 0)
  return answer
}

function lifecycleOf(context: Context): Lifecycle {
  return context.lifecycle ??= lonelyLifecycle()
}

/** Of guests that have asked: idle ones hold nothing. */
const generations = new WeakMap<LifecycleGrant, Uint8Array>()
const UTF8 = new TextEncoder()
const NAME = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
