// cell/executable.ts: a program, checked and compiled, ready to be started any number of times on any pCPU thread.
//
// All of it can be posted to a worker: V8 shares the compiled code of a WebAssembly.Module between threads.
// Elsewhere: how it comes to be (program.ts), what becomes of it (cell.ts).

import type { CaptureInfo } from '../translate/capture_info.ts'
import type { HypercallName } from '../wasi/cellar/table.ts'
import type { ProgramRules } from './program.ts'

/** A program as a pCPU takes it. */
export type Executable = {
  /** For messages: the path or name that the operator gave. */
  readonly name: string
  /** The guest's module, prepared: its memory is an import, its start function an export. */
  readonly module: WebAssembly.Module
  /** The gate for what it imports (gate.ts). */
  readonly gate: WebAssembly.Module
  readonly hypercalls: readonly HypercallName[]
  /** Imports beyond the hypercalls, which end the guest when called. */
  readonly stubs: readonly { readonly module: string; readonly name: string }[]
  /** The import that is its memory: the pages it starts with, and the most that it names itself. */
  readonly memory: { readonly module: string; readonly name: string; readonly min: number; readonly max: number |
    undefined } | undefined
  /** The export to call before anything else: what was the module's start function. */
  readonly start: string | undefined
  /** Present if the module was translated to be preempted (translate/translate.ts). */
  readonly preemption?: {
    /** The export that is the table of where it goes when its time is over. */
    readonly table: string
    /** The import that is its pCPU's control memory, or the export that is its fuel. */
    readonly control?: string; readonly fuel?: string
  }
  /** Whether its cells can be captured (translate/capture.ts), and if not, why. Absent: nobody has tried. */
  readonly capture?: { readonly can: true; readonly info: CaptureInfo } | { readonly can: false; readonly why: string }
  /** Where it was loaded from, for who needs its code again. */
  readonly source?: { readonly path: string; readonly rules: ProgramRules } | undefined
  /** A byte offset in the module's code, less this, is one in the program's file; undefined: they don't correspond. */
  readonly codeOffsetDelta: number | undefined
}
