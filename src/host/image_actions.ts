// host/image_actions.ts: what operators do with images, and what guests' images lead to.
//
// Names of images are rows; the blobs lie in the store (image/blob_store.ts). An image that a guest runs, or a snapshot
// goes on with, is kept, named or not. What a reference leads to is asked for at each creation of a guest: it is kept
// until any image changes.

import type { Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import { BlobStore } from '../image/blob_store.ts'
import { Images, type Image, type Transfer } from '../image/images.ts'
import { openMachineImage, type MachineConfig } from '../image/machine_image.ts'
import type { OfImage } from './complete.ts'
import type { Actor, ImageView, OperationView } from './operator.ts'
import type { Operations } from './operations.ts'
import type { State } from './state.ts'
import type { Store } from './store.ts'

type Parts = { readonly state: State; readonly store: Store; readonly operations: Operations; readonly folder: string
  /** Registries that are spoken to without TLS. */
  readonly insecure: readonly string[] }

type Resolved = { readonly digest: string; readonly module: string } & OfImage

const MIB = 1024 * 1024
/** References whose answers are kept. */
const RESOLVED_MAX = 10_000

/** Actions on images. */
export class ImageActions {
  /** What images are made of. */
  readonly blobs: BlobStore
  readonly #parts: Parts
  readonly #images: Images
  readonly #resolved = new Map<string, Resolved>()

  constructor(parts: Parts) {
    this.#parts = parts
    const { state, store } = parts
    this.blobs = new BlobStore(parts.folder)
    this.#images = new Images(this.blobs, {
      get: (name) => state.images.get(name)?.digest,
      set: async (name, digest) => {
        const row = { name, digest, createdAt: Date.now() }
        await store.commit((tx) => {
          tx.putImageName(row)
          tx.event('image.named', { data: { name, digest } })
        })
        state.images.set(name, row)
      },
      delete: async (name) => {
        await store.commit((tx) => tx.deleteImageName(name))
        state.images.delete(name)
      },
      all: () => [...state.images.values()].map(({ name, digest }) => [name, digest] as const),
    }, { insecure: parts.insecure })
  }

  /** Digests of the image's manifest and module; of a machine, what it suggests. Throws NOT_FOUND. */
  resolve(reference: string): Resolved {
    let known = this.#resolved.get(reference)
    if (known === undefined) {
      const { kind, digest, module } = this.#images.resolve(reference)
      const bytes = kind === 'machine' ? this.machineOf(digest).memoryBytes : undefined
      known = { digest, module, ...(kind === 'cell' ? {}
        : { machine: { memory: bytes === undefined ? undefined : `${bytes / MIB}MiB` } }) }
      if (this.#resolved.size >= RESOLVED_MAX) this.#resolved.clear()
      this.#resolved.set(reference, known)
    }
    return known
  }

  /** What the image of a machine has, by its manifest. Throws NOT_FOUND, MACHINE_IMAGE_DAMAGED. */
  machineOf(manifestDigest: string): MachineConfig {
    return openMachineImage(this.blobs, manifestDigest, manifestDigest).config
  }

  list(): ImageView[] {
    const users = new Map<string, number>()
    for (const { row } of this.#parts.state.guests.values()) users.set(row.digest, (users.get(row.digest) ?? 0) + 1)
    return this.#images.list().map((image) => viewOf(image, users.get(image.module) ?? 0))
  }

  one(reference: string): ImageView {
    const details = this.#images.inspect(reference)
    const { config, layers, annotations } = details
    const view = { ...viewOf(details, this.#users(details).length), config, layers, annotations }
    return view
  }

  async import(name: string | undefined, module: Readable): Promise<ImageView> {
    return this.#changed(await this.#images.importModule(module, name))
  }

  pull(reference: string, by: Actor): Promise<OperationView> {
    return this.#parts.operations.start('image.pull', reference, by, async (control) =>
      this.#changed(await this.#images.pull(reference, transferOf(control))))
  }

  push(reference: string, to: string, by: Actor): Promise<OperationView> {
    this.#images.resolve(reference)
    return this.#parts.operations.start('image.push', `${reference} to ${to}`, by, async (control) => {
      await this.#images.push(reference, to, transferOf(control))
      return { to }
    })
  }

  async tag(reference: string, name: string): Promise<ImageView> {
    return this.#changed(await this.#images.tag(reference, name))
  }

  /** Throws IN_USE if it is the last name of an image that a guest runs. */
  async remove(reference: string): Promise<void> {
    const image = this.#images.resolve(reference)
    const [user] = this.#users(image)
    // By a digest, or its first digits, all names go.
    const isNamed = image.names.includes(reference) || image.names.includes(`${reference}:latest`)
    const isLast = image.names.length <= 1 || !isNamed
    if (user !== undefined && isLast) throw new CellarError('IN_USE', ['image', reference, user])
    await this.#images.remove(reference)
    this.#resolved.clear()
  }

  collect(): number {
    this.#resolved.clear()
    const { guests, snapshots } = this.#parts.state
    const roots = [...[...guests.values()].flatMap(({ row }) => [row.digest, row.manifestDigest]),
      ...[...snapshots.values()].flatMap(({ module, manifestDigest }) => [module, manifestDigest])]
    return this.#images.collect(new Set(roots))
  }

  #users({ digest, module }: Pick<Image, 'digest' | 'module'>): string[] {
    const { guests, snapshots } = this.#parts.state
    return [...[...guests.values()].filter(({ row }) => row.manifestDigest === digest || row.digest === module)
      .map(({ row }) => `${row.project}/${row.name}`),
    ...[...snapshots.values()].filter((row) => row.manifestDigest === digest || row.module === module)
      .map(({ project, name, digest: own }) => `snapshot ${project}/${name ?? own}`)]
  }

  #changed(image: Image): ImageView {
    this.#resolved.clear()
    return viewOf(image, this.#users(image).length)
  }
}

function viewOf({ kind, names, digest, module, sizeBytes, createdAt }: Image, guests: number): ImageView {
  return { kind, names, digest, module, sizeBytes, createdAt, guests }
}

function transferOf({ signal, progress }: {
  readonly signal: AbortSignal; readonly progress: (done: number, total: number, unit: string) => void
}): Transfer {
  return { signal, progress: ({ done, total }) => progress(done, total, 'bytes') }
}
