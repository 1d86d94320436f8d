// wasi/cellar/table.ts: what Cellar itself gives to guests, module `cellar`, and the table of all hypercalls.
//
// The module also has what a prepared program imports (wasm/prepare.ts): memories, never functions. Names are unique
// over all modules, so that a counter, a trace or a gate knows a hypercall by its name alone.
// Elsewhere: rows and WASI preview 1 (wasi/p1/table.ts), the C header (sdk/c/cellar.h).

import { wasi_snapshot_preview1, type Signature } from '../p1/table.ts'

export const cellar = {
  net_connect: {
    module: 'cellar', file: 'net', answers: 'wait', params: ['i32', 'i32', 'i32', 'i32'], result: 'i32',
    support: 'full', note: 'name, its length, port, where the number of the connection goes',
  },
} as const satisfies Record<string, Signature>

/** All hypercalls, by name. */
export const HYPERCALLS = { ...wasi_snapshot_preview1, ...cellar } as const

/** A name of a hypercall. */
export type HypercallName = keyof typeof HYPERCALLS
