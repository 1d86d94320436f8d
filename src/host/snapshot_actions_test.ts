// host/snapshot_actions_test.ts: pause, snapshot, fork and restore, and what each leaves when it is cut short.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import { FakeHost, type FakeProcess } from './fake_process.ts'
import { disposableFolder } from './test_support.ts'

type Rig = { host: FakeHost; process: FakeProcess }

function withHost(name: string, work: (rig: Rig & { folder: string }) => Promise<void>): void {
  test(name, async () => {
    using folder = disposableFolder()
    await using host = await FakeHost.start(folder.path)
    await host.run('web')
    await work({ host, process: host.processes[0]!, folder: folder.path })
  })
}

const kinds = (host: FakeHost): string[] => host.store.events(0, undefined, 1000).map(({ kind }) => kind)

withHost('pause is committed, then done; resume the same; each twice is once', async ({ host, process }) => {
  const web = host.guest('web')
  await host.snapshots.pause(web)
  assert.equal(web.row.phase, 'paused')
  assert.deepEqual(host.store.load().guests.map(({ phase }) => phase), ['paused'])
  assert.equal(process.guests.get(web.row.id)!.paused, true)
  await host.snapshots.pause(web)
  await host.snapshots.resume(web)
  await host.snapshots.resume(web)
  assert.deepEqual([web.row.phase, process.guests.get(web.row.id)!.paused], ['running', false])
  assert.deepEqual(kinds(host).filter((kind) => /paused|resumed/.test(kind)), ['guest.paused', 'guest.resumed'])
})

withHost('a guest that was to be paused when the host was killed is paused by the next', async ({ host, process }) => {
  process.silent.add('pause')
  host.snapshots.pause(host.guest('web')).catch(() => {})
  await sleep(20)
  process.silent.clear()
  await host.restart()
  const web = host.guest('web')
  assert.deepEqual([web.row.phase, process.guests.get(web.row.id)!.paused], ['paused', true])
  await host.snapshots.resume(web)
  assert.equal(process.guests.get(web.row.id)!.paused, false)
})

withHost('a paused guest is stopped and killed as one that runs', async ({ host, process }) => {
  const web = host.guest('web')
  await host.snapshots.pause(web)
  await host.guests.stop(web, signals.SIGTERM)
  assert.equal(web.row.phase, 'stopped')
  assert.equal(process.guests.size, 0)
  await assert.rejects(host.snapshots.pause(web), { code: 'GUEST_PHASE_WRONG' })
  await assert.rejects(host.snapshots.resume(web), { code: 'GUEST_PHASE_WRONG' })
})

withHost('a paused guest whose process dies has ended', async ({ host, process }) => {
  const web = host.guest('web')
  await host.snapshots.pause(web)
  host.lose(process)
  assert.equal(web.row.phase, 'failed')
})

withHost('a snapshot is known by name, digest and a part of it, also by the next host', async ({ host }) => {
  const saved = await host.snapshots.save(host.guest('web'), { name: 'first' })
  assert.deepEqual([saved.name, saved.guest, saved.memoryBytes, saved.guests], ['first', 'web', 65_536, 0])
  assert.equal(host.guest('web').row.phase, 'running')
  await host.restart()
  for (const reference of ['first', saved.digest, saved.digest.slice(7), saved.digest.slice(0, 71)]) {
    assert.deepEqual(host.snapshots.one('default', reference), saved)
  }
  assert.throws(() => host.snapshots.one('default', 'second'), { code: 'NOT_FOUND' })
  assert.deepEqual(host.processes[0]!.kept, [saved.digest])
})

withHost('a name that exists is moved to the new snapshot; the old one keeps its digest', async ({ host }) => {
  const old = await host.snapshots.save(host.guest('web'), { name: 'one' })
  const now = await host.snapshots.save(host.guest('web'), { name: 'one' })
  assert.notEqual(old.digest, now.digest)
  assert.equal(host.snapshots.one('default', 'one').digest, now.digest)
  assert.equal(host.snapshots.one('default', old.digest).name, undefined)
  await host.restart()
  assert.equal(host.snapshots.one('default', 'one').digest, now.digest)
})

