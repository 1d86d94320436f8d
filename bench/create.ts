// bench/create.ts: from nothing to a guest's first instruction, its module compiled and its pCPU warm.
//
// Creation is all that a cell needs: descriptors, memory, context, gate, instance. The first instruction is when
// `_start` is entered. The baseline is V8's own share: a memory and an instance with the same number of imports.

import { Pcpu } from '../src/cell/pcpu.ts'
import { cellOf, executableOfText } from '../src/cell/test_support.ts'
import type { HypercallName } from '../src/wasi/cellar/table.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

// What wasi-libc's hello world imports.
const HYPERCALLS: HypercallName[] = [
  'proc_exit', 'fd_write', 'fd_close', 'fd_seek', 'fd_fdstat_get', 'args_get', 'args_sizes_get',
]
const IMPORTS = `
  (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func (param i32 i32) (result i32)))
  (memory 1 16)
  (func (export "_start"))`
const ROUNDS = 4000

export async function measure(): Promise<Figure[]> {
  const executable = await executableOfText(`(module ${IMPORTS})`)
  const pcpu = new Pcpu()
  const noop = (): number => 0
  const wasi = Object.fromEntries(HYPERCALLS.map((name) => [name, noop]))
  const cells: number[] = []
  const bare: number[] = []
  // One after the other, so that neither pays for the other's garbage.
  for (let i = -ROUNDS; i < ROUNDS; i++) {
    const cell = cellOf(pcpu, executable)
    await cell.run()
    if (i >= 0) cells.push(cell.usage().startNs / 1e3)
  }
  for (let i = -ROUNDS; i < ROUNDS; i++) {
    const start = performance.now()
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 16 })
    const instance = new WebAssembly.Instance(executable.module, { wasi_snapshot_preview1: wasi, cellar: { memory } })
    ;(instance.exports['_start'] as () => void)()
    if (i >= 0) bare.push((performance.now() - start) * 1e3)
  }
  const baselineOf = 'new WebAssembly.Memory + Instance + call'
  return [
    { name: 'create.p50', value: percentile(cells, 0.5), unit: 'µs', baseline: percentile(bare, 0.5), baselineOf },
    { name: 'create.p99', value: percentile(cells, 0.99), unit: 'µs', baseline: percentile(bare, 0.99), baselineOf },
  ]
}
