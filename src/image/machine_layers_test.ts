// image/machine_layers_test.ts: layers of containers as one tree, whatever their author put into them.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { suite, test } from 'node:test'
import { entryScript } from './machine_container.ts'
import { openLayers, type Layers } from './machine_layers.ts'
import { tarOf } from './machine_tar.ts'
import { TarReader } from './tar_reader.ts'
import { folder, streamOf } from './test_support.ts'

type Made = { name: string; flag?: string; content?: string; link?: string; mode?: number; uid?: number; pax?: string }

/** An archive of these entries: what other tools would refuse to write, too. */
function archive(...entries: readonly Made[]): Buffer {
  const blocks = entries.flatMap((entry) => {
    const { pax } = entry
    return [...pax === undefined ? [] : blockOf({ name: 'x', flag: 'x', content: pax }), ...blockOf(entry)]
  })
  return Buffer.concat([...blocks, Buffer.alloc(1024)])
}

function blockOf({ name, flag = '0', content = '', link = '', mode = 0o644, uid = 0 }: Made): Buffer[] {
  const block = Buffer.alloc(512)
  block.write(name, 0, 100)
  const octal = (value: number, at: number, digits: number): void => void block.write(
    value.toString(8).padStart(digits, '0'), at)
  octal(mode, 100, 7)
  octal(uid, 108, 7)
  octal(0, 116, 7)
  octal(Buffer.byteLength(content), 124, 11)
  octal(1000, 136, 11)
  block.fill(' ', 148, 156)
  block.write(flag, 156)
  block.write(link, 157, 100)
  block.write('ustar\x0000', 257, 'latin1')
  octal(1, 329, 7)
  octal(3, 337, 7)
  octal(block.reduce((sum, byte) => sum + byte, 0), 148, 6)
  block[154] = 0
  return [block, Buffer.from(content), Buffer.alloc((512 - Buffer.byteLength(content) % 512) % 512)]
}

const dir = (name: string): Made => ({ name: `${name}/`, flag: '5', mode: 0o755 })
const file = (name: string, content = name): Made => ({ name, content })
const link = (name: string, to: string): Made => ({ name, flag: '2', link: to })
const hard = (name: string, to: string): Made => ({ name, flag: '1', link: to })

async function layersOf(at: string, ...layers: readonly (readonly Made[])[]): Promise<Layers> {
  return await openLayers('test', layers.map((entries, i) => {
    const path = join(at, `layer${i}`)
    const bytes = archive(...entries)
    writeFileSync(path, [bytes, gzipSync(bytes), zstdCompressSync(bytes)][i % 3]!)
    return path
  }))
}

/** What the tree has, as one line each, sorted. */
async function listed(layers: Layers): Promise<string[]> {
  const lines: string[] = []
  for await (const { path, kind, link, content } of layers.entries()) {
    let text = ''
    if (content !== undefined) for await (const piece of content) text += Buffer.from(piece).toString()
    if (path !== '') lines.push(`${kind} ${path}${kind.includes('link') ? ` -> ${link}` : ''}${text && ` ${text}`}`)
  }
  return lines.sort()
}

