// api/dispatch_test.ts: requests through the app without sockets: who may what, what is refused and how, keys, audit.

import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { API_JSON_BYTES_MAX, API_SECRET_BYTES_MAX } from '../base/limits.ts'
import type { GuestView } from '../host/operator.ts'
import { app, type LogEntry } from './dispatch.ts'
import { ROUTES } from './routes.ts'
import { bearer, FakeOperator, sending, specOf } from './test_support.ts'

type Told = { code: string; status: number; detail: string; hint: string; requestId: string; type: string
  errors?: { in: string; pointer: string; detail: string }[] }
type List<T> = { items: T[]; nextPageToken?: string }

function made(): { operator: FakeOperator; log: LogEntry[]; ask: ReturnType<typeof app>['request'] } {
  const operator = new FakeOperator()
  const log: LogEntry[] = []
  const hono = app(operator, { log: (entry) => log.push(entry), heartbeatMs: 20 })
  return { operator, log, ask: hono.request }
}

const as = async <T>(response: Response): Promise<T> => await response.json() as T
async function refusal(response: Response, status: number, code: string): Promise<Told> {
  const told = await as<Told>(response)
  assert.equal(told.code, code)
  assert.equal(response.status, status)
  assert.equal(told.status, status)
  assert.equal(told.type, `/errors/${code}`)
  assert.equal(response.headers.get('content-type'), 'application/problem+json')
  assert.equal(response.headers.get('x-request-id'), told.requestId)
  assert.ok(told.hint.length > 0)
  return told
}

test('a guest is created, read, changed under its ETag, stopped and removed', async () => {
  const { ask } = made()
  const url = '/v1/projects/a/guests'
  const created = await ask(`${url}?wait=1s`, sending('POST', { name: 'web', spec: { image: 'app' } }))
  assert.equal(created.status, 201)
  assert.equal(created.headers.get('location'), `${url}/web`)
  assert.equal(created.headers.get('etag'), '"1"')
  assert.deepEqual((await as<GuestView>(created)).spec, specOf())

  const change = (etag: string): Promise<Response> | Response =>
    ask(`${url}/web`, sending('PUT', { spec: { image: 'app:2' } }, 'writer', { 'if-match': etag }))
  assert.equal((await change('"1"')).headers.get('etag'), '"2"')
  await refusal(await change('"1"'), 412, 'GENERATION_STALE')
  await refusal(await change('W/"2"'), 400, 'REQUEST_INVALID')
  assert.equal((await ask(`${url}/web/stats`, { headers: bearer('reader') })).status, 200)
  await refusal(await ask(`${url}/web`, { method: 'DELETE', headers: bearer('writer') }), 409, 'GUEST_RUNNING')
  for (const verb of ['restart', 'kill', 'start', 'stop']) {
    assert.equal((await ask(`${url}/web/${verb}`, { method: 'POST', headers: bearer('writer') })).status, 200)
  }
  await refusal(await ask(`${url}/web/stats`, { headers: bearer('reader') }), 409, 'GUEST_NOT_RUNNING')
  const waited = await ask(`${url}/web/wait?phase=running&phase=stopped&timeout=5s`, { headers: bearer('reader') })
  assert.equal((await as<GuestView>(waited)).phase, 'stopped')
  assert.equal((await ask(`${url}/web?force`, { method: 'DELETE', headers: bearer('writer') })).status, 204)
  await refusal(await ask(`${url}/web`, { headers: bearer('reader') }), 404, 'NOT_FOUND')
})

