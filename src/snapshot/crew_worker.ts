// snapshot/crew_worker.ts: a thread that helps with jobs on chunks. See crew.ts.

import { parentPort } from 'node:worker_threads'
import { doNext, type Job } from './chunk_work.ts'

parentPort!.on('message', (job: Job) => {
  while (doNext(job));
  parentPort!.postMessage(null)
})
