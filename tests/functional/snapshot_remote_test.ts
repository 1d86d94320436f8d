// tests/functional/snapshot_remote_test.ts: a snapshot goes to a registry's folder, and another host goes on from it.

import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { guestsOf } from '../faults/faults_support.ts'
import { follow, startTicker } from '../faults/migrate_support.ts'
import { eventually, startHost, type TestHost } from '../host_support.ts'

let folder: string
let one: TestHost
let other: TestHost
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cr-'))
  one = await startHost()
  other = await startHost()
})
after(async () => {
  await Promise.all([one?.[Symbol.asyncDispose](), other?.[Symbol.asyncDispose]()])
  rmSync(folder, { recursive: true })
})

async function nonceOf(host: TestHost, name: string): Promise<string> {
  const heard = follow(host, name)
  const [nonce] = await eventually('it counts', () => [...heard.ticks].find(([, all]) => all.length > 3))
  heard.stop()
  return nonce
}

test('a snapshot is pushed by one host, pulled by another, and a guest goes on from it there', async () => {
  await startTicker(one, ['20', '0', '4'])
  const nonce = await nonceOf(one, 'web')
  await one.ok(['snapshot', 'web', 'warm'])
  await one.ok(['snapshot', 'push', 'warm', `oci:${folder}:1`])
  await other.ok(['snapshot', 'pull', `oci:${folder}:1`, 'warm'])
  assert.match(await other.ok(['snapshot', 'ls']), /warm/)
  await other.ok(['restore', 'warm', '--name', 'copy'])
  assert.equal(await nonceOf(other, 'copy'), nonce)
  // Both run: it was copied, not moved. Nothing of it is left on the way.
  assert.equal((await guestsOf(one)).length, 1)
  for (const host of [one, other]) assert.deepEqual(readdirSync(host.state).includes('transfers') &&
    readdirSync(join(host.state, 'transfers')), [])
  // A second pull of the same fetches nothing, and gives it another name.
  await other.ok(['snapshot', 'pull', `oci:${folder}:1`, 'again'])
  await other.ok(['restore', 'again', '--name', 'third'])
  assert.equal(await nonceOf(other, 'third'), nonce)
})

test('a pulled snapshot that is damaged is refused, and nothing of it stays', async () => {
  const blobs = join(folder, 'blobs/sha256')
  for (const name of readdirSync(blobs)) {
    const bytes = readFileSync(join(blobs, name))
    if (bytes.length < 10_000 || bytes.subarray(0, 4).toString('latin1') === '\0asm') continue
    bytes[bytes.length >> 1]! ^= 1
    rmSync(join(blobs, name))
    writeFileSync(join(blobs, name), bytes)
  }
  await using third = await startHost()
  const { status, stderr } = await third.cellar(['snapshot', 'pull', `oci:${folder}:1`, 'bad'])
  assert.notEqual(status, 0)
  assert.match(stderr.toString(), /digest|damaged/)
  assert.doesNotMatch(await third.ok(['snapshot', 'ls']), /bad/)
})

test('who is limited to a project pulls no snapshot of a guest that may do what its own may not', async () => {
  await one.ok(['run', '-d', '--name', 'inward', '--egress', '10.0.0.0/8', 'ticker', '20'])
  await one.ok(['snapshot', 'inward', 'inward'])
  await one.ok(['snapshot', 'push', 'inward', `oci:${folder}:2`])
  // With scope admin it may use folders of the host.
  const { body } = await other.api('POST', '/v1/tokens', { name: 'limited', scope: 'admin', project: 'default' })
  const { token } = body as { token: string }
  const begun = await other.api('POST', '/v1/projects/default/snapshots/pull', { reference: `oci:${folder}:2` },
    { authorization: `Bearer ${token}` })
  assert.equal(begun.status, 202, JSON.stringify(begun.body))
  const { id } = begun.body as { id: string }
  const ended = await eventually('the pull has ended', async () => {
    const { body } = await other.api('GET', `/v1/operations/${id}`)
    return (body as { status: string }).status !== 'running' && body
  })
  assert.equal((ended as { error?: { code: string } }).error?.code, 'FORBIDDEN')
})
