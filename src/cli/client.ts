// cli/client.ts: what commands say to a host: HTTP over its Unix socket, or over TCP with a token or a certificate.
//
// Answers are JSON; lists come in pages and are read to their end; logs and events come line by line; what went wrong
// comes as a problem (RFC 9457), which is told as our own errors are. A connection is used once: a command asks little,
// and ends.

import { readFileSync } from 'node:fs'
import { request as requestHttp, type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http'
import { request as requestHttps } from 'node:https'
import type { Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import type { Problem } from '../host/operator.ts'
import { addressOf, type Address } from './address.ts'
import { ToldError } from './told.ts'

/** Of a URL. What is undefined isn't sent; an empty text is a switch. */
export type Query = Readonly<Record<string, string | readonly string[] | undefined>>
/** `body`: sent as JSON if `type` isn't given. */
export type Ask = { readonly query?: Query; readonly body?: unknown; readonly type?: string
  readonly accept?: string; readonly ifMatch?: string; readonly signal?: AbortSignal }

/** A line that nobody would write: one that is longer ends the stream. */
const LINE_CHARS_MAX = 16 * 1024 * 1024
const PROBLEM_BYTES_MAX = 1024 * 1024

/** The host that flags, environment and contexts name: nothing is asked of it yet. */
export async function clientFor(flags: Readonly<Partial<Record<string, readonly string[]>>>): Promise<Client> {
  return new Client(await addressOf(flags))
}

/** A host, from outside. */
export class Client {
  readonly address: Address

  constructor(address: Address) { this.address = address }

  get project(): string { return this.address.project }

  /** A path below the project: `/v1/projects/PROJECT/guests/web`. Parts are escaped. */
  path(...parts: readonly string[]): string {
    return `/v1/projects/${[this.project, ...parts].map(encodeURIComponent).join('/')}`
  }

  /** Asks, and reads the answer as JSON; undefined if there is none. Throws ToldError, HOST_UNREACHABLE. */
  async ask<T = unknown>(method: string, path: string, ask: Ask = {}): Promise<T> {
    const answer = await this.open(method, path, ask)
    const text = await this.#read(answer)
    return (text === '' ? undefined : JSON.parse(text)) as T
  }

  /** All items of a list, page by page. */
  async list<T>(path: string, query: Query = {}): Promise<T[]> {
    const items: T[] = []
    for (let pageToken: string | undefined; ;) {
      const page = await this.ask<{ items: T[]; nextPageToken?: string }>('GET', path,
        { query: { ...query, pageToken } })
      items.push(...page.items)
      pageToken = page.nextPageToken
      if (pageToken === undefined) return items
    }
  }

  /** Values that come line by line: NDJSON, or the `data` of server-sent events. Ends when the host ends it. */
  async *lines<T>(path: string, { query, signal, accept }: Ask & { accept: string }): AsyncGenerator<T> {
    const answer = await this.open('GET', path, { ...(query === undefined ? {} : { query }), accept,
      ...(signal === undefined ? {} : { signal }) })
    const isEvents = answer.headers['content-type']?.startsWith('text/event-stream') === true
    let rest = ''
    answer.setEncoding('utf8')
    try {
      for await (const chunk of answer as AsyncIterable<string>) {
        const lines = (rest + chunk).split('\n')
        rest = lines.pop()!
        if (rest.length > LINE_CHARS_MAX) throw this.#unreachable('it sent a line without end')
        for (const line of lines) {
          const text = isEvents ? /^data: ?(.*)$/.exec(line)?.[1] : line
          if (text !== undefined && text !== '') yield JSON.parse(text) as T
        }
      }
    } catch (cause) {
      if (signal?.aborted === true) return
      throw cause instanceof CellarError ? cause : this.#unreachable((cause as Error).message, cause)
    }
  }

  /** Asks: the answer with its body unread. Throws what the host says is wrong, HOST_UNREACHABLE. */
  async open(method: string, path: string, { query = {}, body, type, accept, ifMatch, signal }: Ask = {}):
  Promise<IncomingMessage> {
    const isJson = body !== undefined && type === undefined
    const isStream = typeof body === 'object' && body !== null && 'pipe' in body
    const headers = {
      accept: accept ?? 'application/json',
      ...(body === undefined ? {} : { 'content-type': type ?? 'application/json' }),
      ...(ifMatch === undefined ? {} : { 'if-match': ifMatch }),
      // Else who refuses it before its end closes at once, and our next piece fails before the refusal is read.
      ...(isStream ? { connection: 'keep-alive' } : {}),
    }
    const request = this.#request({ method, path: path + queryText(query), headers,
      ...(signal === undefined ? {} : { signal }) })
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    request.on('response', resolve)
    request.on('error', (cause) => reject(this.unreachable(cause)))
    if (isJson) request.end(JSON.stringify(body))
    else if (isStream) pass(body as Readable, request, reject)
    else request.end(body)
    const answer = await promise
    if ((answer.statusCode ?? 0) < 300) return answer
    const text = await this.#read(answer, PROBLEM_BYTES_MAX)
    request.destroy()
    throw this.#problem(answer.statusCode ?? 0, text)
  }

  /** The error to tell when a connection fails. */
  unreachable(cause: Error): CellarError { return this.#unreachable(whyOf(cause), cause) }

  /** Where a WebSocket to the host goes, and with what: for the package ws. */
  socket(path: string, query: Query): { url: string; options: object } {
    const { socket, url } = this.address
    const place = socket !== undefined ? `ws+unix:${socket}:` : `${url!.origin.replace(/^http/, 'ws')}${prefixOf(url!)}`
    return { url: `${place}${path}${queryText(query)}`, options: { headers: this.#identity(), ...this.#secrets() } }
  }

  #request(options: RequestOptions & { headers: Record<string, string> }): ClientRequest {
    const { socket, url } = this.address
    const headers = { ...options.headers, ...this.#identity() }
    if (socket !== undefined) return requestHttp({ ...options, headers, socketPath: socket, agent: false })
    const all = { ...options, headers, agent: false, host: url!.hostname.replace(/^\[|\]$/g, ''), port: url!.port,
      path: prefixOf(url!) + options.path!, ...this.#secrets() }
    return url!.protocol === 'https:' ? requestHttps(all) : requestHttp(all)
  }

  #identity(): Record<string, string> {
    const { token } = this.address
    return token === undefined ? {} : { authorization: `Bearer ${token}` }
  }

  #secrets(): { ca?: Buffer; cert?: Buffer; key?: Buffer } {
    const { ca, cert, key } = this.address
    try {
      return Object.fromEntries(Object.entries({ ca, cert, key }).filter(([, path]) => path !== undefined)
        .map(([name, path]) => [name, readFileSync(path!)]))
    } catch (cause) {
      throw this.#unreachable((cause as Error).message, cause)
    }
  }

  async #read(answer: IncomingMessage, most = Infinity): Promise<string> {
    const chunks: Buffer[] = []
    let length = 0
    try {
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        length += chunk.length
        if (length > most) break
        chunks.push(chunk)
      }
    } catch (cause) {
      throw this.#unreachable((cause as Error).message, cause)
    }
    return Buffer.concat(chunks).toString()
  }

  #problem(status: number, text: string): Error {
    let problem: Partial<Problem> | null
    try {
      problem = JSON.parse(text) as Partial<Problem> | null
    } catch {
      problem = null
    }
    const { detail, code, hint } = problem ?? {}
    if (typeof detail !== 'string' || typeof code !== 'string') {
      return this.#unreachable(`it answered with status ${status}`)
    }
    return new ToldError({ message: printable(detail, 1000), code, hint: printable(String(hint ?? ''), 1000), exit: 1 })
  }

  #unreachable(why: string, cause?: unknown): CellarError {
    return new CellarError('HOST_UNREACHABLE', [this.address.text, printable(why, 200)], { cause })
  }
}

