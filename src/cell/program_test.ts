// cell/program_test.ts: each way in which a file may not be a program that runs, and those that do.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import fc from 'fast-check'
import wabt from 'wabt'
import { CellarError } from '../base/errors.ts'
import type { ErrorCode } from '../base/errors.ts'
import { MODULE_BYTES_MAX } from '../base/limits.ts'
import { PREAMBLE, name, section } from '../wasm/encode.ts'
import { printable } from '../base/printable.ts'
import { loadProgram } from './program.ts'

const folder = mkdtempSync(join(tmpdir(), 'cellar-program-'))
after(() => rmSync(folder, { recursive: true }))
const { parseWat } = await wabt()
const FEATURES: Record<string, boolean> = { multi_memory: true, memory64: true, threads: true, exceptions: true }

let files = 0
function file(content: Uint8Array | string | readonly number[]): string {
  const path = join(folder, `${files++}.wasm`)
  writeFileSync(path, typeof content === 'string' ? content : Uint8Array.from(content))
  return path
}
// Without wabt's own checks: some of these modules are meant to be invalid.
const wat = (text: string): Uint8Array => parseWat('test.wat', text, FEATURES).toBinary({}).buffer
const fields = (text: string): Uint8Array => wat(`(module ${text} (func (export "_start")))`)
const WASI = 'wasi_snapshot_preview1'
const NET_CONNECT = '(func (param i32 i32 i32 i32) (result i32))'

type Refusal = [title: string, content: Uint8Array | string | readonly number[], code: ErrorCode, message: RegExp]

const FORMATS: Refusal[] = [
  ['an empty file', '', 'MODULE_EMPTY', /the file is empty/],
  ['the text format', '(module)', 'MODULE_IS_TEXT', /text file/],
  ['a script', '#!/bin/sh\necho größe\n', 'MODULE_IS_TEXT', /text file/],
  ['UTF-16', [0xff, 0xfe, 0x61, 0], 'MODULE_IS_TEXT', /text file/],
  ['an ELF executable', readFileSync(process.execPath).subarray(0, 100),
    'MODULE_NOT_WASM', process.platform === 'linux' ? /7f 45 4c 46, as an ELF/ : /begins with/],
  ['a Mach-O executable', [0xcf, 0xfa, 0xed, 0xfe, 7, 0, 0, 1], 'MODULE_NOT_WASM', /Mach-O/],
  ['a Windows executable', [0x4d, 0x5a, 0x90, 0], 'MODULE_NOT_WASM', /Windows/],
  ['gzip', [0x1f, 0x8b, 8, 0], 'MODULE_NOT_WASM', /1f 8b 08 00, as a gzip/],
  ['zip', [0x50, 0x4b, 3, 4, 20], 'MODULE_NOT_WASM', /zip/],
  ['zeros', [0, 0, 0, 0], 'MODULE_NOT_WASM', /begins with 00 00 00 00$/],
  ['a component', [0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0], 'MODULE_IS_COMPONENT', /component/],
  ['version 2', [0, 0x61, 0x73, 0x6d, 2, 0, 0, 0], 'MODULE_VERSION_UNSUPPORTED', /version 2/],
  ['two bytes of the magic number', [0, 0x61], 'MODULE_TRUNCATED', /cut off in its header/],
  ['half a version', [0, 0x61, 0x73, 0x6d, 1, 0], 'MODULE_TRUNCATED', /cut off in its header/],
  ['half a module', fields('').subarray(0, -3), 'MODULE_TRUNCATED', /cut off in its code section/],
  ['an unknown section', [...PREAMBLE, 77, 0], 'MODULE_MALFORMED', /at byte 8: no section has the id 77/],
  ['a broken import', [...PREAMBLE, ...section(2, [1, 1, 0x61, 1, 0x62, 9])],
    'MODULE_MALFORMED', /at byte 15: .*kind 9 \(import section\)/],
]

