// cell/stack.ts: several cells that share pCPUs: the threads, who runs on which, and what became of them.
//
// A pCPU is a worker thread, bound to a processor where the kernel lets it; one more thread keeps the time. A cell is
// placed when it starts, and stays unless it is captured and moved (captures.ts). So fairness over all pCPUs is made by
// placement (sched/placement.ts) and, from time to time, by `rebalance`; a pool's terms are split over the pCPUs on
// which it has cells (pools.ts), anew each time the figures are read. A stack of ten thousand cells takes one more as
// fast as an empty one does: what placement needs of those that are there is kept as sums. Elsewhere: the thread of a
// pCPU (pcpu_worker.ts), one cell (resident.ts), the policy (sched).

import { availableParallelism } from 'node:os'
import { SHARE_ENV, Worker, type Transferable } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { newStreams } from '../services/console/labelled.ts'
import type { Terms } from '../sched/node.ts'
import { entitlements, place, RESERVABLE, refusal, type Guest, type Pcpu, type Refusal } from '../sched/placement.ts'
import type { End } from '../wasi/p1/context.ts'
import type { Asked } from '../services/lifecycle/lifecycle.ts'
import { announce, newBell } from './alarm.ts'
import { Balance } from './balance.ts'
import { Captures, type Child, type ContinuationSource, type ForkEvents } from './captures.ts'
import { Continuations } from './continuations.ts'
import type { Executable } from './executable.ts'
import { newControl } from './pcpu.ts'
import type { Command, Figures, PcpuStart, Report, Told } from './pcpu_worker.ts'
import type { NetCommand, NetReport } from './pcpu_net.ts'
import { Pools, type Telling } from './pools.ts'
import { Resident, sumOfFigures, type Ended, type Member } from './resident.ts'
import type { CellState } from './state.ts'
import type { Timer } from './timer_worker.ts'
import { wishes } from './wishes.ts'

export type { Ended, Member } from './resident.ts'

/** A stack of cells. */
export type StackOptions = {
  /** Default: as many as there are processors. */
  readonly pcpus?: number | undefined
  readonly quantumNs: number
  readonly pools?: ReadonlyMap<string, Terms>
  readonly on?: StackEvents
  /** Of the process, if others make them, too. */
  readonly continuations?: ContinuationSource
}

/** What the owner of a stack may want to hear, beside how its cells end. Cells by the ids that `start` gave. */
export type StackEvents = {
  /** A thread is gone: a bug of ours, or no memory was left. All cells are lost. Called once. */
  failed?(error: unknown): void
  /** Of cells with a remote console: a piece of output (`channel`: 1 stdout, 2 stderr), input that was read. */
  output?(id: number, channel: number, bytes: Uint8Array): void
  taken?(id: number, count: number): void
  /** What a pCPU says to the switchboard. Left out, cells have no networks. */
  net?(pcpu: number, report: NetReport): void
  /** A cell is about to go on on another pCPU, or stays on its own after all: who dials it is sent there. */
  moved?(id: number, pcpu: number): void
  /** A cell asks its host for something (services/lifecycle): `told` answers. */
  asks?(id: number, asked: Asked, serial: number): void
}

/** How long a pCPU has to tell figures: it does when its cell's quantum ends. */
const ANSWER_MS_MAX = 1000

type Thread = {
  readonly worker: Worker; readonly control: Int32Array
  /** Of the cells on it: how many, and the sums of their shares and reservations. */
  cells: number; shares: number; reservation: number
  /** Executables that it has, by the numbers that it knows them by. */
  readonly executables: Set<number>
  /** Who waits for its figures, in the order of asking. */
  readonly askers: ((told: Told) => void)[]
}

/** Cells that share pCPUs as their terms say. */
export class Stack {
  readonly #threads: Thread[] = []
  readonly #timer: Worker
  readonly #residents = new Map<number, Resident>()
  readonly #pools: Pools
  readonly #executables = new Map<Executable, number>()
  readonly #on: StackEvents
  readonly #continuations: ContinuationSource
  readonly #captures: Captures
  readonly #balance: Balance
  #reservedOutside = 0
  #nextId = 0
  #isOver = false

