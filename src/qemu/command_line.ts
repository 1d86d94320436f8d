// qemu/command_line.ts: a machine's specification as the arguments of qemu-system-x86_64. Pure.
//
// The machine is q35, with and without a kernel of ours: `microvm` is smaller, but its ACPI is "hardware-reduced", and
// without KVM's clock Linux then has nothing but one try at the PIT to find the TSC's frequency by; on a busy machine
// that fails, and Linux waits for ever for a tick that nobody gives it (4 boots of 10, measured). q35 has PIT, HPET and
// PM timer. Besides, its versions have names ('pc-q35-7.2'), so that a saved state can be given to a newer QEMU.
//
// QEMU opens nothing but firmware and the kernel: all else are descriptors that it inherits, numbered here.
//
//   3 QMP   4 serial console   5 hvc0   6 agent   7 RAM   8… network cards   then the files of each disk

import { assert } from '../base/assert.ts'
import type { MachineSpec, NicSpec } from '../machine/spec.ts'
import type { ChainLink } from './disk_chain.ts'

const QMP_FD = 3
const CONSOLE_FD = 4
const HVC_FD = 5
const AGENT_FD = 6
const RAM_FD = 7
const FIRST_NIC_FD = 8

/** The name of the port on which the guest's agent speaks, as the guest sees it. */
const AGENT_PORT = 'cellar.agent.0'
/** Translated code that TCG keeps; QEMU's own default is 1 GiB. */
const TCG_CACHE_MIB = 256
/** Slots of the root bus that are free: 0 and 31 are the chip set's. */
const SLOTS_MAX = 30

/** What a command line is made of besides the machine. */
export type CommandLineOptions = {
  readonly spec: MachineSpec
  readonly disks: readonly (readonly ChainLink[])[]
  readonly accelerator: 'kvm' | 'tcg'
  /** 'q35', or a version of it, such as 'pc-q35-7.2'. */
  readonly machineType: string
  /** It gets its state from us before it goes on. */
  readonly isIncoming: boolean
}

/** The arguments, without the program. The machine doesn't run before `cont`. */
export function commandLine(options: CommandLineOptions): string[] {
  const { spec, disks, accelerator, isIncoming } = options
  const isTcg = accelerator === 'tcg'
  return [
    '-name', `guest=${escaped(spec.name)},debug-threads=on`, '-nodefaults', '-no-user-config', '-display', 'none',
    '-machine', machine(options),
    '-accel', isTcg ? `tcg,thread=multi,tb-size=${TCG_CACHE_MIB}` : 'kvm',
    // No guest of ours has guests of its own. Page tables of five levels cost a step each, and are for 64 TiB of RAM.
    '-cpu', isTcg ? 'max,-svm,-vmx,-la57' : 'host,-svm,-vmx',
    '-smp', `cpus=${spec.vcpus},sockets=1,cores=${spec.vcpus},threads=1`,
    '-m', `size=${spec.memoryBytes / 1024}k`,
    '-object', JSON.stringify({ 'qom-type': 'memory-backend-file', id: 'ram', size: spec.memoryBytes,
      'mem-path': `/proc/self/fd/${RAM_FD}`, share: true, dump: false }),
    '-rtc', 'base=utc',
    '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
    '-action', 'reboot=shutdown,shutdown=poweroff,panic=shutdown',
    // The one way to tell a triple fault from a reset: TCG says so in its log.
    ...(isTcg ? ['-d', 'cpu_reset'] : []),
    '-S', ...(isIncoming ? ['-incoming', 'defer'] : []),
    '-chardev', `socket,id=qmp,fd=${QMP_FD}`, '-mon', 'chardev=qmp,mode=control',
    '-chardev', `socket,id=console,fd=${CONSOLE_FD}`, '-serial', 'chardev:console',
    '-chardev', `socket,id=hvc,fd=${HVC_FD}`, '-chardev', `socket,id=agent,fd=${AGENT_FD}`,
    '-object', JSON.stringify({ 'qom-type': 'rng-builtin', id: 'entropy' }),
    ...spec.nics.flatMap((nic, index) => ['-netdev', netdev(nic, index)]),
    ...disks.flatMap((chain, index) => blockNodes(chain, index, firstDiskFd(spec, disks, index))),
    ...devices(spec, disks).flatMap((device) => ['-device', JSON.stringify(device)]),
    ...boot(spec),
  ]
}

