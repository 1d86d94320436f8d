// cell/preemptible_test.ts: cells that share a pCPU by force.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { OutputBuffer } from '../services/console/console.ts'
import { loadHypercalls } from './hypercalls.ts'
import { loadExecutable } from './load.ts'
import { Pcpu } from './pcpu.ts'
import { loadPreemptible } from './preemptible.ts'
import { cellOf } from './test_support.ts'
import type { Timer } from './timer_worker.ts'

const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))

/** Runs `body` with a pCPU whose quanta end each `quantumMs`. */
async function withTimer(quantumMs: number, body: (pcpu: Pcpu) => Promise<void>): Promise<void> {
  const pcpu = new Pcpu()
  const timer: Timer = { quantumMs }
  const worker = new Worker(new URL('./timer_worker.ts', import.meta.url), { workerData: timer })
  try {
    await once(worker, 'online')
    worker.postMessage(pcpu.control.buffer)
    await body(pcpu)
  } finally {
    await worker.terminate()
  }
}

// Also the proof that compiled code sees a flag that another thread sets: spin.wasm would never return.
test('a guest that never ends lets its neighbours end, and is stopped from its own thread', async () => {
  const [spin, primes] = [loadPreemptible(guest('spin')), loadPreemptible(guest('primes'))]
  await loadHypercalls([...spin.hypercalls, ...primes.hypercalls])
  await withTimer(2, async (pcpu) => {
    const hog = cellOf(pcpu, spin, { args: ['spin'] })
    const hogged = hog.run()
    const stdout = new OutputBuffer(100)
    const neighbour = cellOf(pcpu, primes, { args: ['primes', '2000000'], stdout })
    assert.deepEqual(await neighbour.run(), { kind: 'exit', code: 0 })
    assert.equal(stdout.take().toString(), '148933\n')
    assert.ok(hog.context.preemptions > 0, 'the hog had to leave')
    hog.context.stop({ kind: 'signal', signal: 9 })
    assert.deepEqual(await hogged, { kind: 'signal', signal: 9 })
  })
})

test('two guests that compute take turns and get the same answers as alone', async () => {
  const [alone, shared] = [loadExecutable(guest('primes')), loadPreemptible(guest('primes'))]
  await loadHypercalls(alone.hypercalls)
  const outputOf = async (pcpu: Pcpu, executable: typeof alone, limit: number): Promise<string> => {
    const stdout = new OutputBuffer(100)
    await cellOf(pcpu, executable, { args: ['primes', String(limit)], stdout }).run()
    return stdout.take().toString()
  }
  const limits = [3_000_000, 3_000_001, 2_500_000]
  const expected = await Promise.all(limits.map((limit) => outputOf(new Pcpu(), alone, limit)))
  await withTimer(1, async (pcpu) => {
    assert.deepEqual(await Promise.all(limits.map((limit) => outputOf(pcpu, shared, limit))), expected)
  })
})
