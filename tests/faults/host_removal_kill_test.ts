// tests/faults/host_removal_kill_test.ts: kill -9 while something goes: projects, volumes, guests that are stopped.
//
// What was begun to be removed is gone or as it was, and can be removed then; no process of it is left. Here, too, cell
// processes are killed while their guests are being created. Moments are chosen by a seed.

import assert from 'node:assert/strict'
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { Folder } from '../support.ts'
import { createGuest, guestsOf, importProgram, inPhase, nothingUnowned } from './faults_support.ts'

async function namesOf(host: TestHost, path: string): Promise<string[]> {
  return ((await host.api('GET', path)).body as { items: { name: string }[] }).items.map(({ name }) => name)
}

test('a project is whole enough to be removed again when the host is killed while it goes', async () => {
  await using host = await startHost()
  using folder = new Folder()
  await importProgram(host, 'nap')
  for (let i = 0; i < 300; i++) writeFileSync(folder.at(`f${i}`), `file ${i}`)
  for (const delay of [0, 15, 60]) {
    await host.ok(['volume', 'create', '-P', 'going', '--size', '16MiB', 'data'])
    await host.ok(['cp', '-P', 'going', folder.path, 'data:/tree'])
    await Promise.all(Array.from({ length: 8 }, (_, i) =>
      createGuest(host, `g${i}`, { image: 'nap', args: ['nap', '100000000'] }, 'going')))
    await createGuest(host, `stays${delay}`, { image: 'nap', args: ['nap', '100000000'] })
    await inPhase(host, 'g7', 'running')
    void host.api('DELETE', '/v1/projects/going?force=true').catch(() => {})
    await sleep(delay)
    await host.killAndRestart()
    const left = await namesOf(host, '/v1/projects')
    if (left.includes('going')) await host.ok(['project', 'rm', '--force', 'going'])
    assert.deepEqual((await namesOf(host, '/v1/projects')), ['default'])
    await eventually('its processes have ended', async () => {
      const { processes } = (await host.api('GET', '/v1/host')).body as { processes: { project: string }[] }
      return processes.every(({ project }) => project === 'default')
    })
    await nothingUnowned(host)
    assert.deepEqual(readdirSync(join(host.state, 'projects')), ['default'])
    await inPhase(host, `stays${delay}`, 'running')
  }
})

test('guests that are created while their project is removed are refused, or run, or are gone with it', async () => {
  await using host = await startHost()
  await importProgram(host, 'nap')
  for (let round = 0; round < 2; round++) {
    await createGuest(host, 'first', { image: 'nap', args: ['nap', '100000000'] }, 'busy')
    const removal = host.api('DELETE', '/v1/projects/busy?force=true')
    const created = await Promise.all(Array.from({ length: 12 }, async (_, i) => {
      await sleep(i * 4)
      return await createGuest(host, `g${i}`, { image: 'nap', args: ['nap', '100000000'] }, 'busy')
    }))
    assert.ok(created.every((status) => [201, 404, 409].includes(status)), String(created))
    const { id } = (await removal).body as { id: string }
    const { status } = (await host.api('GET', `/v1/operations/${id}?wait=20s`)).body as { status: string }
    assert.ok(['done', 'failed'].includes(status), status)
    const projects = await namesOf(host, '/v1/projects')
    const there = await guestsOf(host)
    if (!projects.includes('busy')) assert.deepEqual(there.map(({ name }) => name), [])
    await eventually('those that are there run', async () =>
      (await guestsOf(host)).every(({ phase }) => phase === 'running'))
    const before = (await guestsOf(host)).map(({ id: one }) => one).toSorted()
    await host.killAndRestart()
    assert.deepEqual((await guestsOf(host)).map(({ id: one }) => one).toSorted(), before, 'memory and disk agree')
    await nothingUnowned(host)
    if ((await namesOf(host, '/v1/projects')).includes('busy')) await host.ok(['project', 'rm', '--force', 'busy'])
  }
})

test('a volume that goes is gone or there, and its name is free, when the host is killed meanwhile', async () => {
  await using host = await startHost()
  using folder = new Folder()
  for (let i = 0; i < 1000; i++) writeFileSync(folder.at(`f${i}`), `file ${i}`)
  for (const delay of [0, 20]) {
    await host.ok(['volume', 'create', '--size', '64MiB', 'data'])
    await host.ok(['cp', folder.path, 'data:/tree'])
    void host.api('DELETE', '/v1/projects/default/volumes/data').catch(() => {})
    await sleep(delay)
    await host.killAndRestart()
    if ((await namesOf(host, '/v1/projects/default/volumes')).includes('data')) {
      await host.ok(['cp', 'data:/tree/f999', folder.at('back')])
      await host.ok(['volume', 'rm', 'data'])
    }
    assert.ok(!existsSync(join(host.state, 'projects/default/volumes/data')))
  }
})

for (let seed = 1; seed <= 2; seed++) {
  test(`guests whose process is killed while they are created all run in the end (seed ${seed})`, async () => {
    await using host = await startHost()
    await importProgram(host, 'nap')
    let state = seed * 2_654_435_761 >>> 0
    const random = (): number => (state = state * 1_664_525 + 1_013_904_223 >>> 0) / 2 ** 32
    const over = new AbortController()
    const killer = (async (): Promise<void> => {
      for (let kills = 0; !over.signal.aborted && kills < 6; kills++) {
        await sleep(random() * 200)
        for (const pid of host.cellProcesses()) try { process.kill(pid, 'SIGKILL') } catch { /* It has ended. */ }
      }
    })()
    const names = Array.from({ length: 30 }, (_, i) => `g${i}`)
    const statuses = await Promise.all(names.map(async (name, i) => {
      await sleep(i * 12)
      return await createGuest(host, name, { image: 'nap', args: ['nap', '100000000'], restart: 'always' }, `p${i % 2}`)
    }))
    over.abort()
    await killer
    assert.ok(statuses.every((status) => status === 201), String(statuses))
    await eventually('all run', async () => {
      const all = await guestsOf(host)
      return all.length === names.length && all.every(({ phase }) => phase === 'running')
    })
    await nothingUnowned(host)
  })
}

test('a guest that is being stopped is stopped, and not restarted, whoever is killed meanwhile', async () => {
  await using host = await startHost()
  await importProgram(host, 'spin')
  for (const [i, who] of ['process', 'host', 'both'].entries()) {
    const name = `spin${i}`
    await createGuest(host, name, { image: 'spin', restart: 'always', 'cpu-limit': '20%' })
    await inPhase(host, name, 'running')
    const stopped = host.api('POST', `/v1/projects/default/guests/${name}/stop`).catch(() => undefined)
    await sleep(i)
    if (who !== 'host') for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
    if (who !== 'process') await host.killAndRestart()
    const answer = await stopped
    const found = (await guestsOf(host)).find((one) => one.name === name)!
    // Without an answer nothing was promised: then it runs, or is stopped.
    if (answer === undefined && found.desired === 'running') await host.ok(['stop', name])
    await inPhase(host, name, 'stopped')
    await nothingUnowned(host)
    await host.ok(['rm', name])
  }
})
