// snapshot/artifact_test.ts: snapshots to and from registries, honest and not.

import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { digestOf } from '../image/image.ts'
import { fakeRegistry, imagesFor, MODULE, streamOf, type Fake } from '../image/test_support.ts'
import { pullSnapshot, pushSnapshot, type Places } from './artifact.ts'
import { memoryOf, metaOf, newStore, stateOf } from './test_support.ts'

const MODULE_DIGEST = digestOf(MODULE)
const PAGES = Object.fromEntries(Array.from({ length: 600 }, (_, page) =>
  [page, page % 5 === 0 ? 'random' as const : page]))

function host(): { places: Places; images: ReturnType<typeof imagesFor> } & Disposable {
  const [snapshots, images] = [newStore(), imagesFor()]
  const registry = { env: { HOME: images.path }, backoffMs: 1, stallMs: 10_000 }
  return {
    images,
    places: { snapshots: snapshots.store, blobs: images.store, staging: join(images.path, 'staging'), registry },
    [Symbol.dispose]: () => [snapshots, images].forEach((one) => one[Symbol.dispose]()),
  }
}

/** A host with a snapshot of the smallest module. */
async function hostWithSnapshot(pages: Record<number, number | 'random'> = PAGES):
Promise<ReturnType<typeof host> & { digest: string }> {
  const made = host()
  await made.images.store.put(streamOf(MODULE), { maxBytes: 100 })
  const meta = metaOf({ module: MODULE_DIGEST })
  const { digest } = await made.places.snapshots.write(meta, stateOf(memoryOf(1000, pages)), { durable: false })
  return Object.assign(made, { digest })
}

/** Takes blobs that are pushed in one piece. */
function taking(fake: Fake): void {
  fake.trick = (request, response, body) => {
    const url = new URL(request.url!, 'http://x')
    if (request.method === 'POST') response.writeHead(202, { location: `${url.pathname}1` }).end()
    else if (request.method === 'PUT' && url.pathname.includes('/uploads/')) {
      fake.blobs.set(url.searchParams.get('digest')!, body)
      response.writeHead(201).end()
    } else return undefined
    return true
  }
}

type Layer = { mediaType: string; digest: string; size: number }

/** A registry's manifest, changed. */
function tamper(fake: Fake, tag: string, change: (manifest: { layers: Layer[] }) => void): void {
  const { bytes, type } = fake.manifests.get(tag)!
  const manifest = JSON.parse(bytes.toString()) as Parameters<typeof change>[0]
  change(manifest)
  fake.manifests.set(tag, { bytes: Buffer.from(JSON.stringify(manifest)), type })
}

test('a snapshot that was pushed is pulled elsewhere, with its program', async () => {
  await using fake = await fakeRegistry()
  using from = await hostWithSnapshot()
  using to = host()
  taking(fake)
  const seen: number[] = []
  await pushSnapshot(from.places, from.digest, `${fake.host}/team/counter:1`,
    { progress: ({ done }) => seen.push(done) })
  assert.ok(seen.length > 3 && seen.at(-1)! >= Math.max(...seen))
  const pulled = await pullSnapshot(to.places, `${fake.host}/team/counter:1`)
  assert.deepEqual(pulled, { digest: from.digest, module: MODULE_DIGEST })
  const [came, went] = [await to.places.snapshots.read(pulled.digest), await from.places.snapshots.read(from.digest)]
  assert.deepEqual(came.state, went.state)
  assert.deepEqual(to.places.blobs.read(MODULE_DIGEST), MODULE)
  for (const { places } of [from, to]) assert.deepEqual(readdirSync(places.staging), [])
  // All that is there, only the snapshot itself is fetched again.
  fake.asked.length = 0
  await pullSnapshot(to.places, `${fake.host}/team/counter:1`)
  assert.equal(fake.asked.filter(({ line }) => line.includes('/blobs/')).length, 1)
})

test('a snapshot goes to a folder and comes back, by tag or as the only one', async () => {
  using from = await hostWithSnapshot()
  using to = host()
  const folder = join(from.images.path, 'layout')
  const { digest } = await pushSnapshot(from.places, from.digest, `oci:${folder}:one`)
  assert.ok(existsSync(join(folder, 'blobs/sha256', digest.slice(7))))
  for (const text of [`oci:${folder}`, `oci:${folder}:one`]) {
    assert.equal((await pullSnapshot(to.places, text)).digest, from.digest)
  }
})

test('parts of the memory that have not changed are in the registry already', async () => {
  await using fake = await fakeRegistry()
  using from = await hostWithSnapshot()
  taking(fake)
  await pushSnapshot(from.places, from.digest, `${fake.host}/counter:1`)
  const { meta, state } = await from.places.snapshots.read(from.digest)
  Buffer.from(state.memory!.bytes).fill(1, 0, 65_536)
  const next = await from.places.snapshots.write(meta, state, { durable: false })
  const before = [...fake.blobs.keys()]
  await pushSnapshot(from.places, next.digest, `${fake.host}/counter:2`)
  const added = [...fake.blobs].filter(([digest]) => !before.includes(digest))
  // The snapshot, and one of three parts.
  assert.equal(added.length, 2)
})

