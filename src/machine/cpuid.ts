// machine/cpuid.ts: what a vCPU says of itself (CPUID): the host's processor as KVM can show it, less what we don't do.
//
// Kept are the features that KVM offers. Changed are the leaves that say which vCPU this is and how many there are: a
// machine is one socket of as many cores as it has vCPUs, without hyperthreads. Set is the bit that says "hypervisor",
// without which a guest looks for no paravirtual clock, and the deadline timer where KVM has one. Cleared is what
// could not be saved and moved, or what only a host needs: nested virtualisation, performance counters, MPX.
//
// Pure: bytes of kvm_cpuid_entry2 in, bytes out. Two hosts that give the same bytes are the same to a guest.

import { kvm_cpuid_entry2 as entry, KVM_CPUID_FLAG_SIGNIFCANT_INDEX } from '../kvm/abi.ts'

/** CPUID of vCPU `id` of `vcpus`. `supported`: what KVM_GET_SUPPORTED_CPUID says. */
export function vcpuCpuid(supported: Uint8Array, id: number, vcpus: number, hasDeadlineTimer: boolean): Uint8Array {
  const kept: Uint8Array[] = []
  for (let at = 0; at + entry.size <= supported.length; at += entry.size) {
    const bytes = supported.slice(at, at + entry.size)
    const leaf = new Leaf(bytes)
    if (isTopology(leaf.function) || DROPPED.includes(leaf.function)) continue
    adapt(leaf, id, vcpus, hasDeadlineTimer)
    kept.push(bytes)
  }
  for (const leaf of topology(0xb, id, vcpus)) kept.push(leaf)
  const highest = Math.max(...kept.map((bytes) => new Leaf(bytes).function).filter((leaf) => leaf < 0x4000_0000))
  const first = kept.map((bytes) => new Leaf(bytes)).find((leaf) => leaf.function === 0)
  if (first !== undefined) first.eax = Math.max(Math.min(first.eax, highest), 0xb)
  const all = new Uint8Array(kept.length * entry.size)
  kept.forEach((bytes, i) => all.set(bytes, i * entry.size))
  return all
}

// Leaves that say how processors lie on a chip: 0xb we make, 0x1f says the same with dies, 0x8000001e is AMD's.
const isTopology = (leaf: number): boolean => leaf === 0xb || leaf === 0x1f || leaf === 0x8000_001e
// Performance counters (0xa), SGX (0x12), processor trace (0x14), nested SVM (0x8000000a), encrypted memory
// (0x8000001f), AMD's counters (0x80000022).
const DROPPED: readonly number[] = [0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001f, 0x8000_0022]

function adapt(leaf: Leaf, id: number, vcpus: number, hasDeadlineTimer: boolean): void {
  switch (leaf.function) {
    case 1:
      // EBX: initial APIC id, how many ids a socket has, 64-byte lines for clflush.
      leaf.ebx = (leaf.ebx & 0xff00) | vcpus << 16 | id << 24
      leaf.ecx = (leaf.ecx & ~(ECX_VMX | ECX_PDCM | ECX_SMX | ECX_DTES64 | ECX_MONITOR)) | ECX_HYPERVISOR | ECX_X2APIC
      if (hasDeadlineTimer) leaf.ecx |= ECX_DEADLINE
      leaf.edx = vcpus > 1 ? leaf.edx | EDX_HTT : leaf.edx & ~EDX_HTT
      break
    case 4: // caches (Intel): the last level is all cores', the others each core's
    case 0x8000_001d: { // the same, AMD
      if ((leaf.eax & 0x1f) === 0) break
      const sharedBy = (leaf.eax >> 5 & 7) >= 3 ? vcpus : 1
      leaf.eax = (leaf.eax & 0x3fff) | (sharedBy - 1) << 14 | (leaf.function === 4 ? (vcpus - 1) << 26 : 0)
      break
    }
    case 0xd: // extended state: none of MPX (bits 3 and 4)
      if (leaf.index === 0) leaf.eax &= ~0x18
      break
    case 7:
      if (leaf.index === 0) leaf.ebx &= ~(EBX_MPX | EBX_SGX | EBX_PT)
      break
    case 0x8000_0001:
      leaf.ecx &= ~(ECX_SVM | ECX_PERFCTR_CORE | ECX_PERFCTR_NB | ECX_PERFCTR_LLC | ECX_TOPOEXT | ECX_CMP_LEGACY)
      if (vcpus > 1) leaf.ecx |= ECX_CMP_LEGACY
      break
    case 0x8000_0008:
      // ECX: how many cores, and how many bits of the APIC id number them.
      leaf.ecx = (vcpus - 1) | Math.ceil(Math.log2(vcpus)) << 12
      break
    default:
  }
}

// Extended topology: level 0, one thread a core; level 1, all cores of the socket; then the end.
function topology(number: number, id: number, vcpus: number): Uint8Array[] {
  const levels = [[0, 1, 1], [Math.ceil(Math.log2(vcpus)), vcpus, 2], [0, 0, 0]] as const
  return levels.map(([shift, count, kind], index) => {
    const bytes = new Uint8Array(entry.size)
    const leaf = new Leaf(bytes)
    leaf.function = number
    leaf.index = index
    leaf.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    leaf.eax = shift
    leaf.ebx = count
    leaf.ecx = kind << 8 | index
    leaf.edx = id
    return bytes
  })
}

class Leaf {
  readonly #view: DataView
  constructor(bytes: Uint8Array) { this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength) }

  get function(): number { return this.#view.getUint32(entry.at.function, true) }
  set function(value: number) { this.#view.setUint32(entry.at.function, value, true) }
  get index(): number { return this.#view.getUint32(entry.at.index, true) }
  set index(value: number) { this.#view.setUint32(entry.at.index, value, true) }
  set flags(value: number) { this.#view.setUint32(entry.at.flags, value, true) }
  get eax(): number { return this.#view.getUint32(entry.at.eax, true) }
  set eax(value: number) { this.#view.setUint32(entry.at.eax, value, true) }
  get ebx(): number { return this.#view.getUint32(entry.at.ebx, true) }
  set ebx(value: number) { this.#view.setUint32(entry.at.ebx, value, true) }
  get ecx(): number { return this.#view.getUint32(entry.at.ecx, true) }
  set ecx(value: number) { this.#view.setUint32(entry.at.ecx, value, true) }
  get edx(): number { return this.#view.getUint32(entry.at.edx, true) }
  set edx(value: number) { this.#view.setUint32(entry.at.edx, value, true) }
}

// Leaf 1.
const ECX_DTES64 = 1 << 2
const ECX_MONITOR = 1 << 3
const ECX_VMX = 1 << 5
const ECX_SMX = 1 << 6
const ECX_PDCM = 1 << 15
const ECX_X2APIC = 1 << 21
const ECX_DEADLINE = 1 << 24
const ECX_HYPERVISOR = 1 << 31
const EDX_HTT = 1 << 28
// Leaf 7.
const EBX_SGX = 1 << 2
const EBX_MPX = 1 << 14
const EBX_PT = 1 << 25
// Leaf 0x80000001.
const ECX_CMP_LEGACY = 1 << 1
const ECX_SVM = 1 << 2
const ECX_TOPOEXT = 1 << 22
const ECX_PERFCTR_CORE = 1 << 23
const ECX_PERFCTR_NB = 1 << 24
const ECX_PERFCTR_LLC = 1 << 28
