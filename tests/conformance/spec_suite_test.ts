// tests/conformance/spec_suite_test.ts: one test for each script of the WebAssembly specification's test suite.
//
// The suite is somebody else's and stays outside the repository: without it there is one skipped test that says where
// it is looked for. What runs it is tested here with scripts of our own, also that it can fail.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { translate } from '../../src/translate/translate.ts'
import { Untreatable } from '../../src/translate/untreatable.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import { prepare } from '../../src/wasm/prepare.ts'
import type { Mode } from './spec_host.ts'
import { runScript, UNTRANSLATED, type Report } from './spec_run.ts'
import { addReport, emptyReport, findScripts, findSuite, MODES, summary } from './spec_suite.ts'
import { findConverter, wabtConverter } from './wast_converter.ts'

const wabt = await wabtConverter()

async function run(text: string, modes: readonly Mode[] = MODES): Promise<Report> {
  return await runScript('own.wast', text, modes, wabt)
}

// Instances that share memory, table and global; a start function; loops, recursion, bulk instructions; all types.
const SCRIPT = `
(module $lib
  (memory (export "memory") 1 2)
  (table (export "table") 3 funcref)
  (global (export "calls") (mut i32) (i32.const 0))
  (func (export "sum") (param $n i32) (result i32) (local $sum i32)
    (loop $l
      (local.set $sum (i32.add (local.get $sum) (local.get $n)))
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum))
  (func $deep (export "deep") (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))
  (func (export "fill") (memory.fill (i32.const 0) (i32.const 7) (i32.const 65536)))
  (func (export "divide") (param i64 i64) (result i64) (i64.div_s (local.get 0) (local.get 1)))
  (func (export "f32") (param f32) (result f32) (local.get 0))
  (func (export "v128") (param v128 i32) (result i32 v128)
    (local.get 1) (i32x4.add (local.get 0) (i32x4.splat (local.get 1))))
  (func (export "extern") (param externref) (result externref) (local.get 0))
  (func (export "null") (result funcref) (ref.null func))
  (tag $t) (func (export "throw") (throw $t)))
(register "lib" $lib)
(module
  (import "lib" "memory" (memory 1))
  (import "lib" "sum" (func $sum (param i32) (result i32)))
  (import "lib" "table" (table 3 funcref))
  (import "lib" "calls" (global $calls (mut i32)))
  (elem (i32.const 1) $inc)
  (func $inc (global.set $calls (i32.add (global.get $calls) (call $sum (i32.const 10)))))
  (func $start (call_indirect (i32.const 1)) (i32.store (i32.const 8) (global.get $calls)))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (start $start))
(assert_return (invoke "load" (i32.const 8)) (i32.const 55))
(assert_return (get $lib "calls") (i32.const 55))
(assert_return (invoke $lib "sum" (i32.const 1000)) (i32.const 500500))
(invoke $lib "fill")
(assert_return (invoke "load" (i32.const 8)) (i32.const 0x07070707))
(assert_trap (invoke "load" (i32.const 65536)) "out of bounds memory access")
(assert_trap (invoke $lib "divide" (i64.const 1) (i64.const 0)) "integer divide by zero")
(assert_return (invoke $lib "divide" (i64.const -0x8000_0000_0000_0000) (i64.const 2))
  (i64.const -0x4000_0000_0000_0000))
(assert_exhaustion (invoke $lib "deep" (i32.const 0)) "call stack exhausted")
(assert_exception (invoke $lib "throw"))
(assert_return (invoke $lib "f32" (f32.const nan:0x123)) (f32.const nan:0x123))
(assert_return (invoke $lib "f32" (f32.const -nan)) (f32.const nan:canonical))
(assert_return (invoke $lib "f32" (f32.const nan:0x600000)) (f32.const nan:arithmetic))
(assert_return (invoke $lib "f32" (f32.const 1.5)) (either (f32.const 1) (f32.const 0x1.8p0)))
(assert_return (invoke $lib "v128" (v128.const i8x16 -1 -1 -1 -1 1 0 0 0 2 0 0 0 0 0 0 0x80) (i32.const 3))
  (i32.const 3) (v128.const i32x4 2 4 5 -2147483645))
(assert_return (invoke $lib "extern" (ref.extern 3)) (ref.extern 3))
(assert_return (invoke $lib "extern" (ref.null extern)) (ref.null))
(assert_return (invoke $lib "null") (ref.null func))
(assert_unlinkable (module (import "lib" "memory" (memory 2))) "incompatible import type")
(assert_unlinkable (module (import "lib" "none" (func))) "unknown import")
(assert_trap (module (func unreachable) (start 0)) "unreachable")
(assert_invalid (module (func (result i32))) "type mismatch")
(assert_malformed (module binary "\\00asm\\01\\00\\00\\00\\09") "unexpected end")
(module definition $d (global (export "g") (mut i32) (i32.const 1)))
(module instance $d1 $d)
(module instance $d2 $d)
(assert_return (get $d2 "g") (i32.const 1))`

