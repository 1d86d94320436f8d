// cell/gate_test.ts: the gate: tries, waits, ends, and i64 in halves.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { STOP, WAIT } from '../wasi/p1/context.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { encodeGate, isGated } from './gate.ts'

const NAMES = (Object.keys(HYPERCALLS) as HypercallName[]).filter(isGated)

type Exports = Record<string, (...args: (number | bigint)[]) => unknown>

/** A gate whose hypercalls answer what `answers` says, in order; and what it was called with. */
function gateWith(answers: number[], resumed = 0): { exports: Exports; calls: unknown[][]; waits: () => number } {
  const calls: unknown[][] = []
  let waited = 0
  const hypercall = Object.fromEntries(NAMES.map((name) => [name, (...args: unknown[]) => {
    calls.push([name, ...args])
    return answers.shift()!
  }]))
  const vcpu = {
    wait: new WebAssembly.Suspending(async () => { waited++ }) as unknown as WebAssembly.ImportValue,
    resumed: () => resumed,
  }
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(encodeGate(NAMES)), { hypercall, vcpu })
  return { exports: exports as Exports, calls, waits: () => waited }
}

type Entered = (...args: unknown[]) => Promise<unknown>
const onStack = (target: Exports[string]): Entered => WebAssembly.promising(target as never) as Entered

test('a gate for every hypercall that needs one is a valid module', () => {
  assert.ok(NAMES.includes('fd_read') && NAMES.includes('proc_exit') && NAMES.includes('clock_time_get'))
  assert.ok(!NAMES.includes('args_get'), 'what answers at once with 32-bit arguments goes past the gate')
  assert.ok(WebAssembly.validate(encodeGate(NAMES)))
  assert.ok(WebAssembly.validate(encodeGate([])))
})

test('an i64 reaches the hypercall as two halves, low half first', () => {
  const { exports, calls } = gateWith([0])
  exports['fd_advise']!(3, 0x1122334455667788n, -2n, 5)
  assert.deepEqual(calls, [['fd_advise', 3, 0x55667788, 0x11223344, -2, -1, 5]])
})

test('an answer is passed on without waiting, on any stack', () => {
  const { exports, waits } = gateWith([28])
  assert.equal(exports['fd_read']!(0, 1, 2, 3), 28)
  assert.equal(waits(), 0)
})

test('WAIT parks the vCPU and tries again with the same arguments', async () => {
  const { exports, calls, waits } = gateWith([WAIT, WAIT, 0])
  assert.equal(await onStack(exports['fd_pread']!)(4, 5, 6, 7n, 8), 0)
  assert.equal(waits(), 2)
  const call = ['fd_pread', 4, 5, 6, 7, 0, 8]
  assert.deepEqual(calls, [call, call, call])
})

test('STOP traps, and so does being stopped while waiting', async () => {
  assert.throws(() => gateWith([STOP]).exports['proc_exit']!(1), WebAssembly.RuntimeError)
  await assert.rejects(onStack(gateWith([WAIT], 1).exports['fd_read']!)(0, 0, 0, 0), WebAssembly.RuntimeError)
})
