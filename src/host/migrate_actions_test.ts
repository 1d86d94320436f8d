// host/migrate_actions_test.ts: the source of a move: what it asks, in which order, and what it does with the answers.
//
// The destination is a script: an HTTP server that notes what it is asked and answers as a test says. The guest's
// process only counts: which of capture, go on and let go came when.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { MigrateActions } from './migrate_actions.ts'
import { Operations } from './operations.ts'
import type { OperationView } from './operator.ts'
import type { GuestRow } from './rows.ts'
import { Secrets } from './secrets.ts'
import { State, type Guest } from './state.ts'
import type { Store } from './store.ts'
import { disposableStore, guestRow, projectRow, TESTER } from './test_support.ts'
import type { Transaction } from './transaction.ts'

const QUIET = { info() {}, warn() {}, error() {}, reopen() {} } as unknown as Log
type Answer = { readonly status?: number; readonly body?: unknown; readonly cut?: boolean }
type Script = (step: string, count: number) => Answer | undefined | Promise<Answer | undefined>

const USUAL: Record<string, unknown> = { offer: { host: 'b', needsModule: false }, snapshot: { missing: [] },
  last: { missing: [] }, activate: { state: 'active' } }

/** A destination at a socket: what it was asked, by step. */
async function destination(folder: string, script: Script = () => undefined):
Promise<{ to: string; asked: string[]; bodies: Map<string, string>; script: Script } & AsyncDisposable> {
  const path = join(folder, 'b')
  const made = { to: `unix:${path}`, asked: [] as string[], bodies: new Map<string, string>(), script }
  const server = createServer((request, response) => {
    const [, last = ''] = /\/moves\/[0-9a-f]{16}\/?(.*)$/.exec(request.url!) ?? []
    const step = request.method === 'DELETE' ? 'drop' : last === '' ? 'offer'
      : last === 'snapshot?last' ? 'last' : last
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => void (async () => {
      made.asked.push(step)
      made.bodies.set(step, Buffer.concat(chunks).toString())
      const count = made.asked.filter((one) => one === step).length
      const { status = 200, body = USUAL[step], cut = false } = await made.script(step, count) ?? {}
      if (cut) return void request.socket.destroy()
      response.writeHead(body === undefined ? 204 : status).end(body === undefined ? undefined : JSON.stringify(body))
    })())
  })
  await new Promise<void>((resolve) => { server.listen(path, resolve) })
  return Object.assign(made, { [Symbol.asyncDispose]: () => new Promise<void>((resolve) => {
    server.closeAllConnections()
    server.close(() => resolve())
  }) })
}

type Source = { readonly actions: MigrateActions; readonly state: State; readonly guest: Guest; readonly did: string[]
  readonly operations: Operations; changes: number[]; ended(): Promise<OperationView>
  move(to: string, downtimeMs?: number): Promise<OperationView> }

/** A source on a store, with a guest `web` that runs, or as its database has it. */
async function source(store: Store, folder: string, row: GuestRow = guestRow('web', { phase: 'running', run: 4 })):
Promise<Source> {
  const state = new State()
  const loaded = store.load()
  if (loaded.projects.length === 0) await store.commit((tx) => tx.putProject(projectRow()))
  state.projects.set('default', projectRow())
  const guest = state.addGuest(loaded.guests[0] ?? row)
  guest.handle = { kind: 'cells' } as never
  const did: string[] = []
  const operations = await Operations.open(store, loaded.operations, () => {})
  let captured = 0
  const lifecycle = {
    checkStays: () => {},
    change: async (one: Guest, changes: Partial<GuestRow>, note?: (tx: Transaction) => void) => {
      const before = one.row
      state.setRow(one, { ...before, ...changes })
      did.push('commit')
      await store.commit((tx) => {
        tx.putGuest(one.row)
        note?.(tx)
      }).catch((error: unknown) => {
        state.setRow(one, before)
        throw error
      })
    },
    launch: async () => { did.push('launch') },
  }
  const made: Source = { state, guest, did, operations, changes: [100, 10],
    actions: undefined as unknown as MigrateActions,
    async ended() {
      for (;;) {
        const [view] = operations.list()
        if (view !== undefined && view.status !== 'running') return view
        await sleep(5)
      }
    },
    async move(to, downtimeMs) {
      await made.actions.migrate(guest, { to, token: 'confidential', downtimeMs }, TESTER)
      return await made.ended()
    } }
  const actions = new MigrateActions({ state, store, operations, log: QUIET, secrets: Secrets.load(folder, false),
    lifecycle: lifecycle as never,
    captures: { alone: async (_: unknown, work: () => Promise<unknown>) => await work(),
      capture: async (_: unknown, then: string) => {
        did.push(then)
        const chunks = made.changes[captured] ?? 1
        return { snapshot: `sha256:${String(++captured).repeat(64)}`, chunks, newChunks: chunks, memoryBytes: 1,
          newBytes: 1, storedBytes: 1, stoppedNs: 1 }
      },
      goOn: () => { did.push('go') }, release: () => { did.push('release') } } as never,
    transfers: { transmit: async function* (_: unknown, snapshot: string, wanted: object) {
      yield Buffer.from(`${snapshot.slice(7, 9)} ${JSON.stringify(wanted)}`)
    } } as never,
    files: { release: (_: string, digest: string) => { did.push(`free ${digest.slice(7, 8)}`) } } as never,
    blob: () => import.meta.filename, carrier: async () => assert.fail('it is a cell'),
    clear: async () => { did.push('clear') } })
  return Object.assign(made, { actions })
}

