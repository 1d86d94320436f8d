// image/unpack_test.ts: archives of strangers: the module is found, and nothing else happens.

import assert from 'node:assert/strict'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import fc from 'fast-check'
import { packTar } from 'modern-tar'
import { TarError, TarReader } from './tar_reader.ts'
import { folder, MODULE, pax, streamOf, tar, type TarPart } from './test_support.ts'
import { unpackModule } from './unpack.ts'

/** What is found in these layers. */
async function found(layers: readonly Uint8Array[], entrypoint?: string, bytesMax?: number): Promise<Buffer> {
  using temp = folder()
  const paths = layers.map((bytes, i) => {
    const path = join(temp.path, String(i))
    writeFileSync(path, bytes)
    return path
  })
  const content = await unpackModule('test', paths, entrypoint, (stream) => Array.fromAsync(stream), bytesMax)
  assert.equal(readdirSync(temp.path).length, layers.length)
  return Buffer.concat(content)
}

const file = (name: string, content: Uint8Array | string = MODULE): TarPart => ({ name, content: Buffer.from(content) })
const refused = (what: RegExp): object => ({ code: 'IMAGE_INVALID', message: what })

test('unpackModule finds the only module, however the layer is compressed', async () => {
  const archive = tar(file('etc/passwd', 'root'), { name: 'bin/', flag: '5' }, file('bin/app.wasm'))
  const frames = Buffer.concat([archive.subarray(0, 700), archive.subarray(700)].map((part) => zstdCompressSync(part)))
  for (const layer of [archive, gzipSync(archive), zstdCompressSync(archive), frames]) {
    assert.deepEqual(await found([layer]), MODULE)
  }
})

test('unpackModule takes the file that the entrypoint names among several', async () => {
  const layer = tar(file('a.wasm', 'a'), file('./b.wasm', 'b'), file('/c', 'c'))
  for (const name of ['b.wasm', '/b.wasm', './b.wasm']) assert.equal(String(await found([layer], name)), 'b')
  assert.equal(String(await found([layer], '/c')), 'c')
  await assert.rejects(found([layer]), refused(/2 modules/))
  await assert.rejects(found([layer], 'd'), refused(/names none/))
  await assert.rejects(found([tar(file('x', 'x'))]), refused(/no module/))
})

test('unpackModule honours whiteouts and what replaces files', async () => {
  const base = tar(file('app/a.wasm', 'a'), file('app/b.wasm', 'b'))
  assert.equal(String(await found([base, tar(file('app/.wh.a.wasm', ''))])), 'b')
  assert.equal(String(await found([base, tar(file('app/c.wasm', 'c'), file('app/.wh..wh..opq', ''))])), 'c')
  assert.equal(String(await found([base, tar(file('.wh.app', ''), file('d.wasm', 'd'))])), 'd')
  assert.equal(String(await found([base, tar(file('app/a.wasm', 'new'))], 'app/a.wasm')), 'new')
  assert.equal(String(await found([base, tar({ name: 'app/a.wasm', flag: '2', link: 'b.wasm' })])), 'b')
  await assert.rejects(found([base, tar({ name: 'app', flag: '2', link: '/etc' })]), refused(/no module/))
})

test('unpackModule knows long names of pax and GNU, and sizes in pax', async () => {
  const long = `${'folder/'.repeat(40)}app.wasm`
  const inPax = tar({ name: 'h', flag: 'x', content: pax('path', long) }, file('short'))
  const inGnu = tar({ name: '././@LongLink', flag: 'L', content: Buffer.from(`${long}\0`) }, file('short'))
  const modern = await packTar([{ header: { name: long, size: MODULE.length }, body: MODULE }])
  for (const layer of [inPax, inGnu, modern]) assert.deepEqual(await found([layer], long), MODULE)
  const sized = tar({ name: 'h', flag: 'x', content: pax('size', '8') }, { ...file('a.wasm'), size: 0 })
  assert.deepEqual(await found([sized]), MODULE)
})

test('unpackModule refuses paths that lead out, and follows no link', async () => {
  for (const name of ['../a.wasm', 'a/../../b.wasm', '/../x.wasm', '..']) {
    await assert.rejects(found([tar(file(name))]), refused(/leads out/), name)
  }
  await assert.rejects(found([tar(file('a.wasm'))], '../../etc/passwd'), refused(/leads out/))
  for (const flag of ['1', '2']) {
    const link = tar({ name: 'app.wasm', flag, link: '/etc/passwd' })
    await assert.rejects(found([link], 'app.wasm'), refused(/no module/))
  }
  for (const flag of ['3', '4', '6']) await assert.rejects(found([tar({ name: 'a.wasm', flag })]), refused(/no module/))
})

