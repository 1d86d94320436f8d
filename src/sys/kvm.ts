// sys/kvm.ts: the calls on /dev/kvm and on what comes of it: open, ioctl, and a vCPU's page shared with the kernel.
//
// Requests and structs are data (../kvm/abi.ts); here is only how they get to the kernel. A number of a request is a
// bigint constant, so that a call allocates nothing.

import { openSync } from 'node:fs'
import { answer, bind } from './libc.ts'

const native = bind({ ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' } })

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
