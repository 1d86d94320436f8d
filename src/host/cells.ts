// host/cells.ts: the guests of a cell process: what becomes of them from `start` to the acknowledgement of their end.
//
//   start → (module, sockets, quotas) → on the stack → created: `started` → ended: `ended`, kept until `ack`
//
// A guest is known by its id; `run` tells its starts apart. The same start twice is one start, as a host that has come
// back may say it again. Nothing here looks at all guests, but figures and hello. Elsewhere: the thread that does the
// running (cell/stack.ts), output and input (consoles.ts), the process around it (cell_process.ts).

import { isDeepStrictEqual } from 'node:util'
import { ECONNREFUSED } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import type { Figures } from '../cell/pcpu_worker.ts'
import { HYPERCALL_NAMES } from '../cell/hypercalls.ts'
import type { Ended, Member, Stack } from '../cell/stack.ts'
import type { Switchboard } from '../cell/switchboard.ts'
import type { Terms } from '../sched/node.ts'
import { openQuota } from '../services/file/open_quota.ts'
import { closeFd, type FdReceiver } from '../sys/sockets.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import type { HealthChecks } from './health.ts'
import type { HostLine } from './host_line.ts'
import type { Held, Modules } from './modules.ts'
import type { GuestEnd, GuestFigures, GuestLaunch, GuestState, MountedVolume } from './protocol.ts'

/** What the guests of a process share. */
export type CellParts = {
  readonly project: string
  readonly stack: Stack; readonly modules: Modules; readonly consoles: Consoles; readonly line: HostLine
  readonly receiver: FdReceiver; readonly switchboard: Switchboard; readonly health: HealthChecks
  /** The last guest has ended, or the last end was acknowledged. */
  idle(): void
}

type Guest = {
  readonly launch: GuestLaunch; readonly console: GuestConsole
  /** Its listening sockets, until they are on the stack; undefined: one that has not arrived. */
  readonly sockets: readonly { readonly port: number; readonly fds: readonly (number | undefined)[] }[]
  /** As they are now. */
  terms: Terms
  held: Held | undefined
  /** On the stack, once it is there; a signal that came before. */
  number: number | undefined; signal: number | undefined
  counts: Uint32Array
  startedAt: number | undefined
  /** As startedAt, by the monotonic clock. */
  startedMs: number
  by: GuestEnd['by']
}

/** In figures: cells that have ended. */
const NOBODY = ''
/** Names of others in one guest's figures. */
const WAITED_FOR_MAX = 8
/** The exit status of a cell whose time was up. */
const TIMED_OUT = 124

/** The guests of a process. */
export class Cells {
  readonly #parts: CellParts
  readonly #guests = new Map<string, Guest>()
  readonly #byNumber = new Map<number, Guest>()
  readonly #ends = new Map<string, GuestEnd>()
  /** One quota for each volume, while a guest has it; and how many have. */
  readonly #quotas = new Map<string, { readonly shared: Promise<SharedArrayBuffer>; users: number }>()
  isDraining = false

  constructor(parts: CellParts) {
    this.#parts = parts
  }

