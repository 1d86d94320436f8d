// host/cells.ts: the guests of a cell process: what becomes of them from `start` to the acknowledgement of their end.
//
//   start → (module, sockets, quotas) → on the stack → created: `started` → ended: `ended`, kept until `ack`
//
// A guest is known by its id; `run` tells its starts apart. The same start twice is one start, as a host that has come
// back may say it again. Starts are in the order of the messages but for those that wait for something: a large module,
// what is in a volume. Who waits can be stopped. Nothing here looks at all guests, but figures and hello. Elsewhere:
// the thread that does the running (cell/stack.ts), output and input (consoles.ts), the process around it
// (cell_process.ts), captures and forks (cells_captures.ts).

import { isDeepStrictEqual } from 'node:util'
import { ECONNREFUSED } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import type { Figures } from '../cell/pcpu_worker.ts'
import { whyNot } from '../cell/captures.ts'
import type { CellState } from '../cell/state.ts'
import type { Ended, Stack } from '../cell/stack.ts'
import type { Place, Switchboard } from '../cell/switchboard.ts'
import type { Terms } from '../sched/node.ts'
import { closeFd, type FdReceiver } from '../sys/sockets.ts'
import { Captures } from './cells_captures.ts'
import { closeAll, memberOf, newGuest, termsOf, type Guest } from './cells_guest.ts'
import { Quotas, type OpenedQuotas } from './cells_quotas.ts'
import type { Snapshots } from './cells_snapshots.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import type { HealthChecks } from './health.ts'
import type { HostLine } from './host_line.ts'
import type { Held, Modules } from './modules.ts'
import type { GuestEnd, GuestFigures, GuestLaunch, GuestState } from './protocol.ts'

/** What the guests of a process share. */
export type CellParts = {
  readonly project: string
  readonly stack: Stack; readonly modules: Modules; readonly consoles: Consoles; readonly line: HostLine
  readonly receiver: FdReceiver; readonly switchboard: Switchboard; readonly health: HealthChecks
  readonly snapshots: Snapshots
  /** A guest, by its number on the stack, isn't there any more. */
  left(number: number): void
  /** The last guest has ended, or the last end was acknowledged. */
  idle(): void
}

/** In figures: cells that have ended. */
const NOBODY = ''
/** Names of others in one guest's figures. */
const WAITED_FOR_MAX = 8
/** The exit status of a cell whose time was up. */
const TIMED_OUT = 124

/** The guests of a process. */
export class Cells {
  /** What the host does with those that run. */
  readonly captures: Captures
  readonly #parts: CellParts
  readonly #guests = new Map<string, Guest>()
  readonly #byNumber = new Map<number, Guest>()
  readonly #ends = new Map<string, GuestEnd>()
  readonly #quotas = new Quotas()
  isDraining = false

  constructor(parts: CellParts) {
    this.#parts = parts
    this.captures = new Captures({ ...parts, find: (id, run) => this.#find(id, run),
      start: (launch, saved) => this.start(launch, saved) })
  }

