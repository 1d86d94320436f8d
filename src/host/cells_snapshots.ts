// host/cells_snapshots.ts: a cell process's use of its project's snapshots: writing, reading, and clearing them away.
//
// Each that is under way holds a copy of a guest's memory, so few are at once: those that wait cost nothing, as their
// guests run on. The memory of a guest's last snapshot stays for a while, since who takes one often takes the next soon
// (a move takes several): what is the same isn't hashed again. One that many start from is read once.
// Elsewhere: files and chunks (snapshot/store.ts), what is captured (cells_captures.ts).

import { CellarError } from '../base/errors.ts'
import { SNAPSHOTS_AT_ONCE, SNAPSHOTS_KNOWN_BYTES_MAX } from '../base/limits.ts'
import { drop } from '../cell/memory_image.ts'
import type { CellState } from '../cell/state.ts'
import type { SnapshotMeta } from '../snapshot/format.ts'
import type { Known, SnapshotStore, WrittenSnapshot } from '../snapshot/store.ts'
import type { Guest } from './cells_guest.ts'
import type { GuestLaunch } from './protocol.ts'

/** How long the memory of a guest's last snapshot is kept. */
const KNOWN_MS = 60_000
/** How long what was read stays for others who start from it. */
const READ_MS = 1000
/** Chunks that nobody needs go so long after a snapshot was forgotten: what is forgotten until then goes together. */
const COLLECT_MS = 1000
/** What no host knows of is a crash's: it may be one that is being written, but not for so long. */
const LEFT_MS_MAX = 24 * 3_600_000

/** What a guest goes on from. */
export type ReadSnapshot = { readonly meta: SnapshotMeta; readonly state: CellState
  readonly known: Known | undefined }

/** The snapshots of a process. */
export class Snapshots {
  readonly #store: SnapshotStore
  readonly #say: (text: string) => void
  readonly #reading = new Map<string, Promise<ReadSnapshot>>()
  /** Whose memory is kept, the oldest first, and until when. */
  readonly #known = new Map<Guest, NodeJS.Timeout>()
  #underWay = 0
  #waiting: (() => void)[] = []
  #collecting: NodeJS.Timeout | undefined
  #collectsAgain = false
  /** The version of the host: what snapshots say that took them. */
  cellar = ''

  /** `say`: tells the operator what could not be cleared away. */
  constructor(store: SnapshotStore, say: (text: string) => void) {
    this.#store = store
    this.#say = say
  }

  /** Runs `work`, which holds a copy of a guest's memory, when it is its turn. */
  async inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.#underWay >= SNAPSHOTS_AT_ONCE) await new Promise<void>((go) => { this.#waiting.push(go) })
    else this.#underWay++
    try {
      return await work()
    } finally {
      // Who waits takes this one's place.
      const next = this.#waiting.shift()
      if (next === undefined) this.#underWay--
      else next()
    }
  }

  /** Writes what was captured of a guest; `spec` is its specification. In turn (`inTurn`). */
  async write(guest: Guest, state: CellState, { durable, spec }: { durable: boolean; spec: unknown }):
  Promise<WrittenSnapshot> {
    const { module, name, from } = guest.launch
    const meta: SnapshotMeta = { kind: 'cell', module, guest: name, spec: spec ?? null, createdAt: Date.now(),
      cellar: this.cellar, ...(from === undefined || from.snapshot === '' ? {} : { parent: from.snapshot }) }
    const written = await this.#store.write(meta, state, { durable, known: guest.known })
    this.#remember(guest, written)
    return written
  }

  /** The snapshot that a guest goes on from. `before`: one of it that was read lately. Rejects with CellarError. */
  async read({ module, memoryPagesMax }: Pick<GuestLaunch, 'module' | 'memoryPagesMax'>, digest: string,
    before?: { readonly known: Known; readonly spare: SharedArrayBuffer | undefined }): Promise<ReadSnapshot> {
    const key = `${digest} ${module} ${memoryPagesMax}`
    const reading = this.#reading.get(key) ??
      this.inTurn(() => this.#store.read(digest, { module, pagesMax: memoryPagesMax }, before?.known,
        before?.spare))
    this.#reading.set(key, reading)
    try {
      return await reading
    } finally {
      setTimeout(() => { if (this.#reading.get(key) === reading) this.#reading.delete(key) }, READ_MS).unref()
    }
  }

  /** The guest is gone, or its next snapshot is nobody's concern. */
  forget(guest: Guest): void {
    clearTimeout(this.#known.get(guest))
    this.#known.delete(guest)
    if (guest.known !== undefined) drop(guest.known.image)
    guest.known = undefined
    guest.spare = undefined
  }

  /** Removes snapshots that nobody needs any more, and a little later the chunks that only they had. */
  remove(digests: readonly string[]): void {
    for (const digest of digests) this.#attempt(() => this.#store.remove(digest))
    this.#collect()
  }

  /** Removes all but these that are old enough to be nobody's. */
  keep(digests: readonly string[]): void {
    const needed = new Set(digests)
    const cut = Date.now() - LEFT_MS_MAX
    this.#attempt(() => {
      for (const digest of this.#store.list()) {
        if (!needed.has(digest) && this.#cameAt(digest) < cut) this.#store.remove(digest)
      }
    })
    this.#collect()
  }

  // When it came here, not when it was taken: one that comes from elsewhere, and is nobody's yet, may be old. One that
  // can't be read is of no use to anybody.
  #cameAt(digest: string): number {
    try {
      this.#store.inspect(digest)
      return this.#store.cameAt(digest) ?? -Infinity
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      return error.code === 'SNAPSHOT_NEWER' ? Infinity : -Infinity
    }
  }

  // Not later, the more is removed: guests that sleep and wake would keep it from ever being done.
  #collect(): void {
    if (this.#collecting !== undefined) {
      this.#collectsAgain = true
      return
    }
    this.#collectsAgain = false
    this.#collecting = setTimeout(() => void this.#collectNow(), COLLECT_MS).unref()
  }

  async #collectNow(): Promise<void> {
    this.#collectsAgain = false
    try {
      await this.#store.collect()
    } catch (error) {
      this.#complain(error)
    }
    this.#collecting = undefined
    if (this.#collectsAgain) this.#collect()
  }

  #attempt(work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#complain(error)
    }
  }

  // The disk's errors: who wants a snapshot gone can't help it, but somebody should know.
  #complain(error: unknown): void {
    if (!(error instanceof CellarError) && !(error instanceof Error && 'syscall' in error)) throw error
    this.#say(`cannot clear away snapshots: ${error.message}`)
  }

  #remember(guest: Guest, { known }: WrittenSnapshot): void {
    const before = guest.known?.image.bytes
    // It is the next one's to be written over, and not given back.
    guest.known = undefined
    this.forget(guest)
    if (known === undefined) return
    // Who takes snapshots one after the other has the memory for them twice, and touches none for the first time.
    if (before !== known.image.bytes) guest.spare = before
    guest.known = known
    this.#known.set(guest, setTimeout(() => this.forget(guest), KNOWN_MS).unref())
    let bytes = [...this.#known.keys()].reduce((sum, one) => sum + bytesOf(one), 0)
    for (const oldest of this.#known.keys()) {
      if (bytes <= SNAPSHOTS_KNOWN_BYTES_MAX) break
      bytes -= bytesOf(oldest)
      this.forget(oldest)
    }
  }
}

function bytesOf({ known, spare }: Guest): number {
  return (known?.image.bytes.byteLength ?? 0) + (spare?.byteLength ?? 0)
}
