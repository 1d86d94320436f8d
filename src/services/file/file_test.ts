// services/file/file_test.ts: open files: bytes from and to a guest's memory, offsets, sizes, times. And which folders
// can be volumes.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { CellarError } from '../../base/errors.ts'
import { EBADF, EINVAL, ENOSPC, ENOTSUP, EPERM } from '../../base/errno.ts'
import { Iovecs } from '../iovecs.ts'
import type { File } from './file.ts'
import type { Resolver } from './resolve.ts'
import { Guest, Tree, disposable, forBothResolvers, openFile, opening, skip, waited } from './test_support.ts'
import { openVolume } from './volume.ts'

const CREATE = { read: true, write: true, create: true }

function withVolume(resolver: Resolver): Tree {
  const made = new Tree(resolver)
  mkdirSync(made.path('volume'))
  return made
}

forBothResolvers('a file', (resolver) => {
  test('is written from and read to scattered memory at its offset', async () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    using file = disposable(openFile(volume.it, 'f', CREATE))
    const guest = new Guest()
    assert.equal(file.it.write(guest.text('hello, world', 1, 1, 7)), 12)
    assert.equal(readFileSync(made.path('volume/f'), 'utf8'), 'hello, world')
    assert.equal(file.it.seek(0, 1), 12)
    assert.equal(file.it.seek(-5, 2), 7)
    assert.equal(await waited(file.it, () => file.it.read(guest.ranges(2, 0, 1, 100))), 5)
    assert.equal(guest.seen(5), 'world')
    assert.equal(file.it.read(guest.ranges(10)), 0, 'the end')
    assert.equal(file.it.seek(-1, 0), -EINVAL)
  })

  test('pread and pwrite leave the offset alone', async () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    using file = disposable(openFile(volume.it, 'f', CREATE))
    const guest = new Guest()
    file.it.write(guest.text('0123456789'))
    file.it.seek(3, 0)
    assert.equal(file.it.pwrite(guest.text('AB'), 5), 2)
    assert.equal(await waited(file.it, () => file.it.pread(guest.ranges(4), 4)), 4)
    assert.equal(guest.seen(4), '4AB7')
    assert.equal(file.it.seek(0, 1), 3)
  })

  test('is sparse beyond 4 GiB, and keeps offsets exact there', async () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    using file = disposable(openFile(volume.it, 'f', CREATE))
    const guest = new Guest()
    const far = 5 * 2 ** 32 + 12345
    assert.equal(file.it.pwrite(guest.text('far'), far), 3)
    assert.equal(await waited(file.it, () => file.it.pread(guest.ranges(3), far)), 3)
    assert.equal(guest.seen(3), 'far')
    assert.equal(file.it.seek(0, 2), far + 3)
    assert.equal(file.it.setSize(far), 0)
    assert.equal(statSync(made.path('volume/f')).size, far)
    assert.ok(statSync(made.path('volume/f')).blocks < 1000)
  })

  test('opened to append is written at its end, until told otherwise', () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    writeFileSync(made.path('volume/f'), 'start ')
    using file = disposable(openFile(volume.it, 'f', { ...CREATE, append: true }))
    const guest = new Guest()
    file.it.seek(0, 0)
    file.it.write(guest.text('end'))
    assert.equal(file.it.setAppend(false), 0)
    file.it.seek(0, 0)
    file.it.write(guest.text('S'))
    assert.equal(file.it.setAppend(true), 0)
    file.it.seek(0, 0)
    file.it.write(guest.text('!'))
    assert.equal(readFileSync(made.path('volume/f'), 'utf8'), 'Start end!')
  })
})

