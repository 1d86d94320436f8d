// tests/functional/host_races_test.ts: clients that ask a host for things that contradict each other, at the same time.
//
// Requests of one batch are sent without waiting for answers: what they ask for meets in the host. However that goes,
// nothing may be stuck, come back, or be kept from others by something that is gone.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { createConnection, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { eventually, startHost, type ApiAnswer, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

type Guest = { readonly phase: string; readonly desired: string; readonly ports: readonly { readonly port: number }[]
  readonly process?: number; readonly exit?: { readonly reason: string } }

let host: TestHost
before(async () => {
  host = await startHost()
  for (const name of ['nap', 'echo', 'hello']) {
    const { status } = await host.api('POST', `/v1/images?name=${name}`, readFileSync(guest(name)))
    assert.equal(status, 201)
  }
})
after(async () => { await host[Symbol.asyncDispose]() })

/** A program that runs until it is ended. */
const NAP = { image: 'nap', args: ['nap', '1000000'] }

function at(project: string, ...words: string[]): string {
  return ['/v1/projects', project, ...words].join('/')
}

async function create(project: string, name: string, spec: object, start = true): Promise<ApiAnswer> {
  return await host.api('POST', at(project, 'guests'), { name, spec, start })
}

async function must(answer: Promise<ApiAnswer>): Promise<unknown> {
  const { status, body } = await answer
  assert.ok(status < 300, JSON.stringify(body))
  return body
}

async function look(project: string, name: string): Promise<Guest> {
  return await must(host.api('GET', at(project, 'guests', name))) as Guest
}

async function reaches(project: string, name: string, ...phases: string[]): Promise<Guest> {
  return await eventually(`${name} is ${phases.join(' or ')}`, async () => {
    const found = await look(project, name)
    return phases.includes(found.phase) && found
  })
}

async function removed(project: string): Promise<void> {
  await must(host.api('DELETE', `${at(project)}?force`))
  await eventually(`${project} is gone`, async () => (await host.api('GET', at(project))).status === 404)
}

test('a stop that meets a start ends what the start has not begun yet', async () => {
  await must(create('meet', 'a', NAP, false))
  for (let i = 0; i < 5; i++) {
    await Promise.all([host.api('POST', at('meet', 'guests', 'a', 'start')),
      host.api('POST', at('meet', 'guests', 'a', 'stop'))])
    await reaches('meet', 'a', 'stopped')
  }
  await removed('meet')
})

test('a guest that is removed while it is started is gone, and stays so', async () => {
  const kept = new Set<string>()
  for (let i = 0; i < 5; i++) {
    await must(create('gone', `g${i}`, NAP, false))
    const [removal] = await Promise.all([host.api('DELETE', at('gone', 'guests', `g${i}`)),
      host.api('POST', at('gone', 'guests', `g${i}`, 'start')),
      host.api('PUT', at('gone', 'guests', `g${i}`), { spec: { ...NAP, memory: '1MiB' } })])
    // It may have been started first: then it isn't to be removed.
    if (removal.status !== 204) kept.add(`g${i}`)
  }
  await host.killAndRestart()
  const left = await must(host.api('GET', at('gone', 'guests'))) as { items: { name: string }[] }
  assert.deepEqual(new Set(left.items.map(({ name }) => name)), kept)
  const host1 = await must(host.api('GET', '/v1/host')) as { guests: number }
  assert.equal(host1.guests, kept.size)
  await removed('gone')
})

test('a guest that is removed twice at the same time takes no other of its name with it', async () => {
  for (let i = 0; i < 5; i++) {
    await must(create('twice', 'a', NAP))
    const again = async (): Promise<ApiAnswer> => await eventually('its name is free', async () => {
      const answer = await create('twice', 'a', NAP, false)
      return answer.status === 201 && answer
    })
    const remove = (): Promise<ApiAnswer> => host.api('DELETE', `${at('twice', 'guests', 'a')}?force`)
    await Promise.all([remove(), remove()])
    await again()
    assert.equal((await look('twice', 'a')).phase, 'created')
    await must(remove())
  }
  await removed('twice')
})

