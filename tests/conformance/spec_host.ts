// tests/conformance/spec_host.ts: executes the commands of a test script, its modules as they are or translated.
//
// A translated module gets from here what a cell gets from the hypervisor: its memories (what the original imports, or
// new ones), its start function is called, and its checks lead somewhere (spec_yields.ts). If the mode captures, it is
// called through its entries, and leaves its stack meanwhile (../capture_instance.ts).
//
// What a command comes to is a text, so that two runs can be compared: 'returned i32 00000001', 'trap: divide by zero'.

import { CONTROL_MEMORY } from '../../src/translate/added_names.ts'
import { Uncapturable } from '../../src/translate/uncapturable.ts'
import { Untreatable } from '../../src/translate/untreatable.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import { importsOf, type MemoryType, type Module } from '../../src/wasm/module.ts'
import { HYPERVISOR_MODULE, memoryName, prepare, START_EXPORT } from '../../src/wasm/prepare.ts'
import type { Entry } from '../capture_entries.ts'
import { Capturable, CaptureCounts, CapturedInstance, type CaptureRules } from '../capture_instance.ts'
import type { Caller } from './spec_caller.ts'
import { Yields, type YieldRules } from './spec_yields.ts'
import type { Action, Command } from './wast_script.ts'
import { numberText } from './wast_values.ts'

/** How modules are treated in a run. */
export type Mode = {
  readonly name: string
  /** Undefined: modules run as they are. `unbounded` is translate's option. Throws Untreatable. */
  readonly translate?: (module: Module, unbounded: boolean) => Uint8Array<ArrayBuffer>
  /** Modules are translated so that they can be captured, if they can; `translate` is for those that can't. */
  readonly capture?: CaptureRules
} & YieldRules

/** A script's module as bytes, and decoded. */
export type Loaded = { readonly bytes: Uint8Array<ArrayBuffer>; readonly module: Module }

/**
 * What a command came to. `spent` is the fuel that it took, if the mode counts it; `detail` is what V8 said, beyond
 * what can be compared.
 */
export type Outcome = {
  readonly text: string; readonly results?: readonly string[]; readonly spent?: bigint; readonly detail?: string
}

type Compiled = { readonly compiled: WebAssembly.Module; readonly treated: boolean; readonly start: boolean
  readonly capturable?: Capturable | undefined }
type Exports = Record<string, WebAssembly.ImportValue>
type Instance = { readonly module: Module; exports: Exports; readonly captured?: CapturedInstance
  readonly entries?: ReadonlyMap<number, Entry> }

/** One run of one script. */
export class Host {
  /** What of each construct was refused. */
  readonly refusals = new Map<string, number>()
  /** What can't be captured: how many modules, by why. */
  readonly uncapturable = new Map<string, number>()
  readonly captures = new CaptureCounts()
  /** Calls that went through an entry, of modules that can be captured; and those that didn't. */
  readonly calls = { entered: 0, direct: 0 }
  readonly yields: Yields
  readonly #mode: Mode
  readonly #caller: Caller
  readonly #compiled = new Map<Loaded, Compiled>()
  readonly #definitions = new Map<string, Loaded>()
  readonly #instances = new Map<string, Instance>()
  readonly #registered: Record<string, Exports> = Object.assign(Object.create(null), { spectest: spectest() })
  #current: Instance | undefined

  constructor(mode: Mode, caller: Caller) {
    this.#mode = mode
    this.#caller = caller
    this.yields = new Yields(mode)
  }

  /** Executes a command. `loaded` is its module, if it has one. Never throws. */
  async execute(command: Command, loaded: Loaded | undefined): Promise<Outcome> {
    const before = this.yields.spent()
    const outcome = await this.#attempt(command, loaded)
    const after = this.yields.spent()
    return before === undefined || after === undefined ? outcome : { ...outcome, spent: after - before }
  }

