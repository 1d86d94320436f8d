// host/process_snapshot_test.ts: guests of a real cell process that are saved, held, forked, and go on from snapshots.
//
// ticker (guests/ticker.c) counts, and says a nonce that it has in memory only: who goes on has both, who was begun
// anew has neither. The generation is what Cellar calls a launch.

import assert from 'node:assert/strict'
import { readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { EPERM } from '../base/errno.ts'
import { isSupported } from '../sys/libc.ts'
import { readLog } from './log_reader.ts'
import { ProcessRig } from './process_rig.ts'
import type { FromProcess, GuestLaunch, ToProcess, Written } from './protocol.ts'

const options = { timeout: 120_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }

type Captured = Extract<FromProcess, { captured: number }>
type Tick = { readonly number: number; readonly nonce: string; readonly generation: string }

/** What a ticker has said. */
async function ticksOf(rig: ProcessRig, id: string): Promise<Tick[]> {
  const ticks: Tick[] = []
  for await (const { text } of readLog(join(rig.config.logFolder, id), {})) {
    const [, number, nonce, generation] = /^tick (\d+) nonce ([0-9a-f]{16}) generation ([0-9a-f]{32})$/.exec(text) ?? []
    assert.ok(generation !== undefined, text)
    ticks.push({ number: Number(number), nonce: nonce!, generation })
  }
  return ticks
}

/** Its ticks, when there are so many, which have no gap and one nonce. */
async function ticks(rig: ProcessRig, id: string, count: number): Promise<Tick[]> {
  for (;;) {
    const all = await ticksOf(rig, id).catch(() => [])
    if (all.length >= count) {
      assert.deepEqual(all.map(({ number }) => number), all.map((_, i) => all[0]!.number + i))
      assert.equal(new Set(all.map(({ nonce }) => nonce)).size, 1)
      return all
    }
    await sleep(10)
  }
}

let requests = 0

/** Orders a capture or a fork: the answer. */
async function ordered(rig: ProcessRig, order: (request: number) => ToProcess): Promise<Captured> {
  const request = ++requests
  rig.link.send(order(request))
  return await rig.hear((message): message is Captured => 'captured' in message && message.captured === request)
}

async function capture(rig: ProcessRig, id: string, then: 'resume' | 'hold', run = 1): Promise<Captured> {
  return await ordered(rig, (request) =>
    ({ capture: id, run, request, next: then, durable: true, spec: { image: 'ticker' } }))
}

async function written(rig: ProcessRig, id: string, then: 'resume' | 'hold'): Promise<Written> {
  const { written, error } = await capture(rig, id, then)
  assert.ok(written !== undefined, JSON.stringify(error))
  return written
}

const TICKER: [string, ...string[]] = ['ticker', '20', '0', '1', 'busy']

/** Starts a ticker that has ticked a few times. */
async function ticker(rig: ProcessRig, id: string, more: Partial<GuestLaunch> = {}, command = TICKER): Promise<void> {
  rig.start(id, command, more)
  await ticks(rig, id, 3)
}

async function released(rig: ProcessRig, id: string): Promise<void> {
  rig.link.send({ release: id, run: 1 })
  await rig.hear((message): message is Extract<FromProcess, { released: string }> =>
    'released' in message && message.released === id)
}

test('a guest is saved while it runs, and others go on from there: what it knew, another generation', options,
  async () => {
    using rig = await ProcessRig.start()
    await ticker(rig, 'a')
    const { snapshot, chunks, memoryBytes, newBytes, storedBytes, stoppedNs } = await written(rig, 'a', 'resume')
    assert.match(snapshot, /^sha256:[0-9a-f]{64}$/)
    assert.ok(chunks > 10 && memoryBytes >= 1024 * 1024 && newBytes > 0 && storedBytes > 0 && stoppedNs > 0)
    const at = (await ticksOf(rig, 'a')).length
    for (const id of ['b', 'c']) rig.start(id, TICKER, { from: { snapshot, event: 'restore' } })
    const [a, b, c] = await Promise.all([ticks(rig, 'a', at + 5), ticks(rig, 'b', 3), ticks(rig, 'c', 3)])
    assert.equal(new Set([a, b, c].map(([first]) => first!.nonce)).size, 1)
    assert.equal(new Set([a, b, c].map((all) => all.at(-1)!.generation)).size, 3)
    for (const all of [b, c]) assert.ok(all[0]!.number > 1 && all[0]!.number <= at + 2, `${all[0]!.number}, ${at}`)
    assert.deepEqual(rig.heard.flatMap((message) => 'started' in message ? [message.uncapturable] : []),
      [undefined, undefined, undefined])
    // A guest that was restored uses what it uses.
    rig.link.send({ stop: 'b', run: 1, signal: 9 })
    assert.ok((await rig.ended('b')).usage!.cpuNs > 0)
  })

test('a second snapshot of a guest stores only what has changed', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a', {}, ['ticker', '50', '0', '8'])
  const first = await written(rig, 'a', 'resume')
  const second = await written(rig, 'a', 'resume')
  assert.ok(second.newChunks <= 8 && first.newChunks > 100, `${first.newChunks}, then ${second.newChunks}`)
  assert.ok(second.newBytes < first.newBytes / 4 && second.chunks === first.chunks)
})

