// image/registry_test.ts: registries that lie, stall, cut, redirect and ask who we are.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { digestOf } from './image.ts'
import { Registry } from './registry.ts'
import { parseReference } from './reference.ts'
import { fakeRegistry, imagesFor, MODULE, type Fake, type Trick } from './test_support.ts'

const KIB = 1024
const big = (): Buffer => Buffer.concat([MODULE, randomBytes(300 * KIB)])
const blobUrl = (bytes: Uint8Array): string => `/blobs/${digestOf(bytes)}`

/** Only GETs of the blob of `bytes` are tricked. */
const onBlob = (bytes: Uint8Array, trick: Trick): Trick => (request, response, body) =>
  request.method === 'GET' && request.url!.endsWith(blobUrl(bytes)) ? trick(request, response, body) : undefined

const ranges = (fake: Fake, bytes: Uint8Array): (string | undefined)[] =>
  fake.asked.filter(({ line }) => line.startsWith('GET') && line.endsWith(blobUrl(bytes)))
    .map(({ headers }) => headers.range)

test('Registry pulls an image and checks it', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const digest = fake.add('1', MODULE)
  const steps: { done: number; total: number }[] = []
  const image = await to.images.pull(`${fake.host}/app:1`, { progress: (step) => steps.push(step) })
  assert.equal(image.digest, digest)
  assert.equal(image.module, digestOf(MODULE))
  assert.equal(image.size, MODULE.length)
  assert.deepEqual(image.names, [`${fake.host}/app:1`])
  assert.equal(steps.at(-1)!.done, steps.at(-1)!.total)
  await assert.rejects(to.images.pull(`${fake.host}/app:2`), { code: 'REGISTRY_FAILED', message: /no such image/ })
})

test('a blob that is cut is asked for from where it broke', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const module = big()
  fake.add('1', module)
  let cuts = 0
  fake.trick = onBlob(module, (request, response) => {
    if (cuts++ >= 2) return false
    const from = Number(/\d+/.exec(request.headers.range ?? '0')![0])
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': module.length - from,
      'content-range': `bytes ${from}-${module.length - 1}/${module.length}` })
    response.write(module.subarray(from, from + 100 * KIB), () => setTimeout(() => response.destroy(), 20))
    return true
  })
  const image = await to.images.pull(`${fake.host}/app:1`)
  assert.deepEqual(to.store.read(image.module), module)
  const [first, second, third] = ranges(fake, module)
  assert.equal(first, undefined)
  assert.match(second!, /^bytes=[1-9]\d*-$/)
  assert.match(third!, /^bytes=[1-9]\d*-$/)
  assert.ok(Number(/\d+/.exec(third!)![0]) >= Number(/\d+/.exec(second!)![0]))
})

test('what an interrupted pull has fetched is used by the next one, and a damaged rest is fetched anew', async () => {
  for (const damaged of [false, true]) {
    await using fake = await fakeRegistry()
    using to = imagesFor()
    const module = big()
    fake.add('1', module)
    const partial = await to.store.resumable(digestOf(module))
    await partial.append(damaged ? Buffer.alloc(1000) : module.subarray(0, 1000))
    await partial.close()
    await to.images.pull(`${fake.host}/app:1`)
    assert.deepEqual(to.store.read(digestOf(module)), module)
    assert.deepEqual(ranges(fake, module), damaged ? ['bytes=1000-', undefined] : ['bytes=1000-'])
  }
})

test('a registry that ignores or misreads Range has the blob fetched from its begin', async () => {
  for (const status of [200, 206, 416]) {
    await using fake = await fakeRegistry()
    using to = imagesFor()
    const module = big()
    fake.add('1', module)
    const partial = await to.store.resumable(digestOf(module))
    await partial.append(module.subarray(0, 1000))
    await partial.close()
    fake.trick = onBlob(module, (request, response) => {
      if (request.headers.range === undefined) return false
      response.writeHead(status, status === 206 ? { 'content-range': `bytes 5-${module.length}/*` } : {})
      response.end(status === 416 ? undefined : module)
      return true
    })
    await to.images.pull(`${fake.host}/app:1`)
    assert.deepEqual(to.store.read(digestOf(module)), module, String(status))
  }
})

