// wasm/decode_test.ts: the decoder against hand-made modules, and against V8 on damaged ones.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import wabt from 'wabt'
import { decodeModule } from './decode.ts'
import { encodeModule, leb, name, section, vec } from './encode.ts'
import { customSection, formatFuncType, functionTypes, memoriesOf } from './module.ts'
import type { FuncType } from './module.ts'
import { MalformedModule } from './reader.ts'

const { parseWat } = await wabt()
const FEATURES = {
  exceptions: true, multi_memory: true, memory64: true, threads: true, reference_types: true, simd: true,
  bulk_memory: true, extended_const: true, mutable_globals: true,
}
const wasm = (wat: string): Uint8Array<ArrayBuffer> =>
  new Uint8Array(parseWat('test.wat', wat, FEATURES).toBinary({ write_debug_names: true }).buffer)
const custom = (title: string, content: number[]): number[] => section(0, [...name(title), ...content])
const HEADER = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]
const bytesOf = (...parts: number[][]): Uint8Array<ArrayBuffer> => Uint8Array.from([...HEADER, ...parts.flat()])

const EVERYTHING = wasm(`(module $everything
  (type $t (func (param i32 i64) (result f32)))
  (import "env" "f" (func (type $t)))
  (import "env" "table" (table 1 10 funcref))
  (import "env" "memory" (memory 1 2))
  (import "env" "global" (global i64))
  (import "env" "tag" (tag (param i32)))
  (func $local (export "local") (param f64) (result i32 i32) i32.const 1 i32.const 2)
  (func $main)
  (table (export "table") 2 funcref)
  (memory (export "memory") 3)
  (memory i64 1 2)
  (memory 1 1 shared)
  (tag (export "tag") (param i32))
  (global (export "global") (mut i32) (i32.const 7))
  (start $main)
  (elem (i32.const 0) $main)
  (data (i32.const 0) "hello")
  (data "passive"))`)

test('decodeModule reads every kind of import, export, table and memory', () => {
  assert.ok(WebAssembly.validate(EVERYTHING))
  const module = decodeModule(EVERYTHING)
  assert.deepEqual(module.imports.map(({ offset: _, ...rest }) => rest), [
    { module: 'env', name: 'f', kind: 'func', type: 0 },
    {
      module: 'env', name: 'table', kind: 'table',
      table: { type: 'funcref', min: 1, max: 10, shared: false, index64: false },
    },
    { module: 'env', name: 'memory', kind: 'memory', memory: { min: 1, max: 2, shared: false, index64: false } },
    { module: 'env', name: 'global', kind: 'global', type: 'i64', mutable: false },
    { module: 'env', name: 'tag', kind: 'tag', type: 1 },
  ])
  assert.deepEqual(module.exports, [
    { name: 'local', kind: 'func', index: 1 }, { name: 'table', kind: 'table', index: 1 },
    { name: 'memory', kind: 'memory', index: 1 }, { name: 'tag', kind: 'tag', index: 1 },
    { name: 'global', kind: 'global', index: 1 },
  ])
  assert.deepEqual(memoriesOf(module).slice(1), [
    { min: 3, max: undefined, shared: false, index64: false }, { min: 1, max: 2, shared: false, index64: true },
    { min: 1, max: 1, shared: true, index64: false },
  ])
  const { functionCount, globalCount, tagCount, elementCount, dataCount, start } = module
  assert.deepEqual({ functionCount, globalCount, tagCount, elementCount, dataCount, start },
    { functionCount: 2, globalCount: 1, tagCount: 1, elementCount: 1, dataCount: 2, start: 2 })
  assert.notEqual(customSection(module, 'name'), undefined)
})

test('functionTypes finds the types of imported and defined functions, and nothing beyond them', () => {
  const typeOf = functionTypes(decodeModule(EVERYTHING))
  assert.equal(formatFuncType(typeOf(0)!), '(i32, i64) -> f32')
  assert.equal(formatFuncType(typeOf(1)!), '(f64) -> (i32, i32)')
  assert.equal(formatFuncType(typeOf(2)!), '() -> ()')
  assert.equal(typeOf(3), undefined)
})

test('functionTypes ends where the function section is malformed', () => {
  const bytes = bytesOf(section(1, [1, 0x60, 0, 0]), section(3, [2, 0, 0x80]), section(10, [2]))
  const typeOf = functionTypes(decodeModule(bytes))
  assert.equal(formatFuncType(typeOf(0)!), '() -> ()')
  assert.equal(typeOf(1), undefined)
})

