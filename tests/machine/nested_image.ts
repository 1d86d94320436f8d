// tests/machine/nested_image.ts: what the nested host boots from: an initramfs with modules, and a disk with programs.
//
// The initramfs holds busybox, the modules in the order of their needs, and nested_init.sh. The disk (ext4, read-only,
// made by `mke2fs -d` without root) holds what is large and seldom changes: Node, the packages of node_modules that
// the program needs, QEMU, and the shared libraries of each, at the paths that they have here. What changes often,
// the project's own files, is sent to the running host (nested_host.ts).

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, renameSync, rmSync,
  statSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { CpioWriter } from '../../src/image/machine_cpio.ts'
import { CACHE, ROOT, type Packages } from './nested_packages.ts'

/** What the host needs for itself, and what a VMM uses; each comes with the modules that it needs. */
const MODULES = ['virtio_mmio', 'virtio_pci', 'virtio_blk', 'virtio_console', 'overlay', 'kvm', 'kvm-amd', 'tun',
  'vhost_vsock', 'vhost_net'] as const

/** Folders of the kernel's modules for its guests: what a small guest loads. */
const GUEST_MODULES = ['drivers/virtio', 'drivers/block', 'drivers/net', 'drivers/char', 'net/vmw_vsock',
  'fs/overlayfs', 'fs/squashfs', 'fs/fuse', 'fs/isofs', 'fs/fat', 'net/core', 'drivers/vhost'] as const

/** Programs beside Node, and folders that they read; those that this machine lacks are left out. */
const PROGRAMS = ['qemu-system-x86_64', 'qemu-img', 'mke2fs'] as const
const FOLDERS = ['/usr/share/qemu', '/usr/share/seabios', '/usr/lib/x86_64-linux-gnu/qemu'] as const

/** The initramfs: small, made anew each time. */
export function makeInitramfs(packages: Packages): Buffer {
  const files = new Map(walk(packages.modules).filter((path) => path.endsWith('.ko')).map((path) =>
    [moduleName(path), path]))
  const order: string[] = []
  const add = (name: string): void => {
    const path = files.get(name)
    if (path === undefined || order.includes(basename(path))) return
    for (const needed of needs(readFileSync(path))) add(needed)
    order.push(basename(path))
  }
  for (const name of MODULES) add(name.replaceAll('-', '_'))
  const archive = new CpioWriter()
  archive.file('init', readFileSync(join(import.meta.dirname, 'nested_init.sh')), 0o755)
  archive.file('bin/busybox', readFileSync(packages.busybox), 0o755)
  for (const name of order) archive.file(`modules/${name}`, readFileSync(files.get(moduleName(name))!))
  archive.file('modules/order', `${order.join('\n')}\n`)
  archive.device('dev/console', 'char', 5, 1)
  archive.device('dev/null', 'char', 1, 3, 0o666)
  return archive.finish()
}

/** The disk's path. Made if there is none of these very contents yet: some seconds. */
export function makeDisk(packages: Packages): string {
  const programs = [nodeBinary(), ...PROGRAMS.flatMap(findProgram)]
  const marks = [...programs, join(ROOT, 'package-lock.json'), import.meta.filename].map((path) =>
    `${path} ${statSync(path).size} ${statSync(path).mtimeMs}`)
  const key = createHash('sha256').update([packages.version, ...marks].join('\n')).digest('hex').slice(0, 16)
  const image = join(CACHE, `disk-${key}.ext4`)
  if (existsSync(image)) return image
  mkdirSync(CACHE, { recursive: true })
  const tree = mkdtempSync(join(CACHE, 'tree-'))
  try {
    fillTree(tree, programs, packages)
    const partial = `${tree}.ext4`
    run(['mke2fs', '-q', '-F', '-t', 'ext4', '-O', '^has_journal,^metadata_csum,^64bit', '-m', '0', '-d', tree, partial,
      '700M'])
    for (const name of readdirSync(CACHE)) {
      if (/^disk-.*\.ext4$/.test(name)) rmSync(join(CACHE, name))
    }
    renameSync(partial, image)
  } finally {
    rmSync(tree, { recursive: true })
  }
  return image
}

/** The path of Node that `npm ci` brought. */
function nodeBinary(): string {
  return realpathSync(join(ROOT, 'node_modules/.bin/node'))
}

