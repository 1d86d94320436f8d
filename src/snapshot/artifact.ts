// snapshot/artifact.ts: a snapshot in a registry: an OCI artifact, which any registry keeps.
//
//   manifest  application/vnd.oci.image.manifest.v1+json, artifactType application/vnd.cellar.snapshot.v1
//     config  application/vnd.oci.empty.v1+json               {}
//     layer   application/vnd.cellar.snapshot.v1              the snapshot without its memory (format.ts)
//     layers  application/vnd.cellar.snapshot.chunks.v1       its chunks, as a stream has them (transfer.ts)
//     layer   application/vnd.cellar.snapshot.module.v1+wasm  the program
//
// A layer of chunks has those of one part of the memory, so that parts which haven't changed since another snapshot of
// the guest are in the registry already. The program is there, too: without it a snapshot is of no use. As its type is
// its own, who takes a snapshot for an image is told that it is none.
//
// Whatever a snapshot's guest held is in it, secrets included. What comes is a stranger's: sizes are bounded by the
// manifest, which is; each blob has its digest, each chunk its hash.

import { Buffer } from 'node:buffer'
import { createReadStream, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { IMAGE_MANIFEST_BYTES_MAX, MODULE_BYTES_MAX, SNAPSHOT_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { BlobStore } from '../image/blob_store.ts'
import { digestOf, MANIFEST_TYPE, readManifest, type Descriptor } from '../image/image.ts'
import { cancellable, withRegistry, type Transfer } from '../image/images.ts'
import { LayoutFolder, parseLayout } from '../image/layout.ts'
import { Registry, type RegistryOptions } from '../image/registry.ts'
import { fetchBlob, type Remote } from '../image/remote.ts'
import { CHUNK_BYTES } from './chunk_work.ts'
import { decodeSnapshot, SNAPSHOT_VERSION, type ChunkRef, type Snapshot } from './format.ts'
import type { SnapshotStore } from './store.ts'
import { streamOf } from './transfer.ts'

const SNAPSHOT_TYPE = 'application/vnd.cellar.snapshot.v1'
const ANY_SNAPSHOT_TYPE = /^application\/vnd\.cellar\.snapshot\.v(\d{1,9})$/
const CHUNKS_TYPE = 'application/vnd.cellar.snapshot.chunks.v1'
const MODULE_TYPE = 'application/vnd.cellar.snapshot.module.v1+wasm'
const EMPTY_TYPE = 'application/vnd.oci.empty.v1+json'
const EMPTY = Buffer.from('{}')

/** Pages whose chunks are in one layer, 16 MiB; more of a large memory, so that there are 64 layers at most. */
const LAYER_PAGES_MIN = 256
const LAYERS_MAX = 64

/** Where snapshots and their programs are, and where blobs are on the way. */
export type Places = {
  readonly snapshots: SnapshotStore
  /** Images: programs are there. */
  readonly blobs: BlobStore
  /** A folder that may be removed whenever nothing is pushed or pulled. */
  readonly staging: string
  readonly registry?: RegistryOptions | undefined
}

/**
 * Gives a cell's snapshot to a registry, or to a folder: REGISTRY/PATH[:TAG] or `oci:FOLDER[:TAG]`. Throws as
 * Images.push, and MACHINE_WORD.
 */
export async function pushSnapshot(places: Places, digest: string, to: string, transfer: Transfer = {}):
Promise<{ readonly digest: string }> {
  const { snapshots, blobs } = places
  const snapshot = snapshots.inspect(digest)
  // What it goes on with is more than one program: a kernel, and disks that it is based on.
  if (snapshot.meta.kind === 'machine') throw new CellarError('MACHINE_WORD', [snapshot.meta.guest, 'snapshot push'])
  const { remote, tag } = remoteOf(to, true, places.registry)
  return await cancellable(`the push of ${printable(to, 200)}`, transfer.signal, async () => {
    using staged = staging(places.staging)
    if (remote instanceof Registry) await remote.ping(transfer.signal)
    const put = async (mediaType: string, bytes: Iterable<Uint8Array>): Promise<Descriptor> => {
      const digest = await staged.blobs.put(bytes, { maxBytes: Infinity })
      return { mediaType, digest, size: staged.blobs.size(digest)! }
    }
    const config = await put(EMPTY_TYPE, [EMPTY])
    const layers = [await put(SNAPSHOT_TYPE, [snapshots.manifest(digest)])]
    for (const hashes of partsOf(snapshot)) layers.push(await put(CHUNKS_TYPE, snapshots.records(digest, hashes)))
    const { module } = snapshot.meta
    const size = blobs.size(module)
    if (size === undefined) throw new CellarError('NOT_FOUND', ['program', module])
    const program = { mediaType: MODULE_TYPE, digest: module, size }
    const all = [config, ...layers]
    const total = all.reduce((sum, blob) => sum + blob.size, size)
    let before = 0
    for (const blob of [...all, program]) {
      const progress = (done: number): void => transfer.progress?.({ done: before + done, total })
      const from = blob === program ? blobs : staged.blobs
      await remote.writeBlob(blob, from, undefined, { signal: transfer.signal, progress })
      before += blob.size
    }
    const manifest = Buffer.from(JSON.stringify({
      schemaVersion: 2, mediaType: MANIFEST_TYPE, artifactType: SNAPSHOT_TYPE, config, layers: [...layers, program],
      annotations: { 'org.opencontainers.image.created': new Date(snapshot.meta.createdAt).toISOString() },
    }))
    await remote.writeManifest(manifest, MANIFEST_TYPE, tag, transfer.signal)
    transfer.progress?.({ done: total, total })
    return { digest: digestOf(manifest) }
  })
}

/**
 * Fetches a snapshot and its program, from where `pushSnapshot` gave it to; answers the snapshot, which is on the disk
 * then. Throws as Images.pull and SnapshotStore.receive.
 */
export async function pullSnapshot(places: Places, from: string, transfer: Transfer = {}):
Promise<{ readonly digest: string; readonly module: string }> {
  const what = printable(from, 200)
  const { remote, tag, digest: wanted } = remoteOf(from, false, places.registry)
  return await cancellable(`the pull of ${what}`, transfer.signal, async () => {
    using staged = staging(places.staging)
    if (remote instanceof Registry) await remote.ping(transfer.signal)
    const { first, chunks, program } = layersOf(what, await remote.readManifest(wanted ?? tag ?? '', transfer.signal))
    const total = [first, ...chunks, program].reduce((sum, blob) => sum + blob.size, 0)
    let before = 0
    const fetch = async (blob: Descriptor, into: BlobStore): Promise<void> => {
      const progress = (done: number): void => transfer.progress?.({ done: before + done, total })
      await fetchBlob(remote, blob, into, { signal: transfer.signal, progress })
      before += blob.size
    }
    await fetch(first, staged.blobs)
    const manifest = staged.blobs.read(first.digest)
    const { meta, chunks: named } = decodeSnapshot(manifest, what)
    if (meta.module !== program.digest) throw invalid(what, 'its program is another than it says')
    checkSize(what, chunks, named)
    await fetch(program, places.blobs)
    const isHere = (await places.snapshots.lacking(manifest)).length === 0
    for (const blob of isHere ? [] : chunks) await fetch(blob, staged.blobs)
    const stream = streamOf(manifest, isHere ? [] : joined(chunks.map((blob) => staged.blobs.path(blob.digest))))
    const { digest, missing } = await places.snapshots.receive(stream, { durable: true })
    if (missing.length > 0) throw new CellarError('SNAPSHOT_DAMAGED', [what, `${missing.length} chunks are missing`])
    transfer.progress?.({ done: total, total })
    return { digest, module: meta.module }
  })
}

// The chunks of each layer: a chunk is in the first that has it.
function partsOf({ state, chunks }: Snapshot): string[][] {
  let pages = LAYER_PAGES_MIN
  while (pages * LAYERS_MAX < (state.memory?.pages ?? 0)) pages *= 2
  const parts = new Map<number, string[]>()
  const seen = new Set<string>()
  for (const { page, hash } of chunks) {
    if (seen.has(hash)) continue
    seen.add(hash)
    const part = Math.floor(page / pages)
    const hashes = parts.get(part)
    if (hashes === undefined) parts.set(part, [hash])
    else hashes.push(hash)
  }
  return [...parts.values()]
}

function layersOf(what: string, bytes: Uint8Array):
{ first: Descriptor; chunks: readonly Descriptor[]; program: Descriptor } {
  if (bytes.length > IMAGE_MANIFEST_BYTES_MAX) throw invalid(what, 'its manifest is too large')
  const manifest = readManifest(what, bytes)
  if ('manifests' in manifest) throw invalid(what, 'it is no snapshot, but an index')
  const { layers } = manifest
  const version = Math.max(...layers.map(({ mediaType }) => Number(ANY_SNAPSHOT_TYPE.exec(mediaType)?.[1] ?? 0)))
  if (version > SNAPSHOT_VERSION) throw new CellarError('SNAPSHOT_NEWER', [what, version, SNAPSHOT_VERSION])
  const ofType = (type: string): Descriptor[] => layers.filter(({ mediaType }) => mediaType === type)
  const [[first, second], [program, other]] = [ofType(SNAPSHOT_TYPE), ofType(MODULE_TYPE)]
  if (first === undefined || program === undefined) throw invalid(what, 'it is no snapshot')
  if (second !== undefined || other !== undefined) throw invalid(what, 'it has two snapshots or programs')
  if (first.size > SNAPSHOT_BYTES_MAX || program.size > MODULE_BYTES_MAX) throw invalid(what, 'it is too large')
  return { first, chunks: ofType(CHUNKS_TYPE), program }
}

// Before anything large is fetched: no more than the chunks that it names can take.
function checkSize(what: string, layers: readonly Descriptor[], chunks: readonly ChunkRef[]): void {
  const bytes = layers.reduce((sum, { size }) => sum + size, 0)
  const most = chunks.length * (CHUNK_BYTES + 4)
  if (bytes > most) throw new CellarError('IMAGE_TOO_LARGE', [what, bytes, most])
}

function remoteOf(text: string, push: boolean, options: RegistryOptions | undefined):
{ remote: Remote; tag: string | undefined; digest: string | undefined } {
  const layout = parseLayout(text)
  if (layout !== undefined) return { remote: new LayoutFolder(layout.folder), tag: layout.tag, digest: undefined }
  const reference = withRegistry(text)
  if (push && reference.digest !== undefined) throw new CellarError('IMAGE_REFERENCE_INVALID', [printable(text, 200)])
  return { remote: new Registry(reference, push, undefined, options), tag: reference.tag, digest: reference.digest }
}

// A store for one push or pull: nobody else removes what is in it.
function staging(folder: string): { readonly blobs: BlobStore } & Disposable {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const path = mkdtempSync(join(folder, 'transfer-'))
    return { blobs: new BlobStore(path), [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
  } catch (error) {
    if (error instanceof CellarError) throw error
    throw new CellarError('HOST_STATE_UNUSABLE', [folder, (error as Error).message], { cause: error })
  }
}

async function* joined(paths: readonly string[]): AsyncGenerator<Uint8Array> {
  for (const path of paths) yield* createReadStream(path) as AsyncIterable<Uint8Array>
}

function invalid(what: string, why: string): CellarError {
  return new CellarError('IMAGE_INVALID', [what, why])
}
