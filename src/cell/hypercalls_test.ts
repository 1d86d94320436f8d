// cell/hypercalls_test.ts: binding hypercalls: counting, tracing, faults, and our own bugs.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellar, HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { wasi_snapshot_preview1 } from '../wasi/p1/table.ts'
import { HYPERCALL_NAMES, loadHypercalls } from './hypercalls.ts'
import { Pcpu } from './pcpu.ts'
import { cellOf, executableOfText, importOf } from './test_support.ts'

const GUEST = `(module ${importOf('fd_write', 'i32 i32 i32 i32')} ${importOf('fd_seek', 'i32 i64 i32 i32')}
  ${importOf('clock_res_get', 'i32 i32')} ${importOf('proc_exit', 'i32', '')} (memory 1)
  (func (export "_start")
    (drop (call $clock_res_get (i32.const 1) (i32.const 65529)))
    (drop (call $fd_seek (i32.const 9) (i64.const -1) (i32.const 0) (i32.const 0)))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))
    (call $proc_exit (i32.const 3))))`

test('every hypercall of the table is implemented in the file that the table names', async () => {
  await loadHypercalls(HYPERCALL_NAMES)
  assert.equal(HYPERCALL_NAMES.length, 54)
  for (const [name, { module, file, params }] of Object.entries(HYPERCALLS)) {
    const folder = module === 'cellar' ? 'cellar' : 'p1'
    const functions = await import(`../wasi/${folder}/${file}.ts`) as Record<string, (...args: never[]) => number>
    const implementation = functions[name]
    const halves = params.filter((type) => type === 'i64').length
    assert.equal(implementation?.length, 1 + params.length + halves, `${name} takes its context and arguments`)
  }
})

test('HYPERCALLS has each name once, whatever module it is of', () => {
  const names = [wasi_snapshot_preview1, cellar].flatMap((one) => Object.keys(one))
  assert.equal(new Set(names).size, names.length)
  assert.deepEqual(HYPERCALL_NAMES, names)
})

test('a tracer sees each answer with its arguments and errno, and counting goes on', async () => {
  const lines: string[] = []
  const counts = new Uint32Array(HYPERCALL_NAMES.length)
  const watch = { tracer: (line: string) => lines.push(line), counts }
  const cell = cellOf(new Pcpu(), await executableOfText(GUEST), { watch })
  await cell.run()
  assert.deepEqual(lines, [
    'clock_res_get(1, 0xfff9) = EFAULT',
    'fd_seek(9, 0xffffffffffffffff, 0, 0) = EBADF',
    'fd_write(1, 0, 0, 0) = ESUCCESS',
    'proc_exit(3)',
  ])
  assert.deepEqual(cell.usage().hypercalls, { clock_res_get: 1, fd_seek: 1, fd_write: 1, proc_exit: 1 })
  assert.equal(counts[HYPERCALL_NAMES.indexOf('fd_seek' satisfies HypercallName)], 1)
})

test('without a tracer the same is counted, faults included', async () => {
  const cell = cellOf(new Pcpu(), await executableOfText(GUEST))
  assert.deepEqual(await cell.run(), { kind: 'exit', code: 3 })
  assert.deepEqual(cell.usage().hypercalls, { clock_res_get: 1, fd_seek: 1, fd_write: 1, proc_exit: 1 })
})

test('an exception of ours is no errno: it is reported as the bug it is', async () => {
  const broken = { filetype: 0, write: () => { throw new TypeError('a bug of ours') }, close: () => {} }
  const executable = await executableOfText(`(module ${importOf('fd_write', 'i32 i32 i32 i32')} (memory 1)
    (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
    (func (export "_start") (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))`)
  await assert.rejects(cellOf(new Pcpu(), executable, { stdout: broken }).run(), /a bug of ours/)
})
