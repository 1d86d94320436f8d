// machine/layout.ts: what is where in a machine: guest-physical memory, I/O ports, interrupts, and its virtio devices.
//
//   0000_0500  GDT                                        000e_0000  ACPI tables, RSDP first: a BIOS's place
//   0000_6000  PVH start info, module and memory map      000f_f000  generation (VMGenID), 16 bytes
//   0000_7000  zero page (Linux boot protocol)            000f_fff0  reset vector: nine bytes that reset the machine
//   0000_9000  page tables of the first instruction       0010_0000  kernel, then RAM to 3.25 GiB at the most
//   0002_0000  kernel command line                        d000_0000  virtio-mmio windows, 4 KiB each
//   0009_fc00  from here to 1 MiB: not RAM to the guest   fec0_0000  IOAPIC, fee0_0000 local APIC (KVM's)
//                                                         1_0000_0000  the rest of RAM
//
// A device's place is its number in the table of devices: window, interrupt and name in ACPI follow from it, in our own
// VMM alone (QEMU has its own board).

import { HIGH_RAM_START, LOW_RAM_BYTES_MAX } from '../services/guest_ram.ts'
import type { MachineSpec } from './spec.ts'

export const GDT_START = 0x500
export const PVH_INFO_START = 0x6000
export const ZERO_PAGE_START = 0x7000
export const PAGE_TABLES_START = 0x9000
export const COMMAND_LINE_START = 0x2_0000
export const COMMAND_LINE_BYTES_MAX = 0x1_0000
/** Where RAM below 1 MiB ends: a BIOS would have its data there. */
const LOW_MEMORY_END = 0x9_fc00
export const ACPI_START = 0xe_0000
export const ACPI_END = 0xf_f000
export const GENERATION_START = 0xf_f000
/** Where a processor of a PC begins, and where a kernel jumps that knows no other way to reboot. */
export const RESET_VECTOR = 0xf_fff0
export const KERNEL_START = 0x10_0000

export const VIRTIO_MMIO_BASE = 0xd000_0000
export const VIRTIO_MMIO_BYTES = 0x1000
export const IOAPIC_START = 0xfec0_0000
export const LOCAL_APIC_START = 0xfee0_0000
/** Three pages that Intel's processors want while they pretend to be in real mode, and one for its page table. */
export const TSS_START = 0xfffb_d000
export const IDENTITY_MAP_START = 0xfffb_c000

export const SERIAL_PORT = 0x3f8
export const SERIAL_PORTS = 8
/** ACPI's sleep control and status registers (Hardware-reduced ACPI §4.8.3.7), and a reset register. */
export const SLEEP_CONTROL_PORT = 0x600
export const SLEEP_STATUS_PORT = 0x601
export const RESET_PORT = 0x602
export const RESET_VALUE = 1
/** The keyboard controller's command port: 0xfe resets an old PC, and is what Linux tries when ACPI didn't. */
export const KEYBOARD_PORT = 0x64
export const KEYBOARD_RESET = 0xfe

// Global system interrupts: pins of the one IOAPIC, all edge-triggered.
export const SERIAL_GSI = 4
const DEVICE_GSI = 5
export const POWER_GSI = 21
export const GENERATION_GSI = 22
/** Pins 5 to 20. */
const DEVICES_MAX = 16

/** Virtio devices (Virtio 1.3 §5), by what they are. */
export type DeviceKind = 'console' | 'rng' | 'balloon' | 'vsock' | 'net' | 'blk'

/** A virtio device's place. `unit` counts devices of its kind. */
export type DevicePlace = {
  readonly index: number
  readonly kind: DeviceKind
  readonly unit: number
  readonly gsi: number
  readonly base: number
}

/** The devices of a machine, in the order of their windows and interrupts. */
export function deviceTable(spec: Pick<MachineSpec, 'nics' | 'disks'>): readonly DevicePlace[] {
  const kinds: [DeviceKind, number][] = [
    ['console', 0], ['rng', 0], ['balloon', 0], ['vsock', 0],
    ...spec.nics.map((_, unit): [DeviceKind, number] => ['net', unit]),
    ...spec.disks.map((_, unit): [DeviceKind, number] => ['blk', unit]),
  ]
  if (kinds.length > DEVICES_MAX) throw new RangeError(`A machine has ${kinds.length} devices, ${DEVICES_MAX} at most`)
  return kinds.map(([kind, unit], index) => (
    { index, kind, unit, gsi: DEVICE_GSI + index, base: VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_BYTES }))
}

/** A part of RAM: where the guest has it, and where it is in the memfd. */
export type RamRange = { readonly start: number; readonly offset: number; readonly length: number }

/** RAM as the guest has it: one range, or two around the devices below 4 GiB. */
export function ramRanges(sizeBytes: number): readonly RamRange[] {
  const low = Math.min(sizeBytes, LOW_RAM_BYTES_MAX)
  const first = { start: 0, offset: 0, length: low }
  return sizeBytes === low ? [first] : [first, { start: HIGH_RAM_START, offset: low, length: sizeBytes - low }]
}

/** What firmware would say of memory: e820 types. */
export const E820_RAM = 1
const E820_RESERVED = 2

/** The memory map that a kernel is told of. */
export function memoryMap(sizeBytes: number): readonly { start: number; length: number; type: number }[] {
  const [low, high] = ramRanges(sizeBytes)
  return [
    { start: 0, length: LOW_MEMORY_END, type: E820_RAM },
    { start: LOW_MEMORY_END, length: KERNEL_START - LOW_MEMORY_END, type: E820_RESERVED },
    { start: KERNEL_START, length: low!.length - KERNEL_START, type: E820_RAM },
    ...(high === undefined ? [] : [{ start: high.start, length: high.length, type: E820_RAM }]),
  ]
}
