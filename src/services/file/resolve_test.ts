// services/file/resolve_test.ts: what a guest may reach by path, and every way out that we could think of. All over
// both resolvers.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync, existsSync, linkSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync,
} from 'node:fs'
import { test } from 'node:test'
import {
  EACCES, EEXIST, EILSEQ, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTSUP, EPERM,
} from '../../base/errno.ts'
import { Directory } from './directory.ts'
import type { Resolver } from './resolve.ts'
import { Guest, Tree, bytes, disposable, forBothResolvers, open, openFile, opening, waited } from './test_support.ts'

// volume/{file, dir/{file, deep/file}} and outside/secret beside the volume.
function planted(resolver: Resolver): Tree {
  const tree = new Tree(resolver)
  mkdirSync(tree.path('volume/dir/deep'), { recursive: true })
  mkdirSync(tree.path('outside'))
  for (const name of ['file', 'dir/file', 'dir/deep/file']) writeFileSync(tree.path('volume', name), `inside ${name}`)
  writeFileSync(tree.path('outside/secret'), 'SECRET')
  writeFileSync(tree.path('secret'), 'SECRET')
  return tree
}

const descriptorsOpen = () => readdirSync('/proc/self/fd').length

forBothResolvers('a path', (resolver) => {
  const refusals: [string, number][] = [
    ['', ENOENT], ['/', EPERM], ['/etc/passwd', EPERM], ['..', EPERM], ['../secret', EPERM], ['./..', EPERM],
    ['dir/../../secret', EPERM], ['dir/deep/../../../secret', EPERM], ['dir//..//..//secret', EPERM],
    ['../volume/file', EPERM], ['file\0', EINVAL], ['fi\0le', EINVAL], ['nope', ENOENT], ['nope/../file', ENOENT],
    ['file/', ENOTDIR], ['file/.', ENOTDIR], ['file/..', ENOTDIR], ['file/x', ENOTDIR], ['nope/', ENOENT],
    ['x'.repeat(256), ENAMETOOLONG], ['a/'.repeat(2048), ENAMETOOLONG], ['dir/'.repeat(1000) + 'f', ENOENT],
  ]
  for (const [path, errno] of refusals) {
    test(`"${path.length > 40 ? `${path.slice(0, 8)}…` : path}" is refused`, () => {
      using tree = planted(resolver)
      using volume = disposable(tree.open())
      assert.equal(opening(volume.it, path), errno)
    })
  }

  test('that is not UTF-8 is refused', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    assert.equal(volume.it.statAt(Uint8Array.of(0xff, 0xfe), true), -EILSEQ)
  })

  test('may wander as long as it stays beneath', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    const inside = { file: 'file', './file': 'file', 'dir/.//deep/../../dir/deep/..//deep///./file': 'file',
      '.': 'folder', './': 'folder', dir: 'folder', 'dir///': 'folder', 'dir/deep/..': 'folder', 'dir/..': 'folder',
      'dir/../': 'folder' }
    for (const [path, kind] of Object.entries(inside)) assert.equal(opening(volume.it, path), kind, path)
  })

  test('opened through a folder beneath does not reach above that folder', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    using dir = disposable(open(volume.it, 'dir') as Directory)
    assert.equal(opening(dir.it, 'deep/file'), 'file')
    assert.equal(opening(dir.it, '../file'), EPERM)
    assert.equal(opening(dir.it, 'deep/../../dir/file'), EPERM)
  })

  test('that creates does not create outside', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    symlinkSync('../outside', tree.path('volume/out'))
    symlinkSync('../outside/new', tree.path('volume/dangling'))
    for (const path of ['../new', 'out/new', 'dangling', 'dir/../../new']) {
      assert.equal(opening(volume.it, path, { write: true, create: true }), EPERM, path)
      if (path !== 'dangling') assert.equal(volume.it.mkdir(bytes(path)), -EPERM, path)
      if (path !== 'dangling') assert.equal(volume.it.symlink(bytes('x'), bytes(path)), -EPERM, path)
      if (path !== 'dangling') assert.equal(volume.it.rename(bytes('file'), volume.it, bytes(path)), -EPERM, path)
      if (path !== 'dangling') assert.equal(volume.it.link(bytes('file'), volume.it, bytes(path)), -EPERM, path)
    }
    for (const path of ['../secret', 'out/secret']) {
      assert.equal(volume.it.unlink(bytes(path)), -EPERM, path)
      assert.equal(volume.it.link(bytes(path), volume.it, bytes('mine')), -EPERM, path)
      assert.equal(volume.it.rename(bytes(path), volume.it, bytes('mine')), -EPERM, path)
      assert.equal(volume.it.setTimesAt(bytes(path), true, { atim: 0n, mtim: 0n }), -EPERM, path)
      assert.equal(volume.it.statAt(bytes(path), false), -EPERM, path)
      assert.equal(volume.it.readlink(bytes(path)), -EPERM, path)
    }
    assert.equal(volume.it.rmdir(bytes('../outside')), -EPERM)
    assert.deepEqual(readdirSync(tree.path('outside')), ['secret'])
    assert.deepEqual(readdirSync(tree.host).sort(), ['outside', 'secret', 'volume'])
  })
})

