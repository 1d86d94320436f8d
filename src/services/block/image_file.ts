// services/block/image_file.ts: the file that a disk lies in, as its format sees it.
//
// Hot path: no allocation, no closures, numbers and typed arrays only.
//
// Calls are whole or fail: 0 or a negated errno, never an exception. What is beyond the end reads as zeros, and writing
// there makes the file longer, with a hole before it if need be. A sync that failed may have lost what it was for, and
// the kernel tells of that once only: from then on every sync fails. Crash tests put another one in its place
// (test_support.ts).

import { closeSync, fstatSync, readSync, writeSync } from 'node:fs'
import { EIO, ENXIO, errnoOf } from '../../base/errno.ts'
import { fdatasync, punchHole, seekData, seekHole, zeroRange } from '../../sys/fallocate.ts'

/** Bytes of one system call: lengths are signed 32-bit numbers to Node. */
const CALL_BYTES_MAX = 1 << 30

/** What is written where the kernel can't make zeros of itself. */
const ZEROS = new Uint8Array(64 * 1024)

/** A file that one disk owns. */
export interface ImageFile {
  /** Where it ends, which only its owner changes. */
  readonly sizeBytes: number
  read(position: number, memory: Uint8Array, offset: number, length: number): number
  write(position: number, memory: Uint8Array, offset: number, length: number): number
  /** What was written is on the disk when this answers 0. */
  sync(): number
  /** Zeroes; the room is given back if `unmap` and if the file system can. Doesn't make the file longer. */
  zero(position: number, length: number, unmap: boolean): number
  /** What is there is no longer needed: its room is given back if that can be done, and then it reads as zeros. */
  giveBack(position: number, length: number): void
  /** Bytes that it takes of the disk it lies on. */
  sizeOnDisk(): number
  /** Where data begins at or after `position`, or -1; and where it ends. */
  dataFrom(position: number): number
  dataEnd(position: number): number
  close(): number
}

/** The file behind a descriptor, which it owns. */
export class DescriptorFile implements ImageFile {
  readonly #fd: number
  #sizeBytes: number
  #failed = 0

  constructor(fd: number) {
    this.#fd = fd
    this.#sizeBytes = fstatSync(fd).size
  }

  get sizeBytes(): number { return this.#sizeBytes }

  read(position: number, memory: Uint8Array, offset: number, length: number): number {
    const end = offset + length
    try {
      while (offset < end) {
        const done = readSync(this.#fd, memory, offset, Math.min(end - offset, CALL_BYTES_MAX), position)
        if (done === 0) {
          memory.fill(0, offset, end)
          return 0
        }
        offset += done
        position += done
      }
      return 0
    } catch (error) {
      return -errnoOf(error)
    }
  }

  write(position: number, memory: Uint8Array, offset: number, length: number): number {
    const end = offset + length
    try {
      while (offset < end) {
        const done = writeSync(this.#fd, memory, offset, Math.min(end - offset, CALL_BYTES_MAX), position)
        if (done === 0) return -EIO
        offset += done
        position += done
        if (position > this.#sizeBytes) this.#sizeBytes = position
      }
      return 0
    } catch (error) {
      return -errnoOf(error)
    }
  }

  sync(): number {
    if (this.#failed === 0) this.#failed = fdatasync(this.#fd)
    return this.#failed
  }

  zero(position: number, length: number, unmap: boolean): number {
    length = Math.min(length, this.#sizeBytes - position)
    if (length <= 0) return 0
    const result = unmap ? punchHole(this.#fd, position, length) : zeroRange(this.#fd, position, length)
    return result === 0 ? 0 : writeZeros(this, position, length)
  }

  giveBack(position: number, length: number): void {
    punchHole(this.#fd, position, length)
  }

  sizeOnDisk(): number {
    return fstatSync(this.#fd).blocks * 512
  }

  dataFrom(position: number): number {
    if (position >= this.#sizeBytes) return -1
    const found = seekData(this.#fd, position)
    if (found === -ENXIO) return -1
    return found < 0 ? position : found
  }

  dataEnd(position: number): number {
    const found = seekHole(this.#fd, position)
    return found < 0 ? this.#sizeBytes : found
  }

  close(): number {
    try {
      closeSync(this.#fd)
      return 0
    } catch (error) {
      return -errnoOf(error)
    }
  }
}

/** Writes zeros, whatever the file system can do. */
export function writeZeros(file: ImageFile, position: number, length: number): number {
  for (let done = 0; done < length; done += ZEROS.length) {
    const result = file.write(position + done, ZEROS, 0, Math.min(ZEROS.length, length - done))
    if (result < 0) return result
  }
  return 0
}
