// wasi/p1/proc_test.ts: how a guest ends by itself, and how it lets others run.

import assert from 'node:assert/strict'
import { constants } from 'node:os'
import { test } from 'node:test'
import { EINVAL, ESUCCESS } from '../../base/errno.ts'
import { STOP, WAIT } from './context.ts'
import { proc_exit, proc_raise, sched_yield } from './proc.ts'
import { called, contextOf } from './test_support.ts'

test('proc_exit ends the guest with its code, taken as unsigned', () => {
  for (const [code, seen] of [[0, 0], [1, 1], [255, 255], [256, 256], [-1, 0xffff_ffff]] as const) {
    const context = contextOf()
    assert.equal(proc_exit(context, code), STOP)
    assert.deepEqual(context.end, { kind: 'exit', code: seen })
  }
})

// WASI's `signal` in its order; Linux's names are the same.
const SIGNALS = [
  'none', 'HUP', 'INT', 'QUIT', 'ILL', 'TRAP', 'ABRT', 'BUS', 'FPE', 'KILL', 'USR1', 'SEGV', 'USR2', 'PIPE', 'ALRM',
  'TERM', 'CHLD', 'CONT', 'STOP', 'TSTP', 'TTIN', 'TTOU', 'URG', 'XCPU', 'XFSZ', 'VTALRM', 'PROF', 'WINCH', 'POLL',
  'PWR', 'SYS',
] as const
const IGNORED = ['none', 'CHLD', 'CONT', 'URG', 'WINCH']

SIGNALS.forEach((name, signal) => {
  test(`proc_raise of ${name} does what the signal does by default`, { skip: process.platform !== 'linux' }, () => {
    const context = contextOf()
    if (IGNORED.includes(name)) {
      assert.equal(proc_raise(context, signal), ESUCCESS)
      assert.equal(context.end, undefined)
    } else {
      assert.equal(proc_raise(context, signal), STOP)
      const number = constants.signals[`SIG${name}` as NodeJS.Signals]
      assert.deepEqual(context.end, { kind: 'signal', signal: number })
    }
  })
})

test('proc_raise of what is no signal is EINVAL, and the guest goes on', () => {
  const context = contextOf()
  for (const signal of [31, 255, -1, -(2 ** 31)]) assert.equal(proc_raise(context, signal), EINVAL)
  assert.equal(context.end, undefined)
})

test('sched_yield answers after others had a turn, each time anew', async () => {
  const context = contextOf()
  for (let i = 0; i < 3; i++) {
    let turns = 0
    setImmediate(() => { turns++ })
    assert.equal(sched_yield(context), WAIT)
    assert.equal(turns, 0)
    await context.parked()
    assert.equal(turns, 1)
    assert.equal(sched_yield(context), ESUCCESS)
    assert.equal(context.since, -1, 'nothing is left of it for the next hypercall')
  }
  assert.equal(await called(context, sched_yield), ESUCCESS)
})