test('a script comes to the same in every mode, whatever yields', async () => {
  const { counts, failures, v8, refusals, untreatable } = await run(SCRIPT)
  assert.deepEqual({ failures, v8, untreatable: untreatable.size }, { failures: [], v8: [], untreatable: 0 })
  assert.deepEqual(refusals, { decoder: 1, v8: 1, converter: 0, nobody: 0, prepared: 0 })
  assert.deepEqual([...counts.keys()], [UNTRANSLATED, ...MODES.map(({ name }) => name)])
  for (const [mode, { modules, passed, failed, skipped, yields, pauses }] of counts) {
    assert.deepEqual({ modules, passed, failed, skipped }, { modules: 8, passed: 28, failed: 0, skipped: 0 }, mode)
    const isCaptured = mode.startsWith('captured')
    const isNever = mode === UNTRANSLATED || mode.endsWith('never') || isCaptured
    assert.equal(yields > 0, !isNever, mode)
    assert.equal(pauses, mode.includes('7th') ? Math.floor(yields / 7) : yields, mode)
  }
  // Each round of "sum": 10 in the start function, 1000 when it is called.
  assert.ok(counts.get('preempt, at each check')!.yields > 1010)
})

// Control flow of all kinds, in functions with and without loops, that call and that don't.
const KERNELS = `(module
  (func $leaf (param i32) (result i32) (if (result i32) (local.get 0) (then (i32.const 1)) (else (i32.const 2))))
  (func (export "small") (param $n i32) (result i32) (local $sum i32)
    (block $out
      (loop $l
        (br_if $out (i32.eqz (local.get $n)))
        (local.set $sum (i32.add (local.get $sum) (local.get $n)))
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br $l))
      (local.set $sum (i32.const -1)))
    (local.get $sum))
  (func (export "skips") (param $n i32) (result i32)
    (block $a
      (block $b
        (br_if $b (i32.and (local.get $n) (i32.const 1)))
        (local.set $n (i32.add (local.get $n) (i32.const 6)))
        (br_if $a (i32.and (local.get $n) (i32.const 2))))
      (local.set $n (i32.add (local.get $n) (i32.const 9))))
    (local.get $n))
  (func (export "tables") (param $n i32) (result i32) (local $sum i32)
    (block $out
      (loop $l
        (br_if $out (i32.eqz (local.get $n)))
        (local.set $sum (i32.add (local.get $sum) (local.get $n)))
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (block $in
          (br_table $in $l $out (i32.rem_u (local.get $sum) (i32.const 3))))
        (local.set $sum (i32.add (local.get $sum) (i32.const 100)))
        (br $l)))
    (local.get $sum))
  (func (export "typed") (param $n i32) (result i32 i64) (local i64)
    (i32.const 0) (i64.const 1)
    (loop $l (param i32 i64) (result i32 i64)
      (i64.add (i64.const 3)) (local.set 1) (i32.add (i32.const 2)) (local.get 1)
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
  (func (export "value") (param $n i32) (result i32)
    (loop $l (result i32)
      (local.get $n)
      (br_if $l (i32.gt_u (local.tee $n (i32.sub (local.get $n) (i32.const 1))) (i32.const 3)))))
  (func (export "returns") (param $n i32) (result i32)
    (loop $l
      (if (i32.eq (local.get $n) (i32.const 7)) (then (return (i32.const 70))))
      (br_if 1 (i32.const 11) (i32.eq (local.get $n) (i32.const 5))) (drop)
      (local.set $n (i32.sub (local.get $n) (call $leaf (local.get $n))))
      (br_if $l (local.get $n)))
    (local.get $n))
  (func $tail (export "tail") (param $n i32) (result i32)
    (loop $l (if (i32.and (local.get $n) (i32.const 3)) (then
      (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br $l))))
    (if (result i32) (local.get $n)
      (then (return_call $tail (i32.sub (local.get $n) (i32.const 1)))) (else (i32.const 5))))
  (func (export "nested") (param $n i32) (result i32) (local $i i32) (local $sum i32)
    (loop $rows
      (local.set $i (local.get $n))
      (loop $columns
        (local.set $sum (i32.add (local.get $sum) (call $leaf (i32.and (local.get $i) (i32.const 1)))))
        (br_if $columns (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
      (br_if $rows (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))
${['small', 'skips', 'tables', 'typed', 'value', 'returns', 'tail', 'nested'].flatMap((name) =>
  [1, 2, 3, 4, 5, 6, 8, 9, 30, 31].map((n) => `(invoke "${name}" (i32.const ${n}))`)).join('\n')}`