test('nothing is kept of a blob with a wrong digest or too many bytes', async () => {
  const module = big()
  const other = Buffer.from(module)
  other[1000]! ^= 1
  for (const [bytes, code] of [[other, 'IMAGE_DIGEST_WRONG'],
    [Buffer.concat([module, MODULE]), 'REGISTRY_FAILED']] as const) {
    await using fake = await fakeRegistry()
    using to = imagesFor()
    fake.add('1', module)
    fake.trick = onBlob(module, (_, response) => { response.end(bytes); return true })
    await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code })
    assert.deepEqual(readdirSync(join(to.path, 'ingest')), [])
    assert.ok(!to.store.has(digestOf(module)))
    assert.deepEqual([...to.names], [])
  }
})

test('a blob that always ends early fails after a few tries, and what came is kept', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const module = big()
  fake.add('1', module)
  fake.trick = onBlob(module, (_, response) => { response.end(module.subarray(0, 10)); return true })
  await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED', message: /ended after 10 of/ })
  assert.ok(ranges(fake, module).length <= 12)
  assert.equal(readdirSync(join(to.path, 'ingest')).length, 1)
})

test('a connection on which nothing moves fails, and one that is slow does not', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor({ stallMs: 2000 })
  fake.add('1', MODULE)
  fake.trick = onBlob(MODULE, (_, response) => {
    response.writeHead(200, { 'content-length': MODULE.length })
    let sent = 0
    const timer = setInterval(() => {
      if (sent < MODULE.length) return void response.write(MODULE.subarray(sent, ++sent))
      clearInterval(timer)
      response.end()
    }, 400)
    return true
  })
  await to.images.pull(`${fake.host}/app:1`)
  assert.equal(ranges(fake, MODULE).length, 1)

  using other = imagesFor({ stallMs: 200 })
  fake.trick = onBlob(MODULE, (_, response) => {
    response.writeHead(200, { 'content-length': MODULE.length })
    response.write(MODULE.subarray(0, 1))
    return true
  })
  const stalled = { code: 'REGISTRY_FAILED', message: /nothing has moved/ }
  await assert.rejects(other.images.pull(`${fake.host}/app:1`), stalled)
  fake.trick = () => true
  await assert.rejects(other.images.pull(`${fake.host}/app:1`), stalled)
})

test('busy registries are asked again, as late as they wish', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  fake.add('1', MODULE)
  const answers: [number, string?][] = [[429, '1'], [503], [500, 'Thu, 01 Jan 1970 00:00:00 GMT'], [502, 'soon']]
  const times: number[] = []
  fake.trick = (request, response) => {
    if (!request.url!.includes('/manifests/')) return false
    times.push(performance.now())
    const next = answers.shift()
    if (next === undefined) return false
    response.writeHead(next[0], next[1] === undefined ? {} : { 'retry-after': next[1] }).end('<html>busy')
    return true
  }
  await to.images.pull(`${fake.host}/app:1`)
  assert.ok(times[1]! - times[0]! >= 990, 'Retry-After is kept')
  fake.trick = (_, response) => { response.writeHead(503).end(); return true }
  await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED', message: /status 503/ })
})

test('manifests that are huge, no JSON, of another digest, or wrong inside are refused', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const digest = fake.add('1', MODULE)
  const manifest = (bytes: string | Buffer, headers: Record<string, string> = {}): void => {
    fake.trick = (request, response) => {
      if (!request.url!.includes('/manifests/')) return false
      response.writeHead(200, headers).end(bytes)
      return true
    }
  }
  const pull = (): Promise<unknown> => to.images.pull(`${fake.host}/app:1`)
  manifest(Buffer.alloc(5 * KIB * KIB, ' '))
  await assert.rejects(pull(), { code: 'REGISTRY_FAILED', message: /larger than/ })
  manifest('<html>hello', { 'content-type': 'text/html' })
  await assert.rejects(pull(), { code: 'IMAGE_INVALID', message: /isn't JSON/ })
  manifest('{}', { 'docker-content-digest': digest })
  await assert.rejects(pull(), { code: 'IMAGE_DIGEST_WRONG' })
  await assert.rejects(to.images.pull(`${fake.host}/app@${digest}`), { code: 'IMAGE_DIGEST_WRONG' })
  for (const wrong of ['null', '[]', '{}', '{"schemaVersion":1}', '['.repeat(100_000), '{"manifests":[]}',
    '{"schemaVersion":2,"manifests":[]}', '{"schemaVersion":2,"config":{},"layers":[]}']) {
    manifest(wrong)
    await assert.rejects(pull(), { code: 'IMAGE_INVALID' }, wrong.slice(0, 50))
  }
  assert.deepEqual(to.store.list(), [])
})

test('texts of a registry are made printable and short', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  fake.trick = (_, response) => {
    response.writeHead(400).end(JSON.stringify({ errors: [{ code: 'X\u001b[31m', message: 'y'.repeat(10_000) }] }))
    return true
  }
  await assert.rejects(to.images.pull(`${fake.host}/app:1`), ({ code, message }: Error & { code: string }) => {
    assert.equal(code, 'REGISTRY_FAILED')
    assert.ok(!message.includes('\u001b') && message.length < 500, message)
    return true
  })
})

