// cell/preemptible_test.ts: cells that share a pCPU by force.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { OutputBuffer } from '../services/console/console.ts'
import { loadHypercalls } from './hypercalls.ts'
import { loadExecutable } from './load.ts'
import { Pcpu } from './pcpu.ts'
import { loadPreemptible } from './preemptible.ts'
import { cellOf, importOf, preemptibleOfText, withScheduledPcpu } from './test_support.ts'

const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))

// Also the proof that compiled code sees a flag that another thread sets: spin.wasm would never return.
test('a guest that never ends lets its neighbours end, and is stopped from its own thread', async () => {
  const [spin, primes] = [loadPreemptible(guest('spin')), loadPreemptible(guest('primes'))]
  await loadHypercalls([...spin.hypercalls, ...primes.hypercalls])
  await withScheduledPcpu(2e6, async (pcpu, dispatcher) => {
    const hog = cellOf(pcpu, spin, { args: ['spin'], turn: dispatcher.admit() })
    const hogged = hog.run()
    const stdout = new OutputBuffer(100)
    const neighbour = cellOf(pcpu, primes, { args: ['primes', '2000000'], stdout, turn: dispatcher.admit() })
    assert.deepEqual(await neighbour.run(), { kind: 'exit', code: 0 })
    assert.equal(stdout.take().toString(), '148933\n')
    assert.ok(hog.context.preemptions > 0, 'the hog had to leave')
    hog.context.stop({ kind: 'signal', signal: 9 })
    assert.deepEqual(await hogged, { kind: 'signal', signal: 9 })
  })
})

for (const mode of ['preempt', 'fuel'] as const) {
  test(`guests that compute in ${mode} mode take turns and get the same answers as alone`, async () => {
    const [alone, shared] = [loadExecutable(guest('primes')), loadPreemptible(guest('primes'), undefined, { mode })]
    await loadHypercalls(alone.hypercalls)
    const limits = [3_000_000, 3_000_001, 2_500_000]
    const expected = await Promise.all(limits.map(async (limit) => {
      const stdout = new OutputBuffer(100)
      await cellOf(new Pcpu(), alone, { args: ['primes', String(limit)], stdout }).run()
      return stdout.take().toString()
    }))
    await withScheduledPcpu(1e6, async (pcpu, dispatcher) => {
      const outputs = await Promise.all(limits.map(async (limit) => {
        const stdout = new OutputBuffer(100)
        const turn = dispatcher.admit()
        await cellOf(pcpu, shared, { args: ['primes', String(limit)], stdout, turn }).run()
        return stdout.take().toString()
      }))
      assert.deepEqual(outputs, expected)
    })
  })
}

test('the fuel that a guest takes is the same alone and among others', async () => {
  const primes = loadPreemptible(guest('primes'), undefined, { mode: 'fuel' })
  await loadHypercalls(primes.hypercalls)
  const fuelAmong = async (others: number): Promise<number> => {
    let fuel = 0
    await withScheduledPcpu(1e6, async (pcpu, dispatcher) => {
      const run = async (): Promise<void> => {
        const cell = cellOf(pcpu, primes, { args: ['primes', '1000000'], turn: dispatcher.admit() })
        await cell.run()
        fuel = cell.usage().fuel!
      }
      await Promise.all(Array.from({ length: others + 1 }, run))
    })
    return fuel
  }
  const alone = await fuelAmong(0)
  assert.ok(alone > 1_000_000, String(alone))
  assert.equal(await fuelAmong(3), alone)
})

test('a guest that makes one hypercall after the other, without a loop, has to leave between them', async () => {
  const text = `(module ${importOf('random_get', 'i32 i32')} (memory 2) (func (export "_start")
    ${'(drop (call $random_get (i32.const 0) (i32.const 65536)))'.repeat(1500)}))`
  const guestOf = preemptibleOfText(text)
  await loadHypercalls((await guestOf).hypercalls)
  await withScheduledPcpu(1e6, async (pcpu, dispatcher) => {
    // The timer's thread is up by then.
    await new Promise<void>((resolve) => { dispatcher.after(2e8, resolve) })
    const cells = [0, 1].map(async () => cellOf(pcpu, await guestOf, { turn: dispatcher.admit() }))
    const both = await Promise.all(cells)
    await Promise.all(both.map((cell) => cell.run()))
    assert.ok(both.some(({ context }) => context.preemptions > 5))
  })
})
