// api/snapshot_routes.ts: guests that are paused, saved, forked, put to disk and moved; and their snapshots.
//
// A snapshot is a project's. It is named by NAME, its digest or the begin of it; one that is taken again under a name
// that exists gets the name. What goes over a network (push, pull, migrate) is an operation. Elsewhere: what a guest is
// (guest_routes.ts), the other host's side of a move (migration_routes.ts).

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import type { ErrorCode } from '../base/errors.ts'
import { FORKS_MAX, MOVE_STOPPED_MS_MAX } from '../base/limits.ts'
import type { Actor, GuestView, Operator, SnapshotView } from '../host/operator.ts'
import { GUEST_SPEC, NAME } from '../host/spec.ts'
import { isLoopbackAddress } from './auth.ts'
import { address, answered, begun, ONE, waited } from './guest_routes.ts'
import { InvalidRequest } from './problem.ts'
import {
  accepted, created, DONE, json, listOf, ok, page, PAGED, route, WAIT, type Ask, type Route,
} from './route.ts'
import { GUEST, OPERATION, SNAPSHOT } from './views.ts'

const ALL = '/v1/projects/{project}/snapshots'
const SINGLE = `${ALL}/{snapshot}`
const FOLLOWED = {
  status: 202, what: 'The work has begun: Location says where it can be followed', schema: OPERATION,
} as const
const SHA256 = /^(?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}$/
/** Why a guest can't be captured, or not now. */
const UNCAPTURED: readonly ErrorCode[] = [
  'NOT_FOUND', 'GUEST_PHASE_WRONG', 'CAPTURE_IMPOSSIBLE', 'CAPTURE_ENDED', 'MOVE_UNDERWAY', 'HOST_DISK_FULL',
]

type Verb = (operator: Operator, project: string, name: string, by: Actor) => Promise<GuestView>

/** A verb that takes a guest's name, and answers with the guest. */
function verb(word: string, summary: string, errors: readonly ErrorCode[], act: Verb): Route {
  return route({
    method: 'POST', path: `${ONE}/${word}`, name: `${word}Guest`, summary, scope: 'write',
    answer: { status: 200, what: 'The guest', schema: GUEST }, errors,
    handle: async (ask) => answered(ok, await act(ask.operator, ...address(ask), ask.actor)),
  })
}

const lives: Route[] = [
  verb('pause', 'Keep a guest from running: memory, ports and connections stay',
    ['NOT_FOUND', 'GUEST_PHASE_WRONG', 'MOVE_UNDERWAY'], (operator, ...which) => operator.pauseGuest(...which)),
  route({
    method: 'POST', path: `${ONE}/resume`, name: 'resumeGuest', scope: 'write', query: waited,
    summary: 'Let a guest go on that is paused or hibernated',
    answer: { status: 200, what: 'The guest', schema: GUEST },
    errors: ['NOT_FOUND', 'GUEST_PHASE_WRONG', 'MOVE_UNDERWAY', 'ADMISSION_REFUSED', 'WAKE_FAILED', 'HOST_DRAINING'],
    handle: async (ask) =>
      answered(ok, await begun(ask, await ask.operator.resumeGuest(...address(ask), ask.actor))),
  }),
  verb('hibernate', 'Save a guest and free its memory, until something comes for it', UNCAPTURED,
    (operator, ...which) => operator.hibernateGuest(...which)),
]

const SNAPSHOT_BODY = z.strictObject({
  name: NAME.optional().describe('A name for it: a snapshot that has it already loses it'),
  stop: z.boolean().optional().describe('Stop the guest there; else it goes on'),
})
const FORK_BODY = z.strictObject({
  count: z.int().min(1).max(FORKS_MAX).optional()
    .describe('How many (default: as many as there are names, or 1)'),
  names: z.array(NAME).min(1).max(FORKS_MAX).optional().describe('Their names (default: NAME-1, NAME-2, …)'),
})
const MIGRATE_BODY = z.strictObject({
  to: z.string().max(2048).refine(isAddress, 'must be https://…, unix:/PATH, or http://… on this machine')
    .describe("The address of the other host's API: https://…, unix:/PATH, or http://… on this machine"),
  token: z.string().min(1).max(1024).regex(/^[\w.~+/-]+=*$/, 'must be a token').optional()
    .describe('A token of that host, with scope write'),
  fingerprint: z.string().regex(SHA256, 'must be a SHA-256, such as AB:CD:…').transform((text) => text.toUpperCase())
    .optional().describe("The SHA-256 of that host's certificate: then no authority needs to have signed it"),
  downtime: WAIT(`How long it may stand still until that host has all of it, else it goes on here (default: ${
    MOVE_STOPPED_MS_MAX / 1000}s)`),
})

