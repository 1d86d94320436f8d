// tests/functional/bad_input_test.ts: what an operator may get wrong: programs, flags, folders, ports.
//
// Each case has its exit status, its stable code and what the message must name. For all of them: a hint, nothing on
// stdout, and nothing left behind in the folder that is current and temporary at once. Manifests have a file of
// their own (bad_manifest_test.ts).

import assert from 'node:assert/strict'
import { chmodSync, readFileSync, symlinkSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { test } from 'node:test'
import { cellar, CELLAR, Folder, guest, isRoot, NOBODY, startCommand, wat } from '../support.ts'
import { refuses, runnable } from './refusal.ts'

type Case = { what: string; status: 125 | 126 | 127; code: string; names: RegExp }

const HELLO = readFileSync(guest('hello'))
const COMPONENT = Uint8Array.of(0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0)

const FILES: (Case & { content: string | Uint8Array })[] = [
  { what: 'an empty file', content: '', status: 126, code: 'MODULE_EMPTY', names: /is empty/ },
  { what: 'an ELF executable', content: Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0), status: 126,
    code: 'MODULE_NOT_WASM', names: /7f 45 4c 46, as an ELF executable/ },
  { what: 'noise', content: Uint8Array.of(0xde, 0xad, 0, 1, 2, 3), status: 126, code: 'MODULE_NOT_WASM',
    names: /begins with de ad 00 01/ },
  { what: 'a text file', content: '#!/bin/sh\necho hello\n', status: 126, code: 'MODULE_IS_TEXT', names: /text file/ },
  { what: 'the text of a module', content: '(module)', status: 126, code: 'MODULE_IS_TEXT', names: /text file/ },
  { what: 'half a magic number', content: HELLO.subarray(0, 3), status: 126, code: 'MODULE_TRUNCATED',
    names: /cut off/ },
  { what: 'a module without its second half', content: HELLO.subarray(0, HELLO.length / 2), status: 126,
    code: 'MODULE_TRUNCATED', names: /cut off in its/ },
  { what: 'a component', content: COMPONENT, status: 126, code: 'MODULE_IS_COMPONENT', names: /component/ },
  { what: 'another version of the format', content: Uint8Array.of(0, 0x61, 0x73, 0x6d, 2, 0, 0, 0), status: 126,
    code: 'MODULE_VERSION_UNSUPPORTED', names: /version 2/ },
  { what: 'a section of an unknown kind', content: Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 0x7e, 0), status: 126,
    code: 'MODULE_MALFORMED', names: /byte \d+/ },
]

for (const { what, content, ...expected } of FILES) {
  test(`cellar run refuses ${what}`, async () => {
    await refuses(expected, (folder) => [folder.write('bad.wasm', content)])
  })
}

const WASI = 'wasi_snapshot_preview1'
const START = '(memory (export "memory") 1) (func (export "_start"))'

const MODULES: (Case & { text: string })[] = [
  { what: 'a module that does not validate', text: `(module ${START} (func i32.add drop))`, status: 126,
    code: 'MODULE_INVALID', names: /i32\.add/ },
  { what: 'a library, which has no _start', text: '(module (memory (export "memory") 1) (func (export "twice")))',
    status: 126, code: 'MODULE_NO_START', names: /exports: memory, twice/ },
  { what: 'a _start with parameters', text: '(module (func (export "_start") (param i32)))', status: 126,
    code: 'MODULE_INVALID', names: /_start has the type/ },
  { what: 'a program with a shared memory',
    text: '(module (import "env" "memory" (memory 1 2 shared)) (func (export "_start")))', status: 126,
    code: 'THREADS_UNSUPPORTED', names: /memory is shared/ },
  { what: 'a program that starts threads',
    text: `(module (import "wasi" "thread-spawn" (func (param i32) (result i32))) ${START})`, status: 126,
    code: 'THREADS_UNSUPPORTED', names: /wasi\.thread-spawn/ },
  { what: 'a 64-bit memory', text: '(module (memory i64 1) (func (export "_start")))', status: 126,
    code: 'MEMORY64_UNSUPPORTED', names: /64-bit/ },
  { what: 'a program of WASI preview 0',
    text: `(module (import "wasi_unstable" "proc_exit" (func (param i32))) ${START})`, status: 126,
    code: 'IMPORT_PREVIEW0', names: /wasi_unstable/ },
  { what: 'unknown imports', text: `(module (import "env" "one" (func)) (import "env" "two" (func))
    (import "other" "three" (global i32)) ${START})`, status: 126, code: 'IMPORT_UNKNOWN',
    names: /env: one, two; other: three \(global\)/ },
  { what: 'a hypercall that does not exist', text: `(module (import "${WASI}" "fd_reed" (func)) ${START})`,
    status: 126, code: 'IMPORT_UNKNOWN', names: /fd_reed/ },
  { what: 'a hypercall with another type',
    text: `(module (import "${WASI}" "fd_close" (func (param i64) (result i32))) ${START})`, status: 126,
    code: 'IMPORT_TYPE_WRONG', names: /fd_close with the type .*i64/ },
]