const LINKS: [name: string, target: string, opened: number | 'file' | 'folder', nofollow: number][] = [
  ['to_file', 'file', 'file', ELOOP], ['to_dir', 'dir', 'folder', ELOOP], ['to_here', '.', 'folder', ELOOP],
  ['to_slash', 'dir/', 'folder', ELOOP], ['file_slash', 'file/', ENOTDIR, ELOOP],
  ['absolute', '/etc/passwd', EPERM, ELOOP], ['root', '/', EPERM, ELOOP], ['up', '..', EPERM, ELOOP],
  ['out', '../secret', EPERM, ELOOP], ['round', '../volume/file', EPERM, ELOOP],
  ['sly', 'dir/deep/../../../secret', EPERM, ELOOP], ['dangling', 'nope', ENOENT, ELOOP],
  ['self', 'self', ELOOP, ELOOP], ['through', 'dir/up_one', 'file', ELOOP],
  ['magic', '/proc/self/root', EPERM, ELOOP], ['magic_cwd', '/proc/self/cwd', EPERM, ELOOP],
]

forBothResolvers('a symbolic link', (resolver) => {
  for (const [name, target, opened, nofollow] of LINKS) {
    test(`"${name}" to "${target}" leads where it should`, () => {
      using tree = planted(resolver)
      symlinkSync('../file', tree.path('volume/dir/up_one'))
      symlinkSync(target, tree.path('volume', name))
      using volume = disposable(tree.open())
      assert.equal(opening(volume.it, name), opened)
      assert.equal(opening(volume.it, name, { follow: false }), nofollow)
      assert.equal(opening(volume.it, `dir/../${name}`), opened)
      const target2 = volume.it.readlink(bytes(name))
      assert.equal(typeof target2 === 'number' ? target2 : new TextDecoder().decode(target2), target)
    })
  }

  test('in the middle of a path is followed beneath, and only there', () => {
    using tree = planted(resolver)
    symlinkSync('dir', tree.path('volume/d'))
    symlinkSync('d/deep', tree.path('volume/dd'))
    symlinkSync('../..', tree.path('volume/dir/top'))
    symlinkSync('../outside', tree.path('volume/out'))
    using volume = disposable(tree.open())
    const paths = { 'd/file': 'file', 'dd/file': 'file', 'dd/../file': 'file', 'd/../d/./deep/file': 'file',
      'd/': 'folder', 'dd/..': 'folder', 'd/top/volume/file': EPERM, 'out/secret': EPERM, 'd/nope/x': ENOENT,
      'dir/file/../file': ENOTDIR }
    for (const [path, opened] of Object.entries(paths)) assert.equal(opening(volume.it, path), opened, path)
    for (const [path, opened] of Object.entries(paths)) {
      assert.equal(opening(volume.it, path, { follow: false }), opened, path)
    }
  })

  test('may be one of 40 in a row, not of 41', () => {
    using tree = planted(resolver)
    symlinkSync('file', tree.path('volume/l1'))
    for (let i = 2; i <= 41; i++) symlinkSync(`l${i - 1}`, tree.path(`volume/l${i}`))
    using volume = disposable(tree.open())
    assert.equal(opening(volume.it, 'l40'), 'file')
    assert.equal(opening(volume.it, 'l41'), ELOOP)
  })
})

