// kvm/kvm.ts: /dev/kvm, a virtual machine and its vCPUs, as calls: one thin method for each thing that KVM does.
//
// A Kvm answers what this host can do; a Vm has memory, interrupts and vCPUs; a Vcpu has registers, and a page that it
// shares with the kernel. Descriptors are good in every thread of the process that made the Vm, and in no other. What
// KVM refuses throws CellarError (KVM_FAILED). Structs go through one scratch area of the thread.
//
// Elsewhere: the loop around KVM_RUN (../machine/vcpu_worker.ts), which is the only hot path.

import { closeSync } from 'node:fs'
import { ERRNO_NAMES, E2BIG } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { mapShared, unmapRam } from '../sys/guest_ram.ts'
import { ioctl, openKvm } from '../sys/kvm.ts'
import { Scratch } from '../sys/libc.ts'
import { duplicateFd } from '../sys/sockets.ts'
import * as abi from './abi.ts'

import type { Mapped } from '../sys/guest_ram.ts'
import type { Struct } from './struct.ts'

/** This host's KVM. */
export class Kvm {
  readonly #fd: number

  /**
   * `given`: /dev/kvm, which stays the caller's. Throws Node's error if /dev/kvm can't be opened, and KVM_FAILED if it
   * isn't what we know.
   */
  constructor(given?: number) {
    this.#fd = given === undefined ? openKvm() : duplicateFd(given)
    const version = call(this.#fd, abi.KVM_GET_API_VERSION, 0n, 'use /dev/kvm')
    if (version !== abi.KVM_API_VERSION) throw new CellarError('KVM_FAILED', ['use /dev/kvm', `version ${version}`])
  }

  /** What KVM_CHECK_EXTENSION says: 0 for what it can't do. */
  capability(number: number): number {
    return Math.max(0, ioctl(this.#fd, abi.KVM_CHECK_EXTENSION, BigInt(number)))
  }

  createVm(): Vm {
    const fd = call(this.#fd, abi.KVM_CREATE_VM, 0n, 'make a virtual machine')
    return new Vm(fd, call(this.#fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0n, 'make a virtual machine'))
  }

  /** The processor as KVM can show it to guests: kvm_cpuid_entry2, one after the other. */
  supportedCpuid(): Uint8Array {
    const { entries } = abi.kvm_cpuid2.at
    for (let count = 64; ; count *= 2) {
      scratch.view.setUint32(0, count, true)
      const result = ioctl(this.#fd, abi.KVM_GET_SUPPORTED_CPUID, scratch.address)
      if (result === -E2BIG && count < CPUID_ENTRIES_MAX) continue
      refuse(result, 'ask for the features of the processor')
      const found = scratch.view.getUint32(0, true)
      return scratch.bytes.slice(entries, entries + found * abi.kvm_cpuid_entry2.size)
    }
  }

  /** Numbers of the model-specific registers that are a vCPU's state. */
  msrIndexes(): readonly number[] {
    scratch.view.setUint32(0, MSRS_MAX, true)
    call(this.#fd, abi.KVM_GET_MSR_INDEX_LIST, scratch.address, 'list registers')
    return Array.from({ length: scratch.view.getUint32(0, true) },
      (_, i) => scratch.view.getUint32(abi.kvm_msr_list.at.indices + 4 * i, true))
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd)
  }
}

/** A virtual machine. */
export class Vm {
  readonly #fd: number
  readonly #runBytes: number

  constructor(fd: number, runBytes: number) {
    this.#fd = fd
    this.#runBytes = runBytes
  }

  /** Gives the guest `length` bytes of memory at `start`: those at `address`, which stay mapped while the Vm is. */
  setMemory(region: { slot: number; start: number; address: bigint; length: number; logDirty: boolean }): void {
    const { at } = abi.kvm_userspace_memory_region
    scratch.view.setUint32(at.slot, region.slot, true)
    scratch.view.setUint32(at.flags, region.logDirty ? abi.KVM_MEM_LOG_DIRTY_PAGES : 0, true)
    scratch.view.setBigUint64(at.guest_phys_addr, BigInt(region.start), true)
    scratch.view.setBigUint64(at.memory_size, BigInt(region.length), true)
    scratch.view.setBigUint64(at.userspace_addr, region.address, true)
    call(this.#fd, abi.KVM_SET_USER_MEMORY_REGION, scratch.address, `give a guest ${region.length} bytes of memory`)
  }

  /** The pages of a slot that were written since the last call, as bits, into `to`: 8 bytes for each 64 pages. */
  dirtyLog(slot: number, to: Scratch): void {
    scratch.view.setUint32(abi.kvm_dirty_log.at.slot, slot, true)
    scratch.view.setUint32(abi.kvm_dirty_log.at.padding1, 0, true)
    scratch.view.setBigUint64(abi.kvm_dirty_log.at.dirty_bitmap, to.address, true)
    call(this.#fd, abi.KVM_GET_DIRTY_LOG, scratch.address, 'list written pages')
  }

  /** Before the first vCPU: local APICs, an IOAPIC and two PICs, all in the kernel. */
  createIrqchip(places: { tss: number; identityMap: number }): void {
    scratch.view.setBigUint64(0, BigInt(places.identityMap), true)
    call(this.#fd, abi.KVM_SET_IDENTITY_MAP_ADDR, scratch.address, 'place the identity map')
    call(this.#fd, abi.KVM_SET_TSS_ADDR, BigInt(places.tss), 'place the task segment')
    call(this.#fd, abi.KVM_CREATE_IRQCHIP, 0n, 'make interrupt controllers')
  }

  /** Each signal of the eventfd `fd` is an edge on the interrupt `gsi`. */
  irqfd(fd: number, gsi: number): void {
    scratch.bytes.fill(0, 0, abi.kvm_irqfd.size)
    scratch.view.setUint32(abi.kvm_irqfd.at.fd, fd, true)
    scratch.view.setUint32(abi.kvm_irqfd.at.gsi, gsi, true)
    call(this.#fd, abi.KVM_IRQFD, scratch.address, `connect interrupt ${gsi}`)
  }

  /** A write of `value`, 32 bits, to `address` signals the eventfd `fd`, and is no exit. */
  ioeventfd(fd: number, address: number, value: number): void {
    const { at } = abi.kvm_ioeventfd
    scratch.bytes.fill(0, 0, abi.kvm_ioeventfd.size)
    scratch.view.setBigUint64(at.datamatch, BigInt(value), true)
    scratch.view.setBigUint64(at.addr, BigInt(address), true)
    scratch.view.setUint32(at.len, 4, true)
    scratch.view.setUint32(at.fd, fd, true)
    scratch.view.setUint32(at.flags, abi.KVM_IOEVENTFD_FLAG_DATAMATCH, true)
    call(this.#fd, abi.KVM_IOEVENTFD, scratch.address, `watch address ${address}`)
  }

  /** A struct of the machine as a whole. `fill`: what KVM reads of it before it answers. */
  get(request: bigint, { size }: Struct, fill?: (view: DataView) => void): Uint8Array {
    scratch.bytes.fill(0, 0, size)
    fill?.(scratch.view)
    call(this.#fd, request, scratch.address, 'read the state of a machine')
    return scratch.bytes.slice(0, size)
  }

  set(request: bigint, bytes: Uint8Array): void {
    scratch.bytes.set(bytes)
    call(this.#fd, request, scratch.address, 'set the state of a machine')
  }

  /** How many bytes an answer to KVM_GET_XSAVE2 has. */
  get xsaveBytes(): number {
    return Math.max(abi.kvm_xsave.size, ioctl(this.#fd, abi.KVM_CHECK_EXTENSION, BigInt(abi.KVM_CAP_XSAVE2)))
  }

  createVcpu(id: number): Vcpu {
    const fd = call(this.#fd, abi.KVM_CREATE_VCPU, BigInt(id), `make vCPU ${id}`)
    return new Vcpu(id, fd, mapShared(fd, this.#runBytes))
  }

  /** The guest is gone when its vCPUs are closed, too. */
  close(): void {
    closeSync(this.#fd)
  }
}

/** A vCPU. Its state can be read and set while no thread runs it. */
export class Vcpu {
  readonly id: number
  readonly fd: number
  /** struct kvm_run, and behind it a page for data of in and out. */
  readonly run: Mapped

  constructor(id: number, fd: number, run: Mapped) {
    this.id = id
    this.fd = fd
    this.run = run
  }

  get(request: bigint, { size }: { size: number }): Uint8Array {
    call(this.fd, request, scratch.address, `read the state of vCPU ${this.id}`)
    return scratch.bytes.slice(0, size)
  }

  set(request: bigint, bytes: Uint8Array): void {
    scratch.bytes.set(bytes)
    call(this.fd, request, scratch.address, `set the state of vCPU ${this.id}`)
  }

  /** What the vCPU says of itself: entries as Kvm.supportedCpuid gives them. */
  setCpuid(entries: Uint8Array): void {
    scratch.view.setUint32(0, entries.length / abi.kvm_cpuid_entry2.size, true)
    scratch.view.setUint32(4, 0, true)
    scratch.bytes.set(entries, abi.kvm_cpuid2.at.entries)
    call(this.fd, abi.KVM_SET_CPUID2, scratch.address, `describe vCPU ${this.id}`)
  }

  /** The value of a model-specific register; undefined if it can't be read. */
  msr(index: number): bigint | undefined {
    putMsr(index, 0n)
    const count = call(this.fd, abi.KVM_GET_MSRS, scratch.address, `read registers of vCPU ${this.id}`)
    return count === 1 ? scratch.view.getBigUint64(MSR_DATA, true) : undefined
  }

  /** False if KVM doesn't take the value. */
  setMsr(index: number, value: bigint): boolean {
    putMsr(index, value)
    return call(this.fd, abi.KVM_SET_MSRS, scratch.address, `set registers of vCPU ${this.id}`) === 1
  }

  /** The host has held the vCPU: its guest is not to wonder where the time went. No matter to one that has no clock. */
  wasPaused(): void {
    ioctl(this.fd, abi.KVM_KVMCLOCK_CTRL, 0n)
  }

  /** kHz of its time stamp counter. */
  tscKhz(): number {
    return call(this.fd, abi.KVM_GET_TSC_KHZ, 0n, `read the clock of vCPU ${this.id}`)
  }

  /** False if its time stamp counter can't go so fast here. */
  setTscKhz(khz: number): boolean {
    return ioctl(this.fd, abi.KVM_SET_TSC_KHZ, BigInt(khz)) >= 0
  }

  /** No thread runs it any more, and none has a view of its page. */
  close(): void {
    unmapRam(this.run)
    closeSync(this.fd)
  }
}

function call(fd: number, request: bigint, argument: bigint, what: string): number {
  return refuse(ioctl(fd, request, argument), what)
}

function refuse(result: number, what: string): number {
  if (result < 0) throw new CellarError('KVM_FAILED', [what, ERRNO_NAMES[-result] ?? String(result)])
  return result
}

function putMsr(index: number, value: bigint): void {
  scratch.view.setUint32(abi.kvm_msrs.at.nmsrs, 1, true)
  scratch.view.setUint32(abi.kvm_msrs.at.pad, 0, true)
  scratch.view.setUint32(MSR_INDEX, index, true)
  scratch.view.setUint32(MSR_INDEX + 4, 0, true)
  scratch.view.setBigUint64(MSR_DATA, value, true)
}

const MSR_INDEX = abi.kvm_msrs.at.entries + abi.kvm_msr_entry.at.index
const MSR_DATA = abi.kvm_msrs.at.entries + abi.kvm_msr_entry.at.data
const CPUID_ENTRIES_MAX = 1024
const MSRS_MAX = 4096

// The largest struct is the extended state (11 KiB with AMX), or 1024 entries of CPUID.
const scratch = new Scratch(64 * 1024)