test('pools, networks, secrets and volumes have their routes', async () => {
  const { ask, operator } = made()
  const text = { headers: bearer('writer', { 'content-type': 'application/octet-stream' }) }
  const of = (path: string): string => `/v1/projects/a/${path}`
  assert.equal((await ask(of('pools/p'), sending('PUT', { spec: { shares: 5 } }))).status, 200)
  assert.equal((await ask(of('networks/n'), { method: 'PUT', headers: bearer('writer') })).status, 200)
  assert.equal((await ask(of('secrets/s'), { method: 'PUT', body: 'abc', ...text })).status, 200)
  assert.equal(operator.received, 3)
  const volume = await ask(of('volumes'), sending('POST', { name: 'v', spec: { size: '2GiB' } }))
  assert.equal(volume.headers.get('location'), of('volumes/v'))
  assert.equal((await ask(of('volumes/v'), sending('PATCH', { size: '3GiB' }))).status, 200)
  for (const one of ['pools/p', 'networks/n', 'secrets/s', 'volumes/v']) {
    const found = await ask(of(one), { headers: bearer('reader') })
    assert.equal((await as<{ name: string }>(found)).name, one.slice(-1))
    const list = await ask(of(one.slice(0, -2)), { headers: bearer('reader') })
    assert.equal((await as<List<unknown>>(list)).items.length, 1)
  }
  const clone = await ask(of('volumes/v/clone'), sending('POST', { name: 'w' }))
  assert.equal(clone.status, 202)
  assert.match(clone.headers.get('location')!, /^\/v1\/operations\/op1$/)
  const archive = await ask(of('volumes/v/files?path=/x'), { headers: bearer('reader') })
  assert.equal((await archive.arrayBuffer()).byteLength, 2048)
  assert.equal((await ask(of('volumes/v/files'), { method: 'PUT', body: Buffer.alloc(512),
    headers: bearer('writer', { 'content-type': 'application/x-tar' }) })).status, 204)
  assert.equal(operator.received, 515)
  for (const one of ['pools/p', 'networks/n', 'secrets/s', 'volumes/v']) {
    const removed = await ask(of(one), { method: 'DELETE', headers: bearer('writer') })
    assert.equal(removed.status, one === 'volumes/v' ? 202 : 204)
  }
})

test('images are found by a path-escaped reference, modules come as they are, long work answers 202', async () => {
  const { ask, operator } = made()
  const reference = encodeURIComponent('registry.example.com/team/app:1')
  const found = await ask(`/v1/images/${reference}`, { headers: bearer('reader') })
  assert.equal(found.status, 200)
  const imported = await ask('/v1/images?name=app', { method: 'POST', body: Buffer.alloc(100_000),
    headers: bearer('writer', { 'content-type': 'application/wasm' }) })
  assert.equal(imported.status, 201)
  assert.equal(operator.received, 100_000)
  await refusal(await ask('/v1/images', { method: 'POST', body: 'x',
    headers: bearer('writer', { 'content-type': 'text/html' }) }), 415, 'MEDIA_TYPE_WRONG')
  assert.equal((await ask('/v1/images/pull', sending('POST', { reference: 'app' }))).status, 202)
  assert.equal((await ask('/v1/images/push', sending('POST', { reference: 'app:latest', to: 'x/y' }))).status, 202)
  assert.equal((await ask('/v1/images/tag', sending('POST', { reference: 'app:latest', name: 'z' }))).status, 200)
  const freed = await ask('/v1/images/collect', { method: 'POST', headers: bearer('writer') })
  assert.deepEqual(await as(freed), { freedBytes: 42 })
  const waited = await ask('/v1/operations/op1?wait=10ms', { headers: bearer('reader') })
  assert.equal((await as<{ id: string }>(waited)).id, 'op1')
  const cancelled = await ask('/v1/operations/op1', { method: 'DELETE', headers: bearer('writer') })
  assert.equal((await as<{ status: string }>(cancelled)).status, 'cancelled')
})

test('each scope includes those before it, and nobody is let in without a token', async () => {
  const { ask } = made()
  const reads = await ask('/v1', { headers: bearer('reader') })
  assert.equal((await as<{ apiLevel: number }>(reads)).apiLevel, 2)
  const told = await ask('/v1')
  assert.equal(told.headers.get('www-authenticate'), 'Bearer')
  await refusal(told, 401, 'UNAUTHENTICATED')
  await refusal(await ask('/v1', { headers: bearer('stranger') }), 401, 'UNAUTHENTICATED')
  await refusal(await ask('/v1', { headers: { authorization: 'Basic eDp5' } }), 401, 'UNAUTHENTICATED')
  await refusal(await ask('/v1/projects', sending('POST', { name: 'a' }, 'reader')), 403, 'FORBIDDEN')
  await refusal(await ask('/v1/audit', { headers: bearer('writer') }), 403, 'FORBIDDEN')
  assert.equal((await ask('/v1/audit', { headers: bearer('admin') })).status, 200)
  for (const open of ['/livez', '/readyz', '/openapi.json']) assert.equal((await ask(open)).status, 200)
  await refusal(await ask('/metrics'), 401, 'UNAUTHENTICATED')
})

