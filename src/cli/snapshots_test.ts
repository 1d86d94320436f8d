// cli/snapshots_test.ts: pauses, snapshots, forks, moves and `run --from` against a host that isn't one.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { WebSocketServer } from 'ws'
import type { GuestView, SnapshotView } from '../host/operator.ts'
import { FakeHost, guestView, problem, type Answers, type Asked } from './test_support.ts'

const PROJECT = '/v1/projects/default'
const GUESTS = `${PROJECT}/guests`
const SNAPSHOTS = `${PROJECT}/snapshots`
const DIGEST = `sha256:${'e'.repeat(64)}`
const MIB = 1024 * 1024

const snapshotView = (more: Partial<SnapshotView> = {}): SnapshotView => ({
  project: 'default', name: 'ready', digest: DIGEST, guest: 'web', spec: { image: 'app:1' } as SnapshotView['spec'],
  module: `sha256:${'a'.repeat(64)}`, memoryBytes: 16 * MIB, newBytes: MIB, storedBytes: 2 * MIB,
  createdAt: Date.now() - 180_500, guests: 2, ...more,
})
const operation = (id: string, status: string, more: object = {}): object =>
  ({ id, kind: 'guest.migrate', target: 'x', status, stage: 'copying', createdAt: 0, updatedAt: 0, by: '', ...more })
const bodyOf = ({ body }: Asked): unknown => JSON.parse(body.toString())

test('pause, resume and hibernate take several guests, do what they can, and tell what failed', async () => {
  const answers: Answers = {}
  for (const verb of ['pause', 'resume', 'hibernate']) {
    answers[`POST ${GUESTS}/a/${verb}`] = [200, guestView('a')]
    answers[`POST ${GUESTS}/c/${verb}`] = [200, guestView('c')]
    answers[`POST ${GUESTS}/b/${verb}`] = problem(409, 'GUEST_NOT_RUNNING', 'It is down')
  }
  await using host = await FakeHost.start(answers)
  for (const verb of ['pause', 'resume', 'hibernate']) {
    const { status, stdout, stderr } = await host.run([verb, 'a', 'b', 'c'])
    assert.deepEqual([status, stdout], [1, 'a\nc\n'])
    assert.equal(stderr, 'cellar: It is down [GUEST_NOT_RUNNING]\n  hint: Try something else\n')
    assert.ok(host.lines().includes(`POST ${GUESTS}/a/${verb}${verb === 'resume' ? '?wait=5s' : ''}`))
  }
})

test('cellar snapshot prints the name, or the digest of one that has none, or all of it', async () => {
  await using host = await FakeHost.start({ [`POST ${GUESTS}/web/snapshot`]: ({ body }, response) => {
    const { name } = JSON.parse(body.toString()) as { name?: string }
    response.writeHead(201).end(JSON.stringify(snapshotView({ name })))
  } })
  assert.deepEqual(await host.run(['snapshot', 'web', 'ready', '--stop']), { status: 0, stdout: 'ready\n', stderr: '' })
  assert.deepEqual(bodyOf(host.asked[0]!), { name: 'ready', stop: true })
  assert.equal((await host.run(['snapshot', 'create', 'web'])).stdout, `${DIGEST}\n`)
  assert.deepEqual(bodyOf(host.asked[1]!), {})
  const { digest, guests } = JSON.parse((await host.run(['snapshot', '-o', 'json', 'web'])).stdout) as SnapshotView
  assert.deepEqual([digest, guests], [DIGEST, 2])
  assert.equal((await host.run(['snapshot', 'none'])).status, 1)
})

test('cellar snapshot ls shows snapshots from the oldest on, with what each takes', async () => {
  const items = [snapshotView({ name: undefined, guests: 0, createdAt: Date.now() - 130_500 }), snapshotView()]
  await using host = await FakeHost.start({ [`GET ${SNAPSHOTS}`]: [200, { items }],
    [`GET ${SNAPSHOTS}/ready`]: [200, items[1]], [`DELETE ${SNAPSHOTS}/ready`]: [204],
    [`DELETE ${SNAPSHOTS}/${encodeURIComponent(DIGEST)}`]: [204] })
  assert.equal((await host.run(['snapshot', 'ls'])).stdout, `\
NAME    DIGEST         GUEST   MEMORY   STORED     NEW   GUESTS   CREATED
ready   eeeeeeeeeeee   web     16 MiB    2 MiB   1 MiB        2   3m ago
-       eeeeeeeeeeee   web     16 MiB    2 MiB   1 MiB        0   2m ago
`)
  assert.equal((await host.run(['snapshots', '-q'])).stdout, `ready\n${DIGEST}\n`)
  assert.equal((JSON.parse((await host.run(['snapshot', 'ls', '-o', 'json'])).stdout) as object[]).length, 2)
  assert.equal((JSON.parse((await host.run(['snapshot', 'inspect', 'ready'])).stdout) as SnapshotView).name, 'ready')
  assert.equal((await host.run(['snapshot', 'rm', 'ready', DIGEST])).stdout, `ready\n${DIGEST}\n`)
})

