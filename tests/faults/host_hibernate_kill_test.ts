// tests/faults/host_hibernate_kill_test.ts: kill -9 of the host, and of the cell process, at any moment of hibernation.
//
// `counter` counts its answers in memory: a count that goes back, or comes twice, is a guest that ran twice or lost
// what it had. While a guest runs its process's death is its own; once it is said to be hibernated, nothing of it is
// lost. The moments are chosen by a seed, which is in the test's name.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

const SEEDS = 3
const ROUNDS = 6
const GUEST = '/v1/projects/default/guests/web'

function random(seed: number): () => number {
  let state = seed * 2_654_435_761 >>> 0
  return () => {
    state = state * 1_664_525 + 1_013_904_223 >>> 0
    return state / 2 ** 32
  }
}

/** The count of an answer; undefined if there was none. */
function ask(port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    let text = ''
    socket.setTimeout(5000, () => socket.destroy())
    socket.setEncoding('utf8').on('error', () => {}).on('data', (chunk) => { text += chunk })
    socket.on('close', () => {
      const count = /"count":(\d+)/.exec(text)?.[1]
      resolve(count === undefined ? undefined : Number(count))
    })
    socket.write('GET / HTTP/1.1\r\n\r\n')
  })
}

async function startWeb(): Promise<{ host: TestHost; port: number }> {
  const host = await startHost()
  await host.api('POST', '/v1/images?name=counter', readFileSync(guest('counter')))
  const { status, body } = await host.api('POST', '/v1/projects/default/guests', { name: 'web',
    spec: { image: 'counter', args: ['counter', 'web'], ports: ['0:8080'], restart: 'no' } })
  assert.equal(status, 201, JSON.stringify(body))
  const port = await eventually('it runs', async () => {
    const { phase, ports } = (await host.api('GET', GUEST)).body as { phase: string; ports: { port: number }[] }
    return phase === 'running' && ports[0]?.port
  })
  // Its first answer: it listens.
  await eventually('it answers', () => ask(port))
  return { host, port }
}

async function phase(host: TestHost): Promise<string> {
  return ((await host.api('GET', GUEST)).body as { phase: string }).phase
}

for (let seed = 1; seed <= SEEDS; seed++) {
  test(`a guest keeps its memory, and runs once, when the host is killed while it comes and goes (seed ${seed})`,
    async () => {
      const { host, port } = await startWeb()
      await using _ = host
      const next = random(seed)
      let last = 1
      for (let round = 0; round < ROUNDS; round++) {
        const asked = host.api('POST', `${GUEST}/${next() < 0.7 ? 'hibernate' : 'resume'}`).catch(() => {})
        const answered = next() < 0.5 ? ask(port) : undefined
        await sleep(next() * 60)
        await host.kill()
        await asked
        // Who was connected when the host died may have been answered.
        last = Math.max(last, await answered ?? 0)
        await host.restart()
        const count = await eventually('it answers', () => ask(port))
        assert.ok(count > last && count <= last + 2, `${count} follows on ${last}, round ${round}`)
        last = count
        assert.equal(await phase(host), 'running')
        assert.equal(host.cellProcesses().length > 0, true)
      }
    })

  test(`what is said to be hibernated is not lost with its process, nor with the host (seed ${seed})`, async () => {
    const { host, port } = await startWeb()
    await using _ = host
    const next = random(seed)
    let last = (await ask(port))!
    for (let round = 0; round < ROUNDS; round++) {
      assert.equal((await host.api('POST', `${GUEST}/hibernate`)).status, 200)
      await sleep(next() * 10)
      if (next() < 0.5) await host.kill()
      for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
      if (host.running.child.exitCode !== null || host.running.child.signalCode !== null) await host.restart()
      const count = await eventually('it answers', () => ask(port))
      assert.equal(count, last + 1, `round ${round}`)
      last = count
    }
  })
}

test('a guest whose process is killed while it is saved has ended, and none of it is left', async () => {
  const { host } = await startWeb()
  await using _ = host
  const hibernating = host.api('POST', `${GUEST}/hibernate`)
  for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
  const { status } = await hibernating
  const now = await eventually('it is known', async () => {
    const found = await phase(host)
    return found !== 'running' && found
  })
  assert.equal(now, status === 200 ? 'hibernated' : 'failed')
})
