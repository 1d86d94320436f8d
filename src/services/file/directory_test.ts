// services/file/directory_test.ts: folders: what changes them, what lists them, volumes that can't be changed.

import assert from 'node:assert/strict'
import {
  existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync,
} from 'node:fs'
import { test } from 'node:test'
import {
  EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS,
} from '../../base/errno.ts'
import { FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SYMBOLIC_LINK, FILETYPE_UNKNOWN } from '../descriptor.ts'
import type { Directory } from './directory.ts'
import type { Resolver } from './resolve.ts'
import { Guest, Tree, bytes, disposable, forBothResolvers, openFile, opening } from './test_support.ts'

const text = (name: Uint8Array) => new TextDecoder().decode(name)

type Listed = { name: string; next: bigint; ino: bigint; filetype: number }

// Up to `count` entries from `cookie` on.
function list(folder: Directory, cookie = 0n, count = Infinity, room = 4096): Listed[] {
  const entries: Listed[] = []
  const result = folder.readdir(cookie, room, (next, ino, filetype, name) => {
    entries.push({ name: text(name), next, ino, filetype })
    return entries.length < count
  })
  assert.equal(result, 0)
  return entries
}

type Change = [what: string, change: (volume: Directory) => number, errno: number, then?: [string, boolean][]]

// What is there before each: folder `dir` with `dir/x`, empty folder `empty`, file `file`, link `link` → `dir`.
const CHANGES: Change[] = [
  ['mkdir makes a folder', (v) => v.mkdir(bytes('dir/new')), 0, [['dir/new', true]]],
  ['mkdir takes a final slash', (v) => v.mkdir(bytes('new//')), 0, [['new', true]]],
  ['mkdir of what exists', (v) => v.mkdir(bytes('file')), EEXIST],
  ['mkdir of a link', (v) => v.mkdir(bytes('link/')), EEXIST],
  ['mkdir of .', (v) => v.mkdir(bytes('.')), EEXIST],
  ['mkdir beneath a file', (v) => v.mkdir(bytes('file/new')), ENOTDIR],
  ['mkdir beneath nothing', (v) => v.mkdir(bytes('nope/new')), ENOENT],
  ['mkdir through a link', (v) => v.mkdir(bytes('link/new')), 0, [['dir/new', true]]],
  ['rmdir removes a folder', (v) => v.rmdir(bytes('empty')), 0, [['empty', false]]],
  ['rmdir takes a final slash', (v) => v.rmdir(bytes('empty/')), 0, [['empty', false]]],
  ['rmdir of a full folder', (v) => v.rmdir(bytes('dir')), ENOTEMPTY, [['dir/x', true]]],
  ['rmdir of a file', (v) => v.rmdir(bytes('file')), ENOTDIR],
  ['rmdir of a file with a slash', (v) => v.rmdir(bytes('file/')), ENOTDIR],
  ['rmdir of a link', (v) => v.rmdir(bytes('link')), ENOTDIR, [['link', true]]],
  ['rmdir of .', (v) => v.rmdir(bytes('.')), EINVAL],
  ['rmdir of nothing', (v) => v.rmdir(bytes('nope')), ENOENT],
  ['unlink removes a file', (v) => v.unlink(bytes('./dir/../file')), 0, [['file', false]]],
  ['unlink removes a link, not its target', (v) => v.unlink(bytes('link')), 0, [['link', false], ['dir/x', true]]],
  ['unlink of a folder', (v) => v.unlink(bytes('dir')), EISDIR],
  ['unlink of a folder with a slash', (v) => v.unlink(bytes('dir/')), EISDIR],
  ['unlink of a file with a slash', (v) => v.unlink(bytes('file/')), ENOTDIR, [['file', true]]],
  ['unlink of nothing', (v) => v.unlink(bytes('nope')), ENOENT],
  ['rename moves', (v) => v.rename(bytes('file'), v, bytes('dir/y')), 0, [['file', false], ['dir/y', true]]],
  ['rename replaces', (v) => v.rename(bytes('file'), v, bytes('dir/x')), 0, [['file', false], ['dir/x', true]]],
  ['rename of a folder with slashes', (v) => v.rename(bytes('dir/'), v, bytes('to/')), 0, [['to/x', true]]],
  ['rename of a file with a slash', (v) => v.rename(bytes('file/'), v, bytes('to')), ENOTDIR],
  ['rename of a file to a name with a slash', (v) => v.rename(bytes('file'), v, bytes('to/')), ENOTDIR],
  ['rename onto a full folder', (v) => v.rename(bytes('empty'), v, bytes('dir')), ENOTEMPTY],
  ['rename of a file onto a folder', (v) => v.rename(bytes('file'), v, bytes('empty')), EISDIR],
  ['rename of a folder onto a file', (v) => v.rename(bytes('empty'), v, bytes('file')), ENOTDIR],
  ['rename of a folder into itself', (v) => v.rename(bytes('dir'), v, bytes('dir/y')), EINVAL],
  ['rename of .', (v) => v.rename(bytes('.'), v, bytes('y')), EBUSY],
  ['link gives a second name', (v) => v.link(bytes('file'), v, bytes('dir/y')), 0, [['file', true], ['dir/y', true]]],
  ['link of a folder', (v) => v.link(bytes('dir'), v, bytes('y')), EPERM],
  ['link of a folder with a slash', (v) => v.link(bytes('dir/'), v, bytes('y')), EPERM],
  ['link of a file with a slash', (v) => v.link(bytes('file/'), v, bytes('y')), ENOTDIR],
  ['link of dots', (v) => v.link(bytes('dir/..'), v, bytes('y')), EPERM],
  ['link to what exists', (v) => v.link(bytes('file'), v, bytes('dir')), EEXIST],
  ['link to a name with a slash', (v) => v.link(bytes('file'), v, bytes('y/')), ENOENT],
  ['symlink makes a link', (v) => v.symlink(bytes('nope/../x'), bytes('y')), 0],
  ['symlink of an absolute path', (v) => v.symlink(bytes('/etc'), bytes('y')), EPERM, [['y', false]]],
  ['symlink of nothing', (v) => v.symlink(bytes(''), bytes('y')), ENOENT],
  ['symlink to a new name with a slash', (v) => v.symlink(bytes('x'), bytes('y/')), ENOENT],
  ['symlink to what exists', (v) => v.symlink(bytes('x'), bytes('file/')), EEXIST],
]

