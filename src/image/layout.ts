// image/layout.ts: a folder in place of a registry: the OCI image layout, written `oci:FOLDER[:TAG]`.
//
//   FOLDER/oci-layout          {"imageLayoutVersion":"1.0.0"}
//   FOLDER/index.json          an index; the annotation org.opencontainers.image.ref.name is the tag
//   FOLDER/blobs/sha256/HEX    all blobs, manifests among them
//
// Such a folder comes from elsewhere: it is checked as a registry is. Its files are opened as the files that they are,
// neither through links nor waiting at somebody's pipe. What is written appears under its name when it is whole.

import { randomBytes } from 'node:crypto'
import { constants, existsSync } from 'node:fs'
import { copyFile, mkdir, open, rename, stat, unlink, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { IMAGE_MANIFEST_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import { digestOf, INDEX_TYPE, readConfig, readManifest, type Descriptor, type Index } from './image.ts'
import { isDigest, isTag } from './reference.ts'
import type { Remote, Watch } from './remote.ts'

const PREFIX = 'oci:'
const REF_NAME = 'org.opencontainers.image.ref.name'

/** FOLDER and TAG of `oci:FOLDER[:TAG]`; undefined for other references. */
export function parseLayout(text: string): { folder: string; tag: string | undefined } | undefined {
  if (!text.startsWith(PREFIX) || text.length === PREFIX.length || text.includes('\0')) return undefined
  const rest = text.slice(PREFIX.length)
  const colon = rest.lastIndexOf(':')
  const tag = rest.slice(colon + 1)
  return colon > 0 && isTag(tag) ? { folder: rest.slice(0, colon), tag } : { folder: rest, tag: undefined }
}

/** An OCI layout in `folder`. Failures of its files are REGISTRY_FAILED, a full disk HOST_DISK_FULL. */
export class LayoutFolder implements Remote {
  readonly name: string
  /** A disk isn't busy as a registry is. */
  readonly backoffMs = 1
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
    this.name = printable(folder, 200)
  }

  /** The last part of its path, which may serve as a name. */
  get title(): string { return basename(this.#folder) }

  /** See Remote. A tag of '' is for the only image there is. */
  async readManifest(tagOrDigest: string): Promise<Uint8Array> {
    const digest = isDigest(tagOrDigest) ? tagOrDigest : await this.#find(tagOrDigest)
    const bytes = await this.#small(this.#path(digest), `fetch ${digest}`)
    const found = digestOf(bytes)
    if (found !== digest) throw new CellarError('IMAGE_DIGEST_WRONG', [`a manifest of ${this.name}`, digest, found])
    return bytes
  }

  /** See Remote. */
  async openBlob({ digest }: Descriptor, from: number): Promise<{ from: number; bytes: AsyncIterable<Uint8Array> }> {
    const what = `fetch ${digest}`
    const handle = await this.#try(what, () => open(this.#path(digest), READ_PLAIN))
    if ((await handle.stat()).isFile()) return { from, bytes: handle.createReadStream({ start: from }) }
    await handle.close()
    throw this.#failed(what, 'it isn\'t a file')
  }

  /** See Remote. */
  async writeBlob({ digest, size }: Descriptor, store: BlobStore, _source: string | undefined, watch: Watch):
  Promise<void> {
    await this.#try(`push ${digest}`, async () => {
      await mkdir(join(this.#folder, 'blobs/sha256'), { recursive: true })
      const known = await stat(this.#path(digest)).catch(() => undefined)
      watch.signal?.throwIfAborted()
      if (known?.size !== size) await this.#replace(this.#path(digest), (path) => copyFile(store.path(digest), path))
    })
    watch.progress?.(size)
  }

  /** See Remote. */
  async writeManifest(bytes: Uint8Array, mediaType: string, tag: string | undefined): Promise<void> {
    const digest = digestOf(bytes)
    const [index, entries] = existsSync(join(this.#folder, 'index.json')) ? await this.#index() : [undefined, []]
    const others = entries.filter((_, i) => {
      const { digest: other, annotations } = index!.manifests[i]!
      return tag === undefined ? other !== digest : annotations?.[REF_NAME] !== tag
    })
    const mine = { mediaType, digest, size: bytes.length,
      ...(tag === undefined ? {} : { annotations: { [REF_NAME]: tag } }) }
    await this.#try(`push ${digest}`, async () => {
      await this.#replace(this.#path(digest), (path) => writeFile(path, bytes))
      await writeFile(join(this.#folder, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
      await this.#replace(join(this.#folder, 'index.json'), (path) =>
        writeFile(path, JSON.stringify({ schemaVersion: 2, mediaType: INDEX_TYPE, manifests: [...others, mine] })))
    })
  }

  async #find(tag: string): Promise<string> {
    const [{ manifests }] = await this.#index()
    const found = tag === '' && manifests.length === 1 ? manifests
      : manifests.filter(({ annotations }) => tag !== '' && annotations?.[REF_NAME] === tag)
    if (found[0] !== undefined) return found[0].digest
    throw this.#failed(`fetch ${tag === '' ? 'the image' : tag}`,
      tag === '' ? `there are ${manifests.length} images in it: name one, oci:FOLDER:TAG` : 'it has no such image')
  }

  // The index as we understand it, and its entries as they are.
  async #index(): Promise<[Index, unknown[]]> {
    const bytes = await this.#small(join(this.#folder, 'index.json'), 'read the index')
    const read = readManifest(this.name, bytes)
    if ('manifests' in read) return [read, (readConfig(bytes) as { manifests: unknown[] }).manifests]
    throw this.#failed('read the index', 'index.json is none')
  }

  async #small(path: string, what: string): Promise<Buffer> {
    return this.#try(what, async () => {
      const handle = await open(path, READ_PLAIN)
      try {
        const { size } = await handle.stat()
        if (size <= IMAGE_MANIFEST_BYTES_MAX) {
          const bytes = Buffer.alloc(size)
          const { bytesRead } = await handle.read(bytes, 0, size, 0)
          return bytes.subarray(0, bytesRead)
        }
      } finally {
        await handle.close()
      }
      throw this.#failed(what, `${path} is larger than ${IMAGE_MANIFEST_BYTES_MAX} bytes`)
    })
  }

  async #replace(path: string, write: (path: string) => Promise<void>): Promise<void> {
    const partial = `${path}.${randomBytes(6).toString('hex')}.tmp`
    try {
      await write(partial)
      await rename(partial, path)
    } catch (error) {
      await unlink(partial).catch(() => {})
      throw error
    }
  }

  async #try<T>(what: string, action: () => Promise<T>): Promise<T> {
    try {
      return await action()
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      if (!(error instanceof Error && 'syscall' in error)) throw error
      if (code === 'ENOSPC' || code === 'EDQUOT') throw new CellarError('HOST_DISK_FULL', [what], { cause: error })
      throw this.#failed(what, message)
    }
  }

  #path(digest: string): string { return join(this.#folder, 'blobs/sha256', digest.slice('sha256:'.length)) }

  #failed(what: string, why: string): CellarError {
    return new CellarError('REGISTRY_FAILED', [this.name, what, printable(why, 300)])
  }
}

// Not waiting, as opening somebody's pipe would.
const READ_PLAIN = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
