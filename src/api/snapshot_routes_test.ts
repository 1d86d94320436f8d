// api/snapshot_routes_test.ts: pauses, snapshots, forks and moves through the app, without sockets or guests.

import assert from 'node:assert/strict'
import test from 'node:test'
import type { GuestView, OperationView, SnapshotView } from '../host/operator.ts'
import { app } from './dispatch.ts'
import { bearer, FakeOperator, sending, specOf } from './test_support.ts'

const GUESTS = '/v1/projects/a/guests'
const SNAPSHOTS = '/v1/projects/a/snapshots'
const POST = { method: 'POST', headers: bearer('writer') }
const READ = { headers: bearer('reader') }

type List<T> = { items: T[]; nextPageToken?: string }
type Ask = ReturnType<typeof app>['request']

/** A host with the guest "web", which runs, in the projects "a" and "b". */
async function made(): Promise<{ operator: FakeOperator; ask: Ask }> {
  const operator = new FakeOperator()
  const spec = specOf({ ports: ['127.0.0.1:8080:80'] })
  for (const project of ['a', 'b']) await operator.createGuest(project, 'web', spec, true)
  return { operator, ask: app(operator).request }
}

async function told<T>(answer: Response | Promise<Response>, status: number): Promise<T> {
  const response = await answer
  const text = await response.text()
  assert.equal(response.status, status, text)
  return (text === '' ? undefined : JSON.parse(text)) as T
}

/** The code of a refusal. */
const refused = async (answer: Response | Promise<Response>, status: number): Promise<string> =>
  (await told<{ code: string }>(answer, status)).code

test('a guest is paused, goes on, is hibernated and goes on; one that has ended does none of it', async () => {
  const { ask } = await made()
  const phaseAfter = async (path: string): Promise<string> =>
    (await told<GuestView>(ask(`${GUESTS}/web/${path}`, POST), 200)).phase
  assert.equal(await phaseAfter('pause'), 'paused')
  assert.equal(await phaseAfter('resume?wait=1s'), 'running')
  assert.equal(await phaseAfter('hibernate'), 'hibernated')
  const { items } = await told<List<GuestView>>(ask(`${GUESTS}?phase=hibernated`, READ), 200)
  assert.deepEqual(items.map(({ name }) => name), ['web'])
  assert.equal(await phaseAfter('resume'), 'running')
  await ask(`${GUESTS}/web/stop`, POST)
  for (const verb of ['pause', 'resume', 'hibernate', 'snapshot', 'fork']) {
    assert.equal(await refused(ask(`${GUESTS}/web/${verb}`, POST), 409), 'GUEST_PHASE_WRONG', verb)
    assert.equal(await refused(ask(`${GUESTS}/none/${verb}`, POST), 404), 'NOT_FOUND', verb)
  }
})

test('figures of a paused guest are told, of a hibernated one there are none', async () => {
  const { ask } = await made()
  await ask(`${GUESTS}/web/pause`, POST)
  await told(ask(`${GUESTS}/web/stats`, READ), 200)
  await ask(`${GUESTS}/web/hibernate`, POST)
  assert.equal(await refused(ask(`${GUESTS}/web/stats`, READ), 409), 'GUEST_NOT_RUNNING')
})

test('a snapshot is taken with and without a name, found by each of its names, listed and removed', async () => {
  const { ask } = await made()
  const answer = await ask(`${GUESTS}/web/snapshot`, sending('POST', { name: 'ready' }))
  const first = await answer.clone().json() as SnapshotView
  assert.deepEqual([answer.status, answer.headers.get('location')], [201, `${SNAPSHOTS}/${first.digest}`])
  const second = await told<SnapshotView>(ask(`${GUESTS}/web/snapshot`, POST), 201)
  assert.equal(second.name, undefined)
  for (const reference of ['ready', first.digest, first.digest.slice('sha256:'.length, 20)]) {
    assert.equal((await told<SnapshotView>(ask(`${SNAPSHOTS}/${reference}`, READ), 200)).digest, first.digest)
  }
  const { items, nextPageToken } = await told<List<SnapshotView>>(ask(`${SNAPSHOTS}?limit=1`, READ), 200)
  assert.deepEqual(items.map(({ digest }) => digest), [second.digest])
  const rest = await told<List<SnapshotView>>(ask(`${SNAPSHOTS}?pageToken=${nextPageToken}`, READ), 200)
  assert.deepEqual(rest.items.map(({ name }) => name), ['ready'])
  await told(ask(`${SNAPSHOTS}/ready`, { method: 'DELETE', headers: bearer('writer') }), 204)
  assert.equal(await refused(ask(`${SNAPSHOTS}/ready`, READ), 404), 'NOT_FOUND')
  assert.equal(await refused(ask(`${SNAPSHOTS}/a%2Fb`, READ), 400), 'REQUEST_INVALID')
})