withHost('snapshot with stop ends the guest where it was saved: nothing of it runs on', async ({ host, process }) => {
  const web = host.guest('web')
  await host.snapshots.save(web, { stop: true })
  assert.deepEqual([web.row.phase, web.row.desired], ['stopped', 'stopped'])
  assert.ok(process.was('release', web.row.id))
  assert.equal(process.guests.size, 0)
  assert.ok(kinds(host).includes('guest.ended'))
})

withHost('what a process says against a capture is answered, and nothing is kept', async ({ host, process }) => {
  process.captures = new CellarError('CAPTURE_IMPOSSIBLE', ['web', 'it holds a reference to the host'])
  await assert.rejects(host.snapshots.save(host.guest('web'), { name: 'x' }),
    { code: 'CAPTURE_IMPOSSIBLE', message: /a reference to the host/ })
  assert.deepEqual(host.snapshots.list('default'), [])
  assert.equal(host.captures.counts.failed, 1)
})

withHost('a snapshot that could not be committed is removed, and its guest goes on', async ({ host, process }) => {
  const web = host.guest('web')
  const commit = host.store.commit.bind(host.store)
  host.store.commit = () => Promise.reject(new CellarError('HOST_DISK_FULL', ['keep the change']))
  await assert.rejects(host.snapshots.save(web, { name: 'x', stop: true }), { code: 'HOST_DISK_FULL' })
  host.store.commit = commit
  assert.ok(process.was('go', web.row.id))
  assert.deepEqual([web.row.phase, web.isHeld, process.guests.get(web.row.id)!.held], ['running', false, false])
  assert.deepEqual(host.snapshots.list('default'), [])
  await sleep(100)
  assert.equal(process.forgotten.length, 1)
})

withHost('a guest that the host held when it was killed goes on', async ({ host, process }) => {
  const web = host.guest('web')
  host.store.commit = () => new Promise(() => {})
  host.snapshots.save(web, { stop: true }).catch(() => {})
  while (!process.guests.get(web.row.id)!.held) await sleep(1)
  await host.restart()
  assert.ok(process.was('go', web.row.id))
  assert.equal(host.guest('web').row.phase, 'running')
})

withHost('a guest that its snapshot has stopped is let go of by the next host', async ({ host, process }) => {
  const web = host.guest('web')
  process.silent.add('release')
  await host.snapshots.save(web, { stop: true })
  process.silent.clear()
  assert.equal(process.guests.size, 1)
  await host.restart()
  await sleep(10)
  assert.equal(process.guests.size, 0)
  assert.equal(host.guest('web').row.phase, 'stopped')
})

withHost('a guest is launched anew only when its process has let go of it', async ({ host, process }) => {
  const web = host.guest('web')
  process.silent.add('release')
  await host.snapshots.save(web, { stop: true })
  await host.guests.start(web)
  await sleep(20)
  assert.equal(web.row.phase, 'starting')
  process.silent.clear()
  host.hello(process, () => [])
  await web.reaches(['running'], 2000)
  assert.equal(process.guests.get(web.row.id)!.launch.run, 2)
})

withHost('a capture whose process is lost is answered', async ({ host, process }) => {
  process.silent.add('capture')
  const saving = assert.rejects(host.snapshots.save(host.guest('web'), {}), { code: 'PROCESS_LOST' })
  await sleep(10)
  host.lose(process)
  await saving
})

