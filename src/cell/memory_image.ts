// cell/memory_image.ts: what a cell's memory holds, copied out of it and into another.
//
// A page (64 KiB) that is all zero isn't kept. An image is never written again, so that any number of cells, on any
// thread, may be made from one: a fork. Bytes are the least of the costs: touching memory for the first time takes five
// times as long as copying it (sys/memory_map.ts), which is why there are three ways.
//   copied   out of the memory, and into each other one: what is kept, or goes elsewhere. Large pages where they help.
//   lent     to cells that are made while this one is stopped: no image at all, they copy from its memory (`lend`).
//   mapped   for many: the image becomes a file in memory, whose pages a cell has until it writes to them (`share`).
// Where the system can't do the last two, all are copied.

import { closeSync } from 'node:fs'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import {
  canMap, copyLent, discard, fileOf, lend as lendBytes, mapFile, preferHugePages, type Lent,
} from '../sys/memory_map.ts'
import type { MemoryImage } from './state.ts'

/** An image in another thread's memory; or in a file of this process. Neither leaves the process. */
type NearImage = MemoryImage & { readonly lent?: Lent; readonly file?: number }

const lending = new WeakSet<WebAssembly.Memory>()

/** The next image of a memory has nothing of it copied: who takes it sees to it that it stays as it is. */
export function lend(memory: WebAssembly.Memory): void {
  if (canMap()) lending.add(memory)
}

/**
 * Copies what the memory holds now. Its cell doesn't run. `spare`: of an image that nobody needs any more, to be
 * written over if it is large enough: memory that was touched before costs a fifth.
 */
export function takeImage(memory: WebAssembly.Memory, spare?: SharedArrayBuffer): MemoryImage {
  const from = new Uint8Array(memory.buffer)
  const pages = from.length / WASM_PAGE_BYTES
  const present = presentOf(from, pages)
  if (lending.delete(memory)) {
    const image: NearImage = { pages, present, bytes: new SharedArrayBuffer(0), lent: lendBytes(from)! }
    return image
  }
  const fits = spare !== undefined && spare.byteLength >= present.length * WASM_PAGE_BYTES
  const to = fits ? new Uint8Array(spare) : bytesFor(present.length)
  forRuns(present, (page, at, length) => to.set(pagesOf(from, page, length), at * WASM_PAGE_BYTES))
  return { pages, present, bytes: to.buffer }
}

/**
 * Makes a memory hold what the image does, whatever it holds, growing it to the image's size. Throws RangeError if it
 * can't grow so far.
 */
export function putImage(image: MemoryImage, memory: WebAssembly.Memory): void {
  const { pages, present, lent, file }: NearImage = image
  // What instantiation has written is within what it began with: beyond, a new memory is zero.
  const written = memory.buffer.byteLength / WASM_PAGE_BYTES
  if (written < pages) memory.grow(pages - written)
  const to = new Uint8Array(memory.buffer)
  clearAbsent(present, to, written)
  if (file === undefined) advise(present, to)
  const from = new Uint8Array(image.bytes)
  forRuns(present, (page, at, length) => {
    const target = pagesOf(to, page, length)
    if (lent !== undefined) copyLent(lent, page * WASM_PAGE_BYTES, target)
    else if (file === undefined || length < MAPPED_PAGES_MIN || mapFile(file, at * WASM_PAGE_BYTES, target) !== 0) {
      target.set(pagesOf(from, at, length))
    }
  })
}

/** An image for many cells of this process: each shares what it hasn't written to. To be dropped when all have it. */
export function share(image: MemoryImage): MemoryImage {
  if (!canMap() || image.present.length < MAPPED_PAGES_MIN || runsOf(image.present) > RUNS_MAX) return image
  const file = fileOf(new Uint8Array(image.bytes))
  return file < 0 ? image : { ...image, file } as NearImage
}

