// host/egress_test.ts: what guests may reach outside.

import assert from 'node:assert/strict'
import { createServer, type AddressInfo } from 'node:net'
import { test } from 'node:test'
import { EACCES, EHOSTUNREACH } from '../base/errno.ts'
import { allows, inwardRule, parseRules, reach } from './egress.ts'

const CASES: readonly (readonly [rules: readonly string[], host: string, port: number, allowed: boolean])[] = [
  [[], 'example.com', 443, false],
  [['example.com'], 'example.com', 443, true],
  [['example.com'], 'EXAMPLE.com.', 80, true],
  [['example.com'], 'www.example.com', 443, false],
  [['example.com'], 'notexample.com', 443, false],
  [['*.example.com'], 'www.example.com', 443, true],
  [['*.example.com'], 'a.b.example.com', 443, true],
  [['*.example.com'], 'example.com', 443, false],
  [['example.com:443'], 'example.com', 443, true],
  [['example.com:443'], 'example.com', 80, false],
  [['10.0.0.0/8'], '10.1.2.3', 5432, true],
  [['10.0.0.0/8:5432'], '10.1.2.3', 5433, false],
  [['10.0.0.0/8'], '11.0.0.1', 80, false],
  [['10.0.0.1'], '10.0.0.1', 80, true],
  [['10.0.0.1'], '10.0.0.2', 80, false],
  [['[fd00::]/8:80'], 'fd00::1', 80, true],
  [['[fd00::]/8'], 'fe00::1', 80, false],
  [['10.0.0.0/8'], '::ffff:10.1.2.3', 80, true],
  // A range is of addresses: it lets no name be asked for.
  [['0.0.0.0/0'], 'example.com', 80, false],
]

for (const [rules, host, port, allowed] of CASES) {
  test(`allows() ${allowed ? 'lets' : 'does not let'} [${rules.join(' ')}] reach ${host}:${port}`, () => {
    assert.equal(allows(parseRules(rules), host, port), allowed)
  })
}

test('allows() lets a name be asked for if any rule has it, whatever the port', () => {
  const rules = parseRules(['example.com:443', 'example.org:80', '10.0.0.0/8'])
  for (const name of ['example.com', 'example.org']) assert.ok(allows(rules, name, undefined), name)
  assert.ok(!allows(rules, 'example.net', undefined))
})

test('reach() does not even resolve a name that is not allowed', async () => {
  const asked: string[] = []
  const attempt = await reach(parseRules(['example.com']), 'secret-data.attacker.net', 53, async (name) => {
    asked.push(name)
    return ['192.0.2.1']
  })
  assert.deepEqual(attempt, { errno: EACCES, why: 'denied' })
  assert.deepEqual(asked, [])
})

for (const address of ['127.0.0.1', '10.0.0.1', '169.254.169.254', '192.168.1.1', '::1', 'fe80::1', '::ffff:127.0.0.1',
  '64:ff9b::7f00:1', '0.0.0.0', '100.64.0.1']) {
  test(`reach() refuses a name that leads to ${address}, which is not public`, async () => {
    assert.deepEqual(await reach(parseRules(['example.com']), 'example.com', 80, async () => [address]),
      { errno: EACCES, why: 'not public' })
  })
}

test('reach() connects to a name that leads into a range that is allowed, too', async () => {
  const server = createServer((socket) => socket.on('error', () => {}).end('hello')).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  try {
    const attempt = await reach(parseRules(['db.example', `127.0.0.0/8:${port}`]), 'db.example', port,
      async () => ['127.0.0.1'])
    assert.ok('socket' in attempt)
    assert.equal(attempt.socket.bytesRead, 0)
    attempt.socket.destroy()
  } finally {
    server.close()
  }
})

test('reach() says when a name leads nowhere', async () => {
  assert.deepEqual(await reach(parseRules(['example.com']), 'example.com', 80, async () => { throw new Error('no') }),
    { errno: EHOSTUNREACH, why: 'unresolved' })
  assert.deepEqual(await reach(parseRules(['example.com']), 'example.com', 80, async () => []),
    { errno: EHOSTUNREACH, why: 'unresolved' })
})

test('inwardRule finds ranges with an address that is not public, however they are written', () => {
  for (const rule of ['0.0.0.0/0', '127.0.0.1', '127.0.0.1:80', '8.0.0.0/5', '169.254.169.254/32:80', '[::]/0',
    '[::1]:80', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[::ffff:7000:0]/100', '[fe80::1]']) {
    assert.equal(inwardRule(['example.com', '1.1.1.1', rule]), rule)
  }
  assert.equal(inwardRule(['example.com', '*.example.com:443', '1.1.1.1', '8.8.8.0/24:53', '[2600::]/16']), undefined)
})