async function both(t: TestContext, script?: Script):
Promise<{ one: Source; to: Awaited<ReturnType<typeof destination>>; at: Awaited<ReturnType<typeof disposableStore>> }> {
  const at = await disposableStore()
  const to = await destination(at.folder, script)
  const one = await source(at.store, at.folder)
  t.after(async () => {
    one.actions.close()
    await one.operations.close()
    await to[Symbol.asyncDispose]()
    await at[Symbol.asyncDispose]()
  })
  return { one, to, at }
}

const problem = (code: string, detail: string): Answer => ({ status: 409, body: { code, detail } })

test('a guest is copied in rounds, held, committed, and gone when the destination has it', async (t) => {
  const { one, to } = await both(t)
  const view = await one.move(to.to)
  assert.equal(view.status, 'done', JSON.stringify(view.error))
  assert.deepEqual(to.asked, ['offer', 'snapshot', 'snapshot', 'last', 'activate', 'acknowledge'])
  assert.deepEqual(one.did, ['resume', 'resume', 'free 1', 'hold', 'commit', 'release', 'free 2', 'free 3', 'clear'])
  assert.equal(to.bodies.get('last'), `33 {"without":"sha256:${'2'.repeat(64)}"}`)
  assert.equal(one.state.byName('default', 'web'), undefined)
})

test('a module that the destination lacks is sent, and so are chunks, once', async (t) => {
  const { one, to } = await both(t, (step, count) => step === 'offer' ? { body: { host: 'b', needsModule: true } }
    : step === 'snapshot' && count === 1 ? { body: { missing: ['aa', 'bb'] } } : undefined)
  one.changes = [3]
  const view = await one.move(to.to)
  assert.equal(view.status, 'done', JSON.stringify(view.error))
  assert.deepEqual(to.asked.slice(0, 5), ['offer', 'module', 'snapshot', 'snapshot', 'last'])
  assert.equal(to.bodies.get('snapshot'), '11 {"chunks":["aa","bb"]}')
  assert.match(to.bodies.get('module')!, /host\/migrate_actions_test.ts/)
})

test('a guest that changes faster than it is copied is stopped after some rounds', async (t) => {
  const { one, to } = await both(t)
  one.changes = Array.from({ length: 20 }, (_, i) => 100_000 / 2.1 ** i)
  assert.equal((await one.move(to.to)).status, 'done')
  assert.equal(one.did.filter((step) => step === 'resume').length, 5)
})

for (const failing of ['offer', 'snapshot', 'last']) {
  test(`a guest goes on where it is when the destination refuses at "${failing}"`, async (t) => {
    const { one, to } = await both(t, (step) => step === failing ? problem('ADMISSION_REFUSED', 'no room') : undefined)
    const view = await one.move(to.to)
    assert.equal(view.error?.code, 'MOVE_REFUSED')
    assert.match(view.error!.detail, /no room/)
    assert.deepEqual([one.guest.row.phase, one.guest.row.move], ['running', null])
    assert.equal(one.did.includes('go'), failing === 'last')
    assert(!one.did.includes('commit') && !one.did.includes('release'))
    assert.equal(to.asked.at(-1), 'drop')
  })
}

