// cell/test_support.ts: guests written in the text format, for tests and benches.

import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import wabt from 'wabt'
import { nullConsole } from '../services/console/console.ts'
import { Descriptors, type Entry } from '../wasi/p1/descriptors.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { decodeModule } from '../wasm/decode.ts'
import { Alarm, newBell } from './alarm.ts'
import type { Cell } from './cell.ts'
import { Dispatcher, type ScheduledTurn } from './dispatcher.ts'
import type { Executable } from './executable.ts'
import { loadHypercalls } from './hypercalls.ts'
import { executableOf } from './load.ts'
import { addStreams, Pcpu, type Console, type Watch } from './pcpu.ts'
import { loadPreemptible } from './preemptible.ts'
import { compileProgram } from './program.ts'
import type { Timer } from './timer_worker.ts'

/** An executable of a module in the text format, its hypercalls loaded. Unknown imports become stubs. */
export async function executableOfText(text: string): Promise<Executable> {
  const parsed = (await wabt()).parseWat('guest.wat', text, { exceptions: true })
  const { buffer } = parsed.toBinary({ write_debug_names: true })
  const bytes = buffer as Uint8Array<ArrayBuffer>
  const executable = executableOf(compileProgram({ path: 'guest.wat', bytes, module: decodeModule(bytes) }))
  await loadHypercalls(executable.hypercalls)
  return executable
}

/** As executableOfText, translated to be preempted. */
export async function preemptibleOfText(text: string): Promise<Executable> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-guest-'))
  try {
    const { buffer } = (await wabt()).parseWat('guest.wat', text).toBinary({})
    writeFileSync(join(folder, 'guest.wasm'), buffer)
    return loadPreemptible(join(folder, 'guest.wasm'))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** What a test's cell has: streams (default: leading nowhere), descriptors from 3 upwards, arguments. */
export type Fixture = Partial<Console> & {
  readonly entries?: readonly Entry[]; readonly args?: readonly string[]; readonly watch?: Watch
  readonly turn?: ScheduledTurn
}

/** A cell of `executable` on `pcpu`. */
export function cellOf(pcpu: Pcpu, executable: Executable, fixture: Fixture = {}): Cell {
  const { entries = [], args = ['guest'], watch, turn, ...streams } = fixture
  const descriptors = new Descriptors()
  addStreams(descriptors, { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole, ...streams })
  for (const entry of entries) descriptors.add(entry)
  return pcpu.createNow(executable, { args, env: [], memoryPagesMax: 16 }, descriptors,
    { ...watch, turn })
}

/** The text of an import of a hypercall, named as it is. */
export function importOf(name: HypercallName, params: string, result = '(result i32)'): string {
  const list = params === '' ? '' : `(param ${params})`
  return `(import "${HYPERCALLS[name].module}" "${name}" (func $${name} ${list} ${result}))`
}

/** Runs `body` with this thread as a pCPU whose cells share it by quanta. */
export async function withScheduledPcpu(
  quantumNs: number, body: (pcpu: Pcpu, dispatcher: Dispatcher) => Promise<void>,
): Promise<void> {
  const pcpu = new Pcpu()
  const bell = newBell()
  const control = pcpu.control.buffer as unknown as SharedArrayBuffer
  const timer: Timer = { controls: [control], bell }
  const worker = new Worker(new URL('./timer_worker.ts', import.meta.url), { workerData: timer })
  try {
    await once(worker, 'online')
    await body(pcpu, new Dispatcher(new Alarm(new Int32Array(control), bell), quantumNs))
  } finally {
    await worker.terminate()
  }
}

/** Reads up to 64 bytes at 1024, writes what it got, and again until the end of its input. */
export const ECHO = `(module ${importOf('fd_read', 'i32 i32 i32 i32')}
  ${importOf('fd_write', 'i32 i32 i32 i32')}
  (memory (export "memory") 1)
  (data (i32.const 0) "\\00\\04\\00\\00\\40\\00\\00\\00\\00\\04\\00\\00")
  (func (export "_start")
    (loop $again
      (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
      (if (i32.load (i32.const 16)) (then
        (i32.store (i32.const 12) (i32.load (i32.const 16)))
        (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 20)))
        (br $again))))))`
