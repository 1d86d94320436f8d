// tests/faults/host_disk_full_test.ts: the disk of the state is full: what is asked for is refused, what runs goes on.
//
// The disk is a tmpfs of some MiB, filled to its last block by a file of the test. Once that is gone all works again,
// with no restart, and nothing of what was refused is there.

import assert from 'node:assert/strict'
import { closeSync, existsSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually, startHost, type ApiAnswer, type TestHost } from '../host_support.ts'
import { Folder, guest } from '../support.ts'
import { createGuest, guestsOf, importProgram, inPhase, nothingUnowned, smallDisk, ticker } from './faults_support.ts'

const MEGABYTES = 24

/** Fills a disk, to the last byte: removes what fills it. */
function fill(disk: string): () => void {
  const path = join(disk, 'filler')
  const fd = openSync(path, 'w')
  try {
    for (let size = 1024 * 1024; size >= 1; size = Math.floor(size / 2)) {
      try {
        for (;;) if (writeSync(fd, Buffer.alloc(size, 1)) === 0) break
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC')
      }
    }
  } finally {
    closeSync(fd)
  }
  return () => rmSync(path)
}

/** Asks until the answer is that the disk is full: the database has some room in its files for a while. */
async function refused(what: string, ask: (round: number) => Promise<Pick<ApiAnswer, 'status' | 'body'>>):
Promise<void> {
  for (let round = 0; round < 400; round++) {
    const { status, body } = await ask(round)
    if (status < 400) continue
    assert.equal(status, 507, `${what}: ${JSON.stringify(body)}`)
    assert.equal((body as { code: string }).code, 'HOST_DISK_FULL', what)
    return
  }
  assert.fail(`${what} was never refused`)
}

async function namesOf(host: TestHost, path: string): Promise<string[]> {
  return ((await host.api('GET', path)).body as { items: { name?: string }[] }).items.map(({ name }) => name ?? '')
}

test('a full disk refuses what must be kept, loses nothing else, and is no matter once there is room', async (t) => {
  const disk = smallDisk(MEGABYTES)
  if (typeof disk === 'string') return t.skip(disk)
  using _ = disk
  using folder = new Folder()
  await using host = await startHost([], join(disk.path, 's'))
  await importProgram(host, 'nap')
  assert.equal((await host.api('POST', '/v1/images?name=ticker', await ticker())).status, 201)
  await host.ok(['volume', 'create', '--size', '64MiB', 'before'])
  assert.equal(await createGuest(host, 'stays', { image: 'nap', args: ['nap', '100000'] }), 201)
  assert.equal(await createGuest(host, 'talks', { image: 'ticker' }), 201)
  await inPhase(host, 'stays', 'running')
  await inPhase(host, 'talks', 'running')
  const [big, small] = [folder.write('big', Buffer.alloc(4 * 1024 * 1024)), folder.write('small', 'small')]

  const free = fill(disk.path)
  await refused('a guest', (i) => host.api('POST', '/v1/projects/default/guests',
    { name: `full${i}`, spec: { image: 'nap', memory: '1MiB', restart: 'no', args: ['nap', '1', 'x'.repeat(3000)] } }))
  await refused('an image', (i) => host.api('POST', `/v1/images?name=full${i}`, moduleOf(i)))
  await refused('a volume', (i) => host.api('POST', '/v1/projects/default/volumes',
    { name: `full${i}`, spec: { size: '1MiB' } }))
  await refused('a clone', (i) => host.api('POST', '/v1/projects/default/volumes/before/clone', { name: `c${i}` }))
  await refused('a secret', (i) => host.api('PUT', `/v1/projects/default/secrets/full${i}`, Buffer.alloc(20_000, 1),
    { 'content-type': 'application/octet-stream' }))
  await refused('a removal', () => host.api('DELETE', '/v1/projects/default/volumes/before'))
  const copied = await host.cellar(['cp', big, 'before:/big'])
  assert.equal(copied.status, 1)
  assert.match(copied.stderr, /as the disk of the host is full/)
  assert.ok((await guestsOf(host)).filter(({ name }) => ['stays', 'talks'].includes(name))
    .every(({ phase, restarts }) => phase === 'running' && restarts === 0), 'who runs goes on')
  assert.equal((await host.api('GET', '/readyz')).status, 200)
  free()

  // What was refused can be done now, under the names that were refused, and what was to be removed is there.
  await eventually('guests run and end again', async () => (await guestsOf(host)).every(({ name, phase }) =>
    ['stays', 'talks'].includes(name) ? phase === 'running' : ['exited', 'failed'].includes(phase)))
  assert.ok((await namesOf(host, '/v1/projects/default/volumes')).includes('before'))
  assert.equal(await createGuest(host, 'after', { image: 'nap', args: ['nap', '100000'] }), 201)
  await inPhase(host, 'after', 'running')
  await host.ok(['cp', small, 'before:/big'])
  for (const name of await refusedNames(host)) {
    await host.ok(['volume', 'create', '--size', '1MiB', name])
  }
  await host.ok(['image', 'import', guest('hello'), 'after'])
  await eventually('lost lines are told', async () =>
    /lines are lost: this log could not be written: ENOSPC/.test((await host.cellar(['logs', 'talks'])).stderr))
  await host.ok(['rm', '--force', 'talks'])

  // A restart finds what was there, and no more.
  const before = { guests: (await guestsOf(host)).map(({ name }) => name).toSorted(),
    volumes: await namesOf(host, '/v1/projects/default/volumes'), images: await namesOf(host, '/v1/images') }
  await host.killAndRestart()
  assert.deepEqual({ guests: (await guestsOf(host)).map(({ name }) => name).toSorted(),
    volumes: await namesOf(host, '/v1/projects/default/volumes'), images: await namesOf(host, '/v1/images') }, before)
  assert.deepEqual(readdirSync(join(host.state, 'ingest')), [])
  assert.deepEqual(readdirSync(join(host.state, 'projects/default/volumes')).toSorted(), before.volumes.toSorted())
  await nothingUnowned(host)
  await host.ok(['project', 'rm', '--force', 'default'])
  assert.ok(!existsSync(join(host.state, 'projects/default')))
})

