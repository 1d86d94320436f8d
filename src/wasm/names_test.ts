// wasm/names_test.ts: custom sections as tools write them, and damaged ones.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import wabt from 'wabt'
import { decodeModule } from './decode.ts'
import { PREAMBLE, name, section, vec } from './encode.ts'
import { decodeNames, decodeProducers, decodeTargetFeatures } from './names.ts'

const { parseWat } = await wabt()
const withCustom = (title: string, content: number[]) =>
  decodeModule(Uint8Array.from([...PREAMBLE, ...section(0, [...name(title), ...content])]))

test('decodeNames reads the names of the module and of its functions', () => {
  const wat = '(module $m (import "a" "b" (func $imported)) (func $first) (func) (func $size))'
  const { buffer } = parseWat('x.wat', wat).toBinary({ write_debug_names: true })
  const names = decodeNames(decodeModule(buffer))
  assert.deepEqual([...names.functions].filter(([, text]) => text !== ''), [[0, 'imported'], [1, 'first'], [3, 'size']])
  const named = withCustom('name', section(0, name('größe')))
  assert.equal(decodeNames(named).module, 'größe')
})

test('decodeProducers reads fields, names and versions', () => {
  const field = (title: string, ...values: [string, string][]): number[] =>
    [...name(title), ...vec(values.map(([tool, version]) => [...name(tool), ...name(version)]))]
  const fields = [field('language', ['C11', ''], ['Rust', '']), field('processed-by', ['clang', '18'])]
  const module = withCustom('producers', vec(fields))
  assert.deepEqual(decodeProducers(module), [
    { field: 'language', name: 'C11', version: '' }, { field: 'language', name: 'Rust', version: '' },
    { field: 'processed-by', name: 'clang', version: '18' },
  ])
})

test('decodeTargetFeatures lists used features, not the disallowed ones', () => {
  const feature = (prefix: string, title: string): number[] => [prefix.charCodeAt(0), ...name(title)]
  assert.deepEqual(decodeTargetFeatures(withCustom('target_features',
    vec([feature('+', 'simd128'), feature('-', 'atomics'), feature('=', 'sign-ext')]))), ['simd128', 'sign-ext'])
})

test('damaged custom sections give what was read before the damage, and no error', () => {
  const functions = [...vec([[0, ...name('zero')], [1, ...name('one')]])]
  const cut = withCustom('name', [1, functions.length - 2, ...functions.slice(0, -2)])
  assert.deepEqual([...decodeNames(cut).functions], [[0, 'zero']])
  assert.deepEqual(decodeProducers(withCustom('producers', [0xff, 0xff, 0xff, 0xff, 0x0f, 0xff])), [])
  assert.deepEqual(decodeTargetFeatures(withCustom('target_features', [])), [])
  assert.deepEqual(decodeNames(decodeModule(Uint8Array.from(PREAMBLE))), { module: undefined, functions: new Map() })
})
