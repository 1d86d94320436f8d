// tests/functional/host_image_test.ts: images of a host: from a real registry and back, and what nobody needs any more.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { freePort, guest, startCommand, type Running } from '../support.ts'

const PROGRAM = '/usr/bin/docker-registry'
const skip = existsSync(PROGRAM) ? false : `${PROGRAM} isn't installed`

async function registry(folder: string): Promise<{ running: Running; address: string }> {
  const address = `127.0.0.1:${await freePort()}`
  writeFileSync(join(folder, 'config.yml'), ['version: 0.1', 'log: { level: error }',
    `storage: { filesystem: { rootdirectory: "${folder}/data" } }`, `http: { addr: "${address}", secret: test }`, '']
    .join('\n'))
  const running = startCommand([PROGRAM, 'serve', join(folder, 'config.yml')], { timeoutMs: 120_000 })
  await eventually('the registry answers', () => fetch(`http://${address}/v2/`).then(({ ok }) => ok, () => false))
  return { running, address }
}

function blobs(host: TestHost): number {
  return readdirSync(join(host.state, 'blobs/sha256')).length
}

test('an image goes to a registry from one host, and to a guest of another', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-'))
  const { running, address } = await registry(folder)
  try {
    await using one = await startHost()
    await one.ok(['image', 'import', guest('hello'), 'hello:1'])
    await one.ok(['push', 'hello:1', `${address}/team/hello:1`])
    await using two = await startHost()
    await two.ok(['pull', `${address}/team/hello:1`])
    assert.equal((await two.ok(['run', '-d', '--name', 'greeter', `${address}/team/hello:1`])).trim(), 'greeter')
    assert.equal((await two.cellar(['wait', '--for', 'exited', 'greeter'])).status, 0)
    assert.match(await two.ok(['logs', 'greeter']), /Hello/)
    const digest = async (host: TestHost, name: string): Promise<string> =>
      (JSON.parse(await host.ok(['image', 'inspect', name])) as { digest: string }).digest
    assert.equal(await digest(two, `${address}/team/hello:1`), await digest(one, 'hello:1'))
    const { status, stderr } = await two.cellar(['pull', `${address}/team/none:1`])
    assert.equal(status, 1)
    assert.match(stderr, /REGISTRY_FAILED|NOT_FOUND/)
  } finally {
    running[Symbol.dispose]()
    await running.ended
    rmSync(folder, { recursive: true, force: true })
  }
})

test('an image that a guest runs is kept; the others go when they are collected', async () => {
  await using host = await startHost()
  await host.ok(['image', 'import', guest('nap'), 'kept'])
  await host.ok(['image', 'import', guest('hello'), 'gone'])
  await host.ok(['run', '-d', '--name', 'user', 'kept', 'nap', '1000000'])
  const { status, stderr } = await host.cellar(['image', 'rm', 'kept'])
  assert.equal(status, 1)
  assert.match(stderr, /IN_USE/)
  await host.ok(['image', 'tag', 'kept', 'also'])
  const { digest } = JSON.parse(await host.ok(['image', 'inspect', 'kept'])) as { digest: string }
  for (const all of [digest, digest.slice(7, 19)]) {
    assert.match((await host.cellar(['image', 'rm', all])).stderr, /IN_USE/)
  }
  await host.ok(['image', 'rm', 'also'])
  await host.ok(['image', 'rm', 'gone'])
  const before = blobs(host)
  await host.ok(['image', 'gc'])
  // What is young stays: somebody may be about to use it.
  assert.equal(blobs(host), before)
  await host.killAndRestart()
  assert.match(await host.ok(['image', 'ls']), /kept/)
  assert.doesNotMatch(await host.ok(['image', 'ls']), /gone/)
})

test('a folder is a registry, too', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-'))
  try {
    await using host = await startHost()
    await host.ok(['image', 'import', guest('hello'), 'hello:2'])
    await host.ok(['push', 'hello:2', `oci:${folder}/layout:2`])
    await host.ok(['image', 'rm', 'hello:2'])
    await host.ok(['pull', `oci:${folder}/layout:2`])
    assert.match(await host.ok(['image', 'ls']), /layout/)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
