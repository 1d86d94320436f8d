// image/machine_image_test.ts: images of machines: made of files, sent and fetched as all are, refused if damaged.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { BlobStore } from './blob_store.ts'
import { digestOf, MACHINE_TYPE, MANIFEST_TYPE } from './image.ts'
import { LayoutFolder } from './layout.ts'
import { CpioWriter, readCpio } from './machine_cpio.ts'
import { openMachineImage, type MachineConfig } from './machine_image.ts'
import { importFiles, importRootfs } from './machine_import.ts'
import { diskOf, initrdFault, kernelFault } from './machine_parts.ts'
import { fakeRegistry, folder, imagesFor, pax, tar } from './test_support.ts'

const INITRD = new CpioWriter().file('init', '#!/bin/sh\n', 0o755).finish()
const HAS_TOOLS = spawnSync('sqfstar', ['-version']).error === undefined &&
  spawnSync('/usr/sbin/mke2fs', ['-V']).error === undefined
const NO_TOOLS = 'sqfstar (squashfs-tools) or mke2fs (e2fsprogs) is not here'

/** The least that looks like a bzImage. */
function kernel(change: (bytes: Buffer) => void = () => {}): Buffer {
  const bytes = Buffer.alloc(2 * 512 + 4096, 0x90)
  bytes[0x1f1] = 1
  bytes.writeUInt32LE(4096 / 16, 0x1f4)
  bytes.writeUInt16LE(0xaa55, 0x1fe)
  bytes.write('HdrS', 0x202)
  bytes.writeUInt16LE(0x20f, 0x206)
  bytes[0x211] = 1
  bytes.writeUInt16LE(1, 0x236)
  change(bytes)
  return bytes
}

function qcow2(change: (bytes: Buffer) => void = () => {}): Buffer {
  const bytes = Buffer.alloc(65_536 * 4)
  bytes.writeUInt32BE(0x514649fb)
  bytes.writeUInt32BE(3, 4)
  bytes.writeUInt32BE(16, 20)
  bytes.writeBigUInt64BE(1024n * 1024n, 24)
  bytes.writeUInt32BE(1, 36)
  bytes.writeBigUInt64BE(65_536n, 40)
  bytes.writeUInt32BE(104, 100)
  change(bytes)
  return bytes
}

/** Files of a machine in a folder, and what `importFiles` makes of them. */
async function imported(at: string, files: Readonly<Record<string, Buffer>>, more: object = {}): Promise<{
  manifest: Buffer; store: BlobStore }> {
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(at, name), bytes)
  const path = (name: string): string | undefined => files[name] === undefined ? undefined : join(at, name)
  const store = new BlobStore(join(at, 'store'))
  const disks = Object.keys(files).filter((name) => name.startsWith('disk')).map((name) =>
    ({ path: join(at, name), readOnly: name.endsWith('ro') }))
  const manifest = await importFiles(store, { scratch: at, kernel: path('kernel'), initrd: path('initrd'), disks,
    ...more })
  return { manifest, store }
}

