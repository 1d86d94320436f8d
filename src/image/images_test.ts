// image/images_test.ts: names, images for containers, and what is collected.

import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { digestOf, INDEX_TYPE, MADE_OF, makeImage, MANIFEST_TYPE } from './image.ts'
import { fakeRegistry, imagesFor, MODULE, streamOf, tar, type Fake } from './test_support.ts'

const OTHER = Buffer.concat([MODULE, Buffer.from([0, 1, 0])])

type Platform = { os: string; architecture: string }

/** Puts an image for containers into the registry; answers its manifest's digest. */
function addContainer(fake: Fake, tag: string, layers: readonly Buffer[], platform: Platform, entrypoint?: string):
string {
  const config = Buffer.from(JSON.stringify({ ...platform, config: { Entrypoint: entrypoint && [entrypoint] } }))
  const manifest = Buffer.from(JSON.stringify({
    schemaVersion: 2,
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: digestOf(config), size: config.length },
    layers: layers.map((layer) => ({
      mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest: digestOf(layer), size: layer.length,
    })),
  }))
  for (const bytes of [config, ...layers]) fake.blobs.set(digestOf(bytes), bytes)
  for (const name of [tag, digestOf(manifest)]) fake.manifests.set(name, { bytes: manifest, type: MANIFEST_TYPE })
  return digestOf(manifest)
}

function addIndex(fake: Fake, tag: string, manifests: readonly { digest: string; platform?: Platform }[]): string {
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: INDEX_TYPE,
    manifests: manifests.map((one) => ({ mediaType: MANIFEST_TYPE, size: 1, ...one })) }))
  for (const name of [tag, digestOf(bytes)]) fake.manifests.set(name, { bytes, type: INDEX_TYPE })
  return digestOf(bytes)
}

const layer = gzipSync(tar({ name: 'app.wasm', content: MODULE }))
const WASM = { os: 'wasip1', architecture: 'wasm' }

test('Images.importModule makes the same image of the same module', async () => {
  using one = imagesFor()
  using two = imagesFor()
  const image = await one.images.importModule(streamOf(MODULE.subarray(0, 3), MODULE.subarray(3)), 'app')
  assert.equal(image.digest, (await two.images.importModule(streamOf(MODULE))).digest)
  assert.deepEqual(image.names, ['app:latest'])
  assert.equal(image.module, digestOf(MODULE))
  assert.equal(image.sizeBytes, [...one.store.list()].reduce((sum, digest) => sum + one.store.size(digest)!, 0))
  for (const wrong of [Buffer.alloc(0), Buffer.from('\0as'), Buffer.from('#!/bin/sh'), Buffer.alloc(100)]) {
    await assert.rejects(one.images.importModule(streamOf(wrong), 'app'), { code: 'IMAGE_INVALID' })
  }
  for (const name of ['App', `app@${image.digest}`, image.digest, '']) {
    await assert.rejects(one.images.importModule(streamOf(MODULE), name), { code: 'IMAGE_REFERENCE_INVALID' })
  }
  assert.deepEqual(readdirSync(join(one.path, 'ingest')), [])
})

test('Images.resolve knows names, digests of both kinds, and their first digits', async () => {
  using temp = imagesFor()
  const image = await temp.images.importModule(streamOf(MODULE), 'team/app:1')
  const other = await temp.images.importModule(streamOf(OTHER))
  const hex = image.digest.slice(7)
  for (const text of ['team/app:1', image.digest, hex, hex.slice(0, 12), `sha256:${hex.slice(0, 8)}`, image.module,
    image.module.slice(7, 19), `any@${image.digest}`, `any.wasm@${image.module}`]) {
    assert.equal(temp.images.resolve(text).digest, image.digest, text)
  }
  assert.equal(temp.images.resolve(other.digest).names.length, 0)
  assert.equal(temp.images.resolve(`team/app:1@${other.digest}`).digest, other.digest, 'the digest decides')
  for (const text of ['team/app', 'none', hex.slice(0, 3), `sha256:${'0'.repeat(64)}`, '../etc', '', 'sha256:']) {
    assert.throws(() => temp.images.resolve(text), { code: 'NOT_FOUND' }, text)
  }
  assert.deepEqual(new Set(temp.images.list().map(({ digest }) => digest)), new Set([image.digest, other.digest]))
  const details = temp.images.inspect('team/app:1')
  assert.deepEqual(details.layers, [{ mediaType: 'application/wasm', digest: image.module, size: MODULE.length }])
  assert.equal((details.config as { os: string }).os, 'wasip1')
})

