// tests/faults/clock_jump_test.ts: the wall clock is set forward or back while a host runs.
//
// A machine's clock can't be set by a test: here Date is the test's, and the parts that might look at it are run.

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { mock, test, type TestContext } from 'node:test'
import { backupsIn } from '../../src/host/database.ts'
import { Idempotency } from '../../src/host/idempotency.ts'
import { Lifecycle } from '../../src/host/lifecycle.ts'
import type { ProcessHandle } from '../../src/host/processes.ts'
import type { GuestRow } from '../../src/host/rows.ts'
import { GUEST_SPEC } from '../../src/host/spec.ts'
import { State } from '../../src/host/state.ts'
import { Store } from '../../src/host/store.ts'
import { Tokens } from '../../src/host/tokens.ts'
import { Folder, ROOT } from '../support.ts'

const HOUR = 3_600_000
const DAY = 24 * HOUR
const NOON = Date.parse('2026-06-15T12:00:00Z')

/** Sets the clock, now and whenever the answer is called, until the test ends. */
function clock(t: TestContext): (time: number) => void {
  mock.timers.enable({ apis: ['Date'], now: NOON })
  t.after(() => mock.timers.reset())
  return (time) => mock.timers.setTime(time)
}

test('back-off, health, timeouts, streams and following look at no wall clock', () => {
  for (const file of ['restart.ts', 'health.ts', 'process_link.ts', 'host_line.ts', 'events.ts', 'sessions.ts',
    'log_reader.ts', 'dials.ts', 'cell_process.ts']) {
    assert.doesNotMatch(readFileSync(join(ROOT, 'src/host', file), 'utf8'), /Date\.now\(\)|new Date\(\)/, file)
  }
})

for (const [what, jump, ageMs, failures] of [
  ['forward is no time that a guest has run', DAY, 50, 4],
  ['back takes nothing from how long it has run', -DAY, 20_000, 1],
] as const) {
  test(`a jump of the clock ${what}: its pauses are as without`, (t) => {
    const setClock = clock(t)
    const state = new State()
    const row: GuestRow = { id: 'a', project: 'p', name: 'a', digest: 'd', manifestDigest: 'd', generation: 1,
      spec: GUEST_SPEC.parse({ image: 'x', restart: 'always' }), desired: 'running', phase: 'running', healthy: null,
      createdAt: NOON, startedAt: NOON, endedAt: null, restarts: 3, run: 4, process: 1, exit: null, ports: [],
      managedBy: null, origin: null, from: null, move: null, address: 2 }
    const guest = state.addGuest(row)
    guest.failures = 3
    const nothing = (): void => {}
    const lifecycle = new Lifecycle({ state, store: { commit: () => new Promise(nothing) },
      processes: { join: nothing, leave: nothing }, captures: { over: nothing } } as never)
    const handle = { id: 1, project: 'p', guests: new Set(['a']), link: { send: nothing } } as unknown as ProcessHandle
    setClock(NOON + jump)
    lifecycle.hello(handle, { hello: 1, process: 1, project: 'p', pid: 1, ends: [],
      guests: [{ id: 'a', run: 4, startedAt: NOON, ageMs }] })
    lifecycle.ended({ id: 'a', run: 4, endedAt: Date.now(), outcome: { kind: 'exit', code: 1 } })
    assert.deepEqual([guest.row.phase, guest.failures], ['backing-off', failures])
  })
}

test('an idempotency key keeps its answer when the clock is set back, and goes with time', async (t) => {
  const setClock = clock(t)
  const keys = new Idempotency({ commit: async () => {} } as unknown as Store, [])
  let runs = 0
  const ask = async (): Promise<number> => await keys.once('key', 'print', async () => ++runs)
  assert.equal(await ask(), 1)
  setClock(NOON - 20 * HOUR)
  assert.equal(await ask(), 1)
  setClock(NOON + 25 * HOUR)
  assert.equal(await ask(), 2)
  // Far back: it can't be told how old the answer is, and a new one is no worse.
  setClock(NOON - 30 * DAY)
  assert.equal(await ask(), 3)
})

test('a token without an end is good at any time, one with an end by the clock as it is', async (t) => {
  const setClock = clock(t)
  const tokens = new Tokens({ commit: async () => {} } as unknown as Store, [])
  const forever = await tokens.create('forever', 'read', {})
  const short = await tokens.create('short', 'read', { expiresAt: NOON + HOUR })
  for (const jump of [-30 * DAY, -1, 0, 30 * DAY]) {
    setClock(NOON + jump)
    assert.equal(tokens.authenticate(forever.token).name, 'token:forever')
  }
  assert.throws(() => tokens.authenticate(short.token), /has expired/)
  setClock(NOON + HOUR - 1)
  assert.equal(tokens.authenticate(short.token).name, 'token:short')
})

test('a backup that is made after the clock was set back is the latest, and is kept', async (t) => {
  const setClock = clock(t)
  using folder = new Folder()
  const store = await Store.open(folder.at('s'))
  try {
    for (let i = 0; i < 5; i++) await store.backup()
    for (const jump of [-30 * DAY, -DAY, 2 * DAY]) {
      setClock(NOON + jump)
      const path = await store.backup()
      assert.ok(existsSync(path))
      assert.ok(path.endsWith(backupsIn(folder.at('s'))[0]!))
    }
  } finally {
    await store.close()
  }
})
