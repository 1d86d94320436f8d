// api/guest_routes.ts: guests: what they are, their lives, logs, figures and consoles. Elsewhere: pauses, snapshots,
// forks and moves (snapshot_routes.ts).

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import { parseSize } from '../base/units.ts'
import type { GuestView, LogLine, Phase } from '../host/operator.ts'
import { GUEST_SPEC, NAME } from '../host/spec.ts'
import { permitProject } from './auth.ts'
import { logSession } from './log_session.ts'
import { InvalidRequest } from './problem.ts'
import {
  COUNT, created, DONE, FLAG, json, listOf, ok, page, PAGE, route, stream, WAIT, type Answer, type Ask, type Route,
} from './route.ts'
import { batched } from './stream.ts'
import { FIGURES, GUEST, PHASE } from './views.ts'

const GUESTS = '/v1/projects/{project}/guests'
/** One guest: what is done to it has this path before it. */
export const ONE = `${GUESTS}/{guest}`
/** Phases in which a start is over, one way or the other; and a life. */
const BEGUN: readonly Phase[] = ['running', 'paused', 'backing-off', 'exited', 'failed', 'stopped']
const ENDED: readonly Phase[] = ['exited', 'failed', 'stopped']
const WAIT_DEFAULT_MS = 30_000
export const SESSION_PROTOCOL = 'v1.session.cellar'

const select = z.strictObject({
  ...PAGE,
  label: z.array(z.string().max(320)).max(16).default([]).describe('Only with this label, KEY or KEY=VALUE'),
  phase: z.array(PHASE).default([]).describe('Only in this phase'),
})
/** The query of what starts a guest. */
export const waited = z.strictObject({ wait: WAIT('Answer when it runs or has ended, or after this time') })
/** The guest of a path. */
export const address = ({ params }: Ask<unknown, unknown>): [project: string, name: string] =>
  [params['project']!, params['guest']!]

const many: Route[] = [
  route({
    method: 'GET', path: '/v1/guests', name: 'listAllGuests', summary: 'Guests of all projects', scope: 'read',
    filtered: true, query: select, answer: { status: 200, what: 'Guests, by project and name', schema: listOf(GUEST) },
    handle: (ask) => selected(ask.operator.guests(ask.actor.project), ask.query),
  }),
  route({
    method: 'GET', path: GUESTS, name: 'listGuests', summary: 'Guests of a project', scope: 'read', query: select,
    answer: { status: 200, what: 'Guests, by name', schema: listOf(GUEST) }, errors: ['NOT_FOUND'],
    handle: (ask) => selected(ask.operator.guests(ask.params['project']), ask.query),
  }),
  route({
    method: 'POST', path: GUESTS, name: 'createGuest', scope: 'write', query: waited,
    summary: 'Create a guest, and start it. The project is created if it is not there',
    body: json(z.strictObject({
      name: NAME.optional().describe('Its name (default: one is made up)'), spec: GUEST_SPEC,
      start: z.boolean().default(true).describe('Start it at once'),
    })),
    answer: { status: 201, what: 'The guest', schema: GUEST },
    errors: ['EXISTS', 'REFERENCE_UNKNOWN', 'ADMISSION_REFUSED', 'HOST_DISK_FULL', 'HOST_DRAINING'],
    handle: async (ask) => {
      const { operator, actor, params, body: { name, spec, start } } = ask
      const guest = await operator.createGuest(params['project']!, name, spec, start, actor)
      return answered(created, start ? await begun(ask, guest) : guest)
    },
  }),
]

const single: Route[] = [
  route({
    method: 'GET', path: ONE, name: 'getGuest', summary: 'A guest', scope: 'read',
    answer: { status: 200, what: 'The guest; its ETag is its generation', schema: GUEST }, errors: ['NOT_FOUND'],
    handle: (ask) => answered(ok, ask.operator.guest(...address(ask))),
  }),
  route({
    method: 'PUT', path: ONE, name: 'replaceGuest', scope: 'write', body: json(z.strictObject({ spec: GUEST_SPEC })),
    summary: 'Change what a guest is; with If-Match only if nobody else has meanwhile',
    answer: { status: 200, what: 'The guest', schema: GUEST },
    errors: ['NOT_FOUND', 'GENERATION_STALE', 'REFERENCE_UNKNOWN', 'ADMISSION_REFUSED'],
    handle: async (ask) => answered(ok, await ask.operator.replaceGuest(...address(ask), ask.body.spec,
      generationOf(ask.headers.get('if-match')), ask.actor)),
  }),
  route({
    method: 'DELETE', path: ONE, name: 'removeGuest', summary: 'Remove a guest, with its log', scope: 'write',
    query: z.strictObject({ force: FLAG('Stop it first, if it runs') }), answer: { status: 204, what: 'It is gone' },
    errors: ['NOT_FOUND', 'GUEST_RUNNING'],
    handle: async (ask) => {
      await ask.operator.removeGuest(...address(ask), ask.query.force, ask.actor)
      return DONE
    },
  }),
]

