// services/block/open_disk_test.ts: which disks are opened, which are refused, and that refusing leaves nothing open.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  mkdirSync, openSync, readdirSync, readFileSync, renameSync, statSync, symlinkSync, truncateSync, writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { createDisk, openDisk, type NewDisk } from './open_disk.ts'
import { DISK_BYTES_MAX } from './qcow2_header.ts'
import { contentOf, inFolder, noLinux, noQemu, run } from './test_support.ts'

const skip = noLinux
const MIB = 2 ** 20

/** Descriptors of this process. */
const descriptors = (): number => readdirSync('/proc/self/fd').length

const make = (path: string, more: Partial<NewDisk> = {}): string => {
  createDisk(path, { format: 'qcow2', sizeBytes: MIB, ...more })
  return path
}

const open = (path: string, folders: readonly string[] = [], readOnly = true): ReturnType<typeof openDisk> =>
  openDisk(path, 'qcow2', { readOnly, backingFolders: folders })

function refuses(code: string, act: () => unknown, message = /./): void {
  const before = descriptors()
  assert.throws(act, (error) => {
    assert.equal((error as { code?: string }).code, code, String(error))
    assert.match((error as Error).message, message)
    return true
  })
  assert.equal(descriptors(), before, 'nothing stays open')
}

test('a raw disk is its file, and keeps what was written and flushed', { skip }, () => inFolder((folder) => {
  const path = make(join(folder, 'a.img'), { format: 'raw' })
  const disk = openDisk(path, 'raw', { readOnly: false, backingFolders: [] })
  const bytes = new Uint8Array(1024).fill(5)
  assert.equal(disk.sizeBytes, MIB)
  assert.equal(disk.write(4096, bytes, 512, 512), 0)
  assert.equal(disk.flush(), 0)
  assert.deepEqual([...readFileSync(path).subarray(4095, 4097)], [0, 5])
  assert.equal(disk.close(), 0)
}))

test('a raw disk whose size isn\'t whole sectors is refused with its size', { skip }, () => inFolder((folder) => {
  const path = join(folder, 'a.img')
  writeFileSync(path, Buffer.alloc(700))
  refuses('DISK_SIZE_UNALIGNED', () => openDisk(path, 'raw', { readOnly: true, backingFolders: [] }),
    /as its size must be a multiple of 512 bytes: current size is 700$/)
  refuses('DISK_SIZE_UNALIGNED', () => make(join(folder, 'b'), { sizeBytes: 513 }))
}))

