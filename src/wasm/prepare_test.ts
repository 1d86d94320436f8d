// wasm/prepare_test.ts: prepared modules compile in V8 and behave as the originals.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import wabt from 'wabt'
import { decodeModule } from './decode.ts'
import { PREAMBLE, encodeModule, name, section } from './encode.ts'
import type { ModuleParts } from './encode.ts'
import { importsOf, sectionOf } from './module.ts'
import { START_EXPORT, memoryName, originalOffset, prepare } from './prepare.ts'

const { parseWat } = await wabt()
// wabt knows it, its declarations don't.
const FEATURES: Record<string, boolean> = { multi_memory: true, bulk_memory: true }
const wasm = (wat: string): Uint8Array<ArrayBuffer> =>
  new Uint8Array(parseWat('test.wat', wat, FEATURES).toBinary({}).buffer)
const prepared = (bytes: Uint8Array<ArrayBuffer>) => prepare(bytes, decodeModule(bytes))

// Runs a module as it is, and as the hypervisor would; what `f` of it answers and its memories must be the same.
function runBoth(bytes: Uint8Array<ArrayBuffer>, imports: () => WebAssembly.Imports = () => ({})) {
  const plain = new WebAssembly.Instance(new WebAssembly.Module(bytes), imports())
  const made = prepared(bytes)
  const memories = made.memories.map(({ min, max }) =>
    new WebAssembly.Memory(max === undefined ? { initial: min } : { initial: min, maximum: max }))
  const cellar = Object.fromEntries(memories.map((memory, i) => [memoryName(i), memory]))
  const held = new WebAssembly.Instance(new WebAssembly.Module(made.bytes), { ...imports(), cellar })
  if (made.hasStart) (held.exports[START_EXPORT] as () => void)()
  assert.deepEqual(Object.keys(held.exports).filter((one) => one !== START_EXPORT), Object.keys(plain.exports))
  return { plain, held, memories, made }
}
const call = (instance: WebAssembly.Instance, ...args: unknown[]): unknown =>
  (instance.exports.f as ((...args: unknown[]) => unknown) | undefined)?.(...args)
const memoryOf = (instance: WebAssembly.Instance, as: string): Uint8Array =>
  new Uint8Array((instance.exports[as] as WebAssembly.Memory).buffer)

// Each module exports its memories, so that they can be compared, and perhaps a function f.
const SHAPES: Record<string, string> = {
  'a memory without maximum, a data segment, no imports':
    `(module (memory (export "memory") 1) (data (i32.const 5) "hello")
      (func (export "f") (result i32) (i32.load8_u (i32.const 5))))`,
  'a memory with maximum that the guest grows':
    `(module (memory (export "any name") 1 3)
      (func (export "f") (result i32) (drop (memory.grow (i32.const 1))) (memory.grow (i32.const 5))))`,
  'imported functions':
    `(module (import "env" "three" (func $three (result i32))) (memory (export "m") 1)
      (func (export "f") (result i32) (i32.add (call $three) (memory.size))))`,
  'a start function that writes to memory':
    `(module (memory (export "m") 1) (data (i32.const 0) "abc") (start $s)
      (func $s (i32.store8 (i32.const 1) (i32.load8_u (i32.const 0))))
      (func (export "f") (result i32) (i32.load (i32.const 0))))`,
  'a start function, and neither types nor exports of its own kind':
    '(module (memory 1) (start $s) (func $s (i32.store8 (i32.const 1) (i32.const 7))))',
  'an imported start function': '(module (import "env" "start" (func $s)) (start $s))',
  'an imported memory':
    `(module (import "env" "memory" (memory 1 2)) (import "env" "three" (func $three (result i32)))
      (export "m" (memory 0))
      (func (export "f") (result i32) (i32.store (i32.const 8) (call $three)) (i32.load (i32.const 8))))`,
  'an imported memory between functions, and two of its own':
    `(module (import "env" "three" (func $three (result i32))) (import "env" "memory" (memory 1 2))
      (import "env" "start" (func $start))
      (memory $b 2) (memory $c 1 1) (export "a" (memory 0)) (export "b" (memory $b)) (export "c" (memory $c))
      (start $s)
      (func $s (i32.store8 $c (i32.const 3) (i32.const 67))
        (memory.copy $b $c (i32.const 100) (i32.const 0) (i32.const 8)))
      (func (export "f") (result i32) (i32.add (i32.load8_u $b (i32.const 103)) (call $three))))`,
  'passive segments and elements':
    `(module (memory (export "m") 1) (table 1 funcref) (elem (i32.const 0) $g) (data $d "xyz")
      (func $g (result i32) (i32.const 9))
      (func (export "f") (result i32) (memory.init $d (i32.const 4) (i32.const 0) (i32.const 3))
        (call_indirect (result i32) (i32.const 0))))`,
  'nothing at all': '(module)',
}

