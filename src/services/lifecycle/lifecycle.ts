// services/lifecycle/lifecycle.ts: who a guest is, what has become of it while it didn't run, and what it asks the host
// to do with it.
//
// A guest can't see that it was stopped: its memory and its clock go on. But what it holds may be held by others now,
// too (the state of a random generator, an id that it gave itself), so it is told. Each launch of a guest comes with a
// *generation*, 16 random bytes that no other launch has: who keeps a copy of them notices by a comparison that it is
// a fork, or was restored, woken or moved to another host. A launch that goes on from a snapshot has an *event*, too,
// which its events descriptors (events.ts) give to be read. Moving a guest between threads of its process is none of
// its business: grant.isNew is false then, and all else as it was.
//
// What it asks goes to the host and takes milliseconds; its hypercall waits meanwhile, and is captured waiting. The
// `serial` of a request is the same whenever that hypercall is tried again, so that a guest that was moved to another
// thread meanwhile doesn't get its forks twice.
// Elsewhere: the hypercalls (wasi/cellar/lifecycle.ts), the way to the host (remote.ts, host/cell_process.ts).

import { randomBytes } from 'node:crypto'
import { ENOTSUP } from '../../base/errno.ts'

/** What may become of a guest, numbered as its hypercalls have it (sdk/c/cellar.h); 0: nothing yet. */
export const EVENT_KINDS = { fork: 1, restore: 2, wake: 3, migrate: 4 } as const

/** A kind of event. */
export type EventKind = keyof typeof EVENT_KINDS

/** Something that has become of a guest. Plain data: JSON holds it. */
export type GuestEvent = {
  readonly kind: EventKind
  /** Of a fork: which of the children it is, from 1; else 0. */
  readonly number: number
  /** When it went on: milliseconds since 1970. */
  readonly at: number
  /** The generation that it came with, 32 hexadecimal digits. */
  readonly generation: string
}

/** What a guest is given of its life. Plain data. */
export type LifecycleGrant = {
  readonly id: string; readonly name: string
  /** 32 hexadecimal digits. */
  readonly generation: string
  /** The last that has become of it. */
  readonly last?: GuestEvent | undefined
  /** Its context is the first with `last`: false for one that was moved to another thread. */
  readonly isNew: boolean
}

/** What a guest asks of the host. `name`: of a snapshot; `count`: of forks. */
export type Asked = {
  readonly what: 'snapshot' | 'fork' | 'hibernate'; readonly name?: string; readonly count?: number
}

/** The life of one guest, as its hypercalls know it. */
export interface Lifecycle {
  readonly grant: LifecycleGrant
  /** Resolves to an errno, ESUCCESS when it was done. Never rejects. */
  request(asked: Asked, serial: number): Promise<number>
}

/** What a launch gives to its guest. `event`: what it goes on by; `number`: of a fork, which of the children it is. */
export function newGrant({ id, name, event, number = 0 }: {
  readonly id: string; readonly name: string; readonly event?: EventKind | undefined
  readonly number?: number | undefined
}): LifecycleGrant {
  const generation = randomBytes(16).toString('hex')
  const last = event === undefined ? undefined : { kind: event, number, at: Date.now(), generation }
  return { id, name, generation, last, isNew: true }
}

/** The grant of a guest that goes on in another thread of its process, and isn't to notice. */
export function movedGrant(grant: LifecycleGrant): LifecycleGrant {
  return { ...grant, isNew: false }
}

/** The life of a guest that no host keeps: it has a generation, and nothing can be done with it. */
export function lonelyLifecycle(): Lifecycle {
  return { grant: newGrant({ id: '', name: '' }), request: async () => ENOTSUP }
}