const lives: Route[] = [
  route({
    method: 'POST', path: `${ONE}/start`, name: 'startGuest', summary: 'Start a guest', scope: 'write', query: waited,
    answer: { status: 200, what: 'The guest', schema: GUEST },
    errors: ['NOT_FOUND', 'ADMISSION_REFUSED', 'HOST_DRAINING'],
    handle: async (ask) =>
      answered(ok, await begun(ask, await ask.operator.startGuest(...address(ask), ask.actor))),
  }),
  stopping('stop', 'stopGuest', 'Ask a guest to end, with SIGTERM', signals.SIGTERM),
  stopping('kill', 'killGuest', 'End a guest at once', signals.SIGKILL),
  route({
    method: 'POST', path: `${ONE}/restart`, name: 'restartGuest', summary: 'Stop a guest if it runs, and start it',
    scope: 'write', query: waited, answer: { status: 200, what: 'The guest', schema: GUEST },
    errors: ['NOT_FOUND', 'HOST_DRAINING'],
    handle: async (ask) => {
      return answered(ok, await begun(ask, await ask.operator.restartGuest(...address(ask), ask.actor)))
    },
  }),
  route({
    method: 'GET', path: `${ONE}/wait`, name: 'waitGuest', summary: 'Wait for what becomes of a guest', scope: 'read',
    query: z.strictObject({
      phase: z.array(PHASE).default([...ENDED]).describe('Wait for one of these phases (default: those of an end)'),
      timeout: WAIT('Wait no longer than this (default: 30s)'),
    }),
    answer: { status: 200, what: 'The guest, in one of the phases or as it is after the time', schema: GUEST },
    errors: ['NOT_FOUND', 'HOST_DRAINING'],
    handle: async (ask) => answered(ok, await ask.unlessClosing(ask.operator.waitGuest(...address(ask), ask.query.phase,
      ask.query.timeout ?? WAIT_DEFAULT_MS))),
  }),
]

const LOG_QUERY = z.strictObject({
  follow: FLAG('Go on with what it writes from now on'),
  since: z.string().max(40).transform(timeOf).optional()
    .describe('Only what is younger: milliseconds since 1970, or a time such as 2026-01-31T12:00:00Z'),
  tail: COUNT('Only so many last lines', 1_000_000),
})

