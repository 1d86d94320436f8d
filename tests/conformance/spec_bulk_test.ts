// tests/conformance/spec_bulk_test.ts: long bulk instructions, which are translated into pieces with checks in between.
//
// The specification's test suite hardly has any that are longer than a piece (64 KiB, 1024 entries of a table). Each
// call here is followed by a hash of all that it could have changed; no answers are given, as V8's are the measure.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { runScript, UNTRANSLATED } from './spec_run.ts'
import { MODES } from './spec_suite.ts'
import { wabtConverter } from './wast_converter.ts'

// The plain count of instructions doesn't know what the pieces cost.
const PIECEWISE = MODES.filter(({ name }) => !name.includes('one by one') && !/captured at 1 check in [23]/.test(name))
const PAGE = 65_536
const wabt = await wabtConverter()

type Call = readonly [name: string, ...args: number[]]

/** A script that calls these functions of a module, each with a look at what became of it. */
function scriptOf(module: string, type: 'i32' | 'i64', calls: readonly Call[]): string {
  const invocations = calls.map(([name, ...args]) => {
    // What is filled in, and where a segment begins, has 32 bits in any case.
    const values = args.map((value, i) => {
      const isNarrow = name === 'fill' ? i === 1 : name === 'init' && i > 0
      return `(${isNarrow ? 'i32' : type}.const ${value})`
    })
    return `(invoke "${name}" ${values.join(' ')})\n(invoke "hash")`
  })
  return `${module}\n${invocations.join('\n')}`
}

async function assertSame(script: string, traps: number): Promise<void> {
  const { failures, v8, counts } = await runScript('bulk.wast', script, PIECEWISE, wabt)
  assert.deepEqual(failures, [])
  assert.equal(v8.filter((line) => line.includes('trap: ')).length, traps, v8.join('\n'))
  assert.equal(v8.length, traps, v8.join('\n'))
  for (const [mode, { yields, here, anew }] of counts) {
    const left = mode.startsWith('captured') ? here + anew : yields
    assert.equal(left > 0, mode !== UNTRANSLATED && !mode.endsWith('never'), mode)
  }
}

/** Five pages, addressed by i32 or i64, and a larger memory; the hash is of the first. */
function memoryModule(type: 'i32' | 'i64'): string {
  const index = type === 'i64' ? 'i64 ' : ''
  const data = Array.from({ length: 140_000 / 16 }, (_, i) => `a${i.toString(36).padStart(5, '_')}0123456789`).join('')
  const rounds = Array.from({ length: 16 }, (_, i) => `(local.set $hash (i64.mul (i64.const 0x5851f42d4c957f2d)
    (i64.xor (local.get $hash) (i64.load $m offset=${8 * i} (local.get $at)))))`)
  return `(module
    (memory $m ${index}5) (memory $other ${index}8)
    (data $d "${data}")
    (func (export "fill") (param ${type} i32 ${type})
      (memory.fill $m (local.get 0) (local.get 1) (local.get 2)))
    (func (export "copy") (param ${type} ${type} ${type})
      (memory.copy $m $m (local.get 0) (local.get 1) (local.get 2)))
    (func (export "out") (param ${type} ${type} ${type})
      (memory.copy $other $m (local.get 0) (local.get 1) (local.get 2)))
    (func (export "in") (param ${type} ${type} ${type})
      (memory.copy $m $other (local.get 0) (local.get 1) (local.get 2)))
    (func (export "init") (param ${type} i32 i32)
      (memory.init $m $d (local.get 0) (local.get 1) (local.get 2)))
    (func (export "drop") (data.drop $d))
    (func (export "hash") (result i64) (local $at ${type}) (local $hash i64)
      (loop $l
        ${rounds.join('\n')}
        (br_if $l (${type}.ne (local.tee $at (${type}.add (local.get $at) (${type}.const ${8 * rounds.length})))
          (${type}.const ${5 * PAGE}))))
      (local.get $hash)))`
}

const MEMORY_CALLS: readonly Call[] = [
  ['init', 3, 0, 140_000], ['init', 7, 11, 139_000], ['init', 0, 0, PAGE], ['init', 1, 1, PAGE + 1],
  // Overlapping, forwards and backwards, by less and by more than a piece; onto itself.
  ['copy', 10, 0, 140_000], ['copy', 0, 10, 140_000], ['copy', 100_000, 0, 200_000], ['copy', 0, 100_000, 200_000],
  ['copy', 5, 5, 200_000], ['copy', 1, 0, 2 * PAGE], ['copy', 0, 1, 2 * PAGE + 1],
  ['copy', 0, 5 * PAGE - 70_000, 70_000],
  ['out', 17, 3, 3 * PAGE], ['fill', 0, 0, 5 * PAGE], ['in', 3, 17, 3 * PAGE], ['in', 0, 100_000, 100_000],
  ['fill', 1, 0x1ff, PAGE], ['fill', 70_000, 3, PAGE + 1], ['fill', 5 * PAGE - 2 * PAGE, 9, 2 * PAGE],
]

