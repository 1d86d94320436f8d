// host/hibernation_test.ts: how guests come to lie on disk, what wakes them, and what is left when it is cut short.

import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import { FakeHost, type FakeProcess } from './fake_process.ts'
import { GUEST_SPEC, type GuestSpec } from './spec.ts'
import type { Guest } from './state.ts'
import { disposableFolder } from './test_support.ts'

function withHost(name: string, spec: Partial<GuestSpec>,
  work: (rig: { host: FakeHost; process: FakeProcess; web: Guest }) => Promise<void>): void {
  test(name, async () => {
    using folder = disposableFolder()
    await using host = await FakeHost.start(folder.path)
    host.hibernation.settle()
    const web = await host.run('web', spec)
    await work({ host, process: host.processes[0]!, web })
  })
}

const kinds = (host: FakeHost): string[] => host.store.events(0, undefined, 1000).map(({ kind }) => kind)
const until = async (is: () => boolean): Promise<void> => {
  for (let i = 0; !is(); i++) {
    assert.ok(i < 500, 'it came to be in time')
    await sleep(10)
  }
}

/** Does something once, when the next change is on its way to the database. */
function whileCommitted(host: FakeHost, work: () => void): void {
  const commit = host.store.commit.bind(host.store)
  host.store.commit = (...of) => {
    host.store.commit = commit
    const committed = commit(...of)
    work()
    return committed
  }
}

