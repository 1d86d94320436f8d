// machine/board.ts: a machine's board in KVM: memory, interrupt controllers, vCPUs and where they begin.
//
// The main thread makes it and reads and sets its state while no vCPU runs; the vCPUs' threads (vcpu_threads.ts) have
// their descriptors and nothing else. RAM is mapped by the caller and outlives the board. Elsewhere: what is where
// (layout.ts), what a kernel finds (boot.ts, boot_state.ts), state (board_state.ts).

import * as abi from '../kvm/abi.ts'
import { Kvm } from '../kvm/kvm.ts'
import { Scratch } from '../sys/libc.ts'
import { CellarError } from '../base/errors.ts'
import { entryRegisters } from './boot_state.ts'
import { vcpuCpuid } from './cpuid.ts'
import { IDENTITY_MAP_START, TSS_START, ramRanges } from './layout.ts'
import { BOOT_MSRS, stateMsrs } from './msr.ts'

import type { Vcpu, Vm } from '../kvm/kvm.ts'
import type { Mapped } from '../sys/guest_ram.ts'
import type { Entry } from './boot.ts'

const PAGE_BYTES = 4096

/** A machine's board. */
export class Board {
  readonly vm: Vm
  readonly vcpus: readonly Vcpu[]
  /** CPUID of each vCPU, and the model-specific registers that are its state. */
  readonly cpuids: readonly Uint8Array[]
  readonly msrs: readonly number[]
  readonly hasSregs2: boolean
  readonly xsaveBytes: number
  readonly #ram: Mapped

  /** Throws CellarError for what KVM here doesn't do; nothing is left over then. */
  constructor(options: { vcpus: number; ram: Mapped; kvmFd?: number | undefined }) {
    using undo = new DisposableStack()
    const kvm = undo.use(new Kvm(options.kvmFd))
    const most = kvm.capability(abi.KVM_CAP_MAX_VCPUS)
    if (options.vcpus > most) throw new CellarError('MACHINE_VCPUS_MANY', [options.vcpus, most])
    for (const [capability, what] of NEEDED) {
      if (kvm.capability(capability) === 0) throw new CellarError('KVM_FAILED', ['run machines', `it has no ${what}`])
    }
    this.#ram = options.ram
    this.hasSregs2 = kvm.capability(abi.KVM_CAP_SREGS2) > 0
    const supported = kvm.supportedCpuid()
    const hasDeadlineTimer = kvm.capability(abi.KVM_CAP_TSC_DEADLINE_TIMER) > 0
    this.msrs = stateMsrs(kvm.msrIndexes())
    this.vm = kvm.createVm()
    undo.defer(() => this.vm.close())
    this.xsaveBytes = this.vm.xsaveBytes
    this.#setMemory(false)
    this.vm.createIrqchip({ tss: TSS_START, identityMap: IDENTITY_MAP_START })
    const vcpus: Vcpu[] = []
    undo.defer(() => vcpus.forEach((vcpu) => vcpu.close()))
    const cpuids: Uint8Array[] = []
    for (let id = 0; id < options.vcpus; id++) {
      const cpuid = vcpuCpuid(supported, id, options.vcpus, hasDeadlineTimer)
      const vcpu = this.vm.createVcpu(id)
      vcpus.push(vcpu)
      vcpu.setCpuid(cpuid)
      cpuids.push(cpuid)
    }
    this.vcpus = vcpus
    this.cpuids = cpuids
    undo.move()
    kvm[Symbol.dispose]()
  }

  /** Where the first vCPU begins. The others wait for it to wake them. */
  begin(entry: Entry): void {
    const [first] = this.vcpus
    const { regs, sregs } = entryRegisters(entry, first!.get(abi.KVM_GET_SREGS, abi.kvm_sregs))
    first!.set(abi.KVM_SET_SREGS, sregs)
    first!.set(abi.KVM_SET_REGS, regs)
    for (const vcpu of this.vcpus) {
      for (const [index, value] of BOOT_MSRS) vcpu.setMsr(index, value)
      vcpu.set(abi.KVM_SET_LAPIC, withLocalInterrupts(vcpu.get(abi.KVM_GET_LAPIC, abi.kvm_lapic_state)))
    }
  }

  /** Remembers from now on which pages vCPUs write. */
  watchWrites(): void {
    this.#setMemory(true)
  }

  /** Pages that vCPUs have written since `watchWrites`, as bits. They are no longer watched. */
  takeWritten(): Uint8Array {
    const written = new Uint8Array(Math.ceil(this.#ram.bytes.length / PAGE_BYTES / 8))
    ramRanges(this.#ram.bytes.length).forEach(({ offset, length }, slot) => {
      const bits = new Scratch(Math.ceil(length / PAGE_BYTES / 64) * 8)
      this.vm.dirtyLog(slot, bits)
      written.set(bits.bytes.subarray(0, Math.ceil(length / PAGE_BYTES / 8)), offset / PAGE_BYTES / 8)
    })
    this.#setMemory(false)
    return written
  }

  /** No thread runs a vCPU any more. */
  close(): void {
    for (const vcpu of this.vcpus) vcpu.close()
    this.vm.close()
  }

  #setMemory(logDirty: boolean): void {
    ramRanges(this.#ram.bytes.length).forEach(({ start, offset, length }, slot) =>
      this.vm.setMemory({ slot, start, address: this.#ram.address + BigInt(offset), length, logDirty }))
  }
}

// Interrupts from a PIC come in through LINT0, NMIs through LINT1 (Intel SDM 3, §11.5.1): as firmware leaves them.
function withLocalInterrupts(lapic: Uint8Array): Uint8Array {
  const view = new DataView(lapic.buffer)
  view.setUint32(LVT_LINT0, (view.getUint32(LVT_LINT0, true) & ~LVT_MODE_AND_MASK) | LVT_EXTINT, true)
  view.setUint32(LVT_LINT1, (view.getUint32(LVT_LINT1, true) & ~LVT_MODE_AND_MASK) | LVT_NMI, true)
  return lapic
}

const LVT_LINT0 = 0x350
const LVT_LINT1 = 0x360
const LVT_MODE_AND_MASK = 0x1_0700
const LVT_EXTINT = 0x700
const LVT_NMI = 0x400

const NEEDED: readonly (readonly [number, string])[] = [
  [abi.KVM_CAP_IRQCHIP, 'interrupt controllers'], [abi.KVM_CAP_IRQFD, 'irqfd'], [abi.KVM_CAP_IOEVENTFD, 'ioeventfd'],
  [abi.KVM_CAP_IMMEDIATE_EXIT, 'immediate exit'],
]
