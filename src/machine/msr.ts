// machine/msr.ts: model-specific registers: what a vCPU begins with, and which of them are its state.
//
// KVM lists those that a guest can change (KVM_GET_MSR_INDEX_LIST); two more are state that it doesn't list. Order
// matters for two: the counter comes first, and the timer's deadline last, as setting that arms the timer.

/** Set before the first instruction, as firmware would: memory is cached unless a guest says otherwise. */
export const BOOT_MSRS: readonly (readonly [number, bigint])[] = [
  [0x1a0, 1n],        // IA32_MISC_ENABLE: fast string operations
  [0x2ff, 0x806n],    // IA32_MTRR_DEF_TYPE: enabled, write-back
]

/** The time stamp counter. */
export const IA32_TSC = 0x10
const IA32_TSC_DEADLINE = 0x6e0
const IA32_PAT = 0x277
const IA32_MTRR_DEF_TYPE = 0x2ff

/** The registers to be saved, in the order in which they are to be set again. `listed`: KVM's list. */
export function stateMsrs(listed: readonly number[]): readonly number[] {
  const all = new Set([...listed, IA32_PAT, IA32_MTRR_DEF_TYPE])
  all.delete(IA32_TSC)
  all.delete(IA32_TSC_DEADLINE)
  return [IA32_TSC, ...[...all].filter((index) => !isNested(index)).sort((a, b) => a - b), IA32_TSC_DEADLINE]
}

// What nested virtualisation would offer: guests here have none (cpuid.ts).
const isNested = (index: number): boolean => index >= 0x480 && index <= 0x491 || index === 0x3a