  constructor({ pcpus = availableParallelism(), quantumNs, pools = new Map(), on = {},
    continuations = new Continuations() }: StackOptions) {
    const [bell, streams] = [newBell(), newStreams()]
    this.#on = on
    this.#pools = new Pools(pcpus)
    this.#continuations = continuations
    this.#captures = new Captures({ continuations,
      resident: (id) => this.#residents.get(id), post: (pcpu, command) => this.#post(pcpu, command),
      launch: (id, member, pcpu, paused) => this.#launch(id, member, pcpu, paused),
      start: (member, pcpu, created) => this.start(member, pcpu, created), admit: (member) => this.admit(member),
      count: (pcpu, member, count) => this.#count(pcpu, member, count), moved: (id, pcpu) => on.moved?.(id, pcpu) })
    this.#balance = new Balance(this.#captures)
    const controls: SharedArrayBuffer[] = []
    for (let i = 0; i < pcpus; i++) {
      const control = newControl()
      const buffer = control.buffer as unknown as SharedArrayBuffer
      controls.push(buffer)
      // One on each processor, or none at all: two that are bound to one would leave another idle, be they of this
      // process or of another that has no more than one, either.
      const start: PcpuStart = { shared: { control, bell, streams, quantumNs },
        ...(pcpus === availableParallelism() ? { processor: i } : {}), net: on.net !== undefined }
      const worker = new Worker(new URL('./pcpu_worker.ts', import.meta.url), { env: SHARE_ENV, workerData: start })
      const thread: Thread = { worker, control: new Int32Array(buffer), askers: [], cells: 0, shares: 0, reservation: 0,
        executables: new Set() }
      worker.on('message', (report: Report) => this.#reported(thread, i, report))
      this.#watch(worker)
      this.#threads.push(thread)
    }
    for (const [pool, terms] of pools) this.setPool(pool, terms)
    const timer: Timer = { controls, bell }
    this.#timer = new Worker(new URL('./timer_worker.ts', import.meta.url), { workerData: timer })
    this.#watch(this.#timer)
  }

  get pcpus(): number {
    return this.#threads.length
  }

  /** Which pCPU each of the cells would run on. Throws CellarError if a reservation can't be kept. */
  plan(members: readonly Member[]): number[] {
    const pcpus: Pcpu[] = this.#threads.map((_, id) => ({ id, guests: [...this.#residents.values()]
      .filter((one) => one.pcpu === id).map(({ id, member }) => guestOf(String(id), member, 0)) }))
    this.#checkPools(members)
    const due = entitlements(this.#threads.length, wishes(members, this.#pools.terms))
    const planned = new Array<number>(members.length)
    const order = members.map((member, i) => ({ i, guest: guestOf(`new ${i}`, member, due.get(String(i)) ?? 0) }))
      .sort((a, b) => b.guest.reservation - a.guest.reservation || b.guest.load - a.guest.load || a.i - b.i)
    for (const { i, guest } of order) {
      const placed = place(pcpus, guest)
      if (!('pcpu' in placed)) throw refusalOf(members[i]!, placed)
      planned[i] = placed.pcpu;
      (pcpus[placed.pcpu]!.guests as Guest[]).push(guest)
    }
    return planned
  }

  // What pools and the cells outside of them are promised must be there, all pCPUs taken together.
  #checkPools(members: readonly Member[]): void {
    let free = RESERVABLE * this.#threads.length
    for (const { pool, terms } of members) if (pool === undefined) free -= terms.reservation
    for (const [pool, { reservation }] of this.#pools.terms) {
      if (reservation > 0 && reservation > free) {
        const left = percent(Math.max(0, free))
        throw new CellarError('RESERVATION_REFUSED', [pool, percent(reservation), left, left])
      }
      free -= reservation
    }
  }

  /**
   * The pCPU for one more cell: that with the fewest shares of those that can promise its reservation. For many that
   * start at once `plan` knows more. Throws CellarError if the reservation can't be kept.
   */
  admit(member: Member): number {
    const { terms, pool } = member
    if (terms.reservation > 0 && pool === undefined) this.#checkTotal(member)
    const placed = place(this.#threads.map((thread, id) => ({ id, guests: [sumOf(thread)] })), guestOf('', member, 0))
    if (!('pcpu' in placed)) throw refusalOf(member, placed)
    return placed.pcpu
  }

  // As #checkPools, for one cell outside of pools.
  #checkTotal(member: Member): void {
    const free = RESERVABLE * this.#threads.length - this.#reservedOutside
      - [...this.#pools.terms.values()].reduce((sum, { reservation }) => sum + reservation, 0)
    const wanted = member.terms.reservation
    if (wanted > free + EPSILON) {
      throw refusalOf(member, { wanted, largestFree: Math.max(0, free), totalFree: Math.max(0, free) })
    }
  }

  /**
   * Starts a cell on a pCPU (of `plan` or `admit`): its id, and how it ends. The promise is rejected with a
   * CellarError. `created`: called when the cell is there, before anything of the guest runs. Throws SNAPSHOT_FOREIGN
   * if what it is to go on from isn't its program's.
   */
  start(member: Member, pcpu: number, created?: () => void): { id: number; ended: Promise<Ended> } {
    const id = this.#nextId++
    const { promise, resolve, reject } = Promise.withResolvers<Ended>()
    this.#launch(id, member, pcpu, false)
    this.#residents.set(id, new Resident(id, pcpu, member, { created, resolve, reject }))
    this.#count(pcpu, member, 1)
    return { id, ended: promise }
  }

  #launch(id: number, member: Member, pcpu: number, paused: boolean): void {
    const { name: _, executable, from, ...start } = member
    this.#post(pcpu, { start: id, ...start, paused, executable: this.#numberOf(executable, pcpu),
      ...(from === undefined ? {} : { from: { ...from,
        continuation: from.continuation ?? this.#continuations.of(executable, from.state.frames) } }) })
  }

  // Posted once to each pCPU: beside many cells its copy takes as long as starting a tenth of one.
  #numberOf(executable: Executable, pcpu: number): number {
    let number = this.#executables.get(executable)
    if (number === undefined) this.#executables.set(executable, number = this.#nextId++)
    const { executables } = this.#threads[pcpu]!
    if (!executables.has(number)) {
      executables.add(number)
      this.#post(pcpu, { executable: number, is: executable })
    }
    return number
  }

  /** No more cells of this executable will be started, or it is posted anew. */
  forget(executable: Executable): void {
    const number = this.#executables.get(executable)
    if (number === undefined) return
    this.#executables.delete(executable)
    this.#threads.forEach(({ executables }, pcpu) => {
      if (executables.delete(number)) this.#post(pcpu, { executable: number, is: undefined })
    })
  }

  #count(pcpu: number, { terms, pool }: Member, count: 1 | -1): void {
    const thread = this.#threads[pcpu]!
    thread.cells += count
    thread.shares = thread.cells === 0 ? 0 : thread.shares + count * terms.shares
    // Sums of parts such as 0.1 are off by their last bits: with nobody there, there is nothing.
    thread.reservation = thread.cells === 0 ? 0 : Math.max(0, thread.reservation + count * terms.reservation)
    if (pool !== undefined) this.#pools.count(pool, pcpu, terms, count)
    else this.#reservedOutside = this.#residents.size === 0 ? 0 : this.#reservedOutside + count * terms.reservation
  }

  /** Gives cells, by id, other terms while they run. Throws CellarError, and changes nothing, as `plan` does. */
  setTerms(changes: ReadonlyMap<number, Terms>): void {
    const changed = [...changes].flatMap(([id, terms]) => {
      const resident = this.#residents.get(id)
      return resident === undefined ? [] : [{ resident, terms }]
    })
    const sums = this.#threads.map(({ reservation }) => reservation)
    for (const { resident: { pcpu, member }, terms } of changed) {
      sums[pcpu]! += terms.reservation - member.terms.reservation
    }
    for (const { resident: { pcpu, member }, terms } of changed) {
      const others = { id: '', load: 0, reservation: sums[pcpu]! - terms.reservation, movable: false }
      const refused = refusal([{ id: pcpu, guests: [others] }], terms.reservation)
      if (refused !== undefined) throw refusalOf(member, refused)
    }
    for (const { resident, terms } of changed) {
      this.#count(resident.pcpu, resident.member, -1)
      resident.member = { ...resident.member, terms }
      this.#count(resident.pcpu, resident.member, 1)
      this.#post(resident.pcpu, { id: resident.id, terms })
    }
  }

  /** Gives a pool other terms, or makes a new one. They are split over the pCPUs at the next reading of figures. */
  setPool(pool: string, terms: Terms): void {
    this.#tell(this.#pools.set(pool, terms))
  }

  /** True if there is such a pool. */
  hasPool(pool: string): boolean {
    return this.#pools.terms.has(pool)
  }

  /** True while pools must be split again and again, by what their cells want. */
  get mustSplit(): boolean {
    return this.#pools.isBounded
  }

  /** Splits the pools anew by what their cells want. False if that needn't be done often: no pool wants anything. */
  async split(): Promise<boolean> {
    if (this.#pools.isBounded) await Promise.all(this.#threads.map((thread, i) => this.#ask(thread, i, 'pools')))
    this.#tell(this.#pools.split())
    return this.#pools.isBounded && !this.#pools.isIdle
  }

  /** Ends a cell from outside, be it paused or captured. */
  stop(id: number, end: End): void {
    const resident = this.#residents.get(id)
    if (resident === undefined) return
    resident.end = end
    this.#post(resident.pcpu, { stop: id, end })
  }

  /** Keeps a cell from running until `resume`. Resolves when it is so: false if it has ended. */
  pause(id: number): Promise<boolean> { return this.#pause(id, true) }

  /** Lets a cell run again that was paused. False if it has ended. */
  resume(id: number): Promise<boolean> { return this.#pause(id, false) }

  #pause(id: number, is: boolean): Promise<boolean> {
    const resident = this.#residents.get(id)
    if (resident === undefined) return Promise.resolve(false)
    resident.isPaused = is
    return new Promise((resolve) => {
      resident.pausing.push({ is, resolve })
      this.#post(resident.pcpu, { pause: id, is })
    })
  }

  /**
   * Stops a cell and says what is left of it. It stays so, and is the caller's, until `goOn` or `giveUp`; others that
   * want to capture it wait until then. Rejects with CAPTURE_IMPOSSIBLE, or CAPTURE_ENDED.
   */
  capture(id: number, spare?: SharedArrayBuffer): Promise<CellState> { return this.#captures.capture(id, spare) }

  /** A cell that was captured goes on. Nothing happens to one that has ended meanwhile. */
  goOn(id: number): void { this.#captures.goOn(id) }

  /** A cell that was captured ends as { kind: 'moved' }: it goes on elsewhere. Resolves when it holds nothing here. */
  giveUp(id: number): Promise<void> { return this.#captures.giveUp(id) }

  /**
   * Copies a cell as it is now, and lets it go on: each member's cell begins there, on a pCPU by `admit`. Rejects as
   * `capture` and `admit` do, and has started none then.
   */
  fork(id: number, members: readonly Member[], events?: ForkEvents): Promise<Child[]> {
    return this.#captures.fork(id, members, events)
  }

  /**
   * Moves a cell to another pCPU, where it goes on. What doesn't move with it is closed (connections). Rejects as
   * `capture` does, or if it can't be there: then it goes on where it is.
   */
  async move(id: number, pcpu: number): Promise<void> { await this.#captures.move(id, pcpu) }

  /**
   * Looks at who wants how much of the pCPUs, and moves some cells if that is uneven: to be called every second or two.
   * Only those are moved that lose nothing by it. How many have been.
   */
  async rebalance(): Promise<number> {
    if (this.#threads.length < 2 || this.#isOver) return 0
    const told = await Promise.all(this.#threads.map((thread, i) => this.#ask(thread, i, 'loads')))
    return await this.#balance.even(told, this.#threads, (id) => this.#residents.get(id), this.#pools.terms)
  }

  /** Answers what a cell has asked. */
  told(id: number, serial: number, errno: number): void { this.#postTo(id, { told: id, serial, errno }) }

  /**
   * What became of the time of the cells that run, by id; pools are split anew by what their cells want. Of a pCPU that
   * doesn't answer (a system call holds it up) there is what it has said last.
   */
  async figures(): Promise<Map<number, Figures & { readonly pcpu: number }>> {
    const found = new Map<number, Figures & { readonly pcpu: number }>()
    await Promise.all(this.#threads.map(async (thread, pcpu) => {
      for (const one of (await this.#ask(thread, pcpu, 'all')).figures) {
        const resident = this.#residents.get(one.id)
        if (resident?.pcpu === pcpu) resident.last = one
        else if (resident === undefined) found.set(one.id, { ...one, pcpu })
      }
    }))
    for (const { id, pcpu, last, earlier } of this.#residents.values()) {
      if (last !== undefined) found.set(id, { ...sumOfFigures(last, earlier), pcpu })
      else if (earlier !== undefined) found.set(id, { ...earlier, pcpu })
    }
    this.#tell(this.#pools.split())
    return found
  }

  /** Of a remote console: the owner is done with pieces of output that cost `bytes`, OUTPUT_PIECE_BYTES included. */
  credit(id: number, channel: number, bytes: number): void {
    this.#residents.get(id)?.console?.credit(channel, bytes)
    this.#postTo(id, { credit: id, channel, bytes })
  }

  /** Gives a cell with a remote console input, which is handed over, or the end of it (null). */
  input(id: number, bytes: Uint8Array<ArrayBuffer> | null): void {
    this.#residents.get(id)?.console?.input(bytes)
    this.#postTo(id, { input: id, bytes }, bytes === null ? undefined : [bytes.buffer])
  }

  /** Nobody reads a remote console any more: who writes to it is ended by SIGPIPE. */
  hangUp(id: number): void {
    this.#residents.get(id)?.console?.hangUp()
    this.#postTo(id, { hangUp: id })
  }

  /** Ends all threads. Cells that still run are gone. */
  async close(): Promise<void> {
    this.#isOver = true
    await Promise.all([this.#timer, ...this.#threads.map(({ worker }) => worker)].map((worker) => worker.terminate()))
  }

  async #ask(thread: Thread, pcpu: number, report: 'all' | 'pools' | 'loads'): Promise<Told> {
    if (this.#isOver) return NOTHING
    const { promise, resolve } = Promise.withResolvers<Told>()
    thread.askers.push(resolve)
    this.#post(pcpu, { report })
    const late = setTimeout(resolve, ANSWER_MS_MAX, NOTHING)
    const told = await promise
    clearTimeout(late)
    return told
  }

  #tell(tellings: readonly Telling[]): void {
    for (const { pcpu, pool, terms } of tellings) this.#post(pcpu, { pool, terms })
  }

  #postTo(id: number, command: Command, transfer?: Transferable[]): void {
    const resident = this.#residents.get(id)
    if (resident !== undefined) this.#post(resident.pcpu, command, transfer)
  }

  /** Says something of networks to a pCPU. */
  postNet(pcpu: number, command: NetCommand, transfer?: Transferable[]): void {
    this.#post(pcpu, command, transfer)
  }

  #post(pcpu: number, command: Command, transfer?: Transferable[]): void {
    const { worker, control } = this.#threads[pcpu]!
    worker.postMessage(command, transfer)
    announce(control)
  }

  #reported(thread: Thread, pcpu: number, report: Report): void {
    if ('output' in report) {
      this.#residents.get(report.output)?.console?.output(report.channel, report.bytes.length)
      return this.#on.output?.(report.output, report.channel, report.bytes)
    }
    if ('taken' in report) {
      this.#residents.get(report.taken)?.console?.taken(report.count)
      return this.#on.taken?.(report.taken, report.count)
    }
    if ('net' in report) return this.#on.net?.(pcpu, report)
    if ('busyNs' in report) {
      this.#pools.see(pcpu, report.pools)
      return thread.askers.shift()?.(report)
    }
    if ('asks' in report) return this.#on.asks?.(report.asks, report.asked, report.serial)
    if ('paused' in report) return this.#residents.get(report.paused)?.isNowPaused(report.is)
    if ('captured' in report) return this.#residents.get(report.captured)?.isNowCaptured(report)
    const resident = this.#residents.get(report.id)
    if (resident === undefined) return
    if (resident.pcpu !== pcpu) return resident.hasArrived(pcpu, report)
    if ('created' in report) return resident.created?.()
    if ('left' in report && resident.leaving?.isMove === true) return resident.leaving.resolve()
    this.#residents.delete(report.id)
    this.#count(pcpu, resident.member, -1)
    if ('failed' in report) resident.reject(new CellarError(report.failed.code, report.failed.values as never))
    else resident.ended('left' in report ? report.left : report.ended, report.usage, report.figures!)
    resident.gone()
  }

  // A thread of ours ends by `close` alone.
  #watch(worker: Worker): void {
    worker.on('error', (error) => this.#fail(error))
    worker.on('exit', (code) => this.#fail(new Error(`a thread of the stack has ended with status ${code}`)))
  }

  #fail(error: unknown): void {
    if (this.#isOver) return
    this.#isOver = true
    for (const { askers } of this.#threads) for (const answer of askers.splice(0)) answer(NOTHING)
    for (const resident of this.#residents.values()) {
      resident.reject(error)
      resident.gone(error)
    }
    this.#residents.clear()
    this.#on.failed?.(error)
  }
}

/** '12.5 %' of a pCPU. */
function percent(pcpus: number): string {
  return `${Number((pcpus * 100).toFixed(1))} %`
}

function refusalOf({ name }: Member, { wanted, largestFree, totalFree }: Refusal): CellarError {
  return new CellarError('RESERVATION_REFUSED', [name, percent(wanted), percent(largestFree), percent(totalFree)])
}

/** All cells of a pCPU as if they were one guest. */
function sumOf({ shares, reservation }: Thread): Guest {
  return { id: '', load: shares, reservation, movable: false }
}

/** Sums of reservations such as 0.1 are off by their last bits. */
const EPSILON = 1e-9

/** Of a pCPU that doesn't answer. */
const NOTHING: Told = { figures: [], loads: [], busyNs: 0, pools: [] }

function guestOf(id: string, { terms }: Member, load: number): Guest {
  return { id, load, reservation: terms.reservation, movable: false }
}
