// image/images.ts: the images of a host: names, and what they stand for in the store.
//
// A name leads to a manifest, the manifest to a configuration and a module, or a machine's kernel and disks. The
// manifest is put last: one that is in the store is complete. What else is in the store, nobody refers to, until
// `collect` removes it.
//
// An image that was made for containers becomes one of ours when it is pulled: its module, under a new manifest that
// notes whose it was (MADE_OF). Its name leads to the new one, also `app@sha256:…` with the digest of the old.
//
// What is being pulled, and what is young, is not collected: somebody is about to refer to it. Reading what there is
// is synchronous, as answers about the host are; manifests are small and kept in memory once they were read.

import { CellarError } from '../base/errors.ts'
import { IMAGE_MANIFEST_BYTES_MAX, MODULE_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import {
  choosePlatform, digestOf, entrypointOf, layoutOf, MADE_OF, makeImage, MANIFEST_TYPE, readConfig, readManifest,
  type Descriptor, type Layout, type Manifest,
} from './image.ts'
import { LayoutFolder, parseLayout } from './layout.ts'
import { checkMachineImage } from './machine_image.ts'
import { formatReference, isDigest, localName, parseReference, type Reference } from './reference.ts'
import { Registry, type RegistryOptions, type RegistryReference } from './registry.ts'
import { fetchBlob, type Remote } from './remote.ts'
import { unpackModule } from './unpack.ts'

/** Blobs are left alone for so long after they were put, in milliseconds: a guest may be about to be made of one. */
const YOUNG_MS = 600_000
/** Digits of a digest that stand for all of it, if only one image has them. */
const PREFIX_LENGTH_MIN = 6

/** Where names are kept: NAME:TAG, or NAME@DIGEST, and the digest of a manifest. */
export interface Names {
  get(name: string): string | undefined
  /** It is kept when this resolves. */
  set(name: string, digest: string): void | Promise<void>
  delete(name: string): void | Promise<void>
  all(): Iterable<readonly [name: string, digest: string]>
}

/** An image in the store. */
export type Image = {
  readonly kind: 'cell' | 'machine'
  /** Of its manifest, `sha256:HEX`. */
  readonly digest: string
  /** Of its module, or of a machine's configuration: what it is that runs. */
  readonly module: string
  /** Bytes of that. */
  readonly size: number
  /** Bytes of all that it has. */
  readonly sizeBytes: number
  readonly names: readonly string[]
  /** When it came: milliseconds since 1970. */
  readonly createdAt: number
}

/** What `inspect` tells beside that. */
export type ImageDetails = Image & {
  readonly mediaType: string
  readonly annotations: Readonly<Record<string, string>>
  /** The configuration as it is; undefined if it isn't JSON. */
  readonly config: unknown
  readonly layers: readonly { readonly mediaType: string; readonly digest: string; readonly size: number }[]
}

/** How a pull or push is watched; `progress` in bytes of the whole image. */
export type Transfer = {
  readonly signal?: AbortSignal | undefined
  readonly progress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined
}

type Known = { readonly kind: 'cell' | 'machine'; readonly manifest: Manifest; readonly module: Descriptor
  readonly blobs: readonly string[]; readonly sizeBytes: number }

/** The images of one store. */
export class Images {
  readonly #store: BlobStore
  readonly #names: Names
  readonly #options: RegistryOptions
  // Blobs that are images, and those that are none: their bytes never change.
  readonly #known = new Map<string, Known | undefined>()
  // Blobs that somebody is about to refer to, and how many do.
  readonly #pinned = new Map<string, number>()

  constructor(store: BlobStore, names: Names, options: RegistryOptions = {}) {
    this.#store = store
    this.#names = names
    this.#options = options
  }

  /** Makes an image of a module, with a name if one is given. Throws IMAGE_INVALID, IMAGE_TOO_LARGE. */
  async importModule(module: AsyncIterable<Uint8Array>, name?: string): Promise<Image> {
    const reference = name === undefined ? undefined : nameable(name)
    const what = name ?? 'given'
    return this.#pinning(async (pin) => {
      const digest = await this.#store.put(checkedModule(what, module), { maxBytes: MODULE_BYTES_MAX, what })
      pin(digest)
      return this.#finish(digest, undefined, reference, pin)
    })
  }

  /** Fetches an image: from a registry, or `oci:FOLDER[:TAG]`. Throws what Remote does, and OPERATION_CANCELLED. */
  async pull(text: string, transfer: Transfer = {}): Promise<Image> {
    const { remote, tagOrDigest, reference } = this.#source(text)
    const what = printable(text, 200)
    return cancellable(`the pull of ${what}`, transfer.signal, () => this.#pinning(async (pin) => {
      if (remote instanceof Registry) await remote.ping(transfer.signal)
      const { bytes, layout } = await this.#choose(what, remote, tagOrDigest, transfer.signal)
      const digest = digestOf(bytes)
      if (layout.kind === 'container') {
        const made = reference === undefined ? undefined : this.#madeOf(localName(reference), digest)
        if (made !== undefined) return this.#view(made)
        await this.#fetch(remote, layout, pin, transfer, what)
        const module = await this.#unpack(what, layout)
        pin(module)
        return this.#finish(module, digest, reference, pin)
      }
      pin(digest)
      await this.#fetch(remote, layout, pin, transfer, what)
      if (layout.kind === 'machine') await checkMachineImage(this.#store, what, layout.manifest)
      else await this.#checkModule(what, layout.module.digest)
      await this.#store.put([bytes], { digest, maxBytes: IMAGE_MANIFEST_BYTES_MAX })
      this.#known.delete(digest)
      return this.#name(digest, reference)
    }))
  }

  /** Gives an image to a registry, or a folder: `to` is a reference with one of them. */
  async push(text: string, to: string, transfer: Transfer = {}): Promise<void> {
    const { digest } = this.resolve(text)
    const { manifest, sizeBytes } = this.#read(digest)!
    const { remote, tag, from } = this.#target(to, digest)
    await cancellable(`the push of ${printable(text, 200)}`, transfer.signal, () => this.#pinning(async (pin) => {
      const blobs = [...manifest.layers, manifest.config]
      for (const one of [digest, ...blobs.map((blob) => blob.digest)]) pin(one)
      const bytes = this.#store.read(digest)
      if (remote instanceof Registry) await remote.ping(transfer.signal)
      let before = 0
      for (const blob of blobs) {
        const progress = (done: number): void => transfer.progress?.({ done: before + done, total: sizeBytes })
        await remote.writeBlob(blob, this.#store, from, { signal: transfer.signal, progress })
        before += blob.size
      }
      await remote.writeManifest(bytes, manifest.mediaType ?? MANIFEST_TYPE, tag, transfer.signal)
      transfer.progress?.({ done: sizeBytes, total: sizeBytes })
    }))
  }

  /** Gives an image another name. */
  async tag(text: string, name: string): Promise<Image> {
    const { digest } = this.resolve(text)
    return this.#pinning((pin) => {
      pin(digest)
      return this.#name(digest, nameable(name))
    })
  }

  /**
   * Takes a name away; or, of a digest, all its names. An image without names is gone, though its module stays until it
   * is collected. Answers the names that were taken away. Throws NOT_FOUND.
   */
  async remove(text: string): Promise<readonly string[]> {
    const { digest, names } = this.resolve(text)
    const name = isNamed(text) ? localName(parseReference(text)) : undefined
    const gone = name !== undefined && names.includes(name) ? [name] : names
    for (const one of gone) await this.#names.delete(one)
    if (this.#namesOf(digest).length === 0 && !this.#pinned.has(digest)) {
      this.#store.remove(digest)
      this.#known.delete(digest)
    }
    return gone
  }

  /** The image of a name, of a digest (of a manifest or a module), or of a digest's first digits. Throws NOT_FOUND. */
  resolve(text: string): Image {
    const found = isNamed(text) ? this.#byName(parseReference(text)) : undefined
    const digest = found ?? this.#byDigest(text.replace(/^sha256:/, ''))
    if (digest === undefined || this.#read(digest) === undefined) {
      throw new CellarError('NOT_FOUND', ['image', printable(text, 200)])
    }
    return this.#view(digest)
  }

  /** All images, the latest first. */
  list(): Image[] {
    return this.#all().map((digest) => this.#view(digest)).sort((a, b) => b.createdAt - a.createdAt)
  }

  /** Everything about one image. Throws NOT_FOUND. */
  inspect(text: string): ImageDetails {
    const image = this.resolve(text)
    const { manifest } = this.#read(image.digest)!
    const { config, layers, annotations, mediaType = MANIFEST_TYPE } = manifest
    return {
      ...image, mediaType, annotations: annotations ?? {},
      config: this.#store.size(config.digest) === config.size ? readConfig(this.#store.read(config.digest)) : undefined,
      layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
    }
  }

  /**
   * Removes what neither a name nor `roots`, digests of manifests and modules, lead to. Answers the bytes freed. What
   * is being pulled stays, and what was put in the last `youngMs`.
   */
  collect(roots: Iterable<string>, youngMs: number = YOUNG_MS): number {
    const blobs = this.#store.list()
    const now = Date.now()
    // Either way, as the clock may have been set.
    const isYoung = (digest: string): boolean => Math.abs(now - (this.#store.time(digest) ?? now)) < youngMs
    const marked = new Set<string>()
    const named = Array.from(this.#names.all(), ([, digest]) => digest)
    for (const digest of [...named, ...roots, ...this.#pinned.keys(), ...blobs.filter(isYoung)]) {
      marked.add(digest)
      for (const blob of this.#read(digest)?.blobs ?? []) marked.add(blob)
    }
    const garbage = blobs.filter((digest) => !marked.has(digest))
    // Manifests first: those that are there have all that they name.
    const isImage = (digest: string): number => this.#known.get(digest) === undefined ? 1 : 0
    garbage.sort((a, b) => isImage(a) - isImage(b))
    return garbage.reduce((sum, digest) => {
      this.#known.delete(digest)
      return sum + this.#store.remove(digest)
    }, 0)
  }

  #source(text: string): { remote: Remote; tagOrDigest: string; reference: Reference | undefined } {
    const layout = parseLayout(text)
    if (layout !== undefined) {
      const remote = new LayoutFolder(layout.folder)
      const name = `${remote.title}:${layout.tag ?? 'latest'}`
      return { remote, tagOrDigest: layout.tag ?? '', reference: isNamed(name) ? nameable(name) : undefined }
    }
    const reference = withRegistry(text)
    const { digest, tag } = reference
    return { remote: new Registry(reference, false, undefined, this.#options), tagOrDigest: digest ?? tag!, reference }
  }

  #target(to: string, digest: string): { remote: Remote; tag: string | undefined; from: string | undefined } {
    const layout = parseLayout(to)
    if (layout !== undefined) return { remote: new LayoutFolder(layout.folder), tag: layout.tag, from: undefined }
    const reference = withRegistry(to)
    if (reference.digest !== undefined) throw new CellarError('IMAGE_REFERENCE_INVALID', [to])
    // Another repository of the same registry that has these blobs, as far as we know.
    const from = this.#namesOf(digest).map((name) => parseReference(name)).find(({ registry, path }) =>
      registry === reference.registry && path !== reference.path)?.path
    return { remote: new Registry(reference, true, from, this.#options), tag: reference.tag, from }
  }

  // The manifest for this platform.
  async #choose(text: string, remote: Remote, tagOrDigest: string, signal: AbortSignal | undefined):
  Promise<{ bytes: Uint8Array; layout: Layout }> {
    let bytes = await remote.readManifest(tagOrDigest, signal)
    let read = readManifest(text, bytes)
    if ('manifests' in read) {
      bytes = await remote.readManifest(choosePlatform(text, read).digest, signal)
      read = readManifest(text, bytes)
    }
    if ('manifests' in read) throw new CellarError('IMAGE_INVALID', [text, 'it is an index in an index'])
    return { bytes, layout: layoutOf(text, read) }
  }

  async #fetch(remote: Remote, { manifest, module }: Layout, pin: Pin, transfer: Transfer, text: string):
  Promise<void> {
    const { signal } = transfer
    const blobs = [manifest.config, ...manifest.layers]
    const total = blobs.reduce((sum, { size }) => sum + size, 0)
    let before = 0
    for (const blob of blobs) pin(blob.digest)
    for (const blob of blobs) {
      const progress = (done: number): void => transfer.progress?.({ done: before + done, total })
      await fetchBlob(remote, blob, this.#store, { signal, progress })
      before += blob.size
      // Not the layers of an image that can't run here.
      if (blob === manifest.config && module === undefined) entrypointOf(text, this.#store.read(blob.digest))
    }
  }

  async #unpack(text: string, { manifest }: Layout): Promise<string> {
    const entrypoint = entrypointOf(text, this.#store.read(manifest.config.digest))
    const layers = manifest.layers.map(({ digest }) => this.#store.path(digest))
    return unpackModule(text, layers, entrypoint, (content) =>
      this.#store.put(checkedModule(text, content), { maxBytes: MODULE_BYTES_MAX, what: text }))
  }

  async #checkModule(text: string, digest: string): Promise<void> {
    const file = await this.#store.open(digest)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAGIC.length), 0, MAGIC.length, 0)
      .finally(() => file.close())
    if (bytesRead < MAGIC.length || !MAGIC.equals(buffer)) throw notWasm(text)
  }

  // The image of a module that is in the store.
  async #finish(module: string, madeOf: string | undefined, reference: Reference | undefined, pin: Pin):
  Promise<Image> {
    const size = this.#store.size(module)!
    const { config, manifest } = makeImage({ digest: module, size }, { os: 'wasip1', madeOf })
    for (const bytes of [config, manifest]) {
      pin(digestOf(bytes))
      await this.#store.put([bytes], { maxBytes: IMAGE_MANIFEST_BYTES_MAX })
    }
    const digest = digestOf(manifest)
    this.#known.delete(digest)
    return this.#name(digest, reference)
  }

  async #name(digest: string, reference: Reference | undefined): Promise<Image> {
    if (reference !== undefined) await this.#names.set(localName(reference), digest)
    return this.#view(digest)
  }

  // The image that the name leads to, if it was made of the one with this manifest.
  #madeOf(name: string, digest: string): string | undefined {
    const known = this.#names.get(name)
    return known !== undefined && this.#read(known)?.manifest.annotations?.[MADE_OF] === digest ? known : undefined
  }

  #byName(reference: Reference): string | undefined {
    // A digest decides, of a manifest or a module; that of an index or a container's image is known by its name only.
    const exact = reference.digest === undefined ? undefined : this.#byDigest(reference.digest.replace(/^sha256:/, ''))
    return exact ?? this.#names.get(localName(reference))
  }

  #byDigest(hex: string): string | undefined {
    if (!/^[0-9a-f]{6,64}$/.test(hex) || hex.length < PREFIX_LENGTH_MIN) return undefined
    const whole = `sha256:${hex}`
    if (isDigest(whole) && this.#store.has(whole) && this.#read(whole) !== undefined) return whole
    const images = this.#all()
    const found = images.filter((digest) => digest.startsWith(whole))
    if (found.length > 0) return found.length === 1 ? found[0] : undefined
    // A module may be in several images: those with a name first.
    const holders = images.filter((digest) => this.#read(digest)!.module.digest.startsWith(whole))
    const modules = new Set(holders.map((digest) => this.#read(digest)!.module.digest))
    if (modules.size !== 1) return undefined
    return holders.find((digest) => this.#namesOf(digest).length > 0) ?? holders[0]
  }

  #all(): string[] {
    return this.#store.list().filter((digest) => this.#read(digest) !== undefined)
  }

  #namesOf(digest: string): string[] {
    return Array.from(this.#names.all()).filter(([, one]) => one === digest).map(([name]) => name).sort()
  }

  #view(digest: string): Image {
    const { kind, module, sizeBytes } = this.#read(digest)!
    return {
      kind, digest, module: module.digest, size: this.#store.size(module.digest) ?? module.size, sizeBytes,
      names: this.#namesOf(digest),
      createdAt: Math.floor(this.#store.time(digest) ?? 0),
    }
  }

  // What the blob is as an image with one module; undefined if it is none, or not all of it is there.
  #read(digest: string): Known | undefined {
    if (!this.#store.has(digest)) return undefined
    if (!this.#known.has(digest)) this.#known.set(digest, this.#decode(digest))
    const known = this.#known.get(digest)
    return known !== undefined && this.#store.has(known.module.digest) ? known : undefined
  }

  #decode(digest: string): Known | undefined {
    if (this.#store.size(digest)! > IMAGE_MANIFEST_BYTES_MAX) return undefined
    const bytes = this.#store.read(digest)
    if (bytes[0] !== 0x7b) return undefined
    try {
      const read = readManifest(digest, bytes)
      if ('manifests' in read) return undefined
      const { kind, manifest, module } = layoutOf(digest, read)
      if (kind === 'container') return undefined
      const blobs = [manifest.config, ...manifest.layers]
      const sizeBytes = blobs.reduce((sum, { size }) => sum + size, bytes.length)
      return { kind, manifest, module, blobs: blobs.map((blob) => blob.digest), sizeBytes }
    } catch (error) {
      if (error instanceof CellarError) return undefined
      throw error
    }
  }

  async #pinning<T>(work: (pin: Pin) => Promise<T>): Promise<T> {
    const mine: string[] = []
    try {
      return await work((digest) => {
        mine.push(digest)
        this.#pinned.set(digest, (this.#pinned.get(digest) ?? 0) + 1)
      })
    } finally {
      for (const digest of mine) {
        const left = this.#pinned.get(digest)! - 1
        if (left === 0) this.#pinned.delete(digest)
        else this.#pinned.set(digest, left)
      }
    }
  }
}

type Pin = (digest: string) => void

const MAGIC = Buffer.from('\0asm')

// True for what can be a name; false for a digest, or what is no reference at all.
function isNamed(text: string): boolean {
  if (isDigest(text)) return false
  try {
    return formatReference(parseReference(text)) !== ''
  } catch {
    return false
  }
}

// A name that an image may be given: by digest it has one already.
function nameable(name: string): Reference {
  const reference = parseReference(name)
  if (reference.digest === undefined && !isDigest(name)) return reference
  throw new CellarError('IMAGE_REFERENCE_INVALID', [printable(name, 200)])
}

/** A reference that says which registry: there is none that goes without saying. */
export function withRegistry(text: string): RegistryReference {
  const reference = parseReference(text)
  if (reference.registry !== undefined) return { ...reference, registry: reference.registry }
  throw new CellarError('REGISTRY_FAILED', [printable(text), 'reach a registry', 'the name of the image names none'])
}

async function* checkedModule(what: string, module: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let head = Buffer.alloc(0)
  for await (const chunk of module) {
    if (head.length < MAGIC.length) {
      head = Buffer.concat([head, chunk.subarray(0, MAGIC.length - head.length)])
      if (!MAGIC.subarray(0, head.length).equals(head)) throw notWasm(what)
    }
    yield chunk
  }
  if (head.length < MAGIC.length) throw notWasm(what)
}

function notWasm(what: string): CellarError {
  return new CellarError('IMAGE_INVALID', [printable(what, 200), 'its module isn\'t WebAssembly'])
}

/** Does `work`. When the signal ends it, that is OPERATION_CANCELLED. */
export async function cancellable<T>(what: string, signal: AbortSignal | undefined, work: () => Promise<T>):
Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (signal?.aborted !== true || error instanceof CellarError) throw error
    throw new CellarError('OPERATION_CANCELLED', [what])
  }
}
