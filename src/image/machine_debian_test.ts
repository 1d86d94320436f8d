// image/machine_debian_test.ts: the Debian guest, made of real packages, boots to a shell, to a container's program,
// and goes off when it is told to. It takes apt and its packages, and QEMU; elsewhere it is skipped, and says why.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../base/errors.ts'
import { BlobStore } from './blob_store.ts'
import { digestOf, MANIFEST_TYPE } from './image.ts'
import { LayoutFolder } from './layout.ts'
import { makeDebian } from './machine_debian.ts'
import { openMachineImage, type MachineImage } from './machine_image.ts'
import { importRootfs } from './machine_import.ts'
import { folder, tar } from './test_support.ts'

const QEMU = 'qemu-system-x86_64'
const PACKAGES = fileURLToPath(new URL('../../.cache/debian', import.meta.url))
const BOOT_MS_MAX = 90_000
const ESCAPE = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*[a-zA-Z]`, 'g')
const isThere = (tool: string): boolean => spawnSync(tool, ['--version']).error === undefined
const missing = [QEMU, 'apt-get', 'sqfstar', 'qemu-img'].filter((tool) => !isThere(tool))
const skip = process.platform !== 'linux' || process.arch !== 'x64' ? 'for x86-64 Linux'
  : missing.length > 0 && `not here: ${missing.join(', ')}`

/** Where the kernel can't measure its clock, as on a busy machine, it is told: kHz. */
const clock = (): string => {
  const mhz = /^cpu MHz\s*: ([\d.]+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]
  return mhz === undefined ? '' : ` tsc_early_khz=${Math.round(Number(mhz) * 1000)}`
}

/** Boots an image under QEMU; types each line of `typed` at a prompt. What the console said, without escapes. */
async function booted(image: MachineImage, typed: readonly string[], at: string): Promise<string> {
  const disks = image.disks.flatMap(({ path, format, readOnly, serial }, i) => {
    const copy = join(at, `disk${i}.qcow2`)
    if (!readOnly) {
      assert.equal(spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', path, '-F', format, copy]).status, 0)
    }
    const drive = readOnly ? `format=${format},readonly=on,file=${path}` : `format=qcow2,file=${copy}`
    return ['-drive', `if=none,id=d${i},${drive}`, '-device', `virtio-blk-device,drive=d${i},serial=${serial}`]
  })
  const child = spawn(QEMU, ['-M', 'microvm,acpi=on', '-nodefaults', '-accel', 'tcg', '-cpu', 'max', '-m', '256M',
    '-kernel', image.kernel!, '-initrd', image.initrd!, '-append', image.config.commandLine + clock(), '-serial',
    'stdio', '-display', 'none', '-no-reboot', '-netdev', 'user,id=n,hostname=named-by-dhcp', '-device',
    'virtio-net-device,netdev=n', ...disks], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  const timer = setTimeout(() => child.kill('SIGKILL'), BOOT_MS_MAX)
  let [all, seen, next] = ['', 0, 0]
  for await (const chunk of child.stdout.setEncoding('utf8') as AsyncIterable<string>) {
    // Escapes may come in two pieces.
    all = (all + chunk.replaceAll('\r', '')).replaceAll(ESCAPE, '')
    if (/[#$] $/.test(all.slice(seen)) && next < typed.length) {
      seen = all.length
      child.stdin.write(`${typed[next++]}\n`)
    }
  }
  const [, signal] = await ended as [number | null, string | null]
  clearTimeout(timer)
  assert.equal(signal, null, `it didn't end by itself; it said:\n${all}`)
  return all
}

