// image/machine_import.ts: machine images of an operator's files: a kernel, an initrd, disks, a cloud-init seed; or the
// layers of a container's image under a kernel that there is.
//
// Each file is looked at first (machine_parts.ts), so that what is none is told by its own name. Raw disks become
// qcow2: a cloud image of some GiB is mostly zeroes.

import { join } from 'node:path'
import { rmSync } from 'node:fs'
import { CellarError, type ErrorCode } from '../base/errors.ts'
import type { BlobStore } from './blob_store.ts'
import { entryScript, fetchContainer, type ContainerSource } from './machine_container.ts'
import { CpioWriter } from './machine_cpio.ts'
import { headOf, makeMachineImage, putBytes, putPart, type MachineConfig, type MachineImage } from './machine_image.ts'
import { openLayers } from './machine_layers.ts'
import { diskOf, initrdFault, kernelFault } from './machine_parts.ts'
import { writeQcow2 } from './machine_qcow2.ts'
import { rootDisks } from './machine_rootfs.ts'
import { makeSeed, type SeedFiles } from './machine_seed.ts'
import { readFileSync } from 'node:fs'

const COMMAND_LINE = 'console=ttyS0'
const SEED = 'seed'

/** What all imported machines may say. */
type Wishes = {
  readonly commandLine?: string | undefined
  readonly vcpus?: number | undefined
  readonly memoryBytes?: number | undefined
  readonly scratch: string
}

/** Files that become an image. `disks`: paths, and whether guests may write to their copies. */
export type ImportFiles = Wishes & {
  readonly kernel?: string | undefined
  readonly initrd?: string | undefined
  readonly disks: readonly { readonly path: string; readonly readOnly: boolean }[]
  readonly seed?: SeedFiles | undefined
}

/** Makes an image of files; answers its manifest. Throws NOT_FOUND, MACHINE_KERNEL_INVALID, … by what is wrong. */
export async function importFiles(store: BlobStore, files: ImportFiles): Promise<Buffer> {
  const { scratch } = files
  const kernel = await partOf(store, 'MACHINE_KERNEL_INVALID', files.kernel, kernelFault)
  const initrd = await partOf(store, 'MACHINE_INITRD_INVALID', files.initrd, initrdFault)
  const disks: MachineConfig['disks'] = []
  for (const [i, { path, readOnly }] of files.disks.entries()) {
    disks.push({ ...await putDisk(store, path, scratch), readOnly, serial: `disk${i}` })
  }
  if (files.seed !== undefined) {
    const bytes = makeSeed(files.seed)
    const { digest } = await putBytes(store, bytes)
    disks.push({ digest, format: 'raw', sizeBytes: bytes.length, readOnly: true, serial: SEED })
  }
  const common = commonOf(files, COMMAND_LINE)
  return await makeMachineImage(store, 'given', { ...common, kernel, initrd, disks, agent: false })
}

/**
 * Makes an image whose root file system is a container image's. `kernel`: an image that has a kernel and an initramfs
 * of ours (`cellar image debian`). `upperBytes`: the disk for changes; undefined: they stay in RAM.
 */
export async function importRootfs(store: BlobStore, { source, kernel, upperBytes, ...wishes }: Wishes & {
  readonly source: ContainerSource; readonly kernel: MachineImage; readonly upperBytes?: number | undefined }):
Promise<Buffer> {
  const { reference, say } = source
  if (kernel.kernel === undefined || kernel.initrd === undefined) {
    throw new CellarError('MACHINE_IMAGE_DAMAGED', ['--kernel-from', 'it has no kernel with an initramfs'])
  }
  const { layers: archives, entry } = await fetchContainer(store, source)
  const layers = await openLayers(reference, archives)
  say('packing the root file system')
  const { disks, words } = await rootDisks(store, layers, { upperBytes, scratch: wishes.scratch })
  const more = new CpioWriter()
  if (entry !== undefined) more.file('etc/cellar/entry.sh', await entryScript(reference, entry, layers), 0o755)
  // The kernel unpacks archives one behind the other; the first is padded as it wants it.
  const first = readFileSync(kernel.initrd)
  const initrd = Buffer.concat([first, Buffer.alloc((4 - first.length % 4) % 4), more.finish()])
  const common = commonOf(wishes, kernel.config.commandLine)
  return await makeMachineImage(store, reference, {
    ...common, commandLine: [common.commandLine, ...words].join(' '),
    kernel: (await putPart(store, kernel.kernel)).digest, initrd: (await putBytes(store, initrd)).digest,
    disks, agent: kernel.config.agent, entry,
  })
}

function commonOf({ commandLine, vcpus, memoryBytes }: Wishes, ownLine: string):
Pick<MachineConfig, 'architecture' | 'os' | 'commandLine' | 'vcpus' | 'memoryBytes'> {
  return { architecture: 'amd64', os: 'linux', commandLine: commandLine ?? ownLine, vcpus, memoryBytes }
}

async function partOf(store: BlobStore, code: 'MACHINE_KERNEL_INVALID' | 'MACHINE_INITRD_INVALID',
  path: string | undefined, faultOf: (head: Buffer, size: number) => string | undefined): Promise<string | undefined> {
  if (path === undefined) return undefined
  const { head, sizeBytes } = await fileHead(code, path)
  const fault = faultOf(head, sizeBytes)
  if (fault !== undefined) throw new CellarError(code, [path, fault])
  return (await putPart(store, path)).digest
}

async function putDisk(store: BlobStore, path: string, scratch: string):
Promise<Pick<MachineConfig['disks'][number], 'digest' | 'format' | 'sizeBytes'>> {
  const { head, sizeBytes } = await fileHead('MACHINE_DISK_INVALID', path)
  const found = diskOf(head, sizeBytes)
  if (typeof found === 'string') throw new CellarError('MACHINE_DISK_INVALID', [path, found])
  if (found.format === 'qcow2') return { ...found, digest: (await putPart(store, path)).digest }
  const packed = join(scratch, 'disk.qcow2')
  rmSync(packed, { force: true })
  await writeQcow2(path, packed, found.sizeBytes)
  const { digest } = await putPart(store, packed)
  rmSync(packed)
  return { digest, format: 'qcow2', sizeBytes: found.sizeBytes }
}

async function fileHead(code: ErrorCode & `MACHINE_${string}_INVALID`, path: string):
Promise<{ readonly head: Buffer; readonly sizeBytes: number }> {
  try {
    return await headOf(path)
  } catch (cause) {
    const { code: errno, message } = cause as NodeJS.ErrnoException
    if (errno === 'ENOENT') throw new CellarError('NOT_FOUND', ['file', path], { cause })
    throw new CellarError(code, [path, message], { cause })
  }
}
