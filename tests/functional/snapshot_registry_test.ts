// tests/functional/snapshot_registry_test.ts: snapshots to and from Debian's docker-registry, which we had no part in.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { BlobStore } from '../../src/image/blob_store.ts'
import { pullSnapshot, pushSnapshot, type Places } from '../../src/snapshot/artifact.ts'
import { memoryOf, metaOf, newStore, stateOf } from '../../src/snapshot/test_support.ts'
import { freePort, startCommand } from '../support.ts'

const PROGRAM = '/usr/bin/docker-registry'
const skip = existsSync(PROGRAM) ? false : `${PROGRAM} isn't installed`
const MODULE = Buffer.from('\0asm\x01\0\0\0', 'latin1')

function host(folder: string): { places: Places } & Disposable {
  const rig = newStore()
  const places = { snapshots: rig.store, blobs: new BlobStore(mkdtempSync(join(folder, 'blobs-'))),
    staging: mkdtempSync(join(folder, 'staging-')), registry: { env: { HOME: folder } } }
  return { places, [Symbol.dispose]: () => rig[Symbol.dispose]() }
}

test('a registry takes a snapshot, and gives it to another host', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-registry-'))
  const address = `127.0.0.1:${await freePort()}`
  writeFileSync(join(folder, 'config.yml'), `version: 0.1\nlog: { level: error }\n` +
    `storage: { filesystem: { rootdirectory: "${folder}/data" } }\nhttp: { addr: "${address}", secret: test }\n`)
  const running = startCommand([PROGRAM, 'serve', join(folder, 'config.yml')], { timeoutMs: 60_000 })
  try {
    for (let tries = 0; !await fetch(`http://${address}/v2/`).then(({ ok }) => ok, () => false); tries++) {
      assert.ok(tries < 200, running.told())
      await sleep(100)
    }
    using from = host(folder)
    using to = host(folder)
    const module = await from.places.blobs.put([MODULE], { maxBytes: 100 })
    // More than one piece of an upload, in several layers.
    const pages = Object.fromEntries(Array.from({ length: 600 }, (_, page) =>
      [page, page % 2 === 0 ? 'random' as const : page % 256]))
    const state = stateOf(memoryOf(1000, pages))
    const { digest } = await from.places.snapshots.write(metaOf({ module }), state, { durable: false })
    const pushed = await pushSnapshot(from.places, digest, `${address}/team/counter:1`)
    for (const name of [`${address}/team/counter:1`, `${address}/team/counter@${pushed.digest}`]) {
      assert.deepEqual(await pullSnapshot(to.places, name), { digest, module })
    }
    assert.deepEqual((await to.places.snapshots.read(digest, { module })).state, state)
    assert.deepEqual(to.places.blobs.read(module), MODULE)
  } finally {
    running[Symbol.dispose]()
    await running.ended.catch(() => {})
    rmSync(folder, { recursive: true, force: true })
  }
})
