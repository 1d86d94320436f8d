// cell/continuations.ts: continuation modules (translate/continuation.ts): made for the frames that there are, compiled
// once, and linked to the instance that goes on.
//
// A module is known by the functions and sites of its frames: forks of a cell, and a cell that is stopped again in the
// same loop, have the same. Making one needs the guest's code, which is read again from where it was loaded; the last
// few are kept.

import { CellarError } from '../base/errors.ts'
import { CAPTURE_EXPORTS, CONTROL_MEMORY, YIELD_TABLE } from '../translate/added_names.ts'
import { continuationOf, CONTINUATION } from '../translate/continuation.ts'
import { BadFrames, distinct, framesOf, keyOf } from '../translate/frames.ts'
import { HYPERCALLS } from '../wasi/cellar/table.ts'
import { decodeModule } from '../wasm/decode.ts'
import type { Module } from '../wasm/module.ts'
import { decodeNames } from '../wasm/names.ts'
import type { Executable } from './executable.ts'
import { checkProgram, prepareProgram, readProgram } from './program.ts'

/** Modules of guests, and continuations of each, that are kept: so many, of so many bytes. */
const MODULES_MAX = 4
const CONTINUATIONS_MAX = 64
const CONTINUATION_BYTES_MAX = 32 * 1024 * 1024

type Known = {
  readonly module: Module; readonly names: ReadonlyMap<number, string>; readonly made: Map<string, Made>; bytes: number
}
type Made = { readonly continuation: WebAssembly.Module; readonly bytes: number }

/** The continuations of the cells of a process. */
export class Continuations {
  readonly #known = new Map<Executable, Known>()

  /** What goes on from these frames. Throws CellarError SNAPSHOT_FOREIGN, if the frames don't fit the program. */
  of(executable: Executable, bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
    if (bytes.length === 0) return NOTHING
    try {
      const frames = framesOf(bytes)
      const known = this.#knownOf(executable)
      const key = distinct(frames).map((frame) => `${keyOf(frame)} ${frame.size}`).join()
      let made = known.made.get(key)
      if (made === undefined) {
        const { capture, hypercalls } = executable
        if (capture?.can !== true) throw new BadFrames('its program can\'t be captured here')
        const bytes = continuationOf({ ...known, info: capture.info,
          hypercalls: hypercalls.map((name) => ({ name, module: HYPERCALLS[name].module })) }, frames)
        made = { continuation: new WebAssembly.Module(bytes), bytes: bytes.length }
        known.bytes += bytes.length
      } else known.made.delete(key)
      known.made.set(key, made)
      for (const [oldest, { bytes }] of known.made) {
        const isFull = known.made.size > CONTINUATIONS_MAX || known.bytes > CONTINUATION_BYTES_MAX
        if (!isFull || oldest === key) break
        known.made.delete(oldest)
        known.bytes -= bytes
      }
      return made.continuation
    } catch (cause) {
      if (!(cause instanceof BadFrames) && !(cause instanceof WebAssembly.CompileError)) throw cause
      throw new CellarError('SNAPSHOT_FOREIGN', [`its stack isn't one of this program's: ${cause.message}`], { cause })
    }
  }

  #knownOf(executable: Executable): Known {
    let known = this.#known.get(executable)
    this.#known.delete(executable)
    if (known === undefined) {
      const { source, name } = executable
      if (source === undefined) throw new CellarError('CAPTURE_IMPOSSIBLE', [name, 'its code isn\'t there any more'])
      const file = readProgram(source.path)
      checkProgram(file, source.rules)
      const module = decodeModule(prepareProgram(file).prepared.bytes)
      known = { module, names: decodeNames(module).functions, made: new Map(), bytes: 0 }
    }
    this.#known.set(executable, known)
    if (this.#known.size > MODULES_MAX) this.#known.delete(this.#known.keys().next().value!)
    return known
  }
}

/** For cells that have not begun: there is nothing to go on with. */
const NOTHING = new WebAssembly.Module(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0))

/** What an instance gives to its continuation. */
export type ContinuationGrant = {
  readonly exports: WebAssembly.Exports; readonly memory: WebAssembly.Memory; readonly control: WebAssembly.Memory
}

/** The imports of a continuation. Throws CellarError SNAPSHOT_FOREIGN. */
export function continuationImports(
  continuation: WebAssembly.Module, { exports, memory, control }: ContinuationGrant,
): WebAssembly.Imports {
  const lookUp = exports[CAPTURE_EXPORTS.function] as (index: number) => WebAssembly.ImportValue
  const imports: Record<string, WebAssembly.ImportValue> = Object.create(null)
  for (const { name } of WebAssembly.Module.imports(continuation)) {
    imports[name] = name === CONTROL_MEMORY ? control : name.startsWith('memory') ? memory
      : name.startsWith(CONTINUATION.function) ? lookUp(Number(name.slice(CONTINUATION.function.length)))
      : exports[name === YIELD_TABLE ? name : `cellar:${name}`]!
  }
  return { cellar: imports }
}
