// cell/stack.ts: several cells that share pCPUs: the threads, who runs on which, and what became of them.
//
// A pCPU is a worker thread, bound to a processor where the kernel lets it; one more thread keeps the time. A cell is
// placed when it starts and stays (its stack and instance can't leave their isolate), so fairness over all pCPUs is
// made by placement (sched/placement.ts), and a pool's terms are split over the pCPUs on which it has cells, anew each
// time the figures are read. Elsewhere: the thread of a pCPU (pcpu_worker.ts), the policy (sched).

import { availableParallelism } from 'node:os'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { newStreams } from '../services/console/labelled.ts'
import type { Terms } from '../sched/node.ts'
import {
  entitlements, place, RESERVABLE, refusal, splitPool, type Guest, type Pcpu, type Refusal, type Wish,
} from '../sched/placement.ts'
import type { End } from '../wasi/p1/context.ts'
import { announce, newBell } from './alarm.ts'
import type { Outcome, Usage } from './cell.ts'
import { newControl } from './pcpu.ts'
import type { Command, Figures, PcpuStart, Report, Start } from './pcpu_worker.ts'
import type { Timer } from './timer_worker.ts'

/** A stack of cells. */
export type StackOptions = {
  /** Default: as many as there are processors. */
  readonly pcpus?: number | undefined
  readonly quantumNs: number
  readonly pools?: ReadonlyMap<string, Terms>
}

/** A cell of a stack. */
export type Member = Start & { readonly name: string; terms: Terms }

/** How a cell of a stack ended. */
export type Ended = { readonly outcome: Outcome; readonly usage: Usage; readonly figures: Figures }

/** How long a pCPU has to tell figures: it does when its cell's quantum ends. */
const ANSWER_MS_MAX = 1000

type Thread = {
  readonly worker: Worker; readonly control: Int32Array
  /** Who waits for its figures, in the order of asking. */
  readonly askers: ((figures: readonly Figures[]) => void)[]
  isGone: boolean
}
type Resident = {
  readonly id: number; readonly pcpu: number; member: Member; last: Figures | undefined
  readonly resolve: (ended: Ended) => void; readonly reject: (error: unknown) => void
}

/** Cells that share pCPUs as their terms say. */
export class Stack {
  readonly #threads: Thread[] = []
  readonly #timer: Worker
  readonly #residents = new Map<number, Resident>()
  readonly #pools: Map<string, Terms>
  #nextId = 0

