// sys/landlock.ts: which files a process may use, whoever it is (landlock(7), since Linux 5.13).
//
// A set of rules says which access a folder, or a file, and all below it give; what no rule gives is refused, for good:
// rules can be added by another set only, which takes more away. The kernel's ABI number says what it can refuse: what
// an older one doesn't know stays as it was, and is left out here. Network: since ABI 4 no TCP port can be bound or
// connected to; since 6 neither abstract Unix sockets nor processes outside can be reached.
//
// It holds for the calling thread and what that starts or becomes.

import { closeSync, constants, openSync, statSync } from 'node:fs'
import { ENOENT, ENOSYS, ENOTSUP, errnoOf } from '../base/errno.ts'
import { Scratch, answer, bind } from './libc.ts'
import { O_PATH } from './linux_files.ts'

// The numbers are the same on x86-64 and arm64.
const SYS_landlock_create_ruleset = 444n
const SYS_landlock_add_rule = 445n
const SYS_landlock_restrict_self = 446n
const CREATE_RULESET_VERSION = 1n
const RULE_PATH_BENEATH = 1n

const EXECUTE = 1n << 0n
const WRITE_FILE = 1n << 1n
const READ_FILE = 1n << 2n
const READ_DIR = 1n << 3n
const REMOVE_DIR = 1n << 4n
const REMOVE_FILE = 1n << 5n
const MAKE_DIR = 1n << 7n
const MAKE_REG = 1n << 8n
const MAKE_SOCK = 1n << 9n
const MAKE_SYM = 1n << 12n
const REFER = 1n << 13n
const TRUNCATE = 1n << 14n
const IOCTL_DEV = 1n << 15n
/** What is refused without a rule since the first ABI: bits 0 to 12, FIFOs and devices among them. */
const FIRST_ABI = (1n << 13n) - 1n

const NET_BIND_TCP = 1n << 0n
const NET_CONNECT_TCP = 1n << 1n
const SCOPE_ABSTRACT_UNIX_SOCKET = 1n << 0n
const SCOPE_SIGNAL = 1n << 1n

/** What a rule gives. 'change': reading, writing, making and removing files, folders, links and sockets. */
export type Access = 'read' | 'execute' | 'change' | 'device'

const ACCESS: Record<Access, bigint> = {
  read: READ_FILE | READ_DIR,
  execute: READ_FILE | EXECUTE,
  change: READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK |
    MAKE_SYM | REFER,
  device: READ_FILE | WRITE_FILE,
}
/** What a rule for a file may give: the kernel refuses the others there. */
const OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

/** One rule. A path that isn't there is passed over if it is `optional`. */
export type Rule = { readonly path: string; readonly access: Access; readonly optional?: boolean }

const native = bind({
  // As everywhere: node:ffi takes one signature for a function. A pointer is a number of 64 bits, wherever it stands.
  syscall: { arguments: ['int64', 'int64', 'pointer', 'pointer', 'int64'], return: 'int64' },
})

const RULESET = 0           // struct landlock_ruleset_attr { u64 files; u64 network; u64 scoped; }
const BENEATH = 24          // struct landlock_path_beneath_attr { u64 access; int fd; }, packed
const scratch = new Scratch(40)

// SAFETY, for every call below: pointers are into `scratch`, which lives as long as the thread; lengths are those of
// the structs.

/** The kernel's ABI, 1 or more; -ENOSYS where it was built without Landlock, -ENOTSUP where it isn't switched on. */
export function landlockAbi(): number {
  return answer(Number(native.syscall(SYS_landlock_create_ruleset, 0n, 0n, CREATE_RULESET_VERSION, 0n)))
}

/** What can be refused at an ABI: file access, TCP, and reach beyond the process; and the bytes of the struct. */
export function refusable(abi: number): { files: bigint; network: bigint; scoped: bigint; bytes: number } {
  const files = FIRST_ABI | (abi >= 2 ? REFER : 0n) | (abi >= 3 ? TRUNCATE : 0n) | (abi >= 5 ? IOCTL_DEV : 0n)
  const network = abi >= 4 ? NET_BIND_TCP | NET_CONNECT_TCP : 0n
  const scoped = abi >= 6 ? SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL : 0n
  return { files, network, scoped, bytes: abi >= 6 ? 24 : abi >= 4 ? 16 : 8 }
}

/**
 * Lets this thread use the files of `rules` only. It must have given up new privileges, or be an administrator's. 0;
 * -ENOSYS or -ENOTSUP where there is no Landlock: then nothing has changed. Throws if a path of a rule can't be opened.
 */
export function restrictFiles(rules: readonly Rule[]): number {
  const abi = landlockAbi()
  if (abi < 0) return abi === -ENOSYS || abi === -ENOTSUP ? abi : -ENOTSUP
  const { files, network, scoped, bytes } = refusable(abi)
  scratch.view.setBigUint64(RULESET, files, true)
  scratch.view.setBigUint64(RULESET + 8, network, true)
  scratch.view.setBigUint64(RULESET + 16, scoped, true)
  const ruleset = answer(Number(createRuleset(bytes)))
  if (ruleset < 0) return ruleset
  try {
    for (const rule of rules) {
      const added = addRule(ruleset, rule, files)
      if (added < 0) return added
    }
    return answer(Number(native.syscall(SYS_landlock_restrict_self, BigInt(ruleset), 0n, 0n, 0n)))
  } finally {
    closeSync(ruleset)
  }
}

function createRuleset(bytes: number): bigint {
  return native.syscall(SYS_landlock_create_ruleset, scratch.address + BigInt(RULESET), BigInt(bytes), 0n, 0n)
}

function addRule(ruleset: number, { path, access, optional = false }: Rule, known: bigint): number {
  let fd
  try {
    fd = openSync(path, O_PATH | constants.O_RDONLY)
  } catch (error) {
    if (optional && errnoOf(error) === ENOENT) return 0
    throw error
  }
  try {
    const allowed = ACCESS[access] & known & (statSync(path).isDirectory() ? ~0n : OF_FILES)
    scratch.view.setBigUint64(BENEATH, allowed, true)
    scratch.view.setInt32(BENEATH + 8, fd, true)
    const rule = scratch.address + BigInt(BENEATH)
    return answer(Number(native.syscall(SYS_landlock_add_rule, BigInt(ruleset), RULE_PATH_BENEATH, rule, 0n)))
  } finally {
    closeSync(fd)
  }
}
