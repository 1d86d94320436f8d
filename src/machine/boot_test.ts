// machine/boot_test.ts: kernels and initrds on their way into RAM, whole ones and damaged ones.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { CellarError } from '../base/errors.ts'
import { loadKernel } from './boot.ts'
import { ACPI_START, COMMAND_LINE_START, KERNEL_START, PVH_INFO_START, ZERO_PAGE_START } from './layout.ts'

const MIB = 1024 * 1024
const PAGE = 4096

class Folder {
  readonly path = mkdtempSync(join(tmpdir(), 'cellar-boot-'))
  file(name: string, bytes: Uint8Array): string {
    const path = join(this.path, name)
    writeFileSync(path, bytes)
    return path
  }
  [Symbol.dispose](): void { rmSync(this.path, { recursive: true }) }
}

// A bzImage that says of itself what Debian's says; the kernel proper is 64 KiB of its own offsets.
function bzImage(change: (view: DataView) => void = () => {}): Uint8Array {
  const file = new Uint8Array(1024 + 64 * 1024)
  const view = new DataView(file.buffer)
  view.setUint8(0x1f1, 1)
  view.setUint32(0x1f4, 64 * 1024 / 16, true)
  view.setUint16(0x1fe, 0xaa55, true)
  view.setUint16(0x200, 0x6aeb, true) // the header ends at 0x202 + 0x6a
  view.setUint32(0x202, 0x53726448, true)
  view.setUint16(0x206, 0x20f, true)
  view.setUint32(0x22c, 0x7fff_ffff, true)
  view.setUint32(0x230, 2 * MIB, true)
  view.setUint8(0x234, 1)
  view.setUint16(0x236, 1, true)
  view.setUint32(0x238, 2047, true)
  view.setBigUint64(0x258, BigInt(16 * MIB), true)
  view.setUint32(0x260, 8 * MIB, true)
  for (let i = 1024; i < file.length; i += 4) view.setUint32(i, i - 1024, true)
  change(view)
  return file
}

// An ELF kernel: one segment at 1 MiB, and a note with its PVH entry point.
function elf(change: (view: DataView) => void = () => {}): Uint8Array {
  const file = new Uint8Array(0x2000)
  const view = new DataView(file.buffer)
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  view.setUint16(18, 62, true)
  view.setBigUint64(32, 64n, true)
  view.setUint16(54, 56, true)
  view.setUint16(56, 2, true)
  header(view, 64, { type: 1, offset: 0x1000, physical: MIB, fileLength: 0x800, memoryLength: 0x3000 })
  header(view, 120, { type: 4, offset: 0x200, physical: 0, fileLength: 20, memoryLength: 20 })
  view.setUint32(0x200, 4, true)
  view.setUint32(0x204, 4, true)
  view.setUint32(0x208, 18, true)
  file.set([0x58, 0x65, 0x6e, 0], 0x20c)
  view.setUint32(0x210, MIB + 0x100, true)
  file.fill(0xab, 0x1000, 0x1800)
  change(view)
  return file
}

type Header = { type: number; offset: number; physical: number; fileLength: number; memoryLength: number }

function header(view: DataView, at: number, { type, offset, physical, fileLength, memoryLength }: Header): void {
  view.setUint32(at, type, true)
  view.setBigUint64(at + 8, BigInt(offset), true)
  view.setBigUint64(at + 24, BigInt(physical), true)
  view.setBigUint64(at + 32, BigInt(fileLength), true)
  view.setBigUint64(at + 40, BigInt(memoryLength), true)
}

function refusal(work: () => unknown): string {
  try {
    work()
  } catch (error) {
    if (error instanceof CellarError) return error.code
    throw error
  }
  return 'nothing was refused'
}

