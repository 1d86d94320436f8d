// machine/pvh.ts: a kernel as an ELF file, entered as Xen enters its PVH guests (Xen docs/misc/pvh.pandoc).
//
// An ELF note of the kind XEN_ELFNOTE_PHYS32_ENTRY names the 32-bit entry point: protected mode, flat segments, no
// paging, ebx → struct hvm_start_info. Linux's vmlinux has it (CONFIG_PVH), as have BSDs and small kernels.
//
// Every field is an allegation: segments that lie outside the file or outside RAM are refused. Pure.

import { CellarError } from '../base/errors.ts'
import { ACPI_START, COMMAND_LINE_START, E820_RAM, KERNEL_START, PVH_INFO_START } from './layout.ts'

/** Bytes of the file that go to memory; what is beyond `fileLength` is zero. */
type Segment = {
  readonly fileOffset: number; readonly fileLength: number; readonly start: number; readonly length: number
}

/** A kernel that can be entered so. */
export type PvhKernel = { readonly entry: number; readonly segments: readonly Segment[]; readonly end: number }

/** True if a file that begins so is for readPvh to read. */
export function isElf(file: Uint8Array): boolean {
  return file.length >= 64 && viewOf(file).getUint32(0, false) === 0x7f45_4c46
}

/** Reads the headers of an ELF kernel. Throws MACHINE_KERNEL_DAMAGED or MACHINE_KERNEL_UNSUPPORTED. */
export function readPvh(path: string, file: Uint8Array): PvhKernel {
  const headers = programHeaders(path, file)
  const segments = headers.filter(({ type }) => type === PT_LOAD).filter(({ memoryLength }) => memoryLength > 0)
    .map(({ offset, physical, fileLength, memoryLength }): Segment => {
      if (fileLength > memoryLength || !(offset + fileLength <= file.length)) {
        throw new CellarError('MACHINE_KERNEL_DAMAGED', [path, 'a segment lies beyond the end of the file'])
      }
      if (!(physical >= KERNEL_START && physical + memoryLength <= END_MAX)) {
        throw new CellarError('MACHINE_KERNEL_DAMAGED', [path, `a segment of it goes to address ${physical}`])
      }
      return { fileOffset: offset, fileLength, start: physical, length: memoryLength }
    })
  const entry = entryOf(file, headers)
  if (entry === undefined) {
    throw new CellarError('MACHINE_KERNEL_UNSUPPORTED', [path, 'it is an ELF file without a PVH entry point'])
  }
  if (!segments.some(({ start, length }) => entry >= start && entry < start + length)) {
    throw new CellarError('MACHINE_KERNEL_DAMAGED', [path, `its entry point ${entry} lies in none of its segments`])
  }
  return { entry, segments, end: Math.max(...segments.map(({ start, length }) => start + length)) }
}

/** Puts the kernel's segments where they belong. RAM reaches as far as `end`. */
export function placePvh(ram: Uint8Array, kernel: PvhKernel, file: Uint8Array): void {
  for (const { fileOffset, fileLength, start, length } of kernel.segments) {
    ram.set(file.subarray(fileOffset, fileOffset + fileLength), start)
    ram.fill(0, start + fileLength, start + length)
  }
}