test('all kinds of control flow come to the same, and spend fuel for each instruction', async () => {
  const { failures, v8, counts } = await run(KERNELS)
  assert.deepEqual({ failures, v8 }, { failures: [], v8: [] })
  assert.ok(counts.get('fuel, slices of 1000')!.yields > 0)
})

// A call in "between" leaves by an exception: what it was to be paid with must not be forgotten.
const EXCEPTIONS = `(module
  (tag $t)
  (func $thrower (param i32) (if (local.get 0) (then (throw $t))))
  (func $between (param i32) (result i32)
    (i32.add (i32.const 1) (i32.const 2)) (call $thrower (local.get 0)))
  (func (export "run") (param $n i32) (result i32) (local $caught i32)
    (loop $l
      (try (do (drop (call $between (i32.and (local.get $n) (i32.const 1)))))
        (catch $t (local.set $caught (i32.add (local.get $caught) (i32.const 1)))))
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $caught)))
(assert_return (invoke "run" (i32.const 20)) (i32.const 10))`

test('exceptions come to the same, and spend fuel for each instruction', async () => {
  const { failures, v8 } = await run(EXCEPTIONS)
  assert.deepEqual({ failures, v8 }, { failures: [], v8: [] })
})

const DOUBLE = `(module (func (export "double") (param i32) (result i32) (i32.add (local.get 0) (local.get 0))))
(assert_return (invoke "double" (i32.const 4)) (i32.const 8))`

/** A translator that, whatever it gets, gives the translation of another text. */
function instead(text: string, mode: 'preempt' | 'fuel' = 'preempt'): Pick<Mode, 'translate'> {
  const bytes = wabt.parse(text)
  return { translate: () => translate(decodeModule(prepare(bytes, decodeModule(bytes)).bytes), { mode }).bytes }
}

async function failuresWith(...modes: Mode[]): Promise<string[]> {
  const { failures, counts, v8 } = await run(DOUBLE, modes)
  assert.deepEqual(v8, [])
  assert.equal(counts.get(UNTRANSLATED)!.failed, 0)
  return failures
}

test('a translation that computes something else is a difference', async () => {
  const wrong = instead('(module (func (export "double") (param i32) (result i32) (i32.const 9)))')
  assert.deepEqual(await failuresWith({ name: 'wrong', ...wrong }),
    ['own.wast:2 wrong: returned i32 00000009; untranslated returned i32 00000008'])
})

test('a translation that traps, or has lost an export, or is no module, is a difference', async () => {
  const trap = instead('(module (func (export "double") (param i32) (result i32) unreachable))')
  assert.deepEqual(await failuresWith({ name: 'wrong', ...trap }),
    ['own.wast:2 wrong: trap: unreachable; untranslated returned i32 00000008'])
  const lost = await failuresWith({ name: 'wrong', ...instead('(module (func))') })
  assert.match(lost.join('\n'), /^own\.wast:2 wrong: /)
  assert.match((await failuresWith({ name: 'wrong', translate: () => Uint8Array.of(1, 2, 3) })).join('\n'),
    /^own\.wast:1 wrong: not compiled; untranslated ok CompileError.*\nown\.wast:2 wrong: absent; /)
})

test('a translator that breaks is a difference', async () => {
  const broken = { name: 'broken', translate: (): never => { throw new TypeError('oh') } }
  assert.deepEqual((await failuresWith(broken))[0], 'own.wast:1 broken: error: TypeError: oh; untranslated ok')
})

test('a guest that is captured goes on in the same instance, and in others if nobody else has to do with its own',
  async () => {
    const { counts, failures } = await run(KERNELS, MODES.filter(({ name }) => name.startsWith('captured')))
    assert.deepEqual(failures, [])
    for (const [mode, { here, anew, entered, direct }] of counts) {
      if (mode === UNTRANSLATED) continue
      const [most, none] = mode.endsWith('anew') ? [anew, here] : [here, anew]
      assert.ok(most > 50 && none === 0, `${mode}: ${here} in place, ${anew} anew`)
      assert.deepEqual({ entered, direct }, { entered: 80, direct: 0 })
    }
  })

// Two modules whose functions call each other: the stack of both can't be left.
const LINKED = `(module $a
  (func $spin (export "spin") (param $n i32) (result i32)
    (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (i32.const 5)))
(register "a" $a)
(module
  (import "a" "spin" (func $spin (param i32) (result i32)))
  (func (export "both") (result i32) (i32.add (call $spin (i32.const 40)) (call $spin (i32.const 30)))))
(assert_return (invoke "both") (i32.const 10))
(assert_return (invoke $a "spin" (i32.const 40)) (i32.const 5))`

