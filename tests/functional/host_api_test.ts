// tests/functional/host_api_test.ts: the API of a real host: who may what, what it tells, and what stays the same.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { freePort, guest } from '../support.ts'

const PROMTOOL = '/usr/bin/promtool'

let host: TestHost
let url: string
before(async () => {
  const port = await freePort()
  url = `http://127.0.0.1:${port}`
  host = await startHost(['--listen', `tcp:127.0.0.1:${port}`])
  assert.equal((await host.api('POST', '/v1/images?name=nap', readFileSync(guest('nap')))).status, 201)
})
after(async () => { await host[Symbol.asyncDispose]() })

const SPEC = { image: 'nap', args: ['nap', '10000000'] }

async function tokenFor(body: object): Promise<{ authorization: string }> {
  const { status, body: made } = await host.api('POST', '/v1/tokens', body)
  assert.equal(status, 201, JSON.stringify(made))
  return { authorization: `Bearer ${(made as { token: string }).token}` }
}

async function over(path: string, headers: Record<string, string>, init: RequestInit = {}): Promise<number> {
  return (await fetch(url + path, { ...init, headers: { 'content-type': 'application/json', ...headers } })).status
}

test('TCP lets nobody in without a token, and a token only where it may', async () => {
  await host.api('POST', '/v1/projects/mine/guests', { name: 'a', spec: SPEC })
  await host.api('POST', '/v1/projects/yours/guests', { name: 'a', spec: SPEC })
  assert.equal(await over('/v1/guests', {}), 401)
  assert.equal(await over('/v1/guests', { authorization: 'Bearer cellar_wrong' }), 401)
  const reader = await tokenFor({ name: 'reader', scope: 'read', project: 'mine' })
  assert.equal(await over('/v1/projects/mine/guests', reader), 200)
  assert.equal(await over('/v1/projects/yours/guests', reader), 403)
  assert.equal(await over('/v1/projects/mine/guests/a/stop', reader, { method: 'POST' }), 403)
  assert.equal(await over('/v1/tokens', reader), 403)
  const writer = await tokenFor({ name: 'writer', scope: 'write', project: 'mine' })
  assert.equal(await over('/v1/projects/mine/guests/a/stop', writer, { method: 'POST' }), 200)
  assert.equal(await over('/v1/projects/yours/guests/a/stop', writer, { method: 'POST' }), 403)
  const list = await (await fetch(`${url}/v1/guests`, { headers: reader })).json() as { items: { project: string }[] }
  assert.deepEqual([...new Set(list.items.map(({ project }) => project))], ['mine'])
})

test('a token that is removed or has expired lets nobody in any more', async () => {
  const { status, body } = await host.api('POST', '/v1/tokens', { name: 'short', scope: 'read',
    expiresAt: Date.now() + 300 })
  assert.equal(status, 201)
  const { id, token } = body as { id: string; token: string }
  const headers = { authorization: `Bearer ${token}` }
  assert.equal(await over('/v1', headers), 200)
  await eventually('it has expired', async () => await over('/v1', headers) === 401)
  assert.ok([200, 204].includes((await host.api('DELETE', `/v1/tokens/${id}`)).status))
})

test('a token is told once and kept as a digest; what was changed and refused is in the audit log', async () => {
  const { authorization } = await tokenFor({ name: 'audited', scope: 'read' })
  assert.equal(await over('/v1/projects', { authorization }, { method: 'POST', body: '{"name":"new"}' }), 403)
  const { body } = await host.api('GET', '/v1/audit')
  const text = JSON.stringify(body)
  assert.match(text, /token:audited/)
  const tokens = JSON.stringify((await host.api('GET', '/v1/tokens')).body)
  assert.doesNotMatch(text + tokens, new RegExp(authorization.slice('Bearer '.length)))
})

test('a request with an idempotency key is done once, also by a host that was killed meanwhile', async () => {
  const body = { name: 'once', spec: SPEC }
  const headers = { 'idempotency-key': 'k-1' }
  const first = await host.api('POST', '/v1/projects/mine/guests', body, headers)
  await host.killAndRestart()
  const again = await host.api('POST', '/v1/projects/mine/guests', body, headers)
  assert.deepEqual([again.status, (again.body as { id: string }).id], [201, (first.body as { id: string }).id])
  const other = await host.api('POST', '/v1/projects/mine/guests', { name: 'other', spec: SPEC }, headers)
  assert.deepEqual([other.status, (other.body as { code: string }).code], [422, 'IDEMPOTENCY_KEY_REUSED'])
})

test('a change of what has changed meanwhile is refused', async () => {
  await host.api('POST', '/v1/projects/mine/guests', { name: 'tag', spec: SPEC })
  const { headers } = await host.api('GET', '/v1/projects/mine/guests/tag')
  const tag = { 'if-match': String(headers.etag) }
  const spec = { ...SPEC, labels: { a: 'b' } }
  assert.equal((await host.api('PUT', '/v1/projects/mine/guests/tag', { spec }, tag)).status, 200)
  assert.equal((await host.api('PUT', '/v1/projects/mine/guests/tag', { spec: SPEC }, tag)).status, 412)
})

test('events are told again from where a client was, without a gap, also across a restart', async () => {
  type Event = { seq: number; kind: string }
  const seen = async (since: number): Promise<Event[]> =>
    ((await host.api('GET', `/v1/events?follow=false&since=${since}`)).body as { items: Event[] }).items
  const before = (await seen(0)).at(-1)!.seq
  await host.api('POST', '/v1/projects/mine/guests', { name: 'told', spec: SPEC })
  await host.killAndRestart()
  const after = await seen(before)
  assert.deepEqual(after.map(({ seq }) => seq), after.map((_, i) => before + 1 + i))
  assert.ok(after.some(({ kind }) => kind === 'guest.created') && after.some(({ kind }) => kind === 'host.started'))
})

test('the metrics of a host with guests are what promtool takes', { skip: existsSync(PROMTOOL) ? false
  : `${PROMTOOL} isn't installed` }, async () => {
  await host.api('POST', '/v1/projects/mine/guests', { name: 'measured', spec: SPEC })
  const { body } = await host.api('GET', '/metrics')
  const text = String(body)
  for (const name of ['cellar_guests{phase="running"}', 'cellar_guest_cpu_seconds_total{', 'cellar_build_info',
    'cellar_egress_attempts_total{']) assert.ok(text.includes(name), name)
  const { status, stdout, stderr } = spawnSync(PROMTOOL, ['check', 'metrics'], { input: text, encoding: 'utf8' })
  assert.equal(status, 0, stdout + stderr)
})
