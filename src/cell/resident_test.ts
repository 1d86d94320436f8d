// cell/resident_test.ts: what is kept of a cell while it is between two pCPUs, and who may stop it when.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OUTPUT_PIECE_BYTES } from '../base/limits.ts'
import type { Figures } from './pcpu_worker.ts'
import { ConsoleRecord, Resident, sumOfFigures } from './resident.ts'
import { member } from './stack_test_support.ts'

const resident = (): Resident =>
  new Resident(7, 0, member(['hello']), { created: undefined, resolve: () => {}, reject: () => {} })

test('ConsoleRecord gives a new console what the old one had: output not credited, input not read, its end', () => {
  const record = new ConsoleRecord()
  assert.deepEqual(record.replay(7), [])
  record.output(1, 100)
  record.output(1, 50)
  record.output(2, 10)
  record.credit(1, 100 + OUTPUT_PIECE_BYTES)
  record.credit(2, 10 + OUTPUT_PIECE_BYTES)
  const given = new Uint8Array([1, 2, 3])
  record.input(given)
  given.fill(0)
  record.input(new Uint8Array([4, 5]))
  record.taken(2)
  const input = (...bytes: number[]): object => ({ input: 7, bytes: new Uint8Array(bytes) })
  const owed = { credit: 7, channel: 1, bytes: -50 - OUTPUT_PIECE_BYTES }
  assert.deepEqual(record.replay(7), [owed, input(3), input(4, 5)])
  record.taken(3)
  record.input(null)
  record.hangUp()
  assert.deepEqual(record.replay(7), [owed, { input: 7, bytes: null }, { hangUp: 7 }])
})

test('those who stop a cell take turns, and its end refuses who still waits', async () => {
  const one = resident()
  const order: string[] = []
  const stops = async (name: string): Promise<void> => {
    await one.take()
    order.push(name)
  }
  await stops('a')
  const [b, c] = [stops('b'), stops('c')]
  await Promise.resolve()
  assert.deepEqual([order, one.isTaken], [['a'], true])
  one.free()
  await b
  one.gone()
  await assert.rejects(c, { code: 'CAPTURE_ENDED' })
  await assert.rejects(one.take(), { code: 'CAPTURE_ENDED' })
  assert.deepEqual(order, ['a', 'b'])
  const other = resident()
  await other.take()
  other.free()
  assert.equal(other.isTaken, false)
})

test('who waits for a cell to be paused, or to be there, is told when it is, or that it has ended', async () => {
  const one = resident()
  const wait = (is: boolean): Promise<boolean> => new Promise((resolve) => { one.pausing.push({ is, resolve }) })
  const [paused, resumed] = [wait(true), wait(false)]
  one.isNowPaused(true)
  assert.equal(await paused, true)
  // What was said while it moved is so when it is there.
  const [again, last] = [wait(true), wait(false)]
  one.isPaused = true
  one.isPausedThere()
  assert.deepEqual(await Promise.all([again, last, resumed]), [true, true, true])
  const never = wait(false)
  const arrived = new Promise<void>((resolve, reject) => { one.arriving = { pcpu: 1, resolve, reject } })
  one.hasArrived(0, { id: 7, created: true })
  one.gone()
  assert.equal(await never, false)
  await assert.rejects(arrived, { code: 'CAPTURE_ENDED' })
})

test('sumOfFigures adds what was elsewhere, and keeps what is now', () => {
  const figures = (n: number, waitedFor: Figures['waitedFor']): Figures => ({ id: 7, ageNs: 10 * n, runningNs: n,
    runnableNs: n, waitingNs: n, throttledNs: n, pausedNs: n, stints: n, switches: n, preemptions: n,
    memoryBytes: n, waitedFor, throttledBy: undefined })
  const now = figures(1, [[3, 5], [4, 1]])
  assert.equal(sumOfFigures(now, undefined), now)
  assert.deepEqual(sumOfFigures(now, figures(2, [[4, 9], [3, 2]])),
    { ...figures(3, [[4, 10], [3, 7]]), memoryBytes: 1 })
})
