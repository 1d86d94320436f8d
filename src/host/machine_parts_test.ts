// host/machine_parts_test.ts: what a machine's engine is told of it: disks in their order, by names that differ.

import assert from 'node:assert/strict'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { diskFiles, serialOf, specOf } from './machine_parts.ts'
import type { GuestLaunch } from './protocol.ts'
import { disposableFolder } from './test_support.ts'

const DIGEST = `sha256:${'ab'.repeat(32)}`

function launch(folder: string, more: object = {}): GuestLaunch {
  return { name: 'vm', volumes: [{ path: '/v/data', guest: '/data', readOnly: false },
    { path: '/v/old', guest: '/old', readOnly: true }],
  machine: { folder, vcpus: 2, memoryBytes: 2 ** 28, cid: 7, kernelArgs: 'quiet', image: {
    kernel: DIGEST, commandLine: 'console=ttyS0', disks: [
      { digest: DIGEST, format: 'raw', sizeBytes: 4096, readOnly: true, serial: 'lower' },
      { digest: DIGEST, format: 'raw', sizeBytes: 1024 * 1024, readOnly: false, serial: 'root' }] }, ...more },
  } as unknown as GuestLaunch
}

test('a volume is known to the guest by its name; long names differ in what is left of them', () => {
  assert.equal(serialOf('/projects/p/volumes/data'), 'data')
  assert.equal(serialOf(`/v/${'x'.repeat(20)}`), 'x'.repeat(20))
  const [one, other] = ['1', '2'].map((end) => serialOf(`/v/${'customers'.repeat(3)}${end}`))
  assert.notEqual(one, other)
  for (const serial of [one!, other!]) assert.match(serial, /^customersc.-[0-9a-f]{8}$/)
})

test('disks are those of the image, then volumes; what is written goes to an overlay of its own', () => {
  using made = disposableFolder()
  const [blobFolder, folder] = ['blobs', 'own'].map((name) => join(made.path, name)) as [string, string]
  mkdirSync(join(blobFolder, 'sha256'), { recursive: true })
  mkdirSync(folder)
  const blob = join(blobFolder, DIGEST.replace(':', '/'))
  writeFileSync(blob, Buffer.alloc(1024 * 1024))
  const around = { blobFolder, nics: [], generation: 'f'.repeat(32) }
  const { disks, boot, cid, vcpus } = specOf(launch(folder), around)
  assert.deepEqual([cid, vcpus, boot], [7, 2, { kernel: blob, initrd: undefined, commandLine: 'console=ttyS0 quiet' }])
  assert.deepEqual(disks.map(({ path, format, readOnly, serial, backingFolders }) =>
    [path, format, readOnly, serial, backingFolders.length]), [
    [blob, 'raw', true, 'lower', 0], [join(folder, 'disk1.qcow2'), 'qcow2', false, 'root', 1],
    ['/v/data/disk.raw', 'raw', false, 'data', 0], ['/v/old/disk.raw', 'raw', true, 'old', 0]])
  assert.ok(existsSync(join(folder, 'disk1.qcow2')))
  assert.deepEqual(diskFiles(launch(folder)), [{ name: 'disk1.qcow2', path: join(folder, 'disk1.qcow2') }])
  assert.deepEqual(specOf(launch(folder), around).disks, disks, 'an overlay that is there stays')
})

test('an image without a kernel boots from its disk', () => {
  using made = disposableFolder()
  const { boot, disks } = specOf(launch(made.path, { image: { commandLine: '', disks: [] } }),
    { blobFolder: made.path, nics: [], generation: '' })
  assert.deepEqual([boot, disks.length], [undefined, 2])
})
