// host/machine_parts.ts: from what a machine's process is told to what its engine is: its image, its disks, its engine.
//
// Disks are in this order: those of the image, each as an overlay of the machine's own over a blob that is never
// written, then its volumes. An overlay is made at the first start and stays until the machine is removed.

import { hash } from 'node:crypto'
import { accessSync, constants, existsSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { KvmEngine } from '../machine/kvm_engine.ts'
import type { EngineOptions } from '../machine/engine.ts'
import type { DiskSpec, MachineSpec, NicSpec } from '../machine/spec.ts'
import { QemuEngine } from '../qemu/qemu_engine.ts'
import { findQemu } from '../qemu/qemu_probe.ts'
import { DISK_FILE } from '../services/block/disk.ts'
import { createDisk } from '../services/block/open_disk.ts'
import type { GuestLaunch } from './protocol.ts'

/** Letters and digits that a disk's serial may have, 20 at most (virtio). */
const SERIAL_LENGTH_MAX = 20
const DIGITS = 8

/** What a machine has beside what it is told. */
export type Surrounding = {
  readonly blobFolder: string
  readonly nics: readonly NicSpec[]; readonly generation: string
}

/** The files of the disks that are the machine's own. */
export function diskFiles({ machine }: GuestLaunch): readonly { readonly name: string; readonly path: string }[] {
  return machine!.image.disks.flatMap((disk, i) => disk.readOnly ? []
    : [{ name: `disk${i}.qcow2`, path: join(machine!.folder, `disk${i}.qcow2`) }])
}

/** What its engine is told. Makes the overlays that aren't there. Throws CellarError. */
export function specOf(launch: GuestLaunch, { blobFolder, nics, generation }: Surrounding): MachineSpec {
  const { name, machine, volumes } = launch
  const { image, vcpus, memoryBytes, kernelArgs, cid } = machine!
  const blob = (digest: string): string => join(blobFolder, digest.replace(':', '/'))
  const disks = image.disks.map((disk, i): DiskSpec => {
    const { serial, format } = disk
    if (disk.readOnly) {
      return { path: blob(disk.digest), format, readOnly: true, serial, backingFolders: [] }
    }
    const path = join(machine!.folder, `disk${i}.qcow2`)
    if (!existsSync(path)) {
      createDisk(path, { format: 'qcow2', sizeBytes: disk.sizeBytes,
        backing: { path: blob(disk.digest), format } })
    }
    return { path, format: 'qcow2', readOnly: false, serial, backingFolders: [blobFolder] }
  })
  return {
    name, vcpus, memoryBytes, nics, cid, generation,
    boot: image.kernel === undefined ? undefined : { kernel: blob(image.kernel),
      initrd: image.initrd === undefined ? undefined : blob(image.initrd),
      commandLine: [image.commandLine, kernelArgs].filter((words) => words !== undefined && words !== '').join(' ') },
    disks: [...disks, ...volumes.map(({ path, readOnly }): DiskSpec => ({ path: join(path, DISK_FILE), format: 'raw',
      readOnly, serial: serialOf(path), backingFolders: [] }))],
  }
}

/** What a volume is called by the guest: its name, or what is left of a long one and a digest of the whole. */
export function serialOf(path: string): string {
  const name = path.split('/').at(-1)!
  if (name.length <= SERIAL_LENGTH_MAX) return name
  const end = `-${hash('sha256', name).slice(0, DIGITS)}`
  return name.slice(0, SERIAL_LENGTH_MAX - end.length) + end
}

/** The engine that runs it. `kvmFd`: /dev/kvm, which stays the caller's. */
export function engineFor({ name, machine }: GuestLaunch, kvmFd: number | undefined, options: EngineOptions):
KvmEngine | QemuEngine {
  if (machine!.engine === 'qemu') {
    const path = findQemu()
    if (path === undefined) throw new CellarError('MACHINE_LOST', [name, 'its process finds no QEMU'])
    // QEMU opens /dev/kvm itself: as a project's user it may not.
    const accelerator = kvmFd !== undefined && mayOpenKvm() ? 'kvm' : 'tcg'
    return new QemuEngine({ ...options, qemu: { path, accelerator } })
  }
  if (kvmFd === undefined) throw new CellarError('MACHINE_LOST', [name, 'it was given no /dev/kvm'])
  return new KvmEngine({ ...options, kvmFd })
}

function mayOpenKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}
