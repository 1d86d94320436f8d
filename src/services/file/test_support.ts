// services/file/test_support.ts: what the tests of this folder share: a host's folder tree, a guest's memory.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe } from 'node:test'
import { EAGAIN } from '../../base/errno.ts'
import { isSupported } from '../../sys/libc.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import type { Directory, OpenHow } from './directory.ts'
import { File } from './file.ts'
import type { Resolver } from './resolve.ts'
import { openVolume } from './volume.ts'

/** A path or a text of a guest. */
export const bytes = (text: string) => new TextEncoder().encode(text)

/** Why the tests of files can't run here, or false. */
export const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

/** A host's folder with the volume `volume` in it, and beside it `outside`. */
export class Tree {
  readonly host = mkdtempSync(join(tmpdir(), 'cellar-file-'))
  readonly resolver: Resolver

  constructor(resolver: Resolver) { this.resolver = resolver }

  path(...names: string[]): string { return join(this.host, ...names) }

  open(name = 'volume', readOnly = false): Directory {
    return openVolume(this.path(name), { readOnly, resolver: this.resolver })
  }

  [Symbol.dispose](): void { rmSync(this.host, { recursive: true, force: true }) }
}

/** Runs `define` for both resolvers: what holds for one holds for the other. */
export function forBothResolvers(what: string, define: (resolver: Resolver) => void): void {
  for (const resolver of ['openat2', 'walk'] as const) {
    describe(`${what}, resolved by ${resolver}`, { skip }, () => { define(resolver) })
  }
}

const READ: OpenHow = {
  read: true, write: false, append: false, create: false, exclusive: false, truncate: false, directory: false,
  follow: true, sync: 'none',
}

/** Opens for reading unless `how` says otherwise. */
export function open(folder: Directory, path: string, how: Partial<OpenHow> = {}): File | Directory | number {
  return folder.open(bytes(path), { ...READ, ...how })
}

/** The same, for what must be a file. */
export function openFile(folder: Directory, path: string, how: Partial<OpenHow> = {}): File {
  const opened = open(folder, path, how)
  if (!(opened instanceof File)) throw new Error(`Opening "${path}" gave ${String(opened)}`)
  return opened
}

/** The errno of opening; whatever was opened is closed and given as its kind. */
export function opening(folder: Directory, path: string, how: Partial<OpenHow> = {}): number | 'file' | 'folder' {
  const opened = open(folder, path, how)
  if (typeof opened === 'number') return -opened
  opened.close()
  return opened instanceof File ? 'file' : 'folder'
}

/** A guest's memory of one page and a list of ranges in it. */
export class Guest {
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 32, maximum: 64 }))
  readonly iovecs = new Iovecs()

  /** Ranges of these lengths, one after another from 4096 on. */
  ranges(...lengths: number[]): Iovecs {
    let at = 4096
    lengths.forEach((length, i) => {
      this.memory.setU32(i * 8, at)
      this.memory.setU32(i * 8 + 4, length)
      at += length
    })
    if (!this.iovecs.load(this.memory, 0, lengths.length)) throw new Error('too many ranges')
    return this.iovecs
  }

  /** Ranges that hold `text`, cut at `cuts`. */
  text(text: string, ...cuts: number[]): Iovecs {
    const data = bytes(text)
    this.memory.bytes.set(data, 4096)
    const ends = [...cuts, data.length]
    return this.ranges(...ends.map((end, i) => end - (ends[i - 1] ?? 0)))
  }

  /** What lies where ranges() begins. */
  seen(length: number): string {
    return new TextDecoder().decode(this.memory.bytes.subarray(4096, 4096 + length))
  }
}

/** For `using`: closes it at the end of the test. */
export function disposable<T extends Directory | File>(it: T): { it: T } & Disposable {
  return { it, [Symbol.dispose]() { it.close() } }
}

/** Tries until it isn't -EAGAIN, waiting as a vCPU does. */
export async function waited(file: File, attempt: () => number): Promise<number> {
  for (let i = 0; i < 100; i++) {
    const result = attempt()
    if (result !== -EAGAIN) return result
    await new Promise<void>((resolve) => { file.awaitReadable(resolve) })
  }
  throw new Error('Still -EAGAIN after 100 tries')
}
