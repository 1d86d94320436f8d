// tests/faults/host_state_damaged_test.ts: a database that is damaged or newer, and two hosts on one state.
//
// Nothing is guessed: the host refuses to start, says what to do, and `cellar host recover` goes back to the latest
// backup. Guests that run meanwhile are taken on again or ended: none is left that nobody owns.

import assert from 'node:assert/strict'
import { copyFileSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { test } from 'node:test'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { cellar, CELLAR, startCommand } from '../support.ts'
import { createGuest, guestsOf, importProgram, inPhase, nothingUnowned } from './faults_support.ts'

/** A host with a guest that is in its backup and one that isn't, which was killed. */
async function killedHost(): Promise<TestHost> {
  const host = await startHost()
  try {
    await importProgram(host, 'nap')
    await createGuest(host, 'old', { image: 'nap', args: ['nap', '100000000'] })
    await inPhase(host, 'old', 'running')
    await host.killAndRestart()
    await eventually('it has made a backup', () => backupsOf(host).length >= 2)
    await createGuest(host, 'new', { image: 'nap', args: ['nap', '100000000'] })
    await createGuest(host, 'alone', { image: 'nap', args: ['nap', '100000000'] }, 'newer')
    await inPhase(host, 'new', 'running')
    await inPhase(host, 'alone', 'running')
    await host.kill()
    return host
  } catch (error) {
    await host[Symbol.asyncDispose]()
    throw error
  }
}

function backupsOf({ state }: TestHost): string[] {
  return readdirSync(join(state, 'backup')).filter((name) => name.endsWith('.db'))
}

async function refusedBy(host: TestHost, code: RegExp): Promise<string> {
  const { status, stderr } = await cellar(['host', '--state', host.state])
  assert.notEqual(status, 0)
  assert.match(stderr, code)
  return stderr
}

/** What a damaged file may look like. */
const DAMAGES: Readonly<Record<string, (path: string) => void>> = {
  'zeroes in its middle': (path) => {
    const bytes = readFileSync(path)
    writeFileSync(path, bytes.fill(0, 4096, 3 * 4096))
    rmSync(`${path}-wal`, { force: true })
  },
  'no file': (path) => rmSync(path),
}

for (const [what, damage] of Object.entries(DAMAGES)) {
  test(`a state with ${what} is refused, and recover goes back to the backup and keeps what is damaged`, async () => {
    await using host = await killedHost()
    const path = join(host.state, 'cellar.db')
    damage(path)
    const damaged = existsSync(path) ? readFileSync(path) : undefined
    assert.match(await refusedBy(host, /HOST_STATE_DAMAGED/), /cellar host recover --state DIR/)
    if (damaged !== undefined) assert.deepEqual(readFileSync(path), damaged, 'it stays as it was found')
    assert.equal(host.cellProcesses().length, 2, 'guests go on')
    const recovered = await cellar(['host', 'recover', '--state', host.state])
    assert.equal(recovered.status, 0, recovered.stderr)
    const kept = readdirSync(host.state).filter((name) => /^cellar\.db\.damaged-.*\d+Z$/.test(name))
    assert.equal(kept.length, damaged === undefined ? 0 : 1)
    if (damaged !== undefined) assert.deepEqual(readFileSync(join(host.state, kept[0]!)), damaged)
    await host.restart()
    const { startedAt } = await inPhase(host, 'old', 'running')
    assert.deepEqual((await guestsOf(host)).map(({ name }) => name), ['old'])
    await nothingUnowned(host)
    assert.equal(host.cellProcesses().length, 1, 'what the backup knows nothing of has ended')
    await createGuest(host, 'alone', { image: 'nap', args: ['nap', '100000000'] }, 'newer')
    await inPhase(host, 'alone', 'running')
    assert.ok(startedAt !== undefined)
  })
}

test('the state of a newer version is refused, and nothing in it is changed', async () => {
  await using host = await startHost()
  const state = join(host.state, 'cellar.db')
  // In order, so that the whole state is in one file.
  host.running.child.kill('SIGTERM')
  await host.running.ended
  {
    using db = new DatabaseSync(state)
    db.exec('PRAGMA user_version = 9999')
  }
  copyFileSync(state, `${state}.copy`)
  assert.match(await refusedBy(host, /HOST_STATE_NEWER/), /its version is 9999/)
  const { status, stderr } = await cellar(['host', 'recover', '--state', host.state])
  assert.notEqual(status, 0)
  assert.match(stderr, /HOST_STATE_NEWER/)
  assert.deepEqual(readFileSync(state), readFileSync(`${state}.copy`))
})

test('of hosts that are started on one state at the same moment one runs, and the others say which', async () => {
  await using host = await startHost()
  await host.kill()
  const all = Array.from({ length: 3 }, () => startCommand([CELLAR, 'host', '--state', host.state]))
  try {
    await eventually('all but one have ended', () => all.filter(({ child }) => child.exitCode !== null).length === 2)
    await eventually('one answers', async () =>
      (await host.api('GET', '/readyz').catch(() => undefined))?.status === 200)
    const { pid } = (await host.api('GET', '/v1/host')).body as { pid: number }
    for (const { child, ended } of all.filter((one) => one.child.exitCode !== null)) {
      assert.notEqual(child.exitCode, 0)
      assert.match((await ended).stderr, new RegExp(`process (${pid}|unknown)\\b.*\\[HOST_RUNNING\\]`))
    }
    const recover = await cellar(['host', 'recover', '--state', host.state])
    assert.notEqual(recover.status, 0, 'nor is its state recovered under it')
  } finally {
    for (const { child } of all) child.kill('SIGKILL')
    await Promise.all(all.map(({ ended }) => ended))
  }
})

test('a host whose state folder is removed ends with its guests, and says why', async () => {
  await using host = await startHost()
  await importProgram(host, 'nap')
  const spec = { image: 'nap', args: ['nap', '1000000'] }
  await host.api('POST', '/v1/projects/p/guests?wait=20s', { name: 'a', spec })
  assert.equal(host.cellProcesses().length, 1)
  renameSync(host.state, `${host.state}-moved`)
  try {
    const { status, stderr } = await host.running.ended
    assert.equal(status, 1)
    assert.match(stderr, /the state folder was removed/)
    await eventually('no cell process is left', () => host.cellProcesses().length === 0)
  } finally {
    rmSync(`${host.state}-moved`, { recursive: true, force: true })
  }
})
