// tests/faults/host_pull_test.ts: registries that are slow, lie or break off, and a host that dies while it pulls.
//
// The registry is one of image/test_support.ts. What was fetched is kept: the next pull asks for the rest only.

import assert from 'node:assert/strict'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fakeRegistry, type Fake } from '../../src/image/test_support.ts'
import { digestOf } from '../../src/image/image.ts'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { Folder, guest } from '../support.ts'
import { createGuest, inPhase, nothingUnowned, padded, partialBytes } from './faults_support.ts'

const MODULE_BYTES = 3_000_000

type Operation = { readonly id: string; readonly status: string; readonly error?: { readonly code: string
  readonly detail: string } }

/** Pulls, and waits for the end of that. */
async function pulled(host: TestHost, reference: string): Promise<Operation> {
  const { body } = await host.api('POST', '/v1/images/pull', { reference })
  return (await host.api('GET', `/v1/operations/${(body as Operation).id}?wait=30s`)).body as Operation
}

/** Sends half of every blob that is asked for from its beginning, some KiB at a time, and then no more. */
function trickle(registry: Fake): void {
  registry.trick = (request, response) => {
    const [, digest] = /\/blobs\/(.+)$/.exec(request.url!) ?? []
    const blob = registry.blobs.get(digest ?? '')
    if (blob === undefined || blob.length < MODULE_BYTES || request.headers.range !== undefined) return undefined
    response.writeHead(200, { 'content-length': blob.length })
    let at = 0
    const timer = setInterval(() => {
      if (at >= blob.length / 2) return clearInterval(timer)
      response.write(blob.subarray(at, at += 65_536))
    }, 1)
    response.once('close', () => clearInterval(timer))
    return true
  }
}

test('a pull goes on where it was when the host is killed, and is interrupted in the host\'s words', async () => {
  await using registry = await fakeRegistry()
  const module = padded(readFileSync(guest('nap')), MODULE_BYTES)
  registry.add('v1', module)
  trickle(registry)
  await using host = await startHost()
  const reference = `${registry.host}/team/nap:v1`
  const { body } = await host.api('POST', '/v1/images/pull', { reference })
  const { id } = body as Operation
  await eventually('a part is there', () => partialBytes(host) > 1_000_000)
  await host.killAndRestart()
  const { status, error } = (await host.api('GET', `/v1/operations/${id}`)).body as Operation
  assert.deepEqual([status, error!.code], ['failed', 'OPERATION_INTERRUPTED'])
  assert.deepEqual(((await host.api('GET', '/v1/images')).body as { items: unknown[] }).items, [])
  const had = partialBytes(host)
  const again = await pulled(host, reference)
  assert.equal(again.status, 'done', JSON.stringify(again.error))
  assert.ok(registry.asked.some(({ line, headers }) => line.endsWith(digestOf(module)) &&
    headers.range === `bytes=${had}-`), 'it asks for the rest')
  assert.deepEqual(readdirSync(join(host.state, 'ingest')), [])
  await createGuest(host, 'a', { image: reference, args: ['nap', '100000'] })
  await inPhase(host, 'a', 'running')
  await nothingUnowned(host)
})