test('cellar restore prints the name of the guest, and fails if the guest does', async () => {
  const answers: Answers = { [`POST ${SNAPSHOTS}/ready/restore`]: [201, guestView('web-2')] }
  await using host = await FakeHost.start(answers)
  assert.deepEqual(await host.run(['restore', 'ready', '--name', 'web-2', '-p', '8081:80', '-p', '0:81']),
    { status: 0, stdout: 'web-2\n', stderr: '' })
  assert.equal(host.lines()[0], `POST ${SNAPSHOTS}/ready/restore?wait=5s`)
  assert.deepEqual(bodyOf(host.asked[0]!), { name: 'web-2', ports: ['8081:80', '0:81'] })
  const failed = guestView('web-2', { phase: 'failed', exit: { status: 125, reason: 'it is damaged' } })
  answers[`POST ${SNAPSHOTS}/ready/restore`] = [201, failed]
  const { status, stdout, stderr } = await host.run(['restore', 'ready'])
  assert.deepEqual([status, stdout], [1, 'web-2\n'])
  assert.match(stderr, /it is damaged \[GUEST_NOT_RUNNING\]/)
})

test('cellar fork prints the names of the new guests, and refuses a count that is none', async () => {
  await using host = await FakeHost.start({
    [`POST ${GUESTS}/web/fork`]: [201, { items: [guestView('web-1'), guestView('web-2')] }],
  })
  assert.deepEqual(await host.run(['fork', 'web', '--count', '2']), { status: 0, stdout: 'web-1\nweb-2\n', stderr: '' })
  assert.equal((await host.run(['fork', 'web', '--name', 'a', '--name', 'b', '--count', '2'])).status, 0)
  assert.equal((JSON.parse((await host.run(['fork', 'web', '-o', 'json'])).stdout) as object[]).length, 2)
  assert.deepEqual(host.asked.map(bodyOf), [{ count: 2 }, { count: 2, names: ['a', 'b'] }, {}])
  for (const flags of [['--count', '0'], ['--count', 'x'], ['--count', '3', '--name', 'a']]) {
    const { status, stderr } = await host.run(['fork', 'web', ...flags])
    assert.equal(status, 125)
    assert.match(stderr, /--count ".*\[FLAG_VALUE_INVALID\]/)
  }
  assert.equal(host.asked.length, 3)
})

test('cellar snapshot push and pull follow the work to its end, or print it with -d', async () => {
  let asked = 0
  await using host = await FakeHost.start({
    [`POST ${SNAPSHOTS}/ready/push`]: [202, operation('7', 'running')],
    [`POST ${SNAPSHOTS}/pull`]: [202, operation('8', 'running')],
    'GET /v1/operations/7': (_, response) =>
      response.end(JSON.stringify(operation('7', ++asked < 2 ? 'running' : 'done', { stage: 'sending' }))),
    'GET /v1/operations/8': [200, operation('8', 'failed', { error: problem(502, 'REGISTRY_DENIED', 'It denies')[1] })],
  })
  const to = 'registry.example.com/app:1'
  assert.deepEqual(await host.run(['snapshot', 'push', 'ready', to]),
    { status: 0, stdout: `${to}\n`, stderr: 'x: sending\n' })
  assert.deepEqual(bodyOf(host.asked[0]!), { to })
  const failed = await host.run(['snapshot', 'pull', to, 'mine'])
  assert.deepEqual([failed.status, failed.stdout], [1, ''])
  assert.match(failed.stderr, /It denies \[REGISTRY_DENIED\]/)
  assert.equal((await host.run(['snapshot', 'pull', '-d', to])).stdout, '8\n')
  assert.deepEqual(bodyOf(host.asked.at(-1)!), { reference: to })
})

test('cellar migrate sends each guest, with a token of a file or a context, never of the command line', async () => {
  await using host = await FakeHost.start({
    [`POST ${GUESTS}/a/migrate`]: [202, operation('1', 'done')],
    [`POST ${GUESTS}/b/migrate`]: [202, operation('2', 'done')],
    [`POST ${GUESTS}/c/migrate`]: problem(409, 'GUEST_NOT_RUNNING', 'It is down'),
  })
  writeFileSync(join(host.folder, 'token'), 'cellar_x\n')
  const https = ['--to', 'https://b.example.com:7070']
  const sent = async (argv: readonly string[], stdin = ''): Promise<unknown> => {
    const { status, stderr } = await host.run(['migrate', 'a', ...argv], { stdin })
    assert.deepEqual([status, stderr], [0, ''])
    return bodyOf(host.asked.at(-1)!)
  }
  const wanted = { to: 'https://b.example.com:7070', token: 'cellar_x' }
  assert.deepEqual(await sent([...https, '--token-file', 'token']), wanted)
  assert.deepEqual(await sent([...https, '--token-file', '-'], 'cellar_x\n'), wanted)
  await host.run(['context', 'create', 'lab', '--host', 'https://b.example.com:7070', '--token-file', 'token'])
  assert.deepEqual(await sent(['--to', 'lab'], ''), wanted)
  const socket = join(host.folder, 'b.sock')
  assert.deepEqual(await sent(['--to', './b.sock']), { to: `unix:${socket}` })
  assert.deepEqual(await sent(['--to', './b.sock', '--downtime', '500ms']), { to: `unix:${socket}`, downtime: '500ms' })

  const several = await host.run(['migrate', 'a', 'c', 'b', '--to', 'lab'])
  assert.deepEqual([several.status, several.stdout], [1, 'a\nb\n'])
  assert.match(several.stderr, /It is down \[GUEST_NOT_RUNNING\]/)
  assert.equal((await host.run(['migrate', 'a', '-d', '--to', 'lab'])).stdout, '1\n')

  const before = host.asked.length
  const refused: [string[], RegExp][] = [
    [[], /--to CONTEXT or --to ADDRESS \[USAGE\]/],
    [['--to', './b.sock', '--downtime', 'soon'], /--downtime.*\[FLAG_VALUE_INVALID\]/],
    [https, /without a token.*\[USAGE\]/],
    [['--to', 'nowhere'], /no context is called "nowhere" \[CONTEXT_INVALID\]/],
    [[...https, '--token-file', 'none'], /\[NOT_FOUND\]/], [['--to', 'ftp://b'], /\[FLAG_VALUE_INVALID\]/]]
  for (const [flags, message] of refused) {
    const { status, stderr } = await host.run(['migrate', 'a', ...flags])
    assert.notEqual(status, 0)
    assert.match(stderr, message)
  }
  assert.equal(host.asked.length, before)
})

/** A certificate for 127.0.0.1 that has signed itself, and its key: files; undefined without openssl. */
function certificate(folder: string, name: string): { cert: string; key: string } | undefined {
  const [cert, key] = [join(folder, `${name}.pem`), join(folder, `${name}.key`)]
  const { status } = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
    '-nodes', '-subj', '/CN=b', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '2', '-keyout', key, '-out', cert])
  return status === 0 ? { cert, key } : undefined
}

