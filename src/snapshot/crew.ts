// snapshot/crew.ts: the threads that work on chunks: this one and a few beside it, as many as there are processors.
//
// The threads are started when there is much to do for the first time, and stay: starting one takes 30 ms, waking one
// 0.1 ms. This thread works, too, in slices, so that its consoles and connections are served meanwhile. A thread that
// comes late finds nothing left, so nobody waits for one to start.

import { availableParallelism } from 'node:os'
import { setImmediate as otherWork } from 'node:timers/promises'
import { getSystemErrorName } from 'node:util'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { DONE, doNext, FAILED, type Job } from './chunk_work.ts'

/** Rows below which others aren't woken, or aren't started: this thread is done sooner. */
const ROWS_MIN = 8
const STARTING_ROWS_MIN = 64
/** More threads than this only wait for the disk. */
const THREADS_MAX = 4
/** How long this thread works before it looks at what else there is, in milliseconds. */
const SLICE_MS = 2

/** Threads of this process that do jobs. */
class Crew {
  #workers: Worker[] | undefined
  // Jobs that aren't done, and how to say that they are.
  readonly #waiting = new Set<{ job: Job; resolve: () => void; reject: (error: unknown) => void }>()

  /** Does all of a job. Throws a system error: the first that happened. */
  async run(job: Job): Promise<void> {
    if (job.count >= (this.#workers === undefined ? STARTING_ROWS_MIN : ROWS_MIN)) {
      for (const worker of this.#workers ??= this.#start()) worker.postMessage(job)
    }
    for (let until = performance.now() + SLICE_MS; doNext(job);) {
      if (performance.now() < until) continue
      await otherWork()
      until = performance.now() + SLICE_MS
    }
    if (!isDone(job)) await this.#othersDone(job)
    const failed = job.control[FAILED]!
    if (failed !== 0) throw systemError(failed)
  }

  #othersDone(job: Job): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiting.add({ job, resolve, reject })
    for (const worker of this.#workers!) worker.ref()
    return promise
  }

  #start(): Worker[] {
    const count = Math.min(availableParallelism(), THREADS_MAX) - 1
    return Array.from({ length: count }, () => {
      const worker = new Worker(new URL('./crew_worker.ts', import.meta.url), { env: SHARE_ENV })
      worker.on('message', () => this.#look())
      worker.on('error', (error) => this.#lost(error))
      worker.unref()
      return worker
    })
  }

  #look(): void {
    for (const one of this.#waiting) {
      if (!isDone(one.job)) continue
      this.#waiting.delete(one)
      one.resolve()
    }
    if (this.#waiting.size === 0) for (const worker of this.#workers!) worker.unref()
  }

  // A thread has died, with a row of somebody's maybe.
  #lost(error: unknown): void {
    for (const one of this.#waiting) one.reject(error)
    this.#waiting.clear()
    for (const worker of this.#workers ?? []) void worker.terminate()
    this.#workers = undefined
  }
}

/** The one of this thread: stores share it. */
export const crew = new Crew()

function isDone(job: Job): boolean {
  return Atomics.load(job.control, DONE) >= job.count
}

function systemError(errno: number): Error {
  const code = errno < -1 ? getSystemErrorName(errno) : 'EIO'
  return Object.assign(new Error(`${code}: cannot write`), { code, errno, syscall: 'write' })
}
