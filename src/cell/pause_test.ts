// cell/pause_test.ts: cells that their owner keeps from running.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { member, withListened } from './stack_test_support.ts'

const KILL = { kind: 'signal', signal: 9 } as const
const LIMIT = { timeout: 60_000 }

const lines = (text: string): number => text.split('\n').length - 1

test('a cell that spins and is paused has no part of its pCPU, and all of it when it is resumed', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(member(['spin', 'here']))
    await listened.heard(id, (text) => text === 'here\n')
    assert.equal(await stack.pause(id), true)
    const before = (await stack.figures()).get(id)!
    await sleep(100)
    const after = (await stack.figures()).get(id)!
    assert.equal(after.runningNs, before.runningNs)
    assert.ok(after.pausedNs - before.pausedNs >= 90e6)
    assert.equal(await stack.resume(id), true)
    await sleep(50)
    const resumed = (await stack.figures()).get(id)!
    assert.ok(resumed.runningNs > after.runningNs)
    const { ageNs, runningNs, runnableNs, waitingNs, throttledNs, pausedNs } = resumed
    assert.ok(Math.abs(runningNs + runnableNs + waitingNs + throttledNs + pausedNs - ageNs) < 1000)
  })
})

test('a cell that is paused asleep sleeps on, and what woke it is remembered', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(member(['ticker', '20', '0']))
    await listened.heard(id, (text) => lines(text) >= 3)
    await stack.pause(id)
    const said = listened.said.get(id)!
    await sleep(150)
    assert.equal(listened.said.get(id), said)
    await stack.resume(id)
    await listened.heard(id, (text) => lines(text) >= lines(said) + 3)
  })
})

test('a cell is paused before it has begun, and input that comes meanwhile is not lost', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id, ended } = listened.start(member(['cat'], { remote: { stdin: true } }))
    const paused = stack.pause(id)
    stack.input(id, new Uint8Array(Buffer.from('hello')))
    stack.input(id, null)
    assert.equal(await paused, true)
    await sleep(50)
    assert.equal(listened.said.get(id), undefined)
    await stack.resume(id)
    assert.deepEqual([(await ended).outcome, listened.said.get(id)], [{ kind: 'exit', code: 0 }, 'hello'])
    assert.equal(await stack.pause(id), false, 'it has ended')
    assert.equal(await stack.resume(id), false)
  })
})

test('a cell that is paused is stopped at once, be it spinning or asleep', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    for (const one of [['spin', 'x'], ['sleep', '3600000']] as [string, string][]) {
      const { id, ended } = listened.start(member(one))
      await sleep(30)
      await stack.pause(id)
      stack.stop(id, KILL)
      const { outcome, figures } = await ended
      assert.deepEqual(outcome, KILL)
      assert.ok(figures.pausedNs > 0)
    }
  })
})

test('terms of a cell that is paused change, and count when it is resumed', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(member(['spin', 'x']), 0)
    await listened.heard(id, (text) => text.length > 0)
    await stack.pause(id)
    stack.setTerms(new Map([[id, { ...DEFAULT_TERMS, limit: 0.01 }]]))
    await stack.resume(id)
    while ((await stack.figures()).get(id)!.throttledNs === 0) await sleep(10)
    await stack.pause(id)
    const { throttledNs } = (await stack.figures()).get(id)!
    await sleep(50)
    assert.equal((await stack.figures()).get(id)!.throttledNs, throttledNs, 'its limit is not what holds it back')
  })
})

test('a cell that can not be captured says why, and goes on', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const calls = [{ call: 'add', with: [1] }]
    const { id } = listened.start({ ...member(['spin', 'x']), calls })
    await assert.rejects(stack.capture(id), (error) => error instanceof CellarError &&
      error.code === 'CAPTURE_IMPOSSIBLE' && /one after another/.test(error.message))
    await assert.rejects(stack.capture(123), { code: 'CAPTURE_ENDED' })
    stack.goOn(id)
    await stack.giveUp(id)
  })
})
