// machine/agent_session_test.ts: what a session holds for a reader that isn't there yet.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OUTPUT_WINDOW_BYTES } from './agent_protocol.ts'
import { AgentSession } from './agent_session.ts'

const nothing = (): void => {}
const session = (): AgentSession => new AgentSession({ input: nothing, eof: nothing, credit: nothing, signal: nothing,
  resize: nothing, close: nothing })

async function read(one: AgentSession): Promise<{ channel: number; text: string }[]> {
  one.over({ kind: 'exited', status: 0 })
  const pieces = []
  for await (const { channel, bytes } of one.output) pieces.push({ channel, text: Buffer.from(bytes).toString() })
  return pieces
}

test('bytes that come one by one are held together, and come out as they came', async () => {
  const one = session()
  for (let i = 0; i < OUTPUT_WINDOW_BYTES; i++) assert.ok(one.came(1, Buffer.from([97 + i % 26])))
  assert.equal(one.came(1, Buffer.from('x')), false, 'more than was granted')
  const pieces = await read(one)
  assert.ok(pieces.length < 100, `${pieces.length} pieces`)
  assert.ok(pieces.every(({ channel }) => channel === 1))
  const text = pieces.map((piece) => piece.text).join('')
  assert.equal(text, Array.from({ length: OUTPUT_WINDOW_BYTES }, (_, i) => String.fromCharCode(97 + i % 26)).join(''))
})

test('what comes on two channels stays in its order, and large pieces are passed on as they are', async () => {
  const one = session()
  const large = Buffer.alloc(20_000, 'L')
  for (const [channel, text] of [[1, 'a'], [1, 'b'], [1, 'c'], [2, 'd'], [2, 'e'], [1, 'f']] as const) {
    one.came(channel, Buffer.from(text))
  }
  one.came(1, large)
  one.came(1, Buffer.from('g'))
  const runs: string[] = []
  let last = 0
  for (const { channel, text } of await read(one)) {
    if (channel === last) runs[runs.length - 1] += text
    else runs.push(text)
    last = channel
  }
  assert.deepEqual(runs, ['abc', 'de', `f${large.toString()}g`])
})

test('bytes that come one by one on two channels in turn cost time in proportion to their number', async () => {
  const one = session()
  for (let i = 0; i < OUTPUT_WINDOW_BYTES; i++) one.came(1 + i % 2, Buffer.from([97 + i % 26]))
  const begun = performance.now()
  const pieces = await read(one)
  const ms = performance.now() - begun
  assert.equal(pieces.length, OUTPUT_WINDOW_BYTES)
  assert.ok(pieces.every(({ channel, text }, i) => channel === 1 + i % 2 && text.charCodeAt(0) === 97 + i % 26))
  assert.ok(ms < 15_000, `${ms} ms`)
})

test('a reader that has taken what was there gets what comes next', async () => {
  const one = session()
  const output = one.output[Symbol.asyncIterator]()
  for (const text of ['a', 'b', 'c']) one.came(1, Buffer.from(text))
  let text = ''
  while (text.length < 3) text += Buffer.from((await output.next()).value!.bytes).toString()
  one.came(1, Buffer.from('d'))
  assert.equal(text + Buffer.from((await output.next()).value!.bytes).toString(), 'abcd')
})
