// qemu/qmp_test.ts: the line to QEMU against one that is played, also badly.

import assert from 'node:assert/strict'
import { Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { Qmp } from './qmp.ts'

const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\n'
const skip = isSupported() ? false : 'no system calls here'

/** Plays QEMU: `answers` is given each command, and what to write comes of it. */
function play(t: TestContext, answers: (command: { execute: string; id: number; arguments?: unknown }) => string,
  answerMs = 5000) {
  const [ours, theirs] = socketPair()
  const peer = new Socket({ fd: theirs, readable: true, writable: true })
  const events: [string, unknown][] = []
  const lost = Promise.withResolvers<string | undefined>()
  const qmp = new Qmp(ours, { event: (name, data) => { events.push([name, data]) }, lost: lost.resolve }, answerMs)
  let text = ''
  peer.on('error', () => { /* The other side went first. */ }).on('data', (bytes: Buffer) => {
    const lines = (text += bytes).split('\n')
    text = lines.pop()!
    for (const line of lines) peer.write(answers(JSON.parse(line)))
  })
  t.after(() => {
    qmp.close()
    peer.destroy()
  })
  return { qmp, peer, events, lost: lost.promise }
}

const ok = ({ id }: { id: number }): string => `{"return": {}, "id": ${id}}\n`

describe('the line to QEMU', { skip }, () => {
  test('a greeting is answered and tells the version', async (t) => {
    const asked: string[] = []
    const { qmp, peer } = play(t, (command) => {
      asked.push(command.execute)
      return ok(command)
    })
    peer.write(GREETING)
    assert.equal(await qmp.greet(), '7.2.22')
    assert.deepEqual(asked, ['qmp_capabilities'])
  })

  test('replies find their commands in any order, and events come in between', async (t) => {
    const ids: number[] = []
    const { qmp, events } = play(t, ({ id }) => ids.push(id) < 3 ? '' : ids.reverse().map((one) =>
      `{"event": "TICK", "data": {"n": ${one}}}\r\n{"return": ${one}, "id": ${one}}\r\n`).join(''))
    const all = await Promise.all([qmp.execute('a'), qmp.execute('b', { x: 1 }), qmp.execute('c')])
    assert.deepEqual(all, [1, 2, 3])
    assert.deepEqual(events.map(([, data]) => data), [{ n: 3 }, { n: 2 }, { n: 1 }])
  })

  test('a reply that comes byte by byte is one', async (t) => {
    const { qmp, peer } = play(t, () => '')
    const reply = qmp.execute('a')
    for (const byte of Buffer.from('{"return": "ä", "id": 1}\n')) {
      peer.write(Buffer.of(byte))
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.equal(await reply, 'ä')
  })

  test('what QEMU refuses is its own words, and the line goes on', async (t) => {
    const { qmp } = play(t, (command) => command.execute === 'bad'
      ? `{"error": {"class": "GenericError", "desc": "No such thing"}, "id": ${command.id}}\n` : ok(command))
    await assert.rejects(qmp.execute('bad'), /^Error: No such thing$/)
    assert.deepEqual(await qmp.execute('good'), {})
  })

  test('replies to nobody are passed over', async (t) => {
    const { qmp } = play(t, (command) =>
      `{"return": 1, "id": 99}\n{"return": 2}\n{"return": 3, "id": "x"}\n\n${ok(command)}`)
    assert.deepEqual(await qmp.execute('a'), {})
  })

  for (const [what, text, why] of [
    ['what is not JSON', 'nonsense\n', /isn't JSON/], ['a list', '[]\n', /isn't an object/],
    ['null', 'null\n', /isn't an object/], ['an object of no meaning', '{"id": 1}\n', /QMP doesn't know/],
    ['an error that is none', '{"error": 5, "id": 1}\n', /QMP doesn't know/],
    ['a line that never ends', 'x'.repeat(1024 * 1024 + 1), /too long/],
  ] as const) {
    test(`${what} ends the line, and whoever waits hears why`, async (t) => {
      const { qmp, lost } = play(t, () => text)
      await assert.rejects(qmp.execute('a'), why)
      assert.match((await lost)!, why)
      await assert.rejects(qmp.execute('b'), /is closed/)
    })
  }

  test('silence ends the line', async (t) => {
    const { qmp, lost } = play(t, () => '', 50)
    await assert.rejects(qmp.execute('stop'), /hasn't answered stop/)
    assert.match((await lost)!, /hasn't answered stop/)
  })

  test('a QEMU that never greets is not waited for', async (t) => {
    const { qmp } = play(t, ok, 50)
    await assert.rejects(qmp.greet(), /it says nothing/)
  })

  test('an end of QEMU rejects what waits, and tells no reason of its own', async (t) => {
    const { qmp, peer, lost } = play(t, () => '')
    const waits = qmp.execute('a')
    peer.destroy()
    await assert.rejects(waits, /closed it/)
    assert.equal(await lost, undefined)
  })

  test('a close rejects what waits and is no loss', async (t) => {
    const { qmp, lost } = play(t, () => '')
    const waits = qmp.execute('a')
    qmp.close()
    await assert.rejects(waits, /was closed/)
    assert.equal(await Promise.race([lost, new Promise((resolve) => setTimeout(resolve, 20, 'none'))]), 'none')
  })

  test('a descriptor goes with the command that names it', async (t) => {
    const [one, other] = socketPair()
    const { qmp } = play(t, ok)
    await qmp.pass('state', one)
    for (const fd of [one, other]) closeFd(fd)
  })
})
