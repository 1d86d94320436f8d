// virtio/net_checksum.ts: the Internet checksum (RFC 1071) over the pieces of a frame in a guest's memory.
//
// The sum doesn't depend on byte order but for a final swap, so that words are added as they lie in memory, four bytes
// at a time, little-endian as all that Node runs on. Hot path: no allocation.

/** The sum of [offset, offset + length), as 16 bits in memory's order. */
export function sumOf(view: DataView, offset: number, length: number): number {
  let sum = 0
  let at = offset
  const words = offset + length - 3
  // A number holds 2^21 such words exactly; a frame has 2^14.
  for (; at < words; at += 4) sum += view.getUint32(at, true)
  const end = offset + length
  if (end - at >= 2) {
    sum += view.getUint16(at, true)
    at += 2
  }
  if (at < end) sum += view.getUint8(at)
  return fold(sum)
}

/** A sum as 16 bits. */
export function fold(sum: number): number {
  let folded = sum
  while (folded > 0xffff) folded = Math.floor(folded / 0x10000) + folded % 0x10000
  return folded
}

/** A sum of bytes that begin at an odd place of the whole. */
export function swapped(sum: number): number {
  return (sum & 0xff) << 8 | sum >>> 8
}