test('decodeModule counts the types of the GC proposal as V8 does', () => {
  const func = [0x60, ...vec([[0x64, 3], [0x63, 0x70]]), ...vec([[0x6d]])] // (ref 3) (ref null func) → eqref
  const bytes = bytesOf(section(1, [
    3, // types: a rec group of three, a sub type, a function
    0x4e, 3, 0x50, 0, 0x5f, 2, 0x78, 1, 0x7f, 0, 0x5e, 0x77, 0, 0x50, 1, 0, 0x5f, 3, 0x78, 1, 0x7f, 0, 0x63, 0, 0,
    0x4f, 0, 0x60, 0, 0,
    ...func,
  ]), section(3, [1, 3]), section(7, vec([[...name('f'), 0, 0]])), section(10, [1, 2, 0, 0x0b]))
  assert.ok(WebAssembly.validate(bytes))
  const module = decodeModule(bytes)
  assert.deepEqual(module.types.map((type) => type.kind), ['struct', 'array', 'struct', 'func', 'func'])
  assert.equal(formatFuncType(functionTypes(module)(0)!), '() -> ()')
  assert.equal(formatFuncType(module.types[4] as FuncType), '((ref 3), (ref null func)) -> eqref')
})

test('decodeModule reads tables with initial values of each constant instruction', () => {
  const table = (...init: number[]): number[] => [0x40, 0, 0x63, 0, 0, 1, ...init, 0x0b]
  const bytes = bytesOf(
    section(1, [1, 0x5f, 1, 0x7b, 0]), // (struct (field v128))
    section(4, vec([
      [0x70, 1, 2, 3], table(0xd0, 0), table(0xfb, 1, 0),
      table(0xfd, 12, ...new Array<number>(16).fill(0xff), 0xfb, 0, 0),
      [0x40, 0, 0x6c, 0, 0, 0x41, 0x80, 0x80, 0x04, 0x41, 1, 0x6a, 0xfb, 0x1c, 0x0b], [0x6f, 0, 5],
    ])))
  assert.ok(WebAssembly.validate(bytes))
  assert.deepEqual(decodeModule(bytes).tables.map((one) => one.type),
    ['funcref', '(ref null 0)', '(ref null 0)', '(ref null 0)', 'i31ref', 'externref'])
})

test('decodeModule says where a module is cut off, for each length of a whole module', () => {
  const ends = new Set([8, ...decodeModule(EVERYTHING).sections.map((one) => one.end)])
  for (let length = 0; length < EVERYTHING.length; length++) {
    const cut = EVERYTHING.subarray(0, length)
    if (ends.has(length)) continue
    assert.throws(() => decodeModule(cut), { name: 'MalformedModule', truncated: true }, `${length}`)
  }
  assert.throws(() => decodeModule(EVERYTHING.subarray(0, 5)), { where: 'header', offset: 5 })
  const { offset } = decodeModule(EVERYTHING).sections.find((one) => one.id === 2)!
  assert.throws(() => decodeModule(EVERYTHING.subarray(0, offset + 3)), { where: 'import section', offset: offset + 3 })
})

test('decodeModule refuses what the specification calls malformed, as V8 does', () => {
  const f = section(1, [1, 0x60, 0, 0])
  const cases: Record<string, [RegExp, Uint8Array<ArrayBuffer>]> = {
    'no magic': [/begin with/, Uint8Array.from([0, 0x61, 0x73, 0x6e, 1, 0, 0, 0])],
    'version 2': [/version is not 1/, Uint8Array.from([0, 0x61, 0x73, 0x6d, 2, 0, 0, 0])],
    'an unknown section': [/no section has the id 99/, bytesOf(section(99, []))],
    'a section twice': [/comes twice/, bytesOf(f, f)],
    'sections out of order': [/must precede/, bytesOf(section(5, [0]), f)],
    'a data count behind the code': [/must precede/, bytesOf(section(10, [0]), section(12, [0]))],
    'bytes left in a section': [/longer than what it holds/, bytesOf(section(1, [1, 0x60, 0, 0, 0]))],
    'a vector beyond its section': [/ends too early/, bytesOf(section(1, [2, 0x60, 0, 0]))],
    'a huge count': [/ends too early/, bytesOf(section(1, [0xff, 0xff, 0xff, 0xff, 0x0f, 0x60, 0, 0]))],
    'an over-long integer': [/longer than 32 bits/, bytesOf(section(1, [0x81, 0x80, 0x80, 0x80, 0x80, 0, 0x60, 0, 0]))],
    'unused bits in an integer': [
      /larger than 32 bits/, bytesOf(section(1, [0x81, 0x80, 0x80, 0x80, 0x10, 0x60, 0, 0]))],
    'a custom section without name': [/ends too early/, bytesOf(section(0, []))],
    'a name that is not UTF-8': [/not UTF-8/, bytesOf(f, section(2, [1, 1, 0xff, 1, 0x61, 0, 0]))],
    'a custom name that is not UTF-8': [/not UTF-8/, bytesOf(section(0, [1, 0xff]))],
    'an unknown value type': [/no value type/, bytesOf(section(1, [1, 0x60, 1, 0x40, 0]))],
    'an unknown type form': [/no type has the form/, bytesOf(section(1, [1, 0x20]))],
    'an unknown heap type': [/no heap type/, bytesOf(section(1, [1, 0x60, 1, 0x63, 0x40, 0]))],
    'a page size of its own': [/page size/, bytesOf(section(5, [1, 8, 0, 0]))],
    'unknown limits': [/flags 0x10/, bytesOf(section(5, [1, 0x10, 0]))],
    'an unknown import': [/no import has the kind 9/, bytesOf(section(2, [1, 1, 0x61, 1, 0x61, 9, 0]))],
    'an unknown export': [/no export has the kind 9/, bytesOf(section(7, [1, 1, 0x61, 9, 0]))],
    'a mutability of 2': [/mutability is 2/, bytesOf(section(2, [1, 1, 0x61, 1, 0x61, 3, 0x7f, 2]))],
    'functions without code': [/0 functions, 1 are declared/, bytesOf(f, section(3, [1, 0]))],
    'fewer segments than declared': [/0 segments, 2 are declared/, bytesOf(section(12, [2]))],
    'an initial value that is a call': [
      /instruction 0x10/, bytesOf(section(4, [1, 0x40, 0, 0x70, 0, 1, 0x10, 0, 0x0b]))],
  }
  for (const [title, [message, bytes]] of Object.entries(cases)) {
    assert.throws(() => decodeModule(bytes), (error) => error instanceof MalformedModule && !error.truncated &&
      message.test(error.message), title)
    assert.equal(WebAssembly.validate(bytes), false, title)
  }
})

