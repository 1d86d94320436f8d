// cell/load.ts: from a program's file to something that a pCPU can start.

import { readProgram, checkProgram } from './program.ts'
import type { Executable } from './executable.ts'
import { encodeGate, isGated } from './gate.ts'
import { wasi_snapshot_preview1, type HypercallName } from '../wasi/p1/table.ts'

/** How a program may be loaded. */
export type LoadOptions = {
  /** MODULE or MODULE.NAME of unknown imports that are bound to stubs. */
  readonly stubs?: readonly string[]
  /** True if a manifest calls its exports: it needs no `_start`. */
  readonly library?: boolean
}

const gates = new Map<string, WebAssembly.Module>()

/** Reads, checks, prepares and compiles the program at `path`. Throws CellarError: nothing has run then. */
export function loadExecutable(path: string, { stubs = [], library = false }: LoadOptions = {}): Executable {
  const program = readProgram(path)
  const compiled = checkProgram(program, { stubs: [...stubs], library })
  const hypercalls: HypercallName[] = []
  const stubbed: { module: string; name: string }[] = []
  for (const { module, name, kind } of program.module.imports) {
    if (kind !== 'func') continue
    if (module === 'wasi_snapshot_preview1' && Object.hasOwn(wasi_snapshot_preview1, name)) {
      if (!hypercalls.includes(name as HypercallName)) hypercalls.push(name as HypercallName)
    } else stubbed.push({ module, name })
  }
  return {
    name: path,
    module: compiled,
    gate: gateFor(hypercalls),
    hypercalls,
    stubs: stubbed,
    memory: program.prepared.memories[0],
    hasStart: program.prepared.hasStart,
    codeOffsetDelta: program.prepared.codeOffsetDelta,
  }
}

/** The gate's module for a guest with these imports; compiled once. */
export function gateFor(hypercalls: readonly HypercallName[]): WebAssembly.Module {
  const gated = hypercalls.filter(isGated)
  const key = gated.join()
  let gate = gates.get(key)
  if (gate === undefined) gates.set(key, gate = new WebAssembly.Module(encodeGate(gated)))
  return gate
}
