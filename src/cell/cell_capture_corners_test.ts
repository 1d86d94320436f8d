// cell/cell_capture_corners_test.ts: corners in which a cell that was stopped went on wrongly, or not at all.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { captureLoaded, programOf, runStopped, type Stops } from '../../tests/captured_program.ts'
import { UNWINDING, CONTROL_STATE } from '../translate/control_words.ts'
import { encodeModule } from '../wasm/encode.ts'
import { Pcpu } from './pcpu.ts'
import { loadPreemptible } from './preemptible.ts'
import { cellOf, importOf } from './test_support.ts'

const EXIT = importOf('proc_exit', 'i32', '')
const YIELD = importOf('sched_yield', '')
const POLL = importOf('poll_oneoff', 'i32 i32 i32 i32')
/** Not at each check: at a loop's beginning it goes on with the check itself. */
const WAYS: readonly Stops[] = [2, 3].flatMap((nth) => [{ nth }, { nth, anew: true }])

const program = (fields: string): string => `(module ${EXIT} ${YIELD} (memory 1)
  (func $x (loop))
  ${fields}
  (func (export "_start") (call $proc_exit (call $test))))`

async function endsAlways(text: string, code: number, stubs: readonly string[] = []): Promise<void> {
  using made = await programOf(text, stubs)
  for (const way of WAYS) {
    const { outcome, states } = await runStopped(new Pcpu(), made.executable, way)
    assert.deepEqual(outcome, { kind: 'exit', code }, JSON.stringify(way))
    assert.ok(states.length > 2, `stopped ${states.length} times`)
  }
}

test('a copy of a local that is set later is kept, wherever the cell was stopped before', async () => {
  await endsAlways(program(`(func $test (result i32) (local $a i32)
    (local.set $a (i32.const 7))
    (local.get $a)
    (call $x)
    (local.set $a (i32.const 9))
    (call $x) (call $x)
    (local.get $a)
    (call $x) (call $x)
    (i32.add))`), 16)
  await endsAlways(program(`(func $test (result i32) (local $a i32)
    (local.set $a (i32.const 7))
    (local.get $a)
    (call $x)
    (loop $l
      (call $x)
      (local.set $a (i32.add (local.get $a) (i32.const 1)))
      (call $x)
      (br_if $l (i32.lt_u (local.get $a) (i32.const 12))))
    (call $x)
    (i32.add (local.get $a)))`), 19)
})

test('a block of several results is gone on with in a module of many types', async () => {
  const types = Array.from({ length: 70 }, (_, i) =>
    `(type (func ${'(param i32)'.repeat(i % 10)} ${'(param i64)'.repeat(i / 10)}))`)
  await endsAlways(program(`${types.join(' ')}
    (func $test (result i32)
      (block (result i32 i32) (call $x) (call $x) (call $x) (call $x) (i32.const 3) (i32.const 4))
      (i32.add))`), 7)
})

test('a function is gone on with whatever its nesting', async () => {
  const depth = 20_000
  const calls = Array.from({ length: 6 }, () => [0x10, 1]).flat()
  const bytes = encodeModule({
    types: [{ params: ['i32'], results: [] }, { params: [], results: [] }],
    imports: [{ module: 'wasi_snapshot_preview1', name: 'proc_exit', type: 0 }],
    functions: [{ type: 1, locals: [], body: [0x03, 0x40, 0x0b] },
      { type: 1, locals: [], body: [...Array.from({ length: depth }, () => [0x02, 0x40]).flat(), ...calls,
        ...new Array(depth).fill(0x0b), 0x41, 5, 0x10, 0] }],
    exports: [{ name: '_start', kind: 'func', index: 2 }],
  })
  await withModule(bytes, async (path) => {
    const executable = await captureLoaded(path)
    const { outcome, states } = await runStopped(new Pcpu(), executable, { nth: 2, anew: true })
    assert.deepEqual(outcome, { kind: 'exit', code: 5 })
    assert.ok(states.length > 2)
  })
})

test('an import that has a hypercall\'s name and is none isn\'t called in its place', async () => {
  using made = await programOf(`(module (import "env" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
    ${EXIT} ${POLL} (memory 1) (func $x (loop))
    (func (export "_start")
      (i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const 3000000))
      (call $x) (call $proc_exit (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))`,
  ['env'])
  for (const anew of [false, true]) {
    const { outcome, states } = await runStopped(new Pcpu(), made.executable, { nthWait: 1, most: 3, anew })
    assert.deepEqual(outcome, { kind: 'exit', code: 0 })
    assert.ok(states.length > 0)
  }
})

