// image/machine_layers.ts: the layers of a container's image as one tree of files: what its root file system has.
//
// The first pass over the archives reads headers alone and builds the tree in memory: a later entry replaces an earlier
// one of its name, `.wh.NAME` takes away what layers below have as NAME, `.wh..wh..opq` all that they have in its
// folder. The second pass streams the contents that are left. Nothing is unpacked on this machine: the tree's files go
// into another archive, which a tool makes a file system of, or into an initramfs.
//
// A layer is hostile. Its paths are names in our tree and nothing else, so that none leads out: `..` in one is refused;
// a link on the way is followed inside the tree, as container engines do it (an archive may have lib/x where lib leads
// to usr/lib), forty at most. A hard link is one more name for what the tree has then. Work and memory have limits.

import { CellarError } from '../base/errors.ts'
import { IMAGE_ENTRIES_MAX, IMAGE_UNPACKED_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { TarError, TarReader, type TarDetails, type TarEntry } from './tar_reader.ts'
import { cleaned, openLayer } from './unpack.ts'

const HIDE = '.wh.'
const HIDE_ALL = '.wh..wh..opq'
const LINKS_MAX = 40
/** Steps in the tree: some seconds, whatever the layers have us do. */
const WORK_MAX = 50_000_000

/** What is known of a file, folder, link or device, beside its name. */
type Inode = {
  readonly details: TarDetails
  readonly size: number
  /** Where its content is. */
  readonly layer: number
  readonly entry: number
  /** Its names at the end: more than one for hard links. */
  readonly paths: string[]
}
/** A name in a folder. `layer`: which put it there. `children`: of a folder. */
type Slot = { layer: number; inode: Inode; readonly children: Map<string, Slot> | undefined }
type FolderSlot = Slot & { readonly children: Map<string, Slot> }

/** One thing to be made, in an order in which it can be. `link`: of a hard link, the path that was made before. */
export type LayerEntry = TarDetails & {
  readonly path: string
  readonly size: number
  readonly content: AsyncIterable<Uint8Array> | undefined
}

/** Reads the tree of `archives`, the lowest first. Throws IMAGE_INVALID; `image` is its name in messages. */
export async function openLayers(image: string, archives: readonly string[],
  bytesMax: number = IMAGE_UNPACKED_BYTES_MAX): Promise<Layers> {
  const layers = new Layers(image, archives, bytesMax)
  await layers.read()
  return layers
}

/** The tree. Made by `openLayers`. */
export class Layers {
  readonly #image: string
  readonly #archives: readonly string[]
  readonly #bytesMax: number
  readonly #root: FolderSlot = folderSlot(-1)
  #work = 0

  constructor(image: string, archives: readonly string[], bytesMax: number) {
    this.#image = image
    this.#archives = archives
    this.#bytesMax = bytesMax
  }

  /** The first pass. */
  async read(): Promise<void> {
    const budget = { left: this.#bytesMax }
    let entries = 0
    for (let layer = 0; layer < this.#archives.length; layer++) {
      await this.#scan(layer, budget, (one, reader, entry) => {
        if (++entries > IMAGE_ENTRIES_MAX) throw new TarError('it has too many entries')
        this.#apply(one, reader.details(), layer, entry)
      })
    }
  }

  /** Bytes of all files. */
  get sizeBytes(): number {
    let sum = 0
    for (const { slot } of this.#walk()) sum += slot.children === undefined ? slot.inode.size : 0
    return sum
  }

  /** All of it: folders, each before what is in it; then what has no content; then files and their other names. */
  async *entries(): AsyncGenerator<LayerEntry> {
    const inodes = new Map<number, Map<number, Inode>>()
    const others = new Set<Inode>()
    yield this.#entry(this.#root.inode, '')
    for (const { path, slot: { inode, children } } of this.#walk()) {
      if (children !== undefined) {
        yield this.#entry(inode, path)
      } else if (inode.details.kind === 'file' && inode.size > 0) {
        let wanted = inodes.get(inode.layer)
        if (wanted === undefined) inodes.set(inode.layer, wanted = new Map())
        if (!wanted.has(inode.entry)) inode.paths.length = 0
        wanted.set(inode.entry, inode)
        inode.paths.push(path)
      } else {
        if (!others.has(inode)) inode.paths.length = 0
        others.add(inode)
        inode.paths.push(path)
      }
    }
    for (const inode of others) yield* this.#names(inode, undefined)
    for (const [layer, wanted] of inodes) yield* this.#contents(layer, wanted)
  }

  /**
   * The content of the file at a path, if there is one of at most `bytesMax`: links are followed inside the tree.
   */
  async file(path: string, bytesMax: number): Promise<Buffer | undefined> {
    const slot = this.#find(path)
    const isFile = slot?.children === undefined && slot?.inode.details.kind === 'file'
    if (!isFile || slot.inode.size > bytesMax) return undefined
    const { layer, entry } = slot.inode
    const pieces: Uint8Array[] = []
    await this.#scan(layer, { left: this.#bytesMax }, async (_, reader, index) => {
      if (index !== entry) return false
      for await (const piece of reader.content()) pieces.push(Uint8Array.from(piece))
      return true
    })
    return Buffer.concat(pieces)
  }

  /** True if something is at the path. */
  has(path: string): boolean { return this.#find(path) !== undefined }

  async *#contents(layer: number, wanted: Map<number, Inode>): AsyncGenerator<LayerEntry> {
    try {
      using archive = await openLayer(this.#archives[layer]!, { left: this.#bytesMax })
      const reader = new TarReader(archive.bytes)
      for (let entry = 0, left = wanted.size; left > 0; entry++) {
        if (await reader.next() === undefined) throw new TarError('it has changed')
        const inode = wanted.get(entry)
        if (inode === undefined) continue
        left--
        yield* this.#names(inode, reader.content())
      }
    } catch (error) {
      throw this.#failure(error)
    }
  }

  // Its first name, then the others as hard links to that.
  *#names(inode: Inode, content: AsyncIterable<Uint8Array> | undefined): Generator<LayerEntry> {
    const [first, ...more] = inode.paths
    yield { ...this.#entry(inode, first!), content }
    for (const path of more) yield { ...this.#entry(inode, path), kind: 'hard link', link: first!, size: 0 }
  }

  #entry({ details, size }: Inode, path: string): LayerEntry { return { ...details, path, size, content: undefined } }

  // Reads one archive's headers, until `see` says that it is enough.
  async #scan(layer: number, budget: { left: number },
    see: (entry: TarEntry, reader: TarReader, index: number) => void | boolean | Promise<boolean>): Promise<void> {
    try {
      using archive = await openLayer(this.#archives[layer]!, budget)
      const reader = new TarReader(archive.bytes)
      for (let index = 0, one; (one = await reader.next()) !== undefined; index++) {
        if (await see(one, reader, index) === true) return
      }
    } catch (error) {
      throw this.#failure(error)
    }
  }

  #failure(error: unknown): unknown {
    const fail = (what: string): CellarError => new CellarError('IMAGE_INVALID', [this.#image, what], { cause: error })
    if (error instanceof TarError) return fail(`a layer isn't an archive that can be read: ${error.message}`)
    if (/^(Z_|ZSTD_)/.test((error as NodeJS.ErrnoException).code ?? '')) return fail('a layer is compressed wrongly')
    return error
  }

  #apply(entry: TarEntry, details: TarDetails, layer: number, index: number): void {
    const path = cleaned(entry.name)
    if (path === '') {
      if (entry.type === 'folder') this.#root.inode = inodeOf({ ...details, kind: 'folder' }, layer, index, 0)
      return
    }
    if (entry.sparse) throw new TarError('a file in it is kept as a sparse file')
    const slash = path.lastIndexOf('/')
    const name = path.slice(slash + 1)
    const folder = this.#folder(path.slice(0, Math.max(slash, 0)), layer)!
    if (name === HIDE_ALL) return this.#hideBelow(folder, layer)
    if (name.startsWith(HIDE)) return this.#hide(folder, name.slice(HIDE.length), layer)
    const found = folder.children.get(name)
    if (entry.type === 'folder') {
      const inode = inodeOf({ ...details, kind: 'folder' }, layer, index, 0)
      if (found?.children !== undefined) Object.assign(found, { layer, inode })
      else folder.children.set(name, { layer, inode, children: new Map() })
    } else if (details.kind === 'hard link') {
      const target = this.#find(details.link, false)
      if (target === undefined || target.children !== undefined) {
        throw new TarError(`the hard link "${printable(path)}" leads to nothing`)
      }
      folder.children.set(name, { layer, inode: target.inode, children: undefined })
    } else {
      if (details.kind === 'other') throw new TarError(`"${printable(path)}" in it is of a kind that isn't known`)
      folder.children.set(name, { layer, inode: inodeOf(details, layer, index, entry.size), children: undefined })
    }
  }

  #hide(folder: FolderSlot, name: string, layer: number): void {
    const slot = folder.children.get(name)
    if (slot === undefined) return
    if (slot.children !== undefined) this.#hideBelow(slot as FolderSlot, layer)
    if (slot.layer < layer && !(slot.children?.size ?? 0)) folder.children.delete(name)
  }

  // What layers before `layer` have in a folder goes; folders that have something of `layer` stay.
  #hideBelow(folder: FolderSlot, layer: number): void {
    const order: { parent: FolderSlot; name: string; slot: Slot }[] = []
    const stack: FolderSlot[] = [folder]
    for (let parent; (parent = stack.pop()) !== undefined;) {
      for (const [name, slot] of parent.children) {
        this.#step()
        order.push({ parent, name, slot })
        if (slot.children !== undefined) stack.push(slot as FolderSlot)
      }
    }
    // Folders come before what is in them: backwards, they are empty when it is their turn.
    for (const { parent, name, slot } of order.reverse()) {
      if (slot.layer < layer && !(slot.children?.size ?? 0)) parent.children.delete(name)
    }
  }

  // The slot at a path; the last link is followed, too, if `follow`.
  #find(path: string, follow = true): Slot | undefined {
    let parts = path.split('/').filter((part) => part !== '' && part !== '.')
    for (let links = 0; links <= LINKS_MAX; links++) {
      const name = parts.pop()
      if (name === undefined) return this.#root
      const where: string[] = []
      const slot = this.#folder(parts.join('/'), undefined, where)?.children.get(name)
      if (!follow || slot?.inode.details.kind !== 'link') return slot
      const { link } = slot.inode.details
      parts = [...link.startsWith('/') ? [] : where, ...link.split('/').filter((part) => part !== '' && part !== '.')]
    }
    return undefined
  }

  // The folder at a path, links followed inside the tree. `layer`: who makes it if it isn't there; undefined: then
  // undefined. `where` gets the names that lead to it without links.
  #folder(path: string, layer: number | undefined, where: string[] = []): FolderSlot | undefined {
    const stack: FolderSlot[] = [this.#root]
    const left = path.split('/').reverse()
    for (let links = 0, part; (part = left.pop()) !== undefined;) {
      this.#step()
      const top = stack.at(-1)!
      if (part === '' || part === '.') continue
      if (part === '..') {
        where.pop()
        if (stack.length > 1) stack.pop()
        continue
      }
      let slot = top.children.get(part)
      if (slot === undefined) {
        if (layer === undefined) return undefined
        top.children.set(part, slot = folderSlot(layer))
      }
      if (slot.children !== undefined) {
        stack.push(slot as FolderSlot)
        where.push(part)
      } else if (slot.inode.details.kind === 'link') {
        const { link } = slot.inode.details
        if (++links > LINKS_MAX) throw new TarError(`links on the way to "${printable(path)}" have no end`)
        if (link.startsWith('/')) {
          stack.length = 1
          where.length = 0
        }
        left.push(...link.split('/').reverse())
      } else if (layer === undefined) {
        return undefined
      } else {
        throw new TarError(`"${printable(path)}" lies below a file`)
      }
    }
    return stack.at(-1)!
  }

  // All but the root; a folder before what is in it.
  *#walk(): Generator<{ readonly path: string; readonly slot: Slot }> {
    const stack: { path: string; slot: FolderSlot }[] = [{ path: '', slot: this.#root }]
    for (let top; (top = stack.pop()) !== undefined;) {
      for (const [name, slot] of top.slot.children) {
        const path = top.path === '' ? name : `${top.path}/${name}`
        yield { path, slot }
        if (slot.children !== undefined) stack.push({ path, slot: slot as FolderSlot })
      }
    }
  }

  #step(): void {
    if (++this.#work > WORK_MAX) throw new TarError('its layers take too much work')
  }
}

function folderSlot(layer: number): FolderSlot {
  const details: TarDetails = { kind: 'folder', mode: 0o755, uid: 0, gid: 0, mtime: 0, link: '', major: 0, minor: 0,
    xattrs: new Map() }
  return { layer, inode: inodeOf(details, layer, -1, 0), children: new Map() }
}

function inodeOf(details: TarDetails, layer: number, entry: number, size: number): Inode {
  return { details, layer, entry, size, paths: [] }
}
