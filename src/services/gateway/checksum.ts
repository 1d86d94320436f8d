// services/gateway/checksum.ts: the Internet checksum (RFC 1071).
//
// Hot path: no allocation. The sum doesn't depend on the order of bytes in a machine's words but for a final swap
// (RFC 1071 §2.B), so that words are added as the machine has them: little-endian, as all that Node runs on.

import type { Slab } from './slab.ts'

/** The one's complement sum of [from, to) in network order, 16 bits, not inverted. An odd last byte is padded by 0. */
export function sumOf({ bytes, words }: Slab, from: number, to: number): number {
  let sum = 0
  let low = 0
  let high = 0
  let at = from
  for (; at < to && (at & 3) !== 0; at++) sum += bytes[at]! << ((at & 1) << 3)
  const end = to >> 2
  for (let i = at >> 2; i < end; i++) {
    const word = words[i]!
    low += word & 0xffff
    high += word >>> 16
  }
  for (at = Math.max(at, end << 2); at < to; at++) sum += bytes[at]! << ((at & 1) << 3)
  const folded = fold(fold(sum + low) + fold(high))
  // Words were taken at even offsets of the slab: a range that begins at an odd one has its bytes swapped already.
  return (from & 1) !== 0 ? folded : (folded & 0xff) << 8 | folded >>> 8
}

/** A sum of 16-bit words, made 16 bits again. */
export function fold(sum: number): number {
  const once = (sum & 0xffff) + (sum >>> 16)
  return (once & 0xffff) + (once >>> 16)
}

/** The sum of the pseudo header that TCP and UDP checksum with their own (RFC 9293 §3.1). */
export function pseudoSum(source: number, destination: number, protocol: number, size: number): number {
  return (source >>> 16) + (source & 0xffff) + (destination >>> 16) + (destination & 0xffff) + protocol + size
}
