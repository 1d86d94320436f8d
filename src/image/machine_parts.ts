// image/machine_parts.ts: what kernels, initrds and disks look like from outside: what is none is refused early.
//
// Only heads are looked at, and never believed further than here: whoever loads a kernel or opens a disk checks again.
// Kernels: Linux's boot protocol (Documentation/arch/x86/boot.rst), or ELF with a PVH entry. Disks: qcow2
// (docs/interop/qcow2.txt of QEMU), or anything else as raw bytes.

/** Bytes from a file's begin that these functions want. */
export const HEAD_BYTES = 4096

/** The first kernels with a 64-bit entry say so in this field; older protocols don't have it. */
const PROTOCOL_MIN = 0x206
const PROTOCOL_64_BIT = 0x20c
const EM_X86_64 = 62

const SECTOR = 512
/** 16 TiB: what ext4 holds. */
const DISK_BYTES_MAX = 2 ** 44

const COMPRESSIONS: readonly (readonly [magic: string, name: string])[] = [
  ['1f8b', 'gzip'], ['fd377a585a00', 'xz'], ['28b52ffd', 'zstd'], ['425a68', 'bzip2'], ['02214c18', 'lz4'],
  ['894c5a4f000d0a1a0a', 'lzo'], ['5d0000', 'lzma'],
]
const OTHER_DISKS: readonly (readonly [magic: string, name: string])[] = [
  ['KDMV', 'VMDK'], ['# Disk Descriptor', 'VMDK'], ['vhdxfile', 'VHDX'], ['conectix', 'VHD'], ['<<< ', 'VDI'],
  ['COWD', 'VMDK'], ['QED\0', 'QED'],
]

/** What is wrong with a kernel, from its head and its size; undefined if nothing is. */
export function kernelFault(head: Buffer, sizeBytes: number): string | undefined {
  if (head.length >= 64 && head.readUInt32BE(0) === 0x7f454c46) {
    const is64 = head[4] === 2 && head[5] === 1 && head.readUInt16LE(18) === EM_X86_64
    return is64 ? undefined : 'it is an ELF file, but not for x86-64'
  }
  if (head.length < 0x260 || head.readUInt16LE(0x1fe) !== 0xaa55 || head.toString('latin1', 0x202, 0x206) !== 'HdrS') {
    return 'it is no bzImage: it has no header of Linux\'s boot protocol'
  }
  const version = head.readUInt16LE(0x206)
  const text = `${version >> 8}.${String(version & 0xff).padStart(2, '0')}`
  if (version < PROTOCOL_MIN) return `its boot protocol is ${text}: 2.06 is the least`
  const isLoadedHigh = (head[0x211]! & 1) !== 0
  if (!isLoadedHigh || version < PROTOCOL_64_BIT || (head.readUInt16LE(0x236) & 1) === 0) return 'it isn\'t 64-bit'
  const setup = ((head[0x1f1]! || 4) + 1) * SECTOR
  const wanted = setup + head.readUInt32LE(0x1f4) * 16
  return wanted <= sizeBytes ? undefined : `it is cut off: it has ${sizeBytes} of ${wanted} bytes`
}

/** What is wrong with an initrd; undefined if nothing is. */
export function initrdFault(head: Buffer): string | undefined {
  if (head.length < 8) return 'it is too short'
  const magic = head.toString('latin1', 0, 6)
  if (magic === '070701' || magic === '070702' || compressionOf(head) !== undefined) return undefined
  return 'it is neither a cpio archive nor compressed in a way that Linux knows'
}

/** The disk in a file; or what is wrong with it. */
export function diskOf(head: Buffer, sizeBytes: number):
{ readonly format: 'raw' | 'qcow2'; readonly sizeBytes: number } | string {
  if (head.length >= 4 && head.readUInt32BE(0) === 0x514649fb) return qcow2Of(head, sizeBytes)
  const [, other] = OTHER_DISKS.find(([magic]) => head.toString('latin1', 0, magic.length) === magic) ?? []
  if (other !== undefined) return `it is a ${other} file`
  const compression = compressionOf(head)
  if (compression !== undefined) return `it is compressed with ${compression}`
  return sized('raw', sizeBytes)
}

function qcow2Of(head: Buffer, sizeBytes: number): ReturnType<typeof diskOf> {
  if (head.length < 72) return 'it is cut off'
  const version = head.readUInt32BE(4)
  if (version !== 2 && version !== 3) return `it is qcow2 of version ${version}: 2 and 3 are known`
  if (version === 3 && head.length < 104) return 'it is cut off'
  if (head.readBigUInt64BE(8) !== 0n) return 'it has a backing file'
  const clusterBits = head.readUInt32BE(20)
  if (clusterBits < 9 || clusterBits > 21) return `its clusters have 2^${clusterBits} bytes`
  if (head.readUInt32BE(32) !== 0) return 'it is encrypted'
  const features = version === 3 ? head.readBigUInt64BE(72) : 0n
  if ((features & 3n) !== 0n) return 'it was not closed properly, or is corrupt: qemu-img check -r all may mend it'
  if ((features & 4n) !== 0n) return 'its data lie in another file'
  if ((features & ~8n) !== 0n) return `it has features that aren't known: ${features.toString(16)}`
  const l1 = Number(head.readBigUInt64BE(40))
  if (l1 >= sizeBytes) return 'it is cut off'
  return sized('qcow2', Number(head.readBigUInt64BE(24)))
}

function sized(format: 'raw' | 'qcow2', sizeBytes: number): ReturnType<typeof diskOf> {
  if (sizeBytes === 0) return 'it is empty'
  if (sizeBytes % SECTOR !== 0) return `its size is no multiple of ${SECTOR} bytes: ${sizeBytes}`
  if (sizeBytes <= DISK_BYTES_MAX) return { format, sizeBytes }
  return `it has ${sizeBytes} bytes: ${DISK_BYTES_MAX} is the most`
}

function compressionOf(head: Buffer): string | undefined {
  const start = head.toString('hex', 0, 16)
  return COMPRESSIONS.find(([magic]) => start.startsWith(magic))?.[1]
}
