// translate/continuation_test.ts: a continuation can be made for each site of a program, and for nothing else.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import wabt from 'wabt'
import { Capturable } from '../../tests/capture_instance.ts'
import { decodeModule } from '../wasm/decode.ts'
import { prepare } from '../wasm/prepare.ts'
import { continuationOf, type ContinuationSource } from './continuation.ts'
import { GATE_FRAME, ORIGIN_HERE } from './control_words.ts'
import { BadFrames, distinct, framesOf, link, type Frame } from './frames.ts'

const { parseWat } = await wabt()
const FEATURES = { exceptions: true, multi_value: true, simd: true, reference_types: true, bulk_memory: true,
  tail_call: true }

function sourceOf(text: string): ContinuationSource {
  const parsed = parseWat('guest.wat', text, FEATURES)
  const bytes = parsed.toBinary({}).buffer as Uint8Array<ArrayBuffer>
  parsed.destroy()
  assert.ok(new WebAssembly.Module(bytes))
  const { module, info } = new Capturable(decodeModule(prepare(bytes, decodeModule(bytes)).bytes))
  return { module, info, hypercalls: [{ module: 'host', name: 'wait' }] }
}

// Function 0 is the hypercall, then $f, $g, $h.
const GUEST = `(module
  (import "host" "wait" (func $wait (param i32 i64) (result i32)))
  (memory 1) (data $d "abc") (table $t 2 funcref) (elem $e func $f)
  (tag $x (param i64))
  (func $f (param $n i32) (result i32 f64) (local $v v128) (local $r funcref)
    (local.set $r (table.get $t (i32.const 0)))
    (local.set $v (v128.const i32x4 1 2 3 4))
    (loop $l
      (drop (call $wait (i32x4.extract_lane 0 (local.get $v)) (i64.const 5)))
      (block $b (br_table $b $l (local.get $n)) (memory.fill (i32.const 0) (i32.const 1) (local.get $n)))
      (br_if $l (ref.is_null (local.get $r)))
      (memory.fill (i32.const 0) (i32.const 1) (local.get $n))
      (memory.init $d (i32.const 0) (i32.const 0) (local.get $n)) (data.drop $d)
      (table.init $t $e (i32.const 0) (i32.const 0) (local.get $n)) (elem.drop $e))
    (local.set $v (v128.const i32x4 0 0 0 0))
    (i32.const 3) (f64.const 4))
  (func $g (param i64) (result i32)
    (i64.mul (local.get 0) (i64.const 3))
    (try (result i32) 
      (do (call $f (i32.const 2)) (drop)
        (if (result i32) (then (drop (call $wait (i32.const 1) (i64.const 2))) (i32.const 5)) (else (i32.const 6))))
      (catch $x (drop) (call $wait (i32.const 3) (i64.const 4)))
      (catch_all (drop (call $wait (i32.const 3) (i64.const 4))) (rethrow 0)))
    (drop) (i32.wrap_i64))
  (func (export "h") (param i64) (result i32) (return_call $g (local.get 0))))`

/** All frames that the program may have, found by asking: sites until there is none, with the size that is told. */
function possible(source: ContinuationSource): Frame[] {
  const found: Frame[] = []
  for (let func = 0; func < source.info.poll + 60; func++) {
    for (let site = 0; ; site++) {
      let isSite = false
      for (const here of [false, true]) {
        const frame = { func, site, here, at: 0, size: 1 << 20 }
        const why = refusalOf(source, [frame])
        const size = /has 1048576 bytes, not (\d+)/.exec(why ?? '')?.[1]
        if (size === undefined) continue
        isSite = true
        const fitting = { ...frame, size: Number(size) }
        if (refusalOf(source, [fitting]) === undefined) found.push(fitting)
      }
      if (!isSite) break
    }
  }
  return found
}

function refusalOf(source: ContinuationSource, frames: readonly Frame[]): string | undefined {
  try {
    continuationOf(source, frames)
    return undefined
  } catch (error) {
    if (!(error instanceof BadFrames)) throw error
    return error.message
  }
}

