// tests/security/limits_test.ts: a guest that asks for too much gets an errno, and the host stays as it is.
//
// Guests are text: each ends by a trap with a name that says which answer was wrong (a function called `wrong_…`), or
// with status 0.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellar, CELLAR, Folder, startCommand, type Result } from '../support.ts'

// errno of WASI
const EBADF = 8
const EFAULT = 21
const EINVAL = 28
const EMFILE = 33
const ENAMETOOLONG = 37

const IMPORTS = {
  path_open: 'i32 i32 i32 i32 i32 i64 i64 i32 i32', fd_close: 'i32', fd_write: 'i32 i32 i32 i32',
  fd_read: 'i32 i32 i32 i32', poll_oneoff: 'i32 i32 i32 i32', random_get: 'i32 i32', clock_time_get: 'i32 i64 i32',
  path_create_directory: 'i32 i32 i32', fd_readdir: 'i32 i32 i32 i64 i32', fd_seek: 'i32 i64 i32 i32',
  fd_renumber: 'i32 i32', fd_allocate: 'i32 i64 i64',
}

/** A program with a memory of `pages` whose `_start` is `body`; `more` are its other functions. */
function program(body: string, { more = '', pages = 2 } = {}): string {
  const imports = Object.entries(IMPORTS).map(([name, params]) =>
    `(import "wasi_snapshot_preview1" "${name}" (func $${name} (param ${params}) (result i32)))`)
  return `(module ${imports.join('\n')} (memory (export "memory") ${pages}) (data (i32.const 0) ".full\\n") ${more}
    (func $_start (export "_start") (local $errno i32) ${body}))`
}

// A call that must be answered with one of `errnos`.
function expect(call: string, ...errnos: number[]): string {
  const wrong = errnos.map((errno) => `(i32.eq (local.get $errno) (i32.const ${errno}))`)
    .reduce((a, b) => `(i32.or ${a} ${b})`)
  return `(local.set $errno ${call}) (if (i32.eqz ${wrong}) (then unreachable))`
}

async function run(text: string, flags: readonly string[] = []): Promise<Result> {
  using folder = new Folder()
  folder.folder('granted')
  return await cellar(['run', '--dir', `${folder.at('granted')}:/`, ...flags,
    await folder.writeProgram('guest.wasm', text)])
}

async function succeeds(text: string): Promise<void> {
  for (const flags of [[], ['--timeout', '50s']]) {
    const { status, stderr } = await run(text, flags)
    assert.deepEqual([status, stderr], [0, ''])
  }
}

const OPEN = (path = 0, length = 1): string => `(call $path_open (i32.const 3) (i32.const 0) (i32.const ${path})
  (i32.const ${length}) (i32.const 2) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 128))`

// Opens the folder until it may not, says so, closes one, opens one, and finds that this was all.
const HOARD = program(`
  (loop $again (local.set $errno ${OPEN()}) (br_if $again (i32.eqz (local.get $errno))))
  (if (i32.ne (local.get $errno) (i32.const ${EMFILE})) (then unreachable))
  (i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 5))
  ${expect('(call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))', 0)}
  ${expect('(call $fd_close (i32.const 5))', 0)} ${expect(OPEN(), 0)} ${expect(OPEN(), EMFILE)}
  ${expect('(call $fd_close (i32.const 4))', 0)}`)

test('a guest that hoards descriptors gets EMFILE and lives on, whatever the process may have', async () => {
  using folder = new Folder()
  const path = await folder.writeProgram('hoard.wasm', HOARD)
  for (const limit of [64, 1024, 20_000]) {
    for (const flags of [[], ['--stats']]) {
      const line = `ulimit -n ${limit} && exec "${CELLAR}" run "$@"`
      using running = startCommand(['bash', '-c', line, 'sh', '--dir', folder.path, ...flags, path])
      const { status, stdout, stderr } = await running.ended
      assert.deepEqual([status, stdout.toString()], [0, 'full\n'], stderr)
    }
  }
})

test('a guest has 65,536 descriptors at most', async (t) => {
  using folder = new Folder()
  const path = await folder.writeProgram('hoard.wasm', HOARD)
  using running = startCommand(['bash', '-c', `ulimit -n 70000 2>/dev/null || exit 99; exec "${CELLAR}" run "$@"`, 'sh',
    '--stats', '--dir', folder.path, path])
  const { status, stdout, stderr } = await running.ended
  if (status === 99) return t.skip('a process can\'t have 70,000 descriptors here')
  assert.deepEqual([status, stdout.toString()], [0, 'full\n'], stderr)
  // 4 were there before; the one that failed, one that succeeded again, and one more that failed.
  assert.match(stderr, RegExp(`path_open ${65_536 - 4 + 3}\\b`))
})

test('lists of buffers that are too long or lie are refused whole', async () => {
  const write = (pointer: number, count: number): string =>
    `(call $fd_write (i32.const 1) (i32.const ${pointer}) (i32.const ${count}) (i32.const 24))`
  await succeeds(program(`
    ${expect(write(1024, 1025), EINVAL)} ${expect(write(1024, 0x20000000), EINVAL, EFAULT)}
    ${expect(write(1024, -1), EINVAL, EFAULT)} ${expect(write(131_072 - 8, 2), EFAULT)}
    ${expect(write(-8, 1), EFAULT)} ${expect(write(-8, 2), EFAULT)}
    (i32.store (i32.const 1024) (i32.const 0)) (i32.store (i32.const 1028) (i32.const 0x7fffffff))
    ${expect(write(1024, 1), EFAULT)}
    (i32.store (i32.const 1028) (i32.const -1)) ${expect(write(1024, 1), EFAULT)}
    (i32.store (i32.const 1024) (i32.const -1)) (i32.store (i32.const 1028) (i32.const 2))
    ${expect(write(1024, 1), EFAULT)}
    ${expect(write(8192, 1024), 0)}`))
})

