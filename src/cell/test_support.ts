// cell/test_support.ts: guests written in the text format, for tests and benches.

import wabt from 'wabt'
import { nullConsole } from '../services/console/console.ts'
import { Descriptors, type Entry } from '../wasi/p1/descriptors.ts'
import type { HypercallName } from '../wasi/p1/table.ts'
import { decodeModule } from '../wasm/decode.ts'
import type { Cell } from './cell.ts'
import type { Executable } from './executable.ts'
import { loadHypercalls } from './hypercalls.ts'
import { executableOf } from './load.ts'
import { addStreams, type Console, type Pcpu, type Watch } from './pcpu.ts'
import { compileProgram } from './program.ts'

/** An executable of a module in the text format, its hypercalls loaded. Unknown imports become stubs. */
export async function executableOfText(text: string): Promise<Executable> {
  const parsed = (await wabt()).parseWat('guest.wat', text, { exceptions: true })
  const { buffer } = parsed.toBinary({ write_debug_names: true })
  const bytes = buffer as Uint8Array<ArrayBuffer>
  const executable = executableOf(compileProgram({ path: 'guest.wat', bytes, module: decodeModule(bytes) }))
  await loadHypercalls(executable.hypercalls)
  return executable
}

/** What a test's cell has: streams (default: leading nowhere), descriptors from 3 upwards, arguments. */
export type Fixture = Partial<Console> & {
  readonly entries?: readonly Entry[]; readonly args?: readonly string[]; readonly watch?: Watch
}

/** A cell of `executable` on `pcpu`. */
export function cellOf(pcpu: Pcpu, executable: Executable, fixture: Fixture = {}): Cell {
  const { entries = [], args = ['guest'], watch, ...streams } = fixture
  const descriptors = new Descriptors()
  addStreams(descriptors, { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole, ...streams })
  for (const entry of entries) descriptors.add(entry)
  return pcpu.createNow(executable, { args, env: [], memoryPagesMax: 16 }, descriptors, watch)
}

/** The text of an import of a hypercall, named as it is. */
export function importOf(name: HypercallName, params: string, result = '(result i32)'): string {
  const list = params === '' ? '' : `(param ${params})`
  return `(import "wasi_snapshot_preview1" "${name}" (func $${name} ${list} ${result}))`
}
