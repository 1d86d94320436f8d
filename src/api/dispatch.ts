// api/dispatch.ts: from a request to its answer: what is the same for all routes.
//
// In this order: who it is for (names, pages), who asks, whether they may, what they ask (path, query, body: checked by
// the route's schemas), then the handler, once if the request has an idempotency key. Whatever is thrown on the way
// becomes a problem. A change is noted in the audit log with its outcome, a refusal too; what unknown clients are
// refused, only so often. Every answer has a request id: the client's if it gives a sane one.
//
// `app` needs no sockets: tests call its `request`. What a connection knows comes as hono's environment (Origin).

import { createHash, randomUUID } from 'node:crypto'
import { Hono, type Context } from 'hono'
import type { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { API_STALL_MS_MAX, API_STRANGERS_MAX } from '../base/limits.ts'
import type { Actor, Operator } from '../host/operator.ts'
import { actorOf, guardBrowser, NOBODY, permit, type Origin } from './auth.ts'
import { readBody } from './body.ts'
import { SESSION_PROTOCOL } from './guest_routes.ts'
import { ApiMetrics } from './metrics.ts'
import { InvalidRequest, issuesOf, answerOf } from './problem.ts'
import { parametersOf, PARAMETERS, type Answer, type Ask, type Route } from './route.ts'
import { ROUTES } from './routes.ts'
import { streamOf } from './stream.ts'

/** A line of the host's log. */
export type LogEntry = { readonly level: 'info' | 'warn' | 'error'; readonly msg: string
  readonly [field: string]: unknown }

export type AppOptions = {
  readonly log?: (entry: LogEntry) => void
  /** Aborted when the API is to end. */
  readonly closing?: AbortSignal
  /** Of streams that are silent. Default: 15 s. */
  readonly heartbeatMs?: number | undefined
  readonly bodyTimeoutMs?: number | undefined
  readonly stallMs?: number | undefined
  /** Counts for /metrics; its own if they aren't given. */
  readonly metrics?: ApiMetrics
}

type Bindings = { Bindings: Origin }
type Shared = Required<Pick<AppOptions, 'log' | 'closing' | 'metrics'>> & {
  readonly operator: Operator; readonly heartbeatMs: number; readonly stallMs: number
  readonly bodyTimeoutMs: number | undefined; readonly strangers: Strangers
}

const HEARTBEAT_MS = 15_000
const REQUEST_ID = /^[\w.:/+=-]{1,128}$/
const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,255}$/
const TRACE_PARENT = /^[\da-f]{2}-([\da-f]{32})-[\da-f]{16}-[\da-f]{2}(?:-.*)?$/

/** The API as hono has it: `request` for tests, `fetch` for servers. */
export function app(operator: Operator, options: AppOptions = {}): Hono<Bindings> {
  const shared: Shared = {
    operator, log: options.log ?? (() => {}), closing: options.closing ?? new AbortController().signal,
    metrics: options.metrics ?? new ApiMetrics(), heartbeatMs: options.heartbeatMs ?? HEARTBEAT_MS,
    stallMs: options.stallMs ?? API_STALL_MS_MAX, bodyTimeoutMs: options.bodyTimeoutMs, strangers: new Strangers(),
  }
  const hono = new Hono<Bindings>()
  for (const route of ROUTES) {
    hono.on(route.method, honoPath(route.path), (context) => new Exchange(shared, context, route).answer())
  }
  for (const path of new Set(ROUTES.map((route) => route.path))) {
    const allowed = ROUTES.filter((route) => route.path === path).map(({ method }) => method).join(', ')
    hono.all(honoPath(path), (context) => new Exchange(shared, context, undefined).refuse(
      new CellarError('METHOD_NOT_ALLOWED', [context.req.method, shown(context), allowed]), { allow: allowed }))
  }
  hono.notFound((context) => new Exchange(shared, context, undefined).refuse(
    new CellarError('ROUTE_NOT_FOUND', [context.req.method, shown(context)])))
  hono.onError((error, context) => new Exchange(shared, context, undefined).refuse(error))
  return hono
}

function honoPath(path: string): string { return path.replace(/\{(\w+)\}/g, ':$1') }

function shown(context: Context<Bindings>): string { return context.req.path.slice(0, 200) }

/** One request and its answer. */
class Exchange {
  readonly #shared: Shared
  readonly #context: Context<Bindings>
  readonly #route: Route | undefined
  readonly #origin: Origin
  readonly #requestId: string
  readonly #started = performance.now()
  readonly #gone = new AbortController()
  #actor: Actor | undefined