/** A token server, and the registry that wants its tokens. */
function guarded(fake: Fake, token: string, realm = `http://${fake.host}/token`): Trick {
  return (request, response) => {
    if (request.url!.startsWith('/token')) {
      const url = new URL(request.url!, 'http://x')
      assert.deepEqual(url.searchParams.getAll('scope'), ['repository:app:pull'])
      assert.equal(url.searchParams.get('service'), 'test')
      response.end(JSON.stringify({ token: 'good' }))
      return true
    }
    if (request.headers.authorization === `Bearer ${token}`) return false
    response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="test",scope="x"` }).end()
    return true
  }
}

test('a registry that wants a token gets one from its realm', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  fake.add('1', MODULE)
  fake.trick = guarded(fake, 'good')
  await to.images.pull(`${fake.host}/app:1`)
  assert.equal(fake.asked.filter(({ line }) => line.includes('/token')).length, 1)
})

test('a registry that is never content with its token denies access, and is asked no more', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  fake.trick = guarded(fake, 'better')
  await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_DENIED' })
  assert.equal(fake.asked.length, 3)
})

test('a realm that is no safe place gets nothing', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  for (const realm of ['file:///etc/passwd', 'ftp://x/', 'no url', '', 'http://me:pw@localhost/']) {
    fake.trick = guarded(fake, 'good', realm)
    await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED', message: /no safe one/ })
  }
  for (const answer of ['', '{}', '{"token":1}', '{"token":"a\\r\\nb: c"}', 'x'.repeat(2 * KIB * KIB)]) {
    fake.trick = (request, response, body) => {
      if (!request.url!.startsWith('/token')) return guarded(fake, 'good')(request, response, body)
      response.end(answer)
      return true
    }
    await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED', message: /gives no token/ })
  }
})

test('credentials come from the file, an identity token or a helper, for their registry only', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor({ env: {} })
  const docker = join(to.path, 'docker')
  mkdirSync(docker)
  const helper = join(docker, 'docker-credential-test')
  writeFileSync(helper, '#!/bin/sh\nread -r host\ncase "$host" in 127.0.0.1:*) ;; *) exit 1;; esac\n' +
    'echo \'{"Username":"helped","Secret":"pw"}\'\n')
  chmodSync(helper, 0o755)
  const seen: string[] = []
  fake.add('1', MODULE)
  fake.trick = (request, response, body) => {
    if (request.url!.startsWith('/token')) {
      seen.push(`${request.method} ${Buffer.from(request.headers.authorization?.slice(6) ?? '', 'base64')}${body}`)
      response.end('{"access_token":"good"}')
      return true
    }
    return guarded(fake, 'good')(request, response, body)
  }
  const auth = Buffer.from('me:pass:word').toString('base64')
  const configs: [object, RegExp][] = [
    [{ auths: { [fake.host]: { auth } } }, /^GET me:pass:word$/],
    [{ auths: { [`https://${fake.host}`]: { username: 'you', password: 'pw' } } }, /^GET you:pw$/],
    [{ auths: { [fake.host]: { auth, identitytoken: 'id' } } }, /^POST .*grant_type=refresh_token.*refresh_token=id$/],
    [{ credHelpers: { [fake.host]: 'test' } }, /^GET helped:pw$/],
    [{ credsStore: 'test', auths: { [fake.host]: {} } }, /^GET helped:pw$/],
    [{ auths: { 'other:1': { auth } } }, /^GET $/],
    [{ credsStore: 'none' }, /never/], [{ credsStore: '../test' }, /never/], [{ auths: 1 }, /never/],
  ]
  const env = { DOCKER_CONFIG: docker, PATH: `${docker}:${process.env.PATH}` }
  for (const [config, wanted] of configs) {
    writeFileSync(join(docker, 'config.json'), JSON.stringify(config))
    const registry = new Registry({ ...parseReference('app'), registry: fake.host }, false, undefined,
      { env, backoffMs: 1 })
    if (wanted.source === 'never') await assert.rejects(registry.ping(), { code: 'REGISTRY_FAILED' })
    else {
      await registry.ping()
      assert.match(seen.at(-1)!, wanted)
    }
  }
})

