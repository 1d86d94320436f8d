// tools/test.ts: the whole test run (`npm test`): the checks of tools/ok.ts, then every test file in one `node --test`.
//
// Unit tests lie beside the code, the others in tests/ by purpose (functional, security, conformance). Node's summary
// counts all of them. It is held back and printed last, after the failures and the list of what was skipped and why, so
// that whoever reads the end of the log (a person, CI) sees the count. Arguments are passed on to `node --test`: a
// pattern of files instead of all, or a flag such as --test-name-pattern=poll_oneoff.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { CHECKS, FILES_AT_ONCE, NODE, ROOT, runSteps } from './ok.ts'

const FILES = ['src/**/*_test.ts', 'tools/*_test.ts', 'tests/**/*_test.ts']

/** A test that takes longer than this hangs. */
const TEST_MS_MAX = 300_000

/** Runs every test file (or those that `args` name) and gives the exit status. */
async function runTests(args: readonly string[]): Promise<number> {
  const files = args.some((arg) => !arg.startsWith('-')) ? [] : FILES
  const child = spawn(NODE[0], [
    NODE[1], '--test', '--test-reporter=spec', FILES_AT_ONCE, `--test-timeout=${TEST_MS_MAX}`,
    ...args, ...files,
  ], { cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise<number>((resolve) => {
    child.on('close', (status, signal) => resolve(signal === null ? status ?? 1 : 1))
  })

  const summary: string[] = []
  const skipped: string[] = []
  for await (const line of createInterface({ input: child.stdout })) {
    if (/^ℹ (tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) /.test(line)) {
      summary.push(line)
      continue
    }
    const skip = /^\s*﹣ (.*?) \([\d.]+ms\) # (.*)$/.exec(line)
    if (skip) skipped.push(`${skip[1]}: ${skip[2]}`)
    console.log(line)
  }
  const status = await ended
  if (skipped.length > 0) console.log(`\nSkipped, and why:\n${skipped.map((line) => `  ${line}`).join('\n')}\n`)
  for (const line of summary) console.log(line)
  // No summary: node itself failed to start, which no count may hide.
  return summary.length === 0 ? status || 1 : status
}

process.exitCode = runSteps(CHECKS) ? await runTests(process.argv.slice(2)) : 1