test('what is put into a project while it is removed is refused, or goes with it', async () => {
  for (let i = 0; i < 5; i++) {
    await must(create('torn', 'a', NAP))
    const answers = await Promise.all([host.api('DELETE', `${at('torn')}?force`), create('torn', 'b', NAP),
      host.api('PUT', at('torn', 'pools', 'p'), { spec: { shares: 10 } }),
      host.api('PUT', at('torn', 'networks', 'n'), {})])
    for (const { status, body } of answers) assert.ok(status < 300 || status === 409, JSON.stringify(body))
    await eventually('it is gone', async () => (await host.api('GET', at('torn'))).status === 404)
    const left = await must(host.api('GET', '/v1/guests')) as { items: { project: string }[] }
    assert.deepEqual(left.items.filter(({ project }) => project === 'torn'), [])
    // At once, in a process that isn't the one that is being ended.
    await must(create('torn', 'c', { ...NAP, restart: 'no' }))
    await reaches('torn', 'c', 'running')
    await removed('torn')
  }
})

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer())
  const ports = await Promise.all(servers.map((server) => new Promise<number>((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port))
  })))
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}

async function connects(port: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = createConnection(port, '127.0.0.1', () => {
      socket.destroy()
      resolve(true)
    }).on('error', () => resolve(false))
  })
}

test('a port that was opened for a launch that failed is free again', async () => {
  const [port] = await freePorts(1)
  const spec = { image: 'echo', ports: [`${port}:80`], restart: 'no' }
  // A file can't be a folder as well: that shows after the port was opened.
  await must(create('fails', 'a', { ...spec, files: { '/etc': { a: 'text', 'a/b': 'text' } } }))
  await reaches('fails', 'a', 'failed')
  await eventually('nobody listens there', async () => !await connects(port!))
  await must(create('fails', 'b', spec))
  await reaches('fails', 'b', 'running')
  assert.equal(await connects(port!), true)
  await removed('fails')
})

test('secrets that a guest names again and again end its start, and not the host', async () => {
  await must(host.api('PUT', at('much', 'secrets', 's'), Buffer.alloc(60_000, 'x'),
    { 'content-type': 'application/octet-stream' }))
  const secrets = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`S${i}`, 's']))
  await must(create('much', 'a', { ...NAP, secrets, restart: 'no' }))
  const { exit } = await reaches('much', 'a', 'failed')
  assert.match(exit!.reason, /secrets add up to more than 4 MiB/)
  await removed('much')
})

test('what a pool had reserved is there for others when it was removed', async () => {
  const { pcpus } = await must(host.api('GET', '/v1/host')) as { pcpus: number }
  await must(create('pooled', 'first', NAP))
  await reaches('pooled', 'first', 'running')
  await must(host.api('PUT', at('pooled', 'pools', 'p'), { spec: { 'cpu-reservation': 0.8 * pcpus } }))
  await must(host.api('DELETE', at('pooled', 'pools', 'p')))
  await must(create('pooled', 'second', { ...NAP, 'cpu-reservation': 0.5, restart: 'no' }))
  await reaches('pooled', 'second', 'running')
  await removed('pooled')
})

test('apply makes a pool smaller together with its cells, and larger before them', async () => {
  const manifest = (memory: string, pool: string): string => `project: sized
pools: { p: { memory: ${pool} } }
cells: { a: { image: nap, args: [nap, '1000000'], pool: p, memory: ${memory} } }
`
  for (const [memory, pool] of [['8MiB', '8MiB'], ['2MiB', '2MiB'], ['16MiB', '16MiB']] as const) {
    const file = join(host.state, 'sized.yaml')
    writeFileSync(file, manifest(memory, pool))
    await host.ok(['apply', '-f', file])
    const { spec } = await must(host.api('GET', at('sized', 'pools', 'p'))) as { spec: { memory: string } }
    assert.equal(spec.memory, pool)
    await reaches('sized', 'a', 'running')
  }
  await removed('sized')
})

test('a volume that is being cloned is not removed, and its clones have all of its files', async () => {
  const volume = (name: string, ...words: string[]): string => at('cloned', 'volumes', name, ...words)
  await must(host.api('POST', at('cloned', 'volumes'), { name: 'v', spec: { size: '64MiB' } }))
  const folder = join(host.state, 'many')
  mkdirSync(folder)
  for (let i = 0; i < 2000; i++) writeFileSync(join(folder, `f${i}`), String(i))
  const archive = execFileSync('tar', ['-C', folder, '-c', '.'], { maxBuffer: 1 << 26 })
  await must(host.api('PUT', volume('v', 'files'), archive, { 'content-type': 'application/x-tar' }))
  const clones = await Promise.all(['a', 'b'].map(async (to) =>
    await must(host.api('POST', volume('v', 'clone'), { name: to })) as { id: string }))
  const removal = await host.api('DELETE', volume('v'))
  for (const { id } of clones) {
    const { status } = await eventually('it is cloned', async () => {
      const found = await must(host.api('GET', `/v1/operations/${id}`)) as { status: string }
      return found.status !== 'running' && found
    })
    assert.equal(status, 'done')
  }
  // On a machine that has cloned them by then it is removed as it should.
  if (removal.status !== 202) {
    assert.equal(removal.status, 409, JSON.stringify(removal.body))
    await must(host.api('DELETE', volume('v')))
  }
  for (const name of ['a', 'b']) {
    const listed = await host.api('GET', volume(name, 'files'))
    assert.equal((listed.body as string).match(/f\d+\0/g)?.length, 2000)
  }
  await removed('cloned')
})

