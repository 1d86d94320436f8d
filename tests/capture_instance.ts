// tests/capture_instance.ts: an instance of a test's module that is captured again and again while it runs.
//
// It is called through an entry (capture_entries.ts). Every so many checks its stack is left, and it goes on by a
// continuation: *here*, in the same instance, or *anew*, in a new one that gets all that the old one held: what
// JavaScript can copy by itself (memories, tables, references), and the rest through the area.
//
// A stack on which functions of other modules are, too, can't be left: those know nothing of it. Who is on the stack is
// told by V8: each instance is compiled from bytes of its own, with a name of its own, which its continuations have,
// too, and which V8 writes into stack traces.
//
// A deep stack takes its time to leave: it is left at the earliest after as many checks as a quarter of its frames, so
// that the work grows with what the guest does, and not with its square. A run of many checks is captured ever less.

import { newControl } from '../src/cell/pcpu.ts'
import { SaveArea } from '../src/cell/save_area.ts'
import { CAPTURE_EXPORTS, CONTROL_MEMORY, LEFT, YIELD, YIELD_TABLE } from '../src/translate/added_names.ts'
import { CAPTURE_SECTION, decodeInfo, type CaptureInfo } from '../src/translate/capture_info.ts'
import { continuationOf, CONTINUATION } from '../src/translate/continuation.ts'
import { distinct, framesOf, keyOf, link, type Frame } from '../src/translate/frames.ts'
import { ModuleTypes } from '../src/translate/module_types.ts'
import { CONTROL_EXTERNS } from '../src/translate/control_words.ts'
import { translate, type Options } from '../src/translate/translate.ts'
import { decodeModule } from '../src/wasm/decode.ts'
import { encodeModule, leb, name, SECTION_CUSTOM } from '../src/wasm/encode.ts'
import { customSection, importsOf, memoriesOf, type Module } from '../src/wasm/module.ts'
import { REFERENCE } from '../src/wasm/value_types.ts'
import { memoryName } from '../src/wasm/prepare.ts'
import { withEntries, type Entry } from './capture_entries.ts'

/** When a run is captured. */
export type CaptureRules = {
  /** At one check in so many. */
  readonly nth: number
  /** It goes on in a new instance, if it may. */
  readonly anew: boolean
  /** Who is checked as often goes around for good. */
  readonly checksMax?: number
  /** Changes frames: for tests of who is to find out. */
  change?(bytes: Uint8Array): void
}

/** What happened: how often it went on, in the same instance and in new ones; how often it couldn't be captured. */
export class CaptureCounts {
  checks = 0
  here = 0
  anew = 0
  /** Frames that were kept. */
  frames = 0
  /** Functions of another module, or of one that is called by other ways, were on the stack. */
  shared = 0
}

type Translator = (module: Module, options: Options) => { readonly bytes: Uint8Array<ArrayBuffer> }

/** A prepared module, as it can be captured. Throws Untreatable, Uncapturable. */
export class Capturable {
  /** With its entries. */
  readonly module: Module
  readonly types: ModuleTypes
  readonly info: CaptureInfo
  readonly entries: ReadonlyMap<number, Entry>
  readonly bytes: Uint8Array<ArrayBuffer>

  constructor(prepared: Module, unbounded = false, translator: Translator = translate) {
    const { bytes, entries } = withEntries(prepared)
    this.module = decodeModule(bytes)
    this.types = new ModuleTypes(this.module)
    this.entries = entries
    this.bytes = translator(this.module, { mode: 'preempt', unbounded, capture: true }).bytes
    const made = decodeModule(this.bytes)
    const { offset, end } = customSection(made, CAPTURE_SECTION)!
    this.info = decodeInfo(this.bytes.subarray(offset, end))
  }
}

/** What an instance is given: memories by index, then all imports but its control memory. */
export type Given = { readonly memories: readonly WebAssembly.Memory[]; readonly imports: WebAssembly.Imports }

