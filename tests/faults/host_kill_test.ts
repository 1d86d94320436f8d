// tests/faults/host_kill_test.ts: kill -9 of the host and of cell processes at any moment.
//
// What was answered with success is there afterwards, and runs; nothing runs that nobody knows of. The moments are
// chosen by a seed, which is printed when a run fails.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

type Guest = { readonly id: string; readonly name: string; readonly project: string; readonly phase: string
  readonly process?: number }

const SEEDS = 4
const CREATED = 60

async function guests(host: TestHost): Promise<Guest[]> {
  return ((await host.api('GET', '/v1/guests')).body as { items: Guest[] }).items
}

function random(seed: number): () => number {
  let state = seed * 2_654_435_761 >>> 0
  return () => {
    state = state * 1_664_525 + 1_013_904_223 >>> 0
    return state / 2 ** 32
  }
}

/** No cell process is there that the host doesn't know, and no guest is in two of them. */
async function runningOnce(host: TestHost): Promise<void> {
  const { body } = await host.api('GET', '/v1/host')
  const { processes } = body as { processes: { pid: number }[] }
  assert.deepEqual(host.cellProcesses().toSorted(), processes.map(({ pid }) => pid).toSorted(),
    'every cell process belongs to the host')
  const { body: stats } = await host.api('GET', '/v1/stats')
  const ids = Object.values((stats as { items: { id: string }[] }).items).map(({ id }) => id)
  assert.equal(new Set(ids).size, ids.length)
}

for (let seed = 1; seed <= SEEDS; seed++) {
  test(`what was acknowledged survives kill -9 of the host while guests are created (seed ${seed})`, async () => {
    await using host = await startHost()
    const next = random(seed)
    await host.api('POST', '/v1/images?name=nap', readFileSync(guest('nap')))
    const acknowledged = new Set<string>()
    const removed = new Set<string>()
    const requests = Array.from({ length: CREATED }, async (_, i) => {
      const name = `g${i}`
      try {
        const { status } = await host.api('POST', `/v1/projects/p${i % 2}/guests`,
          { name, spec: { image: 'nap', args: ['nap', '10000000'], memory: '1MiB' } })
        if (status !== 201) return
        acknowledged.add(name)
        if (i % 5 !== 0) return
        const gone = await host.api('DELETE', `/v1/projects/p${i % 2}/guests/${name}?force=true`)
        if (gone.status === 204 || gone.status === 200) removed.add(name)
        else acknowledged.delete(name)
      } catch {
        // No answer: it may be there or not. A removal that wasn't answered, too.
        if (i % 5 === 0) acknowledged.delete(name)
      }
    })
    await sleep(next() * 400)
    await host.kill()
    await Promise.allSettled(requests)
    await host.restart()
    // A removal that was cut short has stopped its guest.
    const there = await eventually('all guests run', async () => {
      const all = await guests(host)
      return all.every(({ phase, name }) => phase === 'running' ||
        (phase === 'stopped' && Number(name.slice(1)) % 5 === 0)) && all
    })
    const names = new Set(there.map(({ name }) => name))
    for (const name of acknowledged) if (!removed.has(name)) assert.ok(names.has(name), `${name} is lost`)
    for (const name of removed) assert.ok(!names.has(name), `${name} is back`)
    await runningOnce(host)
  })
}

test('host and cell processes that die together leave nothing behind, and all runs again', async () => {
  await using host = await startHost()
  await host.api('POST', '/v1/images?name=nap', readFileSync(guest('nap')))
  for (const name of ['a', 'b', 'c']) {
    await host.api('POST', `/v1/projects/p-${name}/guests?wait=20s`,
      { name, spec: { image: 'nap', args: ['nap', '10000000'] } })
  }
  for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
  await host.kill()
  await host.restart()
  await eventually('all guests run', async () => (await guests(host)).every(({ phase }) => phase === 'running'))
  await runningOnce(host)
})

test('a volume is whole or not there when the host is killed while it is cloned', async () => {
  await using host = await startHost()
  await host.ok(['volume', 'create', '--size', '64MiB', 'data'])
  const { mkdtempSync, writeFileSync, rmSync } = await import('node:fs')
  const { tmpdir } = await import('node:os')
  const { join } = await import('node:path')
  const folder = mkdtempSync(join(tmpdir(), 'cellar-'))
  try {
    for (let i = 0; i < 500; i++) writeFileSync(join(folder, `f${i}`), `file ${i}`)
    await host.ok(['cp', folder, 'data:/tree'])
    for (let round = 0; round < 3; round++) {
      void host.api('POST', '/v1/projects/default/volumes/data/clone', { name: `copy${round}` }).catch(() => {})
      await sleep(5 + 15 * round)
      await host.killAndRestart()
      const { body } = await host.api('GET', '/v1/projects/default/volumes')
      for (const { name } of (body as { items: { name: string }[] }).items) {
        await host.ok(['cp', `${name}:/tree/f499`, join(folder, 'back')])
        assert.equal(readFileSync(join(folder, 'back'), 'utf8'), 'file 499')
      }
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})
