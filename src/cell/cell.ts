// cell/cell.ts: one cell: a program's instance, its memory, its descriptors, its vCPU.
//
// A cell lives on one pCPU thread. It is created in one step (memory, context, gate, instance: no guest code runs yet)
// and then run; `run` resolves when the guest has ended and everything it held is released. While its vCPU is parked
// in a hypercall the thread runs other cells.

import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import { formatSize } from '../base/units.ts'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { HYPERVISOR_MODULE } from '../wasm/prepare.ts'
import { GuestMemory } from '../services/guest_memory.ts'
import type { Dialer } from '../services/net/dialer.ts'
import { HYPERCALLS } from '../wasi/cellar/table.ts'
import { Context, type End, type Turn } from '../wasi/p1/context.ts'
import type { Descriptors } from '../wasi/p1/descriptors.ts'
import type { Executable } from './executable.ts'
import { isGated } from './gate.ts'
import { bind, HYPERCALL_NAMES, type Tracer } from './hypercalls.ts'
import { describeTrap, type Trap } from './trap.ts'

/** Instructions that a guest in fuel mode executes until it lets others run: under a millisecond. */
const FUEL_SLICE = 1_000_000

/** How a cell ended. */
export type Outcome = End | Trap

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

  /** Throws CellarError when the memory can't be had or the module's own initialisers trap. */
  constructor(executable: Executable, parts: CellParts) {
    this.#executable = executable
    this.counts = parts.counts
    const memory = createMemory(executable, parts.memoryPagesMax)
    const context = new Context({ ...parts, memory: new GuestMemory(memory) })
    this.context = context
    const gate = this.#instantiateGate(parts)
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
      (this.instance.exports[preemption.table] as WebAssembly.Table).set(0, gate['preempted'])
      const { fuel = '' } = preemption
      this.#fuel = this.instance.exports[fuel] as WebAssembly.Global<'i32'> | undefined
      this.#refuel()
    }
  }

  /**
   * Runs the program to its end and releases what it holds. `body` makes the calls: `_start`, unless the program is a
   * library. Call once.
   */
  async run(body = (cell: Cell): Promise<unknown> => cell.call('_start')): Promise<Outcome> {
    const { context } = this
    try {
      if (this.#executable.start !== undefined) await this.call(this.#executable.start)
      await body(this)
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
    const { context } = this
    const enter = WebAssembly.promising(this.instance.exports[name] as (...args: unknown[]) => unknown) as
      (...args: unknown[]) => Promise<unknown>
    const { turn } = context
    const begun = turn.begin()
    if (begun !== undefined) await begun
    // Stopped before its first instruction, or between two calls.
    if (context.end !== undefined) throw new Error('stopped')
    this.#startedAt ||= nowNs()
    turn.enter()
    try {
      return await enter(...args)
    } finally {
      turn.leave()
    }
  }

  /** Closes its descriptors; those of a guest that was `aborted` tell their peers so. Idempotent. */
  release(aborted = false): void {
    if (this.#endedAt === 0) {
      this.#endedAt = nowNs()
      this.context.turn.end()
    }
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

  #instantiateGate({ tracer, control }: CellParts): Record<string, WebAssembly.ExportValue> {
    const { context, counts } = this
    const hypercall: Record<string, WebAssembly.ImportValue> = {}
    const { preemption } = this.#executable
    const looks = preemption?.control !== undefined
    for (const name of this.#executable.hypercalls) {
      if (isGated(name) || looks) hypercall[name] = bind(name, context, counts, tracer)
    }
    const vcpu: Record<string, WebAssembly.ImportValue> = {
      wait: new WebAssembly.Suspending(() => context.parked()) as unknown as WebAssembly.ImportValue,
      resumed: () => { context.turn.enter(); return context.end === undefined ? 0 : 1 },
    }
    if (looks) vcpu['control'] = control()
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
