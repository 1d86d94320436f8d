// cell/cell.ts: one cell: a program's instance, its memory, its descriptors, its vCPU.
//
// A cell lives on one pCPU thread. It is created in one step (memory, context, gate, instance: no guest code runs yet)
// and then run; `run` resolves when the guest has ended and everything it held is released. While its vCPU is parked
// in a hypercall the thread runs other cells.
//
// A cell can be stopped by `capture`: its vCPU leaves its stack, and what is left is a CellState. Then it goes on here
// (`goOn`), by a continuation (translate/continuation.ts), or elsewhere, by a new Cell that is made from the state:
// the two are alike, but for the instance. `run` is pending all the while.

import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import { formatSize } from '../base/units.ts'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { HYPERVISOR_MODULE } from '../wasm/prepare.ts'
import { GuestMemory } from '../services/guest_memory.ts'
import type { Lifecycle } from '../services/lifecycle/lifecycle.ts'
import type { Dialer } from '../services/net/dialer.ts'
import { LEFT, YIELD } from '../translate/added_names.ts'
import { HYPERCALLS } from '../wasi/cellar/table.ts'
import { Context, type End, type Turn } from '../wasi/p1/context.ts'
import type { Descriptors } from '../wasi/p1/descriptors.ts'
import type { CaptureParts, CellCapture } from './cell_capture.ts'
import type { Executable } from './executable.ts'
import { isGated, RESUMED, STOPPED, UNWINDS } from './gate.ts'
import { bind, HYPERCALL_NAMES, type Tracer } from './hypercalls.ts'
import { promising } from './promising.ts'
import { SaveArea } from './save_area.ts'
import type { CellState } from './state.ts'
import { describeTrap, type Trap } from './trap.ts'

/** Instructions that a guest in fuel mode executes until it lets others run: under a millisecond. */
const FUEL_SLICE = 1_000_000

/** How a cell ended. */
export type Outcome = End | Trap

/** It was given up after it was captured: it has ended nowhere. */
export type Moved = { readonly kind: 'moved' }

/** What a cell goes on from, in place of beginning. */
export type Origin = { readonly state: CellState; readonly continuation: WebAssembly.Module }

/** What a cell used. Times in nanoseconds, sizes in bytes. */
export type Usage = {
  /** From creation to the guest's first instruction. */
  startNs: number
  /** On the pCPU. */
  cpuNs: number
  /** From creation to the end. */
  wallNs: number
  /** Memory at the end, which is its most: WebAssembly memory never shrinks. */
  memoryBytes: number
  /** How often the vCPU was parked. */
  waits: number
  /** How often it had to leave the pCPU to others. */
  preemptions: number
  /** Instructions that it executed, if it counts them (translate/fuel.ts). */
  fuel?: number
  /** Answers, by hypercall. */
  hypercalls: Record<string, number>
}

/** What a cell is made of beside its program. */
export type CellParts = Pick<Context, 'args' | 'env' | 'clock' | 'entropy' | 'iovecs'> & {
  readonly lifecycle?: Lifecycle | undefined
  /** Makes the part that can stop it; loaded for programs that can be captured. */
  readonly captureOf?: ((parts: CaptureParts) => CellCapture) | undefined
  readonly descriptors: Descriptors
  /** When it runs; its own if nobody schedules. */
  readonly turn?: Turn | undefined
  /** How it reaches others by name; undefined: not at all. */
  readonly dialer?: Dialer | undefined
  /** The pCPU's control memory: word 0 isn't 0 when the quantum has ended. */
  readonly control: () => WebAssembly.Memory
  /** Pages that its memory may grow to, at most WASM_PAGES_MAX. */
  readonly memoryPagesMax: number
  readonly tracer?: Tracer | undefined
  /** Answers are counted here, by HYPERCALL_NAMES. */
  readonly counts: Uint32Array
}

/** One running program. */
export class Cell {
  readonly context: Context
  readonly counts: Uint32Array
  readonly instance: WebAssembly.Instance
  readonly #executable: Executable
  readonly #createdAt = nowNs()
  #fuel: WebAssembly.Global<'i32'> | undefined
  #fuelGiven = 0
  #startedAt = 0
  #endedAt = 0
  readonly #area: SaveArea | undefined
  readonly #capture: CellCapture | undefined

