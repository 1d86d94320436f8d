// image/image_test.ts: manifests, indexes and configurations, ours and strangers'.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CellarError } from '../base/errors.ts'
import { choosePlatform, digestOf, entrypointOf, layoutOf, MADE_OF, makeImage, readManifest } from './image.ts'
import { MODULE } from './test_support.ts'

const module = { digest: digestOf(MODULE), size: MODULE.length }

test('makeImage writes what readManifest and layoutOf read', () => {
  const { config, manifest } = makeImage(module, { os: 'wasip1' })
  const read = readManifest('test', manifest)
  assert.ok('layers' in read)
  assert.deepEqual({ ...layoutOf('test', read).module }, { mediaType: 'application/wasm', ...module })
  assert.deepEqual(read.config, { mediaType: 'application/vnd.wasm.config.v0+json', digest: digestOf(config),
    size: config.length })
  assert.equal(entrypointOf('test', config), undefined)
  assert.deepEqual(makeImage(module, { os: 'wasip1' }).manifest, manifest)
  const other = readManifest('test', makeImage(module, { os: 'wasip1', madeOf: module.digest }).manifest)
  assert.equal('layers' in other && other.annotations?.[MADE_OF], module.digest)
})

test('readManifest and what follows throw operator errors only, whatever they are given', () => {
  const good = JSON.parse(makeImage(module, { os: 'wasip1' }).manifest.toString()) as Record<string, unknown>
  const descriptor = fc.record({
    mediaType: fc.oneof(fc.string(),
      fc.constantFrom('application/wasm', 'application/vnd.oci.image.layer.v1.tar+gzip')),
    digest: fc.oneof(fc.constant(module.digest), fc.string()), size: fc.oneof(fc.nat(), fc.double(), fc.string()),
    platform: fc.record({
      os: fc.constantFrom('wasi', 'wasip1', 'linux'), architecture: fc.constantFrom('wasm', 'arm'),
    }),
  }, { requiredKeys: [] })
  const value = fc.oneof(fc.jsonValue(), descriptor, fc.array(descriptor))
  const keys = fc.constantFrom('schemaVersion', 'config', 'layers', 'manifests', 'annotations', '__proto__')
  fc.assert(fc.property(fc.array(fc.tuple(keys, value), { maxLength: 4 }), fc.boolean(), (changes, damaged) => {
    const changed = Object.fromEntries([...Object.entries(good), ...changes])
    const bytes = Buffer.from(JSON.stringify(changed))
    try {
      const read = readManifest('test', damaged ? bytes.subarray(1) : bytes)
      if ('manifests' in read) choosePlatform('test', read)
      else layoutOf('test', read)
      entrypointOf('test', bytes)
    } catch (error) {
      assert.ok(error instanceof CellarError, String(error))
    }
  }), { numRuns: 1000 })
})

test('entrypointOf takes the entrypoint, or else the command, of a configuration for wasm', () => {
  const of = (config: unknown, os = 'wasi'): string | undefined =>
    entrypointOf('test', Buffer.from(JSON.stringify({ os, architecture: 'wasm', config })))
  assert.equal(of({ Entrypoint: ['/a', 'x'], Cmd: ['b'] }), '/a')
  assert.equal(of({ Entrypoint: null, Cmd: ['b'] }), 'b')
  assert.equal(of(null), undefined)
  assert.throws(() => of({}, 'wasip2'), { code: 'IMAGE_INVALID', message: /wasip2\/wasm/ })
  assert.throws(() => of({ Entrypoint: 'x' }), { code: 'IMAGE_INVALID' })
})
