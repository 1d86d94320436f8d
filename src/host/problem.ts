// host/problem.ts: an error as an operator is told of it by the API (RFC 9457), also of an operation that failed.

import { CellarError } from '../base/errors.ts'
import type { Problem } from './operator.ts'

/** INTERNAL, without a word of it, if it isn't a CellarError: what failed in the host is for its log. */
export function problemOf(error: unknown): Problem {
  const { code, status, message, hint } = error instanceof CellarError ? error : new CellarError('INTERNAL', [])
  const words = code.toLowerCase().replaceAll('_', ' ')
  const title = words.charAt(0).toUpperCase() + words.slice(1)
  return { type: `/errors/${code}`, title, status, detail: message, code, hint }
}
