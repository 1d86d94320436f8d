// sys/guest_ram.ts: memory that a machine's threads and the kernel share: the guest's RAM, and pages of a vCPU.
//
// RAM is a memfd. Its owner maps it once (`mapRam`): an address is good in every thread of a process, and `viewRam`
// makes the bytes there reachable in another one.
//
// What is unmapped must not be looked at again: JavaScript doesn't know that a view has lost its memory. So RAM is
// unmapped last, when all threads that have a view are gone, and never while one might come back to it.

import { fstatSync } from 'node:fs'
import { assert } from '../base/assert.ts'
import { Scratch, answer, bind, viewAt } from './libc.ts'
import { must } from './system_error.ts'

const PROT_READ = 1
const PROT_WRITE = 2
const MAP_SHARED = 0x01
const MAP_PRIVATE = 0x02
const MAP_NORESERVE = 0x4000
const MADV_HUGEPAGE = 14
const MADV_DONTDUMP = 16
const MFD_CLOEXEC = 1
const MFD_ALLOW_SEALING = 2
const F_ADD_SEALS = 1033
/** F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE. */
const SEALS = 1 | 2 | 4 | 8
const PAGE_BYTES = 4096

const native = bind({
  mmap: { arguments: ['pointer', 'uint64', 'int32', 'int32', 'int32', 'int64'], return: 'int64' },
  munmap: { arguments: ['pointer', 'uint64'], return: 'int32' },
  madvise: { arguments: ['pointer', 'uint64', 'int32'], return: 'int32' },
  mincore: { arguments: ['pointer', 'uint64', 'pointer'], return: 'int32' },
  memfd_create: { arguments: ['pointer', 'uint32'], return: 'int32' },
  ftruncate: { arguments: ['int32', 'int64'], return: 'int32' },
  fcntl: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
})

/** Memory at an address that is good in every thread of this process. */
export type Mapped = { readonly address: bigint; readonly bytes: Uint8Array }

/** RAM for a machine: a memfd of `sizeBytes`, all zero, of which nothing takes room before it is written. */
export function makeRam(sizeBytes: number): number {
  // SAFETY: `name` is a C string that lives as long as the thread.
  const fd = must('memfd_create', answer(native.memfd_create(name.address, MFD_CLOEXEC | MFD_ALLOW_SEALING)))
  must('ftruncate', answer(native.ftruncate(fd, BigInt(sizeBytes))))
  return fd
}

/**
 * Nobody changes what is in it, or how much that is, any more: it can be given to several who don't trust each other,
 * to be mapped privately. False if that can't be, as somebody has mapped it to write, or if its size isn't `sizeBytes`.
 */
export function sealRam(fd: number, sizeBytes: number): boolean {
  return answer(native.fcntl(fd, F_ADD_SEALS, SEALS)) >= 0 && fstatSync(fd).size === sizeBytes
}

/** Maps RAM. `isPrivate`: what is written stays in this mapping, and does not come into the memfd. */
export function mapRam(fd: number, sizeBytes: number, isPrivate: boolean): Mapped {
  const mapped = map(fd, sizeBytes, (isPrivate ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE)
  // SAFETY: advice on pages that were just mapped; it changes no byte of them.
  native.madvise(mapped.address, BigInt(sizeBytes), MADV_DONTDUMP)
  native.madvise(mapped.address, BigInt(sizeBytes), MADV_HUGEPAGE)
  return mapped
}

/** Maps the first `sizeBytes` of what a descriptor of the kernel's shares: the pages of a vCPU. */
export function mapShared(fd: number, sizeBytes: number): Mapped {
  return map(fd, sizeBytes, MAP_SHARED)
}

/** The bytes at an address that another thread of this process has mapped, for as long as it keeps them mapped. */
export function viewRam(address: bigint, sizeBytes: number): Uint8Array {
  return viewAt(address, sizeBytes)
}

/** Takes a mapping away. No view of it, in any thread, may be used afterwards. */
export function unmapRam({ address, bytes }: Mapped): void {
  // SAFETY: exactly what `map` has mapped; the caller has seen to it that nobody looks at it any more.
  must('munmap', answer(native.munmap(address, BigInt(bytes.length))))
}

/** How many bytes of a mapping are in memory now. */
export function residentBytes({ address, bytes }: Mapped): number {
  let pages = 0
  for (let offset = 0; offset < bytes.length; offset += presence.bytes.length * PAGE_BYTES) {
    const length = Math.min(bytes.length - offset, presence.bytes.length * PAGE_BYTES)
    // SAFETY: a part of a live mapping, and a byte of `presence` for each page of it.
    must('mincore', answer(native.mincore(address + BigInt(offset), BigInt(length), presence.address)))
    for (let i = 0; i < length / PAGE_BYTES; i++) pages += presence.bytes[i]! & 1
  }
  return pages * PAGE_BYTES
}

function map(fd: number, sizeBytes: number, flags: number): Mapped {
  assert(sizeBytes > 0 && sizeBytes % PAGE_BYTES === 0, 'mappings are whole pages', sizeBytes)
  // SAFETY: the kernel chooses where, so that nothing of ours is replaced.
  const address = native.mmap(0n, BigInt(sizeBytes), PROT_READ | PROT_WRITE, flags, fd, 0n)
  if (address === -1n) must('mmap', answer(-1))
  return { address, bytes: viewAt(address, sizeBytes) }
}

const name = new Scratch(16)
name.bytes.set(new TextEncoder().encode('cellar-ram\0'))
/** A byte for each page of 64 MiB. */
const presence = new Scratch(64 * 1024 * 1024 / PAGE_BYTES)