forBothResolvers('a file, as it was opened,', (resolver) => {
  test('is truncated when asked, created 0666 less the umask, and synchronous if told so', () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    writeFileSync(made.path('volume/f'), 'full')
    openFile(volume.it, 'f', { truncate: true }).close()
    assert.equal(readFileSync(made.path('volume/f'), 'utf8'), '')
    using file = disposable(openFile(volume.it, 'new', { ...CREATE, sync: 'all' }))
    assert.equal(statSync(made.path('volume/new')).mode & 0o777, 0o666 & ~process.umask())
    assert.equal(file.it.write(new Guest().text('x')), 1)
    assert.equal(volume.it.mkdir(new TextEncoder().encode('d')), 0)
    assert.equal(statSync(made.path('volume/d')).mode & 0o777, 0o777 & ~process.umask())
  })

  test('opened one way refuses the other', () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    writeFileSync(made.path('volume/f'), 'full')
    const guest = new Guest()
    using reader = disposable(openFile(volume.it, 'f'))
    assert.equal(reader.it.write(guest.text('x')), -EBADF)
    assert.equal(reader.it.pwrite(guest.text('x'), 0), -EBADF)
    assert.equal(reader.it.setSize(0), -EINVAL)
    assert.equal(reader.it.allocate(0, 10), -EBADF)
    using writer = disposable(openFile(volume.it, 'f', { read: false, write: true }))
    assert.equal(writer.it.read(guest.ranges(4)), -EBADF)
    assert.equal(writer.it.pread(guest.ranges(4), 0), -EBADF)
    assert.equal(readFileSync(made.path('volume/f'), 'utf8'), 'full')
  })
})

forBothResolvers('a file on the disk', (resolver) => {
  test('allocate extends and never shortens', () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    using file = disposable(openFile(volume.it, 'f', CREATE))
    const sizes: [number, number, number][] = [[0, 100, 100], [10, 10, 100], [90, 20, 110], [4096, 1, 4097]]
    for (const [offset, length, size] of sizes) {
      const result = file.it.allocate(offset, length)
      if (result === -ENOTSUP) return
      assert.equal(result, 0)
      assert.equal(statSync(made.path('volume/f')).size, size)
    }
    assert.equal(file.it.allocate(0, 0), -EINVAL)
  })

  test('sets its times to the nanosecond, tells its attributes, takes advice, and reaches the disk', async () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    using file = disposable(openFile(volume.it, 'f', CREATE))
    file.it.write(new Guest().text('four'))
    assert.equal(file.it.setTimes({ atim: 1n, mtim: 2_000_000_003n }), 0)
    const host = statSync(made.path('volume/f'), { bigint: true })
    const stat = file.it.stat()
    assert.ok(typeof stat !== 'number')
    assert.deepEqual([stat.atim, stat.mtim, stat.ctim], [1n, 2_000_000_003n, host.ctimeNs])
    assert.deepEqual([stat.ino, stat.size, stat.nlink, stat.filetype], [host.ino, 4n, 1n, 4])
    for (let advice = 0; advice < 6; advice++) assert.equal(file.it.advise(0, 4, advice), 0)
    assert.equal(file.it.advise(0, 4, 6), -EINVAL)
    assert.deepEqual(await Promise.all([file.it.sync(false), file.it.sync(true), volume.it.sync(false)]), [0, 0, 0])
  })

  test('that is closed while it is flushed keeps its descriptor until then', async () => {
    using made = withVolume(resolver)
    using volume = disposable(made.open())
    const before = readdirSync('/proc/self/fd').length
    const file = openFile(volume.it, 'f', CREATE)
    const flushed = file.sync(false)
    file.close()
    file.close()
    assert.equal(readdirSync('/proc/self/fd').length, before + 1)
    assert.equal(await flushed, 0)
    await new Promise(setImmediate)
    assert.equal(readdirSync('/proc/self/fd').length, before)
  })
})

