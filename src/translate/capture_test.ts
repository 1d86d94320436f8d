// translate/capture_test.ts: captured code by itself: what cells don't have (references of the host, functions that are
// called by references, several memories) goes on, too. What they have is tested there (cell/cell_capture_test.ts).

import assert from 'node:assert/strict'
import { test } from 'node:test'
import wabt from 'wabt'
import { Capturable, CaptureCounts, CapturedInstance } from '../../tests/capture_instance.ts'
import { decodeModule } from '../wasm/decode.ts'
import { KIND_FUNC, leb, name, PREAMBLE, section, SECTION_CODE, SECTION_ELEMENT, SECTION_EXPORT, SECTION_FUNCTION,
  SECTION_TYPE, vec } from '../wasm/encode.ts'
import { memoriesOf } from '../wasm/module.ts'
import { prepare } from '../wasm/prepare.ts'
import { Uncapturable } from './uncapturable.ts'

const { parseWat } = await wabt()
/** Its types don't know of it. */
const MULTI_MEMORY = { multi_memory: true } as const

function capturable(text: string): Capturable {
  const parsed = parseWat('guest.wat', text,
    { reference_types: true, multi_value: true, exceptions: true, ...MULTI_MEMORY })
  const bytes = parsed.toBinary({}).buffer as Uint8Array<ArrayBuffer>
  parsed.destroy()
  return prepared(bytes)
}

function prepared(bytes: Uint8Array<ArrayBuffer>): Capturable {
  assert.ok(new WebAssembly.Module(bytes))
  return new Capturable(decodeModule(prepare(bytes, decodeModule(bytes)).bytes))
}

/** What `test` gives when it is called with these arguments: the same in all ways of capturing it. */
async function resultsOf(program: Capturable, args: readonly unknown[]): Promise<unknown[]> {
  let results: unknown[] | undefined
  for (const [nth, anew] of [[1e9, false], [2, false], [2, true], [3, false], [5, true]] as const) {
    const counts = new CaptureCounts()
    const instance = new CapturedInstance({ program, rules: { nth, anew }, counts,
      give: () => ({ imports: {}, memories: memoriesOf(program.module).map(({ min, max }) =>
        new WebAssembly.Memory({ initial: min, ...(max === undefined ? {} : { maximum: max }) })) }) })
    const { index } = program.module.exports.find((one) => one.name === 'test')!
    const entry = program.entries.get(index)!
    const global = (title: string): WebAssembly.Global => instance.exports[title] as WebAssembly.Global
    entry.args.forEach((title, i) => { global(title).value = args[i] as never })
    await instance.run(entry.enter)
    const given = entry.results.map((title): unknown => global(title).value)
    results ??= given
    assert.deepEqual(given, results, `each ${nth}th check`)
    if (nth < 1e9) assert.ok((anew ? counts.anew : counts.here) > 0, 'it was not captured')
  }
  return results!
}

const SPIN = `(func $spin (local $i i32)
  (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5)))))`

test('references of the host stay what they are: in locals, on the operand stack, in globals and tables', async () => {
  const program = capturable(`(module ${SPIN}
    (table $t 2 externref) (global $g (mut externref) (ref.null extern))
    (func (export "test") (param externref externref) (result externref externref externref externref)
      (table.set $t (i32.const 1) (local.get 0))
      (global.set $g (local.get 1))
      (local.get 0) (local.set 0 (ref.null extern)) (call $spin)
      (local.get 1) (call $spin)
      (table.get $t (i32.const 1)) (call $spin)
      (global.get $g) (call $spin)))`)
  const [one, two] = [{ one: 1 }, { two: 2 }]
  const results = await resultsOf(program, [one, two])
  assert.ok([one, two, one, two].every((object, i) => results[i] === object))
})

test('each memory is the one that it was', async () => {
  const program = capturable(`(module ${SPIN} (memory $a 1) (memory $b 1 3)
    (func (export "test") (param i32) (result i32 i32 i32)
      (i32.store $a (i32.const 0) (local.get 0))
      (call $spin)
      (i32.store $b (i32.const 0) (i32.add (local.get 0) (i32.const 1)))
      (drop (memory.grow $b (i32.const 1)))
      (call $spin)
      (i32.load $a (i32.const 0)) (call $spin) (i32.load $b (i32.const 0)) (memory.size $b)))`)
  assert.deepEqual(await resultsOf(program, [40]), [40, 41, 2])
})

// As text that wabt doesn't know:
//   (type $t (func (param i32) (result i32)))
//   (func $f (type $t) (loop … 6 rounds) (i32.add (local.get 0) (i32.const 1)))
//   (func (export "test") (type $t) (local $r (ref null $t))
//     (local.set $r (ref.func $f))
//     (call_ref $t (call_ref $t (local.get 0) (local.get $r)) (local.get $r)))
const BY_REFERENCE = Uint8Array.from([
  ...PREAMBLE,
  ...section(SECTION_TYPE, vec([[0x60, 1, 0x7f, 1, 0x7f]])),
  ...section(SECTION_FUNCTION, vec([[0], [0]])),
  ...section(SECTION_EXPORT, vec([[...name('test'), KIND_FUNC, 1]])),
  ...section(SECTION_ELEMENT, vec([[3, 0, 1, 0]])),
  ...section(SECTION_CODE, vec([
    [1, 1, 0x7f, 0x03, 0x40, 0x20, 1, 0x41, 1, 0x6a, 0x22, 1, 0x41, 6, 0x49, 0x0d, 0, 0x0b,
      0x20, 0, 0x41, 1, 0x6a, 0x0b],
    [1, 1, 0x63, 0, 0xd2, 0, 0x21, 1, 0x20, 0, 0x20, 1, 0x14, 0, 0x20, 1, 0x14, 0, 0x0b],
  ].map((body) => [...leb(body.length), ...body]))),
])

test('a function that is called by a typed reference is left, and the reference is kept', async () => {
  assert.deepEqual(await resultsOf(prepared(BY_REFERENCE), [5]), [7])
})

test('code that can\'t be captured is refused with the function and the reason', () => {
  assert.throws(() => capturable(`(module ${SPIN} (tag $t (param externref))
    (func (try (do (throw $t (ref.null extern))) (catch_all (call $spin) (rethrow 0)))))`),
  (error) => error instanceof Uncapturable && error.index === 1 && /references/.test(error.why))
})