function planted(resolver: Resolver): Tree {
  const tree = new Tree(resolver)
  mkdirSync(tree.path('volume/dir'), { recursive: true })
  mkdirSync(tree.path('volume/empty'))
  writeFileSync(tree.path('volume/dir/x'), 'x')
  writeFileSync(tree.path('volume/file'), 'file')
  symlinkSync('dir', tree.path('volume/link'))
  return tree
}

forBothResolvers('a change by path', (resolver) => {
  for (const [what, change, errno, then] of CHANGES) {
    test(`${what} is answered as by Linux`, () => {
      using tree = planted(resolver)
      using volume = disposable(tree.open())
      assert.equal(0 - change(volume.it), errno)
      for (const [path, exists] of then ?? []) assert.equal(isThere(tree.path('volume', path)), exists, path)
    })
    test(`${what} is refused on a read-only volume`, () => {
      using tree = planted(resolver)
      using volume = disposable(tree.open('volume', true))
      const before = readdirSync(tree.path('volume'), { recursive: true }).sort()
      const answered = 0 - change(volume.it)
      assert.ok(answered === EROFS || (answered === errno && errno !== 0), `${answered}`)
      assert.deepEqual(readdirSync(tree.path('volume'), { recursive: true }).sort(), before)
    })
  }

  test('between volumes moves and links both ways, but not into or out of a read-only one', () => {
    using tree = planted(resolver)
    mkdirSync(tree.path('other'))
    using volume = disposable(tree.open())
    using other = disposable(tree.open('other'))
    using fixed = disposable(tree.open('other', true))
    assert.equal(volume.it.link(bytes('file'), other.it, bytes('linked')), 0)
    assert.equal(volume.it.rename(bytes('file'), other.it, bytes('moved')), 0)
    assert.equal(readFileSync(tree.path('other/moved'), 'utf8'), 'file')
    assert.equal(volume.it.rename(bytes('dir'), fixed.it, bytes('y')), -EROFS)
    assert.equal(volume.it.link(bytes('dir/x'), fixed.it, bytes('y')), -EROFS)
    assert.equal(fixed.it.rename(bytes('moved'), volume.it, bytes('y')), -EROFS)
    assert.equal(fixed.it.link(bytes('moved'), volume.it, bytes('y')), -EROFS, 'it could be written there')
  })

  test('of times sets those of a link or of what it leads to', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    const time = 1_234_567_890_123_456_789n
    assert.equal(volume.it.setTimesAt(bytes('link'), false, { atim: time, mtim: time + 1n }), 0)
    assert.equal(lstatSync(tree.path('volume/link'), { bigint: true }).mtimeNs, time + 1n)
    assert.notEqual(lstatSync(tree.path('volume/dir'), { bigint: true }).mtimeNs, time + 1n)
    assert.equal(volume.it.setTimesAt(bytes('link'), true, { atim: undefined, mtim: time + 2n }), 0)
    const stat = volume.it.statAt(bytes('link'), true)
    assert.ok(typeof stat !== 'number')
    assert.deepEqual([stat.filetype, stat.mtim], [FILETYPE_DIRECTORY, time + 2n])
    assert.notEqual(stat.atim, time)
    assert.equal(volume.it.setTimesAt(bytes('link'), true, { atim: 'now', mtim: -1n }), -EINVAL)
    using fixed = disposable(tree.open('volume', true))
    assert.equal(fixed.it.setTimesAt(bytes('file'), true, { atim: 'now', mtim: 'now' }), -EROFS)
    assert.equal(fixed.it.setTimes({ atim: 'now', mtim: 'now' }), -EROFS)
  })
})

