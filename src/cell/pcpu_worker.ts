// cell/pcpu_worker.ts: a pCPU as a worker thread, and the messages that drive it.
//
// The thread that owns it posts `start`, and gets back what became of each cell. Counters lie in shared memory, so that
// the owner can read them while a guest keeps this thread busy.

import { parentPort } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { StandardInput, StandardOutput } from '../services/console/stdio.ts'
import type { Outcome, Usage } from './cell.ts'
import type { Executable } from './executable.ts'
import type { Call } from './library.ts'
import { flushed, Pcpu, type Grants } from './pcpu.ts'

/** Owner → worker. The cell's console is the process's stdin, stdout and stderr. */
export type Start = {
  readonly start: number
  readonly executable: Executable
  readonly grants: Grants
  readonly calls: readonly Call[] | undefined
  readonly trace: boolean
  /** Answers by hypercall (HYPERCALL_NAMES). */
  readonly counts: Uint32Array
}

/** Worker → owner. `id` is that of `start`. */
export type Report =
  | { readonly id: number; readonly created: true }
  | { readonly id: number; readonly ended: Outcome; readonly usage: Usage }
  | { readonly id: number; readonly failed: Pick<CellarError, 'code' | 'values'> }

const pcpu = new Pcpu()
const port = parentPort!

port.on('message', (message: Start) => void start(message))

async function start({ start: id, executable, grants, calls, trace, counts }: Start): Promise<void> {
  try {
    const console = { stdin: new StandardInput(0), stdout: new StandardOutput(1), stderr: new StandardOutput(2) }
    const tracer = trace ? (await import('./trace.ts')).traceToStderr() : undefined
    const cell = await pcpu.create(executable, grants, console, { tracer, counts })
    post({ id, created: true })
    const ended = calls === undefined ? await cell.run()
      : await (await import('./library.ts')).runLibrary(cell, executable.name, calls)
    await flushed(grants)
    post({ id, ended, usage: cell.usage() })
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    post({ id, failed: { code: error.code, values: error.values } })
  }
}

function post(report: Report): void {
  port.postMessage(report)
}
