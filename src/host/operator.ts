// host/operator.ts: what an operator can ask of a host, and what it answers: the contract between host and API.
//
// The API (src/api) turns requests into these calls and adds nothing of its own; Host (host.ts) does them. Everything
// that changes something takes who asks (for the audit log). Calls throw CellarError; what may take long answers with
// an operation at once. Times are milliseconds since 1970, sizes bytes, CPU pCPUs.

import type { Readable } from 'node:stream'
import type { Usage } from '../cell/cell.ts'
import type { GuestEnd, GuestFigures } from './protocol.ts'
import type { GuestSpec, Manifest, PoolSpec, VolumeSpec } from './spec.ts'

/** Who asks, for permissions and the audit log. */
export type Actor = {
  /** Such as `uid:0`, `token:ci` or `cert:CN=ops`. */
  readonly name: string
  readonly scope: Scope
  /** The only project that it may touch. */
  readonly project?: string | undefined
}
/** Each includes those before it: look; change guests and what they use; everything, tokens too. */
export type Scope = 'read' | 'write' | 'admin'

/** `paused` keeps its memory and stack; `hibernated` is on disk, and woken by what comes for it. */
export type Phase = 'created' | 'starting' | 'running' | 'paused' | 'hibernated' | 'backing-off' | 'stopping' | 'exited'
  | 'failed' | 'stopped'

export type GuestView = {
  readonly id: string; readonly project: string; readonly name: string; readonly kind: 'cell' | 'machine'
  readonly spec: GuestSpec
  /** The image's module, `sha256:…`. */
  readonly digest: string
  /** Counts changes of `spec`; the ETag. */
  readonly generation: number
  readonly desired: 'running' | 'stopped'
  readonly phase: Phase
  readonly healthy?: boolean | undefined
  readonly createdAt: number; readonly startedAt?: number | undefined; readonly endedAt?: number | undefined
  readonly restarts: number
  /** When it is started again, if it backs off. */
  readonly retryAt?: number | undefined
  /** The last end: an exit status as a shell has it, and why in words. */
  readonly exit?: {
    readonly status: number; readonly reason: string
    readonly outcome?: GuestEnd['outcome']; readonly usage?: Usage | undefined
  }
  /** The process that it is in. */
  readonly process?: number | undefined
  /** What runs it, a machine, and why that. */
  readonly engine?: { readonly name: 'kvm' | 'qemu'; readonly why: string } | undefined
  /** Where it is published now: a port that the host chose is known only then. */
  readonly ports: readonly { readonly address: string; readonly port: number; readonly guest: number }[]
  /** Whether it can be saved, forked and moved, as far as it is known: it is when it runs. */
  readonly capture?: { readonly can: boolean; readonly why?: string | undefined } | undefined
  /** Where it comes from: a snapshot, by digest, or the guest that it was forked from, by name. */
  readonly origin?: { readonly snapshot?: string | undefined; readonly fork?: string | undefined } | undefined
}
/** A snapshot. Its name is unique in its project; without one it is known by its digest. */
export type SnapshotView = {
  readonly project: string; readonly name?: string | undefined; readonly digest: string
  /** The guest that it was taken of, and its specification then. */
  readonly guest: string; readonly spec: GuestSpec; readonly module: string
  readonly memoryBytes: number; readonly newBytes: number; readonly storedBytes: number
  readonly createdAt: number
  /** Guests that were restored from it and may be restarted from it. */
  readonly guests: number
}
export type ProjectView = { readonly name: string; readonly createdAt: number; readonly guests: number
  readonly running: number; readonly uid?: number | undefined; readonly processes: number }
export type PoolView = { readonly project: string; readonly name: string; readonly spec: PoolSpec
  readonly guests: number; readonly createdAt: number }
export type VolumeView = { readonly project: string; readonly name: string; readonly sizeBytes: number
  readonly usedBytes?: number | undefined; readonly guests: readonly string[]; readonly createdAt: number
  readonly clonedFrom?: string | undefined; readonly kind: 'folder' | 'disk' }
export type NetworkView = { readonly project: string; readonly name: string; readonly guests: readonly string[]
  readonly createdAt: number }
