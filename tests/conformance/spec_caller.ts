// tests/conformance/spec_caller.ts: calls functions of any type from JavaScript, without a change of a single bit.
//
// JavaScript can neither pass a v128 nor hold every NaN. So each function that is called gets a module of its own, that
// imports it and exports `call`, () → (): this takes the arguments from a memory and a table, calls, and puts the
// results there. This also keeps JavaScript off the stack between `call` and the function, as JSPI demands.
//
// A function is imported with its exact type, which may refer to others of its module: the type section is copied.

import {
  KIND_FUNC, KIND_GLOBAL, KIND_MEMORY, KIND_TABLE, leb, limits, name, PREAMBLE, section, SECTION_CODE, SECTION_EXPORT,
  SECTION_FUNCTION, SECTION_IMPORT, SECTION_TYPE, sleb, vec,
} from '../../src/wasm/encode.ts'
import { importsOf, sectionOf, type FuncType, type Module } from '../../src/wasm/module.ts'
import { instructionOf, opcodeOf } from '../../src/wasm/opcodes.ts'
import { Reader } from '../../src/wasm/reader.ts'
import type { Entry } from '../capture_entries.ts'
import { numberText, type Argument, type NumberType } from './wast_values.ts'

/** A function that an instance exports. `module` is what it was instantiated from, before any translation. */
export type Callee = { readonly module: Module; readonly index: number; readonly func: WebAssembly.ExportValue }

/** What was made for calls, by module and index of the type: runs of one script share it. */
export type Wrappers = WeakMap<Module, Map<number | string, WebAssembly.Module>>

/** A call that takes its arguments from globals, and puts its results there (tests/capture_entries.ts). */
export type EntryCallee = {
  readonly module: Module; readonly index: number; readonly entry: Entry
  /** The instance's: another one's after the call, perhaps. */
  exports(): WebAssembly.Exports
  run(): Promise<void>
}

/** Calls functions, one at a time. */
export class Caller {
  readonly #memory = new WebAssembly.Memory({ initial: 1 })
  readonly #table = new WebAssembly.Table({ element: 'externref', initial: SLOTS })
  readonly #view = new DataView(this.#memory.buffer)
  readonly #wrappers: Wrappers
  readonly #calls = new WeakMap<object, () => Promise<unknown>>()
  readonly #hosts: object[] = []

  constructor(wrappers: Wrappers) {
    this.#wrappers = wrappers
  }

