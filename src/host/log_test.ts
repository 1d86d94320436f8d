// host/log_test.ts: logs as they are written, rotated, read and followed; disks that fail; files that aren't logs.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { appendFileSync, closeSync, constants, linkSync, mkdirSync, mkdtempSync, openSync, readFileSync, renameSync,
  rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { LOG_LINE_BYTES_MAX } from '../base/limits.ts'
import { LogLines } from './log_lines.ts'
import { readLog } from './log_reader.ts'
import { LogWriter } from './log_writer.ts'
import type { LogLine, LogOptions } from './operator.ts'

class Folder {
  readonly path = mkdtempSync(join(tmpdir(), 'cellar-log-'))

  get guest(): string { return join(this.path, 'g') }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

const stamp = (n: number): string => `2026-11-21T14:00:00.${String(n).padStart(9, '0')}Z`
const line = (n: number): string => `${stamp(n)} stdout F line ${n}\n`
const lines = (from: number, to: number): string =>
  Array.from({ length: to - from }, (_, i) => line(from + i)).join('')

async function read(folder: string, options: LogOptions = {}): Promise<LogLine[]> {
  const found: LogLine[] = []
  for await (const one of readLog(folder, options)) found.push(one)
  return found
}

const texts = async (folder: string, options: LogOptions = {}): Promise<string[]> =>
  (await read(folder, options)).map(({ text }) => text)

const write = (log: LogWriter, text: string, channel: 1 | 2 = 1): Promise<void> =>
  new Promise((done) => log.write('g', channel, Buffer.from(text), done))

test('LogLines keeps every byte, in lines of a bounded length, however the output is cut', () => {
  const text = fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('\n', '\n\n', 'ü'.repeat(LOG_LINE_BYTES_MAX)))
  fc.assert(fc.property(fc.array(text), (pieces) => {
    const cut = new LogLines()
    const made = [...pieces.map((piece) => cut.take([{ time: 'T', channel: 2, bytes: Buffer.from(piece) }])),
      cut.take([{ time: 'T', channel: 1, bytes: undefined }])]
    assert.ok(cut.isWhole)
    const all = made.map(({ bytes }) => bytes.toString()).join('')
    const found = all.split('\n').slice(0, -1)
    assert.equal(found.length, made.reduce((sum, { count }) => sum + count, 0))
    const back = found.map((one) => {
      const match = /^T stderr ([FP]) (.*)$/s.exec(one)!
      assert.ok(Buffer.byteLength(match[2]!) <= LOG_LINE_BYTES_MAX)
      return `${match[2]}${match[1] === 'F' ? '\n' : ''}`
    }).join('')
    assert.equal(back, Buffer.from(pieces.join('')).toString())
  }), { numRuns: 60 })
})

test('LogWriter writes lines with growing times, and what had no end at the guest\'s', async () => {
  using folder = new Folder()
  const log = new LogWriter(folder.path)
  await write(log, 'one\ntwo\nth')
  await write(log, 'oops\n', 2)
  await write(log, 'ree\nlast')
  log.end('g')
  await log.settled(10_000)
  const found = await read(folder.guest)
  assert.deepEqual(found.map(({ stream, text, partial }) => [stream, text, partial]), [['stdout', 'one', false],
    ['stdout', 'two', false], ['stderr', 'oops', false], ['stdout', 'three', false], ['stdout', 'last', true]])
  const text = readFileSync(join(folder.guest, 'current'), 'utf8')
  assert.match(text, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F one\n/)
  assert.ok(found.every(({ time }, i) => i === 0 || time >= found[i - 1]!.time))
})

test('LogWriter drops what a failing disk doesn\'t take, and says so when it works again', async () => {
  using folder = new Folder()
  writeFileSync(folder.guest, 'in the way')
  const log = new LogWriter(folder.path)
  await write(log, 'one\ntwo\n')
  await write(log, 'three\n')
  rmSync(folder.guest)
  await write(log, 'four\n')
  const found = await texts(folder.guest)
  assert.match(found[0]!, /^\[3 lines are lost: .*ENOTDIR\]$/)
  assert.deepEqual(found.slice(1), ['four'])
})

