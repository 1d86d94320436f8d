// services/block/qcow2_header.ts: the header of a qcow2 image, versions 2 and 3 (QEMU's docs/interop/qcow2.txt).
//
// All that says where the tables are lies in the first sector, which a disk writes whole or not at all: so one write
// of it moves an image from one state to another (qcow2_rebuild.ts). Every number here is an allegation of whoever made
// the file. What is refused: tables that aren't inside the file, sizes over the limits below, and features that we
// don't know and that change what the bytes mean.

import { CellarError } from '../../base/errors.ts'
import { SECTOR_BYTES } from './disk.ts'
import type { ImageFile } from './image_file.ts'

const QCOW2_MAGIC = 0x514649fb

// Where fields lie in the header: big-endian.
const BACKING_OFFSET = 8
const BACKING_SIZE = 16
const CLUSTER_BITS = 20
const SIZE = 24
const CRYPT_METHOD = 32
const L1_SIZE = 36
const L1_OFFSET = 40
const REFCOUNT_OFFSET = 48
const REFCOUNT_CLUSTERS = 56
const SNAPSHOTS = 60
const SNAPSHOTS_OFFSET = 64
const INCOMPATIBLE = 72
const AUTOCLEAR = 88
const REFCOUNT_ORDER = 96
const HEADER_LENGTH = 100
const COMPRESSION = 104
const V2_BYTES = 72
const V3_BYTES = 104

// incompatible_features
const DIRTY = 1
const CORRUPT = 2
const COMPRESSION_TYPE = 8
const REFUSED = [[4, 'an external data file'], [16, 'extended L2 entries']] as const

const EXTENSION_END = 0
const EXTENSION_BACKING_FORMAT = 0xe2792aca

/** As QEMU has them: 512 bytes to 2 MiB. */
export const CLUSTER_BITS_MIN = 9
export const CLUSTER_BITS_MAX = 21
/** The largest disk: L1 and L2 tables of clusters of 64 KiB have 1 GiB then. */
export const DISK_BYTES_MAX = 64 * 2 ** 40
/** As QEMU has them: the largest L1 and refcount tables. */
const L1_BYTES_MAX = 32 * 2 ** 20
export const REFCOUNT_TABLE_BYTES_MAX = 8 * 2 ** 20
/** Snapshots of one image. QEMU takes 65,536 of them; nobody has a thousand. */
const DISK_SNAPSHOTS_MAX = 1024
const BACKING_NAME_BYTES_MAX = 1023

/** A header that was checked. Offsets and sizes in bytes. */
export type Header = {
  readonly version: 2 | 3
  readonly clusterBits: number
  readonly sizeBytes: number
  /** Entries of the L1 table. */
  readonly l1Size: number
  readonly l1Offset: number
  readonly refcountOffset: number
  readonly refcountClusters: number
  /** A refcount has 2^order bits. */
  readonly refcountOrder: number
  readonly snapshots: number
  readonly snapshotsOffset: number
  readonly compression: 'zlib' | 'zstd'
  /** Refcounts may be wrong: whoever wrote it last didn't close it. */
  readonly isDirty: boolean
  readonly isCorrupt: boolean
  readonly hasAutoclear: boolean
  readonly backing: { readonly name: string; readonly format: string } | undefined
}

/** What a rebuilt image has elsewhere than before. */
export type Moved = Pick<Header,
  'sizeBytes' | 'l1Size' | 'l1Offset' | 'refcountOffset' | 'refcountClusters' | 'snapshots' | 'snapshotsOffset'>

/** Reads and checks the header. Throws CellarError. */
export function readHeader(file: ImageFile, path: string): Header {
  const sector = new Uint8Array(SECTOR_BYTES)
  const result = file.read(0, sector, 0, SECTOR_BYTES)
  if (result < 0) throw new CellarError('DISK_UNREADABLE', [path, 'its header can\'t be read'])
  const view = new DataView(sector.buffer)
  const damaged = (why: string): CellarError => new CellarError('DISK_DAMAGED', [path, why])
  if (view.getUint32(0) !== QCOW2_MAGIC) throw damaged('it doesn\'t begin as a qcow2 image does')
  const version = view.getUint32(4)
  if (version !== 2 && version !== 3) throw new CellarError('DISK_UNSUPPORTED', [path, `qcow2 version ${version}`])
  const clusterBits = view.getUint32(CLUSTER_BITS)
  if (clusterBits < CLUSTER_BITS_MIN || clusterBits > CLUSTER_BITS_MAX) {
    throw damaged(`its clusters have 2^${clusterBits} bytes`)
  }
  const header: Header = {
    version, clusterBits, sizeBytes: offsetAt(view, SIZE), l1Size: view.getUint32(L1_SIZE),
    l1Offset: offsetAt(view, L1_OFFSET), refcountOffset: offsetAt(view, REFCOUNT_OFFSET),
    refcountClusters: view.getUint32(REFCOUNT_CLUSTERS), snapshots: view.getUint32(SNAPSHOTS),
    snapshotsOffset: offsetAt(view, SNAPSHOTS_OFFSET), ...features(view, version, path),
    backing: backingOf(file, view, version, clusterBits, path),
  }
  check(header, file.sizeBytes, damaged)
  if (header.sizeBytes % SECTOR_BYTES !== 0) {
    throw new CellarError('DISK_SIZE_UNALIGNED', [path, SECTOR_BYTES, header.sizeBytes])
  }
  if (header.sizeBytes > DISK_BYTES_MAX) throw new CellarError('DISK_TOO_LARGE', [path, header.sizeBytes])
  if (header.snapshots > DISK_SNAPSHOTS_MAX) {
    throw new CellarError('DISK_UNSUPPORTED', [path, `${header.snapshots} snapshots`])
  }
  return header
}

