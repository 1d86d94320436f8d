// bench/hypercall.ts: hypercalls that answer at once, against an import that does nothing.
//
// Each is measured called directly, and on a vCPU's own stack (JSPI), as guests run: there V8 changes stacks for each
// import. clock_time_get reads a real clock, which costs what process.hrtime.bigint() does: shown beside it.

import { Pcpu } from '../src/cell/pcpu.ts'
import { cellOf, executableOfText } from '../src/cell/test_support.ts'
import { loopOf, nsPer } from './guest.ts'
import type { Figure } from './main.ts'

const WAT = `(module
  (import "wasi_snapshot_preview1" "clock_res_get" (func $res (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory 1 16)
  (data (i32.const 16) "\\20\\00\\00\\00\\01\\00\\00\\00A")
  ${loopOf('clock_res_get', '$res (i32.const 1) (i32.const 64)')}
  ${loopOf('clock_time_get', '$time (i32.const 1) (i64.const 1) (i32.const 64)')}
  ${loopOf('fd_write', '$write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 64)')})`
const NOOP = `(module
  (import "host" "noop" (func $noop (param i32 i32 i32 i32) (result i32)))
  ${loopOf('noop', '$noop (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 64)')})`
const ROUNDS = 1_000_000

export async function measure(): Promise<Figure[]> {
  const cell = cellOf(new Pcpu(), await executableOfText(WAT))
  const { module } = await executableOfText(NOOP)
  const bare = new WebAssembly.Instance(module, { host: { noop: () => 0 } })
  const figures: Figure[] = []
  const noop = bare.exports['noop'] as (n: number) => number
  const parked = WebAssembly.promising(noop as never) as (n: number) => Promise<unknown>
  const direct = await nsPer(ROUNDS, noop)
  const onStack = await nsPer(ROUNDS, parked)
  for (const name of ['clock_res_get', 'clock_time_get', 'fd_write'] as const) {
    const call = cell.instance.exports[name] as (n: number) => number
    figures.push(
      {
        name: `hypercall.${name}`, value: await nsPer(ROUNDS, call), unit: 'ns', baseline: direct,
        baselineOf: 'an import that does nothing',
      },
      {
        name: `hypercall.${name}.vcpu`, value: await nsPer(ROUNDS, (n) => cell.call(name, n)), unit: 'ns',
        baseline: onStack, baselineOf: 'an import that does nothing, under promising',
      })
  }
  const clock = await nsPer(ROUNDS, (n) => { for (let i = 0; i < n; i++) process.hrtime.bigint() })
  const overhead = { name: 'hypercall.clock_time_get.overhead', baseline: clock, baselineOf: 'process.hrtime.bigint()' }
  figures.push({ ...figures[2]!, ...overhead })
  return figures
}
