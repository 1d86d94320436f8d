// cli/end.ts: how the process ends.

import { flushCompileCache } from 'node:module'
import { exitNow, isInUse, isSupported } from '../sys/libc.ts'

let abrupt = false

/** From now on the process ends by _exit: another thread may be in a call that never returns. */
export function endAbruptly(): void {
  abrupt = true
}

/**
 * Ends the process. What the guest wrote was written by system calls already. exit(3) would wait for libuv's threads,
 * and one of them may be reading a stdin that nobody writes to; on this thread it only is if poll(2) was asked before.
 * Where nothing was asked of the C library, loading it for its _exit would take longer than exit(3).
 */
export async function end(status: number): Promise<void> {
  if (process.argv[1]?.endsWith('main.ts') === true) (await import('./image.ts')).writeImage()
  if (isInUse() || (abrupt && isSupported())) {
    flushCompileCache()
    exitNow(status)
  }
  process.exit(status)
}
