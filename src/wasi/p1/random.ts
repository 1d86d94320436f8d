// wasi/p1/random.ts: random_get.
//
// A guest may ask for 4 GiB, which takes seconds: it is served in steps, and others have the pCPU between them.
// `context.since` is how far it got.

import { ESUCCESS } from '../../base/errno.ts'
import { ENTROPY_BYTES_MAX } from '../../base/limits.ts'
import type { Context } from './context.ts'

export function random_get(context: Context, pointer: number, length: number): number {
  const bytes = context.memory.at(pointer, length)
  const from = Math.max(context.since, 0)
  const end = Math.min(from + ENTROPY_BYTES_MAX, bytes.length)
  if (end > from) context.entropy.fill(bytes.subarray(from, end))
  if (end < bytes.length) {
    context.since = end
    return context.awaitTimer(0)
  }
  context.since = -1
  return ESUCCESS
}
