// sys/affinity.ts: where and before whom the calling thread runs (sched_setaffinity(2), setpriority(2)).

import { answer, bind, isSupported, Scratch } from './libc.ts'

const native = bind({
  sched_getaffinity: { arguments: ['int32', 'uint64', 'pointer'], return: 'int32' },
  sched_setaffinity: { arguments: ['int32', 'uint64', 'pointer'], return: 'int32' },
  setpriority: { arguments: ['int32', 'uint32', 'int32'], return: 'int32' },
})
/** cpu_set_t: a bit for each of 1024 processors. */
const set = new Scratch(128)
const SIZE = BigInt(set.bytes.length)

/**
 * Binds the calling thread to the processor that is number `index` of those on which it may run: 0, or a negated errno.
 * What can't be bound runs anywhere.
 */
export function bindThread(index: number): number {
  if (!isSupported()) return -1
  // SAFETY: `set` is 128 bytes that outlive both calls. 0 is the calling thread.
  const found = answer(native.sched_getaffinity(0, SIZE, set.address))
  if (found < 0) return found
  let left = index
  for (let processor = 0; processor < set.bytes.length * 8; processor++) {
    const bit = 1 << (processor & 7)
    if ((set.bytes[processor >> 3]! & bit) === 0 || left-- > 0) continue
    set.bytes.fill(0)
    set.bytes[processor >> 3] = bit
    return answer(native.sched_setaffinity(0, SIZE, set.address))
  }
  return -1
}

/** Lets the calling thread run before others of the host, where we may: 0, or a negated errno. */
export function preferThread(): number {
  // PRIO_PROCESS with 0 is the calling thread: on Linux niceness is a thread's.
  return isSupported() ? answer(native.setpriority(0, 0, NICENESS)) : -1
}

const NICENESS = -10
