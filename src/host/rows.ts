// host/rows.ts: what the host keeps in its database: one type a table.
//
// A row is a value: whoever changes one makes another and puts it (transaction.ts). What isn't there is null. Times are
// milliseconds since 1970, sizes bytes. Elsewhere: how a row lies in its table (tables.ts), what the tables look like
// (migrations.ts).

import type { GuestView, OperationView, Phase, Problem, Scope } from './operator.ts'
import type { GuestSpec, PoolSpec } from './spec.ts'

export type ProjectRow = { readonly name: string
  /** The user that its processes run as; null if the host can't choose one. */
  readonly uid: number | null
  readonly createdAt: number }

/** `project` and `name` are unique together. */
export type GuestRow = {
  readonly id: string; readonly project: string; readonly name: string
  readonly spec: GuestSpec
  /** Of the module, and of the image's manifest: `sha256:…`. */
  readonly digest: string; readonly manifestDigest: string
  /** Counts changes of `spec`. */
  readonly generation: number
  readonly desired: 'running' | 'stopped'; readonly phase: Phase
  readonly healthy: boolean | null
  readonly createdAt: number; readonly startedAt: number | null; readonly endedAt: number | null
  readonly restarts: number
  /** Counts its starts. */
  readonly run: number
  /** The cell process that it is in. */
  readonly process: number | null
  readonly exit: NonNullable<GuestView['exit']> | null
  /** Where it is published now. */
  readonly ports: GuestView['ports']
  /** What made it and may remove it: null for one that an operator created by itself. */
  readonly managedBy: string | null
}

export type PoolRow = { readonly project: string; readonly name: string; readonly spec: PoolSpec
  readonly createdAt: number }

export type VolumeRow = { readonly project: string; readonly name: string; readonly sizeBytes: number
  readonly createdAt: number; readonly clonedFrom: string | null
  readonly state: 'ready' | 'creating' | 'deleting' }

export type NetworkRow = { readonly project: string; readonly name: string; readonly createdAt: number }

export type SecretRow = { readonly project: string; readonly name: string
  /** Sealed (secrets.ts). */
  readonly value: Uint8Array
  readonly createdAt: number }

export type ImageNameRow = {
  /** `NAME:TAG`. */
  readonly name: string
  /** Of the manifest. */
  readonly digest: string
  readonly createdAt: number }

/** A cell process. Its id is never used again. `pid`: 0 until it is started. */
export type ProcessRow = { readonly id: number; readonly project: string; readonly pid: number
  readonly createdAt: number }

export type TokenRow = { readonly id: string; readonly name: string
  /** SHA-256 of the token, in hex. */
  readonly hash: string
  readonly scope: Scope; readonly project: string | null
  readonly createdAt: number; readonly expiresAt: number | null; readonly lastUsedAt: number | null }

export type OperationRow = { readonly id: string; readonly kind: OperationView['kind']; readonly target: string
  readonly status: OperationView['status']; readonly stage: string
  readonly progress: NonNullable<OperationView['progress']> | null
  readonly error: Problem | null
  readonly result: unknown
  readonly createdAt: number; readonly updatedAt: number; readonly by: string }

/** What was answered to a request with an idempotency key. Key and fingerprint are digests. */
export type AnswerRow = { readonly key: string; readonly fingerprint: string
  /** JSON; null if there was nothing to answer. */
  readonly result: string | null
  readonly createdAt: number }
