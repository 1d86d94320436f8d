// bench/block.ts: a disk's requests on raw and qcow2 files, against the plain calls on a file of the same size.
//
// 4 KiB at random places, 128 KiB one after another, of 256 MiB that are written and in the page cache: what is
// measured is what we add to the system calls. `block.qcow2.new`: 4 KiB at places where nothing was, a flush for each
// 256, against the same on a sparse file. `block.qcow2.overlay`: reading what is in the backing file.

import { closeSync, fdatasyncSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createDisk, openDisk } from '../src/services/block/open_disk.ts'
import type { Disk } from '../src/services/block/disk.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const SIZE = 256 * 2 ** 20
const ROUNDS = 7
const SMALL = { bytes: 4096, requests: 20_000 }
const LARGE = { bytes: 128 * 1024, requests: 2048 }
const FLUSH_EVERY = 256

/** What is measured: one request at a place. */
type Request = (position: number, length: number) => void

const memory = new Uint8Array(LARGE.bytes).fill(7)

export function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    return Promise.resolve(figures(folder))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function figures(folder: string): Figure[] {
  const plain = openSync(join(folder, 'plain'), 'w+')
  for (let at = 0; at < SIZE; at += memory.length) writeSync(plain, memory, 0, memory.length, at)
  const [raw, qcow2] = [made(folder, 'raw'), made(folder, 'qcow2')]
  createDisk(join(folder, 'overlay'), { format: 'qcow2', sizeBytes: SIZE, backing: { path: 'raw', format: 'raw' } })
  const found: Figure[] = []
  try {
    const reading: Request = (position, length) => { readSync(plain, memory, 0, length, position) }
    const writing: Request = (position, length) => { writeSync(plain, memory, 0, length, position) }
    for (const [name, disk] of [['raw', raw], ['qcow2', qcow2]] as const) {
      const read: Request = (position, length) => must(disk.read(position, memory, 0, length))
      const write: Request = (position, length) => must(disk.write(position, memory, 0, length))
      found.push(figure(`block.${name}.read_4k`, read, reading, randomly), figure(`block.${name}.write_4k`, write,
        writing, randomly), figure(`block.${name}.read_128k`, read, reading, inTurn),
      figure(`block.${name}.write_128k`, write, writing, inTurn))
    }
    must(raw.close())
    const overlay = openDisk(join(folder, 'overlay'), 'qcow2', { readOnly: true, backingFolders: [folder] })
    found.push(figure('block.qcow2.overlay', (position, length) => must(overlay.read(position, memory, 0, length)),
      reading, randomly), fresh(folder))
    must(overlay.close())
    must(qcow2.close())
  } finally {
    closeSync(plain)
  }
  return found
}

function made(folder: string, format: 'raw' | 'qcow2'): Disk {
  const path = join(folder, format)
  createDisk(path, { format, sizeBytes: SIZE })
  const disk = openDisk(path, format, { readOnly: false, backingFolders: [] })
  for (let at = 0; at < SIZE; at += memory.length) must(disk.write(at, memory, 0, memory.length))
  must(disk.flush())
  return disk
}

function must(result: number): void {
  if (result !== 0) throw new Error(`A disk answers ${result}`)
}

// Steps that meet all of 65,536 places of 4 KiB, far from each other.
function randomly(request: Request): number {
  for (let i = 0, at = 1; i < SMALL.requests; i++) {
    at = (at * 25_173 + 13_849) % (SIZE / SMALL.bytes)
    request(at * SMALL.bytes, SMALL.bytes)
  }
  return SMALL.requests
}

function inTurn(request: Request): number {
  for (let i = 0; i < LARGE.requests; i++) request(i * LARGE.bytes % SIZE, LARGE.bytes)
  return LARGE.requests
}

function figure(name: string, ours: Request, plain: Request, all: (request: Request) => number): Figure {
  const times: [number[], number[]] = [[], []]
  for (let round = -1; round < ROUNDS; round++) {
    for (const [i, request] of [plain, ours].entries()) {
      const begun = process.hrtime.bigint()
      const requests = all(request)
      if (round >= 0) times[i]!.push(Number(process.hrtime.bigint() - begun) / requests)
    }
  }
  return { name, value: percentile(times[1], 0.5), unit: 'ns, p50', baseline: percentile(times[0], 0.5),
    baselineOf: name.includes('write') ? 'fs.writeSync' : 'fs.readSync' }
}

// Each round has a disk of its own: where something was written once, nothing is new.
function fresh(folder: string): Figure {
  const times: [number[], number[]] = [[], []]
  for (let round = -1; round < 3; round++) {
    const path = join(folder, `fresh${round}`)
    createDisk(path, { format: 'qcow2', sizeBytes: SIZE })
    const disk = openDisk(path, 'qcow2', { readOnly: false, backingFolders: [] })
    const file = openSync(join(folder, `sparse${round}`), 'w')
    ftruncateSync(file, SIZE)
    let requests = 0
    const flushing = (request: Request, flush: () => void): Request => (position, length) => {
      request(position, length)
      if (++requests % FLUSH_EVERY === 0) flush()
    }
    const ours = flushing((position, length) => must(disk.write(position, memory, 0, length)), () => must(disk.flush()))
    const plain = flushing((position, length) => { writeSync(file, memory, 0, length, position) },
      () => fdatasyncSync(file))
    for (const [i, request] of [plain, ours].entries()) {
      const begun = performance.now()
      for (let at = 0; at < 4096; at++) request(at * 37 % 4096 * 65_536, SMALL.bytes)
      if (round >= 0) times[i]!.push((performance.now() - begun) * 1e6 / 4096)
    }
    must(disk.close())
    closeSync(file)
  }
  return { name: 'block.qcow2.new', value: percentile(times[1], 0.5), unit: 'ns, p50',
    baseline: percentile(times[0], 0.5), baselineOf: 'fs.writeSync into a sparse file, fdatasync as often' }
}
