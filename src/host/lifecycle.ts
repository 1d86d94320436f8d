// host/lifecycle.ts: makes what guests are what they should be: starts, stops, ends, restarts, and finding them again.
//
// A row says what is wanted (`desired`) and what is (`phase`), with the number of the run: messages about another run
// of the guest are of the past. A change is made in memory, committed, and only then acted upon. So after a crash each
// guest is in one of these states:
//   starting, not in a process         the crash came before the launch was sent: it is launched
//   starting or running, in one        it is adopted
//   … and its process keeps its end    the end is handled now, then acknowledged
//   … and its process is gone          that is an end, too
//   backing-off                        its pause begins anew
//   in a process, but nobody wants it  it is ended
// Elsewhere: what follows an end (restart.ts), processes (processes.ts), published ports (ports.ts).

import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { signals } from '../base/signals.ts'
import { stateError } from './database.ts'
import { launchOf, parseVolume, termsOf } from './launch.ts'
import type { Paths } from './paths.ts'
import { dropPorts, openPorts } from './ports.ts'
import { makeLogFolder } from './project_folder.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { FromProcess, GuestEnd, GuestLaunch } from './protocol.ts'
import { exitOf, failuresAfter, next } from './restart.ts'
import type { GuestRow } from './rows.ts'
import type { Secrets } from './secrets.ts'
import { ACTIVE, keyOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import type { Transaction } from './transaction.ts'

/** How long to leave a full disk alone until an end is committed again. */
const COMMIT_AGAIN_MS = 1000

type Parts = {
  readonly state: State; readonly store: Store; readonly processes: Processes; readonly secrets: Secrets
  readonly paths: Paths; readonly log: Log
}

/** Starts, stops and restarts guests. */
export class Lifecycle {
  readonly #parts: Parts
  #isClosed = false

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Wants the guest to run, from now on: resolves when that is committed. */
  async start(guest: Guest): Promise<void> {
    this.#checkStays(guest)
    const { row } = guest
    if (row.desired === 'running' && (ACTIVE.includes(row.phase) && row.phase !== 'stopping')) return
    guest.failures = 0
    this.#clearRetry(guest)
    // One that is on its way out begins anew when it is out.
    if (row.phase === 'stopping') return await this.#change(guest, { desired: 'running' })
    const run = row.run + 1
    try {
      await this.#change(guest, { desired: 'running', phase: 'starting', run })
    } finally {
      // Even if it is to be stopped again by now, or that failed: nobody else ends what has not begun.
      if (guest.row.run === run) void this.launch(guest)
    }
  }

  /** Wants it not to run. Resolves when that is committed and its process was told. */
  async stop(guest: Guest, signal: number): Promise<void> {
    const { row } = guest
    this.#clearRetry(guest)
    if (ACTIVE.includes(row.phase)) {
      await this.#change(guest, { desired: 'stopped', phase: 'stopping' })
      guest.handle?.link?.send({ stop: row.id, run: row.run, signal })
      return
    }
    if (row.desired === 'stopped' && row.phase !== 'backing-off') return
    await this.#change(guest, { desired: 'stopped', ...(row.phase === 'backing-off' ? { phase: 'stopped' } : {}) })
  }

  /** Ends it, if it runs, and starts it anew. */
  async restart(guest: Guest): Promise<void> {
    this.#checkStays(guest)
    const { row } = guest
    if (!ACTIVE.includes(row.phase)) return await this.start(guest)
    await this.#change(guest, { desired: 'running', phase: 'stopping' })
    guest.handle?.link?.send({ stop: row.id, run: row.run, signal: signals.SIGTERM })
  }

  /** Gives the guest's terms to its process. */
  tellTerms(guest: Guest): void {
    guest.handle?.link?.send({ terms: guest.row.id, to: termsOf(guest.row.spec) })
  }

  /** Gives a pool's terms to the processes of its project. */
  tellPool(project: string, name: string): void {
    const pool = this.#parts.state.pools.get(keyOf(project, name))
    for (const handle of this.#parts.processes.all.values()) {
      if (handle.project === project) handle.link?.send({ pool: name, to: termsOf(pool?.spec ?? {}) })
    }
  }

  /** Launches a guest that is committed as `starting`. Never throws: what goes wrong is how the guest ended. */
  async launch(guest: Guest): Promise<void> {
    const { processes } = this.#parts
    const { id, project, run, spec, phase } = guest.row
    if (this.#isGone(guest)) return
    if (phase === 'stopping' && guest.handle === undefined) return this.ended(endOf(guest, STOPPED))
    const volumes = guest.volumes = volumesOf(guest.row)
    const mine = ++guest.launches
    const isOver = (handle: ProcessHandle): boolean => {
      // `hello` has launched it anew: the guest is that one's.
      if (guest.launches !== mine) return true
      if (guest.row.run === run && guest.row.phase === 'starting' && !this.#isGone(guest)) return false
      // Stopped, or lost, meanwhile.
      if (guest.handle === undefined) processes.leave(handle, id, volumes)
      if (guest.row.run === run && guest.row.phase === 'stopping') this.ended(endOf(guest, STOPPED))
      return true
    }
    let drop = (): void => {}
    try {
      const handle = await processes.take(project, id, volumes)
      if (isOver(handle)) return
      guest.handle = handle
      makeLogFolder(this.#parts.paths, project, id, this.#uidOf(project))
      const { tickets, published } = await openPorts(spec, handle)
      drop = () => dropPorts(handle, tickets)
      if (isOver(handle)) return drop()
      this.#parts.state.setRow(guest, { ...guest.row, ports: published })
      if (handle.link === undefined) return // On its way back: `hello` launches again.
      handle.link.send({ start: this.#launchOf(guest, tickets) })
    } catch (thrown) {
      drop()
      const error = stateError(thrown, this.#parts.paths.state)
      if (!(error instanceof CellarError)) this.#parts.log.error('cannot launch', { guest: id, why: String(error) })
      const outcome = error instanceof CellarError ? { kind: 'failed' as const, code: error.code, values: error.values }
        : { kind: 'failed' as const, code: 'PROCESS_LOST', values: [project, (error as Error).message] }
      const isOurs = guest.launches === mine && guest.row.run === run && !this.#isGone(guest)
      if (isOurs) this.ended(endOf(guest, { outcome }))
    }
  }

  #launchOf(guest: Guest, tickets: ReadonlyMap<number, readonly number[]>, writesFiles = true): GuestLaunch {
    const { state, secrets, paths } = this.#parts
    const { id, run, name, digest, project, spec } = guest.row
    const uid = this.#uidOf(project)
    return launchOf(spec, {
      id, run, name, digest, tickets, uid, writesFiles, filesFolder: paths.files(project, id),
      volume: (volume) => ({ path: paths.volume(project, volume),
        sizeBytes: state.volumes.get(keyOf(project, volume))!.sizeBytes }),
      secret: (secret) => secrets.open(project, secret, state.secrets.get(keyOf(project, secret))!.value),
    })
  }

  /** The launch of a program that runs beside the guest, as the guest's would be now. */
  launchBeside(guest: Guest): GuestLaunch {
    return this.#launchOf(guest, new Map(), false)
  }

  // ---- what processes say

  /** A process that has just been connected says what it has. */
  hello(handle: ProcessHandle, { guests, ends }: Extract<FromProcess, { pid: number }>): void {
    const { state, processes } = this.#parts
    for (const [, pool] of state.pools) {
      if (pool.project === handle.project) handle.link?.send({ pool: pool.name, to: termsOf(pool.spec) })
    }
    const has = new Set(guests.map(({ id }) => id))
    for (const { id, run, startedAt, ageMs, healthy } of guests) {
      const guest = state.guests.get(id)
      const isKnown = guest?.row.project === handle.project && guest.row.run === run
      if (!isKnown || !ACTIVE.includes(guest.row.phase)) {
        handle.link?.send({ stop: id, run, signal: signals.SIGKILL })
        continue
      }
      if (guest.handle !== handle) {
        guest.volumes = volumesOf(guest.row)
        processes.join(handle, id, guest.volumes)
        guest.handle = handle
      }
      if (startedAt !== undefined) this.#isRunning(guest, startedAt, ageMs)
      if (healthy !== undefined) state.setRow(guest, { ...guest.row, healthy })
      // They may have been changed while nobody could tell it.
      this.tellTerms(guest)
      if (guest.row.phase === 'stopping') handle.link?.send({ stop: id, run, signal: signals.SIGTERM })
    }
    for (const end of ends) this.ended(end, handle)
    // A launch may put its guest back there.
    const held = [...handle.guests]
    for (const id of held) {
      const guest = state.guests.get(id)
      if (has.has(id) || guest === undefined || guest.handle !== handle) continue
      processes.leave(handle, id, guest.volumes)
      guest.handle = undefined
      // It never got the launch, or not the stop after it.
      if (guest.row.phase === 'starting') void this.launch(guest)
      else if (ACTIVE.includes(guest.row.phase)) this.ended(endOf(guest, STOPPED))
    }
  }

  /** Once all processes that are left of an earlier host have said hello: what is in none of them. */
  settle(): void {
    for (const guest of this.#parts.state.guests.values()) {
      const { phase, project } = guest.row
      if (guest.handle !== undefined) continue
      if (phase === 'starting') void this.launch(guest)
      else if (phase === 'running') this.ended(endOf(guest, lostBy(project, 'it was gone when the host came back')))
      else if (phase === 'stopping') this.ended(endOf(guest, STOPPED))
      else if (phase === 'backing-off') this.#retryIn(guest, PAUSE_AFTER_RESTART_MS)
    }
  }

  started(id: string, run: number, startedAt: number, from: ProcessHandle): void {
    const guest = this.#running(id, run, from)
    if (guest === undefined || guest.row.phase === 'running') return
    this.#isRunning(guest, startedAt)
    this.#commitSoon(guest, (tx) => tx.event('guest.started', eventOf(guest, { run, process: guest.handle?.id })))
  }

  health(id: string, run: number, healthy: boolean, why: string, from: ProcessHandle): void {
    const guest = this.#running(id, run, from)
    if (guest === undefined) return
    this.#parts.state.setRow(guest, { ...guest.row, healthy })
    guest.changed()
    // After a restart of the host the process tells it anew.
    if (!guest.healthNotes.allow()) return
    this.#commitSoon(guest, (tx) => tx.event(healthy ? 'guest.healthy' : 'guest.unhealthy', eventOf(guest, { why })))
  }

  /** A process has ended: so have its guests. */
  lost(handle: ProcessHandle, why: string): void {
    const { state } = this.#parts
    const guests = [...handle.guests].map((id) => state.guests.get(id)).filter((guest) => guest?.handle === handle)
    if (guests.length > 0 || !handle.isDraining) {
      this.#event((tx) => tx.event('process.lost', { project: handle.project,
        data: { process: handle.id, why, guests: guests.length } }))
    }
    for (const guest of guests) {
      if (ACTIVE.includes(guest!.row.phase)) this.ended(endOf(guest!, lostBy(handle.project, why)))
    }
  }

  /** A guest has ended. `from`: the process that waits for the acknowledgement. */
  ended(end: GuestEnd, from?: ProcessHandle): void {
    const { state, processes } = this.#parts
    const guest = state.guests.get(end.id)
    const acknowledge = (): void => from?.link?.send({ ack: end.id, run: end.run })
    if (guest === undefined || guest.row.run !== end.run || !ACTIVE.includes(guest.row.phase)) return acknowledge()
    // A process speaks for guests of its own project only.
    if (from !== undefined && guest.row.project !== from.project) return acknowledge()
    const { row } = guest
    const ranMs = guest.startedMs === undefined ? 0 : performance.now() - guest.startedMs
    // Who asked for it may be gone, or it ended by itself while it was asked to.
    const wanted = row.phase === 'stopping' || end.by === 'stop'
    const exit = exitOf(wanted && end.outcome.kind !== 'exit' ? { ...end, by: 'stop' } : end)
    const then = wanted && row.desired === 'running' ? { phase: 'starting' as const }
      : next({ ...end, ...(wanted ? { by: 'stop' as const } : {}) }, row.spec.restart, guest.failures, ranMs)
    guest.failures = wanted ? 0 : failuresAfter(guest.failures, ranMs)
    if (guest.handle !== undefined) processes.leave(guest.handle, row.id, guest.volumes)
    guest.handle = undefined
    guest.startedMs = undefined
    const again = then.phase === 'starting' || then.phase === 'backing-off'
    const run = row.run + (then.phase === 'starting' ? 1 : 0)
    state.setRow(guest, { ...row, phase: then.phase, healthy: null, process: null, ports: [], endedAt: end.endedAt,
      desired: again ? 'running' : 'stopped', run,
      exit: { ...exit, outcome: end.outcome, usage: end.usage } })
    guest.changed()
    const data = { ...exit, run: end.run, next: then.phase }
    this.#commitSoon(guest, (tx) => tx.event('guest.ended', eventOf(guest, data)),
      () => {
        acknowledge()
        if (then.phase === 'backing-off') this.#retryIn(guest, then.pauseMs)
        else if (then.phase === 'starting' && guest.row.run === run && !this.#isClosed) void this.launch(guest)
      })
  }

  /** Nothing is started or restarted any more. */
  close(): void {
    this.#isClosed = true
    for (const guest of this.#parts.state.guests.values()) this.#clearRetry(guest)
  }

  // ---- inside

  // The guest of which a process speaks, if this run of it is in there: it speaks for its own guests only.
  #running(id: string, run: number, from: ProcessHandle): Guest | undefined {
    const guest = this.#parts.state.guests.get(id)
    return guest?.handle === from && guest.row.run === run && ACTIVE.includes(guest.row.phase) ? guest : undefined
  }

  #checkStays(guest: Guest): void {
    const { name } = guest.row
    if (this.#isGone(guest)) throw new CellarError('NOT_FOUND', ['guest', name])
    if (guest.removal !== undefined) throw new CellarError('IN_USE', ['guest', name, 'its removal'])
  }

  #isRunning(guest: Guest, startedAt: number, ageMs = 0): void {
    const { state } = this.#parts
    const phase = guest.row.phase === 'stopping' ? 'stopping' : 'running'
    state.setRow(guest, { ...guest.row, phase, startedAt, process: guest.handle?.id ?? null })
    guest.startedMs = performance.now() - ageMs
    guest.changed()
  }

  #retryIn(guest: Guest, pauseMs: number): void {
    if (this.#isClosed || guest.row.phase !== 'backing-off') return
    this.#clearRetry(guest)
    guest.retryAt = Date.now() + pauseMs
    guest.retry = setTimeout(() => {
      this.#clearRetry(guest)
      if (this.#isClosed || this.#isGone(guest) || guest.row.phase !== 'backing-off') return
      const { row } = guest
      this.#parts.state.setRow(guest, { ...row, phase: 'starting', run: row.run + 1, restarts: row.restarts + 1 })
      this.#commitSoon(guest, undefined, () => { void this.launch(guest) })
    }, pauseMs)
  }

  #clearRetry(guest: Guest): void {
    clearTimeout(guest.retry)
    guest.retry = undefined
    guest.retryAt = undefined
  }

  // For who waits for the answer: what could not be committed isn't so.
  async #change(guest: Guest, changes: Partial<GuestRow>): Promise<void> {
    const { state, store } = this.#parts
    const before = guest.row
    state.setRow(guest, { ...before, ...changes })
    const mine = guest.row
    try {
      await store.commit((tx) => { if (!this.#isGone(guest)) tx.putGuest(guest.row) })
    } catch (error) {
      if (guest.row === mine) state.setRow(guest, before)
      throw error
    }
    guest.changed()
  }

  // For what has happened already: committed when that works again.
  #commitSoon(guest: Guest, note?: (tx: Transaction) => void, then?: () => void): void {
    const { store, log } = this.#parts
    store.commit((tx) => {
      if (!this.#isGone(guest)) tx.putGuest(guest.row)
      note?.(tx)
    }).then(then, (error: unknown) => {
      if (this.#isClosed) return
      log.error('cannot commit, trying again', { guest: guest.row.id, why: (error as Error).message })
      setTimeout(() => this.#commitSoon(guest, note, then), COMMIT_AGAIN_MS).unref()
    })
  }

  #event(note: (tx: Transaction) => void): void {
    this.#parts.store.commit(note).catch((error: unknown) => {
      this.#parts.log.error('cannot note an event', { why: (error as Error).message })
    })
  }

  #uidOf(project: string): number | undefined {
    return this.#parts.state.projects.get(project)?.uid ?? undefined
  }

  #isGone(guest: Guest): boolean {
    return this.#parts.state.guests.get(guest.row.id) !== guest
  }
}

/** The volumes that a guest uses. */
export function volumesOf({ spec }: Pick<GuestRow, 'spec'>): string[] {
  return [...new Set(spec.volumes.map((text) => parseVolume(text).name))]
}

/** What an event of a guest says of it. */
export function eventOf({ row }: Guest, data: Readonly<Record<string, unknown>>):
{ project: string; guest: string; data: Readonly<Record<string, unknown>> } {
  return { project: row.project, guest: row.name, data: { id: row.id, ...data } }
}

type Ending = Pick<GuestEnd, 'outcome' | 'by'>

function endOf({ row }: Guest, ending: Ending): GuestEnd {
  return { id: row.id, run: row.run, endedAt: Date.now(), ...ending }
}

function lostBy(project: string, why: string): Ending {
  return { outcome: { kind: 'failed', code: 'PROCESS_LOST', values: [project, why] } }
}

const STOPPED: Ending = { outcome: { kind: 'signal', signal: signals.SIGTERM }, by: 'stop' }
/** After a restart of the host: all at once would be too much, and their pauses are forgotten. */
const PAUSE_AFTER_RESTART_MS = 1000
