// image/registry.ts: one repository of a registry: the OCI distribution protocol, as far as pull and push need it.
//
// Everything that a registry says is a stranger's word: manifests and blobs are checked against digests by who asked
// for them, sizes are bounded, texts of errors made printable. It may send us elsewhere for blobs and uploads (to HTTP
// and HTTPS only, never from TLS to none): there our Authorization header doesn't go. Plain HTTP is for this machine,
// and for registries that the operator lists.

import { createReadStream } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { IMAGE_MANIFEST_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import { credentialsFor } from './credentials.ts'
import { send, type Answer, type Request } from './http.ts'
import { digestOf, MANIFEST_TYPES, type Descriptor } from './image.ts'
import { Login } from './login.ts'
import { isDigest, type Reference } from './reference.ts'
import { registryFailed, Transient, withRetries, type Remote, type Watch } from './remote.ts'

const REDIRECTS_MAX = 5
/** A blob beyond this is sent in pieces of it: a line that breaks costs one piece. */
const CHUNK_BYTES = 16 * 1024 * 1024
const ERROR_BYTES_MAX = 64 * 1024

/** How registries are spoken to. */
export type RegistryOptions = {
  /** Registries, HOST[:PORT], to be spoken to without TLS. */
  readonly insecure?: readonly string[]
  /** In place of the process's environment: HOME, DOCKER_CONFIG, PATH for credential helpers. */
  readonly env?: NodeJS.ProcessEnv
  readonly stallMs?: number
  readonly backoffMs?: number
  readonly chunkBytes?: number
}

/** A reference that names its registry. */
export type RegistryReference = Reference & { readonly registry: string }

type Call = Omit<Request, 'method' | 'signal'> & { readonly method?: Request['method'] }

/** The repository that `reference` names. `push`: to write, too; `from`: other repositories, to take blobs from. */
export class Registry implements Remote {
  readonly name: string
  readonly backoffMs: number | undefined
  readonly #base: URL
  readonly #path: string
  readonly #login: Login
  readonly #stallMs: number | undefined
  readonly #chunkBytes: number

  constructor(
    { registry, path }: RegistryReference, push: boolean, from: string | undefined, options: RegistryOptions = {},
  ) {
    const { insecure = [], env, stallMs, backoffMs, chunkBytes = CHUNK_BYTES } = options
    const isPlain = isThisMachine(registry) || insecure.includes(registry)
    this.name = registry
    this.backoffMs = backoffMs
    const host = registry === 'docker.io' ? 'registry-1.docker.io' : registry
    this.#base = new URL(`${isPlain ? 'http' : 'https'}://${host}`)
    this.#path = path
    this.#stallMs = stallMs
    this.#chunkBytes = chunkBytes
    const scopes = [`repository:${path}:${push ? 'pull,push' : 'pull'}`]
    if (from !== undefined) scopes.push(`repository:${from}:pull`)
    this.#login = new Login(registry, this.#base, scopes, () => credentialsFor(registry, env), stallMs)
  }

  /** Asks whether a registry is there, and logs in if it wants that. Throws REGISTRY_FAILED, REGISTRY_DENIED. */
  async ping(signal?: AbortSignal): Promise<void> {
    await this.#retried('reach the registry', signal, async () => {
      const answer = await this.#call('reach the registry', '/v2/', {}, signal)
      answer.discard()
      if (answer.status !== 200) throw this.#failed('reach the registry', `it answers with status ${answer.status}`)
    })
  }

  /** See Remote. Throws IMAGE_DIGEST_WRONG, REGISTRY_FAILED, REGISTRY_DENIED. */
  async readManifest(tagOrDigest: string, signal?: AbortSignal): Promise<Uint8Array> {
    const what = `fetch ${this.#path}${isDigest(tagOrDigest) ? '@' : ':'}${tagOrDigest}`
    return this.#retried(what, signal, async () => {
      const headers = { accept: MANIFEST_TYPES.join(', ') }
      const answer = await this.#call(what, this.#manifest(tagOrDigest), { headers }, signal)
      if (answer.status === 404) throw this.#failed(what, 'it has no such image')
      if (answer.status !== 200) throw await this.#refused(what, answer)
      const bytes = await answer.all(IMAGE_MANIFEST_BYTES_MAX)
      if (bytes === undefined) throw this.#failed(what, `its manifest is larger than ${IMAGE_MANIFEST_BYTES_MAX} bytes`)
      const promised = isDigest(tagOrDigest) ? tagOrDigest : answer.headers.get('docker-content-digest') ?? ''
      const found = digestOf(bytes)
      // A promise of another kind of digest is none for us.
      if (isDigest(promised) && promised !== found) {
        throw new CellarError('IMAGE_DIGEST_WRONG', [`manifest ${this.#path}`, promised, found])
      }
      return bytes
    })
  }

  /** See Remote; `from` of the answer is what was asked for, or 0. */
  async openBlob({ digest }: Descriptor, from: number, signal?: AbortSignal):
  Promise<{ from: number; bytes: AsyncIterable<Uint8Array> }> {
    const what = `fetch ${digest}`
    const headers: Record<string, string> = from > 0 ? { range: `bytes=${from}-` } : {}
    const answer = await this.#call(what, this.#blob(digest), { headers }, signal)
    if (answer.status === 200) return { from: 0, bytes: answer.bytes() }
    const range = /^bytes (\d+)-/.exec(answer.headers.get('content-range') ?? '')
    if (answer.status === 206 && from > 0 && Number(range?.[1]) === from) return { from, bytes: answer.bytes() }
    if (from === 0 || ![206, 416].includes(answer.status)) throw await this.#refused(what, answer)
    // It knows ranges, but not ours.
    answer.discard()
    return this.openBlob({ digest, mediaType: '', size: 0 }, 0, signal)
  }

  /** See Remote. */
  async writeBlob(blob: Descriptor, store: BlobStore, source: string | undefined, watch: Watch): Promise<void> {
    const what = `push ${blob.digest}`
    const { signal } = watch
    const isThere = await this.#retried(what, signal, () => this.#has(what, blob.digest, signal))
    const mounted = isThere || (source !== undefined && await this.#mount(what, blob.digest, source, signal))
    if (!mounted) await this.#upload(what, blob, store.path(blob.digest), watch)
    watch.progress?.(blob.size)
  }

  /** See Remote. */
  async writeManifest(bytes: Uint8Array, mediaType: string, tag: string | undefined, signal?: AbortSignal):
  Promise<void> {
    const to = tag ?? digestOf(bytes)
    const what = `push ${this.#path}${tag === undefined ? '@' : ':'}${to}`
    await this.#retried(what, signal, async () => {
      const answer = await this.#call(what, this.#manifest(to),
        { method: 'PUT', body: bytes, headers: { 'content-type': mediaType } }, signal)
      if (answer.status !== 201 && answer.status !== 200) throw await this.#refused(what, answer)
      answer.discard()
    })
  }

  async #has(what: string, digest: string, signal: AbortSignal | undefined): Promise<boolean> {
    const answer = await this.#call(what, this.#blob(digest), { method: 'HEAD' }, signal)
    answer.discard()
    return answer.status === 200
  }

  // True if the registry takes the blob from another of its repositories. It may also begin an upload: not used then.
  async #mount(what: string, digest: string, source: string, signal: AbortSignal | undefined): Promise<boolean> {
    return this.#retried(what, signal, async () => {
      const query = `?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(source)}`
      const answer = await this.#call(what, `/v2/${this.#path}/blobs/uploads/${query}`, { method: 'POST' }, signal)
      answer.discard()
      return answer.status === 201
    })
  }

  async #upload(what: string, { digest, size }: Descriptor, path: string, watch: Watch): Promise<void> {
    const isWhole = size <= this.#chunkBytes
    // Where the upload goes on, and behind how many bytes. After a failure the registry knows; one piece begins anew.
    let at: { url: URL; offset: number } | undefined
    await this.#retried(what, watch.signal, async () => {
      // It may have taken the whole and been too slow to say so.
      if (at !== undefined && await this.#has(what, digest, watch.signal)) return
      at = at === undefined || isWhole ? undefined : await this.#uploaded(what, at.url, watch.signal)
      at ??= await this.#begin(what, watch.signal)
      if (!isWhole) {
        while (at.offset < size) {
          const end = Math.min(at.offset + this.#chunkBytes, size)
          const answer = await this.#call(what, at.url, {
            method: 'PATCH', ...pieceOf(path, at.offset, end),
            headers: { 'content-type': 'application/octet-stream', 'content-range': `${at.offset}-${end - 1}` },
          }, watch.signal)
          if (answer.status === 404 || answer.status === 416) throw lost(answer)
          if (answer.status !== 202) throw await this.#refused(what, answer)
          answer.discard()
          at = { url: this.#location(what, answer, at.url), offset: end }
          watch.progress?.(end)
        }
      }
      // The rest of the query stays as it is, letter by letter: it may be signed.
      const url = new URL(at.url)
      url.search += `${url.search === '' ? '?' : '&'}digest=${encodeURIComponent(digest)}`
      const answer = await this.#call(what, url, {
        method: 'PUT', ...pieceOf(path, isWhole ? 0 : size, size),
        headers: { 'content-type': 'application/octet-stream' },
      }, watch.signal)
      if (answer.status === 404) throw lost(answer)
      if (answer.status !== 201) throw await this.#refused(what, answer)
      answer.discard()
    }, () => at?.offset ?? 0)
  }

  async #begin(what: string, signal: AbortSignal | undefined): Promise<{ url: URL; offset: number }> {
    const answer = await this.#call(what, `/v2/${this.#path}/blobs/uploads/`, { method: 'POST' }, signal)
    if (answer.status !== 202) throw await this.#refused(what, answer)
    answer.discard()
    return { url: this.#location(what, answer, this.#base), offset: 0 }
  }

  // How much of an upload has arrived; undefined if the registry has forgotten it.
  async #uploaded(what: string, url: URL, signal: AbortSignal | undefined):
  Promise<{ url: URL; offset: number } | undefined> {
    const answer = await this.#call(what, url, {}, signal)
    answer.discard()
    const range = /^(?:bytes=)?0-(\d+)$/.exec(answer.headers.get('range') ?? '')
    if (answer.status !== 204 || range === null) return undefined
    const last = Number(range[1])
    const next = answer.headers.has('location') ? this.#location(what, answer, url) : url
    // "0-0" is nothing, or one byte: never what we send.
    return { url: next, offset: last === 0 ? 0 : last + 1 }
  }

  // One request, logged in and redirected as far as it takes. Answers with any status but 401, 403, 429 and 5xx.
  async #call(what: string, to: string | URL, call: Call, signal: AbortSignal | undefined): Promise<Answer> {
    const { method = 'GET' } = call
    let url = new URL(to, this.#base)
    let asked = false
    for (let redirects = 0; ;) {
      const isOurs = url.origin === this.#base.origin
      const header = isOurs ? this.#login.header : undefined
      const answer = await send(url, { ...call, method, signal,
        headers: { ...call.headers, ...(header === undefined ? {} : { authorization: header }) } }, this.#stallMs)
      const { status, headers } = answer
      if (isOurs && status === 401 && !asked) {
        answer.discard()
        asked = true
        if (await this.#login.answer(headers.get('www-authenticate'), signal)) continue
      }
      if (status === 401 || status === 403) {
        answer.discard()
        throw new CellarError('REGISTRY_DENIED', [this.name, what])
      }
      if (status === 429 || status === 408 || status >= 500) {
        throw new Transient(await reasonOf(answer), retryAfterOf(headers))
      }
      if (![301, 302, 303, 307, 308].includes(status) || !['GET', 'HEAD'].includes(method)) return answer
      answer.discard()
      if (++redirects > REDIRECTS_MAX) throw this.#failed(what, 'it redirects too often')
      url = this.#location(what, answer, url)
    }
  }

  // Where an answer sends us.
  #location(what: string, { headers }: Answer, from: URL): URL {
    const text = headers.get('location') ?? ''
    const url = URL.canParse(text, from.href) ? new URL(text, from) : undefined
    const isSafe = url?.protocol === 'https:' || (url?.protocol === 'http:' && this.#base.protocol === 'http:')
    if (text === '' || url === undefined || !isSafe || url.username !== '' || url.password !== '') {
      throw this.#failed(what, `it sends us to a place that is no safe one: "${printable(text)}"`)
    }
    return url
  }

  async #retried<T>(
    what: string, signal: AbortSignal | undefined, attempt: () => Promise<T>, progress: () => number = () => 0,
  ): Promise<T> {
    try {
      return await withRetries(attempt, { signal, backoffMs: this.backoffMs, progress })
    } catch (error) {
      throw registryFailed(this.name, what, error)
    }
  }

  async #refused(what: string, answer: Answer): Promise<CellarError> {
    return this.#failed(what, await reasonOf(answer))
  }

  #failed(what: string, why: string): CellarError {
    return new CellarError('REGISTRY_FAILED', [this.name, what, why])
  }

  #blob(digest: string): string { return `/v2/${this.#path}/blobs/${digest}` }
  #manifest(to: string): string { return `/v2/${this.#path}/manifests/${to}` }
}

