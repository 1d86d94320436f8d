// tests/conformance/wast_script_test.ts: scripts of the specification's test suite are read as they are meant.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { bytesOf, parseNodes, parseScript, type Node } from './wast_script.ts'
import { allows, argumentOf, expectedOf, expectedText } from './wast_values.ts'

type Tree = string | readonly Tree[]

function tree({ text, items }: Node): Tree {
  return items === undefined ? text : items.map(tree)
}

test('s-expressions have words, strings and lists; comments and annotations are left out', () => {
  const text = '(a "b ) \\" c" ;; (\n (; (; ( ;) " ;) $"x y"(d))(@note ; ( "e" ) )e'
  assert.deepEqual(parseNodes(text).map(tree), [['a', '"b ) \\" c"', '$"x y"', ['d']], 'e'])
  for (const bad of ['(', ')', '(; (; ;)', '("a']) assert.throws(() => parseNodes(bad), SyntaxError, bad)
})

test('strings are bytes', () => {
  assert.deepEqual([...bytesOf('"a\\00\\ff\\n\\"\\u{20ac}é"')],
    [97, 0, 255, 10, 34, 0xe2, 0x82, 0xac, 0xc3, 0xa9])
})

test('commands know their lines and kinds', () => {
  const script = parseScript(`(module $m) ;; (
(module definition $d (memory 1))
(module instance $i $d)
(register "r\\u{e9}" $m)
(invoke $m "f" (i32.const -1))
(assert_return
  (get "g") (i32.const 1))
(assert_trap (invoke "f") "x") (assert_trap (module) "x")
(assert_malformed_custom (module quote "") "")
(assert_malformed (module quote "(func" ")") "x")
(module binary "\\00a" "b")`)
  assert.deepEqual(script.map(({ line, kind }) => [line, kind]), [[1, 'module'], [2, 'definition'], [3, 'instance'],
    [4, 'register'], [5, 'action'], [6, 'return'], [8, 'trap'], [8, 'uninstantiable'], [9, 'other'], [10, 'refused'],
    [11, 'module']])
  assert.deepEqual(script[0], { line: 1, kind: 'module', id: '$m', source: { text: '(module $m)' } })
  assert.deepEqual(script[1], { line: 2, kind: 'definition', id: '$d', source: { text: '(module  $d (memory 1))' } })
  assert.deepEqual(script[2], { line: 3, kind: 'instance', id: '$i', definition: '$d' })
  assert.deepEqual(script[3], { line: 4, kind: 'register', name: 'ré', id: '$m' })
  assert.deepEqual(script[4], { line: 5, kind: 'action',
    action: { kind: 'invoke', id: '$m', name: 'f', args: [{ type: 'i32', bits: 0xffff_ffffn }] } })
  assert.deepEqual(script[9], { line: 10, kind: 'refused', source: { text: '(module (func ) \n)' } })
  assert.deepEqual(script[10],
    { line: 11, kind: 'module', id: undefined, source: { bytes: Uint8Array.of(0, 97, 98) } })
})

test('a script may be the fields of one module', () => {
  assert.deepEqual(parseScript('(func) (memory 0)'),
    [{ kind: 'module', id: undefined, line: 1, source: { text: '(module (func) (memory 0)\n)' } }])
})

function bits(text: string): string {
  const value = argumentOf(parseNodes(`(${text})`)[0]!)
  return value.type === 'ref' ? `host ${value.host}` : value.bits.toString(16)
}

