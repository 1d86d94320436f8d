// host/process_streams_test.ts: logs, attachments and `exec` of a real cell process.

import assert from 'node:assert/strict'
import { readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LOG_FILE_BYTES_MAX, LOG_FILES_MAX, STREAM_WINDOW_BYTES_MAX } from '../base/limits.ts'
import { isSupported } from '../sys/libc.ts'
import { readLog } from './log_reader.ts'
import type { LogLine, LogOptions } from './operator.ts'
import type { LinkStream } from './process_link.ts'
import { ProcessRig } from './process_rig.ts'

const options = { timeout: 120_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }

async function linesOf(rig: ProcessRig, guest: string, options: LogOptions = {}): Promise<LogLine[]> {
  const lines: LogLine[] = []
  for await (const line of readLog(join(rig.config.logFolder, guest), options)) lines.push(line)
  return lines
}

/** All output to the stream's end. */
async function all(stream: LinkStream): Promise<string> {
  const pieces: Uint8Array[] = []
  for await (const { bytes } of stream.output) pieces.push(bytes)
  return Buffer.concat(pieces).toString()
}

/** Waits until something is so. */
async function until(is: () => boolean | Promise<boolean>): Promise<void> {
  while (!await is()) await sleep(10)
}

test('what guests write is in their logs, rotated, and no guest that floods makes the process grow', options,
  async () => {
    using rig = await ProcessRig.start()
    const kib = 50 * 1024
    rig.start('flood', ['flood', String(kib)])
    rig.start('yes', ['yes'])
    rig.start('hello', ['hello'])
    await rig.ended('hello')
    await rig.ended('flood')
    const grown = rig.resident()
    assert.ok(grown < 512 * 1024 * 1024, `${grown} bytes`)
    rig.link.send({ stop: 'yes', run: 1, signal: 9 })
    await rig.ended('yes')
    await until(async () => (await linesOf(rig, 'hello')).length === 1)
    const folder = join(rig.config.logFolder, 'flood')
    assert.equal(readdirSync(folder).length, LOG_FILES_MAX)
    for (const name of readdirSync(folder)) {
      assert.ok(statSync(join(folder, name)).size < LOG_FILE_BYTES_MAX + 1024 * 1024)
    }
    await until(async () => (await linesOf(rig, 'flood', { tail: 3 })).length === 3)
    const lines = await linesOf(rig, 'flood')
    assert.ok(lines.length > 100_000 && lines.every(({ text, partial }) => text.length === 63 && !partial))
    assert.ok(lines.every(({ time }, i) => i === 0 || time >= lines[i - 1]!.time))
    assert.deepEqual(await linesOf(rig, 'flood', { tail: 200_000 }), lines.slice(-200_000))
  })

test('a log that can\'t be written holds no guest up', options, async () => {
  using rig = await ProcessRig.start((folder) => writeFileSync(join(folder, 'logs'), 'in the way'))
  rig.start('flood', ['flood', '4096'])
  assert.deepEqual((await rig.ended('flood')).outcome, { kind: 'exit', code: 0 })
})

test('who is attached sees what a guest writes, gives it input, and its end', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('cat', ['cat'], { stdin: true })
  await rig.started('cat')
  const [one, other] = [rig.link.openStream(), rig.link.openStream()]
  for (const { id } of [one, other]) rig.link.send({ attach: 'cat', stream: id })
  await one.write(Buffer.from('hello '))
  await other.write(Buffer.from('there\n'))
  const big = 'x'.repeat(3 * STREAM_WINDOW_BYTES_MAX)
  const written = one.write(Buffer.from(big)).then(() => one.end())
  const [seen, alsoSeen] = await Promise.all([all(one), all(other), written])
  assert.equal(seen, `hello there\n${big}`)
  assert.equal(alsoSeen, seen)
  assert.equal(await one.status, undefined)
  assert.deepEqual((await rig.ended('cat')).outcome, { kind: 'exit', code: 0 })
  await until(async () => (await linesOf(rig, 'cat')).length > 10)
  const log = await linesOf(rig, 'cat')
  assert.equal(log[0]!.text, 'hello there')
  assert.equal(log.slice(1).map(({ text }) => text).join(''), big)
  assert.ok(log.slice(1).every(({ partial }) => partial))
})

