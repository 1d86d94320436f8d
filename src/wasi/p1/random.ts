// wasi/p1/random.ts: random_get.
//
// A guest may ask for 4 GiB, which takes seconds: it is served in steps, and others have the pCPU between them.
// How far it got is no part of a snapshot: a copy of the guest that goes on from between two steps would have the first
// bytes of its original.

import { ESUCCESS } from '../../base/errno.ts'
import { ENTROPY_BYTES_MAX } from '../../base/limits.ts'
import type { Context } from './context.ts'

export function random_get(context: Context, pointer: number, length: number): number {
  const bytes = context.memory.at(pointer, length)
  const from = context.filled
  const end = Math.min(from + ENTROPY_BYTES_MAX, bytes.length)
  if (end > from) context.entropy.fill(bytes.subarray(from, end))
  if (end < bytes.length) {
    context.filled = end
    return context.awaitTimer(0)
  }
  context.filled = 0
  return ESUCCESS
}