  constructor(shared: Shared, context: Context<Bindings>, route: Route | undefined) {
    this.#shared = shared
    this.#context = context
    this.#route = route
    // hono has no environment where a test gives none.
    this.#origin = (context.env as Origin | undefined) ?? {}
    const given = context.req.header('x-request-id') ?? ''
    this.#requestId = REQUEST_ID.test(given) ? given : randomUUID()
  }

  /** What the route answers. */
  async answer(): Promise<Response> {
    const route = this.#route!
    let answer: Answer
    try {
      answer = await this.#run(route)
    } catch (error) {
      const response = this.refuse(error)
      this.#record(route, answerOf(error, this.#requestId).code)
      return response
    }
    this.#record(route, 'ok')
    return this.#finish(this.#respond(answer))
  }

  /** What can't be done. */
  refuse(error: unknown, headers: Readonly<Record<string, string>> = {}): Response {
    const problem = answerOf(error, this.#requestId)
    if (problem.code === 'INTERNAL') this.#log('error', 'request failed', { error: traceOf(error) })
    const more = { ...headers, ...HEADERS_OF[problem.code] }
    return this.#finish(new Response(JSON.stringify(problem), {
      status: problem.status, headers: { 'content-type': 'application/problem+json', ...more },
    }))
  }

  async #run(route: Route): Promise<Answer> {
    const { operator, closing, metrics } = this.#shared
    const { req } = this.#context
    const headers = req.raw.headers
    guardBrowser(this.#origin, headers)
    const actor = route.scope === 'none' ? NOBODY : actorOf(operator, this.#origin, headers)
    this.#actor = actor
    const params = this.#params(route)
    permit(actor, route, params)
    if (this.#origin.upgrade !== undefined && route.socket !== true) {
      throw new CellarError('REQUEST_INVALID', ['there is no WebSocket here'])
    }
    const query = queryOf(route, new URL(req.url).searchParams)
    if (route.socket === true && this.#origin.upgrade === undefined) {
      throw new CellarError('UPGRADE_REQUIRED', [shown(this.#context), SESSION_PROTOCOL])
    }
    const body = route.body === undefined ? { value: undefined }
      : await readBody(req.raw, route.body, this.#shared.bodyTimeoutMs)
    const ask: Ask = {
      operator, actor, params, query, body: body.value, headers, gone: this.#gone.signal,
      unlessClosing: (work) => unlessAborted(work, closing), metrics: () => metrics.text(operator),
    }
    const key = this.#key(route)
    if (key === undefined) return await route.handle(ask)
    const url = new URL(req.url)
    const fingerprint = createHash('sha256').update(`${route.method} ${url.pathname}${url.search}\n`)
      .update(body.bytes ?? '').digest('hex')
    return await operator.once(`${actor.name} ${key}`, fingerprint, async () => await route.handle(ask))
  }

  #params(route: Route): Record<string, string> {
    const found = parametersOf(route.path).map((name) => {
      const result = PARAMETERS[name]!.safeParse(this.#context.req.param(name))
      if (!result.success) {
        throw new InvalidRequest(issuesOf(result.error, 'path').map((issue) => ({ ...issue, pointer: `/${name}` })))
      }
      return [name, result.data] as const
    })
    return Object.fromEntries(found)
  }

  /** The request's idempotency key. Large bodies have none: what they do is the same when it is done twice. */
  #key(route: Route): string | undefined {
    const key = this.#context.req.header('idempotency-key')
    if (key === undefined || !['POST', 'PUT'].includes(route.method) || route.body?.kind === 'stream') return undefined
    const refusal = !IDEMPOTENCY_KEY.test(key) ? 'it must be of 1 to 255 visible ASCII characters'
      : route.unkept === true ? 'this takes none, as its answer is not kept' : undefined
    if (refusal === undefined) return key
    throw new InvalidRequest([{ in: 'header', pointer: '/idempotency-key', detail: refusal }])
  }

  #respond(answer: Answer): Response {
    const { status, headers = {}, session } = answer
    const { upgrade } = this.#origin
    if (session !== undefined && upgrade !== undefined) {
      upgrade.session = session
      return new Response(null) // Its place is taken by the WebSocket.
    }
    if (answer.stream !== undefined) return this.#stream(answer)
    if (answer.text !== undefined) return new Response(answer.text, { status, headers })
    if (answer.json === undefined) return new Response(null, { status, headers })
    return new Response(JSON.stringify(answer.json), {
      status, headers: { 'content-type': 'application/json', ...headers },
    })
  }

  #stream({ status, headers = {}, stream }: Answer): Response {
    if (this.#context.req.raw.method === 'HEAD') {
      this.#gone.abort()
      return new Response(null, { status, headers })
    }
    const { closing, heartbeatMs, stallMs } = this.#shared
    const body = streamOf(stream!, {
      closing, heartbeatMs, stallMs, ended: () => this.#gone.abort(), cut: () => this.#origin.abort?.(),
      failed: (error) => this.#log('error', 'stream failed', { error: traceOf(error) }),
    })
    return new Response(body, { status, headers: { 'x-accel-buffering': 'no', ...headers } })
  }

  /** What every answer has, and what is counted of it. */
  #finish(response: Response): Response {
    const ms = performance.now() - this.#started
    const { headers } = response
    headers.set('x-request-id', this.#requestId)
    headers.set('server-timing', `app;dur=${ms.toFixed(1)}`)
    headers.set('cache-control', 'no-store')
    headers.set('x-content-type-options', 'nosniff')
    if (this.#shared.closing.aborted) headers.set('connection', 'close')
    const route = this.#route
    const status = this.#origin.upgrade?.session === undefined ? response.status : 101
    this.#shared.metrics.observe(route?.method ?? 'any', route?.path ?? 'none', status, ms / 1000)
    this.#log('info', 'request', { method: this.#context.req.method, path: shown(this.#context), status,
      ms: Math.round(ms * 10) / 10 })
    return response
  }

  #log(level: LogEntry['level'], msg: string, fields: Readonly<Record<string, unknown>>): void {
    const traceId = TRACE_PARENT.exec(this.#context.req.header('traceparent') ?? '')?.[1]
    this.#shared.log({ level, msg, ...fields, actor: this.#actor?.name, requestId: this.#requestId,
      ...traceId === undefined ? {} : { traceId } })
  }

  /** Notes a change, done or refused, in the audit log. */
  #record(route: Route, outcome: string): void {
    if (route.method === 'GET' && route.socket !== true) return
    if (this.#actor === undefined && !this.#shared.strangers.mayBeNoted()) return
    try {
      this.#shared.operator.record({ actor: this.#actor?.name ?? 'unknown', action: route.name,
        target: shown(this.#context), outcome, requestId: this.#requestId })
    } catch (error) {
      // What was done is done: its answer mustn't say otherwise.
      this.#log('error', 'audit log failed', { error: traceOf(error) })
    }
  }
}

