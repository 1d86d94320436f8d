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
//   held there, for a capture          it goes on, or is let go of if it was committed that it stopped there
//   to be a fork, and in no process    it never was: it is removed
// What a run goes on from (`from`) stays in the row until it runs: what was saved is lost by nothing that fails before.
// Elsewhere: what follows an end (restart.ts), processes (processes.ts), published ports (ports.ts), captures
// (captures.ts), what becomes of hibernated guests (hibernation.ts).

import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { signals } from '../base/signals.ts'
import type { Captures } from './captures.ts'
import { stateError } from './database.ts'
import type { GivenToMachine, Machines } from './machines.ts'
import { fromOf, launchOf, parseVolume, termsOf } from './launch.ts'
import type { Paths } from './paths.ts'
import { dropPorts, Listening } from './ports.ts'
import { makeLogFolder } from './project_folder.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { FromProcess, GuestEnd, GuestLaunch, GuestState } from './protocol.ts'
import { exitOf, failuresAfter, next, nextOfUnborn, wasWoken } from './restart.ts'
import type { Beginning, GuestRow } from './rows.ts'
import type { Secrets } from './secrets.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { ACTIVE, keyOf, speaksFor, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import type { Transaction } from './transaction.ts'

/** How long to leave a full disk alone until an end is committed again. */
const COMMIT_AGAIN_MS = 1000

type Tickets = ReadonlyMap<number, readonly number[]>
type Besides = { readonly number?: number | undefined; readonly writesFiles?: boolean
  readonly machine?: GivenToMachine | undefined }
type Parts = {
  readonly state: State; readonly store: Store; readonly processes: Processes; readonly secrets: Secrets
  readonly paths: Paths; readonly log: Log; readonly captures: Captures; readonly files: SnapshotFiles
  readonly machines: Machines
}

/** Starts, stops and restarts guests. */
export class Lifecycle {
  readonly #parts: Parts
  #isClosed = false

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /**
   * Wants the guest to run, from now on: resolves when that is committed, with what `note` adds. It goes on from what
   * was saved of it, if anything was.
   */
  async start(guest: Guest, note?: (tx: Transaction) => void): Promise<void> {
    this.checkStays(guest)
    const { row } = guest
    if (row.desired === 'running' && (ACTIVE.includes(row.phase) && row.phase !== 'stopping')) return
    guest.failures = 0
    this.#clearRetry(guest)
    // One that is on its way out begins anew when it is out.
    if (row.phase === 'stopping') return await this.change(guest, { desired: 'running' }, note)
    await this.#begin(guest, row.from ?? this.#parts.state.beginning(row), note)
  }