test('what a registry lies about or breaks off is refused by its code, and nothing of it is kept', async () => {
  await using registry = await fakeRegistry()
  await using host = await startHost()
  const module = padded(readFileSync(guest('nap')), 100_000)
  const manifest = registry.add('v1', module)
  const reference = `${registry.host}/team/nap:v1`
  const isModule = (url: string): boolean => url.endsWith(digestOf(module))
  const lies: readonly (readonly [what: string, code: RegExp, trick: Fake['trick']])[] = [
    ['another blob', /IMAGE_DIGEST_WRONG/, ({ url }, response) => isModule(url!) &&
      (response.end(Buffer.alloc(module.length)), true)],
    ['a longer blob', /IMAGE_DIGEST_WRONG|IMAGE_TOO_LARGE|REGISTRY_FAILED|IMAGE_INVALID/, ({ url }, response) =>
      isModule(url!) && (response.end(Buffer.concat([module, module])), true)],
    ['a manifest of another digest', /IMAGE_DIGEST_WRONG/, ({ url }, response) => url!.includes('/manifests/') &&
      (response.writeHead(200, { 'docker-content-digest': `sha256:${'0'.repeat(64)}` }).end(
        registry.manifests.get(manifest)!.bytes), true)],
    ['a manifest that is none', /IMAGE_INVALID/, ({ url }, response) => url!.includes('/manifests/') &&
      (response.end('[[['), true)],
    ['a manifest without end', /REGISTRY_FAILED/, ({ url }, response) => url!.includes('/manifests/') &&
      (response.end(Buffer.alloc(5 * 1024 * 1024, 0x20)), true)],
    ['a redirect to a file', /REGISTRY_FAILED/, ({ url }, response) => isModule(url!) &&
      (response.writeHead(302, { location: 'file:///etc/passwd' }).end(), true)],
    ['no access', /REGISTRY_DENIED/, (_, response) => (response.writeHead(403).end(), true)],
  ]
  for (const [what, code, trick] of lies) {
    registry.trick = trick
    const { status, error } = await pulled(host, reference)
    assert.equal(status, 'failed', what)
    assert.match(error!.code, code, what)
    assert.doesNotMatch(error!.detail, /\u001b/, what)
    assert.deepEqual(((await host.api('GET', '/v1/images')).body as { items: unknown[] }).items, [], what)
  }
  // Cut off a few times, each time a bit further: it gets there.
  let cuts = 0
  registry.trick = ({ url, headers }, response) => {
    if (!isModule(url!) || ++cuts > 3) return false
    const from = Number(/\d+/.exec(headers.range ?? '')?.[0] ?? 0)
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': module.length - from,
      'content-range': `bytes ${from}-${module.length - 1}/${module.length}` })
    response.write(module.subarray(from, from + 20_000), () => response.destroy())
    return true
  }
  assert.equal((await pulled(host, reference)).status, 'done')
})

test('an image in a folder that leads out of it is refused, and nothing outside is read', async () => {
  await using host = await startHost()
  using folder = new Folder()
  const hex = (text: string): string => digestOf(Buffer.from(text)).slice('sha256:'.length)
  const secret = folder.write('secret', '\0asm\x01\0\0\0secret')
  const annotations = { 'org.opencontainers.image.ref.name': 'v1' }
  const index = (digest: string): string => JSON.stringify({ schemaVersion: 2, manifests: [{ digest, size: 10,
    annotations, mediaType: 'application/vnd.oci.image.manifest.v1+json' }] })
  const tricks = ['sha256:../../../secret', `sha256:${'../'.repeat(21)}a`, `md5:${'0'.repeat(32)}`, '../secret']
  for (const digest of tricks) {
    folder.write('layout/oci-layout', '{"imageLayoutVersion":"1.0.0"}')
    folder.write('layout/index.json', index(digest))
    const { status, stderr } = await host.cellar(['pull', `oci:${folder.at('layout')}:v1`])
    assert.equal(status, 1, digest)
    assert.match(stderr, /\[[A-Z_]+\]/)
    assert.doesNotMatch(stderr, /INTERNAL/)
  }
  // A blob that is a link to a file elsewhere.
  const manifest = 'x'.repeat(10)
  mkdirSync(folder.at('layout/blobs/sha256'), { recursive: true })
  writeFileSync(folder.at('layout/index.json'), index(`sha256:${hex(manifest)}`))
  symlinkSync(secret, folder.at('layout/blobs/sha256', hex(manifest)))
  const { status, stderr } = await host.cellar(['pull', `oci:${folder.at('layout')}:v1`])
  assert.equal(status, 1)
  assert.doesNotMatch(stderr, /secret\b.*asm|INTERNAL/)
  assert.deepEqual(((await host.api('GET', '/v1/images')).body as { items: unknown[] }).items, [])
  assert.deepEqual(readdirSync(join(host.state, 'blobs/sha256')), [])
})
