// cli/supervise.ts: a foreground run that is watched: its pCPU is a worker, and this thread keeps the time.
//
// A guest that loops keeps its pCPU's thread, so that a deadline, Ctrl-C and the figures at the end have to come from
// another one. Terminating the worker stops the guest within milliseconds, wherever it is.

import { SHARE_ENV, Worker } from 'node:worker_threads'
import { signals } from '../base/signals.ts'
import { CellarError } from '../base/errors.ts'
import { formatDuration } from '../base/units.ts'
import type { Outcome, Usage } from '../cell/cell.ts'
import { HYPERCALL_NAMES } from '../cell/hypercalls.ts'
import { loadExecutable } from '../cell/load.ts'
import type { Command, PcpuStart, Report } from '../cell/pcpu_worker.ts'
import { endAbruptly } from './end.ts'
import { figures } from './figures.ts'
import { tell } from './print.ts'
import { report, type Launch } from './run.ts'

/** Node's timers end here: 24 days. */
const TIMER_MS_MAX = 0x7fffffff

type Options = { readonly timeoutNs: number | undefined; readonly stats: boolean; readonly trace: boolean }
type Result = { readonly outcome: Outcome | 'timeout'; readonly usage?: Usage }

/** Runs the program on a worker until it ends, the time is up, or a signal comes: the exit status. */
export async function supervise(launch: Launch, { timeoutNs, stats, trace }: Options): Promise<number> {
  const workerData: PcpuStart = {}
  const worker = new Worker(new URL('../cell/pcpu_worker.ts', import.meta.url), { env: SHARE_ENV, workerData })
  const counts = new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4))
  const created = performance.now()
  const cpuBefore = process.cpuUsage()
  try {
    const executable = loadExecutable(launch.program, { stubs: launch.stubs, library: launch.calls !== undefined })
    const start: Command = { start: 0, executable, grants: launch.grants, calls: launch.calls, trace, counts }
    worker.postMessage(start)
    const { outcome, usage } = await firstEnd(worker, timeoutNs)
    const status = outcome === 'timeout' ? timedOut(launch.name ?? launch.program, timeoutNs!) : report(launch, outcome)
    if (stats) {
      const wallNs = (performance.now() - created) * 1e6
      const { user, system } = process.cpuUsage(cpuBefore)
      const used = usage ?? interrupted(counts, wallNs, (user + system) * 1e3)
      process.stderr.write(figures(launch.name ?? launch.program, status, used))
    }
    return status
  } finally {
    // Not waited for: a pending read of stdin would hold the worker until somebody writes. The process ends now.
    void worker.terminate()
    endAbruptly()
  }
}

function timedOut(name: string, timeoutNs: number): number {
  const error = new CellarError('GUEST_TIMED_OUT', [name, formatDuration(timeoutNs)])
  tell(error)
  return error.exit
}

async function firstEnd(worker: Worker, timeoutNs: number | undefined): Promise<Result> {
  const { promise, resolve, reject } = Promise.withResolvers<Result>()
  let timer: NodeJS.Timeout | undefined
  worker.on('message', (message: Report) => {
    if ('created' in message && timeoutNs !== undefined) {
      timer = setTimeout(resolve, Math.min(timeoutNs / 1e6, TIMER_MS_MAX), { outcome: 'timeout' })
    }
    if ('failed' in message) reject(new CellarError(message.failed.code, message.failed.values as never))
    if ('ended' in message) resolve({ outcome: message.ended, usage: message.usage })
  })
  worker.on('error', reject)
  const handlers = (['SIGINT', 'SIGTERM', 'SIGHUP'] as const).map((name) => {
    const handler = (): void => resolve({ outcome: { kind: 'signal', signal: signals[name] } })
    process.on(name, handler)
    return [name, handler] as const
  })
  try {
    return await promise
  } finally {
    clearTimeout(timer)
    for (const [name, handler] of handlers) process.off(name, handler)
    worker.removeAllListeners()
  }
}

/** What is known of a guest that was stopped: the worker can't be asked, so CPU time is the process's. */
function interrupted(counts: Uint32Array, wallNs: number, cpuNs: number): Usage {
  const hypercalls: Record<string, number> = {}
  counts.forEach((count, i) => { if (count > 0) hypercalls[HYPERCALL_NAMES[i]!] = count })
  return { startNs: Number.NaN, cpuNs, wallNs, memoryBytes: Number.NaN, waits: Number.NaN,
    preemptions: Number.NaN, hypercalls }
}
