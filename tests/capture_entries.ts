// tests/capture_entries.ts: a guest's module with a way in that can be captured.
//
// A stack that is left returns through all its frames to whoever called: were that JavaScript, or another module, the
// arguments and results of the call would be lost, and nothing could go on from there. So each exported function gets
// an *entry*, () → (), which is code of the module like any other: it takes the arguments from globals, calls, and puts
// the results into others. Nothing that the module had gets another index.

import { BodyWriter } from '../src/wasm/body_writer.ts'
import { KIND_FUNC, KIND_GLOBAL, leb, name, SECTION_CODE, SECTION_EXPORT, SECTION_FUNCTION, SECTION_GLOBAL,
  SECTION_TYPE } from '../src/wasm/encode.ts'
import { importsOf, type Module } from '../src/wasm/module.ts'
import { opcodeOf } from '../src/wasm/opcodes.ts'
import { REFERENCE } from '../src/wasm/value_types.ts'
import { assemble, translateBodies } from '../src/translate/assemble.ts'
import { KEEP_EXCEPTION, ModuleTypes } from '../src/translate/module_types.ts'

/** The way into one function: names of exports. */
export type Entry = { readonly enter: string; readonly args: readonly string[]; readonly results: readonly string[] }

/** A module with entries, by the index of the function that is called. */
export type WithEntries = { readonly bytes: Uint8Array<ArrayBuffer>; readonly entries: ReadonlyMap<number, Entry> }

/** What begins the name of each export that is added: others have no colon. */
const ENTRY_PREFIX = 'test:'

/** Adds an entry for each exported function of a prepared module whose arguments and results can be kept. */
export function withEntries(module: Module): WithEntries {
  const maker = new Maker(module)
  const called = new Set(module.exports.filter(({ kind }) => kind === 'func').map(({ index }) => index))
  for (const index of called) maker.add(index)
  return { bytes: maker.bytes(), entries: maker.entries }
}

class Maker {
  readonly entries = new Map<number, Entry>()
  readonly #module: Module
  readonly #types: ModuleTypes
  readonly #firstGlobal: number
  readonly #globals = new Map<string, { readonly index: number; readonly type: number }>()
  readonly #bodies: Uint8Array[] = []
  readonly #exports: number[][] = []

  constructor(module: Module) {
    this.#module = module
    this.#types = new ModuleTypes(module)
    this.#firstGlobal = importsOf(module, 'global').length + module.globalCount
  }

  add(index: number): void {
    const { params, results } = this.#types.ofFunction(index)
    const kept = [...params.map((type) => this.#nullable(type)), ...results]
    // A result that is never null is nothing that a frame could hold.
    if (!kept.every((type) => this.#canKeep(type))) return
    const args = params.map((type, i) => this.#global(`arg ${i}`, this.#nullable(type)))
    const given = results.map((type, i) => this.#global(`result ${i}`, type))
    const out = new BodyWriter(64)
    out.append([0])
    params.forEach((type, i) => {
      out.append([GLOBAL_GET, ...leb(this.#globals.get(args[i]!)!.index)])
      if (this.#nullable(type) !== type) out.append([REF_AS_NON_NULL])
    })
    out.append([CALL, ...leb(index)])
    for (const one of given.toReversed()) out.append([GLOBAL_SET, ...leb(this.#globals.get(one)!.index)])
    out.append([END])
    const body = out.written().slice()
    const first = importsOf(this.#module, 'func').length + this.#module.functionCount
    const enter = `${ENTRY_PREFIX}enter ${index}`
    this.#exports.push([...name(enter), KIND_FUNC, ...leb(first + this.#bodies.length)])
    this.#bodies.push(Uint8Array.from([...leb(body.length), ...body]))
    this.entries.set(index, { enter, args, results: given })
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const module = this.#module
    const { values } = this.#types
    if (this.#bodies.length === 0) return Uint8Array.from(module.bytes)
    const code = translateBodies(module, { checks: 0, touches: () => false, translate: () => {} })
    return assemble(module, new Map<number, readonly ArrayLike<number>[]>([
      [SECTION_TYPE, [[0x60, 0, 0]]],
      [SECTION_FUNCTION, this.#bodies.map(() => leb(module.types.length))],
      [SECTION_GLOBAL, [...this.#globals.values()].map(({ type }) => [...values.bytesOf(type), MUTABLE,
        ...initial(type, values.nullOf(type)), END])],
      [SECTION_EXPORT, [...this.#exports, ...[...this.#globals].map(([title, { index }]) =>
        [...name(title), KIND_GLOBAL, ...leb(index)])]],
      [SECTION_CODE, this.#bodies],
    ]), code).slice()
  }

  #canKeep(type: number): boolean {
    const keep = this.#types.keepOf(type)
    return keep !== undefined && keep !== KEEP_EXCEPTION
  }

  #nullable(type: number): number {
    const { values } = this.#types
    const title = values.nameOf(type)
    return /^\(ref (?!null )/.test(title) ? values.of(title.replace('(ref ', '(ref null ')) : type
  }

  #global(what: string, type: number): string {
    const title = `${ENTRY_PREFIX}${what} ${this.#types.values.nameOf(type)}`
    if (!this.#globals.has(title)) {
      this.#globals.set(title, { index: this.#firstGlobal + this.#globals.size, type })
    }
    return title
  }
}

function initial(type: number, heap: readonly number[] | undefined): readonly number[] {
  return type < REFERENCE ? ZEROS[type]! : [REF_NULL, ...heap!]
}

const MUTABLE = 1
const END = opcodeOf('end')
const CALL = opcodeOf('call')
const GLOBAL_GET = opcodeOf('global.get')
const GLOBAL_SET = opcodeOf('global.set')
const REF_NULL = opcodeOf('ref.null')
const REF_AS_NON_NULL = opcodeOf('ref.as_non_null')
const ZEROS: readonly (readonly number[])[] = [
  [opcodeOf('i32.const'), 0], [opcodeOf('i64.const'), 0], [opcodeOf('f32.const'), 0, 0, 0, 0],
  [opcodeOf('f64.const'), 0, 0, 0, 0, 0, 0, 0, 0], [0xfd, 12, ...new Array<number>(16).fill(0)],
]
