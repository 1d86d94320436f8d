// cell/dispatcher_test.ts: one pCPU given to one vCPU after the other: turns by themselves, then guests that have them.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import wabt from 'wabt'
import { DEFAULT_TERMS, type Terms } from '../sched/node.ts'
import { InputBuffer, OutputBuffer } from '../services/console/console.ts'
import { Alarm, announce, newBell } from './alarm.ts'
import type { Cell } from './cell.ts'
import { Dispatcher, type ScheduledTurn } from './dispatcher.ts'
import { loadHypercalls } from './hypercalls.ts'
import { runLibrary } from './library.ts'
import type { Pcpu } from './pcpu.ts'
import { loadPreemptible } from './preemptible.ts'
import { cellOf, withScheduledPcpu, type Fixture } from './test_support.ts'

const MS = 1e6
const KILL = { kind: 'signal', signal: 9 } as const
const terms = (more: Partial<Terms>): Terms => ({ ...DEFAULT_TERMS, ...more })
const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))
const loaded = new Map(['cat', 'exit', 'flood', 'hello', 'primes', 'sleep', 'spin'].map((name) =>
  [name, loadPreemptible(guest(name))]))
for (const { hypercalls } of loaded.values()) await loadHypercalls(hypercalls)

/** A cell of guests/ with its turn. */
function cell(pcpu: Pcpu, turn: ScheduledTurn, [name, ...args]: [string, ...string[]], fixture: Fixture = {}): Cell {
  return cellOf(pcpu, loaded.get(name)!, { args: [name, ...args], turn, ...fixture })
}

/** Resolves when the pCPU's timer has fired, whoever runs. */
async function after(dispatcher: Dispatcher, ms: number): Promise<void> {
  await new Promise<void>((resolve) => { dispatcher.after(ms * MS, resolve) })
}

/** A dispatcher that no timer rings for. */
function quiet(): { dispatcher: Dispatcher; control: Int32Array; alarm: Alarm } {
  const control = new Int32Array(new SharedArrayBuffer(64))
  const alarm = new Alarm(control, newBell())
  return { dispatcher: new Dispatcher(alarm, MS), control, alarm }
}