const KERNELS: readonly (readonly [what: string, bytes: Buffer, fault: RegExp | undefined])[] = [
  ['a 64-bit bzImage', kernel(), undefined],
  ['text', Buffer.alloc(5000, 'x'), /no bzImage/],
  ['nothing', Buffer.alloc(0), /no bzImage/],
  ['another magic', kernel((bytes) => bytes.write('Hdrs', 0x202)), /no bzImage/],
  ['an old protocol', kernel((bytes) => bytes.writeUInt16LE(0x205, 0x206)), /2\.05: 2\.06 is the least/],
  ['32 bits', kernel((bytes) => bytes.writeUInt16LE(0, 0x236)), /64-bit/],
  ['a protocol before 64 bits', kernel((bytes) => bytes.writeUInt16LE(0x20a, 0x206)), /64-bit/],
  ['a file cut off', kernel((bytes) => bytes.writeUInt32LE(4097, 0x1f4)), /cut off: it has 5120 of/],
  ['an ELF file of another machine', Buffer.concat([Buffer.from('7f454c4601010100', 'hex'), Buffer.alloc(100)]),
    /x86-64/],
]
const DISKS: readonly (readonly [what: string, bytes: Buffer, fault: RegExp | undefined])[] = [
  ['raw', Buffer.alloc(1024, 'x'), undefined], ['qcow2', qcow2(), undefined],
  ['nothing', Buffer.alloc(0), /empty/], ['half a sector', Buffer.alloc(700, 'x'), /multiple of 512/],
  ['a backing file', qcow2((bytes) => bytes.writeBigUInt64BE(200n, 8)), /backing file/],
  ['another version', qcow2((bytes) => bytes.writeUInt32BE(4, 4)), /version 4/],
  ['clusters of 2^40', qcow2((bytes) => bytes.writeUInt32BE(40, 20)), /2\^40/],
  ['encryption', qcow2((bytes) => bytes.writeUInt32BE(1, 32)), /encrypted/],
  ['a dirty one', qcow2((bytes) => bytes.writeBigUInt64BE(1n, 72)), /closed properly/],
  ['data in another file', qcow2((bytes) => bytes.writeBigUInt64BE(4n, 72)), /another file/],
  ['features of tomorrow', qcow2((bytes) => bytes.writeBigUInt64BE(1n << 40n, 72)), /aren't known/],
  ['a size without end', qcow2((bytes) => bytes.writeBigUInt64BE(2n ** 60n, 24)), /is the most/],
  ['a table beyond its end', qcow2((bytes) => bytes.writeBigUInt64BE(2n ** 40n, 40)), /cut off/],
  ['a head cut off', qcow2().subarray(0, 80), /cut off/],
  ['VMDK', Buffer.alloc(1024, 'KDMV'), /VMDK/], ['VHDX', Buffer.alloc(1024, 'vhdxfile'), /VHDX/],
  ['gzip', gzipSync(Buffer.alloc(1024)), /compressed with gzip/],
]

suite('machine_image', () => {
  test('kernels are known by their headers', () => {
    for (const [what, bytes, fault] of KERNELS) {
      const found = kernelFault(bytes.subarray(0, 4096), bytes.length)
      if (fault === undefined) assert.equal(found, undefined, what)
      else assert.match(found ?? '', fault, what)
    }
  })

  test('disks are known by their headers', () => {
    for (const [what, bytes, fault] of DISKS) {
      const found = diskOf(bytes.subarray(0, 4096), bytes.length)
      if (fault === undefined) assert.equal(typeof found, 'object', what)
      else assert.match(typeof found === 'string' ? found : '', fault, what)
    }
  })

  test('initrds are archives, compressed or not', () => {
    for (const bytes of [INITRD, gzipSync(INITRD)]) assert.equal(initrdFault(bytes), undefined)
    for (const bytes of [Buffer.alloc(0), Buffer.alloc(100, 'x'), Buffer.from('070707000000')]) {
      assert.notEqual(initrdFault(bytes), undefined)
    }
  })

  test('importFiles() makes an image of a kernel, an initrd, disks and a seed', async () => {
    using at = folder()
    writeFileSync(join(at.path, 'user'), '#cloud-config\n')
    const raw = Buffer.concat([randomBytes(512), Buffer.alloc(9 * 1024 * 1024)])
    const { manifest, store } = await imported(at.path,
      { kernel: kernel(), initrd: INITRD, disk0: raw, disk1ro: qcow2() },
      { vcpus: 2, memoryBytes: 64 * 1024 * 1024, commandLine: 'console=ttyS0 quiet',
        seed: { userData: join(at.path, 'user') } })
    const { config, kernel: kernelPath, initrd, disks } = openMachineImage(store, 'x', digestOf(manifest))
    assert.deepEqual(readFileSync(kernelPath!), kernel())
    assert.deepEqual(readFileSync(initrd!), INITRD)
    assert.deepEqual(disks.map(({ format, readOnly, serial }) => [format, readOnly, serial]),
      [['qcow2', false, 'disk0'], ['qcow2', true, 'disk1'], ['raw', true, 'seed']])
    assert.equal(disks[0]!.sizeBytes, raw.length)
    assert.ok(readFileSync(disks[0]!.path).length < 512 * 1024, 'zeroes are left out')
    assert.deepEqual([config.vcpus, config.memoryBytes, config.commandLine, config.agent],
      [2, 64 * 1024 * 1024, 'console=ttyS0 quiet', false])
  })

  test('importFiles() names the file that is missing or damaged', async () => {
    using at = folder()
    for (const [files, more, code] of [
      [{ kernel: Buffer.alloc(3000) }, {}, 'MACHINE_KERNEL_INVALID'],
      [{ kernel: kernel(), initrd: Buffer.alloc(3000) }, {}, 'MACHINE_INITRD_INVALID'],
      [{ kernel: kernel(), disk0: Buffer.alloc(3) }, {}, 'MACHINE_DISK_INVALID'],
      [{}, { kernel: join(at.path, 'none') }, 'NOT_FOUND'], [{}, { kernel: at.path }, 'MACHINE_KERNEL_INVALID'],
      [{}, { disks: [{ path: join(at.path, 'none'), readOnly: false }] }, 'NOT_FOUND'],
      [{}, {}, 'MACHINE_IMAGE_DAMAGED'],
      [{ kernel: kernel() }, { commandLine: 'a\nb' }, 'MACHINE_IMAGE_DAMAGED'],
      [{ kernel: kernel() }, { commandLine: 'a'.repeat(2048) }, 'MACHINE_IMAGE_DAMAGED'],
      [{ kernel: kernel() }, { memoryBytes: 3 }, 'MACHINE_IMAGE_DAMAGED'],
      [Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`disk${i}`, qcow2()])), {}, 'MACHINE_IMAGE_DAMAGED'],
    ] as const) {
      await assert.rejects(imported(at.path, files, more), { code }, code)
    }
  })

  test('an image of a machine is pushed and pulled as others are', async () => {
    using at = folder()
    const { manifest } = await imported(at.path, { kernel: kernel(), initrd: INITRD, disk0: qcow2() })
    await new LayoutFolder(join(at.path, 'store')).writeManifest(manifest, MANIFEST_TYPE, 'v1')
    using from = imagesFor()
    using to = imagesFor()
    const image = await from.images.pull(`oci:${join(at.path, 'store')}:v1`)
    assert.equal(image.kind, 'machine')
    await from.images.push(image.digest, `oci:${join(at.path, 'copy')}:v2`)
    const copy = await to.images.pull(`oci:${join(at.path, 'copy')}:v2`)
    assert.equal(copy.digest, image.digest)
    assert.equal(openMachineImage(to.store, 'copy', copy.digest).disks.length, 1)
    assert.equal((to.images.inspect('copy:v2').config as MachineConfig).os, 'linux')
    to.images.collect([], 0)
    assert.equal(openMachineImage(to.store, 'copy', copy.digest).disks.length, 1, 'what a name leads to stays')
    await to.images.remove('copy:v2')
    to.images.collect([], 0)
    assert.deepEqual(to.store.list(), [], 'what no name leads to goes')
  })

  test('a registry\'s image of a machine that is damaged is refused, and has no name', async () => {
    using at = folder()
    const { manifest, store } = await imported(at.path, { kernel: kernel(), initrd: INITRD, disk0: qcow2() })
    await using fake = await fakeRegistry()
    using to = imagesFor()
    const good = JSON.parse(manifest.toString()) as { config: { digest: string }; layers: { digest: string }[] }
    const config = JSON.parse(store.read(good.config.digest).toString()) as Record<string, unknown>
    for (const one of store.list()) fake.blobs.set(one, store.read(one))
    const text = Buffer.from('it is no kernel at all')
    fake.blobs.set(digestOf(text), text)
    const served = async (changed: object, layers = good.layers): Promise<void> => {
      const bytes = Buffer.from(JSON.stringify({ ...config, ...changed }))
      fake.blobs.set(digestOf(bytes), bytes)
      const all = Buffer.from(JSON.stringify({ ...good, layers,
        config: { mediaType: MACHINE_TYPE, digest: digestOf(bytes), size: bytes.length } }))
      fake.manifests.set('v1', { bytes: all, type: MANIFEST_TYPE })
      await to.images.pull(`${fake.host}/vm:v1`)
    }
    const own = good.layers[0]!
    for (const [changed, layers, message] of [
      [{ kernel: `sha256:${'0'.repeat(64)}` }, undefined, /kernel isn't among its layers/],
      [{ kernel: digestOf(text) }, [{ ...own, digest: digestOf(text), size: text.length }, ...good.layers.slice(1)],
        /its kernel is none/],
      [{ disks: [{ ...(config['disks'] as object[])[0], sizeBytes: 512 }] }, undefined,
        /of 1048576 bytes, not qcow2 of 512/],
      [{ disks: [{ ...(config['disks'] as object[])[0], serial: 'a b;c' }] }, undefined, /wrong at disks\.0\.serial/],
      [{ architecture: 'arm64' }, undefined, /wrong at architecture/], [{ vcpus: 1e9 }, undefined, /wrong at vcpus/],
      [{ commandLine: 7 }, undefined, /wrong at commandLine/],
      [{}, [...good.layers, { ...own, mediaType: 'text/plain' }], /isn't known/],
    ] as const) {
      await assert.rejects(served(changed, layers as typeof good.layers | undefined),
        { code: 'MACHINE_IMAGE_DAMAGED', message })
      assert.equal(to.names.size, 0)
    }
    await served({})
    assert.equal(to.names.size, 1)
  })

  test('a store whose blob was cut off tells which part is damaged', async () => {
    using at = folder()
    const { manifest, store } = await imported(at.path, { kernel: kernel(), initrd: INITRD })
    const { initrd } = openMachineImage(store, 'x', digestOf(manifest))
    chmodSync(initrd!, 0o644)
    truncateSync(initrd!, 10)
    assert.throws(() => openMachineImage(store, 'x', digestOf(manifest)),
      { code: 'MACHINE_IMAGE_DAMAGED', message: /its initrd has 10 bytes/ })
  })

  test('importRootfs() makes disks of a container\'s layers, and a script of what it runs',
    { skip: !HAS_TOOLS && NO_TOOLS }, async () => {
      using at = folder()
      const { manifest, store } = await imported(at.path, { kernel: kernel(), initrd: INITRD })
      const base = openMachineImage(store, 'base', digestOf(manifest))
      const owned = { name: 'x', flag: 'x', content: pax('uid', '1234567') }
      const layers = [tar(owned, { name: 'bin/app', content: Buffer.from('1') }),
        gzipSync(tar({ name: 'old', content: Buffer.from('2') })), tar({ name: '.wh.old' })]
      const reference = await containerOf(join(at.path, 'oci'), layers, { architecture: 'amd64', os: 'linux',
        config: { Entrypoint: ['/bin/app'], Cmd: ['a b'], User: '7' } })
      const scratch = join(at.path, 'scratch')
      mkdirSync(scratch)
      const source = { reference, options: {}, say: () => {} }
      const made = await importRootfs(store, { source, kernel: base, upperBytes: 64 * 1024 * 1024, scratch })
      const { config, initrd, disks } = openMachineImage(store, 'app', digestOf(made))
      assert.equal(config.commandLine, 'console=ttyS0 cellar.root=root cellar.upper=upper')
      assert.deepEqual(config.entry?.argv, ['/bin/app', 'a b'])
      const files = readCpio(readFileSync(initrd!)).map(({ name, content }) => `${name} ${Buffer.from(content)}`)
      assert.match(files.join(''),
        /etc\/cellar\/entry\.sh .*'7:0'.* '--' 'a b'\n/s)
      const { stdout } = spawnSync('unsquashfs', ['-lln', disks[0]!.path], { encoding: 'utf8' })
      assert.match(stdout, /^drwxr-xr-x 0\/0 .* squashfs-root\/bin\n-rw-r--r-- 1234567\/0 .* squashfs-root\/bin\/app$/m)
      assert.doesNotMatch(stdout, /old/)
      assert.deepEqual(disks.map(({ serial, readOnly, sizeBytes }) => [serial, readOnly, sizeBytes > 0]),
        [['root', true, true], ['upper', false, true]])
      assert.equal(disks[1]!.sizeBytes, 64 * 1024 * 1024)
    })

  test('importRootfs() refuses images that are not for containers of linux/amd64', async () => {
    using at = folder()
    const { manifest, store } = await imported(at.path, { kernel: kernel(), initrd: INITRD })
    const base = openMachineImage(store, 'base', digestOf(manifest))
    for (const [config, message] of [
      [{ architecture: 'arm64', os: 'linux' }, /it is for linux\/arm64/], [{ architecture: 'amd64' }, /wrong at os/],
      [{ architecture: 'amd64', os: 'linux', config: { Env: ['A\0B'] } }, /wrong at config\.Env/],
      [{ architecture: 'amd64', os: 'linux', config: { Cmd: ['x'], User: 'none' } }, /isn't one that it has/],
    ] as const) {
      const reference = await containerOf(join(at.path, 'oci'), [tar({ name: 'a' })], config)
      await assert.rejects(importRootfs(store, { source: { reference, options: {}, say: () => {} }, kernel: base,
        scratch: at.path }),
      message.source.includes('one that') && !HAS_TOOLS ? {} : { code: 'IMAGE_INVALID', message })
    }
  })
})

async function containerOf(at: string, layers: readonly Buffer[], config: object): Promise<string> {
  const store = new BlobStore(at)
  const blob = async (bytes: Buffer, mediaType: string): Promise<object> =>
    ({ mediaType, digest: await store.put([bytes], { maxBytes: 1e9 }), size: bytes.length })
  const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE,
    config: await blob(Buffer.from(JSON.stringify(config)), 'application/vnd.oci.image.config.v1+json'),
    layers: await Promise.all(layers.map((one) => blob(one, 'application/vnd.oci.image.layer.v1.tar'))) }))
  await new LayoutFolder(at).writeManifest(manifest, MANIFEST_TYPE, 'v1')
  return `oci:${at}:v1`
}
