// tests/machine/host_bad_input_test.ts: what a machine can't be: each is refused with a reason, and the host goes on.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { BlobStore } from '../../src/image/blob_store.ts'
import { MANIFEST_TYPE } from '../../src/image/image.ts'
import { LayoutFolder } from '../../src/image/layout.ts'
import { makeMachineImage, putPart } from '../../src/image/machine_image.ts'
import { inPhase, smallDisk } from '../faults/faults_support.ts'
import { startHost, type TestHost } from '../host_support.ts'
import { boot, debianImage, giveImage, missing, sh } from './host_guests.ts'

describe('machines that cannot be', { skip: missing ?? false }, () => {
  let host: TestHost
  let image: Awaited<ReturnType<typeof debianImage>>
  before(async () => {
    image = await debianImage()
    host = await startHost()
    await giveImage(host, image)
  })
  after(async () => {
    await host?.[Symbol.asyncDispose]()
    image?.[Symbol.dispose]()
  })

  const refused = async (flags: readonly string[], code: string, message: RegExp): Promise<void> => {
    const { status, stderr } = await host.cellar(['run', '-d', '--name', 'bad', ...flags, 'debian'])
    assert.equal(status, 125, stderr)
    assert.match(stderr, new RegExp(`\\[${code}\\]`))
    assert.match(stderr, message)
    assert.equal((await host.api('GET', '/v1/projects/default/guests/bad')).status, 404)
  }

  test('memory too small, or in parts of large pages', async () => {
    await refused(['-m', '16MiB'], 'GUEST_UNSUPPORTED', /its memory must be 32 MiB to 1 TiB in steps of 2 MiB/)
    await refused(['-m', '129MiB'], 'GUEST_UNSUPPORTED', /in steps of 2 MiB, but is "129MiB"/)
  })

  test('more vCPUs than there can be, and an engine that nobody knows', async () => {
    for (const flags of [['--vcpus', '33'], ['--vcpus', '0'], ['--engine', 'bhyve']]) {
      const { status, stderr } = await host.cellar(['run', '-d', '--name', 'bad', ...flags, 'debian'])
      assert.equal(status, 125, stderr)
      assert.match(stderr, /\[(FLAG_VALUE_INVALID|REQUEST_INVALID)\]/)
    }
  })

  test('words that are for cells', async () => {
    await refused(['--stub', 'env'], 'MACHINE_WORD', /Cannot use "stubs" for "bad" as it is a machine/)
    await refused(['--deterministic'], 'MACHINE_WORD', /"deterministic"/)
  })

  test('KVM where it runs no ordinary guest: the guest has failed, and says why', async (t) => {
    await host.cellar(['run', '-d', '--name', 'kvm', '--engine', 'kvm', '-m', '128MiB', '--restart', 'no', 'debian'])
    const { engine } = (await host.api('GET', '/v1/projects/default/guests/kvm')).body as { engine?: { name: string } }
    if (engine?.name === 'kvm') t.diagnostic('KVM is ordinary here: it runs')
    else assert.match((await inPhase(host, 'kvm', 'failed')).exit!.reason, /as nothing here can: KVM can't run it: /)
    await host.ok(['rm', '--force', 'kvm'])
  })

  test('a TAP device that is not there', async () => {
    await host.cellar(['run', '-d', '--name', 'tap', '--tap', 'cellar-none', '-m', '128MiB', '--restart', 'no',
      'debian'])
    assert.match((await inPhase(host, 'tap', 'failed')).exit!.reason, /cellar-none.*ENODEV/)
    assert.equal(existsSync('/sys/class/net/cellar-none'), false)
    await host.ok(['rm', '--force', 'tap'])
  })

  test('a kernel that is damaged: the guest fails or ends, and is removed as others are', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'cellar-bad-'))
    try {
      const store = new BlobStore(join(folder, 'broken'))
      // As a kernel begins, and nothing that could be executed.
      const kernel = Buffer.alloc(64 * 1024)
      kernel[0x1f1] = 4
      kernel.write('HdrS', 0x202, 'latin1')
      kernel.writeUInt16LE(0xaa55, 0x1fe)
      kernel.writeUInt16LE(0x020f, 0x206)
      kernel[0x211] = 1
      kernel.writeUInt16LE(1, 0x236)
      writeFileSync(join(folder, 'kernel'), kernel)
      const part = await putPart(store, join(folder, 'kernel'))
      const manifest = await makeMachineImage(store, 'broken', { architecture: 'amd64', os: 'linux',
        kernel: part.digest, commandLine: '', disks: [], agent: false })
      await new LayoutFolder(join(folder, 'broken')).writeManifest(manifest, MANIFEST_TYPE, 'latest')
      await host.ok(['pull', `oci:${join(folder, 'broken')}:latest`])
      await host.cellar(['run', '-d', '--name', 'broken', '--restart', 'no', '-m', '64MiB', '--timeout', '3s',
        'broken'])
      const { exit } = await inPhase(host, 'broken', 'failed')
      assert.notEqual(exit!.status, 0)
      await host.ok(['rm', '--force', 'broken'])
      assert.equal((await host.api('GET', '/readyz')).status, 200)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('an image whose kernel is gone or cut off since it came: it is refused, and says why', async () => {
    await using other = await startHost()
    await giveImage(other, image)
    const blobs = join(other.state, 'blobs/sha256')
    const [largest] = readdirSync(blobs).map((name) => join(blobs, name)).toSorted((a, b) => sizeOf(b) - sizeOf(a))
    truncateSync(largest!, 1000)
    const run = ['run', '-d', '--name', 'cut', '--restart', 'no', '-m', '128MiB', 'debian']
    assert.match((await other.cellar(run)).stderr,
      /its kernel has 1000 bytes in place of \d+ \[MACHINE_IMAGE_DAMAGED\]/)
    rmSync(largest!)
    const { status, stderr } = await other.cellar(run)
    assert.equal(status, 125)
    assert.match(stderr, /\[[A-Z_]+\]/)
    assert.doesNotMatch(stderr, /INTERNAL/)
  })

  test('a disk of the host that is full: a snapshot is refused, and its guest goes on', async (t) => {
    using disk = smallDisk(160) as ReturnType<typeof smallDisk> & Disposable
    if (typeof disk === 'string') return t.skip(disk)
    await using full = await startHost([], join(disk.path, 's'))
    await giveImage(full, image)
    await boot(full, 'vm')
    await sh(full, 'vm', 'echo here > /tmp/nonce; head -c 15000000 /dev/urandom > /tmp/random')
    writeFileSync(join(disk.path, 'filler'), Buffer.alloc(8 * 2 ** 20))
    const fill = (): void => { for (;;) writeFileSync(join(disk.path, `more${Math.random()}`), Buffer.alloc(2 ** 20)) }
    assert.throws(fill, { code: 'ENOSPC' })
    const { status, stderr } = await full.cellar(['snapshot', 'vm', 'one'])
    assert.equal(status, 1)
    assert.match(stderr, /\[HOST_DISK_FULL\]/)
    for (const name of readdirSync(disk.path)) if (name !== 's') rmSync(join(disk.path, name))
    assert.equal(await sh(full, 'vm', 'cat /tmp/nonce'), 'here\n')
    assert.equal((await inPhase(full, 'vm', 'running')).restarts, 0)
  })
})

function sizeOf(path: string): number {
  return statSync(path).size
}
