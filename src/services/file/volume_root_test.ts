// services/file/volume_root_test.ts: where open files and folders of a volume are, for snapshots.

import assert from 'node:assert/strict'
import {
  linkSync, mkdirSync, readdirSync, renameSync, rmdirSync, symlinkSync, unlinkSync, writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { EIO } from '../../base/errno.ts'
import { FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE } from '../descriptor.ts'
import type { Directory } from './directory.ts'
import type { Resolver } from './resolve.ts'
import { forBothResolvers, open, openFile, skip, Tree } from './test_support.ts'
import { openVolume } from './volume.ts'

const [REMOVED, AT_START] = ['the file was removed', { read: true, write: false, append: false }]
const lost = (filetype: number, why: string) => ({ kind: 'lost', filetype, errno: EIO, why })

/** A volume with a file in two folders. */
class Rig extends Tree {
  readonly folder: Directory

  constructor(resolver: Resolver, number = 0) {
    super(resolver)
    mkdirSync(this.path('volume/a/b'), { recursive: true })
    mkdirSync(this.path('outside'))
    writeFileSync(this.path('volume/a/b/file'), '0123456789')
    this.folder = this.open()
    if (number >= 0) this.folder.granted(number)
  }
}

forBothResolvers('the place of what is open', (resolver) => {
  test('is a path from the volume on, with how it was opened', () => {
    using rig = new Rig(resolver, 4)
    symlinkSync('a/../a', rig.path('volume/link'))
    const file = openFile(rig.folder, 'link/b/../b/file')
    file.seek(7, 0)
    assert.deepEqual(file.save(), { kind: 'file', volume: 4, path: 'a/b/file', offset: 7, ...AT_START })
    const appends = openFile(rig.folder, 'a/b/file', { read: false, write: true, append: true })
    assert.deepEqual(appends.save(), { kind: 'file', volume: 4, path: 'a/b/file', offset: 0, read: false, write: true,
      append: true })
    appends.setAppend(false)
    assert.equal((appends.save() as { append: boolean }).append, false)
    const folder = open(rig.folder, 'link/b') as Directory
    assert.deepEqual(folder.save(), { kind: 'directory', volume: 4, path: 'a/b' })
    assert.deepEqual((open(folder, '.') as Directory).save(), folder.save())
    assert.deepEqual(rig.folder.save(), { kind: 'directory', volume: 4, path: '' })
    assert.deepEqual([rig.folder.grant, folder.grant], ['volume', undefined])
  })

  test('follows renames, of the volume and of what is above it, too', () => {
    using rig = new Rig(resolver)
    const file = openFile(rig.folder, 'a/b/file')
    renameSync(rig.path('volume/a'), rig.path('volume/new name\n'))
    assert.equal((file.save() as { path: string }).path, 'new name\n/b/file')
    renameSync(rig.path('volume'), rig.path('moved'))
    assert.equal((file.save() as { path: string }).path, 'new name\n/b/file')
  })

  test('is none for what was removed, replaced, or moved out of the volume', () => {
    using rig = new Rig(resolver)
    const file = openFile(rig.folder, 'a/b/file')
    const folder = open(rig.folder, 'a/b') as Directory
    renameSync(rig.path('volume/a/b/file'), rig.path('outside/file'))
    assert.deepEqual(file.save(), lost(FILETYPE_REGULAR_FILE, REMOVED))
    rmdirSync(rig.path('volume/a/b'))
    assert.deepEqual(folder.save(), lost(FILETYPE_DIRECTORY, REMOVED))
    mkdirSync(rig.path('volume/a/b'))
    assert.deepEqual(folder.save(), lost(FILETYPE_DIRECTORY, REMOVED), 'another folder has its name')
    renameSync(rig.path('outside/file'), rig.path('volume/a/b/file'))
    assert.equal((file.save() as { path: string }).path, 'a/b/file', 'and it is found again')
    linkSync(rig.path('volume/a/b/file'), rig.path('volume/second'))
    unlinkSync(rig.path('volume/a/b/file'))
    assert.deepEqual(file.save(), lost(FILETYPE_REGULAR_FILE, REMOVED), 'the name that it was opened by')
  })

  test('is known of the machine\'s own root', () => {
    using rig = new Rig(resolver)
    const root = openVolume('/', { readOnly: true, resolver })
    root.granted(0)
    const path = rig.path('volume/a/b/file').slice(1)
    assert.deepEqual(openFile(root, path).save(), { kind: 'file', volume: 0, path, offset: 0, ...AT_START })
    assert.deepEqual(root.save(), { kind: 'directory', volume: 0, path: '' })
    root.close()
  })
})

forBothResolvers('what has no place', (resolver) => {
  test('lies beside the volume in a folder whose name begins like its own', () => {
    using rig = new Rig(resolver)
    mkdirSync(rig.path('volume2'))
    const file = openFile(rig.folder, 'a/b/file')
    renameSync(rig.path('volume/a/b/file'), rig.path('volume2/file'))
    assert.deepEqual(file.save(), lost(FILETYPE_REGULAR_FILE, REMOVED))
  })

  test('has a name that is no text, or is in a volume that nobody was granted', () => {
    using rig = new Rig(resolver)
    const file = openFile(rig.folder, 'a/b/file')
    renameSync(rig.path('volume/a/b/file'), Buffer.concat([Buffer.from(rig.path('volume/a/b/')), Buffer.of(0xff)]))
    assert.deepEqual(file.save(), lost(FILETYPE_REGULAR_FILE, 'its name is no text'))
    using other = new Rig(resolver, -1)
    assert.deepEqual(other.folder.save(), lost(FILETYPE_DIRECTORY, 'its folder was granted to nobody'))
  })
})

test('a volume\'s folder stays open as long as anything of it is, and not longer', { skip }, () => {
  using tree = new Tree('openat2')
  mkdirSync(join(tree.host, 'volume/sub'), { recursive: true })
  writeFileSync(tree.path('volume/file'), '')
  const numbers = (): number => readdirSync('/proc/self/fd').length
  const before = numbers()
  const root = tree.open()
  root.granted(0)
  const [file, sub] = [openFile(root, 'file'), open(root, 'sub') as Directory]
  const nested = open(sub, '.') as Directory
  assert.equal(numbers(), before + 4)
  for (let i = 0; i < 2; i++) root.close()
  assert.equal(numbers(), before + 4)
  for (const one of [sub, file, sub, file]) one.close()
  assert.equal((nested.save() as { path: string }).path, 'sub')
  nested.close()
  assert.equal(numbers(), before)
})