const insides: Route[] = [
  route({
    method: 'GET', path: `${ONE}/logs`, name: 'readLogs', scope: 'read',
    summary: 'What a guest wrote: text, or by the header Accept JSON lines or server-sent events',
    query: LOG_QUERY,
    answer: { status: 200, what: 'Lines', types: ['text/plain', 'application/x-ndjson', 'text/event-stream'] },
    errors: ['NOT_FOUND'],
    handle: logs,
  }),
  route({
    method: 'GET', path: `${ONE}/logs/session`, name: 'readLogSession', scope: 'read', socket: true,
    summary: `What a guest wrote: WebSocket, sub-protocol ${SESSION_PROTOCOL}`, query: LOG_QUERY,
    answer: { status: 101, what: 'Frames as of attach, without input' }, errors: ['NOT_FOUND', 'UPGRADE_REQUIRED'],
    handle: async (ask) => {
      const { operator, query } = ask
      const { project, name } = operator.guest(...address(ask))
      return { status: 101, session: logSession((signal) => operator.logs(project, name, { ...query, signal })) }
    },
  }),
  route({
    method: 'GET', path: `${ONE}/stats`, name: 'getGuestStats', summary: 'Figures of a running guest', scope: 'read',
    answer: { status: 200, what: 'Its figures', schema: FIGURES }, errors: ['NOT_FOUND', 'GUEST_NOT_RUNNING'],
    handle: async (ask) => {
      const { id, project, name, phase } = ask.operator.guest(...address(ask))
      const figures = (await ask.operator.stats(project)).get(id)
      if (figures === undefined) throw new CellarError('GUEST_NOT_RUNNING', [name, phase])
      return ok({ ...figures, id, project, name })
    },
  }),
  route({
    method: 'GET', path: '/v1/stats', name: 'listStats', summary: 'Figures of all running guests', scope: 'read',
    filtered: true, query: z.strictObject({ ...PAGE, project: NAME.optional().describe('Only of this project') }),
    answer: { status: 200, what: 'Figures', schema: listOf(FIGURES) },
    handle: async ({ operator, actor, query }) => {
      if (query.project !== undefined) permitProject(actor, query.project)
      const of = query.project ?? actor.project
      const figures = await operator.stats(of)
      const running = operator.guests(of).filter(({ id }) => figures.has(id))
      return page(running.map(({ id, project, name }) => ({ ...figures.get(id)!, id, project, name })), keyOf, query)
    },
  }),
  route({
    method: 'GET', path: `${ONE}/attach`, name: 'attachGuest', scope: 'write', socket: true,
    summary: `A guest's console: WebSocket, sub-protocol ${SESSION_PROTOCOL}`,
    answer: { status: 101, what: 'Frames: first byte 0 input, 1 output, 2 errors, 3 JSON: {"exit": n}, {"eof": true}' },
    errors: ['NOT_FOUND', 'GUEST_NOT_RUNNING', 'UPGRADE_REQUIRED'],
    handle: async (ask) => ({ status: 101, session: await ask.operator.attach(...address(ask), ask.actor) }),
  }),
  route({
    method: 'GET', path: `${ONE}/exec`, name: 'execGuest', scope: 'write', socket: true,
    summary: `Run a program with a guest's grants beside it: WebSocket, sub-protocol ${SESSION_PROTOCOL}`,
    query: z.strictObject({
      arg: z.array(z.string()).max(1024).default([]).describe("The program's arguments, its name first"),
      image: z.string().min(1).max(512).optional().describe("The image to run (default: the guest's)"),
      env: z.array(z.string().regex(/^[^=\0]+=[^\0]*$/, 'must be NAME=VALUE')).max(1024).default([])
        .describe('Variables, NAME=VALUE'),
    }),
    answer: { status: 101, what: 'Frames as of attach' },
    errors: ['NOT_FOUND', 'GUEST_NOT_RUNNING', 'IMAGE_INVALID', 'UPGRADE_REQUIRED'],
    handle: async (ask) => {
      const { image, arg: args, env: variables } = ask.query
      const env = Object.fromEntries(variables.map((one) =>
        [one.slice(0, one.indexOf('=')), one.slice(one.indexOf('=') + 1)]))
      return { status: 101, session: await ask.operator.exec(...address(ask), { image, args, env }, ask.actor) }
    },
  }),
]

const TAR = 'application/x-tar'
const ARCHIVE_BYTES_MAX = 2 ** 40
const filesAt = z.strictObject({ path: z.string().min(1).max(4095).default('/').describe('A path in the guest') })

const files: Route[] = [
  route({
    method: 'POST', path: `${ONE}/resize`, name: 'resizeGuest', scope: 'write',
    summary: 'Ask a machine that runs to do with less memory, or to take back what it had',
    body: json(z.strictObject({ memory: z.string().describe('A size, such as 128MiB') })),
    answer: { status: 200, what: 'The guest', schema: GUEST },
    errors: ['NOT_FOUND', 'CELL_WORD', 'GUEST_NOT_RUNNING', 'GUEST_UNSUPPORTED'],
    handle: async (ask) => {
      const bytes = parseSize(ask.body.memory)
      if (bytes === undefined) throw new CellarError('REQUEST_INVALID', [`"${ask.body.memory}" is no size`])
      return ok(await ask.operator.resizeGuest(...address(ask), bytes, ask.actor))
    },
  }),
  route({
    method: 'GET', path: `${ONE}/files`, name: 'readGuestFiles', scope: 'write', query: filesAt,
    summary: 'Files of a machine that runs, as a tar archive, through its agent',
    answer: { status: 200, what: 'The archive', types: [TAR] },
    errors: ['NOT_FOUND', 'GUEST_NOT_RUNNING', 'AGENT_FAILED', 'CELL_WORD'],
    handle: async (ask) => {
      const chunks = await ask.operator.readGuest(...address(ask), ask.query.path)
      ask.gone.addEventListener('abort', () => { chunks.destroy() })
      return { status: 200, headers: { 'content-type': TAR }, stream: { chunks } }
    },
  }),
  route({
    method: 'PUT', path: `${ONE}/files`, name: 'writeGuestFiles', scope: 'write', query: filesAt,
    summary: 'Unpack a tar archive in a machine that runs, through its agent', body: stream(TAR, ARCHIVE_BYTES_MAX),
    answer: { status: 204, what: 'It is unpacked' },
    errors: ['NOT_FOUND', 'GUEST_NOT_RUNNING', 'AGENT_FAILED', 'CELL_WORD'],
    handle: async (ask) => {
      await ask.operator.writeGuest(...address(ask), ask.query.path, ask.body, ask.actor)
      return DONE
    },
  }),
]