test('an attachment to what isn\'t there ends at once, one that goes leaves the guest be', options, async () => {
  using rig = await ProcessRig.start()
  const nowhere = rig.link.openStream()
  rig.link.send({ attach: 'nobody', stream: nowhere.id })
  assert.equal(await all(nowhere), '')
  rig.start('cat', ['cat'], { stdin: true })
  await rig.started('cat')
  const gone = rig.link.openStream()
  rig.link.send({ attach: 'cat', stream: gone.id })
  await gone.write(Buffer.from('one\n'))
  await until(async () => (await linesOf(rig, 'cat')).length === 1)
  gone.close()
  rig.start('deaf', ['sleep', '500'])
  await rig.started('deaf')
  const deaf = rig.link.openStream()
  rig.link.send({ attach: 'deaf', stream: deaf.id })
  // Who reads no input takes all of it.
  await deaf.write(Buffer.alloc(10 * STREAM_WINDOW_BYTES_MAX))
  assert.match(await all(deaf), /^slept/)
  const back = rig.link.openStream()
  rig.link.send({ attach: 'cat', stream: back.id })
  back.end()
  assert.deepEqual((await rig.ended('cat')).outcome, { kind: 'exit', code: 0 })
})

test('a client that never reads is cut off, and the guest isn\'t held up', options, async () => {
  using rig = await ProcessRig.start()
  rig.start('yes', ['yes'])
  await rig.started('yes')
  const stuck = rig.link.openStream()
  rig.link.send({ attach: 'yes', stream: stuck.id })
  assert.equal(await stuck.status, undefined)
  const before = (await rig.link.figures()).guests['yes']!.hypercalls
  await until(async () => (await rig.link.figures()).guests['yes']!.hypercalls > before)
  assert.equal((await all(stuck)).length, STREAM_WINDOW_BYTES_MAX)
})

test('exec writes to its stream alone, and its status is the stream\'s', options, async () => {
  using rig = await ProcessRig.start()
  const stream = rig.link.openStream()
  rig.start('one', ['cat'], { stdin: true, stream: stream.id })
  await stream.write(Buffer.from('to and fro'))
  stream.end()
  assert.equal(await all(stream), 'to and fro')
  assert.equal(await stream.status, 0)
  const failing = rig.link.openStream()
  rig.start('two', ['exit', 'now', '9'], { stream: failing.id })
  await all(failing)
  assert.equal(await failing.status, 9)
  const bad = rig.link.openStream()
  rig.start('three', ['hello'], { stream: bad.id, memoryPagesMax: 1 })
  assert.equal(await bad.status, 125)
  assert.deepEqual(await linesOf(rig, 'one'), [])
})

test('exec is slowed to what is read of it', options, async () => {
  using rig = await ProcessRig.start()
  const stream = rig.link.openStream()
  rig.start('flood', ['flood', '8192'], { stream: stream.id })
  await rig.started('flood')
  const calls = async (): Promise<number> => (await rig.link.figures()).guests['flood']!.hypercalls
  // It stands still when all windows are full.
  for (let before = -1, now = await calls(); now !== before; now = await calls()) {
    before = now
    await sleep(100)
  }
  const text = await all(stream)
  assert.equal(text.length, 8192 * 1024)
  assert.equal(await stream.status, 0)
})

test('what exec has started ends when its stream is closed, or its host is gone', options, async () => {
  using rig = await ProcessRig.start()
  const streams = [rig.link.openStream(), rig.link.openStream()]
  for (const { id } of streams) rig.start(`x${id}`, ['yes'], { stream: id })
  rig.start('other', ['sleep', '3600000'])
  for (const { id } of streams) await rig.started(`x${id}`)
  await rig.started('other')
  streams[0]!.close()
  assert.deepEqual((await rig.ended(`x${streams[0]!.id}`)).outcome, { kind: 'signal', signal: 1 })
  rig.link.close()
  assert.equal(await streams[1]!.status, undefined)
  await rig.connect()
  const { ends, guests } = rig.link.hello
  const end = ends.find(({ id }) => id === `x${streams[1]!.id}`) ?? await rig.ended(`x${streams[1]!.id}`)
  assert.deepEqual(end.outcome, { kind: 'signal', signal: 1 })
  assert.ok(guests.some(({ id }) => id === 'other'))
})
