// sys/holes.ts: where a sparse file has data (lseek(2), SEEK_DATA, SEEK_HOLE): what was never written isn't looked at.

import { ENXIO } from '../base/errno.ts'
import { answer, bind } from './libc.ts'

const SEEK_DATA = 3
const SEEK_HOLE = 4

const native = bind({ lseek: { arguments: ['int32', 'int64', 'int32'], return: 'int64' } })

/**
 * Ranges of `fd` that may hold something, ascending; all between them reads as zero. All of it where the file system
 * can't tell. The descriptor's own offset moves.
 */
export function* dataRanges(fd: number, sizeBytes: number):
Generator<{ readonly start: number; readonly end: number }> {
  for (let at = 0; at < sizeBytes;) {
    const start = seek(fd, at, SEEK_DATA)
    if (start === -ENXIO) return
    if (start < 0) return void (yield { start: at, end: sizeBytes })
    const hole = seek(fd, start, SEEK_HOLE)
    const end = Math.min(hole < 0 ? sizeBytes : hole, sizeBytes)
    if (start >= end) return
    yield { start, end }
    at = end
  }
}

function seek(fd: number, offset: number, whence: number): number {
  const result = Number(native.lseek(fd, BigInt(offset), whence))
  return result < 0 ? answer(-1) : result
}
