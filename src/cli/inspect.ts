// cli/inspect.ts: `cellar inspect`: what a program is, what it will ask of the hypervisor, and whether it would run.
//
// `describe` makes plain data of a program's file, `text` prints it for people, and `-o json` prints the data itself:
// its keys are stable. Nothing of the program runs. That a program can't be run is an answer here, not an error.

import { statSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { formatSize } from '../base/units.ts'
import {
  checkProgram, compileProgram, isHypercall, knownHypercall, prepareProgram, readProgram,
} from '../cell/program.ts'
import type { ProgramFile } from '../cell/program.ts'
import { translate } from '../translate/translate.ts'
import { Uncapturable } from '../translate/uncapturable.ts'
import { Untreatable } from '../translate/untreatable.ts'
import { decodeModule } from '../wasm/decode.ts'
import { SECTION_CODE, SECTION_CUSTOM } from '../wasm/encode.ts'
import { formatFuncType, functionTypes, importsOf, memoriesOf, sectionOf } from '../wasm/module.ts'
import type { Export, ExternKind, Import, Module } from '../wasm/module.ts'
import { ReservedName } from '../wasm/prepare.ts'
import { decodeProducers, decodeTargetFeatures } from '../wasm/names.ts'
import type { Signature } from '../wasi/p1/table.ts'
import { INSPECT_FLAGS, parseFlags } from './flags.ts'
import { print } from './print.ts'
import { captureText } from './ps.ts'

/** `cellar inspect`: the exit status, which is 0 for a program that can't be run, too. Throws CellarError. */
export function inspect(argv: readonly string[]): number {
  const { flags, rest } = parseFlags(argv, INSPECT_FLAGS)
  const format = flags.output?.[0] ?? 'text'
  if (format !== 'text' && format !== 'json') {
    throw new CellarError('FLAG_VALUE_INVALID', ['--output', format, 'text or json'])
  }
  const [path, extra] = rest
  if (path === undefined) throw new CellarError('USAGE', ['Cannot inspect without a program'])
  if (extra !== undefined) {
    throw new CellarError('USAGE', [`Cannot inspect more than one program: "${extra}" follows "${path}"`])
  }
  const report = describe(path)
  print(format === 'json' ? `${JSON.stringify(report, null, 2)}\n` : text(report))
  return 0
}

// ---- the data

/** What `cellar inspect -o json` prints. */
export type Report = Verdict & {
  readonly path: string
  /** command: exports _start. reactor: exports _initialize. library: neither. component: not a core module. */
  readonly kind: 'command' | 'reactor' | 'library' | 'component'
  readonly sizeBytes: number
  /** Whether it can be saved, forked and moved while it runs; undefined if it can't run. */
  readonly capture?: { readonly can: boolean; readonly why?: string }
  /** Undefined for a component: its parts are not looked at. */
  readonly module?: ModuleReport
}
type Verdict = { readonly runs: boolean; readonly refusal?: { code: string; message: string; hint: string } }
type Tool = { readonly name: string; readonly version: string }
type ModuleReport = {
  readonly toolchain: { readonly language: Tool[]; readonly processedBy: Tool[]; readonly sdk: Tool[] }
  readonly features: string[]
  readonly functions: number
  readonly codeBytes: number
  readonly hasStartFunction: boolean
  readonly memories: {
    minBytes: number; maxBytes: number | null; importedAs: string | null; exportedAs: string[]
    shared: boolean; index64: boolean
  }[]
  readonly hypercalls: ({ name: string; service: string } &
    Pick<Signature, 'module' | 'answers' | 'support' | 'note'>)[]
  readonly unknownImports: { module: string; name: string; kind: ExternKind; type: string | null }[]
  readonly exports: { name: string; kind: ExternKind; type: string | null }[]
  readonly customSections: { name: string; sizeBytes: number }[]
}

/** Describes the program at `path`. Throws CellarError if it isn't WebAssembly. */
export function describe(path: string): Report {
  let file: ProgramFile
  try {
    file = readProgram(path)
  } catch (error) {
    if (!(error instanceof CellarError) || error.code !== 'MODULE_IS_COMPONENT') throw error
    return { path, kind: 'component', sizeBytes: statSync(path).size, ...refused(error) }
  }
  const { bytes, module } = file
  const exportsFunction = (name: string): boolean =>
    module.exports.some((one) => one.kind === 'func' && one.name === name)
  const kind = exportsFunction('_start') ? 'command' : exportsFunction('_initialize') ? 'reactor' : 'library'
  const judged = verdict(file)
  return { path, kind, sizeBytes: bytes.length, ...judged, ...(judged.runs ? { capture: captureOf(file) } : {}),
    module: describeModule(module) }
}

// As a host finds out: by translating it.
function captureOf(file: ProgramFile): NonNullable<Report['capture']> {
  try {
    translate(decodeModule(prepareProgram(file).prepared.bytes), { mode: 'preempt', capture: true })
    return { can: true }
  } catch (error) {
    if (error instanceof Uncapturable) return { can: false, why: error.index < 0 ? error.why : error.message }
    if (error instanceof Untreatable) return { can: false, why: `it uses ${error.construct}` }
    if (error instanceof ReservedName) return { can: false, why: error.message }
    throw error
  }
}

function verdict(file: ProgramFile): Verdict {
  try {
    checkProgram(file, { stubs: [] })
    compileProgram(file)
    return { runs: true }
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    return refused(error)
  }
}

function refused({ code, message, hint }: CellarError): Verdict {
  return { runs: false, refusal: { code, message, hint } }
}

function describeModule(module: Module): ModuleReport {
  const producers = decodeProducers(module)
  const tools = (field: string): Tool[] =>
    producers.filter((one) => one.field === field).map(({ name, version }) => ({ name, version }))
  const code = sectionOf(module, SECTION_CODE)
  const typeOf = functionTypes(module)
  return {
    toolchain: { language: tools('language'), processedBy: tools('processed-by'), sdk: tools('sdk') },
    features: decodeTargetFeatures(module),
    functions: module.functionCount,
    codeBytes: code === undefined ? 0 : code.end - code.offset,
    hasStartFunction: module.start !== undefined,
    memories: describeMemories(module),
    hypercalls: describeHypercalls(module),
    unknownImports: module.imports.filter((one) => one.kind !== 'memory' && !isHypercall(module, one))
      .map((one) => ({ module: one.module, name: one.name, kind: one.kind, type: importType(module, one) })),
    exports: module.exports.map((one) => ({ name: one.name, kind: one.kind, type: exportType(module, one, typeOf) })),
    customSections: module.sections.filter((one) => one.id === SECTION_CUSTOM)
      .map((one) => ({ name: one.name ?? '', sizeBytes: one.end - one.offset })),
  }
}

function describeMemories(module: Module): ModuleReport['memories'] {
  const imported = importsOf(module, 'memory')
  return memoriesOf(module).map(({ min, max, shared, index64 }, i) => {
    const from = imported[i]
    return {
      minBytes: min * WASM_PAGE_BYTES, maxBytes: max === undefined ? null : max * WASM_PAGE_BYTES,
      importedAs: from === undefined ? null : `${from.module}.${from.name}`,
      exportedAs: module.exports.filter((one) => one.kind === 'memory' && one.index === i).map((one) => one.name),
      shared, index64,
    }
  })
}

// In the order of SERVICES, each hypercall once: a module may import one twice.
function describeHypercalls(module: Module): ModuleReport['hypercalls'] {
  const found = new Map<string, Signature>()
  for (const one of module.imports) {
    const signature = isHypercall(module, one) ? knownHypercall(one) : undefined
    if (signature !== undefined) found.set(one.name, signature)
  }
  return Object.entries(SERVICES).flatMap(([file, service]) => [...found].filter(([, one]) => one.file === file)
    .map(([name, { module, answers, support, note }]) => ({ name, module, service, answers, support, note })))
}

function importType(module: Module, one: Import): string | null {
  if (one.kind === 'global') return `${one.mutable ? 'mut ' : ''}${one.type}`
  if (one.kind === 'table') return one.table.type
  const type = one.kind === 'memory' ? undefined : module.types[one.type]
  return type?.kind === 'func' ? formatFuncType(type) : null
}

function exportType(module: Module, one: Export, typeOf: ReturnType<typeof functionTypes>): string | null {
  if (one.kind === 'func') {
    const type = typeOf(one.index)
    return type === undefined ? null : formatFuncType(type)
  }
  if (one.kind === 'table') {
    return [...importsOf(module, 'table').map(({ table }) => table), ...module.tables][one.index]?.type ?? null
  }
  return null
}

// ---- the text

function text(report: Report): string {
  const { module, refusal } = report
  const lines = [
    row('Program', printable(report.path, 1000)),
    row('Kind', KINDS[report.kind]),
    row('Size', formatSize(report.sizeBytes)),
    ...(module === undefined ? [] : moduleRows(module)),
    row('Runs', refusal === undefined ? 'yes' : `no: ${refusal.code}`),
    ...(refusal === undefined ? [] : [...paragraph(refusal.message), ...paragraph(`Hint: ${refusal.hint}`)]),
    ...(report.capture === undefined ? [] : wrapped('Capture', captureText(report.capture).split(' '), ' ')),
    ...(module === undefined ? [] : [...hypercallLines(module), ...importLines(module), ...exportLines(module)]),
  ]
  return `${lines.join('\n')}\n`
}

function moduleRows(module: ModuleReport): string[] {
  const { language, processedBy, sdk } = module.toolchain
  const tools = (list: Tool[]): string[] =>
    list.map(({ name, version }) => printable(version === '' ? name : `${name} ${version.replace(/ \(.*/, '')}`))
  const custom = module.customSections.map((one) => `${printable(one.name)} (${formatSize(one.sizeBytes)})`)
  return [
    row('Code', `${formatSize(module.codeBytes)} in ${plural(module.functions, 'function')}`),
    ...(module.hasStartFunction ? [row('Start', 'a start function runs before the first export is called')] : []),
    ...wrapped('Languages', tools(language)),
    ...wrapped('Made by', tools([...processedBy, ...sdk])),
    ...wrapped('Features', module.features.map((one) => printable(one))),
    ...(module.memories.length === 0 ? [row('Memory', 'none')] : module.memories.map(memoryRow)),
    ...wrapped('Custom', custom),
  ]
}

function memoryRow(memory: ModuleReport['memories'][number]): string {
  const most = memory.maxBytes === null ? 'no maximum of its own' : `at most ${formatSize(memory.maxBytes)}`
  const from = memory.importedAs === null ? 'its own' : `imported as ${printable(memory.importedAs)}`
  const names = memory.exportedAs.map((one) => printable(one)).join(', ')
  const exported = names === '' ? '' : `, exported as ${names}`
  const kind = (memory.shared ? ', shared between threads' : '') + (memory.index64 ? ', 64-bit' : '')
  return row('Memory', `${formatSize(memory.minBytes)} at the start, ${most}; ${from}${exported}${kind}`)
}

function hypercallLines({ hypercalls }: ModuleReport): string[] {
  if (hypercalls.length === 0) return ['', 'Asks of the hypervisor: nothing']
  const services = [...new Set(hypercalls.map((one) => one.service))]
  const lines = ['', `Asks of the hypervisor: ${plural(hypercalls.length, 'hypercall')}`]
  for (const service of services) {
    lines.push(...wrapped(`  ${service}`, hypercalls.filter((one) => one.service === service)
      .map((one) => one.name + (one.answers === 'wait' ? '*' : ''))))
  }
  if (hypercalls.some((one) => one.answers === 'wait')) lines.push('  * may wait: the program is parked meanwhile')
  for (const { name, support, note } of hypercalls) {
    const how = support === 'none' ? 'not supported' : 'supported in part'
    if (support !== 'full') lines.push(...wrapped('', `${name}: ${how}. ${note}`.split(' '), ' '))
  }
  return lines
}

function importLines({ unknownImports }: ModuleReport): string[] {
  if (unknownImports.length === 0) return []
  const lines = ['', `Imports that the hypervisor doesn't have: ${unknownImports.length}`]
  for (const module of new Set(unknownImports.map((one) => one.module))) {
    const names = unknownImports.filter((one) => one.module === module)
      .map((one) => printable(one.name) + (one.kind === 'func' ? '' : ` (${one.kind})`))
    lines.push(`  ${printable(module)}`, ...wrapped('', capped(names)))
  }
  return lines
}

function exportLines({ exports }: ModuleReport): string[] {
  if (exports.length === 0) return ['', 'Exports: none']
  const shown = exports.slice(0, LISTED_MAX)
    .map(({ name, kind, type }) => ({ kind, name: printable(name), type: printable(type ?? '') }))
  const width = Math.min(40, Math.max(...shown.map((one) => one.name.length)))
  return ['', `Exports: ${exports.length}`,
    ...shown.map(({ name, kind, type }) => `  ${kind.padEnd(8)}${name.padEnd(width)}  ${type}`.trimEnd()),
    ...(exports.length > LISTED_MAX ? [`  … and ${exports.length - LISTED_MAX} more: '-o json' lists them all`] : [])]
}

function capped(names: string[]): string[] {
  return names.length <= LISTED_MAX ? names : [...names.slice(0, LISTED_MAX), `… and ${names.length - LISTED_MAX} more`]
}

function paragraph(sentence: string): string[] {
  return wrapped('', sentence.split(' '), ' ')
}

function plural(count: number, noun: string): string {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`
}

function row(label: string, value: string): string {
  return `${label.padEnd(LABEL_WIDTH)}${value}`
}

// A list beside its label, broken into lines of TEXT_WIDTH; nothing if the list is empty.
function wrapped(label: string, words: readonly string[], separator = ', '): string[] {
  const lines: string[] = []
  let line = ''
  words.forEach((word, i) => {
    const next = i === words.length - 1 ? word : word + separator
    if (line !== '' && line.length + next.trimEnd().length > TEXT_WIDTH) {
      lines.push(line)
      line = ''
    }
    line += next
  })
  if (line !== '') lines.push(line)
  return lines.map((one, i) => row(i === 0 ? label : '', one.trimEnd()))
}

const LABEL_WIDTH = 16
const TEXT_WIDTH = 84
/** Imports of one module, and exports, that the text shows. JSON has them all. */
const LISTED_MAX = 30

const KINDS: Record<Report['kind'], string> = {
  command: 'command: a WebAssembly program that runs from _start to its end',
  reactor: 'reactor: a WebAssembly library that is initialised once (_initialize), then called',
  library: 'library: a WebAssembly module without _start',
  component: 'component: WASI 0.2 or later',
}

// By the file that implements a hypercall.
const SERVICES: Record<Signature['file'], string> = {
  args: 'arguments', proc: 'lifecycle', clock: 'clock', random: 'entropy', poll: 'waiting', fd: 'console, file',
  filestat: 'file', path: 'file', readdir: 'file', sock: 'net', net: 'net', lifecycle: 'metadata',
}
