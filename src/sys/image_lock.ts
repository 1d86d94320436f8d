// sys/image_lock.ts: locks on disk images that QEMU understands, too.
//
// Locks of open file descriptions (fcntl(2), F_OFD_SETLK): the kernel takes them back when the last descriptor of the
// description is closed. The bytes are those of QEMU's block/file-posix.c, so that a machine of ours, one of QEMU's and
// qemu-img keep out of each other's way: who uses a permission holds a read lock on byte 100 + its number, who lets
// nobody else use it one on byte 200 + its number. Both are taken first and looked at then: of two that come at once
// perhaps neither gets in, but never both.

import { EACCES, EAGAIN } from '../base/errno.ts'
import { Scratch, answer, bind } from './libc.ts'

const F_OFD_GETLK = 36
const F_OFD_SETLK = 37
const F_RDLCK = 0
const F_WRLCK = 1
const F_UNLCK = 2

const USED = 100
const UNSHARED = 200
// Numbers of QEMU's permissions: BLK_PERM_CONSISTENT_READ, BLK_PERM_WRITE, BLK_PERM_RESIZE.
const READ = 0
const WRITE = 1
const RESIZE = 3

const CHANGES = [WRITE, RESIZE] as const
const ALL = [READ, WRITE, RESIZE] as const

const native = bind({ fcntl: { arguments: ['int32', 'int32', 'pointer'], return: 'int32' } })

// struct flock { short l_type; short l_whence; off_t l_start; off_t l_len; pid_t l_pid; }
const flock = new Scratch(32)

function call(fd: number, command: number, type: number, byte: number): number {
  flock.bytes.fill(0)
  flock.view.setInt16(0, type, true)
  flock.view.setBigInt64(8, BigInt(byte), true)
  flock.view.setBigInt64(16, 1n, true)
  // SAFETY: one struct flock that outlives the call.
  return answer(native.fcntl(fd, command, flock.address))
}

/**
 * Marks the open image `fd` as one that is written (`exclusive`) or read from now on, until it is closed. Many may read
 * what nobody writes. 1; 0 if somebody else forbids it; or a negated errno, where the file system has no locks.
 */
export function lockImage(fd: number, exclusive: boolean): number {
  const used = exclusive ? ALL : [READ]
  for (const byte of [...used.map((one) => USED + one), ...CHANGES.map((one) => UNSHARED + one)]) {
    const result = call(fd, F_OFD_SETLK, F_RDLCK, byte)
    if (result < 0) return unlock(fd, result === -EAGAIN || result === -EACCES ? 0 : result)
  }
  for (const byte of [...used.map((one) => UNSHARED + one), ...CHANGES.map((one) => USED + one)]) {
    const result = call(fd, F_OFD_GETLK, F_WRLCK, byte)
    if (result < 0) return unlock(fd, result)
    if (flock.view.getInt16(0, true) !== F_UNLCK) return unlock(fd, 0)
  }
  return 1
}

// A descriptor that was given to us stays open when the image isn't ours.
function unlock(fd: number, result: number): number {
  for (const one of ALL) {
    call(fd, F_OFD_SETLK, F_UNLCK, USED + one)
    call(fd, F_OFD_SETLK, F_UNLCK, UNSHARED + one)
  }
  return result
}