test('who is limited to a project touches and sees nothing of others', async () => {
  const { ask, operator } = made()
  for (const project of ['a', 'b']) {
    await operator.createGuest(project, 'g', specOf(), true)
    operator.happen('guest.started', project)
  }
  const limited = { headers: bearer('limited') }
  const [guests, projects, stats, events] = await Promise.all(['/v1/guests', '/v1/projects', '/v1/stats',
    '/v1/events?follow=false'].map(async (path) => (await as<List<{ name: string }>>(await ask(path, limited))).items))
  for (const items of [guests, projects, stats, events]) assert.equal(items!.length, 1)
  assert.equal((await ask('/v1/projects/a/guests', limited)).status, 200)
  for (const path of ['/v1/projects/b/guests', '/v1/projects/b/guests/g/logs', '/v1/events?project=b', '/v1/host',
    '/v1/stats?project=b', '/metrics', '/v1/audit']) await refusal(await ask(path, limited), 403, 'FORBIDDEN')
  await refusal(await ask('/v1/images/collect', { method: 'POST', ...limited }), 403, 'FORBIDDEN')
  await refusal(await ask('/v1/projects', sending('POST', { name: 'c' }, 'limited')), 403, 'FORBIDDEN')
  await operator.pullImage('app', { name: 'token:admin', scope: 'admin' })
  await refusal(await ask('/v1/operations/op1', limited), 404, 'NOT_FOUND')
  await refusal(await ask('/v1/operations/op1', { method: 'DELETE', ...limited }), 404, 'NOT_FOUND')
  const manifest = { project: 'b', cells: { web: { image: 'app' } } }
  await refusal(await ask('/v1/projects/a/apply', sending('POST', manifest, 'limited')), 400, 'REQUEST_INVALID')
  const applied = await ask('/v1/projects/a/apply?dryRun', sending('POST', { ...manifest, project: 'a' }, 'limited'))
  assert.equal(applied.status, 200)
})

test('a request that breaks a schema is told every breach with a JSON pointer', async () => {
  const { ask } = made()
  const spec = { image: '', ports: ['80'], 'cpu/limit': 1, env: { 'a~b': 1 }, 'cpu-limit': 'much' }
  const answer = await ask('/v1/projects/a/guests', sending('POST', { name: '-', spec }))
  const told = await refusal(answer, 400, 'REQUEST_INVALID')
  const pointers = told.errors!.map(({ in: part, pointer }) => `${part}${pointer}`)
  for (const one of ['name', 'spec/image', 'spec/ports/0', 'spec/cpu~1limit', 'spec/env/a~0b', 'spec/cpu-limit']) {
    assert.ok(pointers.includes(`body/${one}`), `${one} of ${pointers.join(' ')}`)
  }
  const odd = await ask('/v1/guests?limit=x&lable=a&phase=odd&limit=1', { headers: bearer('reader') })
  const query = await refusal(odd, 400, 'REQUEST_INVALID')
  assert.deepEqual(query.errors!.map(({ pointer }) => pointer).sort(), ['/lable', '/limit', '/phase/0'])
  const outside = await ask('/v1/projects/%2e%2e%2f/guests', { headers: bearer('reader') })
  const path = await refusal(outside, 400, 'REQUEST_INVALID')
  assert.equal(path.errors![0]!.pointer, '/project')
})

test('bodies that are no JSON, too large, too deep or of too many values are refused at once', async () => {
  const { ask } = made()
  const send = (body: string | Uint8Array<ArrayBuffer>, type = 'application/json'): Promise<Response> | Response =>
    ask('/v1/projects', { method: 'POST', body, headers: bearer('writer', { 'content-type': type }) })
  await refusal(await send('{"name":'), 400, 'REQUEST_INVALID')
  await refusal(await send(Buffer.from([0x22, 0xff, 0x22])), 400, 'REQUEST_INVALID')
  await refusal(await send(''), 400, 'REQUEST_INVALID')
  await refusal(await send('name=a', 'application/x-www-form-urlencoded'), 415, 'MEDIA_TYPE_WRONG')
  await refusal(await send(JSON.stringify({ name: 'x'.repeat(API_JSON_BYTES_MAX) })), 413, 'REQUEST_TOO_LARGE')
  await refusal(await send('['.repeat(500_000)), 413, 'REQUEST_TOO_LARGE')
  await refusal(await send(`{"name":${'[{"a":'.repeat(100_000)}`), 413, 'REQUEST_TOO_LARGE')
  await refusal(await send(`[${'1,'.repeat(200_000)}1]`), 413, 'REQUEST_TOO_LARGE')
  const quoted = await send(JSON.stringify({ name: `${'['.repeat(1000)}\\"${'['.repeat(1000)}` }))
  assert.equal((await as<Told>(quoted)).errors![0]!.pointer, '/name')
  const proto = await send('{"name":"a","__proto__":{"polluted":1}}')
  assert.equal(proto.status, 400)
  assert.equal((({}) as { polluted?: number }).polluted, undefined)
  await refusal(await ask('/v1/projects/a/secrets/s', { method: 'PUT', body: Buffer.alloc(API_SECRET_BYTES_MAX + 1),
    headers: bearer('writer') }), 413, 'REQUEST_TOO_LARGE')
})