test('an image is no snapshot, and a snapshot no image', async () => {
  await using fake = await fakeRegistry()
  using from = await hostWithSnapshot({})
  using to = host()
  taking(fake)
  fake.add('app', MODULE)
  await assert.rejects(pullSnapshot(to.places, `${fake.host}/x:app`), { code: 'IMAGE_INVALID', message: /no snapshot/ })
  await pushSnapshot(from.places, from.digest, `${fake.host}/x:snap`)
  await assert.rejects(to.images.images.pull(`${fake.host}/x:snap`), { code: 'IMAGE_INVALID', message: /no module/ })
  await assert.rejects(pullSnapshot(to.places, `${fake.host}/x:none`), { code: 'REGISTRY_FAILED' })
  await assert.rejects(pullSnapshot(to.places, 'app'), { code: 'REGISTRY_FAILED', message: /names none/ })
  await assert.rejects(pushSnapshot(from.places, `sha256:${'00'.repeat(32)}`, `${fake.host}/x`), { code: 'NOT_FOUND' })
})

test('a snapshot whose program is not here is not pushed', async () => {
  using from = await hostWithSnapshot({})
  from.places.blobs.remove(MODULE_DIGEST)
  await assert.rejects(pushSnapshot(from.places, from.digest, `oci:${from.images.path}/layout`), { code: 'NOT_FOUND' })
})

test('a registry that lies is found out, and nothing is kept', async () => {
  await using fake = await fakeRegistry()
  using from = await hostWithSnapshot({ 1: 'random', 2: 5 })
  taking(fake)
  await pushSnapshot(from.places, from.digest, `${fake.host}/x:1`)
  const manifest = fake.manifests.get('1')!
  const blobs = new Map(fake.blobs)
  const ofType = (layers: Layer[], type: string): Layer => layers.find(({ mediaType }) => mediaType.includes(type))!
  const without = (layers: Layer[], type: string): Layer[] =>
    layers.filter(({ mediaType }) => !mediaType.includes(type))
  const cases: [what: string, code: RegExp, change: Parameters<typeof tamper>[2]][] = [
    ['another program', /IMAGE_INVALID/, ({ layers }) => {
      const bytes = Buffer.concat([MODULE, Buffer.from([0, 1, 0])])
      fake.blobs.set(digestOf(bytes), bytes)
      Object.assign(ofType(layers, 'module'), { digest: digestOf(bytes), size: bytes.length })
    }],
    ['no program', /IMAGE_INVALID/, (all) => { all.layers = without(all.layers, 'module') }],
    ['two snapshots', /IMAGE_INVALID/, ({ layers }) => layers.push(layers[0]!)],
    ['a newer one', /SNAPSHOT_NEWER/, ({ layers }) => { layers[0]!.mediaType = 'application/vnd.cellar.snapshot.v2' }],
    ['no chunks', /SNAPSHOT_DAMAGED/, (all) => { all.layers = without(all.layers, 'chunks') }],
    ['too many chunks', /IMAGE_TOO_LARGE/, ({ layers }) => { ofType(layers, 'chunks').size = 2 ** 40 }],
    ['too large', /IMAGE_INVALID/, ({ layers }) => { layers[0]!.size = 2 ** 40 }],
    ['chunks for a snapshot', /SNAPSHOT_DAMAGED/, ({ layers }) =>
      Object.assign(layers[0]!, { ...ofType(layers, 'chunks'), mediaType: layers[0]!.mediaType })],
    ['a snapshot for chunks', /SNAPSHOT_DAMAGED/, ({ layers }) =>
      Object.assign(ofType(layers, 'chunks'), { digest: layers[0]!.digest, size: layers[0]!.size })],
  ]
  for (const [what, code, change] of cases) {
    using to = host()
    fake.manifests.set('1', manifest)
    tamper(fake, '1', change)
    await assert.rejects(pullSnapshot(to.places, `${fake.host}/x:1`), { code }, what)
    assert.deepEqual(to.places.snapshots.list(), [], what)
    assert.deepEqual(readdirSync(to.places.staging), [], what)
  }
  fake.manifests.set('1', manifest)
  for (const digest of blobs.keys()) {
    using to = host()
    if (blobs.get(digest)!.length === 2) continue
    fake.blobs.set(digest, Buffer.alloc(blobs.get(digest)!.length))
    await assert.rejects(pullSnapshot(to.places, `${fake.host}/x:1`), { code: 'IMAGE_DIGEST_WRONG' })
    fake.blobs.set(digest, blobs.get(digest)!)
  }
})

test('a pull that is cancelled says so, and leaves nothing', async () => {
  await using fake = await fakeRegistry()
  using from = await hostWithSnapshot({ 1: 'random' })
  using to = host()
  taking(fake)
  await pushSnapshot(from.places, from.digest, `${fake.host}/x:1`)
  const abort = new AbortController()
  fake.trick = (request) => {
    if (request.url!.includes('/blobs/')) abort.abort()
    return undefined
  }
  await assert.rejects(pullSnapshot(to.places, `${fake.host}/x:1`, { signal: abort.signal }),
    { code: 'OPERATION_CANCELLED' })
  assert.deepEqual([to.places.snapshots.list(), readdirSync(to.places.staging)], [[], []])
})
