// services/guest_memory.ts: the one checked door into a cell's memory.
//
// A pointer from a guest is an allegation. Each access goes through `check`, which either proves that the whole range
// lies in the memory as it is now, or throws GuestFault; the hypercall then answers EFAULT and has written nothing.
// Pointers arrive as signed i32 from WebAssembly and are taken as unsigned.
//
// `memory.grow` detaches the ArrayBuffer. A hypercall therefore begins with `refresh()`, which costs one comparison;
// within a hypercall no guest code runs, so that views stay good until it answers.

/** A guest's pointer or length reaches outside its memory. Answered as EFAULT; never leaves the hypercall. */
export class GuestFault extends Error {
  override readonly name = 'GuestFault'
}

// One instance: a fault is the guest's to cause, so it must not cost a stack trace.
const FAULT = new GuestFault('A pointer of the guest reaches outside its memory')
FAULT.stack = ''

/** A cell's linear memory, seen by the hypervisor. Owned by its cell; used on its pCPU only. */
export class GuestMemory {
  readonly memory: WebAssembly.Memory
  /** The whole memory. Good for the hypercall in progress only. */
  bytes: Uint8Array
  view: DataView

  constructor(memory: WebAssembly.Memory) {
    this.memory = memory
    this.bytes = new Uint8Array(memory.buffer)
    this.view = new DataView(memory.buffer)
  }

  /** Takes new views if the memory has grown. Call at the start of each hypercall. */
  refresh(): void {
    if (this.bytes.length === 0) {
      this.bytes = new Uint8Array(this.memory.buffer)
      this.view = new DataView(this.memory.buffer)
    }
  }

  /** Proves that [pointer, pointer + length) is memory, and gives the pointer as an index. Throws GuestFault. */
  check(pointer: number, length: number): number {
    const start = pointer >>> 0
    if (!(start + length <= this.bytes.length)) throw FAULT
    return start
  }

  /** The bytes [pointer, pointer + length), shared with the guest. Throws GuestFault. */
  at(pointer: number, length: number): Uint8Array {
    const start = this.check(pointer, length >>> 0)
    return this.bytes.subarray(start, start + (length >>> 0))
  }

  u8(pointer: number): number { return this.view.getUint8(this.check(pointer, 1)) }
  u16(pointer: number): number { return this.view.getUint16(this.check(pointer, 2), true) }
  u32(pointer: number): number { return this.view.getUint32(this.check(pointer, 4), true) }
  u64(pointer: number): bigint { return this.view.getBigUint64(this.check(pointer, 8), true) }
  setU8(pointer: number, value: number): void { this.view.setUint8(this.check(pointer, 1), value) }
  setU16(pointer: number, value: number): void { this.view.setUint16(this.check(pointer, 2), value, true) }
  setU32(pointer: number, value: number): void { this.view.setUint32(this.check(pointer, 4), value, true) }
  setU64(pointer: number, value: bigint): void { this.view.setBigUint64(this.check(pointer, 8), value, true) }

  /** Writes an integer 0 ≤ value < 2^53 as u64, without a BigInt. */
  setU64Number(pointer: number, value: number): void {
    const at = this.check(pointer, 8)
    this.view.setUint32(at, value >>> 0, true)
    this.view.setUint32(at + 4, (value / 4294967296) >>> 0, true)
  }
}
