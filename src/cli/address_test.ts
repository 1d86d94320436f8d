// cli/address_test.ts: which host is meant, contexts, and what is told of hosts that can't be reached.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { addressOf, placeOf } from './address.ts'
import { FakeHost, runCellar } from './test_support.ts'

const home = mkdtempSync(join(tmpdir(), 'cellar-home-'))
after(() => rmSync(home, { recursive: true }))
const config = join(home, '.config/cellar')
mkdirSync(config, { recursive: true })
// As a person writes it.
writeFileSync(join(config, 'config.yaml'), `current: lab
contexts:
  lab: { host: "https://lab.example.com:7070/cellar/", token: T, ca: lab.pem, project: shop }
  here: { host: /run/x.sock }
`)

const of = async (flags: Record<string, string>, env: Record<string, string> = {}) => await addressOf(
  Object.fromEntries(Object.entries(flags).map(([name, value]) => [name, [value]])), { HOME: home, ...env })

test('addressOf prefers the flag, then the environment, then contexts', async () => {
  const cases: [Record<string, string>, Record<string, string>, string, string, string | undefined][] = [
    [{ host: '/a.sock' }, { CELLAR_HOST: '/b.sock', CELLAR_CONTEXT: 'here' }, '/a.sock', 'default', undefined],
    [{}, { CELLAR_HOST: 'unix:/b.sock', CELLAR_CONTEXT: 'here', CELLAR_TOKEN: 'U' }, '/b.sock', 'default', 'U'],
    [{ context: 'here' }, { CELLAR_CONTEXT: 'lab' }, '/run/x.sock', 'default', undefined],
    [{}, { CELLAR_CONTEXT: 'here', CELLAR_PROJECT: 'p' }, '/run/x.sock', 'p', undefined],
    [{}, {}, 'https://lab.example.com:7070/cellar', 'shop', 'T'],
    [{ project: 'q' }, { CELLAR_PROJECT: 'p' }, 'https://lab.example.com:7070/cellar', 'q', 'T'],
    [{}, { CELLAR_TOKEN: 'U' }, 'https://lab.example.com:7070/cellar', 'shop', 'U'],
    // A context's token is for its host only.
    [{ host: 'http://other:1' }, {}, 'http://other:1', 'default', undefined],
  ]
  for (const [flags, env, text, project, token] of cases) {
    const address = await of(flags, env)
    assert.deepEqual([address.text, address.project, address.token], [text, project, token],
      JSON.stringify([flags, env]))
  }
  assert.equal((await of({})).ca, join(config, 'lab.pem'))
  await assert.rejects(of({ context: 'none' }), { code: 'CONTEXT_INVALID', message: /no context is called "none"/ })
})

test('placeOf refuses what is no address', () => {
  for (const text of ['host', 'ftp://x', '', 'unix:', 'http://']) {
    assert.throws(() => placeOf(text, '--host'), { code: 'FLAG_VALUE_INVALID' }, text)
  }
})

test('a file of contexts that is wrong is told, with what is wrong', async () => {
  const cases: [string, RegExp][] = [
    ['current: [', /\[CONTEXT_INVALID\]/], ['contexts: []\n', /contexts is no mapping/],
      ['contxts: {}\n', /key "contxts"/],
    ['contexts: { a: { token: x } }\n', /context "a" names no host/],
      ['contexts: { a: { host: 5 } }\n', /host of context "a" is no text/],
    ['contexts: { a: { host: /x, tokn: y } }\n', /key "tokn" of context "a"/],
      ['current: a\n', /no context is called "a"/],
  ]
  const wrong = join(home, 'wrong')
  mkdirSync(join(wrong, 'cellar'), { recursive: true })
  for (const [text, message] of cases) {
    writeFileSync(join(wrong, 'cellar/config.yaml'), text)
    const { status, stderr } = await runCellar(['ps'], { cwd: home, env: { XDG_CONFIG_HOME: wrong } })
    assert.equal(status, 1, text)
    assert.match(stderr, message)
  }
})

