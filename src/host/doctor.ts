// host/doctor.ts: what this machine can do for a host, and why not: findings as data.
//
// Nothing is believed that can be tried: cells' walls by a probe in its jail, cloning by cloning, machines by running
// one. What is needed keeps cells from running when it is missing; what is wanted makes them slower, fewer or less
// confined. It takes some 0.3 s and leaves nothing behind. Elsewhere: how it is told (cli/doctor.ts).

import { closeSync, constants, copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statfsSync,
  writeFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { EAGAIN, ENOSYS, ERRNO_NAMES } from '../base/errno.ts'
import { formatSize } from '../base/units.ts'
import { isSupported } from '../sys/libc.ts'
import { AT_FDCWD, O_DIRECTORY, O_PATH, RESOLVE_NO_MAGICLINKS, openat2 } from '../sys/linux_files.ts'
import { probeMachines } from '../machine/kvm_probe.ts'
import { probeQemu } from '../qemu/qemu_probe.ts'
import { confinement } from './confinement.ts'
import type { Layer } from './jail.ts'

/** One thing that was looked at. */
export type Finding = {
  readonly name: string; readonly ok: boolean
  readonly level: 'needed' | 'wanted'
  readonly detail: string
  /** What to do about it. */
  readonly hint?: string
}

const NODE_MAJOR_MIN = 26
/** A host with a few guests; V8 alone takes 50 MB for each process. */
const MEMORY_BYTES_MIN = 512 * 1024 * 1024
/** Each cell's memory is several mappings: with the kernel's default of 65,530, a process has some 12,000 cells. */
const MAPPINGS_MIN = 65_530
/** A descriptor for each connection, file and socket of all guests of a process. */
const DESCRIPTORS_MIN = 65_536

/** File systems by the number that statfs(2) tells. On those of a network SQLite's locks and its shared memory fail. */
const FILE_SYSTEMS: Readonly<Record<number, { readonly name: string; readonly remote?: true }>> = {
  0xef53: { name: 'ext4' }, 0x58465342: { name: 'XFS' }, 0x9123683e: { name: 'Btrfs' }, 0x2fc12fc1: { name: 'ZFS' },
  0x01021994: { name: 'tmpfs, which a restart of the machine empties' }, 0x794c7630: { name: 'overlayfs' },
  0xca451a4e: { name: 'bcachefs' }, 0xf2f52010: { name: 'F2FS' },
  0x6969: { name: 'NFS', remote: true }, 0xff534d42: { name: 'CIFS', remote: true },
  0xfe534d42: { name: 'SMB', remote: true }, 0x01021997: { name: '9P', remote: true },
  0x00c36400: { name: 'Ceph', remote: true }, 0x65735546: { name: 'FUSE', remote: true },
}

/** All findings about this machine for a host whose state is in the folder `state`, which may not be there yet. */
export async function examine(state: string): Promise<Finding[]> {
  const folder = nearest(resolve(state))
  return [
    node(), promiseIntegration(), systemCalls(), processors(), memory(), mappings(), descriptors(),
    ...stateFolder(resolve(state), folder), ...walls(), beneath(), cgroup(), ...await machines(), systemd(),
  ]
}

/** True if cells can run, whatever else is missing. */
export function canRun(findings: readonly Finding[]): boolean {
  return findings.every(({ ok, level }) => ok || level !== 'needed')
}

function finding(name: string, level: Finding['level'], ok: boolean, detail: string, hint: string): Finding {
  return { name, ok, level, detail, ...(ok ? {} : { hint }) }
}

/** A number from a file of the kernel; undefined where there is none. */
function numberIn(path: string, pattern = /(\d+)/): number | undefined {
  try {
    const match = pattern.exec(readFileSync(path, 'utf8'))
    return match === null ? undefined : Number(match[1])
  } catch {
    return undefined
  }
}

function node(): Finding {
  const { node: version, v8 } = process.versions
  return finding('node', 'needed', Number.parseInt(version, 10) >= NODE_MAJOR_MIN, `Node ${version}, V8 ${v8}`,
    `Run 'npm ci': it brings Node ${NODE_MAJOR_MIN}`)
}

function promiseIntegration(): Finding {
  const ok = 'Suspending' in WebAssembly && 'promising' in WebAssembly
  return finding('jspi', 'needed', ok, ok ? 'guests can wait without a thread each' : 'guests could not wait',
    `Run with Node ${NODE_MAJOR_MIN} and without flags that turn JavaScript promise integration off`)
}

function systemCalls(): Finding {
  const ok = isSupported()
  const detail = ok ? 'system calls can be made through node:ffi'
    : `node:ffi is not to be had on ${process.platform}-${process.arch}`
  return finding('ffi', 'needed', ok, detail, 'Run on Linux, x86-64 or arm64, with the Node that npm ci brings')
}

function processors(): Finding {
  const count = availableParallelism()
  return finding('processors', 'wanted', count >= 2, `${count}, and as many pCPUs for each cell process`,
    'Use two processors or more: on one, the host and its guests get in each other\'s way')
}

function memory(): Finding {
  const limit = process.constrainedMemory()
  const bytes = limit > 0 && limit < totalmem() ? limit : totalmem()
  const detail = formatSize(bytes) + (bytes < totalmem() ? `: a limit; the machine has ${formatSize(totalmem())}` : '')
  return finding('memory', 'wanted', bytes >= MEMORY_BYTES_MIN, detail, `Use ${formatSize(MEMORY_BYTES_MIN)} or more`)
}

function mappings(): Finding {
  const count = numberIn('/proc/sys/vm/max_map_count')
  return finding('max_map_count', 'wanted', (count ?? 0) >= MAPPINGS_MIN,
    count === undefined ? 'not known' : `${count} mappings of memory for each cell process`,
    `Set it: sysctl -w vm.max_map_count=${16 * MAPPINGS_MIN}`)
}

function descriptors(): Finding {
  // Node raises its own limit to the highest that it may.
  const count = numberIn('/proc/self/limits', /^Max open files\s+\S+\s+(\d+)/m)
  return finding('open files', 'wanted', (count ?? 0) >= DESCRIPTORS_MIN,
    count === undefined ? 'not known' : `${count} descriptors for each process`,
    'Raise the hard limit: LimitNOFILE=1048576 of the service, or ulimit -Hn')
}

/** The folder itself, or the nearest above that is there. */
function nearest(path: string): string {
  return existsSync(path) || dirname(path) === path ? path : nearest(dirname(path))
}

function stateFolder(state: string, folder: string): Finding[] {
  const type = fileSystem(folder)
  const local = finding('state folder', 'needed', type.remote !== true, `${state} on ${type.name}`,
    'Use a folder on a disk of this machine with --state: SQLite can\'t keep state safely over a network')
  let own: string
  try {
    own = mkdtempSync(join(folder, '.cellar-doctor-'))
  } catch (error) {
    const detail = `${folder} can't be written: ${(error as NodeJS.ErrnoException).code}`
    return [finding('state folder', 'needed', false, detail, 'Run it as root, or name another folder with --state')]
  }
  const clone = tryClone(own)
  return [local, finding('clones', 'wanted', clone === undefined,
    clone === undefined ? 'volumes are cloned at once, and share their blocks'
      : `clones of volumes share whole files until one is written, and are copies while guests use them (${clone})`,
    'Keep the state on Btrfs, or on XFS with reflink=1')]
}

function fileSystem(folder: string): { readonly name: string; readonly remote?: true } {
  const { type } = statfsSync(folder)
  return FILE_SYSTEMS[type >>> 0] ?? { name: `a file system of type 0x${(type >>> 0).toString(16)}` }
}

/** undefined if a file can be cloned in the folder, which goes then, else why not. */
function tryClone(own: string): string | undefined {
  try {
    writeFileSync(join(own, 'a'), Buffer.alloc(64 * 1024, 1))
    copyFileSync(join(own, 'a'), join(own, 'b'), constants.COPYFILE_FICLONE_FORCE)
    return undefined
  } catch (error) {
    return `FICLONE answers ${(error as NodeJS.ErrnoException).code}`
  } finally {
    rmSync(own, { recursive: true, force: true })
  }
}

const WALLS: Record<Layer, readonly [detail: string, hint: string]> = {
  'uid': ['each project has a user id of its own', 'Run the host as root'],
  'network': ['cell processes have a network namespace with nothing in it', 'Run the host as root'],
  'ipc': ['cell processes share no IPC', 'Run the host as root'],
  'uts': ['cell processes see no host name of others', 'Run the host as root'],
  'no-new-privs': ['no program gives a cell process more privileges', 'Run on Linux 3.5 or later'],
  'landlock': ['cell processes reach their own folders only', 'Boot with lsm=landlock,… on Linux 5.13 or later'],
  'seccomp': ['cell processes make no system call that leads out', 'Use a kernel with CONFIG_SECCOMP_FILTER'],
  'permission-model': ['Node checks the files of cell processes, too', 'Run with the Node that npm ci brings'],
}

function walls(): Finding[] {
  const { walls: found, failure } = confinement()
  const start = finding('cell process', 'needed', failure === undefined,
    failure === undefined ? 'one starts in its jail' : failure,
    'Cell processes run as users of their own: Cellar must lie where all users can read it, such as /opt/cellar')
  if (failure !== undefined) return [start]
  return [start, ...found.map(({ layer, on, why }) => {
    const [detail, hint] = WALLS[layer]
    return finding(`wall: ${layer}`, 'wanted', on, on ? detail : why ?? 'missing', hint)
  })]
}

function beneath(): Finding {
  const flags = O_PATH | O_DIRECTORY
  const fd = isSupported() ? openat2(AT_FDCWD, Buffer.from('/'), flags, 0, RESOLVE_NO_MAGICLINKS) : -ENOSYS
  if (fd >= 0) closeSync(fd)
  const ok = fd >= 0 || fd === -EAGAIN
  return finding('openat2', 'wanted', ok, ok ? 'paths of guests are resolved by the kernel'
    : `paths of guests are walked part by part (${ERRNO_NAMES[-fd]})`,
    'Use Linux 5.6 or later; a container may refuse it')
}

function cgroup(): Finding {
  const hint = 'Use cgroup v2: boot with systemd.unified_cgroup_hierarchy=1'
  try {
    const controllers = readFileSync('/sys/fs/cgroup/cgroup.controllers', 'utf8').trim()
    return finding('cgroup', 'wanted', true, `version 2: ${controllers.split(' ').join(', ')}`, hint)
  } catch {
    return finding('cgroup', 'wanted', false, 'no cgroup v2 at /sys/fs/cgroup', hint)
  }
}

/** What machines run under, and why that. KVM is believed when a guest has run under it, not for its file. */
async function machines(): Promise<Finding[]> {
  const kvm = await probeMachines()
  const qemu = probeQemu()
  const flags = /^flags\s*:.*\b(vmx|svm)\b/m.exec(readCpuInfo())?.[1]
  const processor = process.arch !== 'x64' ? '' : flags === undefined ? '; the processor shows neither vmx nor svm'
    : `; the processor shows ${flags}`
  const engine = kvm.ok ? 'kvm, our own monitor' : qemu.ok ? 'qemu, in emulation' : 'nothing'
  return [
    finding('machines', 'wanted', kvm.ok || qemu.ok, `they run under ${engine}`,
      'Install QEMU, which runs machines anywhere: apt-get install qemu-system-x86'),
    finding('machines: kvm', 'wanted', kvm.ok, kvm.reason + processor,
      'For machines at full speed: turn virtualization on in the firmware, or nested, and load kvm_amd or kvm_intel'),
    finding('machines: qemu', 'wanted', qemu.ok, qemu.reason,
      'For machines that begin with firmware, and where KVM runs none: apt-get install qemu-system-x86'),
  ]
}

function readCpuInfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8')
  } catch {
    return ''
  }
}

function systemd(): Finding {
  const ok = existsSync('/run/systemd/system')
  return finding('systemd', 'wanted', ok,
    ok ? "'cellar host install' makes the host a service" : 'it does not run here',
    'Start the host by what starts services here')
}