test('a snapshot that stops the guest stops it, one that does not leaves it running', async () => {
  const { ask, operator } = await made()
  await told(ask(`${GUESTS}/web/snapshot`, sending('POST', {})), 201)
  assert.equal(operator.guest('a', 'web').phase, 'running')
  await told(ask(`${GUESTS}/web/snapshot`, sending('POST', { stop: true })), 201)
  assert.equal(operator.guest('a', 'web').phase, 'stopped')
})

test('a guest is restored under a name and on ports that are asked for, and says where it comes from', async () => {
  const { ask } = await made()
  const { digest } = await told<SnapshotView>(ask(`${GUESTS}/web/snapshot`, sending('POST', { name: 'ready' })), 201)
  const ports = ['0:80']
  const answer = await ask(`${SNAPSHOTS}/ready/restore?wait=1s`, sending('POST', { name: 'web-2', ports }))
  const guest = await answer.clone().json() as GuestView
  assert.deepEqual([answer.status, answer.headers.get('location')], [201, `${GUESTS}/web-2`])
  assert.deepEqual([guest.origin, guest.spec.ports, guest.phase], [{ snapshot: digest }, ports, 'running'])
  assert.match((await told<GuestView>(ask(`${SNAPSHOTS}/ready/restore`, POST), 201)).name, /./)
  const restore = (body: object): Response | Promise<Response> =>
    ask(`${SNAPSHOTS}/ready/restore`, sending('POST', body))
  assert.equal(await refused(restore({ name: 'web' }), 409), 'EXISTS')
  assert.equal(await refused(restore({ ports: ['x'] }), 400), 'REQUEST_INVALID')
  assert.equal(await refused(ask(`${SNAPSHOTS}/none/restore`, POST), 404), 'NOT_FOUND')
})

test('a guest is forked once, as often as asked, or for each name', async () => {
  const { ask } = await made()
  const fork = async (body: object): Promise<string[]> =>
    (await told<List<GuestView>>(ask(`${GUESTS}/web/fork`, sending('POST', body)), 201)).items.map(({ name }) => name)
  assert.deepEqual(await fork({}), ['web-1'])
  assert.deepEqual(await fork({ names: ['x', 'y'] }), ['x', 'y'])
  for (const body of [{ count: 0 }, { count: 1e9 }, { count: 2, names: ['z'] }, { names: [] }, { names: ['-'] }]) {
    assert.equal(await refused(ask(`${GUESTS}/web/fork`, sending('POST', body)), 400), 'REQUEST_INVALID')
  }
})

test('a fork that is asked for twice with one key is done once', async () => {
  const { ask, operator } = await made()
  const once = sending('POST', { count: 2 }, 'writer', { 'idempotency-key': 'k' })
  const first = await told(ask(`${GUESTS}/web/fork`, once), 201)
  assert.deepEqual(await told(ask(`${GUESTS}/web/fork`, once), 201), first)
  assert.equal(operator.guests('a').length, 3)
})

test('pushes, pulls and moves are operations that can be followed', async () => {
  const { ask, operator } = await made()
  await ask(`${GUESTS}/web/snapshot`, sending('POST', { name: 'ready' }))
  const to = 'registry.example.com/team/ready:1'
  const asked: [string, object, OperationView['kind']][] = [
    [`${SNAPSHOTS}/ready/push`, { to }, 'snapshot.push'],
    [`${SNAPSHOTS}/pull`, { reference: to, name: 'x' }, 'snapshot.pull'],
    [`${GUESTS}/web/migrate`, { to: 'https://b.example.com:7070', token: 'cellar_x' }, 'guest.migrate'],
  ]
  for (const [path, body, kind] of asked) {
    const answer = await ask(path, sending('POST', body))
    const operation = await answer.clone().json() as OperationView
    assert.deepEqual([answer.status, operation.kind], [202, kind])
    assert.equal(answer.headers.get('location'), `/v1/operations/${operation.id}`)
  }
  assert.deepEqual(operator.moved, { to: 'https://b.example.com:7070', token: 'cellar_x', downtimeMs: undefined })
})

