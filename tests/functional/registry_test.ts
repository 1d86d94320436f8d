// tests/functional/registry_test.ts: images to and from Debian's docker-registry, which we had no part in writing.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { BlobStore } from '../../src/image/blob_store.ts'
import { Images } from '../../src/image/images.ts'
import type { RegistryOptions } from '../../src/image/registry.ts'
import { freePort, guest, startCommand } from '../support.ts'

const PROGRAM = '/usr/bin/docker-registry'
const skip = existsSync(PROGRAM) ? false : `${PROGRAM} isn't installed`
const MIB = 1024 * 1024

/** A registry on a free port; `htpasswd`: who may enter. */
async function registry(htpasswd?: string): Promise<{ host: string; folder: string } & AsyncDisposable> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-registry-'))
  const host = `127.0.0.1:${await freePort()}`
  const lines = ['version: 0.1', 'log: { level: error }',
    `storage: { filesystem: { rootdirectory: "${folder}/data" } }`,
    `http: { addr: "${host}", secret: test }`]
  if (htpasswd !== undefined) {
    writeFileSync(join(folder, 'htpasswd'), htpasswd)
    lines.push(`auth: { htpasswd: { realm: test, path: "${folder}/htpasswd" } }`)
  }
  writeFileSync(join(folder, 'config.yml'), `${lines.join('\n')}\n`)
  const running = startCommand([PROGRAM, 'serve', join(folder, 'config.yml')], { timeoutMs: 120_000 })
  const stop = async (): Promise<void> => {
    running[Symbol.dispose]()
    await running.ended.catch(() => {})
    rmSync(folder, { recursive: true, force: true })
  }
  for (let tries = 0; ; tries++) {
    const isUp = await fetch(`http://${host}/v2/`).then(({ status }) => status === 200 || status === 401, () => false)
    if (isUp) break
    if (tries > 200) {
      await stop()
      throw new Error(`docker-registry doesn't answer: ${running.told()}`)
    }
    await sleep(100)
  }
  return { host, folder, [Symbol.asyncDispose]: stop }
}

/** A store of its own, and where its names are. */
function images(options: RegistryOptions = {}): { images: Images; store: BlobStore; names: Map<string, string> }
& Disposable {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-store-'))
  const names = new Map<string, string>()
  const store = new BlobStore(folder)
  const kept = {
    get: (name: string) => names.get(name),
    set: (name: string, digest: string) => void names.set(name, digest),
    delete: (name: string) => void names.delete(name),
    all: () => names,
  }
  return {
    images: new Images(store, kept, { env: { HOME: folder }, backoffMs: 20, ...options }), store, names,
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  }
}

async function* streamOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

const hello = (): Buffer => readFileSync(guest('hello'))

test('an image that is pushed to docker-registry is pulled from it byte for byte', { skip }, async () => {
  await using server = await registry()
  using from = images()
  using to = images()
  const made = await from.images.importModule(streamOf(hello()), 'hello:1')
  await from.images.push('hello:1', `${server.host}/team/hello:1`)
  const pulled = await to.images.pull(`${server.host}/team/hello:1`)
  assert.equal(pulled.digest, made.digest)
  assert.equal(pulled.module, made.module)
  assert.deepEqual(to.store.read(pulled.module), hello())
  assert.deepEqual(pulled.names, [`${server.host}/team/hello:1`])
  const byDigest = await to.images.pull(`${server.host}/team/hello@${made.digest}`)
  assert.equal(byDigest.digest, made.digest)
})

test('a module of many pieces is pushed in pieces, mounted elsewhere, and pulled', { skip }, async () => {
  await using server = await registry()
  using from = images({ chunkBytes: MIB })
  using to = images()
  const module = Buffer.concat([hello(), randomBytes(5 * MIB + 12_345)])
  const made = await from.images.importModule(streamOf(module), 'big')
  const steps: number[] = []
  await from.images.push('big', `${server.host}/one/big`, { progress: ({ done }) => steps.push(done) })
  assert.ok(steps.length >= 6, `progress of ${steps.length} steps`)
  // The registry has the blobs under one/big: the name tells where from.
  await from.images.tag('big', `${server.host}/one/big`)
  await from.images.push('big', `${server.host}/two/big:x`)
  const pulled = await to.images.pull(`${server.host}/two/big:x`)
  assert.equal(createHash('sha256').update(to.store.read(pulled.module)).digest('hex'), made.module.slice(7))
})

test('an image that docker-registry does not have is said to be missing', { skip }, async () => {
  await using server = await registry()
  using to = images()
  await assert.rejects(to.images.pull(`${server.host}/no/such:1`),
    { code: 'REGISTRY_FAILED', message: /no such image/ })
})

test('credentials of ~/.docker/config.json open a registry with htpasswd, and their absence does not', { skip },
  async (context) => {
    let htpasswd: string
    try {
      htpasswd = execFileSync('python3', ['-c',
        'import crypt; print("me:" + crypt.crypt("secret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))'],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    } catch {
      htpasswd = ''
    }
    if (!htpasswd.startsWith('me:$2')) return context.skip('python3 makes no bcrypt password here')
    await using server = await registry(htpasswd)
    const home = join(server.folder, 'home')
    mkdirSync(join(home, '.docker'), { recursive: true })
    const auth = Buffer.from('me:secret').toString('base64')
    writeFileSync(join(home, '.docker/config.json'), JSON.stringify({ auths: { [server.host]: { auth } } }))
    using known = images({ env: { HOME: home } })
    using stranger = images()
    await known.images.importModule(streamOf(hello()), 'hello')
    await stranger.images.importModule(streamOf(hello()), 'hello')
    await assert.rejects(stranger.images.push('hello', `${server.host}/hello`), { code: 'REGISTRY_DENIED' })
    await known.images.push('hello', `${server.host}/hello`)
    await assert.rejects(stranger.images.pull(`${server.host}/hello`), { code: 'REGISTRY_DENIED' })
    const pulled = await known.images.pull(`${server.host}/hello`)
    assert.deepEqual(known.store.read(pulled.module), hello())
  })

