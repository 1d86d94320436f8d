// tests/fuzz/differential.ts: random modules must do translated what they do untranslated, in every mode.
//
//   node tests/fuzz/differential.ts [--seed N] [--runs N] [--mode TEXT] [--functions N] [--keep]
//
// Each seed makes a module (random_module.ts), which is run as it is and then in each way of WAYS whose name contains
// TEXT; all that can be seen must be the same (observed_run.ts). Beside that:
//   - a check is met in each round of a loop, or one in four, if the word is set, and none while it isn't;
//   - fuel is consumed alike, however it is given out, at each call of the host and at each end;
//   - loops, cycles of calls and long bulk instructions have checks, and branch hints are at branches;
//   - every body is read to its end, and is the same when it is written again;
//   - what is captured meanwhile goes on as if nothing had been, in the same instance and in new ones.
// The first difference ends the run with exit code 1 and says how to replay it; --keep goes on with the next seed, and
// --functions makes the modules smaller (others: the seed's numbers then mean something else). V8's flags may stand
// before the file: --no-liftoff, for what its optimising compiler makes of it.

import { parseArgs } from 'node:util'
import { translate, type Options } from '../../src/translate/translate.ts'
import { Uncapturable } from '../../src/translate/uncapturable.ts'
import { Untreatable } from '../../src/translate/untreatable.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import type { Module } from '../../src/wasm/module.ts'
import { prepare } from '../../src/wasm/prepare.ts'
import { Capturable, CaptureCounts } from '../capture_instance.ts'
import { observe, observeCaptured, overflows, type Observed, type Treatment } from './observed_run.ts'
import { randomModule, type RandomModule } from './random_module.ts'
import { misplacedHint, missingCheck } from './static_checks.ts'
import { CALLED, counting, recoded, THROWN } from './recoded.ts'

/** One way to run a module. */
type Way = {
  readonly name: string; readonly made: Options | 'recoded' | 'counting'; readonly treatment: Treatment
  readonly everyNth?: number
}

const PREEMPT: Options = { mode: 'preempt' }
const FUEL: Options = { mode: 'fuel' }
const CAPTURE: Options = { mode: 'preempt', capture: true }
/** Parking stacks takes its time. */
const SUSPENDING = { suspends: true } as const

// The first of each translation ends even if the guest doesn't.
const WAYS: readonly Way[] = [
  { name: 'recoded', made: 'recoded', treatment: {} },
  { name: 'fuel counted', made: 'counting', treatment: {} },
  { name: 'preempt word 1', made: PREEMPT, treatment: { word: 1 } },
  { name: 'preempt word 0', made: PREEMPT, treatment: { word: 0 } },
  { name: 'preempt toggled', made: PREEMPT, treatment: { word: { toggledAt: 3 } } },
  { name: 'preempt suspended', made: PREEMPT, treatment: { word: 1, ...SUSPENDING }, everyNth: 6 },
  { name: 'fuel 0', made: FUEL, treatment: { slice: 0 } },
  { name: 'fuel 100', made: FUEL, treatment: { slice: 100 } },
  { name: 'fuel without end', made: FUEL, treatment: { slice: 0x7fff_ffff } },
  { name: 'fuel suspended', made: FUEL, treatment: { slice: 7, ...SUSPENDING }, everyNth: 6 },
  { name: 'captured in place', made: CAPTURE, treatment: { captured: { nth: 3, anew: false } }, everyNth: 2 },
  { name: 'captured anew', made: CAPTURE, treatment: { captured: { nth: 5, anew: true } }, everyNth: 2 },
]
/** How many rounds of a loop may share a check: small ones are unrolled. */
const ROUNDS_PER_CHECK = 4
const PIECE_COST = 1024

/** A translator, which may be a broken one. */
export type Translator = (module: Module, options: Options) => Uint8Array<ArrayBuffer>

/** What was done so far. `refused`: what translate.ts doesn't take, by its name. */
export type Totals = {
  modules: number; invalid: number; runs: number; calls: number; trapped: number; rounds: number; yields: number
  overflows: number; refused: Map<string, number>
  /** Runs that were captured, and how; what can't be. */
  readonly captures: CaptureCounts; uncapturable: Map<string, number>
}