withHost('a snapshot that nobody waits for any more is undone', async ({ host, process }) => {
  const { row } = host.guest('web')
  const written = { snapshot: `sha256:${'c'.repeat(64)}`, memoryBytes: 1, newBytes: 1, storedBytes: 1, chunks: 1,
    newChunks: 1, stoppedNs: 1 }
  host.captures.captured(process.handle, { captured: 999, id: row.id, written })
  assert.ok(process.was('go', row.id))
  await sleep(100)
  assert.deepEqual(process.forgotten, [written.snapshot])
})

withHost('fork makes guests of their own beside the one that goes on', async ({ host, process }) => {
  const web = host.guest('web')
  const views = await host.snapshots.fork(web, { count: 3 })
  assert.deepEqual(views.map(({ name, phase }) => [name, phase]),
    [['web-1', 'running'], ['web-2', 'running'], ['web-3', 'running']])
  assert.deepEqual(views[0]!.origin, { fork: 'web' })
  assert.deepEqual(views.map(({ id }) => process.guests.get(id)!.launch.from),
    [1, 2, 3].map((number) => ({ snapshot: '', event: 'fork', number })))
  const more = await host.snapshots.fork(web, { count: 1 })
  assert.equal(more[0]!.name, 'web-4')
  await assert.rejects(host.snapshots.fork(web, { count: 1, names: ['web-2'] }), { code: 'EXISTS' })
  await assert.rejects(host.snapshots.fork(web, { count: 2, names: ['one'] }), { code: 'REQUEST_INVALID' })
  await assert.rejects(host.snapshots.fork(web, { count: 0 }), { code: 'ADMISSION_REFUSED' })
  await assert.rejects(host.snapshots.fork(web, { count: 1001 }), { code: 'ADMISSION_REFUSED' })
})

withHost('a fork that fails leaves no guest', async ({ host, process }) => {
  process.captures = new CellarError('CAPTURE_ENDED', ['web'])
  await assert.rejects(host.snapshots.fork(host.guest('web'), { count: 5 }), { code: 'CAPTURE_ENDED' })
  assert.equal(host.state.guests.size, 1)
  assert.equal(host.store.load().guests.length, 1)
  assert.deepEqual([...process.handle.guests], [host.guest('web').row.id])
})

withHost('a fork that is more than can be promised is refused as a whole', async ({ host }) => {
  const big = await host.run('big', { 'memory-reservation': '300MiB' })
  await assert.rejects(host.snapshots.fork(big, { count: 3 }), { code: 'ADMISSION_REFUSED' })
  assert.equal(host.state.promised.memoryBytes, 300 * 2 ** 20)
  assert.equal((await host.snapshots.fork(big, { count: 2 })).length, 2)
})

withHost('a fork that the host was killed in never was', async ({ host, process }) => {
  process.silent.add('fork')
  host.snapshots.fork(host.guest('web'), { count: 2 }).catch(() => {})
  while (!process.was('fork', host.guest('web').row.id)) await sleep(1)
  assert.equal(host.store.load().guests.length, 3)
  await host.restart()
  assert.deepEqual([...host.state.guests.values()].map(({ row }) => row.name), ['web'])
  await host.store.commit(() => {})
  assert.deepEqual(host.store.load().guests.map(({ name }) => name), ['web'])
})

withHost('a fork that the host was killed after is found', async ({ host, process }) => {
  host.snapshots.fork(host.guest('web'), { count: 2 }).catch(() => {})
  while (process.guests.size < 3) await sleep(0)
  // What came after was not committed.
  host.store.commit = () => new Promise(() => {})
  await host.restart()
  assert.deepEqual([...host.state.guests.values()].map(({ row }) => [row.name, row.phase]),
    [['web', 'running'], ['web-1', 'running'], ['web-2', 'running']])
})

withHost('a child of a fork that never began is not started as if it were new', async ({ host, process }) => {
  process.silent.add('fork')
  const forking = host.snapshots.fork(host.guest('web'), { count: 1 })
  while (!process.was('fork', host.guest('web').row.id)) await sleep(1)
  const failure = assert.rejects(forking, { code: 'PROCESS_LOST' })
  host.lose(process)
  await failure
  assert.equal(host.processes.length, 0)
  assert.equal(host.state.byName('default', 'web-1'), undefined)
})

