// tests/conformance/wasi_case_test.ts: the runner of wasi-testsuite notices whatever isn't as specified.
//
// In the place of `cellar` stands a small script that plays a program: it prints, serves a connection, hangs or ends,
// as its arguments say. So the runner is tested without the suite and without a hypervisor.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { operationsOf, runCase } from './wasi_case.ts'
import { findPrograms, runProgram } from './wasi_testsuite.ts'

const folder = mkdtempSync(join(tmpdir(), 'wasi-case-test-'))
after(() => rmSync(folder, { recursive: true }))

// Called as `cellar run [flags] program.wasm ACT…`: each ACT is done in order.
const PLAYER = `
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
const argv = process.argv.slice(3)
const at = argv.findIndex((arg) => arg.endsWith('.wasm'))
const root = argv[argv.indexOf('--dir') + 1]?.split(':')[0]
for (const act of argv.slice(at + 1)) {
  const [verb, value] = act.split('=')
  if (verb === 'print') process.stdout.write(value)
  if (verb === 'flags') process.stdout.write(argv.slice(0, at).filter((flag) => !flag.startsWith('/')).join(' '))
  if (verb === 'litter') writeFileSync(root + '/litter', '')
  if (verb === 'cat') for await (const chunk of process.stdin) process.stdout.write(chunk)
  if (verb === 'hang') await new Promise((resolve) => setTimeout(resolve, 60_000))
  if (verb === 'exit') process.exit(Number(value))
  if (verb === 'echo') await new Promise((resolve) => {
    const server = createServer((socket) => socket.pipe(socket).on('close', () => server.close(resolve)))
    server.listen(0, '127.0.0.1', () => console.log('127.0.0.1:' + server.address().port))
  })
}
`
const player = join(folder, 'player.mjs')
writeFileSync(player, PLAYER)
const runner = { command: [process.execPath, player], timeoutMs: 10_000 }

let count = 0

/** A program with this specification, in a folder of its own. */
function program(specification?: object): string {
  const path = join(folder, `case${count++}`)
  mkdirSync(path)
  if (specification !== undefined) writeFileSync(join(path, 'x.json'), JSON.stringify(specification))
  return join(path, 'x.wasm')
}

const PASSES: readonly [string, object | undefined][] = [
  ['no specification', undefined],
  ['an exit code', { args: ['exit=33'], exit_code: 33 }],
  ['an output', { args: ['print=hello'], stdout: 'hello' }],
  ['flags for the environment', { env: { a: 'b', c: 'd e' }, args: ['flags'], stdout: '--env a=b --env c=d e' }],
  ['operations on its streams', { operations: [
    { type: 'run', args: ['print=ab', 'print=c', 'cat'] }, { type: 'read', payload: 'ab' },
    { type: 'write', payload: 'def' }, { type: 'read', id: 'stdout', payload: 'cdef' }, { type: 'wait' },
  ] }],
  ['operations on a connection', { operations: [
    { type: 'run', args: ['echo', 'exit=3'] }, { type: 'connect' }, { type: 'send', id: 'server', payload: 'ping' },
    { type: 'recv', id: 'server', payload: 'ping' }, { type: 'kill' }, { type: 'wait', exit_code: 'SIGTERM' },
  ] }],
]

for (const [what, specification] of PASSES) {
  test(`runCase passes a program that meets ${what}`, async () => {
    assert.deepEqual(await runCase(program(specification), runner), [])
  })
}

const FAILS: readonly [string, object, RegExp][] = [
  ['another exit code', { args: ['exit=1'], exit_code: 33 }, /^exit code: expected 33, got 1$/],
  ['an exit code where none is specified', { args: ['exit=1'] }, /^exit code: expected 0, got 1$/],
  ['another output', { args: ['print=hullo'], stdout: 'hello' }, /^output stdout: expected "hello", got "hullo"$/],
  ['more output than specified', { args: ['print=hello!'], stdout: 'hello' }, /got "hello!"$/],
  ['output on stderr instead', { stderr: 'oh' }, /^output stderr: expected "oh", got ""$/],
  ['too little to read',
    { operations: [{ type: 'run', args: ['print=a'] }, { type: 'read', payload: 'ab' }] }, /got "a"$/],
  ['no address', { operations: [{ type: 'run', args: ['print=a'] }, { type: 'connect' }] }, /expected HOST:PORT/],
]

for (const [what, specification, says] of FAILS) {
  test(`runCase fails a program with ${what}`, async () => {
    assert.match((await runCase(program(specification), runner))[0]!, says)
  })
}

test('runCase fails a program that hangs, and ends it', async () => {
  const start = performance.now()
  const lines = await runCase(program({ args: ['hang'] }), { ...runner, timeoutMs: 300 })
  assert.equal(lines[0], "didn't end within 300 ms")
  assert.ok(performance.now() - start < 10_000)
})

test('runCase fails when the command cannot be started', async () => {
  const lines = await runCase(program(), { ...runner, command: ['/nonexistent/cellar'] })
  assert.match(lines[0]!, /exit code: expected 0, got Error: spawn/)
})

test('runCase gives each program a copy of its root', async () => {
  const path = program({ root: 'files', args: ['litter'] })
  const root = join(path, '..', 'files')
  mkdirSync(root)
  assert.deepEqual(await runCase(path, runner), [])
  assert.deepEqual(readdirSync(root), [])
})

test('operationsOf refuses an operation that it does not know', () => {
  assert.throws(() => operationsOf({ operations: [{ type: 'request' }] }), /Cannot do operation "request"/)
})

test('runProgram counts a known failure as skipped, and as failed once it passes', async () => {
  const outcome = async (args: string[]): Promise<string> =>
    (await runProgram({ name: 'c/x', path: program({ args }) }, 'not done yet', runner)).result
  assert.equal(await outcome(['exit=1']), 'skipped')
  assert.equal(await outcome(['exit=0']), 'failed')
})

test('findPrograms finds preview 1 programs of every language and nothing else', () => {
  const suite = join(folder, 'suite')
  for (const path of ['c/testsuite/wasm32-wasip1', 'rust/testsuite/wasm32-wasip1', 'rust/testsuite/wasm32-wasip3']) {
    mkdirSync(join(suite, 'tests', path), { recursive: true })
    for (const file of ['b.wasm', 'a.wasm', 'a.json']) writeFileSync(join(suite, 'tests', path, file), '')
  }
  assert.deepEqual(findPrograms(suite).map(({ name }) => name), ['c/a', 'c/b', 'rust/a', 'rust/b'])
})
