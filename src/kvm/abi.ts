// kvm/abi.ts: what of <linux/kvm.h> the VMM uses on x86-64, spelled as there: grep finds the manual.
//
// The manual is Documentation/virt/kvm/api.rst of Linux. abi_test.ts compares every size, offset, number and constant
// of this file with the C header. A table of the specification's own: nothing here decides anything.

import { _IO, _IOR, _IOW, _IOWR, array, bytes, member, struct, u16, u32, u64, u8 } from './struct.ts'

const KVMIO = 0xae

export const KVM_API_VERSION = 12

export const KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
export const KVM_CREATE_VM = _IO(KVMIO, 0x01)
export const KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
export const KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)

export const KVM_CAP_MAX_VCPUS = 66
export const KVM_CAP_XSAVE2 = 208
export const KVM_CAP_SREGS2 = 200
export const KVM_CAP_IMMEDIATE_EXIT = 136
export const KVM_CAP_IRQCHIP = 0
export const KVM_CAP_IRQFD = 32
export const KVM_CAP_IOEVENTFD = 36
export const KVM_CAP_TSC_DEADLINE_TIMER = 72
export const KVM_CAP_COALESCED_PIO = 162

// Memory.

export const kvm_userspace_memory_region = struct('kvm_userspace_memory_region', {
  slot: u32, flags: u32, guest_phys_addr: u64, memory_size: u64, userspace_addr: u64,
})
export const KVM_MEM_LOG_DIRTY_PAGES = 1
export const kvm_dirty_log = struct('kvm_dirty_log', { slot: u32, padding1: u32, dirty_bitmap: u64 })

export const KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
export const KVM_GET_DIRTY_LOG = _IOW(KVMIO, 0x42, kvm_dirty_log)
export const KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, kvm_userspace_memory_region)
export const KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47)
export const KVM_SET_IDENTITY_MAP_ADDR = _IOW(KVMIO, 0x48, u64)

// Interrupts and notifications.

export const kvm_irqchip = struct('kvm_irqchip', { chip_id: u32, pad: u32, chip: bytes(512, 8) })
export const KVM_IRQCHIP_PIC_MASTER = 0
export const KVM_IRQCHIP_PIC_SLAVE = 1
export const KVM_IRQCHIP_IOAPIC = 2

export const kvm_irqfd = struct('kvm_irqfd', { fd: u32, gsi: u32, flags: u32, resamplefd: u32, pad: array(u8, 16) })
export const kvm_ioeventfd = struct('kvm_ioeventfd', {
  datamatch: u64, addr: u64, len: u32, fd: u32, flags: u32, pad: array(u8, 36),
})
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1
export const kvm_coalesced_mmio_zone = struct('kvm_coalesced_mmio_zone', { addr: u64, size: u32, pio: u32 })
export const kvm_coalesced_mmio = struct('kvm_coalesced_mmio', {
  phys_addr: u64, len: u32, pio: u32, data: array(u8, 8),
})
export const kvm_coalesced_mmio_ring = struct('kvm_coalesced_mmio_ring', {
  first: u32, last: u32, coalesced_mmio: array(kvm_coalesced_mmio, 0),
})
export const KVM_COALESCED_MMIO_PAGE_OFFSET = 2

export const KVM_CREATE_IRQCHIP = _IO(KVMIO, 0x60)
export const KVM_GET_IRQCHIP = _IOWR(KVMIO, 0x62, kvm_irqchip)
export const KVM_SET_IRQCHIP = _IOR(KVMIO, 0x63, kvm_irqchip)
export const KVM_REGISTER_COALESCED_MMIO = _IOW(KVMIO, 0x67, kvm_coalesced_mmio_zone)
export const KVM_IRQFD = _IOW(KVMIO, 0x76, kvm_irqfd)
export const KVM_IOEVENTFD = _IOW(KVMIO, 0x79, kvm_ioeventfd)

// Time.

export const kvm_clock_data = struct('kvm_clock_data', {
  clock: u64, flags: u32, pad0: u32, realtime: u64, host_tsc: u64, pad: array(u32, 4),
})
export const KVM_SET_CLOCK = _IOW(KVMIO, 0x7b, kvm_clock_data)
export const KVM_GET_CLOCK = _IOR(KVMIO, 0x7c, kvm_clock_data)
export const KVM_SET_TSC_KHZ = _IO(KVMIO, 0xa2)
export const KVM_GET_TSC_KHZ = _IO(KVMIO, 0xa3)
export const KVM_KVMCLOCK_CTRL = _IO(KVMIO, 0xad)