forBothResolvers('a symbolic link as the last name', (resolver) => {
  test('dangling is created through, but not with EXCL, and not without following', () => {
    using tree = planted(resolver)
    symlinkSync('dir/new', tree.path('volume/link'))
    using volume = disposable(tree.open())
    const create = { write: true, create: true }
    assert.equal(opening(volume.it, 'link', { ...create, exclusive: true }), EEXIST)
    assert.equal(opening(volume.it, 'link', { ...create, follow: false }), ELOOP)
    assert.equal(existsSync(tree.path('volume/dir/new')), false)
    assert.equal(opening(volume.it, 'link', create), 'file')
    assert.equal(existsSync(tree.path('volume/dir/new')), true)
  })

  test('with a final slash is followed even by those who don\'t follow', () => {
    using tree = planted(resolver)
    symlinkSync('dir', tree.path('volume/d'))
    symlinkSync('file', tree.path('volume/f'))
    symlinkSync('..', tree.path('volume/up'))
    using volume = disposable(tree.open())
    assert.equal(opening(volume.it, 'd/', { follow: false }), 'folder')
    assert.equal(opening(volume.it, 'f/', { follow: false }), ENOTDIR)
    assert.equal(opening(volume.it, 'up/', { follow: false }), EPERM)
    assert.equal(volume.it.link(bytes('up/'), volume.it, bytes('x')), -EPERM)
    assert.equal(volume.it.link(bytes('f/'), volume.it, bytes('x')), -ENOTDIR)
    assert.equal(volume.it.readlink(bytes('d/')), -EINVAL)
    assert.equal(volume.it.setTimesAt(bytes('up/'), false, { atim: 1n, mtim: 1n }), -EPERM)
    assert.equal(volume.it.unlink(bytes('d/')), -ENOTDIR)
    assert.equal(volume.it.rmdir(bytes('d/')), -ENOTDIR)
  })
})

forBothResolvers('opening', (resolver) => {
  test('refuses what is neither file nor folder, and does not wait for it', async () => {
    using tree = planted(resolver)
    const made = spawn('mkfifo', [tree.path('volume/fifo')])
    await once(made, 'exit')
    using volume = disposable(tree.open())
    assert.equal(opening(volume.it, 'fifo'), ENOTSUP)
    using devices = disposable(tree.open('/../../../../../../dev'))
    for (const name of ['null', 'zero', 'tty0']) assert.notEqual(opening(devices.it, name), 'file', name)
    assert.equal(opening(devices.it, 'zero'), ENOTSUP)
  })

  test('of /proc as a volume does not pass its magic links', () => {
    using tree = planted(resolver)
    using proc = disposable(tree.open('/../../../../../../proc'))
    for (const path of ['self/root/etc/passwd', 'self/cwd', 'self/fd/0', 'self/exe', 'thread-self/root/etc']) {
      const opened = opening(proc.it, path)
      assert.ok(opened === ELOOP || opened === EPERM || opened === ENOENT, `${path}: ${opened}`)
    }
  })

  test('a folder to write it is EISDIR, creating with a final slash is EISDIR, as a folder is EINVAL', () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    assert.equal(opening(volume.it, 'dir', { write: true }), EISDIR)
    assert.equal(opening(volume.it, '.', { write: true, directory: true }), EISDIR)
    assert.equal(opening(volume.it, 'new/', { write: true, create: true }), EISDIR)
    assert.equal(opening(volume.it, 'new', { create: true, directory: true }), EINVAL)
    assert.equal(opening(volume.it, 'file', { directory: true }), ENOTDIR)
    assert.equal(opening(volume.it, 'file', { create: true, exclusive: true }), EEXIST)
  })

  test('leaks no descriptor, whatever is answered', () => {
    using tree = planted(resolver)
    symlinkSync('dir/deep/../deep', tree.path('volume/way'))
    symlinkSync('../..', tree.path('volume/dir/out'))
    using volume = disposable(tree.open())
    const before = descriptorsOpen()
    for (const path of ['file', 'dir/deep/file', 'way/file', 'way/nope', 'way/../file', 'dir/out/x', '../x', 'way']) {
      opening(volume.it, path)
      volume.it.statAt(bytes(path), true)
      volume.it.mkdir(bytes(`${path}/x`))
      volume.it.rename(bytes(path), volume.it, bytes(`${path}/y/z`))
    }
    assert.equal(descriptorsOpen(), before)
  })

  test('a hard link is opening the file that it is', async () => {
    using tree = planted(resolver)
    linkSync(tree.path('volume/file'), tree.path('volume/dir/hard'))
    using volume = disposable(tree.open())
    const file = openFile(volume.it, 'dir/hard')
    const guest = new Guest()
    assert.equal(await waited(file, () => file.read(guest.ranges(20))), 11)
    assert.equal(guest.seen(11), 'inside file')
    file.close()
  })

  const asRoot = process.getuid?.() === 0 ? 'root may everything' : false
  test('is answered EACCES where the host\'s permissions end', { skip: asRoot }, () => {
    using tree = planted(resolver)
    chmodSync(tree.path('volume/dir'), 0)
    using volume = disposable(tree.open())
    assert.equal(opening(volume.it, 'dir/file'), EACCES)
    chmodSync(tree.path('volume/dir'), 0o700)
  })
})

