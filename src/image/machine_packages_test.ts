// image/machine_packages_test.ts: packages, and what is in them: tools that fail or are missing, modules in order.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { suite, test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { aliasesOf, dependenciesOf, modulesOf, readModinfo } from './machine_modules.ts'
import { openPackages } from './machine_packages.ts'
import { runTool } from './machine_tools.ts'
import { folder } from './test_support.ts'

/** Programs under these names, and no others, on the PATH while `work` runs. */
async function withTools(at: string, tools: Readonly<Record<string, string>>, work: () => Promise<void>):
Promise<void> {
  const bin = join(at, 'bin')
  mkdirSync(bin, { recursive: true })
  for (const [name, script] of Object.entries(tools)) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  }
  const path = process.env['PATH']
  process.env['PATH'] = bin
  try {
    await work()
  } finally {
    process.env['PATH'] = path
  }
}

/** A module as far as its section .modinfo. */
function moduleOf(...info: readonly string[]): Buffer {
  const modinfo = Buffer.from(info.map((one) => `${one}\0`).join(''))
  const names = Buffer.from('\0.modinfo\0.shstrtab\0')
  const head = Buffer.alloc(64)
  head.write('7f454c460201', 0, 'hex')
  const sections = Buffer.alloc(64 * 3)
  const section = (index: number, name: number, from: number, length: number): void => {
    sections.writeUInt32LE(name, index * 64)
    sections.writeBigUInt64LE(BigInt(from), index * 64 + 0x18)
    sections.writeBigUInt64LE(BigInt(length), index * 64 + 0x20)
  }
  section(1, 1, 64, modinfo.length)
  section(2, 10, 64 + modinfo.length, names.length)
  head.writeBigUInt64LE(BigInt(64 + modinfo.length + names.length), 0x28)
  head.writeUInt16LE(64, 0x3a)
  head.writeUInt16LE(3, 0x3c)
  head.writeUInt16LE(2, 0x3e)
  return Buffer.concat([head, modinfo, names, sections])
}

