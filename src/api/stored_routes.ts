// api/stored_routes.ts: what guests use: pools, networks, secrets and volumes of a project; images.

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { API_SECRET_BYTES_MAX, MODULE_BYTES_MAX } from '../base/limits.ts'
import { parseSize } from '../base/units.ts'
import { NAME, NETWORK_SPEC, POOL_SPEC, VOLUME_SPEC } from '../host/spec.ts'
import {
  accepted, bytes, created, DONE, json, listOf, ok, page, PAGED, route, stream, type Ask, type Route,
} from './route.ts'
import { IMAGE, NETWORK, OPERATION, POOL, SECRET, VOLUME } from './views.ts'

const PROJECT = '/v1/projects/{project}'
const GONE = { status: 204, what: 'It is gone' } as const
const BEGUN = {
  status: 202, what: 'The work has begun: Location says where it can be followed', schema: OPERATION,
} as const
const TAR = 'application/x-tar'
/** Archives are bounded by the size of the volume that they go to; this only bounds the work on a hopeless one. */
const ARCHIVE_BYTES_MAX = 2 ** 40

type Named = { readonly name: string }
const nameOf = (one: Named): string => one.name
const at = (ask: Ask<unknown, unknown>, kind: string): [project: string, name: string] =>
  [ask.params['project']!, ask.params[kind]!]

/** GET of all and of one, and DELETE, of a kind that a project has. */
function common<V extends Named>(kind: 'pool' | 'network' | 'secret' | 'volume', schema: z.ZodType<V>,
  list: (ask: Ask<unknown, unknown>, project: string) => readonly V[],
  one?: (ask: Ask<unknown, unknown>, project: string, name: string) => Promise<V>): Route[] {
  const [plural, title] = [`${kind}s`, kind.charAt(0).toUpperCase() + kind.slice(1)]
  return [
    route({
      method: 'GET', path: `${PROJECT}/${plural}`, name: `list${title}s`, summary: `${title}s of a project`,
      scope: 'read', query: PAGED, answer: { status: 200, what: `${title}s, by name`, schema: listOf(schema) },
      errors: ['NOT_FOUND'],
      handle: (ask) => page(list(ask, ask.params['project']!), nameOf, ask.query),
    }),
    route({
      method: 'GET', path: `${PROJECT}/${plural}/{${kind}}`, name: `get${title}`, summary: `A ${kind}`, scope: 'read',
      answer: { status: 200, what: `The ${kind}`, schema }, errors: ['NOT_FOUND'],
      handle: async (ask) => {
        const [project, name] = at(ask, kind)
        if (one !== undefined) return ok(await one(ask, project, name))
        const found = list(ask, project).find((one) => one.name === name)
        if (found === undefined) throw new CellarError('NOT_FOUND', [kind, name])
        return ok(found)
      },
    }),
  ]
}

function removal(kind: 'pool' | 'network' | 'secret', name: string,
  remove: (ask: Ask<unknown, unknown>, project: string, name: string) => Promise<void>): Route {
  return route({
    method: 'DELETE', path: `${PROJECT}/${kind}s/{${kind}}`, name, summary: `Remove a ${kind}`, scope: 'write',
    answer: GONE, errors: ['NOT_FOUND', 'IN_USE'],
    handle: async (ask) => {
      await remove(ask, ...at(ask, kind))
      return DONE
    },
  })
}

