// host/guest_actions_test.ts: who may have a disk: one guest that writes it, or several that read it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { signals } from '../base/signals.ts'
import { FakeHost } from './fake_process.ts'
import { disposableFolder } from './test_support.ts'

function withDisk(name: string, work: (host: FakeHost) => Promise<void>): void {
  test(name, async () => {
    using folder = disposableFolder()
    await using host = await FakeHost.start(folder.path)
    for (const [volume, kind] of [['disk', 'disk'], ['folder', 'folder']] as const) {
      host.state.volumes.set(`default/${volume}`, { project: 'default', name: volume, sizeBytes: 1, createdAt: 1,
        clonedFrom: null, kind, state: 'ready' })
    }
    await work(host)
  })
}

const SHARED = { code: 'VOLUME_SHARED', message: 'Cannot start "two" as "one" has the disk "disk"' }

withDisk('a disk that a guest writes is for no second one, whoever reads or writes', async (host) => {
  await host.run('one', { volumes: ['disk:/d'] })
  await assert.rejects(host.run('two', { volumes: ['disk:/d'] }), SHARED)
  await assert.rejects(host.run('two', { volumes: ['disk:/d:ro'] }), SHARED)
  await host.run('three', { volumes: ['folder:/d'] })
})

withDisk('a disk that guests read is for others that read it', async (host) => {
  await host.run('one', { volumes: ['disk:/d:ro', 'folder:/f'] })
  await host.run('other', { volumes: ['disk:/d:ro', 'folder:/f'] })
  await assert.rejects(host.run('two', { volumes: ['disk:/d'] }), { code: 'VOLUME_SHARED' })
})

withDisk('a disk is free when its guest has ended, and not while it sleeps or is on its way out', async (host) => {
  const one = await host.run('one', { volumes: ['disk:/d'] })
  await host.hibernation.hibernate(one)
  await assert.rejects(host.run('two', { volumes: ['disk:/d'] }), SHARED)
  await host.hibernation.wake(one, 'asked')
  const process = host.processes[0]!
  process.silent.add('stop')
  void host.guests.stop(one, signals.SIGTERM)
  await one.reaches(['stopping'], 1000)
  await assert.rejects(host.run('two', { volumes: ['disk:/d'] }), SHARED)
  process.silent.clear()
  await host.guests.stop(one, signals.SIGTERM)
  const two = await host.run('two', { volumes: ['disk:/d'] })
  assert.equal(two.row.phase, 'running')
  await assert.rejects(host.guests.start(one), { code: 'VOLUME_SHARED' })
  assert.equal(one.row.phase, 'stopped')
})

withDisk('a guest that is not to run may name a disk that is in use, and copies of one that writes it are refused',
  async (host) => {
    const one = await host.run('one', { volumes: ['disk:/d'] })
    await host.guests.create('default', 'two', { ...one.row.spec }, false)
    await assert.rejects(host.guests.start(host.guest('two')), SHARED)
    await assert.rejects(host.snapshots.fork(one, { count: 1 }), { code: 'VOLUME_SHARED' })
    assert.deepEqual(host.state.ofProject('default').map(({ row }) => row.name), ['one', 'two'])
  })