  /** How many run or are about to. */
  get size(): number { return this.#guests.size }
  /** How many ends nobody has acknowledged. */
  get ends(): readonly GuestEnd[] { return [...this.#ends.values()] }

  states(): GuestState[] {
    const now = performance.now()
    return [...this.#guests.values()].map(({ launch: { id, run }, startedAt, startedMs }) => ({ id, run,
      ...(startedAt === undefined ? {} : { startedAt, ageMs: now - startedMs }),
      ...healthOf(this.#parts.health.of(id)) }))
  }

  /** Starts a guest, unless it was: what becomes of it is told to the host. */
  start(launch: GuestLaunch): void {
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
    const guest: Guest = { launch, console, sockets, terms: termsOf(launch.terms), held: undefined, number: undefined,
      signal: undefined, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)),
      startedAt: undefined, startedMs: 0, by: undefined }
    this.#guests.set(id, guest)
    const sized = launch.volumes.filter(({ sizeBytes }) => sizeBytes !== undefined)
    // At once where nothing must be waited for, so that starts are in the order of the messages.
    if (sized.length === 0) this.#place(guest, new Map())
    else {
      void this.#openQuotas(sized).then((quotas) => this.#place(guest, quotas), (error: unknown) => {
        closeAll(sockets)
        this.#failed(guest, error)
      })
    }
  }

  /** Ends a run of a guest by a signal. */
  stop(id: string, run: number, signal: number, by: GuestEnd['by'] = 'stop'): void {
    const guest = this.#guests.get(id)
    if (guest === undefined || guest.launch.run !== run) return
    guest.by = by
    guest.signal = signal
    if (guest.number !== undefined) this.#parts.stack.stop(guest.number, { kind: 'signal', signal })
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

  #named(waitedFor: Figures['waitedFor']): [string, number][] {
    return waitedFor.slice(0, WAITED_FOR_MAX).map(([number, ns]) =>
      [this.#byNumber.get(number)?.launch.id ?? NOBODY, ns])
  }

  // ---- the way to the stack

  #place(guest: Guest, quotas: ReadonlyMap<string, SharedArrayBuffer>): void {
    const { launch, sockets: ports } = guest
    const { stack, modules, switchboard, consoles } = this.#parts
    try {
      if (ports.some(({ fds }) => fds.includes(undefined))) {
        throw new CellarError('PROCESS_LOST', [this.#parts.project, 'a socket has not arrived'])
      }
      if (launch.pool !== undefined && !stack.hasPool(launch.pool)) {
        throw new CellarError('REFERENCE_UNKNOWN', [launch.name, 'pool', launch.pool])
      }
      guest.held = modules.hold(launch)
      const net = { guest: launch.id, ports: ports as { port: number; fds: number[] }[], connect: launch.connect }
      const member = memberOf(guest, guest.held, quotas, net)
      const pcpu = stack.admit(member)
      // What `exec` runs beside a guest has its name, and isn't reached by it.
      const name = launch.stream === undefined ? launch.name : ''
      switchboard.add(launch.id, { name, networks: launch.networks, pcpu })
      const { id: number, ended } = stack.start(member, pcpu, () => this.#created(guest))
      guest.number = number
      this.#byNumber.set(number, guest)
      consoles.connect(guest.console, number)
      if (guest.signal !== undefined) stack.stop(number, { kind: 'signal', signal: guest.signal })
      ended.then((end) => this.#over(guest, end), (error: unknown) => this.#failed(guest, error))
    } catch (error) {
      closeAll(ports)
      this.#failed(guest, error)
    }
  }

  async #openQuotas(volumes: readonly MountedVolume[]): Promise<Map<string, SharedArrayBuffer>> {
    const opened = volumes.map(({ path, sizeBytes }) => {
      const quota = this.#quotas.get(path) ?? { shared: openQuota(path, sizeBytes!), users: 0 }
      quota.users++
      this.#quotas.set(path, quota)
      return { path, quota }
    })
    const settled = await Promise.allSettled(opened.map(({ quota }) => quota.shared))
    const bad = settled.find(({ status }) => status === 'rejected')
    if (bad !== undefined) throw (bad as PromiseRejectedResult).reason
    return new Map(opened.map(({ path }, i) => [path, (settled[i] as PromiseFulfilledResult<SharedArrayBuffer>).value]))
  }

  #created(guest: Guest): void {
    guest.startedAt = Date.now()
    guest.startedMs = performance.now()
    this.#tellStarted(guest)
    const { id, health } = guest.launch
    if (health !== undefined) this.#parts.health.add(id, health)
  }

  #tellStarted({ launch: { id, run }, startedAt }: Guest): void {
    if (startedAt !== undefined) this.#parts.line.send({ started: id, run, startedAt })
  }

  // ---- the end

  #over(guest: Guest, { outcome, usage, figures }: Ended): void {
    const { timeoutNs } = guest.launch
    const isTimeout = timeoutNs !== undefined && outcome.kind === 'exit' && outcome.code === TIMED_OUT &&
      figures.ageNs >= timeoutNs
    const isStop = outcome.kind === 'signal' && outcome.signal === guest.signal
    this.#leave(guest, outcome.kind === 'exit' ? outcome.code & 0xff
      : 128 + (outcome.kind === 'signal' ? outcome.signal : signals.SIGABRT),
      { outcome, usage, by: isTimeout ? 'timeout' : isStop ? guest.by : undefined })
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
    const { launch: { id, run, volumes }, startedAt } = guest
    const { consoles, modules, switchboard, health } = this.#parts
    this.#guests.delete(id)
    if (guest.number !== undefined) this.#byNumber.delete(guest.number)
    switchboard.remove(id)
    health.remove(id)
    if (guest.held !== undefined) modules.release(guest.held)
    for (const { path, sizeBytes } of volumes) if (sizeBytes !== undefined) this.#releaseQuota(path)
    consoles.end(guest.console, status)
    this.#ended({ id, run, ...end, startedAt, endedAt: Date.now() })
  }

  #releaseQuota(path: string): void {
    const quota = this.#quotas.get(path)
    if (quota !== undefined && --quota.users === 0) this.#quotas.delete(path)
  }

  #ended(end: GuestEnd): void {
    this.#ends.set(keyOf(end.id, end.run), end)
    this.#parts.line.send({ ended: end })
    if (this.#guests.size === 0) this.#parts.idle()
  }
}

/** The exit status of one that couldn't be started, as of the command line. */
const CANNOT_START = 125

function closeAll(sockets: Guest['sockets']): void {
  for (const fd of sockets.flatMap(({ fds }) => fds)) if (fd !== undefined) closeFd(fd)
}

function memberOf({ launch, terms, counts }: Guest, { executable }: Held,
  quotas: ReadonlyMap<string, SharedArrayBuffer>, net: NonNullable<Member['net']>): Member {
  const { name, args, env, memoryPagesMax, volumes, calls, pool, timeoutNs, stdin } = launch
  return {
    name, executable, calls, trace: false, counts, terms, pool, timeoutNs, net,
    remote: { stdin },
    grants: { args, env, memoryPagesMax, volumes: volumes.map(({ path, guest, readOnly }) =>
      ({ host: path, guest, readOnly, quota: quotas.get(path) })) },
  }
}

/** JSON has no Infinity: no limit comes as null. */
function termsOf({ shares, reservation, limit }: Terms): Terms {
  return { shares, reservation, limit: (limit as number | null) ?? Infinity }
}

function healthOf(healthy: boolean | undefined): { healthy?: boolean } {
  return healthy === undefined ? {} : { healthy }
}

function failed({ code, values }: CellarError): GuestEnd['outcome'] {
  return { kind: 'failed', code, values }
}

function keyOf(id: string, run: number): string {
  return `${run} ${id}`
}
