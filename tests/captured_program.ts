// tests/captured_program.ts: runs a program that is stopped again and again, and goes on from what was left of it.
//
// It goes on in place, or *anew*: by a new cell, which gets a copy of the state that no memory is shared with, as from
// a file. The program's checks are counted in its turn; a check at which it is due stops it. By default each check
// looks up; with `tickMs`, those alone that come first after another thread's tick, as for a quantum's end.

import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import wabt from 'wabt'
import { nullConsole } from '../src/services/console/console.ts'
import { OwnTurn } from '../src/wasi/p1/own_turn.ts'
import type { Cell, Origin, Outcome } from '../src/cell/cell.ts'
import { Continuations } from '../src/cell/continuations.ts'
import type { Executable } from '../src/cell/executable.ts'
import { loadHypercalls } from '../src/cell/hypercalls.ts'
import type { Console, Grants, Pcpu } from '../src/cell/pcpu.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import type { CellState } from '../src/cell/state.ts'

/** A program in a folder that goes with `using`: its code is read again to go on with it. */
export type Program = { readonly executable: Executable; readonly path: string } & Disposable

/** The program that a text describes, made to be captured. */
export async function programOf(text: string, stubs: readonly string[] = []): Promise<Program> {
  using parsed = disposable((await wabt()).parseWat('guest.wat', text, FEATURES))
  const folder = mkdtempSync(join(tmpdir(), 'cellar-captured-'))
  const path = join(folder, 'guest.wasm')
  writeFileSync(path, parsed.value.toBinary({}).buffer)
  const executable = await captureLoaded(path, stubs)
  return { executable, path, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) }
}

/** A program of a file, made to be captured. */
export async function captureLoaded(path: string, stubs: readonly string[] = []): Promise<Executable> {
  const executable = loadPreemptible(path, { stubs: [...stubs] }, { mode: 'preempt', capture: true })
  await loadHypercalls(executable.hypercalls)
  return executable
}

/** When it is stopped, and how it goes on. */
export type Stops = {
  /** At one check in so many; 0: at none. */
  readonly nth?: number
  /** At one hypercall that waits in so many. */
  readonly nthWait?: number
  /** So often at most. */
  readonly most?: number
  readonly anew?: boolean
  /** What it goes on from, in place of its state; what this throws ends the run. */
  change?(state: CellState): CellState
  /** It is ended after so many checks. */
  readonly checksMax?: number
  /** Checks look up so often, in milliseconds. */
  readonly tickMs?: number
}

/** How it ended, and what it went on from. */
export type Stopped = {
  readonly outcome: Outcome; readonly states: readonly CellState[]; readonly checks: number
  /** The cell that has ended. */
  readonly cell: Cell
}

const continuations = new Continuations()

/** Runs a program to its end, stopping it. */
export async function runStopped(
  pcpu: Pcpu, executable: Executable, stops: Stops,
  { grants = { args: ['guest'], env: [] }, console = {} }: { grants?: Grants; console?: Partial<Console> } = {},
): Promise<Stopped> {
  const run = new StoppedRun(pcpu, executable, stops)
  const { tickMs } = stops
  const ticker = tickMs === undefined ? undefined
    : new Worker(TICKER, { eval: true, workerData: { control: pcpu.control.buffer, tickMs } })
  if (ticker !== undefined) await once(ticker, 'message')
  try {
    return await run.all(grants, { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole, ...console })
  } finally {
    await ticker?.terminate()
  }
}

const TICKER = `const { parentPort, workerData: { control, tickMs } } = require('node:worker_threads')
parentPort.postMessage('ticking')
setInterval(() => Atomics.store(new Int32Array(control), 0, 1), tickMs)`

