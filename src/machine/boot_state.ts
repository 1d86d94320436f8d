// machine/boot_state.ts: the first vCPU's registers at the first instruction of a kernel, and the tables they lead to.
//
// 64-bit entry (Linux boot.rst): long mode, paging with 4 GiB mapped to themselves, flat segments 0x10 and 0x18.
// 32-bit entry (PVH): protected mode, no paging, flat segments. In both, interrupts are off, and the other vCPUs wait
// for INIT and SIPI, which KVM handles.

import { kvm_dtable, kvm_regs, kvm_segment, kvm_sregs } from '../kvm/abi.ts'
import { GDT_START, PAGE_TABLES_START, RESET_PORT, RESET_VALUE, RESET_VECTOR } from './layout.ts'

import type { Entry } from './boot.ts'

/** Writes the descriptor table and the page tables that `entryRegisters` refer to, and what firmware there is. */
export function writeBootTables(ram: Uint8Array): void {
  const view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength)
  const put = (at: number, value: bigint): void => view.setBigUint64(at, value, true)
  put(GDT_START, 0n)
  put(GDT_START + 8, 0n)
  put(GDT_START + CODE, 0x00af_9b00_0000_ffffn)
  ram.set(RESET_CODE, RESET_VECTOR)
  put(GDT_START + DATA, 0x00cf_9300_0000_ffffn)
  const directory = PAGE_TABLES_START + 0x1000
  put(PAGE_TABLES_START, BigInt(directory) | PRESENT_WRITABLE)
  for (let gib = 0; gib < 4; gib++) {
    const table = directory + 0x1000 * (gib + 1)
    put(directory + 8 * gib, BigInt(table) | PRESENT_WRITABLE)
    for (let i = 0; i < 512; i++) put(table + 8 * i, BigInt(gib * 512 + i) << 21n | LARGE_PAGE | PRESENT_WRITABLE)
  }
}

/** struct kvm_regs and kvm_sregs for `entry`; `from`: the sregs of a vCPU that was just made. */
export function entryRegisters(entry: Entry, from: Uint8Array): { regs: Uint8Array; sregs: Uint8Array } {
  const regs = new Uint8Array(kvm_regs.size)
  const general = new DataView(regs.buffer)
  general.setBigUint64(kvm_regs.at.rip, BigInt(entry.start), true)
  general.setBigUint64(kvm_regs.at.rflags, 2n, true)
  general.setBigUint64(entry.mode === 64 ? kvm_regs.at.rsi : kvm_regs.at.rbx, BigInt(entry.info), true)

  const sregs = from.slice()
  const view = new DataView(sregs.buffer)
  const { at } = kvm_sregs
  segment(view, at.cs, CODE, TYPE_CODE, entry.mode === 64)
  for (const place of [at.ds, at.es, at.fs, at.gs, at.ss]) segment(view, place, DATA, TYPE_DATA, false)
  taskSegment(view, at.tr)
  view.setBigUint64(at.gdt + kvm_dtable.at.base, BigInt(GDT_START), true)
  view.setUint16(at.gdt + kvm_dtable.at.limit, DATA + 7, true)
  view.setBigUint64(at.idt + kvm_dtable.at.base, 0n, true)
  view.setUint16(at.idt + kvm_dtable.at.limit, 0, true)
  view.setBigUint64(at.cr0, entry.mode === 64 ? CR0_PE | CR0_ET | CR0_PG : CR0_PE | CR0_ET, true)
  view.setBigUint64(at.cr3, entry.mode === 64 ? BigInt(PAGE_TABLES_START) : 0n, true)
  view.setBigUint64(at.cr4, entry.mode === 64 ? CR4_PAE : 0n, true)
  view.setBigUint64(at.efer, entry.mode === 64 ? EFER_LME | EFER_LMA : 0n, true)
  return { regs, sregs }
}

// A flat segment of 4 GiB.
function segment(view: DataView, at: number, selector: number, type: number, isLong: boolean): void {
  const field = kvm_segment.at
  view.setBigUint64(at + field.base, 0n, true)
  view.setUint32(at + field.limit, 0xffff_ffff, true)
  view.setUint16(at + field.selector, selector, true)
  view.setUint8(at + field.type, type)
  view.setUint8(at + field.present, 1)
  view.setUint8(at + field.dpl, 0)
  view.setUint8(at + field.db, isLong ? 0 : 1)
  view.setUint8(at + field.s, 1)
  view.setUint8(at + field.l, isLong ? 1 : 0)
  view.setUint8(at + field.g, 1)
  view.setUint8(at + field.unusable, 0)
}

// The processor wants one to be there: busy, of 32 or 64 bits, never used.
function taskSegment(view: DataView, at: number): void {
  segment(view, at, 0, TYPE_TASK_BUSY, false)
  view.setUint32(at + kvm_segment.at.limit, 0xffff, true)
  view.setUint8(at + kvm_segment.at.db, 0)
  view.setUint8(at + kvm_segment.at.s, 0)
  view.setUint8(at + kvm_segment.at.g, 0)
}

// Real mode. Linux on hardware-reduced ACPI takes it for granted that it can reboot through EFI; where there is none,
// it jumps to the reset vector, and would find zeros there, which are instructions.
const RESET_CODE = [
  0xb0, RESET_VALUE, 0xba, RESET_PORT & 0xff, RESET_PORT >> 8, // mov al, RESET_VALUE; mov dx, RESET_PORT
  0xee, 0xf4, 0xeb, 0xfd,                                      // out dx, al; hlt; jmp to the hlt
]

// Selectors, as boot.rst wants them.
const CODE = 0x10
const DATA = 0x18
const TYPE_CODE = 0xb
const TYPE_DATA = 0x3
const TYPE_TASK_BUSY = 0xb
const PRESENT_WRITABLE = 0x3n
const LARGE_PAGE = 0x80n
const CR0_PE = 1n
const CR0_ET = 1n << 4n
const CR0_PG = 1n << 31n
const CR4_PAE = 1n << 5n
const EFER_LME = 1n << 8n
const EFER_LMA = 1n << 10n
