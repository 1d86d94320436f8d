// api/host_routes.ts: the host itself: health, projects, manifests, operations, events, the audit log and tokens.

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import type { EventView, OperationView } from '../host/operator.ts'
import { MANIFEST, NAME } from '../host/spec.ts'
import { permitProject } from './auth.ts'
import { InvalidRequest } from './problem.ts'
import {
  accepted, COUNT, created, DONE, FLAG, json, listOf, ok, page, PAGED, route, WAIT, type Answer, type Ask, type Route,
} from './route.ts'
import { ABOUT, AUDIT, CHANGE, EVENT, HOST, NEW_TOKEN, OPERATION, PROJECT, SCOPE, TOKEN } from './views.ts'

/** Counts additions to the API. */
const API_LEVEL = 2
const FEATURES = [
  'guests', 'pools', 'networks', 'secrets', 'volumes', 'images', 'apply', 'events', 'exec', 'snapshots', 'migration',
] as const
const AUDIT_ENTRIES = 1000
const EVENTS_MAX = 1000
const PLAIN = { 'content-type': 'text/plain; charset=utf-8' } as const
const EXPOSITION = 'text/plain; version=0.0.4; charset=utf-8'

const health: Route[] = [
  route({
    method: 'GET', path: '/livez', name: 'livez', summary: 'Whether the host answers', scope: 'none',
    answer: { status: 200, what: 'It does', types: ['text/plain'] },
    handle: () => ({ status: 200, text: 'ok\n', headers: PLAIN }),
  }),
  route({
    method: 'GET', path: '/readyz', name: 'readyz', summary: 'Whether the host can do its work (else status 503)',
    scope: 'none', query: z.strictObject({ verbose: FLAG('Tell what is not ready') }),
    answer: { status: 200, what: 'It can', types: ['text/plain'] }, errors: ['HOST_DRAINING'],
    handle: ({ operator, query }) => {
      const missing = operator.unready()
      const more = query.verbose ? missing.map((what) => `[-] ${what}\n`).join('') : ''
      return missing.length === 0 ? { status: 200, text: 'ok\n', headers: PLAIN }
        : { status: 503, text: `${more}not ready\n`, headers: PLAIN }
    },
  }),
  route({
    method: 'GET', path: '/metrics', name: 'metrics', summary: 'Figures for Prometheus', scope: 'read',
    answer: { status: 200, what: 'The exposition format', types: ['text/plain'] },
    handle: async ({ metrics }) => ({ status: 200, text: await metrics(), headers: { 'content-type': EXPOSITION } }),
  }),
  route({
    method: 'GET', path: '/v1', name: 'about', summary: 'Versions, and what this API can do', scope: 'read',
    filtered: true, answer: { status: 200, what: 'The versions', schema: ABOUT },
    handle: ({ operator }) => ok({ version: operator.host().version, apiLevel: API_LEVEL, features: FEATURES }),
  }),
  route({
    method: 'GET', path: '/v1/host', name: 'getHost', summary: 'The host', scope: 'read',
    answer: { status: 200, what: 'The host', schema: HOST }, handle: ({ operator }) => ok(operator.host()),
  }),
]