for (const [title, wat] of Object.entries(SHAPES)) {
  test(`a prepared module behaves as the original: ${title}`, () => {
    const { plain, held, memories, made } = runBoth(wasm(wat), () => ({
      env: { three: () => 3, start: () => {}, memory: new WebAssembly.Memory({ initial: 1, maximum: 2 }) },
    }))
    assert.equal(call(held), call(plain))
    for (const { name: as, kind } of WebAssembly.Module.exports(new WebAssembly.Module(wasm(wat)))) {
      if (kind === 'memory') assert.deepEqual(memoryOf(held, as), memoryOf(plain, as))
    }
    const imported = WebAssembly.Module.imports(new WebAssembly.Module(made.bytes))
      .filter((one) => one.kind === 'memory').map((one) => `${one.module} ${one.name}`)
    assert.deepEqual(imported, memories.map((_, i) => `cellar ${memoryName(i)}`))
    const after = decodeModule(made.bytes)
    assert.equal(after.start, undefined)
    assert.deepEqual(after.memories, [])
  })
}

test('prepare returns the same bytes when there is neither a memory nor a start function', () => {
  const bytes = wasm('(module (import "a" "b" (func)) (func (export "f")))')
  assert.equal(prepared(bytes).bytes, bytes)
  assert.equal(originalOffset(prepared(bytes), 9), 9)
})

test('prepare keeps custom sections in their place and content', () => {
  const custom = (title: string): number[] => section(0, [...name(title), 1, 2, 3])
  const type = section(1, [1, 0x60, 0, 0])
  const bytes = Uint8Array.from([...PREAMBLE, ...custom('a'), ...type, ...custom('b'), ...section(3, [1, 0]),
    ...custom('c'), ...section(5, [1, 0, 1]), ...custom('d'), ...section(8, [0]), ...custom('e'),
    ...section(10, [1, 2, 0, 0x0b]), ...custom('f')])
  const after = decodeModule(prepared(bytes).bytes)
  assert.deepEqual(after.sections.map((one) => one.name ?? one.id), ['a', 1, 'b', 2, 3, 'c', 'd', 7, 'e', 10, 'f'])
  for (const one of after.sections) {
    if (one.name !== undefined) assert.deepEqual([...after.bytes.subarray(one.offset, one.end)], [1, 2, 3])
  }
  assert.ok(WebAssembly.validate(prepared(bytes).bytes))
})

test('prepare gives the limits of each memory, and V8 demands them of what is imported', () => {
  const made = prepared(wasm('(module (memory 2 5))'))
  assert.deepEqual(made.memories, [{ min: 2, max: 5, shared: false, index64: false }])
  const module = new WebAssembly.Module(made.bytes)
  const instantiate = (initial: number, maximum?: number) => () => new WebAssembly.Instance(module,
    { cellar: { memory: new WebAssembly.Memory(maximum === undefined ? { initial } : { initial, maximum }) } })
  instantiate(2, 5)()
  instantiate(3, 4)()
  assert.throws(instantiate(1, 5), WebAssembly.LinkError)
  assert.throws(instantiate(2, 6), WebAssembly.LinkError)
  assert.throws(instantiate(2), WebAssembly.LinkError)
})

