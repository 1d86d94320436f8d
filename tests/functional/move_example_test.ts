// tests/functional/move_example_test.ts: examples/move-a-running-program.md, command by command, with fewer digits.
//
// The page's blocks of shell are one session of bash. What is compared is what the page promises: nothing is computed
// twice or not at all, the results are right, and who went on has the nonce of before.

import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { isSupported } from '../../src/sys/libc.ts'
import { ROOT, startCommand } from '../support.ts'

const PAGE = readFileSync(join(ROOT, 'examples/move-a-running-program.md'), 'utf8')
/** Some fifteen seconds of a computer's time; and their hash, by another program. */
const DIGITS = 60_000
const SUM = '13b41013c54d3663'

/** The page's commands, one after another, each with a line before what it says. In folders beneath `base`. */
function script(base: string): string {
  const blocks = [...PAGE.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, block]) => block!)
  assert.ok(blocks.length > 8, 'the page has blocks of shell')
  const echoed = blocks.flatMap((block) => block.trimEnd().split('\n'))
    .map((line) => /^[ab] /.test(line) ? `echo '$ ${line}'\n${line}` : line)
  // A command that fails ends the session, and its hosts with it: they would hold our end of the pipe open.
  const text = ['set -eu', `trap '[ -z "$(jobs -p)" ] || kill -KILL $(jobs -p)' EXIT`, ...echoed].join('\n')
  for (const name of ['/tmp/cellar-a', '/tmp/cellar-b', 'DIGITS=150000']) assert.ok(text.includes(name), name)
  return text.replaceAll('/tmp/cellar-', join(base, 'c-')).replace('DIGITS=150000', `DIGITS=${DIGITS}`)
}

/** What each command has said. */
function answers(said: string): Map<string, string[]> {
  const found = new Map<string, string[]>()
  for (const part of said.split(/^\$ /m).slice(1)) {
    const [command, ...lines] = part.trimEnd().split('\n')
    found.set(command!, lines)
  }
  return found
}

/** Ends what still runs there: the page's last commands leave nothing, unless one before them has failed. */
function endAll(base: string): void {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number)) {
    try {
      const isOne = pid !== process.pid && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(base)
      if (isOne) process.kill(pid, 'SIGKILL')
    } catch {
      // It has ended meanwhile.
    }
  }
}

test('the page on moving a running program says what happens', {
  skip: isSupported() ? false : 'needs Linux and a Node with FFI', timeout: 240_000,
}, async () => {
  const base = mkdtempSync(join(tmpdir(), 'ex-'))
  try {
    using session = startCommand(['bash', '-c', script(base)], { cwd: ROOT, timeoutMs: 220_000 })
    const { status, stdout, stderr } = await session.ended
    const said = stdout.toString()
    assert.equal(status, 0, `${said}\n${stderr}`)
    const of = answers(said)
    const done = `work done: ${DIGITS} digits, sum ${SUM}`
    assert.deepEqual(of.get('b logs pi | tail -n 1'), [done], said)
    assert.deepEqual(of.get('a logs pi-copy | tail -n 1'), [done], said)
    assert.deepEqual(of.get('b wait pi'), ['0'], said)
    for (const copied of ['a logs pi-copy | head -n 2', 'b logs pi | head -n 2']) {
      const [first, second] = of.get(copied)!.map((line) => Number(/^ *(\d+) {2}\d{50}$/.exec(line)?.[1]))
      assert.ok(first! > 50 && second === first! + 50, `${copied}: ${of.get(copied)}`)
    }
    const ticks = of.get('a logs ticker | tail -n 8')!.map((line) => line.split(' '))
    assert.deepEqual(ticks.map(([, count]) => Number(count)), ticks.map((_, i) => Number(ticks[0]![1]) + i), said)
    const [nonces, generations] = [3, 5].map((at) => new Set(ticks.map((words) => words[at])))
    assert.deepEqual([nonces!.size, generations!.size], [1, 2], said)
    const again = of.get('a logs again | head -n 1')![0]!.split(' ')
    assert.ok(nonces!.has(again[3]) && !generations!.has(again[5]) && Number(again[1]) > 1, said)
    const forks = of.get('a logs forkme; a logs forkme-1; a logs forkme-2')!.filter((line) => line !== 'saved')
      .map((line) => /^(parent|child \d) (\S+) .* event (\w+ \d) nonce (\w+) drawn (\w+)$/.exec(line)!)
    assert.deepEqual(forks.map((line) => line?.slice(1, 4).join(' ')),
      ['parent forkme none 0', 'child 1 forkme-1 fork 1', 'child 2 forkme-2 fork 2'], said)
    const [nonce, drawn] = [4, 5].map((at) => new Set(forks.map((line) => line[at])))
    assert.deepEqual([nonce!.size, drawn!.size], [1, 3], said)
  } finally {
    endAll(base)
    rmSync(base, { recursive: true, force: true, maxRetries: 5 })
  }
})