test('a guest that is held says nothing, goes on when it is told to, and is told of in hello', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a')
  await written(rig, 'a', 'hold')
  const before = await ticksOf(rig, 'a')
  await sleep(100)
  assert.equal((await ticksOf(rig, 'a')).length, before.length)
  assert.equal((await capture(rig, 'a', 'hold')).error!.code, 'CAPTURE_IMPOSSIBLE')
  rig.link.close()
  assert.deepEqual((await rig.connect()).hello.guests.map(({ id, held }) => [id, held]), [['a', true]])
  rig.link.send({ go: 'a', run: 1 })
  const after = await ticks(rig, 'a', before.length + 3)
  assert.deepEqual([after[0]!.number, new Set(after.map(({ generation }) => generation)).size], [1, 1])
})

test('a guest that is released is gone without an end, and wakes as another run of itself', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a', {}, ['ticker', '300'])
  const { snapshot, wakeInMs } = await written(rig, 'a', 'hold')
  assert.ok(wakeInMs! > 0 && wakeInMs! <= 300, `${wakeInMs}`)
  const asleep = await ticksOf(rig, 'a')
  await released(rig, 'a')
  assert.ok(!rig.heard.some((message) => 'ended' in message))
  const { cells } = (await rig.link.figures()).process
  assert.equal(cells, 0)
  const from = { snapshot, event: 'wake', sleptMs: 3_600_000 } as const
  rig.start('a', ['ticker', '300'], { run: 2, from })
  const all = await ticks(rig, 'a', asleep.length + 2)
  assert.notEqual(all.at(-1)!.generation, all[0]!.generation)
  assert.equal((await capture(rig, 'a', 'hold')).error!.code, 'CAPTURE_ENDED', 'of the run before')
  rig.link.send({ release: 'gone', run: 1 })
  await rig.hear((message): message is Extract<FromProcess, { released: string }> =>
    'released' in message && message.released === 'gone')
})

test('a guest that is held is ended by a stop', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a')
  await written(rig, 'a', 'hold')
  rig.link.send({ stop: 'a', run: 1, signal: 15 })
  const end = await rig.ended('a')
  assert.deepEqual([end.outcome, end.by], [{ kind: 'signal', signal: 15 }, 'stop'])
  assert.ok(end.usage!.cpuNs > 0)
})

test('forks have what their parent knew, a generation of their own, and nothing of its time', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a')
  const ids = Array.from({ length: 8 }, (_, i) => `f${i}`)
  const children = ids.map((id, i) =>
    rig.launch(id, TICKER, { from: { snapshot: '', event: 'fork', number: i + 1 } }))
  const { written, error } = await ordered(rig, (request) => ({ fork: 'a', run: 1, request, children }))
  assert.deepEqual([written, error], [undefined, undefined])
  const all = await Promise.all([ticks(rig, 'a', 6), ...ids.map((id) => ticks(rig, id, 3))])
  assert.equal(new Set(all.map(([first]) => first!.nonce)).size, 1)
  assert.equal(new Set(all.map(([first]) => first!.generation)).size, 9)
  rig.link.send({ stop: 'a', run: 1, signal: 9 })
  rig.link.send({ stop: 'f0', run: 1, signal: 9 })
  const [a, f0] = [await rig.ended('a'), await rig.ended('f0')]
  assert.ok(f0.usage!.wallNs < a.usage!.wallNs)
})