forBothResolvers('a read-only volume', (resolver) => {
  test('is read, and refuses every way to open for writing', () => {
    using tree = new Tree(resolver)
    mkdirSync(tree.path('volume'))
    writeFileSync(tree.path('volume/file'), 'file')
    using volume = disposable(tree.open('volume', true))
    assert.equal(opening(volume.it, 'file'), 'file')
    assert.equal(opening(volume.it, 'file', { create: true }), 'file')
    assert.equal(opening(volume.it, 'file', { create: true, exclusive: true }), EEXIST)
    assert.equal(opening(volume.it, 'new', { create: true }), EROFS)
    assert.equal(opening(volume.it, 'file', { write: true }), EROFS)
    assert.equal(opening(volume.it, 'file', { truncate: true }), EROFS)
    using file = disposable(openFile(volume.it, 'file'))
    assert.equal(file.it.setSize(0), -EROFS)
    assert.equal(file.it.allocate(0, 100), -EROFS)
    assert.equal(file.it.setTimes({ atim: 'now', mtim: 'now' }), -EROFS)
    assert.ok(file.it.write(new Guest().text('x')) < 0)
    assert.equal(readFileSync(tree.path('volume/file'), 'utf8'), 'file')
    assert.equal(existsSync(tree.path('volume/new')), false)
  })
})

function filled(resolver: Resolver, count: number): Tree {
  const tree = new Tree(resolver)
  mkdirSync(tree.path('volume'))
  for (let i = 0; i < count; i++) writeFileSync(tree.path(`volume/entry ${i}`), '')
  return tree
}

forBothResolvers('a listing', (resolver) => {
  test('has every entry with its kind and inode, the two of dots too', () => {
    using tree = filled(resolver, 1)
    mkdirSync(tree.path('volume/dir'))
    symlinkSync('x', tree.path('volume/link'))
    using volume = disposable(tree.open())
    const kinds = Object.fromEntries(list(volume.it).map(({ name, filetype }) => [name, filetype]))
    assert.deepEqual(kinds, { '.': FILETYPE_DIRECTORY, '..': FILETYPE_DIRECTORY, 'entry 0': FILETYPE_REGULAR_FILE,
      dir: FILETYPE_DIRECTORY, link: FILETYPE_SYMBOLIC_LINK })
    for (const { name, ino } of list(volume.it)) {
      if (name !== '..') assert.equal(ino, lstatSync(tree.path('volume', name), { bigint: true }).ino, name)
    }
    assert.equal(Object.values(kinds).includes(FILETYPE_UNKNOWN), false)
  })

  test('of 1,000 entries comes whole, however few are taken at a time', () => {
    using tree = filled(resolver, 1000)
    using volume = disposable(tree.open())
    for (const count of [1, 7, 1000]) {
      const names = new Set<string>()
      for (let cookie = 0n;;) {
        const entries = list(volume.it, cookie, count, count * 32)
        for (const { name } of entries) names.add(name)
        if (entries.length < count) break
        cookie = entries.at(-1)!.next
      }
      assert.equal(names.size, 1002, `${count} at a time`)
    }
  })
})

forBothResolvers('a listing in parts', (resolver) => {
  test('goes on from any earlier cookie, and starts anew from 0', () => {
    using tree = filled(resolver, 50)
    using volume = disposable(tree.open())
    const all = list(volume.it).map(({ name }) => name)
    const entries = list(volume.it)
    for (const i of [40, 3, 51, 0, 17]) {
      assert.deepEqual(list(volume.it, entries[i]!.next).map(({ name }) => name), all.slice(i + 1), `after ${i}`)
    }
    writeFileSync(tree.path('volume/late'), '')
    assert.equal(list(volume.it).length, 53)
  })

  test('misses and repeats nothing that stays, while others are removed', () => {
    using tree = filled(resolver, 400)
    using volume = disposable(tree.open())
    const seen: string[] = []
    for (let cookie = 0n;;) {
      const entries = list(volume.it, cookie, 10, 320)
      seen.push(...entries.map(({ name }) => name))
      if (entries.length < 10) break
      cookie = entries.at(-1)!.next
      // What has been listed goes, as `rm -r` does it: also the entry that the cookie came with.
      for (const { name } of entries) if (/[02468]$/.test(name)) rmSync(tree.path('volume', name), { force: true })
    }
    assert.equal(new Set(seen).size, seen.length)
    assert.equal(seen.length, 402)
  })

  test('from a cookie that nobody gave out is an errno or a listing, never a fault', () => {
    using tree = filled(resolver, 3)
    using volume = disposable(tree.open())
    for (const cookie of [1n, 12345n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n]) {
      let visited = 0
      const result = volume.it.readdir(cookie, 4096, () => ++visited < 100)
      assert.ok(result === 0 || result === -EINVAL, `${cookie}: ${result}`)
      assert.ok(visited <= 5)
    }
  })
})

function isThere(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}
