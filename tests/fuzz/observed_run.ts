// tests/fuzz/observed_run.ts: runs a random module, translated or not, and writes down all that can be seen of it.
//
// The host's part is the same each time: what it gives to imports, what its functions answer, when they throw. A run is
// a list of lines: each call of the host with its arguments, how each export ended, then globals, memories and tables.
// NaNs are written alike, whatever their bits. Beside the lines stand figures that only translated modules have.

import { newControl } from '../../src/cell/pcpu.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import { encodeModule, type EncodableType } from '../../src/wasm/encode.ts'
import { memoriesOf, type MemoryType } from '../../src/wasm/module.ts'
import { HYPERVISOR_MODULE, START_EXPORT } from '../../src/wasm/prepare.ts'
import { CONTROL_MEMORY, FUEL_GLOBAL, YIELD_TABLE } from '../../src/translate/added_names.ts'
import { crc32 } from 'node:zlib'
import { CapturedInstance, type Capturable, type CaptureCounts, type CaptureRules } from '../capture_instance.ts'
import { CALLS_EXPORT, COUNTED_EXPORT, ROUNDS_EXPORT } from './random_module.ts'
import { Random } from './random.ts'
import type { Shape, ValueType } from './random_shape.ts'

/** How the hypervisor treats a run. */
export type Treatment = {
  /** The control word: what it is, or that it becomes 0 at each n-th yield and 1 at the next call of the host. */
  readonly word?: 0 | 1 | { readonly toggledAt: number }
  /** Fuel for each turn. */
  readonly slice?: number
  /** The guest's stack is parked at each yield. */
  readonly suspends?: boolean
  /** It is captured meanwhile (observeCaptured). */
  readonly captured?: CaptureRules
}

/**
 * What a call of an export took: rounds of loops, calls, yields, fuel, counted instructions. `trapped`: the fuel's
 * count is not complete. `threw`: the host did, or it ended so.
 */
export type Figures = {
  readonly rounds: number; readonly calls: number; readonly yields: number; readonly consumed: number
  readonly counted: number; readonly trapped: boolean; readonly threw: boolean
}

/** What was seen. `marks` is the fuel consumed at each call of the host. */
export type Observed = {
  readonly lines: readonly string[]; readonly marks: readonly number[]; readonly figures: readonly Figures[]
}

/** How often an export may go around, and call. */
const ROUNDS = 700
const CALLS = 40
const EXPORTS_MAX = 8
/** Whoever yields as often goes around for good. */
const YIELDS_MAX = 100_000
/** A host function throws at one in so many calls. */
const THROWS_AT = 23
const OBJECTS = ['a', 'b', 42, null, undefined, true] as const
/** Stacks that are parked are smaller; what one traps at is nothing that the translator keeps. */
const OVERFLOW = 'the stack is full'

/** True if a run met the end of the stack: where that is may differ. */
export function overflows({ lines }: Observed): boolean {
  return lines.some((line) => line.includes(OVERFLOW))
}

/** Runs `bytes`, a translation of the module that `shape` and `seed` describe or that module itself. */
export async function observe(
  seed: number, shape: Shape, bytes: Uint8Array<ArrayBuffer>, treatment: Treatment = {},
): Promise<Observed> {
  const run = new Run(seed, shape, treatment)
  await run.all(new WebAssembly.Module(bytes), bytes)
  return run
}

/** As observe, of a module that is captured. */
export async function observeCaptured(
  seed: number, shape: Shape, program: Capturable, rules: CaptureRules, counts: CaptureCounts,
): Promise<Observed> {
  const run = new Run(seed, shape, {})
  await run.captured(program, { ...rules, checksMax: YIELDS_MAX }, counts)
  return run
}

type Invoke = (name: string, args: readonly unknown[]) => unknown

class Run implements Observed {
  readonly lines: string[] = []
  readonly marks: number[] = []
  readonly figures: Figures[] = []
  readonly #shape: Shape
  readonly #treatment: Treatment
  readonly #random: Random
  readonly #control: WebAssembly.Memory
  #exports: WebAssembly.Exports = {}
  #yields = 0
  #consumed = 0
  #fuel: WebAssembly.Global | undefined
  #given = 0
  #hostCalls = 0
  #threw = false

