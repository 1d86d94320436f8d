// cli/manifest_test.ts: what a manifest means: launches, stacks, terms, names, paths. Refusals: tests/functional.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { readManifest } from './manifest.ts'
import type { StackPlan } from './stack.ts'

const folder = mkdtempSync(join(tmpdir(), 'cellar-manifest-'))
after(() => rmSync(folder, { recursive: true }))
const path = join(folder, 'manifest.yaml')
const NOTHING_ADDED = { args: [], granted: { args: [], env: [] }, stubs: [] }

function read(text: string, added = NOTHING_ADDED): ReturnType<typeof readManifest> {
  writeFileSync(path, text)
  return readManifest(path, added)
}

function stackOf(text: string): StackPlan {
  const found = read(text)
  assert.ok('stack' in found)
  return found.stack
}

test('a stack says nothing but its programs, and has the defaults for all the rest', () => {
  const { quantumNs, pcpus, forNs, pools, cells, single } = stackOf('cells: { a: { program: a.wasm } }\n')
  assert.deepEqual([quantumNs, pcpus, forNs, pools.size, single], [1e6, undefined, undefined, 0, undefined])
  const [{ name, launch, ...rest }] = cells as [StackPlan['cells'][number]]
  assert.equal(name, 'a')
  assert.deepEqual(rest, { terms: DEFAULT_TERMS, pool: undefined, timeoutNs: undefined, deterministic: false,
    unbounded: false })
  assert.equal(launch.program, join(folder, 'a.wasm'))
  assert.deepEqual(launch.grants.args, ['a.wasm'])
})

test('a stack means what it says', () => {
  const { quantumNs, pcpus, forNs, pools, cells } = stackOf(`
quantum: 250us
pcpus: 3
for: 1.5m
pools: { batch: { shares: 7, cpu-reservation: 50%, cpu-limit: 1.5 }, other: {} }
cells:
  web: { program: bin/web.wasm, args: [web, -v], env: { A: b }, volumes: ["data:/data:ro"], memory: 64MiB,
    listen: ["tcp:127.0.0.1:8080"], cpu-reservation: 0.25, cpu-limit: 100%, deterministic: true }
  job: { program: /bin/job.wasm, pool: batch, copies: 3, shares: 9, timeout: 5s, unbounded: true, cpu-reservation: 10% }
`)
  assert.deepEqual([quantumNs, pcpus, forNs], [250_000, 3, 90e9])
  assert.deepEqual([...pools], [['batch', { shares: 7, reservation: 0.5, limit: 1.5 }], ['other', DEFAULT_TERMS]])
  assert.deepEqual(cells.map(({ name }) => name), ['web', 'job-1', 'job-2', 'job-3'])
  const [web, job] = cells as [StackPlan['cells'][number], StackPlan['cells'][number]]
  assert.deepEqual(web.terms, { shares: 100, reservation: 0.25, limit: 1 })
  assert.deepEqual([web.deterministic, web.unbounded, web.timeoutNs], [true, false, undefined])
  const { grants, program } = web.launch
  assert.equal(program, join(folder, 'bin/web.wasm'))
  assert.deepEqual([grants.args, grants.env, grants.memoryPagesMax], [['web', '-v'], [['A', 'b']], 1024])
  assert.deepEqual(grants.volumes, [{ host: join(folder, 'data'), guest: '/data', readOnly: true }])
  assert.deepEqual(job.terms, { shares: 9, reservation: 0.1, limit: Infinity })
  assert.deepEqual([job.launch.program, job.pool, job.timeoutNs, job.unbounded], ['/bin/job.wasm', 'batch', 5e9, true])
  assert.deepEqual(new Set(cells.slice(1).map(({ terms }) => terms.shares)), new Set([9]))
})

