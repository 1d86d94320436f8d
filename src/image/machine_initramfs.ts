// image/machine_initramfs.ts: the Debian guest's first root file system: busybox, drivers, scripts, and the agent.
//
// The scripts lie in guests/debian, each with its own account. What is here is which files go where. The archive is
// compressed with zstd, which Debian's kernels unpack fastest; the same parts always give the same bytes.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { constants, zstdCompressSync } from 'node:zlib'
import { CellarError } from '../base/errors.ts'
import { aliasesOfPrograms, appletLinks, OWN_APPLETS } from './machine_applets.ts'
import { CpioWriter } from './machine_cpio.ts'
import { aliasesOf, dependenciesOf, modulesOf } from './machine_modules.ts'

const SCRIPTS = fileURLToPath(new URL('../../guests/debian/', import.meta.url))
const AGENT = fileURLToPath(new URL('../../guests/agent/agent', import.meta.url))
/** Scripts in the guest's /etc/cellar. */
const IN_ETC: readonly string[] = ['agent.sh', 'down.sh', 'main.sh', 'network.sh', 'renew', 'root.sh', 'udhcpc.sh']

/** Loaded at each start: a machine's devices, over MMIO or PCI. */
const DRIVERS: readonly string[] = [
  'virtio_mmio', 'virtio_pci', 'virtio_blk', 'virtio_net', 'virtio_console', 'virtio_rng', 'virtio_balloon',
  'vmw_vsock_virtio_transport', 'button', 'evdev',
]
/** There when something asks for them: file systems, disks of other kinds, what people try out. */
const AT_HAND: readonly string[] = [
  'overlay', 'squashfs', 'vfat', 'nls_cp437', 'nls_ascii', 'nls_utf8', 'nls_iso8859_1', 'isofs', 'loop', 'fuse',
  'virtiofs', 'virtio_scsi', 'sd_mod', 'sr_mod', 'tun', 'veth', 'bridge', 'dummy', 'virtio_mem',
]

/** Files that every guest has, whatever its packages bring. */
export const SETTINGS: Readonly<Record<string, string>> = {
  'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n',
  'etc/group': 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n',
  'etc/shells': '/bin/sh\n',
  'etc/hosts': '127.0.0.1 localhost\n::1 localhost\n',
}

/** What an initramfs is made of. */
export type InitramfsParts = {
  /** Where the kernel's package was unpacked, and its version: 6.1.0-56-cloud-amd64. */
  readonly kernelFolder: string
  readonly version: string
  /** The program busybox, linked statically. */
  readonly busybox: Uint8Array
  /** Names that busybox answers to, such as bin/sh. */
  readonly applets: readonly string[]
  /** Called with the archive when all of ours but busybox's names is in it: adds packages. */
  readonly more?: ((cpio: CpioWriter) => void) | undefined
  /** Whether the root file system on disks has a path, where the guest goes over to one. */
  readonly root?: ((path: string) => boolean) | undefined
}

/** The archive, compressed, and whether the agent is in it. */
export function makeInitramfs(parts: InitramfsParts): { readonly bytes: Buffer; readonly agent: boolean } {
  const cpio = new CpioWriter()
  for (const name of ['dev', 'proc', 'sys', 'run', 'mnt', 'root']) cpio.folder(name)
  cpio.folder('tmp', 0o1777)
  cpio.device('dev/console', 'char', 5, 1).device('dev/null', 'char', 1, 3, 0o666)
  cpio.file('bin/busybox', parts.busybox, 0o755)
  for (const name of OWN_APPLETS) cpio.link(`sbin/${name}`, '/bin/busybox').link(`usr/sbin/${name}`, '/bin/busybox')
  cpio.file('init', readFileSync(join(SCRIPTS, 'init')), 0o755)
  cpio.file('etc/inittab', readFileSync(join(SCRIPTS, 'inittab')))
  for (const name of IN_ETC) cpio.file(`etc/cellar/${name}`, readFileSync(join(SCRIPTS, name)), 0o755)
  cpio.file('etc/cellar/acpi/PWRF/00000080', readFileSync(join(SCRIPTS, 'acpi_power.sh')), 0o755)
  addSettings(cpio, parts.version)
  addModules(cpio, parts)
  const agent = existsSync(AGENT)
  if (agent) cpio.file('etc/cellar/agent', readFileSync(AGENT), 0o755).link('usr/bin/cellar-agent', '/etc/cellar/agent')
  parts.more?.(cpio)
  if (cpio.has('usr/lib64') && !cpio.has('lib64')) cpio.link('lib64', 'usr/lib64')
  const names = aliasesOfPrograms(parts.applets, parts.root ?? ((path) => cpio.has(path)))
  for (const link of appletLinks(parts.applets, (path) => cpio.has(path), '/bin/busybox')) cpio.link(...link)
  if (names !== '') cpio.file('etc/cellar/names.sh', names)
  const params = { [constants.ZSTD_c_compressionLevel]: 15 }
  return { bytes: zstdCompressSync(cpio.finish(), { params }), agent }
}

/** The version of the kernel whose package was unpacked in `folder`. Throws MACHINE_PACKAGES_FAILED. */
export function kernelVersionOf(folder: string): string {
  const modules = join(folder, 'lib/modules')
  const usr = join(folder, 'usr/lib/modules')
  const [version, more] = existsSync(modules) ? readdirSync(modules) : existsSync(usr) ? readdirSync(usr) : []
  if (version !== undefined && more === undefined && /^[\w.+-]+$/.test(version)) return version
  throw new CellarError('MACHINE_PACKAGES_FAILED',
    ['find the kernel in its package', 'it has no modules of one version'])
}

function addSettings(cpio: CpioWriter, version: string): void {
  const files: Readonly<Record<string, string>> = {
    ...SETTINGS,
    'etc/resolv.conf': '',
    'etc/profile': "export PS1='\\u@\\h:\\w\\$ ' ENV=/etc/cellar/names.sh\n" +
      'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n',
    'etc/os-release': `PRETTY_NAME="Debian guest of Cellar (${version})"\nID=debian\n`,
    'etc/cellar/modules': DRIVERS.join('\n') + '\n',
  }
  for (const [name, content] of Object.entries(files)) cpio.file(name, content)
}

function addModules(cpio: CpioWriter, { kernelFolder, version }: InitramfsParts): void {
  const plain = join(kernelFolder, 'lib/modules', version)
  const folder = existsSync(plain) ? plain : join(kernelFolder, 'usr/lib/modules', version)
  const modules = modulesOf(folder, [...DRIVERS, ...AT_HAND])
  const to = `lib/modules/${version}`
  for (const { path, content } of modules) cpio.file(`${to}/${path}`, content)
  cpio.file(`${to}/modules.dep`, dependenciesOf(modules))
  cpio.file(`${to}/modules.alias`, aliasesOf(modules))
  cpio.file(`${to}/modules.symbols`, '')
}