/** An error for the host's log. */
export function traceOf(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : String(error)
}

/** What some problems say in headers too. */
const HEADERS_OF: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  UNAUTHENTICATED: { 'www-authenticate': 'Bearer' },
  UPGRADE_REQUIRED: { upgrade: 'websocket' },
  IDEMPOTENCY_KEY_BUSY: { 'retry-after': '1' },
  HOST_DRAINING: { 'retry-after': '2' },
}

/** The query, checked. A key that is given twice must be one that may be. Throws REQUEST_INVALID. */
function queryOf(route: Route, given: URLSearchParams): unknown {
  const raw: Record<string, unknown> = Object.create(null) as Record<string, unknown>
  for (const key of new Set(given.keys())) {
    const values = given.getAll(key)
    raw[key] = isMany(route.query.shape[key] as z.ZodType | undefined) || values.length > 1 ? values : values[0]
  }
  const result = route.query.safeParse({ ...raw })
  if (!result.success) throw new InvalidRequest(issuesOf(result.error, 'query'))
  return result.data
}

function isMany(schema: z.ZodType | undefined): boolean {
  const { type, innerType } = (schema?.def ?? {}) as { type?: string; innerType?: z.ZodType }
  return type === 'array' || (innerType !== undefined && isMany(innerType))
}

/** As `work`, or HOST_DRAINING when `signal` says so. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let onAbort: () => void = () => {}
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(new CellarError('HOST_DRAINING', []))
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort)
  })
  try {
    return await Promise.race([work, aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** How many refusals of unknown clients go to the audit log: so many a minute. */
class Strangers {
  #left = API_STRANGERS_MAX
  #until = 0

  mayBeNoted(): boolean {
    const now = performance.now()
    if (now >= this.#until) {
      this.#until = now + 60_000
      this.#left = API_STRANGERS_MAX
    }
    return this.#left-- > 0
  }
}
