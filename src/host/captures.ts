// host/captures.ts: what the host asks of cell processes about a guest's state: pause, capture, fork, let go.
//
// A captured guest goes on, or is held in its process until it is committed what becomes of it: then it goes on (`go`),
// or is let go of (`release`), and may be launched elsewhere when that is answered (Guest.releasing). Of all that is
// done with one guest's state one thing is done at a time (`alone`). A stop or a kill waits for none of it: what was
// asked for is then answered with an error. An answer that nobody waits for any more is undone.
//
//   capture ─▶ held ─┬─▶ commit ─▶ release ─▶ released
//                    └─▶ it could not be ─▶ go
//
// Elsewhere: who asks (snapshot_actions.ts, hibernation.ts), the messages (protocol.ts).

import { CellarError, ERRORS, type ErrorCode } from '../base/errors.ts'
import { volumesOf } from './lifecycle.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { FromProcess, GuestLaunch, Written } from './protocol.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { ACTIVE, type Guest, type State } from './state.ts'

/** How long a process may take to capture a guest: it comes to a check soon, but its memory may be large. */
const CAPTURE_MS_MAX = 60_000
/** How long it may take for what is done at once. */
const ANSWER_MS_MAX = 30_000

type Captured = Extract<FromProcess, { captured: number }>
type Asked = { readonly guest: Guest; readonly handle: ProcessHandle; readonly run: number
  readonly next: 'resume' | 'hold' | 'fork'; settle(answer: Captured | CellarError): void }
type Release = { readonly guest: Guest; readonly handle: ProcessHandle; readonly run: number; done(): void }
type Parts = { readonly state: State; readonly processes: Processes; readonly files: SnapshotFiles }

