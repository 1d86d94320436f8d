// cell/translation_cache_test.ts: an entry is read as it was put, or not at all, whoever writes, dies or tampers.

import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync,
  symlinkSync, utimesSync, writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { cacheFolder, keyOf, TranslationCache } from './translation_cache.ts'

const HEADER_BYTES = 56
const isRoot = process.geteuid?.() === 0
const NOBODY = 65_534

/** A cache in a folder of its own. `folder` doesn't exist before the first put. */
function disposableCache(maxBytes?: number): { folder: string; cache: TranslationCache } & Disposable {
  const parent = mkdtempSync(join(tmpdir(), 'cellar-translations-'))
  const folder = join(parent, 'some/where')
  return {
    folder, cache: new TranslationCache(folder, maxBytes),
    [Symbol.dispose]: () => rmSync(parent, { recursive: true }),
  }
}

const bytesOf = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value)
const keyFor = (name: string): string => keyOf(Buffer.from(name), 'test')
const KEY = keyFor('one')

// Sets when it was last used, in seconds before now.
function age(path: string, seconds: number): void {
  utimesSync(path, Date.now() / 1000 - seconds, Date.now() / 1000 - seconds)
}

test('what was put is got, by this cache and by another one, and nothing else is', () => {
  using made = disposableCache()
  const { folder, cache } = made
  assert.equal(cache.get(KEY), undefined)
  const random = Uint8Array.from({ length: 100_000 }, () => Math.random() * 256)
  for (const bytes of [random, bytesOf(0, 0), bytesOf(1, 7)]) {
    cache.put(KEY, bytes)
    assert.deepEqual(cache.get(KEY), bytes)
    assert.deepEqual(new TranslationCache(folder).get(KEY), bytes)
    assert.equal(cache.get(keyFor('two')), undefined)
  }
  assert.deepEqual(readdirSync(folder), [KEY])
  assert.equal(statSync(folder).mode & 0o777, 0o700)
  assert.equal(statSync(join(folder, KEY)).mode & 0o777, 0o600)
})

test('other bytes, other options and another translator have other keys', () => {
  const bytes = Buffer.from('content')
  const keys = [
    keyOf(bytes, 'a'), keyOf(bytes, 'a', 'next'), keyOf(bytes, 'b'), keyOf(bytes, ''), keyOf(Buffer.from('other'), 'a'),
    keyOf(Buffer.from(''), 'a'), keyOf(Buffer.from('"b"]\n'), 'a'), keyOf(bytes, 'a\n', 'x'), keyOf(bytes, '\n', 'xa'),
  ]
  assert.equal(new Set(keys).size, keys.length)
  assert.equal(keyOf(new Uint8Array(bytes), 'a'), keys[0])
  for (const key of keys) assert.match(key, /^[0-9a-f]{64}$/)
})

test('a key that is none is a mistake, whatever path it would be', () => {
  using made = disposableCache()
  for (const key of ['', '../x', KEY.toUpperCase(), `${KEY}/`, KEY.slice(1), `${KEY}\n`]) {
    assert.throws(() => made.cache.get(key), RangeError)
    assert.throws(() => made.cache.put(key, bytesOf(1, 1)), RangeError)
  }
})

test('the folder is where the environment says, or in the home, or nowhere', () => {
  assert.equal(cacheFolder({ XDG_CACHE_HOME: '/cache', HOME: '/home/me' }), '/cache/cellar/translated')
  for (const cache of ['', 'relative']) {
    assert.equal(cacheFolder({ XDG_CACHE_HOME: cache, HOME: '/home/me' }), '/home/me/.cache/cellar/translated')
  }
  assert.equal(cacheFolder({}), undefined)
  const nowhere = new TranslationCache(undefined)
  nowhere.put(KEY, bytesOf(1, 1))
  assert.equal(nowhere.get(KEY), undefined)
})

// ---- damage

test('an entry of any other length is a miss and is removed', () => {
  using made = disposableCache()
  const { folder, cache } = made
  const path = join(folder, KEY)
  cache.put(KEY, bytesOf(1000, 5))
  const whole = readFileSync(path)
  for (let length = 0; length < whole.length; length += length <= HEADER_BYTES + 2 ? 1 : 37) {
    writeFileSync(path, whole.subarray(0, length))
    assert.equal(cache.get(KEY), undefined, `${length} bytes`)
    assert.equal(existsSync(path), false, `${length} bytes`)
  }
  for (const more of [1, 4096]) {
    writeFileSync(path, Buffer.concat([whole, Buffer.alloc(more)]))
    assert.equal(cache.get(KEY), undefined)
    assert.equal(existsSync(path), false)
  }
  cache.put(KEY, bytesOf(1000, 5))
  assert.deepEqual(cache.get(KEY), bytesOf(1000, 5))
})