for (const { what, text, ...expected } of MODULES) {
  test(`cellar run refuses ${what}`, async () => {
    const bytes = await wat(text)
    await refuses(expected, (folder) => [folder.write('bad.wasm', bytes)])
  })
}

test('a terminal is safe from the names in a module', async () => {
  const bytes = await wat(`(module (import "env" "\\1b]0;owned\\07" (func)) ${START})`)
  const { stderr } = await refuses({ status: 126, code: 'IMPORT_UNKNOWN', names: /u\{1b\}/ },
    (folder) => [folder.write('bad.wasm', bytes)])
  assert.doesNotMatch(stderr, /[\x00-\x09\x0b-\x1f\x7f]/)
})

const hello = guest('hello')

const FLAGS: (Case & { args: readonly string[] })[] = [
  { what: 'no program', args: [], status: 125, code: 'USAGE', names: /without a program/ },
  { what: 'flags without a program', args: ['--stats'], status: 125, code: 'USAGE', names: /without a program/ },
  { what: 'a program that is not there', args: ['nowhere.wasm'], status: 127, code: 'PROGRAM_NOT_FOUND',
    names: /"nowhere\.wasm"/ },
  { what: 'a program below a file', args: [`${hello}/x.wasm`], status: 127, code: 'PROGRAM_NOT_FOUND',
    names: /x\.wasm/ },
  { what: 'a folder as the program', args: ['.'], status: 126, code: 'PROGRAM_UNREADABLE', names: /is a folder/ },
  { what: 'a device as the program', args: ['/dev/zero'], status: 126, code: 'PROGRAM_UNREADABLE', names: /device/ },
  ...(['--memory', '--timeout', '--dir', '--env', '--listen', '--clock-resolution', '--stub', '--file'].map((flag) =>
    ({ what: `${flag} without a value`, args: [flag], status: 125, code: 'FLAG_VALUE_MISSING', names: RegExp(flag) }) as
      const)),
  ...[
    ['--memory', 'lots'], ['--memory', '-1'], ['--memory', '0'], ['--memory', '1KiB'], ['--memory', '64MiBs'],
    ['--memory', ''], ['--memory', 'NaN'], ['--memory', '1e9'], ['--timeout', 'soon'], ['--timeout', '0'],
    ['--timeout', '-5s'], ['--timeout', '5parsecs'], ['--timeout', ''], ['--clock-resolution', 'fine'],
    ['--clock-resolution', '0s'], ['--dir', ''], ['--dir', ':/x'], ['--dir', '.:'], ['--dir', '.:/a:/b:/c'],
    ['--env', ''], ['--env', '=value'], ['--listen', ''], ['--listen', '8080'], ['--listen', 'tcp:127.0.0.1'],
    ['--listen', 'udp:127.0.0.1:53'], ['--listen', 'tcp:127.0.0.1:65536'], ['--listen', 'tcp:1.2.3:80'],
    ['--listen', 'tcp:[::g]:80'], ['--listen', 'tcp::80'],
  ].map(([flag, value]) => ({ what: `${flag} "${value}"`, args: [`${flag}=${value}`, hello], status: 125,
    code: 'FLAG_VALUE_INVALID',
    names: RegExp(`${flag} "${value!.replace(/[[\]]/g, '\\$&')}" as it must be`) }) as const),
  { what: 'a switch with a value', args: ['--stats=yes', hello], status: 125, code: 'FLAG_VALUE_INVALID',
    names: /--stats "yes" as it must be given alone/ },
  { what: 'a limit given twice', args: ['--memory', '1MiB', '--memory', '2MiB', hello], status: 125,
    code: 'FLAG_VALUE_INVALID', names: /--memory "2MiB" as it must be given once/ },
  { what: 'an unknown flag', args: ['--nonsense', hello], status: 125, code: 'FLAG_UNKNOWN',
    names: /--nonsense as no/ },
  { what: 'an unknown short flag', args: ['-z', hello], status: 125, code: 'FLAG_UNKNOWN', names: /flag -z as no/ },
  { what: 'a flag that is nearly right', args: ['--memroy', '1MiB', hello], status: 125, code: 'FLAG_UNKNOWN',
    names: /did you mean --memory\?/ },
  { what: 'a folder that is not there', args: ['--dir', 'nowhere', hello], status: 125, code: 'VOLUME_NOT_FOUND',
    names: /"nowhere"/ },
  { what: 'a folder that is a file', args: ['--dir', hello, hello], status: 125, code: 'VOLUME_NOT_A_FOLDER',
    names: /isn't a folder/ },
  { what: 'a limit below what the program has at its start', args: ['--memory', '64KiB', hello], status: 125,
    code: 'MEMORY_BELOW_MINIMUM', names: /needs 128 KiB of memory .* its limit is 64 KiB/ },
  { what: 'an address that is not this machine\'s', args: ['--listen', 'tcp:192.0.2.1:0', hello], status: 125,
    code: 'LISTEN_FAILED', names: /192\.0\.2\.1/ },
]

for (const { what, args, ...expected } of FLAGS) {
  test(`cellar run refuses ${what}`, async () => { await refuses(expected, () => args) })
}

test('a run under supervision refuses as one without does', async () => {
  for (const args of [['--dir', 'nowhere', hello], ['--memory', '64KiB', hello], ['--listen', 'tcp:192.0.2.1:0', hello],
    ['nowhere.wasm']]) {
    const plain = await cellar(['run', ...args])
    const supervised = await cellar(['run', '--stats', '--timeout', '30s', ...args])
    assert.deepEqual([supervised.status, supervised.stderr], [plain.status, plain.stderr])
    assert.equal(supervised.stdout.length, 0)
  }
})

test('cellar run refuses to listen on a port that is in use', async () => {
  const server = createServer()
  await new Promise<void>((done) => { server.listen(0, '127.0.0.1', done) })
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`
  try {
    await refuses({ status: 125, code: 'PORT_IN_USE', names: RegExp(address) },
      () => ['--listen', `tcp:${address}`, hello])
    // The second fails after the first was opened.
    await refuses({ status: 125, code: 'PORT_IN_USE', names: RegExp(address) },
      () => ['--listen', 'tcp:127.0.0.1:0', '--listen', `tcp:${address}`, hello])
  } finally {
    server.close()
  }
})

const asNobody = isRoot ? { uid: NOBODY } : {}

test('cellar run refuses a file and a folder that may not be read', { skip: await runnable(asNobody) }, async () => {
  await refuses({ status: 126, code: 'PROGRAM_UNREADABLE', names: /permission denied/ }, (folder) => {
    const path = folder.write('secret.wasm', HELLO)
    chmodSync(path, 0)
    return [path]
  }, asNobody)
  await refuses({ status: 125, code: 'VOLUME_UNREADABLE', names: /closed/ }, (folder) => {
    chmodSync(folder.folder('closed'), 0)
    return ['--dir', folder.at('closed'), hello]
  }, asNobody)
})

test('a path outside of the granted folder gets an errno, and the guest goes on', async () => {
  using folder = new Folder()
  folder.write('secret', 'decoy')
  folder.write('granted/inside', 'inside\n')
  symlinkSync('../secret', folder.at('granted/link'))
  symlinkSync(folder.at('secret'), folder.at('granted/absolute'))
  const outside = ['/granted/../secret', '/granted/link', '/granted/absolute', '/etc/passwd', folder.at('secret')]
  const { status, stdout, stderr } = await cellar(
    ['run', '--dir', `${folder.at('granted')}:/granted`, guest('cat'), ...outside, '/granted/inside'])
  assert.equal(stdout.toString(), 'inside\n')
  assert.equal(status, 1)
  assert.equal(stderr.split('\n').filter((line) => line.startsWith('cat: ')).length, outside.length, stderr)
})

test('cellar without a command, or with one that does not exist, says how to find help', async () => {
  for (const args of [[], ['rnu'], ['help', 'rnu'], ['inspect'], ['inspect', 'a.wasm', 'b.wasm'],
    ['inspect', '-o', 'xml', hello]]) {
    const { status, stdout, stderr } = await cellar(args)
    assert.equal(status, 125, args.join(' '))
    assert.match(stderr, /^cellar: Cannot .+ \[[A-Z_]+\]\n  hint: .+\n$/)
    assert.equal(stdout.length, 0)
  }
})

test('a checkout without Node 26 says what to run', async () => {
  using folder = new Folder()
  folder.write('bin/cellar', readFileSync(CELLAR))
  using running = startCommand(['/bin/sh', folder.at('bin/cellar'), 'version'])
  const { status, stderr } = await running.ended
  assert.equal(status, 125)
  assert.match(stderr, /npm ci/)
})
