// host/cells_test.ts: starts of guests whose modules take a while, in a real cell process.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { isSupported } from '../sys/libc.ts'
import { ProcessRig } from './process_rig.ts'
import { exporting, padded } from './test_support.ts'

const options = { timeout: 120_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }
const guest = (name: string): Buffer =>
  readFileSync(fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url)))
const LARGE = 512 * 1024

test('guests of a large module start together, and a small one does not wait behind them', options, async () => {
  using rig = await ProcessRig.start()
  const module = rig.blobOf(padded(guest('exit'), LARGE))
  for (const id of ['a', 'b', 'c']) rig.start(id, ['exit', 'now', '3'], { module })
  rig.start('small', ['exit', 'now', '4'])
  const ends = await Promise.all(['a', 'b', 'c', 'small'].map((id) => rig.ended(id)))
  assert.deepEqual(ends.map(({ outcome }) => outcome), [3, 3, 3, 4].map((code) => ({ kind: 'exit', code })))
  assert.deepEqual(rig.heard.find((message) => 'started' in message), rig.heard.find((message) =>
    'started' in message && message.started === 'small'))
})

test('a guest that waits for its module is stopped at once, and those that wait with it start', options, async () => {
  using rig = await ProcessRig.start()
  const module = rig.blobOf(padded(guest('exit'), LARGE))
  rig.start('a', ['exit', 'now', '3'], { module })
  rig.start('b', ['exit', 'now', '5'], { module })
  rig.link.send({ stop: 'a', run: 1, signal: 15 })
  const end = await rig.ended('a')
  assert.deepEqual([end.outcome, end.by, end.startedAt], [{ kind: 'signal', signal: 15 }, 'stop', undefined])
  // The same guest, though the module of its run before is only coming.
  rig.start('a', ['exit', 'now', '6'], { module, run: 2 })
  assert.deepEqual((await rig.ended('b')).outcome, { kind: 'exit', code: 5 })
  assert.deepEqual((await rig.ended('a', 2)).outcome, { kind: 'exit', code: 6 })
  assert.ok(!rig.heard.some((message) => 'started' in message && message.started === 'a' && message.run === 1))
})

test('a guest that waits for its module is told of in hello, and one start though it is said twice', options,
  async () => {
    using rig = await ProcessRig.start()
    const module = rig.blobOf(padded(guest('sleep'), LARGE))
    rig.start('a', ['sleep', '3600000'], { module })
    rig.start('a', ['sleep', '3600000'], { module })
    rig.link.close()
    const { guests } = (await rig.connect()).hello
    assert.deepEqual(guests.map(({ id, run }) => [id, run]), [['a', 1]])
    await rig.started('a')
    assert.deepEqual((await rig.link.figures()).process.cells, 1)
  })

test('a process answers while it translates a large module', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'])
  await rig.started('a')
  rig.start('large', ['exit'], { module: rig.blobOf(exporting(400_000)) })
  const over = { is: false }
  let answers = 0
  const end = rig.ended('large').finally(() => { over.is = true })
  while (!over.is) {
    await rig.link.figures()
    answers++
  }
  assert.deepEqual((await end).outcome, { kind: 'exit', code: 0 })
  assert.ok(answers > 20, `${answers} answers`)
})

test('a large module that can\'t run fails its starts with its error, under the guest\'s name', options, async () => {
  using rig = await ProcessRig.start()
  const module = rig.blobOf(padded(guest('exit').subarray(0, 8), LARGE))
  for (const id of ['a', 'b']) rig.start(id, ['exit'], { module })
  for (const id of ['a', 'b']) {
    assert.deepEqual((await rig.ended(id)).outcome, { kind: 'failed', code: 'MODULE_NO_START', values: [id, 'none'] })
  }
})
