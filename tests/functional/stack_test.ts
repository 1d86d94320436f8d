// tests/functional/stack_test.ts: cells that share the CPU, as an operator runs them: stacks, and one cell by flags.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, Folder, guest, start, until, type Running } from '../support.ts'

/** Cells of a stack: name → what follows its program, in YAML. */
function stackOf(cells: Record<string, string>, top = ''): string {
  const lines = Object.entries(cells).map(([name, text]) => {
    const [program, ...rest] = text.split(' ')
    return `  ${name}: { program: ${guest(program!)}${rest.length === 0 ? '' : `, ${rest.join(' ')}`} }`
  })
  return `${top}\ncells:\n${lines.join('\n')}\n`
}

const EXIT = (code: number): string => `exit args: [exit, now, "${code}"]`
const SPIN = 'spin args: [spin, ready]'

/** A row of the table at the end, by the names of its columns. */
function rowOf(stderr: string, cell: string): Record<string, string> {
  const lines = stderr.slice(stderr.indexOf('CELL ')).split('\n')
  const heads = lines[0]!.split(/\s{2,}/)
  const row = lines.find((line) => line.startsWith(`${cell} `))
  assert.ok(row !== undefined, stderr)
  const texts = row.split(/\s{2,}/)
  return Object.fromEntries(heads.map((head, i) => [head, texts[i] ?? '']))
}

const percent = (text: string | undefined): number => Number(/^([\d.]+) %$/.exec(text!)![1])

/** Waits until each cell has said that it is ready. */
async function ready(running: Running, count: number): Promise<void> {
  await until(`${count} cells run`, () => running.said().toString().split('ready\n').length > count)
}

test('a stack ends when all of its cells have, with the status of the one that failed', async () => {
  using folder = new Folder()
  const cases: [Record<string, string>, number][] = [
    [{ a: EXIT(0), b: EXIT(0) }, 0], [{ a: EXIT(0), b: EXIT(7), c: EXIT(0) }, 7], [{ a: EXIT(256) }, 0],
    [{ a: EXIT(3), b: 'sleep args: [sleep, "300"]', c: 'exit args: [exit, now, "9"]' }, 3],
    [{ a: EXIT(0), b: 'exit args: [exit, raise, "1"]' }, 129],
    [{ a: EXIT(0), b: 'spin timeout: 100ms' }, 124],
  ]
  for (const [cells, expected] of cases) {
    const { status, stderr } = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(cells))])
    assert.equal(status, expected, stderr)
  }
})

test('stdout has the cells\' lines with their names and nothing else, stderr the table', async () => {
  using folder = new Folder()
  const cells = { web: 'hello', longer: 'exit args: [exit, "5"]', lots: 'flood args: [flood, "64"]' }
  const { status, stdout, stderr } = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(cells))])
  assert.equal(status, 5)
  const lines = stdout.toString().split('\n')
  assert.equal(lines.pop(), '')
  const other = lines.filter((line) => !line.startsWith('lots   | '))
  assert.deepEqual(other.toSorted(), ['longer | ending', 'web    | Hello from a cell'])
  assert.equal(lines.length - other.length, 1024)
  assert.ok(lines.every((line) => other.includes(line) || /^lots   \| flood\.{58}$/.test(line)))
  assert.match(stderr,
    /^CELL +PCPU +SHARES +RESERVED +LIMIT +DUE +GOT +RUNNABLE +THROTTLED +WAITING +END +WAITED FOR$/m)
  assert.equal(rowOf(stderr, 'longer')['END'], 'exit 5')
  assert.match(stderr, /\n3 cells on \d+ pCPUs for [\d.]+ s: [\d.]+ % of their time was used\n$/)
})

test('lines of floods on several pCPUs stay whole, to the last of them', async () => {
  using folder = new Folder()
  const cells = Object.fromEntries(['a', 'b', 'c', 'd'].map((name) => [name, 'flood args: [flood, "512"]']))
  const file = folder.write('stack.yaml', stackOf(cells, 'pcpus: 2'))
  const { status, stdout } = await cellar(['run', '-f', file])
  assert.equal(status, 0)
  const lines = stdout.toString().split('\n')
  assert.equal(lines.pop(), '')
  assert.equal(lines.length, 4 * 512 * 16)
  for (const line of lines) assert.match(line, /^[abcd] \| flood\.{58}$/)
})

test('after its time a stack is stopped, which is no failure, and no cell but one that failed before', async () => {
  using folder = new Folder()
  const hogs = { a: SPIN, b: 'sleep args: [sleep, "3600000"]', held: 'spin cpu-limit: 1%' }
  const stopped = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(hogs, 'for: 1s'))])
  assert.equal(stopped.status, 0, stopped.stderr)
  for (const name of ['a', 'b', 'held']) assert.equal(rowOf(stopped.stderr, name)['END'], 'runs')
  const failed = await cellar(['run', '-f', folder.write('stack.yaml', stackOf({ ...hogs, c: EXIT(6) }, 'for: 1s'))])
  assert.equal(failed.status, 6, failed.stderr)
})