const projects: Route[] = [
  route({
    method: 'GET', path: '/v1/projects', name: 'listProjects', summary: 'Projects', scope: 'read', filtered: true,
    query: PAGED, answer: { status: 200, what: 'Projects, by name', schema: listOf(PROJECT) },
    handle: ({ operator, actor, query }) => page(operator.projects()
      .filter(({ name }) => actor.project === undefined || actor.project === name), ({ name }) => name, query),
  }),
  route({
    method: 'POST', path: '/v1/projects', name: 'createProject', summary: 'Create a project', scope: 'write',
    body: json(z.strictObject({ name: NAME })), answer: { status: 201, what: 'The project', schema: PROJECT },
    errors: ['EXISTS'],
    handle: async ({ operator, actor, body }) =>
      created(await operator.createProject(body.name, actor), { location: `/v1/projects/${body.name}` }),
  }),
  route({
    method: 'GET', path: '/v1/projects/{project}', name: 'getProject', summary: 'A project', scope: 'read',
    answer: { status: 200, what: 'The project', schema: PROJECT }, errors: ['NOT_FOUND'],
    handle: ({ operator, params }) => {
      const found = operator.projects().find(({ name }) => name === params['project'])
      if (found === undefined) throw new CellarError('NOT_FOUND', ['project', params['project']!])
      return ok(found)
    },
  }),
  route({
    method: 'DELETE', path: '/v1/projects/{project}', name: 'removeProject', scope: 'write',
    summary: 'Remove a project',
    query: z.strictObject({ force: FLAG('Also if it has guests: they are stopped, and all that it has is removed') }),
    answer: { status: 202, what: 'The work has begun: Location says where it can be followed', schema: OPERATION },
    errors: ['NOT_FOUND', 'IN_USE'],
    handle: async ({ operator, actor, params, query }) =>
      accepted(await operator.removeProject(params['project']!, query.force, actor)),
  }),
  route({
    method: 'POST', path: '/v1/projects/{project}/apply', name: 'applyManifest', scope: 'write',
    summary: 'Make a project what a manifest says', body: json(MANIFEST),
    query: z.strictObject({ dryRun: FLAG('Only tell what would change'), prune: FLAG('Remove what it does not name') }),
    answer: { status: 200, what: 'What was changed', schema: listOf(CHANGE) },
    errors: ['REFERENCE_UNKNOWN', 'ADMISSION_REFUSED', 'GUEST_UNSUPPORTED', 'HOST_DISK_FULL'],
    handle: async ({ operator, actor, params, query, body }) => {
      if (body.project !== undefined && body.project !== params['project']) {
        throw new InvalidRequest([{ in: 'body', pointer: '/project', detail: "it isn't the project of the path" }])
      }
      return ok({ items: await operator.apply(params['project']!, body, query, actor) })
    },
  }),
]

/** Who is limited to a project sees the operations that it has begun. */
const mayFollow = (ask: Ask<unknown, unknown>, { by }: OperationView): boolean =>
  ask.actor.project === undefined || by === ask.actor.name

/** Throws NOT_FOUND. */
function operationOf(ask: Ask<unknown, unknown>): OperationView {
  const found = ask.operator.operation(ask.params['operation']!)
  if (mayFollow(ask, found)) return found
  throw new CellarError('NOT_FOUND', ['operation', found.id])
}

const operations: Route[] = [
  route({
    method: 'GET', path: '/v1/operations', name: 'listOperations', summary: 'Long work: what runs, and what has ended',
    scope: 'read', filtered: true, query: PAGED,
    answer: { status: 200, what: 'Operations, oldest first', schema: listOf(OPERATION) },
    handle: (ask) => page(ask.operator.operations().filter((one) => mayFollow(ask, one)),
      ({ createdAt, id }) => `${String(createdAt).padStart(16, '0')} ${id}`, ask.query),
  }),
  route({
    method: 'GET', path: '/v1/operations/{operation}', name: 'getOperation', summary: 'An operation', scope: 'read',
    filtered: true, query: z.strictObject({ wait: WAIT('Answer when it has ended, or after this time') }),
    answer: { status: 200, what: 'The operation', schema: OPERATION }, errors: ['NOT_FOUND', 'HOST_DRAINING'],
    handle: async (ask) => {
      const found = operationOf(ask)
      if (ask.query.wait === undefined || found.status !== 'running') return ok(found)
      return ok(await ask.unlessClosing(ask.operator.waitOperation(found.id, ask.query.wait)))
    },
  }),
  route({
    method: 'DELETE', path: '/v1/operations/{operation}', name: 'cancelOperation', summary: 'Cancel an operation',
    scope: 'write', filtered: true, answer: { status: 200, what: 'The operation', schema: OPERATION },
    errors: ['NOT_FOUND'],
    handle: async (ask) => ok(await ask.operator.cancelOperation(operationOf(ask).id, ask.actor)),
  }),
]

