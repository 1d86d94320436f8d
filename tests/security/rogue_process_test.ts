// tests/security/rogue_process_test.ts: a cell process that was taken over says what it likes to its host.
//
// The host is killed, the process of one project ended, and something else put in its place, as the project's user; the
// host that comes back finds it. Elsewhere: what it can do on the machine (jail_test.ts).

import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import * as sys from '../../src/sys/linux_files.ts'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import type { Script } from './rogue_process.ts'

const ROGUE = fileURLToPath(new URL('./rogue_process.ts', import.meta.url))
const NAP = fileURLToPath(new URL('../../guests/nap.wasm', import.meta.url))

type View = { readonly id: string; readonly phase: string; readonly process: number; readonly restarts: number
  readonly healthy?: boolean }

/** A host with a guest of project `victim` and one of project `bad`, both running. */
async function twoProjects(): Promise<{ host: TestHost; victim: View; bad: View }> {
  const host = await startHost()
  const image = await host.api('POST', '/v1/images?name=nap', readFileSync(NAP))
  assert.equal(image.status, 201)
  const run = async (project: string): Promise<View> => {
    const made = await host.api('POST', `/v1/projects/${project}/guests?wait=30s`,
      { name: 'one', spec: { image: 'nap', args: ['nap', '100000'], restart: 'always' } })
    assert.equal((made.body as View).phase, 'running')
    return made.body as View
  }
  return { host, victim: await run('victim'), bad: await run('bad') }
}

/** Ends the host, puts the rogue in the place of the process of `bad`, and starts the host again. */
async function takeOver(host: TestHost, { process: number }: View, script: Omit<Script, 'runFolder'>):
Promise<{ rogue: ChildProcess; told: string[] }> {
  await host.kill()
  const runFolder = join(host.state, 'run', String(number))
  const pid = host.cellProcesses().find((one) => readFileSync(`/proc/${one}/cmdline`, 'utf8').includes(runFolder))!
  const uid = Number(/^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1])
  process.kill(pid, 'SIGKILL')
  const rogue = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', ROGUE,
    JSON.stringify({ runFolder, ...script } satisfies Script)], { uid, gid: uid, stdio: ['ignore', 'pipe', 'inherit'] })
  const told: string[] = []
  rogue.stdout!.on('data', (data: Buffer) => { told.push(...data.toString().trimEnd().split('\n')) })
  await eventually('the rogue listens', () => told.length > 0)
  await host.restart()
  return { rogue, told }
}

async function guestOf(host: TestHost, project: string): Promise<View> {
  return (await host.api('GET', `/v1/projects/${project}/guests/one`)).body as View
}

test('A process that says it has the guest of another project, and that it ended, changes nothing of it', async () => {
  const { host, victim, bad } = await twoProjects()
  await using _ = host
  const { id } = victim
  const end = { id, run: 1, outcome: { kind: 'exit', code: 3 }, endedAt: 1 }
  const { rogue, told } = await takeOver(host, bad, {
    hello: { hello: 1, process: bad.process, project: 'bad', pid: 1,
      guests: [{ id, run: 1, startedAt: 1, healthy: false }], ends: [] },
    later: [{ health: id, run: 1, healthy: false, why: 'lies' }, { started: id, run: 1, startedAt: 1 }, { ended: end },
      { dial: 77, id, name: 'one', port: 1 }],
  })
  try {
    await eventually('the host has heard all', () => told.some((line) => line.includes('"dialled":77')))
    assert.ok(told.some((line) => line.includes(`"stop":"${id}"`)), told.join('\n'))
    const after = await guestOf(host, 'victim')
    assert.deepEqual([after.phase, after.restarts, after.process, after.healthy],
      ['running', 0, victim.process, undefined])
    const { body } = await host.api('GET', '/v1/events?follow=false&project=victim')
    assert.ok(!JSON.stringify(body).includes('guest.ended'), JSON.stringify(body))
  } finally {
    rogue.kill('SIGKILL')
  }
})

test('A process that says it is another one is ended as the one it is, when its project goes', async () => {
  const { host, bad } = await twoProjects()
  await using _ = host
  const { rogue, told } = await takeOver(host, bad, { later: [],
    hello: { hello: 1, process: bad.process, project: 'bad', pid: 1, guests: [], ends: [] } })
  try {
    await eventually('the host has said hello', () => told.length > 1)
    await host.api('DELETE', '/v1/projects/bad?force')
    await eventually('it is ended', () => rogue.signalCode === 'SIGKILL')
  } finally {
    rogue.kill('SIGKILL')
  }
})

test("A process whose socket is a link to that of another project's doesn't take the host there", async () => {
  const { host, victim, bad } = await twoProjects()
  await using _ = host
  const { rogue } = await takeOver(host, bad, { later: [], hello: {},
    linkTo: join(host.state, 'run', String(victim.process), 'c') })
  try {
    const after = await guestOf(host, 'victim')
    assert.deepEqual([after.phase, after.process], ['running', victim.process])
    const { processes } = (await host.api('GET', '/v1/host')).body as { processes: { id: number; project: string }[] }
    assert.deepEqual(processes.filter(({ project }) => project === 'victim').map(({ id }) => id), [victim.process])
  } finally {
    rogue.kill('SIGKILL')
  }
})

test('What a process has left, deeper than anybody has descriptors, does not keep its host from starting', async () => {
  await using host = await startHost()
  await host.kill()
  const left = [join(host.state, 'run/.dead-7'), join(host.state, 'projects/gone')]
  for (const folder of left) {
    mkdirSync(folder, { recursive: true })
    makeDeep(folder)
  }
  await host.restart()
  await eventually('it is cleared away', () => !left.some((folder) => existsSync(folder)))
})

/** Folders in one another, one more than most processes may have open files. */
function makeDeep(folder: string): void {
  const name = Buffer.from('d')
  let fd = sys.openat(sys.AT_FDCWD, Buffer.from(folder), sys.O_RDONLY | sys.O_DIRECTORY, 0)
  for (let i = 0; i < 25_000; i++) {
    sys.mkdirat(fd, name, 0o700)
    const next = sys.openat(fd, name, sys.O_RDONLY | sys.O_DIRECTORY, 0)
    sys.close(fd)
    fd = next
  }
  sys.close(fd)
}
