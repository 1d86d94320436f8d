// host/jail_launch.ts: the launcher: gives up what it has and becomes a cell process.
//
// An entry of its own: `node jail_launch.ts JSON` (JailOptions). All that it gives up is its main thread's, and it is
// the main thread that calls execve: the process that follows has it all, in every thread (sys/confine.ts). The order
// is the kernel's: namespaces and the bounding set while it is root, then the user, then new privileges, files and
// system calls.
//
// A wall that this machine doesn't have is noted for the process (JAIL_VARIABLE) and not fatal: `cellar doctor` and
// the host's log tell of it. What is fatal: to be root and not become the project's user, and a folder or program that
// this user can't use, since nothing would work, and it is better said here than by a stack trace later.

import { accessSync, constants, realpathSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ENOSYS, ENOTSUP, ERRNO_NAMES } from '../base/errno.ts'
import { DESCRIPTORS_QUEUED_MAX } from '../base/limits.ts'
import {
  CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS, dropBoundingSet, forbidCoreDumps, giveUpNewPrivileges, unshare,
} from '../sys/confine.ts'
import { restrictFiles, type Rule } from '../sys/landlock.ts'
import { cellFilter, installFilter, type Architecture } from '../sys/seccomp.ts'
import { JAIL_VARIABLE, type Confinement, type JailOptions, type Layer } from './jail.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const CELL_PROCESS = fileURLToPath(new URL('./cell_process.ts', import.meta.url))
const MACHINE_PROCESS = fileURLToPath(new URL('./machine_process.ts', import.meta.url))

const NAMESPACES: readonly (readonly [Layer, number])[] =
  [['network', CLONE_NEWNET], ['ipc', CLONE_NEWIPC], ['uts', CLONE_NEWUTS]]

/** What the C library, Node and V8 read of a machine. */
const SYSTEM_FILES: readonly string[] = [
  '/lib', '/lib64', '/usr/lib', '/usr/lib64', '/usr/local/lib', '/etc/ld.so.cache', '/usr/share/zoneinfo',
  '/etc/localtime', '/proc/self', '/proc/meminfo', '/proc/stat', '/proc/cpuinfo', '/sys/fs/cgroup',
  '/sys/devices/system/cpu', '/dev/urandom',
]
/** What QEMU is, and reads: firmware, its own libraries are with the others. */
const QEMU_PROGRAMS: readonly string[] = ['/usr/bin/qemu-system-x86_64', '/usr/local/bin/qemu-system-x86_64',
  // It starts a program that dies with who started it.
  '/usr/bin/setpriv']
const QEMU_FILES: readonly string[] = ['/usr/share/qemu', '/usr/share/seabios', '/usr/lib/ipxe',
  '/usr/local/share/qemu']
/** What starts a program that is linked dynamically; without it execve can't. */
const LOADERS: readonly string[] = ['/lib64/ld-linux-x86-64.so.2', '/lib/ld-linux-aarch64.so.1',
  '/lib/ld-musl-x86_64.so.1', '/lib/ld-musl-aarch64.so.1']

type Wall = Confinement[number]

function wall(layer: Layer, result: number): Wall {
  if (result >= 0) return { layer, on: true }
  const why = result === -ENOSYS ? 'this kernel was built without it' : result === -ENOTSUP
    ? 'it is switched off on this machine' : `the kernel answers ${ERRNO_NAMES[-result] ?? 'an error'}`
  return { layer, on: false, why }
}

/** Namespaces of its own, with nothing in them; the user of the project. Both need root. */
function leave(uid: number | undefined): Wall[] {
  if (process.getuid!() !== 0) {
    const why = 'it needs root'
    return [...NAMESPACES.map(([layer]): Wall => ({ layer, on: false, why })), { layer: 'uid', on: false, why }]
  }
  const walls = NAMESPACES.map(([layer, flag]) => wall(layer, unshare(flag)))
  if (walls[0]!.on) lengthenQueues()
  if (uid === undefined) return [...walls, { layer: 'uid', on: false, why: 'none was given' }]
  dropBoundingSet()
  process.setgroups!([])
  process.setgid!(uid)
  process.setuid!(uid)
  return [...walls, { layer: 'uid', on: true }]
}

/** A new network namespace lets 10 datagrams wait at a Unix socket: a guest's ports come as more than that. */
function lengthenQueues(): void {
  try {
    writeFileSync('/proc/sys/net/unix/max_dgram_qlen', String(DESCRIPTORS_QUEUED_MAX))
  } catch { /* Where /proc/sys is read-only, the host sends them more slowly. */ }
}

