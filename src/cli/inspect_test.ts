// cli/inspect_test.ts: what `cellar inspect` tells of hand-made modules, as data and as text.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import wabt from 'wabt'
import { name, section, vec } from '../wasm/encode.ts'
import { describe, inspect } from './inspect.ts'
import type { Report } from './inspect.ts'

const folder = mkdtempSync(join(tmpdir(), 'cellar-inspect-'))
after(() => rmSync(folder, { recursive: true }))
const { parseWat } = await wabt()
let files = 0
function file(content: string | readonly number[], custom: readonly number[] = []): string {
  const path = join(folder, `${files++}.wasm`)
  const bytes = typeof content === 'string' ? parseWat('test.wat', content).toBinary({}).buffer : content
  writeFileSync(path, Uint8Array.from([...bytes, ...custom]))
  return path
}
function printed(...argv: string[]): string {
  return execFileSync(process.execPath, ['--disable-warning=ExperimentalWarning',
    join(import.meta.dirname, 'main.ts'), 'inspect', ...argv], { encoding: 'utf8' })
}

const COMMAND = `(module
  (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_set_flags" (func (param i32 i32) (result i32)))
  (memory (export "memory") 1 16) (table (export "table") 1 funcref) (func (export "_start") nop))`
const PRODUCERS = section(0, [...name('producers'), ...vec([
  [...name('language'), ...vec([[...name('C11'), ...name('')]])],
  [...name('processed-by'), ...vec([[...name('clang'), ...name('18.1.2 (https://example.org)')]])],
])])

test('describe tells what a command is made of and what it asks for', () => {
  const { kind, runs, refusal, module } = describe(file(COMMAND, PRODUCERS))
  assert.deepEqual({ kind, runs, refusal }, { kind: 'command', runs: true, refusal: undefined })
  assert.deepEqual(module!.toolchain.language, [{ name: 'C11', version: '' }])
  assert.deepEqual(module!.memories, [{
    minBytes: 65_536, maxBytes: 1_048_576, importedAs: null, exportedAs: ['memory'], shared: false, index64: false,
  }])
  assert.deepEqual(module!.hypercalls.map((one) => [one.name, one.service, one.answers, one.support]), [
    ['clock_time_get', 'clock', 'now', 'full'], ['fd_read', 'console, file', 'wait', 'full'],
    ['fd_fdstat_set_flags', 'console, file', 'now', 'partial'],
  ])
  assert.deepEqual(module!.exports, [
    { name: 'memory', kind: 'memory', type: null }, { name: 'table', kind: 'table', type: 'funcref' },
    { name: '_start', kind: 'func', type: '() -> ()' },
  ])
  assert.equal(module!.functions, 1)
  assert.deepEqual(module!.customSections.map((one) => one.name), ['producers'])
})

test('describe tells reactors, libraries and components apart, and why they would not run', () => {
  const reactor = describe(file('(module (func (export "_initialize")) (func (export "f")))'))
  assert.deepEqual([reactor.kind, reactor.runs, reactor.refusal?.code], ['reactor', false, 'MODULE_NO_START'])
  assert.equal(describe(file('(module)')).kind, 'library')
  const component = describe(file([0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0]))
  assert.deepEqual([component.kind, component.sizeBytes, component.module, component.refusal?.code],
    ['component', 8, undefined, 'MODULE_IS_COMPONENT'])
})

test('describe tells whether a program can be captured, and cellar inspect says why not', () => {
  assert.deepEqual(describe(file(COMMAND)).capture, { can: true })
  assert.match(printed(file(COMMAND)), /^Capture {9}yes$/m)
  // A mutable global of type anyref: an object of the engine's.
  const path = file([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0,
    6, 6, 1, 0x6e, 1, 0xd0, 0x6e, 0x0b, 7, 10, 1, 6, ...Buffer.from('_start'), 0, 0, 10, 4, 1, 2, 0, 0x0b])
  assert.deepEqual(describe(path).capture, { can: false, why: 'global 0 holds a value of type anyref' })
  assert.match(printed(path), /^Runs {12}yes\nCapture {9}no, because global 0 holds a value of type anyref$/m)
  assert.equal(describe(file('(module)')).capture, undefined)
})

test('describe lists unknown imports with their types', () => {
  const { runs, refusal, module } = describe(file(`(module (import "env" "f" (func (param i32)))
    (import "env" "g" (global (mut i64)))
    (import "env" "m" (memory 2)) (func (export "_start")))`))
  assert.deepEqual([runs, refusal?.code], [false, 'IMPORT_UNKNOWN'])
  assert.deepEqual(module!.unknownImports, [
    { module: 'env', name: 'f', kind: 'func', type: '(i32) -> ()' },
    { module: 'env', name: 'g', kind: 'global', type: 'mut i64' },
  ])
  assert.equal(module!.memories[0]!.importedAs, 'env.m')
})

test('cellar inspect prints aligned text, and data with -o json', () => {
  const path = file(COMMAND, PRODUCERS)
  const text = printed(path)
  assert.match(text, /^Kind {12}command/m)
  assert.match(text, /^Made by {9}clang 18\.1\.2$/m)
  assert.match(text, /^Memory {10}64 KiB at the start, at most 1 MiB; its own, exported as memory$/m)
  assert.match(text, /^ {2}console, file fd_read\*, fd_fdstat_set_flags$/m)
  assert.match(text, /^ +fd_fdstat_set_flags: supported in part\. /m)
  assert.match(text, /^Runs {12}yes$/m)
  const report = JSON.parse(printed('-o', 'json', path)) as Report
  assert.deepEqual(report, JSON.parse(JSON.stringify(describe(path))))
})

test('cellar inspect spells out control characters of names', () => {
  const text = printed(file(`(module (import "e\\1b" "n\\1b]0;x\\07" (func)) (func (export "\\1b[2J"))
    (func (export "_start")))`))
  assert.ok(!/[\x00-\x09\x0b-\x1f]/.test(text), JSON.stringify(text))
  assert.match(text, /e\\u\{1b\}/)
  assert.match(text, /n\\u\{1b\}\]0;x\\u\{7\}/)
})

test('cellar inspect refuses wrong usage, and files that are not WebAssembly', () => {
  assert.throws(() => inspect([]), { code: 'USAGE' })
  assert.throws(() => inspect(['a.wasm', 'b.wasm']), { code: 'USAGE', message: /"b\.wasm" follows "a\.wasm"/ })
  assert.throws(() => inspect(['-o', 'xml', 'a.wasm']), { code: 'FLAG_VALUE_INVALID' })
  assert.throws(() => inspect([join(folder, 'none.wasm')]), { code: 'PROGRAM_NOT_FOUND' })
  assert.throws(() => inspect([file([1, 2, 3, 4])]), { code: 'MODULE_NOT_WASM' })
})
