// services/file/copy_content.ts: copies what is in one open file to another, which is empty.
//
// If the file system can share blocks between files, nothing is copied. Else holes stay holes. No more is copied than
// the length that was asked for, even if somebody makes the source longer meanwhile.

import { read, readSync, write, writeSync } from 'node:fs'
import { ECANCELED, EIO, errnoOf } from '../../base/errno.ts'
import { COPY_AT_ONCE_BYTES_MAX, COPY_STEP_BYTES } from '../../base/limits.ts'
import { dataRanges } from '../../sys/holes.ts'
import * as sys from '../../sys/linux_files.ts'

/** Copies `length` bytes between the host's descriptors while the thread waits: 0 or a negated errno. */
export function copyNow(from: number, to: number, length: number): number {
  if (sys.reflink(to, from) === 0) return 0
  const buffer = new Uint8Array(Math.min(length, COPY_AT_ONCE_BYTES_MAX))
  try {
    for (const { start, end } of dataRanges(from, length)) {
      for (let at = start; at < end;) {
        const got = readSync(from, buffer, 0, Math.min(buffer.length, end - at), at)
        if (got === 0) break
        for (let done = 0; done < got;) done += writeSync(to, buffer, done, got - done, at + done)
        at += got
      }
    }
  } catch (error) {
    return -errnoOf(error as NodeJS.ErrnoException)
  }
  return sys.ftruncate(to, length)
}

/** The same on the thread pool. -ECANCELED if `signal` ends it. The descriptors must stay open until it resolves. */
export async function copyLater(from: number, to: number, length: number, signal?: AbortSignal): Promise<number> {
  if (sys.reflink(to, from) === 0) return 0
  const buffer = new Uint8Array(Math.min(length, COPY_STEP_BYTES))
  for (const { start, end } of dataRanges(from, length)) {
    for (let at = start; at < end;) {
      if (signal?.aborted === true) return -ECANCELED
      const got = await reading(from, buffer, Math.min(buffer.length, end - at), at)
      if (got < 0) return got
      if (got === 0) break
      const failed = await writeAll(to, buffer.subarray(0, got), at)
      if (failed < 0) return failed
      at += got
    }
  }
  return sys.ftruncate(to, length)
}

/** Writes all of `bytes` to the host's descriptor `fd` at `offset`, on the thread pool: 0 or a negated errno. */
export async function writeAll(fd: number, bytes: Uint8Array, offset: number): Promise<number> {
  for (let done = 0; done < bytes.length;) {
    const result = await new Promise<number>((resolve) => {
      write(fd, bytes, done, bytes.length - done, offset + done,
        (error, count) => { resolve(error === null ? count : -errnoOf(error)) })
    })
    if (result < 0) return result
    if (result === 0) return -EIO
    done += result
  }
  return 0
}

/** Reads up to `length` bytes at `offset`, on the thread pool: how many, or a negated errno. */
export function reading(fd: number, to: Uint8Array, length: number, offset: number): Promise<number> {
  return new Promise((resolve) => {
    read(fd, to, 0, length, offset, (error, count) => { resolve(error === null ? count : -errnoOf(error)) })
  })
}
