// cell/resident.ts: what a stack knows of one of its cells, and what it has said to it that another pCPU must be told
// again.
//
// A cell may be asked for by several at once (a snapshot, a fork, a move to another pCPU), each of whom stops it: they
// take turns, and one that has ended refuses those that still wait.

import { CellarError } from '../base/errors.ts'
import { OUTPUT_PIECE_BYTES } from '../base/limits.ts'
import type { End } from '../wasi/p1/context.ts'
import type { Moved, Outcome, Usage } from './cell.ts'
import type { Command, Figures, Report, Start } from './pcpu_worker.ts'
import type { CellState } from './state.ts'
import type { Terms } from '../sched/node.ts'

/** A cell of a stack. `from`: it goes on from there in place of beginning. */
export type Member = Omit<Start, 'from' | 'paused'> & {
  readonly name: string; terms: Terms
  readonly from?: {
    readonly state: CellState; readonly continuation?: WebAssembly.Module; readonly stoppedAtNs?: number
  } | undefined
}

/** How a cell of a stack ended. */
export type Ended = { readonly outcome: Outcome | Moved; readonly usage: Usage; readonly figures: Figures }

type Waiter<T> = { readonly resolve: (value: T) => void; readonly reject: (error: unknown) => void }

/** A cell that was stopped by capture: what is left of it, and what became of its time until then. */
export type Stopped = { readonly state: CellState; readonly figures: Figures; readonly atNs: number }

/** A cell of a stack, from its start to its end. */
export class Resident {
  readonly id: number
  readonly resolve: (ended: Ended) => void
  readonly reject: (error: unknown) => void
  readonly console: ConsoleRecord | undefined
  pcpu: number
  member: Member
  created: (() => void) | undefined
  /** What its pCPU has said last. */
  last: Figures | undefined
  /** What became of its time on other pCPUs. */
  earlier: Figures | undefined
  isPaused = false
  end: End | undefined
  /** Stopped by capture, until it goes on or is given up. */
  stopped: Stopped | undefined
  /** Who waits for it to be stopped; to be there on another pCPU; to be gone from this one. */
  capturing: Waiter<Stopped> | undefined
  arriving: ({ readonly pcpu: number } & Waiter<void>) | undefined
  leaving: ({ readonly isMove: boolean } & Waiter<void>) | undefined
  /** Who waits for it to be paused, or not any more. */
  readonly pausing: { readonly is: boolean; readonly resolve: (is: boolean) => void }[] = []
  readonly #waiting: Waiter<void>[] = []
  #isTaken = false
  #isGone = false
  #used = { cpuNs: 0, wallNs: 0, waits: 0, preemptions: 0 }

  constructor(id: number, pcpu: number, member: Member,
    { created, resolve, reject }: { created: (() => void) | undefined } & Waiter<Ended>) {
    this.id = id
    this.pcpu = pcpu
    this.member = member
    this.created = created
    this.resolve = resolve
    this.reject = reject
    this.console = member.remote === undefined ? undefined : new ConsoleRecord()
  }

