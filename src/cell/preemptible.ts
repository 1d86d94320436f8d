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
import {
  checkProgram, compilePrepared, prepareProgram, readProgram, type PreparedProgram, type ProgramRules,
} from './program.ts'
import { keyOf, type TranslationCache } from './translation_cache.ts'

/** Translating a smaller module takes less time than looking it up. */
const CACHED_BYTES_MIN = 1024 * 1024

/** As loadExecutable, for cells that must let others run. Throws CellarError. */
export function loadPreemptible(
  path: string, rules: ProgramRules = { stubs: [] }, options: Options = { mode: 'preempt' }, cache?: TranslationCache,
): Executable {
  const file = readProgram(path)
  checkProgram(file, rules)
  const program = prepareProgram(file)
  const executable = executableOf({ ...program, compiled: compiled(program, options, cache) })
  return {
    ...executable,
    gate: gateFor(executable.hypercalls, true, options.mode === 'preempt'),
    preemption: { table: YIELD_TABLE,
      ...(options.mode === 'fuel' ? { fuel: FUEL_GLOBAL } : { control: CONTROL_MEMORY }) },
    codeOffsetDelta: undefined,
  }
}

// The guest is validated before it is translated: what names something that it hasn't got must not come to name what we
// add. What is in the cache was. The cache is an optimisation: what it gives is made anew if V8 doesn't take it.
function compiled(program: PreparedProgram, options: Options, cache: TranslationCache | undefined): WebAssembly.Module {
  const { bytes } = program.prepared
  const key = cache === undefined || bytes.length < CACHED_BYTES_MIN ? undefined
    : keyOf(bytes, `${options.mode} ${options.unbounded === true}`, TRANSLATOR_VERSION)
  const found = key === undefined ? undefined : cache!.get(key)
  const cached = found === undefined ? undefined : moduleOf(found)
  if (cached !== undefined) return cached
  // What is invalid is compiled for the error that says where.
  if (!WebAssembly.validate(bytes)) compilePrepared(program)
  const made = translated(program, options)
  const compiled = moduleOf(made)
  // What is added goes beyond a limit of V8's that the guest comes close to.
  if (compiled === undefined) {
    throw new CellarError('MODULE_UNBOUNDED', [program.path, 'nearly all that V8 allows a module'])
  }
  if (key !== undefined) cache!.put(key, made)
  return compiled
}

function moduleOf(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module | undefined {
  try {
    return new WebAssembly.Module(bytes)
  } catch {
    return undefined
  }
}

function translated({ path, prepared }: PreparedProgram, options: Options): Uint8Array<ArrayBuffer> {
  try {
    return translate(decodeModule(prepared.bytes), options).bytes
  } catch (cause) {
    if (cause instanceof Untreatable) throw new CellarError('MODULE_UNBOUNDED', [path, cause.construct], { cause })
    if (!(cause instanceof ReservedName)) throw cause
    throw new CellarError('MODULE_INVALID', [path, cause.message], { cause })
  }
}
