// sys/seccomp.ts: the filter between a cell process and the kernel (seccomp(2)): made, and installed for good.
//
// The kernel runs the filter, a program of classic BPF, at each system call. This one is a list of tests, each with an
// answer of its own, and no jump leads further than to the next test; the kernel notes which calls are allowed whatever
// their arguments are, and doesn't run it for those. Refused calls answer EPERM rather than end the process: libraries
// try and go another way. clone3 answers ENOSYS, as its arguments are in memory, where a filter can't look: the C
// library then makes its threads with clone.
//
// A system call of another architecture ends the process, as nothing of ours makes one.

import { EBUSY } from '../base/errno.ts'
import { giveUpNewPrivileges } from './confine.ts'
import { Scratch, answer, bind } from './libc.ts'
import { CALLS, EXEC_CALLS, REFUSED_CALLS, type Call } from './seccomp_calls.ts'

/** Architectures that the filter knows. */
export type Architecture = 'x64' | 'arm64'
/** struct sock_filter: what to do, how far to jump if a comparison holds and if it doesn't, a value. */
export type Instruction = readonly [code: number, jumpTrue: number, jumpFalse: number, value: number]

const AUDIT_ARCH = { x64: 0xc000003e, arm64: 0xc00000b7 } as const
/** Set in the number of a call of the x32 ABI, which x86-64 kernels may have besides. */
const X32_BIT = 0x40000000

const LOAD = 0x20           // BPF_LD | BPF_W | BPF_ABS
const IF_EQUAL = 0x15       // BPF_JMP | BPF_JEQ | BPF_K
const IF_NOT_BELOW = 0x35   // BPF_JMP | BPF_JGE | BPF_K
const IF_ANY_BIT = 0x45     // BPF_JMP | BPF_JSET | BPF_K
const RETURN = 0x06         // BPF_RET | BPF_K

const ALLOW = 0x7fff0000
const KILL_PROCESS = 0x80000000
const REFUSE = 0x00050001   // SECCOMP_RET_ERRNO | EPERM
const NOT_THERE = 0x00050026 // SECCOMP_RET_ERRNO | ENOSYS

// struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }. Of an argument that is an int the
// kernel takes the lower half, which is first.
const NUMBER = 0
const ARCHITECTURE = 4
const argument = (index: number): number => 16 + 8 * index

const AF_UNIX = 1
const CLONE_THREAD = 0x00010000
/** CLONE_NEW*: a namespace for what is made. */
const CLONE_NAMESPACES = 0x7e020080
/** What setpriv and who starts it call. */
const SPAWNING: readonly string[] = ['fork', 'vfork', 'capset']
/** ioctls that type into a terminal. */
const TIOCSTI = 0x5412
const TIOCLINUX = 0x541c

/**
 * The filter of a cell process of id `pid`, which may signal and limit itself only. It is put up before that process's
 * program is executed, which it allows: libuv sets up what the filter refuses when a Node starts, or not at all.
 * `spawns`: it has a child, which has the same filter: a process may come about, and be signalled.
 */
export function cellFilter(architecture: Architecture, pid: number, spawns = false): Instruction[] {
  const calls = CALLS[architecture]
  const refused = spawns ? REFUSED_CALLS.filter(([name]) => !SPAWNING.includes(name)) : REFUSED_CALLS
  return [
    ...start(architecture),
    ...refuse(refused, architecture),
    ...on(calls.clone3, [[RETURN, 0, 0, NOT_THERE]]),
    ...on(calls.clone, [
      [LOAD, 0, 0, argument(0)],
      ...(spawns ? [] : [[IF_ANY_BIT, 1, 0, CLONE_THREAD], [RETURN, 0, 0, REFUSE]] as const),
      [IF_ANY_BIT, 0, 1, CLONE_NAMESPACES],
      [RETURN, 0, 0, REFUSE],
      [RETURN, 0, 0, ALLOW],
    ]),
    ...on(calls.socket, allowOnly(0, [AF_UNIX])),
    ...on(calls.socketpair, allowOnly(0, [AF_UNIX])),
    ...(spawns ? [] : [
      ...on(calls.kill, allowOnly(0, [pid])), ...on(calls.tgkill, allowOnly(0, [pid])),
      ...on(calls.prlimit64, allowOnly(0, [0, pid])),
    ]),
    ...on(calls.ioctl, [
      [LOAD, 0, 0, argument(1)],
      [IF_EQUAL, 1, 0, TIOCSTI],
      [IF_EQUAL, 0, 1, TIOCLINUX],
      [RETURN, 0, 0, REFUSE],
      [RETURN, 0, 0, ALLOW],
    ]),
    [RETURN, 0, 0, ALLOW],
  ]
}

