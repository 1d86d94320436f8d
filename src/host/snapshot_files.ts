// host/snapshot_files.ts: which snapshots are needed, and their files' end.
//
// A snapshot is needed by its row, and by each guest that goes on from it. Its files lie in a folder of the project's
// own, where the host would follow whatever a process that was taken over has put there: a process of the project
// writes, reads and removes them. What a crash leaves there (a snapshot that was never committed) is found by a process
// that is told all that is needed. Elsewhere: the folder (snapshot/store.ts).

import type { Log } from '../base/log.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import { keyOf, type State } from './state.ts'

/** Releases that come together are one message; and one process, if there is none. */
const TOGETHER_MS = 50
/** Digests of one message. A project that needs more has its leavings left. */
const DIGESTS_MAX = 100_000

type Parts = { readonly state: State; readonly processes: Processes; readonly log: Log
  /** False for a project that is being removed: its files go with it. */
  readonly isOpen: (project: string) => boolean }

/** The files of all snapshots. */
export class SnapshotFiles {
  readonly #parts: Parts
  readonly #released = new Map<string, Set<string>>()
  #timer: NodeJS.Timeout | undefined

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Somebody no longer needs a snapshot: it is removed, unless another does. Call it when that is committed. */
  release(project: string, digest: string): void {
    const released = this.#released.get(project)
    if (released === undefined) this.#released.set(project, new Set([digest]))
    else released.add(digest)
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      for (const name of this.#released.keys()) void this.#remove(name)
    }, TOGETHER_MS).unref()
  }

  /** A process was connected: it is told what is needed. */
  hello(handle: ProcessHandle): void {
    const keep = [...this.#needed(handle.project)]
    if (keep.length <= DIGESTS_MAX) handle.link?.send({ keep })
  }

  /** Nothing is removed any more: the next host finds it. */
  close(): void {
    clearTimeout(this.#timer)
  }

  /** True if a guest of the project goes on from the snapshot, or is about to. */
  guestOf(project: string, digest: string): string | undefined {
    return this.#parts.state.ofProject(project).find(({ row: { from } }) =>
      from !== null && 'snapshot' in from && from.snapshot === digest)?.row.name
  }

  async #remove(project: string): Promise<void> {
    const { state, processes, log } = this.#parts
    const needed = this.#needed(project)
    const forget = [...this.#released.get(project) ?? []].filter((digest) => !needed.has(digest))
    this.#released.delete(project)
    if (forget.length === 0 || !state.projects.has(project) || !this.#parts.isOpen(project)) return
    try {
      const { link } = await processes.some(project)
      // Meanwhile it may have become needed: a snapshot of a hibernated guest that is woken.
      link?.send({ forget: forget.filter((digest) => !this.#isNeeded(project, digest)).slice(0, DIGESTS_MAX) })
    } catch (error) {
      log.warn('cannot remove snapshots', { project, count: forget.length, why: (error as Error).message })
    }
  }

  #isNeeded(project: string, digest: string): boolean {
    return this.#parts.state.snapshots.has(keyOf(project, digest)) || this.guestOf(project, digest) !== undefined
  }

  #needed(project: string): Set<string> {
    const { state } = this.#parts
    const needed = new Set(state.of(state.snapshots, project).map(({ digest }) => digest))
    for (const { row: { from } } of state.ofProject(project)) {
      if (from !== null && 'snapshot' in from) needed.add(from.snapshot)
    }
    return needed
  }
}