test('a continuation is a valid module, for each site of a program and for all at once', () => {
  const source = sourceOf(GUEST)
  const frames = possible(source)
  const count = (func: number): number => frames.filter((frame) => frame.func === func).length
  // $f: its loop, and calls of the hypercall and of functions for bulk instructions; $g: its calls.
  assert.ok(count(1) >= 7 && count(2) >= 6, `${count(1)} and ${count(2)}`)
  for (const frame of frames) {
    const bytes = continuationOf(source, [frame])
    assert.doesNotThrow(() => new WebAssembly.Module(bytes), JSON.stringify(frame))
  }
  const gate = { func: GATE_FRAME, site: 0, here: false, at: 0, size: 12 }
  assert.doesNotThrow(() => new WebAssembly.Module(continuationOf(source, [...frames, gate])))
})

test('a continuation is as large as what it goes on with, and not as its program', () => {
  const more = '(func (drop (i32.add (i32.const 1) (i32.const 2))))'.repeat(3000)
  const [small, large] = [GUEST, GUEST.replace(/\)$/, `${more})`)].map((text) => {
    const source = sourceOf(text)
    return continuationOf(source, possible(source).slice(0, 1)).length
  })
  assert.ok(large! < small! + 200, `${small} bytes, and ${large}`)
})

const REFUSED: Readonly<Record<string, readonly [Partial<Frame>, RegExp]>> = {
  'of an imported function': [{ func: 0 }, /function 0 has no code/],
  'of no function': [{ func: 100_000 }, /no function has the index 100000/],
  'at no site': [{ func: 1, site: 99 }, /function 1 has no site 99/],
  'of another size': [{ func: 1, site: 0, size: 3 }, /a frame of function 1 has 3 bytes, not/],
  'of no hypercall': [{ func: GATE_FRAME + 1 }, /no hypercall has the number 1/],
  'of a hypercall, of another size': [{ func: GATE_FRAME, size: 8 }, /a frame of a hypercall has 8 bytes, not 12/],
}

for (const [what, [change, why]] of Object.entries(REFUSED)) {
  test(`a frame is refused that is ${what}`, () => {
    const source = sourceOf(GUEST)
    assert.match(refusalOf(source, [{ func: 1, site: 0, here: true, at: 0, size: 0, ...change }]) ?? '', why)
  })
}

test('a frame whose callee was left must stand at a call', () => {
  const source = sourceOf(GUEST)
  // The loop's own check is the first site of $f.
  const loop = possible(source).find(({ func, here }) => func === 1 && here)!
  assert.match(refusalOf(source, [{ ...loop, here: false }]) ?? '', /site \d+ of function 1 calls nothing/)
})

/** Bytes of frames: (function, site, bytes of what is kept), innermost first. */
function bytesOf(frames: readonly (readonly [number, number, number])[]): Uint8Array {
  return Uint8Array.from(frames.flatMap(([func, site, size]) =>
    [...new Array<number>(size).fill(7), ...new Uint8Array(Uint32Array.of(func, site, size).buffer)]))
}

test('frames are found from the outermost inwards, and each is told which continuation is its own', () => {
  const bytes = bytesOf([[5, ORIGIN_HERE + 1, 4], [9, 2, 0], [5, 1, 4], [9, 2, 0]])
  const frames = framesOf(bytes)
  assert.deepEqual(frames.map(({ func, site, here }) => [func, site, here]),
    [[9, 2, false], [5, 1, false], [9, 2, false], [5, 1, true]])
  assert.equal(distinct(frames).length, 3)
  link(bytes, frames)
  const numbers = framesOf(bytes).map(({ func }) => func)
  assert.equal(numbers[0], numbers[2])
  assert.deepEqual([...new Set(numbers)].sort(), [0, 1, 2])
})

test('frames that break off are refused', () => {
  const bytes = bytesOf([[5, 1, 4], [9, 2, 8]])
  for (let length = 1; length < bytes.length; length++) {
    if (length === 16) continue
    assert.throws(() => framesOf(bytes.subarray(0, length)), BadFrames, `${length} bytes`)
  }
  assert.deepEqual(framesOf(new Uint8Array()), [])
})