test('Images.remove takes names away, and the image with the last one', async () => {
  using temp = imagesFor()
  const { digest, module } = await temp.images.importModule(streamOf(MODULE), 'a')
  await temp.images.tag('a', 'b')
  await temp.images.tag('a', 'registry.example.com/c:1')
  assert.deepEqual(await temp.images.remove('a'), ['a:latest'])
  assert.throws(() => temp.images.resolve('a'), { code: 'NOT_FOUND' })
  assert.deepEqual(temp.images.resolve('b').names, ['b:latest', 'registry.example.com/c:1'])
  assert.deepEqual(await temp.images.remove(digest), ['b:latest', 'registry.example.com/c:1'])
  assert.deepEqual(temp.images.list(), [])
  assert.ok(temp.store.has(module))
  await assert.rejects(temp.images.remove('b'), { code: 'NOT_FOUND' })
})

test('Images.collect keeps what names and roots lead to, and what is young', async () => {
  using temp = imagesFor()
  const named = await temp.images.importModule(streamOf(MODULE), 'a')
  const loose = await temp.images.importModule(streamOf(OTHER))
  assert.equal(temp.images.collect([]), 0)
  assert.equal(temp.images.collect([loose.digest], 0), 0)
  const freed = temp.images.collect([loose.module], 0)
  assert.equal(freed, loose.sizeBytes - OTHER.length)
  assert.ok(temp.store.has(loose.module))
  assert.equal(temp.images.collect(new Set(), 0), OTHER.length)
  assert.deepEqual(temp.images.list().map(({ digest }) => digest), [named.digest])
  await temp.images.remove('a')
  temp.images.collect([], 0)
  assert.deepEqual(temp.store.list(), [])
})

test('Images.collect leaves alone what is being pulled', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  fake.add('1', MODULE)
  let collected = 0
  fake.trick = (request) => {
    // The configuration is there already when the module is asked for.
    if (request.url!.endsWith(digestOf(MODULE))) collected += temp.images.collect([], 0)
    return undefined
  }
  const image = await temp.images.pull(`${fake.host}/app:1`)
  assert.equal(collected, 0)
  assert.equal(temp.images.inspect(image.digest).names.length, 1)
  assert.equal(temp.images.collect([], 0), 0)
})

test('an image for containers becomes one of ours, and is not fetched again', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  const manifest = addContainer(fake, '1', [layer, gzipSync(tar({ name: 'x', content: OTHER }))], WASM, '/app.wasm')
  const image = await temp.images.pull(`${fake.host}/app:1`)
  assert.deepEqual(temp.store.read(image.module), MODULE)
  assert.equal(temp.images.inspect(image.digest).annotations[MADE_OF], manifest)
  temp.images.collect([], 0)
  assert.deepEqual(temp.store.list().length, 3)
  const before = fake.asked.length
  assert.equal((await temp.images.pull(`${fake.host}/app:1`)).digest, image.digest)
  assert.equal(fake.asked.length, before + 2)
  const byDigest = await temp.images.pull(`${fake.host}/app@${manifest}`)
  assert.equal(temp.images.resolve(`${fake.host}/app@${manifest}`).digest, byDigest.digest)
})

test('of an index the platform that runs here is taken', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  const linux = { os: 'linux', architecture: 'amd64' }
  const other = addContainer(fake, 'x', [layer], linux)
  const wasi = addContainer(fake, 'y', [layer], { os: 'wasi', architecture: 'wasm' })
  const best = fake.add('z', MODULE)
  const older = { os: 'wasi', architecture: 'wasm' }
  const platforms = [{ digest: other, platform: linux }, { digest: wasi, platform: older }]
  addIndex(fake, '1', [...platforms, { digest: best, platform: WASM }])
  assert.equal((await temp.images.pull(`${fake.host}/app:1`)).digest, best)
  addIndex(fake, '2', platforms)
  const made = await temp.images.pull(`${fake.host}/app:2`)
  assert.equal(temp.images.inspect(made.digest).annotations[MADE_OF], wasi)
  addIndex(fake, '3', platforms.slice(0, 1))
  await assert.rejects(temp.images.pull(`${fake.host}/app:3`), { code: 'IMAGE_INVALID', message: /linux\/amd64/ })
  const inner = addIndex(fake, '4', [{ digest: best }])
  addIndex(fake, '5', [{ digest: inner, platform: WASM }])
  assert.equal((await temp.images.pull(`${fake.host}/app:4`)).digest, best)
  await assert.rejects(temp.images.pull(`${fake.host}/app:5`), { code: 'IMAGE_INVALID', message: /index in an index/ })
  await assert.rejects(temp.images.pull(`${fake.host}/app:x`), { code: 'IMAGE_INVALID', message: /linux\/amd64/ })
  assert.ok(!temp.store.list().some((digest) => digest === other))
})