/** What is to be looked at. */
export type Plan = {
  readonly seed: number; readonly functions?: number; readonly filter?: string; readonly translator?: Translator
}

export function totals(): Totals {
  return {
    modules: 0, invalid: 0, runs: 0, calls: 0, trapped: 0, rounds: 0, yields: 0, overflows: 0, refused: new Map(),
    captures: new CaptureCounts(), uncapturable: new Map(),
  }
}

/** Runs the module of one seed in all ways; what differs, or undefined. */
export async function differenceOf(plan: Plan, sums: Totals): Promise<string | undefined> {
  const { seed, functions, filter = '', translator = (module, options) => translate(module, options).bytes } = plan
  const random = randomModule(seed, functions)
  sums.modules++
  if (!WebAssembly.validate(random.bytes)) {
    sums.invalid++
    return undefined
  }
  const original = await observe(seed, random.shape, random.bytes)
  count(original, sums)
  const modules = new Map<Way['made'], Made>()
  let counted: Observed | undefined
  let fuel: Observed | undefined
  for (const { name, made, treatment, everyNth = 1 } of WAYS) {
    if (!name.includes(filter) || seed % everyNth !== 0) continue
    if (!modules.has(made)) modules.set(made, make(random, made, translator, sums))
    const bytes = modules.get(made)!
    if (typeof bytes === 'string') return `${name}: ${bytes}`
    if (bytes === undefined) continue
    const observed = bytes instanceof Capturable
      ? await observeCaptured(seed, random.shape, bytes, treatment.captured!, sums.captures)
      : await observe(seed, random.shape, bytes, treatment)
    sums.runs++
    for (const { yields } of observed.figures) sums.yields += yields
    if (overflows(original) || overflows(observed)) {
      sums.overflows++
      continue
    }
    const difference = compare(original, observed) ?? violation(observed, treatment) ??
      (treatment.slice === undefined ? undefined : compareFuels(counted, fuel, observed))
    if (difference !== undefined) return `${name}: ${difference}`
    if (made === 'counting') counted = observed
    if (made === FUEL) fuel ??= observed
  }
  return undefined
}

function count(original: Observed, sums: Totals): void {
  for (const { rounds, trapped } of original.figures) {
    sums.calls++
    if (trapped) sums.trapped++
    sums.rounds += rounds
  }
}

/** The module that a way runs, or why there is none; undefined: it isn't run in this way. */
type Made = Uint8Array<ArrayBuffer> | Capturable | string | undefined

function make(
  { bytes: original, shape }: RandomModule, options: Way['made'], translator: Translator, sums: Totals,
): Made {
  const module = decodeModule(original)
  if (options === 'counting') return counting(module, shape.counted)
  if (options === 'recoded') {
    const again = recoded(module)
    if (Buffer.compare(again, original) === 0) return again
    if (!shape.padded) return 'the bodies are not the same when they are written again'
    return Buffer.compare(recoded(decodeModule(again)), again) === 0 ? again : 'writing twice is not writing once'
  }
  const prepared = decodeModule(prepare(original, module).bytes)
  if (options.capture === true) return capturable(prepared, translator, sums)
  let bytes: Uint8Array<ArrayBuffer>
  let refused = false
  try {
    bytes = translator(prepared, options)
  } catch (error) {
    if (!(error instanceof Untreatable)) return `the translator threw ${error instanceof Error ? error.stack : error}`
    sums.refused.set(error.construct, (sums.refused.get(error.construct) ?? 0) + 1)
    refused = true
    bytes = translator(prepared, { ...options, unbounded: true })
  }
  try {
    new WebAssembly.Module(bytes)
  } catch (error) {
    return `the translated module is not valid: ${error instanceof Error ? error.message : error}`
  }
  const translated = decodeModule(bytes)
  return misplacedHint(translated) ?? (refused ? undefined : missingCheck(prepared, translated)) ?? bytes
}

function capturable(prepared: Module, translator: Translator, sums: Totals): Made {
  for (const unbounded of [false, true]) {
    try {
      const made = new Capturable(prepared, unbounded, (module, options) => ({ bytes: translator(module, options) }))
      new WebAssembly.Module(made.bytes)
      return made
    } catch (error) {
      if (error instanceof Untreatable && !unbounded) continue
      if (error instanceof WebAssembly.CompileError) return `the translated module is not valid: ${error.message}`
      if (!(error instanceof Uncapturable)) {
        return `the translator threw ${error instanceof Error ? error.stack : error}`
      }
      sums.uncapturable.set(error.why, (sums.uncapturable.get(error.why) ?? 0) + 1)
      return undefined
    }
  }
  return undefined
}

