// tests/faults/host_bombs_test.ts: manifests and requests that are small and would become large, or are large at once.
//
// Each is refused in words and in a bounded time; the host has no more memory afterwards, and goes on answering.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, startHost } from '../host_support.ts'
import { Folder, guest } from '../support.ts'
import { guestsOf, pidOf, residentBytes } from './faults_support.ts'

const GROWTH_BYTES_MAX = 200 * 1024 * 1024

/** Nine times nine … aliases: a billion of laughs from a few hundred bytes. */
function aliases(): string {
  const lines = ['a: &a ["x","x","x","x","x","x","x","x","x"]']
  for (let i = 1; i < 12; i++) {
    const [name, before] = [String.fromCharCode(97 + i), String.fromCharCode(96 + i)]
    lines.push(`${name}: &${name} [${Array.from({ length: 9 }, () => `*${before}`).join(',')}]`)
  }
  return `${lines.join('\n')}\ncells: *l\n`
}

test('manifests that are bombs are refused by apply and run, in words', async () => {
  await using host = await startHost()
  using folder = new Folder()
  const env = '    env:\n' + Array.from({ length: 400_000 }, (_, i) => `      KEY_${i}_${'x'.repeat(10)}: v\n`).join('')
  const bombs: Readonly<Record<string, string>> = {
    aliases: aliases(),
    depth: `cells: ${'['.repeat(20_000)}${']'.repeat(20_000)}\n`,
    indents: Array.from({ length: 3000 }, (_, i) => `${' '.repeat(i)}a:\n`).join(''),
    keys: `cells:\n  a:\n    program: "${guest('nap')}"\n${env}`,
    cells: `cells:\n${Array.from({ length: 60_000 }, (_, i) => `  c${i}: { program: "${guest('nap')}" }\n`).join('')}`,
    itself: 'cells: &a { b: *a }\n',
    prototype: 'cells: { __proto__: { program: "/etc/passwd" } }\n',
    nothing: '',
    binary: '\0\u0001\u0002',
  }
  const pid = await pidOf(host)
  const before = residentBytes(pid)
  for (const [what, text] of Object.entries(bombs)) {
    const path = folder.write(`${what}.yaml`, text)
    const { status, stderr } = await host.cellar(['apply', '-f', path], { timeoutMs: 30_000 })
    assert.ok(status !== null && status !== 0, `${what}: ${status}`)
    assert.match(stderr, /^cellar: [^\n]+\[[A-Z_]+\]\n/, what)
    assert.ok(stderr.length < 4000, what)
    assert.doesNotMatch(stderr, /INTERNAL|Maximum call stack|RangeError/, what)
  }
  assert.deepEqual(await guestsOf(host), [])
  assert.ok(residentBytes(pid) - before < GROWTH_BYTES_MAX)
})

test('requests that nest, repeat or grow without end are refused, and the next one is answered', async () => {
  await using host = await startHost()
  const pid = await pidOf(host)
  const before = residentBytes(pid)
  const type = { 'content-type': 'application/json' }
  const nested = (open: string, close: string, depth: number): Buffer =>
    Buffer.from(`{"name":"a","spec":${open.repeat(depth)}1${close.repeat(depth)}}`)
  const bodies: readonly (readonly [what: string, body: Buffer, statuses: readonly number[]])[] = [
    ['lists in lists', nested('[', ']', 400_000), [413]],
    ['objects in objects', nested('{"a":', '}', 150_000), [413]],
    ['values', Buffer.from(`{"name":"a","spec":[${'1,'.repeat(400_000)}1]}`), [413]],
    ['keys', Buffer.from(`{"name":"a","spec":{${Array.from({ length: 60_000 }, (_, i) => `"k${i}":1`).join()}}}`),
      [400, 413, 422]],
    ['10 MB', Buffer.from(`{"name":"${'x'.repeat(10_000_000)}"}`), [413]],
    ['a long number', Buffer.from(`{"name":"a","spec":{"image":"x","shares":1${'0'.repeat(500_000)}}}`), [400, 422]],
    ['a prototype', Buffer.from('{"name":"a","spec":{"image":"x","env":{"__proto__":{"a":1}}}}'), [400, 404, 422]],
    ['half of it', Buffer.from('{"name":"a","spec":{'), [400]],
    ['no text', Buffer.from([0xff, 0xfe, 0x00]), [400]],
  ]
  for (const [what, body, statuses] of bodies) {
    for (let i = 0; i < 3; i++) {
      const { status } = await host.api('POST', '/v1/projects/default/guests', body, type)
      assert.ok(statuses.includes(status), `${what}: ${status}`)
    }
    assert.equal((await host.api('GET', '/readyz')).status, 200, what)
  }
  assert.deepEqual(await guestsOf(host), [])
  await eventually('memory is free again', () => residentBytes(pid) - before < GROWTH_BYTES_MAX)
})
