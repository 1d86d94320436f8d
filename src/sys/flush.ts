// sys/flush.ts: fsync(2) without holding up the calling thread.
//
// Node's thread pool has it, but not under Node's permission model (host/jail_launch.ts), which refuses what names a
// file by a descriptor. There threads of ours make the call, a few, when somebody wants it: each is one that waits for
// the disk, and goes when nobody has wanted anything for a while.

import { fdatasync, fsync } from 'node:fs'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { errnoOf } from '../base/errno.ts'
import type { Flush, Flushed } from './flush_worker.ts'

/** As many as libuv's pool has: disks take more at once, but who waits for all of them is rare. */
const THREADS_MAX = 4
const LINGER_MS = 5000

type Waiting = Flush & { done(result: number): void }
type Thread = { readonly worker: Worker; working: Waiting | undefined }

const threads: Thread[] = []
const waiting: Waiting[] = []
let lingering: NodeJS.Timeout | undefined

/**
 * What `fd` has is on the disk when this resolves; `dataOnly`: as much as is needed to read it again. 0, or a negated
 * errno. The caller keeps `fd` open until then.
 */
export function flush(fd: number, dataOnly = false): Promise<number> {
  if ((process as { permission?: unknown }).permission !== undefined) return flushApart(fd, dataOnly)
  return new Promise((resolve) => {
    (dataOnly ? fdatasync : fsync)(fd, (error) => resolve(error === null ? 0 : -errnoOf(error)))
  })
}

/** As `flush`, by a thread of ours. */
export function flushApart(fd: number, dataOnly: boolean): Promise<number> {
  return new Promise((done) => {
    waiting.push({ fd, dataOnly, done })
    clearTimeout(lingering)
    next()
  })
}

function next(): void {
  const first = waiting[0]
  if (first === undefined) return
  const idle = threads.find(({ working }) => working === undefined) ??
    (threads.length < THREADS_MAX ? start() : undefined)
  if (idle === undefined) return
  waiting.shift()
  idle.working = first
  idle.worker.ref()
  idle.worker.postMessage({ fd: first.fd, dataOnly: first.dataOnly } satisfies Flush)
}

function start(): Thread {
  const worker = new Worker(new URL('./flush_worker.ts', import.meta.url), { env: SHARE_ENV })
  const thread: Thread = { worker, working: undefined }
  worker.on('message', ({ result }: Flushed) => {
    const { working } = thread
    thread.working = undefined
    worker.unref()
    working!.done(result)
    next()
    if (threads.every((one) => one.working === undefined)) lingering = setTimeout(end, LINGER_MS).unref()
  })
  worker.on('error', (error) => { throw error })
  threads.push(thread)
  return thread
}

function end(): void {
  for (const { worker } of threads.splice(0)) void worker.terminate()
}