test('prepare refuses guests that use the reserved names', () => {
  for (const wat of [
    '(module (import "cellar" "memory" (memory 1)))', '(module (import "cellar" "memory" (func)))',
    '(module (import "cellar" "memory3" (memory 1)))', '(module (memory (export "cellar:start") 1))',
  ]) assert.throws(() => prepared(wasm(wat)), { name: 'ReservedName' }, wat)
  assert.ok(prepared(wasm('(module (import "cellar" "other" (func)) (func (export "cellar")))')).bytes.length > 0)
})

test('originalOffset leads from the prepared module back to the byte of the file', () => {
  const bytes = wasm(`(module (import "env" "f" (func)) (memory (export "m") 1) (start $s)
    (func $s (i32.store8 (i32.const 1) (i32.const 7)))
    (data (i32.const 0) "tail"))`)
  const made = prepared(bytes)
  const before = sectionOf(decodeModule(bytes), 10)!
  const after = sectionOf(decodeModule(made.bytes), 10)!
  assert.equal(made.codeOffsetDelta, after.offset - before.offset)
  for (let i = 0; i < bytes.length - before.offset; i++) {
    assert.equal(originalOffset(made, after.offset + i), before.offset + i)
    assert.equal(made.bytes[after.offset + i], bytes[before.offset + i])
  }
  assert.equal(originalOffset(made, 3), 3)
  assert.equal(originalOffset(made, made.bytes.length + 10), bytes.length)
})

const limits = fc.record({
  min: fc.integer({ min: 0, max: 3 }), max: fc.option(fc.integer({ min: 3, max: 200 }), { nil: undefined }),
}, { noNullPrototype: true })
const parts = fc.record({
  functions: fc.integer({ min: 0, max: 3 }), importedFunctions: fc.integer({ min: 0, max: 200 }), // 200: longer LEBs
  importedMemory: fc.option(limits, { nil: undefined }), memories: fc.array(limits, { maxLength: 2 }),
  exported: fc.boolean(),
}).map(({ functions, importedFunctions, importedMemory, memories, exported }): ModuleParts => ({
  types: [{ params: ['i32'], results: ['i32'] }],
  imports: [
    ...Array.from({ length: importedFunctions }, (_, i) => ({ module: 'env', name: `f${i}`, type: 0 })),
    ...(importedMemory === undefined ? [] : [{ module: 'env', name: 'memory', memory: importedMemory }]),
  ],
  functions: Array.from({ length: functions }, () => ({ type: 0, locals: ['i64' as const], body: [0x20, 0] })),
  memories,
  exports: !exported ? [] : [...memories, ...(importedMemory === undefined ? [] : [importedMemory])]
    .map((_, index) => ({ name: `m${index}`, kind: 'memory' as const, index })),
}))

test('any module compiles when prepared, with the same exports, function imports and limits of memories', () => {
  fc.assert(fc.property(parts, (one) => {
    const bytes = encodeModule(one)
    const before = new WebAssembly.Module(bytes)
    const made = prepared(bytes)
    const after = new WebAssembly.Module(made.bytes)
    assert.deepEqual(WebAssembly.Module.exports(after), WebAssembly.Module.exports(before))
    const functions = (module: WebAssembly.Module) =>
      WebAssembly.Module.imports(module).filter((i) => i.kind === 'function')
    assert.deepEqual(functions(after), functions(before))
    const wanted = [...(one.imports ?? []).flatMap((i) => 'memory' in i ? [i.memory] : []), ...one.memories ?? []]
    assert.deepEqual(made.memories.map(({ min, max }) => ({ min, max })), wanted)
    assert.deepEqual(importsOf(decodeModule(made.bytes), 'memory').map((i) => i.memory), made.memories)
  }), { numRuns: 200 })
})