  /** Calls a function on a stack of its own, so that it may suspend: the texts of its results. */
  async call(callee: Callee, args: readonly Argument[]): Promise<string[]> {
    const { typeIndex, type } = typeOf(callee, args)
    const call = this.#callOf(callee, typeIndex)
    args.forEach((arg, i) => this.#write(i, arg))
    await call()
    return this.#results(callee.module, type)
  }

  /** As `call`, of a function that has an entry. */
  async enter({ module, index, entry, exports, run }: EntryCallee, args: readonly Argument[]): Promise<string[]> {
    const { typeIndex, type } = typeOf({ module, index }, args)
    const wrapper = this.#wrapperOf(module, `entry ${typeIndex}`, () => encodeTransfer(module, typeIndex, entry))
    const transfer = (name: string): void => (new WebAssembly.Instance(wrapper, {
      '': { m: this.#memory, t: this.#table }, entry: exports() as WebAssembly.ModuleImports,
    }).exports[name] as () => void)()
    args.forEach((arg, i) => this.#write(i, arg))
    transfer('put')
    await run()
    transfer('take')
    return this.#results(module, type)
  }

  #results(module: Module, { results }: FuncType): string[] {
    return results.map((result, i) => this.#read(module, result, SLOTS / 2 + i))
  }

  #wrapperOf(module: Module, key: number | string, encode: () => Uint8Array<ArrayBuffer>): WebAssembly.Module {
    let wrappers = this.#wrappers.get(module)
    if (wrappers === undefined) this.#wrappers.set(module, wrappers = new Map())
    let wrapper = wrappers.get(key)
    if (wrapper === undefined) wrappers.set(key, wrapper = new WebAssembly.Module(encode()))
    return wrapper
  }

  #callOf({ module, func }: Callee, typeIndex: number): () => Promise<unknown> {
    const known = this.#calls.get(func as object)
    if (known !== undefined) return known
    const wrapper = this.#wrapperOf(module, typeIndex, () => encodeCall(module, typeIndex))
    const { exports } = new WebAssembly.Instance(wrapper, { '': { f: func, m: this.#memory, t: this.#table } })
    const call = WebAssembly.promising(exports['call'] as () => void)
    this.#calls.set(func as object, call)
    return call
  }

  #write(slot: number, arg: Argument): void {
    if (arg.type === 'ref') {
      this.#table.set(slot, arg.host === null ? null : this.#hosts[arg.host] ??= { host: arg.host })
    } else {
      this.#view.setBigUint64(slot * SLOT, BigInt.asUintN(64, arg.bits), true)
      this.#view.setBigUint64(slot * SLOT + 8, arg.bits >> 64n, true)
    }
  }

  #read(module: Module, type: string, slot: number): string {
    const at = slot * SLOT
    const number = NUMBERS[type]
    if (number !== undefined) {
      const low = this.#view.getBigUint64(at, true)
      const bits = number.bits === 128 ? (this.#view.getBigUint64(at + 8, true) << 64n) | low
        : BigInt.asUintN(number.bits, low)
      return numberText(type as NumberType, bits)
    }
    const flags = this.#view.getUint32(at, true)
    if ((flags & IS_NULL) !== 0) return 'ref null'
    const kind = hierarchyOf(module, type)
    if (kind === 'func' || kind === 'exn') return `ref ${kind}`
    if ((flags & IS_I31) !== 0) return `ref i31 ${this.#view.getUint32(at + 4, true)}`
    if ((flags & IS_STRUCT) !== 0) return 'ref struct'
    if ((flags & IS_ARRAY) !== 0) return 'ref array'
    const host = this.#hosts.indexOf(this.#table.get(slot) as object)
    return `ref extern ${host < 0 ? 'of the guest' : host}`
  }
}

function typeOf({ module, index }: Pick<Callee, 'module' | 'index'>, args: readonly Argument[]):
    { typeIndex: number; type: FuncType } {
  const typeIndex = typeIndexOf(module, index)
  const type = module.types[typeIndex]
  if (type?.kind !== 'func') throw new TypeError(`no function has the type ${typeIndex}`)
  if (type.params.length !== args.length) throw new TypeError(`${type.params.length} arguments, not ${args.length}`)
  return { typeIndex, type }
}

/** The index of the type of function `index`. */
function typeIndexOf(module: Module, index: number): number {
  const imported = importsOf(module, 'func')
  if (index < imported.length) return imported[index]!.type
  const declared = sectionOf(module, SECTION_FUNCTION)!
  const reader = new Reader(module.bytes, declared.offset, declared.end, 'function section')
  reader.u32()
  for (let i = imported.length; i < index; i++) reader.u32()
  return reader.u32()
}

type FunctionCode = { readonly name: string; readonly body: readonly number[] }

// A module with the types of `module`, and functions, () → ().
function encode(module: Module, imports: readonly (readonly number[])[], first: number,
  functions: readonly FunctionCode[]): Uint8Array<ArrayBuffer> {
  const types = sectionOf(module, SECTION_TYPE)!
  const reader = new Reader(module.bytes, types.offset, types.end, 'type section')
  const groups = reader.u32()
  return Uint8Array.from([
    ...PREAMBLE,
    ...section(SECTION_TYPE, [...leb(groups + 1), ...module.bytes.subarray(reader.at, types.end), 0x60, 0, 0]),
    ...section(SECTION_IMPORT, vec([
      ...imports,
      [...name(''), ...name('m'), KIND_MEMORY, ...limits({ min: 1 })],
      [...name(''), ...name('t'), KIND_TABLE, EXTERNREF, ...limits({ min: SLOTS })],
    ])),
    ...section(SECTION_FUNCTION, vec(functions.map(() => leb(module.types.length)))),
    ...section(SECTION_EXPORT, vec(functions.map((one, i) => [...name(one.name), KIND_FUNC, ...leb(first + i)]))),
    ...section(SECTION_CODE, vec(functions.map(({ body }) => [...leb(body.length), ...body]))),
  ])
}

function encodeCall(module: Module, typeIndex: number): Uint8Array<ArrayBuffer> {
  return encode(module, [[...name(''), ...name('f'), KIND_FUNC, ...leb(typeIndex)]], 1,
    [{ name: 'call', body: callCode(module, typeIndex) }])
}

// `put` takes arguments from the slots, `take` brings results there: from and to globals of an entry.
function encodeTransfer(module: Module, typeIndex: number, { args, results }: Entry): Uint8Array<ArrayBuffer> {
  const type = module.types[typeIndex]
  if (type?.kind !== 'func') throw new TypeError(`no function has the type ${typeIndex}`)
  const types = [...type.params, ...type.results].map(nullable)
  const globals = [...args, ...results].map((title, i) =>
    [...name('entry'), ...name(title), KIND_GLOBAL, ...encodeType(types[i]!), MUTABLE])
  const put = [...vec([]), ...type.params.flatMap((one, i) =>
    [...pushCode(module, nullable(one), i), ...op('global.set', ...leb(i))]), ...op('end')]
  const take = [
    ...vec(type.results.map((one) => [1, ...encodeType(one)])),
    ...type.results.flatMap((one, i) =>
      [...op('global.get', ...leb(args.length + i)), ...op('local.set', ...leb(i)), ...storeCode(module, one, i)]),
    ...op('end'),
  ]
  return encode(module, globals, 0, [{ name: 'put', body: put }, { name: 'take', body: take }])
}

function callCode(module: Module, typeIndex: number): number[] {
  const type = module.types[typeIndex]
  if (type?.kind !== 'func') return []
  const { params, results } = type
  return [
    ...vec(results.map((one) => [1, ...encodeType(one)])),
    ...params.flatMap((one, i) => pushCode(module, one, i)),
    ...op('call', 0),
    ...results.flatMap((_, i) => op('local.set', ...leb(results.length - 1 - i))),
    ...results.flatMap((one, i) => storeCode(module, one, i)),
    ...op('end'),
  ]
}

// An argument, from its slot. Of references, only a host's can be passed.
function pushCode(module: Module, type: string, slot: number): number[] {
  const number = NUMBERS[type]
  if (number !== undefined) return [...op('i32.const', 0), ...op(`${type}.load`, number.align, ...leb(slot * SLOT))]
  const kind = hierarchyOf(module, type)
  const get = [...op('i32.const', ...sleb(slot)), ...op('table.get', 0)]
  const value = heapOf(type) === 'extern' ? get
    : heapOf(type) === 'any' ? [...get, ...op('any.convert_extern')] : op('ref.null', ...encodeHeap(BOTTOMS[kind]!))
  return isNullable(type) ? value : [...value, ...op('ref.as_non_null')]
}

// A result, from its local to its slot. Of a reference it is the flags, then what an i31 holds.
function storeCode(module: Module, type: string, local: number): number[] {
  const slot = SLOTS / 2 + local
  const get = op('local.get', ...leb(local))
  const put = (value: readonly number[], store: string, align: number, at = 0): number[] =>
    [...op('i32.const', 0), ...value, ...op(store, align, ...leb(slot * SLOT + at))]
  const number = NUMBERS[type]
  if (number !== undefined) return put(get, `${type}.store`, number.align)
  const kind = hierarchyOf(module, type)
  const flags = [...get, ...op('ref.is_null')]
  if (kind === 'any') {
    for (const [heap, flag] of [['i31', IS_I31], ['struct', IS_STRUCT], ['array', IS_ARRAY]] as const) {
      flags.push(...get, ...op('ref.test', ...encodeHeap(heap)), ...op('i32.const', flag), ...op('i32.mul'),
        ...op('i32.or'))
    }
  }
  const code = put(flags, 'i32.store', 2)
  if (kind === 'any') {
    const i31 = [...get, ...op('ref.cast', ...encodeHeap('i31')), ...op('i31.get_u')]
    code.push(...get, ...op('ref.test', ...encodeHeap('i31')), ...op('if', VOID), ...put(i31, 'i32.store', 2, 4),
      ...op('end'))
  }
  if (kind === 'any' || kind === 'extern') {
    code.push(...op('i32.const', ...sleb(slot)), ...get, ...(kind === 'any' ? op('extern.convert_any') : []),
      ...op('table.set', 0))
  }
  return code
}

function op(instruction: string, ...immediates: readonly number[]): number[] {
  const { prefix, code } = instructionOf(opcodeOf(instruction))!
  return [...(prefix === 0 ? [code] : [prefix, ...leb(code)]), ...immediates]
}

// Types as decode.ts spells them: 'funcref' is '(ref null func)'.
function heapOf(type: string): string {
  return type.startsWith('(') ? type.slice(1, -1).split(' ').at(-1)! : type.replace(/ref$/, '')
}

function isNullable(type: string): boolean {
  return !type.startsWith('(') || type.startsWith('(ref null ')
}

function nullable(type: string): string {
  return isNullable(type) ? type : type.replace('(ref ', '(ref null ')
}

function encodeType(type: string): number[] {
  const number = NUMBERS[type]
  return number !== undefined ? [number.code] : [isNullable(type) ? REF_NULL : REF, ...encodeHeap(heapOf(type))]
}

function encodeHeap(heap: string): number[] {
  return HEAPS[heap] === undefined ? sleb(Number(heap)) : [HEAPS[heap]]
}

/** The type of all references that a reference of this type could be cast from: any, func, extern, exn. */
function hierarchyOf(module: Module, type: string): string {
  const heap = heapOf(type)
  switch (heap) {
    case 'func': case 'nullfunc': return 'func'
    case 'extern': case 'nullextern': return 'extern'
    case 'exn': case 'nullexn': return 'exn'
    default: return module.types[Number(heap)]?.kind === 'func' ? 'func' : 'any'
  }
}

/** Arguments lie in the lower half of the slots, results in the upper one. */
const SLOTS = 2048
const SLOT = 16

const NUMBERS: Readonly<Record<string, { code: number; bits: number; align: number }>> = {
  i32: { code: 0x7f, bits: 32, align: 2 }, i64: { code: 0x7e, bits: 64, align: 3 },
  f32: { code: 0x7d, bits: 32, align: 2 }, f64: { code: 0x7c, bits: 64, align: 3 },
  v128: { code: 0x7b, bits: 128, align: 4 },
}
const HEAPS: Readonly<Record<string, number>> = {
  nullexn: 0x74, nullfunc: 0x73, nullextern: 0x72, null: 0x71, func: 0x70, extern: 0x6f, any: 0x6e, eq: 0x6d, i31: 0x6c,
  struct: 0x6b, array: 0x6a, exn: 0x69,
}
/** The type of each hierarchy's null alone. */
const BOTTOMS: Readonly<Record<string, string>> = {
  any: 'null', func: 'nullfunc', extern: 'nullextern', exn: 'nullexn',
}
const EXTERNREF = 0x6f
const MUTABLE = 1
const REF_NULL = 0x63
const REF = 0x64
const VOID = 0x40

const IS_NULL = 1
const IS_I31 = 2
const IS_STRUCT = 4
const IS_ARRAY = 8