test('what isn\'t there, isn\'t a file or isn\'t an image is refused', { skip }, () => inFolder((folder) => {
  refuses('DISK_NOT_FOUND', () => open(join(folder, 'none')))
  refuses('DISK_UNREADABLE', () => open(folder), /isn't a file/)
  run('mkfifo', join(folder, 'pipe'))
  refuses('DISK_UNREADABLE', () => open(join(folder, 'pipe')), /isn't a file/)
  writeFileSync(join(folder, 'text'), 'no image')
  refuses('DISK_DAMAGED', () => open(join(folder, 'text')), /doesn't begin as a qcow2 image does/)
  writeFileSync(join(folder, 'empty'), '')
  refuses('DISK_DAMAGED', () => open(join(folder, 'empty')))
}))

test('a link in the place of a disk is not followed', { skip }, () => inFolder((folder) => {
  make(join(folder, 'mine'), { format: 'raw' })
  symlinkSync('mine', join(folder, 'disk.raw'))
  for (const readOnly of [true, false]) {
    const path = join(folder, 'disk.raw')
    refuses('DISK_UNREADABLE', () => openDisk(path, 'raw', { readOnly, backingFolders: [] }), /ELOOP/)
  }
}))

test('createDisk leaves what is there, and nothing of what it refuses, such as what is too large', { skip }, () =>
  inFolder((folder) => {
    const path = make(join(folder, 'a'))
    refuses('DISK_EXISTS', () => make(path))
    refuses('DISK_TOO_LARGE', () => make(join(folder, 'b'), { sizeBytes: DISK_BYTES_MAX + 512 }))
    refuses('DISK_TOO_LARGE', () => make(join(folder, 'c'), { sizeBytes: 2 ** 40, clusterBytes: 512 }))
    refuses('DISK_UNWRITABLE', () => make(join(folder, 'd'), { clusterBytes: 512,
      backing: { path: 'x'.repeat(500), format: 'raw' } }), /too long/)
    refuses('DISK_UNWRITABLE', () => make(join(folder, 'none', 'e')), /ENOENT/)
    assert.deepEqual(readdirSync(folder), ['a'])
    assert.equal(statSync(path).mode & 0o777, 0o600)
  }))

test('the largest disk is made in little room and opened', { skip }, () => inFolder((folder) => {
  const path = make(join(folder, 'large'), { sizeBytes: DISK_BYTES_MAX })
  const disk = open(path, [], false)
  const bytes = new Uint8Array(512).fill(1)
  assert.equal(disk.write(DISK_BYTES_MAX - 512, bytes, 0, 512), 0)
  assert.equal(disk.read(DISK_BYTES_MAX - 512, bytes.fill(0), 0, 512), 0)
  assert.equal(bytes[511], 1)
  assert.ok(disk.sizeOnDisk() < 4 * MIB, `${disk.sizeOnDisk()} bytes`)
  assert.equal(disk.close(), 0)
}))

test('a disk in use is refused to writers and to readers; readers share it', { skip }, async () => {
  const disks = inFolder((folder) => {
    const path = make(join(folder, 'a'))
    const writer = open(path, [], false)
    refuses('DISK_IN_USE', () => open(path, [], false))
    refuses('DISK_IN_USE', () => open(path))
    assert.equal(writer.close(), 0)
    const readers = [open(path), open(path)]
    refuses('DISK_IN_USE', () => open(path, [], false))
    return readers
  })
  for (const disk of disks) assert.equal(disk.close(), 0)
})

test('a backing file is locked against writers, and may be shared by overlays', { skip }, () => inFolder((folder) => {
  const base = make(join(folder, 'base'))
  const overlays = ['a', 'b'].map((name) =>
    open(make(join(folder, name), { backing: { path: 'base', format: 'qcow2' } }), [folder], false))
  refuses('DISK_IN_USE', () => open(base, [], false))
  for (const overlay of overlays) assert.equal(overlay.close(), 0)
  const writer = open(base, [], false)
  refuses('DISK_IN_USE', () => open(join(folder, 'a'), [folder], false))
  assert.equal(writer.close(), 0)
}))

test('QEMU\'s programs and we keep out of each other\'s disks', { skip: noQemu }, async () => {
  const { mkdtempSync, rmSync } = await import('node:fs')
  const folder = mkdtempSync('/tmp/cellar-block-')
  try {
    const path = make(join(folder, 'a'))
    const writer = open(path, [], false)
    const info = spawnSync('qemu-img', ['info', path], { encoding: 'utf8' })
    assert.match(info.stderr, /Failed to get shared "write" lock/)
    assert.equal(writer.close(), 0)
    const reader = open(path)
    assert.equal(spawnSync('qemu-img', ['info', path]).status, 0)
    assert.match(spawnSync('qemu-io', ['-f', 'qcow2', '-c', 'quit', path], { encoding: 'utf8' }).stderr, /lock/)
    assert.equal(reader.close(), 0)
    const theirs = spawn('qemu-io', ['-f', 'qcow2', path], { stdio: ['pipe', 'pipe', 'inherit'] })
    try {
      theirs.stdin.write('length\n')
      await once(theirs.stdout, 'data')
      refuses('DISK_IN_USE', () => open(path))
    } finally {
      theirs.kill()
      await once(theirs, 'close')
    }
    assert.equal(open(path, [], false).close(), 0)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('a backing file outside the folders is refused, however it is reached', { skip }, () => inFolder((folder) => {
  const inside = join(folder, 'inside')
  mkdirSync(inside)
  const secret = make(join(folder, 'secret'), { format: 'raw' })
  symlinkSync('../secret', join(inside, 'link'))
  symlinkSync('..', join(inside, 'up'))
  const cases = [secret, '../secret', 'link', 'up/secret', join(inside, '../secret'), 'none', '..', inside]
  for (const [i, name] of cases.entries()) {
    const path = make(join(inside, `top${i}`), { backing: { path: name, format: 'raw' } })
    refuses('DISK_BACKING_OUTSIDE', () => open(path, [inside]))
  }
  const ok = make(join(inside, 'ok'), { backing: { path: '../secret', format: 'raw' } })
  refuses('DISK_BACKING_OUTSIDE', () => open(ok, []))
  refuses('DISK_BACKING_OUTSIDE', () => open(ok, [join(folder, 'not-there')]))
  refuses('DISK_BACKING_OUTSIDE', () => open(ok, [`${folder}/secre`]))
  assert.equal(open(ok, [folder]).close(), 0)
}))

test('a backing file that isn\'t a plain file of a stated format is refused', { skip }, () => inFolder((folder) => {
  for (const name of ['json:{"driver":"raw"}', 'nbd://example', 'file:base']) {
    const path = make(join(folder, name.slice(0, 4).replace(/\W/, '_')), { backing: { path: name, format: 'raw' } })
    refuses('DISK_UNSUPPORTED', () => open(path, [folder]))
  }
  const path = make(join(folder, 'vmdk'), { backing: { path: 'base', format: 'raw' } })
  const bytes = readFileSync(path)
  const stated = bytes.indexOf('raw')
  bytes.write('abc', stated)
  writeFileSync(path, bytes)
  refuses('DISK_UNSUPPORTED', () => open(path, [folder]), /format "abc"/)
  bytes.writeUInt32BE(0, stated - 8)
  writeFileSync(path, bytes)
  refuses('DISK_UNSUPPORTED', () => open(path, [folder]), /format isn't stated/)
}))

test('a chain that is a loop or too long is refused', { skip }, () => inFolder((folder) => {
  const self = make(join(folder, 'self'), { backing: { path: 'self', format: 'qcow2' } })
  refuses('DISK_DAMAGED', () => open(self, [folder]), /loop/)
  refuses('DISK_DAMAGED', () => open(self, [folder], false), /loop/)
  make(join(folder, 'one'), { backing: { path: 'two', format: 'qcow2' } })
  make(join(folder, 'two'), { backing: { path: 'one', format: 'qcow2' } })
  refuses('DISK_DAMAGED', () => open(join(folder, 'one'), [folder]), /loop/)
  make(join(folder, 'c0'))
  for (let i = 1; i <= 16; i++) {
    make(join(folder, `c${i}`), { backing: { path: `c${i - 1}`, format: 'qcow2' } })
  }
  assert.equal(open(join(folder, 'c15'), [folder]).close(), 0)
  refuses('DISK_UNSUPPORTED', () => open(join(folder, 'c16'), [folder]), /more than 15 backing files/)
}))

test('an image with features that change what its bytes mean is refused by name', { skip: noQemu }, () =>
  inFolder((folder) => {
    const image = (options: string): string => {
      const path = join(folder, 'image')
      run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '1M')
      return path
    }
    refuses('DISK_UNSUPPORTED', () => open(image('extended_l2=on')), /extended L2 entries/)
    refuses('DISK_UNSUPPORTED', () => open(image(`data_file=${folder}/data`)), /external data file/)
    // Made by hand: qemu-img measures how fast the processor is for this, and gives up on a busy one.
    const path = image('compat=1.1')
    const bytes = readFileSync(path)
    bytes.writeUInt32BE(2, 32)
    writeFileSync(path, bytes)
    refuses('DISK_UNSUPPORTED', () => open(path), /LUKS/)
  }))

test('a descriptor that is given is used in place of the path, and closed', { skip }, () => inFolder((folder) => {
  const path = make(join(folder, 'a'))
  const before = descriptors()
  const fd = openSync(path, 'r+')
  renameSync(path, join(folder, 'b'))
  const disk = openDisk(path, 'qcow2', { readOnly: false, backingFolders: [], fd })
  assert.equal(contentOf(disk).length, MIB)
  assert.equal(disk.close(), 0)
  truncateSync(join(folder, 'b'), 100)
  const damaged = openSync(join(folder, 'b'), 'r+')
  assert.throws(() => openDisk(path, 'qcow2', { readOnly: false, backingFolders: [], fd: damaged }),
    { code: 'DISK_DAMAGED' })
  assert.equal(descriptors(), before)
}))

test('disks work where Node\'s permission model keeps fsync from descriptors', { skip }, () => inFolder((folder) => {
  const path = make(join(folder, 'a'))
  const script = `import { openDisk } from ${JSON.stringify(new URL('open_disk.ts', import.meta.url).href)}
    const disk = openDisk(${JSON.stringify(path)}, 'qcow2', { readOnly: false, backingFolders: [], fd: 3 })
    const bytes = new Uint8Array(4096).fill(3)
    console.log(disk.write(0, bytes, 0, 4096), disk.flush(), disk.discard(0, 65536), disk.flush(),
      disk.writeZeroes(0, 65536, false), disk.read(0, bytes, 0, 4096), bytes[0], disk.close())`
  const fd = openSync(path, 'r+')
  const { stdout, stderr } = spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning',
    '--disable-warning=SecurityWarning', '--permission', '--allow-ffi', `--allow-fs-read=${process.cwd()}/*`,
    '--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'pipe', fd], encoding: 'utf8' })
  assert.equal(stdout, '0 0 0 0 0 0 0 0\n', stderr)
}))