const copies: Route[] = [
  route({
    method: 'POST', path: `${ONE}/snapshot`, name: 'snapshotGuest', scope: 'write',
    summary: 'Save a guest while it runs', body: json(SNAPSHOT_BODY, true),
    answer: { status: 201, what: 'The snapshot', schema: SNAPSHOT }, errors: UNCAPTURED,
    handle: async (ask) => {
      const snapshot = await ask.operator.snapshotGuest(...address(ask), ask.body, ask.actor)
      return created(snapshot, { location: `/v1/projects/${snapshot.project}/snapshots/${snapshot.digest}` })
    },
  }),
  route({
    method: 'POST', path: `${ONE}/fork`, name: 'forkGuest', scope: 'write',
    summary: 'Make guests that go on from where this one is', body: json(FORK_BODY, true),
    answer: { status: 201, what: 'The new guests', schema: listOf(GUEST) },
    errors: [...UNCAPTURED, 'EXISTS', 'ADMISSION_REFUSED', 'HOST_DRAINING'],
    handle: async (ask) =>
      created({ items: await ask.operator.forkGuest(...address(ask), wanted(ask.body), ask.actor) }),
  }),
  route({
    method: 'POST', path: `${ONE}/migrate`, name: 'migrateGuest', scope: 'write',
    summary: 'Move a guest to another host while it runs. A host on a Unix socket without a token: scope admin',
    body: json(MIGRATE_BODY), answer: FOLLOWED,
    errors: ['NOT_FOUND', 'GUEST_PHASE_WRONG', 'CAPTURE_IMPOSSIBLE', 'MOVE_UNDERWAY', 'OPERATIONS_FULL'],
    handle: async (ask) => {
      permitAddress(ask)
      const { downtime, ...to } = ask.body
      return accepted(await ask.operator.migrateGuest(...address(ask), { ...to, downtimeMs: downtime }, ask.actor))
    },
  }),
]

const at = ({ params }: Ask<unknown, unknown>): [project: string, reference: string] =>
  [params['project']!, params['snapshot']!]
/** Names are unique, and so are digests, but a name may be another's digest. */
const keyOf = ({ name, digest }: SnapshotView): string => `${name ?? ''} ${digest}`