test('a stack that modules share is not captured, and neither leaves its instance', async () => {
  const { counts, failures } = await run(LINKED,
    [{ ...MODES[1]!, name: 'captured', capture: { nth: 2, anew: true } }])
  assert.deepEqual(failures, [])
  const { here, anew, shared } = counts.get('captured')!
  assert.ok(here > 5 && anew === 0 && shared > 20, `${here} in place, ${anew} anew, ${shared} shared`)
})

test('what goes on with something that was lost is a difference', async () => {
  // The local that is read last is another one's.
  const text = `(module (func $f (param i32) (result i32) (local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9))))
      (local.get 0))
    (func (export "double") (param i32) (result i32)
      (i32.mul (i32.const 2) (call $f (local.get 0)))))
    (assert_return (invoke "double" (i32.const 4)) (i32.const 8))`
  const capture = { nth: 2, anew: false }
  const mode: Mode = { ...MODES[1]!, name: 'captured', nth: 2, capture }
  assert.deepEqual((await run(text, [mode])).failures, [])
  const forgets = { ...mode, capture: { ...capture, change: (bytes: Uint8Array) => bytes.fill(0, 0, 4) } }
  assert.match((await run(text, [forgets])).failures.join(), /captured: returned i32 0/)
})

test('a yield that nobody asked for is a difference', async () => {
  const loops = instead(`(module (func (export "double") (param i32) (result i32)
    (loop $l (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (i32.const 8)))`, 'fuel')
  assert.deepEqual(await failuresWith({ name: 'eager', ...loops, word: 0 }), ['own.wast:1 eager: it yielded 3 times'])
})

test('fuel that depends on when the guest leaves is a difference', async () => {
  const text = DOUBLE.split('\n')[0]!
  const one = { name: 'one', ...instead(text, 'fuel'), slice: 0 }
  assert.deepEqual(await failuresWith(one, { name: 'two', ...instead(text, 'fuel'), slice: 9 }), [])
  const longer = instead(text.replace('(i32.add', '(drop (i32.const 1)) (i32.add'), 'fuel')
  assert.match((await failuresWith(one, { name: 'two', ...longer, slice: 0 })).join('\n'),
    /^own\.wast:2 two: it spends \d+, in another mode \d+$/)
})

test('what the translator refuses is counted, and runs unbounded, or prepared only', async () => {
  const refuse = (unboundedToo: boolean): Mode => ({
    name: 'refuse',
    translate: (module, unbounded) => {
      if (!unbounded || unboundedToo) throw new Untreatable('a thing')
      return translate(module, { mode: 'preempt', unbounded }).bytes
    },
  })
  for (const mode of [refuse(false), refuse(true)]) {
    const { untreatable, failures } = await run(DOUBLE, [mode])
    assert.deepEqual({ untreatable: [...untreatable], failures }, { untreatable: [['a thing', 1]], failures: [] })
  }
})

test('an answer that the script doesn\'t expect is V8\'s, and the same is asked of translations', async () => {
  const script = DOUBLE.replace('(i32.const 8)', '(i32.const 7)')
  const { v8, failures, counts } = await run(script)
  assert.deepEqual(failures, [])
  assert.deepEqual(v8, ['own.wast:2 untranslated: expected i32 7: returned i32 00000008'])
  assert.equal(counts.get(MODES[0]!.name)!.passed, 2)
  const wrong = instead('(module (func (export "double") (param i32) (result i32) (i32.const 7)))')
  assert.equal((await run(script, [{ name: 'as the script says', ...wrong }])).failures.length, 1)
})

test('reports add up, and the last line is the totals', async () => {
  const sum = emptyReport()
  for (const text of [DOUBLE, DOUBLE]) addReport(sum, await run(text, MODES.slice(0, 1)))
  assert.deepEqual(sum.counts.get(UNTRANSLATED),
    { modules: 2, passed: 4, failed: 0, skipped: 0, yields: 0, pauses: 0, here: 0, anew: 0, frames: 0, shared: 0,
      entered: 0, direct: 0 })
  assert.equal(summary(sum, 2).at(-1), '2 scripts, 0 differences, 0 faults of V8')
})

const suite = findSuite()

if ('missing' in suite) {
  test('the specification\'s test suite comes to the same when translated', { skip: suite.missing }, () => {})
} else {
  const converter = await findConverter()
  const scripts = findScripts(suite.folder)

  test('the specification\'s test suite has its 261 scripts', () => {
    assert.ok(scripts.length >= 261, `found ${scripts.length} in ${suite.folder}`)
  })

  for (const script of scripts) {
    test(`spec script ${script} comes to the same in every mode`, async () => {
      const text = readFileSync(join(suite.folder, script), 'utf8')
      assert.deepEqual((await runScript(script, text, MODES, converter)).failures, [])
    })
  }
}
