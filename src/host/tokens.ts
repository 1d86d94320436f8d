// host/tokens.ts: tokens by which clients say who they are.
//
// A token is 32 random bytes, told once. What is kept is its SHA-256: who reads the state can't use the tokens in it.
// It needs no slow hash, as there is nothing to guess. It is found by its hash, which who guesses can't steer, so that
// the time of a look-up tells nothing.

import { createHash, randomBytes } from 'node:crypto'
import { CellarError } from '../base/errors.ts'
import { TOKENS_MAX } from '../base/limits.ts'
import type { Actor, Scope, TokenView } from './operator.ts'
import type { TokenRow } from './rows.ts'
import { NAME } from './spec.ts'
import type { Store } from './store.ts'

const PREFIX = 'cellar_'
const TOKEN = /^cellar_[\w-]{43}$/
const USE_WRITTEN_MS_MIN = 60_000

/** All tokens of a host. */
export class Tokens {
  readonly #store: Store
  readonly #byHash = new Map<string, TokenRow>()

  /** From the rows of the store. */
  constructor(store: Store, rows: readonly TokenRow[]) {
    this.#store = store
    for (const row of rows) this.#byHash.set(row.hash, row)
  }

  /** In the order of their creation. */
  list(): TokenView[] {
    return [...this.#byHash.values()].map(viewOf)
  }

  /** Makes a token; resolves when it is committed. Throws NAME_INVALID, EXISTS, REQUEST_INVALID. */
  async create(name: string, scope: Scope, { project, expiresAt }: Pick<TokenView, 'project' | 'expiresAt'>):
  Promise<TokenView & { readonly token: string }> {
    if (!NAME.safeParse(name).success) throw new CellarError('NAME_INVALID', ['token', name])
    const now = Date.now()
    if (expiresAt !== undefined && expiresAt <= now) {
      throw new CellarError('REQUEST_INVALID', ['the token would have expired already'])
    }
    if (this.#byHash.size >= TOKENS_MAX) {
      throw new CellarError('REQUEST_INVALID', [`there are ${TOKENS_MAX} tokens already`])
    }
    if ([...this.#byHash.values()].some((row) => row.name === name)) throw new CellarError('EXISTS', ['token', name])
    const token = PREFIX + randomBytes(32).toString('base64url')
    const row: TokenRow = { id: randomBytes(6).toString('hex'), name, hash: hashOf(token), scope,
      project: project ?? null, createdAt: now, expiresAt: expiresAt ?? null, lastUsedAt: null }
    // Before it is committed, as its name is taken now. Nobody knows the token yet.
    this.#byHash.set(row.hash, row)
    try {
      await this.#store.commit((tx) => tx.putToken(row))
    } catch (error) {
      this.#byHash.delete(row.hash)
      throw error
    }
    return { ...viewOf(row), token }
  }

  /** Resolves when it is good for nothing any more. Throws NOT_FOUND. */
  async remove(id: string): Promise<void> {
    const row = [...this.#byHash.values()].find((one) => one.id === id)
    if (row === undefined) throw new CellarError('NOT_FOUND', ['token', id])
    // First: who uses it meanwhile would note that behind the removal, and it would be there again.
    this.#byHash.delete(row.hash)
    try {
      await this.#store.commit((tx) => tx.deleteToken(id))
    } catch (error) {
      this.#byHash.set(row.hash, row)
      throw error
    }
  }

  /** Who has this token. Throws UNAUTHENTICATED. */
  authenticate(token: string): Actor {
    const refuse = (why: string): never => { throw new CellarError('UNAUTHENTICATED', [why]) }
    if (!TOKEN.test(token)) return refuse('this is no token')
    const row = this.#byHash.get(hashOf(token))
    if (row === undefined) return refuse('there is no such token')
    const now = Date.now()
    if (row.expiresAt !== null && now >= row.expiresAt) return refuse(`the token "${row.name}" has expired`)
    if (Math.abs(now - (row.lastUsedAt ?? 0)) >= USE_WRITTEN_MS_MIN) this.#used({ ...row, lastUsedAt: now })
    return { name: `token:${row.name}`, scope: row.scope, ...(row.project === null ? {} : { project: row.project }) }
  }

  #used(row: TokenRow): void {
    this.#byHash.set(row.hash, row)
    // Nobody waits for it.
    this.#store.commit((tx) => { if (this.#byHash.has(row.hash)) tx.putToken(row) }).catch(() => {})
  }
}

function hashOf(token: string): string {
  return createHash('sha256').update(token).digest('hex')
}

function viewOf({ id, name, scope, project, createdAt, expiresAt, lastUsedAt }: TokenRow): TokenView {
  return { id, name, scope, createdAt, ...(project === null ? {} : { project }),
    ...(expiresAt === null ? {} : { expiresAt }), ...(lastUsedAt === null ? {} : { lastUsedAt }) }
}
