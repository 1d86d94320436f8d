// cell/cell_test.ts: cells on a pCPU: how they run together, wait, end and are ended.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { InputBuffer, OutputBuffer } from '../services/console/console.ts'
import { Descriptors } from '../wasi/p1/descriptors.ts'
import { Pcpu } from './pcpu.ts'
import { cellOf, ECHO, executableOfText, importOf } from './test_support.ts'

const READ = importOf('fd_read', 'i32 i32 i32 i32')
const WRITE = importOf('fd_write', 'i32 i32 i32 i32')
const EXIT = importOf('proc_exit', 'i32', '')

test('a cell that waits leaves its pCPU to the others', async () => {
  const pcpu = new Pcpu()
  const executable = await executableOfText(ECHO)
  const rigs = Array.from({ length: 50 }, () => {
    const [stdin, stdout] = [new InputBuffer(), new OutputBuffer(1024)]
    return { stdin, stdout, ended: cellOf(pcpu, executable, { stdin, stdout }).run() }
  })
  // The last to be created is fed first: nobody waits for anybody else.
  for (const [i, { stdin }] of [...rigs.entries()].reverse()) {
    stdin.push(Buffer.from(`cell ${i}`))
    stdin.end()
  }
  for (const [i, { stdout, ended }] of rigs.entries()) {
    assert.deepEqual(await ended, { kind: 'exit', code: 0 })
    assert.equal(stdout.take().toString(), `cell ${i}`)
  }
})

test('a cell waits while its output is full, and loses nothing', async () => {
  const [stdin, stdout] = [new InputBuffer(), new OutputBuffer(10)]
  const text = 'abcdefghijklmnopqrstuvwxyz'.repeat(20)
  stdin.push(Buffer.from(text))
  stdin.end()
  const state = { ended: false }
  const cell = cellOf(new Pcpu(), await executableOfText(ECHO_ALL), { stdin, stdout })
  const run = cell.run().then(() => { state.ended = true })
  let taken = ''
  while (!state.ended) {
    const bytes = stdout.take()
    assert.ok(bytes.length <= 10, `at most 10 bytes are held: ${bytes.length}`)
    taken += bytes.toString()
    await new Promise(setImmediate)
  }
  await run
  assert.equal(taken + stdout.take().toString(), text)
})

// As ECHO, but it repeats short writes, as libc does.
const ECHO_ALL = ECHO.replace('(drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 20)))', `
        (i32.store (i32.const 8) (i32.const 1024))
        (loop $rest
          (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 20)))
          (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.load (i32.const 20))))
          (i32.store (i32.const 12) (i32.sub (i32.load (i32.const 12)) (i32.load (i32.const 20))))
          (br_if $rest (i32.load (i32.const 12))))`)

test('an output whose reader is gone ends the cell by SIGPIPE', async () => {
  const [stdin, stdout] = [new InputBuffer(), new OutputBuffer(10)]
  stdin.push(Buffer.from('text'))
  stdout.hangUp()
  const outcome = await cellOf(new Pcpu(), await executableOfText(ECHO), { stdin, stdout }).run()
  assert.deepEqual(outcome, { kind: 'signal', signal: 13 })
})

test('stop ends a cell that waits, and no instruction of it runs any more', async () => {
  const stdout = new OutputBuffer(100)
  const cell = cellOf(new Pcpu(), await executableOfText(ECHO), { stdin: new InputBuffer(), stdout })
  const ended = cell.run()
  await new Promise(setImmediate)
  cell.context.stop({ kind: 'signal', signal: 9 })
  assert.deepEqual(await ended, { kind: 'signal', signal: 9 })
  assert.equal(stdout.take().length, 0)
})

test('proc_exit ends a cell from within nested calls, whatever the guest catches', async () => {
  const executable = await executableOfText(`(module ${EXIT} ${WRITE} (memory 1)
    (data (i32.const 0) "\\08\\00\\00\\00\\03\\00\\00\\00bad")
    (func $nested (call $proc_exit (i32.const 7)))
    (func (export "_start")
      (try (do (call $nested)) (catch_all))
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))`)
  const stdout = new OutputBuffer(100)
  assert.deepEqual(await cellOf(new Pcpu(), executable, { stdout }).run(), { kind: 'exit', code: 7 })
  assert.equal(stdout.take().toString(), '')
})

test('the start function runs before _start, on the vCPU, where it may wait', async () => {
  const stdin = new InputBuffer()
  const executable = await executableOfText(`(module ${READ} ${EXIT} (memory 1)
    (data (i32.const 0) "\\00\\04\\00\\00\\01\\00\\00\\00")
    (func $init (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16))))
    (start $init)
    (func (export "_start") (call $proc_exit (i32.load8_u (i32.const 1024)))))`)
  const ended = cellOf(new Pcpu(), executable, { stdin }).run()
  setTimeout(() => stdin.push(Uint8Array.of(42)), 5)
  assert.deepEqual(await ended, { kind: 'exit', code: 42 })
})