test('unpackModule refuses what is cut off, miscounted, sparse or no archive', async () => {
  const good = tar(file('a.wasm', Buffer.alloc(2000)))
  await assert.rejects(found([good.subarray(0, 1000)]), refused(/cut off/))
  await assert.rejects(found([tar({ ...file('a.wasm'), size: 2 ** 32 })]), refused(/cut off/))
  await assert.rejects(found([tar({ ...file('a.wasm'), size: '\xff'.repeat(12) })]), refused(/too large/))
  await assert.rejects(found([tar({ ...file('a.wasm'), size: '-0000000001\0' })]), refused(/number/))
  await assert.rejects(found([tar({ ...file('a.wasm'), checksum: false })]), refused(/checksum/))
  await assert.rejects(found([Buffer.alloc(4096, 'html')]), refused(/number|checksum/))
  await assert.rejects(found([gzipSync(good).subarray(0, 50)]), refused(/compressed/))
  const damaged = Buffer.concat([gzipSync(good).subarray(0, 20), Buffer.alloc(50)])
  await assert.rejects(found([damaged]), refused(/compressed/))
  const sparse = tar({ name: 'h', flag: 'x', content: pax('GNU.sparse.major', '1') }, file('a.wasm'))
  await assert.rejects(found([sparse]), refused(/sparse/))
  await assert.rejects(found([tar({ ...file('a.wasm'), flag: 'S' })]), refused(/sparse/))
  for (const content of ['0 a=b\n', '999 a=b\n', 'x', '5 a=b', '-1 a=b\n', '2x'.repeat(1000), '6 a=b\n1']) {
    await assert.rejects(found([tar({ name: 'h', flag: 'x', content: Buffer.from(content) }, file('a.wasm'))]),
      refused(/malformed/), content.slice(0, 20))
  }
})

test('unpackModule gives up on bombs, endless headers and endless entries', async () => {
  const bomb = gzipSync(tar(file('zeros', Buffer.alloc(20_000_000)), file('a.wasm')))
  await assert.rejects(found([bomb], undefined, 10_000_000), refused(/too much/))
  await assert.rejects(found([bomb, bomb], undefined, 30_000_000), refused(/too much/))
  await assert.rejects(found([tar({ name: 'h', flag: 'x', size: 2 ** 30 })]), refused(/too long/))
  await assert.rejects(found([tar({ name: 'h', flag: 'L', content: Buffer.alloc(5000, 'a') }, file('x'))]),
    refused(/too long/))
  const entry = tar(file('x', '')).subarray(0, 512)
  await assert.rejects(found([zstdCompressSync(Buffer.concat(Array.from({ length: 200_001 }, () => entry)))]),
    refused(/too many/))
  const modules = Array.from({ length: 1001 }, (_, i) => file(`${i}.wasm`))
  await assert.rejects(found([tar(...modules)]), refused(/too many/))
})

test('unpackModule takes the last of entries with one name', async () => {
  assert.equal(String(await found([tar(file('a.wasm', 'first'), file('./a.wasm', 'second'))])), 'second')
})

// Entries as hostile as they come, most of them nearly right.
const part: fc.Arbitrary<TarPart> = fc.record({
  name: fc.oneof(fc.string(),
    fc.constantFrom('a.wasm', '/a.wasm', 'a', 'a/', '.wh.a', '.wh..wh..opq', '../x.wasm', '')),
  flag: fc.constantFrom('0', '\0', '1', '2', '3', '5', '7', 'x', 'g', 'L', 'K', 'S', '?'),
  content: fc.oneof(fc.uint8Array({ maxLength: 1500 }), fc.constantFrom(pax('path', '../../x'), pax('size', '3'))),
}, { requiredKeys: ['name', 'flag'] })

test('unpackModule ends with a file of the archive or a refusal, whatever the archive', async () => {
  await fc.assert(fc.asyncProperty(
    fc.array(fc.array(part, { maxLength: 6 }), { minLength: 1, maxLength: 3 }),
    fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }), fc.option(fc.nat(), { nil: undefined }),
    async (layers, damages, cut) => {
      const archives = layers.map((parts) => tar(...parts))
      for (const [at, byte] of damages) archives[0]![at % archives[0]!.length] = byte
      if (cut !== undefined) archives[0] = archives[0]!.subarray(0, cut % archives[0]!.length)
      try {
        const content = await found(archives, 'a')
        assert.ok(archives.some((archive) => archive.includes(content)))
      } catch (error) {
        assert.equal((error as { code: string }).code, 'IMAGE_INVALID', String(error))
      }
    }), { numRuns: 300 })
})

test('TarReader reads the same entries however the stream is cut into pieces', async () => {
  const archive = tar(file('one', 'x'.repeat(700)), { name: 'f/', flag: '5' }, file('two', ''), file('three', 'yy'))
  const entries = async (...pieces: Uint8Array[]): Promise<string[]> => {
    const reader = new TarReader(streamOf(...pieces))
    const names: string[] = []
    for (let one; (one = await reader.next()) !== undefined;) {
      names.push(`${one.type} ${one.name} ${Buffer.concat(await Array.fromAsync(reader.content()))}`)
    }
    return names
  }
  const whole = await entries(archive)
  assert.deepEqual(whole, [`file one ${'x'.repeat(700)}`, 'folder f/ ', 'file two ', 'file three yy'])
  await fc.assert(fc.asyncProperty(fc.array(fc.nat(archive.length)), async (cuts) => {
    const at = [0, ...cuts.sort((a, b) => a - b), archive.length]
    assert.deepEqual(await entries(...at.slice(1).map((end, i) => archive.subarray(at[i], end))), whole)
  }), { numRuns: 50 })
  await assert.rejects(entries(archive.subarray(0, 600)), TarError)
})

