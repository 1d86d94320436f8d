// wasi/p1/nonblock.ts: what a guest is told that doesn't want to wait (FDFLAGS_NONBLOCK).

import { EAGAIN } from '../../base/errno.ts'
import { FDFLAGS_NONBLOCK } from './abi.ts'
import type { Context } from './context.ts'
import type { Entry } from './descriptors.ts'

/**
 * EAGAIN if `entry` is non-blocking, undefined if its caller may wait. A guest that asks again and again without ever
 * waiting would keep the event loop from running, and so never get what it asks for. After AGAIN_ANSWERS_MAX answers
 * without a turn of the loop the answer comes after one turn: WAIT.
 */
export function wouldBlock(context: Context, entry: Entry): number | undefined {
  if ((entry.flags & FDFLAGS_NONBLOCK) === 0) return undefined
  if (againAnswers === 0) setImmediate(turned)
  return ++againAnswers <= AGAIN_ANSWERS_MAX ? EAGAIN : context.awaitTimer(0)
}

const AGAIN_ANSWERS_MAX = 64
// Answers since the event loop's last turn. Of this thread, as the loop is.
let againAnswers = 0
const turned = (): void => { againAnswers = 0 }
