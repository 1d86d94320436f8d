// machine/pages.ts: a stopped machine's RAM and disks as pages, and back.
//
// RAM is a memfd, or a private mapping of one; a disk is its file. What was never written is a hole there, and isn't
// looked at: a machine with 16 GiB that uses 100 MB costs 100 MB. Pages that are all zero are left out. Elsewhere: the
// order of pages (state.ts).

import { closeSync, ftruncateSync, openSync, readSync, writeSync, fstatSync, constants } from 'node:fs'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { dataRanges } from '../sys/holes.ts'
import { mapRam, unmapRam } from '../sys/guest_ram.ts'
import type { MemoryImage } from '../cell/state.ts'

/**
 * Where pages are: RAM, or a file. `mapped`: the bytes, where the descriptor doesn't have them; `ranges`: where there
 * may be something, else all of it.
 */
export type PageSource = { readonly fd: number; readonly sizeBytes: number; readonly mapped?: Uint8Array | undefined
  readonly ranges?: readonly Range[] | undefined }
type Range = { readonly start: number; readonly end: number }

const ZERO = Buffer.alloc(WASM_PAGE_BYTES)

/** Copies what the sources hold now, one after the other, each from a new page on. */
export function takePages(sources: readonly PageSource[], spare?: SharedArrayBuffer): MemoryImage {
  const found: { page: number; source: PageSource; offset: number }[] = []
  let base = 0
  for (const source of sources) {
    let last = -1
    for (const { start, end } of rangesOf(source)) {
      for (let page = Math.floor(start / WASM_PAGE_BYTES); page * WASM_PAGE_BYTES < end; page++) {
        if (page > last) found.push({ page: base + page, source, offset: page * WASM_PAGE_BYTES })
        last = Math.max(last, page)
      }
    }
    base += Math.ceil(source.sizeBytes / WASM_PAGE_BYTES)
  }
  const needed = found.length * WASM_PAGE_BYTES
  const bytes = spare !== undefined && spare.byteLength >= needed ? spare : new SharedArrayBuffer(needed)
  const present = new Uint32Array(found.length)
  const to = Buffer.from(bytes)
  let count = 0
  for (const { page, source, offset } of found) {
    const at = count * WASM_PAGE_BYTES
    readPage(source, offset, to, at)
    if (to.compare(ZERO, 0, WASM_PAGE_BYTES, at, at + WASM_PAGE_BYTES) === 0) continue
    present[count++] = page
  }
  return { pages: base, present: present.slice(0, count), bytes }
}

/** Writes what the image has of [first, first + …) pages to an empty file of `sizeBytes`. Throws a system error. */
export function putPages(image: MemoryImage, first: number, { fd, sizeBytes }: PageSource): void {
  ftruncateSync(fd, sizeBytes)
  const from = Buffer.from(image.bytes)
  const pages = Math.ceil(sizeBytes / WASM_PAGE_BYTES)
  for (const [slot, page] of image.present.entries()) {
    if (page < first || page >= first + pages) continue
    const offset = (page - first) * WASM_PAGE_BYTES
    const length = Math.min(WASM_PAGE_BYTES, sizeBytes - offset)
    for (let done = 0; done < length;) {
      done += writeSync(fd, from, slot * WASM_PAGE_BYTES + done, length - done, offset + done)
    }
  }
}

/** What a source holds now, in memory: to be made pages of while its machine runs on. */
export function heldCopy(source: PageSource): PageSource {
  const ranges = [...rangesOf(source)]
  const mapped = Buffer.from(new SharedArrayBuffer(source.sizeBytes))
  for (const { start, end } of ranges) readRange(source, start, end, mapped)
  return { fd: source.fd, sizeBytes: source.sizeBytes, mapped, ranges }
}

/** Copies the pages (4 KiB, as bits) that were written since into what was copied: it is as the source is now. */
export function copyWritten(source: PageSource, written: Uint8Array, copy: PageSource): PageSource {
  const { buffer, byteOffset, length } = copy.mapped!
  const ranges = writtenRanges(written, source.sizeBytes)
  for (const { start, end } of ranges) readRange(source, start, end, Buffer.from(buffer, byteOffset, length))
  return { ...copy, ranges: merged([...copy.ranges!, ...ranges]) }
}

