// cell/cell_capture_test.ts: a cell that is stopped at its checks or in a hypercall goes on as if nothing had been.
//
// Each program checks itself: it ends with the code that it must end with, whatever it went on from.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { InputBuffer, OutputBuffer } from '../services/console/console.ts'
import { captureLoaded, programOf, runStopped, type Stops } from '../../tests/captured_program.ts'
import { Continuations } from './continuations.ts'
import { Pcpu } from './pcpu.ts'
import { cellOf, ECHO, importOf } from './test_support.ts'

const EXIT = importOf('proc_exit', 'i32', '')
const POLL = importOf('poll_oneoff', 'i32 i32 i32 i32')

/** Every program is run in these ways. At a loop's beginning it goes on with the check itself: not at each check. */
const WAYS: readonly Stops[] = [2, 3, 7].flatMap((nth) => [{ nth }, { nth, anew: true }])

/** Ends with the number that `$test` gives. */
const program = (fields: string): string => `(module ${EXIT}
  ${fields}
  (func (export "_start") (call $proc_exit (call $test))))`

const PROGRAMS: Readonly<Record<string, readonly [text: string, code: number]>> = {
  'loops within loops, and locals of each type': [`
    (func $test (result i32) (local $i i32) (local $j i32) (local $a i64) (local $b f32) (local $c f64) (local $v v128)
      (local.set $v (v128.const i32x4 1 2 3 4))
      (loop $rows
        (local.set $j (i32.const 0))
        (loop $columns
          (local.set $a (i64.add (local.get $a) (i64.extend_i32_u (local.get $j))))
          (local.set $b (f32.add (local.get $b) (f32.const 0.5)))
          (local.set $c (f64.add (local.get $c) (f64.const 0.25)))
          (local.set $v (i32x4.add (local.get $v) (v128.const i32x4 1 1 1 1)))
          (br_if $columns (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 1))) (i32.const 5))))
        (br_if $rows (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4))))
      (i32.add (i32.add (i32.wrap_i64 (local.get $a)) (i32.trunc_f32_s (local.get $b)))
        (i32.add (i32.trunc_f64_s (local.get $c)) (i32x4.extract_lane 3 (local.get $v)))))`, 40 + 10 + 5 + 24],
  'operands of each type beneath a call, and several results of it': [`
    (func $f (param i32) (result i32 i64 v128) (local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get 0))))
      (local.get $i) (i64.const 5) (v128.const i32x4 7 7 7 7))
    (func $test (result i32) (local $v v128) (local $n i64)
      (i32.const 1) (f64.const 2) (i32.const 3) (v128.const i32x4 4 4 4 4)
      (call $f (i32.const 9))
      (local.set $v) (local.set $n)
      (i32.add (i32.wrap_i64 (local.get $n)))
      (i32.add (i32x4.extract_lane 1 (local.get $v)))
      (local.set $n (i64.const 0)) (local.set $v (v128.const i32x4 0 0 0 0))
      (i32x4.splat) (i32x4.add) (i32x4.extract_lane 2)
      (i32.add) (f64.convert_i32_s) (f64.add) (i32.trunc_f64_s) (i32.add))`, 9 + 5 + 7 + 4 + 3 + 2 + 1],
  'a loop that has parameters, and blocks that are left by a table': [`
    (func $next (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
    (func $loops (param i32) (result i32) (loop $l (br_if $l (local.tee 0 (i32.shr_u (local.get 0) (i32.const 1)))))
      (i32.const 1))
    (func $test (result i32) (local $n i32)
      (i32.const 0) (i64.const 1)
      (loop $again (param i32 i64) (result i32 i64)
        (i64.add (i64.const 1)) (i64.const 1) (drop)
        (drop (call $loops (local.get $n)))
        (block $done
          (block $two (block $one (block $none
            (br_table $none $one $two $done (i32.rem_u (local.get $n) (i32.const 4))))
            (drop (call $loops (i32.const 4))))
            (local.set $n (i32.add (local.get $n) (call $loops (i32.const 1)))))
          (local.set $n (call $next (local.get $n))))
        (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 20))))
      (i32.wrap_i64) (i32.add) (i32.mul (local.get $n)))`, 220],
  'a reference of the host, which is null, held over a call': [`
    (func $loop (local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9)))))
    (func $none (result externref) (local $r externref) (call $loop) (local.get $r))
    (func $test (result i32) (i32.add (i32.const 4) (ref.is_null (call $none))))`, 5],
  'ten thousand frames': [`
    (func $deep (param i32) (result i32)
      (if (result i32) (local.get 0)
        (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1))))) (else (i32.const 0))))
    (func $test (result i32) (i32.rem_u (call $deep (i32.const 10000)) (i32.const 101)))`, 1],
  'tail calls, of functions that are called by a table, too': [`
    (type $t (func (param i32 i32) (result i32)))
    (table funcref (elem $even $odd))
    (func $even (type $t) (if (i32.eqz (local.get 0)) (then (return (local.get 1))))
      (return_call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.add (local.get 1) (i32.const 1))
        (i32.const 1)))
    (func $odd (type $t) (if (i32.eqz (local.get 0)) (then (return (i32.const 99))))
      (return_call $even (i32.sub (local.get 0) (i32.const 1)) (local.get 1)))
    (func $test (result i32) (i32.const 2) (call_indirect (type $t) (i32.const 40) (i32.const 3) (i32.const 0))
      (i32.add))`, 25],
  'functions in locals, globals and tables': [`
    (type $t (func (result i32)))
    (table $t 4 10 funcref) (table $u 1 funcref)
    (global $g (mut funcref) (ref.null func)) (global $h (mut funcref) (ref.func $three))
    (elem declare func $one $two $three)
    (func $one (type $t) (i32.const 1)) (func $two (type $t) (i32.const 2)) (func $three (type $t) (i32.const 3))
    (func $spin (local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4)))))
    (func $test (result i32) (local $f funcref) (local $none funcref)
      (local.set $f (ref.func $two))
      (table.set $t (i32.const 0) (ref.func $one))
      (global.set $g (ref.func $two))
      (call $spin)
      (drop (table.grow $t (global.get $h) (i32.const 3)))
      (call $spin)
      (table.set $t (i32.const 1) (local.get $f))
      (table.set $t (i32.const 2) (global.get $g))
      (call $spin)
      (table.set $u (i32.const 0) (local.get $f))
      (call $spin)
      (i32.add (i32.mul (table.size $t) (i32.const 10)) (ref.is_null (local.get $none)))
      (i32.add (i32.add (call_indirect $t (type $t) (i32.const 0)) (call_indirect $t (type $t) (i32.const 1))))
      (i32.add (i32.add (call_indirect $t (type $t) (i32.const 2)) (call_indirect $t (type $t) (i32.const 6))))
      (i32.add (call_indirect $u (type $t) (i32.const 0))))`, 70 + 1 + 1 + 2 + 2 + 3 + 2],
  'bulk instructions that are stopped half-way': [`
    (memory 40) (data $d "abcdefgh")
    (table $t 6000 funcref) (elem $e func $one $one $one)
    (func $one (result i32) (i32.const 1))
    (func $test (result i32)
      (memory.fill (i32.const 10) (i32.const 7) (i32.const 1000000))
      (memory.copy (i32.const 500000) (i32.const 10) (i32.const 1000000))
      (memory.copy (i32.const 20) (i32.const 400000) (i32.const 900000))
      (memory.init $d (i32.const 0) (i32.const 2) (i32.const 5))
      (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 3))
      (table.fill $t (i32.const 10) (ref.func $one) (i32.const 5000))
      (table.copy $t $t (i32.const 3000) (i32.const 5) (i32.const 3000))
      (i32.add (i32.add (i32.load8_u (i32.const 1499999)) (i32.load8_u (i32.const 1500000)))
        (i32.add (i32.load8_u (i32.const 4)) (ref.is_null (table.get $t (i32.const 3001))))))`, 7 + 0x67 + 1],
  'memory that grows': [`
    (memory 1)
    (func $test (result i32) (local $i i32)
      (loop $l
        (i32.store (i32.mul (local.get $i) (i32.const 65536)) (local.get $i))
        (drop (memory.grow (i32.const 1)))
        (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9))))
      (i32.add (memory.size) (i32.load (i32.const 524288))))`, 18],
  'exceptions that are thrown through frames, and thrown again': [`
    (tag $e (param i32)) (tag $other)
    (func $throws (param i32) (result i32)
      (loop $l (br_if $l (i32.gt_u (local.tee 0 (i32.sub (local.get 0) (i32.const 1))) (i32.const 3))))
      (if (i32.eq (local.get 0) (i32.const 3)) (then (throw $e (i32.const 5))))
      (throw $other))
    (func $again (param i32) (result i32) (local $i i32)
      (try (result i32)
        (do (call $throws (local.get 0)))
        (catch_all
          (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
          (rethrow 0))))
    (func $test (result i32)
      (i32.const 20)
      (try (result i32)
        (do (call $again (i32.const 9)))
        (catch $other (i32.const 70))
        (catch $e))
      (try (result i32)
        (do (call $again (i32.const 1)))
        (catch $e)
        (catch $other (i32.const 70)))
      (i32.add) (i32.add))`, 95],
}

