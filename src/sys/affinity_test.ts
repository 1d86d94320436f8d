// sys/affinity_test.ts: where and before whom threads run, asked of the kernel itself.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { bindThread } from './affinity.ts'
import { isSupported } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

/** What a process of its own prints that runs `body`: affinity is not given back to the tests of this one. */
function printed(body: string): string {
  const script = `import { readFileSync, readdirSync } from 'node:fs'
    const affinity = await import(${JSON.stringify(new URL('affinity.ts', import.meta.url).href)})
    const allowed = (thread) => /^Cpus_allowed_list:\\s*(.*)$/m.exec(readFileSync(
      '/proc/self/task/' + thread + '/status', 'utf8'))[1]
    const count = (list) => list.split(',').map((part) => part.split('-').map(Number))
      .flatMap(([from, to = from]) => Array.from({ length: to - from + 1 }, (_, i) => from + i))
    ${body}`
  const flags = ['--disable-warning=ExperimentalWarning', '--input-type=module']
  const { status, stdout, stderr } = spawnSync(process.execPath, [...flags, '-e', script], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  return stdout.trim()
}

test('bindThread binds the thread that calls it, and no other', { skip }, () => {
  const [before, after, bound] = JSON.parse(printed(`
    const others = readdirSync('/proc/self/task').filter((thread) => thread !== String(process.pid))
    const before = others.map(allowed)
    const all = count(allowed(process.pid))
    const wanted = all.at(-1)
    if (affinity.bindThread(all.length - 1) !== 0) throw new Error('not bound')
    console.log(JSON.stringify([before, others.map(allowed), allowed(process.pid) === String(wanted)]))`)) as unknown[]
  assert.deepEqual(after, before)
  assert.equal(bound, true)
})

test('bindThread answers with an errno for a processor that is not there, and changes nothing', { skip }, () => {
  assert.equal(printed(`
    const before = allowed(process.pid)
    const answers = [affinity.bindThread(1023), affinity.bindThread(1024), affinity.bindThread(1e9)]
    console.log(answers.every((answer) => answer < 0), before === allowed(process.pid))`), 'true true')
})

test('bindThread is safe where it can do nothing', () => {
  assert.equal(typeof bindThread(100_000), 'number')
})
