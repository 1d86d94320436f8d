// tests/functional/host_snapshot_test.ts: guests of a host that are paused, saved, restored, forked and hibernated.
//
// What tells one that went on from one that began anew: `ticker` has a nonce in its memory, and a count; `counter` has
// the count of its answers. Who goes on keeps them; each launch has another generation.

import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

type Guest = { readonly id: string; readonly name: string; readonly phase: string; readonly process?: number
  readonly restarts: number; readonly ports: readonly { readonly port: number }[]
  readonly capture?: { readonly can: boolean; readonly why?: string }
  readonly exit?: { readonly status: number; readonly reason: string } }
type Snapshot = { readonly digest: string; readonly name?: string; readonly memoryBytes: number
  readonly newBytes: number; readonly storedBytes: number; readonly guests: number }
type Tick = { readonly count: number; readonly nonce: string; readonly generation: string }

let host: TestHost
before(async () => {
  host = await startHost()
  for (const name of ['ticker', 'counter', 'dial', 'forkme', 'nap', 'spin']) {
    assert.equal((await host.api('POST', `/v1/images?name=${name}`, readFileSync(guest(name)))).status, 201)
  }
})
after(async () => { await host[Symbol.asyncDispose]() })

async function call<T>(method: string, path: string, body?: unknown, status?: number): Promise<T> {
  const answer = await host.api(method, path, body)
  const isRight = status === undefined ? answer.status < 300 : answer.status === status
  assert.ok(isRight, `${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
  return answer.body as T
}

const at = (project: string, name = ''): string => `/v1/projects/${project}/guests${name === '' ? '' : `/${name}`}`
const get = (project: string, name: string): Promise<Guest> => call('GET', at(project, name))
const verb = <T = Guest>(project: string, name: string, word: string, body?: unknown): Promise<T> =>
  call('POST', `${at(project, name)}/${word}`, body)

async function until(project: string, name: string, phase: string): Promise<Guest> {
  return await eventually(`${name} is ${phase}`, async () => {
    const found = await get(project, name)
    if (found.phase === 'failed' && phase !== 'failed') throw new Error(`${name} failed: ${found.exit?.reason}`)
    return found.phase === phase && found
  })
}

async function run(project: string, name: string, spec: object): Promise<Guest> {
  await call('POST', at(project), { name, spec: { restart: 'no', ...spec } })
  return await until(project, name, 'running')
}

async function ticks(project: string, name: string): Promise<Tick[]> {
  const text = await host.ok(['logs', '-P', project, name])
  return [...text.matchAll(/^tick (\d+) nonce (\w+) generation (\w+)$/gm)].map(([, count, nonce, generation]) =>
    ({ count: Number(count), nonce: nonce!, generation: generation! }))
}

/** The latest tick, once there is one beyond `count`. */
async function tickAfter(project: string, name: string, count: number): Promise<Tick> {
  return await eventually(`${name} has ticked beyond ${count}`, async () => {
    const last = (await ticks(project, name)).at(-1)
    return last !== undefined && last.count > count && last
  })
}

/** Each tick once, one after the other. */
function assertGapless(all: readonly Tick[]): void {
  assert.deepEqual(all.map(({ count }) => count), all.map((_, i) => all[0]!.count + i))
}

/** What an HTTP server answers. Rejects if it closes the connection without an answer. */
function ask(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    let text = ''
    socket.setEncoding('utf8').on('error', reject).on('data', (chunk) => { text += chunk })
    socket.on('close', () => { if (text === '') reject(new Error('no answer')); else resolve(text) })
    socket.write('GET / HTTP/1.1\r\n\r\n')
  })
}

const countOf = (answer: string): number => Number(/"count"\s*:\s*(\d+)|(\d+)\D*$/.exec(answer)?.slice(1).find(Boolean))

test('a paused guest stands still, and goes on where it was', async () => {
  await run('pause', 'a', { image: 'ticker', args: ['ticker', '20'] })
  await tickAfter('pause', 'a', 3)
  assert.equal((await verb('pause', 'a', 'pause')).phase, 'paused')
  await sleep(100)
  const still = (await ticks('pause', 'a')).at(-1)!
  await sleep(300)
  assert.deepEqual((await ticks('pause', 'a')).at(-1), still)
  assert.equal((await verb('pause', 'a', 'resume')).phase, 'running')
  assert.equal((await tickAfter('pause', 'a', still.count)).nonce, still.nonce)
  assertGapless(await ticks('pause', 'a'))
})

test('a guest that computes without end is paused, and stays so though the host is killed', async () => {
  await run('pause', 'spin', { image: 'ticker', args: ['ticker', '20', '0', '1', 'busy'] })
  const { nonce } = await tickAfter('pause', 'spin', 3)
  await verb('pause', 'spin', 'pause')
  await host.killAndRestart()
  assert.equal((await get('pause', 'spin')).phase, 'paused')
  const still = (await ticks('pause', 'spin')).at(-1)!
  await sleep(200)
  assert.deepEqual((await ticks('pause', 'spin')).at(-1), still)
  await verb('pause', 'spin', 'resume')
  assert.equal((await tickAfter('pause', 'spin', still.count)).nonce, nonce)
  await verb('pause', 'spin', 'pause')
  await call('POST', `${at('pause', 'spin')}/stop`, {})
  assert.equal((await get('pause', 'spin')).phase, 'stopped')
})

for (const [what, args] of [
  ['sleeps', ['ticker', '20', '0', '1']], ['computes', ['ticker', '20', '0', '8', 'busy']],
] as const) {
  test(`a snapshot of a guest that ${what}: it goes on, and a restored one goes on from there`, async () => {
    const project = `snap-${what}`
    const first = await run(project, 'a', { image: 'ticker', args })
    const before = await tickAfter(project, 'a', 3)
    const saved = await verb<Snapshot>(project, 'a', 'snapshot', { name: 'one' })
    assert.ok(saved.memoryBytes > 0 && saved.storedBytes > 0, JSON.stringify(saved))
    const on = await tickAfter(project, 'a', before.count + 3)
    assert.deepEqual([on.nonce, on.generation], [before.nonce, before.generation])
    assertGapless(await ticks(project, 'a'))
    const restored = await call<Guest>('POST', `/v1/projects/${project}/snapshots/one/restore`, { name: 'b' })
    assert.notEqual(restored.id, first.id)
    const again = await tickAfter(project, 'b', 0)
    const [begin] = await ticks(project, 'b')
    assert.ok(begin!.count > before.count && begin!.count <= on.count, `it began at ${begin!.count}`)
    assert.equal(again.nonce, before.nonce)
    assert.notEqual(again.generation, before.generation)
    await tickAfter(project, 'b', begin!.count + 5)
    assertGapless(await ticks(project, 'b'))
    // Of the next one only what has changed since is new.
    const next = await verb<Snapshot>(project, 'a', 'snapshot', { name: 'one' })
    assert.notEqual(next.digest, saved.digest)
    const { items } = await call<{ items: Snapshot[] }>('GET', `/v1/projects/${project}/snapshots`)
    assert.deepEqual(items.map(({ name, digest }) => [name, digest]).toSorted(),
      [[undefined, saved.digest], ['one', next.digest]].toSorted())
    for (const name of ['a', 'b']) await call('DELETE', `${at(project, name)}?force=true`)
  })
}

test('a snapshot outlives its guest, its process and its host; its image stays as long', async () => {
  const { process } = await run('kept', 'a', { image: 'ticker', args: ['ticker', '20'] })
  const { nonce } = await tickAfter('kept', 'a', 3)
  const saved = await verb<Snapshot>('kept', 'a', 'snapshot', { name: 'base', stop: true })
  assert.equal((await get('kept', 'a')).phase, 'stopped')
  const stopped = (await ticks('kept', 'a')).at(-1)!
  await call('DELETE', at('kept', 'a'))
  assert.equal((await host.api('DELETE', '/v1/images/ticker')).status, 409)
  await host.kill()
  for (const pid of host.cellProcesses()) globalThis.process.kill(pid, 'SIGKILL')
  await host.restart()
  await call('POST', `/v1/projects/kept/snapshots/${saved.digest.slice(7, 19)}/restore`, { name: 'b' })
  const on = await tickAfter('kept', 'b', stopped.count)
  assert.deepEqual([on.nonce, (await ticks('kept', 'b'))[0]!.count], [nonce, stopped.count + 1])
  assert.notEqual((await get('kept', 'b')).process, process)
  // While the snapshot is there it begins there again; then, from its image.
  await verb('kept', 'b', 'restart')
  await eventually('it has begun again', async () =>
    (await ticks('kept', 'b')).filter(({ count }) => count === stopped.count + 1).length === 2)
  await call('DELETE', '/v1/projects/kept/snapshots/base')
  await verb('kept', 'b', 'restart')
  const anew = await eventually('it has begun anew', async () =>
    (await ticks('kept', 'b')).find(({ nonce: drawn }) => drawn !== nonce))
  assert.equal(anew.count, 1)
  await eventually('its files are gone', () =>
    !readdirSync(join(host.state, 'projects/kept/snapshots')).some((name) => name.endsWith('.snapshot')))
})

test('forks go on from one state, each with its own name, generation and ports, beside the first', async () => {
  await run('forks', 'a', { image: 'ticker', args: ['ticker', '20', '0', '16'] })
  const before = await tickAfter('forks', 'a', 3)
  const { items } = await verb<{ items: Guest[] }>('forks', 'a', 'fork', { count: 3 })
  assert.deepEqual(items.map(({ name }) => name), ['a-1', 'a-2', 'a-3'])
  const lasts = await Promise.all(['a', 'a-1', 'a-2', 'a-3'].map((name) => tickAfter('forks', name, before.count + 5)))
  assert.deepEqual(lasts.map(({ nonce }) => nonce), Array.from({ length: 4 }, () => before.nonce))
  assert.equal(new Set(lasts.map(({ generation }) => generation)).size, 4)
  assert.equal(lasts[0]!.generation, before.generation)
  for (const name of ['a', 'a-1', 'a-2', 'a-3']) assertGapless(await ticks('forks', name))
  const begins = await Promise.all(['a-1', 'a-2', 'a-3'].map(async (name) => (await ticks('forks', name))[0]!.count))
  assert.equal(new Set(begins).size, 1)
  await call('DELETE', '/v1/projects/forks?force=true')
})

test('forks of a server answer on ports of their own', async () => {
  const first = await run('servers', 'a', { image: 'counter', args: ['counter', 'a'], ports: ['0:8080'] })
  const port = first.ports[0]!.port
  const before = countOf(await ask(port))
  const { items } = await verb<{ items: Guest[] }>('servers', 'a', 'fork', { count: 2 })
  const ports = [port, ...items.map(({ ports: own }) => own[0]!.port)]
  assert.equal(new Set(ports).size, 3)
  for (const one of ports) assert.equal(countOf(await ask(one)), before + 1)
})

test('a hibernated server is woken by who connects, with what it had in memory; nobody is lost', async () => {
  const { id, ports: [published] } =
    await run('sleepers', 'a', { image: 'counter', args: ['counter', 'a'], ports: ['0:8080'] })
  const { port } = published!
  const before = countOf(await ask(port))
  assert.equal((await verb('sleepers', 'a', 'hibernate')).phase, 'hibernated')
  const { items } = await call<{ items: { id: string }[] }>('GET', '/v1/stats')
  assert.ok(!items.some((one) => one.id === id), 'it is in no process')
  const answers = await Promise.all(Array.from({ length: 20 }, () => ask(port)))
  assert.deepEqual(answers.map(countOf).toSorted((a, b) => a - b), answers.map((_, i) => before + 1 + i))
  assert.equal((await get('sleepers', 'a')).phase, 'running')
  // Again and again at the same time: who has been accepted is told by the end of the connection, at worst.
  let last = before + 20
  for (let i = 0; i < 8; i++) {
    const [answer] = await Promise.all([ask(port).catch(() => undefined),
      host.api('POST', `${at('sleepers', 'a')}/hibernate`)])
    if (answer !== undefined) assert.equal(countOf(answer) > last, true, `${countOf(answer)} follows on ${last}`)
    last = answer === undefined ? last : countOf(answer)
  }
  assert.ok(countOf(await ask(port)) > last)
})

test('a hibernated guest is found by the next host, though its process died: it wakes and goes on', async () => {
  const { ports: [published] } =
    await run('sleepers', 'b', { image: 'counter', args: ['counter', 'b'], ports: ['0:8080'] })
  const { port } = published!
  const before = countOf(await ask(port))
  await verb('sleepers', 'b', 'hibernate')
  await host.kill()
  for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
  await host.restart()
  assert.equal((await get('sleepers', 'b')).phase, 'hibernated')
  assert.equal(countOf(await ask(port)), before + 1)
})

test('a hibernated guest is woken by the timer that it waited for, and by who looks at it', async () => {
  await run('timers', 'a', { image: 'ticker', args: ['ticker', '700'] })
  const before = await tickAfter('timers', 'a', 1)
  await verb('timers', 'a', 'hibernate')
  await until('timers', 'a', 'running')
  const on = await tickAfter('timers', 'a', before.count)
  assert.equal(on.nonce, before.nonce)
  assert.notEqual(on.generation, before.generation)
  assertGapless(await ticks('timers', 'a'))
  await run('timers', 'b', { image: 'ticker', args: ['ticker', '3600000'] })
  await tickAfter('timers', 'b', 0)
  await verb('timers', 'b', 'hibernate')
  await sleep(300)
  assert.equal((await get('timers', 'b')).phase, 'hibernated')
  await host.ok(['exec', '-P', 'timers', 'b', 'ticker', '1', '1'])
  assert.equal((await get('timers', 'b')).phase, 'running')
})

test('a guest that connects to a hibernated one wakes it', async () => {
  await run('peers', 'db', { image: 'counter', args: ['counter', 'db'], expose: [8080] })
  await verb('peers', 'db', 'hibernate')
  await call('POST', at('peers'), { name: 'ask', spec: { image: 'dial', restart: 'no',
    args: ['dial', 'db', '8080', 'GET / HTTP/1.1\r\n\r\n'] } })
  const { exit } = await eventually('it has ended', async () => {
    const found = await get('peers', 'ask')
    return found.exit !== undefined && found
  })
  assert.deepEqual([exit!.status, (await get('peers', 'db')).phase], [0, 'running'])
})

test('a guest that is idle is hibernated when its spec says so', async () => {
  await run('idle', 'a', { image: 'counter', args: ['counter'], ports: ['0:8080'], hibernate: { idle: '1s' } })
  await until('idle', 'a', 'hibernated')
  const { body } = await host.api('GET', '/v1/events?follow=false&project=idle')
  assert.match(JSON.stringify(body), /guest\.hibernated.*"why":"idle"/)
})

test('a guest copies and saves itself, if it may', async () => {
  await call('POST', at('own'), { name: 'f', spec: { image: 'forkme', args: ['forkme', '2', 'mine'], restart: 'no',
    may: ['fork', 'snapshot'] } })
  const parent = await until('own', 'f', 'exited')
  assert.equal(parent.exit?.status, 0)
  const lines = await Promise.all(['f', 'f-1', 'f-2'].map(async (name) => {
    await until('own', name, 'exited')
    return await host.ok(['logs', '-P', 'own', name])
  }))
  assert.match(lines[0]!, /^parent f .*\nsaved\n$/)
  assert.match(lines[1]!, /^child 1 f-1 .* event fork 1 /)
  assert.match(lines[2]!, /^child 2 f-2 .* event fork 2 /)
  const words = lines.map((text) => /generation (\w+) .* nonce (\w+) drawn (\w+)/.exec(text)!.slice(1))
  assert.equal(new Set(words.map(([generation]) => generation)).size, 3)
  assert.equal(new Set(words.map(([, nonce]) => nonce)).size, 1)
  assert.equal(new Set(words.map(([, , drawn]) => drawn)).size, 3)
  await call('POST', '/v1/projects/own/snapshots/mine/restore', { name: 'g' })
  await until('own', 'g', 'exited')
  assert.match(await host.ok(['logs', '-P', 'own', 'g']), /^restored g .* event restore 0 /)
  await call('POST', at('own'), { name: 'not', spec: { image: 'forkme', args: ['forkme', '2'], restart: 'no' } })
  assert.equal((await until('own', 'not', 'failed')).exit?.status, 2)
})

const section = (id: number, ...bytes: number[]): number[] => [id, bytes.length, ...bytes]
const text = (word: string): number[] => [word.length, ...Buffer.from(word)]

test('a guest that cannot be captured says why, and goes on', async () => {
  // It naps, and has a global of a type that only its engine has: (global (mut (ref null $box)) (ref.null $box)).
  const image = Uint8Array.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, 3, 0x5f, 1, 0x7f, 1, 0x60, 0, 0, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f),
    ...section(2, 1, ...text('wasi_snapshot_preview1'), ...text('poll_oneoff'), 0, 2),
    ...section(3, 1, 1), ...section(5, 1, 0, 1), ...section(6, 1, 0x63, 0, 1, 0xd0, 0, 0x0b),
    ...section(7, 2, ...text('memory'), 2, 0, ...text('_start'), 0, 1),
    // A monotonic clock's timer of some days (at 0), its event (at 64), how many there were (at 128).
    ...section(10, 1, 36, 0, 0x41, 24, 0x42, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0x37, 3, 0,
      0x41, 16, 0x41, 1, 0x36, 2, 0, 0x41, 0, 0x41, 0xc0, 0, 0x41, 1, 0x41, 0x80, 1, 0x10, 0, 0x1a, 0x0b)])
  assert.equal((await host.api('POST', '/v1/images?name=gc', image)).status, 201)
  await run('gc', 'a', { image: 'gc', unbounded: true })
  const { capture } = await get('gc', 'a')
  assert.deepEqual([capture?.can, typeof capture?.why], [false, 'string'])
  const { status, body } = await host.api('POST', `${at('gc', 'a')}/snapshot`, {})
  assert.deepEqual([status, (body as { code: string }).code], [409, 'CAPTURE_IMPOSSIBLE'])
  assert.equal((await host.api('POST', `${at('gc', 'a')}/fork`, { count: 2 })).status, 409)
  const { items } = await call<{ items: Guest[] }>('GET', at('gc'))
  assert.deepEqual(items.map(({ name, phase }) => [name, phase]), [['a', 'running']])
})

test('a state that goes back to a backup has its snapshots and hibernated guests', async () => {
  const { ports: [published] } =
    await run('backup', 'a', { image: 'counter', args: ['counter'], ports: ['0:8080'] })
  const before = countOf(await ask(published!.port))
  const saved = await verb<Snapshot>('backup', 'a', 'snapshot', { name: 'x' })
  await verb('backup', 'a', 'hibernate')
  // A backup is made at each start.
  await host.killAndRestart()
  await host.kill()
  for (const end of ['', '-wal', '-shm']) rmSync(join(host.state, `cellar.db${end}`), { force: true })
  writeFileSync(join(host.state, 'cellar.db'), 'nothing of use')
  await host.ok(['host', 'recover', '--state', host.state])
  await host.restart()
  assert.equal((await call<Snapshot>('GET', '/v1/projects/backup/snapshots/x')).digest, saved.digest)
  assert.equal(countOf(await ask(published!.port)), before + 1)
  const { name } = await call<Guest>('POST', '/v1/projects/backup/snapshots/x/restore')
  const { ports: [own] } = await until('backup', name, 'running')
  assert.equal(countOf(await ask(own!.port)), before + 1)
})

test('a project goes with its snapshots and hibernated guests', async () => {
  await run('gone', 'a', { image: 'counter', args: ['counter'], ports: ['0:8080'] })
  await verb('gone', 'a', 'snapshot', { name: 'x' })
  await verb('gone', 'a', 'hibernate')
  const { status } = await host.api('DELETE', '/v1/projects/gone')
  assert.equal(status, 409)
  await host.ok(['project', 'rm', '--force', 'gone'])
  await eventually('it is gone', () => !existsSync(join(host.state, 'projects/gone')))
  assert.equal((await host.api('GET', '/v1/projects/gone/snapshots')).status, 404)
})