for (const [what, [text, code]] of Object.entries(PROGRAMS)) {
  test(`a program goes on after each stop: ${what}`, async () => {
    using made = await programOf(program(text))
    assert.deepEqual(made.executable.capture?.can, true, JSON.stringify(made.executable.capture))
    assert.deepEqual((await runStopped(new Pcpu(), made.executable, {})).outcome, { kind: 'exit', code })
    for (const stops of WAYS) {
      const most = what.startsWith('ten thousand') ? 20 : Infinity
      const { outcome, states } = await runStopped(new Pcpu(), made.executable,
        { ...stops, nth: stops.nth! * (most === 20 ? 1000 : 1), most })
      assert.deepEqual(outcome, { kind: 'exit', code }, JSON.stringify(stops))
      assert.ok(states.length > 0 && states.every(({ frames }) => frames.length > 0))
    }
  })
}

test('a segment that was dropped stays so', async () => {
  const text = (last: string): string => program(`
    (memory 1) (data $d "abc") (table 1 funcref) (elem $e func $spin)
    (func $spin (local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4)))))
    (func $test (result i32) (data.drop $d) (elem.drop $e) (call $spin) ${last} (i32.const 3))`)
  for (const last of ['(memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))',
    '(table.init $e (i32.const 0) (i32.const 0) (i32.const 1))']) {
    using made = await programOf(text(last))
    for (const stops of WAYS) {
      const { outcome } = await runStopped(new Pcpu(), made.executable, stops)
      assert.equal(outcome.kind, 'trap')
      assert.match(JSON.stringify(outcome), /out of bounds/)
    }
  }
})

