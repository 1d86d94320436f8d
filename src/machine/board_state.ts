// machine/board_state.ts: the state of a board and its vCPUs as sections of a snapshot, and back.
//
// Only while no vCPU runs. Structs are KVM's own, bit for bit; a section is a u16 version and the struct. What comes
// back is hostile: a section is there, has the size that the struct has here, and holds what KVM takes, or the machine
// isn't begun (SNAPSHOT_DAMAGED). A machine goes on only where its processor looks the same to it, feature by feature
// (SNAPSHOT_FOREIGN): a kernel looks once.
//
// Order matters twice. When saving, the run state comes first, as asking for it settles a pending INIT. When setting,
// registers that others depend on come first: CPUID, then the tables below in their order, events last.

import { CellarError } from '../base/errors.ts'
import * as abi from '../kvm/abi.ts'
import { IA32_TSC } from './msr.ts'

import type { Vcpu } from '../kvm/kvm.ts'
import type { Board } from './board.ts'
import type { Sections } from './engine.ts'

/** What the board and its vCPUs are now. */
export function saveBoard(board: Board): Map<string, Uint8Array> {
  const sections = new Map<string, Uint8Array>()
  const put = (name: string, bytes: Uint8Array): void => void sections.set(name, withVersion(bytes))
  for (const { id } of board.vcpus) put(`vcpu${id}/cpuid`, board.cpuids[id]!)
  for (const vcpu of board.vcpus) {
    for (const part of partsOf(board)) put(`vcpu${vcpu.id}/${part.name}`, vcpu.get(part.get, part))
    put(`vcpu${vcpu.id}/msrs`, saveMsrs(board, vcpu))
  }
  put('board/clock', saveClock(board))
  for (const [name, chip] of CHIPS) {
    put(`board/${name}`, board.vm.get(abi.KVM_GET_IRQCHIP, abi.kvm_irqchip,
      (view) => view.setUint32(abi.kvm_irqchip.at.chip_id, chip, true)))
  }
  return sections
}

/** Sets what `saveBoard` has saved. Throws SNAPSHOT_DAMAGED or SNAPSHOT_FOREIGN; the board is of no use then. */
export function restoreBoard(board: Board, sections: Sections): void {
  for (const { id } of board.vcpus) {
    if (!equal(take(sections, `vcpu${id}/cpuid`), board.cpuids[id]!)) {
      throw new CellarError('SNAPSHOT_FOREIGN', ["this host's processor has other features than the one it ran on"])
    }
  }
  if (sections.has(`vcpu${board.vcpus.length}/cpuid`)) {
    throw new CellarError('SNAPSHOT_DAMAGED', ['machine', `it has more than ${board.vcpus.length} vCPUs`])
  }
  const clock = take(sections, 'board/clock', CLOCK_BYTES)
  const clockView = new DataView(clock.buffer, clock.byteOffset)
  const khz = clockView.getUint32(CLOCK_KHZ, true)
  for (const [name, chip] of CHIPS) {
    const bytes = take(sections, `board/${name}`, abi.kvm_irqchip.size).slice()
    new DataView(bytes.buffer).setUint32(abi.kvm_irqchip.at.chip_id, chip, true)
    accepted(`board/${name}`, () => board.vm.set(abi.KVM_SET_IRQCHIP, bytes))
  }
  for (const vcpu of board.vcpus) {
    if (vcpu.tscKhz() !== khz && !vcpu.setTscKhz(khz)) {
      throw new CellarError('SNAPSHOT_FOREIGN', [`its clock counts ${khz} kHz, this host's ${vcpu.tscKhz()}`])
    }
    for (const part of partsOf(board)) {
      const bytes = take(sections, `vcpu${vcpu.id}/${part.name}`, part.size)
      if (part.name !== 'events') accepted(`vcpu${vcpu.id}/${part.name}`, () => vcpu.set(part.set, bytes))
    }
    restoreMsrs(board, vcpu, take(sections, `vcpu${vcpu.id}/msrs`), clockView.getBigUint64(CLOCK_TSC, true))
    const events = take(sections, `vcpu${vcpu.id}/events`, abi.kvm_vcpu_events.size)
    accepted(`vcpu${vcpu.id}/events`, () => vcpu.set(abi.KVM_SET_VCPU_EVENTS, events))
  }
  const data = new Uint8Array(abi.kvm_clock_data.size)
  new DataView(data.buffer).setBigUint64(abi.kvm_clock_data.at.clock, clockView.getBigUint64(CLOCK_NS, true), true)
  accepted('board/clock', () => board.vm.set(abi.KVM_SET_CLOCK, data))
}

type Part = { readonly name: string; readonly size: number; readonly get: bigint; readonly set: bigint }

