// cell/preemptible.ts: loads a program that shares its pCPU by force: translated so that its quantum can end.

import { CellarError } from '../base/errors.ts'
import { CONTROL_MEMORY, translate, Untreatable, YIELD_TABLE, type Options, type Translated } from '../translate/translate.ts'
import { decodeModule } from '../wasm/decode.ts'
import { HYPERVISOR_MODULE, ReservedName } from '../wasm/prepare.ts'
import type { Executable } from './executable.ts'
import { executableOf, gateFor } from './load.ts'
import { loadProgram, type Program, type ProgramRules } from './program.ts'

/** As loadExecutable, for cells that must let others run. Throws CellarError. */
export function loadPreemptible(
  path: string, rules: ProgramRules = { stubs: [] }, options: Options = { mode: 'preempt' },
): Executable {
  const program = loadProgram(path, rules)
  const { bytes } = translated(program, options)
  const executable = executableOf({ ...program, compiled: new WebAssembly.Module(bytes) })
  return {
    ...executable,
    gate: gateFor(executable.hypercalls, true),
    preemption: { module: HYPERVISOR_MODULE, name: CONTROL_MEMORY, table: YIELD_TABLE },
    codeOffsetDelta: undefined,
  }
}

function translated({ path, prepared }: Program, options: Options): Translated {
  try {
    return translate(decodeModule(prepared.bytes), options)
  } catch (cause) {
    if (cause instanceof Untreatable) throw new CellarError('MODULE_INVALID', [path, cause.message], { cause })
    if (!(cause instanceof ReservedName)) throw cause
    throw new CellarError('MODULE_INVALID', [path, cause.message], { cause })
  }
}
