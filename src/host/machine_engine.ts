// host/machine_engine.ts: which engine runs a machine, and why that one.
//
// Our own monitor runs what KVM can run here, which is found out by running something once; QEMU runs the rest, on any
// machine, and what begins with firmware, which our monitor has none of. What was found is kept until the host ends.

import { CellarError } from '../base/errors.ts'
import { probeMachines } from '../machine/kvm_probe.ts'
import { probeQemu } from '../qemu/qemu_probe.ts'
import type { MachineTerms } from './spec.ts'

/** What runs a machine, and why, in words. `hasKvm`: KVM runs ordinary guests, QEMU's too. */
export type EngineChoice = { readonly name: 'kvm' | 'qemu'; readonly why: string }

type Probes = {
  readonly kvm: () => Promise<{ readonly ok: boolean; readonly reason: string }>
  readonly qemu: () => Promise<{ readonly ok: boolean; readonly reason: string; readonly path?: string | undefined }>
}

/** Chooses engines. */
export class Engines {
  readonly #probes: Probes
  #found: Promise<[kvm: Awaited<ReturnType<Probes['kvm']>>, qemu: Awaited<ReturnType<Probes['qemu']>>]> | undefined

  constructor(probes: Probes = { kvm: async () => await probeMachines(), qemu: async () => await probeQemu() }) {
    this.#probes = probes
  }

  /** `hasKernel`: its image has a kernel; else it begins with firmware. Throws MACHINE_NO_ENGINE. */
  async choose(name: string, wanted: MachineTerms['engine'], hasKernel: boolean): Promise<EngineChoice> {
    const [kvm, qemu] = await (this.#found ??= Promise.all([this.#probes.kvm(), this.#probes.qemu()]))
    const whyNot = !hasKernel ? 'it begins with firmware, as its image has no kernel' : kvm.ok ? undefined : kvm.reason
    if (whyNot === undefined && wanted !== 'qemu') return { name: 'kvm', why: kvm.reason }
    if (wanted === 'kvm') throw new CellarError('MACHINE_NO_ENGINE', [name, `KVM can't run it: ${whyNot}`])
    const why = `KVM: ${whyNot ?? kvm.reason}; QEMU: ${qemu.reason}`
    if (!qemu.ok) throw new CellarError('MACHINE_NO_ENGINE', [name, why])
    return { name: 'qemu', why: wanted === 'qemu' ? 'it is asked for' : whyNot! }
  }

  /** True if KVM runs ordinary guests. */
  async hasKvm(): Promise<boolean> {
    return (await (this.#found ??= Promise.all([this.#probes.kvm(), this.#probes.qemu()])))[0].ok
  }
}
