// bench/start.ts: the whole process `cellar run hello.wasm` against `node -e 0` of the same Node, in turns.

import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Figure } from './main.ts'
import { percentile } from './guest.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const RUNS = 40

export function measure(): Figure[] {
  const guest: number[] = []
  const node: number[] = []
  for (let i = -3; i < RUNS; i++) {
    const hello = time(`${ROOT}bin/cellar`, ['run', `${ROOT}guests/hello.wasm`])
    const empty = time(process.execPath, ['-e', '0'])
    if (i < 0) continue
    guest.push(hello)
    node.push(empty)
  }
  const [value, baseline] = [percentile(guest, 0.5), percentile(node, 0.5)]
  return [{ name: 'start', value, unit: 'ms', baseline, baselineOf: 'node -e 0' }]
}

function time(command: string, args: readonly string[]): number {
  const start = performance.now()
  const { status } = spawnSync(command, args, { stdio: 'ignore' })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${status}`)
  return performance.now() - start
}
