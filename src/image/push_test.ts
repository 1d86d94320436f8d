// image/push_test.ts: uploads to registries: in one piece, in several, broken, mounted.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { digestOf } from './image.ts'
import { fakeRegistry, imagesFor, MODULE, streamOf, type Fake, type Trick } from './test_support.ts'

const KIB = 1024

/** Uploads as the specification has them; `before` may answer first, or break the connection. */
function uploads(fake: Fake, before: Trick = () => undefined): { has: Map<string, Buffer> } {
  const has = new Map<string, Buffer>()
  fake.trick = async (request, response, body) => {
    if (await before(request, response, body) === true) return true
    const url = new URL(request.url!, 'http://x')
    const [, id] = /^\/upload\/(\d+)$/.exec(url.pathname) ?? []
    if (request.method === 'POST') {
      const next = String(has.size)
      has.set(next, Buffer.alloc(0))
      response.writeHead(202, { location: `/upload/${next}?state=${next}` }).end()
      return true
    }
    if (id === undefined) return undefined
    const got = has.get(id)!
    const range = (length: number): string => `0-${Math.max(length - 1, 0)}`
    if (request.method === 'GET') {
      response.writeHead(204, { range: range(got.length) }).end()
    } else if (request.method === 'PATCH') {
      const [from] = request.headers['content-range']!.split('-')
      if (Number(from) !== got.length) response.writeHead(416, { range: range(got.length) }).end()
      else {
        has.set(id, Buffer.concat([got, body]))
        response.writeHead(202, { location: `/upload/${id}?state=${id}`, range: range(got.length + body.length) }).end()
      }
    } else {
      const whole = Buffer.concat([got, body])
      const isRight = url.searchParams.get('digest') === digestOf(whole) && url.searchParams.get('state') === id
      if (isRight) fake.blobs.set(digestOf(whole), whole)
      response.writeHead(isRight ? 201 : 400).end()
    }
    return true
  }
  return { has }
}

const methods = (fake: Fake, method: string): string[] =>
  fake.asked.map(({ line }) => line).filter((line) => line.startsWith(`${method} `))

test('Images.push gives a registry the blobs that it lacks, then the manifest', async () => {
  await using fake = await fakeRegistry()
  using from = imagesFor()
  uploads(fake)
  const image = await from.images.importModule(streamOf(MODULE), 'app')
  await from.images.push('app', `${fake.host}/team/app:2`)
  assert.deepEqual(fake.blobs.get(image.module), MODULE)
  assert.equal(digestOf(fake.manifests.get('2')!.bytes), image.digest)
  assert.match(fake.asked.at(-1)!.line, /^PUT \/v2\/team\/app\/manifests\/2$/)
  const before = methods(fake, 'POST').length
  await from.images.push('app', `${fake.host}/team/app:3`)
  assert.equal(methods(fake, 'POST').length, before)
  for (const to of ['app', 'team/app', `${fake.host}/app@${image.digest}`]) {
    await assert.rejects(from.images.push('app', to), /registry|name of an image/)
  }
})

test('a large blob goes in pieces, and on behind those that arrived when one fails', async () => {
  for (const failure of ['cut', 'busy', 'lost', 'done']) {
    await using fake = await fakeRegistry()
    using from = imagesFor({ chunkBytes: 64 * KIB })
    let patches = 0
    const { has } = uploads(fake, (request, response, body) => {
      if (request.method !== 'PATCH' || ++patches !== 3) return undefined
      const id = /\d+/.exec(request.url!)![0]
      if (failure === 'busy') response.writeHead(503).end()
      else {
        // Half a piece, all of it, or nothing has arrived.
        const part = failure === 'cut' ? body.subarray(0, 1000) : failure === 'done' ? body : Buffer.alloc(0)
        has.set(id, failure === 'lost' ? Buffer.alloc(0) : Buffer.concat([has.get(id)!, part]))
        response.destroy()
      }
      return true
    })
    const module = Buffer.concat([MODULE, randomBytes(400 * KIB)])
    await from.images.importModule(streamOf(module), 'app')
    await from.images.push('app', `${fake.host}/app`)
    assert.deepEqual(fake.blobs.get(digestOf(module)), module, failure)
    if (failure === 'cut') {
      assert.ok(fake.asked.some(({ headers }) => headers['content-range']?.startsWith(`${128 * KIB + 1000}-`)))
    }
  }
})

test('a small blob that fails is sent anew', async () => {
  await using fake = await fakeRegistry()
  using from = imagesFor()
  let puts = 0
  uploads(fake, (request, response) => {
    if (request.method !== 'PUT' || ++puts !== 1) return undefined
    response.destroy()
    return true
  })
  const { module } = await from.images.importModule(streamOf(MODULE), 'app')
  await from.images.push('app', `${fake.host}/app`)
  assert.ok(fake.blobs.has(module))
})

test('an upload that arrived though its answer did not is not sent again', async () => {
  await using fake = await fakeRegistry()
  using from = imagesFor({ chunkBytes: 4 })
  const { module } = await from.images.importModule(streamOf(MODULE), 'app')
  const { has } = uploads(fake, (request, response) => {
    if (request.method !== 'PUT' || !request.url!.includes(encodeURIComponent(module))) return undefined
    fake.blobs.set(module, has.get(/\d+/.exec(request.url!)![0])!)
    response.destroy()
    return true
  })
  await from.images.push('app', `${fake.host}/app`)
  assert.deepEqual(fake.blobs.get(module), MODULE)
  // One upload of the module, one of the configuration.
  assert.equal(methods(fake, 'POST').length, 2)
})

test('a blob that another repository of the registry has is mounted', async () => {
  await using fake = await fakeRegistry()
  using from = imagesFor()
  fake.add('1', MODULE)
  await from.images.pull(`${fake.host}/one:1`)
  const stored = new Map(fake.blobs)
  fake.trick = (request, response) => {
    const url = new URL(request.url!, 'http://x')
    if (request.method === 'HEAD') response.writeHead(404).end()
    else if (request.method !== 'POST') return undefined
    else {
      const isThere = url.searchParams.get('from') === 'one' && stored.has(url.searchParams.get('mount')!)
      response.writeHead(isThere ? 201 : 500).end()
    }
    return true
  }
  await from.images.push(`${fake.host}/one:1`, `${fake.host}/two`)
  assert.equal(methods(fake, 'POST').length, 2)
})

test('an upload that is sent to no safe place, or refused, fails', async () => {
  await using fake = await fakeRegistry()
  using from = imagesFor()
  await from.images.importModule(streamOf(MODULE), 'app')
  for (const location of ['file:///x', '', 'http://a:b@localhost/']) {
    uploads(fake, (request, response) => {
      if (request.method === 'POST') response.writeHead(202, { location }).end()
      return request.method === 'POST'
    })
    await assert.rejects(from.images.push('app', `${fake.host}/app`), { code: 'REGISTRY_FAILED', message: /safe/ })
  }
  for (const [status, code] of [[403, 'REGISTRY_DENIED'], [405, 'REGISTRY_FAILED']] as const) {
    uploads(fake, (request, response) => {
      if (request.method === 'POST') response.writeHead(status).end()
      return request.method === 'POST'
    })
    await assert.rejects(from.images.push('app', `${fake.host}/app`), { code })
  }
})
