// sys/seccomp_calls.ts: the system calls that a cell process has no use for, as data.
//
// A list of what is refused, not of what is allowed: V8, libuv and the C library change what they call with each
// version, and a call that a list of allowed ones forgets ends guests on somebody's machine. So it names what leads out
// of a process: other programs and processes, namespaces and mounts, other users, the kernel itself, and large parts of
// it with a history of errors. The network goes with socket(2), which the filter (seccomp.ts) looks into.
//
// Numbers are those of x86-64 and of arm64; null: that one has no such call.

/** A system call: name, number on x86-64, number on arm64. */
export type Call = readonly [name: string, x64: number | null, arm64: number | null]

/** What becomes another program: refused last, when the process itself has come about by it. */
export const EXEC_CALLS: readonly Call[] = [['execve', 59, 221], ['execveat', 322, 281]]

/** Refused whatever their arguments are. */
export const REFUSED_CALLS: readonly Call[] = [
  // Other programs and processes.
  ['fork', 57, null], ['vfork', 58, null], ['ptrace', 101, 117],
  ['process_vm_readv', 310, 270], ['process_vm_writev', 311, 271], ['kcmp', 312, 272], ['process_madvise', 440, 440],
  ['process_mrelease', 448, 448], ['pidfd_open', 434, 434], ['pidfd_getfd', 438, 438],
  ['pidfd_send_signal', 424, 424], ['tkill', 200, 130], ['rt_sigqueueinfo', 129, 138],
  ['rt_tgsigqueueinfo', 297, 240],
  // Who leaves its group of processes isn't ended with it.
  ['setpgid', 109, 154], ['setsid', 112, 157],
  // A descriptor is handed over, never asked for: not even the host's own socket can be reached.
  ['connect', 42, 203],
  // Namespaces, mounts, and what a file is reached by.
  ['mount', 165, 40], ['umount2', 166, 39], ['pivot_root', 155, 41], ['chroot', 161, 51], ['open_tree', 428, 428],
  ['move_mount', 429, 429], ['fsopen', 430, 430], ['fsconfig', 431, 431], ['fsmount', 432, 432], ['fspick', 433, 433],
  ['mount_setattr', 442, 442], ['open_tree_attr', 467, 467], ['unshare', 272, 97], ['setns', 308, 268],
  ['open_by_handle_at', 304, 265], ['name_to_handle_at', 303, 264], ['mknod', 133, null], ['mknodat', 259, 33],
  ['fanotify_init', 300, 262], ['fanotify_mark', 301, 263], ['quotactl', 179, 60], ['quotactl_fd', 443, 443],
  // Other users.
  ['setuid', 105, 146], ['setgid', 106, 144], ['setreuid', 113, 145], ['setregid', 114, 143], ['setresuid', 117, 147],
  ['setresgid', 119, 149], ['setfsuid', 122, 151], ['setfsgid', 123, 152], ['setgroups', 116, 159],
  ['capset', 126, 91],
  // Parts of the kernel that nothing here needs.
  ['personality', 135, 92], ['bpf', 321, 280], ['perf_event_open', 298, 241], ['userfaultfd', 323, 282],
  ['io_uring_setup', 425, 425], ['io_uring_enter', 426, 426], ['io_uring_register', 427, 427],
  ['add_key', 248, 217], ['request_key', 249, 218], ['keyctl', 250, 219], ['modify_ldt', 154, null],
  ['uselib', 134, null], ['ustat', 136, null], ['sysfs', 139, null], ['nfsservctl', 180, 42],
  ['lookup_dcookie', 212, 18], ['move_pages', 279, 239], ['migrate_pages', 256, 238],
  ['shmget', 29, 194], ['shmat', 30, 196], ['shmctl', 31, 195], ['semget', 64, 190], ['semop', 65, 193],
  ['semtimedop', 220, 192], ['semctl', 66, 191], ['msgget', 68, 186], ['msgsnd', 69, 189], ['msgrcv', 70, 188],
  ['msgctl', 71, 187], ['mq_open', 240, 180], ['mq_unlink', 241, 181],
  // The machine.
  ['acct', 163, 89], ['swapon', 167, 224], ['swapoff', 168, 225], ['init_module', 175, 105],
  ['finit_module', 313, 273], ['delete_module', 176, 106], ['kexec_load', 246, 104], ['kexec_file_load', 320, 294],
  ['reboot', 169, 142], ['syslog', 103, 116], ['vhangup', 153, 58], ['sethostname', 170, 161],
  ['setdomainname', 171, 162], ['settimeofday', 164, 170], ['clock_settime', 227, 112], ['adjtimex', 159, 171],
  ['clock_adjtime', 305, 266], ['iopl', 172, null], ['ioperm', 173, null],
]

/** Those whose arguments decide, and seccomp(2) itself. */
export const CALLS = {
  x64: {
    clone: 56, clone3: 435, socket: 41, socketpair: 53, kill: 62, tgkill: 234, prlimit64: 302, ioctl: 16, seccomp: 317,
  },
  arm64: {
    clone: 220, clone3: 435, socket: 198, socketpair: 199, kill: 129, tgkill: 131, prlimit64: 261, ioctl: 29,
    seccomp: 277,
  },
} as const