test('a cell that says nothing of the CPU needn\'t share it by force, and one that does has its terms', () => {
  const scheduleOf = (text: string): unknown => {
    const found = read(`program: a.wasm\n${text}`)
    assert.ok('launch' in found)
    return found.launch.schedule
  }
  assert.equal(scheduleOf(''), undefined)
  const plain = { terms: DEFAULT_TERMS, deterministic: false, unbounded: false }
  assert.deepEqual(scheduleOf('shares: 300\n'), { ...plain, terms: { ...DEFAULT_TERMS, shares: 300 } })
  assert.deepEqual(scheduleOf('cpu-limit: 10%\ncpu-reservation: 10%\n'),
    { ...plain, terms: { shares: 100, reservation: 0.1, limit: 0.1 } })
  assert.deepEqual(scheduleOf('deterministic: true\n'), { ...plain, deterministic: true })
  assert.deepEqual(scheduleOf('unbounded: false\n'), plain)
})

test('reservations of a pool\'s cells may add up to the pool\'s own, to the last bit', () => {
  const { cells } = stackOf(`pools: { p: { cpu-reservation: 0.3 } }
cells: { a: { program: a.wasm, pool: p, cpu-reservation: 0.1, copies: 3 }, b: { program: b.wasm, pool: p } }\n`)
  assert.equal(cells.length, 4)
})

test('copies may listen on ports of their own, and one copy is a cell as any', () => {
  const listen = (text: string): string[][] => stackOf(`cells: { a: { program: a.wasm, ${text} } }\n`).cells
    .map(({ name, launch }) => [name, ...launch.grants.listen!])
  assert.deepEqual(listen('copies: 2, listen: ["tcp:127.0.0.1:0"]'),
    [['a-1', 'tcp:127.0.0.1:0'], ['a-2', 'tcp:127.0.0.1:0']])
  assert.deepEqual(listen('copies: 1, listen: ["tcp:127.0.0.1:80"]'), [['a', 'tcp:127.0.0.1:80']])
})

test('ports of a host are listening sockets in the foreground', () => {
  const { cells } = stackOf(`cells: { a: { program: a.wasm, listen: ["tcp:127.0.0.1:1"],
    ports: ["8080:80", "0.0.0.0:81:81", "[::1]:82:80"] } }\n`)
  assert.deepEqual(cells[0]!.launch.grants.listen,
    ['tcp:127.0.0.1:1', 'tcp:127.0.0.1:8080', 'tcp:0.0.0.0:81', 'tcp:[::1]:82'])
})

test('a mistake is told with its line and column', () => {
  const cases: [string, RegExp][] = [
    ['cells: {}\n', /cells: must have a cell at least \(line 1, column 8\)$/],
    ['cells:\n  a:\n    program: a.wasm\n    cpu-reservation: 20%\n    cpu-limit: 10%\n', /\(line 5, column 16\)$/],
    ['cells:\n  a:\n    program: a.wasm\n    pool: p\n', /"p" \(line 4, column 11\)$/],
    ['cells:\n  a:\n    program: a.wasm\n    pul: p\n', /"pul" \(line 4, column 5\)$/],
    ['program: a.wasm\ncpu-reservation: 2\n', /must be 1 at most.* \(line 2, column 18\)$/],
    ['pools: { p: { shares: 0 } }\ncells: { a: { program: a.wasm } }\n', /pools\.p\.shares: .*\(line 1, column 23\)$/],
  ]
  for (const [text, message] of cases) {
    assert.throws(() => read(text), (error) => {
      assert.ok(error instanceof CellarError && error.code === 'MANIFEST_INVALID', String(error))
      assert.match(error.message, message)
      return true
    })
  }
})

test('a stack takes no arguments, a cell does', () => {
  const added = { ...NOTHING_ADDED, args: ['-x'] } as unknown as typeof NOTHING_ADDED
  assert.throws(() => read('cells: { a: { program: a.wasm } }\n', added), /takes no arguments/)
  const found = read('program: a.wasm\nargs: [a]\n', added)
  assert.ok('launch' in found)
  assert.deepEqual(found.launch.grants.args, ['a', '-x'])
})