test('images with no module, several, one that is none, or beyond the limits are refused', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  const add = (layers: object[], config: object = {}): void => {
    const size = 2
    fake.blobs.set(digestOf(Buffer.from('{}')), Buffer.from('{}'))
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2,
      config: { mediaType: 'a/b', digest: digestOf(Buffer.from('{}')), size, ...config }, layers }))
    fake.manifests.set('1', { bytes, type: MANIFEST_TYPE })
  }
  const text = Buffer.from('#!/bin/sh text')
  fake.blobs.set(digestOf(text), text)
  const wasm = { mediaType: 'application/wasm', digest: digestOf(text), size: text.length }
  const pull = (): Promise<unknown> => temp.images.pull(`${fake.host}/app:1`)
  const cases: [() => void, string, RegExp][] = [
    [() => add([wasm]), 'IMAGE_INVALID', /isn't WebAssembly/],
    [() => add([wasm, wasm]), 'IMAGE_INVALID', /2 modules/],
    [() => add([]), 'IMAGE_INVALID', /layers/],
    [() => add([{ ...wasm, mediaType: 'application/vnd.helm\u001b' }]), 'IMAGE_INVALID', /no module, but/],
    [() => add([{ ...wasm, size: 2 ** 31 }]), 'IMAGE_TOO_LARGE', /bytes/],
    [() => add([{ ...wasm, size: 2 ** 33 }]), 'IMAGE_TOO_LARGE', /bytes/],
    [() => add([{ ...wasm, size: 1e300 }]), 'IMAGE_INVALID', /size/],
    [() => add([{ ...wasm, size: -1 }]), 'IMAGE_INVALID', /size/],
    [() => add([{ ...wasm, digest: 'sha256:../../etc/passwd' }]), 'IMAGE_INVALID', /digest/],
    [() => add([wasm], { size: 2 ** 30 }), 'IMAGE_INVALID', /configuration is too large/],
    [() => add(Array.from({ length: 200 }, () => wasm)), 'IMAGE_INVALID', /layers/],
    [() => addContainer(fake, '1', [text], WASM), 'IMAGE_INVALID', /archive/],
    [() => addContainer(fake, '1', [tar({ name: 'a.wasm', content: text })], WASM), 'IMAGE_INVALID', /Assembly/],
  ]
  for (const [make, code, message] of cases) {
    make()
    await assert.rejects(pull(), { code, message })
  }
  assert.deepEqual([...temp.names], [])
  assert.deepEqual(temp.images.list(), [])
})

test('older images with a module are read as well', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  const config = Buffer.from('{}')
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2,
    config: { mediaType: 'application/vnd.wasm.config.v1+json', digest: digestOf(config), size: config.length },
    layers: [{ mediaType: 'application/vnd.wasm.content.layer.v1+wasm', digest: digestOf(MODULE), size: MODULE.length,
      annotations: { 'org.opencontainers.image.title': 'app.wasm' } }],
    annotations: null }))
  for (const blob of [config, MODULE]) fake.blobs.set(digestOf(blob), blob)
  fake.manifests.set('1', { bytes, type: MANIFEST_TYPE })
  const image = await temp.images.pull(`${fake.host}/app:1`)
  assert.deepEqual([image.digest, image.module], [digestOf(bytes), digestOf(MODULE)])
})

test('a module whose manifest promises another size is refused, also if its blob is there', async () => {
  await using fake = await fakeRegistry()
  using temp = imagesFor()
  await temp.images.importModule(streamOf(MODULE))
  const { config, manifest } = makeImage({ digest: digestOf(MODULE), size: MODULE.length + 1 }, { os: 'wasip1' })
  fake.blobs.set(digestOf(config), config)
  fake.manifests.set('1', { bytes: manifest, type: MANIFEST_TYPE })
  await assert.rejects(temp.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED', message: /9 bytes/ })
})
