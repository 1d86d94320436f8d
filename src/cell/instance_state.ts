// cell/instance_state.ts: what a guest's instance holds beside its memory and its stack: globals, tables, references.
//
// Numbers are read and written by code that was added to the module, bit by bit (translate/capture_module.ts); what
// refers to functions goes by their indices. A table is kept as a whole, if the guest's code may change any.

import { CellarError } from '../base/errors.ts'
import { TABLE_ENTRIES_MAX, TABLE_GROWTH_MAX } from '../base/limits.ts'
import type { CaptureInfo } from '../translate/capture_info.ts'
import { CAPTURE_EXPORTS } from '../translate/added_names.ts'
import type { SaveArea } from './save_area.ts'
import type { TableImage } from './state.ts'

type Exports = WebAssembly.Exports
type Func = (...args: never[]) => unknown

/** The state of one instance. */
export class InstanceState {
  readonly #exports: Exports
  readonly #info: CaptureInfo
  readonly #area: SaveArea
  readonly #imports: () => number
  #imported: Map<unknown, number> | undefined

  /** `imports`: how many functions the guest imports. */
  constructor(exports: Exports, info: CaptureInfo, area: SaveArea, imports: () => number) {
    this.#exports = exports
    this.#info = info
    this.#area = area
    this.#imports = imports
  }

  /** Globals that aren't references. */
  globals(): Uint8Array<ArrayBuffer> {
    (this.#exports[CAPTURE_EXPORTS.save] as () => void)()
    return this.#area.take().bytes
  }

  setGlobals(bytes: Uint8Array): void {
    const expected = this.globals().length
    if (bytes.length !== expected) throw foreign(`its globals have ${bytes.length} bytes, not ${expected}`)
    this.#area.put(bytes)
    ;(this.#exports[CAPTURE_EXPORTS.load] as () => void)()
    this.#area.take()
  }

  /** Tables, if they may have changed. Throws CellarError, with `name`, if one holds what can't be kept. */
  tables(name: string): TableImage[] {
    if (!this.#info.changesTables) return []
    const images: TableImage[] = []
    for (let table = 0; ; table++) {
      const found = this.#exports[`${CAPTURE_EXPORTS.table}${table}`] as WebAssembly.Table | undefined
      if (found === undefined) return images
      const at = addressOf(found)
      images.push({ table, entries: Array.from({ length: Number(found.length) }, (_, i) =>
        this.#indexOf(found.get(at(i)), name)) })
    }
  }

  setTables(images: readonly TableImage[]): void {
    for (const { table, entries } of images) {
      const found = this.#exports[`${CAPTURE_EXPORTS.table}${table}`] as WebAssembly.Table | undefined
      if (found === undefined) throw foreign(`it has a table ${table}`)
      if (entries.length > TABLE_ENTRIES_MAX + TABLE_GROWTH_MAX) throw foreign(`a table has ${entries.length} entries`)
      try {
        const at = addressOf(found)
        const more = entries.length - Number(found.length)
        // What is never null needs a value at once.
        if (more > 0) found.grow(at(more), this.#functionAt(entries.at(-1)!))
        entries.forEach((index, i) => { found.set(at(i), this.#functionAt(index)) })
      } catch (cause) {
        if (cause instanceof CellarError) throw cause
        throw foreign(`table ${table} can't be made`)
      }
    }
  }

  /** The first `funcs` entries of the references that frames keep, then the globals that are references. */
  references(funcs: number, name: string): (number | null)[] {
    const table = this.#exports[CAPTURE_EXPORTS.funcs] as WebAssembly.Table | undefined
    const kept = Array.from({ length: funcs }, (_, i) => this.#indexOf(table!.get(i), name))
    return [...kept, ...this.#referenceGlobals().map(({ value }) => this.#indexOf(value, name))]
  }

  /** True if what frames keep of the host's references is nothing: no hypercall gives any. */
  hasNoExterns(count: number): boolean {
    const table = this.#exports[CAPTURE_EXPORTS.externs] as WebAssembly.Table | undefined
    for (let i = 0; i < count; i++) if (table!.get(i) !== null) return false
    return true
  }

  /** Puts references where their frames find them: how many these are. */
  setReferences(references: readonly (number | null)[]): number {
    const globals = this.#referenceGlobals()
    const funcs = references.length - globals.length
    if (funcs < 0) throw foreign('it lacks references')
    const table = this.#exports[CAPTURE_EXPORTS.funcs] as WebAssembly.Table | undefined
    if (funcs > 0 && table === undefined) throw foreign('it has references')
    try {
      if (funcs > 0 && table!.length < funcs) table!.grow(funcs - table!.length)
      for (let i = 0; i < funcs; i++) table!.set(i, this.#functionAt(references[i]!))
      globals.forEach((global, i) => { global.value = this.#functionAt(references[funcs + i]!) })
    } catch (cause) {
      if (cause instanceof CellarError) throw cause
      throw foreign("its references can't be made")
    }
    return funcs
  }

  #referenceGlobals(): WebAssembly.Global[] {
    const found: WebAssembly.Global[] = []
    for (const index of this.#info.referenceGlobals) {
      found.push(this.#exports[`${CAPTURE_EXPORTS.global}${index}`] as WebAssembly.Global)
    }
    return found
  }

  #functionAt(index: number | null): Func | null {
    if (index === null) return null
    // Functions that were added are ours to call: they reach the save area. The first of them is $yield.
    if (!Number.isSafeInteger(index) || index < 0 || index >= this.#info.poll - 1) {
      throw foreign(`it refers to function ${index}`)
    }
    return (this.#exports[CAPTURE_EXPORTS.function] as (index: number) => Func)(index)
  }

  // An exported function's name is its index, unless it is another module's.
  #indexOf(value: unknown, name: string): number | null {
    if (value === null || value === undefined) return null
    if (typeof value === 'function') {
      this.#imported ??= new Map(Array.from({ length: this.#imports() }, (_, i) => [this.#functionAt(i), i]))
      const index = this.#imported.get(value) ?? Number(value.name)
      if (Number.isSafeInteger(index) && index >= 0 && index < this.#info.poll - 1 &&
        this.#functionAt(index) === value) return index
    }
    throw new CellarError('CAPTURE_IMPOSSIBLE', [name, 'it refers to something that is not its own'])
  }
}

// Where the library's types know no tables of 64-bit addresses.
function addressOf({ length }: WebAssembly.Table): (index: number) => number {
  return typeof length as unknown === 'bigint' ? (index) => BigInt(index) as unknown as number : (index) => index
}

function foreign(why: string): CellarError {
  return new CellarError('SNAPSHOT_FOREIGN', [why])
}
