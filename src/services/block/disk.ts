// services/block/disk.ts: what a disk is to whoever reads and writes it: the interface of raw and qcow2 files.
//
// Calls are synchronous, as they are made by threads that do nothing else (a machine's device thread), and never throw:
// each answers 0 or a negated errno of base/errno.ts. They move bytes between the file and a larger memory by offset,
// so that a request makes no object: no view of the guest's memory, no promise. Positions and lengths are in bytes,
// multiples of SECTOR_BYTES and within the disk: the caller's to see to, an assertion otherwise.

/** What a disk counts in. */
export const SECTOR_BYTES = 512

/** The file of a volume that is a disk, in the volume's folder: its bytes as they are. */
export const DISK_FILE = 'disk.raw'

/** An open disk. One owner, one thread. */
export interface Disk {
  readonly sizeBytes: number
  readonly isReadOnly: boolean
  /** Reads `length` bytes at `position` into memory[offset…]. */
  read(position: number, memory: Uint8Array, offset: number, length: number): number
  write(position: number, memory: Uint8Array, offset: number, length: number): number
  /** What was written before is on the disk when this answers 0 (fdatasync). */
  flush(): number
  /** The content is no longer needed; it reads as zero afterwards. */
  discard(position: number, length: number): number
  /** Zeroes; `mayUnmap`: their room may be given back. */
  writeZeroes(position: number, length: number, mayUnmap: boolean): number
  /** Flushes and closes. 0 or a negated errno; nothing is to be called afterwards. */
  close(): number
}
