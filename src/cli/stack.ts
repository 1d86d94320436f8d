// cli/stack.ts: `cellar run -f STACK`: several cells that share pCPUs, in the foreground; or one cell, if it is to be
// scheduled (--shares, --cpu-limit, --cpu-reservation, --quantum).
//
// A stack's cells write lines that begin with their names; a single cell has the process's own streams. Who got what is
// told on stderr: each second on a terminal, and at the end. SIGHUP reads the manifest again and gives the cells that
// run their new terms; SIGINT and SIGTERM end all cells, then this process.

import { signals } from '../base/signals.ts'
import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import { formatDuration } from '../base/units.ts'
import type { Outcome } from '../cell/cell.ts'
import type { Executable } from '../cell/executable.ts'
import { HYPERCALL_NAMES } from '../cell/hypercalls.ts'
import { loadPreemptible } from '../cell/preemptible.ts'
import { Stack, type Ended, type Member } from '../cell/stack.ts'
import { cacheFolder, TranslationCache } from '../cell/translation_cache.ts'
import { wishes } from '../cell/wishes.ts'
import type { Terms } from '../sched/node.ts'
import { entitlements } from '../sched/placement.ts'
import type { End } from '../wasi/p1/context.ts'
import { endAbruptly } from './end.ts'
import { figures } from './figures.ts'
import { tell } from './print.ts'
import { report, type Launch } from './run.ts'
import { table, type Row } from './top.ts'

/** What a stack consists of. */
export type StackPlan = {
  readonly quantumNs: number
  readonly pcpus: number | undefined
  /** All cells are stopped then. */
  readonly forNs: number | undefined
  readonly pools: ReadonlyMap<string, Terms>
  readonly cells: readonly PlannedCell[]
  /** The only cell has the process's own streams, and the figures are told only if they are wanted. */
  readonly single?: { readonly stats: boolean; readonly trace: boolean }
}

/** A cell of a stack. */
export type PlannedCell = {
  readonly name: string
  readonly launch: Launch
  readonly terms: Terms
  readonly pool: string | undefined
  readonly timeoutNs: number | undefined
  readonly deterministic: boolean
  readonly unbounded: boolean
}

type Running = {
  readonly cell: PlannedCell; readonly member: Member; id: number; pcpu: number
  ended?: Ended & { readonly outcome: Outcome }
}

/** How often a pool's terms are split over the pCPUs. */
const PULSE_MS = 250

/** How long cells have to end when they are stopped: they do at their next check. */
const STOP_MS_MAX = 1000

/** Node's timers end here: 24 days. */
const TIMER_MS_MAX = 0x7fffffff

/** Why a run is over: all cells have ended, one couldn't start, the time is up, or a signal has come. */
type Over = 'ended' | 'failed' | 'time' | { readonly signal: number }

/** Reads the manifest again: undefined if it is no stack's any more. */
type Reload = () => StackPlan | undefined

/** Runs the stack to its end: the exit status. */
export async function runStack(plan: StackPlan, reload?: Reload): Promise<number> {
  const executables = loadAll(plan.cells)
  const stack = new Stack({ pcpus: plan.pcpus, quantumNs: plan.quantumNs, pools: plan.pools })
  try {
    return await new Foreground(stack, plan, executables, reload).run()
  } finally {
    void stack.close()
    endAbruptly()
  }
}

/** One executable a program and way of translating it, however many cells run it. */
function loadAll(cells: readonly PlannedCell[]): Executable[] {
  const cache = new TranslationCache(cacheFolder())
  const loaded = new Map<string, Executable>()
  return cells.map(({ launch, deterministic, unbounded }) => {
    const { program, stubs, calls } = launch
    const key = JSON.stringify([program, stubs, calls !== undefined, deterministic, unbounded])
    let executable = loaded.get(key)
    if (executable === undefined) {
      executable = loadPreemptible(program, { stubs, library: calls !== undefined },
        { mode: deterministic ? 'fuel' : 'preempt', unbounded }, cache)
      loaded.set(key, executable)
    }
    return executable
  })
}

