// tests/conformance/spec_run.ts: runs one test script untranslated, then in each mode, and compares what it comes to.
//
// What a translation must do is what the same V8 does without it; the script's expectations say in addition which
// answers are faults of V8's. So a command passes in a mode if it comes to the same as untranslated: the same bits, or
// others that the script allows as well (NaNs), the same message of a trap. Where fuel is counted, what a call spends
// must be the same in all modes that count it, however often it was interrupted.

import { decodeModule } from '../../src/wasm/decode.ts'
import { prepare } from '../../src/wasm/prepare.ts'
import { Caller, type Wrappers } from './spec_caller.ts'
import { Host, type Loaded, type Mode, type Outcome } from './spec_host.ts'
import type { Converter } from './wast_converter.ts'
import { parseScript, type Command, type Source } from './wast_script.ts'
import { allows, expectedText } from './wast_values.ts'

/**
 * How the commands of one mode went. `skipped` are those that can't be executed here. Of a mode that captures: how
 * often a guest went on in the same instance, and in new ones; what frames were kept; how often it wasn't captured, as
 * functions of another module were on its stack; calls through entries, and those of functions that can't have one.
 */
export type Count = {
  modules: number; passed: number; failed: number; skipped: number; yields: number; pauses: number
  here: number; anew: number; frames: number; shared: number; entered: number; direct: number
}

/** Of nothing yet. */
function noCount(): Count {
  return { modules: 0, passed: 0, failed: 0, skipped: 0, yields: 0, pauses: 0, here: 0, anew: 0, frames: 0, shared: 0,
    entered: 0, direct: 0 }
}

/**
 * Modules that are malformed or invalid, by who refused them. `prepared`: V8, but not once they were prepared, since a
 * start function is a mere export then.
 */
export type Refusals = { decoder: number; v8: number; converter: number; nobody: number; prepared: number }

/** What a script came to. */
export type Report = {
  /** By mode; the first is UNTRANSLATED, where `failed` are faults of V8's. */
  readonly counts: Map<string, Count>
  readonly refusals: Refusals
  /** What the translator refused: how many modules, by construct; in the mode in which these are most. */
  readonly untreatable: Map<string, number>
  /** Likewise, what can't be captured. */
  readonly uncapturable: Map<string, number>
  /** Where V8 doesn't do what the script expects, untranslated. */
  readonly v8: string[]
  /** Where a mode differs. */
  readonly failures: string[]
}

/** The name under which the run without any translation is counted. */
export const UNTRANSLATED = 'untranslated'

/** Runs a script in each mode. Throws SyntaxError if it can't be read. */
export async function runScript(
  name: string, text: string, modes: readonly Mode[], { parse, strict }: Converter,
): Promise<Report> {
  const report: Report = {
    counts: new Map(), refusals: { decoder: 0, v8: 0, converter: 0, nobody: 0, prepared: 0 }, untreatable: new Map(),
    uncapturable: new Map(), v8: [], failures: [],
  }
  const steps = parseScript(text).map((command): Step => ({
    command, where: `${name}:${command.line}`, ...load(command, parse),
  }))
  for (const { command, where } of steps) if (command.kind === 'refused') refuse(command.source, where, strict, report)
  const wrappers: Wrappers = new WeakMap()
  for (const mode of [{ name: UNTRANSLATED }, ...modes]) await runMode(mode, steps, new Caller(wrappers), report)
  return report
}

/** A command, its module if it has one, and what is known of it from earlier modes. */
type Step = {
  readonly command: Command; readonly where: string; readonly loaded?: Loaded; readonly missing?: string
  untranslated?: Outcome; spent?: bigint
}

function load(command: Command, parse: Converter['parse']): { loaded?: Loaded; missing?: string } {
  if (command.kind === 'other') return { missing: command.head }
  if (command.kind === 'refused') return { missing: 'no module' }
  if (!('source' in command)) return {}
  let bytes
  try {
    bytes = bytesOf(command.source, parse)
  } catch {
    return { missing: 'its text can\'t be converted' }
  }
  try {
    return { loaded: { bytes, module: decodeModule(bytes) } }
  } catch (error) {
    return { missing: String(error) }
  }
}

