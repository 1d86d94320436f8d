// cli/image_import.ts: `cellar image import`: a program, or what a machine is made of, as an image.
//
// What is given tells which: a word is a program; --kernel or --disk are files of a machine; --rootfs is a container's
// image that becomes a machine's root file system. Programs are sent to the host as they are (images.ts).

import { mkdirSync, chmodSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { BlobStore } from '../image/blob_store.ts'
import { digestOf, readManifest } from '../image/image.ts'
import { LayoutFolder, parseLayout } from '../image/layout.ts'
import { openMachineImage, type MachineImage } from '../image/machine_image.ts'
import { importFiles, importRootfs } from '../image/machine_import.ts'
import { fetchBlob } from '../image/remote.ts'
import type { OperationView } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { importImage } from './images.ts'
import { makeAndGive, sayStage, sizeOf } from './machine_image.ts'
import { finish } from './operations.ts'

const FILES = ['kernel', 'initrd', 'disk', 'seed', 'meta-data', 'network-config'] as const
const ROOTFS = ['rootfs', 'kernel-from', 'changes', 'insecure-registry'] as const
const MACHINE = ['cmdline', 'vcpus', 'memory', 'layout', 'name'] as const
const MIB_2 = 2 * 1024 * 1024

/** `cellar image import`. */
export async function importAny(call: Call): Promise<number> {
  const { flags, words } = call
  const given = (names: readonly string[]): string | undefined => names.find((name) => flags[name] !== undefined)
  const [file, root, machine] = [given(FILES), given(ROOTFS), given(MACHINE)]
  if (words.length > 0) {
    const flag = file ?? root ?? machine
    if (flag === undefined) return await importImage(call)
    throw new CellarError('USAGE', [
      `Cannot use --${flag} with "${words[0]}": that is for machines, a word is a program`])
  }
  if (file !== undefined && root !== undefined) {
    throw new CellarError('USAGE', [`Cannot use --${file} with --${root}: a machine has one of the two`])
  }
  if (root !== undefined) return await importContainer(call)
  if (flags['kernel'] === undefined && flags['disk'] === undefined) {
    throw new CellarError('USAGE', ['Cannot import nothing: name a program, or give --kernel, --disk or --rootfs'])
  }
  if (flags['kernel'] === undefined && flags['initrd'] !== undefined) {
    throw new CellarError('USAGE', ['Cannot use --initrd without --kernel'])
  }
  const name = nameOf(call)
  const [seed, metaData, networkConfig] = FILES.slice(3).map((one) => flags[one]?.[0])
  if (seed === undefined && (metaData ?? networkConfig) !== undefined) {
    throw new CellarError('USAGE', ['Cannot use --meta-data or --network-config without --seed'])
  }
  return await makeAndGive(call, name, (store, scratch) => importFiles(store, {
    ...wishesOf(call), scratch, kernel: flags['kernel']?.[0], initrd: flags['initrd']?.[0],
    disks: (flags['disk'] ?? []).map((text) => ({ path: text.replace(/:ro$/, ''), readOnly: text.endsWith(':ro') })),
    seed: seed === undefined ? undefined : { userData: seed, metaData, networkConfig },
  }))
}

async function importContainer(call: Call): Promise<number> {
  const { flags } = call
  const reference = flags['rootfs']?.[0]
  if (reference === undefined) throw new CellarError('USAGE', ['Cannot do that without --rootfs'])
  const name = nameOf(call)
  return await makeAndGive(call, name, async (store, scratch) => importRootfs(store, {
    ...wishesOf(call), scratch, upperBytes: sizeOf(call, 'changes'),
    kernel: await kernelFrom(call, flags['kernel-from']?.[0] ?? 'debian', scratch),
    source: { reference, options: { insecure: flags['insecure-registry'] ?? [] }, say: sayStage },
  }))
}

// An image with a kernel: an OCI layout here, or one of the host's, which writes it into such a layout for us.
async function kernelFrom(call: Call, text: string, scratch: string): Promise<MachineImage> {
  let layout = parseLayout(text)
  if (layout === undefined) {
    const folder = join(scratch, 'kernel-from')
    mkdirSync(folder)
    // The host may be another user.
    chmodSync(scratch, 0o755)
    chmodSync(folder, 0o777)
    const host = await call.client()
    const begun = await host.ask<OperationView>('POST', '/v1/images/push',
      { body: { reference: text, to: `oci:${folder}:latest` } })
    if (await finish(host, [begun], { cancels: true }) !== 0) {
      throw new CellarError('NOT_FOUND', ['image with a kernel', text])
    }
    layout = { folder, tag: 'latest' }
  }
  const remote = new LayoutFolder(layout.folder)
  const bytes = await remote.readManifest(layout.tag ?? '')
  const manifest = readManifest(text, bytes)
  if ('manifests' in manifest) throw new CellarError('MACHINE_IMAGE_DAMAGED', [text, 'it is an index'])
  const store = new BlobStore(join(scratch, 'kernel-store'))
  for (const blob of [manifest.config, ...manifest.layers]) await fetchBlob(remote, blob, store)
  await store.put([bytes], { maxBytes: bytes.length })
  return openMachineImage(store, text, digestOf(bytes))
}

function nameOf({ flags }: Call): string {
  const name = flags['name']?.[0]
  if (name !== undefined || flags['layout'] !== undefined) return name ?? ''
  throw new CellarError('USAGE', ['Cannot import a machine without a name: give it one with --name'])
}

function wishesOf(call: Call): { commandLine: string | undefined; vcpus: number | undefined
  memoryBytes: number | undefined } {
  const { flags } = call
  const vcpus = flags['vcpus']?.[0]
  if (vcpus !== undefined && !/^([1-9]|[12]\d|3[0-2])$/.test(vcpus)) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--vcpus', vcpus, 'a whole number from 1 to 32'])
  }
  const memory = sizeOf(call, 'memory')
  if (memory !== undefined && memory % MIB_2 !== 0) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--memory', flags['memory']![0]!, 'a multiple of 2MiB'])
  }
  return { commandLine: flags['cmdline']?.[0], vcpus: vcpus === undefined ? undefined : Number(vcpus),
    memoryBytes: memory }
}
