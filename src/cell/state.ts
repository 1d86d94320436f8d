// cell/state.ts: what is left of a cell that was stopped by capture: all that is needed to go on, and nothing of the
// engine's or the processor's. Plain data: it is posted between threads, and written to disk by snapshot/.
//
// Source: translate/capture.ts makes frames and globals; services say what descriptors are (services/saved.ts).

import type { SavedDescriptor } from '../services/saved.ts'

/** The layout of `frames` and `globals`: another version's can't be gone on with. */
export const CAPTURE_VERSION = 1

/** What a memory holds, in chunks of a page (64 KiB); those that are all zero are left out. */
export type MemoryImage = {
  /** The memory's size. */
  readonly pages: number
  /** The pages that aren't all zero, ascending. */
  readonly present: Uint32Array<ArrayBuffer>
  /** Their bytes, in this order. Shared between threads, never written again. */
  readonly bytes: SharedArrayBuffer
}

/** A table, as it may differ from what instantiation makes of it: functions by index, null where there is none. */
export type TableImage = { readonly table: number; readonly entries: readonly (number | null)[] }

/** A stopped cell. */
export type CellState = {
  readonly version: number
  /** undefined: the program has no memory. */
  readonly memory: MemoryImage | undefined
  readonly globals: Uint8Array<ArrayBuffer>
  readonly tables: readonly TableImage[]
  /** The vCPU's frames, innermost first; empty if it has not begun to run. */
  readonly frames: Uint8Array<ArrayBuffer>
  /** Functions that frames and globals refer to. */
  readonly references: readonly (number | null)[]
  /** The call that is in progress: of the start function, or of `_start`. */
  readonly phase: 'start' | 'main'
  readonly args: readonly string[]
  readonly env: readonly string[]
  readonly descriptors: readonly SavedDescriptor[]
  /** Context.since of the hypercall in progress: nanoseconds of the guest's monotonic clock, or -1. */
  readonly since: number
  /** The guest's monotonic clock when it was stopped, in nanoseconds: it goes on from there. */
  readonly monotonicNs: number
  /** As Context.deadlineNs when it was stopped: when to wake it, should it sleep. It isn't kept on disk. */
  readonly deadlineNs?: number | undefined
  /** What it has used until then. */
  readonly used: { readonly cpuNs: number; readonly wallNs: number; readonly waits: number; readonly preemptions: number
    readonly hypercalls: Readonly<Record<string, number>> }
}
