// cli/help_test.ts: the table of commands: help, did-you-mean, manual pages, and what the table must keep to.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { COMMANDS, findCommand, usageOf } from './commands.ts'
import { parseFlags, type Flag } from './flags.ts'
import { helpFor, unknownCommand } from './help.ts'
import { manPages } from './man.ts'
import { runCellar } from './test_support.ts'

const SHOWN = COMMANDS.filter(({ hidden }) => hidden !== true)

test('COMMANDS has no name twice, no letter twice in a command, and help everywhere', () => {
  const names = COMMANDS.flatMap(({ name, aliases = [] }) => [name, ...aliases])
  assert.equal(new Set(names).size, names.length)
  for (const { name, flags, summary, examples } of SHOWN) {
    const letters = Object.values(flags).flatMap(({ short }) => short === undefined ? [] : [short])
    assert.equal(new Set(letters).size, letters.length, name)
    assert.ok('help' in flags && summary.length > 0 && examples.length > 0, name)
    assert.match(summary, /^[A-Z][^]*[^.]$/)
  }
})

test('examples of COMMANDS are command lines that their tables read', () => {
  for (const { name, examples, wordsEndFlags } of SHOWN) {
    for (const example of examples) {
      const line = (example.includes('| cellar ') ? example.split('| cellar ')[1]!
        : example).split(/ [|>] /)[0]!.replace(/\$\([^)]*\)/, 'a')
      const found = findCommand(line.split(' '))
      assert.equal(found?.command.name, name, example)
      assert.doesNotThrow(() => parseFlags(found!.rest, found!.command.flags as Record<string, Flag>,
        wordsEndFlags !== true))
    }
  }
})

test('every command can be loaded, and says how it is used', async () => {
  for (const command of SHOWN) {
    const run = 'own' in command ? await command.own() : command.name.startsWith('host') ? () => {}
      : await command.load()
    assert.equal(typeof run, 'function', command.name)
    const text = helpFor(command.name.split(' '))
    for (const usage of usageOf(command)) assert.ok(text.includes(`cellar ${usage}\n`), text)
    for (const flag of Object.keys(command.flags)) assert.ok(text.includes(`--${flag}`))
  }
})

test('helpFor lists the commands of a noun, and unknownCommand what is near', () => {
  assert.match(helpFor(['volume']), /^Usage: cellar volume COMMAND\n[^]*\n {2}ls +List volumes\n/)
  const cases: [string[], RegExp][] = [
    [['strat'], /"strat" as no such command exists; did you mean start\?$/], [[], /no command given/],
    [['volume', 'crate'], /"volume crate" .*did you mean volume create\?$/],
      [['volume'], /say one of ls, create, clone/],
    [['-P', 'x', 'ps'], /"-P" before the command: flags stand after it$/],
    [['rnu'], /did you mean run\?$/], [['xyzzy'], /exists$/],
  ]
  for (const [argv, message] of cases) assert.match(unknownCommand(argv).message, message)
})

test('a mistake on the command line names the command whose help tells more', async () => {
  const cases: [string, RegExp][] = [
    ['ps --al', /--al as no such flag exists; did you mean --all\? \[FLAG_UNKNOWN\]\n {2}hint: See 'cellar ps --help'/],
    ['stop', /Cannot run 'stop' without GUEST: cellar stop \[FLAGS\] GUEST… \[USAGE\]/],
    ['logs a b', /Cannot run 'logs' with "b", one word too many/],
    ['ps -o xml', /--output "xml" as it must be one of table/],
    ['completion tcsh', /say one of bash, zsh, fish/], ['volume crate', /did you mean volume create\?/],
  ]
  for (const [line, message] of cases) {
    const { status, stdout, stderr } = await runCellar(line.split(' '), { cwd: tmpdir() })
    assert.deepEqual([status, stdout], [125, ''], line)
    assert.match(stderr, message)
  }
  for (const line of ['ps --help', 'volume --help', 'help volume ls', 'doctor -h', 'host --help',
    'host install --help']) {
    const { status, stdout, stderr } = await runCellar(line.split(' '), { cwd: tmpdir() })
    assert.deepEqual([status, stderr], [0, ''], line)
    assert.match(stdout, /^Usage: cellar /m)
  }
})

test('cellar man writes a page for each first word, and mandoc finds no fault in them', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-man-'))
  try {
    const { status } = await runCellar(['man', folder], { cwd: folder })
    assert.equal(status, 0)
    const names = readdirSync(folder).sort()
    assert.deepEqual(names, Object.keys(manPages()).sort())
    for (const name of ['cellar.1', 'cellar-run.1', 'cellar-volume.1', 'cellar-host.1']) assert.ok(names.includes(name))
    const { error, stdout } = spawnSync('mandoc', ['-Tlint', ...names], { cwd: folder })
    if (error !== undefined) return t.skip("mandoc isn't installed")
    assert.equal(stdout.toString(), '')
    const text = spawnSync('mandoc', ['-Tascii', 'cellar-run.1'],
      { cwd: folder }).stdout.toString().replaceAll(/.\x08/g, '')
    assert.match(text, /--dir HOST\[:GUEST\]\[:ro\]/)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