test('numbers are their bits', () => {
  const examples: Record<string, string> = {
    'i32.const -0x8000_0000': '80000000', 'i64.const 0xffff_ffff_ffff_ffff': 'ffffffffffffffff',
    'f32.const 1': '3f800000', 'f32.const -0': '80000000', 'f32.const inf': '7f800000', 'f32.const -nan': 'ffc00000',
    'f32.const nan:0x1': '7f800001', 'f64.const nan': '7ff8000000000000', 'f32.const 0x1p-149': '1',
    'f32.const 0x1p-150': '0', 'f32.const 0x1.8p-150': '1', 'f32.const 0x1.fffffefp127': '7f7fffff',
    'f32.const 0x1.ffffffp127': '7f800000', 'f32.const 1e39': '7f800000', 'f64.const 1e-400': '0',
    // Between two floats, and above their middle by less than a double can tell.
    'f32.const 1.00000005960464477540': '3f800001', 'f32.const 1.000000059604644775390625': '3f800000',
    'f32.const 1.1754943508e-38': '800000', 'f32.const 0x.8p1': '3f800000', 'f32.const 1_0.': '41200000',
    'v128.const i16x8 1 2 3 4 5 6 7 -1': 'ffff0007000600050004000300020001',
    'v128.const f32x4 1 0 0 0x1p1': '4000000000000000000000003f800000',
    'ref.null func': 'host null', 'ref.extern 4': 'host 4',
  }
  for (const [text, expected] of Object.entries(examples)) assert.equal(bits(text), expected, text)
})

test('floats are rounded as JavaScript rounds them', () => {
  const view = new DataView(new ArrayBuffer(8))
  const double = fc.double({ noNaN: true, noDefaultInfinity: true })
  fc.assert(fc.property(double, fc.integer({ min: 1, max: 21 }), (x, digits) => {
    const text = x.toExponential(digits - 1)
    view.setFloat64(0, Number(text))
    assert.equal(bits(`f64.const ${text}`), view.getBigUint64(0).toString(16), text)
  }))
  fc.assert(fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
    view.setFloat32(0, x)
    assert.equal(bits(`f32.const ${Object.is(x, -0) ? '-0' : x}`), view.getUint32(0).toString(16), String(x))
  }))
})

function isAllowed(expected: string, ...results: string[]): boolean {
  return allows(parseNodes(expected).map(expectedOf), results)
}

test('results are allowed by bits, by classes of NaNs and by kinds of references', () => {
  assert.ok(isAllowed('(i32.const 1) (i64.const 2)', 'i32 00000001', 'i64 0000000000000002'))
  assert.ok(!isAllowed('(i32.const 1)', 'i32 00000002'))
  assert.ok(!isAllowed('(i32.const 1)', 'i64 00000001'))
  assert.ok(!isAllowed('(i32.const 1)') && !isAllowed('', 'i32 00000001'))
  assert.ok(isAllowed('(f32.const nan:canonical)', 'f32 ffc00000'))
  assert.ok(!isAllowed('(f32.const nan:canonical)', 'f32 ffc00001'))
  assert.ok(isAllowed('(f32.const nan:arithmetic)', 'f32 ffc00001'))
  assert.ok(!isAllowed('(f64.const nan:arithmetic)', 'f64 7ff0000000000001'))
  assert.ok(isAllowed('(v128.const f64x2 nan:canonical 1)', 'v128 3ff00000000000007ff8000000000000'))
  assert.ok(!isAllowed('(v128.const f64x2 1 nan:canonical)', 'v128 3ff00000000000007ff8000000000000'))
  assert.ok(isAllowed('(either (i32.const 1) (i32.const 2))', 'i32 00000002'))
  assert.ok(isAllowed('(ref.extern)', 'ref extern 1') && isAllowed('(ref.host 1)', 'ref extern 1'))
  assert.ok(!isAllowed('(ref.extern 2)', 'ref extern 1') && !isAllowed('(ref.any)', 'ref null'))
  assert.ok(isAllowed('(ref.eq)', 'ref i31 7') && !isAllowed('(ref.eq)', 'ref func'))
  const expected = parseNodes('(f32.const nan:canonical) (either (i32.const 1) (ref.null func))').map(expectedOf)
  assert.equal(expectedText(expected), 'f32 nan:canonical, i32 1 or null')
})
