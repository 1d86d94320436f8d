// wasi/cellar/table.ts: what Cellar itself gives to guests, module `cellar`, and the table of all hypercalls.
//
// The module also has what a prepared program imports (wasm/prepare.ts): memories, never functions. Names are unique
// over all modules, so that a counter, a trace or a gate knows a hypercall by its name alone.
// Elsewhere: rows and WASI preview 1 (wasi/p1/table.ts), the C header (sdk/c/cellar.h).

import { wasi_snapshot_preview1, type Signature } from '../p1/table.ts'

const call = (file: Signature['file'], answers: Signature['answers'], params: Signature['params'], note: string):
Signature => ({ module: 'cellar', file, answers, params, result: 'i32', support: 'full', note })

export const cellar = {
  net_connect: call('net', 'wait', ['i32', 'i32', 'i32', 'i32'],
    'name, its length, port, where the number of the connection goes'),
  identity_get: call('lifecycle', 'now', ['i32', 'i32', 'i32', 'i32'],
    '0 for the id, 1 for the name; a buffer, its size, where the length goes. ERANGE if it does not fit'),
  generation_get: call('lifecycle', 'now', ['i32'],
    'where 16 bytes go that no other launch of a guest has: others after each fork, restore, wake and migration'),
  event_last: call('lifecycle', 'now', ['i32'],
    'where the last event goes, 32 bytes: kind u32 (0 none, 1 fork, 2 restore, 3 wake, 4 migrate), number u32 (of a ' +
    'child, from 1), time u64 (nanoseconds since 1970), generation (16 bytes)'),
  events_open: call('lifecycle', 'now', ['i32'],
    'where the number of a descriptor goes from which events are read, 32 bytes each'),
  guest_snapshot: call('lifecycle', 'wait', ['i32', 'i32', 'i32'],
    'name, its length (0: none), where a u32 goes: 0 in the guest that goes on, 1 in one that is restored from there'),
  guest_fork: call('lifecycle', 'wait', ['i32', 'i32'],
    'how many copies, where a u32 goes: 0 in this guest, in each copy its number, from 1'),
  guest_hibernate: call('lifecycle', 'wait', [], 'answers when the guest is awake again'),
} as const satisfies Record<string, Signature>

/** All hypercalls, by name. */
export const HYPERCALLS = { ...wasi_snapshot_preview1, ...cellar } as const

/** A name of a hypercall. */
export type HypercallName = keyof typeof HYPERCALLS
