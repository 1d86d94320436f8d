// host/dials_test.ts: connections that processes ask for: whom they lead to, what only machines may ask, and how much
// at once: one project's questions don't keep the others from theirs.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ECONNREFUSED } from '../base/errno.ts'
import { EGRESS_LOOKUPS_PROJECT_MAX } from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { Dials } from './dials.ts'
import type { ProcessHandle } from './processes.ts'
import type { ToProcess } from './protocol.ts'
import { GUEST_SPEC } from './spec.ts'
import { State, type Guest } from './state.ts'
import type { Store } from './store.ts'
import { guestRow } from './test_support.ts'

type Process = ProcessHandle & { readonly told: (ToProcess & Record<string, unknown>)[] }

/** A process that notes what it is told. Its folder takes no descriptors. */
function processOf(): Process {
  const told: ToProcess[] = []
  return { told, runFolder: '/nowhere', guests: new Set(),
    link: { send: (message: ToProcess) => { told.push(message) }, sendFd: async () => 1, giveFd: async () => 1 },
  } as unknown as Process
}

function rig() {
  const state = new State()
  const events: string[] = []
  const dials = new Dials({ state, log: { error() {} } as unknown as Log, wake: async () => {},
    store: { commit: async (work: (tx: { event(kind: string): void }) => void) => {
      work({ event: (kind) => { events.push(kind) } })
    } } as unknown as Store })
  const add = (name: string, machine: boolean, more: object = {}): { guest: Guest; process: Process } => {
    const spec = GUEST_SPEC.parse({ image: 'it', ...machine ? { machine: {} } : {}, ...more })
    const guest = state.addGuest(guestRow(name, { address: 0, phase: 'running', spec }))
    const process = processOf()
    guest.handle = process
    return { guest, process }
  }
  return { dials, events, add }
}

test('port 0, a line of frames, is for two machines', async () => {
  const { dials, add } = rig()
  const [cell, vm, other] = [add('cell', false), add('vm', true), add('vm2', true)]
  await dials.dial(vm.process, { dial: 1, id: 'vm', name: 'cell', port: 0 })
  await dials.dial(cell.process, { dial: 2, id: 'cell', name: 'vm', port: 0 })
  assert.deepEqual([vm.process.told, cell.process.told],
    [[{ dialled: 1, errno: ECONNREFUSED }], [{ dialled: 2, errno: ECONNREFUSED }]])
  assert.deepEqual(other.process.told, [])
})

test('a process asks for its own guests only', async () => {
  const { dials, add } = rig()
  const [vm, other] = [add('vm', true, { egress: ['localhost'] }), add('other', true)]
  await dials.dial(other.process, { dial: 1, id: 'vm', name: 'cell', port: 1 })
  await dials.resolve(other.process, { resolve: 2, id: 'vm', name: 'localhost' })
  await dials.resolve(other.process, { resolve: 3, id: 'nobody', name: 'localhost' })
  assert.deepEqual(other.process.told, [{ dialled: 1, errno: ECONNREFUSED }, { resolved: 2, addresses: [] },
    { resolved: 3, addresses: [] }])
  assert.deepEqual(vm.process.told, [])
})

test('a name is resolved if a rule of names allows it, to addresses that the rules allow', async () => {
  const { dials, add } = rig()
  const asked = async (egress: readonly string[], name: string): Promise<readonly string[]> => {
    const { process, guest } = add(`vm${Math.random()}`, true, { egress })
    await dials.resolve(process, { resolve: 1, id: guest.row.id, name })
    return (process.told[0] as { addresses: readonly string[] }).addresses
  }
  assert.deepEqual(await asked([], 'localhost'), [])
  assert.deepEqual(await asked(['example.com'], 'localhost'), [])
  assert.deepEqual(await asked(['localhost'], 'localhost'), [], 'it leads inwards, which no rule allows')
  assert.deepEqual(await asked(['localhost', '127.0.0.0/8'], 'localhost'), ['127.0.0.1'])
})

test('a dial outside that no rule allows is denied, noted and counted', async () => {
  const { dials, events, add } = rig()
  const { process } = add('vm', true)
  await dials.dial(process, { dial: 1, id: 'vm', name: '192.0.2.9', port: 80 })
  assert.equal(typeof (process.told[0] as { errno?: number }).errno, 'number')
  assert.deepEqual([events, dials.counts.denied], [['egress.denied'], 1])
})

test('a machine that asks for names without end has a bounded number of them under way, and others have theirs',
  async () => {
    const answered: string[] = []
    const guests = new Map<string, Guest>()
    for (const project of ['loud', 'quiet']) {
      const handle = { link: { send: ({ addresses }: { addresses: string[] }) =>
        answered.push(`${project} ${addresses.length}`) } }
      guests.set(project, { handle, row: { id: project, project, spec: { egress: ['*.invalid:443', 'localhost'] } } } as
        unknown as Guest)
    }
    const dials = new Dials({ state: { guests } } as unknown as ConstructorParameters<typeof Dials>[0])
    const ask = async (id: string): Promise<void> =>
      await dials.resolve(guests.get(id)!.handle as ProcessHandle, { resolve: 1, id, name: 'a.invalid' })
    const asking = Array.from({ length: EGRESS_LOOKUPS_PROJECT_MAX + 3 }, () => ask('loud'))
    assert.deepEqual(answered, ['loud 0', 'loud 0', 'loud 0'])
    const other = ask('quiet')
    assert.equal(answered.length, 3, 'it is looked up')
    await Promise.all([...asking, other])
    assert.equal(answered.length, EGRESS_LOOKUPS_PROJECT_MAX + 4)
    await ask('loud')
  })
