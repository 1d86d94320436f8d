// bench/fork.ts: how long a running cell of 16 MiB takes to be copied, to be moved to another pCPU, and what a copy of
// many costs in memory.
//
// All of its memory has been written to, and is written to all the time (guests/ticker.c, busy). A copy is there when
// its pCPU says so; by then it is about to run.

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { HYPERCALL_NAMES } from '../src/cell/hypercalls.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { Stack, type Member } from '../src/cell/stack.ts'
import { DEFAULT_TERMS } from '../src/sched/node.ts'
import type { Figure } from './main.ts'

const MIB = 16
const TIMES = 60
const MANY = 100
const KILLED = { kind: 'signal', signal: 9 } as const

export async function measure(): Promise<Figure[]> {
  const program = fileURLToPath(new URL('../guests/ticker.wasm', import.meta.url))
  const executable = loadPreemptible(program, { stubs: [] }, { mode: 'preempt', capture: true })
  const member = (): Member => ({ name: 'ticker', executable, calls: undefined, trace: false, terms: DEFAULT_TERMS,
    grants: { args: ['ticker', '3600000', '0', String(MIB), 'busy'], env: [] }, remote: { stdin: false },
    counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)) })
  const stack = new Stack({ pcpus: 2, quantumNs: 1e6 })
  try {
    const { id } = stack.start(member(), 0)
    while (((await stack.figures()).get(id)?.memoryBytes ?? 0) < MIB * 1024 * 1024) await sleep(20)
    await sleep(300)
    const one = await timed(TIMES, async () => {
      const [child] = await stack.fork(id, [member()])
      return async () => { stack.stop(child!.id, KILLED); await child!.ended }
    })
    const move = await timed(TIMES, async (i) => { await stack.move(id, (i + 1) % 2) })
    const before = residentBytes()
    let perFork = 0
    const many = await timed(5, async () => {
      const children = await stack.fork(id, Array.from({ length: MANY }, member))
      return async () => {
        perFork = (residentBytes() - before) / MANY
        for (const { id } of children) stack.stop(id, KILLED)
        await Promise.all(children.map(({ ended }) => ended))
      }
    })
    const copy = copyMs()
    return [
      { name: 'fork.one', value: one, unit: 'ms, p50', baseline: copy, baselineOf: `a copy of ${MIB} MiB that exists` },
      { name: 'fork.move', value: move, unit: 'ms, p50', baseline: copy, baselineOf: `a copy of ${MIB} MiB` },
      { name: 'fork.many', value: many, unit: `ms for ${MANY}`, baseline: MANY * copy,
        baselineOf: `${MANY} copies of ${MIB} MiB` },
      { name: 'fork.memory', value: perFork / 1024 / 1024, unit: `MiB a copy of ${MANY}`, baseline: MIB,
        baselineOf: 'its memory' },
    ]
  } finally {
    await stack.close()
  }
}

/** The median, in milliseconds; what `what` gives back is done after each, and not measured. */
async function timed(times: number, what: (i: number) => Promise<(() => Promise<void>) | void>): Promise<number> {
  const took: number[] = []
  for (let i = 0; i < times; i++) {
    const from = performance.now()
    const after = await what(i)
    took.push(performance.now() - from)
    await after?.()
    await sleep(20)
  }
  return took.sort((a, b) => a - b)[times >> 1]!
}

/** To memory that is there already. */
function copyMs(): number {
  const [from, to] = [new Uint8Array(MIB * 1024 * 1024).fill(1), new Uint8Array(MIB * 1024 * 1024).fill(2)]
  const begun = performance.now()
  for (let i = 0; i < 10; i++) to.set(from)
  return (performance.now() - begun) / 10
}

function residentBytes(): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
}