test('a body that comes too slowly is refused', async () => {
  const operator = new FakeOperator()
  const { request } = app(operator, { bodyTimeoutMs: 20 })
  const body = new ReadableStream({ pull: () => new Promise(() => {}) })
  await refusal(await request('/v1/projects', { method: 'POST', body, duplex: 'half',
    headers: bearer('writer', { 'content-type': 'application/json' }) } as RequestInit), 408, 'REQUEST_SLOW')
})

test('an unknown path answers 404, a known one with another method 405 and those that it takes', async () => {
  const { ask } = made()
  await refusal(await ask('/v1/nothing'), 404, 'ROUTE_NOT_FOUND')
  const told = await ask('/v1/projects/a/guests', { method: 'PATCH' })
  assert.equal(told.headers.get('allow'), 'GET, POST')
  await refusal(told, 405, 'METHOD_NOT_ALLOWED')
  const head = await ask('/v1/guests', { method: 'HEAD', headers: bearer('reader') })
  assert.equal(head.status, 200)
  await refusal(await ask('/v1/projects/a/guests/g/attach', { headers: bearer('writer') }), 426, 'UPGRADE_REQUIRED')
})

test('lists come in pages that others moving about do not shift', async () => {
  const { ask, operator } = made()
  for (const name of ['c', 'a', 'e', 'b', 'd']) {
    await operator.createGuest('p', name, specOf({ labels: { tier: name > 'c' ? 'back' : 'front' } }), name !== 'a')
  }
  const read = async (query: string): Promise<List<GuestView>> =>
    await as(await ask(`/v1/projects/p/guests?${query}`, { headers: bearer('reader') }))
  const first = await read('limit=2')
  assert.deepEqual(first.items.map(({ name }) => name), ['a', 'b'])
  await operator.removeGuest('p', 'b', true)
  const second = await read(`limit=2&pageToken=${first.nextPageToken}`)
  assert.deepEqual(second.items.map(({ name }) => name), ['c', 'd'])
  const last = await read(`limit=2&pageToken=${second.nextPageToken}`)
  assert.deepEqual([last.items.map(({ name }) => name), last.nextPageToken], [['e'], undefined])
  assert.deepEqual((await read('label=tier=front')).items.map(({ name }) => name), ['a', 'c'])
  assert.deepEqual((await read('label=tier&phase=created')).items.map(({ name }) => name), ['a'])
  assert.deepEqual((await read('label=constructor')).items, [])
  await refusal(await ask('/v1/guests?pageToken=!!', { headers: bearer('reader') }), 400, 'REQUEST_INVALID')
})

test('10,000 guests are one answer', async () => {
  const { ask, operator } = made()
  for (let i = 0; i < 10_000; i++) await operator.createGuest('p', `g${i}`, specOf(), true)
  const { items, nextPageToken } = await as<List<GuestView>>(await ask('/v1/guests', { headers: bearer('reader') }))
  assert.deepEqual([items.length, nextPageToken], [10_000, undefined])
})

test('a request with an idempotency key is done once, and the key is the actor\'s and the request\'s', async () => {
  const { ask, operator } = made()
  const create = (name: string, key: string, token = 'writer'): Promise<Response> | Response =>
    ask('/v1/projects/a/guests', sending('POST', { name, spec: { image: 'app' } }, token, { 'idempotency-key': key }))
  const [first, again] = [await create('web', 'k'), await create('web', 'k')]
  assert.deepEqual([again.status, again.headers.get('etag')], [201, '"1"'])
  assert.deepEqual(await as(again), await as(first))
  assert.equal(operator.guests().length, 1)
  await refusal(await create('other', 'k'), 422, 'IDEMPOTENCY_KEY_REUSED')
  assert.equal((await create('other', 'k', 'admin')).status, 201)
  await refusal(await create('web', 'no spaces'), 400, 'REQUEST_INVALID')
  const token = { name: 't', scope: 'read' }
  await refusal(await ask('/v1/tokens', sending('POST', token, 'admin', { 'idempotency-key': 'k' })), 400,
    'REQUEST_INVALID')
})

