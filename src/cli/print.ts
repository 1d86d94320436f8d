// cli/print.ts: what a command answers, on stdout, and what went wrong, on stderr.

import { writeSync } from 'node:fs'
import { EAGAIN, ECONNRESET, EPIPE, errnoOf } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'

/** How long to leave a stdout alone that somebody made non-blocking and that is full. */
const RETRY_MS = 2

/** The reader is gone: of a pipe, or of a socket that was closed with bytes unread. */
const GONE: readonly number[] = [EPIPE, ECONNRESET]

/** Writes all of `what`. Throws CellarError; a reader that is gone ends the process as SIGPIPE would. */
export function print(what: string | Uint8Array): void {
  let bytes: Uint8Array = typeof what === 'string' ? Buffer.from(what) : what
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(1, bytes))
    } catch (cause) {
      const errno = errnoOf(cause)
      if (GONE.includes(errno)) process.exit(128 + signals.SIGPIPE)
      if (errno !== EAGAIN) throw new CellarError('OUTPUT_FAILED', [(cause as Error).message], { cause })
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS)
    }
  }
}

/** What is written to stdout and stderr as streams: a reader that is gone ends the process, as with print. */
export function endWithReaders(): void {
  for (const to of [process.stdout, process.stderr]) {
    to.on('error', (cause) => {
      if (GONE.includes(errnoOf(cause))) process.exit(128 + signals.SIGPIPE)
      throw cause
    })
  }
}

/** Tells the operator of an error, and what to do. */
export function tell({ message, code, hint }: Error & { readonly code: string; readonly hint: string }): void {
  process.stderr.write(`cellar: ${message} [${code}]\n  hint: ${hint}\n`)
}
