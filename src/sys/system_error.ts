// sys/system_error.ts: a negated errno as an exception that looks like Node's own.
//
// Sys answers with negated errnos, as services want them. What the host asks once and then can't go on without throws
// instead: the error has the fields `code` and `syscall` of Node's errors, so that errnoOf (base/errno.ts) and callers
// that compare codes needn't know which of the two made it.

import { ERRNO_NAMES } from '../base/errno.ts'

/** The error of a call that answered `result`, a negated errno. `what` names what it was done to. */
function systemError(syscall: string, result: number, what = ''): NodeJS.ErrnoException {
  const code = ERRNO_NAMES[-result] ?? 'EIO'
  const error: NodeJS.ErrnoException = new Error(`${code}: ${syscall}${what === '' ? '' : ` '${what}'`}`)
  error.code = code
  error.syscall = syscall
  return error
}

/** `result`, or an exception if it is a negated errno. */
export function must(syscall: string, result: number, what = ''): number {
  if (result < 0) throw systemError(syscall, result, what)
  return result
}
