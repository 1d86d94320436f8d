// bench/decide.ts: what a decision of the scheduler costs, with 10 to 10,000 cells that want the pCPU.
//
// One round: the current cell leaves, a cell wakes, the next is picked. Every cell computes for a quantum and then
// sleeps until it is its turn to wake, so that half of them are queued at any time. The baseline is 10 cells: the ratio
// says how flat it is. log 10,000 is 4 times log 10, and what is looked at doesn't fit the first cache.

import { DEFAULT_TERMS, type Node } from '../src/sched/node.ts'
import { RunQueue } from '../src/sched/run_queue.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const COUNTS = [10, 100, 1000, 10_000]
const QUANTUM = 1_000_000
const ROUNDS = 50_000
const TURNS = 9

export async function measure(): Promise<Figure[]> {
  const runs = COUNTS.map((count) => roundsOf(count))
  const times: number[][] = COUNTS.map(() => [])
  for (let turn = -2; turn < TURNS; turn++) {
    runs.forEach((run, i) => {
      const start = process.hrtime.bigint()
      run()
      if (turn >= 0) times[i]!.push(Number(process.hrtime.bigint() - start) / ROUNDS)
    })
  }
  const values = times.map((each) => percentile(each, 0.5))
  return COUNTS.map((count, i) => ({ name: `decide.${count}`, value: values[i]!, unit: 'ns', baseline: values[0]!,
    baselineOf: 'the same with 10 cells' }))
}

/** A queue of cells with different shares, and what does its rounds. */
function roundsOf(count: number): () => void {
  const queue = new RunQueue({ quantumNs: QUANTUM })
  const waiting: Node[] = []
  for (let i = 0; i < count; i++) {
    const cell = queue.addCell(queue.root, { ...DEFAULT_TERMS, shares: 50 + i % 100 }, 0)
    if (i % 2 === 0) waiting.push(cell)
    else queue.wake(cell, 0)
  }
  let now = 0
  let next = 0
  queue.pick(now)
  return () => {
    for (let i = 0; i < ROUNDS; i++) {
      now += QUANTUM
      const left = queue.current!
      queue.stop(now, 'waiting')
      queue.wake(waiting[next]!, now)
      waiting[next] = left
      next = (next + 1) % waiting.length
      queue.pick(now)
    }
  }
}
