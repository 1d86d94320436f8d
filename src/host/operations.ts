// host/operations.ts: what takes longer than a request: pulls, clones, removals.
//
// An operation is committed before its work begins, so that a crash leaves a trace of it: one that was under way when
// the host ended is `failed` with OPERATION_INTERRUPTED at the next start. Progress is in memory, and written once a
// second at most. Cancelling is a wish: the work's signal says so, and it has ended when the work has.

import { randomBytes } from 'node:crypto'
import { CellarError } from '../base/errors.ts'
import { OPERATIONS_MAX, OPERATIONS_PROJECT_MAX, OPERATIONS_RUNNING_MAX } from '../base/limits.ts'
import type { Actor, OperationView } from './operator.ts'
import { problemOf } from './problem.ts'
import type { OperationRow } from './rows.ts'
import type { Store } from './store.ts'

/** What a work tells of itself. */
export type Control = {
  progress(done: number, total: number, unit: string): void
  /** What it does now, such as 'fetching'. */
  stage(text: string): void
  /** Aborted when it is to end; what it throws then doesn't matter. */
  readonly signal: AbortSignal
}

const WRITTEN_MS_MIN = 1000
/** The longest that a timer of Node waits. */
const TIMER_MS_MAX = 2 ** 31 - 1

type Running = { readonly controller: AbortController; readonly ended: Promise<void>; writtenMs: number }

/** All operations of a host. */
export class Operations {
  readonly #store: Store
  readonly #report: (error: unknown) => void
  /** In the order of their creation. */
  readonly #rows = new Map<string, OperationRow>()
  readonly #running = new Map<string, Running>()
  #starting = 0

  private constructor(store: Store, report: (error: unknown) => void) {
    this.#store = store
    this.#report = report
  }

  /** From the rows of the store. `report` gets what is no operator's error, for the host's log. */
  static async open(store: Store, rows: readonly OperationRow[], report: (error: unknown) => void):
  Promise<Operations> {
    const operations = new Operations(store, report)
    const interrupted: OperationRow[] = []
    for (const row of rows) {
      operations.#rows.set(row.id, row)
      if (row.status !== 'running') continue
      interrupted.push({ ...row, status: 'failed', updatedAt: Date.now(),
        error: problemOf(new CellarError('OPERATION_INTERRUPTED', [wordsOf(row)])) })
    }
    for (const row of interrupted) operations.#rows.set(row.id, row)
    if (interrupted.length > 0) await store.commit((tx) => { for (const row of interrupted) tx.putOperation(row) })
    return operations
  }

