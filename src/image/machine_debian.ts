// image/machine_debian.ts: a small Debian guest: a kernel of Debian's, and an initramfs with busybox and the agent.
//
// Its files live in RAM, so it starts in a second or two and keeps nothing. With `packages`, what they hold and need is
// unpacked there, too; with `diskBytes` it goes over to a root file system on disks (machine_rootfs.ts): the packages'
// files on one that is never written, changes on another.

import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { BlobStore } from './blob_store.ts'
import { appletsOf } from './machine_applets.ts'
import { kernelVersionOf, makeInitramfs } from './machine_initramfs.ts'
import { makeMachineImage, putBytes, putPart } from './machine_image.ts'
import { openLayers } from './machine_layers.ts'
import { openPackages, unpackArchive, unpackPackage, type Packages, type PackageSource } from './machine_packages.ts'
import { addToInitramfs, rootDisks, withBusybox } from './machine_rootfs.ts'
import { runTool } from './machine_tools.ts'

const KERNEL_PACKAGE = 'linux-image-cloud-amd64'
const BUSYBOX_PACKAGE = 'busybox-static'
const MIB = 1024 * 1024
/** What the guest needs at the least, and beside its packages. */
const MEMORY_BYTES = 256 * MIB

/** What the guest is to be. `source.folder` keeps packages for the next time. */
export type DebianOptions = {
  readonly source: PackageSource
  readonly packages: readonly string[]
  /** Bytes of the disk for changes; undefined: all is in RAM. */
  readonly diskBytes?: number | undefined
  /** For files on the way. */
  readonly scratch: string
}

/** Makes the guest's image; answers its manifest. Throws MACHINE_TOOL_MISSING, MACHINE_PACKAGES_FAILED. */
export async function makeDebian(store: BlobStore, options: DebianOptions): Promise<Buffer> {
  const { source, packages, diskBytes, scratch } = options
  const apt = await openPackages(source, KERNEL_PACKAGE)
  const { kernel, ...parts } = await kernelAndTools(apt, scratch)
  const archives = packages.length === 0 ? [] : await archivesOf(await apt.fetchAll(packages), scratch)
  source.say('packing the first root file system')
  const root = diskBytes === undefined || archives.length === 0 ? undefined
    : await withBusybox(archives, parts.applets, scratch)
  const added = root === undefined && archives.length > 0 ? await addToInitramfs(await openLayers('debian', archives))
    : undefined
  const { bytes, agent } = makeInitramfs({ ...parts, more: added?.add, root: root && ((path) => root.has(path)) })
  if (root !== undefined) source.say('packing the root file system')
  const disks = root && await rootDisks(store, root, { upperBytes: diskBytes, scratch })
  return await makeMachineImage(store, 'debian', {
    architecture: 'amd64', os: 'linux', kernel: (await putPart(store, kernel)).digest,
    initrd: (await putBytes(store, bytes)).digest,
    commandLine: ['console=ttyS0 quiet', ...disks?.words ?? []].join(' '), disks: disks?.disks ?? [],
    memoryBytes: Math.ceil((MEMORY_BYTES + 2 * (added?.sizeBytes ?? 0)) / (2 * MIB)) * 2 * MIB, agent,
  })
}

// The kernel's file, its modules and busybox.
async function kernelAndTools(apt: Packages, scratch: string): Promise<{
  kernel: string; kernelFolder: string; version: string; busybox: Buffer; applets: string[] }> {
  const [kernelFolder, tools] = [join(scratch, 'kernel'), join(scratch, 'tools')]
  for (const folder of [kernelFolder, tools]) rmSync(folder, { recursive: true, force: true })
  await unpackPackage(await apt.fetch(await apt.dependency(KERNEL_PACKAGE, 'linux-image-')), kernelFolder)
  await unpackPackage(await apt.fetch(BUSYBOX_PACKAGE), tools)
  const version = kernelVersionOf(kernelFolder)
  const busybox = join(tools, 'bin/busybox')
  const { out } = await runTool('ask busybox for its names', { tool: busybox, from: BUSYBOX_PACKAGE,
    words: ['--list-full'] })
  return { kernel: join(kernelFolder, 'boot', `vmlinuz-${version}`), kernelFolder, version,
    busybox: readFileSync(busybox), applets: appletsOf(out) }
}

// Packages are layers: each a tar archive of its files, with their owners.
async function archivesOf(files: readonly string[], scratch: string): Promise<string[]> {
  const archives = []
  for (const [i, file] of files.entries()) {
    const archive = join(scratch, `package-${i}.tar`)
    await unpackArchive(file, archive)
    archives.push(archive)
  }
  return archives
}