test('cellar context keeps contexts in a file that only its owner reads', async () => {
  const env = { HOME: join(home, 'other') }
  const cellar = async (line: string, stdin = '') => await runCellar(line.split(' '), { cwd: home, env, stdin })
  assert.equal((await cellar('context ls')).stdout, 'CURRENT   NAME   HOST   PROJECT\n')
  assert.equal((await cellar('context create lab --host https://lab:1 --token-file - --ca lab.pem -P shop',
    'TOKEN\n')).status, 0)
  assert.equal((await cellar('context create here --host sub/host.sock')).status, 0)
  assert.equal((await cellar('context create here --host /x')).status, 1)
  const path = join(env.HOME, '.config/cellar/config.yaml')
  assert.equal(statSync(path).mode & 0o777, 0o600)
  const here = `unix:${join(home, 'sub/host.sock')}`
  assert.equal((await cellar('context ls')).stdout, `CURRENT   NAME   ${'HOST'.padEnd(here.length)}   PROJECT
*         lab    ${'https://lab:1'.padEnd(here.length)}   shop
          here   ${here}\n`)
  const address = await addressOf({}, env)
  assert.deepEqual([address.token, address.ca, address.project], ['TOKEN', join(home, 'lab.pem'), 'shop'])
  assert.equal((await cellar('context use here')).status, 0)
  assert.equal((await addressOf({}, env)).socket, join(home, 'sub/host.sock'))
  assert.equal((await cellar('context rm here')).status, 0)
  assert.equal((await cellar('context use none')).status, 1)
})

test('a host that is not there, or is something else, is told with a hint', async () => {
  const other = createServer((_, response) => response.writeHead(502).end('<html>')).listen(0, '127.0.0.1')
  await new Promise((done) => { other.once('listening', done) })
  try {
    const { port } = other.address() as AddressInfo
    for (const [host, why] of [[join(home, 'none.sock'), /no socket is there/],
      ['http://127.0.0.1:1', /nobody listens there/],
      [`http://127.0.0.1:${port}`, /answered with status 502/]] as const) {
      const { status, stdout, stderr } = await runCellar(['ps', '--host', host], { cwd: home, env: { HOME: home } })
      assert.deepEqual([status, stdout], [1, ''])
      assert.match(stderr, why)
      assert.match(stderr, /\[HOST_UNREACHABLE\]\n {2}hint: Start one with 'cellar host'/)
    }
  } finally {
    other.close()
  }
})

test('a token is sent, and a host behind a path is asked there', async () => {
  await using host = await FakeHost.start({ 'GET /under/v1/projects': [200, { items: [] }] })
  await new Promise<void>((done) => { host.server.close(() => host.server.listen(0, '127.0.0.1', done)) })
  const { port } = host.server.address() as AddressInfo
  const { status } = await host.run(['project', 'ls', '--host', `http://127.0.0.1:${port}/under/`],
    { env: { CELLAR_TOKEN: 'T' } })
  assert.equal(status, 0)
  assert.equal(host.asked[0]!.headers.authorization, 'Bearer T')
})

test('cellar version tells the version of the host, if one answers', async () => {
  await using host = await FakeHost.start({ 'GET /v1': [200, { version: '9.9.9', apiLevel: 3, features: [] }] })
  const { stdout } = await host.run(['version'])
  assert.match(stdout, /^cellar \d+\.\d+\.\d+ \(Node .*\)\nhost 9\.9\.9 \(API level 3\) at .*host\.sock\n$/)
  const json = JSON.parse((await host.run(['version', '-o', 'json'])).stdout) as { host: { version: string } }
  assert.equal(json.host.version, '9.9.9')
  const alone = await runCellar(['version'], { cwd: home, env: { CELLAR_HOST: join(home, 'none.sock') } })
  assert.deepEqual([alone.status, alone.stdout.split('\n').length, alone.stderr], [0, 2, ''])
})