export type SecretView = { readonly project: string; readonly name: string; readonly createdAt: number }
export type ImageView = {
  readonly kind: 'cell' | 'machine'
  /** `NAME:TAG`s; none if only a digest refers to it. */
  readonly names: readonly string[]
  /** Of the manifest, and of the module in it. */
  readonly digest: string; readonly module: string
  readonly sizeBytes: number; readonly createdAt: number
  readonly guests: number
}
export type OperationView = {
  readonly id: string
  readonly kind: 'image.pull' | 'image.push' | 'snapshot.pull' | 'snapshot.push' | 'guest.migrate' | 'volume.clone' |
    'volume.delete' | 'project.delete'
  readonly target: string; readonly status: 'running' | 'done' | 'failed' | 'cancelled'
  readonly stage: string; readonly progress?: { readonly done: number; readonly total: number; readonly unit: string }
  readonly error?: Problem | undefined; readonly result?: unknown
  readonly createdAt: number; readonly updatedAt: number; readonly by: string
}
/** RFC 9457, with our code and hint. */
export type Problem = { readonly type: string; readonly title: string; readonly status: number; readonly detail: string
  readonly code: string; readonly hint: string; readonly requestId?: string }
export type EventView = {
  /** Counts up by one. */
  readonly seq: number; readonly time: number
  /** Such as `guest.started`, `guest.ended`, `egress.denied`, `process.lost`, `image.pulled`. */
  readonly kind: string
  readonly project?: string | undefined; readonly guest?: string | undefined
  readonly data: Readonly<Record<string, unknown>>
}
export type AuditView = { readonly seq: number; readonly time: number; readonly actor: string; readonly action: string
  readonly target: string; readonly outcome: string; readonly requestId: string }
export type TokenView = { readonly id: string; readonly name: string; readonly scope: Scope
  readonly project?: string | undefined; readonly createdAt: number; readonly expiresAt?: number | undefined
  readonly lastUsedAt?: number | undefined }
export type ApplyChange = { readonly kind: 'guest' | 'pool' | 'volume' | 'network'; readonly name: string
  readonly action: 'create' | 'change' | 'restart' | 'remove' | 'none'; readonly fields?: readonly string[] }
export type HostView = {
  readonly version: string; readonly node: string; readonly pid: number; readonly startedAt: number
  readonly state: string; readonly pcpus: number; readonly memoryBytes: number
  readonly reserved: { readonly cpu: number; readonly memoryBytes: number }
  readonly guests: number; readonly running: number
  readonly processes: readonly { readonly id: number; readonly project: string; readonly pid: number
    readonly guests: number; readonly memoryBytes?: number; readonly cpuNs?: number }[]
}
/** A line of a guest's log. */
export type LogLine = { readonly time: string; readonly stream: 'stdout' | 'stderr'; readonly text: string
  readonly partial: boolean }
export type LogOptions = { readonly since?: number | undefined; readonly tail?: number | undefined
  readonly follow?: boolean | undefined; readonly signal?: AbortSignal | undefined }

/** A guest's console as somebody sees it: `exec` and `attach`. */
export interface Session {
  /** Output until its end; `channel`: STDOUT or STDERR of protocol.ts. It is slowed to what is read. */
  readonly output: AsyncIterable<{ readonly channel: number; readonly bytes: Uint8Array }>
  /** The exit status when the program has ended; undefined for an attachment that was closed. */
  readonly status: Promise<number | undefined>
  /** Resolves when there is room for more. */
  write(bytes: Uint8Array): Promise<void>
  endInput(): void
  /** Nobody looks any more. Ends what `exec` started. */
  close(): void
}

/** What a host can be asked. */
/** A guest that a host wants to give to another: what it is there, and what it needs here. */
export type MoveOffer = {
  readonly id: string; readonly name: string; readonly spec: GuestSpec; readonly module: string
  readonly generation: number; readonly createdAt: number; readonly restarts: number; readonly run: number
  readonly isManaged: boolean
  /** The source, in words. */
  readonly from: string
}
/** `host`: who this is; what only this host can know is asked of nobody else. */
export type MoveTerms = { readonly host: string; readonly needsModule: boolean }
/** What was decided, for good. */
export type Activated = { readonly state: 'active' | 'dropped'; readonly why?: string | undefined }

