// sys/affinity.ts: where and before whom the calling thread runs (sched_setaffinity(2), setpriority(2)).

import { answer, bind, isSupported, Scratch } from './libc.ts'

const native = bind({
  sched_setaffinity: { arguments: ['int32', 'uint64', 'pointer'], return: 'int32' },
  setpriority: { arguments: ['int32', 'uint32', 'int32'], return: 'int32' },
})
/** cpu_set_t: a bit for each of 1024 processors. */
const set = new Scratch(128)

/** Binds the calling thread to processor `index`: 0, or a negated errno. What can't be bound runs anywhere. */
export function bindThread(index: number): number {
  if (!isSupported() || index >= set.bytes.length * 8) return -1
  set.bytes.fill(0)
  set.bytes[index >> 3] = 1 << (index & 7)
  // SAFETY: `set` is 128 bytes that outlive the call. 0 is the calling thread.
  return answer(native.sched_setaffinity(0, BigInt(set.bytes.length), set.address))
}

/** Lets the calling thread run before others of the host, where we may: 0, or a negated errno. */
export function preferThread(): number {
  // PRIO_PROCESS with 0 is the calling thread: on Linux niceness is a thread's.
  return isSupported() ? answer(native.setpriority(0, 0, NICENESS)) : -1
}

const NICENESS = -10