/** A field of 64 bits; over 2^53 it isn't exact, and larger than any file that there is. */
function offsetAt(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4)
}

function features(view: DataView, version: number, path: string):
  Pick<Header, 'refcountOrder' | 'compression' | 'isDirty' | 'isCorrupt' | 'hasAutoclear'> {
  const unsupported = (what: string): CellarError => new CellarError('DISK_UNSUPPORTED', [path, what])
  const crypt = view.getUint32(CRYPT_METHOD)
  if (crypt !== 0) throw unsupported(crypt === 2 ? 'LUKS encryption' : 'encryption')
  if (version === 2) {
    return { refcountOrder: 4, compression: 'zlib', isDirty: false, isCorrupt: false, hasAutoclear: false }
  }
  const high = view.getUint32(INCOMPATIBLE)
  const low = view.getUint32(INCOMPATIBLE + 4)
  for (const [bit, what] of REFUSED) if ((low & bit) !== 0) throw unsupported(what)
  const unknown = low & ~(DIRTY | CORRUPT | COMPRESSION_TYPE)
  if (high !== 0 || unknown !== 0) {
    throw unsupported(`feature bit ${unknown !== 0 ? 31 - Math.clz32(unknown) : 63 - Math.clz32(high)}`)
  }
  const length = view.getUint32(HEADER_LENGTH)
  const type = (low & COMPRESSION_TYPE) !== 0 && length > COMPRESSION ? view.getUint8(COMPRESSION) : 0
  if (type > 1) throw unsupported(`compression type ${type}`)
  return {
    refcountOrder: view.getUint32(REFCOUNT_ORDER), compression: type === 1 ? 'zstd' : 'zlib',
    isDirty: (low & DIRTY) !== 0, isCorrupt: (low & CORRUPT) !== 0,
    hasAutoclear: view.getUint32(AUTOCLEAR) !== 0 || view.getUint32(AUTOCLEAR + 4) !== 0,
  }
}

function check(header: Header, fileBytes: number, damaged: (why: string) => CellarError): void {
  const cluster = 2 ** header.clusterBits
  const inside = (offset: number, bytes: number): boolean =>
    offset % cluster === 0 && offset >= cluster && offset + bytes <= fileBytes
  const l1Needed = Math.ceil(header.sizeBytes / (cluster * (cluster / 8)))
  if (header.refcountOrder > 6) throw damaged(`its refcounts have 2^${header.refcountOrder} bits`)
  if (header.l1Size * 8 > L1_BYTES_MAX || header.l1Size < l1Needed) {
    throw damaged(`its L1 table has ${header.l1Size} entries`)
  }
  if (header.l1Size > 0 && !inside(header.l1Offset, header.l1Size * 8)) throw damaged('its L1 table lies outside it')
  const refcountBytes = header.refcountClusters * cluster
  if (refcountBytes > REFCOUNT_TABLE_BYTES_MAX || header.refcountClusters === 0) {
    throw damaged(`its refcount table has ${header.refcountClusters} clusters`)
  }
  if (!inside(header.refcountOffset, refcountBytes)) throw damaged('its refcount table lies outside it')
  if (header.snapshots > 0 && !inside(header.snapshotsOffset, 1)) throw damaged('its snapshots lie outside it')
}