  constructor(seed: number, shape: Shape, treatment: Treatment) {
    this.#shape = shape
    this.#treatment = treatment
    this.#random = new Random(seed ^ 0x5eed)
    this.#control = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true })
    this.#word(treatment.word === 0 ? 0 : 1)
  }

  async captured(program: Capturable, rules: CaptureRules, counts: CaptureCounts): Promise<void> {
    const { entries, module } = program
    const control = newControl()
    const { host } = this.#imports(new WebAssembly.Module(program.bytes), program.bytes, control)
    let instance: CapturedInstance
    try {
      instance = new CapturedInstance({ program, control, rules, counts,
        give: () => ({ imports: { host: host! }, memories: memoriesOf(module).map(memoryOf) }),
        moved: (exports) => { this.#exports = exports },
      })
    } catch (error) {
      this.lines.push(`instantiation: ${this.#ending(error)}`)
      return
    }
    // Instantiation would write into it once more.
    instance.isLinked = this.#shape.tables.some((one) => one.imported)
    this.#exports = instance.exports
    await this.#program(async (name, args) => {
      const index = module.exports.find((one) => one.name === name)!.index
      const { enter, args: given, results } = entries.get(index)!
      const global = (title: string): WebAssembly.Global => this.#exports[title] as WebAssembly.Global
      given.forEach((title, i) => { global(title).value = args[i] as never })
      await instance.run(enter)
      const values = results.map((title): unknown => global(title).value)
      return values.length < 2 ? values[0] : values
    })
  }

  async all(module: WebAssembly.Module, bytes: Uint8Array): Promise<void> {
    const imports = this.#imports(module, bytes)
    try {
      this.#exports = new WebAssembly.Instance(module, imports).exports
    } catch (error) {
      this.lines.push(`instantiation: ${this.#ending(error)}`)
      return
    }
    const { suspends = false, slice } = this.#treatment
    const table = this.#exports[YIELD_TABLE] as WebAssembly.Table | undefined
    table?.set(0, yieldFunction(suspends ? new WebAssembly.Suspending(async () => this.#yield()) : () => this.#yield()))
    this.#fuel = slice === undefined ? undefined : this.#exports[FUEL_GLOBAL] as WebAssembly.Global
    await this.#program((name, args) => {
      const f = this.#exports[name] as (...args: never[]) => unknown
      return (suspends ? WebAssembly.promising(f) : f)(...args as never[])
    })
  }

  async #program(invoke: Invoke): Promise<void> {
    const start = this.#exports[START_EXPORT]
    if (start !== undefined) {
      this.#fill()
      try {
        await invoke(START_EXPORT, [])
      } catch (error) {
        // What ends in its start function has no exports: nobody could tell by a tag what was thrown.
        this.#exports = {}
        this.lines.push(`instantiation: ${this.#ending(error)}`)
        return
      }
    }
    this.#state()
    const callable = Object.keys(this.#exports).filter((name) => /^f\d+$/.test(name))
    for (const name of callable.slice(0, EXPORTS_MAX)) await this.#call(name, invoke)
  }

  async #call(name: string, invoke: Invoke): Promise<void> {
    const index = Number(name.slice(1))
    const { params } = this.#shape.types.at(this.#shape.functions[index]!)
    const args = params.map((type) => this.#value(this.#random, type))
    this.#global(ROUNDS_EXPORT).value = ROUNDS
    this.#global(CALLS_EXPORT).value = CALLS
    this.#yields = this.#consumed = 0
    this.#fill()
    this.#global(COUNTED_EXPORT).value = 0
    let trapped = false
    this.#threw = false
    this.lines.push(`${name}(${args.map(format).join(', ')})`)
    try {
      const result: unknown = await invoke(name, args)
      this.lines.push(`${name} = ${Array.isArray(result) ? result.map(format).join(', ') : format(result)}`)
    } catch (error) {
      trapped = error instanceof WebAssembly.RuntimeError
      this.#threw = true
      this.lines.push(`${name}: ${this.#ending(error)}`)
    }
    this.#count()
    this.figures.push({
      rounds: ROUNDS - this.#global(ROUNDS_EXPORT).value, calls: CALLS - this.#global(CALLS_EXPORT).value,
      yields: this.#yields, consumed: this.#consumed, counted: this.#global(COUNTED_EXPORT).value, trapped,
      threw: this.#threw,
    })
    this.#state()
  }

  #global(name: string): WebAssembly.Global<'i32'> {
    return this.#exports[name] as WebAssembly.Global<'i32'>
  }

  // ---- the hypervisor's part

  #word(value: number): void {
    new Int32Array(this.#control.buffer)[0] = value
  }

  #yield(): void {
    if (++this.#yields > YIELDS_MAX) throw new Error('it never ends')
    const { word } = this.#treatment
    if (typeof word === 'object' && this.#yields % word.toggledAt === 0) this.#word(0)
    this.#count()
    this.#fill()
  }

  // The guest gets a slice.
  #fill(): void {
    if (this.#fuel === undefined) return
    this.#given = this.#fuel.value = this.#treatment.slice!
  }

  #count(): void {
    if (this.#fuel === undefined) return
    this.#consumed += this.#given - (this.#fuel.value as number)
    this.#given = this.#fuel.value as number
  }

  // ---- the host's part

  #imports(module: WebAssembly.Module, bytes: Uint8Array, control = this.#control): WebAssembly.Imports {
    const host: WebAssembly.ModuleImports = {}
    const cellar: WebAssembly.ModuleImports = { [CONTROL_MEMORY]: control }
    const { globals, tables } = this.#shape
    for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
      const index = Number(name.slice(1))
      if (from === HYPERVISOR_MODULE || kind === 'memory') continue
      if (kind === 'function') host[name] = this.#function(index)
      else if (kind === 'table') host[name] = tableOf(tables[index]!)
      else if (kind === 'global') {
        const { type, mutable } = globals[index]!
        host[name] = new WebAssembly.Global({ value: type as WebAssembly.ValueType, mutable },
          this.#value(new Random(index), type) as never)
      } else host[name] = tagOf(this.#tagTypes(index)) as unknown as WebAssembly.ImportValue
    }
    // What prepare.ts has made of memories, or what they were.
    for (const one of decodeModule(bytes).imports) {
      if (one.kind !== 'memory' || one.name === CONTROL_MEMORY) continue
      const space = one.module === HYPERVISOR_MODULE ? cellar : host
      space[one.name] = memoryOf(one.memory)
    }
    return { host, [HYPERVISOR_MODULE]: cellar }
  }

  #function(index: number): (...args: unknown[]) => unknown {
    const { results } = this.#shape.types.at(this.#shape.functions[index]!)
    return (...args) => {
      this.lines.push(`host ${index}(${args.map(format).join(', ')})`)
      if (this.#fuel !== undefined) this.marks.push(this.#consumed + this.#given - (this.#fuel.value as number))
      if (typeof this.#treatment.word === 'object') this.#word(1)
      const random = new Random(++this.#hostCalls)
      if (this.#hostCalls % THROWS_AT === 0) {
        this.#threw = true
        throw new Error(`thrown by host ${index}`)
      }
      return results.length === 0 ? undefined : this.#value(random, results[0]!)
    }
  }

  #tagTypes(index: number): readonly ValueType[] {
    return this.#shape.types.at(this.#shape.tags[index]!).params
  }

  #value(random: Random, type: ValueType): unknown {
    const bits = random.bits()
    switch (type) {
      case 'i32': return random.chance(60) ? bits % 40 : bits | 0
      case 'i64': return BigInt.asIntN(64, random.chance(60) ? BigInt(bits % 40) : BigInt(bits) * 0x1_2345_6789n)
      case 'f32': return Math.fround(random.chance(10) ? NaN : bits % 1000 / 8 - 10)
      case 'f64': return random.chance(10) ? -Infinity : bits / 64 - 1e6
      case 'externref': return random.pick(OBJECTS)
      default: return random.chance(50) ? this.#exports[`f${bits % 12}`] ?? null : null
    }
  }

  // ---- what can be seen

  #state(): void {
    for (const [name, one] of Object.entries(this.#exports)) {
      if (name.includes(':') || name === COUNTED_EXPORT) continue
      if (one instanceof WebAssembly.Global) {
        if (isReadable(one)) this.lines.push(`${name} is ${format(one.value)}`)
      } else if (one instanceof WebAssembly.Memory) {
        const { buffer } = one
        this.lines.push(`${name} has ${buffer.byteLength} bytes, ${crc32(new Uint8Array(buffer))}`)
      } else if (one instanceof WebAssembly.Table) this.lines.push(`${name} has ${tableDigest(one)}`)
    }
  }

  #ending(error: unknown): string {
    if (error instanceof RangeError) return OVERFLOW
    if (error instanceof WebAssembly.RuntimeError) return `trap: ${error.message}`
    if (!(error instanceof WebAssembly.Exception)) return `error: ${format(error)}`
    for (const [i] of this.#shape.tags.entries()) {
      const tag = this.#exports[`e${i}`] as WebAssembly.Tag | undefined
      if (tag === undefined || !error.is(tag)) continue
      return `exception ${i}: ${this.#tagTypes(i).map((_, at) => format(error.getArg(tag, at))).join(', ')}`
    }
    return 'exception'
  }
}

