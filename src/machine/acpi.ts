// machine/acpi.ts: how a guest learns what its machine has: ACPI tables, hardware-reduced (ACPI 6.5 §4.1, §5.2).
//
// A board without firmware, PCI, keyboard or clock chip says so here, and a guest doesn't look for them: each probe
// that nobody answers is an exit. Processors are in the MADT; virtio devices (LNRO0005), the serial line, the power
// button and the generation (VMGenID) in the DSDT. Sleep state 5 is a write to a port of ours, and so is a reset.
//
// `acpiTables` is pure: what it makes goes to ACPI_START, of which the tables' addresses are made.

import { assert } from '../base/assert.ts'
import * as aml from './aml.ts'
import {
  ACPI_END, ACPI_START, GENERATION_GSI, GENERATION_START, IOAPIC_START, LOCAL_APIC_START, POWER_GSI, RESET_PORT,
  RESET_VALUE, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, VIRTIO_MMIO_BYTES,
} from './layout.ts'

import type { DevicePlace } from './layout.ts'

const { little } = aml

/** All tables as one run of bytes for ACPI_START; the RSDP is its beginning. */
export function acpiTables(options: { vcpus: number; devices: readonly DevicePlace[] }): Uint8Array {
  const laid: number[] = new Array<number>(RSDP_BYTES).fill(0)
  const lay = (table: readonly number[]): number => {
    const address = ACPI_START + laid.length
    laid.push(...table, ...new Array<number>(-table.length & 15).fill(0))
    return address
  }
  const dsdt = lay(table('DSDT', 2, dsdtBody(options.devices)))
  const fadt = lay(table('FACP', 6, fadtBody(dsdt)))
  const madt = lay(table('APIC', 5, madtBody(options.vcpus)))
  const xsdt = lay(table('XSDT', 1, [...little(fadt, 8), ...little(madt, 8)]))
  laid.splice(0, RSDP_BYTES, ...rsdp(xsdt))
  assert(laid.length <= ACPI_END - ACPI_START, 'ACPI tables fit', laid.length)
  return Uint8Array.from(laid)
}

/** The value that a guest writes to SLEEP_CONTROL_PORT to go off: SLP_TYP 5, SLP_EN (§4.8.3.7). */
export const SLEEP_OFF = 5 << 2 | 1 << 5

const RSDP_BYTES = 48 // 36, and up to the next multiple of 16
const OEM = text('CELLAR')

function rsdp(xsdt: number): number[] {
  const first = [...text('RSD PTR '), 0, ...OEM, 2, ...little(0, 4)]
  first[8] = checksum(first)
  const whole = [...first, ...little(36, 4), ...little(xsdt, 8), 0, 0, 0, 0]
  whole[32] = checksum(whole)
  return [...whole, ...new Array<number>(RSDP_BYTES - whole.length).fill(0)]
}

// A system description table (§5.2.6).
function table(signature: string, revision: number, body: readonly number[]): number[] {
  const bytes = [
    ...text(signature), ...little(36 + body.length, 4), revision, 0, ...OEM, ...text('MACHINE', 8), ...little(1, 4),
    ...text('CELR'), ...little(1, 4), ...body,
  ]
  bytes[9] = checksum(bytes)
  return bytes
}

const FADT_BYTES = 276 // revision 6
// Fixed feature flags (§5.2.9.1): a power button that is a device, a reset register, no ACPI hardware of a PC.
const FADT_FLAGS = 1 << 4 | 1 << 10 | 1 << 20
// IA-PC boot flags (§5.2.9.3): no VGA to probe for, no clock chip; and, bits that are 0: no ISA, no keyboard.
const NO_VGA_NO_RTC = 1 << 2 | 1 << 5