function isThisMachine(registry: string): boolean {
  return /^(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?$/.test(registry)
}

function lost(answer: Answer): Transient {
  answer.discard()
  return new Transient('it has lost its place in the upload')
}

function pieceOf(path: string, start: number, end: number): { body?: () => AsyncIterable<Uint8Array>; length: number } {
  if (start === end) return { length: 0 }
  return { body: () => createReadStream(path, { start, end: end - 1 }), length: end - start }
}

// What an answer says of its failure: a status, and the registry's own words if it has some.
async function reasonOf(answer: Answer): Promise<string> {
  const status = `it answers with status ${answer.status}`
  try {
    const body = await answer.all(ERROR_BYTES_MAX)
    const { errors } = JSON.parse(body?.toString('utf8') ?? '') as { errors?: { code?: unknown; message?: unknown }[] }
    const [first] = errors ?? []
    const words = [first?.code, first?.message].filter((one) => typeof one === 'string').join(': ')
    return words === '' ? status : `${status}, ${printable(words, 200)}`
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError || error instanceof Transient) return status
    throw error
  }
}

// Retry-After: seconds, or a date.
function retryAfterOf(headers: Headers): number | undefined {
  const text = headers.get('retry-after') ?? ''
  const ms = /^\d{1,6}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now()
  return ms > 0 ? ms : undefined
}
