// host/volume_archive_test.ts: archives from and into volumes: what comes back is what went in, and nothing that an
// archive says, or a guest does meanwhile, reaches beyond the volume.

import assert from 'node:assert/strict'
import {
  chmodSync, linkSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, readlinkSync, renameSync, rmSync, statSync,
  symlinkSync, writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { packTar, unpackTar, type TarHeader } from 'modern-tar'
import { CellarError } from '../base/errors.ts'
import { isSupported } from '../sys/libc.ts'
import { readArchive, writeArchive } from './volume_archive.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

/** A volume `volume`, and beside it `outside`, which nothing may touch. */
class Place {
  readonly host = mkdtempSync(join(tmpdir(), 'cellar-archive-'))
  readonly volume = join(this.host, 'volume')

  constructor() {
    mkdirSync(this.volume)
    mkdirSync(join(this.host, 'outside'))
    writeFileSync(join(this.host, 'outside/secret'), 'sentinel')
  }

  path(...names: string[]): string { return join(this.volume, ...names) }

  write(path: string, tar: Uint8Array | Readable, sizeBytes = 2 ** 30): Promise<void> {
    const stream = tar instanceof Readable ? tar : Readable.from([tar.subarray(0, 700), tar.subarray(700)])
    return writeArchive(this.volume, path, stream, { sizeBytes })
  }

  async read(path: string): Promise<{ header: TarHeader; text: string }[]> {
    const entries = await unpackTar(new Uint8Array(await buffer(readArchive(this.volume, path))), { strict: true })
    return entries.map(({ header, data }) => ({ header, text: new TextDecoder().decode(data) }))
  }

  outside(): string {
    const tree = (folder: string): string[] => readdirSync(folder, { withFileTypes: true }).flatMap((one) => {
      const path = join(folder, one.name)
      const { mode, ino, mtimeMs, nlink } = statSync(path)
      return [`${path} ${mode} ${ino} ${mtimeMs} ${nlink}`,
        ...one.isDirectory() ? tree(path) : [readFileSync(path, 'utf8')]]
    })
    return [readdirSync(this.host).join(), ...tree(join(this.host, 'outside'))].join('\n')
  }

  [Symbol.dispose](): void { rmSync(this.host, { recursive: true, force: true }) }
}

type Entry = { header: Partial<TarHeader> & { name: string }; body?: string }

const tarOf = (...entries: Entry[]): Promise<Uint8Array> => packTar(entries.map(({ header, body }) =>
  ({ header: { size: body?.length ?? 0, ...header }, ...(body === undefined ? {} : { body }) })))

const code = (...expected: string[]) => (error: unknown) => {
  assert.ok(error instanceof CellarError && expected.includes(error.code), String(error))
  return true
}

test('what readArchive gives, writeArchive makes again', { skip }, async () => {
  using made = new Place()
  mkdirSync(made.path('d/empty'), { recursive: true })
  writeFileSync(made.path('d/f'), 'content', { mode: 0o640 })
  writeFileSync(made.path('d/large'), Buffer.alloc(3_000_000, 'x'))
  linkSync(made.path('d/f'), made.path('d/g'))
  symlinkSync('../d/f', made.path('d/l'))
  writeFileSync(made.path('d', 'ü'.repeat(100)), 'long')
  const names = (await made.read('/d')).map(({ header }) => header.name).sort()
  assert.deepEqual(names, ['d/', 'd/empty/', 'd/f', 'd/g', 'd/l', 'd/large', `d/${'ü'.repeat(100)}`])
  mkdirSync(made.path('to'))
  await made.write('to', readArchive(made.volume, 'd'))
  assert.equal(readFileSync(made.path('to/d/g'), 'utf8'), 'content')
  assert.equal(statSync(made.path('to/d/f')).ino, statSync(made.path('to/d/g')).ino)
  assert.equal(statSync(made.path('to/d/f')).mode & 0o7777, 0o640)
  assert.equal(readlinkSync(made.path('to/d/l')), '../d/f')
  assert.equal(statSync(made.path('to/d/large')).size, 3_000_000)
  assert.deepEqual(readdirSync(made.path('to/d')).sort(), readdirSync(made.path('d')).sort())
})

test('readArchive takes one file, the top, and leaves out sockets', { skip }, async () => {
  using made = new Place()
  writeFileSync(made.path('f'), 'content')
  const server = createServer().listen(made.path('socket'))
  try {
    assert.deepEqual((await made.read('f')).map(({ header, text }) => [header.name, text]), [['f', 'content']])
    assert.deepEqual((await made.read('/')).map(({ header }) => header.name), ['./', 'f'])
  } finally {
    server.close()
  }
})

test('a path that leads out of the volume, or to nothing, is refused', { skip }, async () => {
  using made = new Place()
  symlinkSync('../outside', made.path('out'))
  symlinkSync('/etc', made.path('etc'))
  for (const path of ['..', '../outside', 'out', 'out/secret', 'etc', 'x\0']) {
    assert.throws(() => readArchive(made.volume, path), code('PATH_UNSAFE'), path)
    await assert.rejects(made.write(path, await tarOf()), code('PATH_UNSAFE'), path)
  }
  assert.throws(() => readArchive(made.volume, 'none'), code('NOT_FOUND'))
  await assert.rejects(made.write('none', await tarOf()), code('NOT_FOUND'))
})

const HOSTILE: [what: string, expected: string, ...Entry[]][] = [
  ['a path with ..', 'PATH_UNSAFE', { header: { name: '../outside/x' }, body: 'x' }],
  ['.. further on', 'PATH_UNSAFE', { header: { name: 'a/../../outside/x' }, body: 'x' }],
  ['an absolute path', 'PATH_UNSAFE', { header: { name: '/tmp/x' }, body: 'x' }],
  ['a link that leads out', 'PATH_UNSAFE', { header: { name: 'l', type: 'symlink', linkname: '../outside' } }],
  ['an absolute link', 'PATH_UNSAFE', { header: { name: 'l', type: 'symlink', linkname: '/etc' } }],
  ['a file through a link', 'PATH_UNSAFE', { header: { name: 'l', type: 'symlink', linkname: 'd' } },
    { header: { name: 'l/x' }, body: 'x' }],
  ['a file through a guest\'s link', 'PATH_UNSAFE', { header: { name: 'out/x' }, body: 'x' }],
  ['a hard link to outside', 'PATH_UNSAFE', { header: { name: 'h', type: 'link', linkname: '../outside/secret' } }],
  ['a hard link through a link', 'PATH_UNSAFE', { header: { name: 'h', type: 'link', linkname: 'out/secret' } }],
  ['a hard link to a link', 'PATH_UNSAFE', { header: { name: 'h', type: 'link', linkname: 'out' } }],
  ['a hard link to nothing', 'ARCHIVE_INVALID', { header: { name: 'h', type: 'link', linkname: 'none' } }],
  ['a device', 'ARCHIVE_INVALID', { header: { name: 'null', type: 'character-device' } }],
  ['a FIFO', 'ARCHIVE_INVALID', { header: { name: 'pipe', type: 'fifo' } }],
  ['a file in the place of a folder', 'ARCHIVE_INVALID', { header: { name: 'd' }, body: 'x' }],
  ['a folder in the place of a file', 'ARCHIVE_INVALID', { header: { name: 'f/x' }, body: 'x' }],
  ['a file without a name', 'ARCHIVE_INVALID', { header: { name: '.' }, body: 'x' }],
  ['a name that is too long', 'ARCHIVE_INVALID', { header: { name: 'x'.repeat(256) }, body: 'x' }],
]

for (const [what, expected, ...entries] of HOSTILE) {
  test(`writeArchive refuses ${what}: ${expected}`, { skip }, async () => {
    using made = new Place()
    mkdirSync(made.path('d'))
    writeFileSync(made.path('f'), 'f')
    symlinkSync('../outside', made.path('out'))
    const before = made.outside()
    await assert.rejects(made.write('', await tarOf(...entries)), code(expected))
    assert.equal(made.outside(), before)
    assert.deepEqual(readdirSync(made.volume).filter((name) => name.startsWith('.')), [])
  })
}

test('writeArchive refuses what isn\'t an archive, or ends early', { skip }, async () => {
  using made = new Place()
  const whole = await tarOf({ header: { name: 'f' }, body: 'x'.repeat(2000) })
  await assert.rejects(made.write('', whole.subarray(0, 1500)), code('ARCHIVE_INVALID'))
  await assert.rejects(made.write('', Buffer.alloc(4096, 'garbage')), code('ARCHIVE_INVALID'))
  const gone = new Readable({ read() { this.destroy(new Error('gone')) } })
  await assert.rejects(made.write('', gone), code('ARCHIVE_INVALID'))
  assert.deepEqual(readdirSync(made.volume), [])
})

test('writeArchive stops at the size of the volume, before it writes', { skip }, async () => {
  using made = new Place()
  writeFileSync(made.path('old'), 'x'.repeat(1000))
  const sizeBytes = 2 * 4096 + 2000
  await assert.rejects(made.write('', await tarOf({ header: { name: 'f' }, body: 'x'.repeat(2000) },
    { header: { name: 'd/f' }, body: 'x' }), sizeBytes), code('VOLUME_TOO_SMALL'))
  assert.deepEqual(readdirSync(made.volume), ['old'])
  await made.write('', await tarOf({ header: { name: 'old' }, body: 'y'.repeat(2000) }), sizeBytes)
  await made.write('', await tarOf(...Array.from('abc', (name) =>
    ({ header: { name, type: 'directory' as const } }))), sizeBytes).catch(code('VOLUME_TOO_SMALL'))
  assert.deepEqual(readdirSync(made.volume), ['a', 'old'])
})

test('writeArchive replaces a file that is shared with a clone, and a mode is permissions only', { skip }, async () => {
  using made = new Place()
  writeFileSync(made.path('f'), 'shared')
  linkSync(made.path('f'), join(made.host, 'clone'))
  chmodSync(made.path('f'), 0o1644)
  await made.write('', await tarOf({ header: { name: 'h', type: 'link', linkname: 'f' } }))
  const links = [made.path('f'), made.path('h'), join(made.host, 'clone')].map((name) => statSync(name).nlink)
  assert.deepEqual(links, [2, 2, 1])
  await made.write('', await tarOf({ header: { name: 'f', mode: 0o7755 }, body: 'new' }))
  assert.equal(readFileSync(join(made.host, 'clone'), 'utf8'), 'shared')
  assert.equal(readFileSync(made.path('h'), 'utf8'), 'shared')
  assert.equal(statSync(made.path('f')).mode & 0o7777, 0o755)
})

const part = fc.constantFrom('a', 'b', 'c', '..', '.', '', 'out', 'outside', 'secret', 'volume')
const path = fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/')).filter((one) => one !== '')
const entry = fc.record({
  name: path, linkname: path,
  type: fc.constantFrom('file' as const, 'directory' as const, 'symlink' as const, 'link' as const),
  body: fc.string({ maxLength: 20 }),
}).map(({ name, linkname, type, body }): Entry => type === 'file' ? { header: { name, type }, body: encodeURI(body) }
  : { header: { name, type, ...(type === 'directory' ? {} : { linkname }) } })

test('no archive touches anything outside of the volume, whatever links a guest has there', { skip }, async () => {
  await fc.assert(fc.asyncProperty(fc.array(entry, { maxLength: 8 }), fc.boolean(), async (entries, hasLinks) => {
    using made = new Place()
    mkdirSync(made.path('a/b'), { recursive: true })
    if (hasLinks) {
      symlinkSync('../outside', made.path('out'))
      symlinkSync('../../../outside/secret', made.path('a/b/c'))
    }
    const before = made.outside()
    const tar = await tarOf(...entries)
    for (const to of ['', 'a']) {
      await made.write(to, tar).catch(code('PATH_UNSAFE', 'ARCHIVE_INVALID'))
      assert.equal(made.outside(), before)
    }
  }), { numRuns: 200 })
})

test('damaged archives end with an error of ours and touch nothing outside', { skip }, async () => {
  const tar = await tarOf({ header: { name: 'a/f' }, body: 'x'.repeat(600) },
    { header: { name: 'l', type: 'symlink', linkname: 'a' } }, { header: { name: 'n'.repeat(150) }, body: 'y' })
  const damage = fc.record({ at: fc.nat(tar.length - 1), byte: fc.nat(255) })
  await fc.assert(fc.asyncProperty(fc.array(damage, { maxLength: 5 }), fc.nat(tar.length), async (damages, end) => {
    using made = new Place()
    const before = made.outside()
    const bytes = tar.slice(0, end)
    for (const { at, byte } of damages) if (at < end) bytes[at] = byte
    await made.write('', bytes).catch(code('PATH_UNSAFE', 'ARCHIVE_INVALID', 'VOLUME_TOO_SMALL'))
    assert.equal(made.outside(), before)
  }), { numRuns: 200 })
})

test('a guest that puts links in the place of folders meanwhile leads nobody outside', { skip }, async () => {
  using made = new Place()
  const before = made.outside()
  const swaps = async (signal: AbortSignal): Promise<void> => {
    for (let i = 0; !signal.aborted; i++) {
      rmSync(made.path('d'), { recursive: true, force: true })
      if (i % 2 === 0) symlinkSync('../outside', made.path('d'))
      else {
        mkdirSync(made.path('d'))
        writeFileSync(made.path('d/x'), 'a guest\'s')
        renameSync(made.path('d/x'), made.path('d/secret'))
      }
      await turn()
    }
  }
  const stop = new AbortController()
  const swapping = swaps(stop.signal)
  try {
    const tar = await tarOf(...Array.from({ length: 10 }, (_, i) =>
      ({ header: { name: `d/secret${i % 2}` }, body: 'x' })))
    for (let i = 0; i < 50; i++) {
      await made.write('', tar).catch(code('PATH_UNSAFE', 'ARCHIVE_INVALID'))
      for (const { text } of await made.read('/')) assert.notEqual(text, 'sentinel')
    }
  } finally {
    stop.abort()
    await swapping
  }
  assert.equal(made.outside(), before)
})