function machine({ spec, accelerator, machineType }: CommandLineOptions): string {
  // Each thing that is absent isn't looked for. Firmware and boot loaders speak on the serial line where they are used.
  return [machineType, 'memory-backend=ram', 'dump-guest-core=off', 'smm=off', 'vmport=off', 'usb=off', 'sata=off',
    'i8042=off', `hpet=${accelerator === 'tcg' ? 'on' : 'off'}`, ...(spec.boot === undefined ? ['graphics=off'] : [])]
    .join(',')
}

function boot({ boot }: MachineSpec): string[] {
  if (boot === undefined) return ['-boot', 'strict=on']
  const initrd = boot.initrd === undefined ? [] : ['-initrd', boot.initrd]
  return ['-kernel', boot.kernel, ...initrd, '-append', boot.commandLine]
}

function netdev({ kind }: NicSpec, index: number): string {
  const fd = FIRST_NIC_FD + index
  return kind === 'tap' ? `tap,id=net${index},fd=${fd},vhost=off`
    : `stream,id=net${index},server=off,addr.type=fd,addr.str=${fd}`
}

/** The number of a disk's own file; those that it is based on follow. */
function firstDiskFd({ nics }: MachineSpec, disks: CommandLineOptions['disks'], index: number): number {
  return FIRST_NIC_FD + nics.length + disks.slice(0, index).reduce((sum, chain) => sum + chain.length, 0)
}

// From the last of a chain to the disk itself: a node is named before it is used. `disk0` is what the guest sees.
function blockNodes(chain: readonly ChainLink[], index: number, firstFd: number): string[] {
  const nameOf = (depth: number): string => depth === 0 ? `disk${index}` : `disk${index}-${depth}`
  return chain.map(({ format, isReadOnly }, depth) => {
    const fd = firstFd + depth
    // Flushes of the guest are flushes of the file; reads and writes go through the host's page cache.
    const common = { 'read-only': isReadOnly, discard: 'unmap', cache: { direct: false, 'no-flush': false } }
    const file = { driver: 'file', 'node-name': `${nameOf(depth)}-file`, filename: `/dev/fdset/${fd}`, ...common }
    const backing = format === 'raw' ? {} : { backing: depth + 1 < chain.length ? nameOf(depth + 1) : null }
    const node = { driver: format, 'node-name': nameOf(depth), file: file['node-name'], ...common, ...backing }
    return ['-add-fd', `fd=${fd},set=${fd}`, '-blockdev', JSON.stringify(file), '-blockdev', JSON.stringify(node)]
  }).reverse().flat()
}

type Device = Readonly<Record<string, unknown>>

// The order is that of their slots, and so that in which Linux finds them: disk 0 is vda, card 0 is eth0.
function devices(spec: MachineSpec, disks: CommandLineOptions['disks']): Device[] {
  let slot = 0
  const pci = (driver: string, rest: Device): Device => {
    assert(++slot <= SLOTS_MAX, 'a machine has no more devices than slots', slot)
    return { driver, bus: 'pcie.0', addr: `0x${slot.toString(16)}`, ...rest }
  }
  return [
    { driver: 'pvpanic' },
    { driver: 'vmgenid', guid: uuid(spec.generation) },
    pci('virtio-serial-pci', { id: 'serial' }),
    { driver: 'virtconsole', id: 'hvc', bus: 'serial.0', nr: 0, chardev: 'hvc' },
    { driver: 'virtserialport', id: 'agent', bus: 'serial.0', nr: 1, chardev: 'agent', name: AGENT_PORT },
    pci('virtio-rng-pci', { rng: 'entropy' }),
    pci('virtio-balloon-pci', { id: 'balloon', 'free-page-reporting': true, 'deflate-on-oom': true }),
    ...spec.nics.map(({ mac, mtu }, index) => pci('virtio-net-pci',
      { id: `nic${index}`, netdev: `net${index}`, mac, host_mtu: mtu, romfile: '' })),
    // A write that fails, as on a full disk, is an error to the guest: it doesn't stop the machine.
    ...spec.disks.map(({ serial }, index) => pci('virtio-blk-pci', { id: `blk${index}`, drive: `disk${index}`, serial,
      werror: 'report', rerror: 'report', 'write-cache': disks[index]![0]!.isReadOnly ? 'auto' : 'on',
      ...(index === 0 && spec.boot === undefined ? { bootindex: 0 } : {}) })),
  ]
}

// 32 hex digits with the dashes of RFC 9562.
function uuid(hex: string): string {
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/** A comma ends a value in QEMU's lists; two are one of it. */
function escaped(value: string): string {
  return value.replaceAll(',', ',,')
}
