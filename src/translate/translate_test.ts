// translate/translate_test.ts: a translation changes nothing but when the guest is asked to leave.

import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import wabt from 'wabt'
import { decodeModule } from '../wasm/decode.ts'
import { prepare, ReservedName } from '../wasm/prepare.ts'
import { CONTROL_MEMORY, FUEL_GLOBAL, YIELD_TABLE } from './added_names.ts'
import { translate, type Options, type Translated } from './translate.ts'
import { Untreatable } from './untreatable.ts'

const { parseWat } = await wabt()
const FEATURES = { bulk_memory: true, exceptions: true, multi_memory: true, tail_call: true, reference_types: true }

const EACH: Options = { mode: 'preempt' }

function translated(text: string, options = EACH): Translated & { original: Uint8Array<ArrayBuffer> } {
  const original = parseWat('test.wat', text, FEATURES).toBinary({}).buffer as Uint8Array<ArrayBuffer>
  const { bytes } = prepare(original, decodeModule(original))
  return { ...translate(decodeModule(bytes), options), original }
}

/** What a WebAssembly function must be to stand in a table: one that calls `call`. */
function functionOf(call: () => void): WebAssembly.ExportValue {
  const text = '(module (import "host" "call" (func $call)) (func (export "call") (call $call)))'
  const { buffer } = parseWat('call.wat', text).toBinary({})
  const module = new WebAssembly.Module(buffer as Uint8Array<ArrayBuffer>)
  return new WebAssembly.Instance(module, { host: { call } }).exports['call']!
}

/**
 * Runs the export "run" of the translated module with the control word set for good, and `slice` more fuel at each
 * yield: how often it yielded, and the fuel that it took.
 */
function runForced(
  bytes: Uint8Array<ArrayBuffer>, args: number[], slice = 0,
): { result: unknown; yields: number; fuel: number } {
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
  let [yields, given] = [0, 0]
  const left = exports[FUEL_GLOBAL] as WebAssembly.Global<'i32'> | undefined
  ;(exports[YIELD_TABLE] as WebAssembly.Table).set(0, functionOf(() => {
    yields++
    if (left === undefined) return
    const more = Math.max(slice, -left.value)
    given += more
    left.value += more
  }))
  const result = (exports['run'] as (...args: number[]) => unknown)(...args)
  return { result, yields, fuel: given - (left?.value ?? 0) }
}