/**
 * What is put up besides when the process's own program runs: it executes no other. `family`: of one that might have a
 * child until now, itself and that child: it has no other from now on, and signals and limits nobody else.
 */
export function noExecFilter(architecture: Architecture, family?: readonly number[]): Instruction[] {
  const calls = CALLS[architecture]
  return [
    ...start(architecture),
    ...refuse(EXEC_CALLS, architecture),
    ...(family === undefined ? [] : [
      ...refuse(REFUSED_CALLS.filter(([name]) => SPAWNING.includes(name)), architecture),
      ...on(calls.clone, [
        [LOAD, 0, 0, argument(0)], [IF_ANY_BIT, 1, 0, CLONE_THREAD], [RETURN, 0, 0, REFUSE], [RETURN, 0, 0, ALLOW],
      ]),
      ...on(calls.kill, allowOnly(0, family)), ...on(calls.tgkill, allowOnly(0, family)),
      ...on(calls.prlimit64, allowOnly(0, [0, ...family])),
    ]),
    [RETURN, 0, 0, ALLOW],
  ]
}

// Leaves the call's number to look at.
function start(architecture: Architecture): Instruction[] {
  return [
    [LOAD, 0, 0, ARCHITECTURE],
    [IF_EQUAL, 1, 0, AUDIT_ARCH[architecture]],
    [RETURN, 0, 0, KILL_PROCESS],
    [LOAD, 0, 0, NUMBER],
    [IF_NOT_BELOW, 0, 1, X32_BIT],
    [RETURN, 0, 0, REFUSE],
  ]
}

function refuse(calls: readonly Call[], architecture: Architecture): Instruction[] {
  return calls.flatMap((call) => {
    const number = call[architecture === 'x64' ? 1 : 2]
    return number === null ? [] : on(number, [[RETURN, 0, 0, REFUSE]])
  })
}

// `then` for the call of this number; it must return.
function on(number: number, then: readonly Instruction[]): Instruction[] {
  return [[IF_EQUAL, 0, then.length, number], ...then]
}

function allowOnly(index: number, values: readonly number[]): Instruction[] {
  return [
    [LOAD, 0, 0, argument(index)],
    ...values.flatMap((value): Instruction[] => [[IF_EQUAL, 0, 1, value], [RETURN, 0, 0, ALLOW]]),
    [RETURN, 0, 0, REFUSE],
  ]
}

const SECCOMP_SET_MODE_FILTER = 1n
const SECCOMP_FILTER_FLAG_TSYNC = 1n

const native = bind({
  // As everywhere: node:ffi takes one signature for a function. A pointer is a number of 64 bits, wherever it stands.
  syscall: { arguments: ['int64', 'int64', 'pointer', 'pointer', 'int64'], return: 'int64' },
})

/**
 * Puts `filter` before every thread of this process, those to come included: 0, or a negated errno. It can't be taken
 * away again, and gives up new privileges.
 */
export function installFilter(filter: readonly Instruction[]): number {
  const privileges = giveUpNewPrivileges()
  if (privileges < 0) return privileges
  // struct sock_fprog { u16 length; struct sock_filter *filter; }, then the filter itself.
  const program = new Scratch(16 + filter.length * 8)
  program.view.setUint16(0, filter.length, true)
  program.view.setBigUint64(8, program.address + 16n, true)
  filter.forEach(([code, jumpTrue, jumpFalse, value], index) => {
    const place = 16 + index * 8
    program.view.setUint16(place, code, true)
    program.view.setUint8(place + 2, jumpTrue)
    program.view.setUint8(place + 3, jumpFalse)
    program.view.setUint32(place + 4, value >>> 0, true)
  })
  const number = CALLS[process.arch as Architecture].seccomp
  // SAFETY: the program outlives the call, which copies it; its length is what was allocated.
  const result = answer(Number(native.syscall(BigInt(number), SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC,
    program.address, 0n)))
  // Above 0: a thread that has another filter already, and so none of them has this one.
  return result > 0 ? -EBUSY : result
}