/** Guests that come from other hosts: docs/migration.md says which calls follow on which. */
export interface IncomingMoves {
  /** Throws what speaks against such a guest here. */
  offer(project: string, move: string, offer: MoveOffer, by: Actor): Promise<MoveTerms>
  module(project: string, move: string, module: Readable): Promise<void>
  /** Chunks of a snapshot and what they make, as the snapshot store sends it: which chunks are missing. */
  snapshot(project: string, move: string, bytes: Readable, isLast: boolean): Promise<{ missing: readonly string[] }>
  /**
   * The source doesn't run it any more. `host`: who the source has agreed with; `stoppedAt`: since when, by its clock.
   * Throws MOVE_REFUSED if that is another.
   */
  activate(project: string, move: string, options: { host: string; stoppedAt: number }): Promise<Activated>
  drop(project: string, move: string): Promise<void>
  /** The source has let go of it. */
  acknowledge(project: string, move: string): Promise<void>
}

export interface Operator {
  readonly incoming: IncomingMoves

  host(): HostView

  projects(): ProjectView[]
  createProject(name: string, by: Actor): Promise<ProjectView>
  /** Refused while it has guests, unless forced: then they are stopped and all that it has is removed. */
  removeProject(name: string, force: boolean, by: Actor): Promise<OperationView>

  guests(project?: string): GuestView[]
  /** By name, id, or a prefix of an id that only one has. */
  guest(project: string, nameOrId: string): GuestView
  /** `start`: it is to run at once. Without a name it gets one. The project is created if it isn't there. */
  createGuest(project: string, name: string | undefined, spec: GuestSpec, start: boolean, by: Actor): Promise<GuestView>
  replaceGuest(project: string, name: string, spec: GuestSpec, generation: number | undefined, by: Actor):
  Promise<GuestView>
  removeGuest(project: string, name: string, force: boolean, by: Actor): Promise<void>
  startGuest(project: string, name: string, by: Actor): Promise<GuestView>
  /** Ends it, if it runs, and starts it anew: one change, so that nobody takes its place meanwhile. */
  restartGuest(project: string, name: string, by: Actor): Promise<GuestView>
  /** Resolves when it has ended. `signal`: SIGTERM for stop, SIGKILL for kill. */
  stopGuest(project: string, name: string, signal: number, by: Actor): Promise<GuestView>
  /** Resolves when it is in one of these phases, or after `timeoutMs`. */
  waitGuest(project: string, name: string, phases: readonly Phase[], timeoutMs: number): Promise<GuestView>
  /** Keeps it from running; its connections and ports stay. */
  pauseGuest(project: string, name: string, by: Actor): Promise<GuestView>
  /** Asks a machine that runs to do with so much of its memory, until it is told otherwise or started anew. */
  resizeGuest(project: string, name: string, memoryBytes: number, by: Actor): Promise<GuestView>
  /** One that is paused or hibernated goes on. */
  resumeGuest(project: string, name: string, by: Actor): Promise<GuestView>
  /** Saves it while it runs. `stop`: and stops it there. A name that exists is moved to the new one. */
  snapshotGuest(project: string, name: string, options: { name?: string | undefined; stop?: boolean | undefined },
    by: Actor): Promise<SnapshotView>
  /** Copies of it as it is now, each a guest with a name (NAME-1 …) and ports of its own. */
  forkGuest(project: string, name: string, options: { count: number; names?: readonly string[] | undefined },
    by: Actor): Promise<GuestView[]>
  /** Saves it and frees its memory until something comes for it. */
  hibernateGuest(project: string, name: string, by: Actor): Promise<GuestView>
  /**
   * Moves it to another host while it runs. `to`: the address of that host's API, `token` to be let in there,
   * `downtimeMs`: it may stand still for so long until the other host has it all, else it goes on here.
   */
  migrateGuest(project: string, name: string, options: { to: string; token?: string | undefined
    fingerprint?: string | undefined; downtimeMs?: number | undefined }, by: Actor): Promise<OperationView>

  snapshots(project: string): SnapshotView[]
  /** By name, digest or a prefix of a digest. */
  snapshot(project: string, reference: string): SnapshotView
  removeSnapshot(project: string, reference: string, by: Actor): Promise<void>
  /** A new guest that goes on from it. Without a name it gets one. */
  restoreGuest(project: string, reference: string, options: { name?: string | undefined
    ports?: readonly string[] | undefined }, by: Actor): Promise<GuestView>
  pushSnapshot(project: string, reference: string, to: string, by: Actor): Promise<OperationView>
  pullSnapshot(project: string, from: string, name: string | undefined, by: Actor): Promise<OperationView>

