// api/route.ts: what a route is: one row of the table that dispatch, OpenAPI and the reference page are made from.
//
// A row says all that is checked before its handler runs (who may, which parameters, which body), so that a handler is
// a call of the Operator and the shape of the answer. Answers are plain data: they can be kept for an idempotency key.
// What is sent piece by piece (events, logs, archives) is a `stream`; a WebSocket is a `session`.

import type { Readable } from 'node:stream'
import { z } from 'zod'
import type { ErrorCode } from '../base/errors.ts'
import { API_LIST_ITEMS_MAX, API_WAIT_MS_MAX } from '../base/limits.ts'
import { parseDuration } from '../base/units.ts'
import type { Actor, Operator, Scope, Session } from '../host/operator.ts'
import { NAME } from '../host/spec.ts'
import { InvalidRequest } from './problem.ts'

/** What a handler gets: checked. */
export type Ask<Q = unknown, B = unknown> = {
  readonly operator: Operator
  readonly actor: Actor
  readonly params: Readonly<Record<string, string>>
  readonly query: Q
  readonly body: B
  readonly headers: { get(name: string): string | null }
  /** Aborted when nobody reads the answer any more: its stream was ended by the client or by us. */
  readonly gone: AbortSignal
  /** Resolves as `work`, or throws HOST_DRAINING as soon as the API is to end: for waits that change nothing. */
  readonly unlessClosing: <T>(work: Promise<T>) => Promise<T>
  /** The text of /metrics. */
  readonly metrics: () => Promise<string>
}

/** An answer piece by piece. */
export type Streamed = {
  readonly chunks: AsyncIterable<string | Uint8Array>
  /** Sent when there was nothing to send for a while. */
  readonly heartbeat?: string
  /** Sent last if the API ends before the stream. */
  readonly goodbye?: string
}

export type Answer = {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly json?: unknown
  /** With the header content-type. */
  readonly text?: string
  readonly stream?: Streamed
  readonly session?: Session
}

/** What a route takes after its head. */
export type Body<B> =
  | { readonly kind: 'json'; readonly schema: z.ZodType<B>; readonly optional?: boolean }
  | { readonly kind: 'bytes'; readonly type: string; readonly bytesMax: number; readonly made?: B }
  | { readonly kind: 'stream'; readonly type: string; readonly bytesMax: number; readonly made?: B }

export type Route = {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  /** With parameters in braces: those of PARAMETERS. */
  readonly path: string
  /** A name for clients in code, and the action in the audit log. */
  readonly name: string
  readonly summary: string
  readonly scope: 'none' | Scope
  /** It answers who is limited to a project, with nothing of others. Routes with {project} do anyway. */
  readonly filtered?: boolean
  /** No Idempotency-Key: its answer mustn't be kept. */
  readonly unkept?: boolean
  /** It is upgraded to a WebSocket. What it does is a change. */
  readonly socket?: boolean
  readonly query: z.ZodObject
  readonly body?: Body<unknown> | undefined
  readonly answer: { readonly status: number; readonly what: string; readonly schema?: z.ZodType
    /** Media types, if it isn't JSON. */
    readonly types?: readonly string[] }
  readonly errors: readonly ErrorCode[]
  readonly handle: (ask: Ask) => Answer | Promise<Answer>
}

type Definition<Q extends z.ZodObject, B> = Omit<Route, 'query' | 'body' | 'handle' | 'errors'> & {
  readonly query?: Q
  readonly body?: Body<B>
  readonly errors?: readonly ErrorCode[]
  readonly handle: (ask: Ask<z.output<Q>, B>) => Answer | Promise<Answer>
}

const NONE = z.strictObject({})

/** A row, its handler checked against its schemas. */
export function route<Q extends z.ZodObject = typeof NONE, B = undefined>(definition: Definition<Q, B>): Route {
  return { query: NONE, errors: [], ...definition } as unknown as Route
}

/** A JSON body. `optional`: without one it is as {}. */
export function json<B>(schema: z.ZodType<B>, optional = false): Body<B> {
  return { kind: 'json', schema, optional }
}
/** A small body as it is. */
export function bytes(type: string, bytesMax: number): Body<Uint8Array> { return { kind: 'bytes', type, bytesMax } }
/** A large body as it comes. */
export function stream(type: string, bytesMax: number): Body<Readable> { return { kind: 'stream', type, bytesMax } }