/** The first line that isn't the same. */
function compare(expected: Observed, actual: Observed): string | undefined {
  const at = expected.lines.findIndex((line, i) => line !== actual.lines[i])
  if (at < 0) {
    return actual.lines.length === expected.lines.length ? undefined
      : `it goes on with "${actual.lines[expected.lines.length]}"`
  }
  const call = expected.lines.slice(0, at + 1).findLast((line) => /^f\d+\(/.test(line)) ?? 'instantiation'
  return `in ${call}\n  untranslated: ${expected.lines[at]}\n  translated:   ${actual.lines[at]}`
}

/** Whether checks were met that shouldn't be, or too few. */
function violation({ figures }: Observed, { word, slice }: Treatment): string | undefined {
  for (const [i, { rounds, calls, yields, consumed, trapped }] of figures.entries()) {
    const what = `call ${i} of ${rounds} rounds and ${calls} calls`
    if (word === 0 && yields > 0) return `${what} yields ${yields} times, and nobody asked it to`
    if (word === 1 && rounds > ROUNDS_PER_CHECK * yields) return `${what} yields ${yields} times only`
    if (slice !== undefined && !trapped && consumed < rounds) return `${what} consumes ${consumed} units only`
  }
  return undefined
}

function compareFuels(counted: Observed | undefined, first: Observed | undefined, one: Observed): string | undefined {
  if (first !== undefined) return compareFuel(first, one)
  return counted === undefined ? undefined : compareCount(counted, one)
}

/** Consumed is the same, however it was given out. A trap leaves the count as it was when it was last written. */
function compareFuel(expected: Observed, actual: Observed): string | undefined {
  const mark = expected.marks.findIndex((one, i) => one !== actual.marks[i])
  if (mark >= 0) return `fuel at call ${mark} of the host: ${expected.marks[mark]} and ${actual.marks[mark]}`
  const at = expected.figures.findIndex(({ consumed, trapped }, i) =>
    !trapped && consumed !== actual.figures[i]!.consumed)
  if (at < 0) return undefined
  return `fuel of call ${at}: ${expected.figures[at]!.consumed} and ${actual.figures[at]!.consumed}`
}

/** Consumed is what was executed: an independent count. Bulk instructions pay by pieces beside that. */
function compareCount({ figures: expected }: Observed, { figures }: Observed): string | undefined {
  for (const [i, { consumed, threw }] of figures.entries()) {
    const flags = expected[i]!.counted & (THROWN | CALLED)
    const counted = expected[i]!.counted - flags
    const more = consumed - counted
    if (threw || flags === (THROWN | CALLED) || more >= 0 && more % PIECE_COST === 0) continue
    return `fuel of call ${i}: ${consumed}, but ${counted} instructions were executed`
  }
  return undefined
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '0' }, runs: { type: 'string' }, mode: { type: 'string', default: '' },
      functions: { type: 'string' }, keep: { type: 'boolean', default: false },
    },
  })
  const first = Number(values.seed)
  const runs = Number(values.runs ?? 1000)
  const sums = totals()
  let failed = 0
  for (let seed = first; seed < first + runs; seed++) {
    const functions = values.functions === undefined ? {} : { functions: Number(values.functions) }
    const difference = await differenceOf({ seed, filter: values.mode, ...functions }, sums)
    if (difference === undefined) continue
    failed++
    const options = values.functions === undefined ? '' : ` --functions ${values.functions}`
    console.log(`seed ${seed}: ${difference}`)
    console.log(`  again: node tests/fuzz/differential.ts --seed ${seed} --runs 1${options}`)
    if (!values.keep) break
  }
  console.log(JSON.stringify({ ...sums, refused: Object.fromEntries(sums.refused),
    uncapturable: Object.fromEntries(sums.uncapturable) }))
  return failed === 0 ? 0 : 1
}

if (import.meta.main) process.exitCode = await main()
