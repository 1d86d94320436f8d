// host/restart.ts: what becomes of a guest that has ended: pure.
//
// An end is a success (exit status 0), a failure, or wanted (somebody stopped it). By its policy a guest is started
// again after a pause, which doubles with each failure in a row, so that one that fails at once costs next to nothing;
// who has run for STEADY_MS has its pause back. Times are monotonic: a wall clock that jumps starts nothing.

import { CellarError, ERRORS, type ErrorCode } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { signals } from '../base/signals.ts'
import type { GuestEnd, GuestState } from './protocol.ts'
import type { Beginning, GuestRow } from './rows.ts'
import type { GuestSpec } from './spec.ts'

/** The first pause, and the longest: doubled each time, it is reached after ten failures. */
const PAUSE_MS_MIN = 100
const PAUSE_MS_MAX = 60_000
/** Who has run for so long has recovered. */
const STEADY_MS = 10_000

/** What is done next. */
export type Next = { readonly phase: 'stopped' | 'exited' | 'failed' | 'hibernated' } |
  { readonly phase: 'backing-off'; readonly pauseMs: number }

/** How an end counts: its exit status as a shell has it, and why in words. */
export type Exit = { readonly status: number; readonly reason: string }

/** What follows an end. `failures`: of this guest in a row, before this one. `ranMs`: how long it ran. */
export function next(end: Pick<GuestEnd, 'outcome' | 'by'>, policy: GuestSpec['restart'], failures: number,
  ranMs: number): Next {
  if (end.by === 'stop') return { phase: 'stopped' }
  const isFailure = exitOf(end).status !== 0
  if (isHopeless(end.outcome)) return { phase: 'failed' }
  // A machine that resets itself goes on, as on a board of its own.
  const isReset = end.outcome.kind === 'off' && end.outcome.reason === 'reset'
  const again = isReset || policy === 'always' || (policy === 'on-failure' && isFailure && end.by !== 'timeout')
  if (!again) return { phase: isFailure ? 'failed' : 'exited' }
  const before = ranMs >= STEADY_MS ? 0 : failures
  return { phase: 'backing-off', pauseMs: Math.min(PAUSE_MS_MAX, PAUSE_MS_MIN * 2 ** Math.min(before, 30)) }
}

/** What follows the end of one that never went on: a fork begins with its fork only; one to be woken sleeps on. */
export function nextOfUnborn(end: Pick<GuestEnd, 'outcome' | 'by'>, from: Beginning, policy: GuestSpec['restart'],
  failures: number): Next {
  if ('fork' in from) return next(end, 'no', failures, 0)
  return from.event === 'wake' && !isHopeless(end.outcome) ? { phase: 'hibernated' } : next(end, policy, failures, 0)
}

/** Failures in a row, this end counted. */
export function failuresAfter(failures: number, ranMs: number): number {
  return (ranMs >= STEADY_MS ? 0 : failures) + 1
}

/** The status and the words for an end. */
export function exitOf({ outcome, by }: Pick<GuestEnd, 'outcome' | 'by'>): Exit {
  if (by === 'timeout') return { status: 124, reason: 'its time was up' }
  if (by === 'unhealthy') return { status: 128 + signals.SIGTERM, reason: 'stopped as it was unhealthy' }
  switch (outcome.kind) {
    case 'exit': return { status: outcome.code & 0xff, reason: `exited with ${outcome.code & 0xff}` }
    case 'signal': return { status: 128 + outcome.signal, reason: by === 'stop' ? 'stopped' :
      `ended by ${signalName(outcome.signal)}` }
    case 'off': return { status: 0, reason: outcome.reason === 'reset' ? 'reset itself' : 'powered off' }
    case 'crashed': return { status: 128 + signals.SIGABRT, reason: `crashed: ${printable(outcome.reason)}` }
    case 'trap': return { status: 128 + signals.SIGABRT, reason: `trapped: ${outcome.reason}` }
    default: return outcome.code === 'PROCESS_LOST'
      ? { status: 128 + signals.SIGKILL, reason: `its process died: ${String(outcome.values[1])}` }
      : { status: 125, reason: failureText(outcome.code, outcome.values) }
  }
}

/** The state has gone back to a backup that has it as hibernated: it was woken since, and what it was is gone. */
export function wasWoken(row: Pick<GuestRow, 'phase' | 'move' | 'run'>, { run, startedAt, held }: GuestState): boolean {
  return row.phase === 'hibernated' && row.move === null && run > row.run && startedAt !== undefined && held !== true
}

// The program can't be run, as it is and with what it is given: another try would come to the same.
function isHopeless(outcome: GuestEnd['outcome']): boolean {
  return outcome.kind === 'failed' && Object.hasOwn(ERRORS, outcome.code) &&
    (ERRORS[outcome.code as ErrorCode].exit === 126 || HOPELESS.test(outcome.code))
}

const HOPELESS = /^MEMORY_BELOW_MINIMUM$|^SNAPSHOT_|^NOT_FOUND$/

// A process says it: the code may be none of ours.
function failureText(code: string, values: readonly unknown[]): string {
  return Object.hasOwn(ERRORS, code) ? new CellarError(code as ErrorCode, values as never).message
    : `could not be started: ${printable(code, CODE_LENGTH_MAX)}`
}

const CODE_LENGTH_MAX = 80

function signalName(number: number): string {
  return Object.entries(signals).find(([, value]) => value === number)?.[0] ?? `signal ${number}`
}
