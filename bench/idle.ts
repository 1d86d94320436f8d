// bench/idle.ts: what an idle cell costs: 10,000 cells in one process, each asleep in poll_oneoff.
//
// Measured as the growth of the resident set, in a process of its own, after collecting garbage. The guest is
// guests/sleep.wasm; the pages of its memory that it has touched are counted, and shown as the baseline: each cell's
// memory holds at least one page of stack and data.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Figure } from './main.ts'

const CELLS = 10_000
const SELF = fileURLToPath(import.meta.url)
const SLEEP = fileURLToPath(new URL('../guests/sleep.wasm', import.meta.url))

export function measure(): Figure[] {
  const { stdout, stderr, status } = spawnSync(process.execPath,
    ['--disable-warning=ExperimentalWarning', '--expose-gc', SELF, 'child'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`idle cells: ${stderr}`)
  const { perCell, touched } = JSON.parse(stdout) as { perCell: number; touched: number }
  return [
    {
      name: 'idle', value: perCell / 1024, unit: 'KiB', baseline: touched / 1024,
      baselineOf: 'the pages that the guest touched',
    },
  ]
}

async function child(): Promise<void> {
  const { loadExecutable } = await import('../src/cell/load.ts')
  const { Pcpu } = await import('../src/cell/pcpu.ts')
  const { loadHypercalls } = await import('../src/cell/hypercalls.ts')
  const { cellOf } = await import('../src/cell/test_support.ts')
  const executable = loadExecutable(SLEEP)
  await loadHypercalls(executable.hypercalls)
  const pcpu = new Pcpu()
  const start = (): unknown => {
    const cell = cellOf(pcpu, executable, { args: ['sleep', '3600000'] })
    void cell.run()
    return cell
  }
  const cells = Array.from({ length: 100 }, start)
  await settled()
  const before = residentBytes()
  for (let i = 0; i < CELLS; i++) cells.push(start())
  await settled()
  const perCell = (residentBytes() - before) / CELLS
  process.stdout.write(JSON.stringify({ perCell, touched: touchedBytes() }))
  process.exit(0)
}

async function settled(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    await new Promise((resolve) => setTimeout(resolve, 100))
    globalThis.gc!()
  }
}

function residentBytes(): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
}

/** Resident bytes of one guest's memory: mappings of V8's guarded 8 GiB regions whose first part is readable. */
function touchedBytes(): number {
  const mappings = readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  const sizes = mappings
    .filter((one) => /^[0-9a-f]+-[0-9a-f]+ rw-p 00000000 00:00 0 *$/m.test(one) && /^Size: +128 kB/m.test(one))
    .map((one) => Number(/^Rss: +(\d+) kB/m.exec(one)?.[1] ?? 0) * 1024).sort((a, b) => a - b)
  return sizes[Math.floor(sizes.length / 2)] ?? 0
}

if (process.argv[2] === 'child' && process.argv[1] === SELF) await child()
