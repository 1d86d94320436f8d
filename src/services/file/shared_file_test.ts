// services/file/shared_file_test.ts: files that two volumes have in common: whoever changes one has its own then.

import assert from 'node:assert/strict'
import {
  chmodSync, linkSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, truncateSync, utimesSync,
  writeFileSync,
} from 'node:fs'
import { test } from 'node:test'
import { EAGAIN, ENOSPC, EPERM } from '../../base/errno.ts'
import { COPY_AT_ONCE_BYTES_MAX, VOLUME_ENTRY_BYTES } from '../../base/limits.ts'
import type { Directory } from './directory.ts'
import type { File } from './file.ts'
import { contentsOf, openQuota } from './open_quota.ts'
import { quotaOf } from './quota.ts'
import { Guest, Tree, bytes, disposable, forBothResolvers, open, openFile, opening, waited } from './test_support.ts'
import { openVolume } from './volume.ts'

const WRITE = { read: true, write: true }
const CONTENT = 'the common content'

// Folder `volume` with a file `d/f`, which folder `source` has too, and a link `l` that leads to it.
async function withShared(resolver: 'openat2' | 'walk', { length = CONTENT.length, sizeBytes = 2 ** 30 } = {}) {
  const made = new Tree(resolver)
  mkdirSync(made.path('source'))
  mkdirSync(made.path('volume/d'), { recursive: true })
  writeFileSync(made.path('source/f'), CONTENT)
  truncateSync(made.path('source/f'), length)
  utimesSync(made.path('source/f'), 1000, 2000)
  chmodSync(made.path('source/f'), 0o1640)
  linkSync(made.path('source/f'), made.path('volume/d/f'))
  symlinkSync('d/../d/f', made.path('volume/l'))
  const quota = await openQuota(made.path('volume'), sizeBytes)
  const volume: Directory = openVolume(made.path('volume'), { readOnly: false, resolver, quota })
  const check = async (): Promise<void> => {
    assert.equal(quotaOf(quota).usedBytes, (await contentsOf(made.path('volume'))).bytes)
    assert.deepEqual(readdirSync(made.path('volume/d')).filter((name) => name.startsWith('.')), [])
    assert.equal(readFileSync(made.path('source/f'), 'utf8').slice(0, CONTENT.length), CONTENT)
    assert.equal(statSync(made.path('source/f')).mtimeMs, 2_000_000)
  }
  return { made, volume, check, quota: quotaOf(quota), [Symbol.dispose]() {
    volume.close()
    made[Symbol.dispose]()
  } }
}

const inode = (path: string): number => statSync(path).ino
const put = (file: File, text: string): number => file.pwrite(new Guest().text(text), 0)

forBothResolvers('a shared file', (resolver) => {
  for (const path of ['d/f', 'l', './d//f']) {
    test(`is copied when ${path} is opened for writing, and keeps its times and mode`, async () => {
      using it = await withShared(resolver)
      using file = disposable(openFile(it.volume, path, WRITE))
      const own = statSync(it.made.path('volume/d/f'))
      assert.notEqual(own.ino, inode(it.made.path('source/f')))
      assert.deepEqual([own.mtimeMs, own.mode & 0o7777, own.nlink], [2_000_000, 0o640, 1])
      assert.equal(put(file.it, 'THE'), 3)
      assert.equal(readFileSync(it.made.path('volume/d/f'), 'utf8'), CONTENT.replace('the', 'THE'))
      assert.equal(opening(it.volume, path, WRITE), 'file')
      assert.equal(inode(it.made.path('volume/d/f')), own.ino, 'once')
      await it.check()
    })
  }

  test('is read as it is, and who reads it keeps the old content, which is charged as long', async () => {
    using it = await withShared(resolver)
    const reader = openFile(it.volume, 'd/f')
    assert.equal(inode(it.made.path('volume/d/f')), inode(it.made.path('source/f')))
    assert.equal(reader.setTimes({ atim: 'now', mtim: 'now' }), -EPERM)
    const before = it.quota.usedBytes
    using writer = disposable(openFile(it.volume, 'd/f', WRITE))
    assert.equal(it.quota.usedBytes, before + CONTENT.length)
    put(writer.it, 'THE')
    const guest = new Guest()
    await waited(reader, () => reader.pread(guest.ranges(3), 0))
    assert.equal(guest.seen(3), 'the')
    reader.close()
    await it.check()
  })

  test('is given up with nothing copied where it is cut, removed or replaced', async () => {
    using it = await withShared(resolver)
    assert.equal(opening(it.volume, 'd/f', { truncate: true, write: true }), 'file')
    assert.equal(statSync(it.made.path('volume/d/f')).size, 0)
    await it.check()
    using other = await withShared(resolver)
    assert.equal(other.volume.rename(bytes('d/f'), other.volume, bytes('f')), 0)
    await other.check()
    assert.equal(other.volume.unlink(bytes('f')), 0)
    assert.equal(other.quota.usedBytes, 2 * VOLUME_ENTRY_BYTES)
    await other.check()
  })

})