test('loadKernel puts a bzImage, its command line and its initrd where the zero page says', () => {
  using folder = new Folder()
  const ram = new Uint8Array(64 * MIB)
  const initrd = new Uint8Array(3 * PAGE + 5).fill(7)
  const entry = loadKernel(ram, {
    kernel: folder.file('vmlinuz', bzImage()), initrd: folder.file('initrd', initrd), commandLine: 'quiet',
  })
  assert.deepEqual(entry, { mode: 64, start: KERNEL_START + 0x200, info: ZERO_PAGE_START })
  const view = new DataView(ram.buffer)
  const zero = (at: number): number => view.getUint32(ZERO_PAGE_START + at, true)
  assert.equal(view.getUint32(KERNEL_START + 0x4000, true), 0x4000)
  assert.equal(zero(0x202), 0x53726448, 'the header is repeated')
  assert.equal(zero(0x228), COMMAND_LINE_START)
  assert.equal(Buffer.from(ram.subarray(COMMAND_LINE_START, COMMAND_LINE_START + 6)).toString(), 'quiet\0')
  assert.equal(zero(0x070), ACPI_START)
  assert.equal(zero(0x218), 64 * MIB - 4 * PAGE)
  assert.equal(zero(0x21c), initrd.length)
  assert.deepEqual(ram.slice(zero(0x218), zero(0x218) + initrd.length), initrd)
  const entries = view.getUint8(ZERO_PAGE_START + 0x1e8)
  const map = Array.from({ length: entries }, (_, i) => [
    view.getBigUint64(ZERO_PAGE_START + 0x2d0 + 20 * i, true),
    view.getBigUint64(ZERO_PAGE_START + 0x2d8 + 20 * i, true),
    view.getUint32(ZERO_PAGE_START + 0x2e0 + 20 * i, true),
  ])
  assert.deepEqual(map, [[0n, 0x9fc00n, 1], [0x9fc00n, 0x60400n, 2], [0x100000n, BigInt(63 * MIB), 1]])
})

test('loadKernel puts an ELF kernel with a PVH entry point where its segments say', () => {
  using folder = new Folder()
  const ram = new Uint8Array(16 * MIB).fill(0xff)
  const entry = loadKernel(ram, {
    kernel: folder.file('vmlinux', elf()), initrd: folder.file('initrd', new Uint8Array(100)), commandLine: 'x',
  })
  assert.deepEqual(entry, { mode: 32, start: MIB + 0x100, info: PVH_INFO_START })
  assert.deepEqual([ram[MIB], ram[MIB + 0x7ff], ram[MIB + 0x800], ram[MIB + 0x2fff]], [0xab, 0xab, 0, 0])
  const view = new DataView(ram.buffer)
  assert.equal(view.getUint32(PVH_INFO_START, true), 0x336ec578)
  assert.equal(view.getUint32(PVH_INFO_START + 12, true), 1, 'one module')
  const module = view.getUint32(PVH_INFO_START + 16, true)
  assert.deepEqual([view.getUint32(module, true), view.getUint32(module + 8, true)], [16 * MIB - PAGE, 100])
  assert.equal(view.getUint32(PVH_INFO_START + 32, true), ACPI_START)
  assert.equal(view.getUint32(PVH_INFO_START + 48, true), 3, 'entries of the memory map')
})