const small: Route[] = [
  ...common('pool', POOL, ({ operator }, project) => operator.pools(project)),
  route({
    method: 'PUT', path: `${PROJECT}/pools/{pool}`, name: 'putPool', summary: 'Create or change a pool',
    scope: 'write', body: json(z.strictObject({ spec: POOL_SPEC })),
    answer: { status: 200, what: 'The pool', schema: POOL },
    errors: ['ADMISSION_REFUSED'],
    handle: async (ask) => ok(await ask.operator.putPool(...at(ask, 'pool'), ask.body.spec, ask.actor)),
  }),
  removal('pool', 'removePool', ({ operator, actor }, ...which) => operator.removePool(...which, actor)),
  ...common('network', NETWORK, ({ operator }, project) => operator.networks(project)),
  route({
    method: 'PUT', path: `${PROJECT}/networks/{network}`, name: 'putNetwork', summary: 'Create a network',
    scope: 'write', body: json(z.strictObject({ spec: NETWORK_SPEC.default({}) }), true),
    answer: { status: 200, what: 'The network', schema: NETWORK },
    handle: async (ask) => ok(await ask.operator.putNetwork(...at(ask, 'network'), ask.actor)),
  }),
  removal('network', 'removeNetwork', ({ operator, actor }, ...which) => operator.removeNetwork(...which, actor)),
  ...common('secret', SECRET, ({ operator }, project) => operator.secrets(project)),
  route({
    method: 'PUT', path: `${PROJECT}/secrets/{secret}`, name: 'putSecret', scope: 'write',
    summary: 'Create or change a secret: the body is its value, which nobody is told again', unkept: true,
    body: bytes('application/octet-stream', API_SECRET_BYTES_MAX),
    answer: { status: 200, what: 'The secret, without its value', schema: SECRET },
    handle: async (ask) => ok(await ask.operator.putSecret(...at(ask, 'secret'), ask.body, ask.actor)),
  }),
  removal('secret', 'removeSecret', ({ operator, actor }, ...which) => operator.removeSecret(...which, actor)),
]

const VOLUMES = `${PROJECT}/volumes`
const filesAt = z.strictObject({
  path: z.string().max(4096).regex(/^[^\0]*$/, 'has a zero byte').default('/')
    .describe('A file or folder of the volume (default: /)'),
})

const volumes: Route[] = [
  ...common('volume', VOLUME, ({ operator }, project) => operator.volumes(project),
    ({ operator }, project, name) => operator.volume(project, name)),
  route({
    method: 'POST', path: VOLUMES, name: 'createVolume', summary: 'Create a volume', scope: 'write',
    body: json(z.strictObject({ name: NAME, spec: VOLUME_SPEC.prefault({}) })),
    answer: { status: 201, what: 'The volume', schema: VOLUME }, errors: ['EXISTS', 'HOST_DISK_FULL'],
    handle: async ({ operator, actor, params, body: { name, spec } }) => {
      const volume = await operator.createVolume(params['project']!, name, spec, actor)
      return created(volume, { location: `/v1/projects/${volume.project}/volumes/${volume.name}` })
    },
  }),
  route({
    method: 'PATCH', path: `${VOLUMES}/{volume}`, name: 'resizeVolume', summary: 'Change the size of a volume',
    scope: 'write', body: json(z.strictObject({ size: VOLUME_SPEC.shape.size.unwrap().unwrap() })),
    answer: { status: 200, what: 'The volume', schema: VOLUME }, errors: ['NOT_FOUND', 'VOLUME_TOO_SMALL'],
    handle: async (ask) =>
      ok(await ask.operator.resizeVolume(...at(ask, 'volume'), parseSize(ask.body.size)!, ask.actor)),
  }),
  route({
    method: 'DELETE', path: `${VOLUMES}/{volume}`, name: 'removeVolume', summary: 'Remove a volume', scope: 'write',
    answer: BEGUN, errors: ['NOT_FOUND', 'VOLUME_IN_USE'],
    handle: async (ask) => accepted(await ask.operator.removeVolume(...at(ask, 'volume'), ask.actor)),
  }),
  route({
    method: 'POST', path: `${VOLUMES}/{volume}/clone`, name: 'cloneVolume', scope: 'write',
    summary: 'Make a volume with the content of this one', body: json(z.strictObject({ name: NAME })), answer: BEGUN,
    errors: ['NOT_FOUND', 'EXISTS', 'HOST_DISK_FULL'],
    handle: async (ask) => accepted(await ask.operator.cloneVolume(...at(ask, 'volume'), ask.body.name, ask.actor)),
  }),
  route({
    method: 'GET', path: `${VOLUMES}/{volume}/files`, name: 'readFiles', summary: 'Files of a volume, as a tar archive',
    scope: 'read', query: filesAt, answer: { status: 200, what: 'The archive', types: [TAR] }, errors: ['NOT_FOUND'],
    handle: async (ask) => {
      const chunks = await ask.operator.readVolume(...at(ask, 'volume'), ask.query.path)
      ask.gone.addEventListener('abort', () => { chunks.destroy() })
      return { status: 200, headers: { 'content-type': TAR }, stream: { chunks } }
    },
  }),
  route({
    method: 'PUT', path: `${VOLUMES}/{volume}/files`, name: 'writeFiles', summary: 'Unpack a tar archive into a volume',
    scope: 'write', query: filesAt, body: stream(TAR, ARCHIVE_BYTES_MAX),
    answer: { status: 204, what: 'It is unpacked' },
    errors: ['NOT_FOUND', 'ARCHIVE_INVALID', 'PATH_UNSAFE', 'HOST_DISK_FULL'],
    handle: async (ask) => {
      await ask.operator.writeVolume(...at(ask, 'volume'), ask.query.path, ask.body, ask.actor)
      return DONE
    },
  }),
]