withHost('restore makes a guest that goes on from a snapshot, with ports of its own', async ({ host, process }) => {
  const source = await host.run('pub', { ports: ['0:80', '127.0.0.1:0:443'] })
  const saved = await host.snapshots.save(source, {})
  const view = await host.snapshots.restore('default', saved.digest, { name: 'two' }, () => {})
  const two = host.guest('two')
  await two.reaches(['running'], 2000)
  assert.deepEqual(process.guests.get(view.id)!.launch.from, { snapshot: saved.digest, event: 'restore' })
  assert.deepEqual(two.row.spec.ports, ['127.0.0.1:0:80', '127.0.0.1:0:443'])
  assert.notEqual(two.row.ports[0]!.port, source.row.ports[0]!.port)
  assert.deepEqual(two.view().origin, { snapshot: saved.digest })
  assert.equal(host.snapshots.one('default', saved.digest).guests, 1)
  await assert.rejects(host.snapshots.restore('default', saved.digest, { ports: ['1:81'] }, () => {}),
    { code: 'REQUEST_INVALID' })
  await assert.rejects(host.snapshots.restore('default', saved.digest, { name: 'two' }, () => {}), { code: 'EXISTS' })
  await assert.rejects(host.snapshots.restore('default', saved.digest, {}, () => { throw new Error('low port') }),
    /low port/)
})

withHost('a restored guest begins again where it began, while the snapshot is there', async ({ host, process }) => {
  const saved = await host.snapshots.save(host.guest('web'), { name: 'base' })
  await host.snapshots.restore('default', 'base', { name: 'two' }, () => {})
  const two = host.guest('two')
  await two.reaches(['running'], 2000)
  await host.guests.restart(two)
  await two.reaches(['starting'], 100)
  await two.reaches(['running'], 2000)
  const launched = (): unknown => process.guests.get(two.row.id)!.launch.from
  assert.deepEqual([two.row.run, launched()], [2, { snapshot: saved.digest, event: 'restore' }])
  await host.snapshots.remove('default', 'base')
  await host.guests.restart(two)
  while (two.row.run === 2) await sleep(1)
  await two.reaches(['running'], 2000)
  assert.equal(launched(), undefined)
})

withHost('a removed snapshot is removed from disk by a process of the project', async ({ host, process }) => {
  const saved = await host.snapshots.save(host.guest('web'), { name: 'x' })
  await host.snapshots.remove('default', 'x')
  assert.throws(() => host.snapshots.one('default', 'x'), { code: 'NOT_FOUND' })
  assert.deepEqual(host.store.load().snapshots, [])
  await sleep(100)
  assert.deepEqual(process.forgotten, [saved.digest])
})

withHost('a guest asks only for what it may', async ({ host, process }) => {
  const told = async (): Promise<unknown> => {
    await sleep(30)
    return process.told.findLast((message) => 'told' in message)
  }
  process.ask(host.guest('web').row.id, 'fork', { count: 1 })
  assert.deepEqual(await told(), { told: 7, errno: 2 })
  const free = await host.run('free', { may: ['fork', 'snapshot'] })
  process.ask(free.row.id, 'fork', { count: 2 })
  assert.deepEqual(await told(), { told: 7, errno: 0, value: 2 })
  process.ask(free.row.id, 'snapshot', { name: 'mine' })
  assert.deepEqual(await told(), { told: 7, errno: 0 })
  assert.equal(host.snapshots.one('default', 'mine').guest, 'free')
  process.ask(free.row.id, 'snapshot', { name: '../x' })
  assert.deepEqual(await told(), { told: 7, errno: 28 })
  process.ask(free.row.id, 'hibernate')
  assert.deepEqual(await told(), { told: 7, errno: 2 })
})
