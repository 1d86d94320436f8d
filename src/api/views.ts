// api/views.ts: schemas of what the API answers, for OpenAPI and the reference page; answers aren't checked by them.
//
// The types are those of host/operator.ts, which a client written in TypeScript imports; the compiler holds each schema
// against its type. NAMED gives those that have a name in /openapi.json.

import { z } from 'zod'
import type { Usage } from '../cell/cell.ts'
import type {
  Activated, ApplyChange, AuditView, EventView, GuestView, HostView, ImageView, LogLine, MoveTerms, NetworkView,
  OperationView, PoolView, Problem, ProjectView, SecretView, SnapshotView, TokenView, VolumeView,
} from '../host/operator.ts'
import type { GuestEnd } from '../host/protocol.ts'
import { GUEST_SPEC, MANIFEST, POOL_SPEC, VOLUME_SPEC } from '../host/spec.ts'
import type { GuestSpec, PoolSpec } from '../host/spec.ts'

const TIME = z.number().describe('Milliseconds since 1970')
const text = z.string()
const count = z.int()
const size = z.number().describe('Bytes')

export const PHASE = z.enum([
  'created', 'starting', 'running', 'paused', 'hibernated', 'backing-off', 'stopping', 'exited', 'failed', 'stopped',
])
export const SCOPE = z.enum(['read', 'write', 'admin'])

const PROBLEM: z.ZodType<Problem> = z.object({
  type: text.describe('/errors/CODE'), title: text, status: count, detail: text, code: text, hint: text,
  requestId: z.exactOptional(text),
  errors: z.exactOptional(z.array(z.object({
    in: z.enum(['body', 'query', 'path', 'header']), pointer: text, detail: text,
  })).describe('Every breach of a schema, with a JSON pointer')),
}).describe('RFC 9457')

const OUTCOME = z.looseObject({ kind: z.enum(['exit', 'signal', 'trap', 'off', 'crashed', 'failed']) }) as unknown as
  z.ZodType<GuestEnd['outcome']>
const USAGE = z.looseObject({ cpuNs: z.number(), wallNs: z.number(), memoryBytes: z.number() }) as unknown as
  z.ZodType<Usage>

