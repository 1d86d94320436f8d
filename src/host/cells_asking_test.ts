// host/cells_asking_test.ts: a guest's question reaches the host once, and its answer the guest.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EAGAIN, EINVAL } from '../base/errno.ts'
import { Asking } from './cells_asking.ts'
import type { HostLine } from './host_line.ts'
import type { FromProcess, GuestLaunch } from './protocol.ts'

/** Guests 1 and 2, and a host that may be there. */
function rig(): { asking: Asking; sent: FromProcess[]; told: [number, number, number][]
  line: { isConnected: boolean } } {
  const [sent, told] = [[] as FromProcess[], [] as [number, number, number][]]
  const line = { isConnected: true, send: (message: FromProcess) => sent.push(message) }
  const asking = new Asking(line as unknown as HostLine, {
    guestOf: (number) => number > 2 ? undefined : { id: `g${number}`, run: 7 } as GuestLaunch,
    told: (...answer) => told.push(answer),
  })
  return { asking, sent, told, line }
}

test('Asking passes a question on once, though it be asked again, and its answer back', () => {
  const { asking, sent, told } = rig()
  asking.asked(1, { what: 'fork', count: 3 }, 500)
  asking.asked(2, { what: 'snapshot', name: 's' }, 500)
  asking.asked(1, { what: 'fork', count: 3 }, 500)
  assert.deepEqual(sent, [{ asked: 1, id: 'g1', run: 7, what: 'fork', count: 3 },
    { asked: 2, id: 'g2', run: 7, what: 'snapshot', name: 's' }])
  asking.told(2, EINVAL)
  asking.told(1, 0)
  asking.told(1, 0)
  asking.told(99, 0)
  assert.deepEqual(told, [[2, 500, EINVAL], [1, 500, 0]])
  // It was moved to another thread just then.
  asking.asked(1, { what: 'fork', count: 3 }, 500)
  assert.deepEqual([sent.length, told.at(-1)], [2, [1, 500, 0]])
  asking.asked(1, { what: 'hibernate' }, 501)
  assert.equal(sent.length, 3)
})

test('who asks without a host, and who waits when it goes, is told to try later', () => {
  const { asking, sent, told, line } = rig()
  asking.asked(1, { what: 'hibernate' }, 1)
  line.isConnected = false
  asking.hostGone()
  asking.asked(2, { what: 'hibernate' }, 2)
  assert.deepEqual([told, sent.length], [[[1, 1, EAGAIN], [2, 2, EAGAIN]], 1])
  asking.hostGone()
  assert.equal(told.length, 2)
})

test('a guest that asks without end is told to try later, and the host hears no more of it; others are heard', () => {
  const { asking, sent, told } = rig()
  for (let serial = 1; serial <= 1000; serial++) {
    asking.asked(1, { what: 'fork' }, serial)
    if (told.length < serial) asking.told(sent.length, EINVAL)
  }
  assert.ok(sent.length < 200, `${sent.length} have reached the host`)
  assert.deepEqual([told.length, told.at(-1)], [1000, [1, 1000, EAGAIN]])
  asking.asked(2, { what: 'hibernate' }, 1)
  assert.deepEqual(sent.at(-1), { asked: sent.length, id: 'g2', run: 7, what: 'hibernate' })
})

test('what a guest asked that is gone is nobody\'s any more', () => {
  const { asking, sent, told } = rig()
  asking.asked(3, { what: 'hibernate' }, 1)
  asking.asked(1, { what: 'hibernate' }, 1)
  asking.forget(1)
  asking.told(1, 0)
  asking.hostGone()
  assert.deepEqual([sent.length, told], [1, []])
})