function bytesOf(source: Source, parse: Converter['parse']): Uint8Array<ArrayBuffer> {
  return 'bytes' in source ? source.bytes : parse(source.text)
}

async function runMode(mode: Mode, steps: readonly Step[], caller: Caller, report: Report): Promise<void> {
  const host = new Host(mode, caller)
  const count = noCount()
  report.counts.set(mode.name, count)
  for (const step of steps) {
    const { command, where, loaded, missing } = step
    if (command.kind === 'refused') continue
    if (loaded !== undefined || command.kind === 'instance') count.modules++
    const outcome = missing === undefined ? await host.execute(command, loaded) : { text: `absent: ${missing}` }
    const isPlain = mode.name === UNTRANSLATED
    if (isPlain) step.untranslated = outcome
    const fault = isPlain ? shortfall(command, outcome) : difference(step, outcome)
    if (fault !== undefined) {
      (isPlain ? report.v8 : report.failures).push(`${where} ${mode.name}: ${fault} ${outcome.detail ?? ''}`.trim())
    }
    count[fault !== undefined ? 'failed' : outcome.text.startsWith('absent') ? 'skipped' : 'passed']++
  }
  const { yields, captures: { here, anew, frames, shared }, calls } = host
  Object.assign(count, { yields: yields.count, pauses: yields.pauses, here, anew, frames, shared, ...calls })
  if (mode.word === 0 && count.yields > 0) {
    report.failures.push(`${steps[0]?.where} ${mode.name}: it yielded ${count.yields} times`)
  }
  raise(report.untreatable, host.refusals)
  raise(report.uncapturable, host.uncapturable)
}

function raise(all: Map<string, number>, of: ReadonlyMap<string, number>): void {
  for (const [what, modules] of of) all.set(what, Math.max(modules, all.get(what) ?? 0))
}

// What a command expects of V8, and what came; undefined if that is the same.
function shortfall(command: Command, { text, results }: Outcome): string | undefined {
  if (text.startsWith('absent')) return undefined
  switch (command.kind) {
    case 'return':
      return results !== undefined && allows(command.expected, results) ? undefined
        : `expected ${expectedText(command.expected)}: ${text}`
    case 'trap': return text.startsWith('trap') ? undefined : `expected a trap: ${text}`
    case 'exhaustion': return text === 'exhausted' ? undefined : `expected the end of the stack: ${text}`
    case 'exception': return text === 'exception' ? undefined : `expected an exception: ${text}`
    case 'unlinkable': return text === 'unlinkable' ? undefined : `expected that it can't be linked: ${text}`
    case 'uninstantiable':
      return /^(trap|exhausted|exception)/.test(text) ? undefined : `expected that it traps: ${text}`
    case 'action': return results !== undefined ? undefined : text
    default: return text === 'ok' ? undefined : text
  }
}

// How an outcome differs from what the command comes to untranslated.
function difference(step: Step, outcome: Outcome): string | undefined {
  const { command } = step
  const plain = step.untranslated!
  const isAllowed = command.kind === 'return' && plain.results !== undefined && outcome.results !== undefined &&
    allows(command.expected, plain.results) && allows(command.expected, outcome.results)
  if (outcome.text !== plain.text && !isAllowed) return `${outcome.text}; untranslated ${plain.text}`
  // A trap may come before what was spent is written down.
  if (outcome.spent === undefined || outcome.results === undefined) return undefined
  step.spent ??= outcome.spent
  return step.spent === outcome.spent ? undefined : `it spends ${outcome.spent}, in another mode ${step.spent}`
}

function refuse(source: Source, where: string, parse: Converter['parse'], { refusals, v8, failures }: Report): void {
  let bytes
  try {
    bytes = bytesOf(source, parse)
  } catch {
    refusals.converter++
    return
  }
  const isValid = WebAssembly.validate(bytes)
  let prepared
  try {
    prepared = prepare(bytes, decodeModule(bytes)).bytes
  } catch (error) {
    refusals.decoder++
    if (isValid) failures.push(`${where} V8 accepts it: ${String(error)}`)
    return
  }
  if (isValid) {
    refusals.nobody++
    v8.push(`${where} it accepts what is malformed or invalid`)
  } else if (WebAssembly.validate(prepared)) {
    refusals.prepared++
  } else refusals.v8++
}