/** What stands in braces in paths. */
export const PARAMETERS: Readonly<Record<string, z.ZodType<string>>> = {
  project: NAME.describe('A project'),
  guest: z.string().regex(/^[\w.-]{1,64}$/, 'must be a name or an id')
    .describe("A guest's name, id, or a prefix of its id that only one has"),
  snapshot: z.string().regex(/^[\w.:-]{1,80}$/, 'must be the name or digest of a snapshot')
    .describe("A snapshot's name, digest, or a prefix of its digest that only one has"),
  pool: NAME.describe('A pool'),
  network: NAME.describe('A network'),
  secret: NAME.describe('A secret'),
  volume: NAME.describe('A volume'),
  reference: z.string().regex(/^[\w.:/@-]{1,512}$/, 'must be the name or digest of an image')
    .describe("An image's name, digest, or a prefix of its digest, path-escaped: app%2Fweb:1"),
  operation: z.string().regex(/^[\w.-]{1,64}$/, 'must be an id').describe("An operation's id"),
  token: z.string().regex(/^[\w.-]{1,64}$/, 'must be an id').describe("A token's id"),
  move: z.string().regex(/^[0-9a-f]{16,64}$/, 'must be an id').describe('The id that the source gave to a move'),
}

/** The parameters of a path such as /v1/projects/{project}. */
export function parametersOf(path: string): string[] {
  return [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]!)
}

/** A switch in a query: `?force`, `?force=true`. */
export const FLAG = (what: string): z.ZodType<boolean, string | undefined> =>
  z.enum(['', 'true', 'false']).optional().transform((text) => text === '' || text === 'true').describe(what)

/** How long to wait, in ms: `?wait=5s`. */
export const WAIT = (what: string): z.ZodType<number | undefined, string | undefined> => {
  const most = `${API_WAIT_MS_MAX / 1000}s`
  return z.string().max(20)
    .refine((text) => (parseDuration(text) ?? Infinity) <= API_WAIT_MS_MAX * 1e6,
      `must be a duration of ${most} at most`)
    .transform((text) => parseDuration(text)! / 1e6).optional().describe(`${what}: a duration of ${most} at most`)
}

/** A whole number in a query. */
export const COUNT = (what: string, most: number): z.ZodType<number | undefined, string | undefined> =>
  z.string().regex(/^\d{1,15}$/, 'must be a whole number').transform(Number)
    .refine((value) => value <= most, `must be ${most} at most`).optional().describe(what)

/** Every list's. */
export const PAGE = {
  limit: COUNT(`Most items of one answer (default and most: ${API_LIST_ITEMS_MAX})`, API_LIST_ITEMS_MAX),
  pageToken: z.string().max(1024).optional().describe('nextPageToken of the answer before: the items after it'),
}
export const PAGED = z.strictObject(PAGE)

/** A schema of a list's answer. */
export const listOf = (item: z.ZodType): z.ZodType =>
  z.object({ items: z.array(item), nextPageToken: z.exactOptional(z.string()) })

/**
 * One page of a list, in the order of `keyOf`, which is unique. Throws REQUEST_INVALID for a token that isn't ours. An
 * item that comes or goes between two pages moves no other one.
 */
export function page<T>(items: readonly T[], keyOf: (item: T) => string,
  { limit = API_LIST_ITEMS_MAX, pageToken }: { limit?: number | undefined; pageToken?: string | undefined }): Answer {
  const after = pageToken === undefined ? '' : readToken(pageToken)
  const sorted = items.map((item) => ({ key: keyOf(item), item }))
    .filter(({ key }) => key > after).sort((a, b) => a.key < b.key ? -1 : 1)
  const shown = sorted.slice(0, limit)
  const next = shown.length < sorted.length ? { nextPageToken: writeToken(shown.at(-1)?.key ?? after) } : {}
  return ok({ items: shown.map(({ item }) => item), ...next })
}

function writeToken(key: string): string { return Buffer.from(`k${key}`).toString('base64url') }

function readToken(token: string): string {
  const text = Buffer.from(token, 'base64url').toString()
  if (!text.startsWith('k') || writeToken(text.slice(1)) !== token) {
    throw new InvalidRequest([{ in: 'query', pointer: '/pageToken', detail: "it isn't a token of such a list" }])
  }
  return text.slice(1)
}

/** Answers with what was asked for, with what was made, with nothing but success. */
export function ok(value: unknown, headers: Answer['headers'] = {}): Answer {
  return { status: 200, json: value, headers }
}
export function created(value: unknown, headers: Answer['headers'] = {}): Answer {
  return { status: 201, json: value, headers }
}
/** Long work has begun: where it can be followed. */
export function accepted(operation: { readonly id: string }): Answer {
  return { status: 202, json: operation, headers: { location: `/v1/operations/${operation.id}` } }
}
export const DONE: Answer = { status: 204 }