/** Writes hvm_start_info and what it leads to (Xen public/arch-x86/hvm/start_info.h). */
export function writeStartInfo(
  ram: Uint8Array, initrd: { start: number; length: number },
  map: readonly { start: number; length: number; type: number }[],
): void {
  const modules = PVH_INFO_START + 64
  const entries = modules + 32
  const page = ram.subarray(PVH_INFO_START, PVH_INFO_START + 4096)
  page.fill(0)
  const view = viewOf(ram.subarray(0, PVH_INFO_START + 4096))
  const put = (at: number, value: number): void => view.setBigUint64(at, BigInt(value), true)
  view.setUint32(PVH_INFO_START, 0x336e_c578, true)
  view.setUint32(PVH_INFO_START + 4, 1, true) // version: 1 has the memory map
  view.setUint32(PVH_INFO_START + 12, initrd.length > 0 ? 1 : 0, true)
  put(PVH_INFO_START + 16, initrd.length > 0 ? modules : 0)
  put(PVH_INFO_START + 24, COMMAND_LINE_START)
  put(PVH_INFO_START + 32, ACPI_START)
  put(PVH_INFO_START + 40, entries)
  view.setUint32(PVH_INFO_START + 48, map.length, true)
  put(modules, initrd.start)
  put(modules + 8, initrd.length)
  map.forEach(({ start, length, type }, i) => {
    put(entries + i * 24, start)
    put(entries + i * 24 + 8, length)
    view.setUint32(entries + i * 24 + 16, type === E820_RAM ? 1 : 2, true)
  })
}

type Header = { type: number; offset: number; physical: number; fileLength: number; memoryLength: number }

function programHeaders(path: string, file: Uint8Array): Header[] {
  const view = viewOf(file)
  const is64 = view.getUint8(4) === 2
  const machine = view.getUint16(18, true)
  if (view.getUint8(5) !== 1 || machine !== (is64 ? EM_X86_64 : EM_386)) {
    throw new CellarError('MACHINE_KERNEL_UNSUPPORTED', [path, 'it is an ELF file for another processor'])
  }
  const start = is64 ? word64(view, 32) : view.getUint32(28, true)
  const size = view.getUint16(is64 ? 54 : 42, true)
  const count = view.getUint16(is64 ? 56 : 44, true)
  if (size < (is64 ? 56 : 32) || count === 0 || count > HEADERS_MAX || !(start + size * count <= file.length)) {
    throw new CellarError('MACHINE_KERNEL_DAMAGED', [path, 'its program headers lie beyond the end of the file'])
  }
  return Array.from({ length: count }, (_, i): Header => {
    const at = start + i * size
    const field = (of32: number, of64: number): number =>
      is64 ? word64(view, at + of64) : view.getUint32(at + of32, true)
    return {
      type: view.getUint32(at, true), offset: field(4, 8), physical: field(12, 24),
      fileLength: field(16, 32), memoryLength: field(20, 40),
    }
  })
}

// The entry point that a note names.
function entryOf(file: Uint8Array, headers: readonly Header[]): number | undefined {
  for (const { type, offset, fileLength } of headers) {
    if (type !== PT_NOTE || !(offset + fileLength <= file.length)) continue
    const view = viewOf(file.subarray(offset, offset + fileLength))
    for (let at = 0; at + 12 <= view.byteLength;) {
      const nameLength = view.getUint32(at, true)
      const length = view.getUint32(at + 4, true)
      const value = at + 12 + roundUp4(nameLength)
      if (!(value + length <= view.byteLength)) break
      const isXen = nameLength === 4 && view.getUint32(at + 12, false) === 0x5865_6e00 // "Xen\0"
      if (isXen && view.getUint32(at + 8, true) === XEN_ELFNOTE_PHYS32_ENTRY && length >= 4) {
        return view.getUint32(value, true)
      }
      at = value + roundUp4(length)
    }
  }
  return undefined
}

// NaN where it is more than an address can be: comparisons fail then.
function word64(view: DataView, at: number): number {
  const value = view.getUint32(at + 4, true) * 4294967296 + view.getUint32(at, true)
  return value <= Number.MAX_SAFE_INTEGER ? value : NaN
}

const roundUp4 = (value: number): number => Math.ceil(value / 4) * 4
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const PT_LOAD = 1
const PT_NOTE = 4
const EM_386 = 3
const EM_X86_64 = 62
const XEN_ELFNOTE_PHYS32_ENTRY = 18
/** A vmlinux has 5. */
const HEADERS_MAX = 64
/** A 32-bit entry point can't use more than this; and RAM ends before it. */
const END_MAX = 0x1_0000_0000