const ASKS: Refusal[] = [
  ['preview 0', fields('(import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'),
    'IMPORT_PREVIEW0', /preview 0/],
  ['thread-spawn', fields('(import "wasi" "thread-spawn" (func (param i32) (result i32)))'),
    'THREADS_UNSUPPORTED', /imports wasi\.thread-spawn/],
  ['a shared memory', fields('(memory 1 1 shared)'), 'THREADS_UNSUPPORTED', /shared between threads/],
  ['an imported shared memory', fields('(import "env" "memory" (memory 1 1 shared))'), 'THREADS_UNSUPPORTED', /shared/],
  ['a 64-bit memory', fields('(memory i64 1)'), 'MEMORY64_UNSUPPORTED', /64-bit/],
  ['two memories', fields('(memory 1) (memory 1)'), 'MEMORIES_UNSUPPORTED', /has 2 memories/],
  ['an imported memory beside its own', fields('(import "a" "b" (memory 1)) (memory 1)'),
    'MEMORIES_UNSUPPORTED', /has 2 memories/],
  ['unknown functions of several modules',
    fields('(import "env" "a" (func)) (import "x" "b" (func)) (import "env" "c" (func))'),
    'IMPORT_UNKNOWN', /: env: a, c; x: b$/],
  ['an unknown WASI function', fields(`(import "${WASI}" "sock_open" (func))`),
    'IMPORT_UNKNOWN', /preview1: sock_open$/],
  ['a name of Object.prototype', fields(`(import "${WASI}" "toString" (func))`), 'IMPORT_UNKNOWN', /toString/],
  ['an unknown global, table and tag',
    fields('(import "env" "g" (global i32)) (import "env" "t" (table 1 funcref)) (import "env" "e" (tag))'),
    'IMPORT_UNKNOWN', /env: g \(global\), t \(table\), e \(tag\)$/],
  ['a WASI name that is not a function', fields(`(import "${WASI}" "fd_write" (global i32))`),
    'IMPORT_UNKNOWN', /fd_write \(global\)/],
  ['a name of the module cellar that it lacks', fields('(import "cellar" "net_listen" (func))'),
    'IMPORT_UNKNOWN', /cellar: net_listen$/],
  ['a hypercall of the other module', fields(`(import "${WASI}" "net_connect" ${NET_CONNECT})`),
    'IMPORT_UNKNOWN', /preview1: net_connect$/],
  ['net_connect of another type', fields('(import "cellar" "net_connect" (func))'), 'IMPORT_TYPE_WRONG', /net_connect/],
  ['a WASI function of another type', fields(`(import "${WASI}" "fd_write" (func (param i32) (result i64)))`),
    'IMPORT_TYPE_WRONG',
    /fd_write with the type \(i32\) -> i64: the hypervisor's is \(i32, i32, i32, i32\) -> i32/],
  ['a library', wat('(module (func (export "one")) (func (export "two")))'), 'MODULE_NO_START', /exports: one, two\)/],
  ['a module without exports', wat('(module)'), 'MODULE_NO_START', /exports: none/],
  ['a _start that is a memory', wat('(module (memory (export "_start") 1))'), 'MODULE_NO_START', /exports: _start/],
  ['a _start with a parameter', wat('(module (func (export "_start") (param i32)))'),
    'MODULE_INVALID', /_start has the type \(i32\) -> \(\)/],
  ['a reserved export', wat('(module (func (export "_start") (export "cellar:start")))'),
    'MODULE_INVALID', /cellar:start .* reserved/],
  ['a reserved import', fields('(import "cellar" "memory" (memory 1))'),
    'MODULE_INVALID', /cellar\.memory .* reserved/],
  ['control characters in a name', fields('(import "env" "\\1b[31mred\\0a" (func))'),
    'IMPORT_UNKNOWN', /: env: \\u\{1b\}\[31mred\\u\{a\}$/],
  ['a body that does not validate', fields('(memory 1) (func $wrong (result i32) i64.const 1)'),
    'MODULE_INVALID', /^[^@]* at byte \d+$/],
]

for (const [title, content, code, message] of [...FORMATS, ...ASKS]) {
  test(`loadProgram refuses ${title} with ${code}`, () => {
    assert.throws(() => loadProgram(file(content), { stubs: [] }), (error) => {
      assert.ok(error instanceof CellarError, String(error))
      assert.equal(error.code, code)
      assert.match(error.message, message)
      return true
    })
  })
}

test('loadProgram refuses what is not a readable file', () => {
  const sparse = file([0])
  truncateSync(sparse, MODULE_BYTES_MAX + 1)
  const cases: [string, ErrorCode, number, RegExp][] = [
    [join(folder, 'none.wasm'), 'PROGRAM_NOT_FOUND', 127, /Cannot find/],
    [join(sparse, 'x.wasm'), 'PROGRAM_NOT_FOUND', 127, /Cannot find/],
    [folder, 'PROGRAM_UNREADABLE', 126, /it is a folder/], ['/dev/null', 'PROGRAM_UNREADABLE', 126, /it is a device/],
    ['a\0b', 'PROGRAM_UNREADABLE', 126, /null bytes/], [sparse, 'MODULE_TOO_LARGE', 126, /1073741825 bytes/],
  ]
  for (const [path, code, exit, message] of cases) {
    assert.throws(() => loadProgram(path, { stubs: [] }), { code, exit, message })
  }
})

test('loadProgram reads a program from a pipe', { skip: process.platform === 'win32' }, () => {
  const fifo = join(folder, 'fifo')
  execFileSync('mkfifo', [fifo])
  execFileSync('sh', ['-c', 'cat "$1" > "$2" &', 'sh', file(fields('')), fifo], { stdio: 'ignore' })
  assert.equal(loadProgram(fifo, { stubs: [] }).module.exports[0]?.name, '_start')
})

test('loadProgram accepts a program whose every import is known, and prepares and compiles it', () => {
  const program = loadProgram(file(wat(`(module
    (import "${WASI}" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "${WASI}" "proc_exit" (func (param i32)))
    (import "${WASI}" "clock_time_get" (func (param i32 i64 i32) (result i32)))
    (import "${WASI}" "sched_yield" (func (result i32)))
    (memory (export "memory") 2 4) (func $s) (start $s) (func (export "_start")))`)), { stubs: [] })
  assert.deepEqual(program.prepared.memories, [{ min: 2, max: 4, shared: false, index64: false }])
  assert.ok(program.prepared.hasStart)
  const imports = WebAssembly.Module.imports(program.compiled)
  assert.ok(imports.some((one) => one.module === 'cellar' && one.name === 'memory'))
})

test('checkProgram allows unknown functions that are stubbed by module or by name, and nothing else', () => {
  const env = file(fields('(import "env" "a" (func (param f64))) (import "env" "b" (func)) (import "x.y" "z" (func))'))
  loadProgram(env, { stubs: ['env', 'x.y'] })
  loadProgram(env, { stubs: ['env.a', 'env.b', 'x.y.z'] })
  assert.throws(() => loadProgram(env, { stubs: ['env.a', 'x.y'] }), { code: 'IMPORT_UNKNOWN', message: /: env: b$/ })
  const refused = (text: string, stub: string, code: ErrorCode): void =>
    assert.throws(() => loadProgram(file(fields(text)), { stubs: [stub] }), { code })
  refused('(import "env" "g" (global i32))', 'env', 'IMPORT_UNKNOWN')
  refused(`(import "${WASI}" "fd_write" (func))`, 'env', 'IMPORT_TYPE_WRONG')
  refused(`(import "${WASI}" "fd_write" (global i32))`, WASI, 'IMPORT_UNKNOWN')
  // A name of ours with another type is another function, hence may be stubbed.
  loadProgram(file(fields(`(import "${WASI}" "fd_write" (func))`)), { stubs: [WASI] })
  refused('(import "cellar" "net_connect" (func))', 'env', 'IMPORT_TYPE_WRONG')
  loadProgram(file(fields(`(import "cellar" "net_connect" ${NET_CONNECT}) (import "cellar" "x" (func))`)),
    { stubs: ['cellar'] })
  // But not beside the hypercall itself: an import object has one place for both.
  refused(`(import "${WASI}" "fd_close" (func (param i32) (result i32))) (import "${WASI}" "fd_close" (func))`,
    WASI, 'IMPORT_TYPE_WRONG')
  loadProgram(file(fields('(import "wasi" "thread-spawn" (func (param i32) (result i32)))')), { stubs: ['wasi'] })
  refused('(memory 1 1 shared)', 'wasi', 'THREADS_UNSUPPORTED')
})

test('checkProgram allows a program without _start if others of its exports are called', () => {
  const library = file(wat('(module (func (export "f")))'))
  assert.equal(loadProgram(library, { stubs: [], library: true }).module.exports[0]?.name, 'f')
})

test('messages list the first ten unknown imports, the first eight exports, and how many more there are', () => {
  const many = (count: number, make: (i: number) => string): string =>
    Array.from({ length: count }, (_, i) => make(i)).join(' ')
  assert.throws(() => loadProgram(file(fields(many(25, (i) => `(import "env" "f${i}" (func))`))), { stubs: [] }),
    { message: /: env: f0, f1, f2, f3, f4, f5, f6, f7, f8, f9 and 15 more$/ })
  assert.throws(() => loadProgram(file(wat(`(module ${many(9, (i) => `(func (export "e${i}"))`)})`)), { stubs: [] }),
    { message: /exports: e0, e1, e2, e3, e4, e5, e6, e7 and 1 more\)$/ })
})

