// tests/functional/ends_test.ts: how a guest ends: by itself, by a trap, by a signal, by a limit.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellar, CELLAR, Folder, guest, start, startCommand, until } from '../support.ts'

const WASI = 'wasi_snapshot_preview1'

test('the exit status is what the guest says, from however deep', async () => {
  const cases = [[['0'], 0], [['7'], 7], [['255'], 255], [['256'], 0], [['now', '9'], 9], [[], 0]] as const
  for (const [args, status] of cases) {
    for (const watch of [[], ['--stats']]) {
      const result = await cellar(['run', ...watch, guest('exit'), ...args])
      assert.deepEqual([result.status, result.signal], [status, null], `${args.join(' ')} ${result.stderr}`)
    }
  }
})

test('abort() is status 134, with the stack in the words of the source', async () => {
  const { status, stderr } = await cellar(['run', guest('exit'), 'abort'])
  assert.equal(status, 134)
  assert.match(stderr, /trapped: unreachable\n  #0 +abort /)
  assert.deepEqual(names(stderr).slice(0, 7), ['abort', 'end', 'descend', 'descend', 'descend', 'descend', 'main'])
})

test('proc_raise is status 128 + the signal', async () => {
  const { status, stdout } = await cellar(['run', guest('exit'), 'raise', '1'])
  assert.equal(status, 129)
  assert.equal(stdout.length, 0)
})

const TRAPS = [
  ['unreachable', /unreachable/, ['run_out_of_ideas', 'give_up', 'main']],
  ['divide', /divide by zero/, ['divide', 'share_among', 'share_nothing', 'main']],
  ['overflow', /divide result unrepresentable/, ['divide', 'overflow_quotient', 'main']],
  ['oob', /memory access out of bounds/, ['load', 'read_far_away', 'main']],
  ['stack', /call stack exhausted/, ['fall', 'fall', 'fall', 'fall']],
  ['indirect', /signature mismatch/, ['call_through', 'call_wrongly', 'main']],
  ['null', /null|signature mismatch/, ['call_through', 'call_nothing', 'main']],
  ['table', /table index is out of bounds/, ['call_through', 'call_far_away', 'main']],
  ['convert', /float unrepresentable/, ['convert_too_much', 'main']],
] as const

for (const [how, reason, stack] of TRAPS) {
  test(`a guest that traps (${how}) ends with 134, the reason and its stack`, async () => {
    const { status, signal, stdout, stderr } = await cellar(['run', guest('trap'), how])
    assert.deepEqual([status, signal], [134, null])
    assert.match(stderr, /^about to trap: \w+\ncellar: .*trap\.wasm trapped: /)
    assert.match(stderr.split('\n')[1]!, reason)
    assert.deepEqual(names(stderr).slice(0, stack.length), stack)
    assert.ok(stderr.split('\n').length < 80, 'the stack is bounded')
    assert.equal(stdout.length, 0)
  })
}

test('a stub that is called is named, with the stack of the call', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('stub.wasm', `(module (import "env" "host_call" (func $call (result i64)))
    (func $inner (drop (call $call))) (func $outer (call $inner)) (func $main (export "_start") (call $outer)))`)
  for (const stub of ['env', 'env.host_call']) {
    const { status, stderr } = await cellar(['run', '--stub', stub, program])
    assert.equal(status, 134, stderr)
    assert.match(stderr, /trapped: called env\.host_call, which is a stub\n/)
    assert.deepEqual(names(stderr), ['inner', 'outer', 'main'])
  }
})

test('a program whose initialisers trap is refused', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('segment.wasm',
    '(module (memory 1) (data (i32.const 65536) "x") (func (export "_start")))')
  for (const watch of [[], ['--stats']]) {
    const { status, stderr } = await cellar(['run', ...watch, program])
    assert.equal(status, 126, stderr)
    assert.match(stderr, /^cellar: Cannot run .*data segment 0 is out of bounds.* \[MODULE_INITIALISER_TRAPPED\]\n/)
  }
})

