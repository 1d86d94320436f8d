// image/unpack.ts: the module in an image that was made for containers: a file somewhere in its layers.
//
// Layers are tar archives, each changing what those before it have: a file replaces what has its name, `.wh.NAME` takes
// NAME away, `.wh..wh..opq` all that its folder had. Nothing of it is unpacked: one pass over the headers finds the
// files that may be the module, a second one streams that file. Only names are compared, in memory, and links are never
// followed; so a path can lead nowhere. A path with `..` is refused all the same: its author meant no good.
//
// The module is the file that the entrypoint names, or else the only one called *.wasm.

import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { posix } from 'node:path'
import type { Readable } from 'node:stream'
import { createGunzip, createZstdDecompress } from 'node:zlib'
import { CellarError } from '../base/errors.ts'
import { IMAGE_ENTRIES_MAX, IMAGE_MODULES_MAX, IMAGE_UNPACKED_BYTES_MAX, MODULE_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { TarError, TarReader, type TarEntry } from './tar_reader.ts'

/** A file that may be the module: where it is in the image and in its layers. */
type Candidate = { readonly layer: number; readonly entry: number; readonly size: number; readonly sparse: boolean }

const HIDE = '.wh.'
const HIDE_ALL = '.wh..wh..opq'

/**
 * Finds the module in `layers`, files of tar archives that are compressed with gzip, zstd or not at all. `entrypoint`:
 * its path, if the image names one. `take` gets its content. Throws IMAGE_INVALID; `image` is its name in messages.
 */
export async function unpackModule<T>(
  image: string, layers: readonly string[], entrypoint: string | undefined,
  take: (content: AsyncIterable<Uint8Array>) => Promise<T>, bytesMax: number = IMAGE_UNPACKED_BYTES_MAX,
): Promise<T> {
  const fail = (what: string): never => { throw new CellarError('IMAGE_INVALID', [image, what]) }
  try {
    const found = await new Search(layers, entrypoint, bytesMax).run()
    if (typeof found === 'string') return fail(found)
    if (found.sparse) return fail('its module is kept as a sparse file')
    if (found.size > MODULE_BYTES_MAX) throw new CellarError('IMAGE_TOO_LARGE', [image, found.size, MODULE_BYTES_MAX])
    using archive = await openLayer(layers[found.layer]!, { left: bytesMax })
    const reader = new TarReader(archive.bytes)
    for (let i = 0; i <= found.entry; i++) await reader.next()
    return await take(reader.content())
  } catch (error) {
    if (error instanceof TarError) return fail(`a layer isn't an archive that can be read: ${error.message}`)
    if (/^(Z_|ZSTD_)/.test((error as NodeJS.ErrnoException).code ?? '')) return fail('a layer is compressed wrongly')
    throw error
  }
}

class Search {
  readonly #layers: readonly string[]
  readonly #entrypoint: string | undefined
  readonly #budget: { left: number }
  readonly #found = new Map<string, Candidate>()

  constructor(layers: readonly string[], entrypoint: string | undefined, bytesMax: number) {
    this.#layers = layers
    this.#entrypoint = entrypoint === undefined ? undefined : cleaned(entrypoint)
    this.#budget = { left: bytesMax }
  }

  // The module, or what is wrong.
  async run(): Promise<Candidate | string> {
    let entries = 0
    for (const [layer, path] of this.#layers.entries()) {
      using archive = await openLayer(path, this.#budget)
      const reader = new TarReader(archive.bytes)
      for (let entry = 0, one; (one = await reader.next()) !== undefined; entry++) {
        if (++entries > IMAGE_ENTRIES_MAX) throw new TarError('it has too many entries')
        this.#apply(one, layer, entry)
      }
    }
    const exact = this.#entrypoint === undefined ? undefined : this.#found.get(this.#entrypoint)
    if (exact !== undefined) return exact
    const modules = [...this.#found.values()]
    if (modules.length === 1) return modules[0]!
    if (modules.length === 0) return 'there is no module in its layers'
    return `there are ${modules.length} modules in its layers, and its entrypoint names none of them`
  }

  #apply(entry: TarEntry, layer: number, index: number): void {
    const path = cleaned(entry.name)
    const name = posix.basename(path)
    const folder = path.slice(0, path.length - name.length)
    if (name === HIDE_ALL) return this.#remove(folder, layer, false)
    if (name.startsWith(HIDE)) return this.#remove(folder + name.slice(HIDE.length), layer, true)
    // Folders are merged; anything else replaces what has the name, and what is below it.
    if (entry.type === 'folder') this.#found.delete(path)
    else this.#remove(path, Infinity, true)
    if (entry.type !== 'file' || (path !== this.#entrypoint && !path.endsWith('.wasm'))) return
    if (this.#found.size >= IMAGE_MODULES_MAX) throw new TarError('it has too many modules')
    this.#found.set(path, { layer, entry: index, size: entry.size, sparse: entry.sparse })
  }

  // Takes away what layers before `layer` have at `path` (`itself`) and below it.
  #remove(path: string, layer: number, itself: boolean): void {
    const below = !itself || path === '' ? path : `${path}/`
    for (const [one, candidate] of this.#found) {
      if (candidate.layer < layer && ((itself && one === path) || one.startsWith(below))) this.#found.delete(one)
    }
  }
}

/** A path from the image's root, without a slash at its begin or end. Throws TarError if it leads out. */
export function cleaned(path: string): string {
  const parts = path.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..') || path.includes('\0')) throw new TarError(`the path "${printable(path)}" leads out of it`)
  return parts.join('/')
}

/** A layer's archive while it is read. */
export type Layer = { readonly bytes: AsyncIterable<Uint8Array>; [Symbol.dispose](): void }

/**
 * What the layer in a file unpacks to, as far as `budget` allows: TarError then. Its first bytes tell how it is
 * compressed, whatever else says.
 */
export async function openLayer(path: string, budget: { left: number }): Promise<Layer> {
  const magic = Buffer.alloc(4)
  const handle = await open(path)
  try {
    await handle.read(magic, 0, 4, 0)
  } finally {
    await handle.close()
  }
  const file = createReadStream(path, { highWaterMark: 256 * 1024 })
  const unpack = magic.readUInt16BE() === 0x1f8b ? createGunzip({ chunkSize: 256 * 1024 })
    : magic.readUInt32LE() === 0xfd2fb528 ? createZstdDecompress({ chunkSize: 256 * 1024 }) : undefined
  if (unpack !== undefined) file.on('error', (error) => unpack.destroy(error)).pipe(unpack)
  const stream: Readable = unpack ?? file
  return {
    bytes: bounded(stream, budget),
    [Symbol.dispose]: () => {
      file.destroy()
      unpack?.destroy()
    },
  }
}

async function* bounded(stream: Readable, budget: { left: number }): AsyncGenerator<Uint8Array> {
  for await (const chunk of stream) {
    const bytes = chunk as Uint8Array
    budget.left -= bytes.length
    if (budget.left < 0) throw new TarError('it unpacks to too much')
    yield bytes
  }
}
