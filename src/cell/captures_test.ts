// cell/captures_test.ts: cells of a stack that are stopped and go on: in place, copied, on another pCPU.
//
// ticker (guests/ticker.c) says a count and a nonce that it has in memory only, and checks its memory as it goes: one
// that was begun anew, or got somebody else's memory, is found out.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { newGrant, type Asked } from '../services/lifecycle/lifecycle.ts'
import type { Member } from './stack.ts'
import { member, withListened } from './stack_test_support.ts'

const KILL = { kind: 'signal', signal: 9 } as const
const LIMIT = { timeout: 60_000 }

type Ticks = { readonly numbers: readonly number[]; readonly nonces: ReadonlySet<string> }

/** What a ticker has said, the lines that are complete. */
function ticksOf(text: string): Ticks {
  const lines = text.split('\n').slice(0, -1).map((line) => {
    const match = /^tick (\d+) nonce ([0-9a-f]{16}) /.exec(line)
    assert.ok(match !== null, `"${line}" is no tick`)
    return match
  })
  return { numbers: lines.map(([, number]) => Number(number)), nonces: new Set(lines.map(([, , nonce]) => nonce!)) }
}

/** It has counted without a gap from `first`, with one nonce: that. */
function counted(text: string, first = 1): string {
  const { numbers, nonces } = ticksOf(text)
  assert.deepEqual(numbers, numbers.map((_, i) => first + i))
  assert.equal(nonces.size, 1)
  return [...nonces][0]!
}

const ticks = (count: number) => (text: string): boolean => text.split('\n').length > count

/** Computes in `mib` of memory, and says a tick each `ms`. */
const busy = (ms: number, count = 0, mib = 1, more: Partial<Member> = {}): Member =>
  member(['ticker', `${ms}`, `${count}`, `${mib}`, 'busy'], more)
const idle = (ms: number, count = 0, more: Partial<Member> = {}): Member =>
  member(['ticker', `${ms}`, `${count}`], more)

test('a cell that computes or waits is stopped, and goes on as if nothing had been', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    for (const one of [busy(10), idle(10)]) {
      const { id, ended } = listened.start(one)
      await listened.heard(id, ticks(2))
      for (let i = 0; i < 10; i++) {
        const { frames, memory, phase } = await stack.capture(id)
        assert.ok(frames.length > 0 && memory!.present.length > 0 && phase === 'main')
        const said = listened.said.get(id)
        await sleep(15)
        assert.equal(listened.said.get(id), said)
        stack.goOn(id)
        await sleep(5)
      }
      await listened.heard(id, ticks(30))
      counted(listened.said.get(id)!)
      stack.stop(id, KILL)
      assert.deepEqual((await ended).outcome, KILL)
    }
  })
})

test('cells that compute are moved between pCPUs, and keep their counts, their memory and their figures', LIMIT,
  async () => {
    await withListened(async (listened, stack) => {
      const cells = [busy(5, 100), busy(5, 100, 3), busy(5, 100)].map((one) => listened.start(one, 0))
      for (const { id } of cells) await listened.heard(id, ticks(2))
      let last = await stack.figures()
      for (let i = 1; i <= 12; i++) {
        for (const { id } of cells) await stack.move(id, i % 2).catch((error: Error & { code?: string }) => {
          assert.equal(error.code, 'CAPTURE_ENDED')
        })
        const figures = await stack.figures()
        for (const [id, { pcpu, runningNs, ageNs }] of figures) {
          assert.equal(pcpu, i % 2)
          assert.ok(runningNs >= last.get(id)!.runningNs && ageNs >= last.get(id)!.ageNs)
        }
        last = figures
        await sleep(10)
      }
      for (const { id, ended } of cells) {
        const { outcome, usage, figures } = await ended
        assert.deepEqual(outcome, { kind: 'exit', code: 0 })
        assert.equal(ticksOf(listened.said.get(id)!).numbers.length, 100)
        counted(listened.said.get(id)!)
        const { ageNs, runningNs, runnableNs, waitingNs, throttledNs, pausedNs } = figures
        assert.ok(Math.abs(runningNs + runnableNs + waitingNs + throttledNs + pausedNs - ageNs) < 1e6)
        assert.ok(Math.abs(usage.cpuNs - runningNs) < 1e8, `${usage.cpuNs} ${runningNs}`)
        assert.ok(usage.hypercalls['fd_write']! >= 100 && usage.hypercalls['fd_write']! < 150)
      }
    })
  })

test('a cell that is moved asleep wakes when it would have', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(idle(300), 0)
    await listened.heard(id, ticks(1))
    const from = performance.now()
    for (let i = 1; i <= 8; i++) {
      await stack.move(id, i % 2)
      await sleep(100)
    }
    await listened.heard(id, ticks(4))
    const took = performance.now() - from
    assert.ok(took > 800 && took < 1600, `three ticks took ${took} ms`)
    counted(listened.said.get(id)!)
  })
})

