// sys/fallocate.ts: what a disk's file needs and Node hasn't: holes, zeros, and fdatasync under its permission model.
//
// Node's permission model (host/jail_launch.ts) refuses calls that sync by a descriptor; reading and writing by one it
// leaves alone. Calls wait for the disk: they are for threads that may. Elsewhere: fsync for those that may not
// (flush.ts). Numbers over 2^31 become BigInts here, which is all that is allocated.

import { answer, bind } from './libc.ts'

const FALLOC_FL_KEEP_SIZE = 0x01
const FALLOC_FL_PUNCH_HOLE = 0x02
const FALLOC_FL_ZERO_RANGE = 0x10
const SEEK_DATA = 3
const SEEK_HOLE = 4

const native = bind({
  fallocate: { arguments: ['int32', 'int32', 'int64', 'int64'], return: 'int32' },
  fdatasync: { arguments: ['int32'], return: 'int32' },
  lseek: { arguments: ['int32', 'int64', 'int32'], return: 'int64' },
})

/** Gives the room of [position, position + length) back; it reads as zeros. 0 or a negated errno. */
export function punchHole(fd: number, position: number, length: number): number {
  return answer(native.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BigInt(position), BigInt(length)))
}

/** [position, position + length) reads as zeros and keeps its room. 0 or a negated errno. */
export function zeroRange(fd: number, position: number, length: number): number {
  return answer(native.fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, BigInt(position), BigInt(length)))
}

/** What was written is on the disk when this answers: 0, or a negated errno. */
export function fdatasync(fd: number): number {
  return answer(native.fdatasync(fd))
}

/** Where data begins at or after `position`: -ENXIO if none does. */
export function seekData(fd: number, position: number): number {
  return answer(Number(native.lseek(fd, BigInt(position), SEEK_DATA)))
}

/** Where a hole begins at or after `position`; the end of the file is one. */
export function seekHole(fd: number, position: number): number {
  return answer(Number(native.lseek(fd, BigInt(position), SEEK_HOLE)))
}
