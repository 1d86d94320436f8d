// machine/bzimage.ts: a Linux kernel as distributions ship it (Linux Documentation/arch/x86/boot.rst).
//
// The file is a setup part for a BIOS, of which we read the header, and the kernel proper, which is entered at its
// 64-bit entry point: long mode, memory from 0 on mapped to itself, rsi → the zero page, where the header is repeated
// with what a boot loader has to say. The kernel unpacks itself at `runStart` and then needs `init_size` bytes there.
//
// Every field is an allegation: a damaged kernel is refused, or crashes in its own memory. Pure: files are read in
// boot.ts.

import { CellarError } from '../base/errors.ts'
import { ACPI_START, COMMAND_LINE_BYTES_MAX, COMMAND_LINE_START, KERNEL_START, ZERO_PAGE_START } from './layout.ts'

/** What the header says, as far as it matters. */
export type BzImage = {
  /** Where the kernel proper begins in the file. */
  readonly fileOffset: number
  /** Where it unpacks itself, and where what it needs there ends. */
  readonly runStart: number
  readonly runEnd: number
  /** The header, for the zero page. */
  readonly header: Uint8Array
  readonly initrdEndMax: number
  readonly commandLineMax: number
}

/** True if a file that begins so is for readBzImage to read. */
export function isBzImage(file: Uint8Array): boolean {
  return file.length >= HEADER_END_MAX && viewOf(file).getUint32(MAGIC, true) === HDRS
}

/** Reads the header of a kernel. Throws MACHINE_KERNEL_DAMAGED or MACHINE_KERNEL_UNSUPPORTED. */
export function readBzImage(path: string, file: Uint8Array): BzImage {
  const view = viewOf(file)
  const damaged = (why: string): CellarError => new CellarError('MACHINE_KERNEL_DAMAGED', [path, why])
  if (view.getUint16(BOOT_FLAG, true) !== 0xaa55) throw damaged('its boot sector has no signature')
  const version = view.getUint16(VERSION, true)
  if (version < VERSION_MIN || (view.getUint16(XLOADFLAGS, true) & XLF_KERNEL_64) === 0) {
    throw new CellarError('MACHINE_KERNEL_UNSUPPORTED', [path, 'it has no 64-bit entry point'])
  }
  const fileOffset = ((view.getUint8(SETUP_SECTS) || 4) + 1) * 512
  if (fileOffset >= file.length) throw damaged(`its setup part of ${fileOffset} bytes is all that there is of it`)
  const claimed = view.getUint32(SYSSIZE, true) * 16
  if (claimed > file.length - fileOffset + 16) {
    throw damaged(`it says that it has ${claimed} bytes, and has ${file.length - fileOffset}`)
  }
  const headerEnd = MAGIC + view.getUint8(JUMP_LENGTH)
  if (headerEnd <= INIT_SIZE || headerEnd > HEADER_END_MAX) throw damaged(`its header ends at byte ${headerEnd}`)

  const preferred = Number(view.getBigUint64(PREF_ADDRESS, true))
  const alignment = view.getUint32(KERNEL_ALIGNMENT, true)
  if (alignment === 0 || (alignment & (alignment - 1)) !== 0) throw damaged(`its alignment is ${alignment} bytes`)
  if (view.getUint8(RELOCATABLE) === 0 && preferred !== KERNEL_START) {
    throw new CellarError('MACHINE_KERNEL_UNSUPPORTED', [path, `it runs at address ${preferred} only`])
  }
  const runStart = Math.max(preferred, Math.ceil(KERNEL_START / alignment) * alignment)
  const runEnd = Math.max(runStart + view.getUint32(INIT_SIZE, true), KERNEL_START + file.length - fileOffset)
  return {
    fileOffset, runStart, runEnd,
    header: file.slice(HEADER_START, headerEnd),
    initrdEndMax: view.getUint32(INITRD_ADDR_MAX, true) + 1,
    commandLineMax: Math.min(view.getUint32(CMDLINE_SIZE, true), COMMAND_LINE_BYTES_MAX - 1),
  }
}

/** Writes the zero page. The command line is at COMMAND_LINE_START already. */
export function writeZeroPage(
  ram: Uint8Array, image: BzImage, initrd: { start: number; length: number },
  map: readonly { start: number; length: number; type: number }[],
): void {
  const page = ram.subarray(ZERO_PAGE_START, ZERO_PAGE_START + 4096)
  page.fill(0)
  page.set(image.header, HEADER_START)
  const view = viewOf(page)
  view.setUint8(TYPE_OF_LOADER, LOADER_UNDEFINED)
  view.setUint32(RAMDISK_IMAGE, initrd.start, true)
  view.setUint32(RAMDISK_SIZE, initrd.length, true)
  view.setUint32(CMD_LINE_PTR, COMMAND_LINE_START, true)
  view.setBigUint64(ACPI_RSDP_ADDR, BigInt(ACPI_START), true)
  view.setUint8(E820_ENTRIES, map.length)
  map.forEach(({ start, length, type }, i) => {
    const at = E820_TABLE + i * 20
    view.setBigUint64(at, BigInt(start), true)
    view.setBigUint64(at + 8, BigInt(length), true)
    view.setUint32(at + 16, type, true)
  })
}

/** The 64-bit entry point is this far behind the start of the kernel proper. */
export const ENTRY_64_OFFSET = 0x200

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const HDRS = 0x5372_6448
const VERSION_MIN = 0x20c // xloadflags came with 2.12, Linux 3.8
const XLF_KERNEL_64 = 1
const LOADER_UNDEFINED = 0xff

// struct boot_params (asm/bootparam.h); from HEADER_START on struct setup_header, in the file at the same place.
const ACPI_RSDP_ADDR = 0x070
const E820_ENTRIES = 0x1e8
const HEADER_START = 0x1f1
const SETUP_SECTS = 0x1f1
const SYSSIZE = 0x1f4
const BOOT_FLAG = 0x1fe
const JUMP_LENGTH = 0x201
const MAGIC = 0x202
const VERSION = 0x206
const TYPE_OF_LOADER = 0x210
const RAMDISK_IMAGE = 0x218
const RAMDISK_SIZE = 0x21c
const CMD_LINE_PTR = 0x228
const INITRD_ADDR_MAX = 0x22c
const KERNEL_ALIGNMENT = 0x230
const RELOCATABLE = 0x234
const XLOADFLAGS = 0x236
const CMDLINE_SIZE = 0x238
const PREF_ADDRESS = 0x258
const INIT_SIZE = 0x260
const HEADER_END_MAX = 0x290
const E820_TABLE = 0x2d0
