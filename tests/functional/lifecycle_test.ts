// tests/functional/lifecycle_test.ts: guests that ask about their life, where no host keeps them, and the two guests by
// which other tests tell a program that went on from one that was started again.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellar, guest } from '../support.ts'

const TICK = /^tick (\d+) nonce ([0-9a-f]{16}) generation ([0-9a-f]{32})$/

test('in the foreground a guest can not fork itself, and is told so', async () => {
  const { status, stdout, stderr } = await cellar(['run', guest('forkme')])
  assert.deepEqual([status, stdout.toString(), stderr], [2, '', 'forkme: fork: Not supported\n'])
})

test('each run of ticker counts from 1, with a nonce and a generation of its own', async () => {
  const seen = new Set<string>()
  for (const args of [['1', '3'], ['5', '3', '2', 'busy']]) {
    const { status, stdout, stderr } = await cellar(['run', guest('ticker'), ...args])
    assert.equal(status, 0, stderr)
    const ticks = stdout.toString().trimEnd().split('\n').map((line) => TICK.exec(line))
    assert.deepEqual(ticks.map((tick) => tick?.[1]), ['1', '2', '3'])
    for (const [, , ...marks] of ticks as RegExpExecArray[]) for (const mark of marks) seen.add(mark)
  }
  assert.equal(seen.size, 4)
})

// The hash of as many digits of π, computed by Machin's formula.
test('work says the digits of π, and their hash', async () => {
  const { status, stdout } = await cellar(['run', guest('work'), '1000'])
  const lines = stdout.toString().trimEnd().split('\n')
  assert.equal(status, 0)
  assert.equal(lines[0], '     50  14159265358979323846264338327950288419716939937510')
  assert.equal(lines.length, 21)
  assert.equal(lines.at(-1), 'work done: 1000 digits, sum 511d37c4f954c20f')
  const odd = await cellar(['run', guest('work'), '7'])
  assert.equal(odd.stdout.toString(), '      7  1415926\nwork done: 7 digits, sum 6a3ab9f1d6420b45\n')
  assert.equal((await cellar(['run', guest('work'), '0'])).status, 2)
})
