// services/block/qcow2_snapshots.ts: the table of the internal snapshots of a qcow2 image.
//
// An entry says where the L1 table of the disk as it was then lies. What QEMU keeps beside it (the state of its
// machine) is carried along, not understood.

import { CellarError } from '../../base/errors.ts'
import { DISK_BYTES_MAX, type Header } from './qcow2_header.ts'
import type { ImageFile } from './image_file.ts'
import { SECTOR_BYTES } from './disk.ts'

const ENTRY_BYTES = 40
const NAME_BYTES_MAX = 255
/** Whatever its entries say of their own lengths. */
const TABLE_BYTES_MAX = 4 * 2 ** 20
const EXTRA_BYTES_MAX = 1024
const L1_SIZE_MAX = 4 * 2 ** 20

/** A snapshot inside an image. */
export type DiskSnapshot = {
  readonly id: string
  readonly name: string
  readonly createdAtMs: number
  /** Of the disk as it was then. */
  readonly sizeBytes: number
  readonly l1Offset: number
  readonly l1Size: number
  /** vm_clock_nsec and vm_state_size, then extra data: as they were found. */
  readonly clock: Uint8Array
  readonly extra: Uint8Array
}

/** Reads the table. Throws CellarError. */
export function readSnapshots(file: ImageFile, header: Header, path: string): DiskSnapshot[] {
  const damaged = (why: string): CellarError => new CellarError('DISK_DAMAGED', [path, why])
  if (header.snapshots === 0) return []
  const bytes = new Uint8Array(Math.min(TABLE_BYTES_MAX, file.sizeBytes - header.snapshotsOffset))
  if (file.read(header.snapshotsOffset, bytes, 0, bytes.length) < 0) {
    throw new CellarError('DISK_UNREADABLE', [path, 'its snapshots can\'t be read'])
  }
  const view = new DataView(bytes.buffer)
  const found: DiskSnapshot[] = []
  for (let at = 0; found.length < header.snapshots;) {
    if (at + ENTRY_BYTES > bytes.length) throw damaged('its table of snapshots is cut off')
    const extraBytes = view.getUint32(at + 36)
    const idBytes = view.getUint16(at + 12)
    const nameBytes = view.getUint16(at + 14)
    const extraAt = at + ENTRY_BYTES
    const end = extraAt + extraBytes + idBytes + nameBytes
    if (extraBytes > EXTRA_BYTES_MAX || end > bytes.length) throw damaged('its table of snapshots is cut off')
    const text = (from: number, length: number): string => new TextDecoder().decode(bytes.subarray(from, from + length))
    const sizeBytes = extraBytes >= 16 ? Number(view.getBigUint64(extraAt + 8)) : header.sizeBytes
    const snapshot: DiskSnapshot = {
      id: text(extraAt + extraBytes, idBytes), name: text(extraAt + extraBytes + idBytes, nameBytes), sizeBytes,
      createdAtMs: view.getUint32(at + 16) * 1000 + Math.floor(view.getUint32(at + 20) / 1e6),
      l1Offset: Number(view.getBigUint64(at)), l1Size: view.getUint32(at + 8),
      clock: bytes.slice(at + 24, at + 36), extra: bytes.slice(extraAt, extraAt + extraBytes),
    }
    check(snapshot, header, file, damaged)
    found.push(snapshot)
    at = Math.ceil(end / 8) * 8
  }
  return found
}

function check(
  { l1Offset, l1Size, sizeBytes, name }: DiskSnapshot, header: Header, file: ImageFile,
  damaged: (why: string) => CellarError,
): void {
  const cluster = 2 ** header.clusterBits
  if (l1Size > L1_SIZE_MAX || l1Offset % cluster !== 0 || l1Offset < cluster ||
    l1Offset + l1Size * 8 > file.sizeBytes) throw damaged(`the L1 table of its snapshot "${name}" lies outside it`)
  if (sizeBytes > DISK_BYTES_MAX || sizeBytes % SECTOR_BYTES !== 0 ||
    l1Size < Math.ceil(sizeBytes / (cluster * cluster / 8))) {
    throw damaged(`its snapshot "${name}" has ${sizeBytes} bytes`)
  }
}

/** The table as bytes. */
export function encodeSnapshots(snapshots: readonly DiskSnapshot[]): Uint8Array {
  const parts = snapshots.map((snapshot) => {
    const id = new TextEncoder().encode(snapshot.id)
    const name = new TextEncoder().encode(snapshot.name)
    const end = ENTRY_BYTES + snapshot.extra.length + id.length + name.length
    const bytes = new Uint8Array(Math.ceil(end / 8) * 8)
    const view = new DataView(bytes.buffer)
    view.setBigUint64(0, BigInt(snapshot.l1Offset))
    view.setUint32(8, snapshot.l1Size)
    view.setUint16(12, id.length)
    view.setUint16(14, name.length)
    view.setUint32(16, Math.floor(snapshot.createdAtMs / 1000))
    view.setUint32(20, snapshot.createdAtMs % 1000 * 1e6)
    bytes.set(snapshot.clock, 24)
    view.setUint32(36, snapshot.extra.length)
    bytes.set(snapshot.extra, ENTRY_BYTES)
    bytes.set(id, ENTRY_BYTES + snapshot.extra.length)
    bytes.set(name, ENTRY_BYTES + snapshot.extra.length + id.length)
    return bytes
  })
  return new Uint8Array(Buffer.concat(parts))
}

/** A snapshot of the disk as it is, whose L1 table `header` has. Throws CellarError for a name that can't be. */
export function newSnapshot(
  among: readonly DiskSnapshot[], name: string, header: Header, nowMs: number, path: string,
): DiskSnapshot {
  if (name === '' || /[\0-\x1f\x7f]/.test(name) || new TextEncoder().encode(name).length > NAME_BYTES_MAX) {
    throw new CellarError('DISK_SNAPSHOT_REFUSED', [path, `its name must be text of 1 to ${NAME_BYTES_MAX} bytes`])
  }
  if (among.some((one) => one.name === name || one.id === name)) {
    throw new CellarError('DISK_SNAPSHOT_REFUSED', [path, `"${name}" exists already`])
  }
  // Past ids of digits, and not one that is somebody's name.
  let id = 1 + Math.max(0, ...among.map((one) => /^\d{1,9}$/.test(one.id) ? Number(one.id) : 0))
  while (among.some((one) => one.name === String(id))) id++
  // vm_state_size_large: none; the size of the disk; icount: none.
  const extra = new Uint8Array(24)
  const view = new DataView(extra.buffer)
  view.setBigUint64(8, BigInt(header.sizeBytes))
  view.setBigInt64(16, -1n)
  return { id: String(id), name, createdAtMs: nowMs, sizeBytes: header.sizeBytes, l1Offset: header.l1Offset,
    l1Size: header.l1Size, clock: new Uint8Array(12), extra }
}

/** The snapshot of this id or name. Throws CellarError. */
export function snapshotOf(among: readonly DiskSnapshot[], wanted: string, path: string): DiskSnapshot {
  const found = among.find(({ name }) => name === wanted) ?? among.find(({ id }) => id === wanted)
  if (found === undefined) throw new CellarError('DISK_SNAPSHOT_NOT_FOUND', [path, wanted])
  return found
}
