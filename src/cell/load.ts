// cell/load.ts: from a program's file to something that a pCPU can start.

import type { HypercallName } from '../wasi/cellar/table.ts'
import { HYPERVISOR_MODULE, memoryName, START_EXPORT } from '../wasm/prepare.ts'
import type { Executable } from './executable.ts'
import { encodeGate, isGated } from './gate.ts'
import { isHypercall, loadProgram, type Program, type ProgramRules } from './program.ts'

const gates = new Map<string, WebAssembly.Module>()

/** Reads, checks, prepares and compiles the program at `path`. Throws CellarError: nothing of it has run then. */
export function loadExecutable(path: string, rules: ProgramRules = { stubs: [] }): Executable {
  return executableOf(loadProgram(path, rules))
}

/** What a pCPU needs to know of a compiled program. */
export function executableOf({ path, module, prepared, compiled }: Program, rules?: ProgramRules): Executable {
  const functions = module.imports.filter(({ kind }) => kind === 'func')
  const hypercalls = new Set(
    functions.filter((one) => isHypercall(module, one)).map(({ name }) => name as HypercallName))
  const [memory] = prepared.memories
  return {
    name: path,
    module: compiled,
    gate: gateFor([...hypercalls]),
    hypercalls: [...hypercalls],
    stubs: functions.filter((one) => !isHypercall(module, one)).map(({ module, name }) => ({ module, name })),
    memory: memory === undefined ? undefined
      : { module: HYPERVISOR_MODULE, name: memoryName(0), min: memory.min, max: memory.max },
    start: prepared.hasStart ? START_EXPORT : undefined,
    codeOffsetDelta: prepared.codeOffsetDelta,
    source: rules === undefined ? undefined : { path, rules },
  }
}

/** The gate's module for a guest with these imports; compiled once. */
export function gateFor(
  hypercalls: readonly HypercallName[], { preemptible = false, looks = false, capture = false }: {
    readonly preemptible?: boolean; readonly looks?: boolean; readonly capture?: boolean } = {},
): WebAssembly.Module {
  const gated = hypercalls.filter((name) => looks || isGated(name))
  const numbers = capture ? new Map(hypercalls.map((name, i) => [name, i])) : undefined
  const key = `${preemptible} ${looks} ${gated.map((name) => `${name} ${numbers?.get(name)}`).join()}`
  let gate = gates.get(key)
  if (gate === undefined) {
    gate = new WebAssembly.Module(encodeGate(gated, { preemptible, looks, capture: numbers }))
    gates.set(key, gate)
  }
  return gate
}
