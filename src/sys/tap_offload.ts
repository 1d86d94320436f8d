// sys/tap_offload.ts: what a TAP device may leave undone in the frames that it gives, and in those that it takes.

import { answer, bind } from './libc.ts'

const TUNSETOFFLOAD = 0x400454d0n
export const TUN_F_CSUM = 1
export const TUN_F_TSO4 = 2
export const TUN_F_TSO6 = 4

const native = bind({ ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' } })

/** Says which of TUN_F_* whoever reads from `fd` understands. 0 or a negated errno. */
export function setTapOffload(fd: number, offload: number): number {
  // TUNSETOFFLOAD takes its argument by value: no pointer.
  return answer(native.ioctl(fd, TUNSETOFFLOAD, BigInt(offload)))
}