  async #begin(guest: Guest, from: Beginning | null, note?: (tx: Transaction) => void): Promise<void> {
    const run = guest.row.run + 1
    try {
      await this.change(guest, { desired: 'running', phase: 'starting', run, from }, note)
    } finally {
      // Even if it is to be stopped again by now, or that failed: nobody else ends what has not begun.
      if (guest.row.run === run) void this.launch(guest)
    }
  }

  /** Wants it not to run. Resolves when that is committed and its process was told. What was saved of it is dropped. */
  async stop(guest: Guest, signal: number): Promise<void> {
    this.#checkMoves(guest)
    const { row } = guest
    this.#clearRetry(guest)
    if (ACTIVE.includes(row.phase)) {
      await this.change(guest, { desired: 'stopped', phase: 'stopping' })
      guest.handle?.link?.send({ stop: row.id, run: row.run, signal })
      return
    }
    const waits = row.phase === 'backing-off' || row.phase === 'hibernated'
    if (row.desired === 'stopped' && !waits && row.from === null) return
    const ended = row.phase === 'hibernated' ? { ports: [], endedAt: Date.now(), exit: STOPPED_ASLEEP } : {}
    await this.change(guest, { desired: 'stopped', from: null, ...ended, ...(waits ? { phase: 'stopped' } : {}) },
      (tx) => { if ('exit' in ended) tx.event('guest.ended', eventOf(guest, { ...STOPPED_ASLEEP, run: row.run })) })
    guest.listening = void guest.listening?.close()
    this.#drop(guest, row.from)
  }

  /** Ends it, if it runs, and starts it anew: not from what was saved when it was hibernated. */
  async restart(guest: Guest): Promise<void> {
    this.checkStays(guest)
    const { row } = guest
    if (!ACTIVE.includes(row.phase)) {
      guest.failures = 0
      this.#clearRetry(guest)
      await this.#begin(guest, this.#parts.state.beginning(row))
      return this.#drop(guest, row.from)
    }
    await this.change(guest, { desired: 'running', phase: 'stopping' })
    guest.handle?.link?.send({ stop: row.id, run: row.run, signal: signals.SIGTERM })
  }

  /** Gives the guest's terms to its process. */
  tellTerms(guest: Guest): void {
    if (guest.handle?.kind === 'machine') return this.#parts.machines.setTerms(guest)
    guest.handle?.link?.send({ terms: guest.row.id, to: termsOf(guest.row.spec) })
  }

  /** Gives a pool's terms to the processes of its project. */
  tellPool(project: string, name: string): void {
    const pool = this.#parts.state.pools.get(keyOf(project, name))
    for (const handle of this.#parts.processes.all.values()) {
      if (handle.project === project) handle.link?.send({ pool: name, to: termsOf(pool?.spec ?? {}) })
    }
  }

  /**
   * Launches a guest that is committed as `starting`. Never throws: what goes wrong is how the guest ended. `forked`:
   * of a machine's child, RAM that its parent has made, and which child it is.
   */
  async launch(guest: Guest, forked?: { readonly ramFd: number; readonly number: number }): Promise<void> {
    const { processes } = this.#parts
    const { id, project, run, spec, phase, from: beginning } = guest.row
    if (this.#isGone(guest)) return
    // It begins with its fork or not at all.
    if (beginning !== null && 'fork' in beginning && forked === undefined) {
      return this.ended(endOf(guest, lostBy(project, 'its fork was cut short')))
    }
    if (phase === 'stopping' && guest.handle === undefined) return this.ended(endOf(guest, STOPPED))
    const mine = ++guest.launches
    // What is left of its last run may have its files and sockets still.
    if (guest.releasing !== undefined) await guest.releasing
    if (guest.launches !== mine) return
    const volumes = guest.volumes = volumesOf(guest.row)
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
      const handle = await this.#parts.machines.take(guest, volumes)
      if (isOver(handle)) return
      guest.handle = handle
      makeLogFolder(this.#parts.paths, project, id, this.#uidOf(project))
      const machine = await this.#parts.machines.give(guest, handle, forked?.ramFd)
      const listening = guest.listening ??= new Listening(spec, guest.row.ports)
      const tickets = await listening.share(handle)
      drop = () => dropPorts(handle, tickets)
      if (isOver(handle)) return drop()
      this.#parts.state.setRow(guest, { ...guest.row, ports: listening.published })
      if (handle.link === undefined) return // On its way back: `hello` launches again.
      handle.link.send({ start: this.launchOf(guest, tickets, { machine, number: forked?.number }) })
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

  /** What its process is told. `tickets`: of what it publishes; `number`: of a fork's child. Writes its files. */
  launchOf(guest: Guest, tickets: Tickets, { number, machine, writesFiles = true }: Besides = {}): GuestLaunch {
    const { state, secrets, paths } = this.#parts
    const { id, run, name, digest, project, spec } = guest.row
    const uid = this.#uidOf(project)
    return { ...launchOf(spec, {
      id, run, name, digest, tickets, uid, writesFiles, machine, filesFolder: paths.files(project, id),
      volume: (volume) => ({ path: paths.volume(project, volume),
        sizeBytes: state.volumes.get(keyOf(project, volume))!.sizeBytes }),
      secret: (secret) => secrets.open(project, secret, state.secrets.get(keyOf(project, secret))!.value),
    }), ...(guest.row.from === null ? {} : { from: { ...fromOf(guest.row.from), number } }) }
  }

  /** The launch of a program that runs beside the guest, as the guest's would be now. */
  launchBeside(guest: Guest): GuestLaunch {
    const { from: _, ...launch } = this.launchOf(guest, new Map(), { writesFiles: false })
    return launch
  }

  // ---- what processes say

  /** A process that has just been connected says what it has. */
  hello(handle: ProcessHandle, { guests, ends }: Extract<FromProcess, { pid: number }>): void {
    const { state, processes } = this.#parts
    for (const [, pool] of state.pools) {
      if (pool.project === handle.project) handle.link?.send({ pool: pool.name, to: termsOf(pool.spec) })
    }
    const has = new Set(guests.map(({ id }) => id))
    for (const one of guests) {
      const guest = state.guests.get(one.id)
      const isOurs = guest !== undefined && speaksFor(handle, guest)
      if (isOurs && wasWoken(guest.row, one)) state.setRow(guest, { ...guest.row, phase: 'starting', run: one.run })
      const isKnown = isOurs && guest.row.run === one.run
      if (isKnown && ACTIVE.includes(guest.row.phase)) this.#adopt(guest, handle, one)
      // It stopped there: its next run, should it be on its way already, waits for that.
      else if (isOurs && one.held === true && one.run <= guest.row.run) {
        this.#parts.captures.letGo(guest, handle, one.run)
      }
      else handle.link?.send({ stop: one.id, run: one.run, signal: signals.SIGKILL })
    }
    for (const end of ends) this.ended(end, handle)
    // A launch may put its guest back there.
    const joined = [...handle.guests]
    for (const id of joined) {
      const guest = state.guests.get(id)
      if (has.has(id) || guest === undefined || guest.handle !== handle) continue
      processes.leave(handle, id, guest.volumes)
      guest.handle = undefined
      // It never got the launch, or not the stop after it.
      if (guest.row.phase === 'starting') void this.launch(guest)
      else if (ACTIVE.includes(guest.row.phase)) this.ended(endOf(guest, STOPPED))
    }
  }

  // A guest that a process has, and should have.
  #adopt(guest: Guest, handle: ProcessHandle, { startedAt, ageMs, healthy, uncapturable, held, paused }: GuestState):
  void {
    const { state, processes } = this.#parts
    if (guest.handle !== handle) {
      guest.volumes = volumesOf(guest.row)
      processes.join(handle, guest.row.id, guest.volumes)
      guest.handle = handle
    }
    if (startedAt !== undefined) {
      guest.uncapturable = uncapturable ?? null
      const from = this.#isRunning(guest, startedAt, ageMs)
      if (from !== null) this.#commitSoon(guest, undefined, () => this.#drop(guest, from))
    }
    if (healthy !== undefined) state.setRow(guest, { ...guest.row, healthy })
    // They may have been changed while nobody could tell it.
    this.tellTerms(guest)
    const { id, run, phase } = guest.row
    // Whoever had it captured is no more.
    if (held === true && !guest.isHeld) handle.link?.send({ go: id, run })
    if ((paused ?? false) !== (phase === 'paused')) handle.link?.send({ pause: id, run, paused: phase === 'paused' })
    if (phase === 'stopping') handle.link?.send({ stop: id, run, signal: signals.SIGTERM })
  }

  /** Once all processes that are left of an earlier host have said hello: what is in none of them. */
  settle(): void {
    for (const guest of this.#parts.state.guests.values()) {
      const { phase, project, from } = guest.row
      if (guest.handle !== undefined) continue
      if (phase === 'starting' && from !== null && 'fork' in from) this.#neverForked(guest)
      else if (phase === 'starting') void this.launch(guest)
      else if (phase === 'running' || phase === 'paused') {
        this.ended(endOf(guest, lostBy(project, 'it was gone when the host came back')))
      }
      else if (phase === 'stopping') this.ended(endOf(guest, STOPPED))
      else if (phase === 'backing-off') this.#retryIn(guest, PAUSE_AFTER_RESTART_MS)
    }
  }

  // Nobody was told of it: who asked for the fork had no answer.
  #neverForked(guest: Guest): void {
    const { state } = this.#parts
    state.removeGuest(guest)
    this.#event((tx) => {
      tx.deleteGuest(guest.row.id)
      tx.event('guest.removed', eventOf(guest, { why: 'its fork was cut short' }))
    })
  }

  started({ started: id, run, startedAt, uncapturable }: Extract<FromProcess, { started: string }>,
    handle: ProcessHandle): void {
    const guest = this.#running(id, run, handle)
    if (guest === undefined || guest.row.phase === 'running' || guest.row.phase === 'paused') return
    guest.uncapturable = uncapturable ?? null
    const from = this.#isRunning(guest, startedAt)
    this.#commitSoon(guest, (tx) => tx.event('guest.started', eventOf(guest, { run, process: handle.id,
      ...(from !== null && 'snapshot' in from ? { from: from.snapshot, event: from.event } : {}) })),
      () => this.#drop(guest, from))
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
    const { state, captures } = this.#parts
    captures.lost(handle, why)
    const guests = [...handle.guests].map((id) => state.guests.get(id)).filter((guest) => guest?.handle === handle)
    if (guests.length > 0 || !handle.isDraining) {
      this.#event((tx) => tx.event('process.lost', { project: handle.project,
        data: { process: handle.id, why, guests: guests.length } }))
    }
    for (const guest of guests) {
      if (ACTIVE.includes(guest!.row.phase)) this.ended(endOf(guest!, lostBy(handle.project, why)))
    }
  }

  /** A guest has ended. `handle`: the process that waits for the acknowledgement. */
  ended(end: GuestEnd, handle?: ProcessHandle): void {
    const { state, processes } = this.#parts
    const guest = state.guests.get(end.id)
    const acknowledge = (): void => handle?.link?.send({ ack: end.id, run: end.run })
    if (guest === undefined || guest.row.run !== end.run || !ACTIVE.includes(guest.row.phase)) return acknowledge()
    if (handle !== undefined && !speaksFor(handle, guest)) return acknowledge()
    const { row } = guest
    const ranMs = guest.startedMs === undefined ? 0 : performance.now() - guest.startedMs
    // Who asked for it may be gone, or it ended by itself while it was asked to.
    const wanted = row.phase === 'stopping' || end.by === 'stop'
    const exit = exitOf(wanted && end.outcome.kind !== 'exit' ? { ...end, by: 'stop' } : end)
    // It never went on from where it was to: what was saved is kept, for another try.
    const unborn = !wanted && guest.startedMs === undefined && end.startedAt === undefined ? row.from : null
    const then = wanted && row.desired === 'running' ? { phase: 'starting' as const }
      : unborn !== null ? nextOfUnborn(end, unborn, row.spec.restart, guest.failures)
        : next({ ...end, ...(wanted ? { by: 'stop' as const } : {}) }, row.spec.restart, guest.failures, ranMs)
    guest.failures = wanted ? 0 : failuresAfter(guest.failures, ranMs)
    if (guest.handle !== undefined) processes.leave(guest.handle, row.id, guest.volumes)
    guest.handle = undefined
    guest.startedMs = undefined
    // Who connects to one that is still on disk waits for the next try.
    const isAsleep = then.phase === 'hibernated'
    if (!isAsleep) guest.listening = void guest.listening?.close()
    this.#parts.captures.over(guest)
    const again = then.phase === 'starting' || then.phase === 'backing-off' || isAsleep
    const run = row.run + (then.phase === 'starting' ? 1 : 0)
    const from = unborn !== null && 'snapshot' in unborn ? unborn : again ? state.beginning(row) : null
    state.setRow(guest, { ...row, from, phase: then.phase, healthy: null, process: null,
      ports: isAsleep ? row.ports : [], endedAt: end.endedAt, desired: again ? 'running' : 'stopped', run,
      exit: { ...exit, outcome: end.outcome, usage: end.usage } })
    guest.changed()
    const data = { ...exit, run: end.run, next: then.phase }
    this.#commitSoon(guest, (tx) => tx.event('guest.ended', eventOf(guest, data)),
      () => {
        acknowledge()
        this.#drop(guest, row.from)
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

  /** Throws NOT_FOUND or IN_USE for a guest that is removed, or moves to another host. */
  checkStays(guest: Guest): void {
    const { name } = guest.row
    if (this.#isGone(guest)) throw new CellarError('NOT_FOUND', ['guest', name])
    if (guest.removal !== undefined) throw new CellarError('IN_USE', ['guest', name, 'its removal'])
    this.#checkMoves(guest)
  }

  #checkMoves({ row }: Guest): void {
    if (row.move !== null) throw new CellarError('MOVE_UNDERWAY', [row.name, row.move.peer])
  }

  // What it went on from: nobody needs that any more, once it is committed that it runs.
  #isRunning(guest: Guest, startedAt: number, ageMs = 0): Beginning | null {
    const { state } = this.#parts
    const { from } = guest.row
    const phase = guest.row.phase === 'starting' ? 'running' : guest.row.phase
    state.setRow(guest, { ...guest.row, phase, from: null, startedAt, process: guest.handle?.id ?? null })
    guest.startedMs = performance.now() - ageMs
    guest.changed()
    return from
  }

  // What the guest no longer goes on from. Committed: it has another row by now.
  #drop(guest: Guest, from: Beginning | null): void {
    if (from !== null && 'snapshot' in from) this.#parts.files.release(guest.row.project, from.snapshot)
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

  /** For who waits for the answer: what could not be committed isn't so. `note`: what is committed with it. */
  async change(guest: Guest, changes: Partial<GuestRow>, note?: (tx: Transaction) => void): Promise<void> {
    const { state, store } = this.#parts
    const before = guest.row
    state.setRow(guest, { ...before, ...changes })
    const mine = guest.row
    try {
      await store.commit((tx) => {
        if (!this.#isGone(guest)) tx.putGuest(guest.row)
        note?.(tx)
      })
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

const STOPPED_ASLEEP = { status: 128 + signals.SIGTERM, reason: 'stopped while it was hibernated' }
const STOPPED: Ending = { outcome: { kind: 'signal', signal: signals.SIGTERM }, by: 'stop' }
/** After a restart of the host: all at once would be too much, and their pauses are forgotten. */
const PAUSE_AFTER_RESTART_MS = 1000
