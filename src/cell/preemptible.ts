// cell/preemptible.ts: loads a program that shares its pCPU by force: translated so that its quantum can end.

import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { CAPTURE_SECTION, decodeInfo } from '../translate/capture_info.ts'
import { CONTROL_MEMORY, FUEL_GLOBAL, YIELD_TABLE } from '../translate/added_names.ts'
import { translate, TRANSLATOR_VERSION, type Options } from '../translate/translate.ts'
import { Uncapturable } from '../translate/uncapturable.ts'
import { Untreatable } from '../translate/untreatable.ts'
import { decodeModule } from '../wasm/decode.ts'
import { decodeNames } from '../wasm/names.ts'
import { ReservedName } from '../wasm/prepare.ts'
import type { Executable } from './executable.ts'
import { executableOf, gateFor } from './load.ts'
import {
  checkProgram, compilePrepared, prepareProgram, readProgram, type PreparedProgram, type ProgramRules,
} from './program.ts'
import { keyOf, type TranslationCache } from './translation_cache.ts'

/** Translating a smaller module takes less time than looking it up. */
const CACHED_BYTES_MIN = 1024 * 1024

/**
 * As loadExecutable, for cells that must let others run. With `options.capture` they can be captured, too, unless the
 * program has what can't: `capture` says so then. Throws CellarError.
 */
export function loadPreemptible(
  path: string, rules: ProgramRules = { stubs: [] }, options: Options = { mode: 'preempt' }, cache?: TranslationCache,
): Executable {
  const file = readProgram(path)
  checkProgram(file, rules)
  const program = prepareProgram(file)
  const made = compiled(program, options, cache)
  const { capture } = made
  const executable = executableOf({ ...program, compiled: made.module }, rules)
  const looks = options.mode === 'preempt' && capture?.can !== true
  return {
    ...executable,
    gate: gateFor(executable.hypercalls, { preemptible: true, looks, capture: capture?.can === true }),
    preemption: { table: YIELD_TABLE,
      ...(options.mode === 'fuel' ? { fuel: FUEL_GLOBAL } : { control: CONTROL_MEMORY }) },
    codeOffsetDelta: undefined,
    ...(capture === undefined ? {} : { capture }),
  }
}

type Made = { readonly module: WebAssembly.Module; readonly capture?: Executable['capture'] }

function compiled(program: PreparedProgram, options: Options, cache: TranslationCache | undefined): Made {
  if (options.capture !== true) return { module: compiledAs(program, options, cache) }
  const why = options.mode === 'fuel' ? 'it counts what it executes (deterministic)' : undefined
  try {
    if (why === undefined) {
      const module = compiledAs(program, options, cache)
      const [section] = WebAssembly.Module.customSections(module, CAPTURE_SECTION)
      return { module, capture: { can: true, info: decodeInfo(new Uint8Array(section!)) } }
    }
  } catch (error) {
    if (!(error instanceof Uncapturable)) throw error
    return { module: compiledAs(program, { ...options, capture: false }, cache),
      capture: { can: false, why: nameOf(error, program) } }
  }
  return { module: compiledAs(program, { ...options, capture: false }, cache), capture: { can: false, why: why! } }
}

function nameOf({ index, why }: Uncapturable, { module }: PreparedProgram): string {
  if (index < 0) return why
  const name = decodeNames(module).functions.get(index)
  return `function ${index}${name === undefined ? '' : ` (${printable(name)})`} ${why}`
}

// The guest is validated before it is translated: what names something that it hasn't got must not come to name what we
// add. What is in the cache was. The cache is an optimisation: what it gives is made anew if V8 doesn't take it.
function compiledAs(program: PreparedProgram, options: Options, cache: TranslationCache | undefined):
    WebAssembly.Module {
  const { bytes } = program.prepared
  const key = cache === undefined || bytes.length < CACHED_BYTES_MIN ? undefined
    : keyOf(bytes, `${options.mode} ${options.unbounded === true} ${options.capture === true}`, TRANSLATOR_VERSION)
  const found = key === undefined ? undefined : cache!.get(key)
  const cached = found === undefined ? undefined : moduleOf(found)
  if (cached !== undefined) return cached
  // What is invalid is compiled for the error that says where.
  if (!WebAssembly.validate(bytes)) compilePrepared(program)
  const made = translated(program, options)
  const module = moduleOf(made)
  if (module !== undefined) {
    if (key !== undefined) cache!.put(key, made)
    return module
  }
  // What is added goes beyond a limit of V8's that the guest comes close to.
  if (options.capture === true) throw new Uncapturable(-1, 'it is nearly all that V8 allows a module')
  throw new CellarError('MODULE_UNBOUNDED', [program.path, 'nearly all that V8 allows a module'])
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