  async #attempt(command: Command, loaded: Loaded | undefined): Promise<Outcome> {
    try {
      return await this.#execute(command, loaded)
    } catch (error) {
      return describe(error)
    }
  }

  async #execute(command: Command, loaded: Loaded | undefined): Promise<Outcome> {
    switch (command.kind) {
      case 'module': return await this.#enter(command.id, loaded!)
      case 'uninstantiable': case 'unlinkable': await this.#instantiate(loaded!); return OK
      case 'definition':
        this.#compile(loaded!)
        this.#definitions.set(command.id ?? '', loaded!)
        return OK
      case 'instance': return await this.#enter(command.id, this.#definitions.get(command.definition ?? '')!)
      case 'register': {
        const { captured, exports } = this.#instanceOf(command.id)
        if (captured !== undefined) captured.isLinked = true
        this.#registered[command.name] = exports
        return OK
      }
      case 'action': case 'return': case 'trap': case 'exhaustion': case 'exception':
        return await this.#act(command.action)
      case 'refused': case 'other': return OK
    }
  }

  async #enter(id: string | undefined, loaded: Loaded): Promise<Outcome> {
    this.#current = undefined
    if (id !== undefined) this.#instances.delete(id)
    const instance = await this.#instantiate(loaded)
    this.#current = instance
    if (id !== undefined) this.#instances.set(id, instance)
    return OK
  }

  #instanceOf(id: string | undefined): Instance {
    const instance = id === undefined ? this.#current : this.#instances.get(id)
    if (instance === undefined) throw new Absent(`there is no instance ${id ?? ''}`)
    return instance
  }

  async #act({ kind, id, name, args }: Action): Promise<Outcome> {
    const instance = this.#instanceOf(id)
    const { module, exports, captured, entries } = instance
    const found = module.exports.find((one) => one.name === name)
    if (found === undefined) throw new Absent(`there is no export ${name}`)
    const value = exports[name]!
    const { index } = found
    const entry = kind === 'get' ? undefined : entries?.get(index)
    if (kind !== 'get' && captured !== undefined) this.calls[entry === undefined ? 'direct' : 'entered']++
    const results = kind === 'get' ? [globalText(value as WebAssembly.Global)]
      : entry !== undefined && captured !== undefined ? await this.#caller.enter({ module, index, entry,
        exports: () => captured.exports, run: () => captured.run(entry.enter) }, args)
      : await this.#caller.call({ module, index, func: value as WebAssembly.ExportValue }, args)
    return { text: ['returned', ...results].join(' '), results }
  }

  async #instantiate(loaded: Loaded): Promise<Instance> {
    const { compiled, treated, start, capturable } = this.#compile(loaded)
    const { module } = loaded
    if (capturable !== undefined) return await this.#instantiateCaptured(capturable, module, start)
    const imports = treated ? this.#treatedImports(module, compiled) : this.#imports(module)
    const { exports } = new WebAssembly.Instance(compiled, imports)
    if (treated) this.yields.connect(exports)
    if (start) await WebAssembly.promising(exports[START_EXPORT] as () => void)()
    return { module, exports: exports as Exports }
  }

  async #instantiateCaptured(program: Capturable, module: Module, start: boolean): Promise<Instance> {
    const captured = new CapturedInstance({
      program, control: this.yields.control, rules: this.#mode.capture!, counts: this.captures,
      give: () => ({ memories: this.#memories(module), imports: this.#imports(module) }),
      moved: (exports) => { instance.exports = exports as Exports },
    })
    captured.isLinked = module.imports.some(({ module: from, name, kind }) => from !== 'spectest' ||
      kind === 'memory' || kind === 'table' || name === 'shared_memory')
    const instance: Instance = { module, exports: captured.exports as Exports, captured, entries: program.entries }
    if (start) await captured.run(START_EXPORT)
    return instance
  }

  #compile(loaded: Loaded): Compiled {
    let compiled = this.#compiled.get(loaded)
    if (compiled === undefined) this.#compiled.set(loaded, compiled = this.#treat(loaded))
    return compiled
  }

  // What is refused runs all the same: without bounds if that is possible, else untranslated.
  #treat({ bytes, module }: Loaded): Compiled {
    const { translate } = this.#mode
    // As in a cell, V8 validates before anything is translated.
    const original = new WebAssembly.Module(bytes)
    if (translate === undefined) return { compiled: original, treated: false, start: false }
    const { bytes: prepared, hasStart: start } = prepare(bytes, module)
    let translated = prepared
    for (const unbounded of [false, true]) {
      try {
        const capturable = this.#capturable(prepared, unbounded)
        if (capturable !== undefined) return { compiled: original, treated: true, start, capturable }
        translated = translate(decodeModule(prepared), unbounded)
        break
      } catch (error) {
        if (!(error instanceof Untreatable)) throw error
        if (!unbounded) this.refusals.set(error.construct, (this.refusals.get(error.construct) ?? 0) + 1)
      }
    }
    return { compiled: new WebAssembly.Module(translated), treated: true, start }
  }

  // Undefined if it can't be captured, or isn't to be. Throws Untreatable.
  #capturable(prepared: Uint8Array<ArrayBuffer>, unbounded: boolean): Capturable | undefined {
    if (this.#mode.capture === undefined) return undefined
    try {
      return new Capturable(decodeModule(prepared), unbounded)
    } catch (error) {
      if (!(error instanceof Uncapturable)) throw error
      const why = error.why.replace(/\d+/g, 'N')
      this.uncapturable.set(why, (this.uncapturable.get(why) ?? 0) + 1)
      return undefined
    }
  }

  #import(from: string, name: string): WebAssembly.ImportValue | undefined {
    return this.#registered[from]?.[name]
  }

  #imports(module: Module): WebAssembly.Imports {
    const imports: Record<string, Record<string, WebAssembly.ImportValue>> = Object.create(null)
    for (const { module: from, name } of module.imports) {
      const given = imports[from] ??= Object.create(null) as Exports
      const value = this.#import(from, name)
      if (value !== undefined) given[name] = value
    }
    return imports
  }

  #treatedImports(module: Module, compiled: WebAssembly.Module): WebAssembly.Imports {
    const own: Exports = Object.create(null)
    this.#memories(module).forEach((memory, i) => { if (memory !== undefined) own[memoryName(i)] = memory })
    const asked = WebAssembly.Module.imports(compiled)
      .some((one) => one.module === HYPERVISOR_MODULE && one.name === CONTROL_MEMORY)
    if (asked) own[CONTROL_MEMORY] = this.yields.control
    return Object.assign(this.#imports(module), { [HYPERVISOR_MODULE]: own })
  }

  // Those that it imports, as far as they are there, and new ones.
  #memories(module: Module): WebAssembly.Memory[] {
    return [...importsOf(module, 'memory').map((one) => this.#import(one.module, one.name) as WebAssembly.Memory),
      ...module.memories.map(memoryOf)]
  }
}

