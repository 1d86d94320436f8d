// virtio/pieces.ts: parts of a chain as pieces of a list to be read or written (sys/vectors.ts).

import type { Vectors } from '../sys/vectors.ts'
import type { Chain } from './queue.ts'

/** Adds bytes [from, to) of the chain's readable part. */
export function addReadable(vectors: Vectors, chain: Chain, from: number, to: number): void {
  addPart(vectors, chain, 0, chain.readable, from, to)
}

/** Adds bytes [from, to) of the chain's writable part. */
export function addWritable(vectors: Vectors, chain: Chain, from: number, to: number): void {
  addPart(vectors, chain, chain.readable, chain.count, from, to)
}

function addPart(vectors: Vectors, chain: Chain, first: number, end: number, from: number, to: number): void {
  for (let i = first, start = 0; i < end && start < to; i++) {
    const length = chain.lengths[i]!
    const low = Math.max(from, start)
    const high = Math.min(to, start + length)
    if (high > low) vectors.add(chain.offsets[i]! + low - start, high - low)
    start += length
  }
}
