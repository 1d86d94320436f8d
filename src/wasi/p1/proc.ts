// wasi/p1/proc.ts: proc_exit, proc_raise, sched_yield.

import { EINVAL, ESUCCESS } from '../../base/errno.ts'
import { STOP, type Context } from './context.ts'

// WASI's `signal`, in its order from 0; the value is Linux's number, which is what exit codes are made of.
const SIGNALS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
  29, 30, 31]
const SIGCHLD = 17
const SIGCONT = 18
const SIGURG = 23
const SIGWINCH = 28
const IGNORED = [0, SIGCHLD, SIGCONT, SIGURG, SIGWINCH]

export function proc_exit(context: Context, code: number): number {
  context.end = { kind: 'exit', code: code >>> 0 }
  return STOP
}

export function proc_raise(context: Context, signal: number): number {
  const number = SIGNALS[signal >>> 0]
  if (number === undefined) return EINVAL
  if (IGNORED.includes(number)) return ESUCCESS
  context.end = { kind: 'signal', signal: number }
  return STOP
}

export function sched_yield(context: Context): number {
  if (context.since === -1) {
    context.since = 0
    return context.awaitTimer(0)
  }
  context.since = -1
  return ESUCCESS
}