test('a trap is told with its reason and the functions that led to it', async () => {
  const executable = await executableOfText(`(module (memory 1)
    (func $inner (drop (i32.load (i32.const -4))))
    (func $outer (call $inner))
    (func (export "_start") (call $outer)))`)
  const outcome = await cellOf(new Pcpu(), executable).run()
  assert.equal(outcome.kind, 'trap')
  assert.match(outcome.kind === 'trap' ? outcome.reason : '', /out of bounds/)
  const names = outcome.kind === 'trap' ? outcome.frames.map(({ name }) => name) : []
  assert.deepEqual(names.slice(0, 2), ['inner', 'outer'])
})

test('endless recursion is a trap', async () => {
  const executable = await executableOfText('(module (func $f (export "_start") (call $f) (call $f)))')
  const outcome = await cellOf(new Pcpu(), executable).run()
  assert.equal(outcome.kind === 'trap' ? outcome.reason : outcome.kind, 'call stack exhausted')
})

test('a stub ends the cell when it is called, and is named', async () => {
  const executable = await executableOfText(`(module (import "env" "mystery" (func $mystery (param f64) (result i64)))
    (func (export "_start") (drop (call $mystery (f64.const 1)))))`)
  const outcome = await cellOf(new Pcpu(), executable).run()
  assert.equal(outcome.kind === 'trap' ? outcome.reason : outcome.kind, 'called env.mystery, which is a stub')
})

test('names that a guest chose do not reach a terminal as control characters', async () => {
  const executable = await executableOfText(`(module (import "env" "\\1b[31mred" (func $red))
    (func (export "_start") (call $red)))`)
  const outcome = await cellOf(new Pcpu(), executable).run()
  assert.equal(outcome.kind === 'trap' ? outcome.reason : outcome.kind, 'called env.\\u{1b}[31mred, which is a stub')
})

test('a module can not reach a prototype of ours by the name of a stub', async () => {
  const executable = await executableOfText(`(module (import "__proto__" "polluted" (func $f))
    (import "constructor" "toString" (func)) (func (export "_start") (call $f)))`)
  const outcome = await cellOf(new Pcpu(), executable).run()
  assert.equal(outcome.kind === 'trap' ? outcome.reason : outcome.kind, 'called __proto__.polluted, which is a stub')
  assert.equal((({}) as Record<string, unknown>)['polluted'], undefined)
})

test('of a variable that is given twice the later counts', async () => {
  const executable = await executableOfText('(module (memory 1) (func (export "_start")))')
  const env = [['A', '1'], ['B', '2'], ['A', '3']] as const
  const cell = new Pcpu().createNow(executable, { args: [], env }, new Descriptors())
  assert.deepEqual(cell.context.env.map((one) => Buffer.from(one).toString()), ['A=3\0', 'B=2\0'])
})

test('memory.grow fails at the limit, and the guest goes on', async () => {
  const executable = await executableOfText(`(module ${EXIT} (memory 1)
    (func (export "_start")
      (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (call $proc_exit (memory.size))))`)
  const cell = cellOf(new Pcpu(), executable)
  assert.deepEqual(await cell.run(), { kind: 'exit', code: 16 })
  assert.equal(cell.usage().memoryBytes, 16 * 65_536)
})

test('hypercalls see the memory that the guest has grown', async () => {
  const executable = await executableOfText(`(module ${WRITE} (memory 1)
    (func (export "_start")
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 16)))
      (drop (memory.grow (i32.const 4)))
      (i32.store (i32.const 200000) (i32.const 200016))
      (i32.store (i32.const 200004) (i32.const 2))
      (i32.store16 (i32.const 200016) (i32.const 0x6b6f))
      (drop (call $fd_write (i32.const 1) (i32.const 200000) (i32.const 1) (i32.const 200008)))))`)
  const stdout = new OutputBuffer(100)
  await cellOf(new Pcpu(), executable, { stdout }).run()
  assert.equal(stdout.take().toString(), 'ok')
})

test('a limit below what the module starts with is refused before anything runs', async () => {
  const executable = await executableOfText('(module (memory 17) (func (export "_start")))')
  assert.throws(() => cellOf(new Pcpu(), executable),
    (error) => error instanceof CellarError && error.code === 'MEMORY_BELOW_MINIMUM')
})

test('what a cell used is counted: answers, waits, time', async () => {
  const stdin = new InputBuffer()
  const cell = cellOf(new Pcpu(), await executableOfText(ECHO), { stdin })
  const ended = cell.run()
  setTimeout(() => { stdin.push(Buffer.from('x')); stdin.end() }, 20)
  await ended
  const { hypercalls, waits, cpuNs, wallNs } = cell.usage()
  assert.deepEqual(hypercalls, { fd_read: 2, fd_write: 1 })
  assert.equal(waits, 1)
  assert.ok(cpuNs > 0 && cpuNs < wallNs, `it waited most of the time: cpu ${cpuNs}, wall ${wallNs}`)
})
