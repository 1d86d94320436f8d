// image/machine_seed.ts: the disk from which cloud-init takes what a machine is to be (its data source NoCloud).
//
//   sector 0    boot sector with the sizes of all that follows; label CIDATA
//   …           two FATs (12 bits a cluster), the root folder, the files' clusters
//
// The files are user-data, meta-data and network-config: names that FAT has only as long ones, so that each has an 8.3
// name beside it. The same files always give the same bytes. Times are the first that FAT knows.

import { createHash } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'

const SECTOR = 512
const FATS = 2
const ROOT_ENTRIES = 64
const ENTRY_BYTES = 32
const ROOT_SECTORS = ROOT_ENTRIES * ENTRY_BYTES / SECTOR
/** From 4085 clusters on it would be FAT16. */
const CLUSTERS_MAX = 4084
/** Less is refused by some tools. */
const CLUSTERS_MIN = 2000
const FILE_BYTES_MAX = 4 * 1024 * 1024
const LABEL = 'CIDATA     '
/** 1980-01-01. */
const DATE = 0x21

const ATTR_LABEL = 0x08
const ATTR_ARCHIVE = 0x20
const ATTR_LONG = 0x0f
const LONG_CHARS = 13
const LONG_LAST = 0x40

/** The files of a seed, by their paths here. Without `metaData` the machine is known by its user-data's digest. */
export type SeedFiles = { readonly userData: string; readonly metaData?: string | undefined
  readonly networkConfig?: string | undefined }

/** The seed as a raw disk. Throws NOT_FOUND, MACHINE_SEED_INVALID. */
export function makeSeed({ userData, metaData, networkConfig }: SeedFiles): Buffer {
  const user = contentOf(userData)
  const instance = `instance-id: cellar-${createHash('sha256').update(user).digest('hex').slice(0, 16)}\n`
  const files: SeedFile[] = [
    { name: 'user-data', short: 'USER-D~1   ', content: user },
    { name: 'meta-data', short: 'META-D~1   ',
      content: metaData === undefined ? Buffer.from(instance) : contentOf(metaData) },
  ]
  if (networkConfig !== undefined) {
    files.push({ name: 'network-config', short: 'NETWOR~1   ', content: contentOf(networkConfig) })
  }
  return fatOf(files)
}

type SeedFile = { readonly name: string; readonly short: string; readonly content: Buffer }

function fatOf(files: readonly SeedFile[]): Buffer {
  const total = (clusterBytes: number): number =>
    files.reduce((sum, { content }) => sum + Math.ceil(content.length / clusterBytes), 0)
  let perCluster = 1
  while (total(perCluster * SECTOR) > CLUSTERS_MAX) perCluster *= 2
  const clusterBytes = perCluster * SECTOR
  const clusters = Math.max(total(clusterBytes), CLUSTERS_MIN)
  // 12 bits each; the first two stand for no cluster.
  const fatSectors = Math.ceil((clusters + 2) * 1.5 / SECTOR)
  const rootAt = 1 + FATS * fatSectors
  const dataAt = rootAt + ROOT_SECTORS
  const sectors = dataAt + clusters * perCluster
  const disk = Buffer.alloc(sectors * SECTOR)
  const fat = new Uint16Array(clusters + 2)
  fat.set([0xff8, 0xfff])
  const entries: Buffer[] = [entryOf(LABEL, ATTR_LABEL, 0, 0)]
  let next = 2
  for (const { name, short, content } of files) {
    const count = Math.ceil(content.length / clusterBytes)
    content.copy(disk, dataAt * SECTOR + (next - 2) * clusterBytes)
    for (let i = 0; i < count; i++) fat[next + i] = i === count - 1 ? 0xfff : next + i + 1
    entries.push(...longNameOf(name, short), entryOf(short, ATTR_ARCHIVE, count === 0 ? 0 : next, content.length))
    next += count
  }
  Buffer.concat(entries).copy(disk, rootAt * SECTOR)
  const packed = packed12(fat)
  for (let i = 0; i < FATS; i++) packed.copy(disk, (1 + i * fatSectors) * SECTOR)
  const id = createHash('sha256').update(disk).digest().readUInt32LE(0)
  bootSector({ perCluster, sectors, fatSectors, id }).copy(disk)
  return disk
}