test('an entry with any byte changed is a miss and is removed', () => {
  using made = disposableCache()
  const { folder, cache } = made
  const path = join(folder, KEY)
  cache.put(KEY, bytesOf(500, 5))
  const whole = readFileSync(path)
  for (let at = 0; at < whole.length; at++) {
    const damaged = Buffer.from(whole)
    damaged[at]! ^= 1 << at % 8
    writeFileSync(path, damaged, { mode: 0o600 })
    assert.equal(cache.get(KEY), undefined, `byte ${at}`)
    assert.equal(existsSync(path), false, `byte ${at}`)
  }
  // As a power cut may leave it.
  for (const from of [0, 8, HEADER_BYTES, 300]) {
    writeFileSync(path, Buffer.from(whole).fill(0, from), { mode: 0o600 })
    assert.equal(cache.get(KEY), undefined)
    assert.equal(existsSync(path), false)
  }
})

test('an entry under another key is a miss and is removed', () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  renameSync(join(folder, KEY), join(folder, keyFor('two')))
  assert.equal(cache.get(keyFor('two')), undefined)
  assert.deepEqual(readdirSync(folder), [])
})

// ---- others

test('a folder that others may write is not used', () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  for (const mode of [0o777, 0o720, 0o702, 0o1777]) {
    chmodSync(folder, mode)
    assert.equal(cache.get(KEY), undefined)
    cache.put(keyFor('two'), bytesOf(10, 1))
    assert.deepEqual(readdirSync(folder), [KEY])
  }
  chmodSync(folder, 0o755)
  assert.deepEqual(cache.get(KEY), bytesOf(10, 1))
})

test('a file that others may write is not used, nor replaced', () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  chmodSync(join(folder, KEY), 0o622)
  assert.equal(cache.get(KEY), undefined)
  cache.put(KEY, bytesOf(10, 2))
  chmodSync(join(folder, KEY), 0o600)
  assert.deepEqual(cache.get(KEY), bytesOf(10, 1))
})

test('a folder or a file of another user is not used', { skip: isRoot ? false : 'needs root' }, () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  for (const path of [folder, join(folder, KEY)]) {
    chownSync(path, NOBODY, NOBODY)
    assert.equal(cache.get(KEY), undefined)
    cache.put(KEY, bytesOf(10, 2))
    chownSync(path, 0, 0)
    assert.deepEqual(cache.get(KEY), bytesOf(10, 1))
  }
})

test('a link, a pipe or a folder in the place of a folder or an entry is not followed', async () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  symlinkSync(folder, `${folder}.link`)
  const linked = new TranslationCache(`${folder}.link`)
  assert.equal(linked.get(KEY), undefined)
  linked.put(keyFor('two'), bytesOf(10, 1))
  assert.deepEqual(readdirSync(folder), [KEY])

  using other = disposableCache()
  other.cache.put(keyFor('two'), bytesOf(10, 1))
  symlinkSync(join(other.folder, keyFor('two')), join(folder, keyFor('two')))
  mkdirSync(join(folder, keyFor('three')))
  await once(spawn('mkfifo', [join(folder, keyFor('four'))]), 'exit')
  for (const name of ['two', 'three', 'four']) assert.equal(cache.get(keyFor(name)), undefined)
  for (const name of ['two', 'three']) cache.put(keyFor(name), bytesOf(10, 2))
  assert.deepEqual(cache.get(KEY), bytesOf(10, 1))
  assert.deepEqual(other.cache.get(keyFor('two')), bytesOf(10, 1))
  assert.deepEqual(readdirSync(folder).filter((name) => name.endsWith('.tmp')), [])
})

test('a disk that refuses is as an empty cache', () => {
  using made = disposableCache()
  const { folder } = made
  made.cache.put(KEY, bytesOf(10, 1))
  const [file, long] = [join(folder, KEY), `/${'x'.repeat(300)}`]
  for (const bad of [file, join(file, 'beneath'), long, '/proc/cellar', '/dev/null', '/dev/null/x']) {
    const cache = new TranslationCache(bad)
    cache.put(KEY, bytesOf(10, 1))
    assert.equal(cache.get(KEY), undefined, bad)
  }
})

test('a folder that the user may not write is read from', { skip: isRoot ? 'root may everything' : false }, () => {
  using made = disposableCache()
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  chmodSync(folder, 0o500)
  cache.put(keyFor('two'), bytesOf(10, 1))
  assert.deepEqual(cache.get(KEY), bytesOf(10, 1))
  assert.deepEqual(readdirSync(folder), [KEY])
  chmodSync(folder, 0)
  assert.equal(cache.get(KEY), undefined)
  chmodSync(folder, 0o700)
})

// ---- size

