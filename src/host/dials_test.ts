// host/dials_test.ts: one project's questions don't keep the others from theirs.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EGRESS_LOOKUPS_PROJECT_MAX } from '../base/limits.ts'
import { Dials } from './dials.ts'
import type { ProcessHandle } from './processes.ts'
import type { Guest } from './state.ts'

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
