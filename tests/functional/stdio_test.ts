// tests/functional/stdio_test.ts: stdin, stdout and stderr: any bytes, through anything, with back-pressure.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { cellar, CELLAR, Folder, guest, start, startCommand, until, usageOf, type Running } from '../support.ts'

const MIB = 1024 * 1024
const skip = process.platform === 'linux' ? false : 'needs /proc'

test('bytes go through a cell unchanged, by sockets', async () => {
  for (const size of [0, 1, 4097, 10 * MIB]) {
    const bytes = randomBytes(size)
    for (const watch of [[], ['--timeout', '50s']]) {
      const { status, stdout, stderr } = await cellar(['run', ...watch, guest('cat')], { stdin: bytes })
      assert.equal(status, 0, stderr)
      assert.ok(stdout.equals(bytes), `${size} bytes came out as ${stdout.length}`)
    }
  }
})

test('bytes go through a cell unchanged, by pipes and by files', async () => {
  using folder = new Folder()
  const bytes = randomBytes(4 * MIB + 17)
  folder.write('in', bytes)
  const run = `"${CELLAR}" run "${guest('cat')}"`
  for (const line of [`cat in | ${run} | cat > out`, `${run} < in > out`, `cat in | ${run} | ${run} > out`,
    `${run} < in | cat > out`, `cat in | ${run} > out`]) {
    using running = startCommand(['bash', '-o', 'pipefail', '-c', line], { cwd: folder.path })
    const { status, stderr } = await running.ended
    assert.equal(status, 0, `${line}: ${stderr}`)
    assert.ok(readFileSync(folder.at('out')).equals(bytes), line)
  }
})

test('what a cell writes to a file goes where the file stands, and to its end with >>', async () => {
  using folder = new Folder()
  const line = `(echo before; "${CELLAR}" run "${guest('hello')}"; echo after) > out; "${CELLAR}" run "$0" >> out`
  using running = startCommand(['bash', '-c', line, guest('hello')], { cwd: folder.path })
  await running.ended
  const text = readFileSync(folder.at('out'), 'utf8')
  assert.equal(text, 'before\nHello from a cell\nafter\nHello from a cell\n')
})

test('a cell leaves to the next program what it does not read', async () => {
  using folder = new Folder()
  folder.write('in', 'one\ntwo\n')
  using running = startCommand(['bash', '-c', `("${CELLAR}" run "${guest('hello')}"; cat) < in`], { cwd: folder.path })
  assert.equal((await running.ended).stdout.toString(), 'Hello from a cell\none\ntwo\n')
  using piped = startCommand(['bash', '-c', `cat in | ("${CELLAR}" run "${guest('hello')}"; cat)`],
    { cwd: folder.path })
  assert.equal((await piped.ended).stdout.toString(), 'Hello from a cell\none\ntwo\n')
})

test('/dev/null and streams that are closed read as empty and take what is written', async () => {
  const nothing = openSync('/dev/null', 'r')
  try {
    const { status, stdout } = await cellar(['run', guest('cat')], { stdin: nothing })
    assert.deepEqual([status, stdout.length], [0, 0])
  } finally {
    closeSync(nothing)
  }
  for (const redirection of ['<&-', '>&-', '2>&-', '> /dev/null', '<&- >&- 2>&-']) {
    using running = startCommand(['bash', '-c', `"${CELLAR}" run "$0" ${redirection}`, guest('cat')], { stdin: 'x' })
    const { status, signal } = await running.ended
    assert.deepEqual([status, signal], [0, null], redirection)
  }
})

test('a full disk is an errno for the guest', { skip }, async () => {
  using running = startCommand(['bash', '-c', `"${CELLAR}" run "$0" > /dev/full`, guest('yes')])
  const { status, stderr } = await running.ended
  assert.equal(status, 1)
  assert.match(stderr, /^yes: standard output: No space left on device/)
})

