// sys/flush_worker.ts: a thread that waits for the disk in place of another. See flush.ts.

import { parentPort } from 'node:worker_threads'
import { answer, bind } from './libc.ts'

/** What it is asked, and what it answers: 0, or a negated errno. */
export type Flush = { readonly fd: number; readonly dataOnly: boolean }
export type Flushed = { readonly result: number }

const native = bind({
  fsync: { arguments: ['int32'], return: 'int32' },
  fdatasync: { arguments: ['int32'], return: 'int32' },
})

parentPort!.on('message', ({ fd, dataOnly }: Flush) => {
  const result = answer(dataOnly ? native.fdatasync(fd) : native.fsync(fd))
  parentPort!.postMessage({ result } satisfies Flushed)
})
