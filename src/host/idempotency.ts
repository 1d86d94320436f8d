// host/idempotency.ts: a request that is sent again with its key gets the answer of the first time.
//
// The answer is kept for a day, unless others need the room (draft-ietf-httpapi-idempotency-key). An error isn't:
// the request may succeed when it is sent again. Who asks again while the first is under way is told so. If the host
// ends between the work and the commit of its answer, the key is free again: the work then finds what it did the first
// time (EXISTS), as without a key. Keys and fingerprints are kept as digests, as clients choose how long they are.

import { createHash } from 'node:crypto'
import { CellarError } from '../base/errors.ts'
import { IDEMPOTENCY_BYTES_MAX, IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_MS_MAX } from '../base/limits.ts'
import type { AnswerRow } from './rows.ts'
import type { Store } from './store.ts'

/** The answers of one host. */
export class Idempotency {
  readonly #store: Store
  /** Oldest first. */
  readonly #answers = new Map<string, AnswerRow>()
  /** Fingerprints by the keys of what is under way. */
  readonly #busy = new Map<string, string>()
  #bytes = 0

  /** From the rows of the store. */
  constructor(store: Store, rows: readonly AnswerRow[]) {
    this.#store = store
    for (const row of [...rows].sort((a, b) => a.createdAt - b.createdAt)) {
      this.#answers.set(row.key, row)
      this.#bytes += bytesOf(row)
    }
  }

  /**
   * Runs `work` once for a key, and answers what it answered then, as JSON has it. `key`: with who asks in it, as keys
   * of different clients may be the same; `fingerprint`: of the request. Throws IDEMPOTENCY_KEY_REUSED,
   * IDEMPOTENCY_KEY_BUSY, and what `work` throws.
   */
  async once<T>(given: string, fingerprint: string, work: () => Promise<T>): Promise<T> {
    const key = digestOf(given)
    const print = digestOf(fingerprint)
    const known = this.#fresh(key)
    const before = known?.fingerprint ?? this.#busy.get(key)
    if (before !== undefined && before !== print) throw new CellarError('IDEMPOTENCY_KEY_REUSED', [given])
    if (known !== undefined) return (known.result === null ? undefined : JSON.parse(known.result)) as T
    if (before !== undefined) throw new CellarError('IDEMPOTENCY_KEY_BUSY', [given])
    this.#busy.set(key, print)
    try {
      const value = await work()
      await this.#keep({ key, fingerprint: print, result: JSON.stringify(value) ?? null, createdAt: Date.now() })
      return value
    } finally {
      this.#busy.delete(key)
    }
  }

  #fresh(key: string): AnswerRow | undefined {
    const row = this.#answers.get(key)
    return row !== undefined && isFresh(row) ? row : undefined
  }

  async #keep(row: AnswerRow): Promise<void> {
    // An older answer for this key has its place at the end from now on.
    this.#forget(row.key)
    this.#answers.set(row.key, row)
    this.#bytes += bytesOf(row)
    const old: string[] = []
    for (const one of this.#answers.values()) {
      if (isFresh(one) && this.#answers.size <= IDEMPOTENCY_KEYS_MAX && this.#bytes <= IDEMPOTENCY_BYTES_MAX) break
      old.push(one.key)
      this.#forget(one.key)
    }
    // If it can't be committed it is answered from memory: the work is done, and this is no error of it.
    await this.#store.commit((tx) => {
      tx.putAnswer(row)
      for (const key of old) tx.deleteAnswer(key)
    }).catch(() => {})
  }

  #forget(key: string): void {
    const row = this.#answers.get(key)
    if (row === undefined) return
    this.#answers.delete(key)
    this.#bytes -= bytesOf(row)
  }
}

// The clock may have been set back meanwhile.
function isFresh({ createdAt }: AnswerRow): boolean {
  return Math.abs(Date.now() - createdAt) < IDEMPOTENCY_MS_MAX
}

function bytesOf({ result }: AnswerRow): number {
  return result?.length ?? 0
}

function digestOf(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
