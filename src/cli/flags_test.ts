// cli/flags_test.ts: command lines read by the tables of flags, and the help that the tables give.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError, type ErrorCode } from '../base/errors.ts'
import { helpOf, INSPECT_FLAGS, parseFlags, RUN_FLAGS } from './flags.ts'

type Case = readonly [argv: string, flags: Readonly<Record<string, readonly string[]>>, rest: string]

const parse = (argv: string) => parseFlags(argv.split(' ').filter((word) => word !== ''), RUN_FLAGS)

const GOOD: readonly Case[] = [
  ['', {}, ''],
  ['prog.wasm a b', {}, 'prog.wasm a b'],
  ['--stats prog.wasm', { stats: [''] }, 'prog.wasm'],
  ['--memory 64MiB prog.wasm', { memory: ['64MiB'] }, 'prog.wasm'],
  ['--memory=64MiB prog.wasm', { memory: ['64MiB'] }, 'prog.wasm'],
  ['-m 64MiB prog.wasm', { memory: ['64MiB'] }, 'prog.wasm'],
  ['-m64MiB prog.wasm', { memory: ['64MiB'] }, 'prog.wasm'],
  ['-h', { help: [''] }, ''],
  ['--dir a --dir b:/c:ro -e A=1 --env B=2 prog.wasm', { dir: ['a', 'b:/c:ro'], env: ['A=1', 'B=2'] }, 'prog.wasm'],
  ['--env=A=b=c prog.wasm', { env: ['A=b=c'] }, 'prog.wasm'],
  ['--env= prog.wasm', { env: [''] }, 'prog.wasm'],
  ['--stats --trace --timeout 5s -f m.yaml', { stats: [''], trace: [''], timeout: ['5s'], file: ['m.yaml'] }, ''],
  ['--shares 300 --cpu-limit 10% --cpu-reservation=0.05 --quantum 1ms --deterministic --unbounded prog.wasm -x',
    { shares: ['300'], 'cpu-limit': ['10%'], 'cpu-reservation': ['0.05'], quantum: ['1ms'], deterministic: [''],
      unbounded: [''] }, 'prog.wasm -x'],
  // From the program on everything is the program's, flags of ours as well.
  ['prog.wasm --stats --nonsense -m', {}, 'prog.wasm --stats --nonsense -m'],
  ['--stats prog.wasm --stats --dir', { stats: [''] }, 'prog.wasm --stats --dir'],
  ['--stats prog.wasm -- x', { stats: [''] }, 'prog.wasm -- x'],
  ['--stats -- --odd.wasm x', { stats: [''] }, '--odd.wasm x'],
  ['-- --stats', {}, '--stats'],
  ['- x', {}, '- x'],
]

for (const [argv, flags, rest] of GOOD) {
  test(`parseFlags reads "${argv}" by the table`, () => {
    const parsed = parse(argv)
    assert.deepEqual(parsed.flags, flags)
    assert.equal(parsed.rest.join(' '), rest)
  })
}

test('parseFlags keeps words with blanks and empty words whole', () => {
  const parsed = parseFlags(['-e', 'A=b c', 'my prog.wasm', '', '--x y'], RUN_FLAGS)
  assert.deepEqual(parsed, { flags: { env: ['A=b c'] }, rest: ['my prog.wasm', '', '--x y'] })
})