test('a start function is stopped, and what comes after it follows', async () => {
  using made = await programOf(`(module ${EXIT} (global $g (mut i32) (i32.const 0))
    (func $spin (param i32) (local $i i32)
      (loop $l (global.set $g (i32.add (global.get $g) (i32.const 1)))
        (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get 0)))))
    (start $begin)
    (func $begin (call $spin (i32.const 5)))
    (func (export "_start") (call $spin (i32.const 3)) (call $proc_exit (global.get $g))))`)
  for (const stops of WAYS) {
    const { outcome, states } = await runStopped(new Pcpu(), made.executable, stops)
    assert.deepEqual(outcome, { kind: 'exit', code: 8 })
    if (stops.nth === 2) assert.deepEqual(new Set(states.map(({ phase }) => phase)), new Set(['start', 'main']))
  }
})

test('a hypercall that waits when its guest is stopped is tried again with the same arguments', async () => {
  using made = await programOf(ECHO)
  for (const anew of [false, true]) {
    const [stdin, stdout] = [new InputBuffer(), new OutputBuffer(1024)]
    const running = runStopped(new Pcpu(), made.executable, { nthWait: 1, most: 5, anew },
      { console: { stdin, stdout } })
    for (const word of ['some', ' ', 'words']) {
      await new Promise((resolve) => setTimeout(resolve, 20))
      stdin.push(Buffer.from(word))
    }
    stdin.end()
    const { outcome, states } = await running
    assert.deepEqual(outcome, { kind: 'exit', code: 0 })
    assert.equal(stdout.take().toString(), 'some words')
    assert.equal(states.length, 5)
  }
})

