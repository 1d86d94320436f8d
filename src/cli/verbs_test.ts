// cli/verbs_test.ts: commands against a host that isn't one: what they ask, what they print, how they end.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { FakeHost, guestView, problem, type Answers } from './test_support.ts'

const GUESTS = '/v1/projects/default/guests'
const MODULE = Buffer.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0])
const DIGEST = `sha256:${createHash('sha256').update(MODULE).digest('hex')}`
const IMAGE = { names: [], digest: `sha256:${'b'.repeat(64)}`, module: DIGEST, sizeBytes: 8, createdAt: 0, guests: 0 }

const jsonOf = (host: FakeHost, line: string): unknown => {
  const found = host.asked.find(({ method, url }) => `${method} ${url}`.startsWith(line))
  assert.ok(found !== undefined, host.lines().join('\n'))
  return JSON.parse(found.body.toString())
}

test('cellar run -d sends the program if the host does not have it, and prints the name of the guest', async () => {
  const made: Answers = { [`POST ${GUESTS}`]: [201, guestView('web')], 'POST /v1/images': [201, IMAGE] }
  await using host = await FakeHost.start(made)
  writeFileSync(join(host.folder, 'web.wasm'), MODULE)
  const flags = ['-d', '--name', 'web', '-p', '8080:80', '-v', 'data:/data:ro', '--secret', 'PASSWORD=db', '-e', 'A=b',
    '-l', 'tier=web', '--restart', 'always', '--health-tcp', '80', '-i', '--expose', '81', '--network', 'back',
    '--egress', '*.example.com:443', '--connect', 'db:5432', '--pool', 'front', '-m', '64MiB', '--shares', '200',
    '--cpu-limit', '50%', '--timeout', '5s', '--hibernate', '10m', '--may', 'fork', 'web.wasm', '-x', 'y']
  const { status, stdout, stderr } = await host.run(['run', ...flags])
  assert.deepEqual([status, stdout, stderr], [0, 'web\n', ''])
  assert.deepEqual(host.lines(),
    [`GET /v1/images/${encodeURIComponent(DIGEST)}`, 'POST /v1/images', `POST ${GUESTS}?wait=5s`])
  assert.deepEqual(host.asked[1]!.body, MODULE)
  assert.equal(host.asked[1]!.headers['content-type'], 'application/wasm')
  assert.deepEqual(jsonOf(host, `POST ${GUESTS}`), { name: 'web', start: true, spec: {
    image: `web.wasm@${DIGEST}`, args: ['web.wasm', '-x', 'y'], env: { A: 'b' }, memory: '64MiB', shares: 200,
    'cpu-limit': '50%', timeout: '5s', pool: 'front', volumes: ['data:/data:ro'],
    ports: ['8080:80'], expose: [81], connect: ['db:5432'],
    networks: ['back'], egress: ['*.example.com:443'], secrets: { PASSWORD: 'db' }, labels: { tier: 'web' },
    restart: 'always', stdin: true, may: ['fork'], hibernate: { idle: '10m' }, health: { tcp: 80 },
  } })
})

test('cellar run -d sends nothing that the host has, and takes names of images', async () => {
  await using host = await FakeHost.start({ [`POST ${GUESTS}`]: [201, guestView('a')],
    [`GET /v1/images/${encodeURIComponent(DIGEST)}`]: [200, IMAGE] })
  for (const file of ['a.wasm', '_.wasm']) writeFileSync(join(host.folder, file), MODULE)
  for (const file of ['a.wasm', '_.wasm']) assert.equal((await host.run(['run', '-d', file])).status, 0)
  assert.equal((await host.run(['run', '-d', 'registry.example.com/app:1.2', 'x'])).status, 0)
  assert.deepEqual(host.lines().filter((line) => line.startsWith('POST /v1/images')), [])
  const bodies = host.asked.filter(({ method }) => method === 'POST').map(({ body }) =>
    JSON.parse(body.toString()).spec)
  assert.deepEqual(bodies, [{ image: `a.wasm@${DIGEST}`, args: ['a.wasm'] }, { image: DIGEST, args: ['_.wasm'] },
    { image: 'registry.example.com/app:1.2', args: ['app:1.2', 'x'] }])
})