/** Runs a program to its n-th check that looks up, and gives it up there: what goes on from it. */
export async function originOf(
  pcpu: Pcpu, executable: Executable, stops: Stops & { readonly nth: number }, grants: Grants,
): Promise<Origin> {
  const stopped = Promise.withResolvers<Origin>()
  const stop = new Error('stopped')
  await runStopped(pcpu, executable, { ...stops, most: 1, anew: true, change: (state) => {
    stopped.resolve({ state, continuation: continuations.of(executable, state.frames) })
    throw stop
  } }, { grants }).then(() => stopped.reject(new Error('it has ended before')), (error: unknown) => {
    if (error !== stop) stopped.reject(error)
  })
  return await stopped.promise
}

class StoppedRun {
  readonly #pcpu: Pcpu
  readonly #executable: Executable
  readonly #stops: Stops
  readonly #states: CellState[] = []
  readonly #word: Int32Array
  #checks = 0
  #waits = 0
  #isStopping = false
  #next: Origin | undefined
  #failure: unknown

  constructor(pcpu: Pcpu, executable: Executable, stops: Stops) {
    this.#pcpu = pcpu
    this.#executable = executable
    this.#stops = stops
    this.#word = new Int32Array(pcpu.control.buffer)
  }

  async all(grants: Grants, console: Console): Promise<Stopped> {
    for (;;) {
      const turn = new Watched({ yields: () => this.#atCheck(cell), parks: () => this.#atWait(cell) })
      const from = this.#next
      // The word is the pCPU's.
      if (this.#stops.tickMs === undefined) Atomics.store(this.#word, 0, 1)
      const cell = await this.#pcpu.create(this.#executable, { memoryPagesMax: 1024, ...grants }, console,
        { turn, from })
      const outcome = await cell.runOrMove()
      if (this.#failure !== undefined) throw this.#failure
      if (outcome.kind !== 'moved') return { outcome, states: this.#states, checks: this.#checks, cell }
    }
  }

  #atCheck(cell: Cell): void {
    const { nth = 0, checksMax = Infinity, tickMs } = this.#stops
    this.#checks++
    if (tickMs !== undefined) Atomics.store(this.#word, 0, 0)
    if (this.#checks > checksMax) cell.context.stop({ kind: 'signal', signal: 9 })
    else if (nth > 0 && this.#checks % nth === 0) this.#stop(cell)
  }

  #atWait(cell: Cell): void {
    const { nthWait = 0 } = this.#stops
    // Once it has been parked: to stop it wakes it.
    if (nthWait > 0 && ++this.#waits % nthWait === 0) queueMicrotask(() => this.#stop(cell))
  }

  #stop(cell: Cell): void {
    const { most = Infinity, anew = false, change = (state) => state } = this.#stops
    if (this.#isStopping || this.#states.length >= most) return
    this.#isStopping = true
    void cell.capture().then((left) => {
      this.#isStopping = false
      this.#states.push(left)
      try {
        const state = change(anew ? structuredClone(left) : left)
        const continuation = continuations.of(this.#executable, state.frames)
        if (!anew) return cell.goOn(continuation)
        this.#next = { state, continuation }
      } catch (error) {
        this.#failure = error
      }
      cell.giveUp()
    }, (error: { code?: string }) => {
      // It ended before its next check.
      this.#isStopping = false
      if (error.code !== 'CAPTURE_ENDED') this.#failure = error
    })
  }
}

/** A turn that says when its vCPU looks up, or waits. */
class Watched extends OwnTurn {
  readonly #events: { yields(): void; parks(): void }

  constructor(events: { yields(): void; parks(): void }) {
    super()
    this.#events = events
  }

  override yield(): Promise<void> {
    this.#events.yields()
    return super.yield()
  }

  override park(): Promise<void> {
    const parked = super.park()
    this.#events.parks()
    return parked
  }
}

function disposable<T extends { destroy(): void }>(value: T): { value: T } & Disposable {
  return { value, [Symbol.dispose]: () => value.destroy() }
}

const FEATURES = {
  exceptions: true, tail_call: true, simd: true, multi_value: true, bulk_memory: true, reference_types: true,
  mutable_globals: true, sat_float_to_int: true, sign_extension: true,
}