/** What is out of bounds by one, by much, and by a sum that has more bits than an address. */
const MEMORY_TRAPS: readonly Call[] = [
  ['fill', 1, 5, 5 * PAGE], ['fill', 5 * PAGE, 5, PAGE + 1], ['fill', 2, 5, -1], ['fill', -1, 5, PAGE + 1],
  ['copy', 0, 1, 5 * PAGE], ['copy', 1, 0, 5 * PAGE], ['copy', 0, 1, -1], ['copy', 9, 0, -1], ['copy', -8, 0, PAGE + 9],
  ['copy', 0, -8, PAGE + 9], ['out', 0, 4 * PAGE, PAGE + 1], ['in', 4 * PAGE, 0, PAGE + 1],
  ['in', 3 * PAGE, 4 * PAGE, 3 * PAGE],
  ['init', 4 * PAGE, 0, PAGE + 1], ['init', 0, 1, 140_000], ['init', 0, -1, PAGE + 2], ['init', -1, 0, PAGE + 2],
]

for (const type of ['i32', 'i64'] as const) {
  test(`long bulk instructions on memories addressed by ${type} come to the same in every mode`, async () => {
    const calls = [...MEMORY_CALLS, ...MEMORY_TRAPS, ['drop'], ['init', 0, 0, 0], ['init', 0, 0, PAGE + 1]] as const
    await assertSame(scriptOf(memoryModule(type), type, calls), MEMORY_TRAPS.length + 1)
  })
}

/** A table of 6000 entries and a larger one; the hash is of what the first one's entries return. */
function tableModule(): string {
  const functions = Array.from({ length: 7 }, (_, i) => `(func $f${i} (result i32) (i32.const ${i * i + 1}))`)
  const entries = Array.from({ length: 3000 }, (_, i) => `$f${(i * i + (i >> 3)) % 7}`).join(' ')
  return `(module
    (table $t 6000 funcref) (table $other 8000 funcref) (type $f (func (result i32)))
    (table $externs 3000 externref)
    ${functions.join('\n')}
    (elem $e func ${entries})
    (func (export "fill") (param i32 i32 i32)
      (table.fill $t (local.get 0) (table.get $t (local.get 1)) (local.get 2)))
    (func (export "copy") (param i32 i32 i32) (table.copy $t $t (local.get 0) (local.get 1) (local.get 2)))
    (func (export "out") (param i32 i32 i32) (table.copy $other $t (local.get 0) (local.get 1) (local.get 2)))
    (func (export "in") (param i32 i32 i32) (table.copy $t $other (local.get 0) (local.get 1) (local.get 2)))
    (func (export "init") (param i32 i32 i32) (table.init $t $e (local.get 0) (local.get 1) (local.get 2)))
    (func (export "externs") (param i32 externref i32)
      (table.fill $externs (local.get 0) (local.get 1) (local.get 2)))
    (func (export "extern") (param i32) (result externref) (table.get $externs (local.get 0)))
    (func (export "drop") (elem.drop $e))
    (func (export "hash") (result i32) (local $at i32) (local $hash i32)
      (loop $l
        (local.set $hash (i32.mul (i32.const 0x01000193) (i32.xor (local.get $hash)
          (if (result i32) (ref.is_null (table.get $t (local.get $at))) (then (i32.const 0))
            (else (call_indirect $t (type $f) (local.get $at)))))))
        (br_if $l (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 6000))))
      (local.get $hash)))`
}

const TABLE_CALLS: readonly Call[] = [
  ['init', 3, 0, 3000], ['init', 3000, 1, 2999], ['copy', 10, 0, 2500], ['copy', 0, 10, 2500], ['copy', 1500, 0, 4000],
  ['copy', 0, 1500, 4000], ['copy', 1, 0, 2048], ['copy', 7, 7, 3000], ['out', 5, 9, 3000], ['fill', 0, 4, 2500],
  ['fill', 3000, 5999, 1025], ['in', 9, 5, 3000], ['in', 0, 3500, 1024],
]
const TABLE_TRAPS: readonly Call[] = [
  ['fill', 3000, 4, 3001], ['fill', 1, 4, -1], ['copy', 0, 1, 6000], ['copy', 1, 0, 6000], ['copy', 5, 0, -1],
  ['out', 6000, 0, 2001], ['in', 4000, 0, 2001], ['in', 4000, 5000, 2500],
  ['init', 4000, 0, 2001], ['init', 0, 1, 3000], ['init', 0, -1, 1026],
]

test('long bulk instructions on tables come to the same in every mode', async () => {
  const calls = [...TABLE_CALLS, ...TABLE_TRAPS, ['drop'], ['init', 0, 0, 0], ['init', 0, 0, 1025]] as const
  await assertSame(`${scriptOf(tableModule(), 'i32', calls)}
    (invoke "externs" (i32.const 2) (ref.extern 5) (i32.const 2500))
    (assert_return (invoke "extern" (i32.const 1)) (ref.null extern))
    (assert_return (invoke "extern" (i32.const 2)) (ref.extern 5))
    (assert_return (invoke "extern" (i32.const 2501)) (ref.extern 5))
    (assert_return (invoke "extern" (i32.const 2502)) (ref.null extern))
    (assert_trap (invoke "externs" (i32.const 2) (ref.null extern) (i32.const 2999)) "out of bounds table access")
    (assert_return (invoke "extern" (i32.const 2501)) (ref.extern 5))`, TABLE_TRAPS.length + 1)
})