// A vCPU's structs, in the order in which they are set.
function partsOf({ hasSregs2, xsaveBytes }: Board): readonly Part[] {
  const sregs = hasSregs2 ?
    { name: 'sregs2', size: abi.kvm_sregs2.size, get: abi.KVM_GET_SREGS2, set: abi.KVM_SET_SREGS2 } :
    { name: 'sregs', size: abi.kvm_sregs.size, get: abi.KVM_GET_SREGS, set: abi.KVM_SET_SREGS }
  const large = xsaveBytes > abi.kvm_xsave.size
  return [
    { name: 'mp_state', size: abi.kvm_mp_state.size, get: abi.KVM_GET_MP_STATE, set: abi.KVM_SET_MP_STATE },
    { name: 'regs', size: abi.kvm_regs.size, get: abi.KVM_GET_REGS, set: abi.KVM_SET_REGS },
    sregs,
    { name: 'xsave', size: xsaveBytes, get: large ? abi.KVM_GET_XSAVE2 : abi.KVM_GET_XSAVE, set: abi.KVM_SET_XSAVE },
    { name: 'xcrs', size: abi.kvm_xcrs.size, get: abi.KVM_GET_XCRS, set: abi.KVM_SET_XCRS },
    { name: 'debugregs', size: abi.kvm_debugregs.size, get: abi.KVM_GET_DEBUGREGS, set: abi.KVM_SET_DEBUGREGS },
    { name: 'lapic', size: abi.kvm_lapic_state.size, get: abi.KVM_GET_LAPIC, set: abi.KVM_SET_LAPIC },
    { name: 'events', size: abi.kvm_vcpu_events.size, get: abi.KVM_GET_VCPU_EVENTS, set: abi.KVM_SET_VCPU_EVENTS },
  ]
}

// The clock: nanoseconds of kvmclock, the time stamp counter, and its speed. One counter for all vCPUs: the last that
// is read is ahead of what any guest has seen, and KVM keeps counters in step that are set to the same value.
function saveClock(board: Board): Uint8Array {
  const bytes = new Uint8Array(CLOCK_BYTES)
  const view = new DataView(bytes.buffer)
  const last = board.vcpus.at(-1)!
  const clock = board.vm.get(abi.KVM_GET_CLOCK, abi.kvm_clock_data)
  view.setBigUint64(CLOCK_NS, new DataView(clock.buffer).getBigUint64(abi.kvm_clock_data.at.clock, true), true)
  view.setBigUint64(CLOCK_TSC, last.msr(IA32_TSC) ?? 0n, true)
  view.setUint32(CLOCK_KHZ, last.tscKhz(), true)
  return bytes
}

const CLOCK_NS = 0
const CLOCK_TSC = 8
const CLOCK_KHZ = 16
const CLOCK_BYTES = 24

function saveMsrs(board: Board, vcpu: Vcpu): Uint8Array {
  const entries = board.msrs.flatMap((index) => {
    const value = vcpu.msr(index)
    return value === undefined ? [] : [{ index, value }]
  })
  const bytes = new Uint8Array(entries.length * abi.kvm_msr_entry.size)
  const view = new DataView(bytes.buffer)
  entries.forEach(({ index, value }, i) => {
    view.setUint32(i * abi.kvm_msr_entry.size, index, true)
    view.setBigUint64(i * abi.kvm_msr_entry.size + abi.kvm_msr_entry.at.data, value, true)
  })
  return bytes
}

function restoreMsrs(board: Board, vcpu: Vcpu, bytes: Uint8Array, tsc: bigint): void {
  const { size, at } = abi.kvm_msr_entry
  const damaged = (why: string): CellarError => new CellarError('SNAPSHOT_DAMAGED', [`vcpu${vcpu.id}/msrs`, why])
  if (bytes.length % size !== 0 || bytes.length > board.msrs.length * size) throw damaged('its size is wrong')
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const known = new Set(board.msrs)
  for (let i = 0; i < bytes.length; i += size) {
    const index = view.getUint32(i, true)
    const value = index === IA32_TSC ? tsc : view.getBigUint64(i + at.data, true)
    if (!known.has(index)) throw damaged(`register 0x${index.toString(16)} is no state of a vCPU here`)
    // A register that can be read only has the right value, or this isn't the right host.
    if (!vcpu.setMsr(index, value) && vcpu.msr(index) !== value) {
      const why = `register 0x${index.toString(16)} can't be 0x${value.toString(16)} here`
      throw new CellarError('SNAPSHOT_FOREIGN', [why])
    }
  }
}

// A section without its version; `size`: what it has to have.
function take(sections: Sections, name: string, size?: number): Uint8Array {
  const bytes = sections.get(name)
  if (bytes === undefined) throw new CellarError('SNAPSHOT_DAMAGED', [name, 'it is missing'])
  if (bytes.length < 2 || (size !== undefined && bytes.length !== 2 + size)) {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, `it has ${bytes.length} bytes`])
  }
  if ((bytes[0]! | bytes[1]! << 8) !== VERSION) {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, 'its version is unknown'])
  }
  // A copy: structs of KVM are aligned.
  return bytes.slice(2)
}

function withVersion(bytes: Uint8Array): Uint8Array {
  const section = new Uint8Array(2 + bytes.length)
  section[0] = VERSION
  section.set(bytes, 2)
  return section
}

function accepted(name: string, set: () => void): void {
  try {
    set()
  } catch (error) {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, (error as Error).message], { cause: error })
  }
}

const equal = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, i) => byte === b[i])

const VERSION = 1
const CHIPS: readonly (readonly [string, number])[] = [
  ['pic0', abi.KVM_IRQCHIP_PIC_MASTER], ['pic1', abi.KVM_IRQCHIP_PIC_SLAVE], ['ioapic', abi.KVM_IRQCHIP_IOAPIC],
]
