// tests/functional/migrate_test.ts: a guest moves between two hosts, and what keeps it from moving.
//
// The guest counts with a nonce of its memory: one that was started anew would have another. Elsewhere: what is killed
// on the way (tests/faults/migrate_kill_test.ts).

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, test } from 'node:test'
import { guestsOf, type Seen } from '../faults/faults_support.ts'
import { follow, startTicker } from '../faults/migrate_support.ts'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { freePort, guest } from '../support.ts'

let folder: string
let from: TestHost
let to: TestHost
let url: string
let isSecure: boolean
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cm-'))
  const [cert, key] = [join(folder, 'cert'), join(folder, 'key')]
  const port = await freePort()
  const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
    '-subj', '/CN=b', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '2', '-keyout', key, '-out', cert])
  isSecure = made.status === 0
  url = `${isSecure ? 'https' : 'http'}://127.0.0.1:${port}`
  from = await startHost()
  to = await startHost(['--listen', `tcp:127.0.0.1:${port}`, ...isSecure ? ['--tls-cert', cert, '--tls-key', key] : []])
})
after(async () => {
  await Promise.all([from?.[Symbol.asyncDispose](), to?.[Symbol.asyncDispose]()])
  rmSync(folder, { recursive: true })
})

const socketOf = ({ state }: TestHost): string => `unix:${join(state, 'host.sock')}`

/** How far a guest has counted, once it has counted some: its nonce, what it said, which launch it is. */
async function count(host: TestHost): Promise<{ nonce: string; numbers: readonly number[] }> {
  const heard = follow(host, 'web')
  const [nonce, numbers] = await eventually('it counts', () =>
    [...heard.ticks].find(([, all]) => all.length > 5))
  heard.stop()
  return { nonce, numbers }
}

async function one(host: TestHost): Promise<Seen | undefined> {
  return (await guestsOf(host)).find(({ name }) => name === 'web')
}

afterEach(async () => {
  for (const host of [from, to]) await host.api('DELETE', '/v1/projects/default/guests/web?force=true')
})

test('cellar migrate moves a guest while it runs, and back', async () => {
  await startTicker(from)
  const start = await count(from)
  const before = await one(from)
  let host = from
  for (const next of [to, from, to]) {
    assert.equal(await host.ok(['migrate', 'web', '--to', socketOf(next)]), 'web\n')
    const now = await count(next)
    assert.equal(now.nonce, start.nonce)
    assert.deepEqual([(await one(host)), (await one(next))?.id], [undefined, before!.id])
    host = next
  }
  const events = await to.ok(['events', '-o', 'json', '--no-follow'])
  assert.match(events, /guest\.migrated/)
  // Its image has come along, under its name.
  assert.match(await to.ok(['image', 'ls']), /ticker/)
})

test('a guest moves over TLS to a host that is known by its fingerprint, with a token for its project', async (t) => {
  if (!isSecure) return t.skip("openssl isn't installed")
  const { body } = await to.api('POST', '/v1/tokens', { name: 'mover', scope: 'write', project: 'default' })
  const token = join(folder, 'token')
  writeFileSync(token, (body as { token: string }).token)
  const [, fingerprint] = /=(.*)/.exec(spawnSync('openssl', ['x509', '-noout', '-fingerprint', '-sha256', '-in',
    join(folder, 'cert')]).stdout.toString().trim())!
  await to.api('DELETE', '/v1/images/ticker')
  await startTicker(from)
  const { nonce } = await count(from)
  const refused = await from.cellar(['migrate', 'web', '--to', url, '--token-file', token])
  assert.notEqual(refused.status, 0)
  assert.match(refused.stderr.toString(), /self-signed certificate/)
  assert.equal((await one(from))?.phase, 'running')
  await from.ok(['migrate', 'web', '--to', url, '--token-file', token, '--fingerprint', fingerprint!])
  assert.equal((await count(to)).nonce, nonce)
  // Names of images are all projects': who is limited to one gives none.
  assert.doesNotMatch(await to.ok(['image', 'ls']), /ticker/)
})

type Refused = readonly [what: string, spec: Record<string, unknown>, prepare: () => Promise<unknown>, why: RegExp]
const REFUSED: readonly Refused[] = [
  ['it lacks its volume', { volumes: ['data:/data'] },
    () => from.api('POST', '/v1/projects/default/volumes', { name: 'data' }), /there is no volume "data"/],
  ['it lacks its secret', { secrets: { WORD: 'word' } },
    () => from.api('PUT', '/v1/projects/default/secrets/word', Buffer.from('x'),
      { 'content-type': 'application/octet-stream' }), /there is no secret "word"/],
  ['it lacks its network', { networks: ['back'] },
    () => from.api('PUT', '/v1/projects/default/networks/back'), /there is no network "back"/],
  ['another has its name there', {}, async () => {
    await to.api('POST', '/v1/images?name=nap', readFileSync(guest('nap')))
    await to.api('POST', '/v1/projects/default/guests', { name: 'web', spec: { image: 'nap' }, start: false })
  }, /guest "web" as it exists/],
]
for (const [what, spec, prepare, why] of REFUSED) {
  test(`a guest is not moved to a host, and goes on where it is, if ${what}`, async () => {
    await prepare()
    await startTicker(from, ['20'], spec)
    const { nonce, numbers } = await count(from)
    const { status, stderr } = await from.cellar(['migrate', 'web', '--to', socketOf(to)])
    assert.notEqual(status, 0)
    assert.match(stderr.toString(), why)
    const now = await count(from)
    assert.equal(now.nonce, nonce)
    assert(now.numbers.length >= numbers.length)
    assert.equal((await one(from))?.restarts, 0)
  })
}

test('a guest with a volume moves to a host that has one of its name', async () => {
  for (const host of [from, to]) await host.api('POST', '/v1/projects/default/volumes', { name: 'both' })
  await startTicker(from, ['20'], { volumes: ['both:/data'] })
  const { nonce } = await count(from)
  await from.ok(['migrate', 'web', '--to', socketOf(to)])
  assert.equal((await count(to)).nonce, nonce)
})

test('a guest that is busy with all of its memory moves, and finds every word of it', async () => {
  // 32 MiB that it compares and changes all the time: it ends with 1 if a word is wrong.
  await startTicker(from, ['20', '0', '32', 'busy'], { restart: 'no' })
  for (const [host, next] of [[from, to], [to, from]] as const) {
    const { nonce } = await count(host)
    await host.ok(['migrate', 'web', '--to', socketOf(next)])
    assert.equal((await count(next)).nonce, nonce)
  }
  assert.equal((await one(from))?.phase, 'running')
})