test('a guest goes on where it is when its move cannot be committed', async (t) => {
  const { one, to, at } = await both(t)
  const { commit } = at.store
  let left = 2 // The operation, and its first stage.
  at.store.commit = async (work) => {
    if (one.did.at(-1) === 'commit' && left-- > 0) throw new CellarError('HOST_DISK_FULL', ['keep the change'])
    return await commit.call(at.store, work) as never
  }
  const view = await one.move(to.to)
  assert.equal(view.error?.code, 'HOST_DISK_FULL')
  assert.deepEqual([one.guest.row.phase, one.did.at(-2), to.asked.includes('activate')], ['running', 'free 3', false])
  assert(one.did.includes('go'))
})

test('a guest does not stand still for a destination that does not answer', async (t) => {
  const { one, to } = await both(t, (step) => step === 'last' ? new Promise(() => {}) : undefined)
  const view = await one.move(to.to, 200)
  assert.match(view.error!.detail, /longer than 200 ms/)
  assert(one.did.includes('go') && !one.did.includes('commit'))
})

test('a destination that drops the guest in the end gives it back', async (t) => {
  const { one, to } = await both(t, (step) => step !== 'activate' ? undefined
    : { body: { state: 'dropped', why: 'its name is taken' } })
  const view = await one.move(to.to)
  assert.match(view.error!.detail, /its name is taken/)
  const { row } = one.guest
  assert.deepEqual([row.phase, row.move, row.run], ['starting', null, 5])
  assert.equal(row.from !== null && 'snapshot' in row.from && row.from.snapshot, `sha256:${'3'.repeat(64)}`)
  assert.equal(one.did.at(-1), 'launch')
  assert.equal(to.asked.at(-1), 'acknowledge')
})

test('a source that gets no answer, or none that it can read, asks again', async (t) => {
  const { one, to } = await both(t, (step, count) => step !== 'activate' ? undefined
    : ([{ cut: true }, { status: 503, body: {} }, { body: { state: 'perhaps' } },
      problem('UNAUTHENTICATED', 'who?')] as Answer[])[count - 1])
  assert.equal((await one.move(to.to)).status, 'done')
  assert.equal(to.asked.filter((step) => step === 'activate').length, 5)
  assert(!one.did.includes('launch'))
})

test('a source that comes back asks about what it has committed, as the same', async (t) => {
  const { one, to, at } = await both(t, (step, count) => step === 'activate' && count < 3 ? { cut: true } : undefined)
  await one.actions.migrate(one.guest, { to: to.to, token: 'confidential' }, TESTER)
  while (!to.asked.includes('activate')) await sleep(2)
  const [before] = one.operations.list()
  one.actions.close()
  await one.operations.close()
  assert.equal(one.operations.get(before!.id).error?.code, 'OPERATION_INTERRUPTED')
  const sent = to.bodies.get('activate')
  const next = await source(await at.reopen(), at.folder)
  assert.deepEqual([next.guest.row.phase, next.guest.row.move?.host], ['hibernated', 'b'])
  assert(!JSON.stringify(next.guest.row).includes('confidential'), 'its token is sealed')
  next.actions.recover()
  while (!next.did.includes('clear')) await sleep(2)
  assert.equal(to.bodies.get('activate'), sent)
  assert.equal(next.state.byName('default', 'web'), undefined)
  next.actions.close()
  await next.operations.close()
})

test('a guest that is not running, or cannot be captured, is not moved', async (t) => {
  const { one, to } = await both(t)
  one.guest.uncapturable = 'it holds a reference'
  await assert.rejects(one.actions.migrate(one.guest, { to: to.to }, TESTER), { code: 'CAPTURE_IMPOSSIBLE' })
  one.guest.uncapturable = null
  one.state.setRow(one.guest, { ...one.guest.row, phase: 'paused' })
  await assert.rejects(one.actions.migrate(one.guest, { to: to.to }, TESTER), { code: 'GUEST_PHASE_WRONG' })
  assert.deepEqual(to.asked, [])
})

test('a guest that ends, or is started anew, while it is copied is not held', async (t) => {
  const { one, to } = await both(t, (step) => {
    if (step === 'snapshot') one.state.setRow(one.guest, { ...one.guest.row, run: 5 })
    return undefined
  })
  const view = await one.move(to.to)
  assert.equal(view.error?.code, 'CAPTURE_ENDED')
  assert(!one.did.includes('hold') && !one.did.includes('commit'))
})
