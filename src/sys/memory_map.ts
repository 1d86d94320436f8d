// sys/memory_map.ts: pages of memory: copied from thread to thread, given back, and shared until somebody writes them.
//
// A page that is touched for the first time costs more than copying into it: about 2.5 µs for 4 KiB in a virtual
// machine, 16 MiB 10 ms. In pages of 2 MiB they cost a fifth of it; a memory that is mapped from a file costs nothing
// until it is written to, and then page by page. Ranges are views of buffers, so that nobody but this file sees an
// address; all but `Lent` is of this thread's own buffers.

import { isSupported, Scratch, answer, bind, rawAddress } from './libc.ts'

/** What a system page is, at the least; and what ranges that are mapped must be made of. */
const PAGE_BYTES = 4096

const PROT_READ = 1
const PROT_WRITE = 2
const MAP_PRIVATE = 0x02
const MAP_FIXED = 0x10
const MADV_DONTNEED = 4
const MADV_HUGEPAGE = 14
const MFD_CLOEXEC = 1

const native = bind({
  memcpy: { arguments: ['pointer', 'pointer', 'uint64'], return: 'pointer' },
  madvise: { arguments: ['pointer', 'uint64', 'int32'], return: 'int32' },
  mmap: { arguments: ['pointer', 'uint64', 'int32', 'int32', 'int32', 'int64'], return: 'int64' },
  memfd_create: { arguments: ['pointer', 'uint32'], return: 'int32' },
  pwrite: { arguments: ['int32', 'pointer', 'uint64', 'int64'], return: 'int64' },
  close: { arguments: ['int32'], return: 'int32' },
})

let canCall: boolean | undefined

/** True if anything here does more than nothing. */
export function canMap(): boolean {
  return canCall ??= isSupported()
}

/** Asks for large pages where `bytes` is touched for the first time from now on. Maybe nothing comes of it. */
export function preferHugePages(bytes: Uint8Array): void {
  // SAFETY: advice on how a range of a live buffer is backed changes no byte of it, nor of what lies beside it.
  if (canMap()) native.madvise(addressOf(bytes), BigInt(bytes.length), MADV_HUGEPAGE)
}

/** Gives the pages of `bytes` back to the system. They are zero then: nobody needs what they hold. */
export function discard(bytes: Uint8Array): void {
  if (!canMap() || bytes.byteOffset % PAGE_BYTES !== 0 || bytes.length % PAGE_BYTES !== 0) return
  const address = addressOf(bytes)
  if (address % BigInt(PAGE_BYTES) !== 0n) return
  // SAFETY: whole pages of a live buffer, all of them inside `bytes`; the caller has said that they hold nothing.
  native.madvise(address, BigInt(bytes.length), MADV_DONTNEED)
}

/** Bytes of another thread's memory, which stay where they are for as long as that thread has said. Plain data. */
export type Lent = { readonly address: bigint; readonly length: number }

/** Lends a buffer to other threads of this process: the caller keeps it alive, and unchanged, until they are done. */
export function lend(bytes: Uint8Array): Lent | undefined {
  return canMap() ? { address: addressOf(bytes), length: bytes.length } : undefined
}

/** Copies `to.length` bytes from what another thread has lent, beginning at `offset`. */
export function copyLent(lent: Lent, offset: number, to: Uint8Array): void {
  if (!(offset >= 0 && offset + to.length <= lent.length)) throw new RangeError('Cannot copy more than was lent')
  // SAFETY: `lent` is of `lend` in this process, whose caller keeps that buffer in place; the range is inside of it as
  // was just checked, and `to` is a live buffer of this thread, as long as its view says. They are two allocations.
  native.memcpy(addressOf(to), lent.address + BigInt(offset), BigInt(to.length))
}

/** A file without a name in memory, that holds `bytes`: its descriptor, or a negated errno. */
export function fileOf(bytes: Uint8Array): number {
  const fd = answer(native.memfd_create(name.address, MFD_CLOEXEC))
  if (fd < 0) return fd
  const address = addressOf(bytes)
  for (let done = 0; done < bytes.length;) {
    // SAFETY: [done, length) of `bytes`, a live buffer that the kernel reads during the call.
    const written = answer(Number(native.pwrite(fd, address + BigInt(done), BigInt(bytes.length - done), BigInt(done))))
    if (written <= 0) {
      native.close(fd)
      return written
    }
    done += written
  }
  return fd
}

/**
 * Makes whole pages of a WebAssembly memory what the file `fd` holds from `offset` on. Nothing is copied before it is
 * written to, and nothing that is written comes into the file. 0, or a negated errno: nothing has changed then.
 */
export function mapFile(fd: number, offset: number, to: Uint8Array): number {
  const address = addressOf(to)
  // SAFETY: MAP_FIXED replaces pages that `to` covers exactly (WebAssembly pages are 64 KiB, at such addresses), with
  // the same protection that they had. V8 owns them: it knows them by address only, and unmaps them as a whole.
  const mapped = native.mmap(address, BigInt(to.length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
    BigInt(offset))
  return mapped === address ? 0 : answer(-1)
}

function addressOf({ buffer, byteOffset }: Uint8Array): bigint {
  return rawAddress(buffer) + BigInt(byteOffset)
}

const name = new Scratch(16)
name.bytes.set(new TextEncoder().encode('cellar-image\0'))
