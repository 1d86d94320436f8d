// cell/timer_worker.ts: ends quanta: sets the control word of every pCPU at each tick.
//
// Its own thread, since a pCPU that is kept busy has no time to look at a clock. A word that is set stays set until the
// guest that runs there looks at it; a pCPU on which nobody runs pays nothing.

import { parentPort, workerData } from 'node:worker_threads'

/** What the timer is started with (workerData). */
export type Timer = { readonly quantumMs: number }

// Owner → worker: a pCPU's control memory.
const words: Int32Array[] = []
parentPort!.on('message', (control: SharedArrayBuffer) => { words.push(new Int32Array(control, 0, 1)) })

setInterval(() => {
  for (const word of words) Atomics.store(word, 0, 1)
}, (workerData as Timer).quantumMs)
