// host/from_process_test.ts: what a process says of its machine is bounded, whatever it says.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MESSAGE } from './from_process.ts'

const FIGURES = { ageNs: 1, runningNs: 1, runnableNs: 0, waitingNs: 0, throttledNs: 0, pausedNs: 0, stints: 0,
  switches: 0, preemptions: 0, memoryBytes: 1, pcpu: 0, waitedFor: [], hypercalls: 0 }
const many = <T>(length: number, value: T): Record<string, T> =>
  Object.fromEntries(Array.from({ length }, (_, i) => [`n${i}`, value]))

function isTaken(exits: Record<string, unknown>, devices: Record<string, unknown>): boolean {
  const machine = { vcpus: 1, deviceNs: 0, balloonBytes: 0, exits, devices }
  return MESSAGE.safeParse({ figures: 1, guests: { a: { ...FIGURES, machine } },
    process: { memoryBytes: 1, cpuNs: 1, cells: 1 } }).success
}

test('a machine has as many counters as ours have, and no more', () => {
  assert.ok(isTaken(many(64, 1), many(16, many(34, 1))))
  assert.ok(!isTaken(many(129, 1), {}))
  assert.ok(!isTaken({}, many(129, {})))
  assert.ok(!isTaken({}, { net0: many(129, 1) }))
  assert.ok(!isTaken({ KVM_EXIT_IO: -1 }, {}))
})
