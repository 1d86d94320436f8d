// cell/lifecycle_test.ts: a guest in C (guests/forkme.c, sdk/c/cellar.h) that asks its host, through the gate.

import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { test } from 'node:test'
import { EACCES, ESUCCESS } from '../base/errno.ts'
import { nullConsole } from '../services/console/console.ts'
import type { Descriptor } from '../services/descriptor.ts'
import { EVENT_KINDS, newGrant, type Asked, type EventKind } from '../services/lifecycle/lifecycle.ts'
import { loadExecutable } from './load.ts'
import { Pcpu } from './pcpu.ts'

const FORKME = loadExecutable(fileURLToPath(new URL('../../guests/forkme.wasm', import.meta.url)))

/** Runs forkme with a host that answers with `errno`: what it has said, and what it has asked. */
async function ran(args: readonly string[], errno: number, event?: EventKind):
Promise<{ outcome: unknown; said: string; told: string; asked: readonly Asked[]; generation: string }> {
  const text = { said: '', told: '' }
  const stream = (name: keyof typeof text): Descriptor => ({
    filetype: 2, close: () => {},
    write: (iovecs) => { text[name] += Buffer.from(iovecs.gather()).toString(); return iovecs.total },
  })
  const asked: Asked[] = []
  const grant = newGrant({ id: 'id-1', name: 'first', event, number: event === 'fork' ? 4 : 0 })
  const console = { stdin: nullConsole, stdout: stream('said'), stderr: stream('told') }
  const lifecycle = { grant, request: async (one: Asked) => { asked.push(one); return errno } }
  const cell = await new Pcpu().create(FORKME, { args: ['forkme', ...args], env: [] }, console, { lifecycle })
  return { outcome: await cell.run(), asked, generation: grant.generation, ...text }
}

test('a guest that forks and saves itself goes on as the parent, and says who it is', async () => {
  const { outcome, said, asked, generation } = await ran(['3', 'base'], ESUCCESS)
  assert.deepEqual(outcome, { kind: 'exit', code: 0 })
  const hex = '[0-9a-f]{16}'
  assert.match(said, new RegExp(
    `^parent first id-1 generation ${generation} event none 0 nonce ${hex} drawn ${hex}\nsaved\n$`))
  assert.deepEqual(asked, [{ what: 'fork', count: 3 }, { what: 'snapshot', name: 'base' }])
})

test('a guest whose host refuses gets the errno of it', async () => {
  const { outcome, told } = await ran([], EACCES)
  assert.deepEqual([outcome, told], [{ kind: 'exit', code: 2 }, 'forkme: fork: Permission denied\n'])
})

test('a guest is told the last that has become of it', async () => {
  for (const event of Object.keys(EVENT_KINDS) as EventKind[]) {
    const { said } = await ran(['1'], ESUCCESS, event)
    assert.match(said, new RegExp(`^parent first id-1 generation [0-9a-f]{32} event ${event} ${
      event === 'fork' ? 4 : 0} nonce`))
  }
})
