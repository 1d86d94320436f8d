// cell/timer_worker.ts: the thread that keeps the time for all pCPUs of a process (alarm.ts).
//
// Its own thread, since a pCPU that is kept busy has no time to look at a clock.

import { workerData } from 'node:worker_threads'
import { preferThread } from '../sys/affinity.ts'
import { keepTime } from './alarm.ts'

/** What the timer is started with (workerData): the control memories of the pCPUs, and newBell(). */
export type Timer = { readonly controls: readonly SharedArrayBuffer[]; readonly bell: SharedArrayBuffer }

const { controls, bell } = workerData as Timer
// It hardly ever runs, and all wait for it.
preferThread()
keepTime(controls.map((control) => new Int32Array(control)), bell)