describe('turns', () => {
  test('a turn is one vCPU\'s at a time, and each gets to its end, however they wait and yield', async () => {
    const step = fc.constantFrom('yield', 'park', 'leave')
    await fc.assert(fc.asyncProperty(fc.array(fc.array(step, { maxLength: 8 }), { maxLength: 8 }), async (scripts) => {
      const { dispatcher } = quiet()
      let running: number | undefined
      const own = async (i: number, promise: Promise<void> | undefined): Promise<void> => {
        running = undefined
        await promise
        assert.equal(running, undefined, 'another has the pCPU')
        running = i
      }
      await Promise.all(scripts.map(async (script, i) => {
        const turn = dispatcher.admit()
        await own(i, turn.begin())
        for (const one of script) {
          assert.equal(running, i)
          if (one === 'yield') await own(i, turn.yield())
          else if (one === 'park') {
            setImmediate(() => turn.wake())
            await own(i, turn.park())
          } else {
            turn.leave()
            await own(i, turn.begin())
          }
        }
        running = undefined
        turn.leave()
        turn.end()
        turn.close()
      }))
      assert.deepEqual([dispatcher.queue.current, dispatcher.queue.root.children], [undefined, 0])
    }), { numRuns: 40 })
  })

  test('who has waited goes before who has just had the pCPU', async () => {
    const { dispatcher } = quiet()
    const order: string[] = []
    const [a, b] = [dispatcher.admit(), dispatcher.admit()]
    await Promise.all([
      a.begin().then(async () => {
        order.push('a')
        // Longer than any difference between the two so far.
        const until = performance.now() + 2
        while (performance.now() < until);
        await a.yield()
        order.push('a again')
        a.leave()
      }),
      b.begin().then(() => { order.push('b'); b.leave() }),
    ])
    assert.deepEqual(order, ['a', 'b', 'a again'])
  })

  test('a wake that comes twice, or to who is between two calls, is nothing', async () => {
    const { dispatcher } = quiet()
    const turn = dispatcher.admit()
    turn.wake()
    assert.equal(dispatcher.account(turn.node).runnableNs, 0)
    await turn.begin()
    turn.leave()
    turn.leave()
    turn.wake()
    let isBack = false
    const back = turn.begin().then(() => { isBack = true })
    turn.wake()
    await back
    assert.equal(isBack, true)
    assert.equal(dispatcher.account(turn.node).stints, 2)
    turn.end()
  })

  test('a turn ends while it waits, while it is queued, and before it has begun', async () => {
    const { dispatcher } = quiet()
    const [a, b, c] = [dispatcher.admit(), dispatcher.admit(), dispatcher.admit()]
    await a.begin()
    void b.begin()
    b.end()
    c.end()
    assert.equal(dispatcher.queue.root.children, 1)
    void a.park()
    a.end()
    assert.equal(dispatcher.queue.root.children, 0)
  })

  test('a turn that is paused keeps its place and its wakes until it is let go', async () => {
    const { dispatcher } = quiet()
    const [a, b] = [dispatcher.admit(), dispatcher.admit()]
    const order: string[] = []
    dispatcher.pause(a.node)
    const ran = a.begin().then(async () => {
      order.push('a')
      const parked = a.park()
      setImmediate(() => {
        dispatcher.pause(a.node)
        a.wake()
        setImmediate(() => { order.push('still paused'); dispatcher.unpause(a.node) })
      })
      await parked
      order.push('a again')
      a.leave()
    })
    await b.begin()
    order.push('b')
    b.leave()
    dispatcher.unpause(a.node)
    await ran
    assert.deepEqual(order, ['b', 'a', 'still paused', 'a again'])
    assert.ok(dispatcher.account(a.node).pausedNs > 0)
  })

  test('a turn that is paused unwinds at once, before others and uncharged, and begins again later', async () => {
    const { dispatcher } = quiet()
    const [a, b] = [dispatcher.admit(), dispatcher.admit()]
    const order: string[] = []
    await a.begin()
    const unwound = a.yield().then(() => { order.push('a unwinds'); a.leave() })
    const other = b.begin().then(() => { order.push('b'); b.leave() })
    dispatcher.pause(a.node)
    a.unwind()
    await Promise.all([unwound, other])
    assert.deepEqual(order, ['a unwinds', 'b'])
    const { runningNs, stints } = dispatcher.account(a.node)
    // It wanted to run when it was paused, but nobody is there to.
    dispatcher.unpause(a.node)
    await new Promise((resolve) => { setTimeout(resolve, 5) })
    assert.equal(dispatcher.queue.current, undefined)
    dispatcher.pause(a.node)
    const begun = a.begin()
    dispatcher.unpause(a.node)
    await begun
    a.leave()
    assert.ok(dispatcher.account(a.node).stints > stints && dispatcher.account(a.node).runningNs > runningNs)
    a.unwind()
  })

  test('the event loop turns between two who yield at once, and for all messages that are announced', async () => {
    const { dispatcher, control, alarm } = quiet()
    const turn = dispatcher.admit()
    await turn.begin()
    const loop = { turns: 0 }
    const count = (): void => {
      loop.turns++
      if (loop.turns < 100) setImmediate(count)
    }
    setImmediate(count)
    while (loop.turns < 3) await turn.yield()
    announce(control)
    const from = loop.turns
    setTimeout(() => alarm.messageRead(), 5)
    await turn.yield()
    assert.equal(alarm.hasMail, false, 'it went on before the message was read')
    assert.ok(loop.turns > from)
    turn.leave()
    turn.end()
  })

  test('time that is spent is charged to who spent it', async () => {
    const { dispatcher } = quiet()
    const [a, b] = [dispatcher.admit(), dispatcher.admit()]
    const work = async (turn: ScheduledTurn, ms: number): Promise<void> => {
      await turn.begin()
      for (const until = performance.now() + ms; performance.now() < until;);
      turn.leave()
    }
    await Promise.all([work(a, 30), work(b, 1)])
    assert.ok(a.cpuNs() >= 29 * MS && b.cpuNs() < a.cpuNs(), `${a.cpuNs()} ${b.cpuNs()}`)
    const { ageNs, runningNs, runnableNs, waitingNs, throttledNs } = dispatcher.account(b.node)
    assert.ok(Math.abs(runningNs + runnableNs + waitingNs + throttledNs - ageNs) < 10)
    assert.ok(runnableNs >= 29 * MS)
  })
})

/** As withScheduledPcpu, with the timer awake: until then nobody is asked to leave, and pays for it later. */
async function onPcpu(quantumNs: number, body: (pcpu: Pcpu, dispatcher: Dispatcher) => Promise<void>): Promise<void> {
  await withScheduledPcpu(quantumNs, async (pcpu, dispatcher) => {
    await after(dispatcher, 1)
    await body(pcpu, dispatcher)
  })
}

