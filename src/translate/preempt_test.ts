// translate/preempt_test.ts: checks change nothing but when the guest is asked to leave.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import wabt from 'wabt'
import { decodeModule } from '../wasm/decode.ts'
import { prepare, ReservedName } from '../wasm/prepare.ts'
import { CONTROL_MEMORY, preempt, YIELD_TABLE, type Preemptible } from './preempt.ts'

const { parseWat } = await wabt()
const FEATURES = { exceptions: true, multi_memory: true, tail_call: true, reference_types: true }

function translated(text: string): Preemptible & { original: Uint8Array<ArrayBuffer> } {
  const original = parseWat('test.wat', text, FEATURES).toBinary({}).buffer as Uint8Array<ArrayBuffer>
  const { bytes } = prepare(original, decodeModule(original))
  return { ...preempt(decodeModule(bytes)), original }
}

/** What a WebAssembly function must be to stand in a table: one that calls `call`. */
function functionOf(call: () => void): WebAssembly.ExportValue {
  const text = '(module (import "host" "call" (func $call)) (func (export "call") (call $call)))'
  const { buffer } = parseWat('call.wat', text).toBinary({})
  const module = new WebAssembly.Module(buffer as Uint8Array<ArrayBuffer>)
  return new WebAssembly.Instance(module, { host: { call } }).exports['call']!
}

/** Runs the export "run" of the translated module with the control word set for good: each check yields. */
function runForced(bytes: Uint8Array<ArrayBuffer>, args: number[]): { result: unknown; yields: number } {
  const control = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true })
  new Int32Array(control.buffer)[0] = 1
  const module = new WebAssembly.Module(bytes)
  const cellar: Record<string, WebAssembly.ImportValue> = { [CONTROL_MEMORY]: control }
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    if (from === 'cellar' && kind === 'memory' && name !== CONTROL_MEMORY) {
      cellar[name] = new WebAssembly.Memory({ initial: 1, maximum: 10 })
    }
  }
  const { exports } = new WebAssembly.Instance(module, { cellar })
  let yields = 0
  ;(exports[YIELD_TABLE] as WebAssembly.Table).set(0, functionOf(() => { yields++ }))
  return { result: (exports['run'] as (...args: number[]) => unknown)(...args), yields }
}

// name → text with an export "run", its arguments, how many checks it gets, how often they are met.
const KERNELS: Record<string, [text: string, args: number[], checks: number, yields: number]> = {
  'a loop': [`(module (func (export "run") (param $n i32) (result i32) (local $sum i32)
    (loop $l (local.set $sum (i32.add (local.get $sum) (local.get $n)))
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))`, [100], 1, 100],
  'a loop with parameters and results': [`(module (func (export "run") (param $n i32) (result i32 i64)
    (i32.const 0) (i64.const 1)
    (loop $l (param i32 i64) (result i32 i64)
      (i64.add (i64.const 3)) (local.set 1) (i32.add (i32.const 2)) (local.get 1)
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))`
    .replace('(param $n i32) (result i32 i64)', '(param $n i32) (result i32 i64) (local i64)'), [9], 1, 9],
  'recursion': [`(module (func $fib (export "run") (param $n i32) (result i32)
    (if (result i32) (i32.lt_s (local.get $n) (i32.const 2)) (then (local.get $n))
      (else (i32.add (call $fib (i32.sub (local.get $n) (i32.const 1)))
        (call $fib (i32.sub (local.get $n) (i32.const 2))))))))`, [10], 1, 177],
  'a leaf, which gets none, and its caller': [`(module (func $leaf (param i32) (result i32) (local.get 0))
    (func (export "run") (param i32) (result i32) (call $leaf (local.get 0))))`, [7], 1, 1],
  'calls through a table': [`(module (table 2 funcref) (elem (i32.const 0) $even $odd)
    (type $t (func (param i32) (result i32)))
    (func $even (type $t) (if (result i32) (local.get 0)
      (then (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1))) (else (i32.const 1))))
    (func $odd (type $t) (if (result i32) (local.get 0)
      (then (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))) (else (i32.const 0))))
    (export "run" (func $even)))`, [51], 2, 52],
  'tail calls without end but the last': [`(module (func $down (export "run") (param i32) (result i32)
    (if (result i32) (local.get 0) (then (return_call $down (i32.sub (local.get 0) (i32.const 1))))
      (else (i32.const 5)))))`, [1000], 1, 1001],
  'exceptions': [`(module (tag $t (param i32))
    (func $thrower (param i32) (throw $t (local.get 0)))
    (func (export "run") (param i32) (result i32) (local $n i32)
      (loop $l
        (try (do (call $thrower (local.get $n)))
          (catch $t (drop) (local.set $n (i32.add (local.get $n) (i32.const 1)))))
        (br_if $l (i32.lt_s (local.get $n) (local.get 0))))
      (local.get $n)))`, [20], 2, 21],
  'two memories': [`(module (memory 1) (memory 1)
    (func (export "run") (param $n i32) (result i32)
      (loop $l
        (i32.store 1 (i32.const 0) (i32.add (i32.load 1 (i32.const 0)) (local.get $n)))
        (i32.store 0 (i32.const 0) (i32.const 99))
        (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (i32.load 1 (i32.const 0))))`, [4], 1, 4],
}

for (const [what, [text, args, checks, yields]] of Object.entries(KERNELS)) {
  test(`preempt keeps the result of ${what}, with a yield at each check`, () => {
    const { bytes, original, checks: put } = translated(text)
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(original))
    const expected = (exports['run'] as (...args: number[]) => unknown)(...args)
    assert.deepEqual(runForced(bytes, args), { result: expected, yields })
    assert.equal(put, checks)
  })
}

test('a module without code, types or tables is still a module', () => {
  for (const text of ['(module)', '(module (memory 1))', '(module (func))']) {
    const { bytes, checks } = translated(text)
    assert.ok(WebAssembly.validate(bytes), text)
    assert.equal(checks, 0)
  }
})

test('every guest at hand is valid after translation, and keeps its sections in order', () => {
  const folder = new URL('../../guests/', import.meta.url)
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.wasm'))) {
    const original = readFileSync(new URL(file, folder))
    const { bytes } = prepare(original, decodeModule(original))
    const { bytes: translatedBytes, checks } = preempt(decodeModule(bytes))
    assert.ok(WebAssembly.validate(translatedBytes), file)
    assert.ok(checks > 0, file)
    assert.deepEqual(decodeModule(translatedBytes).sections.map(({ id, name }) => `${id} ${name ?? ''}`)
      .filter((one) => one !== '0 metadata.code.branch_hint'),
    decodeModule(bytes).sections.map(({ id, name }) => `${id} ${name ?? ''}`), file)
  }
})

test('the hypervisor\'s names are refused, and so is a module that is not prepared', () => {
  assert.throws(() => translated(`(module (import "cellar" "${CONTROL_MEMORY}" (func)))`), ReservedName)
  assert.throws(() => translated(`(module (func (export "${YIELD_TABLE}")))`), ReservedName)
  const bytes = parseWat('memory.wat', '(module (memory 1))').toBinary({}).buffer as Uint8Array<ArrayBuffer>
  assert.throws(() => preempt(decodeModule(bytes)), RangeError)
})