suite('machine_packages', () => {
  test('a machine without apt is told which package has it', async () => {
    using at = folder()
    await withTools(at.path, {}, () => assert.rejects(openPackages({ folder: at.path, say: () => {} }, 'linux'),
      { code: 'MACHINE_TOOL_MISSING', message: /apt-cache isn't here: Debian has it in apt/ }))
  })

  test('lists that cannot be fetched are told in apt\'s words', async () => {
    using at = folder()
    const tools = { 'apt-cache': 'exit 100',
      'apt-get': 'echo "W: slow" >&2; echo "E: Could not resolve host" >&2; exit 100' }
    await withTools(at.path, tools, () => assert.rejects(openPackages({ folder: at.path, say: () => {} }, 'linux'),
      { code: 'MACHINE_PACKAGES_FAILED', message: /lists of packages: E: Could not resolve host$/ }))
  })

  test('another release has lists of its own, from the mirror that is asked for', async () => {
    using at = folder()
    const told: string[] = []
    const source = { folder: at.path, release: 'trixie', mirror: 'http://mirror.example/debian',
      say: (text: string) => void told.push(text) }
    const tools = { 'apt-get': `echo "$@" >"${at.path}/words"` }
    await withTools(at.path, tools, async () => { await openPackages(source, 'linux') })
    const [sources, words] = ['sources.list', 'words'].map((name) => readFileSync(join(at.path, name), 'utf8'))
    assert.match(sources!, /^deb \[arch=amd64.*\] http:\/\/mirror\.example\/debian trixie main\n$/)
    assert.match(words!, new RegExp(`Dir::Etc::sourcelist=${at.path}/sources.list .*update$`, 'm'))
    assert.deepEqual(told, ['fetching the lists of packages'])
  })

  test('words that would be more than a release, a mirror or a package are refused', async () => {
    using at = folder()
    const tools = { 'apt-get': 'exit 0', 'apt-cache': 'echo Package: x' }
    await withTools(at.path, tools, async () => {
      for (const more of [{ release: 'sid main\ndeb http://evil/ x' }, { mirror: 'http://a b' }]) {
        await assert.rejects(openPackages({ folder: at.path, say: () => {}, ...more }, 'x'),
          { code: 'MACHINE_PACKAGES_FAILED' })
      }
      const packages = await openPackages({ folder: at.path, say: () => {} }, 'x')
      for (const name of ['-o', 'a b', '../x', '']) {
        await assert.rejects(packages.fetchAll([name]),
          { code: 'MACHINE_PACKAGES_FAILED', message: /no name of a package/ })
      }
    })
  })

  test('packages are all named the second time, none of another time, and a damaged one is fetched anew', async () => {
    using at = folder()
    const hash = (text: string): string => createHash('sha256').update(text).digest('hex')
    const line = (name: string): string =>
      `[ -e "$archives/${name}_1_amd64.deb" ] || echo "'http://x/${name}' ${name}_1_amd64.deb ${name.length} ` +
      `SHA256:${hash(name)}";`
    const fetched = (name: string): string =>
      `[ -e "$archives/${name}_1_amd64.deb" ] || printf ${name} >"$archives/${name}_1_amd64.deb";`
    // As apt does it: neither names nor fetches what it has, and `lib` is all that `tool` needs.
    const tools = { 'apt-cache': 'echo Package: x', 'apt-get': `
      for word in "$@"; do
        case "$word" in
          Dir::Cache=*) archives="\${archives:-\${word#*=}/archives}" ;;
          Dir::Cache::archives=*) archives="\${word#*=}" ;;
          --print-uris) print=1 ;; lib | tool | other) name="$word" ;;
        esac
      done
      echo "$print" >>"${at.path}/calls"
      if [ "$print" = 1 ]; then
        case "$name" in other) ${line('other')} ;; *) ${line('lib')} ${line('tool')} esac
      else
        case "$name" in other) ${fetched('other')} ;; *) ${fetched('lib')} ${fetched('tool')} esac
      fi` }
    await withTools(at.path, tools, async () => {
      const packages = await openPackages({ folder: at.path, say: () => {} }, 'x')
      const names = async (name: string): Promise<string[]> =>
        (await packages.fetchAll([name])).map((path) => `${basename(path)}:${readFileSync(path, 'utf8')}`)
      const wanted = ['lib_1_amd64.deb:lib', 'tool_1_amd64.deb:tool']
      assert.deepEqual(await names('other'), ['other_1_amd64.deb:other'])
      assert.deepEqual(await names('tool'), wanted)
      assert.deepEqual(await names('tool'), wanted, 'with everything cached')
      const archives = join(at.path, 'cache/archives')
      rmSync(join(archives, 'lib_1_amd64.deb'))
      assert.deepEqual(await names('tool'), wanted, 'with one of two cached')
      writeFileSync(join(archives, 'tool_1_amd64.deb'), 'evil')
      assert.deepEqual(await names('tool'), wanted, 'with one that was changed')
    })
    const calls = readFileSync(join(at.path, 'calls'), 'utf8').split('\n').filter((one) => one === '').length - 1
    assert.equal(calls, 4, 'nothing is fetched when all is there')
  })

  test('a tool whose input fails is ended, and that is told', async () => {
    using at = folder()
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('x')
      throw new Error('the layer is damaged')
    }
    const output = join(at.path, 'out')
    await assert.rejects(runTool('try', { tool: 'cat', from: 'coreutils', words: [], input: broken(), output }),
      /the layer is damaged/)
    assert.ok(existsSync(output))
  })
})

suite('machine_modules', () => {
  test('modulesOf() finds what modules need, each behind that, however they are compressed', () => {
    using at = folder()
    const files = { 'net/virtio_net.ko': moduleOf('depends=virtio-ring,virtio', 'alias=virtio:d1v*'),
      'v/virtio.ko.zst': zstdCompressSync(moduleOf('depends=virtio_ring')), 'v/virtio_ring.ko': moduleOf('depends='),
      'v/other.ko': moduleOf('depends=') }
    for (const [path, bytes] of Object.entries(files)) {
      mkdirSync(join(at.path, path, '..'), { recursive: true })
      writeFileSync(join(at.path, path), bytes)
    }
    const modules = modulesOf(at.path, ['virtio-net', 'built_in'])
    assert.deepEqual(modules.map(({ name }) => name), ['virtio_ring', 'virtio', 'virtio_net'])
    assert.equal(dependenciesOf(modules), 'v/virtio_ring.ko:\nv/virtio.ko: v/virtio_ring.ko\n' +
      'net/virtio_net.ko: v/virtio.ko v/virtio_ring.ko\n')
    assert.equal(aliasesOf(modules), 'alias virtio:d1v* virtio_net\n')
  })

  test('modules that depend on each other in a circle end, too', () => {
    using at = folder()
    writeFileSync(join(at.path, 'a.ko'), moduleOf('depends=b'))
    writeFileSync(join(at.path, 'b.ko'), moduleOf('depends=a'))
    const modules = modulesOf(at.path, ['a'])
    assert.equal(modules.length, 2)
    assert.match(dependenciesOf(modules), /^b\.ko: a\.ko\na\.ko: b\.ko\n$/)
  })

  test('readModinfo() has nothing to say of what is no module', () => {
    const good = moduleOf('depends=a')
    assert.deepEqual(readModinfo(good), [['depends', 'a']])
    for (let end = 0; end < good.length; end += 7) assert.deepEqual(readModinfo(good.subarray(0, end)), [])
    for (const at of [0x28, 0x3a, 0x3c, 0x3e]) {
      const bad = Buffer.from(good)
      bad.fill(0xff, at, at + 2)
      assert.doesNotThrow(() => readModinfo(bad))
    }
  })
})
