// host/cell_process_test.ts: a real cell process, driven over its socket: guests from start to acknowledged end.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { createConnection } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { isSupported } from '../sys/libc.ts'
import { ProcessRig } from './process_rig.ts'
import type { FromProcess, GuestEnd } from './protocol.ts'

const options = { timeout: 120_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }
const isEnd = (message: FromProcess): message is { ended: GuestEnd } => 'ended' in message

test('CellProcess starts a guest, tells its end with its usage, and again until that is acknowledged', options,
  async () => {
    using rig = await ProcessRig.start()
    const { hello } = rig.link
    assert.deepEqual([hello.process, hello.project, hello.pid, hello.guests, hello.ends],
      [7, 'test', rig.child.pid, [], []])
    rig.start('a', ['exit', 'now', '7'])
    const { ended } = await rig.hear(isEnd)
    assert.deepEqual([ended.id, ended.run, ended.outcome, ended.by], ['a', 1, { kind: 'exit', code: 7 }, undefined])
    assert.ok(ended.startedAt! <= ended.endedAt && ended.usage!.cpuNs > 0)
    rig.link.close()
    const again = await rig.connect()
    assert.deepEqual(again.hello.ends, [ended])
    again.send({ ack: 'a', run: 1 })
    again.close()
    assert.deepEqual((await rig.connect()).hello.ends, [])
  })

test('a start that is said twice is one start, and one of another run is refused while the first runs', options,
  async () => {
    using rig = await ProcessRig.start()
    rig.start('a', ['sleep', '3600000'])
    await rig.started('a')
    rig.start('a', ['sleep', '3600000'])
    rig.start('a', ['sleep', '3600000'], { run: 2 })
    const refused = await rig.ended('a', 2)
    assert.ok(refused.outcome.kind === 'failed' && refused.outcome.code === 'EXISTS')
    rig.link.close()
    const { guests } = (await rig.connect()).hello
    assert.deepEqual(guests.map(({ id, run }) => [id, run]), [['a', 1]])
    // An answer about another run means nothing.
    rig.link.send({ stop: 'a', run: 2, signal: 9 })
    rig.link.send({ stop: 'a', run: 1, signal: 15 })
    const end = await rig.ended('a')
    assert.deepEqual([end.outcome, end.by], [{ kind: 'signal', signal: 15 }, 'stop'])
    rig.start('a', ['exit', 'now', '3'], { run: 3 })
    assert.deepEqual((await rig.ended('a', 3)).outcome, { kind: 'exit', code: 3 })
  })

test('CellProcess tells what can\'t be started, and why', options, async () => {
  using rig = await ProcessRig.start()
  const code = async (id: string): Promise<string> => {
    const { outcome } = await rig.ended(id)
    return outcome.kind === 'failed' ? outcome.code : outcome.kind
  }
  rig.start('small', ['hello'], { memoryPagesMax: 1 })
  assert.equal(await code('small'), 'MEMORY_BELOW_MINIMUM')
  rig.start('gone', ['hello'], { module: `sha256:${'0'.repeat(64)}` })
  assert.equal(await code('gone'), 'PROGRAM_NOT_FOUND')
  rig.start('odd', ['hello'], { module: '../../etc/passwd' })
  assert.equal(await code('odd'), 'PROGRAM_NOT_FOUND')
  rig.start('pooled', ['hello'], { pool: 'unknown' })
  assert.equal(await code('pooled'), 'REFERENCE_UNKNOWN')
  rig.start('ported', ['hello'], { ports: [{ port: 80, tickets: [12345] }] })
  assert.equal(await code('ported'), 'PROCESS_LOST')
  rig.start('library', ['hello'], { calls: [{ call: 'nothing', with: [] }] })
  assert.equal(await code('library'), 'EXPORT_UNKNOWN')
  for (let i = 0; i < 2; i++) {
    rig.start(`r${i}`, ['sleep', '3600000'], { terms: { ...DEFAULT_TERMS, reservation: 0.9 } })
  }
  rig.link.send({ pool: 'p', to: { shares: 100, reservation: 0, limit: 0.5 } })
  rig.start('fine', ['hello'], { pool: 'p' })
  assert.deepEqual((await rig.ended('fine')).outcome, { kind: 'exit', code: 0 })
})

test('a guest whose time is up ends with 124, by its timeout', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'], { timeoutNs: 50e6 })
  rig.start('b', ['exit', 'now', '124'], { timeoutNs: 3600e9 })
  const [a, b] = [await rig.ended('a'), await rig.ended('b')]
  assert.deepEqual([a.outcome, a.by, b.outcome, b.by],
    [{ kind: 'exit', code: 124 }, 'timeout', { kind: 'exit', code: 124 }, undefined])
})

