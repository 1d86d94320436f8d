// wasi/p1/test_support.ts: a cell's context without a cell, for tests of hypercalls on files and of what is saved.

import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isSupported } from '../../sys/libc.ts'
import { InputBuffer, nullConsole, OutputBuffer } from '../../services/console/console.ts'
import type { Descriptor } from '../../services/descriptor.ts'
import { newQuota } from '../../services/file/quota.ts'
import { openVolume } from '../../services/file/volume.ts'
import { GuestFault, GuestMemory } from '../../services/guest_memory.ts'
import { Iovecs } from '../../services/iovecs.ts'
import { PortListener } from '../../services/net/port_listener.ts'
import type { SavedDescriptor, SavedIs } from '../../services/saved.ts'
import { EFAULT, ESUCCESS } from '../../base/errno.ts'
import * as abi from './abi.ts'
import { Context, WAIT, type Hypercall } from './context.ts'
import { Descriptors } from './descriptors.ts'
import * as fd from './fd.ts'
import { fd_filestat_get } from './filestat.ts'
import { path_create_directory, path_open, path_rename, path_unlink_file } from './path.ts'
import { fd_readdir } from './readdir.ts'
import { restoreDescriptors, saveDescriptors } from './saved_descriptors.ts'

/** Why these tests can't run here, or false. */
export const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

/** The number of the granted folder. */
export const ROOT = 0

/** Where results go, and where guest pointers stop being good. */
export const OUT = 64
export const BUFFER = 8192
export const MEMORY_BYTES = 65_536

/** A guest with one granted folder, which is removed afterwards. */
export class Guest {
  readonly host = mkdtempSync(join(tmpdir(), 'cellar-p1-'))
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  readonly descriptors = new Descriptors()
  readonly context: Context
  #at = 1024

  constructor(grant: { readOnly?: boolean; base?: number; inheriting?: number; sizeBytes?: number } = {}) {
    const quota = grant.sizeBytes === undefined ? undefined : newQuota(grant.sizeBytes, 0)
    this.descriptors.add({
      descriptor: openVolume(this.host, { readOnly: grant.readOnly ?? false, quota }),
      rightsBase: grant.base ?? abi.RIGHTS_DIRECTORY,
      rightsInheriting: grant.inheriting ?? abi.RIGHTS_DIRECTORY | abi.RIGHTS_FILE,
      flags: 0,
    })
    const unused = undefined as never
    this.context = new Context({
      memory: this.memory, descriptors: this.descriptors, args: [], env: [], clock: unused, entropy: unused,
      iovecs: new Iovecs(),
    })
  }

  /** Puts `text` into memory: [pointer, length], as paths are given. */
  text(text: string): [number, number] {
    const bytes = new TextEncoder().encode(text)
    const at = this.#at
    this.memory.bytes.set(bytes, at)
    this.#at += bytes.length
    return [at, bytes.length]
  }

  path(...names: string[]): string { return join(this.host, ...names) }

  [Symbol.dispose](): void {
    this.descriptors.closeAll()
    rmSync(this.host, { recursive: true, force: true })
  }
}

/** A cell's context with only what a test gives it, and MEMORY_BYTES of memory. */
export function contextOf(parts: Partial<ConstructorParameters<typeof Context>[0]> = {}): Context {
  const unused = undefined as never
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  return new Context({
    memory, descriptors: new Descriptors(), args: [], env: [], clock: unused, entropy: unused, iovecs: new Iovecs(),
    ...parts,
  })
}

/** What the gate does: tries, and parks the vCPU as long as the answer is WAIT. */
export async function called(context: Context, hypercall: Hypercall, ...args: number[]): Promise<number> {
  for (;;) {
    const answer = hypercall(context, ...args)
    if (answer !== WAIT) return answer
    await context.parked()
  }
}

/** What the dispatcher makes of a hypercall: a GuestFault is EFAULT. */
export function answered(call: () => number): number {
  try {
    return call()
  } catch (error) {
    if (error instanceof GuestFault) return EFAULT
    throw error
  }
}

export const SECRET = 'what the guest was not granted'
/** Numbers of the granted folders and of the listening socket (Host.granted). */
export const [A, B, LISTENER] = [3, 4, 5] as const
/** Where a Caller has its ranges and paths. */
export const LIST = 1024
const PATH_AT = 2048
const PATH_TO = 3072
const ALL = abi.RIGHTS_DIRECTORY | abi.RIGHTS_FILE

/** How the first volume is granted. */
type Launch = { readonly readOnly?: boolean; readonly quota?: SharedArrayBuffer }

/** A host's folders `a` and `b`, granted to guests; beside them a secret, to which links in `a` lead. */
export class Host {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-saved-'))
  readonly #tables: Descriptors[] = []

  constructor() {
    for (const name of ['a/sub', 'b/sub', 'outside']) mkdirSync(this.path(name), { recursive: true })
    writeFileSync(this.path('outside/secret'), SECRET)
    writeFileSync(this.path('a/file'), 'the first volume')
    symlinkSync('../outside', this.path('a/up'))
    symlinkSync(this.path('outside'), this.path('a/absolute'))
    for (const volume of ['a', 'b']) {
      symlinkSync('sub', this.path(volume, 'link'))
      writeFileSync(this.path(volume, 'sub/file'), `in ${volume}`)
    }
  }

  path(...names: string[]): string { return join(this.folder, ...names) }

