// wasm/encode_test.ts: what the encoder writes, read by V8.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { encodeModule, leb, sleb } from './encode.ts'

test('encodeModule makes a module with imports, memories, functions and exports that V8 runs', () => {
  const bytes = encodeModule({
    types: [{ params: ['i32', 'i64'], results: ['i32'] }, { params: ['i32'], results: ['i32'] }],
    imports: [
      { module: 'host', name: 'twice', type: 1 },
      { module: 'host', name: 'memory', memory: { min: 1, max: 2 } },
    ],
    // (local i32): local.get 0; call twice; local.get 1; i32.wrap_i64; i32.add; local.tee 2
    functions: [{ type: 0, locals: ['i32'], body: [0x20, 0, 0x10, 0, 0x20, 1, 0xa7, 0x6a, 0x22, 2] }],
    exports: [{ name: 'f', kind: 'func', index: 1 }, { name: 'mémoire', kind: 'memory', index: 0 }],
  })
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 2 })
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), {
    host: { twice: (n: number) => 2 * n, memory },
  })
  assert.equal((exports.f as (a: number, b: bigint) => number)(20, 2n), 42)
  assert.equal(exports['mémoire'], memory)
})

test('encodeModule leaves out empty sections', () => {
  assert.deepEqual([...encodeModule({})], [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0])
  assert.ok(WebAssembly.validate(encodeModule({ memories: [{ min: 3 }] })))
})

test('leb spells every u32 as V8 reads it', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: 65_536 }), (min) => {
    const memory = new WebAssembly.Instance(new WebAssembly.Module(encodeModule({
      memories: [{ min: 0, max: min }], exports: [{ name: 'm', kind: 'memory', index: 0 }],
    }))).exports.m as WebAssembly.Memory & { type?(): { maximum: number } }
    assert.equal(memory.buffer.byteLength, 0)
  }), { numRuns: 50 })
  assert.deepEqual(leb(0), [0])
  assert.deepEqual(leb(127), [127])
  assert.deepEqual(leb(128), [0x80, 1])
  assert.deepEqual(leb(624_485), [0xe5, 0x8e, 0x26])
  assert.deepEqual(leb(0xffff_ffff), [0xff, 0xff, 0xff, 0xff, 0x0f])
  assert.deepEqual(leb(2 ** 53 - 1), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f])
})

test('sleb spells every i64 as V8 reads it', () => {
  fc.assert(fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (value) => {
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(encodeModule({
      types: [{ params: [], results: ['i64'] }],
      functions: [{ type: 0, locals: [], body: [0x42, ...sleb(value)] }],
      exports: [{ name: 'f', kind: 'func', index: 0 }],
    })))
    assert.equal((exports.f as () => bigint)(), value)
  }), { numRuns: 100 })
  assert.deepEqual(sleb(-1), [0x7f])
  assert.deepEqual(sleb(64), [0xc0, 0])
})
