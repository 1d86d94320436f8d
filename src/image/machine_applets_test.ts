// image/machine_applets_test.ts: programs of packages come before busybox's names, in RAM and on a disk.

import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite, test } from 'node:test'
import { zstdDecompressSync } from 'node:zlib'
import { aliasesOfPrograms, appletLinks, appletsOf } from './machine_applets.ts'
import { readCpio } from './machine_cpio.ts'
import { makeInitramfs } from './machine_initramfs.ts'
import { openLayers } from './machine_layers.ts'
import { addToInitramfs, withBusybox } from './machine_rootfs.ts'
import { folder, tar } from './test_support.ts'

const LIST = 'bin/busybox\nbin/ls\nbin/sh\nsbin/init\nsbin/mke2fs\nsbin/modprobe\nusr/bin/awk\nusr/bin/env\n[\n'
const APPLETS = appletsOf(LIST)
const PACKAGES = tar({ name: 'sbin/mke2fs', content: Buffer.from('real') },
  { name: 'sbin/mkfs.ext4', flag: '2', link: 'mke2fs' },
  { name: 'usr/bin/ls', content: Buffer.from('ls') }, { name: 'usr/sbin/modprobe', content: Buffer.from('kmod') },
  { name: 'etc/group', content: Buffer.from('theirs') }, { name: 'usr/lib64/ld.so', content: Buffer.from('x') })

/** Links and files by their paths; a file as its content. */
async function initramfs(at: string): Promise<Map<string, string>> {
  writeFileSync(join(at, 'packages.tar'), PACKAGES)
  mkdirSync(join(at, 'lib/modules/6.1'), { recursive: true })
  const { add } = await addToInitramfs(await openLayers('x', [join(at, 'packages.tar')]))
  const { bytes } = makeInitramfs({ kernelFolder: at, version: '6.1', busybox: Buffer.from('box'), applets: APPLETS,
    more: add })
  return new Map(readCpio(zstdDecompressSync(bytes))
    .map(({ name, content }) => [name, Buffer.from(content).toString()]))
}

suite('machine_applets', () => {
  test("programs of packages win over busybox's names in an initramfs, whichever folder they are in", async () => {
    using at = folder()
    const files = await initramfs(at.path)
    assert.equal(files.get('sbin/mke2fs'), 'real')
    assert.equal(files.get('sbin/mkfs.ext4'), 'mke2fs')
    assert.equal(files.get('usr/bin/ls'), 'ls')
    assert.equal(files.get('bin/ls'), '/usr/bin/ls')
    assert.equal(files.get('usr/bin/awk'), '/bin/busybox')
    assert.equal(files.get('bin/sh'), '/bin/busybox')
    assert.match(files.get('etc/group')!, /^root:/)
    assert.equal(files.get('lib64'), 'usr/lib64')
  })

  test("what speaks to busybox's init, and reads our modules, stays busybox's", async () => {
    using at = folder()
    const files = await initramfs(at.path)
    for (const path of ['sbin/init', 'sbin/modprobe', 'usr/sbin/modprobe']) {
      assert.equal(files.get(path), '/bin/busybox', path)
    }
  })

  test("busybox's shell is told which names are programs, but not its own parts", async () => {
    using at = folder()
    const files = await initramfs(at.path)
    assert.equal(files.get('etc/cellar/names.sh'), 'alias ls=/usr/bin/ls\nalias mke2fs=/sbin/mke2fs\n')
    assert.equal(aliasesOfPrograms(['bin/sh', 'bin/echo', 'sbin/init'], () => true), '')
    assert.deepEqual(appletLinks(['bin/ls'], () => true, '/bin/busybox'), [])
  })

  test('a root of packages alone gets a shell, users and a loader, and keeps what it has', async () => {
    using at = folder()
    writeFileSync(join(at.path, 'packages.tar'), PACKAGES)
    const layers = await withBusybox([join(at.path, 'packages.tar')], APPLETS, at.path)
    const links = new Map<string, string>()
    for await (const { path, kind, link } of layers.entries()) if (kind === 'link') links.set(path, link)
    assert.equal(links.get('bin/sh'), '/run/cellar/busybox')
    assert.equal(links.get('bin/ls'), '/usr/bin/ls')
    assert.equal(links.get('lib64'), 'usr/lib64')
    assert.ok(!links.has('sbin/mke2fs') && !links.has('sbin/init'))
    const read = async (path: string): Promise<string | undefined> => (await layers.file(path, 10_000))?.toString()
    assert.match((await read('etc/passwd'))!, /^root:x:0:0:root:\/root:\/bin\/sh$/m)
    assert.equal(await read('etc/group'), 'theirs')
    assert.equal(await read('sbin/mke2fs'), 'real')
  })

  test("a root whose bin is a link gets busybox's names where it leads to", async () => {
    using at = folder()
    writeFileSync(join(at.path, 'base.tar'), tar({ name: 'bin', flag: '2', link: 'usr/bin' },
      { name: 'usr/bin/dash', content: Buffer.from('dash') }, { name: 'usr/bin/sh', flag: '2', link: 'dash' }))
    const layers = await withBusybox([join(at.path, 'base.tar')], APPLETS, at.path)
    const links = new Map<string, string>()
    for await (const { path, kind, link } of layers.entries()) if (kind === 'link') links.set(path, link)
    assert.deepEqual([links.get('bin'), links.get('usr/bin/sh'), links.get('usr/bin/ls')],
      ['usr/bin', 'dash', '/run/cellar/busybox'])
  })
})
