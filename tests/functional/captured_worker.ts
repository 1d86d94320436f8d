// tests/functional/captured_worker.ts: a worker that goes on with a program that another thread has stopped.

import { parentPort } from 'node:worker_threads'
import type { Origin, Outcome } from '../../src/cell/cell.ts'
import type { Executable } from '../../src/cell/executable.ts'
import { loadHypercalls } from '../../src/cell/hypercalls.ts'
import { Pcpu, type Grants } from '../../src/cell/pcpu.ts'
import { nullConsole, OutputBuffer } from '../../src/services/console/console.ts'

/** What the worker gets. */
export type Task = { readonly executable: Executable; readonly grants: Grants; readonly from: Origin }
/** What it tells. */
export type Told = { readonly outcome: Outcome; readonly stdout: string; readonly stderr: string }

const OUTPUT_BYTES = 1 << 20

parentPort?.once('message', async ({ executable, grants, from }: Task) => {
  await loadHypercalls(executable.hypercalls)
  const [stdout, stderr] = [new OutputBuffer(OUTPUT_BYTES), new OutputBuffer(OUTPUT_BYTES)]
  const cell = await new Pcpu().create(executable, grants, { stdin: nullConsole, stdout, stderr }, { from })
  const outcome = await cell.run()
  const told: Told = { outcome, stdout: stdout.take().toString(), stderr: stderr.take().toString() }
  parentPort!.postMessage(told)
})