const REFERENCE = z.string().min(1).max(512)
const ONE_IMAGE = { status: 200, what: 'The image', schema: IMAGE } as const

const images: Route[] = [
  route({
    method: 'GET', path: '/v1/images', name: 'listImages', summary: 'Images', scope: 'read', filtered: true,
    query: PAGED, answer: { status: 200, what: 'Images, by name', schema: listOf(IMAGE) },
    handle: ({ operator, query }) =>
      page(operator.images(), ({ names, digest }) => `${names[0] ?? ''} ${digest}`, query),
  }),
  route({
    method: 'POST', path: '/v1/images', name: 'importImage', summary: 'Make an image of a module, which is the body',
    scope: 'write', query: z.strictObject({ name: REFERENCE.optional().describe('A name for it') }),
    body: stream('application/wasm', MODULE_BYTES_MAX), answer: { status: 201, what: 'The image', schema: IMAGE },
    errors: ['IMAGE_INVALID', 'IMAGE_REFERENCE_INVALID', 'HOST_DISK_FULL'],
    handle: async ({ operator, actor, query, body }) => {
      const image = await operator.importImage(query.name, body, actor)
      return created(image, { location: `/v1/images/${image.digest}` })
    },
  }),
  route({
    method: 'POST', path: '/v1/images/pull', name: 'pullImage', summary: 'Fetch an image from a registry',
    scope: 'write', body: json(z.strictObject({ reference: REFERENCE })), answer: BEGUN,
    errors: ['IMAGE_REFERENCE_INVALID'],
    handle: async ({ operator, actor, body }) => accepted(await operator.pullImage(body.reference, actor)),
  }),
  route({
    method: 'POST', path: '/v1/images/push', name: 'pushImage', summary: 'Send an image to a registry', scope: 'write',
    body: json(z.strictObject({ reference: REFERENCE, to: REFERENCE })), answer: BEGUN,
    errors: ['NOT_FOUND', 'IMAGE_REFERENCE_INVALID'],
    handle: async ({ operator, actor, body }) => accepted(await operator.pushImage(body.reference, body.to, actor)),
  }),
  route({
    method: 'POST', path: '/v1/images/tag', name: 'tagImage', summary: 'Give an image another name', scope: 'write',
    body: json(z.strictObject({ reference: REFERENCE, name: REFERENCE })), answer: ONE_IMAGE,
    errors: ['NOT_FOUND', 'IMAGE_REFERENCE_INVALID'],
    handle: async ({ operator, actor, body }) => ok(await operator.tagImage(body.reference, body.name, actor)),
  }),
  route({
    method: 'POST', path: '/v1/images/collect', name: 'collectImages', scope: 'write',
    summary: 'Remove what no name and no guest refers to',
    answer: { status: 200, what: 'How much that was', schema: z.object({ freedBytes: z.number() }) },
    handle: async ({ operator, actor }) => ok({ freedBytes: await operator.collectImages(actor) }),
  }),
  route({
    method: 'GET', path: '/v1/images/{reference}', name: 'getImage', summary: 'An image', scope: 'read', filtered: true,
    answer: ONE_IMAGE, errors: ['NOT_FOUND'],
    handle: ({ operator, params }) => ok(operator.image(params['reference']!)),
  }),
  route({
    method: 'DELETE', path: '/v1/images/{reference}', name: 'removeImage', scope: 'write', answer: GONE,
    summary: 'Remove a name of an image, or by digest the image', errors: ['NOT_FOUND', 'IN_USE'],
    handle: async ({ operator, actor, params }) => {
      await operator.removeImage(params['reference']!, actor)
      return DONE
    },
  }),
]

export const STORED_ROUTES: readonly Route[] = [...small, ...volumes, ...images]
