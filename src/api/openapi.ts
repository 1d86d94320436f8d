// api/openapi.ts: /openapi.json: the table of routes as OpenAPI 3.1, whose schemas are JSON Schema as zod writes it.

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import type { ErrorCode } from '../base/errors.ts'
import { parametersOf, PARAMETERS, type Body, type Route } from './route.ts'
import { NAMED } from './views.ts'

type Json = { readonly [key: string]: unknown }

const REF = '#/components/schemas/'
const PROBLEM = { 'application/problem+json': { schema: { $ref: `${REF}Problem` } } }

/** The document. `version`: Cellar's. */
export function openApi(routes: readonly Route[], version: string): Json {
  const schemas = new Schemas()
  const paths: Record<string, Record<string, Json>> = {}
  for (const route of routes) (paths[route.path] ??= {})[route.method.toLowerCase()] = operation(route, schemas)
  return {
    openapi: '3.1.1',
    info: {
      title: 'Cellar', version, license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      description: 'The API of a Cellar host. Times are milliseconds since 1970, sizes bytes, CPU in pCPUs. Every ' +
        'answer has X-Request-Id. POST and PUT with JSON take Idempotency-Key.',
    },
    servers: [{ url: '/' }],
    paths,
    components: {
      schemas: schemas.all(),
      securitySchemes: {
        token: { type: 'http', scheme: 'bearer', description: "A token: 'cellar token create' makes one" },
        certificate: { type: 'mutualTLS', description: 'A client certificate whose common name the host knows' },
      },
    },
  }
}

function operation(route: Route, schemas: Schemas): Json {
  const { name, summary, scope, body, answer } = route
  const parameters = [
    ...parametersOf(route.path).map((parameter) => ({
      name: parameter, in: 'path', required: true, ...described(schemas.of(PARAMETERS[parameter]!)),
    })),
    ...Object.entries(route.query.shape).map(([key, schema]) => ({
      name: key, in: 'query', required: false, ...described(schemas.of(schema as z.ZodType)),
    })),
  ]
  return {
    operationId: name, summary, ...parameters.length > 0 ? { parameters } : {},
    ...body === undefined ? {} : { requestBody: requestBody(body, schemas) },
    responses: {
      [answer.status]: { description: answer.what, ...answered(route, schemas) },
      ...refusals(route),
      default: { description: 'It could not be done', content: PROBLEM },
    },
    security: scope === 'none' ? [] : [{ token: [] }, { certificate: [] }],
    'x-scope': scope,
  }
}

function described({ description, ...schema }: Json): Json {
  return { ...description === undefined ? {} : { description }, schema }
}

function requestBody(body: Body<unknown>, schemas: Schemas): Json {
  if (body.kind !== 'json') return { required: true, content: { [body.type]: {} } }
  return { required: body.optional !== true, content: { 'application/json': { schema: schemas.of(body.schema) } } }
}

function answered({ answer: { status, schema, types } }: Route, schemas: Schemas): Json {
  if (status === 204 || status === 101) return {}
  const json = { schema: schema === undefined ? {} : schemas.of(schema) }
  return { content: Object.fromEntries((types ?? ['application/json'])
    .map((type) => [type, type === 'application/json' ? json : { schema: { type: 'string' } }])) }
}

/** By status, the codes of the catalogue that it may answer with. */
function refusals(route: Route): Json {
  const byStatus = Map.groupBy(errorsOf(route), statusOf)
  return Object.fromEntries([...byStatus].map(([status, codes]) =>
    [String(status), { description: codes.join(', '), content: PROBLEM }]))
}

/** Codes of errors that a route may answer with, those of all routes with it too. */
export function errorsOf(route: Route): ErrorCode[] {
  return [
    ...Object.keys(route.query.shape).length > 0 || parametersOf(route.path).length > 0 || route.body !== undefined
      ? ['REQUEST_INVALID' as const] : [],
    ...route.scope === 'none' ? [] : ['UNAUTHENTICATED' as const, 'FORBIDDEN' as const],
    ...route.body === undefined ? [] : ['REQUEST_TOO_LARGE' as const, 'MEDIA_TYPE_WRONG' as const],
    ...route.errors,
  ]
}

/** The status of an error's answer. */
export function statusOf(code: ErrorCode): number { return new CellarError(code, [] as never).status }

/** JSON schemas of the table's: those with a name by reference. */
class Schemas {
  readonly #registry = z.registry<{ id: string }>()

  constructor() {
    for (const [id, schema] of Object.entries(NAMED)) this.#registry.add(schema, { id })
  }

  /** A schema, in which those with a name are references. */
  of(schema: z.ZodType): Json {
    const name = Object.entries(NAMED).find(([, named]) => named === schema)?.[0]
    if (name !== undefined) return { $ref: `${REF}${name}` }
    const registry = z.registry<{ id: string }>()
    for (const [id, named] of Object.entries(NAMED)) registry.add(named, { id })
    registry.add(schema, { id: 'it' })
    return this.#clean(z.toJSONSchema(registry, OPTIONS).schemas['it']!)
  }

  all(): Json {
    const { schemas } = z.toJSONSchema(this.#registry, OPTIONS)
    return Object.fromEntries(Object.entries(schemas).filter(([id]) => Object.hasOwn(NAMED, id))
      .map(([id, schema]) => [id, this.#clean(schema)]))
  }

  #clean({ $schema: _schema, $id: _id, ...schema }: Json): Json { return schema }
}

const OPTIONS = { io: 'input', uri: (id: string) => `${REF}${id}`, unrepresentable: 'any' } as const
