// api/auth.ts: who asks, and whether they may.
//
// A request comes with what its connection knows (its origin): the process behind a Unix socket, or a verified client
// certificate. A bearer token, if one is given, counts instead of that: a client on the socket can try out a token.
//
// A browser must not be made a deputy of its user. It can't be told to send a bearer token or to speak to a Unix
// socket, but it sends client certificates by itself, and it can be led to a loopback address by a name that an
// attacker controls. So there are no CORS headers, a request with a foreign Origin is refused, and on a plain loopback
// address only its own names are answered.

import { isIPv4 } from 'node:net'
import { CellarError } from '../base/errors.ts'
import type { Actor, Operator, Scope, Session } from '../host/operator.ts'
import type { Route } from './route.ts'

/** What the connection tells of a request. */
export type Origin = {
  /** Whose the other end is. */
  readonly actor?: Actor | undefined
  /** Plain TCP on a loopback address: names are checked. */
  readonly isLoopback?: boolean
  /** It asks for a WebSocket, and can have it; the session that the route has opened is put here. */
  readonly upgrade?: { session?: Session }
  /** Breaks the connection: an answer that has begun can't be finished. */
  readonly abort?: () => void
}

/** Who asks where nobody needs to be known. */
export const NOBODY: Actor = { name: 'nobody', scope: 'read' }

const SCOPES: readonly Scope[] = ['read', 'write', 'admin']
const LOCAL_NAME = /^(?:localhost|[\w-]+\.localhost|\[::1\]|127\.\d{1,3}\.\d{1,3}\.\d{1,3})(?::\d{1,5})?$/i

/** Refuses what a browser may have been led to. Throws HOST_NAME_WRONG, FORBIDDEN. */
export function guardBrowser(origin: Origin, headers: Headers): void {
  const host = headers.get('host')
  if (origin.isLoopback === true && host !== null && !LOCAL_NAME.test(host)) {
    throw new CellarError('HOST_NAME_WRONG', [host])
  }
  const page = headers.get('origin')
  if (page !== null && (host === null || !sameHost(page, host))) {
    throw new CellarError('FORBIDDEN', [`a page of ${page.slice(0, 200)}`, 'use this API'])
  }
}

function sameHost(page: string, host: string): boolean {
  return /^https?:\/\/(.+)$/i.exec(page)?.[1]?.toLowerCase() === host.toLowerCase()
}

/** Who asks. Throws UNAUTHENTICATED. */
export function actorOf(operator: Operator, origin: Origin, headers: Headers): Actor {
  const given = headers.get('authorization')
  if (given !== null) {
    const token = /^Bearer +([\w.~+/-]{1,1024}=*)$/i.exec(given)?.[1]
    if (token === undefined) throw new CellarError('UNAUTHENTICATED', ['Authorization must be "Bearer TOKEN"'])
    return operator.authenticate(token)
  }
  if (origin.actor !== undefined) return origin.actor
  throw new CellarError('UNAUTHENTICATED', ['the request doesn\'t say who you are'])
}

/** Whether `actor` may use the route with these parameters. Throws FORBIDDEN. */
export function permit(actor: Actor, route: Route, params: Readonly<Record<string, string>>): void {
  if (route.scope === 'none') return
  if (SCOPES.indexOf(actor.scope) < SCOPES.indexOf(route.scope)) {
    throw new CellarError('FORBIDDEN', [actor.name, `do this with scope ${actor.scope}: it needs ${route.scope}`])
  }
  if (actor.project === undefined || route.filtered === true) return
  if (params['project'] === undefined) {
    throw new CellarError('FORBIDDEN', [actor.name, `do this: it is limited to project "${actor.project}"`])
  }
  permitProject(actor, params['project'])
}

/** Throws FORBIDDEN unless `actor` may touch this project. */
export function permitProject(actor: Actor, project: string): void {
  if (actor.project === undefined || actor.project === project) return
  throw new CellarError('FORBIDDEN', [actor.name, `touch project "${project}": it is limited to "${actor.project}"`])
}

/** Whether an address is one of this machine only. */
export function isLoopbackAddress(address: string): boolean {
  return address === '::1' || address === 'localhost' || (isIPv4(address) && address.startsWith('127.'))
}
