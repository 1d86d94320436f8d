// tests/conformance/spec_yields.ts: where the checks of translated modules lead in a test: off the stack and back.
//
// The function that a module's yield table gets is WebAssembly, one instance for each of its instances:
//
//   (func (export "yield")
//     count += 1
//     spent += slice - fuel
//     fuel = slice
//     (if (i32.eqz (i32.rem_u count nth)) (then (call $pause))))     ;; a WebAssembly.Suspending
//
// So one check in nth really suspends, amid calls between instances, as in a cell; the others return at once.

import { newControl } from '../../src/cell/pcpu.ts'
import { FUEL_GLOBAL, YIELD_TABLE } from '../../src/translate/added_names.ts'
import {
  KIND_FUNC, KIND_GLOBAL, leb, name, PREAMBLE, section, SECTION_CODE, SECTION_EXPORT, SECTION_FUNCTION, SECTION_IMPORT,
  SECTION_TYPE, vec,
} from '../../src/wasm/encode.ts'
import { opcodeOf } from '../../src/wasm/opcodes.ts'

/** When translated modules yield, and how. */
export type YieldRules = {
  /** What the control memory has at word 0: not 0 makes every check yield. */
  readonly word?: 0 | 1
  /** One yield in so many suspends. Default: none. */
  readonly nth?: number
  /** The fuel that a yield gives. Undefined: fuel isn't counted. */
  readonly slice?: number
}

/** What the instances of one run have in common. */
export class Yields {
  readonly control = newControl()
  readonly #count = mutable('i32', 0)
  readonly #spent = mutable('i64', 0n)
  readonly #fuels: WebAssembly.Global[] = []
  readonly #rules: YieldRules
  readonly #pause = new WebAssembly.Suspending(() => {
    this.pauses++
    return Promise.resolve()
  }) as unknown as WebAssembly.ImportValue

  constructor(rules: YieldRules) {
    this.#rules = rules
    new Int32Array(this.control.buffer)[0] = rules.word ?? 0
  }

  /** How often the stack was left. */
  pauses = 0

  /** How often a check yielded. */
  get count(): number { return this.#count.value as number >>> 0 }

  /** All fuel that was consumed, if it is counted. */
  spent(): bigint | undefined {
    if (this.#rules.slice === undefined) return undefined
    let left = 0
    for (const { value } of this.#fuels) left += value as number
    return this.#spent.value as bigint - BigInt(left)
  }

  /** Makes the checks of a new instance lead here, if it has any. */
  connect(exports: WebAssembly.Exports): void {
    const table = exports[YIELD_TABLE] as WebAssembly.Table | undefined
    const fuel = exports[FUEL_GLOBAL] as WebAssembly.Global | undefined
    if (fuel !== undefined) this.#fuels.push(fuel)
    if (table === undefined) return
    const { nth = NEVER, slice = 0 } = this.#rules
    table.set(0, new WebAssembly.Instance(YIELD, { '': {
      pause: this.#pause, count: this.#count, spent: this.#spent, fuel: fuel ?? mutable('i32', 0), nth, slice,
    } }).exports['yield'])
  }
}

function mutable(value: 'i32' | 'i64', initial: number | bigint): WebAssembly.Global {
  return new WebAssembly.Global({ value, mutable: true }, initial)
}

const NEVER = 0x7fff_ffff

const [I32, I64] = [0x7f, 0x7e]
const [COUNT, SPENT, FUEL, NTH, SLICE] = [0, 1, 2, 3, 4]
const PAUSE = 0
const VOID = 0x40

function op(instruction: string, ...immediates: readonly number[]): number[] {
  return [opcodeOf(instruction), ...immediates]
}

function encodeYield(): Uint8Array<ArrayBuffer> {
  const global = (what: string, type: number, isMutable: 0 | 1): number[] =>
    [...name(''), ...name(what), KIND_GLOBAL, type, isMutable]
  const body = [
    0,
    ...op('global.get', COUNT), ...op('i32.const', 1), ...op('i32.add'), ...op('global.set', COUNT),
    ...op('global.get', SPENT), ...op('global.get', SLICE), ...op('i64.extend_i32_s'), ...op('i64.add'),
    ...op('global.get', FUEL), ...op('i64.extend_i32_s'), ...op('i64.sub'), ...op('global.set', SPENT),
    ...op('global.get', SLICE), ...op('global.set', FUEL),
    ...op('global.get', COUNT), ...op('global.get', NTH), ...op('i32.rem_u'), ...op('i32.eqz'),
    ...op('if', VOID), ...op('call', PAUSE), ...op('end'),
    ...op('end'),
  ]
  return Uint8Array.from([
    ...PREAMBLE,
    ...section(SECTION_TYPE, vec([[0x60, 0, 0]])),
    ...section(SECTION_IMPORT, vec([
      [...name(''), ...name('pause'), KIND_FUNC, 0],
      global('count', I32, 1), global('spent', I64, 1), global('fuel', I32, 1), global('nth', I32, 0),
      global('slice', I32, 0),
    ])),
    ...section(SECTION_FUNCTION, vec([[0]])),
    ...section(SECTION_EXPORT, vec([[...name('yield'), KIND_FUNC, 1]])),
    ...section(SECTION_CODE, vec([[...leb(body.length), ...body]])),
  ])
}

const YIELD = new WebAssembly.Module(encodeYield())
