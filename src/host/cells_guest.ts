// host/cells_guest.ts: one guest of a cell process, as the process keeps it from its start to its end.

import { HYPERCALL_NAMES } from '../cell/hypercalls.ts'
import type { Member } from '../cell/stack.ts'
import type { CellState } from '../cell/state.ts'
import type { Terms } from '../sched/node.ts'
import { newGrant, type LifecycleGrant } from '../services/lifecycle/lifecycle.ts'
import type { Known } from '../snapshot/store.ts'
import { closeFd } from '../sys/sockets.ts'
import type { OpenedQuotas } from './cells_quotas.ts'
import type { GuestConsole } from './consoles.ts'
import type { Held } from './modules.ts'
import type { GuestEnd, GuestLaunch } from './protocol.ts'

/** A guest's listening sockets, until they are on the stack; undefined: one that has not arrived. */
export type Sockets = readonly { readonly port: number; readonly fds: readonly (number | undefined)[] }[]

/** A guest. */
export type Guest = {
  readonly launch: GuestLaunch; readonly console: GuestConsole; readonly sockets: Sockets
  readonly life: LifecycleGrant
  /** As they are now. */
  terms: Terms
  held: Held | undefined
  /** Its volumes are counted among those with a quota. */
  hasQuotas: boolean
  /** On the stack, once it is there; a signal that it was sent. */
  number: number | undefined; signal: number | undefined
  readonly counts: Uint32Array
  startedAt: number | undefined
  /** As startedAt, by the monotonic clock. */
  startedMs: number
  by: GuestEnd['by']
  /** It is kept from running. */
  isPaused: boolean
  /** It was captured, and nothing of it runs until it goes on or is given up. */
  isHeld: boolean
  /** It is being given up: it goes on elsewhere, and has no end here. */
  isReleased: boolean
  /** What is done with it one after the other: captures, forks. */
  work: Promise<void>
  /** Its memory when it was last captured, for a while: the next snapshot is compared with it. */
  known: Known | undefined
  /** Of the capture before that one: the next is written over it. */
  spare: SharedArrayBuffer | undefined
}

/** A guest that is about to start. */
export function newGuest(launch: GuestLaunch, console: GuestConsole, sockets: Sockets): Guest {
  const { id, name, from } = launch
  return {
    launch, console, sockets, life: newGrant({ id, name, event: from?.event, number: from?.number }),
    terms: termsOf(launch.terms), held: undefined, hasQuotas: false, number: undefined, signal: undefined,
    counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)), startedAt: undefined, startedMs: 0,
    by: undefined, isPaused: false, isHeld: false, isReleased: false, work: Promise.resolve(),
    known: undefined, spare: undefined,
  }
}

/** A guest as the stack takes it. Its module is held, its sockets are there. `state`: what it goes on from. */
export function memberOf({ launch, terms, counts, held, sockets, life }: Guest, quotas: OpenedQuotas,
  state: CellState | undefined): Member {
  const { id, name, args, env, memoryPagesMax, volumes, calls, pool, timeoutNs, stdin, connect } = launch
  return {
    name, executable: held!.executable, calls, trace: false, counts, terms, pool, timeoutNs, lifecycle: life,
    net: { guest: id, ports: sockets as { port: number; fds: number[] }[], connect },
    remote: { stdin }, from: state === undefined ? undefined : { state: goingOn(launch, state) },
    grants: { args, env, memoryPagesMax, volumes: volumes.map(({ path, guest, readOnly }) =>
      ({ host: path, guest, readOnly, quota: quotas.get(path) })) },
  }
}

// A new guest begins with nothing used. The clock of one that slept has gone on meanwhile.
function goingOn({ from }: GuestLaunch, state: CellState): CellState {
  const isNew = from?.event === 'fork' || from?.event === 'restore'
  return { ...state, used: isNew ? NOTHING_USED : state.used,
    monotonicNs: state.monotonicNs + (from?.sleptMs ?? 0) * 1e6 }
}

const NOTHING_USED: CellState['used'] = { cpuNs: 0, wallNs: 0, waits: 0, preemptions: 0, hypercalls: {} }

/** Closes what was sent for a guest that doesn't start. */
export function closeAll(sockets: Sockets): void {
  for (const fd of sockets.flatMap(({ fds }) => fds)) if (fd !== undefined) closeFd(fd)
}

/** JSON has no Infinity: no limit comes as null. */
export function termsOf({ shares, reservation, limit }: Terms): Terms {
  return { shares, reservation, limit: (limit as number | null) ?? Infinity }
}