test('a token of another host goes over TLS, over a socket or not at all', async () => {
  const { ask, operator } = await made()
  const move = (body: object): Response | Promise<Response> =>
    ask(`${GUESTS}/web/migrate`, sending('POST', { token: 'x', ...body }))
  for (const to of ['http://b.example.com:7070', 'https://me:secret@b.example.com', 'ftp://b', 'b.example.com',
    'unix:b', 'unix:/b\0', '']) assert.equal(await refused(move({ to }), 400), 'REQUEST_INVALID', to)
  for (const to of ['http://127.0.0.1:7070', 'http://[::1]:7070', 'http://localhost:7070', 'unix:/run/b/host.sock']) {
    await told(move({ to }), 202)
  }
  const fingerprint = Array(32).fill('ab').join(':')
  await told(move({ to: 'https://b', fingerprint, downtime: '500ms' }), 202)
  assert.deepEqual(operator.moved,
    { to: 'https://b', token: 'x', fingerprint: fingerprint.toUpperCase(), downtimeMs: 500 })
  assert.equal(await refused(move({ to: 'https://b', downtime: 'soon' }), 400), 'REQUEST_INVALID')
  assert.equal(await refused(move({ to: 'https://b', fingerprint: 'ab:cd' }), 400), 'REQUEST_INVALID')
})

test("only who may do everything lets this host's own user speak for it on another host's socket", async () => {
  const { ask } = await made()
  const move = (token: string, body: object): Response | Promise<Response> =>
    ask(`${GUESTS}/web/migrate`, sending('POST', { to: 'unix:/run/b/host.sock', ...body }, token))
  for (const token of ['writer', 'limited']) assert.equal(await refused(move(token, {}), 403), 'FORBIDDEN')
  await told(move('writer', { token: 'x' }), 202)
  await told(move('admin', {}), 202)
})

test('who is limited to a project moves guests over TLS only, and reaches nothing on this machine', async () => {
  const { ask } = await made()
  const move = (to: string): Response | Promise<Response> =>
    ask(`${GUESTS}/web/migrate`, sending('POST', { to, token: 'x' }, 'limited'))
  for (const to of ['unix:/run/b/host.sock', 'http://127.0.0.1:7070']) {
    assert.equal(await refused(move(to), 403), 'FORBIDDEN', to)
  }
  await told(move('https://b.example.com'), 202)
})

test('who may only read, or only touch another project, changes nothing by these verbs', async () => {
  const { ask, operator } = await made()
  await ask(`${GUESTS}/web/snapshot`, sending('POST', { name: 'ready' }))
  const bodies: Record<string, object> = { migrate: { to: 'https://b' }, push: { to: 'x' }, pull: { reference: 'x' } }
  const paths = ['pause', 'resume', 'hibernate', 'snapshot', 'fork', 'migrate'].map((verb) => `guests/web/${verb}`)
  for (const path of [...paths, 'snapshots/ready/restore', 'snapshots/ready/push', 'snapshots/pull']) {
    const body = bodies[path.split('/').at(-1)!] ?? {}
    assert.equal(await refused(ask(`/v1/projects/a/${path}`, sending('POST', body, 'reader')), 403), 'FORBIDDEN', path)
    assert.equal(await refused(ask(`/v1/projects/b/${path}`, sending('POST', body, 'limited')), 403), 'FORBIDDEN', path)
  }
  assert.equal(await refused(ask('/v1/projects/b/snapshots', { headers: bearer('limited') }), 403), 'FORBIDDEN')
  assert.deepEqual([operator.guest('a', 'web').phase, operator.guests().length, operator.work.size], ['running', 2, 0])
})

test('a move is in the audit log without the token that it was given', async () => {
  const { ask, operator } = await made()
  await told(ask(`${GUESTS}/web/migrate`, sending('POST', { to: 'https://b', token: 'cellar_secret' })), 202)
  const [entry] = operator.recorded
  assert.deepEqual([entry!.action, entry!.target, entry!.outcome], ['migrateGuest', `${GUESTS}/web/migrate`, 'ok'])
  assert.doesNotMatch(JSON.stringify([operator.recorded, [...operator.work.values()]]), /cellar_secret/)
})
