// tests/functional/observe_test.ts: what an operator sees: --stats, --trace, inspect, help; and from where it works.

import assert from 'node:assert/strict'
import { chmodSync, readFileSync, symlinkSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, CELLAR, Folder, guest, isRoot, NOBODY, ROOT, startCommand } from '../support.ts'
import { runnable } from './refusal.ts'

const WASI = 'wasi_snapshot_preview1'

// Calls clock_time_get 100 times, sched_yield 7 times, and fd_close of what isn't open once.
const CALLS = `(module
  (import "${WASI}" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "${WASI}" "sched_yield" (func $yield (result i32)))
  (import "${WASI}" "fd_close" (func $close (param i32) (result i32)))
  (memory (export "memory") 3)
  (func (export "_start") (local $i i32)
    (loop $l
      (if (call $clock (i32.const 1) (i64.const 0) (i32.const 8)) (then unreachable))
      (if (i32.lt_u (local.get $i) (i32.const 7)) (then (drop (call $yield))))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))
    (if (i32.ne (call $close (i32.const 77)) (i32.const 8)) (then unreachable))))`

test('--stats prints what the program used, hypercalls counted exactly', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('calls.wasm', CALLS)
  const { status, stdout, stderr } = await cellar(['run', '--stats', program])
  assert.equal(status, 0, stderr)
  assert.equal(stdout.length, 0)
  const time = String.raw`\d+(\.\d+)? (ns|µs|ms|s)`
  assert.match(stderr, RegExp([`^cellar: ${program} ended with status 0`, `  start +${time}`, `  wall +${time}`,
    `  cpu +${time}`, '  memory +192 KiB', String.raw`  waits +\d+`,
    '  hypercalls +108: clock_time_get 100, sched_yield 7, fd_close 1', '$'].join('\n')))
})

test('an answer that can not be written is an error, and a reader that is gone ends the command quietly', async () => {
  for (const argv of [['inspect', guest('hello')], ['help'], ['run', '--help'], ['version']]) {
    const line = `"${CELLAR}" "$@" > /dev/full`
    using full = startCommand(['bash', '-c', line, 'bash', ...argv])
    const { status, stderr } = await full.ended
    assert.deepEqual([status, /\[OUTPUT_FAILED\]\n {2}hint: /.test(stderr)], [125, true], argv.join(' '))
    const piped = `"${CELLAR}" "$@" | true; exit \${PIPESTATUS[0]}`
    using gone = startCommand(['bash', '-c', piped, 'bash', ...argv])
    const ended = await gone.ended
    assert.ok(ended.status === 141 || ended.status === 0, `${argv.join(' ')}: ${ended.status}`)
    assert.doesNotMatch(ended.stderr, /EPIPE|at /)
  }
})

test('--name is what messages call the program', async () => {
  const { stderr } = await cellar(['run', '--name', 'divider', '--stats', guest('trap'), 'divide'])
  assert.match(stderr, /^cellar: divider trapped: divide by zero$/m)
  assert.match(stderr, /^cellar: divider ended with status 134$/m)
})

test('--stats counts waits, and the time of a wait is not CPU time', async () => {
  const { stderr } = await cellar(['run', '--stats', guest('sleep'), '600'])
  assert.match(stderr, /\n  waits +[1-9]/)
  assert.match(stderr, /\n  wall +([6-9]\d\d(\.\d+)? ms|\d+(\.\d+)? s)\n/)
  const [, cpu, unit] = /\n  cpu +([\d.]+) (\S+)\n/.exec(stderr)!
  assert.ok(unit === 'µs' || (unit === 'ms' && Number(cpu) < 400), stderr)
})

test('--trace prints each hypercall with its arguments and the name of its errno', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('calls.wasm', CALLS)
  for (const flags of [['--trace'], ['--trace', '--timeout', '30s']]) {
    const { status, stderr } = await cellar(['run', ...flags, program])
    assert.equal(status, 0)
    const lines = stderr.trimEnd().split('\n')
    assert.equal(lines.length, 108)
    for (const line of lines) assert.match(line, /^\[ *\d+\.\d{3} ms\] \w+\(.*\) = E[A-Z]+$/)
    assert.match(lines.at(-1)!, /fd_close\(77\) = EBADF$/)
  }
  folder.write('granted/file', 'text')
  const files = await cellar(
    ['run', '--trace', '--dir', `${folder.at('granted')}:/g`, guest('cat'), '/g/file',
      '/g/nowhere', '/g/../calls.wasm'])
  assert.match(files.stderr, /path_open\(3.*\) = ESUCCESS/)
  assert.match(files.stderr, /path_open\(3.*\) = ENOENT/)
  assert.match(files.stderr, /proc_exit\(1\)/)
})

test('cellar inspect says what a program asks for, as text and as JSON', async () => {
  const text = await cellar(['inspect', guest('echo')])
  assert.equal(text.status, 0)
  assert.equal(text.stderr, '')
  for (const part of [/^Program +.*echo\.wasm$/m, /^Kind +command/m, /^Made by +clang/m, /^Runs +yes$/m,
    /14 hypercalls/, /sock_accept\*/, /_start +\(\) -> \(\)/]) assert.match(text.stdout.toString(), part)
  const json = await cellar(['inspect', '-o', 'json', guest('echo')])
  const report = JSON.parse(json.stdout.toString()) as Record<string, unknown> & { module: { hypercalls: unknown[] } }
  assert.deepEqual([report.kind, report.runs, report.sizeBytes, report.module.hypercalls.length],
    ['command', true, readFileSync(guest('echo')).length, 14])
})

