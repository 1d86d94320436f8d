// tests/conformance/wasi_testsuite.ts: runs the preview 1 programs of WebAssembly/wasi-testsuite and counts.
//
//   node tests/conformance/wasi_testsuite.ts [SUITE] [--filter TEXT] [--jobs N] [--bin COMMAND] [--timeout MS]
//
// SUITE is a checkout of its branch prod/testsuite-base (72 prebuilt programs); it stays outside this repository.
// Without the argument it is CELLAR_WASI_TESTSUITE or .cache/wasi-testsuite. A program that fails is one paragraph; the
// last line is the count. expectations.json lists programs that are known to fail, with the reason: these count as
// skipped while they fail, and as failed once they pass, so that the list can only shrink.

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { runCase } from './wasi_case.ts'
import type { Runner } from './wasi_case.ts'

const ROOT = resolve(import.meta.dirname, '../..')

/** One program of the suite, such as `rust/path_link`. */
export type Program = { name: string; path: string }

/** How one program went. */
export type Outcome = { name: string; result: 'passed' | 'failed' | 'skipped'; lines: readonly string[] }

/** `cellar` of this checkout. The time is for a slow machine: a program takes a fraction of a second. */
export const CELLAR: Runner = { command: [join(ROOT, 'bin', 'cellar')], timeoutMs: 30_000 }

/** The suite's folder if it is on this machine, else the reason why not. */
export function findSuite(): { folder: string } | { missing: string } {
  const folder = process.env.CELLAR_WASI_TESTSUITE ?? join(ROOT, '.cache', 'wasi-testsuite')
  if (existsSync(join(folder, 'tests'))) return { folder }
  return { missing: `wasi-testsuite isn't in ${folder}: clone it there, or set CELLAR_WASI_TESTSUITE` }
}

/** The preview 1 programs of the suite in `folder`, by name. */
export function findPrograms(folder: string): Program[] {
  const tests = join(folder, 'tests')
  return readdirSync(tests).toSorted().flatMap((language) => {
    const built = join(tests, language, 'testsuite', 'wasm32-wasip1')
    if (!existsSync(built)) return []
    return readdirSync(built).filter((file) => file.endsWith('.wasm')).toSorted()
      .map((file) => ({ name: `${language}/${basename(file, '.wasm')}`, path: join(built, file) }))
  })
}

/** Programs that are known to fail, with the reason. */
export function expectations(): Record<string, string> {
  return JSON.parse(readFileSync(join(import.meta.dirname, 'expectations.json'), 'utf8')) as Record<string, string>
}

/** Runs one program; `expected` is the reason why it is known to fail, if it is. */
export async function runProgram(
  { name, path }: Program, expected: string | undefined, runner: Runner,
): Promise<Outcome> {
  const lines = await runCase(path, runner)
  if (expected === undefined) return { name, result: lines.length === 0 ? 'passed' : 'failed', lines }
  if (lines.length > 0) return { name, result: 'skipped', lines: [`known to fail: ${expected}`] }
  return { name, result: 'failed', lines: ['passes now: take it out of expectations.json'] }
}

/** Runs `programs`, `jobs` at once, and tells `report` of each as it ends. */
async function runAll(
  programs: readonly Program[], runner: Runner, jobs: number, report: (outcome: Outcome) => void,
): Promise<void> {
  const known = expectations()
  const queue = programs.values()
  const worker = async (): Promise<void> => {
    for (const program of queue) report(await runProgram(program, known[program.name], runner))
  }
  await Promise.all(Array.from({ length: jobs }, worker))
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      filter: { type: 'string', default: '' }, jobs: { type: 'string', default: '2' },
      bin: { type: 'string' }, timeout: { type: 'string' },
    },
  })
  const suite = positionals[0] === undefined ? findSuite() : { folder: positionals[0] }
  if ('missing' in suite) {
    console.error(suite.missing)
    return 2
  }
  const programs = findPrograms(suite.folder).filter(({ name }) => name.includes(values.filter))
  if (programs.length === 0) {
    console.error(`No preview 1 program in ${suite.folder} has "${values.filter}" in its name`)
    return 2
  }
  const runner = {
    command: values.bin?.split(' ') ?? CELLAR.command, timeoutMs: Number(values.timeout ?? CELLAR.timeoutMs),
  }
  const count = { passed: 0, failed: 0, skipped: 0 }
  await runAll(programs, runner, Number(values.jobs), ({ name, result, lines }) => {
    count[result]++
    if (result !== 'passed') console.log(`${result.toUpperCase()} ${name}\n    ${lines.join('\n    ')}`)
  })
  console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`)
  return count.failed > 0 ? 1 : 0
}

if (import.meta.main) process.exitCode = await main()
