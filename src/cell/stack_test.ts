// cell/stack_test.ts: several cells on several pCPUs: where they are placed, what they get, how they end.
//
// Ratios of accounts have wide margins: whatever else runs on the machine takes its part of each window.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../base/errors.ts'
import { DEFAULT_TERMS, type Terms } from '../sched/node.ts'
import { HYPERCALL_NAMES } from './hypercalls.ts'
import { Pools } from './pools.ts'
import { loadPreemptible } from './preemptible.ts'
import { Stack, type Ended, type Member, type StackOptions } from './stack.ts'
import { wishes } from './wishes.ts'

const KILL = { kind: 'signal', signal: 9 } as const
const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))
const loaded = new Map(['exit', 'hello', 'nap', 'sleep', 'spin', 'trap'].map((name) =>
  [name, loadPreemptible(guest(name))]))

const terms = (more: Partial<Terms>): Terms => ({ ...DEFAULT_TERMS, ...more })

function member(name: string, [program, ...args]: [string, ...string[]], more: Partial<Member> = {}): Member {
  return {
    name, executable: loaded.get(program)!, grants: { args: [program, ...args], env: [] }, calls: undefined,
    trace: false, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)), terms: DEFAULT_TERMS,
    label: '', ...more,
  }
}

const spin = (name: string, more: Partial<Member> = {}): Member => member(name, ['spin'], more)

type Cells = { ids: number[]; ended: Promise<Ended>[] }

/** A stack while `body` runs, and what starts cells where they are planned. */
async function withStack(
  options: Partial<StackOptions>, body: (stack: Stack, start: (...members: Member[]) => Cells) => Promise<void>,
): Promise<void> {
  const stack = new Stack({ pcpus: 1, quantumNs: 1e6, ...options })
  const startAll = (...members: Member[]): Cells => {
    const places = stack.plan(members)
    const started = members.map((one, i) => stack.start(one, places[i]!))
    // Those that are still running when the stack is closed never end.
    for (const { ended } of started) ended.catch(() => {})
    return { ids: started.map(({ id }) => id), ended: started.map(({ ended }) => ended) }
  }
  try {
    await body(stack, startAll)
  } finally {
    await stack.close()
  }
}

/** What each of the cells ran for, in nanoseconds, in a window of `ms` that begins when all of them have run. */
async function ran(stack: Stack, ids: number[], ms: number): Promise<number[]> {
  let before = await stack.figures()
  while (!ids.every((id) => (before.get(id)?.stints ?? 0) > 1 || before.get(id)?.throttledBy !== undefined)) {
    await sleep(10)
    before = await stack.figures()
  }
  await sleep(ms)
  const after = await stack.figures()
  return ids.map((id) => after.get(id)!.runningNs - before.get(id)!.runningNs)
}

function between(value: number, low: number, high: number): void {
  assert.ok(value >= low && value <= high, `${value} isn't between ${low} and ${high}`)
}

test('cells end as they say, with what became of their time', { timeout: 60_000 }, async () => {
  await withStack({ pcpus: 2 }, async (_, start) => {
    const { ended } = start(member('a', ['exit', 'now', '7']), member('b', ['sleep', '50']),
      member('c', ['trap', 'divide']))
    const [a, b, c] = await Promise.all(ended)
    assert.deepEqual([a!.outcome, b!.outcome], [{ kind: 'exit', code: 7 }, { kind: 'exit', code: 0 }])
    assert.ok(c!.outcome.kind === 'trap' && /divide by zero/.test(c!.outcome.reason))
    assert.ok(b!.figures.waitingNs >= 50e6 && b!.usage.hypercalls['poll_oneoff']! >= 1)
    for (const { figures: { ageNs, runningNs, runnableNs, waitingNs, throttledNs } } of [a!, b!, c!]) {
      assert.ok(Math.abs(runningNs + runnableNs + waitingNs + throttledNs - ageNs) < 1000)
    }
  })
})

test('a cell ends, and is told of, beside one that never leaves', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids } = start(spin('hog'))
    await ran(stack, ids, 20)
    for (let i = 0; i < 20; i++) {
      const { ended } = start(member('a', ['exit', 'now', String(i)]))
      assert.deepEqual((await ended[0]!).outcome, { kind: 'exit', code: i })
    }
  })
})

test('a guest that is alone is asked, stopped and given terms at any time', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids: [id], ended } = start(spin('hog'))
    for (let i = 0; i < 100; i++) {
      stack.setTerms(new Map([[id!, terms({ shares: i + 1 })]]))
      await stack.figures()
    }
    const asked = await Promise.all([stack.figures(), stack.figures(), stack.figures()])
    assert.ok(asked.every((one) => one.get(id!)!.ageNs > 0))
    stack.stop(id!, KILL)
    assert.deepEqual((await ended[0]!).outcome, KILL)
    // It is gone: nothing of this is an error.
    stack.stop(id!, KILL)
    stack.setTerms(new Map([[id!, DEFAULT_TERMS]]))
    assert.equal((await stack.figures()).size, 0)
  })
})