  /**
   * Throws CellarError when the memory can't be had, the module's own initialisers trap, or `origin` doesn't fit.
   */
  constructor(executable: Executable, parts: CellParts, origin?: Origin) {
    this.#executable = executable
    this.counts = parts.counts
    const memory = createMemory(executable, parts.memoryPagesMax)
    const context = new Context({ ...parts, memory: new GuestMemory(memory) })
    this.context = context
    const area = this.#area = executable.capture?.can === true ? new SaveArea(parts.control()) : undefined
    const gate = this.#instantiateGate(parts, area)
    // Names are the guest's choice: without prototypes, none of them is one that JavaScript knows.
    const imports: Record<string, Record<string, WebAssembly.ImportValue>> = Object.create(null)
    const from = (module: string): Record<string, WebAssembly.ImportValue> => imports[module] ??= Object.create(null)
    if (executable.memory !== undefined) from(executable.memory.module)[executable.memory.name] = memory
    const { preemption } = executable
    if (preemption?.control !== undefined) from(HYPERVISOR_MODULE)[preemption.control] = parts.control()
    for (const name of executable.hypercalls) {
      from(HYPERCALLS[name].module)[name] = gate[name] ?? bind(name, context, this.counts, parts.tracer)
    }
    for (const { module, name } of executable.stubs) {
      from(module)[name] = (): void => {
        context.stub = `${module}.${name}`;
        (gate['trap'] as () => void)()
      }
    }
    this.instance = instantiate(executable, imports)
    if (preemption !== undefined) {
      const table = this.instance.exports[preemption.table] as WebAssembly.Table
      table.set(YIELD, gate['preempted'])
      if (area !== undefined) table.set(LEFT, gate['left'])
      const { fuel = '' } = preemption
      this.#fuel = this.instance.exports[fuel] as WebAssembly.Global<'i32'> | undefined
      this.#refuel()
    }
    if (area === undefined) return
    this.#capture = parts.captureOf?.({ executable, context, area, instance: this.instance, control: parts.control() })
    if (origin !== undefined) this.#capture?.restore(origin)
  }

  /**
   * Runs the program to its end and releases what it holds. `body` makes the calls: `_start`, unless the program is a
   * library. Call once. Of a cell that nobody gives up.
   */
  async run(body?: (cell: Cell) => Promise<unknown>): Promise<Outcome> {
    const outcome = await this.runOrMove(body)
    if (outcome.kind === 'moved') throw new Error('Cannot tell how a cell has ended that was given up')
    return outcome
  }

