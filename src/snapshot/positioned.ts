// snapshot/positioned.ts: reading and writing at a place of an open file, all of it: the kernel may do less at a time.

import { Buffer } from 'node:buffer'
import { readSync, writeSync } from 'node:fs'

/** `length` bytes of a file from `at` on; fewer where it ends. */
export function readAt(fd: number, at: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  let done = 0
  for (let got; done < length && (got = readSync(fd, bytes, done, length - done, at + done)) > 0;) done += got
  return bytes.subarray(0, done)
}

/** Writes all of `bytes` into a file at `at`. Throws a system error. */
export function writeAt(fd: number, bytes: Uint8Array, at: number): void {
  for (let done = 0; done < bytes.length;) done += writeSync(fd, bytes, done, bytes.length - done, at + done)
}
