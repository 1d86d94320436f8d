// snapshot/disk.ts: the files of a snapshot folder: how they are opened, come about and fail.
//
// The folder belongs to a project's processes, one of which may have been taken over, and the host works in it, too. So
// it is flat: there is no folder in it that could lead elsewhere. Files are opened as the files that they are, neither
// through links nor waiting at somebody's pipe; they are made under a new name, and have their own when all of them is
// there. One that is being made is locked, so that whoever finds it knows whether its maker lives.
//
//   HEX.snapshot   a snapshot without its memory (format.ts), by its digest
//   HEX.pack       chunks (packs.ts), by chance; HEX.pack.old while it is being removed (collect.ts)
//   HEX.tmp        what is being written

import type { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import {
  closeSync, constants, fstatSync, mkdirSync, openSync, readdirSync, renameSync, unlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import { assert } from '../base/assert.ts'
import { CellarError } from '../base/errors.ts'
import { lockOpened } from '../sys/flock.ts'
import { flush } from '../sys/flush.ts'
import { must } from '../sys/system_error.ts'
import { readAt, writeAt } from './positioned.ts'

const HEX_BYTES = 32
const TMP = '.tmp'

/** The folder of a store. Its methods throw HOST_DISK_FULL and HOST_STATE_UNUSABLE where they don't say otherwise. */
export class Folder {
  readonly path: string

  /** Makes it, and removes what writers that were killed have left. */
  constructor(path: string) {
    this.path = path
    this.attempt(() => mkdirSync(path, { recursive: true, mode: 0o700 }))
    this.sweep()
  }

  /** Files that end so. */
  files(endings: readonly string[]): string[] {
    return this.attempt(() => readdirSync(this.path)).filter((file) => {
      const [, ending] = NAME.exec(file) ?? []
      return ending !== undefined && endings.includes(ending)
    })
  }

  /** Names of files that end so, without the ending. */
  names(ending: string): string[] { return this.files([ending]).map((file) => file.slice(0, -ending.length)) }

  /** Opens a file to be read; undefined if there is none. What is no file counts as none. */
  open(name: string): { readonly fd: number; readonly size: number } | undefined {
    let fd: number
    try {
      fd = openSync(join(this.path, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOENT' || code === 'ELOOP' || code === 'ENXIO' || code === 'EACCES') return undefined
      throw this.#failed(error)
    }
    const stat = fstatSync(fd)
    if (stat.isFile()) return { fd, size: stat.size }
    closeSync(fd)
    return undefined
  }

  /** All of a file, or undefined if there is none, or it has more than `max` bytes. */
  read(name: string, max: number): Buffer | undefined {
    const file = this.open(name)
    if (file === undefined) return undefined
    try {
      return file.size <= max ? this.attempt(() => readAt(file.fd, 0, file.size)) : undefined
    } finally {
      closeSync(file.fd)
    }
  }

  has(name: string): boolean {
    const file = this.open(name)
    if (file !== undefined) closeSync(file.fd)
    return file !== undefined
  }

  /** When a file was written, in milliseconds since 1970; undefined if there is none. */
  writtenAt(name: string): number | undefined {
    const file = this.open(name)
    if (file === undefined) return undefined
    try {
      return fstatSync(file.fd).mtimeMs
    } finally {
      closeSync(file.fd)
    }
  }

  /** Begins a file. */
  create(): NewFile { return this.attempt(() => new NewFile(this)) }

  /** Gives a file another name; false if it isn't there. */
  rename(from: string, to: string): boolean {
    return this.#unlessGone(() => renameSync(join(this.path, from), join(this.path, to)))
  }

  /** Removes a file; false if it isn't there. */
  remove(name: string): boolean {
    return this.#unlessGone(() => unlinkSync(join(this.path, name)))
  }

  /** Names are on the disk when it resolves. */
  async sync(): Promise<void> {
    const fd = this.attempt(() => openSync(this.path, constants.O_RDONLY | constants.O_DIRECTORY))
    try {
      await this.syncFile(fd)
    } finally {
      closeSync(fd)
    }
  }

  /** What an open file has is on the disk when it resolves. */
  async syncFile(fd: number): Promise<void> {
    try {
      must('fsync', await flush(fd))
    } catch (error) {
      throw this.#failed(error)
    }
  }

  /** Removes files that nobody writes any more. */
  sweep(): void {
    for (const name of this.names(TMP)) {
      const file = this.open(name + TMP)
      if (file === undefined) continue
      try {
        // Where locks can't be had, it stays.
        if (lockOpened(file.fd)) this.remove(name + TMP)
      } catch {
        continue
      } finally {
        closeSync(file.fd)
      }
    }
  }

  /** What fails in `work` is an error of this folder. */
  attempt<T>(work: () => T): T {
    try {
      return work()
    } catch (error) {
      throw this.#failed(error)
    }
  }

  #unlessGone(work: () => void): boolean {
    try {
      work()
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
      throw this.#failed(error)
    }
  }

  // What a failed call of the file system becomes; other errors stay.
  #failed(error: unknown): unknown {
    if (!(error instanceof Error) || !('syscall' in error)) return error
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      return new CellarError('HOST_DISK_FULL', ['keep a snapshot'], { cause: error })
    }
    return new CellarError('HOST_STATE_UNUSABLE', [this.path, error.message], { cause: error })
  }
}

/** A file without a name of its own until it is kept. Dispose it: what wasn't kept is gone then. */
export class NewFile {
  readonly #folder: Folder
  readonly #name: string
  readonly fd: number
  #isOpen = true
  #isKept = false

  /** Throws a system error. */
  constructor(folder: Folder) {
    this.#folder = folder
    for (;;) {
      this.#name = randomBytes(HEX_BYTES / 2).toString('hex') + TMP
      this.fd = openSync(join(folder.path, this.#name),
        constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o444)
      // Who sweeps may have been faster: then it has the lock, or the file is gone.
      if (isHeld(this.fd)) return
      closeSync(this.fd)
    }
  }

  /** Writes all of `bytes` at `at`. */
  write(bytes: Uint8Array, at: number): void {
    this.#folder.attempt(() => writeAt(this.fd, bytes, at))
  }

  /** Nothing more is written. `durable`: what it has is on the disk when it resolves. */
  async finish(durable: boolean): Promise<void> {
    if (durable) await this.#folder.syncFile(this.fd)
  }

  /** Gives it its name; that is on the disk after Folder.sync. */
  keep(name: string): void {
    assert(this.#isOpen && !this.#isKept, 'a file is kept once')
    if (!this.#folder.rename(this.#name, name)) {
      throw new CellarError('HOST_STATE_UNUSABLE', [this.#folder.path, 'a file has vanished while it was written'])
    }
    this.#isKept = true
  }

  [Symbol.dispose](): void {
    if (!this.#isOpen) return
    this.#isOpen = false
    closeSync(this.fd)
    if (!this.#isKept) this.#folder.remove(this.#name)
  }
}

// Names of 16 or 32 bytes in hex; nothing else in the folder is ours.
const NAME = /^(?:[0-9a-f]{32}|[0-9a-f]{64})(\.[a-z.]+)$/

function isHeld(fd: number): boolean {
  try {
    return lockOpened(fd) && fstatSync(fd).nlink > 0
  } catch {
    // Without locks nobody sweeps.
    return true
  }
}