  /** As run, of a cell that may be captured and given up. */
  async runOrMove(body?: (cell: Cell) => Promise<unknown>): Promise<Outcome | Moved> {
    const { context } = this
    try {
      if (body === undefined && this.#capture?.canEnter === true) {
        const isOver = await this.#capture.run((enter) => this.#enter(enter))
        if (!isOver) return this.#leave()
      } else {
        if (this.#executable.start !== undefined) await this.call(this.#executable.start)
        await (body === undefined ? this.call('_start') : body(this))
      }
      this.release()
      return { kind: 'exit', code: 0 }
    } catch (error) {
      this.release(context.bug !== undefined || context.stopped || context.end?.kind !== 'exit')
      if (context.bug !== undefined) throw context.bug
      return context.end ?? describeTrap(error, context.stub, this.#executable)
    }
  }

  /** Calls one export on the cell's vCPU. One call at a time. */
  async call(name: string, ...args: (number | bigint)[]): Promise<unknown> {
    return await this.#enter(() => promising(this.instance.exports[name])(...args))
  }

  // `enter` calls WebAssembly on a stack of its own, once it is the cell's turn.
  async #enter(enter: () => Promise<unknown>): Promise<unknown> {
    const { context } = this
    const { turn } = context
    const begun = turn.begin()
    if (begun !== undefined) await begun
    // Stopped before its first instruction, or between two calls.
    if (context.end !== undefined) throw new Error('stopped')
    this.#startedAt ||= nowNs()
    turn.enter()
    this.#area?.clear()
    try {
      return await enter()
    } finally {
      turn.leave()
    }
  }

  /**
   * Stops the guest at its next check, or in the hypercall in which it waits, and tells what is left of it. It runs on
   * after `goOn` or is `giveUp`'s. Who schedules it lets it unwind (Turn). `spare`: see takeImage. Rejects with
   * CAPTURE_IMPOSSIBLE; CAPTURE_ENDED if it ends before.
   */
  capture(spare?: SharedArrayBuffer): Promise<CellState> {
    const { name, capture } = this.#executable
    if (this.#capture?.canEnter !== true) {
      const why = capture?.can === false ? capture.why : capture === undefined ? 'it was not translated for that'
        : 'its exports are called one by one'
      return Promise.reject(new CellarError('CAPTURE_IMPOSSIBLE', [name, why]))
    }
    if (this.#endedAt !== 0) return Promise.reject(new CellarError('CAPTURE_ENDED', [name]))
    return this.#capture.capture(() => this.usage(), spare)
  }

  /** After `capture`: it goes on here. */
  goOn(continuation: WebAssembly.Module): void {
    this.#capture?.goOn(continuation)
  }

  /** After `capture`: it is somebody else's now. `run` resolves to `moved`. */
  giveUp(): void {
    this.#capture?.giveUp()
  }

  // As release, of one that isn't over: its peers must not take it for an end.
  #leave(): Moved {
    this.#endedAt = nowNs()
    this.context.turn.end()
    this.context.descriptors.leaveAll()
    return { kind: 'moved' }
  }

  /** Closes its descriptors; those of a guest that was `aborted` tell their peers so. Idempotent. */
  release(aborted = false): void {
    if (this.#endedAt === 0) {
      this.#endedAt = nowNs()
      this.context.turn.end()
    }
    this.#capture?.ended()
    this.context.descriptors.closeAll(aborted)
  }

  /** What it has used so far; complete once it has ended. */
  usage(): Usage {
    const hypercalls: Record<string, number> = {}
    this.counts.forEach((count, i) => { if (count > 0) hypercalls[HYPERCALL_NAMES[i]!] = count })
    return {
      startNs: this.#startedAt - this.#createdAt,
      cpuNs: this.context.turn.cpuNs(),
      wallNs: (this.#endedAt || nowNs()) - this.#createdAt,
      memoryBytes: this.context.memory.memory.buffer.byteLength,
      waits: this.context.waits,
      preemptions: this.context.preemptions,
      ...(this.#fuel === undefined ? {} : { fuel: this.#fuelGiven - this.#fuel.value }),
      hypercalls,
    }
  }

  /** Of a guest that counts what it executes. */
  #refuel(): void {
    if (this.#fuel === undefined) return
    this.#fuel.value += FUEL_SLICE
    this.#fuelGiven += FUEL_SLICE
  }

  #instantiateGate({ tracer, control }: CellParts, area: SaveArea | undefined):
      Record<string, WebAssembly.ExportValue> {
    const { context, counts } = this
    const hypercall: Record<string, WebAssembly.ImportValue> = {}
    const { preemption } = this.#executable
    const looks = preemption?.control !== undefined && area === undefined
    for (const name of this.#executable.hypercalls) {
      if (isGated(name) || looks) hypercall[name] = bind(name, context, counts, tracer)
    }
    const vcpu: Record<string, WebAssembly.ImportValue> = {
      wait: new WebAssembly.Suspending(() => context.parked()) as unknown as WebAssembly.ImportValue,
      resumed: () => {
        context.turn.enter()
        if (context.end !== undefined) return STOPPED
        area?.clear()
        if (this.#capture?.isWanted !== true) return RESUMED
        area!.unwind()
        return UNWINDS
      },
    }
    if (looks || area !== undefined) vcpu['control'] = control()
    if (area !== undefined) vcpu['left'] = () => this.#capture?.left()
    if (preemption !== undefined) {
      vcpu['preempt'] = new WebAssembly.Suspending(() => {
        this.#refuel()
        return context.preempted()
      }) as unknown as WebAssembly.ImportValue
    }
    return new WebAssembly.Instance(this.#executable.gate, { hypercall, vcpu }).exports as Record<string,
      WebAssembly.ExportValue>
  }
}

function instantiate({ name, module }: Executable, imports: WebAssembly.Imports): WebAssembly.Instance {
  try {
    return new WebAssembly.Instance(module, imports)
  } catch (cause) {
    if (!(cause instanceof WebAssembly.RuntimeError)) throw cause
    throw new CellarError('MODULE_INITIALISER_TRAPPED', [name, cause.message.replace(/^WebAssembly\.\w+\(\): /, '')],
      { cause })
  }
}

function createMemory({ name, memory }: Executable, pagesMax: number): WebAssembly.Memory {
  const initial = memory?.min ?? 0
  if (initial > pagesMax) {
    throw new CellarError('MEMORY_BELOW_MINIMUM',
      [name, formatSize(initial * WASM_PAGE_BYTES), formatSize(pagesMax * WASM_PAGE_BYTES)])
  }
  try {
    return new WebAssembly.Memory({ initial, maximum: Math.min(memory?.max ?? pagesMax, pagesMax) })
  } catch (cause) {
    throw new CellarError('MEMORY_UNAVAILABLE', [name, formatSize(initial * WASM_PAGE_BYTES)], { cause })
  }
}