test('a cell that was paused is captured, copied and moved, and stays paused', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(busy(5), 0)
    await listened.heard(id, ticks(3))
    await stack.pause(id)
    const { numbers } = ticksOf(listened.said.get(id)!)
    await stack.move(id, 1)
    const [child] = await stack.fork(id, [busy(5)])
    await listened.heard(child!.id, ticks(3))
    assert.equal(ticksOf(listened.said.get(child!.id)!).numbers[0], numbers.length + 1)
    assert.deepEqual(ticksOf(listened.said.get(id)!).numbers, numbers)
    await stack.resume(id)
    await listened.heard(id, ticks(numbers.length + 3))
    counted(listened.said.get(id)!)
  })
})

test('copies of a cell begin where it was, on all pCPUs, and each goes its own way', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(busy(10, 0, 4), 0)
    await listened.heard(id, ticks(3))
    for (const count of [1, 2, 5]) {
      const created = new Set<number>()
      const children = await stack.fork(id, Array.from({ length: count }, () => busy(10, 0, 4)), {
        created: (child) => { created.add(child) } })
      assert.deepEqual([children.length, created.size], [count, count])
      if (count > 1) assert.equal(new Set(children.map(({ pcpu }) => pcpu)).size, 2)
      for (const child of children) {
        await listened.heard(child.id, ticks(4))
        const text = listened.said.get(child.id)!
        const nonce = counted(text, ticksOf(text).numbers[0])
        assert.equal(nonce, counted(listened.said.get(id)!))
        assert.ok(ticksOf(text).numbers[0]! > 3)
        stack.stop(child.id, KILL)
        const { outcome, usage } = await child.ended
        assert.deepEqual(outcome, KILL)
        assert.ok(usage.wallNs < 20e9 && usage.hypercalls['fd_write']! < 2000)
      }
    }
    await listened.heard(id, ticks(ticksOf(listened.said.get(id)!).numbers.length + 3))
    counted(listened.said.get(id)!)
  })
})

test('a hundred copies of a cell run, and count on from where it was', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(busy(20, 0, 16), 0)
    await listened.heard(id, ticks(3))
    const children = await stack.fork(id, Array.from({ length: 100 }, () => busy(20, 0, 16)))
    for (const child of children) {
      await listened.heard(child.id, ticks(2))
      const text = listened.said.get(child.id)!
      counted(text, ticksOf(text).numbers[0])
      stack.stop(child.id, KILL)
    }
    for (const { ended } of children) assert.deepEqual((await ended).outcome, KILL)
  })
})

test('input that was not read, output and the end of input follow a cell that is moved', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id, ended } = listened.start(member(['cat'], { remote: { stdin: true } }), 0)
    let given = ''
    for (let i = 1; i <= 40; i++) {
      const text = `line ${i}\n`
      given += text
      const moved = stack.move(id, i % 2)
      stack.input(id, new Uint8Array(Buffer.from(text)))
      await moved
      if (i % 8 === 0) await listened.heard(id, (said) => said === given)
    }
    stack.input(id, null)
    assert.deepEqual((await ended).outcome, { kind: 'exit', code: 0 })
    assert.equal(listened.said.get(id), given)
  })
})

test('a cell that floods is moved: nothing is lost, repeated or out of order', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id, ended } = listened.start(member(['flood', '4096']), 0)
    let moves = 0
    // Not without a pause: it would get nowhere.
    while (await stack.move(id, (moves + 1) % 2).then(() => true, () => false)) {
      moves++
      await sleep(10)
    }
    assert.deepEqual((await ended).outcome, { kind: 'exit', code: 0 })
    assert.ok(moves >= 3)
    assert.ok(listened.said.get(id) === `flood${'.'.repeat(58)}\n`.repeat(65_536))
  })
})

test('a cell that is stopped ends, whatever is being done with it', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const held = listened.start(busy(5), 0)
    await listened.heard(held.id, ticks(2))
    await stack.capture(held.id)
    const waits = assert.rejects(stack.move(held.id, 1), { code: 'CAPTURE_ENDED' })
    stack.stop(held.id, KILL)
    assert.deepEqual((await held.ended).outcome, KILL)
    await waits
    stack.goOn(held.id)
    for (let i = 0; i < 20; i++) {
      const { id, ended } = listened.start(busy(5), 0)
      await listened.heard(id, ticks(1))
      const moved = i % 2 === 0 ? stack.move(id, 1) : stack.fork(id, [busy(5)])
      await sleep(i / 4)
      stack.stop(id, KILL)
      assert.deepEqual((await ended).outcome, KILL)
      const children = await moved.catch(() => [])
      for (const child of children ?? []) {
        stack.stop(child.id, KILL)
        await child.ended
      }
      await assert.rejects(stack.capture(id), { code: 'CAPTURE_ENDED' })
    }
    // Nobody is left over on any pCPU.
    await sleep(50)
    assert.equal((await stack.figures()).size, 0)
  })
})

