// host/restart_test.ts: what follows an end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { GuestEnd } from './protocol.ts'
import { exitOf, failuresAfter, next } from './restart.ts'
import type { GuestSpec } from './spec.ts'

type Ending = Pick<GuestEnd, 'outcome' | 'by'>

const SUCCESS: Ending = { outcome: { kind: 'exit', code: 0 } }
const FAILURE: Ending = { outcome: { kind: 'exit', code: 3 } }
const STOPPED: Ending = { outcome: { kind: 'signal', signal: 15 }, by: 'stop' }
const TIMED_OUT: Ending = { outcome: { kind: 'exit', code: 124 }, by: 'timeout' }
const UNHEALTHY: Ending = { outcome: { kind: 'signal', signal: 15 }, by: 'unhealthy' }

const CASES: readonly (readonly [what: string, end: Ending, policy: GuestSpec['restart'], phase: string])[] = [
  ['a success', SUCCESS, 'no', 'exited'], ['a success', SUCCESS, 'on-failure', 'exited'],
  ['a success', SUCCESS, 'always', 'backing-off'],
  ['a failure', FAILURE, 'no', 'failed'], ['a failure', FAILURE, 'on-failure', 'backing-off'],
  ['a stop', STOPPED, 'always', 'stopped'],
  ['a timeout', TIMED_OUT, 'on-failure', 'failed'], ['a timeout', TIMED_OUT, 'always', 'backing-off'],
  ['bad health', UNHEALTHY, 'on-failure', 'backing-off'], ['bad health', UNHEALTHY, 'no', 'failed'],
]

for (const [what, end, policy, phase] of CASES) {
  test(`next() after ${what} with restart: ${policy} is ${phase}`, () => {
    assert.equal(next(end, policy, 0, 0).phase, phase)
  })
}

test('next() does not start again what can never run', () => {
  for (const code of ['IMPORT_UNKNOWN', 'MODULE_UNBOUNDED', 'MEMORY_BELOW_MINIMUM']) {
    assert.deepEqual(next({ outcome: { kind: 'failed', code, values: [] } }, 'always', 0, 0), { phase: 'failed' })
  }
  assert.equal(next({ outcome: { kind: 'failed', code: 'PORT_IN_USE', values: [] } }, 'on-failure', 0, 0).phase,
    'backing-off')
})

test('next() doubles the pause with each failure in a row, up to a minute', () => {
  const pauses = Array.from({ length: 12 }, (_, failures) => {
    const then = next(FAILURE, 'on-failure', failures, 5)
    return then.phase === 'backing-off' ? then.pauseMs : undefined
  })
  assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000])
})

test('next() forgets failures of who has run for ten seconds', () => {
  assert.deepEqual(next(FAILURE, 'on-failure', 9, 10_000), { phase: 'backing-off', pauseMs: 100 })
  assert.equal(failuresAfter(9, 10_000), 1)
  assert.equal(failuresAfter(9, 9999), 10)
})

test('exitOf() has a status and a reason for each kind of end', () => {
  assert.deepEqual(exitOf(FAILURE), { status: 3, reason: 'exited with 3' })
  assert.deepEqual(exitOf(STOPPED), { status: 143, reason: 'stopped' })
  assert.deepEqual(exitOf(TIMED_OUT), { status: 124, reason: 'its time was up' })
  assert.equal(exitOf(UNHEALTHY).reason, 'stopped as it was unhealthy')
  assert.deepEqual(exitOf({ outcome: { kind: 'signal', signal: 13 } }), { status: 141, reason: 'ended by SIGPIPE' })
  const lost = { kind: 'failed', code: 'PROCESS_LOST', values: ['p', 'it was ended by SIGKILL'] } as const
  assert.deepEqual(exitOf({ outcome: lost }),
    { status: 137, reason: 'its process died: it was ended by SIGKILL' })
  assert.equal(exitOf({ outcome: { kind: 'failed', code: 'MODULE_EMPTY', values: ['a.wasm'] } }).reason,
    'Cannot run "a.wasm" as the file is empty')
})