test('shares are kept, and figures add up to the age of the cell', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids } = start(spin('one'), spin('three', { terms: terms({ shares: 300 }) }))
    const [one, three] = await ran(stack, ids, 1000)
    between(three! / one!, 2, 4.5)
    const figures = await stack.figures()
    for (const id of ids) {
      const { ageNs, runningNs, runnableNs, waitingNs, throttledNs, waitedFor } = figures.get(id)!
      assert.ok(Math.abs(runningNs + runnableNs + waitingNs + throttledNs - ageNs) < 1000)
      assert.deepEqual(waitedFor.map(([by]) => by), ids.filter((other) => other !== id))
      assert.ok(runnableNs > 0 && throttledNs === 0)
    }
  })
})

test('shares and limits that change count from then on', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids } = start(spin('a'), spin('b'))
    const [a, b] = await ran(stack, ids, 800)
    between(a! / b!, 0.5, 2)
    stack.setTerms(new Map([[ids[0]!, terms({ shares: 900 })], [ids[1]!, terms({ shares: 300 })]]))
    const [more, less] = await ran(stack, ids, 1000)
    between(more! / less!, 1.9, 4.6)
    stack.setTerms(new Map([[ids[0]!, terms({ shares: 900, limit: 0.1 })]]))
    await sleep(200)
    const [held, free] = await ran(stack, ids, 1000)
    between(held! / free!, 0.01, 0.3)
    const { throttledNs, throttledBy } = (await stack.figures()).get(ids[0]!)!
    assert.ok(throttledNs > 0 && throttledBy !== 'its pool')
  })
})

test('a reservation is kept against any shares', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids } = start(spin('half', { terms: terms({ shares: 1, reservation: 0.5 }) }),
      spin('greedy', { terms: terms({ shares: 10_000 }) }))
    const [half, greedy] = await ran(stack, ids, 1000)
    between(half! / greedy!, 0.6, 1.6)
  })
})

test('cells are spread over the pCPUs by what they are due', { timeout: 60_000 }, async () => {
  await withStack({ pcpus: 2 }, async (stack, start) => {
    const members = [spin('a', { terms: terms({ shares: 300 }) }), spin('b'), spin('c'), spin('d')]
    const places = stack.plan(members)
    assert.deepEqual(places.filter((place) => place === places[0]).length, 1, `${places}`)
    const { ids } = start(...members)
    await ran(stack, ids, 50)
    const figures = await stack.figures()
    assert.deepEqual(ids.map((id) => figures.get(id)!.pcpu), places)
    // Reservations go where there is room, whoever runs there.
    const reserves = (reservation: number): Member => spin('r', { terms: terms({ reservation }) })
    const both = stack.plan([reserves(0.6), reserves(0.6)])
    assert.deepEqual(both.toSorted((x, y) => x - y), [0, 1])
  })
})

test('a reservation that no pCPU can keep is refused with the figures', { timeout: 60_000 }, async () => {
  await withStack({ pcpus: 2 }, async (stack, start) => {
    const reserves = (name: string, reservation: number): Member => spin(name, { terms: terms({ reservation }) })
    const refused = (message: RegExp) => (error: unknown): boolean => {
      assert.ok(error instanceof CellarError && error.code === 'RESERVATION_REFUSED', String(error))
      assert.match(error.message, message)
      return true
    }
    const { ids } = start(reserves('a', 0.6), reserves('b', 0.7))
    assert.throws(() => stack.plan([reserves('c', 0.4)]), refused(/reserve 40 % .* "c": .* left is 35 %, of all 60 %/))
    assert.throws(() => stack.plan([reserves('c', 0.3), reserves('d', 0.31)]), refused(/"[cd]"/))
    assert.equal(stack.plan([reserves('c', 0.35)]).length, 1)
    // The same holds for terms that change: all of them, or none.
    const change = (...all: [number, number][]): void =>
      stack.setTerms(new Map(all.map(([id, reservation]) => [id, terms({ reservation })])))
    assert.throws(() => change([ids[0]!, 0.5], [ids[1]!, 0.96]), refused(/96 % .* "b"/))
    assert.throws(() => stack.plan([reserves('c', 0.4)]), refused(/35 %/))
    change([ids[0]!, 0.5])
    assert.equal(stack.plan([reserves('c', 0.4)]).length, 1)
  })
})

