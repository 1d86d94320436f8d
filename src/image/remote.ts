// image/remote.ts: where images come from and go to: registries (registry.ts) and folders (layout.ts).
//
// A remote says what it has; fetchBlob believes nothing of it. A transfer that fails goes on where it stopped: what has
// arrived is kept (PartialBlob), also over a restart of the host, and is hashed as a whole in the end.

import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import type { BlobStore, PartialBlob } from './blob_store.ts'
import type { Descriptor } from './image.ts'

/** Tries of a request, or of a transfer that makes no progress. */
const TRIES_MAX = 5
const BACKOFF_MS = 250
const BACKOFF_MS_MAX = 10_000
/** Longest that a registry can have us wait between tries. */
const RETRY_AFTER_MS_MAX = 60_000
/** What a try has to bring so that those before it are forgotten: else one byte each would keep us for years. */
const PROGRESS_BYTES_MIN = 64 * 1024

/** How a transfer is watched. `progress` is told the bytes that are done, of this blob. */
export type Watch = { readonly signal?: AbortSignal | undefined; readonly progress?: (bytes: number) => void }

/** A place that has images. Methods throw CellarError; Transient if another try may help. */
export interface Remote {
  /** For messages: the registry's host, or the folder. */
  readonly name: string
  /** First pause between tries, in milliseconds. */
  readonly backoffMs?: number | undefined
  /** A manifest or index by tag or digest: its bytes, which are not larger than IMAGE_MANIFEST_BYTES_MAX. */
  readManifest(tagOrDigest: string, signal?: AbortSignal): Promise<Uint8Array>
  /** The blob from byte `from` on, or from its begin, as it says. */
  openBlob(blob: Descriptor, from: number, signal?: AbortSignal):
  Promise<{ readonly from: number; readonly bytes: AsyncIterable<Uint8Array> }>
  /** Gives it a blob of `store`, unless it has it. `source`: a path on the same registry that has it, maybe. */
  writeBlob(blob: Descriptor, store: BlobStore, source: string | undefined, watch: Watch): Promise<void>
  /** All blobs are there: the manifest follows, under its digest and the tag. */
  writeManifest(bytes: Uint8Array, mediaType: string, tag: string | undefined, signal?: AbortSignal): Promise<void>
}

/** A failure that may pass: the network's, or a busy registry's. */
export class Transient extends Error {
  /** What the registry asks for, in milliseconds. */
  readonly retryAfterMs: number | undefined

  constructor(message: string, retryAfterMs?: number, options?: ErrorOptions) {
    super(message, options)
    this.retryAfterMs = retryAfterMs
  }
}

/** A failure of the network that lasts. */
export class Unreachable extends Error {}

/** What a failure becomes when trying has ended. */
export function registryFailed(remote: string, what: string, error: unknown): unknown {
  if (!(error instanceof Transient || error instanceof Unreachable)) return error
  return new CellarError('REGISTRY_FAILED', [remote, what, error.message], { cause: error })
}

/**
 * Tries until `attempt` succeeds, fails for good, or has failed TRIES_MAX times in a row with Transient. `progress`
 * counts up with what attempts achieve: those that achieve something don't count.
 */
export async function withRetries<T>(
  attempt: () => Promise<T>,
  { signal, backoffMs = BACKOFF_MS, progress = () => 0 }:
  { signal?: AbortSignal | undefined; backoffMs?: number | undefined; progress?: () => number },
): Promise<T> {
  for (let tries = 1, before = progress(); ; tries++) {
    try {
      signal?.throwIfAborted()
      return await attempt()
    } catch (error) {
      signal?.throwIfAborted()
      if (!(error instanceof Transient)) throw error
      if (progress() - before >= PROGRESS_BYTES_MIN) {
        before = progress()
        tries = 1
      }
      if (tries >= TRIES_MAX) throw error
      // Some of it by chance, so that many who failed at once don't come back at once.
      const backoff = Math.min(backoffMs * 2 ** (tries - 1), BACKOFF_MS_MAX) * (0.75 + Math.random() / 2)
      const wanted = Math.min(error.retryAfterMs ?? 0, RETRY_AFTER_MS_MAX)
      await sleep(Math.max(backoff, wanted), undefined, signal === undefined ? {} : { signal })
    }
  }
}

/** Puts a blob of a remote into the store, unless it is there. Throws IMAGE_DIGEST_WRONG, REGISTRY_FAILED. */
export async function fetchBlob(remote: Remote, blob: Descriptor, store: BlobStore, watch: Watch = {}): Promise<void> {
  const { digest, size } = blob
  if (!store.has(digest)) {
    const partial = await store.resumable(digest, watch.signal)
    try {
      // Another may have fetched it while we waited.
      if (!store.has(digest)) await complete(remote, blob, partial, watch)
    } finally {
      await partial.close()
    }
  }
  if (store.size(digest) !== size) {
    const why = `it doesn't have ${size} bytes, as it says`
    throw new CellarError('REGISTRY_FAILED', [remote.name, `fetch ${digest}`, why])
  }
  store.touch(digest)
  watch.progress?.(size)
}

async function complete(remote: Remote, blob: Descriptor, partial: PartialBlob, watch: Watch): Promise<void> {
  for (;;) {
    const { resumed } = partial
    try {
      await withRetries(() => transfer(remote, blob, partial, watch),
        { signal: watch.signal, backoffMs: remote.backoffMs, progress: () => partial.size })
    } catch (error) {
      throw registryFailed(remote.name, `fetch ${blob.digest}`, error)
    }
    // What an earlier try has left may be at fault, not the remote: once more, from the start.
    if (!resumed || partial.resumed === false || partial.digest() === blob.digest) return partial.commit()
    await partial.restart()
  }
}

async function transfer(remote: Remote, { digest, size, ...rest }: Descriptor, partial: PartialBlob, watch: Watch):
Promise<void> {
  if (partial.size > size) await partial.restart()
  if (partial.size === size && size > 0) return
  const { from, bytes } = await remote.openBlob({ digest, size, ...rest }, partial.size, watch.signal)
  if (from !== partial.size) await partial.restart()
  for await (const chunk of bytes) {
    if (partial.size + chunk.length > size) {
      await partial.discard()
      throw new CellarError('REGISTRY_FAILED', [remote.name, `fetch ${digest}`, `it sends more than ${size} bytes`])
    }
    await partial.append(chunk)
    watch.progress?.(partial.size)
  }
  if (partial.size < size) throw new Transient(`it ended after ${partial.size} of ${size} bytes`)
}
