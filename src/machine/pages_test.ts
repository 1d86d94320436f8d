// machine/pages_test.ts: RAM and disks as pages and back: holes, odd sizes, mappings that the memfd doesn't know.

import assert from 'node:assert/strict'
import { closeSync, constants, fstatSync, ftruncateSync, mkdtempSync, readFileSync, readSync, rmSync,
  symlinkSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { MemoryImage } from '../cell/state.ts'
import { makeRam, mapRam, unmapRam } from '../sys/guest_ram.ts'
import {
  closePages, copyRam, copyWritten, copyWrittenRam, heldCopy, openPages, putPages, takePages,
} from './pages.ts'

const PAGE = 64 * 1024
const MIB = 2 ** 20

function folder(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'cellar-pages-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

/** RAM with these bytes at these places. */
function ram(sizeBytes: number, content: Readonly<Record<number, string>>):
{ fd: number; sizeBytes: number } & Disposable {
  const fd = makeRam(sizeBytes)
  for (const [at, text] of Object.entries(content)) writeSync(fd, text, Number(at))
  return { fd, sizeBytes, [Symbol.dispose]: () => closeSync(fd) }
}

function bytesAt(fd: number, at: number, length: number): string {
  const bytes = Buffer.alloc(length)
  readSync(fd, bytes, 0, length, at)
  return bytes.toString()
}

function pageOf(image: MemoryImage, page: number): Buffer {
  const slot = image.present.indexOf(page)
  assert.ok(slot >= 0, `page ${page} is there`)
  return Buffer.from(image.bytes, slot * PAGE, PAGE)
}

test('what was never written, and pages of zeroes, are left out; the rest comes back where it was', () => {
  using one = ram(4 * MIB, { 5: 'first', [PAGE - 2]: 'over', [3 * PAGE]: '\0'.repeat(PAGE), [4 * MIB - 3]: 'end' })
  const image = takePages([one])
  assert.equal(image.pages, 64)
  assert.deepEqual([...image.present], [0, 1, 63])
  assert.equal(pageOf(image, 0).subarray(5, 10).toString(), 'first')
  assert.equal(pageOf(image, 63).subarray(-3).toString(), 'end')
  using two = ram(MIB, {})
  putPages(image, 0, { ...two, sizeBytes: one.sizeBytes })
  assert.ok(fstatSync(two.fd).blocks * 512 < MIB, 'holes stay holes')
  const [was, is] = [mapRam(one.fd, one.sizeBytes, false), mapRam(two.fd, one.sizeBytes, false)]
  assert.equal(Buffer.compare(was.bytes, is.bytes), 0)
  unmapRam(was)
  unmapRam(is)
})

test('disks follow RAM, each from a new page on, whatever their size', () => {
  using made = folder()
  const sizes = [1, PAGE - 1, PAGE, PAGE + 1, 0, 3 * PAGE + 512]
  const paths = sizes.map((size, i) => {
    const path = join(made.path, `${i}`)
    writeFileSync(path, Buffer.alloc(size, 65 + i))
    return path
  })
  using memory = ram(2 * PAGE, { 0: 'ram' })
  const sources = paths.map((path) => openPages(path, constants.O_RDONLY))
  const image = takePages([memory, ...sources])
  for (const source of sources) closePages(source)
  assert.equal(image.pages, 2 + 1 + 1 + 1 + 2 + 0 + 4)
  assert.deepEqual([...image.present], [0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  assert.equal(pageOf(image, 2).toString('latin1', 0, 2), 'A\0', 'the rest of a last page is zero')
  let first = 2
  for (const [i, path] of paths.entries()) {
    const copy = openPages(`${path}.copy`, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL)
    putPages(image, first, { fd: copy.fd, sizeBytes: sizes[i]! })
    closePages(copy)
    assert.deepEqual(readFileSync(`${path}.copy`), readFileSync(path))
    first += Math.ceil(sizes[i]! / PAGE)
  }
})

test('a file that became shorter since reads as zero there', () => {
  using made = folder()
  const path = join(made.path, 'disk')
  writeFileSync(path, Buffer.alloc(3 * PAGE, 1))
  const source = openPages(path, constants.O_RDWR)
  ftruncateSync(source.fd, PAGE + 7)
  const image = takePages([{ ...source }])
  closePages(source)
  assert.equal(image.pages, 3)
  assert.deepEqual([...image.present], [0, 1])
  assert.deepEqual([pageOf(image, 1)[6], pageOf(image, 1)[7]], [1, 0])
})

test('a private mapping is taken as it is seen, not as the memfd has it', () => {
  using shared = ram(4 * PAGE, { 0: 'parent', [2 * PAGE]: 'both' })
  const mine = mapRam(shared.fd, shared.sizeBytes, true)
  mine.bytes.set(Buffer.from('child!'), 0)
  mine.bytes.set(Buffer.from('new'), 3 * PAGE)
  mine.bytes.fill(0, 2 * PAGE, 2 * PAGE + 4)
  const image = takePages([{ ...shared, mapped: mine.bytes }])
  assert.deepEqual([...image.present], [0, 3])
  assert.equal(pageOf(image, 0).toString('latin1', 0, 6), 'child!')
  assert.deepEqual([...takePages([shared]).present], [0, 2], "the other's is as it was")
  using copy = ram(PAGE, {})
  copyRam({ ...shared, mapped: mine.bytes }, copy.fd)
  assert.deepEqual([bytesAt(copy.fd, 0, 6), bytesAt(copy.fd, 3 * PAGE, 3), bytesAt(copy.fd, 2 * PAGE, 4)],
    ['child!', 'new', '\0\0\0\0'])
  unmapRam(mine)
})

test('copies of RAM are as large, and have the same bytes and holes', () => {
  using one = ram(16 * MIB, { 7: 'a', [9 * MIB]: 'b', [16 * MIB - 1]: 'c' })
  using two = ram(PAGE, {})
  copyRam(one, two.fd)
  assert.equal(fstatSync(two.fd).size, 16 * MIB)
  assert.deepEqual([7, 9 * MIB, 16 * MIB - 1].map((at) => bytesAt(two.fd, at, 1)), ['a', 'b', 'c'])
  assert.ok(fstatSync(two.fd).blocks * 512 <= fstatSync(one.fd).blocks * 512)
})

test('memory that is spare is used if it is large enough, whatever it held', () => {
  using one = ram(4 * PAGE, { 0: 'x', [PAGE]: 'y' })
  const spare = new SharedArrayBuffer(2 * PAGE)
  new Uint8Array(spare).fill(0xff)
  const image = takePages([one], spare)
  assert.equal(image.bytes, spare)
  assert.deepEqual([pageOf(image, 0)[0], pageOf(image, 0)[1]], [120, 0])
  assert.notEqual(takePages([one], new SharedArrayBuffer(PAGE)).bytes.byteLength, PAGE)
})

test('nothing at all is no pages', () => {
  assert.deepEqual([takePages([]).pages, takePages([]).present.length], [0, 0])
})

test('a disk is a file of ours: a link in its place is not followed', () => {
  using made = folder()
  writeFileSync(join(made.path, 'secret'), 'x')
  symlinkSync(join(made.path, 'secret'), join(made.path, 'disk0.qcow2'))
  assert.throws(() => openPages(join(made.path, 'disk0.qcow2'), constants.O_RDONLY), { code: 'ELOOP' })
})

test('a copy that was taken while a machine ran is brought up to date by what was written meanwhile', () => {
  using source = ram(8 * PAGE, { 0: 'stays', [3 * PAGE]: 'before' })
  using child = ram(8 * PAGE, {})
  copyRam(source, child.fd)
  const copy = heldCopy(source)
  writeSync(source.fd, 'after', 3 * PAGE)
  writeSync(source.fd, 'new', 5 * PAGE + 4096)
  // Pages 48 and 81 of 4 KiB; 127 was written with what it had.
  const written = new Uint8Array(16)
  for (const page of [48, 81, 127]) written[page >>> 3]! |= 1 << (page & 7)
  const image = takePages([copyWritten(source, written, copy)])
  assert.deepEqual([...image.present], [0, 3, 5])
  assert.equal(pageOf(image, 3).toString('utf8', 0, 5), 'after')
  assert.equal(pageOf(image, 5).toString('utf8', 4096, 4099), 'new')
  copyWrittenRam(source, written, child.fd)
  assert.deepEqual([bytesAt(child.fd, 0, 5), bytesAt(child.fd, 3 * PAGE, 5), bytesAt(child.fd, 5 * PAGE + 4096, 3)],
    ['stays', 'after', 'new'])
})