test('a volume that is being copied into shares no file with a clone, and is not removed', async () => {
  const volume = (name: string, ...words: string[]): string => at('copied', 'volumes', name, ...words)
  await must(host.api('POST', at('copied', 'volumes'), { name: 'v', spec: { size: '64MiB' } }))
  const folder = join(host.state, 'copied')
  mkdirSync(folder)
  writeFileSync(join(folder, 'f'), 'x'.repeat(1 << 20))
  const archive = execFileSync('tar', ['-C', folder, '-c', 'f'], { maxBuffer: 1 << 26 })
  // Half of it comes now, and the rest when somebody has tried to remove the volume.
  const half = archive.length / 2
  const copied = Promise.withResolvers<number | undefined>()
  const copy = request({ socketPath: join(host.state, 'host.sock'), method: 'PUT', path: volume('v', 'files'),
    headers: { 'content-type': 'application/x-tar' } }, (answer) => { copied.resolve(answer.resume().statusCode) })
  copy.on('error', copied.reject).write(archive.subarray(0, half))
  const inside = join(host.state, 'projects/copied/volumes/v')
  await eventually('it is being copied', () => readdirSync(inside).length > 0)
  assert.equal((await host.api('DELETE', volume('v'))).status, 409)
  const { id } = await must(host.api('POST', volume('v', 'clone'), { name: 'c' })) as { id: string }
  await eventually('it is cloned', async () =>
    (await must(host.api('GET', `/v1/operations/${id}`)) as { status: string }).status === 'done')
  copy.end(archive.subarray(half))
  assert.equal(await copied.promise, 204)
  assert.equal(statSync(join(inside, 'f')).nlink, 1)
  await removed('copied')
})

test('guests that were being made when the host was killed go on, and none is made twice', async () => {
  const ports = await freePorts(60)
  await must(create('made', 'first', NAP))
  await reaches('made', 'first', 'running')
  const answers = Promise.all(ports.map((port, i) => create('made', `g${i}`,
    { image: 'echo', ports: [`${port}:80`], restart: 'no' }).catch(() => undefined)))
  await eventually('some run', async () => {
    const { items } = await must(host.api('GET', at('made', 'guests'))) as { items: Guest[] }
    return items.filter(({ phase }) => phase === 'running').length > 5
  })
  await host.killAndRestart()
  await answers
  const { items } = await must(host.api('GET', at('made', 'guests'))) as { items: (Guest & { name: string })[] }
  for (const { name } of items) await reaches('made', name, 'running', 'failed')
  const last = await must(host.api('GET', at('made', 'guests'))) as { items: Guest[] }
  assert.deepEqual(last.items.filter(({ phase }) => phase !== 'running').map(({ exit }) => exit), [])
  await removed('made')
})

test('guests that all start at once, as after a crash, get their ports', async () => {
  const names = Array.from({ length: 1500 }, (_, i) => `g${i}`)
  const spec = { image: 'echo', ports: ['0:80'] }
  const rest = [...names]
  await Promise.all(Array.from({ length: 50 }, async () => {
    for (let name = rest.pop(); name !== undefined; name = rest.pop()) await must(create('storm', name, spec))
  }))
  const all = async (): Promise<(Guest & { restarts: number })[]> =>
    (await must(host.api('GET', at('storm', 'guests'))) as { items: (Guest & { restarts: number })[] }).items
  const first = await eventually('all run', async () => {
    const items = await all()
    return items.every(({ phase }) => phase === 'running') && items
  })
  const { processes } = await must(host.api('GET', '/v1/host')) as { processes: { id: number; pid: number }[] }
  for (const { id, pid } of processes) if (id === first[0]!.process) process.kill(pid, 'SIGKILL')
  const again = await eventually('all run again', async () => {
    const items = await all()
    return items.every(({ phase, restarts }) => phase === 'running' && restarts > 0) && items
  })
  assert.deepEqual(new Set(again.map(({ restarts }) => restarts)), new Set([1]))
  await removed('storm')
})