const snapshots: Route[] = [
  route({
    method: 'GET', path: ALL, name: 'listSnapshots', summary: 'Snapshots of a project', scope: 'read', query: PAGED,
    answer: { status: 200, what: 'Snapshots, those without a name first, then by name', schema: listOf(SNAPSHOT) },
    errors: ['NOT_FOUND'],
    handle: ({ operator, params, query }) => page(operator.snapshots(params['project']!), keyOf, query),
  }),
  route({
    method: 'POST', path: `${ALL}/pull`, name: 'pullSnapshot', summary: 'Fetch a snapshot from a registry',
    scope: 'write', answer: FOLLOWED, errors: ['IMAGE_REFERENCE_INVALID', 'OPERATIONS_FULL'],
    body: json(z.strictObject({
      reference: z.string().min(1).max(512).describe('Where it is: REGISTRY/PATH:TAG'),
      name: NAME.optional().describe('A name for it'),
    })),
    handle: async ({ operator, actor, params, body: { reference, name } }) =>
      accepted(await operator.pullSnapshot(params['project']!, reference, name, actor)),
  }),
  route({
    method: 'GET', path: SINGLE, name: 'getSnapshot', summary: 'A snapshot', scope: 'read',
    answer: { status: 200, what: 'The snapshot', schema: SNAPSHOT }, errors: ['NOT_FOUND'],
    handle: (ask) => ok(ask.operator.snapshot(...at(ask))),
  }),
  route({
    method: 'DELETE', path: SINGLE, name: 'removeSnapshot', summary: 'Remove a snapshot', scope: 'write',
    answer: { status: 204, what: 'It is gone' }, errors: ['NOT_FOUND', 'IN_USE'],
    handle: async (ask) => {
      await ask.operator.removeSnapshot(...at(ask), ask.actor)
      return DONE
    },
  }),
  route({
    method: 'POST', path: `${SINGLE}/restore`, name: 'restoreSnapshot', scope: 'write', query: waited,
    summary: 'Make a guest that goes on from a snapshot', answer: { status: 201, what: 'The guest', schema: GUEST },
    body: json(z.strictObject({
      name: NAME.optional().describe('Its name (default: one is made up)'),
      ports: GUEST_SPEC.shape.ports.unwrap().optional()
        .describe('Where ports that it publishes are published (default: on ports that the host chooses): ' +
          '[ADDRESS:]PORT:GUESTPORT'),
    }), true),
    errors: ['NOT_FOUND', 'EXISTS', 'REFERENCE_UNKNOWN', 'ADMISSION_REFUSED', 'SNAPSHOT_DAMAGED', 'SNAPSHOT_FOREIGN',
      'SNAPSHOT_NEWER', 'HOST_DRAINING'],
    handle: async (ask) =>
      answered(created, await begun(ask, await ask.operator.restoreGuest(...at(ask), ask.body, ask.actor))),
  }),
  route({
    method: 'POST', path: `${SINGLE}/push`, name: 'pushSnapshot', summary: 'Send a snapshot to a registry',
    scope: 'write', body: json(z.strictObject({
      to: z.string().min(1).max(512).describe('Where it is to be: REGISTRY/PATH:TAG'),
    })),
    answer: FOLLOWED, errors: ['NOT_FOUND', 'IMAGE_REFERENCE_INVALID', 'OPERATIONS_FULL'],
    handle: async (ask) => accepted(await ask.operator.pushSnapshot(...at(ask), ask.body.to, ask.actor)),
  }),
]

export const SNAPSHOT_ROUTES: readonly Route[] = [...lives, ...copies, ...snapshots]

/** A host's API is served without TLS on loopback addresses only: a token must not go in clear anywhere else. */
function isAddress(text: string): boolean {
  if (text.startsWith('unix:')) return /^unix:\/[^\0]+$/.test(text)
  const url = /^https?:\/\//.test(text) ? URL.parse(text) : null
  if (url === null || url.username !== '' || url.password !== '') return false
  return url.protocol === 'https:' || isLoopbackAddress(url.hostname.replace(/^\[|\]$/g, ''))
}

/** Throws REQUEST_INVALID if there are more names than guests, or fewer. */
function wanted({ count, names }: z.output<typeof FORK_BODY>):
{ count: number; names?: readonly string[] | undefined } {
  if (count !== undefined && names !== undefined && count !== names.length) {
    throw new InvalidRequest([{ in: 'body', pointer: '/names', detail: `must be ${count} names, or none` }])
  }
  return { count: count ?? names?.length ?? 1, names }
}

/**
 * On a Unix socket the other host sees our own user, not who asks: only who may do everything here is let through so.
 * And who is limited to a project, as its guests are, isn't to reach what listens on this machine. Throws FORBIDDEN.
 */
function permitAddress({ actor, body: { to, token } }: Ask<unknown, z.output<typeof MIGRATE_BODY>>): void {
  const isOurs = to.startsWith('unix:') && token === undefined
  if (actor.project !== undefined && !to.startsWith('https:')) {
    throw new CellarError('FORBIDDEN', [actor.name, 'move a guest to a host on this machine'])
  }
  if (!isOurs || actor.scope === 'admin') return
  throw new CellarError('FORBIDDEN',
    [actor.name, 'use a host on a Unix socket without a token: that needs scope admin'])
}