/** The script speaks of what isn't there: most often since an earlier command failed. */
class Absent extends Error {}

function describe(error: unknown): Outcome {
  const detail = String(error)
  if (error instanceof Absent) return { text: 'absent', detail }
  if (error instanceof WebAssembly.RuntimeError) {
    // Offsets of bytes differ.
    return { text: `trap: ${error.message.replace(/^WebAssembly\.\w+\(\): /, '').replace(/ ?@\+\d+/, '')}` }
  }
  if (error instanceof RangeError && error.message.startsWith('Maximum call stack')) return { text: 'exhausted' }
  if (error instanceof WebAssembly.Exception) return { text: 'exception' }
  if (error instanceof WebAssembly.CompileError) return { text: 'not compiled', detail }
  if (error instanceof WebAssembly.LinkError || (error instanceof TypeError && /Import #/.test(error.message))) {
    return { text: 'unlinkable', detail }
  }
  return { text: `error: ${String(error)}` }
}

// Scripts look at globals of type i32 and i64 only; others can't be told apart by their JavaScript values.
function globalText({ value }: WebAssembly.Global): string {
  const number = value as number | bigint
  return typeof number === 'bigint' ? numberText('i64', BigInt.asUintN(64, number))
    : numberText('i32', BigInt(number >>> 0))
}

function memoryOf({ min, max, shared, index64 }: MemoryType): WebAssembly.Memory {
  const bound = (pages: number): number => index64 ? BigInt(pages) as unknown as number : pages
  return new WebAssembly.Memory({
    initial: bound(min), shared, ...(max === undefined ? {} : { maximum: bound(max) }),
    ...(index64 ? { address: 'i64' } : {}),
  })
}

function spectest(): Exports {
  const nothing = (): void => {}
  const global = (value: 'i32' | 'i64' | 'f32' | 'f64', initial: number | bigint): WebAssembly.Global =>
    new WebAssembly.Global({ value }, initial)
  return {
    print: nothing, print_i32: nothing, print_i64: nothing, print_f32: nothing, print_f64: nothing,
    print_i32_f32: nothing, print_f64_f64: nothing,
    global_i32: global('i32', 666), global_i64: global('i64', 666n), global_f32: global('f32', 666.6),
    global_f64: global('f64', 666.6),
    table: new WebAssembly.Table({ element: 'anyfunc', initial: 10, maximum: 20 }),
    table64: new WebAssembly.Table({
      element: 'anyfunc', address: 'i64', initial: 10n as unknown as number, maximum: 20n as unknown as number,
    } as WebAssembly.TableDescriptor),
    memory: new WebAssembly.Memory({ initial: 1, maximum: 2 }),
    shared_memory: new WebAssembly.Memory({ initial: 1, maximum: 2, shared: true }),
  }
}

const OK: Outcome = { text: 'ok' }
