// image/layout_test.ts: folders in place of registries, well made and not.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { digestOf } from './image.ts'
import { parseLayout } from './layout.ts'
import { folder, imagesFor, MODULE, streamOf } from './test_support.ts'

const blob = (path: string, digest: string): string => join(path, 'blobs/sha256', digest.slice(7))

test('parseLayout takes oci:FOLDER and oci:FOLDER:TAG', () => {
  assert.deepEqual(parseLayout('oci:/a/b'), { folder: '/a/b', tag: undefined })
  assert.deepEqual(parseLayout('oci:b:1.0'), { folder: 'b', tag: '1.0' })
  assert.deepEqual(parseLayout('oci:/a:b/c'), { folder: '/a:b/c', tag: undefined })
  for (const text of ['oci', 'oci:', 'app:1', 'oci:/a\0']) assert.equal(parseLayout(text), undefined)
})

test('an image is written to a folder and read from it, among others', async () => {
  using temp = folder()
  using from = imagesFor()
  using to = imagesFor()
  const one = await from.images.importModule(streamOf(MODULE), 'one')
  const two = await from.images.importModule(streamOf(MODULE, Buffer.from([0, 1, 0])), 'two')
  const path = join(temp.path, 'apps')
  await from.images.push('one', `oci:${path}:one`)
  assert.equal((await to.images.pull(`oci:${path}`)).digest, one.digest)
  // What another tool has noted beside an entry stays.
  const index = JSON.parse(readFileSync(join(path, 'index.json'), 'utf8')) as { manifests: object[] }
  Object.assign(index.manifests[0]!, { artifactType: 'x/y' })
  writeFileSync(join(path, 'index.json'), JSON.stringify(index))
  await from.images.push('two', `oci:${path}:two`)
  await from.images.push('two', `oci:${path}:two`)
  const { manifests } = JSON.parse(readFileSync(join(path, 'index.json'), 'utf8')) as { manifests: object[] }
  assert.equal(manifests.length, 2)
  assert.equal((manifests[0] as { artifactType: string }).artifactType, 'x/y')
  const pulled = await to.images.pull(`oci:${path}:two`)
  assert.equal(pulled.digest, two.digest)
  assert.deepEqual(pulled.names, ['apps:two'])
  await assert.rejects(to.images.pull(`oci:${path}`), { code: 'REGISTRY_FAILED', message: /2 images/ })
  await assert.rejects(to.images.pull(`oci:${path}:three`), { code: 'REGISTRY_FAILED', message: /no such/ })
  await assert.rejects(to.images.pull(`oci:${temp.path}/none`), { code: 'REGISTRY_FAILED', message: /ENOENT/ })
})

test('a folder whose blobs are wrong, links, pipes or folders is refused', async () => {
  using temp = folder()
  using from = imagesFor()
  const image = await from.images.importModule(streamOf(MODULE), 'app')
  const wrongs: [(path: string) => void, string][] = [
    [(path) => { unlinkSync(path); writeFileSync(path, Buffer.alloc(MODULE.length)) }, 'IMAGE_DIGEST_WRONG'],
    [(path) => { unlinkSync(path); writeFileSync(path, Buffer.alloc(100)) }, 'REGISTRY_FAILED'],
    [(path) => { rmSync(path); writeFileSync(path, MODULE); truncateSync(path, 4) }, 'REGISTRY_FAILED'],
    [(path) => { unlinkSync(path); symlinkSync('/etc/passwd', path) }, 'REGISTRY_FAILED'],
    [(path) => { unlinkSync(path); execFileSync('mkfifo', [path]) }, 'REGISTRY_FAILED'],
    [(path) => { unlinkSync(path); mkdirSync(path) }, 'REGISTRY_FAILED'],
  ]
  for (const [i, [spoil, code]] of wrongs.entries()) {
    using to = imagesFor()
    const path = join(temp.path, String(i))
    await from.images.push('app', `oci:${path}:x`)
    spoil(blob(path, digestOf(MODULE)))
    await assert.rejects(to.images.pull(`oci:${path}:x`), { code }, String(i))
    assert.deepEqual([...to.names], [])
    if (i === 0) {
      unlinkSync(blob(path, image.digest))
      writeFileSync(blob(path, image.digest), '{}')
      await assert.rejects(to.images.pull(`oci:${path}:x`), { code: 'IMAGE_DIGEST_WRONG' })
    }
  }
})