const BAD: readonly [argv: string, code: ErrorCode, message: RegExp][] = [
  ['--dri x prog.wasm', 'FLAG_UNKNOWN', /--dri as no such flag exists; did you mean --dir\?$/],
  ['--memroy=1 prog.wasm', 'FLAG_UNKNOWN', /--memroy as no such flag exists; did you mean --memory\?$/],
  ['--timout 5s', 'FLAG_UNKNOWN', /did you mean --timeout\?$/],
  ['--stat prog.wasm', 'FLAG_UNKNOWN', /did you mean --stats\?$/],
  ['--share 5 prog.wasm', 'FLAG_UNKNOWN', /did you mean --shares\?$/],
  ['--cpu-limt 5% prog.wasm', 'FLAG_UNKNOWN', /did you mean --cpu-limit\?$/],
  ['--verbose prog.wasm', 'FLAG_UNKNOWN', /--verbose as no such flag exists$/],
  ['--constructor prog.wasm', 'FLAG_UNKNOWN', /--constructor as no such flag exists$/],
  ['--__proto__=x prog.wasm', 'FLAG_UNKNOWN', /--__proto__ as no such flag exists$/],
  ['-x prog.wasm', 'FLAG_UNKNOWN', /-x as no such flag exists/],
  ['-hx prog.wasm', 'FLAG_UNKNOWN', /-x as no such flag exists/],
  ['--stats --nonsense prog.wasm', 'FLAG_UNKNOWN', /--nonsense/],
  ['--memory', 'FLAG_VALUE_MISSING', /^Cannot use --memory without a value$/],
  ['--stats -e', 'FLAG_VALUE_MISSING', /^Cannot use -e without a value$/],
  ['--env --stats prog.wasm', 'FLAG_VALUE_MISSING', /^Cannot use --env without a value$/],
  ['--dir -m 1 prog.wasm', 'FLAG_VALUE_MISSING', /^Cannot use --dir without a value$/],
  ['--shares --stats prog.wasm', 'FLAG_VALUE_MISSING', /^Cannot use --shares without a value$/],
  ['--cpu-limit', 'FLAG_VALUE_MISSING', /^Cannot use --cpu-limit without a value$/],
  ['--unbounded=yes prog.wasm', 'FLAG_VALUE_INVALID', /--unbounded "yes" as it must be given alone/],
  ['--shares 1 --shares 2 prog.wasm', 'FLAG_VALUE_INVALID', /--shares "2" as it must be given once$/],
  ['--stats=yes prog.wasm', 'FLAG_VALUE_INVALID', /--stats "yes" as it must be given alone/],
  ['--memory 1 --memory 2 prog.wasm', 'FLAG_VALUE_INVALID', /--memory "2" as it must be given once$/],
  ['-m 1 --memory=1 prog.wasm', 'FLAG_VALUE_INVALID', /--memory "1" as it must be given once$/],
  ['--stats --stats prog.wasm', 'FLAG_VALUE_INVALID', /--stats "" as it must be given once$/],
]

for (const [argv, code, message] of BAD) {
  test(`parseFlags refuses "${argv}" and says why`, () => {
    assert.throws(() => parse(argv), (error) => {
      assert.ok(error instanceof CellarError, String(error))
      assert.equal(error.code, code)
      assert.match(error.message, message)
      assert.equal(error.exit, 125)
      return true
    })
  })
}

test('parseFlags goes by the table that it is given', () => {
  const parsed = parseFlags(['-o', 'json', 'x.wasm'], INSPECT_FLAGS)
  assert.deepEqual(parsed, { flags: { output: ['json'] }, rest: ['x.wasm'] })
  assert.throws(() => parseFlags(['--dir', 'x'], INSPECT_FLAGS), /--dir as no such flag exists$/)
})

test('parseFlags takes flags after words where they may be anywhere, up to --', () => {
  const anywhere = (line: string) => parseFlags(line.split(' '), INSPECT_FLAGS, true)
  assert.deepEqual(anywhere('a -o json b'), { flags: { output: ['json'] }, rest: ['a', 'b'] })
  assert.deepEqual(anywhere('a -- -o b'), { flags: {}, rest: ['a', '-o', 'b'] })
  assert.deepEqual(anywhere('a - b'), { flags: {}, rest: ['a', '-', 'b'] })
  assert.throws(() => anywhere('a --outptu=json'), /did you mean --output\?$/)
})

for (const [command, table] of Object.entries({ run: RUN_FLAGS, inspect: INSPECT_FLAGS })) {
  test(`helpOf has a line for each flag of ${command}, in columns`, () => {
    const lines = helpOf(table).split('\n')
    const names = Object.keys(table)
    assert.equal(lines.length, names.length)
    const columns = new Set(Object.entries(table).map(([name, { help }], i) => {
      assert.ok(lines[i]!.includes(` --${name}`))
      assert.ok(lines[i]!.endsWith(`   ${help}`))
      return lines[i]!.length - help.length
    }))
    assert.equal(columns.size, 1)
  })

  test(`no two flags of ${command} share a letter`, () => {
    const letters = Object.values(table).flatMap((flag) => 'short' in flag ? [flag.short] : [])
    assert.equal(new Set(letters).size, letters.length)
    assert.ok(letters.every((letter) => letter.length === 1))
  })
}
