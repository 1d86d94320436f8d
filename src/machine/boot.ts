// machine/boot.ts: puts a kernel, its initrd and its command line into RAM, and says how the first vCPU enters it.
//
// What is read comes from files of an operator's; that they are kernels is an allegation. Nothing is written to RAM
// before all is known to fit, but for the initrd, which is read straight into its place. Elsewhere: the two kinds of
// kernels (bzimage.ts, pvh.ts), the registers of the entry (boot_state.ts).

import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { LOW_RAM_BYTES_MAX } from '../services/guest_ram.ts'
import { ENTRY_64_OFFSET, isBzImage, readBzImage, writeZeroPage } from './bzimage.ts'
import {
  COMMAND_LINE_BYTES_MAX, COMMAND_LINE_START, KERNEL_START, PVH_INFO_START, ZERO_PAGE_START, memoryMap,
} from './layout.ts'
import { isElf, placePvh, readPvh, writeStartInfo } from './pvh.ts'

/** How the first vCPU begins. `info`: what rsi (64-bit) or ebx (32-bit) leads to. */
export type Entry = { readonly mode: 64 | 32; readonly start: number; readonly info: number }

type Boot = { readonly kernel: string; readonly initrd?: string | undefined; readonly commandLine: string }

/** Fills RAM for `boot`. Throws CellarError (MACHINE_KERNEL_…, MACHINE_INITRD_…, MACHINE_MEMORY_SMALL). */
export function loadKernel(ram: Uint8Array, boot: Boot): Entry {
  const kernel = readKernel(boot.kernel)
  const map = memoryMap(ram.length)
  if (isElf(kernel)) {
    const pvh = readPvh(boot.kernel, kernel)
    const initrd = placeInitrd(ram, boot, pvh.end, LOW_RAM_BYTES_MAX)
    placePvh(ram, pvh, kernel)
    writeCommandLine(ram, boot.commandLine, COMMAND_LINE_BYTES_MAX - 1)
    writeStartInfo(ram, initrd, map)
    return { mode: 32, start: pvh.entry, info: PVH_INFO_START }
  }
  if (!isBzImage(kernel)) throw new CellarError('MACHINE_KERNEL_DAMAGED', [boot.kernel, 'it is no kernel for x86-64'])
  const image = readBzImage(boot.kernel, kernel)
  const initrd = placeInitrd(ram, boot, image.runEnd, image.initrdEndMax)
  writeCommandLine(ram, boot.commandLine, image.commandLineMax)
  ram.set(kernel.subarray(image.fileOffset), KERNEL_START)
  writeZeroPage(ram, image, initrd, map)
  return { mode: 64, start: KERNEL_START + ENTRY_64_OFFSET, info: ZERO_PAGE_START }
}

function readKernel(path: string): Uint8Array {
  try {
    const fd = openSync(path, 'r')
    try {
      const { size } = fstatSync(fd)
      if (size > KERNEL_BYTES_MAX) throw new CellarError('MACHINE_KERNEL_DAMAGED', [path, `it has ${size} bytes`])
      const bytes = new Uint8Array(size)
      return bytes.subarray(0, readAll(fd, bytes))
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    if (error instanceof CellarError) throw error
    throw new CellarError('MACHINE_KERNEL_UNREADABLE', [path, (error as Error).message], { cause: error })
  }
}

// As high as it may be, where the kernel doesn't unpack itself.
function placeInitrd(
  ram: Uint8Array, boot: Boot, kernelEnd: number, endMax: number,
): { start: number; length: number } {
  const low = Math.min(ram.length, LOW_RAM_BYTES_MAX)
  const small = (bytes: number): CellarError =>
    new CellarError('MACHINE_MEMORY_SMALL', [boot.kernel, mebibytes(ram.length), mebibytes(kernelEnd + bytes)])
  if (boot.initrd === undefined) {
    if (kernelEnd > low) throw small(0)
    return { start: 0, length: 0 }
  }
  const path = boot.initrd
  try {
    const fd = openSync(path, 'r')
    try {
      const length = fstatSync(fd).size
      const room = Math.ceil(length / PAGE_BYTES) * PAGE_BYTES
      if (kernelEnd + room > endMax) throw new CellarError('MACHINE_INITRD_LARGE', [path, length, endMax - kernelEnd])
      const start = Math.floor((Math.min(low, endMax) - room) / PAGE_BYTES) * PAGE_BYTES
      if (start < kernelEnd) throw small(room + PAGE_BYTES)
      return { start, length: readAll(fd, ram.subarray(start, start + length)) }
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    if (error instanceof CellarError) throw error
    throw new CellarError('MACHINE_INITRD_UNREADABLE', [path, (error as Error).message], { cause: error })
  }
}

function writeCommandLine(ram: Uint8Array, text: string, most: number): void {
  const bytes = new TextEncoder().encode(text)
  if (bytes.length > most) throw new CellarError('MACHINE_COMMAND_LINE_LONG', [bytes.length, most])
  ram.set(bytes, COMMAND_LINE_START)
  ram[COMMAND_LINE_START + bytes.length] = 0
}

// Reads until `to` is full or the file ends: how many bytes.
function readAll(fd: number, to: Uint8Array): number {
  let done = 0
  for (let count; done < to.length; done += count) {
    count = readSync(fd, to, done, to.length - done, null)
    if (count === 0) break
  }
  return done
}

const mebibytes = (bytes: number): string => `${Math.ceil(bytes / (1024 * 1024))} MiB`
const PAGE_BYTES = 4096
/** A distribution's vmlinux with its symbols has less. */
const KERNEL_BYTES_MAX = 1024 * 1024 * 1024
