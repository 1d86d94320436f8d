// tests/conformance/spec_suite.ts: runs the WebAssembly specification's test suite untranslated and translated.
//
//   node tests/conformance/spec_suite.ts [SUITE] [--filter TEXT] [--mode TEXT] [--verbose]
//
// SUITE is a checkout of WebAssembly/testsuite, which stays outside this repository. Without the argument it is
// CELLAR_SPEC_TESTSUITE or .cache/spec-testsuite. wast_converter.ts says what else is needed to convert all of it.
// Each script is run as it is and then in each mode (MODES), in which guests leave their pCPU at each check, at some,
// or never, or are captured at some and go on in the same instance or in another. A difference is a line and makes the
// exit status 1. Then come the constructs that the translator refuses (such modules run unbounded, or prepared only),
// why modules can't be captured (they run preempted), a line for each mode, and the totals. --verbose also tells where
// V8 itself differs from the suite.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { translate, type Options } from '../../src/translate/translate.ts'
import { countEach } from './spec_fuel.ts'
import type { Mode } from './spec_host.ts'
import { runScript, type Count, type Report } from './spec_run.ts'
import { findConverter } from './wast_converter.ts'

const ROOT = resolve(import.meta.dirname, '../..')

/** Folders of the suite. Of the proposals, V8 has one without a flag. */
const FOLDERS = ['', 'legacy', 'custom', 'proposals/threads', 'proposals/wide-arithmetic']

/**
 * How modules are translated, and when they yield; `nth`: one yield in so many suspends. What a call spends in the
 * first mode that counts fuel is asked of the others.
 */
export const MODES: readonly Mode[] = [
  { name: 'preempt, never', ...by({ mode: 'preempt' }), word: 0 },
  { name: 'preempt, at each check', ...by({ mode: 'preempt' }), word: 1, nth: 1 },
  { name: 'preempt, at each 7th check', ...by({ mode: 'preempt' }), word: 1, nth: 7 },
  { name: 'fuel one by one, never', translate: countEach, slice: 0 },
  { name: 'fuel, at each check', ...by({ mode: 'fuel' }), slice: 0, nth: 1 },
  { name: 'fuel, slices of 7', ...by({ mode: 'fuel' }), slice: 7, nth: 1 },
  { name: 'fuel, slices of 1000', ...by({ mode: 'fuel' }), slice: 1000, nth: 1 },
  ...[2, 3, 7].flatMap((nth) => [false, true].map((anew): Mode => ({
    name: `captured at 1 check in ${nth}, ${anew ? 'anew' : 'in place'}`, ...by({ mode: 'preempt' }), word: 1, nth,
    capture: { nth, anew },
  }))),
]

function by(options: Options): Pick<Mode, 'translate'> {
  return { translate: (module, unbounded) => translate(module, { ...options, unbounded }).bytes }
}

/** The suite's folder if it is on this machine, else the reason why not. */
export function findSuite(): { folder: string } | { missing: string } {
  const folder = process.env['CELLAR_SPEC_TESTSUITE'] ?? join(ROOT, '.cache', 'spec-testsuite')
  if (existsSync(join(folder, 'i32.wast'))) return { folder }
  return { missing: `WebAssembly/testsuite isn't in ${folder}: clone it there, or set CELLAR_SPEC_TESTSUITE` }
}

/** The scripts of the suite in `folder`, such as `proposals/threads/atomic.wast`. */
export function findScripts(folder: string): string[] {
  return FOLDERS.filter((sub) => existsSync(join(folder, sub))).flatMap((sub) =>
    readdirSync(join(folder, sub)).filter((file) => file.endsWith('.wast')).toSorted().map((file) => join(sub, file)))
}

/** A report of no script yet. */
export function emptyReport(): Report {
  return {
    counts: new Map(), refusals: { decoder: 0, v8: 0, converter: 0, nobody: 0, prepared: 0 }, untreatable: new Map(),
    uncapturable: new Map(), v8: [], failures: [],
  }
}

/** Adds what one script came to. */
export function addReport(sum: Report, report: Report): void {
  for (const [mode, count] of report.counts) {
    const before = sum.counts.get(mode)
    if (before === undefined) sum.counts.set(mode, { ...count })
    else for (const key of Object.keys(count) as (keyof Count)[]) before[key] += count[key]
  }
  for (const key of Object.keys(sum.refusals) as (keyof Report['refusals'])[]) sum.refusals[key] += report.refusals[key]
  for (const what of ['untreatable', 'uncapturable'] as const) {
    for (const [construct, modules] of report[what]) {
      sum[what].set(construct, (sum[what].get(construct) ?? 0) + modules)
    }
  }
  sum.v8.push(...report.v8)
  sum.failures.push(...report.failures)
}

/** The lines that sum up; the last is the totals. */
export function summary(report: Report, scripts: number): string[] {
  const { counts, refusals, untreatable, uncapturable, v8, failures } = report
  const { decoder, v8: validator, converter, nobody, prepared } = refusals
  return [
    `malformed or invalid modules: ${converter} refused by the converter, ${decoder} by our decoder, ` +
      `${validator} by V8, ${prepared} by V8 but not once prepared, ${nobody} by nobody`,
    ...[...untreatable].toSorted().map(([construct, modules]) => `untreatable in ${modules} modules: ${construct}`),
    ...[...uncapturable].toSorted().map(([why, modules]) => `uncapturable: ${modules} modules, as a function ${why}`),
    ...[...counts].map(([mode, count]) => `${mode.padEnd(36)}${countText(count)}`),
    `${scripts} scripts, ${failures.length} differences, ${v8.length} faults of V8`,
  ]
}

function countText({ modules, passed, failed, skipped, yields, pauses, ...captured }: Count): string {
  const { here, anew, frames, shared, entered, direct } = captured
  const went = `${modules} modules, ${passed} passed, ${failed} failed, ${skipped} skipped, `
  if (here + anew + entered + direct === 0) return `${went}${yields} yields, ${pauses} of them suspended`
  return `${went}went on ${here} times in place and ${anew} anew from ${frames} frames; not from ${shared} shared ` +
    `stacks; calls: ${entered} by entries, ${direct} without`
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      filter: { type: 'string', default: '' }, mode: { type: 'string', default: '' },
      verbose: { type: 'boolean', default: false },
    },
  })
  const suite = positionals[0] === undefined ? findSuite() : { folder: positionals[0] }
  if ('missing' in suite) {
    console.error(suite.missing)
    return 2
  }
  const scripts = findScripts(suite.folder).filter((name) => name.includes(values.filter))
  const modes = MODES.filter(({ name }) => name.includes(values.mode))
  if (scripts.length === 0 || modes.length === 0) {
    console.error(`Nothing in ${suite.folder} has "${values.filter}" in its name, or no mode has "${values.mode}"`)
    return 2
  }
  const converter = await findConverter()
  console.log(`modules converted by ${converter.name}`)
  const sum = emptyReport()
  for (const script of scripts) {
    const start = performance.now()
    const report = await runScript(script, readFileSync(join(suite.folder, script), 'utf8'), modes, converter)
    addReport(sum, report)
    for (const line of report.failures) console.log(`DIFFERS ${line}`)
    if (!values.verbose) continue
    for (const line of report.v8) console.log(`V8 ${line}`)
    console.log(`${script} ${(performance.now() - start).toFixed()} ms`)
  }
  for (const line of summary(sum, scripts.length)) console.log(line)
  return sum.failures.length > 0 ? 1 : 0
}

if (import.meta.main) process.exitCode = await main()