/** Copies the pages (4 KiB, as bits) of RAM that were written since into the memfd that it was copied into. */
export function copyWrittenRam(source: PageSource, written: Uint8Array, toFd: number): void {
  writeRanges(source, writtenRanges(written, source.sizeBytes), toFd)
}

/** Copies RAM into another memfd of the same size: what a fork's children begin with. */
export function copyRam(source: PageSource, toFd: number): void {
  ftruncateSync(toFd, source.sizeBytes)
  writeRanges(source, rangesOf(source), toFd)
}

function writeRanges(source: PageSource, ranges: Iterable<Range>, toFd: number): void {
  const mapped = source.mapped === undefined ? mapRam(source.fd, source.sizeBytes, false) : undefined
  const bytes = source.mapped ?? mapped!.bytes
  try {
    for (const { start, end } of ranges) {
      for (let at = start; at < end;) at += writeSync(toFd, bytes, at, Math.min(end - at, COPY_BYTES), at)
    }
  } finally {
    if (mapped !== undefined) unmapRam(mapped)
  }
}

/** Opens a file that is one of ours, and no link that somebody has put in its place: its descriptor and size. */
export function openPages(path: string, flags: number): PageSource {
  const fd = openSync(path, flags | constants.O_NOFOLLOW, 0o600)
  return { fd, sizeBytes: fstatSync(fd).size }
}

/** Closes what openPages has opened. */
export function closePages({ fd }: PageSource): void {
  closeSync(fd)
}

const COPY_BYTES = 4 * 1024 * 1024
/** A bit of what was written stands for so much. */
const WRITTEN_BYTES = 4096

// A private mapping has pages that the memfd hasn't: those are in the mapping only.
function rangesOf({ fd, sizeBytes, mapped, ranges }: PageSource): Iterable<Range> {
  return ranges ?? (mapped === undefined ? dataRanges(fd, sizeBytes) : [{ start: 0, end: sizeBytes }])
}

// Runs of pages whose bits are set.
function writtenRanges(written: Uint8Array, sizeBytes: number): Range[] {
  const ranges: Range[] = []
  written.forEach((bits, i) => {
    for (let bit = 0; bits >>> bit !== 0; bit++) {
      const start = (i * 8 + bit) * WRITTEN_BYTES
      if ((bits >>> bit & 1) !== 0 && start < sizeBytes) ranges.push({ start, end: start + WRITTEN_BYTES })
    }
  })
  return merged(ranges)
}

// Ascending, and apart from each other.
function merged(ranges: Range[]): Range[] {
  const all: { start: number; end: number }[] = []
  for (const { start, end } of ranges.sort((a, b) => a.start - b.start)) {
    const last = all.at(-1)
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end)
    else all.push({ start, end })
  }
  return all
}

function readRange({ fd, mapped }: PageSource, start: number, end: number, to: Buffer): void {
  if (mapped !== undefined) return void to.set(mapped.subarray(start, end), start)
  for (let at = start; at < end;) {
    const read = readSync(fd, to, at, Math.min(end - at, COPY_BYTES), at)
    if (read === 0) return void to.fill(0, at, end)
    at += read
  }
}

function readPage({ fd, sizeBytes, mapped }: PageSource, offset: number, to: Buffer, at: number): void {
  const length = Math.min(WASM_PAGE_BYTES, sizeBytes - offset)
  if (length < WASM_PAGE_BYTES) to.fill(0, at, at + WASM_PAGE_BYTES)
  if (mapped !== undefined) return void to.set(mapped.subarray(offset, offset + length), at)
  for (let done = 0; done < length;) {
    const read = readSync(fd, to, at + done, length - done, offset + done)
    if (read === 0) return void to.fill(0, at + done, at + WASM_PAGE_BYTES)
    done += read
  }
}
