// bench/share.ts: do cells get what they were promised? Shares, limit, reservation, how soon who wakes runs, a switch.
//
// Fairness is measured by the scheduler's accounts, over ten seconds; the guests are real, and so are the threads.

import { fileURLToPath } from 'node:url'
import { HYPERCALL_NAMES } from '../src/cell/hypercalls.ts'
import { Pcpu } from '../src/cell/pcpu.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { Stack, type Member } from '../src/cell/stack.ts'
import { cellOf, executableOfText, importOf, withScheduledPcpu } from '../src/cell/test_support.ts'
import type { Executable } from '../src/cell/executable.ts'
import { loadHypercalls } from '../src/cell/hypercalls.ts'
import { OutputBuffer } from '../src/services/console/console.ts'
import { DEFAULT_TERMS, type Terms } from '../src/sched/node.ts'
import { nsPer } from './guest.ts'
import type { Figure } from './main.ts'

const guest = (name: string): string => fileURLToPath(new URL(`../guests/${name}.wasm`, import.meta.url))
const QUANTUM_NS = 1e6
const SECONDS = 10

export async function measure(): Promise<Figure[]> {
  return [await fairness(), await limit(), await reservation(), ...await latency(), await switching()]
}

async function fairness(): Promise<Figure> {
  const terms = [100, 200, 400, 800].flatMap((shares) => Array.from({ length: 16 }, () => ({ shares })))
  const got = await partsOf(2, terms)
  const total = terms.reduce((sum, { shares }) => sum + shares, 0)
  const sum = got.reduce((a, b) => a + b, 0)
  const errors = got.map((part, i) => Math.abs(part / sum / (terms[i]!.shares / total) - 1))
  return { name: 'share.fairness', value: Math.max(...errors) * 100, unit: '%', baseline: 2,
    baselineOf: 'most that a cell of 64 may be off its due, of shares 1:2:4:8 on 2 pCPUs over 10 s' }
}

async function limit(): Promise<Figure> {
  const [limited] = await partsOf(1, [{ limit: 0.1, shares: 1000 }, {}, {}, {}])
  return { name: 'share.limit', value: limited! * 100, unit: '% of a pCPU', baseline: 10,
    baselineOf: 'its limit; it wants all and has ten times the shares of three others' }
}

async function reservation(): Promise<Figure> {
  const [reserved] = await partsOf(1, [{ reservation: 0.5, shares: 1 }, ...Array.from({ length: 1000 }, () => ({}))])
  return { name: 'share.reservation', value: reserved! * 100, unit: '% of a pCPU', baseline: 50,
    baselineOf: 'its reservation, among 1,000 that want all and have a hundred times its shares each' }
}

/** The part of a pCPU that each of so many spinning guests gets, once all run. */
async function partsOf(pcpus: number, wanted: readonly Partial<Terms>[]): Promise<number[]> {
  const stack = new Stack({ pcpus, quantumNs: QUANTUM_NS })
  try {
    const executable = loadPreemptible(guest('spin'))
    const counts = new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4))
    const members = wanted.map((terms, i): Member => ({ name: String(i), executable, counts, calls: undefined,
      grants: { args: ['spin'], env: [] }, trace: false, label: '', terms: { ...DEFAULT_TERMS, ...terms } }))
    const places = stack.plan(members)
    const ids = members.map((member, i) => stack.start(member, places[i]!).id)
    const before = await allRunning(stack, ids)
    await new Promise((resolve) => { setTimeout(resolve, SECONDS * 1e3) })
    const after = await stack.figures()
    return ids.map((id) => {
      const [a, b] = [before.get(id)!, after.get(id)!]
      return (b.runningNs - a.runningNs) / (b.ageNs - a.ageNs)
    })
  } finally {
    await stack.close()
  }
}

async function allRunning(stack: Stack, ids: readonly number[]): Promise<Awaited<ReturnType<Stack['figures']>>> {
  for (;;) {
    const figures = await stack.figures()
    if (ids.every((id) => (figures.get(id)?.stints ?? 0) > 0)) return figures
    await new Promise((resolve) => { setTimeout(resolve, 50) })
  }
}

/** A guest that sleeps for 20 ms, again and again, among 100 that want all: how late it finds itself woken. */
async function latency(): Promise<Figure[]> {
  const [spin, nap] = [loadPreemptible(guest('spin')), loadPreemptible(guest('nap'))]
  await loadHypercalls([...spin.hypercalls, ...nap.hypercalls])
  const lateness = async (hogs: number): Promise<number[]> => {
    let line = ''
    await withScheduledPcpu(QUANTUM_NS, async (pcpu, dispatcher) => {
      const spinning = Array.from({ length: hogs }, () => {
        const cell = cellOf(pcpu, spin, { args: ['spin'], turn: dispatcher.admit() })
        return { cell, end: cell.run() }
      })
      // Whoever starts comes first once: that is over when all have run.
      await new Promise<void>((resolve) => { dispatcher.after(hogs * 3e6, resolve) })
      const stdout = new OutputBuffer(1000)
      await cellOf(pcpu, nap, { args: ['nap', '20000', '500'], stdout, turn: dispatcher.admit() }).run()
      line = stdout.take().toString()
      for (const { cell } of spinning) cell.context.stop({ kind: 'signal', signal: 9 })
      await Promise.all(spinning.map(({ end }) => end))
    })
    // nap COUNT p50 P p99 P max P
    return line.trim().split(' ').map(Number)
  }
  const [among, alone] = [await lateness(100), await lateness(0)]
  const of = '20 ms naps alone on the pCPU'
  return [
    { name: 'share.wake.p50', value: among[3]!, unit: 'µs', baseline: alone[3]!, baselineOf: of },
    { name: 'share.wake.p99', value: among[5]!, unit: 'µs', baseline: alone[5]!, baselineOf: of },
  ]
}

/** Two guests that give the pCPU to each other by sched_yield. */
async function switching(): Promise<Figure> {
  const ROUNDS = 100_000
  const text = `(module ${importOf('sched_yield', '')} (memory 1)
    (func (export "_start") (local $n i32) (local.set $n (i32.const ${ROUNDS}))
      (loop $l (drop (call $sched_yield)) (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))`
  const executable: Executable = await executableOfText(text)
  let ns = Infinity
  await withScheduledPcpu(QUANTUM_NS, async (pcpu, dispatcher) => {
    ns = await nsPer(2 * ROUNDS, async () => {
      const cells = [0, 1].map(() => cellOf(pcpu, executable, { turn: dispatcher.admit() }))
      await Promise.all(cells.map((cell) => cell.run()))
    })
  })
  const pcpu = new Pcpu()
  const alone = await nsPer(ROUNDS, () => cellOf(pcpu, executable).run())
  return { name: 'share.switch', value: ns, unit: 'ns', baseline: alone,
    baselineOf: 'a hypercall that waits, with nobody else and no scheduler' }
}