export const GUEST: z.ZodType<GuestView> = z.object({
  id: text, project: text, name: text, kind: z.enum(['cell', 'machine']),
  spec: GUEST_SPEC as unknown as z.ZodType<GuestSpec>,
  digest: text.describe("Of the image's module"),
  generation: count.describe('Counts changes of spec: the ETag'),
  desired: z.enum(['running', 'stopped']), phase: PHASE, healthy: z.boolean().optional(),
  createdAt: TIME, startedAt: TIME.optional(), endedAt: TIME.optional(),
  restarts: count, retryAt: TIME.optional(),
  exit: z.exactOptional(z.object({
    status: count, reason: text, outcome: z.exactOptional(OUTCOME), usage: z.exactOptional(USAGE),
  }).describe('Its last end')),
  process: count.optional().describe('The process that it is in'),
  engine: z.exactOptional(z.object({ name: z.enum(['kvm', 'qemu']), why: text }))
    .describe('What runs it, a machine, and why that'),
  ports: z.array(z.object({ address: text, port: count, guest: count })).describe('Where it is published now'),
  capture: z.object({
    can: z.boolean(), why: text.optional().describe('Why not'),
  }).optional().describe('Whether it can be saved, forked and moved; known when it has run'),
  origin: z.object({
    snapshot: text.optional().describe('The digest of a snapshot'),
    fork: text.optional().describe('The name of a guest'),
  }).optional().describe('What it goes on from, if it did not begin anew'),
})
export const SNAPSHOT: z.ZodType<SnapshotView> = z.object({
  project: text, name: text.optional().describe('Without one it is known by its digest'), digest: text,
  guest: text.describe('The guest that it was taken of'),
  spec: GUEST_SPEC as unknown as z.ZodType<GuestSpec>,
  module: text.describe('The digest of the module that the guest runs'),
  memoryBytes: size.describe("Bytes of the guest's memory"),
  newBytes: size.describe('Bytes on disk that came with it: the rest was there'),
  storedBytes: size.describe('Bytes on disk of all that it refers to'),
  createdAt: TIME, guests: count.describe('Guests that may be started from it again'),
})
export const FIGURES = z.looseObject({
  id: text, project: text, name: text, memoryBytes: size, pcpu: count, hypercalls: count,
}).describe('What became of its time, in nanoseconds, and its memory')
export const PROJECT: z.ZodType<ProjectView> = z.object({
  name: text, createdAt: TIME, guests: count, running: count, uid: count.optional(), processes: count,
})
export const POOL: z.ZodType<PoolView> = z.object({
  project: text, name: text, spec: POOL_SPEC as unknown as z.ZodType<PoolSpec>, guests: count, createdAt: TIME,
})
export const VOLUME: z.ZodType<VolumeView> = z.object({
  project: text, name: text, sizeBytes: size, usedBytes: size.optional(), guests: z.array(text), createdAt: TIME,
  clonedFrom: text.optional(), kind: z.enum(['folder', 'disk']),
})
export const NETWORK: z.ZodType<NetworkView> = z.object({
  project: text, name: text, guests: z.array(text), createdAt: TIME,
})
export const SECRET: z.ZodType<SecretView> = z.object({ project: text, name: text, createdAt: TIME })
export const IMAGE: z.ZodType<ImageView> = z.object({
  kind: z.enum(['cell', 'machine']),
  names: z.array(text), digest: text, module: text, sizeBytes: size, createdAt: TIME, guests: count,
})
export const OPERATION: z.ZodType<OperationView> = z.object({
  id: text, kind: z.enum([
    'image.pull', 'image.push', 'snapshot.pull', 'snapshot.push', 'guest.migrate', 'volume.clone', 'volume.delete',
    'project.delete',
  ]),
  target: text, status: z.enum(['running', 'done', 'failed', 'cancelled']), stage: text,
  progress: z.exactOptional(z.object({ done: z.number(), total: z.number(), unit: text })),
  error: PROBLEM.optional(), result: z.unknown(), createdAt: TIME, updatedAt: TIME, by: text,
})
export const EVENT: z.ZodType<EventView> = z.object({
  seq: count, time: TIME, kind: text, project: text.optional(), guest: text.optional(),
  data: z.record(text, z.unknown()),
})
export const AUDIT: z.ZodType<AuditView> = z.object({
  seq: count, time: TIME, actor: text, action: text, target: text, outcome: text, requestId: text,
})
const TOKEN_FIELDS = {
  id: text, name: text, scope: SCOPE, project: text.optional(), createdAt: TIME, expiresAt: TIME.optional(),
  lastUsedAt: TIME.optional(),
}
export const TOKEN: z.ZodType<TokenView> = z.object(TOKEN_FIELDS)
export const NEW_TOKEN: z.ZodType<TokenView & { token: string }> = z.object({
  ...TOKEN_FIELDS, token: text.describe('The token itself: told this once'),
})
export const CHANGE: z.ZodType<ApplyChange> = z.object({
  kind: z.enum(['guest', 'pool', 'volume', 'network']), name: text,
  action: z.enum(['create', 'change', 'restart', 'remove', 'none']), fields: z.exactOptional(z.array(text)),
})
export const HOST: z.ZodType<HostView> = z.object({
  version: text, node: text, pid: count, startedAt: TIME, state: text, pcpus: count, memoryBytes: size,
  reserved: z.object({ cpu: z.number(), memoryBytes: size }), guests: count, running: count,
  processes: z.array(z.object({
    id: count, project: text, pid: count, guests: count, memoryBytes: z.exactOptional(size),
    cpuNs: z.exactOptional(z.number()),
  })),
})
export const MOVE_TERMS: z.ZodType<MoveTerms> = z.object({
  host: text.describe('Who it is'), needsModule: z.boolean(),
})
export const MOVE_LACKING = z.object({ missing: z.array(text).describe('SHA-256 of each, in hex') })
export const MOVE_ACTIVATED: z.ZodType<Activated> = z.object({
  state: z.enum(['active', 'dropped']).describe('dropped: it is not here, and never will be'), why: text.optional(),
})
const LOG_LINE: z.ZodType<LogLine> = z.object({
  time: text, stream: z.enum(['stdout', 'stderr']), text, partial: z.boolean(),
})
export const ABOUT = z.object({ version: text, apiLevel: count, features: z.array(text) })

/** Schemas with a name of their own in /openapi.json. */
export const NAMED: Readonly<Record<string, z.ZodType>> = {
  Problem: PROBLEM, About: ABOUT, Host: HOST, Project: PROJECT, Guest: GUEST, GuestSpec: GUEST_SPEC, Figures: FIGURES,
  Snapshot: SNAPSHOT,
  Pool: POOL, PoolSpec: POOL_SPEC, Volume: VOLUME, VolumeSpec: VOLUME_SPEC, Network: NETWORK, Secret: SECRET,
  Image: IMAGE, Operation: OPERATION, Event: EVENT, AuditEntry: AUDIT, Token: TOKEN, NewToken: NEW_TOKEN,
  Manifest: MANIFEST, Change: CHANGE, LogLine: LOG_LINE,
}