  constructor({ pcpus = availableParallelism(), quantumNs, pools = new Map() }: StackOptions) {
    const [bell, streams] = [newBell(), newStreams()]
    this.#pools = new Map(pools)
    const controls: SharedArrayBuffer[] = []
    for (let i = 0; i < pcpus; i++) {
      const control = newControl()
      const buffer = control.buffer as unknown as SharedArrayBuffer
      controls.push(buffer)
      // One on each processor, or none at all: two that are bound to one would leave another idle, be they of this
      // process or of another that has no more than one, either.
      const start: PcpuStart = { shared: { control, bell, streams, quantumNs },
        ...(pcpus === availableParallelism() ? { processor: i } : {}) }
      const worker = new Worker(new URL('./pcpu_worker.ts', import.meta.url), { env: SHARE_ENV, workerData: start })
      const thread: Thread = { worker, control: new Int32Array(buffer), askers: [], isGone: false }
      worker.on('message', (report: Report) => this.#reported(thread, report))
      worker.on('error', (error) => {
        thread.isGone = true
        for (const answer of thread.askers.splice(0)) answer([])
        this.#failAll(error)
      })
      this.#threads.push(thread)
      for (const [pool, terms] of splitPools(this.#pools, pcpus)) this.#post(i, { pool, terms })
    }
    const timer: Timer = { controls, bell }
    this.#timer = new Worker(new URL('./timer_worker.ts', import.meta.url), { workerData: timer })
    this.#timer.on('error', (error) => this.#failAll(error))
  }

  get pcpus(): number {
    return this.#threads.length
  }

  /** Which pCPU each of the cells would run on. Throws CellarError if a reservation can't be kept. */
  plan(members: readonly Member[]): number[] {
    const pcpus: Pcpu[] = this.#threads.map((_, id) => ({ id, guests: [...this.#residents.values()]
      .filter((one) => one.pcpu === id).map(({ id, member }) => guestOf(String(id), member, 0)) }))
    this.#checkPools(members)
    const due = entitlements(this.#threads.length, wishes(members, this.#pools))
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
    for (const [pool, { reservation }] of this.#pools) {
      if (reservation > 0 && reservation > free) {
        const left = percent(Math.max(0, free))
        throw new CellarError('RESERVATION_REFUSED', [pool, percent(reservation), left, left])
      }
      free -= reservation
    }
  }

  /** Starts a cell on a pCPU (of `plan`): its id, and how it ends. The promise is rejected with a CellarError. */
  start(member: Member, pcpu: number): { id: number; ended: Promise<Ended> } {
    const id = this.#nextId++
    const { promise, resolve, reject } = Promise.withResolvers<Ended>()
    this.#residents.set(id, { id, pcpu, member, last: undefined, resolve, reject })
    const { name: _, ...start } = member
    this.#post(pcpu, { start: id, ...start })
    return { id, ended: promise }
  }

  /** Gives cells, by id, other terms while they run. Throws CellarError, and changes nothing, as `plan` does. */
  setTerms(changes: ReadonlyMap<number, Terms>): void {
    const all = [...this.#residents.values()].map((one) =>
      ({ ...one, member: { ...one.member, terms: changes.get(one.id) ?? one.member.terms } }))
    for (const { id, pcpu, member } of all) {
      const guests = all.filter((one) => one.pcpu === pcpu && one.id !== id)
        .map((one) => guestOf(String(one.id), one.member, 0))
      const refused = refusal([{ id: pcpu, guests }], member.terms.reservation)
      if (refused !== undefined && changes.has(id)) throw refusalOf(member, refused)
    }
    for (const [id, terms] of changes) {
      const resident = this.#residents.get(id)
      if (resident === undefined) continue
      resident.member = { ...resident.member, terms }
      this.#post(resident.pcpu, { id, terms })
    }
  }

  /** Gives a pool other terms, split over the pCPUs at the next reading of figures. */
  setPool(pool: string, terms: Terms): void {
    this.#pools.set(pool, terms)
    for (const [name, part] of splitPools(new Map([[pool, terms]]), this.#threads.length)) {
      this.#threads.forEach((_, i) => this.#post(i, { pool: name, terms: part }))
    }
  }

  /** Ends a cell from outside. */
  stop(id: number, end: End): void {
    const resident = this.#residents.get(id)
    if (resident !== undefined) this.#post(resident.pcpu, { stop: id, end })
  }

  /**
   * What became of the time of the cells that run, by id; pools are split anew by what their cells want. Of a pCPU that
   * doesn't answer (a system call holds it up) there is what it has said last.
   */
  async figures(): Promise<Map<number, Figures & { readonly pcpu: number }>> {
    const found = new Map<number, Figures & { readonly pcpu: number }>()
    for (const { id, pcpu, last } of this.#residents.values()) if (last !== undefined) found.set(id, { ...last, pcpu })
    await Promise.all(this.#threads.map(async (thread, pcpu) => {
      for (const one of await this.#ask(thread, pcpu)) found.set(one.id, { ...one, pcpu })
    }))
    this.#resplit(found)
    return found
  }

  /** Ends all threads. Cells that still run are gone. */
  async close(): Promise<void> {
    await Promise.all([this.#timer, ...this.#threads.map(({ worker }) => worker)].map((worker) => worker.terminate()))
  }

  async #ask(thread: Thread, pcpu: number): Promise<readonly Figures[]> {
    if (thread.isGone) return []
    const { promise, resolve } = Promise.withResolvers<readonly Figures[]>()
    thread.askers.push(resolve)
    this.#post(pcpu, { report: true })
    const late = setTimeout(resolve, ANSWER_MS_MAX, [])
    const figures = await promise
    clearTimeout(late)
    return figures
  }

  #resplit(found: ReadonlyMap<number, Figures>): void {
    for (const [pool, terms] of this.#pools) {
      const parts = this.#threads.map((_, pcpu) => {
        const here = [...this.#residents.values()].filter((one) => one.pcpu === pcpu && one.member.pool === pool)
        const demand = here.reduce((sum, { id, last }) => sum + demandOf(last, found.get(id)), 0)
        return {
          shares: here.reduce((sum, { member }) => sum + member.terms.shares, 0), demand: Math.min(1, demand),
          reservation: here.reduce((sum, { member }) => sum + member.terms.reservation, 0),
        }
      })
      splitPool(terms, parts).forEach((part, pcpu) => this.#post(pcpu, { pool, terms: part }))
    }
    for (const [id, figures] of found) {
      const resident = this.#residents.get(id)
      if (resident !== undefined) resident.last = figures
    }
  }

  #post(pcpu: number, command: Command): void {
    const { worker, control } = this.#threads[pcpu]!
    worker.postMessage(command)
    announce(control)
  }

  #reported(thread: Thread, report: Report): void {
    if ('busyNs' in report) return thread.askers.shift()?.(report.figures)
    const resident = this.#residents.get(report.id)
    if (resident === undefined || 'created' in report) return
    this.#residents.delete(report.id)
    if ('failed' in report) resident.reject(new CellarError(report.failed.code, report.failed.values as never))
    else resident.resolve({ outcome: report.ended, usage: report.usage, figures: report.figures! })
  }

