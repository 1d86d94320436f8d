// api/migration_routes.ts: guests that come from other hosts: what the source of a move asks of its destination.
//
// The source is a client with a token as any other: what it may is what its token may. It asks in this order: offer,
// module, snapshot (some of them), activate, acknowledge; DELETE until it has committed that the guest goes. `activate`
// is asked again until it is answered, and always answers the same. Elsewhere: what becomes of it
// (host/migration_incoming.ts), why in this order (docs/migration.md).

import { z } from 'zod'
import { MODULE_BYTES_MAX, MOVE_BYTES_MAX } from '../base/limits.ts'
import { GUEST_SPEC, NAME } from '../host/spec.ts'
import { DONE, FLAG, json, ok, route, stream, type Ask, type Route } from './route.ts'
import { MOVE_ACTIVATED, MOVE_LACKING, MOVE_TERMS } from './views.ts'

const ONE = '/v1/projects/{project}/moves/{move}'
const DIGEST = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256:HEX')

const OFFER = z.strictObject({
  id: z.string().regex(/^[0-9a-f]{12}$/, 'must be a guest\'s id').describe("The guest's: kept if nobody here has it"),
  name: NAME, spec: GUEST_SPEC, module: DIGEST.describe("Of the image's module"),
  generation: z.int().min(1), createdAt: z.number().min(0), restarts: z.int().min(0), run: z.int().min(0),
  isManaged: z.boolean().describe('A manifest has made it'), from: z.string().max(256).describe('The source, in words'),
})

const at = ({ params }: Ask<unknown, unknown>): [project: string, move: string] => [params['project']!, params['move']!]

export const MIGRATION_ROUTES: readonly Route[] = [
  route({
    method: 'PUT', path: ONE, name: 'offerGuest', scope: 'write',
    summary: 'Between hosts: offer a guest that is to move here. Nothing is promised', body: json(OFFER),
    answer: { status: 200, what: 'Who this host is, and what it needs', schema: MOVE_TERMS },
    errors: ['MOVE_REFUSED', 'EXISTS', 'NAME_INVALID', 'REFERENCE_UNKNOWN', 'ADMISSION_REFUSED', 'PORT_TAKEN',
      'GUEST_UNSUPPORTED', 'HOST_DRAINING'],
    handle: async (ask) => ok(await ask.operator.incoming.offer(...at(ask), ask.body, ask.actor)),
  }),
  route({
    method: 'PUT', path: `${ONE}/module`, name: 'sendMovedModule', scope: 'write',
    summary: 'Between hosts: the module of a guest that is to move here',
    body: stream('application/wasm', MODULE_BYTES_MAX), answer: { status: 204, what: 'It is here' },
    errors: ['NOT_FOUND', 'IMAGE_DIGEST_WRONG', 'IMAGE_INVALID', 'HOST_DISK_FULL'],
    handle: async (ask) => {
      await ask.operator.incoming.module(...at(ask), ask.body)
      return DONE
    },
  }),
  route({
    method: 'PUT', path: `${ONE}/snapshot`, name: 'sendMovedSnapshot', scope: 'write',
    summary: 'Between hosts: a snapshot of a guest that is to move here, with some of its chunks',
    query: z.strictObject({ last: FLAG('The guest stands still: this is what it goes on from') }),
    body: stream('application/octet-stream', MOVE_BYTES_MAX),
    answer: { status: 200, what: 'Chunks that are missing', schema: MOVE_LACKING },
    errors: ['NOT_FOUND', 'MOVE_REFUSED', 'SNAPSHOT_DAMAGED', 'SNAPSHOT_NEWER', 'HOST_DISK_FULL', 'PROCESS_LOST'],
    handle: async (ask) => ok(await ask.operator.incoming.snapshot(...at(ask), ask.body, ask.query.last)),
  }),
  route({
    method: 'POST', path: `${ONE}/activate`, name: 'activateMoved', scope: 'write', unkept: true,
    summary: 'Between hosts: run the guest, which the source does not any more. The answer is always the same',
    body: json(z.strictObject({
      host: z.string().max(256).describe('Who was agreed with: another host does not know'),
      stoppedAt: z.number().min(0).describe('Since when it stands still'),
    })),
    errors: ['MOVE_REFUSED', 'HOST_DISK_FULL'],
    answer: { status: 200, what: 'Whether it is this host\'s now', schema: MOVE_ACTIVATED },
    handle: async (ask) => ok(await ask.operator.incoming.activate(...at(ask), ask.body)),
  }),
  route({
    method: 'POST', path: `${ONE}/acknowledge`, name: 'acknowledgeMoved', scope: 'write',
    summary: 'Between hosts: the source has let go of the guest', answer: { status: 204, what: 'It is noted' },
    handle: async (ask) => {
      await ask.operator.incoming.acknowledge(...at(ask))
      return DONE
    },
  }),
  route({
    method: 'DELETE', path: ONE, name: 'dropMoved', scope: 'write',
    summary: 'Between hosts: the guest does not come; one that is active stays',
    answer: { status: 204, what: 'It is gone' },
    handle: async (ask) => {
      await ask.operator.incoming.drop(...at(ask))
      return DONE
    },
  }),
]