test('functions of a table are known again, however often the guest imports them', async () => {
  const again = Array.from({ length: 12 }, () => '(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))')
  await endsAlways(`(module ${again.join(' ')} ${EXIT} ${POLL} (memory 1) (table 3 funcref) (func $x (loop))
    (elem declare func $proc_exit $poll_oneoff)
    (func (export "_start")
      (table.set (i32.const 0) (ref.func $poll_oneoff)) (table.set (i32.const 1) (ref.func $proc_exit))
      (call $x) (call $x) (call $x) (call $x) (call $x) (call $x)
      (call_indirect (param i32) (i32.const 6) (i32.const 1))))`, 6)
})

// Text formats differ on them, and wabt knows none of the second.
const TABLES = {
  // (table $t i64 3 funcref) … (table.set $t (i64.const 1) (ref.func $five)) … (call_indirect $t (i64.const 1))
  '64-bit addresses': 'AGFzbQEAAAABDANgAX8AYAAAYAABfwIkARZ3YXNpX3NuYXBzaG90X3ByZXZpZXcxCXByb2NfZXhpdAAAAwQD' +
    'AQIBBAQBcAQDBQMBAAEHCgEGX3N0YXJ0AAMJBQEDAAECCiIDBQADQAsLBgAQAUEFCxMAEAFCAdICJgAQAUIB' +
    'EQIAEAAL',
  // (type $t (func (result i32))) (table $t 3 (ref $t) (ref.func $six)) … (table.grow (ref.func $five) (i32.const 2))
  'no null': 'AGFzbQEAAAABDANgAAF/YAF/AGAAAAIkARZ3YXNpX3NuYXBzaG90X3ByZXZpZXcxCXByb2NfZXhpdAABAwUE' +
    'AgAAAgQKAUAAZAAAA9ICCwUDAQABBwoBBl9zdGFydAAECQUBAwABAwopBAUAA0ALCwQAQQYLBgAQAUEFCxUA' +
    'EAHSA0EC/A8AGhABQQQRAAAQAAs=',
} as const

for (const [what, base64] of Object.entries(TABLES)) {
  test(`a table of ${what} is kept`, async () => {
    const { outcome, states } = await withModule(base64, async (path) => {
      const executable = await captureLoaded(path)
      assert.equal(executable.capture?.can, true)
      return await runStopped(new Pcpu(), executable, { nth: 2, anew: true })
    })
    assert.deepEqual(outcome, { kind: 'exit', code: 5 })
    assert.ok(states.length > 2)
  })
}

test('a program can\'t be captured if its tables hold what is neither a function nor null',
  async () => {
    // (table $t 3 i31ref) … (table.set $t (i32.const 0) (ref.i31 (i32.const 7)))
    const capture = await withModule('AGFzbQEAAAABCAJgAX8AYAAAAiQBFndhc2lfc25hcHNob3RfcHJldmlldzEJcHJvY19leGl0' +
      'AAADBAMBAQEEBAFsAAMFAwEAAQcKAQZfc3RhcnQAAgodAwUAA0ALCwoAEAMQAUEDEAALCgBB' +
      'AEEH+xwmAAs=',
      async (path) => (await captureLoaded(path)).capture)
    assert.deepEqual(capture, { can: false, why: 'table 0 holds values of type i31ref' })
  })

test('a stack that was left half way leaves nothing behind for the next cell of the pCPU', async () => {
  using made = await programOf(`(module (memory 1) (func $f (result i32) (local $i i32)
    (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9))))
    (local.get $i))
    (func (export "_start")) (func (export "count") (result i32) (call $f)))`)
  const executable = loadPreemptible(made.path, { stubs: [], library: true }, { mode: 'preempt', capture: true })
  const pcpu = new Pcpu()
  const cell = cellOf(pcpu, executable)
  const words = new Int32Array(pcpu.control.buffer)
  words[0] = 1
  words[CONTROL_STATE >> 2] = UNWINDING
  assert.equal(await cell.call('count'), 9)
  cell.release()
})

async function withModule<T>(module: Uint8Array | string, use: (path: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-corner-'))
  try {
    writeFileSync(join(folder, 'guest.wasm'), typeof module === 'string' ? Buffer.from(module, 'base64') : module)
    return await use(join(folder, 'guest.wasm'))
  } finally {
    rmSync(folder, { recursive: true })
  }
}