  logs(project: string, name: string, options: LogOptions): AsyncIterable<LogLine>
  attach(project: string, name: string, by: Actor): Promise<Session>
  /** Runs the guest's image, or another, with the guest's grants beside it. */
  exec(project: string, name: string, command: { image?: string | undefined; args: readonly string[]
    env?: Readonly<Record<string, string>> | undefined }, by: Actor): Promise<Session>
  /** By guest id: running guests only. */
  stats(project?: string): Promise<Map<string, GuestFigures>>

  pools(project: string): PoolView[]
  putPool(project: string, name: string, spec: PoolSpec, by: Actor): Promise<PoolView>
  removePool(project: string, name: string, by: Actor): Promise<void>
  networks(project: string): NetworkView[]
  putNetwork(project: string, name: string, by: Actor): Promise<NetworkView>
  removeNetwork(project: string, name: string, by: Actor): Promise<void>
  secrets(project: string): SecretView[]
  putSecret(project: string, name: string, value: Uint8Array, by: Actor): Promise<SecretView>
  removeSecret(project: string, name: string, by: Actor): Promise<void>
  volumes(project: string): VolumeView[]
  /** With what it holds, which is counted now. Throws NOT_FOUND. */
  volume(project: string, name: string): Promise<VolumeView>
  createVolume(project: string, name: string, spec: VolumeSpec, by: Actor): Promise<VolumeView>
  resizeVolume(project: string, name: string, sizeBytes: number, by: Actor): Promise<VolumeView>
  cloneVolume(project: string, name: string, to: string, by: Actor): Promise<OperationView>
  removeVolume(project: string, name: string, by: Actor): Promise<OperationView>
  /** A tar archive of what is at `path` of the volume; and the other way. */
  /** Files of a machine that runs, as an archive (tar), through its agent; and an archive to be unpacked there. */
  readGuest(project: string, name: string, path: string): Promise<Readable>
  writeGuest(project: string, name: string, path: string, archive: Readable, by: Actor): Promise<void>
  readVolume(project: string, name: string, path: string): Promise<Readable>
  writeVolume(project: string, name: string, path: string, archive: Readable, by: Actor): Promise<void>

  apply(project: string, manifest: Manifest, options: { dryRun: boolean; prune: boolean }, by: Actor):
  Promise<ApplyChange[]>

  images(): ImageView[]
  /** By name, digest or a prefix of a digest. */
  image(reference: string): ImageView
  /** A module as an image: its name, if given, then refers to it. */
  importImage(name: string | undefined, module: Readable, by: Actor): Promise<ImageView>
  pullImage(reference: string, by: Actor): Promise<OperationView>
  pushImage(reference: string, to: string, by: Actor): Promise<OperationView>
  tagImage(reference: string, name: string, by: Actor): Promise<ImageView>
  removeImage(reference: string, by: Actor): Promise<void>
  /** Removes blobs that no name and no guest refers to: bytes freed. */
  collectImages(by: Actor): Promise<number>

  operations(): OperationView[]
  operation(id: string): OperationView
  waitOperation(id: string, timeoutMs: number): Promise<OperationView>
  cancelOperation(id: string, by: Actor): Promise<OperationView>

  /**
   * Those after `since`, oldest first, then those to come until `signal`. A `since` that is too old begins at the
   * oldest.
   */
  events(options: { since?: number | undefined; follow: boolean; project?: string | undefined; signal?: AbortSignal }):
  AsyncIterable<EventView>
  audit(limit: number): AuditView[]
  /** Notes who asked for what, and how it went. Called by the API for each request that changes something. */
  record(entry: Omit<AuditView, 'seq' | 'time'>): void

  tokens(): TokenView[]
  /** The token itself is told once. */
  createToken(name: string, scope: Scope, options: { project?: string | undefined; expiresAt?: number | undefined },
    by: Actor): Promise<TokenView & { readonly token: string }>
  removeToken(id: string, by: Actor): Promise<void>
  /** Who has this token; throws UNAUTHENTICATED. */
  authenticate(token: string): Actor

  /**
   * Runs `work` once for a key and answers what it answered then: RFC draft Idempotency-Key. `fingerprint`: of the
   * request. Throws IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_KEY_BUSY.
   */
  once<T>(key: string, fingerprint: string, work: () => Promise<T>): Promise<T>

  /** What `/metrics` tells, beyond what the API counts itself: families in the exposition format. */
  metrics(): Promise<string>
  /** What isn't ready: empty when it is. */
  unready(): string[]
}