function fadtBody(dsdt: number): number[] {
  const whole = new Uint8Array(FADT_BYTES)
  whole.set(little(NO_VGA_NO_RTC, 2), 109)
  whole.set(little(FADT_FLAGS, 4), 112)
  whole.set(ioRegister(RESET_PORT), 116)
  whole[128] = RESET_VALUE
  whole[131] = 5 // minor version
  whole.set(little(dsdt, 8), 140)
  whole.set(ioRegister(SLEEP_CONTROL_PORT), 244)
  whole.set(ioRegister(SLEEP_STATUS_PORT), 256)
  whole.set(text('CELLAR', 8), 268) // whose hypervisor it is
  return [...whole.subarray(36)]
}

// Generic Address Structure (§5.2.3.2): one byte in I/O space.
const ioRegister = (port: number): number[] => [1, 8, 0, 1, ...little(port, 8)]

function madtBody(vcpus: number): number[] {
  const processors: number[] = []
  // Local APIC (§5.2.12.2): number, APIC id, enabled.
  for (let id = 0; id < vcpus; id++) processors.push(0, 8, id, id, ...little(1, 4))
  // IOAPIC (§5.2.12.3). Its id is none of a processor's.
  const ioapic = [1, 12, vcpus, 0, ...little(IOAPIC_START, 4), ...little(0, 4)]
  return [...little(LOCAL_APIC_START, 4), ...little(0, 4), ...processors, ...ioapic]
}

function dsdtBody(devices: readonly DevicePlace[]): readonly number[] {
  return [
    ...aml.scope('\\_SB_',
      ...devices.map(virtioDevice),
      aml.device('COM1',
        aml.named('_HID', aml.eisaId('PNP0501')),
        aml.named('_UID', aml.integer(1)),
        aml.named('_CRS', aml.resources(aml.ioPorts(SERIAL_PORT, SERIAL_PORTS), aml.edgeInterrupts(SERIAL_GSI)))),
      aml.device('PWRB', aml.named('_HID', aml.eisaId('PNP0C0C')), aml.named('_UID', aml.integer(0))),
      generationDevice(),
      // Generic Event Device (§5.6.9): which interrupt means what.
      aml.device('GED_',
        aml.named('_HID', aml.string('ACPI0013')),
        aml.named('_UID', aml.integer(0)),
        aml.named('_CRS', aml.resources(aml.edgeInterrupts(POWER_GSI), aml.edgeInterrupts(GENERATION_GSI))),
        aml.method('_EVT', 1,
          aml.ifFirstArgumentIs(POWER_GSI, aml.notify('PWRB', 0x80)),
          aml.ifFirstArgumentIs(GENERATION_GSI, aml.notify('VGEN', 0x80))))),
    ...aml.named('\\_S5_', aml.packageOf(...[5, 0, 0, 0].map(aml.integer))),
  ]
}

// Virtio over MMIO (Virtio 1.3 §4.2), as other monitors and Linux have agreed on it: id LNRO0005.
function virtioDevice({ index, base, gsi }: DevicePlace): aml.Aml {
  return aml.device(`VR${index.toString(16).toUpperCase().padStart(2, '0')}`,
    aml.named('_HID', aml.string('LNRO0005')),
    aml.named('_UID', aml.integer(index)),
    aml.named('_CCA', aml.integer(1)),
    aml.named('_CRS', aml.resources(aml.memory32Fixed(base, VIRTIO_MMIO_BYTES), aml.edgeInterrupts(gsi))))
}

// VMGenID: ADDR is where the 16 bytes are, in two halves. Two spellings of the id: Linux matches letter by letter.
function generationDevice(): aml.Aml {
  return aml.device('VGEN',
    aml.named('_HID', aml.string('CELR0001')),
    aml.named('_CID', aml.packageOf(aml.string('VM_Gen_Counter'), aml.string('VM_GEN_COUNTER'))),
    aml.named('_DDN', aml.string('VM_Gen_Counter')),
    aml.named('ADDR', aml.packageOf(aml.integer(GENERATION_START), aml.integer(0))))
}

function text(value: string, length = value.length): number[] {
  return [...value.padEnd(length)].map((character) => character.charCodeAt(0))
}

// What makes the bytes add up to 0.
function checksum(bytes: readonly number[]): number {
  return -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff
}