/** Guests that never end, with these turns, while `body` runs. They are stopped whatever becomes of it. */
async function withHogs(pcpu: Pcpu, dispatcher: Dispatcher, turns: ScheduledTurn[], body: (hogs: Cell[]) => unknown):
Promise<void> {
  const hogs = turns.map((turn) => cell(pcpu, turn, ['spin']))
  const hogged = hogs.map((hog) => hog.run())
  try {
    await body(hogs)
  } finally {
    for (const hog of hogs) hog.context.stop(KILL)
    for (const { node } of turns) dispatcher.setTerms(node, DEFAULT_TERMS)
  }
  assert.deepEqual(await Promise.all(hogged), hogs.map(() => KILL))
}

describe('guests', { timeout: 60_000 }, () => {
  test('guests end as they say, and leave nothing in the queue', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const codes = [0, 7, 255]
      const cells = codes.map((code) => cell(pcpu, dispatcher.admit(), ['exit', String(code)]))
      const outcomes = await Promise.all(cells.map((one) => one.run()))
      assert.deepEqual(outcomes, codes.map((code) => ({ kind: 'exit', code })))
      assert.equal(dispatcher.queue.root.children, 0)
    })
  })

  test('guests that sleep end in the order of their times, though one of them never leaves by itself', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      await withHogs(pcpu, dispatcher, [dispatcher.admit()], async () => {
        const ended: number[] = []
        await Promise.all([1000, 500, 1].map(async (ms) => {
          const outcome = await cell(pcpu, dispatcher.admit(), ['sleep', String(ms)]).run()
          assert.deepEqual(outcome, { kind: 'exit', code: 0 })
          ended.push(ms)
        }))
        assert.deepEqual(ended, [1, 500, 1000])
      })
    })
  })

  test('a guest that is alone is not interrupted but for a timer', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const gone = dispatcher.admit()
      gone.end()
      gone.close()
      const hog = cell(pcpu, dispatcher.admit(), ['spin'])
      dispatcher.after(100 * MS, () => { hog.context.stop(KILL) })
      assert.deepEqual(await hog.run(), KILL)
      assert.ok(hog.context.preemptions <= 2, `${hog.context.preemptions} preemptions`)
    })
  })

  test('a guest that is alone lets the event loop turn while there is something to be done for another', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const turn = dispatcher.admit()
      await withHogs(pcpu, dispatcher, [dispatcher.admit()], async () => {
        await cell(pcpu, turn, ['hello']).run()
        for (let i = 0; i < 5; i++) await new Promise((resolve) => { setTimeout(resolve, 1) })
        turn.close()
      })
    })
  })

  test('a timer fires among hogs, unless it is called off', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      await withHogs(pcpu, dispatcher, [dispatcher.admit(), dispatcher.admit()], async () => {
        let late = false
        const callOff = dispatcher.after(30 * MS, () => { late = true })
        dispatcher.after(10 * MS, callOff)
        await after(dispatcher, 50)
        assert.equal(late, false)
      })
    })
  })

  test('a guest that is stopped before its first instruction has none', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const stdout = new OutputBuffer(100)
      const one = cell(pcpu, dispatcher.admit(), ['hello'], { stdout })
      const ended = one.run()
      one.context.stop(KILL)
      assert.deepEqual(await ended, KILL)
      assert.equal(stdout.take().length, 0)
      assert.equal(dispatcher.queue.root.children, 0)
    })
  })

  test('a guest that its limit holds back is stopped at once when that is taken away', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const turn = dispatcher.admit(terms({ limit: 0.00001 }))
      await withHogs(pcpu, dispatcher, [turn], async () => {
        await after(dispatcher, 30)
        assert.ok(dispatcher.account(turn.node).throttledNs > 0)
      })
    })
  })

  test('a guest has no more than its limit, and goes on when it may', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const turn = dispatcher.admit(terms({ limit: 0.1 }))
      await withHogs(pcpu, dispatcher, [turn], async () => {
        await after(dispatcher, 700)
        const { ageNs, runningNs, throttledNs, stints } = dispatcher.account(turn.node)
        assert.ok(runningNs / ageNs < 0.25, `${runningNs} of ${ageNs} ns`)
        assert.ok(throttledNs > runningNs && stints > 3)
      })
    })
  })

  test('shares count from when they are given', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const turns = [dispatcher.admit(), dispatcher.admit()]
      await withHogs(pcpu, dispatcher, turns, async () => {
        await after(dispatcher, 100)
        const parts = async (): Promise<number> => {
          const before = turns.map((turn) => turn.cpuNs())
          await after(dispatcher, 500)
          const [a, b] = turns.map((turn, i) => turn.cpuNs() - before[i]!)
          return a! / b!
        }
        const equal = await parts()
        assert.ok(equal > 0.6 && equal < 1.7, `${equal}`)
        dispatcher.setTerms(turns[0]!.node, terms({ shares: 400 }))
        const most = await parts()
        assert.ok(most > 2.4 && most < 7, `${most}`)
      })
    })
  })

  test('cells of a pool share what it has', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const pool = dispatcher.addPool(DEFAULT_TERMS)
      const turns = [dispatcher.admit(), dispatcher.admit(DEFAULT_TERMS, pool), dispatcher.admit(DEFAULT_TERMS, pool)]
      await withHogs(pcpu, dispatcher, turns, async () => {
        await after(dispatcher, 700)
        const [free, one, other] = turns.map((turn) => turn.cpuNs())
        assert.ok(free! / (one! + other!) > 0.6 && free! / (one! + other!) < 1.7, `${free} ${one} ${other}`)
        assert.ok(one! / other! > 0.6 && one! / other! < 1.7, `${one} ${other}`)
      })
      assert.equal(pool.children, 0)
    })
  })

  test('what one guest writes wakes the guest that reads it, while a third never leaves', async () => {
    await onPcpu(MS, async (pcpu, dispatcher) => {
      const [pipe, stdin, stdout] = [new OutputBuffer(10_000), new InputBuffer(), new OutputBuffer(1_000_000)]
      pipe.onData = () => { stdin.push(pipe.take()) }
      await withHogs(pcpu, dispatcher, [dispatcher.admit()], async () => {
        const reads = cell(pcpu, dispatcher.admit(), ['cat'], { stdin, stdout }).run()
        await after(dispatcher, 10)
        await cell(pcpu, dispatcher.admit(), ['flood', '64'], { stdout: pipe }).run()
        stdin.end()
        assert.deepEqual(await reads, { kind: 'exit', code: 0 })
        assert.match(stdout.take().toString(), /^(flood\.{58}\n){1024}$/)
      })
    })
  })

  test('a quantum of any length changes no answer', async () => {
    for (const quantumNs of [100_000, 20 * MS]) {
      await onPcpu(quantumNs, async (pcpu, dispatcher) => {
        const answers = await Promise.all([1, 2, 3].map(async () => {
          const stdout = new OutputBuffer(100)
          await cell(pcpu, dispatcher.admit(), ['primes', '1500000'], { stdout }).run()
          return stdout.take().toString()
        }))
        assert.deepEqual(answers, Array.from(answers, () => '114155\n'))
      })
    }
  })
})

