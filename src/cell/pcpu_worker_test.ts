// cell/pcpu_worker_test.ts: a pCPU as a worker: starts, reports, counts in shared memory, is terminated.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { HYPERCALL_NAMES } from './hypercalls.ts'
import { loadExecutable } from './load.ts'
import type { Command, Report } from './pcpu_worker.ts'

const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))

function startOf(id: number, program: string, args: string[] = []): Command {
  const counts = new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4))
  const grants = { args: [program, ...args], env: [] }
  return { start: id, executable: loadExecutable(guest(program)), grants, calls: undefined, trace: false, counts }
}

/** Starts the cells on one worker and gives their reports as they come, until `enough`. */
async function reportsOf(starts: Command[], enough: (reports: Report[]) => boolean): Promise<Report[]> {
  const worker = new Worker(new URL('./pcpu_worker.ts', import.meta.url), { workerData: {} })
  const reports: Report[] = []
  const { promise, resolve } = Promise.withResolvers<void>()
  worker.on('message', (report: Report) => {
    reports.push(report)
    if (enough(reports)) resolve()
  })
  for (const start of starts) worker.postMessage(start)
  await Promise.race([promise, once(worker, 'error').then(([error]) => { throw error })])
  await worker.terminate()
  return reports
}

test('several cells on one worker end when each has slept, the shortest first', async () => {
  const starts = [startOf(1, 'sleep', ['300']), startOf(2, 'sleep', ['1']), startOf(3, 'exit', ['5'])]
  const reports = await reportsOf(starts, (all) => all.filter((one) => 'ended' in one).length === 3)
  const ends = reports.filter((one) => 'ended' in one)
  assert.equal(ends.at(-1)!.id, 1)
  assert.deepEqual(ends.find(({ id }) => id === 3)!.ended, { kind: 'exit', code: 5 })
  assert.deepEqual(ends.find(({ id }) => id === 2)!.ended, { kind: 'exit', code: 0 })
})

test('what can not be started is reported with its code, and the worker goes on', async () => {
  const refused = { ...startOf(1, 'hello'), grants: { args: ['hello'], env: [], memoryPagesMax: 1 } }
  const reports = await reportsOf([refused, startOf(2, 'exit', ['0'])], (all) => all.some((one) => 'ended' in one))
  const [failed] = reports.filter((one) => 'failed' in one)
  assert.equal(failed?.failed.code, 'MEMORY_BELOW_MINIMUM')
})

test('a guest that loops is seen counting nothing, and ends with its worker', async () => {
  const worker = new Worker(new URL('./pcpu_worker.ts', import.meta.url), { workerData: {} })
  const start = startOf(1, 'spin')
  const [report] = await Promise.all([once(worker, 'message'), worker.postMessage(start)])
  assert.deepEqual(report, [{ id: 1, created: true }])
  const [code] = await Promise.all([once(worker, 'exit'), worker.terminate()])
  assert.equal(code[0], 1)
})