test('what goes wrong with a fork is told of the guest and of each child', options, async () => {
  using rig = await ProcessRig.start()
  const child = (id: string, more: Partial<GuestLaunch> = {}): GuestLaunch =>
    rig.launch(id, TICKER, { from: { snapshot: '', event: 'fork', number: 1 }, ...more })
  const answer = await ordered(rig, (request) => ({ fork: 'nobody', run: 1, request, children: [child('x')] }))
  assert.equal(answer.error!.code, 'CAPTURE_ENDED')
  const { outcome } = await rig.ended('x')
  assert.ok(outcome.kind === 'failed' && outcome.code === 'CAPTURE_ENDED')
  await ticker(rig, 'a')
  const children = [child('good'), child('ported', { ports: [{ port: 80, tickets: [12345] }] }),
    child('other', { module: rig.blob('hello') })]
  assert.equal((await ordered(rig, (request) => ({ fork: 'a', run: 1, request, children }))).error, undefined)
  for (const [id, code] of [['ported', 'PROCESS_LOST'], ['other', 'SNAPSHOT_FOREIGN']] as const) {
    const { outcome } = await rig.ended(id)
    assert.ok(outcome.kind === 'failed' && outcome.code === code, JSON.stringify(outcome))
  }
  await ticks(rig, 'good', 3)
})

test('what can\'t be captured says why when it starts and when it is asked for', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['sleep', '3600000'], { calls: [{ call: '_start', with: [] }] })
  const { uncapturable } = await rig.hear((message): message is Extract<FromProcess, { started: string }> =>
    'started' in message)
  assert.match(uncapturable!, /exports/)
  const { error } = await capture(rig, 'a', 'resume')
  assert.deepEqual([error!.code, error!.values], ['CAPTURE_IMPOSSIBLE', ['a', uncapturable]])
  rig.link.close()
  assert.equal((await rig.connect()).hello.guests[0]!.uncapturable, uncapturable)
})

test('snapshots that aren\'t there, are damaged or another program\'s start nothing', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a')
  const { snapshot } = await written(rig, 'a', 'resume')
  const start = async (id: string, digest: string, more: Partial<GuestLaunch> = {}): Promise<string> => {
    rig.start(id, TICKER, { from: { snapshot: digest, event: 'restore' }, ...more })
    const { outcome } = await rig.ended(id)
    return outcome.kind === 'failed' ? outcome.code : outcome.kind
  }
  assert.equal(await start('gone', `sha256:${'0'.repeat(64)}`), 'NOT_FOUND')
  assert.equal(await start('odd', '../../etc/passwd'), 'NOT_FOUND')
  assert.equal(await start('other', snapshot, { module: rig.blob('hello') }), 'SNAPSHOT_FOREIGN')
  assert.equal(await start('small', snapshot, { memoryPagesMax: 2 }), 'SNAPSHOT_FOREIGN')
  // What was read stays for a moment.
  await sleep(1100)
  writeFileSync(join(rig.config.snapshotFolder, `${snapshot.slice(7)}.snapshot`), 'damaged')
  assert.equal(await start('damaged', snapshot), 'SNAPSHOT_DAMAGED')
})

test('a guest goes on when its snapshot can\'t be written, and when the host is gone before it was told', options,
  async () => {
    using rig = await ProcessRig.start()
    await ticker(rig, 'a')
    rig.link.send({ capture: 'a', run: 1, request: 999, next: 'hold', durable: true })
    rig.link.close()
    await sleep(200)
    const { guests } = (await rig.connect()).hello
    const before = (await ticksOf(rig, 'a')).length
    // Whether it was told: then it is held, and the host says so.
    if (guests[0]!.held === true) rig.link.send({ go: 'a', run: 1 })
    await ticks(rig, 'a', before + 3)
    rmSync(rig.config.snapshotFolder, { recursive: true })
    const { error } = await capture(rig, 'a', 'hold')
    assert.equal(error!.code, 'HOST_STATE_UNUSABLE')
    await ticks(rig, 'a', (await ticksOf(rig, 'a')).length + 3)
  })

test('snapshots that nobody needs are removed with what only they had', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a', {}, ['ticker', '50', '0', '4'])
  const [first, second] = [await written(rig, 'a', 'resume'), await written(rig, 'a', 'resume')]
  const files = (): number => readdirSync(rig.config.snapshotFolder).filter((name) => name.endsWith('.snapshot')).length
  assert.equal(files(), 2)
  rig.link.send({ keep: [] })
  rig.link.send({ forget: [first.snapshot] })
  while (files() === 2) await sleep(10)
  rig.start('b', TICKER, { from: { snapshot: second.snapshot, event: 'restore' } })
  await ticks(rig, 'b', 2)
})