test('cellar inspect answers for a program that can not be run, too', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('library.wasm', '(module (import "env" "f" (func)) (func (export "g")))')
  const text = await cellar(['inspect', program])
  assert.equal(text.status, 0)
  assert.match(text.stdout.toString(), /^Runs +no/m)
  const { stdout } = await cellar(['inspect', '--output', 'json', program])
  assert.equal((JSON.parse(stdout.toString()) as { refusal: { code: string } }).refusal.code, 'IMPORT_UNKNOWN')
})

test('help and version go to stdout with status 0', async () => {
  for (const [args, part] of [
    [['help'], /Usage: cellar COMMAND[^]*  run [^]*  inspect [^]*  version /], [['--help'], /Usage: cellar COMMAND/],
    [['run', '--help'], /Usage: cellar run[^]*--dir HOST\[:GUEST\]\[:ro\][^]*--clock-resolution/],
    [['help', 'run'], /Usage: cellar run/], [['inspect', '-h'], /Usage: cellar inspect[^]*--output FORMAT/],
    [['version'], /^cellar \d+\.\d+\.\d+ \(Node 26\./], [['--version'], /^cellar \d+\.\d+\.\d+ \(Node 26\./],
  ] as const) {
    const { status, stdout, stderr } = await cellar(args)
    assert.deepEqual([status, stderr], [0, ''], args.join(' '))
    assert.match(stdout.toString(), part)
  }
})

test('cellar works from any folder, by any path, and through links to it', async () => {
  using folder = new Folder()
  symlinkSync(CELLAR, folder.at('absolute'))
  folder.folder('deep/bin')
  symlinkSync('../../absolute', folder.at('deep/bin/relative'))
  const calls: [string[], { cwd: string; env?: Record<string, string> }][] = [
    [[folder.at('absolute')], { cwd: '/' }], [['deep/bin/relative'], { cwd: folder.path }],
    [['./relative'], { cwd: folder.at('deep/bin') }], [['bin/cellar'], { cwd: ROOT }],
    [['./cellar'], { cwd: `${ROOT}/bin` }],
    [['../bin/cellar'], { cwd: `${ROOT}/bin` }],
    [['relative'], { cwd: '/', env: { PATH: `${folder.at('deep/bin')}:${process.env.PATH}` } }],
    [['sh', CELLAR], { cwd: '/' }],
  ]
  for (const [command, options] of calls) {
    using running = startCommand([...command, 'run', guest('hello')], options)
    const { status, stdout, stderr } = await running.ended
    assert.deepEqual([status, stdout.toString()], [0, 'Hello from a cell\n'], `${command.join(' ')}: ${stderr}`)
  }
})

test('cellar needs neither a compile cache nor a home that it may write to', async () => {
  using folder = new Folder()
  chmodSync(folder.folder('home'), 0o555)
  for (const env of [
    { NODE_COMPILE_CACHE: undefined }, { HOME: undefined, XDG_CACHE_HOME: undefined, NODE_COMPILE_CACHE: undefined },
    { HOME: folder.at('home'), NODE_COMPILE_CACHE: undefined }, { HOME: '/nowhere', NODE_COMPILE_CACHE: undefined },
    { NODE_COMPILE_CACHE: '/dev/null' }, { NODE_DISABLE_COMPILE_CACHE: '1' },
  ]) {
    const { status, stdout, stderr } = await cellar(['run', guest('hello')], { env })
    assert.deepEqual([status, stdout.toString(), stderr], [0, 'Hello from a cell\n', ''])
  }
})

const asNobody = { uid: NOBODY, env: { HOME: '/nonexistent', NODE_COMPILE_CACHE: undefined } }
const skip = isRoot ? await runnable(asNobody) : 'needs root, to be somebody else'

test('another user runs cellar from a checkout that he may only read', { skip }, async () => {
  for (const args of [[guest('hello')], ['--stats', guest('hello')]]) {
    const { status, stdout } = await cellar(['run', ...args], asNobody)
    assert.deepEqual([status, stdout.toString()], [0, 'Hello from a cell\n'])
  }
})

// Prints its environment as it lies in memory: NAME=VALUE, each with a zero byte.
const ENVIRONMENT = `(module
  (import "${WASI}" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "${WASI}" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "${WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (if (call $sizes (i32.const 0) (i32.const 12)) (then unreachable))
    (i32.store (i32.const 8) (i32.const 65536))
    (if (call $get (i32.const 1024) (i32.const 65536)) (then unreachable))
    (if (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)) (then unreachable))))`

test('a guest sees the variables that it is given, and none of the host', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('environment.wasm', ENVIRONMENT)
  const seen = async (...flags: string[]): Promise<string[]> => {
    const { status, stdout, stderr } = await cellar(['run', ...flags, program], { env: { SECRET: 'x', PASSED: 'ü=1' } })
    assert.equal(status, 0, stderr)
    return stdout.toString().split('\0').slice(0, -1)
  }
  assert.deepEqual(await seen(), [])
  assert.deepEqual(await seen('--env', 'A=1=2', '-e', 'B=', '--env', 'PASSED', '--env', 'NOT_SET'),
    ['A=1=2', 'B=', 'PASSED=ü=1'])
})
