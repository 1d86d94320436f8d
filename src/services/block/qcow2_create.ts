// services/block/qcow2_create.ts: a new qcow2 image: a header, and tables of nothing.
//
// Version 3, clusters that are counted with 16 bits. Its tables are made as those of any image are (qcow2_rebuild.ts):
// a crash leaves a whole image, or one without tables, which nobody opens.

import { assert } from '../../base/assert.ts'
import { ERRNO_NAMES } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import type { ImageFile } from './image_file.ts'
import { CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, newHeader, REFCOUNT_TABLE_BYTES_MAX, type Header } from './qcow2_header.ts'
import { rebuild } from './qcow2_rebuild.ts'

const CLUSTER_BYTES = 64 * 1024
const REFCOUNT_ORDER = 4

/** Makes an image in an empty file. Throws CellarError. */
export function createQcow2(file: ImageFile, path: string, { sizeBytes, backing, clusterBytes = CLUSTER_BYTES }: {
  readonly sizeBytes: number
  readonly backing?: { readonly path: string; readonly format: 'raw' | 'qcow2' } | undefined
  readonly clusterBytes?: number | undefined
}): void {
  const clusterBits = Math.log2(clusterBytes)
  assert(Number.isInteger(clusterBits) && clusterBits >= CLUSTER_BITS_MIN && clusterBits <= CLUSTER_BITS_MAX,
    'clusters have a size that qcow2 has', clusterBytes)
  const tables = Math.ceil(sizeBytes / (clusterBytes * clusterBytes / 8))
  if (tables * 8 > 32 * 2 ** 20) throw new CellarError('DISK_TOO_LARGE', [path, sizeBytes])
  const first = newHeader({ clusterBits,
    backing: backing === undefined ? undefined : { name: backing.path, format: backing.format } })
  if (first === undefined) throw new CellarError('DISK_UNWRITABLE', [path, 'the path of its backing file is too long'])
  const written = file.write(0, first, 0, first.length)
  if (written < 0) throw new CellarError('DISK_UNWRITABLE', [path, ERRNO_NAMES[-written] ?? 'EIO'])
  const header: Header = { version: 3, clusterBits, sizeBytes, l1Size: tables, l1Offset: 0, refcountOffset: 0,
    refcountClusters: 0, refcountOrder: REFCOUNT_ORDER, snapshots: 0, snapshotsOffset: 0, compression: 'zlib',
    isDirty: false, isCorrupt: false, hasAutoclear: false, backing: undefined }
  // Room for all of the disk and its tables, so that the refcount table never has to grow.
  const clusters = Math.min(Math.ceil(sizeBytes / clusterBytes * 1.01) + 2 * tables + 64,
    REFCOUNT_TABLE_BYTES_MAX / 8 * (clusterBytes * 8 / 2 ** REFCOUNT_ORDER))
  rebuild(file, header, { path, l1: new Uint8Array(tables * 8), sizeBytes, snapshots: [], clusters })
}