/** Names of volumes that were refused: they are free. */
async function refusedNames(host: TestHost): Promise<string[]> {
  const there = await namesOf(host, '/v1/projects/default/volumes')
  return Array.from({ length: 3 }, (_, i) => [`full${i}`, `c${i}`]).flat().filter((name) => !there.includes(name))
}

/** A module of its own digest, of some size: a custom section. */
function moduleOf(i: number): Uint8Array {
  const content = Buffer.alloc(60_000, i)
  const size = content.length + 2
  const length = [size & 0x7f | 0x80, size >> 7 & 0x7f | 0x80, size >> 14]
  return Buffer.concat([Buffer.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 0, ...length, 1, 0x78]), content])
}

test('a guest that can not be started on a full disk is told why, and starts when there is room', async (t) => {
  const disk = smallDisk(MEGABYTES)
  if (typeof disk === 'string') return t.skip(disk)
  using _ = disk
  await using host = await startHost([], join(disk.path, 's'))
  await importProgram(host, 'nap')
  assert.equal((await host.api('POST', '/v1/projects/other/guests',
    { name: 'late', start: false, spec: { image: 'nap', args: ['nap', '100000'], restart: 'always' } })).status, 201)
  const free = fill(disk.path)
  const { status, body } = await host.api('POST', '/v1/projects/other/guests/late/start')
  assert.ok([200, 202, 507].includes(status), JSON.stringify(body))
  if (status !== 507) {
    const { exit } = await eventually('it failed', async () => (await guestsOf(host)).find((one) => one.exit))
    assert.match(exit!.reason, /the disk of the host is full/)
  }
  free()
  if (status === 507) await host.ok(['start', '-P', 'other', 'late'])
  await inPhase(host, 'late', 'running')
  await nothingUnowned(host)
  const { processes } = (await host.api('GET', '/v1/host')).body as { processes: { id: number }[] }
  assert.deepEqual(readdirSync(join(host.state, 'run')), processes.map(({ id }) => String(id)),
    'nothing half-made is left')
})