test('Stack.admit spreads cells that come one by one, and keeps what was promised', { timeout: 60_000 }, async () => {
  await withStack({ pcpus: 2, pools: new Map([['p', terms({ reservation: 0.3, limit: 1 })]]) }, async (stack) => {
    const begin = (one: Member): { id: number; ended: Promise<Ended>; pcpu: number } => {
      const pcpu = stack.admit(one)
      const started = { ...stack.start(one, pcpu), pcpu }
      started.ended.catch(() => {})
      return started
    }
    const nap = (more: Partial<Terms>, pool?: string): Member =>
      member('nap', ['sleep', '3600000'], { terms: terms(more), pool })
    const refused = (message: RegExp) => (error: unknown): boolean =>
      error instanceof CellarError && error.code === 'RESERVATION_REFUSED' && message.test(error.message)
    const [heavy, ...light] = [begin(nap({ shares: 300 })), begin(nap({})), begin(nap({})), begin(nap({}))]
    assert.ok(light.every(({ pcpu }) => pcpu !== heavy!.pcpu))
    const [a, b] = [begin(nap({ reservation: 0.8 })), begin(nap({ reservation: 0.5 }))]
    assert.notEqual(a!.pcpu, b!.pcpu)
    // One pCPU has 0.45 left, but 0.3 of what is left is the pool's.
    assert.throws(() => stack.admit(nap({ reservation: 0.4 })), refused(/30 %/))
    assert.throws(() => stack.admit(nap({ reservation: 0.46 }, 'p')), refused(/45 %/))
    assert.equal(stack.admit(nap({ reservation: 0.3 }, 'p')), b!.pcpu)
    stack.stop(a!.id, KILL)
    await a!.ended
    assert.equal(stack.admit(nap({ reservation: 0.9 })), a!.pcpu)
    stack.setTerms(new Map([[b!.id, terms({ reservation: 0.1 })]]))
    assert.equal(stack.admit(nap({ reservation: 0.9 })), a!.pcpu)
    assert.equal(stack.admit(nap({})), a!.pcpu, 'it has fewer shares')
  })
})

test('an executable that many cells have is forgotten and posted again', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const one = member('a', ['exit', 'now', '4'])
    for (let i = 0; i < 3; i++) {
      const { ended } = start(one, one)
      for (const end of ended) assert.deepEqual((await end).outcome, { kind: 'exit', code: 4 })
      stack.forget(one.executable)
    }
  })
})

test('a stack whose thread is gone says so once, with a remote console as with none', { timeout: 60_000 }, async () => {
  const failures: unknown[] = []
  const said: string[] = []
  const on = { failed: (error: unknown) => { failures.push(error) },
    output: (_: number, channel: number, bytes: Uint8Array) => { said.push(`${channel} ${Buffer.from(bytes)}`) } }
  await withStack({ pcpus: 2, on }, async (_, start) => {
    const { ended } = start(member('a', ['hello'], { remote: { stdin: false }, label: undefined }))
    await ended[0]
    assert.deepEqual(said, ['1 Hello from a cell\n'])
    await assert.rejects(start(member('bad', ['hello'], { grants: undefined as never })).ended[0]!, TypeError)
    assert.equal(failures.length, 1)
  })
  assert.equal(failures.length, 1, 'a stack that is closed has no failures')
})

test('Pools tells parts anew when they have changed, by what is wanted', () => {
  const pools = new Pools(2)
  const told = pools.set('p', terms({ limit: 1 }))
  assert.deepEqual(told.map(({ terms: { limit } }) => limit), [0.5, 0.5])
  assert.equal(pools.isBounded, false)
  pools.count('p', 0, terms({ shares: 300 }), 1)
  pools.count('p', 1, terms({ shares: 100 }), 1)
  assert.equal(pools.isBounded, true)
  assert.deepEqual(pools.split().map(({ terms: { shares } }) => shares), [75, 25])
  assert.deepEqual(pools.split(), [], 'nothing has changed')
  pools.see(0, [{ pool: 'p', ageNs: 1000, wantedNs: 900 }])
  pools.see(1, [{ pool: 'p', ageNs: 1000, wantedNs: 0 }])
  const [busy, idle] = pools.split().map(({ terms: { limit } }) => limit)
  assert.ok(busy! > 0.8 && busy! + idle! <= 1.001)
  assert.equal(pools.isIdle, false)
  pools.see(0, [{ pool: 'p', ageNs: 2000, wantedNs: 900 }])
  assert.equal(pools.isIdle, true)
  pools.count('p', 0, terms({ shares: 300 }), -1)
  pools.count('p', 1, terms({ shares: 100 }), -1)
  assert.equal(pools.isBounded, false)
})