type Case = readonly [what: string, layers: readonly (readonly Made[])[], want: readonly string[] | RegExp]
const CASES: readonly Case[] = [
  ['later layers replace files', [[file('a', 'old'), file('b')], [file('a', 'new')]], ['file a new', 'file b b']],
  ['the last of one name in a layer counts', [[file('a', 'old'), file('a', 'new')]], ['file a new']],
  ['folders are merged, and keep what they had', [[dir('d'), file('d/a')], [dir('d'), file('d/b')]],
    ['file d/a d/a', 'file d/b d/b', 'folder d']],
  ['a file replaces a folder and all below it', [[dir('d'), file('d/a')], [file('d', 'x')]], ['file d x']],
  ['a whiteout takes away a file', [[file('a'), file('b')], [file('.wh.a', '')]], ['file b b']],
  ['a whiteout takes away a folder and all below it', [[dir('d'), dir('d/e'), file('d/e/a')], [file('.wh.d', '')]], []],
  ['a whiteout leaves what its own layer has', [[file('a', 'old')], [file('a', 'new'), file('.wh.a', '')]],
    ['file a new']],
  ['an opaque folder has what its own layer puts there, before and after',
    [[dir('d'), file('d/a'), dir('d/e'), file('d/e/b')], [file('d/c'), file('d/.wh..wh..opq', ''), file('d/f')]],
    ['file d/c d/c', 'file d/f d/f', 'folder d']],
  ['folders that nobody names are made', [[file('x/y/z', '1')]], ['file x/y/z 1', 'folder x', 'folder x/y']],
  ['names begin as they like', [[file('./a'), file('/b')]], ['file a ./a', 'file b /b']],
  ['a link on the way is followed inside the tree', [[dir('usr'), dir('usr/lib'), link('lib', 'usr/lib')],
    [file('lib/x', '1')]], ['file usr/lib/x 1', 'folder usr', 'folder usr/lib', 'link lib -> usr/lib']],
  ['a link that leads out leads to the tree\'s own top', [[link('out', '../../../../etc'), file('out/x', '1')]],
    ['file etc/x 1', 'folder etc', 'link out -> ../../../../etc']],
  ['an absolute link leads inside the tree', [[link('out', '/etc'), file('out/x', '1')]],
    ['file etc/x 1', 'folder etc', 'link out -> /etc']],
  ['a whiteout through a link takes away inside the tree', [[file('etc/a'), file('etc/b'), link('out', '/etc')],
    [file('out/.wh.a', '')]], ['file etc/b etc/b', 'folder etc', 'link out -> /etc']],
  ['hard links are names of one file', [[file('a', '1'), hard('b', 'a'), hard('c', './b')]],
    ['file a 1', 'hard link b -> a', 'hard link c -> a']],
  ['a hard link keeps what it leads to when that goes', [[file('a', '1')], [hard('b', 'a')], [file('.wh.a', '')]],
    ['file b 1']],
  ['a hard link keeps what it leads to when that is replaced', [[file('a', '1')], [hard('b', 'a'), file('a', '2')]],
    ['file a 2', 'file b 1']],
  ['devices and pipes are kept as such', [[{ name: 'n', flag: '3' }, { name: 'p', flag: '6' }]], ['char n', 'fifo p']],
  ['a path that leads out is refused', [[file('../x')]], /leads out/],
  ['a path that leads out in its middle is refused', [[file('a/../../x')]], /leads out/],
  ['links without end are refused', [[link('a', 'b'), link('b', 'a'), file('a/x')]], /have no end/],
  ['what lies below a file is refused', [[file('a'), file('a/x')]], /lies below a file/],
  ['a hard link to nothing is refused', [[hard('a', 'b')]], /leads to nothing/],
  ['a hard link to a folder is refused', [[dir('d'), hard('a', 'd')]], /leads to nothing/],
  ['a hard link that leads out finds nothing', [[hard('a', '../../../etc/hostname')]], /leads to nothing/],
  ['a kind that nobody knows is refused', [[{ name: 'x', flag: 'Z' }]], /isn't known/],
  ['a sparse file is refused', [[{ ...file('x'), pax: '22 GNU.sparse.major=1\n' }]], /sparse/],
]

suite('machine_layers', () => {
  for (const [what, layers, want] of CASES) {
    test(what, async () => {
      using at = folder()
      if (want instanceof RegExp) {
        await assert.rejects(layersOf(at.path, ...layers), { code: 'IMAGE_INVALID', message: want })
      } else {
        assert.deepEqual(await listed(await layersOf(at.path, ...layers)), [...want].sort())
      }
    })
  }

  test('layers that are cut off, no archives or unpack to too much are refused', async () => {
    using at = folder()
    const path = join(at.path, 'layer')
    for (const bytes of [archive(file('a')).subarray(0, 700), Buffer.alloc(600, 'x'), gzipSync('x').subarray(0, 15)]) {
      writeFileSync(path, bytes)
      await assert.rejects(openLayers('test', [path]), { code: 'IMAGE_INVALID' })
    }
    writeFileSync(path, gzipSync(archive(file('a', 'x'.repeat(100_000)))))
    await assert.rejects(openLayers('test', [path], 50_000), { code: 'IMAGE_INVALID', message: /too much/ })
  })

  test('whiteouts over whiteouts end in time', { timeout: 60_000 }, async () => {
    using at = folder()
    const names = Array.from({ length: 3000 }, (_, i) => file(`d/${i}`, ''))
    const opaque = Array.from({ length: 30_000 }, () => file('d/.wh..wh..opq', ''))
    await assert.rejects(layersOf(at.path, [...names, ...opaque]), { message: /too much work/ })
  })

  test('tarOf() says owners, modes, times, long names and capabilities, not what overlayfs would believe', async () => {
    using at = folder()
    const long = 'n'.repeat(90) + '/' + 'm'.repeat(90)
    const record = (text: string): string => {
      let length = text.length + 3
      while (String(length).length + 1 + text.length !== length) length = String(length).length + 1 + text.length
      return `${length} ${text}`
    }
    const pax = [`path=${long}\n`, 'uid=3000000000\n', 'SCHILY.xattr.security.capability=\x01\x00\x02\n',
      'SCHILY.xattr.trusted.overlay.opaque=y\n'].map(record).join('')
    const layers = await layersOf(at.path, [{ ...file('x', 'hello'), mode: 0o4755, pax }])
    const pieces: Uint8Array[] = []
    for await (const piece of tarOf(layers)) pieces.push(Uint8Array.from(piece))
    const reader = new TarReader(streamOf(Buffer.concat(pieces)))
    const found = []
    for (let one; (one = await reader.next()) !== undefined;) found.push({ ...one, ...reader.details() })
    const { name, mode, uid, mtime, size, xattrs } = found.at(-1)!
    assert.deepEqual({ name, mode, uid, mtime, size },
      { name: `./${long}`, mode: 0o4755, uid: 3_000_000_000, mtime: 1000, size: 5 })
    assert.deepEqual([...xattrs].map(([key, value]) => [key, [...value]]), [['security.capability', [1, 0, 2]]])
    const hasTar = spawnSync('tar', ['-t'], { input: Buffer.concat(pieces), encoding: 'utf8' })
    if (hasTar.error === undefined) assert.match(hasTar.stdout, new RegExp(`^\\./${long}$`, 'm'))
  })

  test('file() finds a file through links inside the tree, and nothing outside', async () => {
    using at = folder()
    const layers = await layersOf(at.path, [file('usr/etc/passwd', 'root'), link('etc', 'usr/etc'),
      link('l', '/etc/passwd'), link('up', '../../../etc/hostname'), link('loop', 'loop')])
    assert.equal((await layers.file('etc/passwd', 10))?.toString(), 'root')
    assert.equal((await layers.file('l', 10))?.toString(), 'root')
    assert.equal(await layers.file('l', 3), undefined)
    for (const path of ['up', 'loop', 'nothing', 'etc']) assert.equal(await layers.file(path, 1000), undefined, path)
  })

  test('entryScript() runs the program as the user of the image, every word quoted', async () => {
    using at = folder()
    const layers = await layersOf(at.path, [file('etc/passwd', 'root:x:0:0::/root:\napp:x:1000:1001::/home/app:\n'),
      file('etc/group', 'extra:x:1002:\n')])
    const script = async (user: string): Promise<string> => await entryScript('test', {
      argv: ['/bin/x', "it's; rm $HOME"], env: ['A=b c', 'B=`id`'], cwd: '/w x', user }, layers)
    assert.match(await script('app'), /'-c' '1000:1001' .* '\/bin\/x' '--' 'it'\\''s; rm \$HOME'\n$/)
    assert.match(await script('app:extra'), /'1000:1002'/)
    assert.match(await script('7:8'), /'7:8'/)
    assert.match(await script('1000'), /'1000:1001'.*/)
    assert.match(await script('app'), /'A=b c' 'B=`id`' 'PATH=[^']*' 'HOME=\/home\/app'/)
    assert.doesNotMatch(await script(''), /start-stop-daemon/)
    for (const user of ['nobody', 'app:none', '-1', '5000000000', "0';reboot;'"]) {
      await assert.rejects(script(user), { code: 'IMAGE_INVALID', message: /isn't one that it has/ })
    }
    // What a shell makes of it is what the image said.
    const shell = (await script('')).replaceAll('/run/cellar/busybox', '').replaceAll(/^'' /gm, '')
      .replace(/^ mkdir.*\ncd.*\nexec '' /m, 'exec ').replace("'/bin/x'", "'printf' '%s|'")
    assert.equal(spawnSync('sh', ['-c', shell], { encoding: 'utf8' }).stdout, "it's; rm $HOME|")
  })
})
