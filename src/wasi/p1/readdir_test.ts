// wasi/p1/readdir_test.ts: fd_readdir read as wasi-libc reads it, with buffers that are too small.

import assert from 'node:assert/strict'
import { lstatSync, mkdirSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { EBADF, EFAULT, ENOTCAPABLE, ENOTDIR, ESUCCESS } from '../../base/errno.ts'
import { FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE } from '../../services/descriptor.ts'
import * as abi from './abi.ts'
import { path_open } from './path.ts'
import { fd_readdir } from './readdir.ts'
import { BUFFER, Guest, MEMORY_BYTES, OUT, ROOT, answered, skip } from './test_support.ts'

type Entry = { name: string; next: bigint; ino: bigint; filetype: number }

// One call with a buffer of `size` bytes, read as wasi-libc does: whole entries, and whether it was the end.
function read(guest: Guest, cookie: bigint, size: number): { entries: Entry[]; end: boolean } {
  const { memory } = guest
  memory.bytes.fill(0xee, BUFFER, BUFFER + size + 8)
  const [lo, hi] = [Number(cookie & 0xffffffffn) | 0, Number(cookie >> 32n) | 0]
  assert.equal(fd_readdir(guest.context, ROOT, BUFFER, size, lo, hi, OUT), ESUCCESS)
  const used = memory.u32(OUT)
  assert.ok(used <= size)
  assert.deepEqual([...memory.at(BUFFER + used, size + 8 - used)], Array(size + 8 - used).fill(0xee), 'nothing behind')
  const entries: Entry[] = []
  for (let at = BUFFER; at + 24 <= BUFFER + used;) {
    const length = memory.u32(at + 16)
    if (at + 24 + length > BUFFER + used) break
    const name = new TextDecoder().decode(memory.at(at + 24, length))
    entries.push({ name, next: memory.u64(at), ino: memory.u64(at + 8), filetype: memory.u8(at + 20) })
    at += 24 + length
  }
  return { entries, end: used < size }
}

test('fd_readdir writes entries as dirents, and says where the end is', { skip }, () => {
  using guest = new Guest()
  writeFileSync(guest.path('file'), '')
  mkdirSync(guest.path('später'))
  const { entries, end } = read(guest, 0n, 4096)
  assert.equal(end, true)
  assert.deepEqual(Object.fromEntries(entries.map(({ name, filetype }) => [name, filetype])), {
    '.': FILETYPE_DIRECTORY, '..': FILETYPE_DIRECTORY, file: FILETYPE_REGULAR_FILE, 'später': FILETYPE_DIRECTORY })
  for (const { name, ino } of entries) {
    assert.equal(ino, lstatSync(guest.path(name), { bigint: true }).ino)
  }
  assert.deepEqual(read(guest, entries[1]!.next, 4096).entries, entries.slice(2))
  assert.deepEqual(read(guest, entries[3]!.next, 4096), { entries: [], end: true })
})

test('fd_readdir fills the buffer to its last byte while there is more, at every size', { skip }, () => {
  using guest = new Guest()
  for (let i = 0; i < 30; i++) writeFileSync(guest.path(`${'n'.repeat(i)}${i}`), '')
  for (let size = 56; size < 240; size++) {
    const names = new Set<string>()
    for (let cookie = 0n, calls = 0; ; calls++) {
      const { entries, end } = read(guest, cookie, size)
      for (const { name } of entries) names.add(name)
      if (end) break
      assert.ok(entries.length > 0 && calls < 100, `size ${size}`)
      cookie = entries.at(-1)!.next
    }
    assert.equal(names.size, 32, `size ${size}`)
  }
})

test('fd_readdir cuts off an entry that doesn\'t fit, its head too', { skip }, () => {
  using guest = new Guest()
  for (const size of [0, 1, 23, 24]) {
    const { entries } = read(guest, 0n, size)
    assert.equal(guest.memory.u32(OUT), size)
    assert.equal(entries.length, 0)
  }
})

test('fd_readdir of 1,000 entries through a tiny buffer misses none', { skip }, () => {
  using guest = new Guest()
  for (let i = 0; i < 1000; i++) writeFileSync(guest.path(`entry ${i}`), '')
  const names: string[] = []
  for (let cookie = 0n; ;) {
    const { entries, end } = read(guest, cookie, 64)
    names.push(...entries.map(({ name }) => name))
    if (end) break
    cookie = entries.at(-1)!.next
  }
  assert.equal(names.length, 1002)
  assert.equal(new Set(names).size, 1002)
})

test('fd_readdir needs a folder, a right, and memory', { skip }, () => {
  using guest = new Guest()
  const call = (fd: number, buffer = BUFFER, length = 64, out = OUT) =>
    answered(() => fd_readdir(guest.context, fd, buffer, length, 0, 0, out))
  assert.equal(call(ROOT, MEMORY_BYTES - 63), EFAULT)
  assert.equal(call(ROOT, 0, -1), EFAULT)
  assert.equal(call(ROOT, BUFFER, 64, MEMORY_BYTES - 3), EFAULT)
  assert.equal(call(9), EBADF)
  writeFileSync(guest.path('f'), '')
  path_open(guest.context, ROOT, 0, ...guest.text('f'), 0, abi.RIGHTS_FILE, 0, 0, 0, 0, OUT)
  assert.equal(call(1), ENOTCAPABLE)
  guest.descriptors.get(1)!.rightsBase = abi.RIGHTS_ALL
  assert.equal(call(1), ENOTDIR)
  guest.descriptors.get(ROOT)!.rightsBase = abi.RIGHTS_DIRECTORY & ~abi.RIGHTS_FD_READDIR
  assert.equal(call(ROOT), ENOTCAPABLE)
})
