// sys/eventfd.ts: eventfds (eventfd(2)): a bell between threads, the kernel and KVM, rung by a write.
//
// Hot path: signal and clear are one system call each and allocate nothing. Elsewhere: waiting for many (ppoll.ts).

import { Scratch, answer, bind } from './libc.ts'
import { must } from './system_error.ts'

const EFD_NONBLOCK = 0o4000
const EFD_CLOEXEC = 0o2000000

const native = bind({
  eventfd: { arguments: ['uint32', 'int32'], return: 'int32' },
  write: { arguments: ['int32', 'pointer', 'uint32'], return: 'int32' },
  read: { arguments: ['int32', 'pointer', 'uint32'], return: 'int32' },
})

const ONE = 0           // u64: what is added
const COUNT = 8         // u64: what is read
const scratch = new Scratch(16)
scratch.view.setUint32(ONE, 1, true)

let one = 0n
let count = 0n
function addresses(): void {
  one = scratch.address + BigInt(ONE)
  count = scratch.address + BigInt(COUNT)
}

/** An eventfd that never blocks; the caller closes it. Throws a system error. */
export function makeEventFd(): number {
  return must('eventfd', answer(native.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)))
}

/** Rings. Nothing is lost if it has been rung already; a descriptor that is closed is of no consequence. */
export function signalEventFd(fd: number): void {
  if (one === 0n) addresses()
  // SAFETY: eight bytes at scratch[ONE], which lives as long as the thread.
  native.write(fd, one, 8)
}

/** Silences the bell. True if it had been rung since. */
export function clearEventFd(fd: number): boolean {
  if (count === 0n) addresses()
  // SAFETY: eight bytes at scratch[COUNT], as above.
  return native.read(fd, count, 8) === 8
}
