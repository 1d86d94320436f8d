// image/machine_image.ts: images of machines: a kernel, an initrd, disks, and how they go together.
//
//   manifest  application/vnd.oci.image.manifest.v1+json, artifactType application/vnd.cellar.machine.v1+json
//     config  application/vnd.cellar.machine.v1+json             { kernel, initrd, commandLine, disks … }
//     layer   application/vnd.cellar.machine.kernel.v1           a bzImage, or an ELF file with a PVH entry
//     layer   application/vnd.cellar.machine.initrd.v1           a cpio archive, compressed or not
//     layer   application/vnd.cellar.machine.disk.v1.qcow2, ….raw
//
// Layers are kept and sent as machines use them: a disk's blob is opened where it lies, read-only, as itself or as what
// a writable disk is based on. So nothing is unpacked when a machine starts; what is to be small is compressed inside
// (qcow2 clusters, squashfs, a bzImage). An image with no kernel has a boot loader on its first disk.
//
// All of it may be a stranger's: what the configuration says is checked, and that its parts are what they should be.

import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { IMAGE_MANIFEST_BYTES_MAX, MACHINE_IMAGE_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import {
  digestOf, layoutOf, MACHINE_TYPE, MANIFEST_TYPE, readConfig, readManifest, type Descriptor, type Manifest,
} from './image.ts'
import { diskOf, HEAD_BYTES, initrdFault, kernelFault } from './machine_parts.ts'
import { isDigest } from './reference.ts'

const KERNEL_TYPE = 'application/vnd.cellar.machine.kernel.v1'
const INITRD_TYPE = 'application/vnd.cellar.machine.initrd.v1'
const DISK_TYPES = {
  raw: 'application/vnd.cellar.machine.disk.v1.raw', qcow2: 'application/vnd.cellar.machine.disk.v1.qcow2',
} as const
const KNOWN_TYPES: readonly string[] = [KERNEL_TYPE, INITRD_TYPE, ...Object.values(DISK_TYPES)]

/** Linux takes no more (COMMAND_LINE_SIZE); one byte is for the NUL. */
const COMMAND_LINE_BYTES_MAX = 2047
/** As machines have them (machine/spec.ts). */
const DISKS_MAX = 8
const VCPUS_MAX = 32
const MEMORY_BYTES_MAX = 2 ** 40
const MIB_2 = 2 * 1024 * 1024
const NOTHING = 'it has neither kernel nor disk'

const digest = z.string().refine(isDigest, 'must be sha256:HEX')
const text = (max: number): z.ZodString => z.string().max(max).regex(/^[^\0]*$/, 'must not have a NUL')
const disk = z.object({
  digest, format: z.enum(['raw', 'qcow2']), sizeBytes: z.int().min(512).max(2 ** 44).multipleOf(512),
  readOnly: z.boolean(), serial: z.string().regex(/^[A-Za-z0-9._-]{1,20}$/, 'must be of 1 to 20 letters and digits'),
})
const machine = z.object({
  architecture: z.literal('amd64'), os: z.literal('linux'),
  kernel: digest.optional(), initrd: digest.optional(),
  commandLine: z.string().max(COMMAND_LINE_BYTES_MAX).regex(/^[\x20-\x7e]*$/, 'must be of printable ASCII'),
  disks: z.array(disk).max(DISKS_MAX),
  vcpus: z.int().min(1).max(VCPUS_MAX).optional(),
  memoryBytes: z.int().min(MIB_2).max(MEMORY_BYTES_MAX).multipleOf(MIB_2).optional(),
  agent: z.boolean(),
  entry: z.object({ argv: z.array(text(128 * 1024)).max(1024), env: z.array(text(128 * 1024)).max(1024),
    cwd: text(4096), user: text(256) }).optional(),
})

/** What a machine is made of, as its image says. `serial`: what the guest is told of a disk, such as 'root'. */
export type MachineConfig = z.infer<typeof machine>

/** A machine's image in a store: its parts as files, which are never written. */
export type MachineImage = {
  readonly config: MachineConfig
  readonly kernel: string | undefined
  readonly initrd: string | undefined
  /** In the order of config.disks. */
  readonly disks: readonly (MachineConfig['disks'][number] & { readonly path: string })[]
}

/** A part as a blob that is in the store. */
type Part = { readonly digest: string; readonly size: number }

/** Puts a file into the store, as a part. Throws NOT_FOUND, IMAGE_TOO_LARGE, HOST_DISK_FULL. */
export async function putPart(store: BlobStore, path: string): Promise<Part> {
  const found = await store.put(createReadStream(path, { highWaterMark: 1024 * 1024 }),
    { maxBytes: MACHINE_IMAGE_BYTES_MAX, what: path })
  return { digest: found, size: store.size(found)! }
}

/** Puts bytes into the store, as a part. */
export async function putBytes(store: BlobStore, bytes: Uint8Array): Promise<Part> {
  return { digest: await store.put([bytes], { maxBytes: MACHINE_IMAGE_BYTES_MAX }), size: bytes.length }
}

/** Makes an image of parts that are in the store; answers its manifest. Throws MACHINE_IMAGE_DAMAGED. */
export async function makeMachineImage(store: BlobStore, image: string, config: MachineConfig): Promise<Buffer> {
  if (config.kernel === undefined && config.disks.length === 0) throw damaged(image, NOTHING)
  const bytes = Buffer.from(JSON.stringify(config))
  const layer = (mediaType: string, one: string): Descriptor => ({ mediaType, digest: one, size: store.size(one)! })
  const layers = [
    ...config.kernel === undefined ? [] : [layer(KERNEL_TYPE, config.kernel)],
    ...config.initrd === undefined ? [] : [layer(INITRD_TYPE, config.initrd)],
    ...config.disks.map((one) => layer(DISK_TYPES[one.format], one.digest)),
  ]
  const manifest = Buffer.from(JSON.stringify({
    schemaVersion: 2, mediaType: MANIFEST_TYPE, artifactType: MACHINE_TYPE,
    config: { mediaType: MACHINE_TYPE, digest: digestOf(bytes), size: bytes.length },
    // The same disk twice is one layer.
    layers: layers.filter((one, i) => layers.findIndex((other) => other.digest === one.digest) === i),
  }))
  await store.put([bytes], { maxBytes: IMAGE_MANIFEST_BYTES_MAX })
  const read = readManifest(image, manifest)
  if ('manifests' in read) throw damaged(image, 'it is an index')
  await checkMachineImage(store, image, read)
  await store.put([manifest], { maxBytes: IMAGE_MANIFEST_BYTES_MAX })
  return manifest
}

/** Checks an image whose blobs are all in the store. Throws MACHINE_IMAGE_DAMAGED; `image` is its name in messages. */
export async function checkMachineImage(store: BlobStore, image: string, manifest: Manifest): Promise<void> {
  const { config, kernel, initrd, disks } = partsOf(store, image, manifest)
  const check = async (what: string, path: string | undefined, faultOf: (head: Buffer, size: number) =>
  string | undefined): Promise<void> => {
    if (path === undefined) return
    const { head, sizeBytes } = await headOf(path)
    const fault = faultOf(head, sizeBytes)
    if (fault !== undefined) throw damaged(image, `its ${what} is none: ${fault}`)
  }
  await check('kernel', kernel, kernelFault)
  await check('initrd', initrd, initrdFault)
  for (const [i, { path, format, sizeBytes: said }] of disks.entries()) {
    await check(`disk ${config.disks[i]!.serial}`, path, (head, size) => {
      const found = diskOf(head, size)
      if (typeof found === 'string') return found
      return found.format === format && found.sizeBytes === said ? undefined
        : `it is ${found.format} of ${found.sizeBytes} bytes, not ${format} of ${said}`
    })
  }
}

/** The image with this manifest, to be run. Throws NOT_FOUND, MACHINE_IMAGE_DAMAGED; `image`: its name in messages. */
export function openMachineImage(store: BlobStore, image: string, manifestDigest: string): MachineImage {
  const manifest = readManifest(image, store.read(manifestDigest))
  if ('manifests' in manifest || layoutOf(image, manifest).kind !== 'machine') {
    throw damaged(image, 'it is no machine\'s')
  }
  return partsOf(store, image, manifest)
}

/** A file's begin, and its size. */
export async function headOf(path: string): Promise<{ readonly head: Buffer; readonly sizeBytes: number }> {
  const handle = await open(path)
  try {
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0)
    return { head: buffer.subarray(0, bytesRead), sizeBytes: (await handle.stat()).size }
  } finally {
    await handle.close()
  }
}