type Question = Extract<FromProcess, { asked: number }>

async function asked(rig: ProcessRig, id: string, since = 0): Promise<Question> {
  return await rig.hear((message): message is Question => 'asked' in message && message.id === id, since)
}

/** The only line of a guest's log, once it is written. */
async function lineOf(rig: ProcessRig, id: string): Promise<string> {
  for (;;) {
    for await (const { text } of readLog(join(rig.config.logFolder, id), {})) return text
    await sleep(10)
  }
}

test('what a guest asks for reaches the host, and the answer the guest', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['forkme', '2'])
  const { asked: question, id, run, what, count } = await asked(rig, 'a')
  assert.deepEqual([id, run, what, count], ['a', 1, 'fork', 2])
  rig.link.send({ told: question, errno: EPERM })
  assert.deepEqual((await rig.ended('a')).outcome, { kind: 'exit', code: 2 })
  assert.equal(await lineOf(rig, 'a'), 'forkme: fork: Operation not permitted')
})

test('who asks while no host is there is told to try later', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['forkme', '2'])
  await asked(rig, 'a')
  rig.link.close()
  await rig.connect()
  assert.deepEqual((await rig.ended('a')).outcome, { kind: 'exit', code: 2 })
  assert.equal(await lineOf(rig, 'a'), 'forkme: fork: Resource temporarily unavailable')
})

test('a guest that forks itself is told its number, and its parent how it went', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('a', ['forkme', '2'])
  const { asked: question } = await asked(rig, 'a')
  const children = [1, 2].map((number) =>
    rig.launch(`f${number}`, ['forkme', '2'], { from: { snapshot: '', event: 'fork', number } }))
  assert.equal((await ordered(rig, (request) => ({ fork: 'a', run: 1, request, children }))).error, undefined)
  rig.link.send({ told: question, errno: 0 })
  for (const id of ['a', 'f1', 'f2']) assert.deepEqual((await rig.ended(id)).outcome, { kind: 'exit', code: 0 })
  const said = await Promise.all(['a', 'f1', 'f2'].map((id) => lineOf(rig, id)))
  assert.match(said[0]!, /^parent a a generation [0-9a-f]{32} event none 0 /)
  assert.match(said[1]!, /^child 1 f1 f1 generation [0-9a-f]{32} event fork 1 /)
  assert.match(said[2]!, /^child 2 f2 f2 generation [0-9a-f]{32} event fork 2 /)
})

test('a guest that is paused is saved and forked as it is, and stays paused', options, async () => {
  using rig = await ProcessRig.start()
  await ticker(rig, 'a')
  rig.link.send({ pause: 'a', run: 1, paused: true })
  await rig.hear((message): message is Extract<FromProcess, { paused: string }> => 'paused' in message)
  const before = await ticksOf(rig, 'a')
  const { snapshot } = await written(rig, 'a', 'resume')
  await written(rig, 'a', 'hold')
  rig.link.send({ go: 'a', run: 1 })
  const children = [rig.launch('f', TICKER, { from: { snapshot: '', event: 'fork', number: 1 } })]
  assert.equal((await ordered(rig, (request) => ({ fork: 'a', run: 1, request, children }))).error, undefined)
  rig.start('b', TICKER, { from: { snapshot, event: 'restore' } })
  await Promise.all(['f', 'b'].map((id) => ticks(rig, id, 3)))
  assert.ok((await ticksOf(rig, 'a')).length <= before.length + 1)
  rig.link.send({ pause: 'a', run: 1, paused: false })
  await ticks(rig, 'a', before.length + 3)
})

test('a guest that listens is reached again when it has gone on from a snapshot', options, async () => {
  using rig = await ProcessRig.start()
  const more = { ports: [{ port: 7, tickets: [] }],
    health: { tcp: 7, interval: '20ms', timeout: '1s', retries: 3, 'start-period': '1ms' } }
  const well = async (run: number): Promise<void> => {
    const { healthy } = await rig.hear((message): message is Extract<FromProcess, { health: string }> =>
      'health' in message && message.run === run)
    assert.equal(healthy, true)
  }
  rig.start('a', ['echo'], more)
  await well(1)
  const { snapshot, wakeInMs } = await written(rig, 'a', 'hold')
  assert.equal(wakeInMs, undefined, 'it waits for others alone')
  await released(rig, 'a')
  rig.start('a', ['echo'], { ...more, run: 2, from: { snapshot, event: 'wake' } })
  await well(2)
})
