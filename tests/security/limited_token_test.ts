// tests/security/limited_token_test.ts: a token for one project against a whole host: what it must not be able to do.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { PROJECT_ITEMS_MAX } from '../../src/base/limits.ts'
import { startHost, type ApiAnswer, type TestHost } from '../host_support.ts'

const NAP = fileURLToPath(new URL('../../guests/nap.wasm', import.meta.url))
const MINE = '/v1/projects/mine'
const GUEST = { image: 'nap', args: ['nap', '100000'] }

let host: TestHost
let authorization: Record<string, string>
let theirs: { id: string }

/** A request with the token. */
function limited(method: string, path: string, body?: unknown, headers: Record<string, string> = {}):
Promise<ApiAnswer> {
  return host.api(method, path, body, { ...authorization, ...headers })
}

function codeOf({ body }: ApiAnswer): string { return (body as { code: string }).code }

before(async () => {
  host = await startHost()
  await host.api('POST', '/v1/images?name=nap', readFileSync(NAP))
  const made = await host.api('POST', '/v1/projects/theirs/guests?wait=30s',
    { name: 'secret-plan', spec: { ...GUEST, ports: ['127.0.0.1:47913:80'], egress: ['127.0.0.0/8'] } })
  theirs = made.body as { id: string }
  await host.api('POST', '/v1/projects/mine/guests',
    { name: 'given', spec: { ...GUEST, egress: ['10.0.0.0/8'] }, start: false })
  const { body } = await host.api('POST', '/v1/tokens', { name: 'mine', scope: 'write', project: 'mine' })
  authorization = { authorization: `Bearer ${(body as { token: string }).token}` }
})
after(() => host[Symbol.asyncDispose]())

test('a token for one project does not find the guests of another, by name, id or prefix', async () => {
  for (const name of ['secret-plan', theirs.id, theirs.id.slice(0, 6)]) {
    assert.equal(codeOf(await limited('GET', `${MINE}/guests/${name}`)), 'NOT_FOUND')
    assert.equal(codeOf(await limited('POST', `${MINE}/guests/${name}/kill`)), 'NOT_FOUND')
    assert.equal(codeOf(await limited('GET', `/v1/projects/theirs/guests/${name}`)), 'FORBIDDEN')
  }
  const all = JSON.stringify([await limited('GET', '/v1/guests'), await limited('GET', '/v1/projects'),
    await limited('GET', '/v1/operations'), await limited('GET', '/v1/events?follow=false')])
  assert.ok(!all.includes('theirs') && !all.includes('secret-plan'), all)
  for (const path of ['/v1/host', '/metrics', '/v1/audit', '/v1/tokens', '/v1/events?project=theirs&follow=false']) {
    assert.equal((await limited('GET', path)).status, 403, path)
  }
})

test('a token for one project is not told who has a port that another project publishes', async () => {
  const answer = await limited('POST', `${MINE}/guests`, { spec: { ...GUEST, ports: ['127.0.0.1:47913:80'] } })
  assert.equal(codeOf(answer), 'PORT_TAKEN')
  assert.doesNotMatch(JSON.stringify(answer.body), /theirs|secret-plan/)
})

test("a token for one project does not open the host's own network to its guests", async () => {
  for (const rule of ['127.0.0.0/8', '0.0.0.0/0', '169.254.169.254:80', '[::ffff:127.0.0.1]']) {
    const spec = { ...GUEST, egress: [rule] }
    assert.equal(codeOf(await limited('POST', `${MINE}/guests`, { spec })), 'FORBIDDEN', rule)
    assert.equal(codeOf(await limited('PUT', `${MINE}/guests/given`, { spec })), 'FORBIDDEN', rule)
    assert.equal(codeOf(await limited('POST', `${MINE}/apply`, { cells: { a: spec } })), 'FORBIDDEN', rule)
  }
  // What was given to it stays, and the rest of the world is open.
  const spec = { ...GUEST, egress: ['10.0.0.0/8', '1.1.1.1:53', 'example.com'] }
  assert.equal((await limited('PUT', `${MINE}/guests/given`, { spec })).status, 200)
})

test('a token for one project does not publish the ports of the administrator', async () => {
  const answer = await limited('POST', `${MINE}/guests`, { spec: { ...GUEST, ports: ['0.0.0.0:443:80'] } })
  assert.equal(codeOf(answer), 'FORBIDDEN')
})

test('a token for one project does not use folders of the host as images', async () => {
  for (const path of ['/v1/images/pull', '/v1/images/push', '/v1/images/tag']) {
    assert.equal((await limited('POST', path, { reference: 'oci:/etc', to: 'oci:/tmp/x', name: 'x' })).status, 403)
  }
})

test('a project has a bounded number of secrets', async () => {
  const put = (i: number): Promise<ApiAnswer> => limited('PUT', `${MINE}/secrets/s${i}`, new Uint8Array(1),
    { 'content-type': 'application/octet-stream' })
  const answers = await Promise.all(Array.from({ length: PROJECT_ITEMS_MAX }, (_, i) => put(i)))
  assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([200]))
  assert.equal(codeOf(await put(PROJECT_ITEMS_MAX)), 'ADMISSION_REFUSED')
  assert.equal((await put(0)).status, 200)
})

test('only an administrator gives a network device of the host to a machine', async () => {
  const { body } = await host.api('POST', '/v1/tokens', { name: 'writer', scope: 'write' })
  const writer = { authorization: `Bearer ${(body as { token: string }).token}` }
  const spec = { ...GUEST, machine: { tap: 'tap0' } }
  for (const headers of [authorization, writer]) {
    const answers = [await host.api('POST', `${MINE}/guests`, { spec }, headers),
      await host.api('PUT', `${MINE}/guests/given`, { spec }, headers),
      await host.api('POST', `${MINE}/apply`, { cells: { a: spec } }, headers)]
    assert.deepEqual(answers.map(codeOf), ['FORBIDDEN', 'FORBIDDEN', 'FORBIDDEN'])
  }
})