async function client(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

withHost('a hibernated guest is in no process and is promised no memory; resume wakes it where it was',
  { 'memory-reservation': '512MiB' }, async ({ host, process, web }) => {
    assert.equal(host.state.promised.memoryBytes, 512 * 2 ** 20)
    await host.hibernation.hibernate(web)
    await until(() => web.releasing === undefined)
    assert.deepEqual([web.row.phase, web.row.desired, web.handle, host.state.promised.memoryBytes],
      ['hibernated', 'running', undefined, 0])
    assert.deepEqual([process.guests.size, process.handle.guests.size], [0, 0])
    await host.hibernation.hibernate(web)
    const { from } = web.row
    assert.ok(from !== null && 'snapshot' in from)
    await sleep(20)
    await host.hibernation.wake(web, 'asked')
    const launch = process.guests.get(web.row.id)!.launch
    assert.deepEqual([web.row.phase, web.row.run, launch.from?.snapshot, launch.from?.event],
      ['running', 2, from.snapshot, 'wake'])
    assert.ok(launch.from!.sleptMs! >= 20, 'its clock goes on')
    // What it was woken from is nobody's any more.
    await until(() => process.forgotten.includes(from.snapshot))
    assert.equal(web.row.from, null)
    assert.deepEqual(kinds(host).filter((kind) => /hibern|woken/.test(kind)), ['guest.hibernated', 'guest.woken'])
  })

withHost('who connects to a hibernated guest wakes it and is handed over, and nobody is lost', { ports: ['0:80'] },
  async ({ host, process, web }) => {
    const { port } = web.row.ports[0]!
    await host.hibernation.hibernate(web)
    const clients = await Promise.all(Array.from({ length: 5 }, () => client(port)))
    await web.reaches(['running'], 5000)
    assert.equal(web.row.ports[0]!.port, port)
    await until(() => process.told.some((message) => 'incoming' in message))
    const handed = process.told.filter((message) => 'incoming' in message)
    // Who wasn't handed over waits in the queue of the socket that the guest listens on again.
    const [ticket] = process.guests.get(web.row.id)!.launch.ports[0]!.tickets
    const fds = [process.receiver.take(ticket!), ...handed.map((message) => process.receiver.take(message.ticket))]
    assert.ok(fds.every((fd) => fd !== undefined))
    const ended = clients.filter(({ destroyed, readableEnded }) => destroyed || readableEnded)
    assert.deepEqual(ended, [])
    for (const one of clients) one.destroy()
  })

withHost('a hibernated guest listens again after the host was killed, and wakes', { ports: ['0:80'] },
  async ({ host, web }) => {
    const { port } = web.row.ports[0]!
    await host.hibernation.hibernate(web)
    await host.restart()
    assert.equal(host.guest('web').row.phase, 'hibernated')
    const one = await client(port)
    await host.guest('web').reaches(['running'], 5000)
    assert.equal(host.guest('web').row.phase, 'running')
    one.destroy()
  })

withHost('a hibernated guest is woken by the timer that it waited for, also by the next host', {},
  async ({ host, process, web }) => {
    process.captures = { wakeInMs: 300 }
    const began = Date.now()
    await host.hibernation.hibernate(web)
    await host.restart()
    const again = host.guest('web')
    await again.reaches(['running'], 5000)
    assert.equal(again.row.phase, 'running')
    assert.ok(Date.now() - began >= 300)
    assert.ok(host.processes[0]!.guests.get(again.row.id)!.launch.from!.sleptMs! >= 300)
  })

withHost('a guest that dials a hibernated one wakes it', {}, async ({ host, process, web }) => {
  const db = await host.run('db')
  await host.hibernation.hibernate(db)
  await host.dials.dial(process.handle, { dial: 3, id: web.row.id, name: 'db', port: 5432 })
  assert.equal(db.row.phase, 'running')
  const answer = process.told.findLast((message) => 'dialled' in message)
  assert.ok(answer !== undefined && 'ticket' in answer)
})

withHost('a stopped guest that was hibernated begins anew, and what was saved is gone', { ports: ['0:80'] },
  async ({ host, process, web }) => {
    const { port } = web.row.ports[0]!
    await host.hibernation.hibernate(web)
    const { from } = web.row
    await host.guests.stop(web, signals.SIGTERM)
    assert.deepEqual([web.row.phase, web.row.desired, web.row.from], ['stopped', 'stopped', null])
    await assert.rejects(client(port))
    await until(() => process.forgotten.includes((from as { snapshot: string }).snapshot))
    await host.guests.start(web)
    await web.reaches(['running'], 2000)
    assert.equal(process.guests.get(web.row.id)!.launch.from, undefined)
  })

withHost('a removed guest that was hibernated leaves nothing', { ports: ['0:80'] }, async ({ host, process, web }) => {
  await host.hibernation.hibernate(web)
  await host.guests.remove(web, false)
  assert.equal(host.store.load().guests.length, 0)
  await until(() => process.forgotten.length === 1)
  await host.hibernation.wake(web, 'asked').catch(() => {})
  assert.equal(process.guests.size, 0)
})

withHost('a guest that was held and not committed goes on', {}, async ({ host, process, web }) => {
  host.store.commit = () => new Promise(() => {})
  host.hibernation.hibernate(web).catch(() => {})
  await until(() => process.guests.get(web.row.id)!.held)
  await host.restart()
  assert.ok(process.was('go', web.row.id))
  assert.equal(host.guest('web').row.phase, 'running')
})

withHost('a guest that was committed as hibernated when the host was killed is let go of, and wakes', {},
  async ({ host, process, web }) => {
    process.silent.add('release')
    await host.hibernation.hibernate(web)
    process.silent.clear()
    assert.equal(process.guests.get(web.row.id)!.held, true)
    await host.restart()
    const again = host.guest('web')
    assert.equal(again.row.phase, 'hibernated')
    // It is asked for before its process has answered.
    await host.hibernation.wake(again, 'asked')
    assert.equal(process.guests.get(again.row.id)!.launch.run, 2)
    assert.ok(!process.was('go', again.row.id))
  })

withHost('a hibernated guest that wakes while the host is killed runs once', {}, async ({ host, process, web }) => {
  await host.hibernation.hibernate(web)
  process.told.length = 0
  process.silent.add('start')
  host.hibernation.wake(web, 'asked').catch(() => {})
  await until(() => process.was('start', web.row.id))
  process.silent.clear()
  await host.restart()
  const again = host.guest('web')
  await again.reaches(['running'], 2000)
  assert.deepEqual([again.row.run, process.guests.get(again.row.id)!.launch.from?.event], [2, 'wake'])
})

withHost('a wake whose process is lost is tried again', { ports: ['0:80'] }, async ({ host, process, web }) => {
  await host.hibernation.hibernate(web)
  process.told.length = 0
  process.silent.add('start')
  const one = await client(web.row.ports[0]!.port)
  await until(() => process.was('start', web.row.id))
  host.lose(process)
  await web.reaches(['running'], 5000)
  const other = host.processes[0]!
  assert.equal(other.guests.get(web.row.id)!.launch.from?.event, 'wake')
  await until(() => other.told.some((message) => 'incoming' in message))
  assert.equal(one.destroyed, false)
  one.destroy()
})

withHost('a wake that fails again and again leaves the guest hibernated, for another time', { ports: ['0:80'] },
  async ({ host, web }) => {
    const { port } = web.row.ports[0]!
    await host.hibernation.hibernate(web)
    const { from } = web.row
    // Those that there are, and those that come in their place.
    for (const one of host.processes) one.silent.add('start')
    host.silent = ['start']
    const killing = setInterval(() => {
      for (const one of host.processes) {
        if (one.was('start', web.row.id)) host.lose(one)
      }
    }, 1)
    await assert.rejects(host.hibernation.wake(web, 'asked'), { code: 'WAKE_FAILED', message: /SIGKILL/ })
    clearInterval(killing)
    host.silent = []
    for (const one of host.processes) one.silent.clear()
    assert.deepEqual([web.row.phase, web.row.from, web.row.ports[0]!.port], ['hibernated', from, port])
    await sleep(1200)
    const one = await client(port)
    await web.reaches(['running'], 5000)
    assert.equal(web.row.phase, 'running')
    one.destroy()
  })

withHost('a guest that could not be committed as hibernated goes on', {}, async ({ host, process, web }) => {
  const commit = host.store.commit.bind(host.store)
  host.store.commit = () => Promise.reject(new CellarError('HOST_DISK_FULL', ['keep the change']))
  await assert.rejects(host.hibernation.hibernate(web), { code: 'HOST_DISK_FULL' })
  host.store.commit = commit
  assert.ok(process.was('go', web.row.id))
  assert.deepEqual([web.row.phase, process.guests.get(web.row.id)!.held], ['running', false])
  await until(() => process.forgotten.length === 1)
})

withHost('a guest whose process is lost while it is committed as hibernated wakes in another', {},
  async ({ host, process, web }) => {
    whileCommitted(host, () => host.lose(process))
    await host.hibernation.hibernate(web)
    assert.deepEqual([web.row.phase, web.handle], ['hibernated', undefined])
    void host.hibernation.wake(web, 'asked')
    assert.ok(await web.reaches(['running'], 2000))
  })

withHost('a guest that is restarted while it is committed as hibernated is let go of, then begins anew', {},
  async ({ host, process, web }) => {
    let restarted: Promise<unknown> | undefined
    whileCommitted(host, () => { restarted = host.guests.restart(web) })
    await host.hibernation.hibernate(web)
    await restarted
    await until(() => web.row.phase === 'running')
    const [released] = process.told.filter((message) => 'release' in message)
    assert.equal(released?.run, 1)
    assert.ok(process.told.indexOf(released) < process.told.findLastIndex((message) => 'start' in message))
    assert.deepEqual([web.row.run, process.guests.get(web.row.id)!.launch.from], [2, undefined])
  })

withHost('a guest that is about to wake when the host is killed waits until its last run is let go of', {},
  async ({ host, process, web }) => {
    process.silent.add('release')
    await host.hibernation.hibernate(web)
    host.hibernation.wake(web, 'asked').catch(() => {})
    await until(() => host.store.load().guests[0]!.run === 2)
    await host.restart()
    assert.equal(host.guest('web').row.phase, 'starting')
    await sleep(50)
    assert.equal(process.guests.get(web.row.id)!.launch.run, 1, 'nothing was launched beside it')
    process.silent.clear()
    host.hello(process)
    await host.guest('web').reaches(['running'], 2000)
    assert.deepEqual([host.guest('web').row.phase, process.guests.get(web.row.id)!.launch.run], ['running', 2])
  })

withHost('a guest that is stopped while it is saved has ended', {}, async ({ host, process, web }) => {
  process.silent.add('capture')
  const hibernating = assert.rejects(host.hibernation.hibernate(web))
  await until(() => process.was('capture', web.row.id))
  await host.guests.stop(web, signals.SIGTERM)
  host.lose(process)
  await hibernating
  assert.equal(web.row.phase, 'stopped')
})

withHost('a paused guest is not hibernated; a hibernated one is not paused', {}, async ({ host, web }) => {
  await host.snapshots.pause(web)
  await assert.rejects(host.hibernation.hibernate(web), { code: 'GUEST_PHASE_WRONG' })
  await host.snapshots.resume(web)
  await host.hibernation.hibernate(web)
  await assert.rejects(host.snapshots.pause(web), { code: 'GUEST_PHASE_WRONG' })
})

withHost('a hibernated guest is saved by name and forked without being woken', {}, async ({ host, process, web }) => {
  await host.hibernation.hibernate(web)
  const saved = await host.snapshots.save(web, { name: 'asleep' })
  assert.equal(saved.memoryBytes, 65_536)
  await host.snapshots.fork(web, { count: 2 })
  assert.deepEqual([web.row.phase, process.guests.size], ['hibernated', 2])
  assert.deepEqual([...process.guests.values()].map(({ launch }) => launch.from?.event), ['fork', 'fork'])
  await assert.rejects(host.snapshots.remove('default', 'asleep'), { code: 'IN_USE' })
  await host.hibernation.wake(web, 'asked')
  await sleep(100)
  assert.deepEqual(process.forgotten, [], 'it has a name')
  await host.snapshots.remove('default', 'asleep')
})

withHost('an idle guest is hibernated when its spec says so, a busy one is not', { hibernate: { idle: '600ms' } },
  async ({ host, process, web }) => {
    const busy = await host.run('busy', { hibernate: { idle: '600ms' } })
    const other = await host.run('other')
    const working = setInterval(() => { process.guests.get(busy.row.id)!.runningNs += 1000 }, 50)
    try {
      await web.reaches(['hibernated'], 5000)
    } finally {
      clearInterval(working)
    }
    assert.deepEqual([web.row.phase, busy.row.phase, other.row.phase], ['hibernated', 'running', 'running'])
  })

withHost('guests are hibernated while the machine is short of memory', { hibernate: {} }, async ({ host, web }) => {
  const other = await host.run('other')
  await sleep(1200)
  assert.equal(web.row.phase, 'running')
  host.available = 1
  await web.reaches(['hibernated'], 10_000)
  assert.deepEqual([web.row.phase, other.row.phase], ['hibernated', 'running'])
})

withHost('what lacks memory to start has others hibernated, if that is enough',
  { 'memory-reservation': '600MiB', hibernate: {} }, async ({ host, web }) => {
    const spec = GUEST_SPEC.parse({ image: 'app', 'memory-reservation': '1025MiB' })
    await assert.rejects(host.guests.create('default', 'huge', spec, true), { code: 'ADMISSION_REFUSED' })
    assert.equal(web.row.phase, 'running')
    await host.run('big', { 'memory-reservation': '900MiB' })
    assert.equal(web.row.phase, 'hibernated')
    await assert.rejects(host.hibernation.wake(web, 'asked'), { code: 'ADMISSION_REFUSED' })
    assert.equal(web.row.phase, 'hibernated')
  })

withHost('a guest that is forked is not hibernated for the memory of its copies', { 'memory-reservation': '600MiB',
  hibernate: {} }, async ({ host, web }) => {
  const forking = host.snapshots.fork(web, { count: 1 })
  const refused = assert.rejects(forking, { code: 'ADMISSION_REFUSED' }).then(() => true)
  assert.ok(await Promise.race([refused, sleep(2000)]), 'it is answered')
  assert.equal(web.row.phase, 'running')
})

withHost('a guest asks to be hibernated, and hears of it when it is woken', { may: ['hibernate'] },
  async ({ process, web }) => {
    process.ask(web.row.id, 'hibernate')
    await web.reaches(['hibernated'], 2000)
    assert.equal(web.row.phase, 'hibernated')
  })

withHost('a state that is a backup keeps a guest that was woken since', {}, async ({ host, process, web }) => {
  await host.hibernation.hibernate(web)
  const asleep = web.row
  await host.hibernation.wake(web, 'asked')
  // As the backup has it.
  await host.store.commit((tx) => tx.putGuest(asleep))
  await host.restart()
  const again = host.guest('web')
  assert.deepEqual([again.row.phase, again.row.run, again.row.from], ['running', 2, null])
  assert.equal(process.guests.size, 1)
})