for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143]] as const) {
  test(`${signal} ends a stack with ${status}, whatever its cells do`, async () => {
    using folder = new Folder()
    const cells = { a: SPIN, b: SPIN, held: `${SPIN}, cpu-limit: 1%`, s: 'sleep args: [sleep, "3600000"]' }
    for (const top of ['pcpus: 1', 'for: 1h', 'pcpus: 4']) {
      using running = start(['run', '-f', folder.write('stack.yaml', stackOf(cells, top))])
      await ready(running, 3)
      running.child.kill(signal)
      const ended = await running.ended
      assert.deepEqual([ended.status, ended.signal], [status, null], ended.stderr)
      assert.equal(rowOf(ended.stderr, 'a')['END'], 'runs')
    }
  })
}

test('a stack ends though nobody reads what it writes', async () => {
  using folder = new Folder()
  const file = folder.write('stack.yaml', stackOf({ a: 'flood', b: 'flood', c: 'flood' }, 'pcpus: 2'))
  using running = start(['run', '-f', file], { unread: true })
  await new Promise((resolve) => { setTimeout(resolve, 1500) })
  running.child.kill('SIGINT')
  // Its end is the process's: a pipe that is unread is never closed.
  await until('the stack has ended', () => running.child.exitCode !== null)
  assert.equal(running.child.exitCode, 130)
  running.child.stdout!.destroy()
  await running.ended
})

test('a trap in a stack is told with the name of the cell, and the others go on', async () => {
  using folder = new Folder()
  const cells = { fine: 'sleep args: [sleep, "300"]', broken: 'trap args: [trap, divide]' }
  const { status, stdout, stderr } = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(cells))])
  assert.equal(status, 134)
  assert.match(stderr, /^broken \| about to trap: divide$/m)
  assert.match(stderr, /^cellar: broken trapped: divide by zero\n  #0 +divide /m)
  assert.equal(stdout.toString(), 'fine   | slept 300 ms\n')
  assert.equal(rowOf(stderr, 'broken')['END'], 'trap')
  assert.equal(rowOf(stderr, 'fine')['END'], 'exit 0')
})

test('shares divide a pCPU, and the table says so', async () => {
  using folder = new Folder()
  const cells = { one: `${SPIN}, shares: 100`, three: `${SPIN}, shares: 300`, held: `${SPIN}, cpu-limit: 10%` }
  const { stderr } = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(cells, 'pcpus: 1\nfor: 2s'))])
  const [one, three, held] = ['one', 'three', 'held'].map((name) => rowOf(stderr, name))
  const ratio = percent(three!['GOT']) / percent(one!['GOT'])
  assert.ok(ratio > 2 && ratio < 4.5, stderr)
  assert.ok(percent(held!['GOT']) < 20 && percent(held!['THROTTLED']) > 10, stderr)
  assert.deepEqual([one!['SHARES'], three!['SHARES'], held!['LIMIT'], one!['LIMIT']], ['100', '300', '10.0 %', '-'])
  assert.match(one!['WAITED FOR']!, /^three [\d.]+ %/)
  for (const row of [one!, three!, held!]) {
    const sum = ['GOT', 'RUNNABLE', 'THROTTLED', 'WAITING'].reduce((all, column) => all + percent(row[column]), 0)
    assert.ok(Math.abs(sum - 100) < 1, stderr)
  }
})

test('SIGHUP reads the manifest again, and gives cells and pools their new terms', async () => {
  using folder = new Folder()
  const text = (shares: number, limit: string): string => stackOf({ a: `${SPIN}, shares: 100`,
    b: `${SPIN}, shares: ${shares}`, pooled: `${SPIN}, pool: p` }, `pcpus: 1\npools: { p: { cpu-limit: ${limit} } }`)
  const file = folder.write('stack.yaml', text(100, '50%'))
  using running = start(['run', '-f', file])
  await ready(running, 3)
  // What is wrong is told, and changes nothing.
  writeFileSync(file, 'cells: 5\n')
  running.child.kill('SIGHUP')
  await until('the mistake is told', () => running.told().includes('[MANIFEST_INVALID]'))
  writeFileSync(file, text(100, '50%').replace('shares: 100', 'cpu-reservation: 97%'))
  running.child.kill('SIGHUP')
  await until('the refusal is told', () => running.told().includes('[RESERVATION_REFUSED]'))
  writeFileSync(file, `program: ${guest('hello')}\n`)
  running.child.kill('SIGHUP')
  writeFileSync(file, text(5000, '2%'))
  running.child.kill('SIGHUP')
  await new Promise((resolve) => { setTimeout(resolve, 3000) })
  running.child.kill('SIGTERM')
  const { status, stderr } = await running.ended
  assert.equal(status, 143, stderr)
  const [a, b, pooled] = ['a', 'b', 'p/pooled'].map((name) => rowOf(stderr, name))
  assert.deepEqual([a!['SHARES'], b!['SHARES']], ['100', '5000'])
  assert.ok(percent(b!['GOT']) > 3 * percent(a!['GOT']), stderr)
  assert.ok(percent(pooled!['THROTTLED']) > 20 && percent(pooled!['DUE']) < 3, stderr)
})

