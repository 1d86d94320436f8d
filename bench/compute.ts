// bench/compute.ts: CPU-bound guests, against the same module on V8 alone (node:wasi), in turns.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { WASI } from 'node:wasi'
import { loadExecutable } from '../src/cell/load.ts'
import { Pcpu } from '../src/cell/pcpu.ts'
import { nullConsole } from '../src/services/console/console.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const PRIMES = fileURLToPath(new URL('../guests/primes.wasm', import.meta.url))
const ARGS = ['primes', '60000000']
const RUNS = 7

export async function measure(): Promise<Figure[]> {
  const executable = loadExecutable(PRIMES)
  const module = new WebAssembly.Module(readFileSync(PRIMES))
  const pcpu = new Pcpu()
  const console = { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole }
  const ours: number[] = []
  const plain: number[] = []
  for (let i = -2; i < RUNS; i++) {
    const cell = await pcpu.create(executable, { args: ARGS, env: [] }, console)
    const start = performance.now()
    const outcome = await cell.run()
    const middle = performance.now()
    if (outcome.kind !== 'exit' || outcome.code !== 0) throw new Error('primes failed')
    const wasi = new WASI({ version: 'preview1', args: ARGS, returnOnExit: true, stdout: NULL })
    wasi.start(new WebAssembly.Instance(module, wasi.getImportObject() as WebAssembly.Imports))
    if (i < 0) continue
    ours.push(middle - start)
    plain.push(performance.now() - middle)
  }
  return [{
    name: 'compute', value: percentile(ours, 0.5), unit: 'ms', baseline: percentile(plain, 0.5),
    baselineOf: 'the same module under node:wasi',
  }]
}

const NULL = (await import('node:fs')).openSync('/dev/null', 'w')