test('LogWriter holds nobody up for a disk that hangs', { timeout: 60_000 }, async () => {
  using folder = new Folder()
  mkdirSync(folder.guest)
  // A pipe that nobody reads isn't even opened.
  execFileSync('mkfifo', [join(folder.guest, 'current')])
  const log = new LogWriter(folder.path)
  await Promise.all([write(log, 'one\n'), write(log, 'two\n')])
  await write(log, 'three\n')
  closeSync(openSync(join(folder.guest, 'current'), constants.O_RDONLY | constants.O_NONBLOCK))
  await log.settled(10_000)
  rmSync(join(folder.guest, 'current'))
  await write(log, 'four\n')
  const found = await texts(folder.guest)
  assert.match(found[0]!, /^\[\d lines are lost: /)
  assert.deepEqual(found.slice(1), ['four'])
})

test('readLog gives the last lines, from several files, and those since a time', async () => {
  using folder = new Folder()
  mkdirSync(folder.guest)
  writeFileSync(join(folder.guest, 'current.2'), lines(0, 3000))
  writeFileSync(join(folder.guest, 'current.1'), lines(3000, 3002))
  writeFileSync(join(folder.guest, 'current'), `${lines(3002, 3005)}${stamp(3005)} stdout F no end yet`)
  const all = Array.from({ length: 3005 }, (_, i) => `line ${i}`)
  assert.deepEqual(await texts(folder.guest), all)
  for (const tail of [0, 1, 3, 4, 5, 6, 2999, 3004, 3005, 5000]) {
    assert.deepEqual(await texts(folder.guest, { tail }), tail === 0 ? [] : all.slice(-tail), `${tail}`)
  }
  assert.equal((await texts(folder.guest, { since: Date.parse(stamp(0)) + 1 })).length, 0)
  assert.equal((await texts(folder.guest, { since: Date.parse(stamp(0)), tail: 2 })).length, 2)
})

test('readLog leaves out what isn\'t a line, and files that aren\'t a log\'s own', async () => {
  using folder = new Folder()
  assert.deepEqual(await texts(folder.guest), [])
  mkdirSync(folder.guest)
  const secret = join(folder.path, 'secret')
  writeFileSync(secret, line(1))
  symlinkSync(secret, join(folder.guest, 'current.1'))
  linkSync(secret, join(folder.guest, 'current.2'))
  writeFileSync(join(folder.guest, 'current'),
    `${line(2)}nonsense\n${stamp(3)} stdout F ${'x'.repeat(1_000_000)}\n\n${line(4)}${stamp(5)} stdin F no\n`)
  assert.deepEqual(await texts(folder.guest), ['line 2', 'line 4'])
  symlinkSync(folder.guest, join(folder.path, 'other'))
  assert.deepEqual(await texts(join(folder.path, 'other')), [])
})

test('readLog follows what comes, over rotations and a folder that is made later, until it is called off',
  { timeout: 60_000 }, async () => {
    using folder = new Folder()
    const off = new AbortController()
    const seen: string[] = []
    let wake = (): void => {}
    const reader = (async () => {
      for await (const { text } of readLog(folder.guest, { follow: true, signal: off.signal })) {
        seen.push(text)
        wake()
      }
    })()
    const have = async (count: number): Promise<void> => {
      while (seen.length < count) await new Promise<void>((resolve) => { wake = resolve })
    }
    const path = join(folder.guest, 'current')
    mkdirSync(folder.guest)
    writeFileSync(path, lines(0, 2))
    await have(2)
    appendFileSync(path, line(2).slice(0, 20))
    appendFileSync(path, line(2).slice(20))
    await have(3)
    // Twice, before it can have looked.
    appendFileSync(path, line(3))
    renameSync(path, `${path}.1`)
    writeFileSync(path, lines(4, 6))
    renameSync(`${path}.1`, `${path}.2`)
    renameSync(path, `${path}.1`)
    writeFileSync(path, lines(6, 7))
    await have(7)
    off.abort()
    await reader
    assert.deepEqual(seen, Array.from({ length: 7 }, (_, i) => `line ${i}`))
  })