test('the least recently used entries make room, and a hit is a use', () => {
  const size = 1000
  using made = disposableCache(3 * (size + HEADER_BYTES) + 10)
  const { folder, cache } = made
  const names = ['a', 'b', 'c']
  for (const [i, name] of names.entries()) {
    cache.put(keyFor(name), bytesOf(size, i))
    age(join(folder, keyFor(name)), 100 - i)
  }
  assert.ok(cache.get(keyFor('a')))
  cache.put(keyFor('d'), bytesOf(size, 3))
  assert.deepEqual(readdirSync(folder).sort(), ['a', 'c', 'd'].map(keyFor).sort())
  // One that is replaced needs no room beside itself.
  cache.put(keyFor('d'), bytesOf(size, 4))
  assert.deepEqual(readdirSync(folder).sort(), ['a', 'c', 'd'].map(keyFor).sort())
  // One that never fits costs the others nothing.
  cache.put(keyFor('e'), bytesOf(4 * size, 5))
  assert.deepEqual(readdirSync(folder).sort(), ['a', 'c', 'd'].map(keyFor).sort())
  cache.put(keyFor('e'), bytesOf(3 * size, 5))
  assert.deepEqual(readdirSync(folder), [keyFor('e')])
  // Nor is one read that a smaller limit wouldn't have let in.
  assert.equal(new TranslationCache(folder, 2 * size).get(keyFor('e')), undefined)
})

test('what killed writers left is removed after an hour and counts until then, and other files stay', () => {
  using made = disposableCache(5000)
  const { folder, cache } = made
  cache.put(KEY, bytesOf(10, 1))
  const [old, late, fresh] = ['1-old', '2-late', '3-fresh'].map((name) => `${KEY}.${name}.tmp`)
  for (const name of [old!, late!, fresh!, 'README', 'other.tmp']) {
    writeFileSync(join(folder, name), bytesOf(4000, 0))
    age(join(folder, name), 3700)
  }
  age(join(folder, late!), -3700)
  age(join(folder, fresh!), 3500)
  cache.put(keyFor('two'), bytesOf(10, 2))
  assert.deepEqual(readdirSync(folder).sort(), [KEY, keyFor('two'), fresh!, 'README', 'other.tmp'].sort())
  cache.put(keyFor('three'), bytesOf(1500, 3))
  assert.equal(existsSync(join(folder, keyFor('three'))), false)
})

// ---- several processes

const CACHE = new URL('./translation_cache.ts', import.meta.url).href

// Puts entries of one repeated byte for ever, under two keys; the lengths follow from the byte.
function writer(folder: string, length: number): ChildProcess {
  const script = `import { keyOf, TranslationCache } from ${JSON.stringify(CACHE)}
    const cache = new TranslationCache(${JSON.stringify(folder)})
    const keys = ['one', 'two'].map((name) => keyOf(Buffer.from(name), 'test'))
    for (let i = process.pid; ; i++) {
      const value = i % 256
      cache.put(keys[i & 1], new Uint8Array(${length} + value).fill(value))
      if (i === process.pid + 1) process.stdout.write('.')
    }`
  return spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script],
    { stdio: ['ignore', 'pipe', 'inherit'] })
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}

// True if it is one that a writer has put.
function isWhole(bytes: Uint8Array | undefined, length: number): boolean {
  return bytes !== undefined && bytes.length === length + bytes[0]! && Buffer.from(bytes).equals(
    Buffer.alloc(bytes.length, bytes[0]!))
}

test('a reader beside several writers sees whole entries and never a gap', async () => {
  using made = disposableCache()
  const length = 100_000
  const writers = [1, 2, 3].map(() => writer(made.folder, length))
  try {
    await Promise.all(writers.map((one) => once(one.stdout!, 'data')))
    const seen = new Set<number>()
    // Until each of them must have written many times meanwhile.
    for (let i = 0; i < 500 || (seen.size < 50 && i < 50_000); i++) {
      const bytes = made.cache.get(i % 2 === 0 ? KEY : keyFor('two'))
      assert.ok(isWhole(bytes, length), `reading ${i}: ${bytes?.length}`)
      seen.add(bytes![0]!)
    }
    assert.ok(seen.size >= 50, String(seen.size))
  } finally {
    await Promise.all(writers.map(kill))
  }
})

test('writers that are killed at any moment leave whole entries and files that nobody reads', async () => {
  using made = disposableCache()
  const length = 4_000_000
  const left = (): string[] => readdirSync(made.folder).filter((name) => name.endsWith('.tmp'))
  // Until the middle of a write has been met, or it proves nothing.
  for (let i = 0; i < 10 || (left().length < 3 && i < 100); i++) {
    const one = writer(made.folder, length)
    await once(one.stdout!, 'data')
    await sleep(Math.random() * 10)
    await kill(one)
    for (const name of ['one', 'two']) assert.ok(isWhole(made.cache.get(keyFor(name)), length), `${name}, ${i}`)
    for (const name of left().slice(3)) rmSync(join(made.folder, name))
  }
  assert.ok(left().length >= 3)
})