test('every change and every refusal of one is in the audit log, reads are not, strangers only so often', async () => {
  const { ask, operator } = made()
  await ask('/v1/projects', sending('POST', { name: 'a' }, 'writer', { 'x-request-id': 'r-1' }))
  await ask('/v1/projects', sending('POST', { name: 'a' }))
  await ask('/v1/projects', sending('POST', { name: 'b' }, 'reader'))
  await ask('/v1/projects', { headers: bearer('reader') })
  await ask('/v1/images/collect', { method: 'POST' })
  assert.deepEqual(operator.recorded.map(({ actor, action, target, outcome }) => [actor, action, target, outcome]), [
    ['token:writer', 'createProject', '/v1/projects', 'ok'],
    ['token:writer', 'createProject', '/v1/projects', 'EXISTS'],
    ['token:reader', 'createProject', '/v1/projects', 'FORBIDDEN'],
    ['unknown', 'collectImages', '/v1/images/collect', 'UNAUTHENTICATED'],
  ])
  assert.equal(operator.recorded[0]!.requestId, 'r-1')
  for (let i = 0; i < 200; i++) await ask('/v1/images/collect', { method: 'POST' })
  assert.ok(operator.recorded.length < 70)
})

test('request ids are taken over if they are sane, faults of ours are told to the log only', async () => {
  const { ask, operator, log } = made()
  const trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
  const good = await ask('/livez', { headers: { 'x-request-id': 'abc-1', traceparent: trace } })
  assert.equal(good.headers.get('x-request-id'), 'abc-1')
  assert.match(good.headers.get('server-timing')!, /^app;dur=/)
  assert.equal(log[0]!['traceId'], trace.slice(3, 35))
  const odd = await ask('/livez', { headers: { 'x-request-id': '<script>' } })
  assert.match(odd.headers.get('x-request-id')!, /^[\da-f-]{36}$/)
  operator.fault = new Error('the password is 1234')
  const told = await ask('/v1', { headers: bearer('reader') })
  const problem = await refusal(told, 500, 'INTERNAL')
  assert.doesNotMatch(JSON.stringify(problem), /1234/)
  assert.ok(log.some((entry) => entry.level === 'error' && String(entry['error']).includes('1234')))
})

test('pages of other origins and names that lead to a loopback address are refused', async () => {
  const { ask } = made()
  const loopback = { isLoopback: true }
  const from = (headers: Record<string, string>, env = {}): Promise<Response> | Response =>
    ask('/v1', { headers: { ...bearer('reader'), ...headers } }, env)
  for (const host of ['localhost:80', '127.0.0.1:80', '[::1]:80', 'x.localhost']) {
    assert.equal((await from({ host }, loopback)).status, 200)
  }
  await refusal(await from({ host: 'evil.example' }, loopback), 421, 'HOST_NAME_WRONG')
  await refusal(await from({ host: '127.0.0.1.evil.example' }, loopback), 421, 'HOST_NAME_WRONG')
  await refusal(await from({ host: 'cellar.example', origin: 'https://evil.example' }), 403, 'FORBIDDEN')
  await refusal(await from({ host: 'cellar.example', origin: 'null' }), 403, 'FORBIDDEN')
  const own = await from({ host: 'cellar.example', origin: 'https://cellar.example' })
  assert.equal(own.status, 200)
  assert.equal(own.headers.get('access-control-allow-origin'), null)
})

test('readyz tells what is missing only if it is asked', async () => {
  const { ask, operator } = made()
  operator.missing = ['database']
  const [brief, verbose] = [await ask('/readyz'), await ask('/readyz?verbose')]
  assert.deepEqual([brief.status, await brief.text()], [503, 'not ready\n'])
  assert.deepEqual([verbose.status, await verbose.text()], [503, '[-] database\nnot ready\n'])
})

