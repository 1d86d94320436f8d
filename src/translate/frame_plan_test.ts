// translate/frame_plan_test.ts: where functions can be left, and what their frames keep there.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import wabt from 'wabt'
import { BodyReader, eachBody } from '../wasm/body.ts'
import { decodeModule } from '../wasm/decode.ts'
import { localTypes } from './captured_body.ts'
import { SITE_CALL, SITE_ENTRY, SITE_GAP, SITE_LOOP, type FramePlan } from './frame_plan.ts'
import { ModuleTypes } from './module_types.ts'
import { Planner } from './planner.ts'
import { Uncapturable } from './uncapturable.ts'

const { parseWat } = await wabt()
const FEATURES = { exceptions: true, multi_value: true, simd: true, reference_types: true, bulk_memory: true }

/** The plan of the last function of a text. `quiet`: calls of function 0 never unwind. */
function planOf(text: string, { entryCheck = false, quiet = false } = {}): FramePlan {
  const parsed = parseWat('plan.wat', `(module ${text})`, FEATURES)
  const module = decodeModule(parsed.toBinary({}).buffer as Uint8Array<ArrayBuffer>)
  parsed.destroy()
  const types = new ModuleTypes(module)
  const planner = new Planner({ types, unwinds: (index) => !quiet || index !== 0, helperOf: () => -1 })
  const reader = new BodyReader(module.bytes)
  let plan: FramePlan | undefined
  eachBody(module, (start, end, f) => {
    if (f !== module.functionCount - 1) return
    reader.open(start, end)
    plan = planner.plan(f + types.importedFunctions, reader, entryCheck, localTypes(reader, types))
  })
  return plan!
}

const kinds = ({ sites }: FramePlan): number[] => sites.map(({ kind }) => kind)
const sizes = ({ sites }: FramePlan): number[] => sites.map(({ size }) => size)
const F = '(func $f (param i32) (result i32) (local.get 0))'

test('a function can be left after calls that may unwind, at loops, and at its entry if it checks there', () => {
  const text = `${F} (func (param i32) (loop (drop (call $f (i32.const 1)))) (drop (call $f (i32.const 2))))`
  assert.deepEqual(kinds(planOf(text)), [SITE_LOOP, SITE_CALL, SITE_CALL])
  assert.deepEqual(kinds(planOf(text, { entryCheck: true })), [SITE_ENTRY, SITE_LOOP, SITE_CALL, SITE_CALL])
  assert.deepEqual(kinds(planOf(text, { quiet: true })), [SITE_LOOP])
})

test('long straight code can be left in its middle', () => {
  const plan = planOf(`(func (param i32) ${'(local.set 0 (i32.add (local.get 0) (i32.const 1)))'.repeat(40_000)})`)
  assert.deepEqual(kinds(plan), [SITE_GAP, SITE_GAP])
  assert.deepEqual(sizes(plan), [4, 4])
})

test('code that can\'t be reached has no sites', () => {
  assert.deepEqual(kinds(planOf(`${F} (func (param i32)
    (block (br 0) (drop (call $f (i32.const 1))) (loop (nop)))
    (if (local.get 0) (then (return) (drop (call $f (i32.const 1)))) (else (drop (call $f (i32.const 2)))))
    (unreachable) (drop (call $f (i32.const 1))))`)), [SITE_CALL])
})

test('a frame keeps the locals that are read before they are set again, and no others', () => {
  const read = (body: string): number[] =>
    sizes(planOf(`(func $none) (func (param i32 i64 f32 f64) (local v128 i32) ${body})`))
  const call = '(call $none)'
  assert.deepEqual(read(call), [0])
  assert.deepEqual(read(`${call} (drop (local.get 1))`), [8])
  assert.deepEqual(read(`(drop (local.get 1)) ${call}`), [0])
  assert.deepEqual(read(`${call} (local.set 0 (i32.const 1)) (drop (local.get 0))`), [0])
  assert.deepEqual(read(`${call} (if (local.get 0) (then (local.set 0 (i32.const 1)))) (drop (local.get 0))`), [4])
  assert.deepEqual(read(`${call} (drop (local.get 0)) (drop (local.get 3)) (drop (local.get 4))`), [28])
  // What the next round reads.
  assert.deepEqual(read(`(loop (drop (local.get 5)) ${call} (local.set 5 (i32.const 2)) (br_if 0 (local.get 0)))`),
    [8, 4])
})

test('a frame keeps operands beneath a call and its results, but what can be had again isn\'t kept', () => {
  const beneath = (operand: string, more = '', drops = '(drop)'): number[] =>
    sizes(planOf(`${F} (func (param i32 i64) ${operand} (drop (call $f (i32.const 1))) ${more} ${drops})`))
  assert.deepEqual(beneath('(i64.add (local.get 1) (i64.const 2))'), [8 + 4])
  assert.deepEqual(beneath('(i64.const 2)'), [4])
  assert.deepEqual(beneath('(local.get 1)'), [8 + 4])
  // The local has another value by then.
  assert.deepEqual(beneath('(local.get 1) (local.set 1 (i64.const 0))', '(drop (local.get 1))'), [8 + 8 + 4])
})

test('results of a call are kept while it is left, each with its type', () => {
  assert.deepEqual(sizes(planOf(`
    (func $g (result i32 i64 v128) (unreachable))
    (func (result i32) (call $g) (drop) (drop))`)), [28])
})

test('references are kept beside the bytes', () => {
  const { sites: [site] } = planOf(`${F} (func (param funcref externref)
    (drop (call $f (i32.const 1))) (drop (local.get 0)) (drop (local.get 1)))`)
  assert.equal(site!.size, 4)
  assert.deepEqual([site!.saved[5], site!.saved[6]], [[0], [1]])
})

test('a handler that throws again keeps what it has caught', () => {
  const handler = (again: string): number[] => sizes(planOf(`(tag $t (param i64)) ${F}
    (func (try (do) (catch_all (drop (call $f (i32.const 1))) ${again})))`))
  // The number of its tag, and what it carries.
  assert.deepEqual(handler('(rethrow 0)'), [4 + 12])
  assert.deepEqual(handler(''), [4])
})

test('a function is refused whose frame can\'t be kept', () => {
  assert.throws(() => planOf(`(tag $t (param externref)) ${F}
    (func (try (do) (catch_all (drop (call $f (i32.const 1))) (rethrow 0))))`),
  (error) => error instanceof Uncapturable && error.index === 1 && /with references/.test(error.why))
})

test('a function whose frames would be without measure is refused', () => {
  const calls = '(drop (call $f (i32.const 1)))'.repeat(3000)
  const locals = Array.from({ length: 3000 }, (_, i) => `(drop (local.get ${i}))`).join('')
  assert.throws(() => planOf(`${F} (func (local ${'i32 '.repeat(3000)}) ${calls} ${locals})`),
    (error) => error instanceof Uncapturable && /too large/.test(error.why))
})

test('a plan is the same whatever was planned before it', () => {
  const texts = [`${F} (func (param i32) (i32.mul (local.get 0) (i32.const 3)) (drop (call $f (i32.const 2))) (drop))`,
    `${F} (func (param f64) (f64.neg (local.get 0)) (loop (drop (call $f (i32.const 2)))) (drop))`]
  assert.deepEqual(texts.map((text) => planOf(text)), texts.toReversed().map((text) => planOf(text)).toReversed())
})
