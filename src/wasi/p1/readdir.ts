// wasi/p1/readdir.ts: the entries of a folder, as many as fit into the guest's buffer.
//
// The buffer is filled to its last byte: an entry that doesn't fit is cut off, and the guest asks again from the cookie
// before it. So `bufused` below the buffer's length means the end of the folder, and only that.

import { ENOTDIR, ESUCCESS } from '../../base/errno.ts'
import { Directory } from '../../services/file/directory.ts'
import * as abi from './abi.ts'
import type { Context } from './context.ts'
import { lacks } from './descriptors.ts'

// dirent: d_next u64 @0 (the cookie after this entry), d_ino u64 @8, d_namlen u32 @16, d_type u8 @20; the name follows.
const DIRENT_BYTES = 24

const dirent = new Uint8Array(DIRENT_BYTES)
const direntView = new DataView(dirent.buffer)

export function fd_readdir(
  context: Context, fd: number, pointer: number, length: number, cookieLo: number, cookieHi: number, out: number,
): number {
  const entry = context.descriptors.get(fd)
  const lacking = lacks(entry, abi.RIGHTS_FD_READDIR)
  if (lacking !== 0) return lacking
  const { descriptor } = entry!
  if (!(descriptor instanceof Directory)) return descriptor.lost ?? ENOTDIR
  const buffer = context.memory.at(pointer, length)
  const usedAt = context.memory.check(out, 4)
  const cookie = (BigInt(cookieHi >>> 0) << 32n) | BigInt(cookieLo >>> 0)
  let used = 0
  const put = (bytes: Uint8Array) => {
    const fits = Math.min(bytes.length, buffer.length - used)
    buffer.set(bytes.subarray(0, fits), used)
    used += fits
  }
  const result = buffer.length === 0 ? 0 : descriptor.readdir(cookie, buffer.length, (next, ino, filetype, name) => {
    direntView.setBigUint64(0, next, true)
    direntView.setBigUint64(8, ino, true)
    direntView.setUint32(16, name.length, true)
    direntView.setUint8(20, filetype)
    put(dirent)
    put(name)
    return used < buffer.length
  })
  if (result < 0) return -result
  context.memory.view.setUint32(usedAt, used, true)
  return ESUCCESS
}
