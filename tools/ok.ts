// tools/ok.ts: everything that must hold before a change is shared (`npm run ok`). Under a minute; no network, no KVM.
//
// A list of steps, each a command. A step that passes is one line; the first that fails prints what it said and ends
// the run. tools/test.ts runs the same checks and then every test. Children run on the Node 26 that `npm ci` brought,
// whatever Node runs this file.

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'

/** The checkout. */
export const ROOT = resolve(import.meta.dirname, '..')

/** Node 26 and the flag that keeps its experimental parts from warning. */
export const NODE = [node26(), '--disable-warning=ExperimentalWarning'] as const

/** One step: its name, and the command with its arguments. */
export type Step = { name: string; command: readonly string[] }

const FOLDERS = ['src', 'tests', 'tools', 'bench'].filter((folder) => existsSync(join(ROOT, folder)))

const bin = (name: string): string => join(ROOT, 'node_modules', '.bin', name)

/** What is checked without running the program. */
export const CHECKS: readonly Step[] = [
  { name: 'types', command: [bin('tsc'), '-p', '.'] },
  { name: 'lint', command: [bin('oxlint'), '--deny-warnings', ...FOLDERS] },
  { name: 'tidy', command: [...NODE, 'tools/tidy.ts'] },
  { name: 'reference', command: [...NODE, 'tools/reference.ts', '--check'] },
]

/** A machine has few cores and some tests measure time: two files at once. */
export const FILES_AT_ONCE = '--test-concurrency=2'

const UNIT: Step = {
  name: 'unit tests',
  command: [
    ...NODE, '--test', '--test-reporter=dot', FILES_AT_ONCE, '--test-timeout=60000', 'src/**/*_test.ts',
    'tools/*_test.ts',
  ],
}

/** Runs the steps in order and says how each went; false at the first that fails. */
export function runSteps(steps: readonly Step[]): boolean {
  for (const { name, command } of steps) {
    const start = performance.now()
    const [file, ...args] = command
    const done = spawnSync(file!, args, { cwd: ROOT, encoding: 'utf8', maxBuffer: 1e9 })
    const seconds = ((performance.now() - start) / 1000).toFixed(1)
    console.log(`${done.status === 0 ? 'ok    ' : 'FAILED'}  ${name.padEnd(12)} ${seconds} s`)
    if (done.status === 0) continue
    console.log(`\n$ ${command.join(' ')}\n${done.stdout ?? ''}${done.stderr ?? ''}`)
    console.log(done.error ? String(done.error) : `ended with ${done.signal ?? `status ${done.status}`}`)
    return false
  }
  return true
}

function node26(): string {
  if (Number(process.versions.node.split('.')[0]) >= 26) return process.execPath
  const found = join(ROOT, 'node_modules', '.bin', 'node')
  if (!existsSync(found)) throw new Error("Node 26 isn't installed in this checkout: run 'npm ci'")
  return found
}

if (import.meta.main) process.exitCode = runSteps([...CHECKS, UNIT]) ? 0 : 1
