// sys/confine.ts: what a process gives up before it runs what nobody trusts: privileges, namespaces, memory dumps.
//
// On Linux these are a thread's, not a process's: each call is for the calling thread alone. execve(2) keeps those of
// the thread that calls it and ends the others, so a launcher gives up what it has on its main thread and then becomes
// the program. The user id is Node's own (process.setuid). Elsewhere: files (landlock.ts), system calls (seccomp.ts).

import { Scratch, answer, bind } from './libc.ts'

export const CLONE_NEWUTS = 0x04000000
export const CLONE_NEWIPC = 0x08000000
export const CLONE_NEWNET = 0x40000000

const PR_CAPBSET_DROP = 24
const PR_SET_NO_NEW_PRIVS = 38
const RLIMIT_CORE = 4
/** Capabilities are the bits of a 64-bit word. */
const CAPABILITIES = 64

const native = bind({
  prctl: { arguments: ['int32', 'uint64', 'uint64', 'uint64', 'uint64'], return: 'int32' },
  unshare: { arguments: ['int32'], return: 'int32' },
  prlimit: { arguments: ['int32', 'int32', 'pointer', 'pointer'], return: 'int32' },
})

/** struct rlimit { u64 soft; u64 hard; } */
const limit = new Scratch(16)

/** From now on no execve gives this thread, or threads that it starts, more than it has: 0, or a negated errno. */
export function giveUpNewPrivileges(): number {
  return answer(native.prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n))
}

/** Empties the capability bounding set, so that not even a set-uid program has any: 0, or a negated errno. */
export function dropBoundingSet(): number {
  for (let capability = 0; capability < CAPABILITIES; capability++) {
    const result = answer(native.prctl(PR_CAPBSET_DROP, BigInt(capability), 0n, 0n, 0n))
    // The kernel has no capability of this number: that was all.
    if (result < 0) return capability === 0 ? result : 0
  }
  return 0
}

/** Moves this thread to new namespaces (CLONE_NEW*), of which it is the only one: 0, or a negated errno. */
export function unshare(namespaces: number): number {
  return answer(native.unshare(namespaces))
}

/** No dump of this process's memory is ever written: 0, or a negated errno. */
export function forbidCoreDumps(): number {
  limit.bytes.fill(0)
  // SAFETY: one struct rlimit that outlives the call; the old one isn't asked for.
  return answer(native.prlimit(0, RLIMIT_CORE, limit.address, 0n))
}