export const GUEST_ROUTES: readonly Route[] = [...many, ...single, ...lives, ...insides, ...files]

function stopping(verb: string, name: string, summary: string, signal: number): Route {
  return route({
    method: 'POST', path: `${ONE}/${verb}`, name, summary, scope: 'write',
    answer: { status: 200, what: 'The guest, when it has ended', schema: GUEST }, errors: ['NOT_FOUND'],
    handle: async (ask) => answered(ok, await ask.operator.stopGuest(...address(ask), signal, ask.actor)),
  })
}

const keyOf = (one: { readonly project: string; readonly name: string }): string => `${one.project}/${one.name}`

function selected(guests: readonly GuestView[], query: z.output<typeof select>): Answer {
  const labels = query.label.map((text) => {
    const at = text.indexOf('=')
    return at < 0 ? [text, undefined] as const : [text.slice(0, at), text.slice(at + 1)] as const
  })
  const chosen = guests.filter(({ spec, phase }) =>
    (query.phase.length === 0 || query.phase.includes(phase)) && labels.every(([name, value]) =>
      Object.hasOwn(spec.labels, name) && (value === undefined || spec.labels[name] === value)))
  return page(chosen, keyOf, query)
}

/** A guest, with its ETag and where it is. */
export function answered(as: typeof ok, guest: GuestView): Answer {
  return as(guest, {
    etag: `"${guest.generation}"`, location: `/v1/projects/${guest.project}/guests/${guest.name}`,
  })
}

/** The guest after the wait that was asked for; as it is now if the API ends meanwhile: what was asked is done. */
export async function begun({ operator, query, unlessClosing }: Ask<z.output<typeof waited>, unknown>,
  guest: GuestView): Promise<GuestView> {
  if (query.wait === undefined) return guest
  try {
    return await unlessClosing(operator.waitGuest(guest.project, guest.name, BEGUN, query.wait))
  } catch (error) {
    if (error instanceof CellarError && error.code === 'HOST_DRAINING') return guest
    throw error
  }
}

/** The generation of an If-Match; undefined if any will do. */
function generationOf(header: string | null): number | undefined {
  if (header === null || header.trim() === '*') return undefined
  const match = /^\s*"(\d{1,15})"\s*$/.exec(header)
  if (match !== null) return Number(match[1])
  throw new InvalidRequest([{ in: 'header', pointer: '/if-match', detail: 'it must be an ETag such as "3", or *' }])
}

/** Milliseconds since 1970. */
function timeOf(text: string, context: z.RefinementCtx): number {
  const time = /^\d{1,15}$/.test(text) ? Number(text) : Date.parse(text)
  if (Number.isFinite(time)) return time
  context.addIssue({ code: 'custom', message: 'must be milliseconds since 1970, or a time' })
  return z.NEVER
}

const FORMATS: readonly (readonly [type: string, format: (line: LogLine) => string])[] = [
  ['text/plain', ({ text, partial }) => partial ? text : `${text}\n`],
  ['application/x-ndjson', (line) => `${JSON.stringify(line)}\n`],
  ['text/event-stream', (line) => `data: ${JSON.stringify(line)}\n\n`],
]

function logs(ask: Ask<{ follow: boolean; since?: number | undefined; tail?: number | undefined }, undefined>): Answer {
  const { project, name } = ask.operator.guest(...address(ask))
  const accept = ask.headers.get('accept') ?? ''
  const [type, format] = FORMATS.find(([name]) => accept.includes(name)) ?? FORMATS[0]!
  const lines = ask.operator.logs(project, name, { ...ask.query, signal: ask.gone })
  const isEvents = type === 'text/event-stream'
  return {
    status: 200, headers: { 'content-type': type === 'text/plain' ? 'text/plain; charset=utf-8' : type },
    stream: { chunks: batched(lines, format), ...isEvents ? { heartbeat: ':\n\n', goodbye: 'retry: 2000\n\n' } : {} },
  }
}