test('decodeModule takes long but legal integers, and custom sections of any name in any place', () => {
  const bytes = bytesOf(custom('', []), [1, 0x84, 0x80, 0x80, 0x80, 0, 1, 0x60, 0, 0], custom('x', [0xff]),
    custom('name', [0xff]), custom('größe', []))
  assert.ok(WebAssembly.validate(bytes))
  assert.deepEqual(decodeModule(bytes).sections.map((one) => one.name), ['', undefined, 'x', 'name', 'größe'])
})

const SMALL = [
  EVERYTHING,
  ...['llvm.core4.wasm', 'llvm.core2.wasm'].map((file) =>
    new Uint8Array(readFileSync(new URL(`../../node_modules/@yowasp/clang/gen/${file}`, import.meta.url)))),
  encodeModule({ types: [{ params: [], results: [] }], imports: [{ module: 'a', name: 'b', type: 0 }] }),
]

test('decodeModule accepts whatever V8 validates, and fails with MalformedModule only, on damaged modules', () => {
  let valid = 0
  const damage = fc.array(fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
    byte: fc.oneof(fc.integer({ min: 0, max: 255 }),
      fc.constantFrom(0, 1, 0x40, 0x60, 0x63, 0x64, 0x6f, 0x70, 0x7f, 0x80)),
  }), { minLength: 1, maxLength: 3 })
  const module = fc.constantFrom(...SMALL)
  fc.assert(fc.property(module, damage, fc.boolean(), fc.boolean(), (original, flips, early, cut) => {
    // Half of the flips go to the first bytes, where the sections lie that we read.
    const bytes = original.slice(0, cut ? Math.floor(flips[0]!.at * original.length) : original.length)
    const range = early ? Math.min(bytes.length, 400) : bytes.length
    for (const { at, byte } of flips) bytes[Math.floor(at * range)] = byte
    let error: unknown
    try {
      decodeModule(bytes)
    } catch (thrown) {
      error = thrown
    }
    assert.ok(error === undefined || error instanceof MalformedModule, String(error))
    if (WebAssembly.validate(bytes)) {
      valid++
      assert.equal(error, undefined)
    }
  }), { numRuns: 12_000 })
  // A property that never saw a valid module would prove nothing.
  assert.ok(valid > 100, `${valid} were valid`)
})

test('decodeModule and V8 list the same imports and exports of a real module', () => {
  for (const bytes of SMALL) {
    const module = decodeModule(bytes)
    const compiled = new WebAssembly.Module(bytes)
    const kind = (one: string): string => one === 'function' ? 'func' : one
    assert.deepEqual(module.imports.map((one) => ({ module: one.module, name: one.name, kind: one.kind as string })),
      WebAssembly.Module.imports(compiled).map((one) => ({ module: one.module, name: one.name, kind: kind(one.kind) })))
    assert.deepEqual(module.exports.map((one) => ({ name: one.name, kind: one.kind as string })),
      WebAssembly.Module.exports(compiled).map((one) => ({ name: one.name, kind: kind(one.kind) })))
  }
})

test('leb and decodeModule agree about every length', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: 65_536 }), (min) => {
    const module = decodeModule(bytesOf(section(5, [1, 0, ...leb(min)])))
    assert.equal(module.memories[0]!.min, min)
  }))
})
