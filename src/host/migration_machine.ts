// host/migration_machine.ts: the two halves of a move between hosts, as data: what each may do next.
//
//   source        sending ─stopped▶ held ─stored▶ stored ─committed▶ asking ─active▶ moved
//                    └──────────────┴─────failed───┴──▶ here ◀────dropped──┘
//   destination   unknown ─store▶ ready ─activate▶ active
//                    └─activate▶ dropped ◀─refuse─┘       (drop, expire and a crash make `unknown` of `ready`)
//
// Until the source has committed, the guest is its own: whatever fails, it goes on there. From then on the destination
// decides, once, by what it commits: `active` or `dropped`. It decides when it is asked to activate, and every later
// question has the same answer. So nobody is ever asked who can't know: one that has forgotten (a crash), or never had,
// what it was sent commits `dropped`, and what is sent late finds that there. The source keeps the final snapshot until
// it has the answer: a destination may refuse up to the end. What is lost on the way is asked again, for ever.
//
// At most one side may run the guest, whatever is lost, doubled or late, whoever crashes: migration_machine_test.ts
// walks through all of it. Elsewhere: who acts on this (migrate_actions.ts, migration_incoming.ts), the whole story
// (docs/migration.md).

import { assert } from '../base/assert.ts'

/** The source's side of a move. */
export type Outgoing = 'sending' | 'held' | 'stored' | 'asking' | 'moved' | 'here'
/** What happens to it: the guest was stopped; the destination has all; our commit; an answer; anything else. */
export type OutgoingEvent = 'stopped' | 'stored' | 'committed' | 'active' | 'dropped' | 'failed'

/** The destination's side. */
export type Incoming = 'unknown' | 'ready' | 'active' | 'dropped'
/** What it is told, or decides: `refuse` is an `activate` that it can't do. */
export type IncomingEvent = 'store' | 'activate' | 'refuse' | 'drop' | 'expire'

type Steps<State extends string, Event extends string> =
  { readonly [state in State]: { readonly [event in Event]?: State } }

const OUTGOING: Steps<Outgoing, OutgoingEvent> = {
  sending: { stopped: 'held', failed: 'here' },
  held: { stored: 'stored', failed: 'here' },
  stored: { committed: 'asking', failed: 'here' },
  // Nothing but an answer ends it: whether an earlier question has arrived, nobody knows.
  asking: { active: 'moved', dropped: 'here' },
  moved: {},
  here: {},
}

const INCOMING: Steps<Incoming, IncomingEvent> = {
  unknown: { store: 'ready', activate: 'dropped', refuse: 'dropped', drop: 'unknown' },
  ready: { store: 'ready', activate: 'active', refuse: 'dropped', drop: 'unknown', expire: 'unknown' },
  active: { activate: 'active' },
  dropped: { activate: 'dropped', refuse: 'dropped', drop: 'dropped' },
}

/** Where an event leads the source; it must be one that can happen there. */
export function outgoingAfter(state: Outgoing, event: OutgoingEvent): Outgoing {
  const next = OUTGOING[state][event]
  assert(next !== undefined, 'a move takes this step', `${event} while ${state}`)
  return next
}

/** Whether what was asked for can be given up on the source's own word. */
export function canFail(state: Outgoing): boolean {
  return OUTGOING[state].failed !== undefined
}

/** Where an event leads the destination; undefined: it refuses, and nothing changes. */
export function incomingAfter(state: Incoming, event: IncomingEvent): Incoming | undefined {
  return INCOMING[state][event]
}

/** Whether the destination's state is on disk before anybody is told of it. The others end with the process. */
export function isKept(state: Incoming): state is 'active' | 'dropped' {
  return state === 'active' || state === 'dropped'
}

/** What a source finds when it comes back: `isCommitted` if the move's row is there. */
export function outgoingAfterCrash(isCommitted: boolean): Outgoing {
  return isCommitted ? 'asking' : 'here'
}
