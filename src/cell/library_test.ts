// cell/library_test.ts: calling the exports of a library, with strings in its memory.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { OutputBuffer } from '../services/console/console.ts'
import { runLibrary } from './library.ts'
import { Pcpu } from './pcpu.ts'
import { cellOf, executableOfText, importOf } from './test_support.ts'

// A bump allocator that grows the memory for each piece; `say` writes a string, `count` exits with a list's length.
const LIBRARY = `(module ${importOf('fd_write', 'i32 i32 i32 i32')} ${importOf('proc_exit', 'i32', '')} (memory 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
  (func (export "say") (param $pointer i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $pointer))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "second") (param $list i32) (param $count i32)
    (drop (call $fd_write (i32.const 1) (i32.add (local.get $list) (i32.const 8)) (i32.const 1) (i32.const 8)))
    (call $proc_exit (i32.add (i32.const 40) (local.get $count)))))`

test('strings and lists of strings arrive in the guest\'s memory, and calls are made in order', async () => {
  const stdout = new OutputBuffer(100)
  const cell = cellOf(new Pcpu(), await executableOfText(LIBRARY), { stdout })
  const outcome = await runLibrary(cell, 'library.wasm', [
    { call: 'say', with: ['grüß '] },
    { call: 'second', with: [['one', 'two']] },
    { call: 'say', with: ['never'] },
  ])
  assert.deepEqual(outcome, { kind: 'exit', code: 42 })
  assert.equal(stdout.take().toString(), 'grüß two')
})

test('an export that does not exist is refused before the first call', async () => {
  const stdout = new OutputBuffer(100)
  const cell = cellOf(new Pcpu(), await executableOfText(LIBRARY), { stdout })
  await assert.rejects(runLibrary(cell, 'library.wasm', [{ call: 'say', with: ['x'] }, { call: 'nothing', with: [] }]),
    (error) => error instanceof CellarError && error.code === 'EXPORT_UNKNOWN' && error.exit === 126)
  assert.equal(stdout.take().length, 0)
})