test('stderr is apart from stdout', async () => {
  const { status, stdout, stderr } = await cellar(['run', guest('cat'), 'nowhere', '-'], { stdin: 'data' })
  assert.equal(status, 1)
  assert.equal(stdout.toString(), 'data')
  assert.match(stderr, /^cat: nowhere: [^\n]+\n$/)
})

test('a guest is held while nobody reads its stdout, and goes on when somebody does', { skip }, async () => {
  using running = start(['run', guest('yes')], { unread: true })
  await settled(running)
  const before = usageOf(running)
  assert.ok(before.residentBytes < 300 * MIB, `${before.residentBytes} bytes are resident`)
  await sleep(1000)
  const after = usageOf(running)
  assert.ok(after.cpuMs - before.cpuMs <= 300, `used ${after.cpuMs - before.cpuMs} ms of CPU in 1 s`)
  assert.ok(after.residentBytes < before.residentBytes + 32 * MIB)

  let bytes = 0
  for await (const chunk of running.child.stdout!) {
    assert.match((chunk as Buffer).subarray(0, 100).toString(), /^(y?\n)?(y\n)*y?$/)
    if ((bytes += (chunk as Buffer).length) > 20 * MIB) break
  }
  assert.equal((await running.ended).status, 141)
})

test('a reader that sleeps gets every byte in the end', async () => {
  const bytes = randomBytes(4 * MIB)
  using running = start(['run', guest('cat')], { stdin: bytes, unread: true })
  const chunks: Buffer[] = []
  await sleep(500)
  for await (const chunk of running.child.stdout!) {
    chunks.push(chunk as Buffer)
    if (chunks.length % 8 === 0) await sleep(2)
  }
  assert.ok(Buffer.concat(chunks).equals(bytes))
  assert.equal((await running.ended).status, 0)
})

test('a stdin that stays open without data costs no CPU, and its data comes through later', { skip }, async () => {
  for (const watch of [[], ['--stats']]) {
    using running = start(['run', ...watch, guest('cat')], { stdin: 'open' })
    running.child.stdin!.write('first')
    await until('the first data is there', () => running.said().toString() === 'first')
    await settled(running)
    const before = usageOf(running)
    await sleep(1000)
    const used = usageOf(running).cpuMs - before.cpuMs
    assert.ok(used <= 300, `used ${used} ms of CPU in 1 s`)
    running.child.stdin!.end('last')
    const { status, stdout } = await running.ended
    assert.deepEqual([status, stdout.toString()], [0, 'firstlast'])
  }
})

// Waits until stdin may be read; status 9 if it was something else that happened.
const POLL = `(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i64.store (i32.const 0) (i64.const 42))
    (i32.store8 (i32.const 8) (i32.const 1))
    (call $exit (select (i32.const 0) (i32.const 9) (i32.and
      (i32.eqz (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))
      (i64.eq (i64.load (i32.const 128)) (i64.const 42)))))))`

test('a guest that polls stdin costs no CPU until there is data, or the end', { skip }, async () => {
  using folder = new Folder()
  const program = await folder.writeProgram('poll.wasm', POLL)
  for (const data of ['x', '']) {
    using running = start(['run', program], { stdin: 'open' })
    await settled(running)
    const before = usageOf(running)
    await sleep(500)
    assert.ok(usageOf(running).cpuMs - before.cpuMs <= 200)
    running.child.stdin!.end(data)
    const { status, stderr } = await running.ended
    assert.equal(status, 0, stderr)
  }
})

/** Waits until the process is idle: less than 20 ms of CPU in 200 ms. */
async function settled(running: Running): Promise<void> {
  let before = -1
  for (let i = 0; i < 50; i++) {
    await sleep(200)
    const { cpuMs } = usageOf(running)
    if (before >= 0 && cpuMs - before < 20) return
    before = cpuMs
  }
  assert.fail('the process is never idle')
}
