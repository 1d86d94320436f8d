// bench/guest.ts: small guests written in the text format, and what the benches share.

import wabt from 'wabt'
import { gateFor } from '../src/cell/load.ts'
import type { Executable } from '../src/cell/executable.ts'
import { loadHypercalls } from '../src/cell/hypercalls.ts'
import { addStreams, Pcpu } from '../src/cell/pcpu.ts'
import type { Cell } from '../src/cell/cell.ts'
import { nullConsole } from '../src/services/console/console.ts'
import { Descriptors } from '../src/wasi/p1/descriptors.ts'
import type { HypercallName } from '../src/wasi/p1/table.ts'

/** A module of text, its hypercalls named. Its memory is the import "cellar" "memory". */
export async function executableOf(wat: string, hypercalls: readonly HypercallName[]): Promise<Executable> {
  const { buffer } = (await wabt()).parseWat('guest.wat', wat).toBinary({})
  await loadHypercalls(hypercalls)
  return {
    name: 'guest.wat', module: new WebAssembly.Module(buffer as Uint8Array<ArrayBuffer>), gate: gateFor(hypercalls), hypercalls,
    stubs: [], memory: { module: 'cellar', name: 'memory', min: 1, max: 16 }, start: undefined, codeOffsetDelta: 0,
  }
}

/** A cell of `executable` on `pcpu` with a console that leads nowhere. */
export function cellOf(pcpu: Pcpu, executable: Executable, descriptors = nullStreams()): Cell {
  return pcpu.createNow(executable, { args: ['guest'], env: [] }, descriptors)
}

/** Descriptors 0, 1 and 2 that take everything and give nothing. */
export function nullStreams(): Descriptors {
  const descriptors = new Descriptors()
  addStreams(descriptors, { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole })
  return descriptors
}

/** A function "NAME" that calls a hypercall as often as its argument says. */
export function loopOf(name: string, call: string): string {
  return `(func (export "${name}") (param $n i32)
    (loop $again (drop (call ${call})) (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))`
}

/** Nanoseconds for each of `n` rounds of `run`, the best of five after warming up. */
export async function nsPer(n: number, run: (n: number) => unknown): Promise<number> {
  for (let i = 0; i < 3; i++) await run(n)
  let best = Infinity
  for (let i = 0; i < 5; i++) {
    const start = performance.now()
    await run(n)
    best = Math.min(best, (performance.now() - start) * 1e6 / n)
  }
  return best
}

/** The value below which a share `p` of `values` lies. Sorts them. */
export function percentile(values: number[], p: number): number {
  values.sort((a, b) => a - b)
  return values[Math.min(values.length - 1, Math.floor(values.length * p))]!
}
