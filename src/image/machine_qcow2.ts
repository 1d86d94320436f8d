// image/machine_qcow2.ts: a raw disk as a qcow2 file for an image: zeroes left out, the rest compressed.
//
//   cluster 0           the header (docs/interop/qcow2.txt of QEMU), version 3, clusters of 64 KiB
//   data                each guest cluster deflated, one behind the other, at any byte; or as it is, if that is no gain
//   tables              L2 tables, the L1 table, refcount blocks, the refcount table: known last, so they come last
//
// Only such files are written here; machines read and write qcow2 elsewhere (services/block). A reader inflates a
// cluster with a window of 4 KiB, as QEMU does, so we deflate with one.

import { open, type FileHandle } from 'node:fs/promises'
import { deflateRawSync } from 'node:zlib'
import { assert } from '../base/assert.ts'
import { dataRanges } from '../sys/holes.ts'

const CLUSTER_BITS = 16
const CLUSTER = 1 << CLUSTER_BITS
const SECTOR = 512
const HEADER_BYTES = 104
const ENTRIES = CLUSTER / 8
/** 16 bits each. */
const REFCOUNTS = CLUSTER / 2
const COMPRESSED = 1n << 62n
/** It has one reference: may be written where it lies. */
const COPIED = 1n << 63n
/** Bits of an offset in the entry of a compressed cluster; above them: sectors behind the first. */
const OFFSET_BITS = 62n - BigInt(CLUSTER_BITS - 8)
const WINDOW_BITS = 12

/** Writes the disk in the raw file `from` as the new file `to`. `sizeBytes`: a multiple of 512. */
export async function writeQcow2(from: string, to: string, sizeBytes: number): Promise<void> {
  assert(sizeBytes % SECTOR === 0 && sizeBytes > 0, 'a disk has whole sectors', sizeBytes)
  const input = await open(from)
  try {
    const output = await open(to, 'wx', 0o600)
    try {
      await new Writer(input, output, sizeBytes).run()
    } finally {
      await output.close()
    }
  } finally {
    await input.close()
  }
}

class Writer {
  readonly #input: FileHandle
  readonly #output: FileHandle
  readonly #sizeBytes: number
  // L2 tables by their number; those without an entry aren't there.
  readonly #tables = new Map<number, BigUint64Array>()
  readonly #counts = new Map<number, number>()
  #at = CLUSTER

  constructor(input: FileHandle, output: FileHandle, sizeBytes: number) {
    this.#input = input
    this.#output = output
    this.#sizeBytes = sizeBytes
  }

  async run(): Promise<void> {
    const cluster = Buffer.alloc(CLUSTER)
    const zeroes = Buffer.alloc(CLUSTER)
    let next = 0
    for (const { start, end } of dataRanges(this.#input.fd, this.#sizeBytes)) {
      // Ranges may share a cluster.
      for (let i = Math.max(next, Math.floor(start / CLUSTER)); i * CLUSTER < end; next = ++i) {
        const { bytesRead } = await this.#input.read(cluster, 0, CLUSTER, i * CLUSTER)
        cluster.fill(0, bytesRead)
        if (!cluster.equals(zeroes)) await this.#put(i, cluster)
      }
    }
    await this.#finish()
  }

  async #put(index: number, cluster: Buffer): Promise<void> {
    const small = deflateRawSync(cluster, { windowBits: WINDOW_BITS })
    const isSmaller = small.length < CLUSTER - SECTOR
    if (!isSmaller) this.#align()
    const at = this.#at
    const bytes = isSmaller ? small : cluster
    const last = Math.floor((at + bytes.length - 1) / SECTOR)
    const sectors = last - Math.floor(at / SECTOR)
    for (let one = Math.floor(at / CLUSTER); one <= Math.floor(last * SECTOR / CLUSTER); one++) this.#count(one)
    await this.#write(bytes)
    let table = this.#tables.get(Math.floor(index / ENTRIES))
    if (table === undefined) this.#tables.set(Math.floor(index / ENTRIES), table = new BigUint64Array(ENTRIES))
    table[index % ENTRIES] = isSmaller ? COMPRESSED | BigInt(sectors) << OFFSET_BITS | BigInt(at) : COPIED | BigInt(at)
  }

  // Tables, their refcounts among them, and the header.
  async #finish(): Promise<void> {
    const l1Size = Math.ceil(Math.ceil(this.#sizeBytes / CLUSTER) / ENTRIES)
    const l1 = new BigUint64Array(l1Size)
    for (const [index, table] of this.#tables) {
      l1[index] = COPIED | BigInt(await this.#writeTable(table))
    }
    const l1At = await this.#writeTable(l1)
    this.#align()
    const used = this.#at / CLUSTER
    // Refcount blocks count themselves, and the table that lists them.
    let [blocks, tableClusters] = [1, 1]
    for (let more = true; more;) {
      const total = used + blocks + tableClusters
      const wanted = [Math.ceil(total / REFCOUNTS), Math.ceil(Math.ceil(total / REFCOUNTS) / ENTRIES)] as const
      more = wanted[0] > blocks || wanted[1] > tableClusters
      if (more) [blocks, tableClusters] = wanted
    }
    const total = used + blocks + tableClusters
    for (let one = used; one < total; one++) this.#count(one)
    this.#count(0)
    const refcountTable = new BigUint64Array(blocks)
    for (let block = 0; block < blocks; block++) {
      const counts = Buffer.alloc(CLUSTER)
      for (let i = 0; i < REFCOUNTS; i++) counts.writeUInt16BE(this.#counts.get(block * REFCOUNTS + i) ?? 0, i * 2)
      refcountTable[block] = BigInt(this.#at)
      await this.#write(counts)
    }
    const refcountAt = this.#at
    await this.#write(bigEndian(refcountTable))
    await this.#output.truncate(total * CLUSTER)
    await this.#output.write(this.#header({ l1Size, l1At, refcountAt, tableClusters }), 0, HEADER_BYTES, 0)
  }

  #header({ l1Size, l1At, refcountAt, tableClusters }: {
    l1Size: number; l1At: number; refcountAt: number; tableClusters: number }): Buffer {
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32BE(0x514649fb, 0)
    header.writeUInt32BE(3, 4)
    header.writeUInt32BE(CLUSTER_BITS, 20)
    header.writeBigUInt64BE(BigInt(this.#sizeBytes), 24)
    header.writeUInt32BE(l1Size, 36)
    header.writeBigUInt64BE(BigInt(l1At), 40)
    header.writeBigUInt64BE(BigInt(refcountAt), 48)
    header.writeUInt32BE(tableClusters, 56)
    // Refcounts of 2^4 bits.
    header.writeUInt32BE(4, 96)
    header.writeUInt32BE(HEADER_BYTES, 100)
    return header
  }

  async #writeTable(table: BigUint64Array): Promise<number> {
    this.#align()
    const at = this.#at
    const bytes = bigEndian(table)
    for (let one = at / CLUSTER; one * CLUSTER < at + bytes.length; one++) this.#count(one)
    await this.#write(bytes)
    return at
  }

  async #write(bytes: Buffer): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      done += (await this.#output.write(bytes, done, bytes.length - done, this.#at + done)).bytesWritten
    }
    this.#at += bytes.length
  }

  #count(cluster: number): void { this.#counts.set(cluster, (this.#counts.get(cluster) ?? 0) + 1) }

  #align(): void { this.#at = Math.ceil(this.#at / CLUSTER) * CLUSTER }
}

function bigEndian(table: BigUint64Array): Buffer {
  return Buffer.from(table.buffer.slice(0) as ArrayBuffer).swap64()
}
