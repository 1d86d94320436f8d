// sys/threads.ts: which thread this is, and a knock on the door of another one that the kernel holds.
//
// A vCPU's thread is in ioctl(KVM_RUN) until its guest does something that the kernel doesn't answer, which may be
// never. A signal brings it back with EINTR, if there is a handler for it: Node runs one that does nothing, in the
// main thread; what counts is that the kernel has come back from where it was. The signal is SIGURG, which does no harm
// where nobody handles it, and for which Node has no use (SIGUSR1 and SIGUSR2 start its debugger and its reports).

import { assert } from '../base/assert.ts'
import { answer, bind, clockGettime } from './libc.ts'

const SIGURG = 23
// <linux/posix-timers_types.h>: the clock of a thread's own time is made of its number.
const CPUCLOCK_PERTHREAD_SCHED = 6

const native = bind({
  gettid: { arguments: [], return: 'int32' },
  tgkill: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
})

/** The kernel's number of the calling thread. */
export function threadId(): number {
  return native.gettid()
}

/** Brings thread `id` of this process back from a system call that can be interrupted: 0, or a negated errno. */
export function kickThread(id: number): number {
  assert(process.listenerCount('SIGURG') > 0, 'kicks are allowed')
  return answer(native.tgkill(process.pid, id, SIGURG))
}

/** From now until it is disposed of, threads of this process can be kicked. For the main thread. */
export function allowKicks(): Disposable {
  const nothing = (): void => {}
  process.on('SIGURG', nothing)
  return { [Symbol.dispose]: () => void process.off('SIGURG', nothing) }
}

/** Nanoseconds for which thread `id` of this process has run, or -1 if there is no such thread. */
export function threadTimeNs(id: number): number {
  return clockGettime(~id << 3 | CPUCLOCK_PERTHREAD_SCHED, time) < 0 ? -1 : time[0]! * 1e9 + time[1]!
}

const time = new Float64Array(2)
