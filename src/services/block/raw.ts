// services/block/raw.ts: a disk whose file is its content, byte for byte.
//
// Hot path: no allocation, no closures, numbers and typed arrays only.

import { assert } from '../../base/assert.ts'
import { EROFS } from '../../base/errno.ts'
import { SECTOR_BYTES, type Disk } from './disk.ts'
import type { ImageFile } from './image_file.ts'

/** A range of a disk whose content is in its own file: as data, or known to be zeros whatever lies behind it. */
export type Extent = { readonly position: number; readonly length: number; readonly isZero: boolean }

/** A disk that knows what of it is in its own file. */
export interface ImageDisk extends Disk {
  /** What room is given back by: to discard less writes zeros. For a guest to be told. */
  readonly granularityBytes: number
  /** Ranges in order, none twice. What is in none is the backing file's, or zeros. Flush before. */
  allocated(): Iterable<Extent>
  /** Bytes that its own file takes. */
  sizeOnDisk(): number
}

/** Our caller's duty, in one place: a request is whole sectors, within the disk. */
export function checkRequest(disk: Disk, position: number, length: number): void {
  assert(position >= 0 && length >= 0 && position + length <= disk.sizeBytes, 'a request is within the disk', position)
  assert(position % SECTOR_BYTES === 0 && length % SECTOR_BYTES === 0, 'a request is of whole sectors', length)
}

/** A raw disk, which owns `file`. */
export class RawDisk implements ImageDisk {
  readonly sizeBytes: number
  readonly isReadOnly: boolean
  // A block of the usual file systems.
  readonly granularityBytes = 4096
  readonly #file: ImageFile

  constructor(file: ImageFile, isReadOnly: boolean) {
    this.#file = file
    this.sizeBytes = file.sizeBytes
    this.isReadOnly = isReadOnly
  }

  read(position: number, memory: Uint8Array, offset: number, length: number): number {
    checkRequest(this, position, length)
    return this.#file.read(position, memory, offset, length)
  }

  write(position: number, memory: Uint8Array, offset: number, length: number): number {
    checkRequest(this, position, length)
    return this.isReadOnly ? -EROFS : this.#file.write(position, memory, offset, length)
  }

  flush(): number {
    return this.isReadOnly ? 0 : this.#file.sync()
  }

  discard(position: number, length: number): number {
    return this.writeZeroes(position, length, true)
  }

  writeZeroes(position: number, length: number, mayUnmap: boolean): number {
    checkRequest(this, position, length)
    return this.isReadOnly ? -EROFS : this.#file.zero(position, length, mayUnmap)
  }

  * allocated(): Generator<Extent> {
    for (let from = this.#file.dataFrom(0); from >= 0 && from < this.sizeBytes;) {
      const end = Math.min(this.#file.dataEnd(from), this.sizeBytes)
      // A file system whose answers don't advance has no holes to tell of.
      const length = end > from ? end - from : this.sizeBytes - from
      yield { position: from, length, isZero: false }
      from = this.#file.dataFrom(from + length)
    }
  }

  sizeOnDisk(): number {
    return this.#file.sizeOnDisk()
  }

  close(): number {
    const flushed = this.flush()
    const closed = this.#file.close()
    return flushed < 0 ? flushed : closed
  }
}