test('redirects to other hosts are followed without our credentials, and to unsafe places not at all', async () => {
  await using fake = await fakeRegistry()
  await using storage = await fakeRegistry()
  const docker = { auths: { [fake.host]: { auth: Buffer.from('me:secret').toString('base64') } } }
  using to = imagesFor()
  mkdirSync(join(to.path, '.docker'))
  writeFileSync(join(to.path, '.docker/config.json'), JSON.stringify(docker))
  fake.add('1', MODULE)
  storage.add('1', MODULE)
  let target = `http://${storage.host}/v2/x${blobUrl(MODULE)}`
  fake.trick = (request, response) => {
    if (request.headers.authorization === undefined) {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
      return true
    }
    if (!request.url!.endsWith(blobUrl(MODULE))) return false
    response.writeHead(307, { location: target }).end()
    return true
  }
  await to.images.pull(`${fake.host}/app:1`)
  assert.ok(fake.asked.some(({ headers }) => headers.authorization?.startsWith('Basic')))
  assert.equal(storage.asked.length, 1)
  assert.equal(storage.asked[0]!.headers.authorization, undefined)
  const round = `http://${fake.host}/v2/x${blobUrl(MODULE)}`
  for (target of ['file:///etc/passwd', 'data:,x', `http://me:pw@${storage.host}/`, round]) {
    to.store.remove(digestOf(MODULE))
    await assert.rejects(to.images.pull(`${fake.host}/app:1`), { code: 'REGISTRY_FAILED' }, target)
  }
  assert.equal(storage.asked.length, 1)
})

test('a pull that is cancelled ends at once, and its name is not set', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const module = big()
  fake.add('1', module)
  const stop = new AbortController()
  fake.trick = onBlob(module, (_, response) => {
    response.write(module.subarray(0, 1000))
    setTimeout(() => stop.abort(), 20)
    return true
  })
  await assert.rejects(to.images.pull(`${fake.host}/app:1`, { signal: stop.signal }), { code: 'OPERATION_CANCELLED' })
  assert.deepEqual([...to.names], [])
})

test('two pulls of one image fetch its module once', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  const module = big()
  fake.add('1', module)
  const images = await Promise.all([1, 2, 3].map(() => to.images.pull(`${fake.host}/app:1`)))
  assert.equal(new Set(images.map(({ digest }) => digest)).size, 1)
  assert.equal(ranges(fake, module).length, 1)
})

test('a host that is not there, or speaks no TLS, is named in the error', async () => {
  await using fake = await fakeRegistry()
  using to = imagesFor()
  await assert.rejects(to.images.pull('127.0.0.1:1/app'), { code: 'REGISTRY_FAILED' })
  const port = fake.host.split(':')[1]!
  // By a name of this machine that isn't known to be one.
  await assert.rejects(to.images.pull(`0.0.0.0:${port}/app`), { code: 'REGISTRY_FAILED', message: /TLS|SSL|protocol/i })
  using plain = imagesFor({ insecure: [`0.0.0.0:${port}`] })
  fake.add('latest', MODULE)
  await plain.images.pull(`0.0.0.0:${port}/app`)
  await assert.rejects(to.images.pull('app'), { code: 'REGISTRY_FAILED', message: /names none/ })
})