// Sleeps 60 ms by a relative timer, then ends with poll's errno.
const SLEEP = `(module ${POLL} ${EXIT}
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 60000000))
    (call $proc_exit (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))`

test('a sleep that is stopped again and again takes no longer', async () => {
  using made = await programOf(SLEEP)
  for (const anew of [false, true]) {
    const begun = performance.now()
    const { outcome, states } = await runStopped(new Pcpu(), made.executable, { nthWait: 1, most: 30, anew })
    const tookMs = performance.now() - begun
    assert.deepEqual(outcome, { kind: 'exit', code: 0 })
    assert.equal(states.length, 30)
    assert.ok(states.every(({ since }) => since === states[0]!.since), 'it goes on waiting from when it began to')
    // Thirty sleeps would be 1800 ms.
    assert.ok(tookMs >= 55 && tookMs < 1000, `it took ${tookMs} ms`)
  }
})

test('a cell is captured before its first instruction, and begins then', async () => {
  using made = await programOf(program(PROGRAMS['memory that grows']![0]))
  const pcpu = new Pcpu()
  const cell = cellOf(pcpu, made.executable)
  const captured = cell.capture()
  const ended = cell.run()
  const state = await captured
  assert.equal(state.frames.length, 0)
  cell.goOn(new Continuations().of(made.executable, state.frames))
  assert.deepEqual(await ended, { kind: 'exit', code: 18 })
})

const refused = (code: string) => (error: unknown): boolean => error instanceof CellarError && error.code === code

test('a cell is captured once at a time, not after its end, and may be ended while it is captured', async () => {
  using made = await programOf(ECHO)
  const pcpu = new Pcpu()
  const [stdin, stdout] = [new InputBuffer(), new OutputBuffer(64)]
  const cell = cellOf(pcpu, made.executable, { stdin, stdout })
  const ended = cell.run()
  const first = cell.capture()
  await assert.rejects(cell.capture(), refused('CAPTURE_IMPOSSIBLE'))
  await first
  await assert.rejects(cell.capture(), refused('CAPTURE_IMPOSSIBLE'))
  const killed = { kind: 'signal', signal: 9 } as const
  cell.context.stop(killed)
  cell.release()
  assert.deepEqual(await ended, killed)
  await assert.rejects(cell.capture(), refused('CAPTURE_ENDED'))
})

test('a cell that ends before its next check says so', async () => {
  using made = await programOf(`(module ${EXIT} (func (export "_start") (call $proc_exit (i32.const 3))))`)
  const cell = cellOf(new Pcpu(), made.executable)
  const ended = cell.run()
  const captured = cell.capture()
  await assert.rejects(captured, refused('CAPTURE_ENDED'))
  assert.deepEqual(await ended, { kind: 'exit', code: 3 })
})

test('a program that can\'t be captured runs, and a capture says why', async () => {
  using made = await programOf(`(module
    (tag $t (param externref))
    (func $f (local $i i32)
      (try
        (do (throw $t (ref.null extern)))
        (catch_all
          (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
          (rethrow 0))))
    (func (export "_start") (try (do (call $f)) (catch_all))))`)
  assert.deepEqual(made.executable.capture,
    { can: false, why: 'function 0 holds an exception of many kinds, or with references' })
  const cell = cellOf(new Pcpu(), made.executable)
  await assert.rejects(cell.capture(), (error) => refused('CAPTURE_IMPOSSIBLE')(error) &&
    /function 0 holds an exception/.test((error as Error).message))
  assert.deepEqual(await cell.run(), { kind: 'exit', code: 0 })
})

test('a cell that was captured and is given up goes on elsewhere with what it had written', async () => {
  const executable = await captureLoaded(new URL('../../guests/kernels.wasm', import.meta.url).pathname)
  const plain = new OutputBuffer(1 << 20)
  const { outcome } = await runStopped(new Pcpu(), executable, {}, { console: { stdout: plain } })
  const stdout = new OutputBuffer(1 << 20)
  const stopped = await runStopped(new Pcpu(), executable, { nth: 997, most: 50, anew: true }, { console: { stdout } })
  assert.deepEqual(stopped.outcome, outcome)
  assert.equal(stdout.take().toString(), plain.take().toString())
})
