// api/body.ts: bodies of requests: bounded in size, time, depth and number of values before anything is made of them.
//
// JSON is read as a whole, at most 1 MiB of it, in a bounded time, and scanned once before it is parsed: what nests too
// deep would overflow the stack of whoever walks it, what has too many values would keep the event loop. Modules and
// archives are handed on as they come, slowed to what their reader takes, and cut off beyond their limit.

import { Readable } from 'node:stream'
import type { ReadableStream as NodeStream } from 'node:stream/web'
import { CellarError } from '../base/errors.ts'
import {
  API_BODY_MS_MAX, API_JSON_BYTES_MAX, API_JSON_DEPTH_MAX, API_JSON_VALUES_MAX,
} from '../base/limits.ts'
import { formatSize } from '../base/units.ts'
import { InvalidRequest, issuesOf } from './problem.ts'
import type { Body } from './route.ts'

/** What a route's handler gets, and the bytes that it was made of if they were read as a whole. */
export type ReadBody = { readonly value: unknown; readonly bytes?: Uint8Array }

/**
 * The body of a request. `timeoutMs`: for a small one in all, for a large one between pieces. Throws REQUEST_INVALID,
 * REQUEST_TOO_LARGE, REQUEST_SLOW, MEDIA_TYPE_WRONG.
 */
export async function readBody(request: Request, body: Body<unknown>, timeoutMs = API_BODY_MS_MAX): Promise<ReadBody> {
  const type = request.headers.get('content-type')
  if (body.kind === 'json') {
    const all = await readAll(request, API_JSON_BYTES_MAX, timeoutMs)
    if (all.length > 0 && !isJson(type)) throw new CellarError('MEDIA_TYPE_WRONG', [type ?? '', 'application/json'])
    return { value: check(body, all.length === 0 && body.optional === true ? {} : parse(all)), bytes: all }
  }
  const essence = type?.split(';')[0]!.trim().toLowerCase() ?? body.type
  if (essence !== body.type && essence !== 'application/octet-stream') {
    throw new CellarError('MEDIA_TYPE_WRONG', [type ?? '', body.type])
  }
  if (body.kind === 'bytes') return { value: await readAll(request, body.bytesMax, timeoutMs) }
  if (Number(request.headers.get('content-length') ?? 0) > body.bytesMax) throw tooLarge(body.bytesMax)
  return { value: Readable.from(pieces(request, body.bytesMax, timeoutMs, 'each'), { objectMode: false }) }
}

function isJson(type: string | null): boolean {
  const essence = type?.split(';')[0]!.trim().toLowerCase()
  return essence === 'application/json' || essence?.endsWith('+json') === true
}

function check(body: Body<unknown> & { kind: 'json' }, value: unknown): unknown {
  const result = body.schema.safeParse(value)
  if (!result.success) throw new InvalidRequest(issuesOf(result.error, 'body'))
  return result.data
}

async function readAll(request: Request, bytesMax: number, timeoutMs: number): Promise<Uint8Array> {
  if (Number(request.headers.get('content-length') ?? 0) > bytesMax) throw tooLarge(bytesMax)
  const parts: Uint8Array[] = []
  for await (const part of pieces(request, bytesMax, timeoutMs, 'all')) parts.push(part)
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts)
}

/** Pieces of the body. It is left alone, unread, when there is too much of it or it comes too slowly. */
async function* pieces(request: Request, bytesMax: number, timeoutMs: number, per: 'each' | 'all'):
AsyncGenerator<Uint8Array> {
  if (request.body === null) return
  const reader = (request.body as unknown as NodeStream<Uint8Array>).getReader()
  let isSlow = false
  const arm = (): NodeJS.Timeout => setTimeout(() => {
    isSlow = true
    reader.cancel().catch(() => {})
  }, timeoutMs)
  let timer = arm()
  let size = 0
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw new CellarError('REQUEST_INVALID', ['its body breaks off'], { cause: error })
      })
      if (isSlow) throw new CellarError('REQUEST_SLOW', ['the body'])
      if (done) return
      size += value.length
      if (size > bytesMax) throw tooLarge(bytesMax)
      // The time that our own reader takes isn't the client's.
      if (per === 'each') clearTimeout(timer)
      yield value
      if (per === 'each') timer = arm()
    }
  } finally {
    clearTimeout(timer)
    reader.cancel().catch(() => {})
  }
}

function tooLarge(bytesMax: number): CellarError {
  return new CellarError('REQUEST_TOO_LARGE', ['a body', formatSize(bytesMax)])
}

function parse(bytes: Uint8Array): unknown {
  bound(bytes)
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as unknown
  } catch (error) {
    const why = error instanceof SyntaxError ? "it isn't JSON" : "it isn't UTF-8"
    throw new InvalidRequest([{ in: 'body', pointer: '', detail: why }])
  }
}

const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, OPEN = 0x5b, CLOSE = 0x5d, OPEN_BRACE = 0x7b, CLOSE_BRACE = 0x7d

/** Refuses what nests too deep or has too many values. It needn't be JSON: strings are skipped, brackets counted. */
function bound(bytes: Uint8Array): void {
  let depth = 0, values = 0, inString = false
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!
    if (inString) {
      if (byte === BACKSLASH) i++
      else if (byte === QUOTE) inString = false
    } else if (byte === QUOTE) inString = true
    else if (byte === COMMA) values++
    else if (byte === OPEN || byte === OPEN_BRACE) depth++
    else if (byte === CLOSE || byte === CLOSE_BRACE) depth--
    if (depth > API_JSON_DEPTH_MAX) {
      throw new CellarError('REQUEST_TOO_LARGE', ['a body', `${API_JSON_DEPTH_MAX} levels`])
    }
    if (values > API_JSON_VALUES_MAX) {
      throw new CellarError('REQUEST_TOO_LARGE', ['a body', `${API_JSON_VALUES_MAX} values`])
    }
  }
}