/** Sends a stream as a request's body. If the host answers before its end, the answer counts. */
function pass(body: Readable, request: ClientRequest, reject: (error: unknown) => void): void {
  body.on('error', (error) => {
    reject(error)
    request.destroy()
  })
  body.pipe(request)
}

function whyOf(cause: Error): string {
  const { code } = cause as NodeJS.ErrnoException
  if (code === 'ENOENT') return 'no socket is there'
  if (code === 'ECONNREFUSED') return 'nobody listens there'
  if (code === 'DEPTH_ZERO_SELF_SIGNED_CERT' || code === 'SELF_SIGNED_CERT_IN_CHAIN' ||
    code === 'UNABLE_TO_VERIFY_LEAF_SIGNATURE' || code === 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY') {
    return "its certificate is from nobody that we trust: 'cellar context create NAME --host ADDRESS --ca FILE'"
  }
  return code === 'EACCES' ? 'you may not use that socket' : cause.message
}

/** The path before ours, if the host is behind a proxy. */
function prefixOf(url: URL): string { return url.pathname.replace(/\/$/, '') }

function queryText(query: Query): string {
  const params = new URLSearchParams()
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined) for (const one of [value].flat()) params.append(name, one)
  }
  return params.size === 0 ? '' : `?${params.toString()}`
}