const DAMAGED: readonly (readonly [string, Uint8Array, string])[] = [
  ['an empty file', new Uint8Array(0), 'MACHINE_KERNEL_DAMAGED'],
  ['text', new TextEncoder().encode('#!/bin/sh\n'.repeat(100)), 'MACHINE_KERNEL_DAMAGED'],
  ['a kernel that is cut off', bzImage().subarray(0, 20_000), 'MACHINE_KERNEL_DAMAGED'],
  ['a kernel of its setup part alone', bzImage().subarray(0, 1024), 'MACHINE_KERNEL_DAMAGED'],
  ['a boot sector without a signature', bzImage((view) => view.setUint16(0x1fe, 0)), 'MACHINE_KERNEL_DAMAGED'],
  ['a header that ends early', bzImage((view) => view.setUint8(0x201, 0x20)), 'MACHINE_KERNEL_DAMAGED'],
  ['a header that goes on', bzImage((view) => view.setUint8(0x201, 0xff)), 'MACHINE_KERNEL_DAMAGED'],
  ['an alignment of 3', bzImage((view) => view.setUint32(0x230, 3, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a kernel from before the 64-bit entry', bzImage((view) => view.setUint16(0x206, 0x206, true)),
    'MACHINE_KERNEL_UNSUPPORTED'],
  ['a 32-bit kernel', bzImage((view) => view.setUint16(0x236, 0, true)), 'MACHINE_KERNEL_UNSUPPORTED'],
  ['a kernel for one address', bzImage((view) => view.setUint8(0x234, 0)), 'MACHINE_KERNEL_UNSUPPORTED'],
  ['a kernel that wants 4 GiB', bzImage((view) => view.setUint32(0x260, 0xffff_ffff, true)), 'MACHINE_MEMORY_SMALL'],
  ['a kernel that wants to be at 2^63', bzImage((view) => view.setBigUint64(0x258, 1n << 63n, true)),
    'MACHINE_MEMORY_SMALL'],
  ['an ELF file for another processor', elf((view) => view.setUint16(18, 183, true)), 'MACHINE_KERNEL_UNSUPPORTED'],
  ['an ELF file without a note', elf((view) => view.setUint32(0x208, 17, true)), 'MACHINE_KERNEL_UNSUPPORTED'],
  ['headers beyond the end', elf((view) => view.setBigUint64(32, 1n << 60n, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a thousand headers', elf((view) => view.setUint16(56, 1000, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a segment beyond the end', elf((view) => view.setBigUint64(72, 0x1fffn, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a segment at 2^63', elf((view) => view.setBigUint64(88, 1n << 63n, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a segment over the page tables', elf((view) => view.setBigUint64(88, 0x9000n, true)), 'MACHINE_KERNEL_DAMAGED'],
  ['a segment larger than RAM', elf((view) => view.setBigUint64(104, BigInt(512 * MIB), true)), 'MACHINE_MEMORY_SMALL'],
  ['an entry point in no segment', elf((view) => view.setUint32(0x210, 0x9000, true)), 'MACHINE_KERNEL_DAMAGED'],
]

for (const [what, file, code] of DAMAGED) {
  test(`loadKernel refuses ${what}`, () => {
    using folder = new Folder()
    const ram = new Uint8Array(64 * MIB)
    assert.equal(refusal(() => loadKernel(ram, { kernel: folder.file('kernel', file), commandLine: '' })), code)
  })
}

test('loadKernel says how much memory a kernel and its initrd need', () => {
  using folder = new Folder()
  const boot = {
    kernel: folder.file('vmlinuz', bzImage()), initrd: folder.file('initrd', new Uint8Array(2 * MIB)), commandLine: '',
  }
  const needed = 16 * MIB + 8 * MIB + 2 * MIB
  assert.throws(() => loadKernel(new Uint8Array(24 * MIB), boot),
    { code: 'MACHINE_MEMORY_SMALL', message: /in 24 MiB: with its initrd it needs 27 MiB/ })
  loadKernel(new Uint8Array(needed), boot)
})

test('loadKernel refuses an initrd that the kernel can not reach, and files that are not there', () => {
  using folder = new Folder()
  const low = folder.file('low', bzImage((view) => view.setUint32(0x22c, 25 * MIB, true)))
  const good = folder.file('good', bzImage())
  const initrd = folder.file('initrd', new Uint8Array(2 * MIB))
  const ram = new Uint8Array(64 * MIB)
  assert.equal(refusal(() => loadKernel(ram, { kernel: low, initrd, commandLine: '' })), 'MACHINE_INITRD_LARGE')
  assert.equal(refusal(() => loadKernel(ram, { kernel: '/nowhere/k', commandLine: '' })), 'MACHINE_KERNEL_UNREADABLE')
  assert.equal(refusal(() => loadKernel(ram, { kernel: folder.path, commandLine: '' })), 'MACHINE_KERNEL_UNREADABLE')
  assert.equal(refusal(() => loadKernel(ram, { kernel: good, initrd: '/nowhere/i', commandLine: '' })),
    'MACHINE_INITRD_UNREADABLE')
  assert.equal(refusal(() => loadKernel(ram, { kernel: good, commandLine: 'x'.repeat(2048) })),
    'MACHINE_COMMAND_LINE_LONG')
})

test('no damage to a kernel makes loadKernel write outside RAM or fail in another way than by refusing', () => {
  using folder = new Folder()
  const ram = new Uint8Array(32 * MIB)
  const damage = fc.array(fc.tuple(fc.integer({ min: 0, max: 0x2a0 }), fc.integer({ min: 0, max: 255 })),
    { minLength: 1, maxLength: 6 })
  fc.assert(fc.property(fc.boolean(), damage, (isElf, changes) => {
    const file = isElf ? elf() : bzImage()
    for (const [at, value] of changes) file[at] = value
    const code = refusal(() => loadKernel(ram, { kernel: folder.file('kernel', file), commandLine: 'a' }))
    assert.match(code, /^(MACHINE_|nothing was refused)/)
  }), { numRuns: 300 })
})
