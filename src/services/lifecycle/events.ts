// services/lifecycle/events.ts: a descriptor from which a guest reads what has become of it.
//
//   event, 32 bytes: kind u32 · number u32 · time u64, nanoseconds since 1970 · generation, 16 bytes
//
// Nothing becomes of a guest while it runs: what has an event brings a new context, in which the guest's descriptors
// are made anew from what was saved. So events come with the descriptor, and one that is waited for never comes here:
// the guest is captured waiting, and finds it when its hypercall is tried again, elsewhere.

import { EAGAIN, EINVAL } from '../../base/errno.ts'
import { EVENTS_UNREAD_MAX } from '../../base/limits.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import type { SavedIs } from '../saved.ts'
import { EVENT_KINDS, type GuestEvent, type LifecycleGrant } from './lifecycle.ts'

/** Bytes of an event, as a guest has it. */
export const EVENT_BYTES = 32

/** Events that were not read yet. */
export class Events implements Descriptor {
  readonly filetype = FILETYPE_UNKNOWN
  readonly #unread: GuestEvent[]

  /** With none: what comes from now on. */
  constructor(unread: readonly GuestEvent[] = []) {
    this.#unread = [...unread]
  }

  /** Whole events, as many as fit: one at least. */
  read(iovecs: Iovecs): number {
    if (iovecs.total < EVENT_BYTES) return -EINVAL
    if (this.#unread.length === 0) return -EAGAIN
    const some = this.#unread.splice(0, Math.floor(iovecs.total / EVENT_BYTES))
    const bytes = new Uint8Array(some.length * EVENT_BYTES)
    some.forEach((event, i) => writeEvent(event, bytes.subarray(i * EVENT_BYTES)))
    return iovecs.scatter(bytes)
  }

  pollRead(): number { return this.#unread.length > 0 ? this.#unread.length * EVENT_BYTES : -EAGAIN }
  save(): SavedIs { return { kind: 'events', unread: [...this.#unread] } }
  close(): void {}
}

/** The descriptor as it was saved, and what has become of the guest since. `unread` is an allegation. */
export function restoreEvents({ unread = [] }: Extract<SavedIs, { kind: 'events' }>,
  grant: LifecycleGrant | undefined): Events {
  const known = Array.isArray(unread) ? unread.filter(isEvent) : []
  const since = grant?.isNew === true && grant.last !== undefined ? [grant.last] : []
  return new Events([...known, ...since].slice(-EVENTS_UNREAD_MAX))
}

/** Writes an event to the first EVENT_BYTES of `bytes`; no event is a kind of its own. */
export function writeEvent(event: GuestEvent | undefined, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, EVENT_BYTES)
  view.setUint32(0, event === undefined ? 0 : EVENT_KINDS[event.kind], true)
  view.setUint32(4, event?.number ?? 0, true)
  view.setBigUint64(8, BigInt(event?.at ?? 0) * 1_000_000n, true)
  const generation = event === undefined ? NO_GENERATION : Buffer.from(event.generation, 'hex')
  bytes.set(generation, 16)
}

function isEvent(one: unknown): one is GuestEvent {
  if (typeof one !== 'object' || one === null) return false
  const { kind, number, at, generation } = one as Record<string, unknown>
  return typeof kind === 'string' && Object.hasOwn(EVENT_KINDS, kind) && isCount(number) && isCount(at) &&
    typeof generation === 'string' && /^[0-9a-f]{32}$/.test(generation)
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

const NO_GENERATION = new Uint8Array(16)