test('cellar run -d ends with 125 when the host refuses or the guest fails, with 127 without the program', async () => {
  const failed = guestView('a', { phase: 'failed', exit: { status: 134, reason: 'it trapped' } })
  const answers: Answers = { [`POST ${GUESTS}`]: problem(409, 'EXISTS', 'Cannot create guest "a" as it exists') }
  await using host = await FakeHost.start(answers)
  const refused = await host.run(['run', '-d', 'app'])
  assert.equal(refused.status, 125)
  assert.equal(refused.stderr, 'cellar: Cannot create guest "a" as it exists [EXISTS]\n  hint: Try something else\n')
  answers[`POST ${GUESTS}`] = [201, failed]
  const ended = await host.run(['run', '-d', 'app'])
  assert.deepEqual([ended.status, ended.stdout], [125, 'a\n'])
  assert.match(ended.stderr, /it trapped/)
  assert.equal((await host.run(['run', '-d', 'none.wasm'])).status, 127)
})

test('cellar run refuses flags of a host without -d, and flags of the foreground with it', async () => {
  await using host = await FakeHost.start({})
  for (const flags of [['-p', '80:80'], ['--hibernate', 'pressure'], ['--host', 'unix:/x'], ['--label', 'a=b'],
    ['-d', '--dir', '.'], ['-d', '--trace'],
    ['-d', '--listen', 'tcp:127.0.0.1:1'], ['-d', '-f', 'x.yaml'], ['-d', '--expose', 'x'], ['-d', '--label', 'x']]) {
    const { status, stderr } = await host.run(['run', ...flags, 'a.wasm'])
    assert.equal(status, 125, flags.join(' '))
    assert.match(stderr, /\[FLAG_VALUE_INVALID\]/)
  }
  assert.deepEqual(host.lines(), [])
})

test('verbs do what they can for each name, and end with 1 if one failed', async () => {
  await using host = await FakeHost.start({
    [`POST ${GUESTS}/a/stop`]: [200, guestView('a')], [`POST ${GUESTS}/c/stop`]: [200, guestView('c')],
    [`POST ${GUESTS}/b/stop`]: problem(404, 'NOT_FOUND', 'Cannot find guest "b"'), [`DELETE ${GUESTS}/a`]: [204],
  })
  const { status, stdout, stderr } = await host.run(['stop', 'a', 'b', 'c'])
  assert.deepEqual([status, stdout], [1, 'a\nc\n'])
  assert.equal(stderr, 'cellar: Cannot find guest "b" [NOT_FOUND]\n  hint: Try something else\n')
  assert.deepEqual(await host.run(['rm', 'a', '--force']), { status: 0, stdout: 'a\n', stderr: '' })
  assert.equal(host.lines().at(-1), `DELETE ${GUESTS}/a?force=`)
  assert.equal((await host.run(['kill', 'x'])).status, 1)
})

test('cellar wait prints exit statuses, and ends with 124 when the time is up', async () => {
  await using host = await FakeHost.start({
    [`GET ${GUESTS}/a/wait`]: [200, guestView('a', { phase: 'exited', exit: { status: 7, reason: 'exit 7' } })],
    [`GET ${GUESTS}/b/wait`]: [200, guestView('b')],
  })
  assert.deepEqual(await host.run(['wait', 'a']), { status: 0, stdout: '7\n', stderr: '' })
  assert.match(host.lines()[0]!, /phase=exited&phase=failed&phase=stopped&timeout=30000ms$/)
  const late = await host.run(['wait', '--timeout', '50ms', 'b'])
  assert.equal(late.status, 124)
  assert.match(late.stderr, /\[WAIT_TIMED_OUT\]/)
  assert.equal((await host.run(['wait', '--for', 'running', 'b'])).stdout, 'running\n')
})