forBothResolvers('a read that misses the page cache', (resolver) => {
  // 8 MiB of which nothing is in memory.
  const cold = (made: Tree): File => {
    mkdirSync(made.path('volume'))
    const pattern = Buffer.alloc(8 << 20)
    for (let i = 0; i < pattern.length; i += 4) pattern.writeUInt32LE(i, i)
    writeFileSync(made.path('volume/f'), pattern)
    execFileSync('dd', [`of=${made.path('volume/f')}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'],
      { stdio: 'ignore' })
    return openFile(made.open(), 'f')
  }

  test('waits for it, then gives the same bytes in the same order, and never a part of them', async () => {
    using made = new Tree(resolver)
    using file = disposable(cold(made))
    const guest = new Guest()
    const size = 8 << 20
    const chunk = 200_000
    for (let at = 0; at < size;) {
      const got = await waited(file.it, () => file.it.read(guest.ranges(chunk - 4, 4)))
      assert.equal(got, Math.min(chunk, size - at))
      assert.equal(guest.memory.u32(4096), at)
      assert.equal(guest.memory.u32(4096 + got - 4), at + got - 4)
      at += got
    }
    assert.equal(file.it.read(guest.ranges(1)), 0)
    assert.equal(file.it.seek(0, 1), size)
  })

  test('at an offset waits too, and leaves the file\'s own offset alone', async () => {
    using made = new Tree(resolver)
    using file = disposable(cold(made))
    const guest = new Guest()
    for (const at of [4 << 20, 0, (8 << 20) - 8]) {
      assert.equal(await waited(file.it, () => file.it.pread(guest.ranges(1024), at)), Math.min(1024, (8 << 20) - at))
      assert.equal(guest.memory.u32(4096), at)
    }
    assert.equal(file.it.seek(0, 1), 0)
  })

  test('wakes only those who still wait', async () => {
    using made = new Tree(resolver)
    using file = disposable(cold(made))
    let woken = 0
    const waker = () => { woken++ }
    file.it.awaitReadable(waker)
    file.it.forget(waker)
    await new Promise<void>((resolve) => { file.it.awaitReadable(resolve) })
    assert.equal(woken, 0)
  })
})

test('a file takes a guest memory that has grown, and refuses ranges that it doesn\'t have', { skip }, async () => {
  using made = new Tree('openat2')
  mkdirSync(made.path('volume'))
  writeFileSync(made.path('volume/f'), 'grown')
  using file = disposable(openFile(made.open(), 'f'))
  const guest = new Guest()
  assert.equal(await waited(file.it, () => file.it.pread(guest.ranges(5), 0)), 5)
  guest.memory.memory.grow(3)
  guest.memory.refresh()
  const last = guest.memory.bytes.length - 5
  guest.memory.setU32(0, last)
  guest.memory.setU32(4, 5)
  assert.ok(guest.iovecs.load(guest.memory, 0, 1))
  assert.equal(file.it.pread(guest.iovecs, 0), 5)
  assert.equal(new TextDecoder().decode(guest.memory.bytes.subarray(last)), 'grown')

  // A list that was not checked: sys has a wall of its own.
  const wild = new Iovecs()
  wild.memory = guest.memory
  wild.count = 1
  wild.total = 5
  wild.offsets[0] = last + 1
  wild.lengths[0] = 5
  assert.equal(file.it.pread(wild, 0), -21)
})

const full = existsSync('/dev/shm') && process.getuid?.() === 0 ? false : 'needs root to mount a small tmpfs'

test('a full disk is ENOSPC, after a short write', { skip: skip || full }, (t) => {
  using made = new Tree('openat2')
  mkdirSync(made.path('volume'))
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', made.path('volume')], { stdio: 'ignore' })
  } catch {
    t.skip('may not mount')
    return
  }
  try {
    const volume = made.open()
    const file = openFile(volume, 'f', CREATE)
    const guest = new Guest()
    assert.equal(file.write(guest.ranges(100_000)), 65_536)
    assert.equal(file.write(guest.ranges(1)), -ENOSPC)
    assert.equal(file.allocate(0, 1 << 20), -ENOSPC)
    file.close()
    volume.close()
  } finally {
    execFileSync('umount', [made.path('volume')])
  }
})

test('openVolume says why a folder can\'t be one', { skip }, () => {
  using made = new Tree('openat2')
  writeFileSync(made.path('file'), '')
  const cases: [string, string][] = [
    [made.path('nope'), 'VOLUME_NOT_FOUND'], ['', 'VOLUME_NOT_FOUND'], [made.path('file'), 'VOLUME_NOT_A_FOLDER'],
    [made.path('file/x'), 'VOLUME_NOT_A_FOLDER'], ['a\0b', 'VOLUME_UNREADABLE'],
    [`/${'x'.repeat(5000)}`, 'VOLUME_UNREADABLE'],
  ]
  for (const [path, code] of cases) {
    assert.throws(() => openVolume(path, { readOnly: false }),
      (error) => error instanceof CellarError && error.code === code)
  }
})

test('openVolume finds a resolver by itself, and it holds', { skip }, () => {
  using made = new Tree('openat2')
  mkdirSync(made.path('volume'))
  writeFileSync(made.path('volume/f'), '')
  writeFileSync(made.path('outside'), '')
  using volume = disposable(openVolume(made.path('volume'), { readOnly: false }))
  assert.equal(opening(volume.it, 'f'), 'file')
  assert.equal(opening(volume.it, '../outside'), EPERM)
})
