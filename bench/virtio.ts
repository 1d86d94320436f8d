// bench/virtio.ts: what a request costs between a guest's ring and the file or socket behind it, without a vCPU.
//
// A driver in the same thread makes requests available and the device serves them. Compared with the system calls
// alone: reading 4 KiB at random places of a file in the page cache, and writing a frame to a socket. Both sides take
// turns. `allocated`: bytes of V8's heap that a request leaves behind, the least of several rounds, as a collection in
// between would be less than nothing; beside it what a request would leave that made one small object.

import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openDisk } from '../src/services/block/open_disk.ts'
import { Vectors } from '../src/sys/vectors.ts'
import { Blk } from '../src/virtio/blk.ts'
import { Net } from '../src/virtio/net.ts'
import { Peer, random, Rig } from '../src/virtio/test_support.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const ROUNDS = 30
const REQUESTS = 2000
const DISK_BYTES = 64 * 1024 * 1024
const BLOCK = 4096
const FRAME = 1514
const HEADER = 0x100
const DATA = 0x1000
const STATUS = 0x200
/** An object with one field in V8, with pointer compression off. */
const OBJECT_BYTES = 32

const nowMs = (): number => 0

type Side = { readonly ours: () => void; readonly plain: () => void }

// Nanoseconds of each side for a request, and bytes that ours leaves: medians, and the least.
function compare({ ours, plain }: Side): { oursNs: number; plainNs: number; bytes: number } {
  const times: [number[], number[]] = [[], []]
  let bytes = Infinity
  for (let round = 0; round < ROUNDS; round++) {
    for (const side of round % 2 === 0 ? [0, 1] : [1, 0]) {
      const run = side === 0 ? ours : plain
      const before = process.memoryUsage().heapUsed
      const begun = process.hrtime.bigint()
      for (let i = 0; i < REQUESTS; i++) run()
      times[side]!.push(Number(process.hrtime.bigint() - begun) / REQUESTS)
      const left = (process.memoryUsage().heapUsed - before) / REQUESTS
      if (side === 0 && left >= 0) bytes = Math.min(bytes, left)
    }
  }
  return { oursNs: percentile(times[0], 0.5), plainNs: percentile(times[1], 0.5), bytes }
}

// Puts the same chain into the ring again and again, and takes what comes back: no object for either.
function repeat(rig: Rig, queue: number, head: number): () => void {
  const ring = rig.rings[queue]!
  const { view, avail, size } = ring
  let index = view.getUint16(avail + 2, true)
  return () => {
    view.setUint16(avail + 4 + 2 * (index % size), head, true)
    index = (index + 1) & 0xffff
    view.setUint16(avail + 2, index, true)
    rig.port.serve(queue)
  }
}

function blk(path: string): Side {
  const disk = openDisk(path, 'raw', { readOnly: true, backingFolders: [] })
  const rig = new Rig(new Blk({ name: 'blk0', disk, serial: '', queues: 1, nowMs })).start()
  const head = rig.rings[0]!.add([{ at: HEADER, length: 16 }, { at: DATA, length: BLOCK, isWritable: true },
    { at: STATUS, length: 1, isWritable: true }])
  rig.kick(0)
  const again = repeat(rig, 0, head)
  const fd = openSync(path, 'r')
  const into = new Uint8Array(BLOCK)
  const next = random(1)
  const blocks = DISK_BYTES / BLOCK
  process.once('exit', () => closeSync(fd))
  return {
    ours() {
      rig.view.setUint32(HEADER + 8, next(blocks) * (BLOCK / 512), true)
      again()
    },
    plain() { readSync(fd, into, 0, BLOCK, next(blocks) * BLOCK) },
  }
}

function net(): Side {
  const [peer, other] = [new Peer(), new Peer()]
  const rig = new Rig(new Net({ name: 'net0', mac: '02:00:00:00:00:01', mtu: 1500, fd: peer.deviceFd, kind: 'stream',
    takesSegments: true, nowMs })).start()
  const head = rig.rings[1]!.add([{ at: DATA, length: 12 }, { at: DATA + 12, length: FRAME }])
  rig.kick(1)
  const again = repeat(rig, 1, head)
  const vectors = new Vectors(rig.bytes, 2, 4)
  const [drain, otherDrain] = [peer, other].map(({ fd }) => {
    const into = new Vectors(new Uint8Array(FRAME + 4), 1, 0)
    return () => {
      into.clear()
      into.add(0, FRAME + 4)
      into.read(fd)
    }
  })
  drain!()
  return {
    ours() {
      again()
      drain!()
    },
    plain() {
      vectors.clear()
      vectors.addHead(0, 4)
      vectors.add(DATA, FRAME)
      vectors.write(other.deviceFd)
      otherDrain!()
    },
  }
}

export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    const path = join(folder, 'disk.raw')
    writeFileSync(path, new Uint8Array(DISK_BYTES).fill(1))
    return [['blk.read4k', blk(path), 'fs.readSync alone'], ['net.send1514', net(), 'writev alone']].flatMap(
      ([name, side, baselineOf]) => {
        const { oursNs, plainNs, bytes } = compare(side as Side)
        return [
          { name: `virtio.${name as string}`, value: oursNs, unit: 'ns', baseline: plainNs,
            baselineOf: baselineOf as string },
          { name: `virtio.${name as string}.allocated`, value: bytes, unit: 'bytes', baseline: OBJECT_BYTES,
            baselineOf: 'one small object' },
        ]
      })
  } finally {
    rmSync(folder, { recursive: true })
  }
}