test("cellar migrate names the other host's certificate if the context has signed it, and no other", async (t) => {
  await using host = await FakeHost.start({ [`POST ${GUESTS}/a/migrate`]: [202, operation('1', 'done')] })
  const [made, odd] = [certificate(host.folder, 'b'), certificate(host.folder, 'odd')]
  if (made === undefined || odd === undefined) return t.skip("openssl isn't installed")
  const cert = readFileSync(made.cert)
  const other = createServer({ key: readFileSync(made.key), cert })
  await new Promise<void>((done) => { other.listen(0, '127.0.0.1', done) })
  const { port } = other.address() as AddressInfo
  writeFileSync(join(host.folder, 'token'), 'x')
  const context = async (name: string, ca: string): Promise<unknown> => await host.run(['context', 'create', name,
    '--host', `https://127.0.0.1:${port}`, '--token-file', 'token', '--ca', ca])
  await context('lab', made.cert)
  await context('odd', odd.cert)
  try {
    assert.equal((await host.run(['migrate', 'a', '--to', 'lab'])).status, 0)
    const fingerprint = new X509Certificate(cert).fingerprint256
    assert.deepEqual(bodyOf(host.asked[0]!), { to: `https://127.0.0.1:${port}`, token: 'x', fingerprint })
    const { status, stderr } = await host.run(['migrate', 'a', '--to', 'odd'])
    assert.equal(status, 1, stderr)
    assert.match(stderr, /\[HOST_UNREACHABLE\]/)
    assert.equal(host.asked.length, 1)
  } finally {
    await new Promise((done) => { other.close(done) })
  }
})

/** A host on which the guest "g" goes on from "ready": `log` is what it writes, `end` what it is in the end. */
async function restoring(log: (response: ServerResponse) => void, end: Partial<GuestView>, stdin = false):
Promise<{ host: FakeHost; ends: () => void }> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const guest = guestView('g', { phase: 'starting', spec: { image: 'app:1', stdin } as GuestView['spec'] })
  const host = await FakeHost.start({
    [`POST ${SNAPSHOTS}/ready/restore`]: [201, guest], [`DELETE ${GUESTS}/g`]: [204],
    [`GET ${GUESTS}/g/wait`]: async ({ url }, response) => {
      if (!url.includes('phase=running')) await promise
      response.end(JSON.stringify(guestView('g', url.includes('phase=running') ? {} : end)))
    },
    [`GET ${GUESTS}/g/logs`]: (_, response) => {
      response.writeHead(200, { 'content-type': 'application/x-ndjson' })
      log(response)
    },
  })
  return { host, ends: resolve }
}