  /** Somebody has it stopped, or is about to. */
  get isTaken(): boolean { return this.#isTaken }

  /** Resolves when nobody else stops it. To be followed by `free`. Rejects with CAPTURE_ENDED. */
  take(): Promise<void> {
    if (this.#isGone) return Promise.reject(this.#hasEnded())
    if (this.#isTaken) return new Promise((resolve, reject) => { this.#waiting.push({ resolve, reject }) })
    this.#isTaken = true
    return Promise.resolve()
  }

  free(): void {
    const next = this.#waiting.shift()
    if (next === undefined) this.#isTaken = false
    else next.resolve()
  }

  /** It was told to be paused, or not any more, and now it is so. */
  isNowPaused(is: boolean): void {
    const left = this.pausing.splice(0)
    for (const one of left) if (one.is === is) one.resolve(true)
    this.pausing.push(...left.filter((one) => one.is !== is))
  }

  /** On its new pCPU it is paused, to begin with: what was said on the way has reached nobody. */
  isPausedThere(): void {
    const left = this.pausing.splice(0)
    for (const one of left) if (one.is || this.isPaused) one.resolve(true)
    if (!this.isPaused) this.pausing.push(...left.filter(({ is }) => !is))
  }

  /** It is stopped, or can't be. */
  isNowCaptured(report: Extract<Report, { captured: number }>): void {
    const waiter = this.capturing
    this.capturing = undefined
    if ('state' in report) waiter?.resolve(report)
    else waiter?.reject(errorOf(report.failed))
  }

  /** What a pCPU says where it is about to go on. */
  hasArrived(pcpu: number, report: Report): void {
    if (this.arriving?.pcpu !== pcpu) return
    if ('created' in report) this.arriving.resolve()
    else if ('failed' in report) this.arriving.reject(errorOf(report.failed))
  }

  /** It has ended, or its stack has: nobody waits for it any more. */
  gone(error: unknown = this.#hasEnded()): void {
    this.#isGone = true
    this.stopped = undefined
    for (const { resolve } of this.pausing.splice(0)) resolve(false)
    const waiting = [this.capturing, this.arriving, ...this.#waiting.splice(0)]
    this.capturing = this.arriving = undefined
    for (const one of waiting) one?.reject(error)
    this.leaving?.resolve()
  }

  /** It has left a pCPU, where this became of its time. */
  addEarlier({ figures, state: { used } }: Stopped): void {
    this.earlier = sumOfFigures(figures, this.earlier)
    this.last = undefined
    const { cpuNs, wallNs, waits, preemptions } = this.#used
    this.#used = { cpuNs: cpuNs + used.cpuNs, wallNs: wallNs + used.wallNs, waits: waits + used.waits,
      preemptions: preemptions + used.preemptions }
  }

  /** How it has ended, all pCPUs taken together. Its answers are counted in one place, wherever it is. */
  ended(outcome: Outcome | Moved, usage: Usage, figures: Figures): void {
    const { cpuNs, wallNs, waits, preemptions } = this.#used
    this.resolve({ outcome, figures: sumOfFigures(figures, this.earlier), usage: { ...usage,
      cpuNs: usage.cpuNs + cpuNs, wallNs: usage.wallNs + wallNs, waits: usage.waits + waits,
      preemptions: usage.preemptions + preemptions } })
  }

  #hasEnded(): CellarError {
    return new CellarError('CAPTURE_ENDED', [this.member.name])
  }
}

function errorOf({ code, values }: Pick<CellarError, 'code' | 'values'>): CellarError {
  return new CellarError(code, values as never)
}

/** What a remote console's owner and its cell have said to each other, and isn't done with. */
export class ConsoleRecord {
  /** Bytes of output, by channel, that no credit has come for. */
  readonly #owed = [0, 0, 0]
  /** Input that the cell hasn't read. Its own copies: what is posted is handed over. */
  readonly #input: Uint8Array<ArrayBuffer>[] = []
  #ended = false
  #hungUp = false

  output(channel: number, length: number): void { this.#owed[channel]! += length + OUTPUT_PIECE_BYTES }
  credit(channel: number, bytes: number): void { this.#owed[channel] = Math.max(0, this.#owed[channel]! - bytes) }
  hangUp(): void { this.#hungUp = true }

  input(bytes: Uint8Array<ArrayBuffer> | null): void {
    if (bytes === null) this.#ended = true
    else if (bytes.length > 0) this.#input.push(bytes.slice())
  }

  taken(count: number): void {
    for (let left = count; left > 0;) {
      const first = this.#input[0]
      if (first === undefined) return
      if (first.length <= left) this.#input.shift()
      else this.#input[0] = first.subarray(left)
      left -= first.length
    }
  }

  /** What makes a console that is new what this one is. */
  replay(id: number): Command[] {
    const commands: Command[] = []
    for (const channel of [1, 2]) {
      const bytes = -this.#owed[channel]!
      if (bytes < 0) commands.push({ credit: id, channel, bytes })
    }
    for (const bytes of this.#input) commands.push({ input: id, bytes: bytes.slice() })
    if (this.#ended) commands.push({ input: id, bytes: null })
    if (this.#hungUp) commands.push({ hangUp: id })
    return commands
  }
}

/** Figures of a cell that has been on other pCPUs before. */
export function sumOfFigures(now: Figures, earlier: Figures | undefined): Figures {
  if (earlier === undefined) return now
  const sum: Record<string, number> = {}
  for (const name of SUMS) sum[name] = now[name] + earlier[name]
  const waitedFor = new Map(earlier.waitedFor)
  for (const [id, ns] of now.waitedFor) waitedFor.set(id, (waitedFor.get(id) ?? 0) + ns)
  return { ...now, ...sum, waitedFor: [...waitedFor].sort((a, b) => b[1] - a[1]) }
}

const SUMS = ['ageNs', 'runningNs', 'runnableNs', 'waitingNs', 'throttledNs', 'pausedNs', 'stints', 'switches',
  'preemptions'] as const
