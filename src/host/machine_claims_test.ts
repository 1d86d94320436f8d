// host/machine_claims_test.ts: a machine's process that has gone bad says that it has other guests of its project.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FakeHost } from './fake_process.ts'
import type { ProcessHandle } from './processes.ts'
import type { GuestState, ToProcess } from './protocol.ts'
import { disposableFolder } from './test_support.ts'

test("a machine's process speaks for its own guest, not for those that others have", async () => {
  using folder = disposableFolder()
  await using host = await FakeHost.start(folder.path)
  const web = await host.run('web')
  const own = await host.run('own')
  const { handle: theirs } = host.processes[0]!
  const told: ToProcess[] = []
  const rogue: ProcessHandle = { ...theirs, id: 99, kind: 'machine', guests: new Set([own.row.id]),
    link: { send: (message: ToProcess) => void told.push(message) } as unknown as NonNullable<ProcessHandle['link']> }
  own.handle = rogue
  const stateOf = ({ row: { id, run } }: typeof web): GuestState => ({ id, run, startedAt: 1, ageMs: 1 })
  host.lifecycle.hello(rogue, { hello: 1, process: 99, project: 'default', pid: 1, ends: [],
    guests: [stateOf(web), stateOf(own)] })
  assert.equal(web.handle, theirs)
  assert.equal(own.handle, rogue)
  assert.deepEqual(told.filter((message) => 'stop' in message).map((message) => 'stop' in message && message.stop),
    [web.row.id])
  const outcome = { kind: 'off', reason: '' } as const
  const end = { run: web.row.run, outcome, startedAt: 1, endedAt: 2, by: undefined }
  host.lifecycle.ended({ id: web.row.id, ...end }, rogue)
  assert.equal(web.row.phase, 'running')
  // After a restart of the host nobody has them: then it has one at the most, and the other stays free.
  web.handle = own.handle = undefined
  rogue.guests.clear()
  host.lifecycle.hello(rogue, { hello: 1, process: 99, project: 'default', pid: 1, ends: [],
    guests: [stateOf(own), stateOf(web)] })
  assert.deepEqual([own.handle, web.handle], [rogue, undefined])
})