  /**
   * Starts `work` when the operation is committed, which is when this resolves. What it answers is the result (JSON).
   * Throws OPERATIONS_FULL, or that it can't be committed.
   */
  async start(kind: OperationView['kind'], target: string, by: Actor, work: (control: Control) => Promise<unknown>):
  Promise<OperationView> {
    if (this.#running.size + this.#starting >= OPERATIONS_RUNNING_MAX) {
      throw new CellarError('OPERATIONS_FULL', [OPERATIONS_RUNNING_MAX])
    }
    const mine = [...this.#running.keys()].filter((id) => this.#rows.get(id)?.by === by.name).length
    if (by.project !== undefined && mine >= OPERATIONS_PROJECT_MAX) {
      throw new CellarError('OPERATIONS_FULL', [OPERATIONS_PROJECT_MAX])
    }
    const now = Date.now()
    const row: OperationRow = { id: randomBytes(6).toString('hex'), kind, target, status: 'running', stage: '',
      progress: null, error: null, result: null, createdAt: now, updatedAt: now, by: by.name }
    const old = this.#superfluous()
    this.#starting++
    try {
      await this.#store.commit((tx) => {
        for (const id of old) tx.deleteOperation(id)
        tx.putOperation(row)
      })
    } finally {
      this.#starting--
    }
    for (const id of old) this.#rows.delete(id)
    this.#rows.set(row.id, row)
    const controller = new AbortController()
    const ended = this.#run(row, controller.signal, work)
    this.#running.set(row.id, { controller, ended, writtenMs: performance.now() })
    return viewOf(row)
  }

  /** Throws NOT_FOUND. */
  get(id: string): OperationView {
    return viewOf(this.#row(id))
  }

  /** Newest first. */
  list(): OperationView[] {
    return [...this.#rows.values()].reverse().map(viewOf)
  }

  /** Resolves when it has ended, or after `timeoutMs`: look at its status. Throws NOT_FOUND. */
  async wait(id: string, timeoutMs: number): Promise<OperationView> {
    const before = this.#row(id)
    const running = this.#running.get(id)
    if (running === undefined) return viewOf(before)
    let timer: NodeJS.Timeout | undefined
    const timeout = new Promise<void>((resolve) => { timer = setTimeout(resolve, Math.min(timeoutMs, TIMER_MS_MAX)) })
    await Promise.race([running.ended, timeout])
    clearTimeout(timer)
    return viewOf(this.#rows.get(id) ?? before)
  }

  /** Wants it to end; one that has ended stays as it is. Throws NOT_FOUND. */
  cancel(id: string): OperationView {
    const row = this.#row(id)
    const running = this.#running.get(id)
    if (running !== undefined && !running.controller.signal.aborted) {
      this.#change(id, { stage: 'cancelling' })
      running.controller.abort(new CellarError('OPERATION_CANCELLED', [wordsOf(row)]))
    }
    return this.get(id)
  }

  /** Ends all that is under way, as interrupted. Resolves when it has ended: before the store is closed. */
  async close(): Promise<void> {
    for (const [id, { controller }] of this.#running) {
      controller.abort(new CellarError('OPERATION_INTERRUPTED', [wordsOf(this.#row(id))]))
    }
    await Promise.all([...this.#running.values()].map(({ ended }) => ended))
  }

  // Never throws: what goes wrong is how the operation ended.
  async #run({ id }: OperationRow, signal: AbortSignal, work: (control: Control) => Promise<unknown>): Promise<void> {
    // Until it is among those that run.
    await Promise.resolve()
    let end: Partial<OperationRow>
    try {
      const result = await work({
        signal,
        progress: (done, total, unit) => this.#note(id, { progress: { done, total, unit } }),
        stage: (stage) => { if (!signal.aborted) this.#note(id, { stage }) },
      })
      end = { status: 'done', result: result ?? null }
    } catch (thrown) {
      const error: unknown = signal.aborted ? signal.reason : thrown
      if (!(error instanceof CellarError)) this.#report(error)
      const isCancelled = error instanceof CellarError && error.code === 'OPERATION_CANCELLED'
      end = { status: isCancelled ? 'cancelled' : 'failed', error: problemOf(error) }
    }
    const row = { ...this.#row(id), ...end, updatedAt: Date.now() }
    // If that fails the next start of the host takes it for interrupted; what it did is committed by its work.
    await this.#store.commit((tx) => tx.putOperation(row)).catch((error: unknown) => this.#report(error))
    this.#rows.set(id, row)
    this.#running.delete(id)
  }

  #note(id: string, changes: Partial<OperationRow>): void {
    const running = this.#running.get(id)
    if (running === undefined) return
    const row = this.#change(id, changes)
    if (performance.now() - running.writtenMs < WRITTEN_MS_MIN) return
    running.writtenMs = performance.now()
    this.#store.commit((tx) => tx.putOperation(row)).catch(() => {}) // It is tried again in a second.
  }

  #change(id: string, changes: Partial<OperationRow>): OperationRow {
    const row = { ...this.#row(id), ...changes, updatedAt: Date.now() }
    this.#rows.set(id, row)
    return row
  }

  #row(id: string): OperationRow {
    const row = this.#rows.get(id)
    if (row === undefined) throw new CellarError('NOT_FOUND', ['operation', id])
    return row
  }

  // The oldest that have ended, so that there is room for one more.
  #superfluous(): string[] {
    const excess = this.#rows.size + this.#starting + 1 - OPERATIONS_MAX
    if (excess <= 0) return []
    return [...this.#rows.values()].filter(({ status }) => status !== 'running').slice(0, excess).map(({ id }) => id)
  }
}

function wordsOf({ kind, target }: OperationRow): string {
  return `${kind} of "${target}"`
}

function viewOf({ progress, error, result, ...row }: OperationRow): OperationView {
  return {
    ...row,
    ...(progress === null ? {} : { progress }), ...(error === null ? {} : { error }),
    ...(result === null ? {} : { result }),
  }
}