const eventQuery = z.strictObject({
  since: COUNT('Those after the one with this number; the header Last-Event-ID counts before it', 1e15),
  project: NAME.optional().describe('Only of this project'),
  follow: z.enum(['', 'true', 'false']).default('true').transform((text) => text !== 'false')
    .describe(`false: those that there are, ${EVENTS_MAX} at most, as a JSON list`),
})

const records: Route[] = [
  route({
    method: 'GET', path: '/v1/events', name: 'events', scope: 'read', filtered: true, query: eventQuery,
    summary: 'What happens, as server-sent events: those that were, then those to come',
    answer: { status: 200, what: 'Events', schema: listOf(EVENT), types: ['text/event-stream', 'application/json'] },
    handle: events,
  }),
  route({
    method: 'GET', path: '/v1/audit', name: 'listAudit', summary: 'Who changed what, the latest', scope: 'admin',
    query: z.strictObject({ limit: COUNT(`Most entries (default: ${AUDIT_ENTRIES})`, 10_000) }),
    answer: { status: 200, what: 'Entries of the audit log', schema: listOf(AUDIT) },
    handle: ({ operator, query }) => ok({ items: operator.audit(query.limit ?? AUDIT_ENTRIES) }),
  }),
  route({
    method: 'GET', path: '/v1/tokens', name: 'listTokens', summary: 'Tokens, without what they are', scope: 'admin',
    query: PAGED, answer: { status: 200, what: 'Tokens', schema: listOf(TOKEN) },
    handle: ({ operator, query }) => page(operator.tokens(), ({ name, id }) => `${name} ${id}`, query),
  }),
  route({
    method: 'POST', path: '/v1/tokens', name: 'createToken', summary: 'Create a token', scope: 'admin', unkept: true,
    body: json(z.strictObject({
      name: NAME, scope: SCOPE, project: NAME.optional().describe('The only project that it may touch'),
      expiresAt: z.int().min(0).optional().describe('Milliseconds since 1970'),
    })),
    answer: { status: 201, what: 'The token: it is told this once', schema: NEW_TOKEN }, errors: ['EXISTS'],
    handle: async ({ operator, actor, body: { name, scope, project, expiresAt } }) =>
      created(await operator.createToken(name, scope, { project, expiresAt }, actor)),
  }),
  route({
    method: 'DELETE', path: '/v1/tokens/{token}', name: 'removeToken', summary: 'Make a token invalid', scope: 'admin',
    answer: { status: 204, what: 'It is gone' }, errors: ['NOT_FOUND'],
    handle: async ({ operator, actor, params }) => {
      await operator.removeToken(params['token']!, actor)
      return DONE
    },
  }),
]

export const HOST_ROUTES: readonly Route[] = [...health, ...projects, ...operations, ...records]

async function events({ operator, actor, query, headers, gone }: Ask<z.output<typeof eventQuery>, undefined>):
Promise<Answer> {
  if (query.project !== undefined) permitProject(actor, query.project)
  const project = query.project ?? actor.project
  const last = headers.get('last-event-id') ?? ''
  const since = /^\d{1,15}$/.test(last) ? Number(last) : query.since
  const found = operator.events({ since, follow: query.follow, project, signal: gone })
  if (query.follow) {
    return {
      status: 200, headers: { 'content-type': 'text/event-stream' },
      stream: { chunks: sent(found), heartbeat: ':\n\n', goodbye: 'retry: 2000\n: the host is shutting down\n\n' },
    }
  }
  const items: EventView[] = []
  for await (const event of found) if (items.push(event) >= EVENTS_MAX) break
  return ok({ items })
}

async function* sent(events: AsyncIterable<EventView>): AsyncGenerator<string> {
  yield 'retry: 2000\n\n'
  for await (const event of events) yield `id: ${event.seq}\ndata: ${JSON.stringify(event)}\n\n`
}