test('1,024 buffers that are all the whole memory move a bounded number of bytes', async () => {
  const fill = `(loop $l
    (i32.store offset=4 (local.get $errno) (i32.const 1048576)) (i32.store (local.get $errno) (i32.const 0))
    (br_if $l (i32.lt_u (local.tee $errno (i32.add (local.get $errno) (i32.const 8))) (i32.const 8192))))`
  const write = '(call $fd_write (i32.const 1) (i32.const 0) (i32.const 1024) (i32.const 16384))'
  const { status, stdout } = await run(program(`${fill} ${expect(write, 0)}`, { pages: 16 }))
  assert.equal(status, 0)
  assert.ok(stdout.length > 0 && stdout.length <= 1024 * 1024, `${stdout.length} bytes`)
})

test('a poll of too many subscriptions, or beyond the memory, is refused', async () => {
  const poll = (pointer: number, count: number, events = 65_536): string =>
    `(call $poll_oneoff (i32.const ${pointer}) (i32.const ${events}) (i32.const ${count}) (i32.const 64))`
  await succeeds(program(`
    ${expect(poll(0, 0), EINVAL)} ${expect(poll(0, -1), EINVAL)} ${expect(poll(0, 131_074), EINVAL)}
    ${expect(poll(0, 131_073), EFAULT)} ${expect(poll(131_072 - 47, 1), EFAULT)} ${expect(poll(-48, 1), EFAULT)}
    ${expect(poll(0, 1, 131_072 - 31), EFAULT)}
    ${expect(poll(0, 1), 0)}`))
})

test('a poll of all the subscriptions that there may be is answered', async () => {
  // Zeroes are clocks that ring at once. 131,073 × (48 + 32) bytes: 161 pages.
  const poll = '(call $poll_oneoff (i32.const 0) (i32.const 6291504) (i32.const 131073) (i32.const 64))'
  await succeeds(program(expect(poll, 0), { pages: 200 }))
})

test('paths that are too long, or beyond the memory, are refused', async () => {
  await succeeds(program(`
    (memory.fill (i32.const 1024) (i32.const 97) (i32.const 60000))
    ${expect(OPEN(1024, 4096), ENAMETOOLONG)} ${expect(OPEN(1024, 60_000), ENAMETOOLONG)}
    ${expect(OPEN(1024, 256), ENAMETOOLONG)}
    ${expect(OPEN(1024, -1), EFAULT, ENAMETOOLONG)} ${expect(OPEN(131_071, 2), EFAULT)} ${expect(OPEN(-1, 1), EFAULT)}
    ${expect('(call $path_create_directory (i32.const 3) (i32.const 1024) (i32.const 5000))', ENAMETOOLONG)}
    ${expect('(call $path_create_directory (i32.const 3) (i32.const 1024) (i32.const 255))', 0)}`))
})

test('huge numbers are refused, or served as far as the memory goes', async () => {
  await succeeds(program(`
    ${expect('(call $random_get (i32.const 0) (i32.const -1))', EFAULT)}
    ${expect('(call $random_get (i32.const 0) (i32.const 131073))', EFAULT)}
    ${expect('(call $random_get (i32.const 0) (i32.const 131072))', 0)}
    ${expect('(call $fd_readdir (i32.const 3) (i32.const 0) (i32.const -1) (i64.const 0) (i32.const 64))', EFAULT)}
    ${expect('(call $fd_close (i32.const -1))', EBADF)} ${expect('(call $fd_close (i32.const 0x7fffffff))', EBADF)}
    ${expect('(call $fd_renumber (i32.const 3) (i32.const -1))', EBADF)}
    ${expect('(call $fd_renumber (i32.const 3) (i32.const 65535))', EBADF)}
    ${expect('(call $clock_time_get (i32.const -1) (i64.const -1) (i32.const 0))', EINVAL)}
    ${expect('(call $clock_time_get (i32.const 0) (i64.const -1) (i32.const 131065))', EFAULT)}`))
})

test('recursion without end traps, even where it is a hypercall that finds no stack', async () => {
  const down = `(func $down (param i32) (result i32)
    (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 64)))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 32)))
    (drop (call $fd_close (i32.const 99)))
    (i32.add (call $down (local.get 0)) (i32.const 1)))`
  for (const flags of [[], ['--stats']]) {
    const { status, stderr } = await run(program('(drop (call $down (i32.const 0)))', { more: down }), flags)
    assert.equal(status, 134, stderr)
    assert.match(stderr, /trapped: call stack exhausted\n  #0 +down +function/)
  }
})

test('a memory without a limit of its own ends at the cell\'s, to the page', async () => {
  const grow = (pages: number, was: number): string =>
    `(if (i32.ne (memory.grow (i32.const ${pages})) (i32.const ${was})) (then unreachable))`
  const { status, stderr } = await run(program(`${grow(65_535, -1)} ${grow(-1, -1)} ${grow(15, -1)} ${grow(14, 2)}
    ${grow(1, -1)} ${grow(0, 16)} (i32.store8 (i32.const 1048575) (i32.const 1))`), ['--memory', '1MiB'])
  assert.equal(status, 0, stderr)
})
