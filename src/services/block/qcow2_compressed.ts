// services/block/qcow2_compressed.ts: a compressed cluster of a qcow2 image, made whole again.
//
// Nothing hot: who writes to a compressed cluster gets a plain one, and compressed images are backing files. What is
// behind the compressed bytes belongs to the next cluster: deflate says itself where it ends, a zstd frame is measured.

import { constants, inflateRawSync, zstdDecompressSync } from 'node:zlib'

/** 8 MiB: QEMU's level has windows of 2 MiB, so that more is somebody who wants our memory. */
const ZSTD_WINDOW_LOG_MAX = 23
const ZSTD_MAGIC = 0xfd2fb528

/** The cluster of `clusterBytes` in `packed`, or undefined if there is none of exactly that size. */
export function unpackCluster(packed: Uint8Array, how: 'zlib' | 'zstd', clusterBytes: number): Buffer | undefined {
  try {
    const cluster = how === 'zlib' ? inflateRawSync(packed, { maxOutputLength: clusterBytes }) :
      zstdDecompressSync(packed.subarray(0, zstdFrameBytes(packed)), {
        maxOutputLength: clusterBytes, params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX },
      })
    return cluster.length === clusterBytes ? cluster : undefined
  } catch {
    return undefined
  }
}

/** Bytes of the zstd frame at the start (RFC 8878 §3.1.1); as many as there are if it isn't whole. */
function zstdFrameBytes(packed: Uint8Array): number {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.length)
  if (packed.length < 6 || view.getUint32(0, true) !== ZSTD_MAGIC) return packed.length
  const descriptor = view.getUint8(4)
  const isSingle = (descriptor & 0x20) !== 0
  const sizeFlag = descriptor >> 6
  let at = 5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]! + [isSingle ? 1 : 0, 2, 4, 8][sizeFlag]!
  while (at + 3 <= packed.length) {
    const block = view.getUint16(at, true) | view.getUint8(at + 2) << 16
    const isRepeated = (block >> 1 & 3) === 1
    at += 3 + (isRepeated ? 1 : block >> 3)
    if ((block & 1) !== 0) return at + ((descriptor & 4) !== 0 ? 4 : 0)
  }
  return packed.length
}