test('a pool has no more than its limit on all pCPUs together, and more when it is given more', { timeout: 60_000 },
  async () => {
    const pools = new Map([['batch', terms({ limit: 0.4 })]])
    await withStack({ pcpus: 2, pools }, async (stack, start) => {
      const { ids } = start(spin('a', { pool: 'batch' }), spin('b', { pool: 'batch' }))
      const [a, b] = await ran(stack, ids, 1000)
      const figures = await stack.figures()
      assert.deepEqual(ids.map((id) => figures.get(id)!.pcpu).toSorted((x, y) => x - y), [0, 1])
      between((a! + b!) / 1e9, 0.05, 0.6)
      assert.ok(ids.every((id) => figures.get(id)!.throttledNs > 0))
      stack.setPool('batch', terms({ limit: 0.04 }))
      await ran(stack, ids, 300)
      const [less, least] = await ran(stack, ids, 1000)
      assert.ok((less! + least!) * 3 < a! + b!, `${less} and ${least} after ${a} and ${b}`)
    })
  })

test('what a limit holds back is stopped at once', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids, ended } = start(spin('held', { terms: terms({ limit: 0.0001 }) }))
    while ((await stack.figures()).get(ids[0]!)?.throttledBy !== 'itself') await sleep(10)
    stack.stop(ids[0]!, KILL)
    assert.deepEqual((await ended[0]!).outcome, KILL)
  })
})

test('a cell that is stopped as soon as it is started ends so', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ids, ended } = start(...Array.from({ length: 10 }, (_, i) => spin(`${i}`)))
    for (const id of ids) stack.stop(id, KILL)
    for (const { outcome } of await Promise.all(ended)) assert.deepEqual(outcome, KILL)
  })
})

test('a timeout ends a cell with 124, be it alone, among others or asleep', { timeout: 60_000 }, async () => {
  await withStack({}, async (_, start) => {
    const timeoutNs = 50e6
    const alone = start(spin('alone', { timeoutNs }))
    assert.deepEqual((await alone.ended[0]!).outcome, { kind: 'exit', code: 124 })
    const { ended } = start(spin('hog'), spin('a', { timeoutNs }), member('b', ['sleep', '3600000'], { timeoutNs }),
      member('c', ['exit', 'now', '3'], { timeoutNs: 3600e9 }))
    const outcomes = await Promise.all(ended.slice(1).map(async (one) => (await one).outcome))
    assert.deepEqual(outcomes, [124, 124, 3].map((code) => ({ kind: 'exit', code })))
  })
})

test('a cell that can not be started is told of, and the others go on', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const small = { args: ['hello'], env: [], memoryPagesMax: 1 }
    const { ended, ids } = start(member('small', ['hello'], { grants: small }), spin('hog'))
    await assert.rejects(ended[0]!, (error) => error instanceof CellarError && error.code === 'MEMORY_BELOW_MINIMUM')
    const [, ran1] = await ran(stack, [ids[1]!, ids[1]!], 50)
    assert.ok(ran1! > 0)
    assert.equal((await stack.figures()).size, 1)
  })
})

test('a bug on a pCPU is told to all, and nobody waits for its figures', { timeout: 60_000 }, async () => {
  await withStack({}, async (stack, start) => {
    const { ended } = start(spin('hog'), member('bad', ['hello'], { grants: undefined as never }))
    const asked = stack.figures()
    for (const one of ended) await assert.rejects(one, TypeError)
    await asked
    assert.equal((await stack.figures()).size, 0)
  })
})

test('a stack has as many pCPUs as it is given, and by default as there are processors', async () => {
  await withStack({ pcpus: 3 }, async (stack) => { assert.equal(stack.pcpus, 3) })
  await withStack({ pcpus: undefined }, async (stack) => { assert.ok(stack.pcpus >= 1) })
})

test('wishes groups cells by their pools', () => {
  const pools = new Map([['p', terms({ limit: 0.5 })], ['empty', DEFAULT_TERMS]])
  const all = wishes([{ terms: DEFAULT_TERMS }, { terms: terms({ shares: 7 }), pool: 'p', demand: 0.2 }], pools)
  assert.deepEqual(all, [
    { id: '0', terms: DEFAULT_TERMS, demand: 1 },
    { id: 'pool p', terms: terms({ limit: 0.5 }), children: [{ id: '1', terms: terms({ shares: 7 }), demand: 0.2 }] },
    { id: 'pool empty', terms: DEFAULT_TERMS, children: [] },
  ])
})

test('pools and cells are not promised more than there is, all together', async () => {
  const terms = { shares: 100, reservation: 0.6, limit: Infinity }
  const stack = new Stack({ pcpus: 1, quantumNs: 1e6, pools: new Map([['one', terms], ['two', terms]]) })
  try {
    assert.throws(() => stack.plan([]), { code: 'RESERVATION_REFUSED' })
  } finally {
    await stack.close()
  }
})