test('the Debian guest boots to a shell, and with a container\'s files to its program', { skip, timeout: 400_000 },
  async (t) => {
    using at = folder()
    const store = new BlobStore(join(at.path, 'store'))
    const scratch = join(at.path, 'scratch')
    mkdirSync(scratch)
    const debian = await makeDebian(store, { source: { folder: PACKAGES, say: () => {} }, packages: [], scratch })
      .catch((error: unknown) => {
        if (error instanceof CellarError && error.code === 'MACHINE_PACKAGES_FAILED') return error
        throw error
      })
    if (debian instanceof CellarError) return t.skip(`no packages here: ${debian.message}`)
    const image = openMachineImage(store, 'debian', digestOf(debian))
    const said = await booted(image, ['for i in 1 2 3 4 5 6 7 8 9; do hostname | grep dhcp && break; sleep 1; done',
      'ip -4 addr show eth0 | grep -o "inet 10[.0-9]*"; echo "$((6 * 7)) is the answer"', 'poweroff'],
    at.path)
    assert.match(said, /^named-by-dhcp$/m)
    assert.match(said, /^inet 10\.0\.2\.15$/m)
    assert.match(said, /^42 is the answer$/m)
    assert.match(said, /Power down/)

    const made = await importRootfs(store, { kernel: image, upperBytes: 32 * 1024 * 1024, scratch,
      source: { options: {}, say: () => {},
        reference: await containerWith(join(at.path, 'oci'), 'touch /kept; ls -ln /home; ls -1 /; id -u') } })
    const app = await booted(openMachineImage(store, 'app', digestOf(made)), [], at.path)
    assert.match(app, /^-rw-r--r-- .* 0 +0 .* file$/m)
    assert.match(app, /^kept$/m)
    assert.doesNotMatch(app, /^gone$/m)
    assert.match(app, /^0$/m)
    assert.match(app, /Power down/)
  })

test('an image of packages on a disk has a shell, users and the packages\' own programs, made twice of one cache',
  { skip, timeout: 400_000 }, async (t) => {
    using at = folder()
    const store = new BlobStore(join(at.path, 'store'))
    const scratch = join(at.path, 'scratch')
    mkdirSync(scratch)
    const make = async (packages: string[], diskBytes?: number): Promise<MachineImage> =>
      openMachineImage(store, 'debian', digestOf(await makeDebian(store,
        { source: { folder: PACKAGES, say: () => {} }, packages, diskBytes, scratch })))
    try {
      await make(['logsave'])
    } catch (error) {
      if (error instanceof CellarError && error.code === 'MACHINE_PACKAGES_FAILED') return t.skip(error.message)
      throw error
    }
    const image = await make(['e2fsprogs'], 64 * 1024 * 1024)
    const said = await booted(image, ['mke2fs -V 2>&1 | head -1',
      '/bin/sh -c "grep ^root: /etc/passwd; readlink /bin/sh"', 'mkfs.ext4 -V 2>&1 | tail -1', 'poweroff'], at.path)
    assert.match(said, /^mke2fs 1\.\d+\.\d/m)
    assert.match(said, /^\s*Using EXT2FS Library version/m)
    assert.match(said, /^root:x:0:0:root:\/root:\/bin\/sh$/m)
    assert.match(said, /^\/run\/cellar\/busybox$/m)
    assert.match(said, /Power down/)
  })

/** An image for containers that runs a shell's words, with no shell of its own but ours. */
async function containerWith(at: string, words: string): Promise<string> {
  const layers = [tar({ name: 'gone' }, { name: 'home/file', content: Buffer.from('x') }), tar({ name: '.wh.gone' })]
  const config = { architecture: 'amd64', os: 'linux', config: { Entrypoint: ['/run/cellar/busybox', 'sh', '-c', words],
    Env: ['PATH=/run/cellar/bin'] } }
  const store = new BlobStore(at)
  const blob = async (bytes: Buffer, mediaType: string): Promise<object> =>
    ({ mediaType, digest: await store.put([bytes], { maxBytes: 1e9 }), size: bytes.length })
  const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE,
    config: await blob(Buffer.from(JSON.stringify(config)), 'application/vnd.oci.image.config.v1+json'),
    layers: await Promise.all(layers.map((one) => blob(one, 'application/vnd.oci.image.layer.v1.tar'))) }))
  await new LayoutFolder(at).writeManifest(manifest, MANIFEST_TYPE, 'v1')
  return `oci:${at}:v1`
}