// What the processor says it is.

export const kvm_cpuid_entry2 = struct('kvm_cpuid_entry2', {
  function: u32, index: u32, flags: u32, eax: u32, ebx: u32, ecx: u32, edx: u32, padding: array(u32, 3),
})
export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
export const kvm_cpuid2 = struct('kvm_cpuid2', { nent: u32, padding: u32, entries: array(kvm_cpuid_entry2, 0) })
export const KVM_GET_SUPPORTED_CPUID = _IOWR(KVMIO, 0x05, kvm_cpuid2)
export const KVM_SET_CPUID2 = _IOW(KVMIO, 0x90, kvm_cpuid2)

export const kvm_msr_entry = struct('kvm_msr_entry', { index: u32, reserved: u32, data: u64 })
export const kvm_msrs = struct('kvm_msrs', { nmsrs: u32, pad: u32, entries: array(kvm_msr_entry, 0) })
export const kvm_msr_list = struct('kvm_msr_list', { nmsrs: u32, indices: array(u32, 0) })
export const KVM_GET_MSR_INDEX_LIST = _IOWR(KVMIO, 0x02, kvm_msr_list)
export const KVM_GET_MSRS = _IOWR(KVMIO, 0x88, kvm_msrs)
export const KVM_SET_MSRS = _IOW(KVMIO, 0x89, kvm_msrs)

// A vCPU's state.

export const kvm_regs = struct('kvm_regs', {
  rax: u64, rbx: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64, rsp: u64, rbp: u64,
  r8: u64, r9: u64, r10: u64, r11: u64, r12: u64, r13: u64, r14: u64, r15: u64, rip: u64, rflags: u64,
})
export const kvm_segment = struct('kvm_segment', {
  base: u64, limit: u32, selector: u16, type: u8, present: u8, dpl: u8, db: u8, s: u8, l: u8, g: u8, avl: u8,
  unusable: u8, padding: u8,
})
export const kvm_dtable = struct('kvm_dtable', { base: u64, limit: u16, padding: array(u16, 3) })
const system = {
  cs: kvm_segment, ds: kvm_segment, es: kvm_segment, fs: kvm_segment, gs: kvm_segment, ss: kvm_segment,
  tr: kvm_segment, ldt: kvm_segment, gdt: kvm_dtable, idt: kvm_dtable,
  cr0: u64, cr2: u64, cr3: u64, cr4: u64, cr8: u64, efer: u64, apic_base: u64,
} as const
export const kvm_sregs = struct('kvm_sregs', { ...system, interrupt_bitmap: array(u64, 4) })
export const kvm_sregs2 = struct('kvm_sregs2', { ...system, flags: u64, pdptrs: array(u64, 4) })
export const kvm_lapic_state = struct('kvm_lapic_state', { regs: array(u8, 0x400) })
export const kvm_mp_state = struct('kvm_mp_state', { mp_state: u32 })
export const KVM_MP_STATE_RUNNABLE = 0
export const KVM_MP_STATE_UNINITIALIZED = 1
export const KVM_MP_STATE_HALTED = 3
export const kvm_vcpu_events = struct('kvm_vcpu_events', {
  exception: bytes(8, 4), interrupt: bytes(4, 1), nmi: bytes(4, 1), sipi_vector: u32, flags: u32, smi: bytes(4, 1),
  triple_fault: bytes(1, 1), reserved: array(u8, 26), exception_has_payload: u8, exception_payload: u64,
})
export const kvm_debugregs = struct('kvm_debugregs', {
  db: array(u64, 4), dr6: u64, dr7: u64, flags: u64, reserved: array(u64, 9),
})
export const kvm_xsave = struct('kvm_xsave', { region: array(u32, 1024), extra: array(u32, 0) })
export const kvm_xcrs = struct('kvm_xcrs', {
  nr_xcrs: u32, flags: u32, xcrs: array(bytes(16, 8), 16), padding: array(u64, 16),
})