type Parts = {
  readonly program: Capturable; readonly rules: CaptureRules; readonly counts: CaptureCounts
  /** Others may have the same. Default: a new one. */
  readonly control?: WebAssembly.Memory
  /** Makes what an instance is given, with new memories where they are its own. */
  give(): Given
  /** Called whenever its exports are another instance's. */
  moved?(exports: WebAssembly.Exports): void
}
type Held = { readonly exports: WebAssembly.Exports; readonly memories: readonly WebAssembly.Memory[] }
type Taken = ReturnType<SaveArea['take']>

let instances = 0

/** See above. */
export class CapturedInstance {
  /** Others have to do with it: it stays the instance that it is. */
  isLinked = false
  readonly #parts: Parts
  readonly #control: WebAssembly.Memory
  readonly #area: SaveArea
  readonly #name = `t${instances++}`
  readonly #module: WebAssembly.Module
  readonly #continuations = new Map<string, WebAssembly.Module>()
  #held: Held
  #isRunning = false
  // Checks since it was captured, and how many frames it had then.
  #since = 0
  #depth = 0
  // How often this run was checked, and captured.
  #checks = 0
  #times = 0
  #taken: Taken | undefined

  /** Throws what instantiation throws. */
  constructor(parts: Parts) {
    this.#parts = parts
    this.#control = parts.control ?? newControl()
    this.#area = new SaveArea(this.#control)
    new Int32Array(this.#control.buffer)[0] = 1
    this.#module = new WebAssembly.Module(named(parts.program.bytes, this.#name))
    this.#held = this.#instantiate()
  }

  get exports(): WebAssembly.Exports { return this.#held.exports }

  /** Calls an export, () → (), and captures it meanwhile. Throws what it throws. */
  async run(name: string): Promise<void> {
    let call = this.#held.exports[name] as () => void
    this.#depth = this.#checks = this.#times = 0
    try {
      for (;;) {
        this.#isRunning = true
        this.#taken = undefined
        await WebAssembly.promising(call)()
        this.#isRunning = false
        const taken = this.#taken ?? (this.#area.isUnwinding ? this.#area.take() : undefined)
        if (taken === undefined) return
        call = this.#goOn(taken)
      }
    } finally {
      this.#isRunning = false
      this.#area.take()
    }
  }

  // ---- its checks

  #isDue(): number {
    const { counts, rules } = this.#parts
    if (++this.#checks > (rules.checksMax ?? Infinity)) throw new Error('it never ends')
    this.#since++
    const isTime = this.#since * 4 >= this.#depth && this.#since * 16 >= this.#times
    return ++counts.checks % rules.nth === 0 && isTime ? 1 : 0
  }

  #decide(): void {
    this.#since = 0
    if (this.#isRunning && this.#isAlone()) this.#area.unwind()
    else this.#parts.counts.shared++
  }

  #isAlone(): boolean {
    if (!this.isLinked) return true
    const names = stackNames()
    this.#depth = names.length
    return names.every((name) => name === this.#name || name === YIELD_NAME)
  }

  // ---- how it goes on

  #goOn({ bytes, funcs, externs }: Taken): () => void {
    const { program, counts, rules } = this.#parts
    const control = this.#control
    rules.change?.(bytes)
    const frames = framesOf(bytes)
    counts.frames += this.#depth = frames.length
    this.#times++
    if (rules.anew && !this.isLinked && canCopy(program)) {
      counts.anew++
      const from = this.#held
      this.#held = this.#instantiate()
      new Copy(program, this.#area, from, this.#held).all(funcs, externs)
      this.#parts.moved?.(this.#held.exports)
    } else counts.here++
    const { exports, memories } = this.#held
    const module = this.#continuationOf(frames)
    const continuation = new WebAssembly.Instance(module,
      { cellar: continuationImports(module, { exports, memories, control }) })
    link(bytes, frames)
    this.#area.put(bytes, funcs)
    new Int32Array(control.buffer)[CONTROL_EXTERNS >> 2] = externs
    return continuation.exports[CONTINUATION.enter] as () => void
  }

  #continuationOf(frames: readonly Frame[]): WebAssembly.Module {
    const { program: { module, info } } = this.#parts
    const key = distinct(frames).map(keyOf).join()
    let made = this.#continuations.get(key)
    if (made === undefined) {
      const bytes = continuationOf({ module, info, hypercalls: [], hasExterns: true }, frames)
      made = new WebAssembly.Module(named(bytes, this.#name))
      this.#continuations.set(key, made)
    }
    return made
  }

  #instantiate(): Held {
    const { give } = this.#parts
    const { memories, imports } = give()
    const { exports } = new WebAssembly.Instance(this.#module, { ...imports, cellar: {
      // What isn't there isn't given: V8 says what is missing.
      ...Object.fromEntries(memories.flatMap((memory, i) =>
        memory === undefined ? [] : [[memoryName(i), memory]])),
      [CONTROL_MEMORY]: this.#control } })
    const yields = new WebAssembly.Instance(YIELD_MODULE, { '': {
      due: () => this.#isDue(),
      pause: new WebAssembly.Suspending(() => Promise.resolve()) as unknown as WebAssembly.ImportValue,
      decide: () => this.#decide(),
      left: () => { this.#taken = this.#area.take() },
    } }).exports
    const table = exports[YIELD_TABLE] as WebAssembly.Table
    table.set(YIELD, yields['yield'])
    table.set(LEFT, yields['left'])
    return { exports, memories }
  }
}

/** What a continuation imports from the instance that goes on. */
function continuationImports(
  continuation: WebAssembly.Module,
  { exports, memories, control }: Held & { readonly control: WebAssembly.Memory },
): WebAssembly.ModuleImports {
  const lookUp = exports[CAPTURE_EXPORTS.function] as (index: number) => WebAssembly.ImportValue
  const imports: WebAssembly.ModuleImports = Object.create(null)
  for (const { name: title } of WebAssembly.Module.imports(continuation)) {
    const index = Number(title.replace(/^\D*/, ''))
    imports[title] = title === CONTROL_MEMORY ? control : title.startsWith('memory') ? memories[index]!
      : title.startsWith(CONTINUATION.function) ? lookUp(index)
      : exports[title === YIELD_TABLE ? title : `cellar:${title}`]!
  }
  return imports
}

// ---- from one instance to another

// JavaScript can't look at exceptions.
function canCopy({ types }: Capturable): boolean {
  return [...types.tables, ...types.globals].every(({ type }) => !/exn/.test(types.values.nameOf(type)))
}

class Copy {
  readonly #program: Capturable
  readonly #area: SaveArea
  readonly #from: Held
  readonly #to: Held

  constructor(program: Capturable, area: SaveArea, from: Held, to: Held) {
    this.#program = program
    this.#area = area
    this.#from = from
    this.#to = to
  }

  /** The save area is empty before and after. */
  all(funcs: number, externs: number): void {
    const { types, module } = this.#program
    memoriesOf(module).forEach((_, i) => copyMemory(this.#from.memories[i]!, this.#to.memories[i]!))
    this.#call(this.#from, CAPTURE_EXPORTS.save)
    this.#area.put(this.#area.take().bytes)
    this.#call(this.#to, CAPTURE_EXPORTS.load)
    this.#area.take()
    types.globals.forEach(({ type, mutable }, i) => {
      if (!mutable || type < REFERENCE) return
      const title = `${CAPTURE_EXPORTS.global}${i}`
      ;(this.#to.exports[title] as WebAssembly.Global).value = this.#same(
        (this.#from.exports[title] as WebAssembly.Global).value) as never
    })
    const imported = importsOf(module, 'table').length
    types.tables.forEach((_, i) => { if (i >= imported) this.#table(`${CAPTURE_EXPORTS.table}${i}`) })
    if (funcs > 0) this.#table(CAPTURE_EXPORTS.funcs)
    if (externs > 0) this.#table(CAPTURE_EXPORTS.externs)
  }

  #call({ exports }: Held, title: string): void {
    (exports[title] as () => void)()
  }

  #table(title: string): void {
    const from = this.#from.exports[title] as WebAssembly.Table
    const to = this.#to.exports[title] as WebAssembly.Table
    const length = Number(from.length)
    const at = (i: number): number => typeof from.length === 'bigint' ? BigInt(i) as unknown as number : i
    const more = length - Number(to.length)
    // What may not be null has to be given a value.
    if (more > 0) to.grow(at(more), this.#same(from.get(at(length - 1))))
    for (let i = 0; i < length; i++) to.set(at(i), this.#same(from.get(at(i))))
  }

  // The same function of the other instance; what isn't one of its functions is the same in both.
  #same(value: unknown): unknown {
    if (typeof value !== 'function') return value
    const index = Number(value.name)
    const at = ({ exports }: Held, i: number): unknown => (exports[CAPTURE_EXPORTS.function] as (i: number) =>
      unknown)(i)
    if (at(this.#from, index) === value) return at(this.#to, index)
    const imported = Array.from({ length: this.#program.types.importedFunctions }, (_, i) => i)
      .find((i) => at(this.#from, i) === value)
    return imported === undefined ? value : at(this.#to, imported)
  }
}

function copyMemory(from: WebAssembly.Memory, to: WebAssembly.Memory): void {
  if (from === to) return
  const more = (from.buffer.byteLength - to.buffer.byteLength) / 65_536
  if (more > 0) {
    try {
      to.grow(more)
    } catch {
      to.grow(BigInt(more) as unknown as number)
    }
  }
  new Uint8Array(to.buffer).set(new Uint8Array(from.buffer))
}

// ---- names

/** The names of the modules whose functions are on the stack, innermost first. */
function stackNames(): string[] {
  const { prepareStackTrace, stackTraceLimit } = Error
  Error.stackTraceLimit = Infinity
  Error.prepareStackTrace = (_, sites) => sites
  try {
    const sites = new Error().stack as unknown as readonly NodeJS.CallSite[]
    return sites.flatMap((site) => {
      const url = site.getScriptNameOrSourceURL() ?? ''
      return url.startsWith('wasm://') ? [/\/([^/]*?)(-?[0-9a-f]{8})$/.exec(url)![1]!] : []
    })
  } finally {
    Error.prepareStackTrace = prepareStackTrace
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** A module whose name is this one. */
function named(bytes: Uint8Array<ArrayBuffer>, title: string): Uint8Array<ArrayBuffer> {
  const content = [...name('name'), 0, ...leb(title.length + 1), ...name(title)]
  const kept: Uint8Array[] = [bytes.subarray(0, 8)]
  for (const section of decodeModule(bytes).sections) {
    if (section.id !== SECTION_CUSTOM || section.name !== 'name') kept.push(bytes.subarray(section.start, section.end))
  }
  return new Uint8Array(Buffer.concat([...kept, Uint8Array.of(SECTION_CUSTOM, ...leb(content.length), ...content)]))
}

const YIELD_NAME = 'yield'
const [ACTION, QUESTION] = [0, 1]
const [DUE, PAUSE, DECIDE, LEAVE] = [0, 1, 2, 3]

// (func $yield (if (call $due) (then (call $pause) (call $decide))))
const YIELD_MODULE = new WebAssembly.Module(named(encodeModule({
  types: [{ params: [], results: [] }, { params: [], results: ['i32'] }],
  imports: [
    { module: '', name: 'due', type: QUESTION }, { module: '', name: 'pause', type: ACTION },
    { module: '', name: 'decide', type: ACTION }, { module: '', name: 'left', type: ACTION },
  ],
  functions: [
    { type: ACTION, locals: [], body: [0x10, DUE, 0x04, 0x40, 0x10, PAUSE, 0x10, DECIDE, 0x0b] },
    { type: ACTION, locals: [], body: [0x10, LEAVE] },
  ],
  exports: [{ name: 'yield', kind: 'func', index: 4 }, { name: 'left', kind: 'func', index: 5 }],
}), YIELD_NAME))
