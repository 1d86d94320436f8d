// image/login.ts: how a registry is answered that asks who we are: Basic, or Bearer with a token from elsewhere.
//
// A 401 names a scheme. With Bearer it also names a *realm*, a URL that gives tokens for a scope, such as
// `repository:team/app:pull`: to anybody, or for a name and password, or for an identity token. The registry chooses
// the realm, so it gets our password by way of it: over TLS, unless the registry itself is spoken to without.

import { CellarError } from '../base/errors.ts'
import type { Credentials } from './credentials.ts'
import { send } from './http.ts'
import { Transient } from './remote.ts'

const ANSWER_BYTES_MAX = 1024 * 1024
const CLIENT = 'cellar'

/** A 401's question. */
type Challenge =
  | { readonly scheme: 'basic' }
  | { readonly scheme: 'bearer'; readonly realm: URL; readonly service: string }

/** Our standing with one registry: the Authorization header of requests to it. */
export class Login {
  readonly #registry: string
  readonly #base: URL
  readonly #scopes: readonly string[]
  readonly #credentials: () => Promise<Credentials | undefined>
  readonly #stallMs: number | undefined
  #header: string | undefined

  /** `base`: the registry's URL. `credentials` are asked for when the registry asks. */
  constructor(
    registry: string, base: URL, scopes: readonly string[], credentials: () => Promise<Credentials | undefined>,
    stallMs: number | undefined,
  ) {
    this.#registry = registry
    this.#base = base
    this.#scopes = scopes
    this.#credentials = credentials
    this.#stallMs = stallMs
  }

  /** What to send; undefined as long as nothing was asked for. */
  get header(): string | undefined { return this.#header }

  /** Answers a 401: a new header, or false if there is none to try. Throws REGISTRY_DENIED, REGISTRY_FAILED. */
  async answer(challenge: string | null, signal: AbortSignal | undefined): Promise<boolean> {
    const parsed = this.#parse(challenge ?? '')
    if (parsed === undefined) return false
    const credentials = await this.#credentials()
    if (parsed.scheme === 'bearer') {
      this.#header = `Bearer ${await this.#token(parsed.realm, parsed.service, credentials, signal)}`
      return true
    }
    const header = credentials === undefined || !('username' in credentials) ? undefined : basic(credentials)
    if (header === undefined || header === this.#header) return false
    this.#header = header
    return true
  }

  #parse(challenge: string): Challenge | undefined {
    const parameters = new Map([...challenge.matchAll(/([a-z]+)="([^"]*)"/gi)].map(([, key, value]) =>
      [key!.toLowerCase(), value!]))
    if (!/(?:^|[\s,])bearer\s/i.test(challenge)) {
      return /(?:^|[\s,])basic\b/i.test(challenge) ? { scheme: 'basic' } : undefined
    }
    const text = parameters.get('realm') ?? ''
    const realm = URL.canParse(text) ? new URL(text) : undefined
    const isSafe = realm?.protocol === 'https:' || (realm?.protocol === 'http:' && this.#base.protocol === 'http:')
    if (realm === undefined || !isSafe || realm.username !== '' || realm.password !== '') {
      throw this.#failed('it sends us elsewhere for a token, to a place that is no safe one')
    }
    return { scheme: 'bearer', realm, service: parameters.get('service') ?? '' }
  }

  async #token(realm: URL, service: string, credentials: Credentials | undefined, signal: AbortSignal | undefined):
  Promise<string> {
    const url = new URL(realm)
    const identity = credentials?.identityToken
    const form = new URLSearchParams()
    const parameters = identity === undefined ? url.searchParams : form
    if (service !== '') parameters.set('service', service)
    if (identity === undefined) for (const scope of this.#scopes) parameters.append('scope', scope)
    else form.set('scope', this.#scopes.join(' '))
    if (identity !== undefined) {
      form.set('grant_type', 'refresh_token')
      form.set('client_id', CLIENT)
      form.set('refresh_token', identity)
    }
    const answer = await send(url, identity === undefined
      ? { method: 'GET', signal, headers: credentials !== undefined && 'username' in credentials
        ? { authorization: basic(credentials) } : {} }
      : { method: 'POST', signal, headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: Buffer.from(form.toString()) }, this.#stallMs)
    const { status } = answer
    const body = await answer.all(ANSWER_BYTES_MAX)
    if (status === 429 || status >= 500) throw new Transient(`its token server answers with status ${status}`)
    if (status === 401 || status === 403) throw new CellarError('REGISTRY_DENIED', [this.#registry, 'log in'])
    if (status !== 200) throw this.#failed(`its token server answers with status ${status}`)
    const token = tokenOf(body)
    if (token === undefined) throw this.#failed('its token server gives no token')
    return token
  }

  #failed(why: string): CellarError {
    return new CellarError('REGISTRY_FAILED', [this.#registry, 'log in', why])
  }
}

// The token in the answer; undefined if there is none that can stand in a header.
function tokenOf(body: Buffer | undefined): string | undefined {
  try {
    const { token, access_token: other } = JSON.parse(body?.toString('utf8') ?? '') as Record<string, unknown>
    const found = token ?? other
    return typeof found === 'string' && /^[\x21-\x7e]{1,16384}$/.test(found) ? found : undefined
  } catch {
    return undefined
  }
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}
