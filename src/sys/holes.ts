// sys/holes.ts: where a sparse file has data (lseek(2), SEEK_DATA, SEEK_HOLE): what was never written isn't looked at.

import { ENXIO } from '../base/errno.ts'
import { seekData, seekHole } from './fallocate.ts'

/**
 * Ranges of `fd` that may hold something, ascending; all between them reads as zero. All of it where the file system
 * can't tell. The descriptor's own offset moves.
 */
export function* dataRanges(fd: number, sizeBytes: number):
Generator<{ readonly start: number; readonly end: number }> {
  for (let at = 0; at < sizeBytes;) {
    const start = seekData(fd, at)
    if (start === -ENXIO) return
    if (start < 0) return void (yield { start: at, end: sizeBytes })
    const hole = seekHole(fd, start)
    const end = Math.min(hole < 0 ? sizeBytes : hole, sizeBytes)
    if (start >= end) return
    yield { start, end }
    at = end
  }
}
