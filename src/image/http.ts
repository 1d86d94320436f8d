// image/http.ts: single HTTP requests to strangers, on Node's fetch: watched, bounded, and never redirected by itself.
//
// A request fails when nothing moves for a while, in either direction; how long it takes as a whole doesn't matter, so
// a slow line is fine. Failures of the network are Transient. Elsewhere: what is asked, and of whom (registry.ts).

import { ReadableStream } from 'node:stream/web'
import { REGISTRY_STALL_MS } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { Transient, Unreachable } from './remote.ts'

/** A request. `body` is made anew for each try. */
export type Request = {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH'
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: (() => AsyncIterable<Uint8Array>) | Uint8Array | undefined
  /** Bytes of a body that is made. */
  readonly length?: number
  readonly signal?: AbortSignal | undefined
}

/** Failures that another try doesn't mend: of names, certificates and protocols. */
const LASTING =
  /^(?:ENOTFOUND|EPROTO|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|ERR_TLS_|ERR_SSL_|HPE_|UND_ERR_HEADERS_OVER)/

/** An answer. Read it or discard it: until then its connection is held. */
export class Answer {
  readonly status: number
  readonly headers: Headers
  readonly #response: Response
  readonly #stall: Stall

  constructor(response: Response, stall: Stall) {
    this.status = response.status
    this.headers = response.headers
    this.#response = response
    this.#stall = stall
  }

  /** The body, once. */
  async *bytes(): AsyncGenerator<Uint8Array> {
    const reader = this.#response.body?.getReader()
    try {
      if (reader === undefined) return
      for (;;) {
        const { done, value } = await this.#stall.during(() => reader.read())
        if (done) return
        yield value
      }
    } finally {
      this.#stall.end()
      await reader?.cancel().catch(() => {})
    }
  }

  /** The body if it has `bytesMax` at most; else undefined. */
  async all(bytesMax: number): Promise<Buffer | undefined> {
    const chunks: Uint8Array[] = []
    let size = 0
    for await (const chunk of this.bytes()) {
      size += chunk.length
      if (size > bytesMax) return undefined
      chunks.push(chunk)
    }
    return Buffer.concat(chunks)
  }

  /** The body isn't wanted. */
  discard(): void {
    this.#stall.end()
  }
}

/** Sends one request. Throws Transient, Unreachable, and what the signal says. */
export async function send(url: URL, request: Request, stallMs: number = REGISTRY_STALL_MS): Promise<Answer> {
  const { method, headers = {}, body, length, signal } = request
  const stall = new Stall(stallMs, signal)
  try {
    const init: RequestInit & { duplex?: 'half' } = {
      method, redirect: 'manual', signal: stall.signal,
      // What is compressed on the way has other lengths and ranges.
      headers: { 'user-agent': 'cellar', 'accept-encoding': 'identity', ...headers,
        ...(length === undefined ? {} : { 'content-length': String(length) }) },
    }
    if (typeof body === 'function') {
      init.body = ReadableStream.from(stall.watched(body())) as globalThis.ReadableStream<Uint8Array<ArrayBuffer>>
      init.duplex = 'half'
    } else if (body !== undefined) {
      init.body = Buffer.from(body)
    }
    return new Answer(await stall.during(() => fetch(url, init)), stall)
  } catch (error) {
    stall.end()
    throw error
  }
}

/** Ends a request on which nothing moves. */
class Stall {
  readonly #stopped = new AbortController()
  readonly #ms: number
  readonly #wanted: AbortSignal | undefined
  readonly signal: AbortSignal
  #timer: NodeJS.Timeout | undefined
  #stalled = false

  constructor(ms: number, wanted: AbortSignal | undefined) {
    this.#ms = ms
    this.#wanted = wanted
    this.signal = wanted === undefined ? this.#stopped.signal : AbortSignal.any([wanted, this.#stopped.signal])
  }

  /** Waits for what the other side does. */
  async during<T>(wait: () => Promise<T>): Promise<T> {
    this.#moved()
    try {
      return await wait()
    } catch (error) {
      this.#wanted?.throwIfAborted()
      if (this.#stalled) throw new Transient(`nothing has moved for ${this.#ms / 1000} s`, undefined, { cause: error })
      throw networkError(error)
    } finally {
      clearTimeout(this.#timer)
    }
  }

  /** A body that is sent: each piece that is asked for is a movement. */
  async *watched(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      this.#moved()
      yield chunk
    }
    this.#moved()
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#stopped.abort()
  }

  #moved(): void {
    clearTimeout(this.#timer)
    if (this.#stopped.signal.aborted) return
    this.#timer = setTimeout(() => {
      this.#stalled = true
      this.#stopped.abort()
    }, this.#ms)
  }
}

function networkError(error: unknown): Error {
  const cause = (error as Error).cause ?? error
  const { code = '', message } = cause as NodeJS.ErrnoException
  const text = printable(REASONS[code] ?? (message || code || String(cause)), 200)
  return LASTING.test(code) ? new Unreachable(text, { cause: error }) : new Transient(text, undefined, { cause: error })
}

const REASONS: Record<string, string> = {
  ECONNREFUSED: 'nobody listens there', ENOTFOUND: 'the host name is unknown',
  ECONNRESET: 'the connection was cut', UND_ERR_SOCKET: 'the connection was cut',
  EPROTO: 'it speaks no TLS', ERR_SSL_WRONG_VERSION_NUMBER: 'it speaks no TLS',
}
