// cell/alarm_test.ts: the alarm of a pCPU: it rings a thread that is busy and one that sleeps, and wakes its timer as
// seldom as it can.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { afterEach, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { nowNs } from '../base/stopwatch.ts'
import { Alarm, announce, newBell } from './alarm.ts'
import { newControl } from './pcpu.ts'
import type { Timer } from './timer_worker.ts'

// Words of alarm.ts, which nobody else looks at but translated code at the first.
const PREEMPT = 0
const ARMED = 2
const POKE = 0
const SLEEPS = 1
const SLEEPS_UNTIL = 2

const MS = 1e6

type Rig = { alarms: Alarm[]; controls: Int32Array[]; bell: Int32Array }

function rigOf(pcpus: number): Rig & { timer: Timer } {
  const controls = Array.from({ length: pcpus }, () => newControl().buffer as unknown as SharedArrayBuffer)
  const bell = newBell()
  const words = controls.map((control) => new Int32Array(control))
  return { alarms: words.map((control) => new Alarm(control, bell)), controls: words, bell: new Int32Array(bell),
    timer: { controls, bell } }
}

const workers: Worker[] = []
afterEach(async () => { for (const worker of workers.splice(0)) await worker.terminate() })

/** pCPUs' alarms with a timer that runs and sleeps. */
async function ticking(pcpus = 1): Promise<Rig> {
  const rig = rigOf(pcpus)
  const worker = new Worker(new URL('./timer_worker.ts', import.meta.url), { workerData: rig.timer })
  workers.push(worker)
  await once(worker, 'online')
  await until(() => Atomics.load(rig.bell, SLEEPS) === 1)
  return rig
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => { setTimeout(resolve, 1) })
}

test('a thread that never leaves its work is rung, at its time and not before', { timeout: 20_000 }, async () => {
  const { alarms: [alarm], controls: [control] } = await ticking()
  for (const ms of [0, 0.2, 3, 20]) {
    alarm!.clear()
    const at = nowNs() + ms * MS
    alarm!.arm(at)
    while (Atomics.load(control!, PREEMPT) === 0);
    assert.ok(nowNs() >= at, `rung ${at - nowNs()} ns too early`)
  }
})

test('a thread that sleeps in its event loop is woken, again and again', { timeout: 20_000 }, async () => {
  const { alarms: [alarm] } = await ticking()
  for (const ms of [0, 0.2, 3, 20]) {
    const at = nowNs() + ms * MS
    await new Promise<void>((resolve) => { alarm!.wakeAt(at, resolve) })
    assert.ok(nowNs() >= at)
  }
})

test('a wait may be made shorter, and is one wait', { timeout: 20_000 }, async () => {
  const { alarms: [alarm] } = await ticking()
  const woken: string[] = []
  await new Promise<void>((resolve) => {
    alarm!.wakeAt(nowNs() + 3600e9, () => { woken.push('first'); resolve() })
    alarm!.wakeAt(nowNs() + MS, () => { woken.push('second'); resolve() })
  })
  await new Promise((resolve) => { setTimeout(resolve, 20) })
  assert.deepEqual(woken, ['first'])
})

test('a deadline that is taken back rings nobody', { timeout: 20_000 }, async () => {
  const { alarms, controls } = await ticking(2)
  alarms[0]!.arm(nowNs() + 5 * MS)
  alarms[0]!.arm(Infinity)
  // The timer has been awake at a later time than that.
  alarms[1]!.arm(nowNs() + 10 * MS)
  await until(() => Atomics.load(controls[1]!, PREEMPT) === 1)
  assert.equal(Atomics.load(controls[0]!, PREEMPT), 0)
})

test('each pCPU is rung at its own time', { timeout: 20_000 }, async () => {
  const { alarms, controls } = await ticking(3)
  const ats = [30, 10, 20].map((ms) => nowNs() + ms * MS)
  alarms.forEach((alarm, i) => alarm.arm(ats[i]!))
  const rungAt = ats.map(() => 0)
  await until(() => {
    controls.forEach((control, i) => { if (Atomics.load(control, PREEMPT) === 1) rungAt[i] ||= nowNs() })
    return rungAt.every((at) => at > 0)
  })
  rungAt.forEach((at, i) => assert.ok(at >= ats[i]!))
})

test('a timer that sleeps is poked by an earlier deadline only', () => {
  const { alarms: [alarm], controls: [control], bell } = rigOf(1)
  const sleepsUntil = (atNs: number): void => {
    Atomics.store(bell, SLEEPS, 1)
    Atomics.store(bell, SLEEPS_UNTIL, Math.ceil(atNs / 1e3) | 0)
  }
  const pokes = (): number => Atomics.load(bell, POKE)
  const now = nowNs()
  sleepsUntil(now + 10 * MS)
  alarm!.arm(now + 11 * MS)
  alarm!.arm(now + 100e9)
  assert.equal(pokes(), 0)
  alarm!.arm(now + 9 * MS)
  assert.equal(pokes(), 1)
  alarm!.arm(now + 9 * MS)
  assert.equal(pokes(), 1, 'the same again is nothing new')
  alarm!.arm(Infinity)
  assert.deepEqual([pokes(), Atomics.load(control!, ARMED)], [1, 0])
  alarm!.arm(Infinity)
  // One that is awake may have looked already.
  Atomics.store(bell, SLEEPS, 0)
  alarm!.arm(now + 100e9)
  assert.equal(pokes(), 2)
})

test('a deadline is armed again if the timer has rung for the same one', () => {
  const { alarms: [alarm], controls: [control], bell } = rigOf(1)
  const at = nowNs() + 5 * MS
  alarm!.arm(at)
  Atomics.store(control!, ARMED, 0)
  alarm!.arm(at)
  assert.equal(Atomics.load(control!, ARMED), 1)
  assert.equal(Atomics.load(bell, POKE), 2)
})

test('a deadline beyond what the words can tell apart rings nobody yet', { timeout: 20_000 }, async () => {
  const { alarms, controls } = await ticking(2)
  alarms[0]!.arm(nowNs() + 3600e9 * 24 * 365)
  alarms[1]!.arm(nowNs() + 5 * MS)
  await until(() => Atomics.load(controls[1]!, PREEMPT) === 1)
  assert.equal(Atomics.load(controls[0]!, PREEMPT), 0)
})

test('who is posted a message must leave, and has mail until it has read as many', () => {
  const { alarms: [alarm], controls: [control] } = rigOf(1)
  assert.equal(alarm!.hasMail, false)
  announce(control!)
  announce(control!)
  assert.equal(Atomics.load(control!, PREEMPT), 1)
  alarm!.clear()
  assert.deepEqual([Atomics.load(control!, PREEMPT), alarm!.hasMail], [0, true])
  alarm!.messageRead()
  assert.equal(alarm!.hasMail, true)
  alarm!.messageRead()
  assert.equal(alarm!.hasMail, false)
  // A message may be read before it is announced.
  alarm!.messageRead()
  assert.equal(alarm!.hasMail, false)
  announce(control!)
  assert.equal(alarm!.hasMail, false)
})