// A process of the host changes the tree as fast as it can, while the guest opens the same path again and again: 2,000
// times, and then until both sides of the race have been met, or five seconds are over.
async function raced(script: string, cwd: string, attempt: () => void, met: () => boolean): Promise<void> {
  const loop = `const fs = require('fs'); process.stdout.write('.'); for (;;) { ${script} }`
  const child = spawn(process.execPath, ['-e', loop], { cwd, stdio: ['ignore', 'pipe', 'inherit'] })
  try {
    await once(child.stdout, 'data')
    const end = Date.now() + 5000
    for (let i = 0; i < 2000 || (!met() && Date.now() < end); i++) attempt()
  } finally {
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
}

forBothResolvers('a race', (resolver) => {
  test('of a folder with a link to outside is never won by the guest', async () => {
    using tree = planted(resolver)
    writeFileSync(tree.path('volume/dir/secret'), 'inside')
    using volume = disposable(tree.open())
    const guest = new Guest()
    const seen = new Set<number | string>()
    const swap = `fs.renameSync('dir', 'away'); fs.symlinkSync('../outside', 'dir'); fs.unlinkSync('dir');
      fs.renameSync('away', 'dir')`
    await raced(swap, tree.path('volume'), () => {
      const file = open(volume.it, 'dir/secret')
      if (typeof file === 'number') {
        seen.add(-file)
        return
      }
      assert.ok(!(file instanceof Directory))
      const got = file.read(guest.ranges(6))
      if (got > 0) seen.add(guest.seen(got))
      file.close()
    }, () => seen.has('inside') && seen.has(EPERM))
    assert.equal(seen.has('SECRET'), false)
    // Both sides of the race were met, or it proves nothing.
    assert.ok(seen.has('inside') && seen.has(EPERM), [...seen].join())
  })

  test('of a folder moved out of the volume does not open its new parent to the guest', async () => {
    using tree = planted(resolver)
    using volume = disposable(tree.open())
    const escaped = new Set<number | string>()
    const stayed = new Set<number | string>()
    const move = `fs.renameSync('volume/dir/deep', 'deep'); fs.renameSync('deep', 'volume/dir/deep')`
    await raced(move, tree.host, () => {
      escaped.add(opening(volume.it, 'dir/deep/../secret'))
      stayed.add(opening(volume.it, 'dir/deep/file'))
    }, () => stayed.size >= 2)
    assert.equal(escaped.has('file'), false)
    // Both sides of the race were met. The kernel says EPERM if the folder leaves while it is in it.
    assert.ok(stayed.has('file') && (stayed.has(ENOENT) || stayed.has(EPERM)), [...stayed].join())
    assert.equal(readFileSync(tree.path('secret'), 'utf8'), 'SECRET')
  })
})