  #failAll(error: unknown): void {
    for (const { reject } of this.#residents.values()) reject(error)
    this.#residents.clear()
  }
}

/** '12.5 %' of a pCPU. */
function percent(pcpus: number): string {
  return `${Number((pcpus * 100).toFixed(1))} %`
}

/** What each of the cells is due, by its index, if all want all that they can get. */
export function wishes(
  members: readonly { readonly terms: Terms; readonly pool?: string | undefined; readonly demand?: number }[],
  pools: ReadonlyMap<string, Terms>,
): Wish[] {
  const all = members.map(({ terms, demand = 1 }, i): Wish => ({ id: String(i), terms, demand }))
  const free = all.filter((_, i) => members[i]!.pool === undefined)
  return [...free, ...[...pools].map(([name, terms]): Wish =>
    ({ id: `pool ${name}`, terms, children: all.filter((_, i) => members[i]!.pool === name) }))]
}

function refusalOf({ name }: Member, { wanted, largestFree, totalFree }: Refusal): CellarError {
  return new CellarError('RESERVATION_REFUSED', [name, percent(wanted), percent(largestFree), percent(totalFree)])
}

function guestOf(id: string, { terms }: Member, load: number): Guest {
  return { id, load, reservation: terms.reservation, movable: false }
}

/** Before anything is known of their cells each pCPU gets an equal part of a pool's terms. */
function splitPools(pools: ReadonlyMap<string, Terms>, count: number): [string, Terms][] {
  return [...pools].map(([name, terms]) => {
    const equal = Array.from({ length: count }, () => ({ shares: 1, demand: 1, reservation: 0 }))
    return [name, splitPool(terms, equal)[0]!] as const as [string, Terms]
  })
}

// pCPUs that a cell wanted between two readings.
function demandOf(before: Figures | undefined, now: Figures | undefined): number {
  if (now === undefined) return 1
  const wanted = (figures: Figures): number => figures.runningNs + figures.runnableNs + figures.throttledNs
  const age = now.ageNs - (before?.ageNs ?? 0)
  return age <= 0 ? 1 : (wanted(now) - (before === undefined ? 0 : wanted(before))) / age
}
