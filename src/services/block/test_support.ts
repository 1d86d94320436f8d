// services/block/test_support.ts: disks to test with: files in memory that remember, chance by seed, and qemu-img.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isSupported } from '../../sys/libc.ts'
import type { Disk } from './disk.ts'
import type { ImageFile } from './image_file.ts'

/** Why tests that need what only Linux has are skipped here, or false. */
export const noLinux = isSupported() ? false : 'needs Linux and a Node with FFI'

/** Why tests against QEMU's tools are skipped here, or false. */
export const noQemu = noLinux !== false ? noLinux :
  spawnSync('qemu-img', ['--version']).status === 0 ? false : 'needs qemu-img (Debian: qemu-utils)'

/** Runs a program that must succeed: what it prints. */
export function run(program: string, ...args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: status ${status}\n${stdout}${stderr}`)
  return stdout
}

/** What qemu-img finds in an image: nothing may be corrupt; leaks are counted. */
export function leaksOf(path: string): number {
  const args = ['check', '--output=json', '-f', 'qcow2', path]
  const { stdout, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8' })
  const found = JSON.parse(stdout) as { corruptions?: number; leaks?: number; 'check-errors': number }
  if ((found.corruptions ?? 0) > 0 || found['check-errors'] > 0) throw new Error(`${stdout}${stderr}`)
  return found.leaks ?? 0
}

/** A folder that is gone after `use`. */
export function inFolder<T>(use: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-block-'))
  try {
    return use(folder)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Numbers by seed. */
export function chance(seed: number): (below: number) => number {
  let state = seed >>> 0 || 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

/** Something that was done to a file. */
export type Change = { readonly position: number; readonly bytes: Uint8Array } | 'sync'

/** A file in memory that remembers what was done to it. `failAfter` changes more, all answer `failWith`. */
export class MemoryFile implements ImageFile {
  readonly changes: Change[] = []
  failAfter = Infinity
  failWith = 0
  // With room behind it, so that a file that grows isn't copied for each write.
  #room: Uint8Array
  #bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.#room = Uint8Array.from(bytes)
    this.#bytes = this.#room
  }

  /** What is in it; its buffer is another one when it has grown. */
  get bytes(): Uint8Array { return this.#bytes }
  get sizeBytes(): number { return this.#bytes.length }

  read(position: number, memory: Uint8Array, offset: number, length: number): number {
    memory.fill(0, offset, offset + length)
    memory.set(this.#bytes.subarray(position, position + length), offset)
    return 0
  }

  write(position: number, memory: Uint8Array, offset: number, length: number): number {
    if (--this.failAfter < 0) return this.failWith
    const bytes = memory.slice(offset, offset + length)
    this.changes.push({ position, bytes })
    if (position + length > this.#room.length) {
      const larger = new Uint8Array(2 * (position + length))
      larger.set(this.#bytes)
      this.#room = larger
    }
    this.#bytes = this.#room.subarray(0, Math.max(this.#bytes.length, position + length))
    this.#bytes.set(bytes, position)
    return 0
  }

  sync(): number {
    if (--this.failAfter < 0) return this.failWith
    this.changes.push('sync')
    return 0
  }

  zero(position: number, length: number): number {
    const room = Math.max(0, Math.min(length, this.#bytes.length - position))
    return room === 0 ? 0 : this.write(position, new Uint8Array(room), 0, room)
  }

  giveBack(position: number, length: number): void {
    this.zero(position, length)
  }

  sizeOnDisk(): number { return this.#bytes.length }
  dataFrom(position: number): number { return position < this.#bytes.length ? position : -1 }
  dataEnd(): number { return this.#bytes.length }
  close(): number { return 0 }
}

/** A sequence of requests, as a guest makes them, to a disk and to a model of it. `done` is told of each. */
export function work(
  disk: Disk, model: Uint8Array, seed: number, requests: number, done: (what: 'flush' | 'change') => void = () => {},
): void {
  const random = chance(seed)
  const sectors = disk.sizeBytes / 512
  const bytes = new Uint8Array(1 << 20)
  for (let i = 0; i < requests; i++) {
    // Half of it near the start, so that requests meet.
    const first = random(2) === 0 ? random(Math.min(sectors, 1024)) : random(sectors)
    const longest = Math.min(sectors - first, [1, 8, 300, 2048][random(4)]!)
    const length = (1 + random(longest)) * 512
    const position = first * 512
    const what = random(12)
    let result: number
    if (what < 6) {
      bytes.fill(1 + random(255), 0, length)
      for (let at = 0; at < length; at += 512) bytes[at] = random(256)
      result = disk.write(position, bytes, 0, length)
      model.set(bytes.subarray(0, length), position)
    } else if (what < 8) {
      result = what === 6 ? disk.discard(position, length) : disk.writeZeroes(position, length, random(2) === 0)
      model.fill(0, position, position + length)
    } else if (what < 9) {
      result = disk.flush()
    } else {
      result = disk.read(position, bytes, 0, length)
      if (Buffer.compare(bytes.subarray(0, length), model.subarray(position, position + length)) !== 0) {
        throw new Error(`seed ${seed}, request ${i}: [${position}, +${length}) reads wrong`)
      }
    }
    if (result !== 0) throw new Error(`seed ${seed}, request ${i}: ${result}`)
    done(what === 8 ? 'flush' : 'change')
  }
}

/** All of a disk. */
export function contentOf(disk: Disk): Uint8Array {
  const bytes = new Uint8Array(disk.sizeBytes)
  const result = disk.read(0, bytes, 0, bytes.length)
  if (result !== 0) throw new Error(`read: ${result}`)
  return bytes
}