function bootSector({ perCluster, sectors, fatSectors, id }: {
  perCluster: number; sectors: number; fatSectors: number; id: number }): Buffer {
  const sector = Buffer.alloc(SECTOR)
  sector.write('\xeb\x3c\x90CELLAR  ', 0, 'latin1')
  sector.writeUInt16LE(SECTOR, 11)
  sector[13] = perCluster
  sector.writeUInt16LE(1, 14)
  sector[16] = FATS
  sector.writeUInt16LE(ROOT_ENTRIES, 17)
  if (sectors < 0x10000) sector.writeUInt16LE(sectors, 19)
  else sector.writeUInt32LE(sectors, 32)
  // A fixed disk, of a shape that no one asks for.
  sector[21] = 0xf8
  sector.writeUInt16LE(fatSectors, 22)
  sector.writeUInt16LE(32, 24)
  sector.writeUInt16LE(64, 26)
  sector[36] = 0x80
  sector[38] = 0x29
  sector.writeUInt32LE(id, 39)
  sector.write(`${LABEL}FAT12   `, 43, 'latin1')
  sector.writeUInt16LE(0xaa55, 510)
  return sector
}

function entryOf(short: string, attributes: number, cluster: number, size: number): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES)
  entry.write(short, 0, 'latin1')
  entry[11] = attributes
  for (const at of [16, 18, 24]) entry.writeUInt16LE(DATE, at)
  entry.writeUInt16LE(cluster, 26)
  entry.writeUInt32LE(size, 28)
  return entry
}

// Entries of 13 characters each, the last part first, before the entry of the short name, whose sum they have.
function longNameOf(name: string, short: string): Buffer[] {
  let sum = 0
  for (const byte of Buffer.from(short, 'latin1')) sum = ((sum & 1) * 0x80 + (sum >> 1) + byte) & 0xff
  const parts = Math.ceil(name.length / LONG_CHARS)
  return Array.from({ length: parts }, (_, i) => {
    const part = parts - i
    const text = name.slice((part - 1) * LONG_CHARS, part * LONG_CHARS)
    const entry = Buffer.alloc(ENTRY_BYTES)
    entry[0] = part | (i === 0 ? LONG_LAST : 0)
    entry[11] = ATTR_LONG
    entry[13] = sum
    const places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30]
    // A NUL ends a name that doesn't fill the entry; all ones are behind it.
    for (const [j, at] of places.entries()) {
      entry.writeUInt16LE(j < text.length ? text.charCodeAt(j) : j === text.length ? 0 : 0xffff, at)
    }
    return entry
  })
}

function packed12(fat: Uint16Array): Buffer {
  const bytes = Buffer.alloc(Math.ceil(fat.length * 1.5) + 1)
  for (const [i, value] of fat.entries()) {
    const at = i + (i >> 1)
    const both = bytes.readUInt16LE(at)
    bytes.writeUInt16LE(i % 2 === 0 ? (both & 0xf000) | value : (both & 0x000f) | (value << 4), at)
  }
  return bytes
}

function contentOf(path: string): Buffer {
  try {
    const { size } = statSync(path)
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes: ${FILE_BYTES_MAX} is the most`)
    const bytes = readFileSync(path)
    if (bytes.length > FILE_BYTES_MAX) throw new Error(`it has more than ${FILE_BYTES_MAX} bytes`)
    return bytes
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new CellarError('NOT_FOUND', ['file', path], { cause })
    throw new CellarError('MACHINE_SEED_INVALID', [path, message], { cause })
  }
}