  /** How many run or are about to. */
  get size(): number { return this.#guests.size }
  /** How many ends nobody has acknowledged. */
  get ends(): readonly GuestEnd[] { return [...this.#ends.values()] }

  states(): GuestState[] {
    const now = performance.now()
    return [...this.#guests.values()].map((guest) => {
      const { launch: { id, run }, startedAt, startedMs, isHeld, isPaused } = guest
      return { id, run, ...(startedAt === undefined ? {} : { startedAt, ageMs: now - startedMs, ...captureOf(guest) }),
        ...healthOf(this.#parts.health.of(id)), ...(isHeld ? { held: true } : {}),
        ...(isPaused ? { paused: true } : {}) }
    })
  }

  /**
   * Starts a guest, unless it was: what becomes of it is told to the host. `saved`: of a fork's child, what it goes on
   * from, should its parent be captured.
   */
  start(launch: GuestLaunch, saved?: Promise<CellState>): void {
    const { id, run } = launch
    const known = this.#guests.get(id)
    const end = this.#ends.get(keyOf(id, run))
    // What was sent for it is its own to close, whatever becomes of it.
    const sockets = launch.ports.map(({ port, tickets }) =>
      ({ port, fds: tickets.map((ticket) => this.#parts.receiver.take(ticket)) }))
    if (known !== undefined || end !== undefined || this.isDraining) closeAll(sockets)
    if (known?.launch.run === run) return this.#tellStarted(known)
    if (end !== undefined) return this.#parts.line.send({ ended: end })
    if (known !== undefined || this.isDraining) {
      const error = known === undefined ? new CellarError('HOST_DRAINING', []) : new CellarError('EXISTS', ['cell', id])
      return this.#ended({ id, run, outcome: failed(error), endedAt: Date.now() })
    }
    const console = this.#parts.consoles.add(id, launch.stdin, launch.stream)
    const guest = newGuest(launch, console, sockets)
    this.#guests.set(id, guest)
    this.#begin(guest, saved)
  }

  /** Ends a run of a guest by a signal. */
  stop(id: string, run: number, signal: number, by: GuestEnd['by'] = 'stop'): void {
    const guest = this.#find(id, run)
    if (guest === undefined) return
    const { stack } = this.#parts
    if (guest.isReleased) return
    guest.by = by
    guest.signal = signal
    // Nothing of one that is held can end by itself.
    if (guest.isHeld) return void stack.giveUp(guest.number!)
    if (guest.number !== undefined) return stack.stop(guest.number, { kind: 'signal', signal })
    // It waits for what its start needs: nothing of it is there yet.
    closeAll(guest.sockets)
    this.#leave(guest, 128 + signal, { outcome: { kind: 'signal', signal }, by })
  }

  /** Keeps a guest from running, or lets it again. The host is told, whether or not that is news. */
  pause(id: string, run: number, isPaused: boolean): void {
    const guest = this.#find(id, run)
    if (guest === undefined) return
    const { stack, line, health } = this.#parts
    guest.isPaused = isPaused
    health.rest(id, isPaused || guest.isHeld)
    // One that isn't there yet will be paused before it runs.
    const done = guest.number === undefined ? Promise.resolve(true)
      : isPaused ? stack.pause(guest.number) : stack.resume(guest.number)
    void done.then((isThere) => { if (isThere) line.send({ paused: id, run, is: isPaused }) })
  }

  /** A guest, by its number on the stack, is on another pCPU from now on. */
  moved(number: number, pcpu: number): void {
    const launch = this.#byNumber.get(number)?.launch
    if (launch !== undefined) this.#parts.switchboard.add(launch.id, placeOf(launch, pcpu))
  }

  ack(id: string, run: number): void {
    if (this.#ends.delete(keyOf(id, run)) && this.#ends.size === 0 && this.#guests.size === 0) this.#parts.idle()
  }

  /** Gives a guest other terms. What its pCPU can't promise is said, and nothing is changed. */
  setTerms(id: string, to: Terms): void {
    const guest = this.#guests.get(id)
    const terms = termsOf(to)
    // A host that has come back says what it has said before.
    if (guest === undefined || isDeepStrictEqual(guest.terms, terms)) return
    try {
      if (guest.number !== undefined) this.#parts.stack.setTerms(new Map([[guest.number, terms]]))
      guest.terms = terms
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      this.#parts.line.send({ say: error.message, id })
    }
  }

  setPool(pool: string, to: Terms): void {
    this.#parts.stack.setPool(pool, termsOf(to))
  }

  /** The console of a guest that runs. */
  consoleOf(id: string): GuestConsole | undefined {
    return this.#guests.get(id)?.console
  }

  /** A connection from a guest of another process: 0, or an errno. */
  incoming(id: string, port: number, ticket: number): number {
    const fd = this.#parts.receiver.take(ticket)
    if (fd === undefined) return ECONNREFUSED
    const errno = this.#parts.switchboard.incoming(id, port, fd)
    if (errno !== 0) closeFd(fd)
    return errno
  }

  /** Nobody is there for the guest of `exec` any more. */
  abandon({ guest }: GuestConsole): void {
    const run = this.#guests.get(guest)?.launch.run
    if (run !== undefined) this.stop(guest, run, signals.SIGHUP)
  }

  /** The guest with this number on the stack. */
  withNumber(number: number): GuestLaunch | undefined {
    return this.#byNumber.get(number)?.launch
  }

  /** The answer to a guest's health checks has changed. */
  healthChanged(id: string, healthy: boolean, why: string): void {
    const guest = this.#guests.get(id)
    if (guest === undefined) return
    const { run } = guest.launch
    this.#parts.line.send({ health: id, run, healthy, why })
    if (!healthy) this.stop(id, run, signals.SIGKILL, 'unhealthy')
  }

  async figures(): Promise<Record<string, GuestFigures>> {
    const all: Record<string, GuestFigures> = Object.create(null) as Record<string, GuestFigures>
    for (const [number, { id: _, ...figures }] of await this.#parts.stack.figures()) {
      const guest = this.#byNumber.get(number)
      if (guest === undefined) continue
      all[guest.launch.id] = { ...figures, waitedFor: this.#named(figures.waitedFor),
        hypercalls: guest.counts.reduce((sum, count) => sum + count, 0) }
    }
    return all
  }

  #find(id: string, run: number): Guest | undefined {
    const guest = this.#guests.get(id)
    return guest?.launch.run === run ? guest : undefined
  }

  #named(waitedFor: Figures['waitedFor']): [string, number][] {
    return waitedFor.slice(0, WAITED_FOR_MAX).map(([number, ns]) =>
      [this.#byNumber.get(number)?.launch.id ?? NOBODY, ns])
  }

  // ---- the way to the stack

  // At once where nothing must be waited for.
  #begin(guest: Guest, captured: Promise<CellState> | undefined): void {
    const { launch, sockets } = guest
    const { stack, modules, project } = this.#parts
    try {
      if (sockets.some(({ fds }) => fds.includes(undefined))) {
        throw new CellarError('PROCESS_LOST', [project, 'a socket has not arrived'])
      }
      if (launch.pool !== undefined && !stack.hasPool(launch.pool)) {
        throw new CellarError('REFERENCE_UNKNOWN', [launch.name, 'pool', launch.pool])
      }
      const held = modules.hold(launch)
      if (!(held instanceof Promise)) guest.held = held
      guest.hasQuotas = true
      const quotas = this.#quotas.open(launch.volumes)
      const saved = captured ?? (launch.from === undefined ? undefined : this.#saved(launch, launch.from.snapshot))
      if (quotas === undefined && saved === undefined && guest.held !== undefined) this.#place(guest, new Map())
      else void this.#wait(guest, held, quotas, saved)
    } catch (error) {
      this.#cannotStart(guest, error)
    }
  }

  async #wait(guest: Guest, held: Held | Promise<Held>, quotas: Promise<OpenedQuotas> | undefined,
    saved: Promise<CellState> | undefined): Promise<void> {
    const [module, opened, state] = await Promise.allSettled([held, quotas, saved])
    const isGone = this.#guests.get(guest.launch.id) !== guest
    if (module.status === 'fulfilled' && guest.held === undefined) {
      if (isGone) this.#parts.modules.release(module.value)
      else guest.held = module.value
    }
    if (isGone) return
    try {
      for (const one of [module, opened, state]) if (one.status === 'rejected') throw one.reason
      this.#place(guest, (opened as PromiseFulfilledResult<OpenedQuotas | undefined>).value ?? new Map(),
        (state as PromiseFulfilledResult<CellState | undefined>).value)
    } catch (error) {
      this.#cannotStart(guest, error)
    }
  }

  async #saved(launch: GuestLaunch, snapshot: string): Promise<CellState> {
    return (await this.#parts.snapshots.read(launch, snapshot)).state
  }

  #place(guest: Guest, quotas: OpenedQuotas, from?: CellState): void {
    const { launch } = guest
    const { stack, switchboard, consoles } = this.#parts
    const member = memberOf(guest, quotas, from)
    const pcpu = stack.admit(member)
    switchboard.add(launch.id, placeOf(launch, pcpu))
    const { id: number, ended } = stack.start(member, pcpu, () => this.#created(guest))
    guest.number = number
    this.#byNumber.set(number, guest)
    consoles.connect(guest.console, number)
    if (guest.isPaused) void stack.pause(number)
    ended.then((end) => this.#over(guest, end), (error: unknown) => this.#failed(guest, error))
  }

  #created(guest: Guest): void {
    guest.startedAt = Date.now()
    guest.startedMs = performance.now()
    this.#tellStarted(guest)
    const { id, health } = guest.launch
    if (health === undefined) return
    this.#parts.health.add(id, health)
    this.#parts.health.rest(id, guest.isPaused)
  }

  #tellStarted(guest: Guest): void {
    const { launch: { id, run }, startedAt } = guest
    if (startedAt !== undefined) this.#parts.line.send({ started: id, run, startedAt, ...captureOf(guest) })
  }

  // ---- the end

  #over(guest: Guest, { outcome, usage, figures }: Ended): void {
    const { launch: { id, run, timeoutNs }, signal } = guest
    if (outcome.kind === 'moved') {
      // Stopped while it was held; or given up, which is no end.
      if (!guest.isReleased && signal !== undefined) {
        return this.#leave(guest, 128 + signal, { outcome: { kind: 'signal', signal }, usage, by: guest.by })
      }
      this.#forget(guest, GONE)
      this.#parts.line.send({ released: id, run })
      return this.#looked()
    }
    const isTimeout = timeoutNs !== undefined && outcome.kind === 'exit' && outcome.code === TIMED_OUT &&
      figures.ageNs >= timeoutNs
    const isStop = outcome.kind === 'signal' && outcome.signal === guest.signal
    this.#leave(guest, outcome.kind === 'exit' ? outcome.code & 0xff
      : 128 + (outcome.kind === 'signal' ? outcome.signal : signals.SIGABRT),
      { outcome, usage, by: isTimeout ? 'timeout' : isStop ? guest.by : undefined })
  }

  #cannotStart(guest: Guest, error: unknown): void {
    closeAll(guest.sockets)
    this.#failed(guest, error)
  }

  // What isn't ours to explain is a bug, and the process's end.
  #failed(guest: Guest, error: unknown): void {
    if (!(error instanceof CellarError)) {
      if (!(error instanceof Error && 'syscall' in error)) throw error
      error = new CellarError('PROCESS_LOST', [this.#parts.project, error.message])
    }
    const { code } = error as CellarError
    const values = this.#parts.modules.valuesFor(error as CellarError, guest.launch.name)
    this.#leave(guest, CANNOT_START, { outcome: { kind: 'failed', code, values } })
  }

  #leave(guest: Guest, status: number, end: Pick<GuestEnd, 'outcome' | 'usage' | 'by'>): void {
    const { launch: { id, run }, startedAt } = guest
    this.#forget(guest, status)
    this.#ended({ id, run, ...end, startedAt, endedAt: Date.now() })
  }

  // Nothing of it is here any more.
  #forget(guest: Guest, status: number): void {
    const { id, volumes } = guest.launch
    const { consoles, modules, switchboard, health, snapshots } = this.#parts
    this.#guests.delete(id)
    if (guest.number !== undefined) {
      this.#byNumber.delete(guest.number)
      this.#parts.left(guest.number)
    }
    switchboard.remove(id)
    health.remove(id)
    snapshots.forget(guest)
    if (guest.held !== undefined) modules.release(guest.held)
    if (guest.hasQuotas) this.#quotas.release(volumes)
    consoles.end(guest.console, status)
  }

  #ended(end: GuestEnd): void {
    this.#ends.set(keyOf(end.id, end.run), end)
    this.#parts.line.send({ ended: end })
    this.#looked()
  }

  #looked(): void {
    if (this.#guests.size === 0) this.#parts.idle()
  }
}

/** The exit status of one that couldn't be started, as of the command line. */
const CANNOT_START = 125
/** That of one of exec that was given up: it isn't known, and will not be here. */
const GONE = 255

function healthOf(healthy: boolean | undefined): { healthy?: boolean } {
  return healthy === undefined ? {} : { healthy }
}

/** What `exec` runs beside a guest has its name, and isn't reached by it. */
function placeOf({ name, networks, stream }: GuestLaunch, pcpu: number): Place {
  return { name: stream === undefined ? name : '', networks, pcpu }
}

/** Why it can't be captured, for what is told of it. */
function captureOf({ held, launch: { calls } }: Guest): { uncapturable?: string } {
  const why = held === undefined ? undefined : whyNot({ executable: held.executable, calls })
  return why === undefined ? {} : { uncapturable: why }
}

function failed({ code, values }: CellarError): GuestEnd['outcome'] {
  return { kind: 'failed', code, values }
}

function keyOf(id: string, run: number): string {
  return `${run} ${id}`
}