test('what a cell asks its host is answered, and asked again where it was moved meanwhile', LIMIT, async () => {
  const asked: [number, string, number][] = []
  const on = { asks: (id: number, { what }: Asked, serial: number) => { asked.push([id, what, serial]) } }
  await withListened(async (listened, stack) => {
    const lifecycle = newGrant({ id: 'id-1', name: 'first' })
    const { id, ended } = listened.start(member(['forkme', '2', 'base'], { lifecycle }), 0)
    const wait = async (count: number): Promise<[number, string, number]> => {
      while (asked.length < count) await sleep(2)
      return asked[count - 1]!
    }
    const first = await wait(1)
    assert.deepEqual(first.slice(0, 2), [id, 'fork'])
    await stack.move(id, 1)
    assert.deepEqual(await wait(2), first, 'the same, under the same serial')
    const [child] = await stack.fork(id, [member(['forkme'], { lifecycle: newGrant({ id: 'id-2', name: 'second',
      event: 'fork', number: 1 }) })])
    stack.told(id, first[2], 0)
    assert.equal((await wait(3))[1], 'snapshot')
    stack.told(id, asked[2]![2], 0)
    assert.deepEqual((await ended).outcome, { kind: 'exit', code: 0 })
    assert.deepEqual((await child!.ended).outcome, { kind: 'exit', code: 0 })
    assert.match(listened.said.get(id)!, /^parent first id-1 generation \w+ event none 0 nonce \w+ drawn \w+\nsaved/)
    assert.match(listened.said.get(child!.id)!, /^child 1 second id-2 generation \w+ event fork 1 nonce \w+ drawn/)
    const words = [id, child!.id].map((one) => listened.said.get(one)!.split(/\s+/))
    const after = (list: string[], word: string): string => list[list.indexOf(word) + 1]!
    assert.equal(after(words[0]!, 'nonce'), after(words[1]!, 'nonce'))
    for (const word of ['generation', 'drawn']) assert.notEqual(after(words[0]!, word), after(words[1]!, word))
  }, { on })
})

test('a cell that is given up ends as moved, and goes on elsewhere from what was left of it', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id, ended } = listened.start(busy(5), 0)
    await listened.heard(id, ticks(3))
    const state = await stack.capture(id)
    await stack.giveUp(id)
    assert.equal((await ended).outcome.kind, 'moved')
    assert.equal((await stack.figures()).size, 0)
    const { numbers } = ticksOf(listened.said.get(id)!)
    const again = listened.start({ ...busy(5), from: { state } }, 1)
    await listened.heard(again.id, ticks(5))
    counted(listened.said.get(again.id)!, numbers.length + 1)
  })
})

test('a copy that has no place is refused, and one that can not be made ends so: the cell goes on', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const { id } = listened.start(busy(5), 0)
    await listened.heard(id, ticks(2))
    const reserves = (reservation: number): Member => busy(5, 0, 1, { terms: { shares: 1, reservation, limit: 1 } })
    await assert.rejects(stack.fork(id, [reserves(0.9), reserves(0.9), reserves(0.9)]),
      { code: 'RESERVATION_REFUSED' })
    const small = busy(5)
    const [child] = await stack.fork(id, [{ ...small, grants: { ...small.grants, memoryPagesMax: 1 } }])
    await assert.rejects(child!.ended)
    const before = ticksOf(listened.said.get(id)!).numbers.length
    await listened.heard(id, ticks(before + 3))
    counted(listened.said.get(id)!)
  })
})

test('a cell that nothing can go on with ends, and nobody waits for it', LIMIT, async () => {
  const continuations = { of(): never { throw new CellarError('SNAPSHOT_FOREIGN', ['it is too large']) } }
  await withListened(async (listened, stack) => {
    const { id, ended } = listened.start(busy(5), 0)
    await listened.heard(id, ticks(2))
    await assert.rejects(stack.fork(id, [busy(5)]), { code: 'SNAPSHOT_FOREIGN' })
    assert.deepEqual((await ended).outcome, { kind: 'signal', signal: 9 })
  }, { continuations })
})

test('cells that start on one pCPU come to be spread by their loads, and none is disturbed by it', LIMIT, async () => {
  await withListened(async (listened, stack) => {
    const cells = Array.from({ length: 4 }, () => listened.start(busy(20), 0))
    for (const { id } of cells) await listened.heard(id, ticks(2))
    let moves = 0
    for (let i = 0; i < 12 && moves < 2; i++) {
      await sleep(250)
      moves += await stack.rebalance()
    }
    assert.equal(moves, 2)
    const places = [...(await stack.figures()).values()].map(({ pcpu }) => pcpu)
    assert.deepEqual(places.toSorted(), [0, 0, 1, 1])
    for (let i = 0; i < 4; i++) {
      await sleep(250)
      assert.equal(await stack.rebalance(), 0, 'they are even')
    }
    for (const { id } of cells) counted(listened.said.get(id)!)
  })
})
