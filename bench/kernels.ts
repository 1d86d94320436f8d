// bench/kernels.ts: what being preemptible costs small computations: guests/kernels.wasm, translated and untranslated.
//
// As preempt.ts: the control word is never set, and the two take turns. A kernel is one shape of code, so that its
// figure says where the checks cost; what they cost altogether is the last, the geometric mean of all ratios.

import { fileURLToPath } from 'node:url'
import type { Executable } from '../src/cell/executable.ts'
import { loadExecutable } from '../src/cell/load.ts'
import { Pcpu } from '../src/cell/pcpu.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { nullConsole, OutputBuffer } from '../src/services/console/console.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const KERNELS = fileURLToPath(new URL('../guests/kernels.wasm', import.meta.url))
const RUNS = 5
const WARM_UP_RUNS = 2

/** How a run went: its line on stdout, and its time on the pCPU. */
type Run = { readonly line: string; readonly ms: number }

export async function measure(): Promise<Figure[]> {
  const plain = loadExecutable(KERNELS)
  const checked = loadPreemptible(KERNELS)
  const figures: Figure[] = []
  for (const name of (await run(plain, 'list')).line.trim().split('\n')) {
    figures.push(await compare(name, plain, checked))
  }
  const logarithms = figures.map(({ value, baseline }) => Math.log(value / baseline))
  const mean = Math.exp(logarithms.reduce((sum, one) => sum + one, 0) / logarithms.length)
  return [...figures, { name: 'preempt.kernels', value: 100 * mean, unit: '%', baseline: 100,
    baselineOf: 'the geometric mean of the ratios of the same kernels untranslated' }]
}

async function compare(name: string, plain: Executable, checked: Executable): Promise<Figure> {
  const times: Record<'plain' | 'checked', number[]> = { plain: [], checked: [] }
  for (let i = -WARM_UP_RUNS; i < RUNS; i++) {
    const [first, second] = [await run(plain, name), await run(checked, name)]
    if (first.line !== second.line) throw new Error(`Translated, it answers ${second.line} instead of ${first.line}`)
    if (i < 0) continue
    times.plain.push(first.ms)
    times.checked.push(second.ms)
  }
  return { name: `preempt.kernel.${name}`, value: percentile(times.checked, 0.5), unit: 'ms',
    baseline: percentile(times.plain, 0.5), baselineOf: 'the same kernel untranslated' }
}

async function run(executable: Executable, kernel: string): Promise<Run> {
  const stdout = new OutputBuffer(4096)
  const streams = { stdin: nullConsole, stdout, stderr: nullConsole }
  const cell = await new Pcpu().create(executable, { args: ['kernels', kernel], env: [] }, streams)
  const outcome = await cell.run()
  if (outcome.kind !== 'exit' || outcome.code !== 0) throw new Error(`${kernel}: ${JSON.stringify(outcome)}`)
  return { line: stdout.take().toString(), ms: cell.usage().cpuNs / 1e6 }
}
