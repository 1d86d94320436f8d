// cell/preemptible.ts: loads a program that shares its pCPU by force: translated so that its quantum can end.

import { CellarError } from '../base/errors.ts'
import {
  CONTROL_MEMORY, FUEL_GLOBAL, translate, TRANSLATOR_VERSION, YIELD_TABLE, type Options,
} from '../translate/translate.ts'
import { Untreatable } from '../translate/untreatable.ts'
import { decodeModule } from '../wasm/decode.ts'
import { ReservedName } from '../wasm/prepare.ts'
import type { Executable } from './executable.ts'
import { executableOf, gateFor } from './load.ts'
import { loadProgram, type Program, type ProgramRules } from './program.ts'
import { keyOf, type TranslationCache } from './translation_cache.ts'

/** Translating a smaller module takes less time than looking it up. */
const CACHED_BYTES_MIN = 1024 * 1024

/** As loadExecutable, for cells that must let others run. Throws CellarError. */
export function loadPreemptible(
  path: string, rules: ProgramRules = { stubs: [] }, options: Options = { mode: 'preempt' }, cache?: TranslationCache,
): Executable {
  const program = loadProgram(path, rules)
  const executable = executableOf({ ...program, compiled: compiled(program, options, cache) })
  return {
    ...executable,
    gate: gateFor(executable.hypercalls, true),
    preemption: { table: YIELD_TABLE,
      ...(options.mode === 'fuel' ? { fuel: FUEL_GLOBAL } : { control: CONTROL_MEMORY }) },
    codeOffsetDelta: undefined,
  }
}

// The cache is an optimisation: what it gives is compiled like anything else, and made anew if that fails.
function compiled(program: Program, options: Options, cache: TranslationCache | undefined): WebAssembly.Module {
  const { bytes } = program.prepared
  if (cache === undefined || bytes.length < CACHED_BYTES_MIN) return new WebAssembly.Module(translated(program, options))
  const key = keyOf(bytes, `${options.mode} ${options.unbounded === true}`, TRANSLATOR_VERSION)
  const found = cache.get(key)
  if (found !== undefined && WebAssembly.validate(found)) return new WebAssembly.Module(found)
  const made = translated(program, options)
  cache.put(key, made)
  return new WebAssembly.Module(made)
}

function translated({ path, prepared }: Program, options: Options): Uint8Array<ArrayBuffer> {
  try {
    return translate(decodeModule(prepared.bytes), options).bytes
  } catch (cause) {
    if (cause instanceof Untreatable) throw new CellarError('MODULE_UNBOUNDED', [path, cause.construct], { cause })
    if (!(cause instanceof ReservedName)) throw cause
    throw new CellarError('MODULE_INVALID', [path, cause.message], { cause })
  }
}