const LIBRARY = `(module (memory (export "memory") 1) (global $sum (mut i32) (i32.const 0))
  (func (export "add") (param $n i32)
    (loop $l
      (global.set $sum (i32.add (global.get $sum) (i32.const 1)))
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
  (func (export "check") (param i32) (if (i32.ne (global.get $sum) (local.get 0)) (then unreachable)))
  (func (export "spin") (loop $l (br $l))))`

test('the calls of a library are made in order, with others between them', { timeout: 60_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-dispatcher-'))
  try {
    const path = join(folder, 'library.wasm')
    const parsed = (await wabt()).parseWat('library.wat', LIBRARY)
    writeFileSync(path, parsed.toBinary({}).buffer)
    const library = loadPreemptible(path, { stubs: [], library: true })
    await onPcpu(MS, async (pcpu, dispatcher) => {
      await withHogs(pcpu, dispatcher, [dispatcher.admit()], async () => {
        const calls = [1_000_000, 2_000_000, 3_000_000].map((n) => ({ call: 'add', with: [n] }))
        const turn = dispatcher.admit()
        const one = cellOf(pcpu, library, { turn })
        const outcome = await runLibrary(one, path, [...calls, { call: 'check', with: [6_000_000] }])
        assert.deepEqual(outcome, { kind: 'exit', code: 0 })
        assert.ok(dispatcher.account(turn.node).stints >= 4)
        const endless = cellOf(pcpu, library, { turn: dispatcher.admit() })
        const ended = runLibrary(endless, path, [{ call: 'add', with: [1] }, { call: 'spin', with: [] },
          { call: 'check', with: [0] }])
        await after(dispatcher, 20)
        endless.context.stop(KILL)
        assert.deepEqual(await ended, KILL)
      })
      assert.equal(dispatcher.queue.root.children, 0)
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})
