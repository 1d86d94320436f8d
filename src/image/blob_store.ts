// image/blob_store.ts: the content store: files under the names of their digests.
//
//   FOLDER/blobs/sha256/HEX              whole blobs, 0444; the folders 0711, so that cell processes reach one by name
//   FOLDER/ingest/put-RANDOM.tmp         what is being put
//   FOLDER/ingest/sha256-HEX.partial     what was fetched of a blob: a later fetch goes on behind it
//
// A blob gets its name when all of it is on disk and its digest is right: written and hashed under another name,
// fsync, rename, fsync of the folder. So `kill -9` or a power cut leaves no half blob, only files in ingest/. A partial
// file is never believed: going on means hashing it again, and its power-cut holes show in the digest at the end.
//
// One BlobStore has a folder at a time: the host's lock sees to that. Elsewhere: what blobs mean (image.ts), which of
// them go (images.ts).

import { createHash, randomBytes, type Hash } from 'node:crypto'
import {
  chmodSync, constants, mkdirSync, readdirSync, readFileSync, rmSync, statSync, unlinkSync, utimesSync,
} from 'node:fs'
import { open, rename, unlink, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { assert } from '../base/assert.ts'
import { CellarError } from '../base/errors.ts'
import { isDigest } from './reference.ts'

/** The age at which a partial file is given up. */
const PARTIAL_MS_MAX = 7 * 24 * 3_600_000

const BLOB = /^[0-9a-f]{64}$/
const READ_BYTES = 1024 * 1024

/** What a put may say of its bytes: the digest they must have, the most there may be, what they are in messages. */
export type PutOptions = { readonly digest?: string | undefined; readonly maxBytes: number; readonly what?: string }

/** A folder of blobs. Errors of the disk are HOST_DISK_FULL and HOST_STATE_UNUSABLE. */
export class BlobStore {
  readonly #blobs: string
  readonly #ingest: string
  // Digests that somebody fetches now, and when that ends.
  readonly #fetching = new Map<string, Promise<void>>()

  /** Makes the folders, and removes what writers that were killed have left. */
  constructor(folder: string) {
    this.#blobs = join(folder, 'blobs/sha256')
    this.#ingest = join(folder, 'ingest')
    try {
      mkdirSync(this.#blobs, { recursive: true })
      // The umask doesn't apply to chmod.
      chmodSync(join(folder, 'blobs'), 0o711)
      chmodSync(this.#blobs, 0o711)
      mkdirSync(this.#ingest, { recursive: true, mode: 0o700 })
      this.#sweep()
    } catch (error) {
      throw diskError(error, folder)
    }
  }

  has(digest: string): boolean {
    return this.size(digest) !== undefined
  }

  /** Bytes of a blob; undefined if it isn't there. */
  size(digest: string): number | undefined {
    return statSync(this.path(digest), { throwIfNoEntry: false })?.size
  }

  /** When it was put, or would have been had it not been there: milliseconds since 1970. */
  time(digest: string): number | undefined {
    return statSync(this.path(digest), { throwIfNoEntry: false })?.mtimeMs
  }

  /** The file of a blob, whether or not it is there. */
  path(digest: string): string {
    assert(isDigest(digest), 'a digest is one', digest)
    return join(this.#blobs, digest.slice('sha256:'.length))
  }

  /** The blob, to be read. Throws NOT_FOUND. */
  async open(digest: string): Promise<FileHandle> {
    try {
      return await open(this.path(digest), constants.O_RDONLY | constants.O_NOFOLLOW)
    } catch (error) {
      throw missing(error, digest)
    }
  }

  /** All of a small blob. Throws NOT_FOUND. */
  read(digest: string): Buffer {
    try {
      return readFileSync(this.path(digest))
    } catch (error) {
      throw missing(error, digest)
    }
  }

  /** Says that a blob which is there was wanted: it counts as put now. */
  touch(digest: string): void {
    const now = new Date()
    try {
      utimesSync(this.path(digest), now, now)
    } catch (error) {
      throw missing(error, digest)
    }
  }

  /**
   * Keeps the bytes of `stream`; answers their digest when they are on disk. Throws IMAGE_DIGEST_WRONG if they aren't
   * those of `digest`, IMAGE_TOO_LARGE, and what the stream throws: then nothing is kept.
   */
  async put(stream: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, options: PutOptions): Promise<string> {
    const { digest, maxBytes, what = digest ?? 'given' } = options
    const path = join(this.#ingest, `put-${randomBytes(8).toString('hex')}.tmp`)
    const file = await Ingest.create(path, 'wx', this.#blobs)
    try {
      for await (const chunk of stream) {
        if (file.size + chunk.length > maxBytes) {
          throw new CellarError('IMAGE_TOO_LARGE', [what, file.size + chunk.length, maxBytes])
        }
        await file.append(chunk)
      }
      return await this.#commit(file, digest, what)
    } finally {
      await file.discard()
    }
  }

  /**
   * What there is of a blob that is being fetched, to go on with. Waits until nobody else fetches the same one: look
   * then whether it is there.
   */
  async resumable(digest: string, signal?: AbortSignal): Promise<PartialBlob> {
    for (let other; (other = this.#fetching.get(digest)) !== undefined;) await unlessAborted(other, signal)
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#fetching.set(digest, promise)
    const done = (): void => {
      this.#fetching.delete(digest)
      resolve()
    }
    try {
      const path = join(this.#ingest, `${digest.replace(':', '-')}.partial`)
      const file = await Ingest.create(path, 'a+', this.#blobs)
      await file.rehash()
      return new PartialBlob(file, () => this.#commit(file, digest, digest), done)
    } catch (error) {
      done()
      throw error
    }
  }

  /** Bytes freed; 0 if it isn't there. */
  remove(digest: string): number {
    const size = this.size(digest)
    if (size === undefined) return 0
    try {
      unlinkSync(this.path(digest))
    } catch (error) {
      throw diskError(error, this.#blobs)
    }
    return size
  }

  /** Digests of all blobs, in no order. */
  list(): string[] {
    return readdirSync(this.#blobs).filter((name) => BLOB.test(name)).map((name) => `sha256:${name}`)
  }

  async #commit(file: Ingest, digest: string | undefined, what: string): Promise<string> {
    const found = file.digest()
    if (digest !== undefined && found !== digest) {
      await file.discard()
      throw new CellarError('IMAGE_DIGEST_WRONG', [what, digest, found])
    }
    if (this.has(found)) {
      await file.discard()
      this.touch(found)
    } else {
      await file.moveTo(this.path(found))
    }
    return found
  }

  #sweep(): void {
    for (const name of readdirSync(this.#ingest)) {
      const path = join(this.#ingest, name)
      const stat = statSync(path, { throwIfNoEntry: false })
      // Either way, as the clock may have been set.
      const isYoung = stat !== undefined && Math.abs(Date.now() - stat.mtimeMs) < PARTIAL_MS_MAX
      if (!isYoung || !name.endsWith('.partial')) rmSync(path, { force: true, recursive: true })
    }
  }
}

/** What there is of a blob, and what is added to it. Close it; what it has is kept for the next try. */
export class PartialBlob {
  readonly #file: Ingest
  readonly #finish: () => Promise<string>
  readonly #done: () => void
  /** True while it has bytes from an earlier try, which may be damaged. */
  resumed: boolean

  constructor(file: Ingest, finish: () => Promise<string>, done: () => void) {
    this.#file = file
    this.#finish = finish
    this.#done = done
    this.resumed = file.size > 0
  }

  /** Bytes that are there. */
  get size(): number { return this.#file.size }

  async append(chunk: Uint8Array): Promise<void> { await this.#file.append(chunk) }

  /** The digest of what is there. */
  digest(): string { return this.#file.digest() }

  /** Begins again with nothing. */
  async restart(): Promise<void> {
    await this.#file.truncate()
    this.resumed = false
  }

  /** Gives the blob its name. Throws IMAGE_DIGEST_WRONG and keeps nothing if these aren't its bytes. */
  async commit(): Promise<void> { await this.#finish() }

  /** Keeps nothing. */
  async discard(): Promise<void> { await this.#file.discard() }

  async close(): Promise<void> {
    try {
      await this.#file.close()
    } finally {
      this.#done()
    }
  }
}

/** A file in ingest/, and the hash of its bytes. A full disk removes it: the space is wanted. */
class Ingest {
  readonly #path: string
  readonly #target: string
  #handle: FileHandle | undefined
  #hash: Hash = createHash('sha256')
  size = 0

  private constructor(path: string, handle: FileHandle, target: string) {
    this.#path = path
    this.#handle = handle
    this.#target = target
  }

  /** `target`: the folder that it will be moved to. */
  static async create(path: string, flags: 'wx' | 'a+', target: string): Promise<Ingest> {
    try {
      return new Ingest(path, await open(path, flags, 0o600), target)
    } catch (error) {
      throw diskError(error, path)
    }
  }

  async append(bytes: Uint8Array): Promise<void> {
    await this.#try(async (handle) => {
      for (let at = 0; at < bytes.length;) at += (await handle.write(bytes, at, bytes.length - at)).bytesWritten
    })
    this.#hash.update(bytes)
    this.size += bytes.length
  }

  digest(): string { return `sha256:${this.#hash.copy().digest('hex')}` }

  /** Hashes what is in the file. */
  async rehash(): Promise<void> {
    await this.#try(async (handle) => {
      const buffer = Buffer.allocUnsafe(READ_BYTES)
      for (let got; (got = (await handle.read(buffer, 0, buffer.length, this.size)).bytesRead) > 0; this.size += got) {
        this.#hash.update(buffer.subarray(0, got))
      }
    })
  }

  async truncate(): Promise<void> {
    await this.#try((handle) => handle.truncate(0))
    this.#hash = createHash('sha256')
    this.size = 0
  }

  async moveTo(path: string): Promise<void> {
    await this.#try(async (handle) => {
      await handle.chmod(0o444)
      await handle.sync()
      await this.close()
      await rename(this.#path, path)
      await syncFolder(this.#target)
    })
  }

  async close(): Promise<void> {
    const handle = this.#handle
    this.#handle = undefined
    await handle?.close()
  }

  /** Does nothing once it is closed. */
  async discard(): Promise<void> {
    if (this.#handle === undefined) return
    await this.close()
    await unlink(this.#path).catch(() => {})
  }

  async #try(action: (handle: FileHandle) => Promise<void>): Promise<void> {
    assert(this.#handle !== undefined, 'the file is open')
    try {
      await action(this.#handle)
    } catch (error) {
      await this.close().catch(() => {})
      await unlink(this.#path).catch(() => {})
      throw diskError(error, this.#path)
    }
  }
}

async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

// What a failed call of the file system becomes; other errors stay.
function diskError(error: unknown, path: string): unknown {
  if (!(error instanceof Error) || !('syscall' in error)) return error
  const { code } = error as NodeJS.ErrnoException
  const isFull = code === 'ENOSPC' || code === 'EDQUOT'
  if (isFull) return new CellarError('HOST_DISK_FULL', ['keep an image'], { cause: error })
  return new CellarError('HOST_STATE_UNUSABLE', [path, error.message], { cause: error })
}

function missing(error: unknown, digest: string): unknown {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') return diskError(error, digest)
  return new CellarError('NOT_FOUND', ['blob', digest], { cause: error })
}

// Rejects as soon as the signal says so; `promise` itself never rejects.
async function unlessAborted(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return promise
  signal.throwIfAborted()
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const onAbort = (): void => reject(signal.reason as Error)
  signal.addEventListener('abort', onAbort)
  try {
    await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
