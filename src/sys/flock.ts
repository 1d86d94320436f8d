// sys/flock.ts: locks that the kernel takes back when their process ends, however it ends (flock(2)).

import { closeSync, constants, ftruncateSync, openSync, writeSync } from 'node:fs'
import { EAGAIN } from '../base/errno.ts'
import { answer, bind } from './libc.ts'
import { must } from './system_error.ts'

const LOCK_EX = 2
const LOCK_NB = 4

const native = bind({ flock: { arguments: ['int32', 'int32'], return: 'int32' } })

/** Locks an open file until its descriptor is closed; false if somebody else has it. Throws a system error. */
export function lockOpened(fd: number): boolean {
  const locked = answer(native.flock(fd, LOCK_EX | LOCK_NB))
  if (locked === -EAGAIN) return false
  must('flock', locked)
  return true
}

/**
 * Locks the file at `path`, which is made if it isn't there, and writes our process's id into it. undefined if somebody
 * else has it. The lock lasts until `fd` is closed; no process that we start inherits it. Throws a system error.
 */
export function lockFile(path: string): { fd: number } | undefined {
  // Node opens everything with O_CLOEXEC. Not truncated at once: it may be another's, with that one's id.
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
  try {
    if (!lockOpened(fd)) {
      closeSync(fd)
      return undefined
    }
    ftruncateSync(fd)
    writeSync(fd, `${process.pid}\n`)
  } catch (error) {
    closeSync(fd)
    throw error
  }
  return { fd }
}
