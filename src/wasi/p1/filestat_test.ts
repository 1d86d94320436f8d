// wasi/p1/filestat_test.ts: sizes, times and identity through descriptors, on real files.

import assert from 'node:assert/strict'
import { statSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { EBADF, EFAULT, EFBIG, EINVAL, ENOTCAPABLE, ENOTSUP, ESUCCESS } from '../../base/errno.ts'
import { FILETYPE_CHARACTER_DEVICE, FILETYPE_DIRECTORY } from '../../services/descriptor.ts'
import * as abi from './abi.ts'
import { fd_filestat_get, fd_filestat_set_size, fd_filestat_set_times } from './filestat.ts'
import { path_open } from './path.ts'
import { BUFFER, Guest, MEMORY_BYTES, OUT, ROOT, answered, skip } from './test_support.ts'

const opened = (guest: Guest, rights: number = abi.RIGHTS_FILE): number => {
  writeFileSync(guest.path('f'), 'full')
  assert.equal(path_open(guest.context, ROOT, 0, ...guest.text('f'), 0, rights, 0, 0, 0, 0, OUT), ESUCCESS)
  return guest.memory.u32(OUT)
}

test('fd_filestat_get tells of files, folders, and of a console its kind alone', { skip }, () => {
  using guest = new Guest()
  const { context, memory } = guest
  const fd = opened(guest)
  assert.equal(fd_filestat_get(context, fd, BUFFER), ESUCCESS)
  const { ino } = statSync(guest.path('f'), { bigint: true })
  assert.deepEqual([memory.u64(BUFFER + 8), memory.u64(BUFFER + 32)], [ino, 4n])
  assert.equal(fd_filestat_get(context, ROOT, BUFFER), ESUCCESS)
  assert.equal(memory.u64(BUFFER + 16), BigInt(FILETYPE_DIRECTORY))
  const console = { filetype: FILETYPE_CHARACTER_DEVICE, close() {} }
  const stream = guest.descriptors.add(
    { descriptor: console, rightsBase: abi.RIGHTS_STREAM, rightsInheriting: 0, flags: 0 })
  memory.bytes.fill(0xee, BUFFER, BUFFER + 64)
  assert.equal(fd_filestat_get(context, stream, BUFFER), ESUCCESS)
  const expected = new Uint8Array(64)
  expected[16] = FILETYPE_CHARACTER_DEVICE
  assert.deepEqual(memory.at(BUFFER, 64), expected)
  assert.equal(fd_filestat_set_size(context, stream, 0, 0), ENOTCAPABLE)
  guest.descriptors.get(stream)!.rightsBase = abi.RIGHTS_ALL
  assert.equal(fd_filestat_set_size(context, stream, 0, 0), EINVAL)
  assert.equal(fd_filestat_set_times(context, stream, 0, 0, 0, 0, 0), ENOTSUP)
})

test('fd_filestat_set_size cuts and extends, and refuses what no file can be', { skip }, () => {
  using guest = new Guest()
  const fd = opened(guest)
  assert.equal(fd_filestat_set_size(guest.context, fd, 2, 0), ESUCCESS)
  assert.equal(statSync(guest.path('f')).size, 2)
  assert.equal(fd_filestat_set_size(guest.context, fd, -1, 1), ESUCCESS)
  assert.equal(statSync(guest.path('f')).size, 2 ** 33 - 1)
  assert.equal(fd_filestat_set_size(guest.context, fd, 0, -1), EINVAL)
  assert.equal(fd_filestat_set_size(guest.context, fd, 0, 0x7fffffff), EFBIG)
  assert.equal(statSync(guest.path('f')).size, 2 ** 33 - 1)
})

test('fd_filestat_set_times sets what it is told to, and refuses contradictions', { skip }, () => {
  using guest = new Guest()
  const fd = opened(guest)
  const times = () => {
    const { atimeNs, mtimeNs } = statSync(guest.path('f'), { bigint: true })
    return [atimeNs, mtimeNs]
  }
  assert.equal(fd_filestat_set_times(guest.context, fd, 7, 1, 8, 0, abi.FSTFLAGS_ATIM | abi.FSTFLAGS_MTIM), ESUCCESS)
  assert.deepEqual(times(), [(1n << 32n) + 7n, 8n])
  for (const flags of [3, 12, 15, 16, -1]) {
    assert.equal(fd_filestat_set_times(guest.context, fd, 1, 1, 1, 1, flags), EINVAL)
  }
  assert.deepEqual(times(), [(1n << 32n) + 7n, 8n])
  const before = BigInt(Date.now() - 1000) * 1_000_000n
  assert.equal(fd_filestat_set_times(guest.context, fd, 0, 0, 0, 0, abi.FSTFLAGS_MTIM_NOW), ESUCCESS)
  assert.equal(times()[0], (1n << 32n) + 7n)
  assert.ok(times()[1]! > before)
  assert.equal(fd_filestat_set_times(guest.context, ROOT, 5, 0, 5, 0, abi.FSTFLAGS_MTIM), ESUCCESS)
  assert.equal(statSync(guest.host, { bigint: true }).mtimeNs, 5n)
})

test('fd_filestat calls need a number, a right, and memory', { skip }, () => {
  using guest = new Guest()
  const fd = opened(guest, abi.RIGHTS_FD_READ)
  assert.equal(fd_filestat_get(guest.context, fd, BUFFER), ENOTCAPABLE)
  assert.equal(fd_filestat_set_size(guest.context, fd, 0, 0), ENOTCAPABLE)
  assert.equal(fd_filestat_set_times(guest.context, fd, 0, 0, 0, 0, 0), ENOTCAPABLE)
  for (const call of [
    () => fd_filestat_get(guest.context, 77, BUFFER), () => fd_filestat_set_size(guest.context, 77, 0, 0),
    () => fd_filestat_set_times(guest.context, 77, 0, 0, 0, 0, 0),
  ]) assert.equal(answered(call), EBADF)
  assert.equal(answered(() => fd_filestat_get(guest.context, ROOT, MEMORY_BYTES - 63)), EFAULT)
  assert.equal(answered(() => fd_filestat_get(guest.context, ROOT, MEMORY_BYTES - 64)), ESUCCESS)
})
