// machine/kvm_probe_worker.ts: a guest that does what every kernel does as it begins, and how far it came.
//
// It is entered in long mode, counts, takes page tables of its own with itself in the upper half, takes an exception
// through its own table, sets a register that system calls need, and goes to user mode and back. After each it writes
// the number of the step to a port. At the end it halts. Elsewhere: what that means for an operator (kvm_probe.ts).

import { parentPort } from 'node:worker_threads'
import { EINTR, ERRNO_NAMES, errnoOf } from '../base/errno.ts'
import * as abi from '../kvm/abi.ts'
import { Kvm } from '../kvm/kvm.ts'
import { makeRam, mapRam } from '../sys/guest_ram.ts'
import { ioctl } from '../sys/kvm.ts'
import { threadId } from '../sys/threads.ts'
import { entryRegisters } from './boot_state.ts'
import { vcpuCpuid } from './cpuid.ts'

import type { Vcpu } from '../kvm/kvm.ts'

/** `step`: the last that was done. `why`: what stopped it, if anything did. `errno`: /dev/kvm can't be opened. */
export type ProbeMessage =
  | { readonly kind: 'runs'; readonly thread: number }
  | { readonly kind: 'done'; readonly step: number; readonly why: string; readonly errno: number }

function probe(): ProbeMessage {
  let kvm: Kvm
  try {
    kvm = new Kvm()
  } catch (error) {
    return { kind: 'done', step: 0, why: '', errno: -errnoOf(error) }
  }
  const vm = kvm.createVm()
  const ram = mapRam(makeRam(RAM_BYTES), RAM_BYTES, false)
  writeGuest(ram.bytes)
  vm.setMemory({ slot: 0, start: 0, address: ram.address, length: RAM_BYTES, logDirty: false })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid(vcpuCpuid(kvm.supportedCpuid(), 0, 1, false))
  enter(vcpu)
  parentPort!.postMessage({ kind: 'runs', thread: threadId() } satisfies ProbeMessage)
  return run(vcpu)
}

// All that is made here goes when the process ends; the thread ends at once.
function run(vcpu: Vcpu): ProbeMessage {
  const view = new DataView(vcpu.run.bytes.buffer)
  let step = 0
  for (;;) {
    const result = ioctl(vcpu.fd, abi.KVM_RUN, 0n)
    const done = (why: string): ProbeMessage => ({ kind: 'done', step, why, errno: 0 })
    if (result === -EINTR) return done('it was stopped')
    if (result < 0) return done(`KVM_RUN answers ${ERRNO_NAMES[-result] ?? result}`)
    const reason = view.getUint32(abi.kvm_run.at.exit_reason, true)
    if (reason === abi.KVM_EXIT_HLT) return done(step === LAST_STEP ? '' : 'it gave up')
    if (reason !== abi.KVM_EXIT_IO) return done(EXITS[reason] ?? `KVM exits with reason ${reason}`)
    step = vcpu.run.bytes[view.getUint32(abi.kvm_run_io.at.data_offset, true)]!
  }
}

const EXITS: Readonly<Record<number, string>> = {
  [abi.KVM_EXIT_SHUTDOWN]: 'the processor gave up (triple fault)',
  [abi.KVM_EXIT_FAIL_ENTRY]: "the processor can't enter the guest",
  [abi.KVM_EXIT_INTERNAL_ERROR]: 'KVM failed with an internal error',
}

function writeGuest(ram: Uint8Array): void {
  const view = new DataView(ram.buffer)
  const put = (at: number, value: number): void => view.setBigUint64(at, BigInt(value), true)
  // Both trees map the first 2 MiB to themselves; the second one to the upper half as well. 7: present, writable, the
  // user's.
  for (const tree of [TREE, OTHER_TREE]) put(tree, LOW_POINTERS | 7)
  put(OTHER_TREE + 511 * 8, HIGH_POINTERS | 7)
  put(LOW_POINTERS, DIRECTORY | 7)
  put(HIGH_POINTERS + 510 * 8, DIRECTORY | 7)
  put(DIRECTORY, 0x87)
  const descriptors = [0n, 0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn, 0x00cf_f300_0000_ffffn,
    0x00af_fb00_0000_ffffn]
  descriptors.forEach((descriptor, i) => view.setBigUint64(GDT + 8 * i, descriptor, true))
  put(TASK + 4, STACK)
  view.setUint16(TABLE_POINTER, 0xfff, true)
  put(TABLE_POINTER + 2, TABLE)
  gate(view, 3, CODE + ON_BREAKPOINT, 0)
  gate(view, 0x80, CODE + ON_CALL, 3)
  ram.set(GUEST, CODE)
}