class Foreground {
  readonly #stack: Stack
  readonly #plan: StackPlan
  readonly #reload: Reload | undefined
  readonly #pools: Map<string, Terms>
  readonly #running: Running[]
  readonly #over = Promise.withResolvers<Over>()
  #startedAt = 0
  #drawn = 0
  #failure: unknown

  constructor(
    stack: Stack, plan: StackPlan, executables: readonly Executable[], reload: Reload | undefined,
  ) {
    this.#stack = stack
    this.#plan = plan
    this.#reload = reload
    this.#pools = new Map(plan.pools)
    const width = Math.max(...plan.cells.map(({ name }) => name.length))
    const members = plan.cells.map((cell, i): Member => ({
      name: cell.name, executable: executables[i]!, grants: cell.launch.grants, calls: cell.launch.calls,
      trace: plan.single?.trace ?? false, terms: cell.terms, pool: cell.pool, timeoutNs: cell.timeoutNs,
      counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)),
      label: plan.single === undefined ? `${cell.name.padEnd(width)} | ` : undefined,
    }))
    const places = stack.plan(members)
    this.#running = plan.cells.map((cell, i) => ({ cell, member: members[i]!, id: -1, pcpu: places[i]! }))
  }

  async run(): Promise<number> {
    const off = this.#listen()
    this.#startedAt = nowNs()
    const all = this.#running.map((one) => this.#start(one))
    void Promise.all(all).then(() => this.#over.resolve('ended'))
    const timer = this.#plan.forNs === undefined ? undefined
      : setTimeout(this.#over.resolve, Math.min(this.#plan.forNs / 1e6, TIMER_MS_MAX), 'time')
    const live = this.#isLive() ? setInterval(() => void this.#draw(), 1000) : undefined
    // Pools are split over the pCPUs anew with each reading.
    const pulse = this.#pools.size > 0 ? setInterval(() => void this.#stack.figures(), PULSE_MS) : undefined
    const over = await this.#over.promise
    clearTimeout(timer)
    clearInterval(live)
    clearInterval(pulse)
    off()
    const rows = await this.#rows()
    if (over !== 'ended') await this.#stopAll(endFor(over), all)
    if (this.#failure !== undefined) throw this.#failure
    const status = this.#status(over)
    const { single } = this.#plan
    if (single?.stats === false) return status
    this.#erase()
    const [only] = this.#running
    if (single !== undefined && only?.ended !== undefined) {
      process.stderr.write(figures(only.cell.name, status, only.ended.usage))
    }
    process.stderr.write(table(rows, this.#stack.pcpus))
    return status
  }

  #isLive(): boolean {
    return this.#plan.single === undefined && process.stderr.isTTY
  }

  async #start(one: Running): Promise<void> {
    const { id, ended } = this.#stack.start(one.member, one.pcpu)
    one.id = id
    try {
      const { outcome, ...rest } = await ended
      // In the foreground nobody takes a cell away.
      if (outcome.kind === 'moved') return
      one.ended = { outcome, ...rest }
      if (outcome.kind === 'trap') report({ ...one.cell.launch, name: one.cell.name }, outcome)
      if (isTimeout(one)) tell(new CellarError('GUEST_TIMED_OUT', [one.cell.name, formatDuration(one.cell.timeoutNs!)]))
    } catch (error) {
      // One that can't start ends all: half a stack isn't what was asked for.
      this.#failure ??= error
      this.#over.resolve('failed')
    }
  }

  async #stopAll(end: End, all: readonly Promise<void>[]): Promise<void> {
    for (const { id, ended } of this.#running) if (ended === undefined) this.#stack.stop(id, end)
    const late = Promise.withResolvers<undefined>()
    const timer = setTimeout(late.resolve, STOP_MS_MAX, undefined)
    await Promise.race([Promise.all(all), late.promise])
    clearTimeout(timer)
  }

  // Of cells that ended by themselves the first, in the manifest, that failed.
  #status(over: Over): number {
    if (typeof over === 'object') return 128 + over.signal
    const stop = over === 'ended' ? undefined : endFor(over)
    return this.#running.map(({ ended }) => ended === undefined || isSame(ended.outcome, stop) ? 0
      : statusOf(ended.outcome)).find((status) => status !== 0) ?? 0
  }

  #listen(): () => void {
    const stop = (name: 'SIGINT' | 'SIGTERM') => (): void => {
      this.#over.resolve({ signal: signals[name] })
    }
    const handlers = { SIGINT: stop('SIGINT'), SIGTERM: stop('SIGTERM'), SIGHUP: (): void => this.#reread() }
    for (const [name, handler] of Object.entries(handlers)) process.on(name, handler)
    return () => { for (const [name, handler] of Object.entries(handlers)) process.off(name, handler) }
  }

  /** Gives the cells and pools of the same names their new terms; what else has changed is left as it was. */
  #reread(): void {
    if (this.#reload === undefined) return this.#over.resolve({ signal: signals.SIGHUP })
    try {
      const { cells = [], pools = [] } = this.#reload() ?? {}
      const found = new Map(cells.map(({ name, terms }) => [name, terms]))
      const changed = this.#running.filter(({ cell }) => found.has(cell.name))
      this.#stack.setTerms(new Map(changed.map(({ id, cell }) => [id, found.get(cell.name)!])))
      for (const { cell, member } of changed) member.terms = found.get(cell.name)!
      for (const [pool, terms] of pools) {
        if (!this.#pools.has(pool)) continue
        this.#pools.set(pool, terms)
        this.#stack.setPool(pool, terms)
      }
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      tell(error)
    }
  }

  async #rows(): Promise<Row[]> {
    const figures = await this.#stack.figures()
    const now = nowNs()
    const names = new Map(this.#running.map(({ id, cell }) => [id, cell.name]))
    const rows = this.#running.map(({ id, pcpu, member, ended }): Row => {
      const found = ended?.figures ?? figures.get(id)
      return {
        name: member.name, pcpu, terms: member.terms, pool: member.pool, figures: found,
        // What it would use if it never had to wait for others: it runs, then it waits by itself, and so on.
        demand: found === undefined || ended !== undefined ? (found?.runningNs ?? 0) / (now - this.#startedAt)
          : found.runningNs / Math.max(1, found.runningNs + found.waitingNs),
        elapsedNs: now - this.#startedAt, due: 0,
        waitedFor: (found?.waitedFor ?? []).map(([by, ns]) => [names.get(by) ?? 'cells that ended', ns] as const),
        end: ended?.outcome,
      }
    })
    const due = entitlements(this.#stack.pcpus, wishes(rows, this.#pools))
    return rows.map((row, i) => ({ ...row, due: due.get(String(i)) ?? 0 }))
  }

  async #draw(): Promise<void> {
    const columns = process.stderr.columns || Infinity
    const text = table(await this.#rows(), this.#stack.pcpus)
      .replaceAll(/.+/g, (line) => line.slice(0, Math.min(columns, line.length)))
    this.#erase()
    process.stderr.write(text)
    // Where guests write to the same terminal, what is above may be theirs: then the table is written anew.
    this.#drawn = process.stdout.isTTY ? 0 : text.split('\n').length - 1
  }

  #erase(): void {
    if (this.#drawn > 0) process.stderr.write(`\x1b[${this.#drawn}A\x1b[J`)
    this.#drawn = 0
  }
}

function isTimeout({ cell, ended }: Running): boolean {
  const outcome = ended?.outcome
  return cell.timeoutNs !== undefined && outcome?.kind === 'exit' && outcome.code === 124 &&
    ended!.figures.ageNs >= cell.timeoutNs
}

function statusOf(outcome: Outcome): number {
  if (outcome.kind === 'trap') return 128 + signals.SIGABRT
  return outcome.kind === 'exit' ? outcome.code & 0xff : 128 + outcome.signal
}

/** How cells are ended that run when the run is over. */
function endFor(over: Exclude<Over, 'ended'>): End & { kind: 'signal' } {
  return { kind: 'signal', signal: typeof over === 'object' ? over.signal : signals.SIGTERM }
}

function isSame(outcome: Outcome, stop: { signal: number } | undefined): boolean {
  return outcome.kind === 'signal' && outcome.signal === stop?.signal
}
