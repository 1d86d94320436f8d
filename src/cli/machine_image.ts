// cli/machine_image.ts: machine images that are made on this machine, and how the host gets them.
//
// An image is made in a folder for the purpose: a store of blobs, which is an OCI layout as soon as its manifest is
// named. The host on this machine pulls it from there, as it does from any layout; then the folder goes. `--layout`
// keeps it in place of that: to be pushed elsewhere, or to be run where no host is.

import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { parseSize } from '../base/units.ts'
import { BlobStore } from '../image/blob_store.ts'
import { digestOf, MANIFEST_TYPE } from '../image/image.ts'
import { LayoutFolder } from '../image/layout.ts'
import type { OperationView } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { finish } from './operations.ts'
import { print } from './print.ts'
import { imagePath } from './upload.ts'

const TAG = 'latest'

/** Where packages are kept for the next time. */
export function packageCache(): string {
  return join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cellar/debian')
}

/** Tells on stderr what is being done. */
export function sayStage(text: string): void { process.stderr.write(`cellar: ${text}\n`) }

/** Bytes of a size that a flag has; undefined if the flag wasn't given. Throws FLAG_VALUE_INVALID. */
export function sizeOf({ flags }: Call, flag: string): number | undefined {
  const text = flags[flag]?.[0]
  if (text === undefined) return undefined
  const bytes = parseSize(text)
  if (bytes !== undefined && bytes > 0) return bytes
  throw new CellarError('FLAG_VALUE_INVALID', [`--${flag}`, text, 'a size, such as 2GiB'])
}

/**
 * Makes an image by `make`, which gets a store and a folder for what lies about on the way, and answers the manifest.
 * Then the host gets it under `name`, or, with --layout, a folder. The exit status.
 */
export async function makeAndGive(call: Call, name: string,
  make: (store: BlobStore, scratch: string) => Promise<Buffer>): Promise<number> {
  const kept = call.flags['layout']?.[0]
  // Whether there is a host is asked before minutes are spent on its image.
  if (kept === undefined) await hostHere(call)
  // No name of an image: a layout's folder would give it one. The host may be another user: it may read all of it.
  const scratch = mkdtempSync(join(tmpdir(), 'cellar-image-'))
  const folder = kept === undefined ? join(scratch, '_') : resolve(kept)
  const onExit = (): void => rmSync(scratch, { recursive: true, force: true })
  process.once('exit', onExit)
  const onSignal = (): void => process.exit(130)
  process.once('SIGINT', onSignal)
  try {
    const manifest = await make(new BlobStore(folder), scratch)
    const layout = new LayoutFolder(folder)
    await layout.writeManifest(manifest, MANIFEST_TYPE, TAG)
    if (kept === undefined) return await give(call, folder, digestOf(manifest), name)
    rmSync(join(folder, 'ingest'), { recursive: true, force: true })
    print(`oci:${folder}:${TAG}\n`)
    return 0
  } finally {
    process.off('SIGINT', onSignal)
    process.off('exit', onExit)
    onExit()
  }
}

async function hostHere(call: Call): Promise<void> {
  const host = await call.client()
  if (host.address.socket === undefined) {
    throw new CellarError('USAGE', ['Cannot give an image that is made here to a host elsewhere: ' +
      'keep it with --layout FOLDER, give it to a host here, and push it to a registry'])
  }
  await host.ask('GET', '/v1/images', { query: { limit: '1' } })
}

async function give(call: Call, folder: string, digest: string, name: string): Promise<number> {
  const host = await call.client()
  chmodSync(join(folder, '..'), 0o755)
  const begun = await host.ask<OperationView>('POST', '/v1/images/pull',
    { body: { reference: `oci:${folder}:${TAG}` } })
  const status = await finish(host, [begun], { cancels: true })
  if (status !== 0) return status
  await host.ask('POST', '/v1/images/tag', { body: { reference: digest, name } })
  await host.ask('GET', imagePath(name))
  print(`${name}\n`)
  return 0
}