test("a compile error's offset is one of the guest's file, though V8 saw the prepared module", () => {
  const bytes = fields('(memory 1) (func $wrong (result i32) i64.const 1)')
  let original = ''
  try {
    new WebAssembly.Module(new Uint8Array(bytes))
  } catch (error) {
    original = /@\+(\d+)$/.exec((error as Error).message)![1]!
  }
  const message = new RegExp(` at byte ${original}$`)
  assert.throws(() => loadProgram(file(bytes), { stubs: [] }), { code: 'MODULE_INVALID', message })
})

test('printable spells out what a terminal would obey, and cuts what is long', () => {
  assert.equal(printable('größe 大小 fd_write'), 'größe 大小 fd_write')
  assert.equal(printable('\x1b]0;title\x07\u202e\u2028\x7f'), '\\u{1b}]0;title\\u{7}\\u{202e}\\u{2028}\\u{7f}')
  assert.equal(printable('a'.repeat(200)), `${'a'.repeat(80)}…`)
})

test('loadProgram answers any damaged file with a program or a CellarError', () => {
  const path = join(folder, 'damaged.wasm')
  const original = wat(`(module (import "${WASI}" "fd_close" (func (param i32) (result i32)))
    (memory (export "memory") 1) (func $s) (start $s)
    (func (export "_start") (drop (call 0 (i32.const 1)))) (data (i32.const 0) "x"))`)
  const custom = Uint8Array.from([...original, ...section(0, [...name('name'), 1, 2, 3])])
  fc.assert(fc.property(fc.nat(custom.length - 1), fc.nat(255), fc.nat(custom.length), (at, byte, length) => {
    const bytes = custom.slice(0, at % 3 === 0 ? length : custom.length)
    if (at < bytes.length) bytes[at] = byte
    writeFileSync(path, bytes)
    try {
      loadProgram(path, { stubs: [] })
    } catch (error) {
      assert.ok(error instanceof CellarError, String((error as Error).stack))
    }
  }), { numRuns: 600 })
})