/** A service may protect its host from the kernel's OOM killer (OOMScoreAdjust): guests don't inherit that. */
function offerToOomKiller(): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', '0')
  } catch { /* It has a positive one that it may not lower, and is offered already. */ }
}

/** Throws a system error that names what the program will need and this user can't use. */
function checkAccess({ runFolder, projectFolder, blobFolder }: JailOptions, program: string): void {
  for (const path of [process.execPath, program]) accessSync(path, constants.R_OK)
  // Not to be listed: blobs are found by who knows their digest, and the project's folders by who was told them.
  for (const path of [blobFolder, projectFolder]) accessSync(path, constants.X_OK)
  accessSync(runFolder, constants.R_OK | constants.W_OK | constants.X_OK)
}

/**
 * What a process may change: not the project's folder itself. The host works in that by path, and a process that
 * could put a link in the place of a folder there would lead it anywhere, where both are the same user.
 */
function changeable({ runFolder, projectFolder }: JailOptions): string[] {
  return [runFolder, ...['cache', 'logs', 'snapshots', 'volumes', 'machines'].map((name) => `${projectFolder}/${name}`)]
}

function rules(options: JailOptions): Rule[] {
  const { projectFolder, blobFolder, codeFolder = ROOT } = options
  return [
    { path: realpathSync(process.execPath), access: 'execute' },
    ...LOADERS.map((path): Rule => ({ path, access: 'execute', optional: true })),
    { path: ROOT, access: 'read' },
    ...SYSTEM_FILES.map((path): Rule => ({ path, access: 'read', optional: true })),
    { path: '/dev/null', access: 'device' },
    ...(options.engine !== 'qemu' ? [] : [
      ...QEMU_PROGRAMS.map((path): Rule => ({ path, access: 'execute', optional: true })),
      ...QEMU_FILES.map((path): Rule => ({ path, access: 'read', optional: true })),
      // Where anybody may: a project's user is in no group.
      { path: '/dev/kvm', access: 'device', optional: true } as const,
    ]),
    { path: codeFolder, access: 'read' }, { path: blobFolder, access: 'read' },
    { path: projectFolder, access: 'read' },
    ...changeable(options).map((path): Rule => ({ path, access: 'change', optional: true })),
  ]
}

/**
 * Node's own permission model: no wall against machine code, but JavaScript that was led astray can't read a file or
 * start a process through Node. What cell processes do with guests' files goes through system calls, past it.
 */
function nodeFlags(options: JailOptions): string[] {
  const { projectFolder, blobFolder, codeFolder = ROOT } = options
  const programs = options.engine === 'qemu' ? [...QEMU_PROGRAMS, '/dev/kvm'] : []
  const own = ['/dev/null', ...changeable(options).flatMap((path) => [path, `${path}/*`])]
  return [
    '--disable-warning=ExperimentalWarning', '--disable-warning=SecurityWarning', '--disable-sigusr1',
    '--max-inlined-bytecode-size-cumulative=2500',
    '--permission', '--allow-worker', '--allow-ffi', '--allow-net',
    ...(options.engine === 'qemu' ? ['--allow-child-process'] : []),
    ...[...programs, `${ROOT}*`, `${codeFolder}/*`, `${blobFolder}/*`, `${projectFolder}/*`, '/proc/self', ...own]
      .map((path) => `--allow-fs-read=${path}`),
    ...own.map((path) => `--allow-fs-write=${path}`),
  ]
}

function launch(options: JailOptions): never {
  const program = options.program ?? (options.engine === undefined ? CELL_PROCESS : MACHINE_PROCESS)
  process.umask(0o077)
  forbidCoreDumps()
  offerToOomKiller()
  const left = leave(options.uid)
  checkAccess(options, program)
  const walls: Confinement = [
    ...left, wall('no-new-privs', giveUpNewPrivileges()), wall('landlock', restrictFiles(rules(options))),
    wall('seccomp', installFilter(cellFilter(process.arch as Architecture, process.pid,
      options.engine === 'qemu'))),
    { layer: 'permission-model', on: true },
  ]
  const args = [process.execPath, ...nodeFlags(options), program, options.runFolder]
  // OpenSSL ends a process that may not read its configuration: this one has none, wherever the machine's is.
  return process.execve!(process.execPath, args, { [JAIL_VARIABLE]: JSON.stringify(walls), OPENSSL_CONF: '/dev/null' })
}

try {
  launch(JSON.parse(process.argv[2] ?? '') as JailOptions)
} catch (error) {
  process.stderr.write(`cellar: Cannot start a cell process: ${(error as Error).message}\n`)
  process.exitCode = 126
}
