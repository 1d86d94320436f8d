// sys/kvm.ts: whether this machine can run virtual machines, found out by making one that never runs.

import { closeSync, openSync } from 'node:fs'
import { answer, bind } from './libc.ts'

const KVM_GET_API_VERSION = 0xae00n
const KVM_CREATE_VM = 0xae01n
/** The only version that there has been since Linux 2.6.22. */
const API_VERSION = 12

const native = bind({ ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' } })

/** 0 if a machine can be made; a negated errno if not. Throws Node's error if /dev/kvm can't be opened. */
export function probeKvm(): number {
  const fd = openSync('/dev/kvm', 'r+')
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