test('cellar logs writes lines to the stream that they came from, with times if wanted', async () => {
  const lines = [{ time: '2026-01-31T12:00:00.000Z', stream: 'stdout', text: 'hello', partial: false },
    { time: '2026-01-31T12:00:01.000Z', stream: 'stderr', text: 'oops', partial: false },
    { time: '2026-01-31T12:00:02.000Z', stream: 'stdout', text: 'no end', partial: true }]
  await using host = await FakeHost.start({ [`GET ${GUESTS}/web/logs`]: ({ headers }, response) => {
    assert.equal(headers.accept, 'application/x-ndjson')
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    // In pieces that don't end where lines do.
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    response.write(text.slice(0, 50))
    setTimeout(() => response.end(text.slice(50)), 20)
  } })
  assert.deepEqual(await host.run(['logs', 'web', '--tail', '5', '--since', '2026-01-31T12:00:00Z']),
    { status: 0, stdout: 'hello\nno end', stderr: 'oops\n' })
  assert.equal(host.lines()[0], `GET ${GUESTS}/web/logs?since=2026-01-31T12%3A00%3A00.000Z&tail=5`)
  const { stdout } = await host.run(['logs', '-t', 'web'])
  assert.equal(stdout, '2026-01-31T12:00:00.000Z hello\n2026-01-31T12:00:02.000Z no end')
  assert.equal((await host.run(['logs', '--since', 'never', 'web'])).status, 125)
})

test('cellar apply sends programs, then the manifest with their digests; diff tells by its status', async () => {
  const changes = [{ kind: 'guest', name: 'web', action: 'create' },
    { kind: 'pool', name: 'p', action: 'change', fields: ['shares'] }, { kind: 'guest', name: 'db', action: 'none' }]
  const path = 'POST /v1/projects/shop/apply'
  const answers: Answers = { [path]: [200, { items: changes }], 'POST /v1/images': [201, IMAGE] }
  await using host = await FakeHost.start(answers)
  mkdirSync(join(host.folder, 'sub'))
  writeFileSync(join(host.folder, 'sub/web.wasm'), MODULE)
  writeFileSync(join(host.folder, 'sub/shop.yaml'), `project: shop
cells:
  web: { program: web.wasm, ports: ["8080:80"] }
  db: { image: "db:1", restart: always }
`)
  const { status, stdout, stderr } = await host.run(['apply', '-f', 'sub/shop.yaml', '--prune'])
  assert.deepEqual([status, stderr], [0, ''])
  assert.equal(stdout, '+ guest web: create\n~ pool p: change (shares)\n  guest db: unchanged\n')
  assert.equal(host.lines().at(-1), `${path}?prune=`)
  const { cells, project } = jsonOf(host, path) as { cells: Record<string, Record<string, unknown>>; project: string }
  assert.deepEqual([project, cells.web!.image, cells.web!.program, cells.db!.image],
    ['shop', `web.wasm@${DIGEST}`, undefined, 'db:1'])

  const different = await host.run(['diff', '-f', 'sub/shop.yaml'])
  assert.deepEqual([different.status, different.stdout], [1, '+ guest web: create\n~ pool p: change (shares)\n'])
  assert.equal(host.lines().at(-1), `${path}?dryRun=`)
  answers[path] = [200, { items: [changes[2]] }]
  assert.deepEqual(await host.run(['diff', '-f', 'sub/shop.yaml']), { status: 0, stdout: '', stderr: '' })
  answers[path] = problem(409, 'IN_USE', 'Cannot change it')
  assert.equal((await host.run(['diff', '-f', 'sub/shop.yaml'])).status, 2)
})

