// cell/cell_capture.ts: how a cell is stopped, and goes on.
//
//   running ── capture() ──▶ wanted ── its stack is left ──▶ captured ── goOn() ──▶ running
//                                                               └────── giveUp() ──▶ over, elsewhere perhaps not
//
// The stack is left within one step of the thread: the vCPU's `resumed` answers UNWINDS, every frame is kept and
// returned from, and the entry calls `left` before it returns, too; by then nobody else can have used the save area.

import { CellarError } from '../base/errors.ts'
import { continuationImports } from './continuations.ts'
import { CAPTURE_EXPORTS } from '../translate/added_names.ts'
import { framesOf, link } from '../translate/frames.ts'
import type { Context } from '../wasi/p1/context.ts'
import { saveDescriptors } from '../wasi/p1/saved_descriptors.ts'
import type { Usage, Origin } from './cell.ts'
import type { Executable } from './executable.ts'
import { InstanceState } from './instance_state.ts'
import { putImage, takeImage } from './memory_image.ts'
import { promising } from './promising.ts'
import type { SaveArea } from './save_area.ts'
import { CAPTURE_VERSION, type CellState } from './state.ts'

/** What it works on. */
export type CaptureParts = {
  readonly executable: Executable; readonly context: Context; readonly area: SaveArea
  readonly instance: WebAssembly.Instance; readonly control: WebAssembly.Memory
}
type Phase = CellState['phase']
/** What a vCPU goes on from. */
type Frames = { readonly bytes: Uint8Array<ArrayBuffer>; readonly references: readonly (number | null)[] }

/** See CellParts.captureOf. */
export function captureOf(parts: CaptureParts): CellCapture {
  return new CellCapture(parts)
}