test('copies have names of their own, and listen on ports of their own', async () => {
  using folder = new Folder()
  const cells = { many: 'hello copies: 3, listen: ["tcp:127.0.0.1:0"]' }
  const { status, stdout, stderr } = await cellar(['run', '-f', folder.write('stack.yaml', stackOf(cells))])
  assert.equal(status, 0, stderr)
  assert.deepEqual(stdout.toString().trimEnd().split('\n').toSorted(),
    [1, 2, 3].map((i) => `many-${i} | Hello from a cell`))
})

test('the example of noisy neighbours runs', async () => {
  using folder = new Folder()
  const example = readFileSync(new URL('../../examples/noisy-neighbours.yaml', import.meta.url), 'utf8')
  const text = example.replaceAll(/\.\.\/guests\/(\w+)\.wasm/g, (_, name: string) => guest(name)).replace('10s', '2s')
  const { status, stderr } = await cellar(['run', '-f', folder.write('stack.yaml', text)])
  assert.equal(status, 0, stderr)
  assert.ok(percent(rowOf(stderr, 'eight')['GOT']) > percent(rowOf(stderr, 'one')['GOT']), stderr)
})

const SCHEDULED = [['--shares', '50'], ['--cpu-limit', '50%'], ['--cpu-reservation', '0.25'], ['--quantum', '10ms'],
  ['--deterministic'], ['--unbounded']] as const

for (const flags of SCHEDULED) {
  test(`a program run with ${flags.join(' ')} has its own streams and status`, async () => {
    const input = 'no end at the end\n\nof input'
    const copied = await cellar(['run', ...flags, guest('cat')], { stdin: input })
    assert.deepEqual([copied.status, copied.stdout.toString(), copied.stderr], [0, input, ''])
    const ended = await cellar(['run', ...flags, guest('exit'), '7'])
    assert.deepEqual([ended.status, ended.stdout.toString(), ended.stderr], [7, 'ending', ''])
    const trapped = await cellar(['run', ...flags, '--name', 'it', guest('trap'), 'divide'])
    assert.equal(trapped.status, 134)
    assert.match(trapped.stderr, /^about to trap: divide\ncellar: it trapped: divide by zero\n  #0 +divide /)
  })
}

test('--timeout stops a program that its limit holds back, one that spins and one that waits', async () => {
  for (const args of [['--cpu-limit', '1%', guest('spin')], ['--shares', '1', guest('spin')],
    ['--cpu-limit', '1%', guest('sleep'), '3600000'], ['--quantum', '1s', guest('cat')]]) {
    using running = start(['run', '--timeout', '300ms', ...args], { stdin: 'open' })
    const { status, stderr } = await running.ended
    assert.equal(status, 124, stderr)
    assert.match(stderr, /^cellar: Stopped .* its timeout of 300 ms \[GUEST_TIMED_OUT\]\n {2}hint: Raise --timeout/)
  }
})

test('signals end a program that shares its pCPU with 128 + their number', async () => {
  for (const [signal, expected] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
    for (const flags of [['--cpu-limit', '0.1%'], ['--shares', '7']]) {
      using running = start(['run', ...flags, guest('spin'), 'ready'])
      await ready(running, 1)
      running.child.kill(signal)
      const { status, stderr } = await running.ended
      assert.deepEqual([status, stderr], [expected, ''])
    }
  }
})

test('--stats with --cpu-limit tells what the limit has kept from the program', async () => {
  using running = start(['run', '--stats', '--name', 'hog', '--cpu-limit', '10%', guest('spin'), 'ready'])
  await ready(running, 1)
  await new Promise((resolve) => { setTimeout(resolve, 1500) })
  running.child.kill('SIGINT')
  const { status, stdout, stderr } = await running.ended
  assert.deepEqual([status, stdout.toString()], [130, 'ready\n'])
  const row = rowOf(stderr, 'hog')
  assert.ok(percent(row['GOT']) < 25 && percent(row['THROTTLED']) > 40, stderr)
})

test('a deterministic program gives the same answer whatever the quantum is', async () => {
  for (const quantum of ['100us', '1ms', '1s']) {
    const flags = ['--deterministic', '--quantum', quantum]
    const { status, stdout } = await cellar(['run', ...flags, guest('primes'), '2000000'])
    assert.deepEqual([status, stdout.toString()], [0, '148933\n'])
  }
})

test('one pCPU alone is not bound to a processor: another run would be bound to the same', {
  skip: process.platform === 'linux' ? false : 'needs /proc',
}, async () => {
  using running = start(['run', '--shares', '7', guest('spin'), 'ready'])
  await ready(running, 1)
  const tasks = `/proc/${running.child.pid}/task`
  const allowed = readdirSync(tasks).map((task) =>
    /^Cpus_allowed_list:\s*(.*)$/m.exec(readFileSync(`${tasks}/${task}/status`, 'utf8'))![1])
  assert.equal(new Set(allowed).size, 1, `${allowed}`)
})