test('guests go on without a host, what speaks nonsense is cut off, and the newest host replaces the others', options,
  async () => {
    using rig = await ProcessRig.start()
    rig.start('a', ['sleep', '500'])
    await rig.started('a')
    const noise = createConnection(join(rig.config.runFolder, 'c'))
    noise.on('error', () => {})
    noise.write(Buffer.alloc(100, 0xff))
    await once(noise, 'close')
    const first = await rig.connect()
    await rig.connect()
    // The one before is closed by the process.
    assert.equal(await first.openStream().status.then(() => 'over'), 'over')
    const end = await rig.ended('a')
    assert.deepEqual(end.outcome, { kind: 'exit', code: 0 })
  })

test('a thousand starts, their figures, other terms and their stop', options, async () => {
  using rig = await ProcessRig.start()
  const ids = Array.from({ length: 1000 }, (_, i) => `g${i}`)
  for (const id of ids) rig.start(id, ['sleep', '3600000'])
  await Promise.all(ids.map((id) => rig.started(id)))
  const { guests, process } = await rig.link.figures()
  assert.deepEqual(Object.keys(guests).toSorted(), ids.toSorted())
  assert.ok(process.cells === 1000 && process.memoryBytes > 0 && process.cpuNs > 0)
  assert.ok(guests['g0']!.memoryBytes > 0)
  while ((await rig.link.figures()).guests['g0']!.hypercalls === 0) await sleep(10)
  rig.link.send({ terms: 'g0', to: { shares: 1, reservation: 0, limit: Infinity } })
  for (const id of ids) rig.link.send({ stop: id, run: 1, signal: 9 })
  const ends = await Promise.all(ids.map((id) => rig.ended(id)))
  assert.ok(ends.every(({ outcome, by }) => outcome.kind === 'signal' && outcome.signal === 9 && by === 'stop'))
})

test('a process that is drained starts nothing, and ends when the last end was acknowledged', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'])
  await rig.started('a')
  rig.link.send({ drain: true })
  rig.start('b', ['hello'])
  const { outcome } = await rig.ended('b')
  assert.ok(outcome.kind === 'failed' && outcome.code === 'HOST_DRAINING')
  rig.link.send({ stop: 'a', run: 1, signal: 15 })
  await rig.hear((message): message is { ended: GuestEnd } => isEnd(message) && message.ended.id === 'a')
  await sleep(50)
  assert.equal(rig.child.exitCode, null, 'not before somebody knows of it')
  await rig.ended('a')
  assert.deepEqual(await rig.exited, [0, null])
})

test('a process whose run folder is gone ends when its host is, guests and all', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'])
  await rig.started('a')
  rmSync(rig.config.runFolder, { recursive: true })
  await sleep(100)
  assert.equal(rig.child.exitCode, null)
  rig.link.close()
  assert.deepEqual(await rig.exited, [0, null])
})

test('a process in which something breaks says so and ends at once, with status 1', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'])
  await rig.started('a')
  rig.link.send({ start: null as never })
  const { say } = await rig.hear((message): message is Extract<FromProcess, { say: string }> => 'say' in message)
  assert.match(say, /TypeError/)
  assert.deepEqual(await rig.exited, [1, null])
})

test('a guest that is unhealthy is told of and stopped, one that takes connections is healthy', options, async () => {
  using rig = await ProcessRig.start()
  const ports = [{ port: 7, tickets: [] }]
  const quick = { interval: '20ms', timeout: '1s', retries: 2, 'start-period': '1ms' }
  rig.start('well', ['echo'], { ports, health: { tcp: 7, ...quick } })
  // It gives the request back, which is no answer.
  rig.start('odd', ['echo'], { ports, health: { http: '7/well', ...quick } })
  rig.start('deaf', ['sleep', '3600000'], { health: { tcp: 7, ...quick } })
  const said = (id: string) => rig.hear((message): message is Extract<FromProcess, { health: string }> =>
    'health' in message && message.health === id)
  assert.equal((await said('well')).healthy, true)
  assert.deepEqual([(await said('odd')).healthy, (await said('odd')).why], [false, 'it does not answer in HTTP'])
  assert.match((await said('deaf')).why, /ECONNREFUSED/)
  for (const id of ['odd', 'deaf']) {
    const { outcome, by } = await rig.ended(id)
    assert.deepEqual([outcome, by], [{ kind: 'signal', signal: 9 }, 'unhealthy'])
  }
  rig.link.close()
  assert.deepEqual((await rig.connect()).hello.guests.map(({ id, healthy }) => [id, healthy]), [['well', true]])
})