/** Nobody makes a cell of this image any more: its memory is given back now, and not when V8 finds out. */
export function drop(image: MemoryImage): void {
  const { bytes, file }: NearImage = image
  if (file !== undefined) closeSync(file)
  if (bytes.byteLength >= HUGE_PAGES * WASM_PAGE_BYTES) discard(new Uint8Array(bytes))
}

/** A cell is over, and nobody copies from its memory: it is given back now, and not when V8 finds out. */
export function giveBack({ buffer }: WebAssembly.Memory): void {
  if (buffer.byteLength >= HUGE_PAGES * WASM_PAGE_BYTES) discard(new Uint8Array(buffer))
}

/** WebAssembly pages in a large page of the processor. */
const HUGE_PAGES = 32
/** Fewer neighbours are copied: a mapping is something that the kernel has only so many of. */
const MAPPED_PAGES_MIN = 8
const RUNS_MAX = 64

// Large ones in memory that lies as WebAssembly's does, at multiples of large pages, and is ours as a whole.
function bytesFor(pages: number): Uint8Array<SharedArrayBuffer> {
  if (pages < HUGE_PAGES || !canMap()) return new Uint8Array(new SharedArrayBuffer(pages * WASM_PAGE_BYTES))
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
  const bytes = new Uint8Array(memory.buffer as unknown as SharedArrayBuffer)
  preferHugePages(bytes)
  return bytes
}

function presentOf(bytes: Uint8Array<ArrayBuffer>, pages: number): Uint32Array<ArrayBuffer> {
  const found = new Uint32Array(pages)
  let count = 0
  for (let page = 0; page < pages; page++) if (!isZero(bytes, page)) found[count++] = page
  return found.slice(0, count)
}

function clearAbsent(present: Uint32Array, to: Uint8Array<ArrayBuffer>, written: number): void {
  let next = 0
  for (let page = 0; page < written; page++) {
    if (present[next] === page) next++
    else if (!isZero(to, page)) pagesOf(to, page, 1).fill(0)
  }
}

// From the first to the last large page that would be at least half full, if most between are: the others would be
// memory that nobody asked for.
function advise(present: Uint32Array, to: Uint8Array<ArrayBuffer>): void {
  if (present.length < HUGE_PAGES) return
  let [first, last, dense] = [-1, -1, 0]
  for (let i = 0; i < present.length;) {
    const large = Math.floor(present[i]! / HUGE_PAGES)
    let count = 0
    for (; i < present.length && Math.floor(present[i]! / HUGE_PAGES) === large; i++) count++
    if (count < HUGE_PAGES / 2) continue
    if (first < 0) first = large
    last = large
    dense++
  }
  if (dense * 2 > last - first + 1) {
    const end = Math.min((last + 1) * HUGE_PAGES * WASM_PAGE_BYTES, to.length)
    preferHugePages(to.subarray(first * HUGE_PAGES * WASM_PAGE_BYTES, end))
  }
}

// Calls `each` for neighbours at once: their first page, its place among those present, how many they are.
function forRuns(present: Uint32Array, each: (page: number, at: number, length: number) => void): void {
  for (let at = 0; at < present.length;) {
    let length = 1
    while (present[at + length] === present[at]! + length) length++
    each(present[at]!, at, length)
    at += length
  }
}

function runsOf(present: Uint32Array): number {
  let count = 0
  forRuns(present, () => { count++ })
  return count
}

function pagesOf<T extends ArrayBufferLike>(bytes: Uint8Array<T>, page: number, length: number): Uint8Array<T> {
  return bytes.subarray(page * WASM_PAGE_BYTES, (page + length) * WASM_PAGE_BYTES)
}

const ZERO = Buffer.alloc(WASM_PAGE_BYTES)

// The C library's comparison: 20 GB/s, three times what a loop of ours does.
function isZero(bytes: Uint8Array<ArrayBuffer>, page: number): boolean {
  return ZERO.equals(pagesOf(bytes, page, 1))
}