  /** What a guest has from its start: streams, two folders, a listening socket. */
  granted({ readOnly = false, quota }: Launch = {}): Descriptors {
    const table = new Descriptors()
    this.#tables.push(table)
    const add = (descriptor: Descriptor, rightsBase: number, rightsInheriting = 0, preopen?: string): void => {
      table.add({ descriptor, rightsBase, rightsInheriting, flags: 0,
        ...(preopen === undefined ? {} : { preopen: Buffer.from(preopen) }) })
    }
    for (const stream of [new InputBuffer(), new OutputBuffer(100), nullConsole]) add(stream, abi.RIGHTS_STREAM)
    add(openVolume(this.path('a'), { readOnly, quota }), abi.RIGHTS_DIRECTORY, ALL, '/a')
    add(openVolume(this.path('b'), { readOnly: false }), abi.RIGHTS_DIRECTORY, ALL, '/b')
    add(new PortListener([]), abi.RIGHTS_LISTENER, abi.RIGHTS_SOCKET)
    return table
  }

  guest(launch?: Launch): Caller { return new Caller(this.granted(launch)) }

  /** Saved, written down, read, and restored in a new launch. */
  async restored(guest: Caller, launch?: Launch): Promise<Caller> {
    const table = await restoreDescriptors(written(guest), this.granted(launch))
    this.#tables.push(table)
    return new Caller(table)
  }

  [Symbol.dispose](): void {
    for (const table of this.#tables) table.closeAll()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** A guest by what it calls. Answers are results, or negated errnos. */
export class Caller {
  readonly descriptors: Descriptors
  readonly #context

  constructor(descriptors: Descriptors) {
    this.descriptors = descriptors
    this.#context = contextOf({ descriptors })
  }

  open(from: number, path: string, { rights = abi.RIGHTS_FILE, oflags = 0, flags = 0, follow = true } = {}): number {
    const at = this.#put(PATH_AT, path)
    return this.#result(path_open(this.#context, from, follow ? 1 : 0, ...at, oflags, rights, 0, ALL, 0, flags, OUT))
  }

  openDirectory(from: number, path: string): number {
    return this.open(from, path, { rights: abi.RIGHTS_DIRECTORY, oflags: abi.OFLAGS_DIRECTORY })
  }

  unlink(from: number, path: string): number {
    return 0 - path_unlink_file(this.#context, from, ...this.#put(PATH_AT, path))
  }

  mkdir(from: number, path: string): number {
    return 0 - path_create_directory(this.#context, from, ...this.#put(PATH_AT, path))
  }

  rename(from: number, path: string, to: string): number {
    return 0 - path_rename(this.#context, from, ...this.#put(PATH_AT, path), from, ...this.#put(PATH_TO, to))
  }

  async read(number: number, length = 4096): Promise<string | number> {
    this.#list(length)
    const count = this.#result(await called(this.#context, fd.fd_read, number, LIST, 1, OUT))
    return count < 0 ? count : Buffer.from(this.#bytes(count)).toString()
  }

  write(number: number, text: string): number {
    this.#context.memory.bytes.set(Buffer.from(text), BUFFER)
    this.#list(text.length)
    return this.#result(fd.fd_write(this.#context, number, LIST, 1, OUT))
  }

  seek(number: number, offset: number, whence = 0): number {
    return this.#result(fd.fd_seek(this.#context, number, offset, 0, whence, OUT))
  }

  /** Type, flags and rights. */
  fdstat(number: number): string | number {
    const errno = fd.fd_fdstat_get(this.#context, number, BUFFER)
    return errno === ESUCCESS ? Buffer.from(this.#bytes(24)).toString('hex') : -errno
  }

  ino(number: number): bigint | number {
    const errno = fd_filestat_get(this.#context, number, BUFFER)
    return errno === ESUCCESS ? this.#context.memory.view.getBigUint64(BUFFER + 8, true) : -errno
  }

  /** The listing from a cookie on, or an errno. */
  readdir(number: number, cookie = 0n): string | number {
    const [low, high] = [Number(cookie & 0xffffffffn) | 0, Number(cookie >> 32n) | 0]
    const count = this.#result(fd_readdir(this.#context, number, BUFFER, 8192, low, high, OUT))
    return count < 0 ? count : Buffer.from(this.#bytes(count)).toString('latin1')
  }

  context(): ReturnType<typeof contextOf> { return this.#context }

  #bytes(count: number): Uint8Array { return this.#context.memory.bytes.slice(BUFFER, BUFFER + count) }
  #result(errno: number): number { return errno === ESUCCESS ? this.#context.memory.view.getUint32(OUT, true) : -errno }

  #put(at: number, text: string): [number, number] {
    const bytes = Buffer.from(text)
    this.#context.memory.bytes.set(bytes, at)
    return [at, bytes.length]
  }

  #list(length: number): void {
    this.#context.memory.setU32(LIST, BUFFER)
    this.#context.memory.setU32(LIST + 4, length)
  }
}

/** What is saved of it, as a file of a snapshot would give it back. */
export function written(guest: Caller): SavedDescriptor[] {
  return JSON.parse(JSON.stringify(saveDescriptors(guest.descriptors)))
}

/** What is saved of one of its numbers. */
export function kindOf(guest: Caller, number: number): SavedIs {
  return saveDescriptors(guest.descriptors).find((one) => one.fd === number)!.is
}

/** All inodes beneath a folder of the host, as guests see them. */
export function inodes(folder: string): Set<bigint> {
  const paths = readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((path) => join(folder, path))
  return new Set([folder, ...paths].map((path) => statSync(path, { bigint: true, throwIfNoEntry: false })?.ino ?? 0n))
}