const line = (text: string, stream = 'stdout', partial = false): string =>
  `${JSON.stringify({ time: '2026-01-31T12:00:00Z', stream, text, partial })}\n`

test('run --from shows all that a program writes, also what is logged after its end, and ends as it does', async () => {
  const made = await restoring((response) => {
    response.write(line('one') + line('err', 'stderr'))
    setTimeout(made.ends, 50)
    setTimeout(() => response.write(line('two') + line('no end', 'stdout', true)), 80)
  }, { phase: 'exited', exit: { status: 7, reason: 'exited with 7', outcome: { kind: 'exit', code: 7 } } })
  await using host = made.host
  const argv = ['run', '--from', 'ready', '--name', 'g', '-p', '8081:80']
  assert.deepEqual(await host.run(argv, { stdin: 'unread' }),
    { status: 7, stdout: 'one\ntwo\nno end', stderr: 'err\n' })
  assert.deepEqual(bodyOf(host.asked[0]!), { name: 'g', ports: ['8081:80'] })
  assert.equal(host.lines().at(-1), `DELETE ${GUESTS}/g?force=`)
})

test('run --from tells why a program ended that did not exit, once, and lets nobody start it again', async () => {
  const made = await restoring((response) => { response.flushHeaders() },
    { phase: 'backing-off', exit: { status: 134, reason: 'trapped: unreachable' } })
  await using host = made.host
  made.ends()
  const { status, stdout, stderr } = await host.run(['run', '--from', 'ready'])
  assert.deepEqual([status, stdout, stderr], [134, '', 'cellar: g: trapped: unreachable\n'])
  assert.equal(host.lines().at(-1), `DELETE ${GUESTS}/g?force=`)
})

test('run --from passes our input on to a program that keeps its input open', async () => {
  let input = ''
  const made = await restoring((response) => { response.flushHeaders() },
    { phase: 'exited', exit: { status: 0, reason: '', outcome: { kind: 'exit', code: 0 } } }, true)
  await using host = made.host
  const sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered][0] ?? false })
  host.server.on('upgrade', (request, socket, head) => {
    assert.equal(request.url, `${GUESTS}/g/attach`)
    sockets.handleUpgrade(request, socket, head, (one) => one.on('message', (data: Buffer) => {
      if (data[0] === 0) input += data.subarray(1).toString()
      one.send(Buffer.from('\x01shown from the log only'))
      if (data[0] === 3) made.ends()
    }))
  })
  assert.deepEqual(await host.run(['run', '--from', 'ready'], { stdin: 'typed\n' }),
    { status: 0, stdout: '', stderr: '' })
  assert.equal(input, 'typed\n')
})

test('run --from that is interrupted removes the guest and ends with the signal', async () => {
  for (const [signal, expected] of [['SIGINT', 130], ['SIGTERM', 143]] as const) {
    const made = await restoring((response) => { response.write(line('runs')) }, {})
    await using host = made.host
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning',
      join(import.meta.dirname, 'main.ts'), 'run', '--from', 'ready'], {
      env: { PATH: process.env.PATH, HOME: host.folder, CELLAR_HOST: host.socket },
    })
    child.stdout.once('data', () => child.kill(signal))
    assert.equal(await new Promise((done) => { child.on('close', done) }), expected)
    assert.equal(host.lines().at(-1), `DELETE ${GUESTS}/g?force=`)
  }
})

test('run --from -d leaves the guest to the host, and what it refuses ends with 125', async () => {
  await using host = await FakeHost.start({ [`POST ${SNAPSHOTS}/ready/restore`]: [201, guestView('g')] })
  assert.deepEqual(await host.run(['run', '-d', '--from', 'ready']), { status: 0, stdout: 'g\n', stderr: '' })
  assert.deepEqual(host.lines(), [`POST ${SNAPSHOTS}/ready/restore?wait=5s`])
  const cases: [string[], RegExp][] = [
    [['--from', 'none'], /\[NOT_FOUND\]/],
    [['--from', 'ready', 'a.wasm'], /has its program and its arguments \[USAGE\]/],
    [['--from', 'ready', '--env', 'A=b'], /--env "A=b" as it must be left out: the snapshot has/],
    [['--from', 'ready', '-v', 'a:/a'], /--volume/],
  ]
  for (const [flags, message] of cases) {
    const { status, stdout, stderr } = await host.run(['run', ...flags])
    assert.deepEqual([status, stdout], [125, ''], stderr)
    assert.match(stderr, message)
  }
})
