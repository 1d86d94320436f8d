// wasi/p1/random.ts: random_get.

import { ESUCCESS } from '../../base/errno.ts'
import { ENTROPY_BYTES_MAX } from '../../base/limits.ts'
import type { Context } from './context.ts'

export function random_get(context: Context, pointer: number, length: number): number {
  const bytes = context.memory.at(pointer, length)
  for (let at = 0; at < bytes.length; at += ENTROPY_BYTES_MAX) {
    context.entropy.fill(bytes.subarray(at, at + ENTROPY_BYTES_MAX))
  }
  return ESUCCESS
}
