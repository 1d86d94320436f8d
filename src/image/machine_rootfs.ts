// image/machine_rootfs.ts: a tree of layers as a machine's root file system, without being root here.
//
//   root    squashfs, never written: sqfstar makes it of a tar archive on its stdin, which says owners, modes, devices
//           and capabilities; no file of it ever lies unpacked on this machine
//   upper   ext4, where changes go: empty, made by mke2fs in a file, kept as a qcow2 of some hundred KiB
//
// The initramfs (guests/debian/root.sh) joins the two by overlayfs. The guest finds them by their serial numbers.

import { truncateSync, openSync, closeSync, rmSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import { appletLinks, type AppletLink } from './machine_applets.ts'
import type { CpioWriter } from './machine_cpio.ts'
import { headOf, putPart, type MachineConfig } from './machine_image.ts'
import { SETTINGS } from './machine_initramfs.ts'
import { openLayers, type LayerEntry, type Layers } from './machine_layers.ts'
import { diskOf } from './machine_parts.ts'
import { writeQcow2 } from './machine_qcow2.ts'
import { tarOf } from './machine_tar.ts'
import { lastLine, runTool } from './machine_tools.ts'

const ROOT = 'root'
const UPPER = 'upper'
/** Where root.sh puts it in every guest. */
const BUSYBOX = '/run/cellar/busybox'
/** The same for all, as the content is: no guest mounts two of them. */
const UPPER_UUID = '63656c6c-6172-4000-8000-757070657200'
/** What a journal and the tables take: less is no file system. */
const UPPER_BYTES_MIN = 16 * 1024 * 1024
/** Files that an initramfs can hold: they lie in the guest's RAM, and for a while in ours. */
const INITRAMFS_BYTES_MAX = 1024 * 1024 * 1024

/** A root file system: its disks, and what the kernel's command line says of them. */
export type RootDisks = { readonly disks: MachineConfig['disks']; readonly words: readonly string[] }

/**
 * Makes the disks of a root file system in the store. `upperBytes`: the size of the one for changes; undefined: there
 * is none, changes stay in the guest's RAM. `scratch`: a folder for files on the way. Throws IMAGE_INVALID,
 * MACHINE_TOOL_MISSING.
 */
export async function rootDisks(store: BlobStore, layers: Layers,
  { upperBytes, scratch }: { readonly upperBytes: number | undefined; readonly scratch: string }): Promise<RootDisks> {
  const root = await partOf(store, await makeSquashfs(layers, join(scratch, 'root.squashfs')), ROOT, true)
  if (upperBytes === undefined) return { disks: [root], words: [`cellar.root=${ROOT}`] }
  const upper = await partOf(store, await makeUpper(join(scratch, 'upper'), upperBytes), UPPER, false)
  return { disks: [root, upper], words: [`cellar.root=${ROOT}`, `cellar.upper=${UPPER}`] }
}

/** Reads the tree for an initramfs. `add` puts it there, without what the archive has already. */
export async function addToInitramfs(layers: Layers): Promise<{
  readonly add: (cpio: CpioWriter) => void; readonly sizeBytes: number }> {
  const { sizeBytes } = layers
  if (sizeBytes > INITRAMFS_BYTES_MAX) {
    throw new CellarError('MACHINE_PACKAGES_FAILED', ['put the packages into RAM',
      `they have ${sizeBytes} bytes: give the guest a disk (--disk)`])
  }
  const actions: ((cpio: CpioWriter) => void)[] = []
  for await (const { path, kind, mode, link, major, minor, content } of layers.entries()) {
    if (path === '') continue
    if (kind === 'folder') actions.push((cpio) => cpio.has(path) || cpio.folder(path, mode))
    else if (kind === 'link') actions.push((cpio) => cpio.has(path) || cpio.link(path, link))
    else if (kind === 'char' || kind === 'block') {
      actions.push((cpio) => cpio.has(path) || cpio.device(path, kind, major, minor, mode))
    } else if (kind === 'file' || kind === 'hard link') {
      const pieces: Uint8Array[] = []
      if (content !== undefined) for await (const piece of content) pieces.push(Uint8Array.from(piece))
      const bytes = Buffer.concat(pieces)
      // One more name for a file: a link does for programs.
      actions.push((cpio) => cpio.has(path) ||
        (kind === 'file' ? cpio.file(path, bytes, mode) : cpio.link(path, `/${link}`)))
    }
  }
  return { add: (cpio) => { for (const action of actions) action(cpio) }, sizeBytes }
}

/**
 * The tree of `archives`, packages whose scripts never ran, with what those would have made of it: a shell and all that
 * busybox does, where the packages bring none; users; the way to the loader. `scratch`: a folder for a file that stays
 * while the tree is read.
 */
export async function withBusybox(archives: readonly string[], applets: readonly string[], scratch: string):
Promise<Layers> {
  const packages = await openLayers('debian', archives)
  const has = (path: string): boolean => packages.has(path)
  // Without an init of its own, process 1 is a script of ours.
  const names = applets.filter((path) => !path.endsWith('/init'))
  const links: AppletLink[] = appletLinks(names, has, BUSYBOX)
  if (has('usr/lib64') && !has('lib64')) links.push(['lib64', 'usr/lib64'])
  const files = Object.entries(SETTINGS).filter(([path]) => !has(path))
  const plain = { uid: 0, gid: 0, mtime: 0, link: '', major: 0, minor: 0, xattrs: new Map<string, Uint8Array>(),
    size: 0, content: undefined }
  const own: LayerEntry[] = links.map(([path, link]) => ({ ...plain, path, link, kind: 'link', mode: 0o777 }))
  if (!has('root')) own.push({ ...plain, path: 'root', kind: 'folder', mode: 0o700 })
  for (const [path, text] of files) {
    own.push({ ...plain, path, kind: 'file', mode: 0o644, size: text.length, content: streamOf(text) })
  }
  const archive = join(scratch, 'busybox.tar')
  await writeFile(archive, tarOf({ entries: () => own }))
  return await openLayers('debian', [...archives, archive])
}

async function* streamOf(text: string): AsyncGenerator<Uint8Array> { yield Buffer.from(text) }

async function makeSquashfs(layers: Layers, path: string): Promise<string> {
  const what = 'make a root file system'
  rmSync(path, { force: true })
  const words = ['-quiet', '-no-progress', '-comp', 'zstd', path]
  const { status, told } = await runTool(what, { tool: 'sqfstar', from: 'squashfs-tools', words, input: tarOf(layers) })
  if (status === 0) return path
  throw new CellarError('MACHINE_DISK_INVALID', [ROOT, printable(`sqfstar: ${lastLine(told)}`, 300)])
}

async function makeUpper(path: string, sizeBytes: number): Promise<string> {
  if (sizeBytes < UPPER_BYTES_MIN || sizeBytes % 4096 !== 0) {
    throw new CellarError('MACHINE_DISK_INVALID', [UPPER, `its size must be a multiple of 4096 bytes, and at least ` +
      `${UPPER_BYTES_MIN}: ${sizeBytes} was asked for`])
  }
  for (const one of [path, `${path}.qcow2`]) rmSync(one, { force: true })
  closeSync(openSync(path, 'wx', 0o600))
  truncateSync(path, sizeBytes)
  // Owned by root, whoever we are; tables are written when they are used.
  const options = `root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed=${UPPER_UUID}`
  const { status, told } = await runTool('make a disk for changes', { tool: 'mke2fs', from: 'e2fsprogs',
    words: ['-q', '-F', '-t', 'ext4', '-m', '0', '-U', UPPER_UUID, '-L', UPPER, '-E', options, path] })
  if (status !== 0) throw new CellarError('MACHINE_DISK_INVALID', [UPPER, printable(`mke2fs: ${lastLine(told)}`, 300)])
  await writeQcow2(path, `${path}.qcow2`, sizeBytes)
  rmSync(path)
  return `${path}.qcow2`
}

async function partOf(store: BlobStore, path: string, serial: string, readOnly: boolean):
Promise<MachineConfig['disks'][number]> {
  const { head, sizeBytes } = await headOf(path)
  const found = diskOf(head, sizeBytes)
  if (typeof found === 'string') throw new CellarError('MACHINE_DISK_INVALID', [path, found])
  const { digest } = await putPart(store, path)
  rmSync(path)
  return { digest, ...found, readOnly, serial }
}
