// sys/punch.ts: pages of a mapped memory given back to the system: they take no room until they are touched again.
//
// RAM that is mapped shared from a memfd loses them in the file, too (MADV_REMOVE punches a hole), and they read as
// zero afterwards. RAM that is mapped privately, as a fork's is, loses what it had changed (MADV_DONTNEED), and they
// read as the file has them. To a guest that gave them up both are the same: it expects nothing of them.

import { answer, bind } from './libc.ts'

const MADV_DONTNEED = 4
const MADV_REMOVE = 9
const PAGE_BYTES = 4096

const native = bind({ madvise: { arguments: ['pointer', 'uint64', 'int32'], return: 'int32' } })

/**
 * Gives back the pages of [offset, offset + length) of the mapping at `address`, which the caller has mapped, and has
 * proved the range to be in. Parts of pages are kept. How many bytes went, or a negated errno.
 */
export function punch(address: bigint, offset: number, length: number): number {
  const first = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES
  const size = Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES - first
  if (size <= 0) return 0
  const at = address + BigInt(first)
  // SAFETY: whole pages inside of a range that the caller mapped, and that nobody but the guest, who gave it up, needs.
  let result = answer(native.madvise(at, BigInt(size), MADV_REMOVE))
  // SAFETY: as above.
  if (result < 0) result = answer(native.madvise(at, BigInt(size), MADV_DONTNEED))
  return result < 0 ? result : size
}
