// sys/libc.ts: calls into the C library, and the only importer of node:ffi.
//
// A function is looked up when it is first called (each look-up costs 50 to 150 µs), so that a guest that needs none
// of them pays for none. Every call of ours answers as the kernel does: a value ≥ 0, or a negated errno, in the
// numbers of base/errno.ts. Structs lie in `scratch`, memory outside V8's heap that is never freed: nothing is
// allocated for a call, and a worker thread has its own copy of this module, so that no two calls share it.
//
// Linux on x86-64 and arm64 only: `isSupported` says whether it may be used. Elsewhere: calls on files
// (linux_files.ts), the kernel's errno numbers (errno_linux.ts).

import { assert } from '../base/assert.ts'
import { errnoFromLinux } from './errno_linux.ts'

import type { DynamicLibrary, FunctionDefinitions, FunctionSignature, WrappedFunctionsFromDefinitions } from 'node:ffi'

type Ffi = typeof import('node:ffi')

let ffi: Ffi | undefined
let library: DynamicLibrary | undefined
// The calling thread's errno itself, seen as an array of one.
let errno: Int32Array = new Int32Array(1)

/**
 * Functions of the C library, each looked up at its first call. The object keeps its shape, so that a call costs no
 * more than through a constant. Types are node:ffi's, the keys `arguments` and `return`.
 */
export function bind<const T extends FunctionDefinitions>(signatures: T): WrappedFunctionsFromDefinitions<T> {
  const functions: Record<string, unknown> = {}
  for (const [name, signature] of Object.entries(signatures)) {
    functions[name] = (...args: unknown[]) => {
      const found = open().getFunction(name, signature as FunctionSignature) as (...args: unknown[]) => unknown
      functions[name] = found
      return found(...args)
    }
  }
  return functions as WrappedFunctionsFromDefinitions<T>
}

/** The answer of a C function that returns -1 and sets errno: its result, or the negated errno. Call it at once. */
export function answer(result: number): number {
  // SAFETY: `errno` views this thread's own errno, which lives as long as the thread.
  return result < 0 ? -errnoFromLinux(errno[0]!) : result
}

/** Memory for structs: outside V8's heap, never freed, at an address that never changes. */
export class Scratch {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly view: DataView<ArrayBuffer>
  #address = 0n

  constructor(size: number) {
    this.bytes = new Uint8Array(size)
    this.view = new DataView(this.bytes.buffer)
  }

  /** Where byte 0 is, as C sees it. */
  get address(): bigint {
    // SAFETY: a backing store of ArrayBuffer doesn't move, and `bytes` keeps it alive for as long as this object.
    if (this.#address === 0n) this.#address = rawAddress(this.bytes.buffer)
    return this.#address
  }
}

/** Where the first byte of `buffer` is. Good until the buffer is detached or freed: the caller sees to that. */
export function rawAddress(buffer: ArrayBufferLike): bigint {
  open()
  // SAFETY: a buffer that isn't detached has an address; how long it is good is the caller's to know, as said above.
  return ffi!.getRawPointer(buffer as ArrayBuffer)
}

/**
 * The bytes at an address that C has mapped. They are as good as that mapping: once it is gone, touching one ends the
 * process. Never transfer its buffer.
 */
export function viewAt(address: bigint, length: number): Uint8Array<ArrayBuffer> {
  open()
  // SAFETY: the caller says that `length` bytes are mapped there, and unmaps them only when no view is in use.
  return new Uint8Array(ffi!.toArrayBuffer(address, length, false))
}

/** True if system calls can be made here: Linux, 64-bit, little-endian, and a Node with FFI that may be used. */
export function isSupported(): boolean {
  if (process.platform !== 'linux' || (process.arch !== 'x64' && process.arch !== 'arm64')) return false
  try {
    open()
    return true
  } catch {
    return false
  }
}

/** True if a system call has been made through this module already. */
export function isInUse(): boolean {
  return library !== undefined
}

const POLLFD = 0            // struct pollfd { int fd; short events; short revents; }
const TIMESPEC = 8          // struct timespec { long tv_sec; long tv_nsec; }

const scratch = new Scratch(64)

const native = bind({
  poll: { arguments: ['pointer', 'uint64', 'int32'], return: 'int32' },
  clock_gettime: { arguments: ['int32', 'pointer'], return: 'int32' },
  _exit: { arguments: ['int32'], return: 'void' },
})

export const POLLIN = 1
export const POLLOUT = 4
export const POLLERR = 8
export const POLLHUP = 16
export const POLLNVAL = 32

/** What of `events` (POLL*) is true of the host's descriptor `fd` now, without waiting; or a negated errno. */
export function poll1(fd: number, events: number): number {
  scratch.view.setInt32(POLLFD, fd, true)
  scratch.view.setInt16(POLLFD + 4, events, true)
  scratch.view.setInt16(POLLFD + 6, 0, true)
  // SAFETY: one pollfd at scratch[POLLFD], which outlives the call.
  const ready = answer(native.poll(scratch.address, 1n, 0))
  return ready < 0 ? ready : scratch.view.getInt16(POLLFD + 6, true)
}

/** Reads the kernel's clock `id` (CLOCK_*): out[0] = seconds, out[1] = nanoseconds. 0 or a negated errno. */
export function clockGettime(id: number, out: Float64Array): number {
  // SAFETY: one timespec at scratch[TIMESPEC], which outlives the call.
  const result = answer(native.clock_gettime(id, timespecAddress()))
  if (result < 0) return result
  const view = scratch.view
  out[0] = view.getInt32(TIMESPEC + 4, true) * 4294967296 + view.getUint32(TIMESPEC, true)
  out[1] = view.getUint32(TIMESPEC + 8, true)
  return 0
}

let timespecPointer = 0n
function timespecAddress(): bigint {
  if (timespecPointer === 0n) timespecPointer = scratch.address + BigInt(TIMESPEC)
  return timespecPointer
}

/** Ends the process at once: no exit handlers, nothing flushed. What was written with a system call is written. */
export function exitNow(code: number): never {
  native._exit(code)
  throw new Error('_exit returned')
}

// Loads node:ffi and opens the C library that Node itself is linked with.
function open(): DynamicLibrary {
  if (library !== undefined) return library
  ffi = process.getBuiltinModule('node:ffi') as Ffi | undefined
  if (ffi === undefined) throw new Error('This Node has no node:ffi')
  const opened = new ffi.DynamicLibrary(null)
  const location = opened.getFunction('__errno_location', { arguments: [], return: 'pointer' })() as bigint
  assert(location !== 0n, 'errno has an address', location)
  // SAFETY: four bytes of this thread's own storage, which lives as long as the thread; not copied, never freed by V8.
  errno = new Int32Array(ffi.toArrayBuffer(location, 4, false))
  library = opened
  return library
}
