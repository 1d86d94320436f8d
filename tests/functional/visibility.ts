// tests/functional/visibility.ts: run by visibility_test.ts under several flags of V8: ends once its loops were left.
//
// A translated loop without end and without stores spins on this thread; the timer sets the control word, the loop
// calls the function in its table, and that one throws.

import { Worker } from 'node:worker_threads'
import wabt from 'wabt'
import { nowNs } from '../../src/base/stopwatch.ts'
import { CONTROL_MEMORY, YIELD_TABLE } from '../../src/translate/added_names.ts'
import { translate } from '../../src/translate/translate.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import { prepare } from '../../src/wasm/prepare.ts'
import { Alarm, newBell } from '../../src/cell/alarm.ts'
import type { Timer } from '../../src/cell/timer_worker.ts'

const { parseWat } = await wabt()
const bytesOf = (text: string): Uint8Array<ArrayBuffer> =>
  parseWat('loop.wat', text).toBinary({}).buffer as Uint8Array<ArrayBuffer>

// A loop that stays a loop of many instructions, and one that is small enough to be unrolled.
const loops = ['(local.set $s (i32.rotl (i32.xor (local.get $s) (i32.const 77)) (i32.const 5)))'.repeat(20), '(nop)']
const control = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true })
const words = control.buffer as unknown as SharedArrayBuffer
const bell = newBell()
const timer: Timer = { controls: [words], bell }
const worker = new Worker(new URL('../../src/cell/timer_worker.ts', import.meta.url), { workerData: timer })
const alarm = new Alarm(new Int32Array(words), bell)
const leave = new WebAssembly.Instance(new WebAssembly.Module(
  bytesOf('(module (import "host" "leave" (func $leave)) (func (export "leave") (call $leave)))')),
{ host: { leave: () => { throw new RangeError('left') } } })

for (const loop of loops) {
  const bytes = bytesOf(`(module (func (export "run") (param $n i32) (local $s i32)
    (loop $l ${loop} (br_if $l (i32.ne (local.tee $n (i32.sub (local.get $n) (i32.const 1))) (i32.const 0))) )))`)
  const module = new WebAssembly.Module(translate(decodeModule(prepare(bytes, decodeModule(bytes)).bytes),
    { mode: 'preempt' }).bytes)
  const { exports } = new WebAssembly.Instance(module, { cellar: { [CONTROL_MEMORY]: control } })
  const run = exports['run'] as (n: number) => void
  ;(exports[YIELD_TABLE] as WebAssembly.Table).set(0, leave.exports['leave'])
  alarm.clear()
  // Warm, so that it is compiled by whatever compiles what is hot.
  for (let i = 0; i < 200; i++) run(1000)
  await new Promise((resolve) => { setTimeout(resolve, 100) })
  for (let i = 0; i < 3; i++) {
    alarm.clear()
    alarm.arm(nowNs() + 20e6)
    try {
      // -1 and down: 2^32 rounds, and again.
      for (;;) run(-1)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
    }
  }
}
await worker.terminate()