// The configuration's words for the parts, and theirs in the manifest, must be the same.
function partsOf(store: BlobStore, image: string, manifest: Manifest): MachineImage {
  const parsed = machine.safeParse(readConfig(store.read(manifest.config.digest)))
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw damaged(image, `its configuration is wrong at ${issue?.path.join('.') || 'its top'}: ${issue?.message ?? ''}`)
  }
  const config = parsed.data
  const unknown = manifest.layers.find(({ mediaType }) => !KNOWN_TYPES.includes(mediaType))
  if (unknown !== undefined) throw damaged(image, `it has a part of a kind that isn't known: ${unknown.mediaType}`)
  if (config.kernel === undefined && config.disks.length === 0) throw damaged(image, NOTHING)
  const path = (what: string, mediaType: string, one: string): string => {
    const layer = manifest.layers.find((other) => other.digest === one && other.mediaType === mediaType)
    if (layer === undefined) throw damaged(image, `its ${what} isn't among its layers`)
    const size = store.size(one)
    if (size !== layer.size) throw damaged(image, `its ${what} has ${size ?? 'no'} bytes in place of ${layer.size}`)
    return store.path(one)
  }
  return {
    config,
    kernel: config.kernel === undefined ? undefined : path('kernel', KERNEL_TYPE, config.kernel),
    initrd: config.initrd === undefined ? undefined : path('initrd', INITRD_TYPE, config.initrd),
    disks: config.disks.map((one) =>
      ({ ...one, path: path(`disk ${one.serial}`, DISK_TYPES[one.format], one.digest) })),
  }
}

function damaged(image: string, why: string): CellarError {
  return new CellarError('MACHINE_IMAGE_DAMAGED', [image, printable(why, 300)])
}
