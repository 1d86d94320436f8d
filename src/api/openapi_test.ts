// api/openapi_test.ts: the document against what OpenAPI 3.1 asks for, by hand.

import assert from 'node:assert/strict'
import test from 'node:test'
import { errorsOf, openApi, statusOf } from './openapi.ts'
import { ROUTES } from './routes.ts'

type Node = { readonly [key: string]: unknown }
type Operation = {
  operationId: string; summary: string; security: Record<string, string[]>[]; requestBody?: { content: Node }
  parameters?: { name: string; in: string; required: boolean; schema: Node }[]
  responses: Record<string, { description: string; content?: Record<string, Node> }>
}
type Document = {
  openapi: string; info: Record<string, unknown>; paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, Node>; securitySchemes: Record<string, { type: string }> }
}

const document = JSON.parse(JSON.stringify(openApi(ROUTES, '1.2.3'))) as Document
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ path, method, operation })))

/** Every object in a document, with where it is. */
function* nodes(value: unknown, at = '#'): Generator<[at: string, node: Node]> {
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value)) yield [at, value as Node]
  for (const [key, part] of Object.entries(value)) yield* nodes(part, `${at}/${key}`)
}

test('openApi has one operation for each route, with a name of its own', () => {
  assert.match(document.openapi, /^3\.1\.\d$/)
  assert.deepEqual([document.info['title'], document.info['version']], ['Cellar', '1.2.3'])
  assert.equal(operations.length, ROUTES.length)
  const names = operations.map(({ operation }) => operation.operationId)
  assert.equal(new Set(names).size, names.length)
})

test('openApi declares exactly the parameters that stand in a path, and none twice', () => {
  for (const { path, operation } of operations) {
    assert.match(path, /^\/[\w./{}-]*$/)
    const { parameters = [] } = operation
    const inPath = parameters.filter((one) => one.in === 'path')
    assert.deepEqual(inPath.map(({ name }) => name), [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]))
    assert.ok(inPath.every(({ required }) => required))
    assert.equal(new Set(parameters.map((one) => `${one.in} ${one.name}`)).size, parameters.length)
    for (const one of parameters) assert.ok(['path', 'query'].includes(one.in) && typeof one.schema === 'object')
  }
})

test('openApi gives each operation answers with descriptions, problems among them, and no body to GET', () => {
  for (const { method, path, operation } of operations) {
    assert.ok(['get', 'post', 'put', 'patch', 'delete'].includes(method))
    if (method === 'get' || method === 'delete') assert.equal(operation.requestBody, undefined, path)
    if (operation.requestBody !== undefined) assert.equal(Object.keys(operation.requestBody.content).length, 1)
    assert.ok(operation.responses['default']?.content?.['application/problem+json'])
    for (const [status, response] of Object.entries(operation.responses)) {
      assert.match(status, /^([1-5]\d\d|default)$/)
      assert.ok(response.description.length > 0)
      for (const type of Object.keys(response.content ?? {})) assert.match(type, /^[\w.+-]+\/[\w.+-]+$/)
    }
  }
})

test('openApi refers only to what is there, in schemas and in security', () => {
  for (const [at, node] of nodes(document)) {
    const reference = node['$ref']
    if (typeof reference === 'string') {
      const [, name] = /^#\/components\/schemas\/(\w+)$/.exec(reference) ?? assert.fail(`${at}: ${reference}`)
      assert.ok(Object.hasOwn(document.components.schemas, name!), `${at}: ${reference}`)
    }
    if (Array.isArray(node['required'])) {
      const properties = (node['properties'] ?? {}) as Node
      for (const name of node['required'] as string[]) assert.ok(Object.hasOwn(properties, name), `${at}: ${name}`)
    }
    if (Object.hasOwn(node, '$id') || Object.hasOwn(node, '$schema')) assert.fail(`${at} names itself`)
  }
  for (const name of Object.keys(document.components.schemas)) assert.match(name, /^[\w.-]+$/)
  const schemes = document.components.securitySchemes
  for (const { type } of Object.values(schemes)) assert.ok(['http', 'mutualTLS'].includes(type))
  for (const { operation } of operations) {
    for (const one of operation.security) assert.ok(Object.keys(one).every((name) => Object.hasOwn(schemes, name)))
  }
})

test('errorsOf and statusOf agree with the document', () => {
  for (const route of ROUTES) {
    const { responses } = document.paths[route.path]![route.method.toLowerCase()]!
    for (const code of errorsOf(route)) assert.ok(responses[String(statusOf(code))], `${route.name}: ${code}`)
  }
})
