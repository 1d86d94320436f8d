// host/machine_requests_test.ts: what a machine asks the host for, and what it is told when nobody answers.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EAGAIN, ENOTCAPABLE } from '../base/errno.ts'
import type { HostLine } from './host_line.ts'
import { Requests } from './machine_requests.ts'
import type { FromProcess, GuestLaunch } from './protocol.ts'

const LAUNCH = { id: 'a1', run: 3, name: 'vm', networks: ['default'], args: ['vm', 'x'], env: [['A', '1']],
  machine: { vcpus: 2, memoryBytes: 2 ** 28, engine: 'qemu' } } as unknown as GuestLaunch

function rig(): { requests: Requests; sent: FromProcess[]; line: { isConnected: boolean } } {
  const sent: FromProcess[] = []
  const line = { isConnected: true, send: (message: FromProcess) => { sent.push(message) } }
  return { requests: new Requests(LAUNCH, line as unknown as HostLine), sent, line }
}

test('who it is a machine is told at once, with or without a host', async () => {
  const { requests, sent, line } = rig()
  line.isConnected = false
  const { errno, text } = await requests.answer({ what: 'metadata' }, 'feed') as { errno: number; text: string }
  assert.equal(errno, 0)
  assert.deepEqual(JSON.parse(text), { id: 'a1', name: 'vm', generation: 'feed', networks: ['default'], vcpus: 2,
    memoryBytes: 2 ** 28, engine: 'qemu', args: ['x'], env: { A: '1' } })
  assert.deepEqual(sent, [])
})

test('a question goes to the host with its words, and has the answer of its number', async () => {
  const { requests, sent } = rig()
  const answers = [requests.answer({ what: 'snapshot', name: 'here' }, ''), requests.answer({ what: 'snapshot' }, ''),
    requests.answer({ what: 'fork', count: 2 }, ''), requests.answer({ what: 'hibernate' }, '')]
  assert.deepEqual(sent, [
    { asked: 1, id: 'a1', run: 3, what: 'snapshot', name: 'here' }, { asked: 2, id: 'a1', run: 3, what: 'snapshot' },
    { asked: 3, id: 'a1', run: 3, what: 'fork', count: 2 }, { asked: 4, id: 'a1', run: 3, what: 'hibernate' },
  ])
  requests.told({ told: 3, errno: 0, value: 2 })
  requests.told({ told: 99, errno: 0 })
  requests.told({ told: 1, errno: ENOTCAPABLE })
  requests.told({ told: 1, errno: 0 })
  requests.told({ told: 4, errno: 0 })
  requests.hostGone()
  assert.deepEqual(await Promise.all(answers), [{ errno: ENOTCAPABLE, value: 0 }, { errno: EAGAIN },
    { errno: 0, value: 2 }, { errno: 0, value: 0 }])
})

test('without a host, and beyond what one guest may ask, a question is answered with "try later"', async () => {
  const { requests, sent, line } = rig()
  line.isConnected = false
  assert.deepEqual(await requests.answer({ what: 'hibernate' }, ''), { errno: EAGAIN })
  line.isConnected = true
  const many = Array.from({ length: 200 }, () => requests.answer({ what: 'hibernate' }, ''))
  assert.equal(sent.length, 120)
  assert.deepEqual(await Promise.all(many.slice(120)), Array.from({ length: 80 }, () => ({ errno: EAGAIN })))
  requests.hostGone()
  assert.deepEqual(await many[0], { errno: EAGAIN })
})