function isReadable(global: WebAssembly.Global): boolean {
  try {
    return global.value !== global
  } catch {
    return false // Of a vector or an exception.
  }
}

function format(value: unknown): string {
  if (typeof value === 'function') return `function ${value.name}`
  if (Object.is(value, -0)) return '-0'
  return typeof value === 'bigint' ? `${value}n` : String(value)
}

function tableDigest(table: WebAssembly.Table): string {
  const length = Number(table.length)
  const is64 = typeof table.length === 'bigint'
  const entries = Array.from({ length }, (_, i) => format(table.get((is64 ? BigInt(i) : i) as number)))
  const text = entries.join()
  return `${length} entries, ${text.length < 100 ? text : `${text.slice(0, 60)}… ${crc32(text)}`}`
}

// The library's types know neither addresses of 64 bits nor `bigint` limits.
function limitsOf({ min, max, index64 }: { min: number; max: number | undefined; index64: boolean }): object {
  const bound = (value: number): number | bigint => index64 ? BigInt(value) : value
  return {
    address: index64 ? 'i64' : 'i32', initial: bound(min), ...(max === undefined ? {} : { maximum: bound(max) }),
  }
}

function memoryOf(type: MemoryType): WebAssembly.Memory {
  return new WebAssembly.Memory({ ...limitsOf(type), shared: type.shared } as unknown as WebAssembly.MemoryDescriptor)
}

function tableOf(table: Shape['tables'][number]): WebAssembly.Table {
  const element = table.type === 'funcref' ? 'anyfunc' : 'externref'
  return new WebAssembly.Table({ ...limitsOf(table), element } as unknown as WebAssembly.TableDescriptor, null)
}

function tagOf(parameters: readonly ValueType[]): WebAssembly.Tag {
  return new WebAssembly.Tag({ parameters: [...parameters] as WebAssembly.ValueType[] })
}

const CALLER = new WebAssembly.Module(encodeModule({
  types: [{ params: [] satisfies EncodableType[], results: [] }],
  imports: [{ module: 'host', name: 'call', type: 0 }],
  functions: [{ type: 0, locals: [], body: [0x10, 0] }],
  exports: [{ name: 'call', kind: 'func', index: 1 }],
}))

/** What may stand in a table: a WebAssembly function that calls `call`. */
function yieldFunction(call: object): WebAssembly.ExportValue {
  return new WebAssembly.Instance(CALLER, { host: { call: call as WebAssembly.ImportValue } }).exports['call']!
}