/** Captures that are under way, and guests that are held. */
export class Captures {
  /** How many there were, and how long guests did not run for them. */
  readonly counts = { captures: 0, failed: 0, stoppedNs: 0 }
  readonly #parts: Parts
  readonly #asked = new Map<number, Asked>()
  readonly #releases = new Map<string, Release>()
  readonly #pauses = new Map<string, (is: boolean | CellarError) => void>()
  readonly #last = new WeakMap<Guest, Promise<unknown>>()
  /** Which run of a guest is held, or being let go of: its row may tell of the next already. */
  readonly #runs = new WeakMap<Guest, number>()
  #requests = 0

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Runs `work` when what else is done with the guest's state is done. */
  alone<T>(guest: Guest, work: () => Promise<T>): Promise<T> {
    const mine = (this.#last.get(guest) ?? Promise.resolve()).then(work, work)
    this.#last.set(guest, mine)
    const done = (): void => { if (this.#last.get(guest) === mine) this.#last.delete(guest) }
    void mine.finally(done).catch(() => {})
    return mine
  }

  /** Whether something is done with its state: who waits for that (`alone`) while others wait may wait for ever. */
  isBusy(guest: Guest): boolean { return this.#last.has(guest) }

  /**
   * Captures a guest that is in a process. Held: somebody calls `goOn` or `release`. Throws what the process says:
   * CAPTURE_IMPOSSIBLE, CAPTURE_ENDED, HOST_DISK_FULL; PROCESS_LOST.
   */
  async capture(guest: Guest, next: 'resume' | 'hold', durable: boolean): Promise<Written> {
    const { id, run, project, spec } = guest.row
    try {
      const { written } = await this.#ask(guest, next, (request) =>
        ({ capture: id, run, request, next, durable, spec }))
      if (written === undefined) throw new CellarError('PROCESS_LOST', [project, 'it tells of no snapshot'])
      this.counts.captures++
      this.counts.stoppedNs += written.stoppedNs
      return written
    } catch (error) {
      this.counts.failed++
      throw error
    }
  }

  /** Starts copies of a guest in its process. Throws as `capture`: then there are none of them. */
  async fork(guest: Guest, children: readonly GuestLaunch[]): Promise<void> {
    const { id, run } = guest.row
    await this.#ask(guest, 'fork', (request) => ({ fork: id, run, request, children }))
  }

  /**
   * Copies what a machine's children begin with: RAM into a memfd, by its ticket, the rest into their folders. Throws
   * as `capture`.
   */
  async forkMachine(guest: Guest, ram: number, children: readonly { readonly folder: string }[]): Promise<void> {
    const { id, run } = guest.row
    await this.#ask(guest, 'fork', (request) => ({ forkMachine: id, run, request, ram, children }))
  }

  /** Keeps a guest from running, or lets it again. Resolves when it is so, or has ended. Throws PROCESS_LOST. */
  async pause(guest: Guest, paused: boolean): Promise<void> {
    const { row: { id, run, project, name }, handle } = guest
    if (handle === undefined) throw new CellarError('CAPTURE_ENDED', [name])
    const { promise, resolve } = Promise.withResolvers<boolean | CellarError>()
    const key = keyOf(id, run)
    const late = setTimeout(() => resolve(new CellarError('PROCESS_LOST', [project, 'it does not pause'])),
      ANSWER_MS_MAX).unref()
    this.#pauses.set(key, (is) => { if (is === paused || typeof is === 'object') resolve(is) })
    // On its way back: the next hello tells it.
    handle.link?.send({ pause: id, run, paused })
    const answer = await promise
    clearTimeout(late)
    this.#pauses.delete(key)
    if (answer instanceof CellarError) throw answer
  }

  /** A guest that is held goes on, as it could not be committed that it stopped there; unless it was stopped since. */
  goOn(guest: Guest): void {
    if (!guest.isHeld) return
    const { id, run, phase } = guest.row
    if (!ACTIVE.includes(phase) || run !== this.#runs.get(guest)) return this.release(guest)
    guest.handle?.link?.send({ go: id, run })
    this.over(guest)
  }

  /** A guest that is held leaves its process: it is committed that it stopped there. */
  release(guest: Guest): void {
    const { handle } = guest
    // Its process is lost, and it with it.
    if (handle === undefined) return this.over(guest)
    guest.handle = undefined
    guest.startedMs = undefined
    this.#letGo(guest, handle, this.#runs.get(guest) ?? guest.row.run)
  }

  /** As `release`, for a run that an earlier host has left held. */
  letGo(guest: Guest, handle: ProcessHandle, run: number): void {
    // Told again already (`hello`).
    if (this.#releases.get(keyOf(guest.row.id, run))?.handle === handle) return
    guest.volumes = volumesOf(guest.row)
    this.#parts.processes.join(handle, guest.row.id, guest.volumes)
    this.#letGo(guest, handle, run)
  }

  #letGo(guest: Guest, handle: ProcessHandle, run: number): void {
    const { row: { id }, volumes } = guest
    const { processes } = this.#parts
    const key = keyOf(id, run)
    this.#releases.get(key)?.done()
    this.#hold(guest, run)
    // It may hold what is in it for ever, else.
    const late = setTimeout(() => processes.kill(handle), ANSWER_MS_MAX).unref()
    const done = (): void => {
      clearTimeout(late)
      this.#releases.delete(key)
      processes.leave(handle, id, volumes)
      this.over(guest)
    }
    this.#releases.set(key, { guest, handle, run, done })
    handle.link?.send({ release: id, run })
    // Lost while it was committed: nobody answers.
    if (!processes.all.has(handle.id)) done()
  }

  /** Nothing holds the guest any more: it goes on, or has ended. */
  over(guest: Guest): void {
    const { id, run } = guest.row
    const held = this.#runs.get(guest) ?? run
    guest.isHeld = false
    this.#pauses.get(keyOf(id, run))?.(new CellarError('CAPTURE_ENDED', [guest.row.name]))
    if (!this.#releases.has(keyOf(id, held))) this.#freed.get(guest)?.()
  }

  readonly #freed = new WeakMap<Guest, () => void>()

  #hold(guest: Guest, run: number): void {
    guest.isHeld = true
    this.#runs.set(guest, run)
    if (guest.releasing !== undefined) return
    const { promise, resolve } = Promise.withResolvers<void>()
    guest.releasing = promise
    this.#freed.set(guest, () => {
      this.#freed.delete(guest)
      this.#runs.delete(guest)
      guest.releasing = undefined
      resolve()
    })
  }

  // ---- what processes say

  captured(handle: ProcessHandle, message: Captured): void {
    const asked = this.#asked.get(message.captured)
    if (asked !== undefined && asked.handle === handle && asked.guest.row.id === message.id) {
      if (asked.next === 'hold' && message.error === undefined) this.#hold(asked.guest, asked.run)
      return asked.settle(message)
    }
    // Nobody waits for it any more: as if it had not been asked for.
    const guest = this.#parts.state.guests.get(message.id)
    if (guest?.handle !== handle || guest.isHeld) return
    handle.link?.send({ go: guest.row.id, run: guest.row.run })
    if (message.written !== undefined) this.#parts.files.release(handle.project, message.written.snapshot)
  }

  paused(handle: ProcessHandle, { paused: id, run, is }: Extract<FromProcess, { paused: string }>): void {
    if (this.#parts.state.guests.get(id)?.handle === handle) this.#pauses.get(keyOf(id, run))?.(is)
  }

  released(handle: ProcessHandle, { released: id, run }: Extract<FromProcess, { released: string }>): void {
    const release = this.#releases.get(keyOf(id, run))
    if (release?.handle === handle) release.done()
  }

  /** A process that was connected anew: what was asked on the connection before is not answered any more. */
  hello(handle: ProcessHandle, { guests }: Extract<FromProcess, { pid: number }>): void {
    this.#giveUp(handle, 'the connection to it was lost')
    const there = new Set(guests.map(({ id, run }) => keyOf(id, run)))
    for (const [key, { guest, run, handle: its, done }] of this.#releases) {
      if (its !== handle) continue
      if (there.has(key)) handle.link?.send({ release: guest.row.id, run })
      else done()
    }
  }

  /** A process has ended. */
  lost(handle: ProcessHandle, why: string): void {
    this.#giveUp(handle, why)
    for (const release of this.#releases.values()) if (release.handle === handle) release.done()
  }

  #giveUp(handle: ProcessHandle, why: string): void {
    for (const asked of this.#asked.values()) {
      if (asked.handle === handle) asked.settle(new CellarError('PROCESS_LOST', [handle.project, why]))
    }
  }

  async #ask(guest: Guest, next: Asked['next'], message: (request: number) => Parameters<Send>[0]): Promise<Captured> {
    const { handle, row } = guest
    if (handle?.link === undefined) {
      throw new CellarError('PROCESS_LOST', [row.project, 'the connection to it was lost'])
    }
    const request = ++this.#requests
    const { promise, resolve } = Promise.withResolvers<Captured | CellarError>()
    const late = setTimeout(() => resolve(new CellarError('PROCESS_LOST', [row.project, 'it captures nothing'])),
      CAPTURE_MS_MAX).unref()
    this.#asked.set(request, { guest, handle, run: row.run, next, settle: resolve })
    handle.link.send(message(request))
    const answer = await promise
    clearTimeout(late)
    this.#asked.delete(request)
    if (answer instanceof CellarError) throw answer
    if (answer.error !== undefined) throw errorOf(row.project, answer.error)
    return answer
  }
}

type Send = NonNullable<ProcessHandle['link']>['send']

// A process says it: the code may be none of ours.
function errorOf(project: string, { code, values }: NonNullable<Captured['error']>): CellarError {
  return Object.hasOwn(ERRORS, code) ? new CellarError(code as ErrorCode, values as never)
    : new CellarError('PROCESS_LOST', [project, 'it says what it may not'])
}

function keyOf(id: string, run: number): string {
  return `${run} ${id}`
}