test('cellar apply tells mistakes of a manifest with line and column, and asks nothing then', async () => {
  await using host = await FakeHost.start({})
  writeFileSync(join(host.folder, 'm.yaml'), 'cells:\n  a: { image: app, egres: [] }\n')
  const { status, stderr } = await host.run(['apply', '-f', 'm.yaml'])
  assert.equal(status, 125)
  assert.match(stderr, /"egres" \(line 2, column 20\) \[MANIFEST_INVALID\]/)
  assert.deepEqual(host.lines(), [])
})

test('cellar secret set takes the value from stdin or a file, to the byte, and never from the command line',
  async () => {
  const path = '/v1/projects/default/secrets/db'
  await using host = await FakeHost.start({ [`PUT ${path}`]: [200, { name: 'db' }] })
  assert.equal((await host.run(['secret', 'set', 'db'], { stdin: 'word\n' })).status, 0)
  writeFileSync(join(host.folder, 'value'), Buffer.from([0, 255, 10]))
  assert.equal((await host.run(['secret', 'set', 'db', 'value'])).status, 0)
  assert.deepEqual(host.asked.map(({ body }) => [...body]), [[...Buffer.from('word\n')], [0, 255, 10]])
  assert.equal((await host.run(['secret', 'set', 'db', 'none'])).status, 1)
})

test('cellar pull follows operations to their ends, and tells of those that failed', async () => {
  let asked = 0
  const operation = (target: string, status: string, more = {}) => ({ id: target, kind: 'image.pull', target, status,
    stage: 'fetching', progress: { done: 5, total: 10, unit: 'bytes' }, createdAt: 0, updatedAt: 0, by: 'uid:0',
      ...more })
  await using host = await FakeHost.start({
    'POST /v1/images/pull': ({ body }, response) => {
      response.writeHead(202).end(JSON.stringify(operation(JSON.parse(body.toString()).reference, 'running')))
    },
    'GET /v1/operations/a': (_, response) =>
      response.end(JSON.stringify(operation('a', ++asked < 3 ? 'running' : 'done'))),
    'GET /v1/operations/b': (_, response) => response.end(JSON.stringify(operation('b', 'failed',
      { error: problem(502, 'REGISTRY_DENIED', 'Cannot pull b')[1] }))),
  })
  const { status, stdout, stderr } = await host.run(['pull', 'a', 'b'])
  assert.deepEqual([status, stdout], [1, 'a\n'])
  assert.match(stderr, /cellar: Cannot pull b \[REGISTRY_DENIED\]/)
  assert.deepEqual(await host.run(['pull', '-d', 'a']), { status: 0, stdout: 'a\n', stderr: '' })
})