/** The name of the backing file, and its format from the header's extensions. */
function backingOf(file: ImageFile, view: DataView, version: number, clusterBits: number, path: string):
  Header['backing'] {
  const damaged = (why: string): CellarError => new CellarError('DISK_DAMAGED', [path, why])
  const length = version === 2 ? V2_BYTES : view.getUint32(HEADER_LENGTH)
  const cluster = 2 ** clusterBits
  if (length % 8 !== 0 || length > cluster || (version === 3 && length < V3_BYTES)) {
    throw damaged(`its header has ${length} bytes`)
  }
  const offset = offsetAt(view, BACKING_OFFSET)
  if (offset === 0) return undefined
  const size = view.getUint32(BACKING_SIZE)
  if (size === 0 || size > BACKING_NAME_BYTES_MAX || offset < length || offset + size > cluster) {
    throw damaged('the name of its backing file lies outside the header')
  }
  const all = new Uint8Array(cluster)
  if (file.read(0, all, 0, cluster) < 0) throw new CellarError('DISK_UNREADABLE', [path, 'its header can\'t be read'])
  const name = new TextDecoder().decode(all.subarray(offset, offset + size))
  if (/[\0-\x1f\x7f]/.test(name)) throw damaged('the name of its backing file isn\'t text')
  const fields = new DataView(all.buffer)
  for (let at = length; at + 8 <= offset;) {
    const type = fields.getUint32(at)
    const bytes = fields.getUint32(at + 4)
    if (type === EXTENSION_END) break
    if (at + 8 + bytes > offset) throw damaged('an extension of its header reaches beyond it')
    if (type === EXTENSION_BACKING_FORMAT) {
      return { name, format: new TextDecoder().decode(all.subarray(at + 8, at + 8 + bytes)).slice(0, 20) }
    }
    at += 8 + Math.ceil(bytes / 8) * 8
  }
  // Whoever writes to a raw file decides what it looks like: a guest could turn it into a qcow2 of its choice.
  throw new CellarError('DISK_UNSUPPORTED', [path, 'a backing file whose format isn\'t stated'])
}

/** The first sector with the tables elsewhere, and clean. Written whole: a crash leaves this one or the old one. */
export function movedHeader(sector: Uint8Array, moved: Moved): void {
  const view = new DataView(sector.buffer, sector.byteOffset, SECTOR_BYTES)
  view.setBigUint64(SIZE, BigInt(moved.sizeBytes))
  view.setUint32(L1_SIZE, moved.l1Size)
  view.setBigUint64(L1_OFFSET, BigInt(moved.l1Offset))
  view.setBigUint64(REFCOUNT_OFFSET, BigInt(moved.refcountOffset))
  view.setUint32(REFCOUNT_CLUSTERS, moved.refcountClusters)
  view.setUint32(SNAPSHOTS, moved.snapshots)
  view.setBigUint64(SNAPSHOTS_OFFSET, BigInt(moved.snapshotsOffset))
  if (view.getUint32(4) === 3) view.setUint32(INCOMPATIBLE + 4, view.getUint32(INCOMPATIBLE + 4) & ~DIRTY)
}

/** Says in the image itself that it is damaged, so that nobody writes to it any more. Version 2 has no place for it. */
export function markCorrupt(file: ImageFile): number {
  return changeSector(file, (view) => view.setUint32(INCOMPATIBLE + 4, view.getUint32(INCOMPATIBLE + 4) | CORRUPT))
}

/** Says that what only others understand (such as QEMU's bitmaps) may no longer fit what the image holds. */
export function clearAutoclear(file: ImageFile): number {
  return changeSector(file, (view) => view.setBigUint64(AUTOCLEAR, 0n))
}

function changeSector(file: ImageFile, change: (view: DataView) => void): number {
  const sector = new Uint8Array(SECTOR_BYTES)
  const view = new DataView(sector.buffer)
  const read = file.read(0, sector, 0, SECTOR_BYTES)
  if (read < 0 || view.getUint32(4) !== 3) return read
  change(view)
  const written = file.write(0, sector, 0, SECTOR_BYTES)
  return written < 0 ? written : file.sync()
}

/** What a new image's header says beside where its tables are. */
export type NewHeader = {
  readonly clusterBits: number
  readonly backing: { readonly name: string; readonly format: 'raw' | 'qcow2' } | undefined
}

/** The first cluster of a new image, without tables; undefined if the backing file's name is too long. */
export function newHeader({ clusterBits, backing }: NewHeader): Uint8Array | undefined {
  const bytes = new Uint8Array(2 ** clusterBits)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, QCOW2_MAGIC)
  view.setUint32(4, 3)
  view.setUint32(CLUSTER_BITS, clusterBits)
  view.setUint32(REFCOUNT_ORDER, 4)
  const length = COMPRESSION + 8
  view.setUint32(HEADER_LENGTH, length)
  if (backing === undefined) return bytes
  const name = new TextEncoder().encode(backing.name)
  const format = new TextEncoder().encode(backing.format)
  // The extension of 8 + 8 bytes, the one that ends them, the name.
  const offset = length + 24
  if (name.length > BACKING_NAME_BYTES_MAX || offset + name.length > bytes.length) return undefined
  view.setUint32(length, EXTENSION_BACKING_FORMAT)
  view.setUint32(length + 4, format.length)
  bytes.set(format, length + 8)
  view.setBigUint64(BACKING_OFFSET, BigInt(offset))
  view.setUint32(BACKING_SIZE, name.length)
  bytes.set(name, offset)
  return bytes
}
