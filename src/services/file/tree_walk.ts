// services/file/tree_walk.ts: visits everything beneath an open folder, whatever its guests have made of it.
//
// Folders may be nested deeper than any path is long, or than there are descriptors: one descriptor is held at a time.
// The way back up is "..", and what that leads to must be the folder that we came from; if it isn't (a guest has moved
// the folder meanwhile), the way is taken anew from the top, and what can't be found again is left out. Links are never
// followed, so that nothing outside is ever visited. Entries that come or go meanwhile may be seen or not.
//
// System calls are made on the calling thread, which others get in between.

import { setImmediate as turn } from 'node:timers/promises'
import { TREE_ENTRIES_AT_ONCE } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'

/** What is done with what is met. Descriptors of folders are good until the call returns, or its promise resolves. */
export type TreeVisitor = {
  /** Anything but a folder, in `folder`. The last statx was about it. */
  entry(folder: number, name: Uint8Array): void | Promise<void>
  /** A folder in `folder`, open as `fd`, before what is in it. The last statx was about it. */
  enter?(folder: number, name: Uint8Array, fd: number): void
  /** The same folder after what was in it; `folder` is -1 if that was lost. */
  leave?(folder: number, name: Uint8Array): void
}

/** Visits all beneath the host's descriptor `root`, which stays open. Throws the reason of `signal`. */
export async function walkTree(root: number, visitor: TreeVisitor, signal?: AbortSignal): Promise<void> {
  const walk = new Walk(root, visitor, signal)
  try {
    await walk.run()
  } finally {
    walk.close()
  }
}

type Level = { readonly name: Uint8Array; readonly id: Int32Array; readonly folders: Uint8Array[] }

class Walk {
  readonly #root: number
  readonly #visitor: TreeVisitor
  readonly #signal: AbortSignal | undefined
  readonly #levels: Level[] = []
  #here = -1
  #seen = 0

  constructor(root: number, visitor: TreeVisitor, signal: AbortSignal | undefined) {
    this.#root = root
    this.#visitor = visitor
    this.#signal = signal
  }

  close(): void {
    if (this.#here >= 0) sys.close(this.#here)
  }

  async run(): Promise<void> {
    this.#here = openFolder(this.#root, DOT)
    if (this.#here < 0) return
    this.#levels.push({ name: DOT, id: idOf(this.#here), folders: await this.#list() })
    for (;;) {
      const name = this.#levels.at(-1)!.folders.pop()
      if (name !== undefined) await this.#down(name)
      else if (this.#levels.length === 1) return
      else this.#up()
    }
  }

  async #down(name: Uint8Array): Promise<void> {
    const fd = openFolder(this.#here, name)
    if (fd < 0) return
    const id = idOf(fd)
    try {
      this.#visitor.enter?.(this.#here, name, fd)
    } catch (error) {
      sys.close(fd)
      throw error
    }
    sys.close(this.#here)
    this.#here = fd
    this.#levels.push({ name, id, folders: await this.#list() })
  }

  #up(): void {
    const { name } = this.#levels.pop()!
    let fd = openFolder(this.#here, DOTDOT)
    sys.close(this.#here)
    if (fd >= 0 && !isSame(fd, this.#levels.at(-1)!.id)) {
      sys.close(fd)
      fd = -1
    }
    this.#here = fd < 0 ? this.#again() : fd
    this.#visitor.leave?.(this.#here, name)
    while (this.#here < 0) {
      const lost = this.#levels.pop()!
      this.#here = this.#levels.length === 0 ? openFolder(this.#root, DOT) : this.#again()
      this.#visitor.leave?.(this.#here, lost.name)
    }
  }

  // The folder of the last level, from the top; -1 if it can't be found.
  #again(): number {
    let fd = openFolder(this.#root, DOT)
    for (let i = 1; fd >= 0 && i < this.#levels.length; i++) {
      const { name, id } = this.#levels[i]!
      const next = openFolder(fd, name)
      sys.close(fd)
      fd = next
      if (fd >= 0 && !isSame(fd, id)) {
        sys.close(fd)
        return -1
      }
    }
    return fd < 0 ? -1 : fd
  }

  // Visits the entries of the folder that we are in, and gives the names of its folders.
  async #list(): Promise<Uint8Array[]> {
    const folders: Uint8Array[] = []
    for (;;) {
      const names = batch(this.#here)
      if (names === undefined) return folders
      for (const name of names) {
        if (sys.statx(this.#here, name, sys.AT_SYMLINK_NOFOLLOW) === 0) {
          if ((sys.statxMode() & sys.S_IFMT) === sys.S_IFDIR) folders.push(name)
          else await this.#visitor.entry(this.#here, name)
        }
        if (++this.#seen % TREE_ENTRIES_AT_ONCE === 0) await turn()
        this.#signal?.throwIfAborted()
      }
    }
  }
}

// The next names of the open folder, copied: what is done with them may list other folders. undefined at the end.
function batch(fd: number): Uint8Array[] | undefined {
  const names: Uint8Array[] = []
  const length = sys.getdents64(fd, sys.entries.length)
  if (length <= 0) return undefined
  for (let at = 0; at < length; at += sys.entries[at + 16]! | (sys.entries[at + 17]! << 8)) {
    const name = sys.entries.slice(at + 19, sys.entries.indexOf(0, at + 19))
    const isDots = name[0] === 0x2e && (name.length === 1 || (name.length === 2 && name[1] === 0x2e))
    if (!isDots) names.push(name)
  }
  return names
}

function openFolder(folder: number, name: Uint8Array): number {
  return sys.openat(folder, name, sys.O_RDONLY | sys.O_DIRECTORY | sys.O_NOFOLLOW, 0)
}

function idOf(fd: number): Int32Array {
  const id = new Int32Array(4)
  sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
  sys.statxIdentity(id)
  return id
}

function isSame(fd: number, id: Int32Array): boolean {
  return idOf(fd).every((word, i) => word === id[i])
}

const NOTHING = new Uint8Array(0)
const DOT = Uint8Array.of(0x2e)
const DOTDOT = Uint8Array.of(0x2e, 0x2e)