// name → text with an export "run", its arguments, how many checks it gets, how often they are met.
const KERNELS: Record<string, [text: string, args: number[], checks: number, yields: number]> = {
  'a loop': [`(module (func (export "run") (param $n i32) (result i32) (local $sum i32)
    (loop $l (local.set $sum (i32.add (local.get $sum) (local.get $n)))
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))`, [100], 1, 25],
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
  'a call of a leaf, neither of which gets one': [`(module (func $leaf (param i32) (result i32) (local.get 0))
    (func (export "run") (param i32) (result i32) (call $leaf (local.get 0))))`, [7], 0, 0],
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
      (local.get $n)))`, [20], 1, 20],
  'two memories': [`(module (memory 1) (memory 1)
    (func (export "run") (param $n i32) (result i32)
      (loop $l
        (i32.store 1 (i32.const 0) (i32.add (i32.load 1 (i32.const 0)) (local.get $n)))
        (i32.store 0 (i32.const 0) (i32.const 99))
        (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (i32.load 1 (i32.const 0))))`, [4], 1, 1],
}

for (const [what, [text, args, checks, yields]] of Object.entries(KERNELS)) {
  test(`preempt keeps the result of ${what}, with a yield at each check`, () => {
    const { bytes, original, checks: put } = translated(text)
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(original))
    const expected = (exports['run'] as (...args: number[]) => unknown)(...args)
    assert.deepEqual(runForced(bytes, args), { result: expected, yields, fuel: 0 })
    assert.equal(put, checks)
  })
  test(`fuel keeps the result of ${what}, and takes the same of it however it is given`, () => {
    const { bytes, original } = translated(text, { mode: 'fuel' })
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(original))
    const expected = (exports['run'] as (...args: number[]) => unknown)(...args)
    const [each, some, all] = [0, 10, 1e9].map((slice) => runForced(bytes, args, slice))
    assert.deepEqual([each!.result, some!.result, all!.result], [expected, expected, expected])
    assert.deepEqual([some!.fuel, all!.fuel], [each!.fuel, each!.fuel])
    assert.ok(each!.yields >= some!.yields && some!.yields >= all!.yields)
    assert.ok(each!.fuel > 0)
  })
}

test('fuel is the number of instructions that are executed', () => {
  const { bytes } = translated(`(module (func (export "run") (param $n i32) (result i32)
    (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (if (result i32) (local.get $n) (then (i32.const 1) (i32.const 2) (i32.add)) (else (i32.const 7)))))`,
  { mode: 'fuel' })
  // Each round: local.get, i32.const, i32.sub, local.tee, br_if. Then: local.get, if, i32.const.
  assert.equal(runForced(bytes, [10]).fuel, 10 * 5 + 3)
})

// name → text, whether it traps: bulk instructions of lengths and places at which pieces begin and end.
const BULK = [
  'memory.fill', 'memory.copy up', 'memory.copy down', 'memory.init', 'table.fill', 'table.copy', 'table.init',
]
for (const what of BULK) {
  test(`${what} in pieces does what it does at once, and traps before it has done anything`, () => {
    const elements = Array.from({ length: 3000 }, (_, i) => i % 2 === 0 ? '$f' : '$g').join(' ')
    const data = 'abcdefghijklmnop'.repeat(12_000)
    const code: Record<string, string> = {
      'memory.fill': '(memory.fill (local.get 0) (i32.const 7) (local.get 2))',
      'memory.copy up': '(memory.copy (i32.add (local.get 0) (i32.const 100)) (local.get 1) (local.get 2))',
      'memory.copy down': '(memory.copy (local.get 0) (i32.add (local.get 1) (i32.const 100)) (local.get 2))',
      'memory.init': '(memory.init $d (local.get 0) (local.get 1) (local.get 2))',
      'table.fill': '(table.fill $t (local.get 0) (ref.func $g) (local.get 2))',
      'table.copy': '(table.copy $t $t (i32.add (local.get 0) (i32.const 3)) (local.get 1) (local.get 2))',
      'table.init': '(table.init $t $e (local.get 0) (local.get 1) (local.get 2))',
    }
    const text = `(module (memory (export "memory") 5) (table $t (export "table") 4000 funcref)
      (func $f (export "f")) (func $g (export "g"))
      (elem (table $t) (i32.const 0) func ${elements})
      (elem $e func ${elements})
      (data (i32.const 1000) "${data}")
      (data $d "${data}")
      (func (export "run") (param i32 i32 i32) ${code[what]}))`
    const { bytes, original } = translated(text)
    const isTable = what.startsWith('table')
    const lengths = isTable ? [0, 1, 1024, 1025, 2048, 2500, 3000, 3900, 4000, 4001]
      : [0, 1, 65536, 65537, 131072, 190000, 327680, 327681]
    for (const length of [...lengths, 0x7fffffff, -1]) {
      for (const [to, from] of [[0, 0], [50, 0], [0, 50], [isTable ? 900 : 130000, 500], [-1, 0], [0, -1]] as const) {
        const [expected, got] = [effectOf(original, [to, from, length]), effectOf(bytes, [to, from, length])]
        assert.deepEqual(got, expected, `${what} to ${to} from ${from} of ${length}`)
      }
    }
  })
}

/** What "run" leaves in memory and table, as hashes, and how it trapped. The control word is set. */
function effectOf(bytes: Uint8Array<ArrayBuffer>, args: number[]): unknown {
  const control = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true })
  new Int32Array(control.buffer)[0] = 1
  const own = new WebAssembly.Memory({ initial: 5, maximum: 5 })
  const cellar = { [CONTROL_MEMORY]: control, memory: own }
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { cellar })
  const translated = exports[YIELD_TABLE] as WebAssembly.Table | undefined
  translated?.set(0, functionOf(() => {}))
  let trap = ''
  try {
    (exports['run'] as (...args: number[]) => unknown)(...args)
  } catch (error) {
    trap = (error as Error).message
  }
  const memory = exports['memory'] as WebAssembly.Memory
  const table = exports['table'] as WebAssembly.Table
  const entries = Array.from({ length: table.length }, (_, i) => {
    const entry: unknown = table.get(i)
    return entry === null ? '-' : entry === exports['f'] ? 'f' : 'g'
  }).join('')
  return { trap, memory: hash('sha1', new Uint8Array(memory.buffer)), table: hash('sha1', entries) }
}

test('tables may grow to a limit, and not more', () => {
  const { bytes } = translated(`(module (table $t 10 funcref)
    (func (export "run") (param i32) (result i32) (table.grow $t (ref.null func) (local.get 0))))`)
  assert.equal(runForced(bytes, [1_000_000]).result, 10)
  assert.equal(runForced(bytes, [1_000_001]).result, -1)
})

test('what cannot be kept within bounds is refused by its name, unless that is wanted', () => {
  // (type $a (array (mut i32))) (func (drop (array.new_default $a (i32.const 5))))
  const bytes = Uint8Array.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 7, 2, 0x5e, 0x7f, 1, 0x60, 0, 0, 3, 2, 1, 1,
    10, 10, 1, 8, 0, 0x41, 5, 0xfb, 7, 0, 0x1a, 0x0b])
  assert.ok(WebAssembly.validate(bytes))
  assert.throws(() => translate(decodeModule(bytes), EACH),
    (error) => error instanceof Untreatable && error.construct === 'array.new_default')
  assert.ok(WebAssembly.validate(translate(decodeModule(bytes), { mode: 'preempt', unbounded: true }).bytes))
})

// Forty functions, each of which calls the next one twice: no loop, no recursion, and 2^40 calls.
test('a tree of calls without a cycle is checked before it has gone on for long', () => {
  const calls = Array.from({ length: 40 }, (_, i) => `(func $f${i} (call $f${i + 1}) (call $f${i + 1}))`).join('\n')
  const { checks } = translated(`(module ${calls} (func $f40) (func (export "run") (call $f0)))`)
  assert.ok(checks >= 3, `${checks} checks`)
})

test('a function of a megabyte without a loop is checked in its middle', () => {
  const text = `(module (global $g (mut i32) (i32.const 0)) (func (export "run") (result i32)
    ${'(global.set $g (i32.add (global.get $g) (i32.const 1)))'.repeat(120_000)} (global.get $g)))`
  const { bytes } = translated(text)
  const { result, yields } = runForced(bytes, [])
  assert.equal(result, 120_000)
  assert.ok(yields >= 3 && yields < 8, `${yields} yields`)
})

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
    const { bytes: translatedBytes, checks } = translate(decodeModule(bytes), EACH)
    assert.ok(WebAssembly.validate(translatedBytes), file)
    if (file !== 'hello.wasm') assert.ok(checks > 0, file)
    assert.deepEqual(decodeModule(translatedBytes).sections.map(({ id, name }) => `${id} ${name ?? ''}`)
      .filter((one) => one !== '0 metadata.code.branch_hint'),
    decodeModule(bytes).sections.map(({ id, name }) => `${id} ${name ?? ''}`), file)
  }
})

test('the hypervisor\'s names are refused, and so is a module that is not prepared', () => {
  assert.throws(() => translated(`(module (import "cellar" "${CONTROL_MEMORY}" (func)))`), ReservedName)
  assert.throws(() => translated(`(module (func (export "${YIELD_TABLE}")))`), ReservedName)
  const bytes = parseWat('memory.wat', '(module (memory 1))').toBinary({}).buffer as Uint8Array<ArrayBuffer>
  assert.throws(() => translate(decodeModule(bytes), EACH), RangeError)
})

test('a function that V8 would compile for seconds is refused, and so are pairs of tables without end', () => {
  const blocks = (count: number): string => `(module (func (export "run") (local ${'i32 '.repeat(20_000)})
    ${'(if (i32.const 0) (then))'.repeat(count)}))`
  assert.throws(() => translated(blocks(1000)), /Cannot translate a function of 1000 blocks and 20000 locals/)
  assert.equal(translated(blocks(100)).checks, 0)
  const tries = `(module (func (export "run") ${'(try (do '.repeat(120)} ${') (catch_all))'.repeat(120)}))`
  assert.throws(() => translated(tries), /Cannot translate a function of 120 try, 120 in each other/)
  const count = 40
  const pairs = Array.from({ length: count * count }, (_, i) => `(table.copy ${Math.floor(i / count)} ${i % count}
    (local.get 0) (local.get 0) (local.get 0))`).join('')
  assert.throws(() => translated(`(module ${'(table 1 funcref)'.repeat(count)} (func (param i32) ${pairs}))`),
    /Cannot translate bulk instructions on more than 1000 pairs/)
})

test('a type of objects is refused even if no function makes any: initial values may', () => {
  // (module (type (array (mut i32))))
  const bytes = Uint8Array.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 4, 1, 0x5e, 0x7f, 1])
  assert.ok(WebAssembly.validate(bytes))
  assert.throws(() => translate(decodeModule(bytes), EACH), Untreatable)
})
