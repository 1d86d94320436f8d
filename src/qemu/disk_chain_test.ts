// qemu/disk_chain_test.ts: which files QEMU is given for a disk, and which images are refused before it sees them.

import assert from 'node:assert/strict'
import { fstatSync, mkdirSync, readdirSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import type { DiskSpec } from '../machine/spec.ts'
import { createDisk } from '../services/block/open_disk.ts'
import { isSupported } from '../sys/libc.ts'
import { closeChain, openChain } from './disk_chain.ts'
import { scratchFolder } from './test_support.ts'

const MIB = 2 ** 20

function qcow2(path: string, backing?: string, format: 'raw' | 'qcow2' = 'qcow2'): void {
  const of = backing === undefined ? undefined : { path: backing, format }
  createDisk(path, { format: 'qcow2', sizeBytes: MIB, backing: of })
}

function disk(path: string, more: Partial<DiskSpec> = {}): DiskSpec {
  return { path, format: 'qcow2', readOnly: false, serial: 's', backingFolders: [], ...more }
}

describe('the files of a disk', { skip: isSupported() ? false : 'no system calls here' }, () => {
  test('a chain is opened from the disk down, and only the disk itself to be written', (t) => {
    const folder = scratchFolder(t)
    createDisk(join(folder, 'base'), { format: 'raw', sizeBytes: MIB })
    qcow2(join(folder, 'middle'), 'base', 'raw')
    qcow2(join(folder, 'top'), 'middle')
    const chain = openChain(disk(join(folder, 'top'), { backingFolders: [folder] }))
    t.after(() => closeChain(chain))
    assert.deepEqual(chain.map(({ format, isReadOnly }) => [format, isReadOnly]),
      [['qcow2', false], ['qcow2', true], ['raw', true]])
    assert.deepEqual(chain.map(({ fd }) => fstatSync(fd).ino),
      ['top', 'middle', 'base'].map((name) => statSync(join(folder, name)).ino))
  })

  test('a backing file outside the folders, or behind a link that leads out, is refused', (t) => {
    const folder = scratchFolder(t)
    mkdirSync(join(folder, 'in'))
    qcow2(join(folder, 'outside'))
    symlinkSync('../outside', join(folder, 'in/link'))
    qcow2(join(folder, 'in/direct'), join(folder, 'outside'))
    qcow2(join(folder, 'in/linked'), 'link')
    qcow2(join(folder, 'in/absent'), 'nothing')
    for (const name of ['direct', 'linked', 'absent']) {
      assert.throws(() => openChain(disk(join(folder, 'in', name), { backingFolders: [join(folder, 'in')] })),
        { code: 'DISK_BACKING_OUTSIDE' }, name)
    }
    assert.throws(() => openChain(disk(join(folder, 'in/direct'))), { code: 'DISK_BACKING_OUTSIDE' })
  })

  test('a link in the place of a disk is not followed', (t) => {
    const folder = scratchFolder(t)
    createDisk(join(folder, 'mine'), { format: 'raw', sizeBytes: MIB })
    symlinkSync('mine', join(folder, 'disk.raw'))
    assert.throws(() => openChain(disk(join(folder, 'disk.raw'), { format: 'raw' })),
      { code: 'DISK_UNREADABLE', message: /ELOOP/ })
  })

  test('QEMU\'s words for what is no file, loops and unknown formats are refused', (t) => {
    const folder = scratchFolder(t)
    qcow2(join(folder, 'json'), 'json:{"driver":"nbd"}')
    qcow2(join(folder, 'self'), 'self')
    const backingFolders = [folder]
    assert.throws(() => openChain(disk(join(folder, 'json'), { backingFolders })), { code: 'DISK_UNSUPPORTED' })
    // A file that it writes itself is in use, too.
    const self = disk(join(folder, 'self'), { backingFolders, readOnly: true })
    assert.throws(() => openChain(self), { code: 'DISK_DAMAGED' })
  })

  test('a disk that another machine writes is in use, and one that all read is not', (t) => {
    const folder = scratchFolder(t)
    qcow2(join(folder, 'a'))
    const first = openChain(disk(join(folder, 'a')))
    for (const readOnly of [false, true]) {
      assert.throws(() => openChain(disk(join(folder, 'a'), { readOnly })), { code: 'DISK_IN_USE' })
    }
    closeChain(first)
    const readers = [0, 1].map(() => openChain(disk(join(folder, 'a'), { readOnly: true })))
    readers.forEach(closeChain)
  })

  test('missing files, folders, odd sizes and damaged images are errors, and no descriptor is left', (t) => {
    const folder = scratchFolder(t)
    qcow2(join(folder, 'good'))
    writeFileSync(join(folder, 'text'), 'not a disk')
    qcow2(join(folder, 'cut'))
    truncateSync(join(folder, 'cut'), 1000)
    const before = readdirSync('/proc/self/fd').length
    for (const [name, format, code] of [['none', 'raw', 'DISK_NOT_FOUND'], ['text', 'raw', 'DISK_SIZE_UNALIGNED'],
      ['text', 'qcow2', 'DISK_DAMAGED'], ['cut', 'qcow2', 'DISK_DAMAGED'], ['.', 'raw', 'DISK_UNREADABLE']] as const) {
      assert.throws(() => openChain(disk(join(folder, name), { format })), { code }, `${name} ${format}`)
    }
    assert.equal(readdirSync('/proc/self/fd').length, before)
  })
})
