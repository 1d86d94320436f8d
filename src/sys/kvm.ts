// sys/kvm.ts: the calls on /dev/kvm and on what comes of it: open, ioctl, and a vCPU's page shared with the kernel.
//
// Requests and structs are data (../kvm/abi.ts); here is only how they get to the kernel. A number of a request is a
// bigint constant, so that a call allocates nothing.

import { closeSync, openSync } from 'node:fs'
import { answer, bind } from './libc.ts'

const KVM_GET_API_VERSION = 0xae00n
const KVM_CREATE_VM = 0xae01n
/** The only version that there has been since Linux 2.6.22. */
const API_VERSION = 12

const native = bind({ ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' } })

/** 0 if a machine can be made; a negated errno if not. Throws Node's error if /dev/kvm can't be opened. */
export function probeKvm(): number {
  const fd = openKvm()
  try {
    const version = answer(native.ioctl(fd, KVM_GET_API_VERSION, 0n))
    if (version !== API_VERSION) return Math.min(-1, version)
    const machine = answer(native.ioctl(fd, KVM_CREATE_VM, 0n))
    if (machine < 0) return machine
    closeSync(machine)
    return 0
  } finally {
    closeSync(fd)
  }
}

/** Opens /dev/kvm. Throws Node's error if that can't be done. */
export function openKvm(): number {
  return openSync('/dev/kvm', 'r+')
}

/**
 * ioctl(2): its result, or a negated errno. SAFETY: `argument` is a number, or the address of memory that is as large
 * as the request says and that lives until the call is over (for memory regions: until the machine is closed).
 */
export function ioctl(fd: number, request: bigint, argument: bigint): number {
  const result = native.ioctl(fd, request, argument)
  return result < 0 ? answer(result) : result
}