test('logs are text, JSON lines or events as the client accepts them', async () => {
  const { ask, operator } = made()
  await operator.createGuest('a', 'g', specOf(), true)
  operator.lines.push({ time: 't', stream: 'stderr', text: 'part', partial: true })
  const read = async (accept: string): Promise<[type: string, text: string]> => {
    const response = await ask('/v1/projects/a/guests/g/logs?tail=5&since=2026-01-01T00:00:00Z',
      { headers: bearer('reader', { accept }) })
    return [response.headers.get('content-type')!, await response.text()]
  }
  assert.deepEqual(await read('*/*'), ['text/plain; charset=utf-8', 'hello\npart'])
  const [type, lines] = await read('application/x-ndjson')
  assert.deepEqual([type, lines.trim().split('\n').map((line) => JSON.parse(line) as unknown)],
    ['application/x-ndjson', operator.lines])
  assert.match((await read('text/event-stream'))[1], /^data: \{.*\}\n\ndata: \{.*\}\n\n$/)
})

test('events are replayed after Last-Event-ID, then come as they happen, with heartbeats between', async () => {
  const { ask, operator } = made()
  for (const kind of ['one', 'two', 'three']) operator.happen(kind)
  const response = await ask('/v1/events?since=0', { headers: bearer('reader', { 'last-event-id': '1' }) })
  assert.equal(response.headers.get('content-type'), 'text/event-stream')
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let seen = ''
  const until = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(seen)) seen += (await reader.read()).value ?? assert.fail(`ended after ${seen}`)
  }
  await until(/id: 3\n/)
  assert.match(seen, /^retry: 2000\n\nid: 2\n/)
  await until(/:\n\n/)
  operator.happen('four')
  await until(/id: 4\ndata: .*"kind":"four"/)
  await reader.cancel()
  await new Promise(setImmediate)
  assert.equal(operator.listeners, 0, 'nobody waits for events any more')
})

test('no request of whatever kind is answered with a fault', async () => {
  const { ask, operator } = made()
  operator.waitMsMax = 1
  await operator.createGuest('a', 'g', specOf(), true)
  await operator.pullImage('app', { name: 'token:limited', scope: 'write', project: 'a' })
  const odd = fc.constantFrom('a', 'g', 'op1', '%2F', '%00', '..', '%E0%A4', '__proto__', 'pull')
  const part = fc.oneof(odd, fc.string())
  const path = fc.tuple(fc.constantFrom(...ROUTES), part, part).map(([route, one, two]) =>
    route.path.replace('{project}', 'a').replace(/\{\w+\}/, encodeOdd(one)).replace(/\{\w+\}/, encodeOdd(two)))
  const key = fc.constantFrom('limit', 'wait', 'phase', 'since', 'path', 'pageToken', 'label', 'force', 'project', 'x',
    'timeout', 'dryRun', 'verbose', '__proto__')
  const value = fc.oneof(fc.string(), fc.constantFrom('1ms', '0', 'a', 'false', 'true', ''))
  const query = fc.array(fc.tuple(key, value), { maxLength: 2 })
  const body = fc.oneof(fc.jsonValue().map((one) => JSON.stringify(one)), fc.string(), fc.constantFrom(
    '{"spec":{"image":"x"}}', '{"name":"x","spec":{"image":"x"}}', '{"cells":{"a":{"image":"x"}}}', '{"spec":{}}',
    '{"name":"x"}', '{"reference":"x"}', '{"size":"1GiB"}'))
  const method = fc.constantFrom('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS')
  const token = fc.constantFrom('reader', 'writer', 'admin', 'limited', '')
  const type = fc.constantFrom('application/json', 'application/wasm', 'text/plain')
  const statuses = new Set<number>()
  await fc.assert(fc.asyncProperty(method, path, query, body, token, type, async (verb, at, pairs, text, who, what) => {
    const search = new URLSearchParams(at === '/v1/events' ? [...pairs, ['follow', 'false']] : pairs)
    const response = await ask(`${at}?${search}`, {
      method: verb, headers: { ...who === '' ? {} : bearer(who), 'content-type': what },
      ...verb === 'GET' || verb === 'HEAD' ? {} : { body: text },
    })
    statuses.add(response.status)
    assert.notEqual(response.status, 500, `${verb} ${at}`)
    await response.body?.cancel()
  }), { numRuns: 3000 })
  for (const status of [200, 400, 401, 403, 404, 405, 415]) assert.ok(statuses.has(status), `${status} never came`)
})

function encodeOdd(part: string): string {
  return part.startsWith('%') || part === '..' ? part : encodeURIComponent(part.toWellFormed())
}