export const KVM_RUN = _IO(KVMIO, 0x80)
export const KVM_GET_REGS = _IOR(KVMIO, 0x81, kvm_regs)
export const KVM_SET_REGS = _IOW(KVMIO, 0x82, kvm_regs)
export const KVM_GET_SREGS = _IOR(KVMIO, 0x83, kvm_sregs)
export const KVM_SET_SREGS = _IOW(KVMIO, 0x84, kvm_sregs)
export const KVM_GET_SREGS2 = _IOR(KVMIO, 0xcc, kvm_sregs2)
export const KVM_SET_SREGS2 = _IOW(KVMIO, 0xcd, kvm_sregs2)
export const KVM_GET_LAPIC = _IOR(KVMIO, 0x8e, kvm_lapic_state)
export const KVM_SET_LAPIC = _IOW(KVMIO, 0x8f, kvm_lapic_state)
export const KVM_GET_MP_STATE = _IOR(KVMIO, 0x98, kvm_mp_state)
export const KVM_SET_MP_STATE = _IOW(KVMIO, 0x99, kvm_mp_state)
export const KVM_GET_VCPU_EVENTS = _IOR(KVMIO, 0x9f, kvm_vcpu_events)
export const KVM_SET_VCPU_EVENTS = _IOW(KVMIO, 0xa0, kvm_vcpu_events)
export const KVM_GET_DEBUGREGS = _IOR(KVMIO, 0xa1, kvm_debugregs)
export const KVM_SET_DEBUGREGS = _IOW(KVMIO, 0xa2, kvm_debugregs)
export const KVM_GET_XSAVE = _IOR(KVMIO, 0xa4, kvm_xsave)
export const KVM_SET_XSAVE = _IOW(KVMIO, 0xa5, kvm_xsave)
export const KVM_GET_XSAVE2 = _IOR(KVMIO, 0xcf, kvm_xsave)
export const KVM_GET_XCRS = _IOR(KVMIO, 0xa6, kvm_xcrs)
export const KVM_SET_XCRS = _IOW(KVMIO, 0xa7, kvm_xcrs)

// Why a vCPU stopped: the page that its thread shares with the kernel.

export const kvm_run = struct('kvm_run', {
  request_interrupt_window: u8, immediate_exit: u8, padding1: array(u8, 6),
  exit_reason: u32, ready_for_interrupt_injection: u8, if_flag: u8, flags: u16,
  cr8: u64, apic_base: u64,
  hw: bytes(0, 8), fail_entry: bytes(0, 8), io: bytes(0, 8), mmio: bytes(0, 8), internal: bytes(0, 8),
  system_event: bytes(0, 8), padding: array(u8, 256),
  kvm_valid_regs: u64, kvm_dirty_regs: u64, s: array(u8, 2048),
})
export const kvm_run_fail_entry = member(kvm_run, 'fail_entry', { hardware_entry_failure_reason: u64, cpu: u32 })
export const kvm_run_io = member(kvm_run, 'io', { direction: u8, size: u8, port: u16, count: u32, data_offset: u64 })
export const kvm_run_mmio = member(kvm_run, 'mmio', { phys_addr: u64, data: array(u8, 8), len: u32, is_write: u8 })
export const kvm_run_internal = member(kvm_run, 'internal', { suberror: u32, ndata: u32, data: array(u64, 16) })
export const kvm_run_system_event = member(kvm_run, 'system_event', { type: u32, ndata: u32, flags: u64 })

export const KVM_EXIT_UNKNOWN = 0
export const KVM_EXIT_EXCEPTION = 1
export const KVM_EXIT_IO = 2
export const KVM_EXIT_HYPERCALL = 3
export const KVM_EXIT_DEBUG = 4
export const KVM_EXIT_HLT = 5
export const KVM_EXIT_MMIO = 6
export const KVM_EXIT_IRQ_WINDOW_OPEN = 7
export const KVM_EXIT_SHUTDOWN = 8
export const KVM_EXIT_FAIL_ENTRY = 9
export const KVM_EXIT_INTR = 10
export const KVM_EXIT_INTERNAL_ERROR = 17
export const KVM_EXIT_SYSTEM_EVENT = 24
export const KVM_EXIT_IO_OUT = 1
export const KVM_SYSTEM_EVENT_SHUTDOWN = 1
export const KVM_SYSTEM_EVENT_RESET = 2
export const KVM_SYSTEM_EVENT_CRASH = 3
