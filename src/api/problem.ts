// api/problem.ts: what the API answers when it can't do what was asked: application/problem+json (RFC 9457).
//
// A CellarError has all that a client needs: a stable code, a status, a sentence and a hint. Anything else is a fault
// of ours: the client learns that there was one and under which request id the host's log tells it, never what it was.
// A request that breaks a schema gets all its breaches at once, each with a JSON pointer to the place.

import type { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { API_ISSUES_MAX } from '../base/limits.ts'
import type { Problem } from '../host/operator.ts'
import { problemOf } from '../host/problem.ts'

/** A breach of a schema. `pointer`: a JSON pointer into that part of the request; '' is the whole of it. */
export type Issue = { readonly in: 'body' | 'query' | 'path' | 'header'; readonly pointer: string
  readonly detail: string }

/** A request that isn't what the route's schemas say. */
export class InvalidRequest extends CellarError<'REQUEST_INVALID'> {
  readonly issues: readonly Issue[]

  constructor(issues: readonly Issue[]) {
    const [first] = issues
    const where = first === undefined || first.pointer === '' ? '' : `${first.pointer} of its ${first.in}: `
    const more = issues.length > 1 ? `, and ${issues.length - 1} more` : ''
    super('REQUEST_INVALID', [`${where}${first?.detail ?? 'it is unreadable'}${more}`])
    this.issues = issues.slice(0, API_ISSUES_MAX)
  }
}

/** What to answer for `error`: that of host/problem.ts, with the request's id and what is wrong with the request. */
export function answerOf(error: unknown, requestId: string): Problem & { readonly errors?: readonly Issue[] } {
  return { ...problemOf(error), requestId, ...error instanceof InvalidRequest ? { errors: error.issues } : {} }
}

/** Every breach that zod found. */
export function issuesOf(error: z.core.$ZodError, part: Issue['in']): Issue[] {
  return error.issues.slice(0, API_ISSUES_MAX).flatMap((issue): Issue[] => {
    const pointer = pointerOf(issue.path)
    if (issue.code === 'unrecognized_keys') return issue.keys.slice(0, API_ISSUES_MAX).map((key) => (
      { in: part, pointer: `${pointer}${pointerOf([key])}`, detail: 'there is no such key' }))
    return [{ in: part, pointer, detail: detailOf(issue) }]
  })
}

/** One that has alternatives tells what each of them wants. */
function detailOf(issue: z.core.$ZodIssue): string {
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return issue.message
  return [...new Set(issue.errors.map((branch) => branch[0]?.message ?? 'it is wrong'))].join('; or ')
}

/** RFC 6901. */
function pointerOf(path: readonly PropertyKey[]): string {
  return path.map((part) => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('')
}
