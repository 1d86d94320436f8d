// services/block/qcow2_entry.ts: what an entry of an L2 table says, from its two halves.
//
// Hot path: no allocation, no closures, numbers and typed arrays only.

/** In the upper half: nobody else points there, so that it may be written in place. */
export const COPIED = 0x80000000
/** The cluster is compressed. */
const COMPRESSED = 0x40000000
/** In the lower half: it reads as zeros, whatever is there. */
export const ZERO = 1

/** What is at a place of a disk. */
export const UNALLOCATED = 0
export const ZEROS = 1
export const PLAIN = 2
export const PACKED = 3
/** The image is inconsistent here. */
export const WRONG = 4

/** What an entry is, of an image of this version. */
export function kindOf(high: number, low: number, version: number): number {
  if ((high & COMPRESSED) !== 0) return (high & COPIED) === 0 ? PACKED : WRONG
  if ((high & 0x3f000000) !== 0 || (low & 0x1fe) !== 0) return WRONG
  if ((low & ZERO) !== 0) return version === 3 ? ZEROS : WRONG
  return (high & 0x00ffffff) === 0 && low === 0 ? UNALLOCATED : PLAIN
}

/** Where an entry of L1 or L2 points. */
export function offsetOf(high: number, low: number): number {
  return (high & 0x00ffffff) * 2 ** 32 + low - low % 512
}

// Of the 62 bits of a compressed cluster's entry the upper ones are its sectors beside the first.
const countBits = (clusterBits: number): number => clusterBits - 8

/** Where the bytes of a compressed cluster begin. */
export function compressedOffset(high: number, low: number, clusterBits: number): number {
  return (high & (1 << 30 - countBits(clusterBits)) - 1) * 2 ** 32 + low
}

/** How many there are at most. */
export function compressedBytes(high: number, low: number, clusterBits: number): number {
  return (((high & 0x3fffffff) >>> 30 - countBits(clusterBits)) + 1) * 512 - low % 512
}