test('cellar volume, pool, network, project, token and image verbs ask what the API knows', async () => {
  const done = { id: '7', kind: 'volume.delete', target: 'v', status: 'done', stage: '', createdAt: 0, updatedAt: 0,
    by: '' }
  const project = '/v1/projects/default'
  await using host = await FakeHost.start({
    [`POST ${project}/volumes`]: [201, {}], [`PATCH ${project}/volumes/v`]: [200, {}],
    [`DELETE ${project}/volumes/v`]: [202, done], [`POST ${project}/volumes/v/clone`]: [202, done],
    [`PUT ${project}/pools/p`]: [200, {}], [`PUT ${project}/networks/n`]: [200, {}], 'POST /v1/projects': [201, {}],
    'DELETE /v1/projects/q': [202, done], 'POST /v1/tokens': [201, { token: 'SECRET', id: '5' }],
    'POST /v1/images/tag': [200, {}], 'POST /v1/images/collect': [200, { freedBytes: 2048 }],
    'DELETE /v1/images/app%2Fweb%3A1': [204],
  })
  const cases: [string, string, string, unknown?][] = [
    ['volume create v --size 2GiB', 'v\n', `POST ${project}/volumes`, { name: 'v', spec: { size: '2GiB' } }],
    ['volume resize v 3GiB', 'v\n', `PATCH ${project}/volumes/v`, { size: '3GiB' }],
    ['volume clone v w', 'w\n', `POST ${project}/volumes/v/clone`, { name: 'w' }],
    ['volume rm v', 'v\n', `DELETE ${project}/volumes/v`],
    ['pool set p --shares 5 --cpu-limit 50%', 'p\n', `PUT ${project}/pools/p`,
      { spec: { shares: 5, 'cpu-limit': '50%' } }],
    ['network create n', 'n\n', `PUT ${project}/networks/n`, {}],
      ['project create q', 'q\n', 'POST /v1/projects', { name: 'q' }],
    ['project rm --force q', 'q\n', 'DELETE /v1/projects/q?force='],
    ['token create ci --scope write --only shop', 'SECRET\n', 'POST /v1/tokens',
      { name: 'ci', scope: 'write', project: 'shop' }],
    ['image tag app app:2', 'app:2\n', 'POST /v1/images/tag', { reference: 'app', name: 'app:2' }],
    ['image gc', '2 KiB freed\n', 'POST /v1/images/collect'],
      ['image rm app/web:1', 'app/web:1\n', 'DELETE /v1/images/app%2Fweb%3A1'],
  ]
  for (const [line, output, request, body] of cases) {
    const { status, stdout } = await host.run(line.split(' '))
    assert.deepEqual([status, stdout], [0, output], line)
    const last = host.asked.at(-1)!
    assert.equal(`${last.method} ${last.url}`, request, line)
    if (body !== undefined) assert.deepEqual(JSON.parse(last.body.toString()), body, line)
  }
})

test('cellar events prints a line for each, of all pages, or JSON', async () => {
  const event = (seq: number) => ({ seq, time: 0, kind: 'guest.started', project: 'shop', guest: 'web',
    data: { run: seq } })
  await using host = await FakeHost.start({ 'GET /v1/events': ({ url }, response) => {
    const since = Number(new URLSearchParams(url.split('?')[1]).get('since') ?? 0)
    response.end(JSON.stringify({ items: since < 2 ? [event(since + 1)] : [] }))
  } })
  const { stdout } = await host.run(['events'])
  assert.equal(stdout, '1970-01-01T00:00:00.000Z 1 guest.started shop/web run=1\n' +
    '1970-01-01T00:00:00.000Z 2 guest.started shop/web run=2\n')
  const { stdout: json } = await host.run(['events', '--since', '1', '-o', 'json', '-P', 'shop'])
  assert.deepEqual(JSON.parse(json), event(2))
  assert.match(host.lines().at(-1)!, /project=shop/)
})

test('cellar inspect tells guests from programs, and prints the data of one or a list of several', async () => {
  await using host = await FakeHost.start({ [`GET ${GUESTS}/a`]: [200, { name: 'a' }],
    [`GET ${GUESTS}/b`]: [200, { name: 'b' }] })
  writeFileSync(join(host.folder, 'b'), MODULE)
  assert.deepEqual(JSON.parse((await host.run(['inspect', 'a'])).stdout), { name: 'a' })
  assert.equal((await host.run(['inspect', 'a', '-o', 'yaml'])).stdout, 'name: a\n')
  assert.match((await host.run(['inspect', 'b'])).stdout, /^Kind +library/m)
  assert.equal((await host.run(['inspect', '-o', 'text', 'a'])).status, 125)
})

test('cellar image import sends a program under a name', async () => {
  await using host = await FakeHost.start({ 'POST /v1/images': [201, { ...IMAGE, names: ['app:1'] }] })
  writeFileSync(join(host.folder, 'a.wasm'), MODULE)
  assert.deepEqual(await host.run(['image', 'import', 'a.wasm', 'app:1']), { status: 0, stdout: 'app:1\n', stderr: '' })
  assert.equal(host.lines()[0], 'POST /v1/images?name=app%3A1')
  assert.deepEqual(host.asked[0]!.body, readFileSync(join(host.folder, 'a.wasm')))
})