/** The part of a cell that stops it. */
export class CellCapture {
  /** The vCPU is to leave its stack. */
  isWanted = false
  readonly #parts: CaptureParts
  readonly #state: InstanceState
  #phase: Phase
  // Of the stack that was left; and of the one to be made.
  #left: { bytes: Uint8Array<ArrayBuffer>; funcs: number; externs: number } | undefined
  #next: { readonly frames: Frames; readonly continuation: WebAssembly.Module } | undefined
  #frames: Frames | undefined
  #waiting: { resolve(state: CellState): void; reject(error: unknown): void; usage(): Usage
    readonly spare: SharedArrayBuffer | undefined } | undefined
  #decided: PromiseWithResolvers<boolean> | undefined

  constructor(parts: CaptureParts) {
    this.#parts = parts
    const { executable, instance, area } = parts
    const { capture } = executable
    if (capture?.can !== true) throw new TypeError('Cannot capture what was not translated for it')
    this.#state = new InstanceState(instance.exports, capture.info, area,
      () => WebAssembly.Module.imports(executable.module).filter(({ kind }) => kind === 'function').length)
    this.#phase = executable.start === undefined ? 'main' : 'start'
  }

  /** False for a library, whose exports are called by others. */
  get canEnter(): boolean {
    return this.#parts.instance.exports['_start'] !== undefined
  }

  /** Makes the instance what it was. Nothing of the guest runs. Throws CellarError SNAPSHOT_FOREIGN. */
  restore({ state, continuation }: Origin): void {
    const { executable, context, area } = this.#parts
    if (state.version !== CAPTURE_VERSION) throw foreign(`its version is ${state.version}, ours ${CAPTURE_VERSION}`)
    if (state.phase === 'start' && executable.start === undefined) throw foreign('it has a start function')
    const { memory } = context.memory
    try {
      if (state.memory !== undefined) putImage(state.memory, memory)
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause
      throw new CellarError('SNAPSHOT_FOREIGN', ['its memory is larger than the guest may have here'], { cause })
    }
    context.memory.refresh()
    this.#state.setGlobals(state.globals)
    this.#state.setTables(state.tables)
    this.#phase = state.phase
    const frames = { bytes: state.frames, references: state.references }
    // They are put once more when it goes on: what can't be put is to be refused now.
    this.#state.setReferences(frames.references)
    if (frames.bytes.length > 0) this.#next = { frames, continuation }
    if (frames.bytes.length > area.room) throw foreign(`its frames have ${frames.bytes.length} bytes`)
    const { since, monotonicNs } = state
    if (since !== -1 && !(since >= 0 && since <= monotonicNs)) throw foreign('it waits from a time that is to come')
    context.since = since
    area.take()
  }

  /** Calls the program, again and again if it is captured. False if it was given up. */
  async run(enter: (call: () => Promise<unknown>) => Promise<unknown>): Promise<boolean> {
    for (;;) {
      await enter(() => this.#call())
      this.#collect()
      if (this.#frames !== undefined) {
        if (!await this.#settle()) return false
      } else if (this.#phase === 'start') this.#phase = 'main'
      else return true
    }
  }

  /** See Cell.capture. */
  capture(usage: () => Usage, spare?: SharedArrayBuffer): Promise<CellState> {
    const { promise, resolve, reject } = Promise.withResolvers<CellState>()
    if (this.isWanted || this.#frames !== undefined) {
      return Promise.reject(new CellarError('CAPTURE_IMPOSSIBLE',
        [this.#parts.executable.name, 'somebody else is about to']))
    }
    this.isWanted = true
    this.#waiting = { resolve, reject, usage, spare }
    this.#parts.context.interrupt()
    return promise
  }

  goOn(continuation: WebAssembly.Module): void {
    const frames = this.#frames
    if (frames === undefined || this.#decided === undefined) return
    this.#frames = undefined
    this.#next = frames.bytes.length > 0 ? { frames, continuation } : undefined
    this.#decided.resolve(true)
  }

  giveUp(): void {
    this.#decided?.resolve(false)
  }

  /** The guest has ended. */
  ended(): void {
    this.isWanted = false
    this.#waiting?.reject(new CellarError('CAPTURE_ENDED', [this.#parts.executable.name]))
    this.#waiting = undefined
    this.#decided?.resolve(true)
  }

  /** Called by the guest's entry: its stack was left. */
  left(): void {
    this.#left = this.#parts.area.take()
  }

  // On the vCPU's turn: from here on it is the guest that runs, to the end of the call or until its stack was left.
  #call(): Promise<unknown> {
    const next = this.#next
    if (this.isWanted) {
      // Captured before it has begun, or gone on: what it goes on from is what it was.
      this.#frames = next?.frames ?? { bytes: new Uint8Array(), references: this.#state.references(0, '') }
      return Promise.resolve()
    }
    this.#next = undefined
    const { instance, area } = this.#parts
    area.clear()
    if (next === undefined) return promising(instance.exports[CAPTURE_EXPORTS.enter])(this.#phase === 'main' ? 1 : 0)
    const continuation = new WebAssembly.Instance(next.continuation,
      continuationImports(next.continuation, this.#importParts()))
    const bytes = next.frames.bytes.slice()
    link(bytes, framesOf(bytes))
    area.put(bytes, this.#state.setReferences(next.frames.references))
    return promising(continuation.exports['enter'])()
  }

  #importParts(): Parameters<typeof continuationImports>[1] {
    const { instance, context, control } = this.#parts
    return { exports: instance.exports, memory: context.memory.memory, control }
  }

  #collect(): void {
    const left = this.#left
    if (left === undefined) return
    this.#left = undefined
    const { name } = this.#parts.executable
    if (!this.#state.hasNoExterns(left.externs)) {
      throw new CellarError('CAPTURE_IMPOSSIBLE', [name, 'it refers to something of the host'])
    }
    this.#frames = { bytes: left.bytes, references: this.#state.references(left.funcs, name) }
  }

  // Tells what is left of it, then waits until somebody says what becomes of it.
  async #settle(): Promise<boolean> {
    const decided = this.#decided = Promise.withResolvers<boolean>()
    const waiting = this.#waiting
    this.#waiting = undefined
    this.isWanted = false
    try {
      const state = this.#describe(waiting!.usage(), waiting!.spare)
      waiting!.resolve(state)
    } catch (error) {
      // It can't be kept: its frames are gone, and with them the guest.
      waiting!.reject(error)
      throw error
    }
    const goesOn = await decided.promise
    this.#decided = undefined
    if (goesOn && this.#parts.context.end !== undefined) throw new Error('stopped')
    return goesOn
  }

  #describe({ cpuNs, wallNs, waits, preemptions, hypercalls }: Usage, spare: SharedArrayBuffer | undefined):
      CellState {
    const { context, executable } = this.#parts
    const frames = this.#frames!
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    const text = (bytes: Uint8Array): string => decoder.decode(bytes.subarray(0, -1))
    return {
      version: CAPTURE_VERSION,
      memory: executable.memory === undefined ? undefined : takeImage(context.memory.memory, spare),
      globals: this.#state.globals(),
      tables: this.#state.tables(executable.name),
      frames: frames.bytes, references: frames.references, phase: this.#phase,
      args: context.args.map(text), env: context.env.map(text),
      descriptors: saveDescriptors(context.descriptors),
      since: context.since, monotonicNs: context.clock.monotonic(),
      used: { cpuNs, wallNs, waits, preemptions, hypercalls },
    }
  }
}

function foreign(why: string): CellarError {
  return new CellarError('SNAPSHOT_FOREIGN', [why])
}