function gate(view: DataView, vector: number, target: number, privilege: number): void {
  view.setUint16(TABLE + 16 * vector, target, true)
  view.setUint16(TABLE + 16 * vector + 2, 0x10, true)
  view.setUint8(TABLE + 16 * vector + 5, 0x8e | privilege << 5)
}

function enter(vcpu: Vcpu): void {
  const { regs, sregs } = entryRegisters({ mode: 64, start: CODE, info: 0 },
    vcpu.get(abi.KVM_GET_SREGS, abi.kvm_sregs))
  const view = new DataView(sregs.buffer)
  view.setBigUint64(abi.kvm_sregs.at.cr3, BigInt(TREE), true)
  view.setBigUint64(abi.kvm_sregs.at.gdt + abi.kvm_dtable.at.base, BigInt(GDT), true)
  view.setUint16(abi.kvm_sregs.at.gdt + abi.kvm_dtable.at.limit, 0x2f, true)
  view.setBigUint64(abi.kvm_sregs.at.tr + abi.kvm_segment.at.base, BigInt(TASK), true)
  vcpu.set(abi.KVM_SET_SREGS, sregs)
  vcpu.set(abi.KVM_SET_REGS, regs)
}

const RAM_BYTES = 2 * 1024 * 1024
const TREE = 0x1000
const OTHER_TREE = 0x2000
const LOW_POINTERS = 0x3000
const DIRECTORY = 0x4000
const GDT = 0x5000
const TASK = 0x6000
const TABLE_POINTER = 0x6f00
const TABLE = 0x7000
const CODE = 0x8000
const STACK = 0x8ff0
const HIGH_POINTERS = 0xa000
const ON_BREAKPOINT = 0x90
const ON_CALL = 0xa0
const LAST_STEP = 6

// org 0x8000. `step n`: mov $n, %al; out %al, $0x10.
const GUEST = Uint8Array.fromHex([
  'b001e610',             // step 1
  'b940420f00',           // mov $1000000, %ecx
  'ffc9', '75fc',         // 1: dec %ecx; jnz 1b
  'b002e610',             // step 2
  'b800200000', '0f22d8', // mov $OTHER_TREE, %eax; mov %rax, %cr3
  '48b825800080ffffffff', // movabs $high, %rax: 0xffffffff80008025
  'ffe0',                 // jmp *%rax
  'b003e610',             // high: step 3
  'bc00900000',           // mov $0x9000, %esp
  '0f011c25006f0000',     // lidt TABLE_POINTER
  'cc',                   // int3
  'b9820000c0',           // mov $MSR_LSTAR, %ecx
  'b878563412', '31d2',   // mov $0x12345678, %eax; xor %edx, %edx
  '0f30',                 // wrmsr
  '31c0', '0f32',         // xor %eax, %eax; rdmsr
  '3d78563412', '7516',   // cmp $0x12345678, %eax; jne fail
  'b005e610',             // step 5
  '6a23', '6800980000',   // push user's data segment, stack pointer,
  '6a02', '6a2b',         //   flags, code segment,
  '6880800000', '48cf',   //   and $user; iretq
  'f4', 'ebfd',           // fail: hlt; jmp fail
  '00'.repeat(0x80 - 0x69),
  'cd80', 'ebfc',         // user: int $0x80; jmp user
  '00'.repeat(0x90 - 0x84),
  'b004e610', '48cf',     // ON_BREAKPOINT: step 4; iretq
  '00'.repeat(0xa0 - 0x96),
  'b006e610', 'f4', 'ebf9', // ON_CALL: step 6; hlt; jmp ON_CALL
].join(''))

parentPort?.postMessage(probe())