test('--timeout stops a guest that spins, one that spins before its _start, and those that wait', async () => {
  using folder = new Folder()
  const early = await folder.writeProgram('early.wasm',
    '(module (func $f (loop $l (br $l))) (start $f) (func (export "_start")))')
  for (const program of [[guest('spin')], [early], [guest('sleep'), '3600000'], [guest('cat')]]) {
    const began = performance.now()
    using running = start(['run', '--timeout', '300ms', ...program], { stdin: 'open' })
    const { status, stderr } = await running.ended
    assert.equal(status, 124)
    assert.match(stderr, /^cellar: Stopped .* its timeout of 300 ms \[GUEST_TIMED_OUT\]\n {2}hint: Raise --timeout/)
    assert.ok(performance.now() - began < 15_000, `took ${performance.now() - began} ms`)
  }
})

test('a guest that ends before --timeout is not held by it', async () => {
  const began = performance.now()
  const { status, stdout } = await cellar(['run', '--timeout', '1h', guest('hello')])
  assert.deepEqual([status, stdout.toString()], [0, 'Hello from a cell\n'])
  assert.ok(performance.now() - began < 15_000)
})

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  test(`${signal} ends a guest, whether it spins or waits`, async () => {
    for (const args of [[guest('spin'), 'ready'], [guest('cat')]]) {
      using running = start(['run', ...args], { stdin: 'open' })
      if (!args.includes('ready')) running.child.stdin!.write('ready\n')
      await until('the guest runs', () => running.said().includes('ready'))
      running.child.kill(signal)
      const { status, signal: by } = await running.ended
      assert.deepEqual([status, by], [null, signal])
    }
  })

  test(`${signal} ends a guest under supervision with 128 + its number and the figures`, async () => {
    for (const args of [[guest('spin'), 'ready'], [guest('cat')]]) {
      using running = start(['run', '--stats', ...args], { stdin: 'open' })
      if (!args.includes('ready')) running.child.stdin!.write('ready\n')
      await until('the guest runs', () => running.said().includes('ready\n'))
      running.child.kill(signal)
      const { status, stderr } = await running.ended
      assert.equal(status, { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal], stderr)
      // What it wrote may be seen here before the hypercall has answered, and is counted then.
      assert.match(stderr, /hypercalls +[1-9]\d*: .*args_get 1/)
    }
  })
}

test('a stdout that is closed ends the guest as SIGPIPE does', async () => {
  const pipeline = '"$0" run "$@" | head -n 1; echo "${PIPESTATUS[0]}"'
  for (const watch of [[], ['--timeout', '30s']]) {
    using running = startCommand(['bash', '-c', pipeline, CELLAR, ...watch, guest('yes')])
    const { stdout, stderr } = await running.ended
    assert.equal(stdout.toString(), 'y\n141\n')
    assert.equal(stderr, '')
  }
})

test('memory.grow fails at --memory, and the guest goes on', async () => {
  for (const size of ['8', '64']) {
    const { status, stdout } = await cellar(['run', '--memory', `${size}MiB`, guest('grow')])
    assert.deepEqual([status, stdout.toString()], [0, `${size} MiB\n`])
  }
})

// Subscribes to stdin and to a clock of 50 ms, and returns when one of them comes.
const POLL = `(module
  (import "${WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "${WASI}" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store8 (i32.const 8) (i32.const 1))
    (i32.store (i32.const 64) (i32.const 1))
    (i64.store (i32.const 72) (i64.const 50000000))
    (if (call $poll (i32.const 0) (i32.const 128) (i32.const 2) (i32.const 256)) (then (call $exit (i32.const 1))))
    (if (i32.ne (i32.load (i32.const 256)) (i32.const 1)) (then (call $exit (i32.const 2))))))`

test('a guest ends at once while a read of stdin is pending', async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('poll.wasm', POLL)
  for (const watch of [[], ['--timeout', '40s']]) {
    using running = start(['run', ...watch, program], { stdin: 'open' })
    const began = performance.now()
    const { status, signal, stderr } = await running.ended
    assert.deepEqual([status, signal], [0, null], stderr)
    assert.ok(performance.now() - began < 15_000)
  }
})

/** The functions' names of a trap's stack, innermost first. */
function names(stderr: string): string[] {
  return [...stderr.matchAll(/^  #\d+ +(\S+) +function/gm)].map(([, name]) => name!)
}