forBothResolvers('a file shared with a clone', (resolver) => {
  test('is copied before its times are set or it gets a second name', async () => {
    using it = await withShared(resolver)
    assert.equal(it.volume.setTimesAt(bytes('l'), true, { atim: 1n, mtim: 3_000_000_000n }), 0)
    assert.equal(statSync(it.made.path('volume/d/f')).mtimeMs, 3000)
    await it.check()
    using other = await withShared(resolver)
    assert.equal(other.volume.link(bytes('d/f'), other.volume, bytes('g')), 0)
    assert.deepEqual([statSync(other.made.path('volume/g')).nlink, statSync(other.made.path('source/f')).nlink], [2, 1])
    await other.check()
  })

  test('is not copied for who only wishes to write: EPERM', async () => {
    using it = await withShared(resolver)
    assert.equal(opening(it.volume, 'd/f', { ...WRITE, wish: true }), EPERM)
    assert.equal(inode(it.made.path('volume/d/f')), inode(it.made.path('source/f')))
  })

  test('that nobody else has is no longer shared; that somebody reads is copied', async () => {
    for (const isRead of [false, true]) {
      using it = await withShared(resolver)
      const before = inode(it.made.path('volume/d/f'))
      rmSync(it.made.path('source/f'))
      const reader = isRead ? openFile(it.volume, 'd/f') : undefined
      assert.equal(opening(it.volume, 'd/f', WRITE), 'file')
      const after = statSync(it.made.path('volume/d/f'))
      assert.equal(after.ino === before, !isRead)
      assert.equal(after.mode & 0o7777, 0o640)
      reader?.close()
    }
  })

  test('that is large is waited for, by several at once, and stays sparse', async () => {
    const length = COPY_AT_ONCE_BYTES_MAX * 40
    using it = await withShared(resolver, { length })
    const pending = [1, 2].map(() => {
      assert.equal(open(it.volume, 'l', WRITE), -EAGAIN)
      return it.volume.takePending()!
    })
    assert.equal(it.volume.takePending(), undefined)
    assert.deepEqual(await Promise.all(pending.map((copy) => copy())), [0, 0])
    assert.equal(opening(it.volume, 'd/f', WRITE), 'file')
    const own = statSync(it.made.path('volume/d/f'))
    assert.notEqual(own.ino, inode(it.made.path('source/f')))
    assert.deepEqual([own.size, own.blocks <= 16, own.mtimeMs], [length, true, 2_000_000])
    await it.check()
  })

  test('that is removed while it is copied stays removed', async () => {
    using it = await withShared(resolver, { length: COPY_AT_ONCE_BYTES_MAX + 1 })
    assert.equal(it.volume.link(bytes('d/f'), it.volume, bytes('g')), -EAGAIN)
    const copy = it.volume.takePending()!
    assert.equal(it.volume.unlink(bytes('d/f')), 0)
    assert.equal(await copy(), 0)
    assert.deepEqual(readdirSync(it.made.path('volume/d')), [])
    await it.check()
  })

  test('that somebody reads is ENOSPC to who writes, if the volume has no room for both', async () => {
    using it = await withShared(resolver, { sizeBytes: 3 * VOLUME_ENTRY_BYTES + CONTENT.length })
    using reader = disposable(openFile(it.volume, 'd/f'))
    assert.equal(opening(it.volume, 'd/f', WRITE), ENOSPC)
    reader.it.close()
    assert.equal(opening(it.volume, 'd/f', WRITE), 'file')
    await it.check()
  })
})
