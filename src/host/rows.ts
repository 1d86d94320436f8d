// host/rows.ts: what the host keeps in its database: one type a table.
//
// A row is a value: whoever changes one makes another and puts it (transaction.ts). What isn't there is null. Times are
// milliseconds since 1970, sizes bytes. Elsewhere: how a row lies in its table (tables.ts), what the tables look like
// (migrations.ts).

import type { GuestView, OperationView, Phase, Problem, Scope } from './operator.ts'
import type { LifecycleEvent } from './protocol.ts'
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
  readonly origin: NonNullable<GuestView['origin']> | null
  /** What its next run, or the one that is about to begin, goes on from; null: it begins anew. */
  readonly from: Beginning | null
  /** It is on its way to another host, or from one: nobody may run or remove it meanwhile. */
  readonly move: Move | null
  /** Its number in the networks of its project, from 1 on (services/gateway/addresses.ts). */
  readonly address: number
}

/**
 * A snapshot of the project, or the guest (by id) that it is forked from: such a run can begin with its fork only.
 * `at`: when it stopped there. `wakeAt`: when it is to be woken.
 */
export type Beginning =
  | {
    readonly snapshot: string; readonly event: LifecycleEvent; readonly at: number; readonly wakeAt?: number | undefined
    /** Of a snapshot that has no row. */
    readonly sizes?: Pick<SnapshotRow, 'memoryBytes' | 'newBytes' | 'storedBytes'> | undefined
  }
  | { readonly fork: string }

/** A move that was agreed upon: it is to go on at the peer, which alone knows whether it does. */
export type Move = { readonly id: string; readonly way: 'out'
  /** The address of the other host's API, and who is there: another host at this address knows nothing of it. */
  readonly peer: string; readonly host: string
  /** To be let in there: sealed (secrets.ts), in base64. */
  readonly token?: string | undefined; readonly fingerprint?: string | undefined }

/** A snapshot; `project` and `digest` are its key. */
export type SnapshotRow = { readonly project: string; readonly digest: string
  /** Unique in its project. */
  readonly name: string | null
  /** The name of the guest that it was taken of. */
  readonly guest: string; readonly spec: GuestSpec
  readonly module: string; readonly manifestDigest: string
  readonly memoryBytes: number; readonly newBytes: number; readonly storedBytes: number
  readonly createdAt: number }

export type PoolRow = { readonly project: string; readonly name: string; readonly spec: PoolSpec
  readonly createdAt: number }

export type VolumeRow = { readonly project: string; readonly name: string; readonly sizeBytes: number
  readonly createdAt: number; readonly clonedFrom: string | null; readonly kind: 'folder' | 'disk'
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

/** A guests' process. Its id is never used again. `pid`: 0 until it is started. */
export type ProcessRow = { readonly id: number; readonly project: string; readonly pid: number
  readonly kind: 'cells' | 'machine'
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

/** What was decided of a move to this host (migration_machine.ts). */
export type IncomingRow = { readonly id: string; readonly project: string; readonly state: 'active' | 'dropped'
  /** The guest that it has become. */
  readonly guest: string | null
  readonly why: string; readonly createdAt: number
  /** The source knows it, and has let go of the guest. */
  readonly acknowledgedAt: number | null }

/** Who this host is to others. There is one row. */
export type IdentityRow = { readonly id: string }