function fillTree(tree: string, programs: readonly string[], packages: Packages): void {
  const put = (path: string, to = path): void => {
    mkdirSync(dirname(join(tree, to)), { recursive: true })
    cpSync(path, join(tree, to), { recursive: true, dereference: true })
  }
  for (const folder of ['proc', 'sys', 'dev', 'tmp', 'run', 'root', 'var/tmp', 'nested', 'usr/bin', 'usr/lib',
    'usr/sbin', 'usr/lib64', 'etc', ROOT]) {
    mkdirSync(join(tree, folder), { recursive: true })
  }
  for (const folder of ['bin', 'lib', 'sbin', 'lib64']) symlinkSync(`usr/${folder}`, join(tree, folder))
  writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n')
  writeFileSync(join(tree, 'etc/group'), 'root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n')
  writeFileSync(join(tree, 'etc/hosts'), '127.0.0.1 localhost nested\n')
  put(packages.busybox, '/usr/bin/busybox')
  for (const name of run([packages.busybox, '--list']).split('\n').filter((name) => /^[a-z0-9]/.test(name))) {
    const path = join(tree, 'usr/bin', name)
    if (!existsSync(path) && !(PROGRAMS as readonly string[]).includes(name)) symlinkSync('busybox', path)
  }
  for (const program of programs) put(program, program.startsWith('/usr/') || program === nodeBinary() ? program :
    join('/usr', program))
  for (const library of new Set(programs.flatMap(libraries))) put(library, library.replace(/^\/lib/, '/usr/lib'))
  for (const folder of FOLDERS.filter((folder) => existsSync(folder))) put(folder)
  put(packages.kernel)
  mkdirSync(join(tree, 'boot'))
  symlinkSync(packages.kernel, join(tree, 'boot/vmlinuz'))
  mkdirSync(dirname(join(tree, packages.busybox)), { recursive: true })
  symlinkSync('/usr/bin/busybox', join(tree, packages.busybox))
  for (const folder of GUEST_MODULES) {
    const path = join(packages.modules, 'kernel', folder)
    if (existsSync(path)) put(path, join('/usr/lib/modules', packages.version, 'kernel', folder))
  }
  for (const name of runtimePackages()) put(join(ROOT, 'node_modules', name))
  mkdirSync(join(tree, ROOT, 'node_modules/.bin'), { recursive: true })
  symlinkSync(nodeBinary(), join(tree, ROOT, 'node_modules/.bin/node'))
  symlinkSync(nodeBinary(), join(tree, 'usr/bin/node'))
}

/** The project's `dependencies` and theirs. */
function runtimePackages(): string[] {
  const found = new Set<string>()
  const add = (manifest: string): void => {
    const { dependencies } = JSON.parse(readFileSync(manifest, 'utf8')) as { dependencies?: Record<string, string> }
    for (const name of Object.keys(dependencies ?? {})) {
      const folder = join(ROOT, 'node_modules', name)
      if (found.has(name) || !existsSync(folder)) continue
      found.add(name)
      add(join(folder, 'package.json'))
    }
  }
  add(join(ROOT, 'package.json'))
  return [...found]
}

/** The shared libraries of a program, and its loader. */
function libraries(program: string): string[] {
  const done = spawnSync('ldd', [program], { encoding: 'utf8' })
  return [...(done.stdout ?? '').matchAll(/(?:=> )?(\/\S+) \(0x/g)].map((match) => match[1]!)
}

function findProgram(name: string): string[] {
  const folders = ['/usr/bin', '/usr/sbin', '/sbin', '/usr/local/bin']
  const path = folders.map((folder) => join(folder, name)).find((path) => existsSync(path))
  return path === undefined ? [] : [path]
}

/** The modules that a module needs: `depends=a,b` in its .modinfo. */
function needs(content: Buffer): string[] {
  const start = content.indexOf('\0depends=')
  if (start < 0) return []
  const list = content.subarray(start + '\0depends='.length, content.indexOf(0, start + 1)).toString()
  return list === '' ? [] : list.split(',').map((name) => name.replaceAll('-', '_'))
}

function moduleName(path: string): string {
  return basename(path, '.ko').replaceAll('-', '_')
}

function walk(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((name) => join(folder, name))
}

function run([file, ...args]: readonly string[]): string {
  const done = spawnSync(file!, args, { encoding: 'utf8' })
  if (done.status !== 0) throw new Error(`Cannot run ${file}: ${done.error?.message ?? done.stderr}`)
  return done.stdout
}
